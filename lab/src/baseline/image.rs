//! From a suite's packages to a disk that boots by its own bootloader and kernel. Needs root, no loop device.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufRead as _, BufReader, Read as _, Seek as _, SeekFrom, Write as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use super::{BuildError, failed};
use crate::{
    recipe::{Installation, Recipe, Wanted},
    room,
};

/// The installer's log in the build's folder.
pub(super) const LOG: &str = "install.log";
/// Preferences of the installer's apt, in the new root.
const PINS: &str = "/etc/apt/preferences.d/patchlab";
/// Lines of the installer's that an error repeats.
const REASON_LINES: usize = 4;

/// What every baseline has beside its recipe's kernel and packages.
pub(crate) const PACKAGES: &[&str] =
    &["systemd-sysv", "udev", "dbus", "qemu-guest-agent", "iproute2", "ca-certificates", "procps", "grub2-common"];

/// Units that would change a baseline behind the lab's back, or offer a login on the console.
pub(super) const MASKED: &[&str] = &[
    "apt-daily.timer",
    "apt-daily.service",
    "apt-daily-upgrade.timer",
    "apt-daily-upgrade.service",
    "unattended-upgrades.service",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "fstrim.timer",
    "serial-getty@ttyS0.service",
    "getty@tty1.service",
];

/// What boots first, until the machine itself has run Debian's update-grub ([`BOOT_MENU`]), which a root without its disk cannot. The
/// kernel is named by the links that its own package keeps.
const GRUB_CFG: &str = "\
# first boot only
set timeout=0
serial --unit=0
terminal_output serial
linux /vmlinuz root=/dev/vda1 console=ttyS0 quiet net.ifnames=0 panic=5
initrd /initrd.img
boot
";

/// What Debian's grub-mkconfig(8) makes the machine's own menu of. It boots once what `grub-reboot` names and otherwise the saved entry,
/// or the newest kernel where none is saved; a kernel that panics reboots by itself, so that the one before comes back.
const GRUB_DEFAULTS: &str = "\
GRUB_DEFAULT=saved
GRUB_TIMEOUT=0
GRUB_TERMINAL=serial
GRUB_SERIAL_COMMAND=\"serial --unit=0\"
GRUB_DISTRIBUTOR=Debian
GRUB_CMDLINE_LINUX_DEFAULT=quiet
GRUB_CMDLINE_LINUX=\"console=ttyS0 net.ifnames=0 panic=5\"
GRUB_DISABLE_LINUX_UUID=true
GRUB_DISABLE_OS_PROBER=true
GRUB_DISABLE_RECOVERY=true
";

/// Makes the menu, in the machine's first boot; nothing on a machine that has one, or one of somebody else's.
pub(super) const BOOT_MENU: &str = "\
grep -qsx '# first boot only' /boot/grub/grub.cfg || exit 0
grub-editenv /boot/grub/grubenv create && update-grub";

const NETWORK: &str = "[Match]\nName=eth0\n[Network]\nAddress=10.0.2.15/24\nGateway=10.0.2.2\nLinkLocalAddressing=no\n";

const SECTOR: u64 = 512;
/// Where the one partition begins; the gap before it holds the bootloader.
const PARTITION_START: u64 = 2048;
/// Code in the first sector; the partition table follows it.
const BOOT_CODE_BYTES: usize = 440;

/// What the installation left: a root, the package files it came from, and the suite's sources.
pub(super) struct Root {
    pub(super) root: PathBuf,
    pub(super) packages: PathBuf,
    pub(super) sources: PathBuf,
}

/// Installs the recipe's system into `work`.
pub(super) fn install(
    recipe: &Recipe,
    installation: &Installation,
    work: &Path,
    say: &mut dyn FnMut(&str),
) -> Result<Root, BuildError> {
    let Installation { suite, pockets, kernel, packages, .. } = installation;
    let (root, sources) = (work.join("root"), work.join("sources.list"));
    let suites: Vec<String> = pockets.iter().map(|pocket| pocket.suite(suite)).collect();
    let own = packages.iter().map(Wanted::to_string);
    let included: Vec<String> =
        PACKAGES.iter().map(|name| (*name).to_owned()).chain([kernel.clone()]).chain(own).collect();
    // In namespaces of its own: it dies with this process, with all that it started, and its mounts never show here.
    let mut command = Command::new("setpriv");
    command
        .args([
            "--pdeathsig",
            "KILL",
            "unshare",
            "--mount",
            "--pid",
            "--fork",
            "--kill-child=KILL",
            "--mount-proc",
            "--",
        ])
        .args(["mmdebstrap", "--mode=root", "--variant=minbase", "--format=directory"])
        // The package files stay: they are the baseline's pool.
        .args(["--skip=essential/unlink", "--skip=cleanup/apt/cache"])
        // Its own update would come after the last hook: see `name_check`, which does it first.
        .arg("--skip=update")
        .arg(format!("--include={}", included.join(",")))
        .arg(format!("--setup-hook=cp \"$1/etc/apt/sources.list\" {}", quoted(&sources)))
        .arg(format!("--setup-hook={}", pocket_filter(&suites)))
        .arg(format!("--setup-hook={}", version_pins(packages)))
        .arg(format!("--setup-hook={}", name_check(&included)))
        // The machine's own apt is not to know of them: an order upgrades what was installed by version too.
        .arg(format!("--customize-hook=rm -f \"$1{PINS}\""))
        .args(merged_usr(packages))
        .arg(suite)
        .arg(&root)
        .env("TMPDIR", work)
        .env("LC_ALL", "C.UTF-8")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let subject = || format!("{} from {}", recipe.name, suites.join(", "));
    run_installer(&mut command, &work.join(LOG), say).map_err(|failure| match failure {
        InstallerFailure::NoSuchPackage(packages) => BuildError::NoSuchPackage {
            packages: packages.join(", "),
            suites: suites.join(", "),
            recipe: recipe.path.clone(),
        },
        InstallerFailure::Said(reason) => BuildError::Tool { tool: "mmdebstrap", subject: subject(), reason },
    })?;
    let packages = work.join("packages");
    fs::create_dir_all(&packages).map_err(failed("create", &packages))?;
    let archives = root.join("var/cache/apt/archives");
    for entry in fs::read_dir(&archives).map_err(failed("read", &archives))? {
        let path = entry.map_err(failed("read", &archives))?.path();
        if let Some(name) = path.file_name().filter(|_| path.extension().is_some_and(|kind| kind == "deb")) {
            fs::rename(&path, packages.join(name)).map_err(failed("keep", &path))?;
        }
    }
    Ok(Root { root, packages, sources })
}

/// A hook that keeps only the lines of the wanted suites in the new root's sources; the installer's own default names the host.
fn pocket_filter(suites: &[String]) -> String {
    let wanted = suites.iter().map(|suite| format!("$i == \"{suite}\"")).collect::<Vec<_>>().join(" || ");
    format!(
        "awk '{{ for (i = 3; i <= NF; i++) if ({wanted}) {{ print; next }} }}' \"$1/etc/apt/sources.list\" \
         >\"$1/etc/apt/sources.kept\" && mv \"$1/etc/apt/sources.kept\" \"$1/etc/apt/sources.list\""
    )
}

/// A hook that makes the versions that a recipe names the only candidates, for the essential packages too, which are installed first.
fn version_pins(packages: &[Wanted]) -> String {
    let preferences: String = packages.iter().filter_map(Wanted::preference).collect();
    format!("printf '{}' >\"$1{PINS}\"", preferences.replace('\n', r"\n"))
}

/// Without versions, Debian's own first choice (the package usrmerge) merges /usr. It needs perl, of which one version goes with one of
/// the essential perl-base: where versions are named, the installer merges it instead.
fn merged_usr(packages: &[Wanted]) -> Option<&'static str> {
    let named = packages.iter().any(|wanted| wanted.version.is_some());
    named.then_some("--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr")
}

fn quoted(path: &Path) -> String {
    format!("'{}'", path.display().to_string().replace('\'', r"'\''"))
}

/// A hook that updates the index files and then asks apt for every package by name: one that is not there is an error now, and
/// not after the download of all the others. Whatever else the simulation says is left to the installation itself.
fn name_check(packages: &[String]) -> String {
    format!(
        "export APT_CONFIG=\"$MMDEBSTRAP_APT_CONFIG\"; echo 'I: running apt-get update...' >&2; \
         apt-get -qq update --error-on=any >&2 || exit 1; \
         said=$(apt-get -qq --simulate install {} 2>&1 >/dev/null) || true; \
         if echo \"$said\" | grep -E \"Unable to locate package|has no installation candidate|^E: Version .* was not found\" >&2; then exit 1; fi",
        packages.join(" ")
    )
}

/// Why the installer ended.
enum InstallerFailure {
    /// The suites do not have these packages.
    NoSuchPackage(Vec<String>),
    /// Something else, in its own words.
    Said(String),
}

/// Runs the installer, passes on what it is at, and finds out which packages it misses. Its log may end early where the disk is
/// full; the installer itself is always waited for.
fn run_installer(command: &mut Command, log: &Path, say: &mut dyn FnMut(&str)) -> Result<(), InstallerFailure> {
    let said = |action: &str| {
        let action = action.to_owned();
        move |error: io::Error| InstallerFailure::Said(format!("{action}: {error}"))
    };
    let mut written = File::create(log).map_err(said(&format!("cannot create its log {}", log.display())))?;
    let mut child = command.spawn().map_err(said("does not start (run lab/setup-host)"))?;
    let mut lines = Vec::new();
    if let Some(output) = child.stderr.take() {
        let mut reader = BufReader::new(output);
        let mut bytes = Vec::new();
        // An output that cannot be read is at its end: the exit status says the rest.
        while reader.read_until(b'\n', &mut bytes).is_ok_and(|length| length > 0) {
            let _ = written.write_all(&bytes);
            let line = String::from_utf8_lossy(&bytes).trim_end().to_owned();
            if let Some(stage) =
                line.strip_prefix("I: ").filter(|stage| stage.ends_with("...") && !stage.contains("signal"))
            {
                say(stage.trim_end_matches('.'));
            }
            lines.push(line);
            bytes.clear();
        }
    }
    let status = child.wait().map_err(said("cannot be waited for"))?;
    if status.success() {
        return Ok(());
    }
    let mut missing: Vec<String> = lines.iter().filter_map(|line| missing_package(line)).collect();
    if !missing.is_empty() {
        missing.sort();
        missing.dedup();
        return Err(InstallerFailure::NoSuchPackage(missing));
    }
    let errors: Vec<&str> = lines.iter().map(String::as_str).filter(|line| is_cause(line)).take(REASON_LINES).collect();
    Err(InstallerFailure::Said(if errors.is_empty() { status.to_string() } else { errors.join("; ") }))
}

/// Whether a line of the installer's says why it failed, rather than that it did.
fn is_cause(line: &str) -> bool {
    let noise = ["E: command failed:", "E: run_chroot failed", "E: mmdebstrap failed to run"];
    let is_error = line.starts_with("E:") || room::says_full(line);
    is_error && !noise.iter().any(|noise| line.starts_with(noise))
}

/// A package, or one version of it, that apt says is not there.
fn missing_package(line: &str) -> Option<String> {
    missing(line.trim().strip_prefix("E: ")?)
}

/// apt's three ways to say so.
pub(super) fn missing(said: &str) -> Option<String> {
    if let Some(name) = said.strip_prefix("Unable to locate package ") {
        return Some(name.to_owned());
    }
    if let Some((version, rest)) = said.strip_prefix("Version '").and_then(|rest| rest.split_once("' for '")) {
        return Some(format!("{}={version}", rest.strip_suffix("' was not found")?));
    }
    Some(said.strip_prefix("Package '")?.strip_suffix("' has no installation candidate")?.to_owned())
}

/// Makes the root a lab's machine: network, console, bootloader's menu, nothing that changes it by itself; then the overlay.
pub(super) fn prepare(name: &str, overlay: Option<&Path>, root: &Path) -> Result<(), BuildError> {
    let write = |path: &str, text: &str| -> Result<(), BuildError> {
        let path = root.join(path);
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(failed("create", folder))?;
        }
        fs::write(&path, text).map_err(failed("write", &path))
    };
    write("boot/grub/grub.cfg", GRUB_CFG)?;
    write("etc/default/grub", GRUB_DEFAULTS)?;
    write("etc/systemd/network/10-lab.network", NETWORK)?;
    write("etc/fstab", "/dev/vda1 / ext4 defaults 0 1\n")?;
    write("etc/hostname", &format!("{name}\n"))?;
    write("etc/hosts", "127.0.0.1 localhost\n::1 localhost\n")?;
    // No name service in the lab: an empty list fails at once, the host's would wait.
    write("etc/resolv.conf", "")?;
    let units = root.join("etc/systemd/system");
    let link = |target: &str, path: PathBuf| -> Result<(), BuildError> {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(failed("create", folder))?;
        }
        let _ = fs::remove_file(&path);
        std::os::unix::fs::symlink(target, &path).map_err(failed("create", &path))
    };
    for unit in MASKED {
        link("/dev/null", units.join(unit))?;
    }
    let networkd = "systemd-networkd.service";
    link(&format!("/lib/systemd/system/{networkd}"), units.join("multi-user.target.wants").join(networkd))?;
    if let Some(overlay) = overlay {
        let source = overlay.join(".");
        run("cp", Command::new("cp").args(["-a", "--no-preserve=ownership"]).arg(source).arg(root), overlay)?;
    }
    Ok(())
}

/// Writes the root into a disk image that boots, without a loop device.
pub(super) fn disk(recipe: &Recipe, root: &Path, work: &Path) -> Result<PathBuf, BuildError> {
    let (raw, qcow2, core) = (work.join("disk.raw"), work.join("disk.qcow2"), work.join("core.img"));
    run(
        "grub-mkimage (package grub-common)",
        Command::new("grub-mkimage").args(["-O", "i386-pc", "-p", "(hd0,msdos1)/boot/grub", "-o"]).arg(&core).args([
            "biosdisk",
            "part_msdos",
            "ext2",
            "normal",
            "linux",
            "configfile",
            "serial",
            "terminal",
            "echo",
            "test",
            // What grub-mkconfig's menu loads: there are no modules on the disk.
            "loadenv",
            "search",
            "search_fs_uuid",
            "gzio",
            "all_video",
        ]),
        &core,
    )?;
    File::create(&raw).and_then(|file| file.set_len(recipe.disk_bytes)).map_err(failed("create", &raw))?;
    partition(&raw)?;
    let kib = (recipe.disk_bytes - PARTITION_START * SECTOR) / 1024;
    let offset = format!("offset={}", PARTITION_START * SECTOR);
    run(
        "mke2fs (package e2fsprogs)",
        Command::new("mke2fs")
            .args(["-q", "-t", "ext4", "-L", "root", "-d"])
            .arg(root)
            .args(["-E", &offset])
            .arg(&raw)
            .arg(format!("{kib}k")),
        &raw,
    )?;
    write_bootloader(&raw, &core)?;
    to_qcow2(&raw, &qcow2)?;
    Ok(qcow2)
}

/// Makes the disk that a machine is given of a raw one, which goes.
pub(super) fn to_qcow2(raw: &Path, qcow2: &Path) -> Result<(), BuildError> {
    run(
        "qemu-img (package qemu-utils)",
        Command::new("qemu-img").args(["convert", "-f", "raw", "-O", "qcow2"]).arg(raw).arg(qcow2),
        qcow2,
    )?;
    fs::remove_file(raw).map_err(failed("remove", raw))
}

fn partition(raw: &Path) -> Result<(), BuildError> {
    let tool = "sfdisk (package fdisk)";
    let spoken = |reason: String| BuildError::Tool { tool, subject: raw.display().to_string(), reason };
    let mut child = Command::new("sfdisk")
        .arg("--quiet")
        .arg(raw)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| spoken(error.to_string()))?;
    if let Some(mut input) = child.stdin.take() {
        let table = format!("start={PARTITION_START},type=83,bootable\n");
        input.write_all(table.as_bytes()).map_err(|error| spoken(error.to_string()))?;
    }
    let output = child.wait_with_output().map_err(|error| spoken(error.to_string()))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(spoken(String::from_utf8_lossy(&output.stderr).trim().to_owned())),
    }
}

/// GRUB's first stage into the first sector, its core into the gap before the partition.
fn write_bootloader(raw: &Path, core: &Path) -> Result<(), BuildError> {
    let boot = Path::new("/usr/lib/grub/i386-pc/boot.img");
    let mut first = [0; BOOT_CODE_BYTES];
    File::open(boot)
        .and_then(|mut file| file.read_exact(&mut first))
        .map_err(failed("read (package grub-pc-bin)", boot))?;
    let core = fs::read(core).map_err(failed("read", core))?;
    let gap = (PARTITION_START - 1) * SECTOR;
    if core.len() as u64 > gap {
        let source = io::Error::other(format!("{} bytes do not fit into the gap of {gap}", core.len()));
        return Err(failed("place the bootloader in", raw)(source));
    }
    let place = || -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).open(raw)?;
        file.write_all(&first)?;
        file.seek(SeekFrom::Start(SECTOR))?;
        file.write_all(&core)
    };
    place().map_err(failed("write the bootloader to", raw))
}

fn run(tool: &'static str, command: &mut Command, subject: &Path) -> Result<(), BuildError> {
    let broken = |reason: String| BuildError::Tool { tool, subject: subject.display().to_string(), reason };
    let output = command
        .stdin(Stdio::null())
        .output()
        .map_err(|error| broken(format!("does not start: {error}; run lab/setup-host")))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(broken(String::from_utf8_lossy(&output.stderr).trim().to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn apt_names_the_missing_package() {
        for line in ["E: Unable to locate package nginxx", "E: Package 'nginxx' has no installation candidate"] {
            assert_eq!(missing_package(line).as_deref(), Some("nginxx"));
        }
        assert_eq!(missing_package("E: Version '1:2-3' for 'nginx' was not found").as_deref(), Some("nginx=1:2-3"));
        assert_eq!(missing_package("E: apt-get failed"), None);
    }

    #[test]
    fn an_error_repeats_causes_only() {
        for (line, cause) in [
            ("E: Write error - write (28: No space left on device)", true),
            ("tar: x: Cannot write: No space left on device", true),
            ("E: command failed: export APT_CONFIG", false),
            ("E: mmdebstrap failed to run", false),
            ("I: running apt-get update...", false),
        ] {
            assert_eq!(is_cause(line), cause, "{line}");
        }
    }

    #[test]
    fn versions_become_preferences_and_names_none() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("etc/apt/preferences.d")).unwrap();
        let packages: Vec<Wanted> = ["a2", "b2=1:2~3-4"].map(|text| text.parse().unwrap()).to_vec();
        for (packages, expected) in
            [(&packages[..1], ""), (&packages[..], "Package: b2\nPin: version 1:2~3-4\nPin-Priority: 1001\n\n")]
        {
            let status =
                Command::new("sh").args(["-c", &version_pins(packages), "sh"]).arg(dir.path()).status().unwrap();
            assert!(status.success());
            let written = fs::read_to_string(dir.path().join(PINS.trim_start_matches('/'))).unwrap();
            assert_eq!(written, expected);
        }
    }

    #[test]
    fn only_wanted_pockets_stay_in_the_sources() {
        let dir = tempfile::tempdir().unwrap();
        let apt = dir.path().join("etc/apt");
        fs::create_dir_all(&apt).unwrap();
        let (main, security) =
            ("deb http://mirror/debian suite main\n", "deb [a=b] http://mirror/s suite-security main\n");
        fs::write(apt.join("sources.list"), format!("{main}{security}deb http://mirror/debian suite-updates main\n"))
            .unwrap();
        for (suites, kept) in
            [(vec!["suite", "suite-security"], format!("{main}{security}")), (vec!["suite"], main.into())]
        {
            let suites: Vec<String> = suites.into_iter().map(String::from).collect();
            let status =
                Command::new("sh").args(["-c", &pocket_filter(&suites), "sh"]).arg(dir.path()).status().unwrap();
            assert!(status.success());
            assert_eq!(fs::read_to_string(apt.join("sources.list")).unwrap(), kept);
        }
    }
}
