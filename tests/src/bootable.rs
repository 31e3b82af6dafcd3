//! How a root folder becomes a disk that a BIOS boots, with its console on the first serial port: the end of every image built on the spot.

/// Makes `disk.raw` of the folder `root`, in the folder that it is run in; by a shell with `set -eu`.
pub(crate) const BOOTABLE: &str = r#"
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
grub-mkimage -O i386-pc -p '(hd0,msdos1)/boot/grub' -o core.img biosdisk part_msdos ext2 normal linux configfile serial terminal echo test
truncate -s 2G disk.raw
echo 'start=2048,type=83,bootable' | sfdisk --quiet disk.raw
mke2fs -q -t ext4 -L root -d root -E offset=1048576 disk.raw $(((2 << 20) - 1024))k
dd if=/usr/lib/grub/i386-pc/boot.img of=disk.raw bs=440 count=1 conv=notrunc status=none
dd if=core.img of=disk.raw bs=512 seek=1 conv=notrunc status=none
"#;
