//! A cloud image, built on the spot in the style of Debian's own: cloud-init, netplan and networkd, deb822 sources behind lists of mirrors,
//! no guest agent, a disk smaller than the machine's. And nginx at the version of the suite's main pocket, so that there is an update.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
};

use crate::bootable::BOOTABLE;

/// `$1`: the new image; run in a folder for what comes between.
const SCRIPT: &str = r#"
set -eu
image=$1
full=$PWD/full.list
include=systemd-sysv,udev,dbus,iproute2,ca-certificates,procps,linux-image-cloud-amd64
include=$include,cloud-init,cloud-guest-utils,netplan.io,fdisk,nginx,openssl
mmdebstrap --quiet --mode=root --variant=minbase --format=directory --skip=update --include="$include" \
  --setup-hook='cp "$1/etc/apt/sources.list" '"'$full'" \
  --setup-hook='grep " bookworm main" '"'$full'"' >"$1/etc/apt/sources.list"; APT_CONFIG=$MMDEBSTRAP_APT_CONFIG apt-get -qq update' \
  bookworm root
mkdir -p root/etc/apt/mirrors
awk '$3 == "bookworm" { print $2; exit }' "$full" >root/etc/apt/mirrors/debian.list
awk '$3 == "bookworm-security" { print $2; exit }' "$full" >root/etc/apt/mirrors/debian-security.list
for pair in 'debian bookworm bookworm-updates' 'debian-security bookworm-security'; do
  set -- $pair; list=$1; shift
  printf 'Types: deb deb-src\nURIs: mirror+file:///etc/apt/mirrors/%s.list\nSuites: %s\nComponents: main\n' "$list" "$*"
  printf 'Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg\n\n'
done >root/etc/apt/sources.list.d/debian.sources
rm -f root/etc/apt/sources.list root/etc/machine-id
: >root/etc/machine-id
systemctl --root=root enable systemd-networkd.service >/dev/null 2>&1
"#;

/// As small as it is downloaded.
const PACKED: &str = r#"qemu-img convert -f raw -O qcow2 -c disk.raw "$image""#;

/// Builds it; what comes between goes to a folder in `dir`, which goes.
///
/// # Panics
/// It cannot be built.
pub fn build(image: &Path, dir: &Path) {
    let work = dir.join("cloud-image");
    fs::create_dir(&work).expect("a folder");
    let mut command = Command::new("unshare");
    let script = format!("{SCRIPT}{BOOTABLE}{PACKED}\n");
    command.args(["--mount", "--pid", "--fork", "--kill-child=KILL", "--mount-proc", "sh", "-c", &script, "sh"]);
    let output = command.arg(image).current_dir(&work).stdin(Stdio::null()).output().expect("unshare starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    fs::remove_dir_all(&work).expect("it goes");
}
