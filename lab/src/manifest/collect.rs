//! Taking a manifest: one script in the guest, its answers read back and parsed here.
//!
//! Digests are what takes time under emulation. A clone's files that have not changed since its baseline's manifest was taken
//! (by their change time, which no tool sets back) keep the digest that they have there; all others are read. So the first
//! manifest reads everything, and one of a clone only what the patch touched.

use std::{collections::BTreeMap, time::Duration};

use jiff::Timestamp;
use patchlab_check::Digest;

use super::{
    Entry, Kind, Manifest, Port, PortRange, Unit, VOLATILE, accounts,
    attributes::{self, Reading},
    disk, disks, kernels,
    packages::{self, Packages},
    restarts,
};
use crate::machine::{Guest, LabError, Machine};

/// Bytes of each answer that are read: 64 MiB.
const ANSWER_LIMIT: u64 = 64 * 1024 * 1024;

/// How long the whole collection may take, with kvm.
const TIMEOUT: Duration = Duration::from_secs(120);

/// Writes what files there are and the digests of those that are read to files below `$1`. `$2`: only files changed since this time
/// (seconds) are read, on the file systems mounted at `$3` (a line each) that note such a time, and all on others; `$4`: whose extended
/// attributes are, a word for `attributes` or none; the rest are the paths that are left out.
const FILES: &str = r#"
set -uf
out=$1 since=$2 known=$3 attributes=$4; shift 4
mkdir -p "$out" && cd "$out" || exit 1
tab=$(printf '\t')
line='
'
IFS=$line
disks "$@" >disks || exit 1
prune=$(for path; do printf -- '-path\n%s\n-prune\n-o\n' "$path"; done)
timed= whole=
while IFS=$tab read -r how point; do
  case $how$line$line$known$line in
  "timed$line"*"$line$point$line"*) timed=$timed$line$point ;;
  *) whole=$whole$line$point ;;
  esac
done <disks
list() {
  name=$1 since=$2; shift 2
  : >"changed.$name" >"folders.$name"
  [ $# -eq 0 ] || find "$@" -xdev $prune \( \
    -newerct "@$since" \( -type f -fprint0 "changed.$name" -o -type d -fprint0 "folders.$name" \) , \
    -printf '%y\t%m\t%U\t%G\t%s\t%l\t%p\0' \) >>files
}
: >files
list timed "$since" $timed && list whole 0 $whole || exit 1
cat changed.timed changed.whole >changed
: >attributes
[ -z "$attributes" ] || attributes "$attributes" changed folders.timed folders.whole >attributes || exit 1
xargs -0 -r -n 400 -P "$(nproc)" sh -c 'sha256sum -z -- "$@" >"$(mktemp "$0/sums.XXXXXX")"' "$out" <changed
: >sums
find . -name 'sums.*' -exec cat {} + >>sums
unset IFS
set +f
"#;

/// Writes the other answers beside them.
const REST: &str = r#"
uname -r >kernel
systemctl list-units --all --plain --full --no-legend --no-pager >units || exit 1
ss -Hlntup >ports || exit 1
# Every process costs a guest under emulation 30 ms: one where it can be one, and the shell's own words.
{
  tail -n +1 disks /etc/passwd /etc/group /proc/version /proc/modules /run/reboot-required.pkgs /proc/sys/net/ipv4/ip_local_port_range
  echo '==> shadow <=='
  sed -E 's/^([^:]*)::.*/\1:empty/; t; s/^([^:]*):[!*].*/\1:locked/; t; s/^([^:]*):.*/\1:set/' /etc/shadow
  echo '==> images <=='; printf '%s\n' /boot/vmlinuz-*
  echo '==> boot <=='; if [ -d /sys/firmware/efi ]; then echo uefi; else echo bios; fi
  echo '==> required <=='; if [ -e /run/reboot-required ]; then echo required; fi
  echo '==> df <=='
  df --local --block-size=1 --output=fstype,size,used,target -x tmpfs -x devtmpfs -x overlay -x squashfs -x iso9660
  echo '==> du <=='; du -skx /var/log /var/cache /var/lib/apt/lists /var/tmp /tmp
  echo '==> md5sums <=='; grep -z '^/etc/' changed | xargs -0 -r md5sum --
  echo '==> processes <=='
  grep -sE '^[^ ]+ ..x. .* /(usr|lib|lib64|bin|sbin|opt|srv|home|var)/.* \(deleted\)$' /proc/[0-9]*/maps >maps
  last=
  while IFS=/ read -r _ _ pid _; do
    [ "$pid" = "$last" ] && continue
    last=$pid
    { read -r name <"/proc/$pid/comm" && read -r group <"/proc/$pid/cgroup"; } &&
      printf '%s\t%s\t%s\n' "$pid" "$name" "$group"
  done <maps
  echo '==> maps <=='; while IFS= read -r line; do printf '%s\n' "$line"; done <maps
} >system 2>/dev/null
"#;

/// The machine's manifest, every file read.
pub fn collect(machine: &Machine) -> Result<Manifest, LabError> {
    take(machine, None)
}

/// The manifest of a clone of the baseline whose manifest was taken `at` that time by its clock. Files that have not changed
/// since are not read again.
pub fn collect_since(machine: &Machine, baseline: &Manifest, at: Timestamp) -> Result<Manifest, LabError> {
    take(machine, Some((baseline, at)))
}

fn take(machine: &Machine, known: Option<(&Manifest, Timestamp)>) -> Result<Manifest, LabError> {
    let guest = machine.guest();
    let folder = "/run/patchlab-manifest";
    // One second earlier: the time is that of a clock read just before.
    let since = known.map_or(0, |(_, at)| at.as_second() - 1).to_string();
    // An older lab listed the root's files alone.
    let listed = known.map(|(manifest, _)| match &manifest.file_systems {
        Some(points) => points.iter().map(String::as_str).collect::<Vec<_>>().join("\n"),
        None => "/".to_owned(),
    });
    let listed = listed.unwrap_or_default();
    let reading = match known {
        None => Reading::Whole,
        Some((manifest, _)) => manifest.attributes.as_ref().map_or(Reading::Nothing, Reading::Changed),
    };
    let mut arguments = vec![folder, &since, &listed, reading.word()];
    arguments.extend(VOLATILE.iter().map(|(path, _)| *path));
    let timeout = TIMEOUT * machine.hardware().accelerator.factor();
    guest.script(
        &format!("{}{}{FILES}{REST}{}exit 0\n", disks::shell(), attributes::shell(), packages::script()),
        &arguments,
        timeout,
    )?;
    let read = |name: &str| answer(&guest, &format!("{folder}/{name}"), timeout);
    let texts = Texts {
        kernel: read("kernel")?,
        packages: read("packages")?,
        files: read("files")?,
        sums: read("sums")?,
        owners: read("owners")?,
        attributes: read("attributes")?,
        units: read("units")?,
        ports: read("ports")?,
        system: read("system")?,
    };
    guest.script(r#"rm -rf -- "$1""#, &[folder], Duration::from_secs(60))?;
    Ok(parse(&texts, known.map(|(manifest, _)| manifest), reading))
}

fn answer(guest: &Guest, path: &str, timeout: Duration) -> Result<String, LabError> {
    let bytes = guest.read_file(path, ANSWER_LIMIT + 1, timeout)?.unwrap_or_default();
    // Half of an answer would be taken for a machine that lacks the other half.
    if bytes.len() as u64 > ANSWER_LIMIT {
        return Err(guest.refused(&format!("read {path}"), format!("it has more than {ANSWER_LIMIT} bytes")).into());
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The script's answers.
#[derive(Default)]
struct Texts {
    kernel: String,
    packages: String,
    files: String,
    sums: String,
    owners: String,
    attributes: String,
    units: String,
    ports: String,
    system: String,
}

fn parse(texts: &Texts, known: Option<&Manifest>, reading: Reading<'_>) -> Manifest {
    let packages = Packages::parse(&texts.packages, &texts.owners);
    let sums = sums(&texts.sums);
    let files: BTreeMap<String, Entry> = texts
        .files
        .split('\0')
        .filter_map(entry)
        .map(|(path, mut entry)| {
            if entry.kind == Kind::File {
                let before = || known.and_then(|manifest| manifest.files.get(&path)?.sha256);
                entry.sha256 = sums.get(path.as_str()).copied().or_else(before);
            }
            entry.package = packages.owners.get(path.as_str()).cloned().flatten();
            (path, entry)
        })
        .collect();
    let mut ports: Vec<Port> = texts.ports.lines().filter_map(Port::of_line).collect();
    ports.sort();
    ports.dedup();
    let section = |name: &str| section(&texts.system, name);
    let kernel = texts.kernel.trim().to_owned();
    let kernels =
        kernels::parse(section("images"), section("/proc/version"), section("/proc/modules"), section("boot"));
    let required = (section("required"), section("/run/reboot-required.pkgs"));
    let running = (section("processes"), section("maps"));
    let before = known.and_then(|manifest| manifest.configuration.as_ref());
    Manifest {
        schema: Manifest::SCHEMA,
        units: texts.units.lines().filter_map(unit).collect(),
        ports,
        given_ports: PortRange::of_line(section("/proc/sys/net/ipv4/ip_local_port_range")).unwrap_or_default(),
        accounts: Some(accounts::parse(section("/etc/passwd"), section("/etc/group"), section("shadow"))),
        disk: Some(disk::parse(section("df"), section("du"), &files)),
        restarts: Some(restarts::parse(&kernel, &kernels, &packages.installed, required, running)),
        kernels: Some(kernels),
        kernel,
        attributes: attributes::parse(&texts.attributes, reading, |path| files.contains_key(path)),
        file_systems: Some(disks::parse(section("disks"))),
        packages: packages.installed.clone(),
        configuration: Some(packages.configuration(section("md5sums"), before, &files)),
        files,
    }
}

/// What stands between `==> NAME <==` (as tail(1) writes it, after an empty line) and the next such line.
fn section<'t>(text: &'t str, name: &str) -> &'t str {
    let head = format!("==> {name} <==\n");
    let start = if text.starts_with(&head) { Some(0) } else { text.find(&format!("\n{head}")).map(|at| at + 1) };
    let Some(rest) = start.map(|start| &text[start + head.len()..]) else { return "" };
    if rest.starts_with("==> ") { "" } else { rest.find("\n==> ").map_or(rest, |end| &rest[..=end]) }
}

/// `type mode uid gid size target path`, by tabs; the path is last, so that it may hold tabs.
fn entry(record: &str) -> Option<(String, Entry)> {
    let mut fields = record.splitn(7, '\t');
    let kind = match fields.next()? {
        "f" => Kind::File,
        "d" => Kind::Folder,
        "l" => Kind::Link,
        _ => Kind::Special,
    };
    let mode = u32::from_str_radix(fields.next()?, 8).ok()?;
    let (uid, gid) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    let size = fields.next()?.parse().ok()?;
    let target = fields.next().map(str::to_owned).filter(|_| kind == Kind::Link);
    let path = fields.next()?.to_owned();
    let size = if kind == Kind::File { size } else { 0 };
    Some((path, Entry { kind, mode, uid, gid, size, sha256: None, target, package: None }))
}

/// `DIGEST  path`, ended by NUL.
fn sums(text: &str) -> BTreeMap<&str, Digest> {
    text.split('\0')
        .filter_map(|record| record.split_once("  "))
        .filter_map(|(digest, path)| Some((path, digest.parse().ok()?)))
        .collect()
}

fn unit(line: &str) -> Option<(String, Unit)> {
    let mut words = line.split_whitespace();
    let name = words.next()?.to_owned();
    // Devices and scopes are the kernel's and the sessions' doing.
    if [".device", ".scope", ".slice"].iter().any(|kind| name.ends_with(kind)) {
        return None;
    }
    Some((name, Unit { load: words.next()?.into(), active: words.next()?.into(), sub: words.next()?.into() }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts() -> Texts {
        let digest = Digest::of("new");
        Texts {
            kernel: "6.1.0\n".into(),
            packages: "dpkg\nnginx\tamd64\t1.22\tinstall ok installed\n /etc/a\tb aa\n /etc/gone bb\n\n\
                base\tall\t1\tinstall ok installed\n\n"
                .into(),
            files: "f\t644\t0\t0\t3\t\t/etc/a\tb\0d\t755\t0\t0\t4096\t\t/etc\0l\t777\t0\t0\t4\tdash\t/usr/bin/sh\0f\t755\t0\t0\t9\t\t/usr/sbin/nginx\0".into(),
            sums: format!("{digest}  /etc/a\tb\0"),
            owners: "./nginx.list:/etc\n./base.list:/etc\n./nginx.list:/sbin/nginx\n./base:all.list:/bin/sh\n".into(),
            attributes: "p/etc/a\tb\0auser.x=00\0".into(),
            units: "nginx.service loaded active running A web server\ndev-vda.device loaded active plugged x\n".into(),
            ports: "tcp LISTEN 0 511 [::]:80 [::]:* users:((\"nginx\",pid=1,fd=6))\nudp UNCONN 0 0 10.0.2.15%eth0:68 0.0.0.0:*\n".into(),
            system: "==> disks <==\ntimed\t/\nwhole\t/boot/efi\n\n==> /etc/passwd <==\nroot:x:0:0::/root:/bin/sh\n\n==> /etc/group <==\n\n==> /proc/modules <==\n\
                ext4 1 0 - Live 0x0\n\n==> /run/reboot-required.pkgs <==\ndbus\n\n\
                ==> /proc/sys/net/ipv4/ip_local_port_range <==\n40000\t50000\n==> shadow <==\nroot:set\n\
                ==> images <==\n/boot/vmlinuz-6.1.0\n==> required <==\nrequired\n==> df <==\next4 9 5 /\n\
                ==> du <==\n1\t/var/log\n==> md5sums <==\naa  /etc/a\tb\n==> processes <==\n==> maps <==\n"
                .into(),
        }
    }

    #[test]
    fn answers_become_a_manifest() {
        let manifest = parse(&texts(), None, Reading::Whole);
        assert_eq!(manifest.kernel, "6.1.0");
        assert_eq!(manifest.attributes.unwrap().keys().collect::<Vec<_>>(), ["/etc/a\tb"]);
        assert_eq!(manifest.file_systems, Some(["/".to_owned(), "/boot/efi".into()].into()));
        assert_eq!(manifest.files["/etc/a\tb"].sha256, Some(Digest::of("new")));
        assert_eq!((manifest.files["/etc"].size, &manifest.files["/etc"].package), (0, &None));
        assert_eq!(manifest.files["/usr/bin/sh"].target.as_deref(), Some("dash"));
        assert_eq!(manifest.files["/usr/bin/sh"].package.as_deref(), Some("base:all"));
        assert_eq!(manifest.files["/usr/sbin/nginx"].package.as_deref(), Some("nginx:amd64"));
        assert_eq!(manifest.units.keys().collect::<Vec<_>>(), ["nginx.service"]);
        let ports: Vec<_> = manifest.ports.iter().map(|port| (port.address.as_str(), port.port)).collect();
        assert_eq!(ports, [("[::]", 80), ("10.0.2.15%eth0", 68)]);
        assert_eq!(manifest.given_ports, PortRange { first: 40_000, last: 50_000 });
        assert_eq!(manifest.ports[0].process.as_deref(), Some("nginx"));
        let configuration = manifest.configuration.unwrap();
        assert_eq!(configuration.keys().collect::<Vec<_>>(), ["/etc/a\tb", "/etc/gone"]);
        assert!(configuration["/etc/a\tb"].is_as_shipped() && configuration["/etc/gone"].found.is_none());
        assert_eq!(configuration["/etc/gone"].package, "nginx:amd64");
        let (accounts, disk) = (manifest.accounts.unwrap(), manifest.disk.unwrap());
        assert_eq!((accounts.users.len(), accounts.groups.len(), disk.file_systems["/"].used), (1, 0, 5));
        assert_eq!((disk.folders["/etc"], disk.folders["/var/log"]), (3, 1024));
        let kernels = manifest.kernels.unwrap();
        assert_eq!((kernels.installed, kernels.modules.len()), (vec!["6.1.0".to_owned()], 1));
        assert_eq!(manifest.restarts.unwrap().reboot, ["dbus ask for it".to_owned()].into());
    }

    #[test]
    fn what_a_later_lab_added_is_passed_over() {
        let later = serde_json::json!({
            "schema": Manifest::SCHEMA, "kernel": "6.1", "later": {}, "packages": {}, "units": {}, "ports": [],
            "files": { "/a": { "kind": "file", "mode": 420, "uid": 0, "gid": 0, "later": 1 } },
        });
        assert_eq!(serde_json::from_value::<Manifest>(later).unwrap().files.len(), 1);
    }

    #[test]
    fn a_manifest_of_an_older_lab_is_read() {
        let new = parse(&texts(), None, Reading::Whole);
        let mut json = serde_json::to_value(&new).unwrap();
        let fields = json.as_object_mut().unwrap();
        for name in
            ["file_systems", "attributes", "given_ports", "accounts", "kernels", "disk", "configuration", "restarts"]
        {
            fields.remove(name).expect(name);
        }
        let old: Manifest = serde_json::from_value(json).unwrap();
        assert_eq!((old.files, old.configuration), (new.files, None));
    }

    /// On a loop device of a mount namespace of its own, with the names that a mount point may have.
    const SECOND_DISK: &str = r#"
set -eu
cd "$1"
truncate -s 16M disk
/sbin/mkfs.ext4 -q disk
mkdir 'own disk' again
mount -o loop disk 'own disk'
mkdir 'own disk/sub'
echo boots >'own disk/sub/loader'
mount --bind 'own disk/sub' again
mkdir memory
mount -t tmpfs none memory
echo gone >memory/file
"#;

    #[test]
    fn files_of_every_disk_are_listed_and_read_where_no_digest_is_known() {
        if !rustix::process::getuid().is_root() {
            eprintln!("SKIP files_of_every_disk_are_listed_and_read_where_no_digest_is_known: needs root, to mount");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().canonicalize().unwrap();
        // Of the root only what is there for the test: a folder, left out or not.
        let others = std::fs::read_dir("/").unwrap().map(|entry| entry.unwrap().path());
        let beside = dir.ancestors().filter(|at| at.parent().is_some()).flat_map(|at| {
            let siblings = std::fs::read_dir(at.parent().unwrap()).unwrap().map(|entry| entry.unwrap().path());
            siblings.filter(|path| !dir.starts_with(path)).collect::<Vec<_>>()
        });
        let left_out: std::collections::BTreeSet<_> =
            others.filter(|path| !dir.starts_with(path)).chain(beside).collect();
        let own = dir.join("own disk").display().to_string();
        let far = "4102444800";
        let run = |known: &str| -> (BTreeMap<String, Entry>, std::collections::BTreeSet<String>) {
            let script = format!("{SECOND_DISK}cd /; shift; {}{}{FILES}", disks::shell(), attributes::shell());
            let out = dir.join("out");
            let ran = std::process::Command::new("unshare")
                .args(["--mount", "--propagation", "private", "sh", "-c", &script, "sh"])
                .args([&dir, &out])
                .args([far, known, ""])
                .args(&left_out)
                .output()
                .unwrap();
            assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
            let read = |name: &str| String::from_utf8(std::fs::read(out.join(name)).unwrap()).unwrap();
            let texts = Texts { files: read("files"), sums: read("sums"), ..Texts::default() };
            let found = (parse(&texts, None, Reading::Whole).files, disks::parse(&read("disks")));
            for path in ["out", "disk", "own disk", "again", "memory"] {
                let path = dir.join(path);
                if path.is_dir() { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) }.unwrap();
            }
            found
        };
        let loader = format!("{own}/sub/loader");
        // The root was listed before, the other was not: it is read whole.
        let (files, points) = run("/");
        assert!(points.contains("/") && points.contains(&own), "{points:?}");
        let below: Vec<&String> = points.iter().filter(|point| point.starts_with(&*dir.to_string_lossy())).collect();
        assert_eq!(below, [&own]);
        assert_eq!(files[&loader].sha256, Some(Digest::of("boots\n")));
        let twice = |path: &String| path.ends_with("again/loader") || path.ends_with("memory/file");
        assert_eq!(files.keys().find(|path| twice(path)), None);
        let on_root = dir.join("disk").display().to_string();
        assert_eq!(files[&on_root].sha256, None);
        // Both were, and nothing has changed since a time to come.
        assert_eq!(run(&format!("/\n{own}")).0[&loader].sha256, None);
    }

    #[test]
    fn a_file_that_was_not_read_again_keeps_its_digest() {
        let mut before = parse(&texts(), None, Reading::Whole);
        let old = Some(Digest::of("old"));
        before.files.get_mut("/usr/sbin/nginx").unwrap().sha256 = old;
        before.files.get_mut("/etc/a\tb").unwrap().sha256 = old;
        let manifest = parse(&texts(), Some(&before), Reading::Nothing);
        assert_eq!(manifest.files["/usr/sbin/nginx"].sha256, old);
        assert_eq!(manifest.files["/etc/a\tb"].sha256, Some(Digest::of("new")));
    }
}
