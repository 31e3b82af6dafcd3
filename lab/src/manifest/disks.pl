# Lists under which mount points a machine has files of its own, a line each: `timed` or `whole`, a tab, the path. Below those that are
# given as arguments nothing is listed. `timed` file systems note when a file was last changed, and no tool sets that back; of `whole`
# ones (FAT knows no such time) every file has to be read to know whether it is as it was.
#
# Listed are the root, and what is on a disk and can be written: devices of blocks, and the kinds that give every subvolume a device
# number of its own. Not listed are what lives in memory or in the kernel, what comes over a network or from the host, images that
# nobody writes to, and what is mounted a second time (bind mounts): of two the one that shows more, and of equals the shorter path.
# Subvolumes that are mounted nowhere are not looked into.
my %timed = map { $_ => 1 } qw(ext2 ext3 ext4 xfs btrfs f2fs jfs zfs bcachefs overlay);
my %with_subvolumes = map { $_ => 1 } qw(btrfs zfs bcachefs);
my %never_written = map { $_ => 1 } qw(squashfs erofs iso9660 udf cramfs romfs);
# systemd mounts the boot partitions when somebody looks, and unmounts them again.
opendir(my $look, $_) for "/boot", "/boot/efi", "/efi";
my %mounted;
open(my $table, "<", "/proc/self/mountinfo") or die "/proc/self/mountinfo: $!\n";
while (<$table>) {
  my ($what, $how) = split(/ - /, $_, 2);
  my (undef, undef, $device, $shown, $point) = split(/ /, $what);
  my ($kind) = split(/ /, $how);
  s/\\([0-7]{3})/chr(oct($1))/ge for $shown, $point;
  # The later of two lies above the other.
  $mounted{$point} = { device => $device, shown => $shown, kind => $kind };
}
my @listed;
sub shows_more { length($mounted{$a}{shown}) <=> length($mounted{$b}{shown}) || length($a) <=> length($b) || $a cmp $b }
POINT: for my $point ("/", sort shows_more grep { $_ ne "/" } keys %mounted) {
  my $one = $mounted{$point} || { device => "", shown => "/", kind => "" };
  my $number = (stat($point))[0] if $point eq "/" || $one->{device} !~ /^0:/ || $with_subvolumes{$one->{kind}};
  next if !defined($number) || $never_written{$one->{kind}} && $point ne "/";
  if ($point ne "/") {
    next if $point =~ /\n/;
    # Linux writes a device number so in stat(2): what is there now is another one where something lies above it.
    my ($major, $minor) = split(/:/, $one->{device});
    next if !$with_subvolumes{$one->{kind}} && $number != ($minor & 0xff | ($major & 0xfff) << 8 | ($minor & ~0xff) << 12);
    for (@ARGV) { next POINT if index("$point/", "$_/") == 0 }
    for (@listed) {
      my $inside = $_->{shown} eq "/" ? "/" : "$_->{shown}/";
      next POINT if $_->{number} == $number && index("$one->{shown}/", $inside) == 0;
    }
  }
  push @listed, { number => $number, shown => $one->{shown} };
  print $timed{$one->{kind}} ? "timed" : "whole", "\t$point\n";
}
