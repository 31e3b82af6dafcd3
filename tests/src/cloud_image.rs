//! A cloud image, built on the spot in the style of Debian's own: cloud-init, netplan and networkd, deb822 sources behind lists of mirrors,
//! no guest agent, a disk smaller than the machine's. And nginx at the version of the suite's main pocket, so that there is an update.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
};

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
echo '/dev/vda1 / ext4 defaults 0 1' >root/etc/fstab
mkdir -p root/boot/grub
cat >root/boot/grub/grub.cfg <<'END'
set timeout=0
serial --unit=0
terminal_output serial
linux /vmlinuz root=/dev/vda1 console=tty0 console=ttyS0
initrd /initrd.img
boot
END
systemctl --root=root enable systemd-networkd.service >/dev/null 2>&1
grub-mkimage -O i386-pc -p '(hd0,msdos1)/boot/grub' -o core.img biosdisk part_msdos ext2 normal linux configfile serial terminal echo test
truncate -s 2G disk.raw
echo 'start=2048,type=83,bootable' | sfdisk --quiet disk.raw
mke2fs -q -t ext4 -L root -d root -E offset=1048576 disk.raw $(((2 << 20) - 1024))k
dd if=/usr/lib/grub/i386-pc/boot.img of=disk.raw bs=440 count=1 conv=notrunc status=none
dd if=core.img of=disk.raw bs=512 seek=1 conv=notrunc status=none
qemu-img convert -f raw -O qcow2 -c disk.raw "$image"
"#;

/// Builds it; what comes between goes to a folder in `dir`, which goes.
///
/// # Panics
/// It cannot be built.
pub fn build(image: &Path, dir: &Path) {
    let work = dir.join("cloud-image");
    fs::create_dir(&work).expect("a folder");
    let mut command = Command::new("unshare");
    command.args(["--mount", "--pid", "--fork", "--kill-child=KILL", "--mount-proc", "sh", "-c", SCRIPT, "sh"]);
    let output = command.arg(image).current_dir(&work).stdin(Stdio::null()).output().expect("unshare starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    fs::remove_dir_all(&work).expect("it goes");
}
