//! What a cloud image lacks, by cloud-init's own means: a NoCloud seed, a read-only second disk of its first boot, with package files that
//! the host's apt resolved against the very system on the disk, the recipe's overlay, and a script that installs both. Nothing comes from
//! a network: the machine has none.
//!
//! ```text
//! seed.img (vfat, label cidata)   meta-data, user-data, network-config   what cloud-init reads
//!                                 install.sh                             what it runs
//!                                 packages/1.deb …, overlay.tar          what that installs
//! ```

use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
    time::Duration,
};

use super::{BuildError, failed, image::MASKED};
use crate::machine::{GUEST_ADDRESS, GUEST_MAC, LabError, Machine};

/// The seed, in the build's folder and in the worker's.
pub(super) const SEED: &str = "seed.img";
/// Room on a seed beside what is put there.
const SPARE_BYTES: u64 = 16 << 20;
/// The least that a seed has: below, vfat takes other forms.
const LEAST_BYTES: u64 = 64 << 20;
/// How the script on the seed says on the console that it could not do its work.
const FAILED: &str = "patchlab-seed: failed: ";

/// What changes a system with rpm behind the lab's back.
const MASKED_OF_RPM: &[&str] = &[
    "dnf-makecache.timer",
    "dnf-makecache.service",
    "dnf-automatic.timer",
    "dnf-automatic-install.timer",
    "packagekit.service",
];

const USER_DATA: &str = r#"#cloud-config
# Nothing from the net: what is installed lies beside this file. Nobody logs in.
package_update: false
package_upgrade: false
ssh_pwauth: false
users: []
runcmd:
  - [sh, -c, "mkdir -p /run/patchlab-seed && mount -o ro LABEL=cidata /run/patchlab-seed && sh /run/patchlab-seed/install.sh"]
"#;

/// Installs what lies on the seed, starts the guest agent, and says on the console when it cannot.
const INSTALL: &str = r#"seed=/run/patchlab-seed
log=/run/patchlab-seed.log
fail() { printf 'patchlab-seed: failed: %s: %s\n' "$1" "$(tail -n 4 "$log" | tr '\n' ' ')" >/dev/ttyS0; exit 1; }
set -- "$seed"/packages/*.deb
if [ -e "$1" ]; then
  DEBIAN_FRONTEND=noninteractive apt-get --yes --no-install-recommends install "$@" >"$log" 2>&1 </dev/null ||
    fail 'the packages cannot be installed'
fi
if [ -e "$seed/overlay.tar" ]; then
  tar --directory / --no-same-owner --extract --file "$seed/overlay.tar" >"$log" 2>&1 || fail 'the overlay cannot be unpacked'
fi
: >/run/patchlab-seed.done
systemctl daemon-reload
systemctl start qemu-guest-agent >"$log" 2>&1 || fail 'the guest agent does not start'
"#;

/// After the first boot: cloud-init has done its work and does none again, whoever its clones say they are; nothing changes the system
/// behind the lab's back. The arguments are the units that would.
const FINISH: &str = r#"
# An image may have the guest agent already, and cloud-init complain of something early on: neither means that it is done. This waits for
# the job that is under way.
systemctl start cloud-final.service 2>/dev/null
said=$(cloud-init status --wait --long 2>&1)
if [ ! -e /run/patchlab-seed.done ]; then
  printf 'cloud-init did not run the seed to its end: %s\n' "$(printf '%s' "$said" | tr '\n' ' ')" >&2
  exit 1
fi
touch /etc/cloud/cloud-init.disabled || exit 1
systemctl mask "$@" >/dev/null 2>&1
umount /run/patchlab-seed 2>/dev/null
sync
"#;

/// What is put on a seed.
pub(super) struct Contents<'a> {
    /// The baseline's name: the system's host name.
    pub(super) name: &'a str,
    /// Package files.
    pub(super) packages: &'a [PathBuf],
    /// A folder whose files are copied over the root.
    pub(super) overlay: Option<&'a Path>,
}

/// The network as the lab has it, for cloud-init to write in whatever way the image knows.
fn network() -> String {
    format!(
        "version: 2\nethernets:\n  eth0:\n    match: {{macaddress: \"{GUEST_MAC}\"}}\n    set-name: eth0\n    \
         addresses: [{GUEST_ADDRESS}/24]\n"
    )
}

/// Writes a seed into `work`.
pub(super) fn write_seed(contents: &Contents<'_>, work: &Path) -> Result<PathBuf, BuildError> {
    let seed = work.join(SEED);
    let overlay = contents.overlay.map(|overlay| archive(overlay, &work.join("overlay.tar"))).transpose()?;
    let length = |path: &PathBuf| fs::metadata(path).map(|found| found.len()).map_err(failed("read", path));
    let lengths = contents.packages.iter().chain(&overlay).map(length).collect::<Result<Vec<_>, _>>()?;
    let bytes = (lengths.iter().sum::<u64>() * 11 / 10 + SPARE_BYTES).max(LEAST_BYTES).next_multiple_of(1 << 20);
    fill(contents, overlay.as_deref(), &seed, bytes).map_err(failed("write", &seed))?;
    Ok(seed)
}

fn fill(contents: &Contents<'_>, overlay: Option<&Path>, seed: &Path, bytes: u64) -> io::Result<()> {
    let mut file = File::options().read(true).write(true).create_new(true).open(seed)?;
    file.set_len(bytes)?;
    fatfs::format_volume(&mut file, fatfs::FormatVolumeOptions::new().volume_label(*b"cidata     "))?;
    let volume = fatfs::FileSystem::new(&mut file, fatfs::FsOptions::new())?;
    {
        let root = volume.root_dir();
        let meta = format!("instance-id: patchlab-{}\nlocal-hostname: {0}\n", contents.name);
        let texts = [
            ("meta-data", meta.as_str()),
            ("user-data", USER_DATA),
            ("network-config", &network()),
            ("install.sh", INSTALL),
        ];
        for (name, text) in texts {
            root.create_file(name)?.write_all(text.as_bytes())?;
        }
        if let Some(overlay) = overlay {
            io::copy(&mut File::open(overlay)?, &mut root.create_file("overlay.tar")?)?;
        }
        // Names of package files hold what vfat does not allow; apt asks the files themselves.
        let packages = root.create_dir("packages")?;
        for (number, path) in contents.packages.iter().enumerate() {
            io::copy(&mut File::open(path)?, &mut packages.create_file(&format!("{}.deb", number + 1))?)?;
        }
    }
    volume.unmount()
}

/// An overlay's files with their modes, as an archive.
fn archive(overlay: &Path, to: &Path) -> Result<PathBuf, BuildError> {
    let written = File::create(to).and_then(|file| {
        let mut builder = tar::Builder::new(file);
        builder.follow_symlinks(false);
        builder.append_dir_all(".", overlay)?;
        builder.into_inner()?.sync_all()
    });
    written.map_err(failed("archive", overlay))?;
    Ok(to.to_owned())
}

/// In the worker: waits until cloud-init has done its work in a machine's first boot, and sees to it that it does none again.
pub(super) fn finish(machine: &Machine, timeout: Duration) -> Result<(), LabError> {
    machine.wait_agent_while(timeout, |console| match failure(console) {
        Some(said) => Err(LabError::FailedUnit {
            machine: machine.name().to_owned(),
            unit: "the lab's seed in cloud-init".into(),
            said: said.to_owned(),
        }),
        None => Ok(()),
    })?;
    machine.guest().script(FINISH, &[MASKED, MASKED_OF_RPM].concat(), timeout)?;
    Ok(())
}

/// What the script on the seed said on the console, when it failed.
fn failure(console: &str) -> Option<&str> {
    console.lines().find_map(|line| line.split_once(FAILED)).map(|(_, said)| said.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_is_a_volume_that_cloud_init_looks_for_with_all_that_it_is_to_have() {
        let dir = tempfile::tempdir().unwrap();
        let (overlay, package) = (dir.path().join("overlay"), dir.path().join("a_1%3a2+b~c_all.deb"));
        fs::create_dir_all(overlay.join("etc/x")).unwrap();
        fs::write(overlay.join("etc/x/y"), "z").unwrap();
        fs::write(&package, vec![7; 100_000]).unwrap();
        let contents = Contents { name: "web", packages: std::slice::from_ref(&package), overlay: Some(&overlay) };
        let seed = write_seed(&contents, dir.path()).unwrap();
        let volume =
            fatfs::FileSystem::new(File::options().read(true).write(true).open(seed).unwrap(), fatfs::FsOptions::new());
        let volume = volume.unwrap();
        assert_eq!(volume.read_volume_label_from_root_dir().unwrap().as_deref(), Some("cidata"));
        let read = |path: &str| {
            let mut bytes = Vec::new();
            io::Read::read_to_end(&mut volume.root_dir().open_file(path).unwrap(), &mut bytes).unwrap();
            bytes
        };
        assert_eq!(read("meta-data"), b"instance-id: patchlab-web\nlocal-hostname: web\n");
        assert!(read("user-data").starts_with(b"#cloud-config\n"));
        assert_eq!(read("packages/1.deb"), fs::read(&package).unwrap());
        let overlay = read("overlay.tar");
        let mut archive = tar::Archive::new(&overlay[..]);
        let paths: Vec<_> =
            archive.entries().unwrap().map(|entry| entry.unwrap().path().unwrap().into_owned()).collect();
        assert!(paths.iter().any(|path| path.ends_with("etc/x/y")), "{paths:?}");
    }

    #[test]
    fn a_failure_on_the_console_is_told_in_the_seeds_words() {
        let console =
            "[  12.3] cloud-init[1]: x\r\npatchlab-seed: failed: the packages cannot be installed: E: a b \r\n";
        assert_eq!(failure(console), Some("the packages cannot be installed: E: a b"));
        assert_eq!(failure("patchlab-seed\n"), None);
        assert!(INSTALL.contains(FAILED));
    }
}
