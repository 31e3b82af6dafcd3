# Prints the extended attributes (xattr(7)) of the paths in the lists $ARGV[1] and following, each path ended by a zero byte. $ARGV[0] says
# what is printed: `some`, the paths that have any; `all`, every path; `capabilities`, a line for each that has such. By `some` and `all`
# a path is `p` and its name, each of its attributes `a`, name, `=` and the value in hexadecimal, all ended by zero bytes.
# Left out are labels that a security policy gives to every file, and the notes of overlays. 195 is llistxattr of x86-64, 192 lgetxattr.
my ($which, @lists) = @ARGV;
my $left_out = qr/^(security\.(selinux|SMACK64.*|ima|evm)|trusted\.overlay\..*)$/;
my $names = "\0" x 65536;
my $value = "\0" x 65536;
$/ = "\0";
for my $list (@lists) {
  open(my $paths, "<", $list) or die "$list: $!\n";
  while (my $path = <$paths>) {
    chomp($path);
    my $length = syscall(195, $path, $names, length($names));
    my @found;
    for my $name ($length > 0 ? sort split(/\0/, substr($names, 0, $length)) : ()) {
      next if $name =~ $left_out || $which eq "capabilities" && $name ne "security.capability";
      my $bytes = syscall(192, $path, $name, $value, length($value));
      push @found, [$name, unpack("H*", substr($value, 0, $bytes))] if $bytes >= 0;
    }
    if ($which eq "capabilities") {
      print "$path has capabilities $$_[1]\n" for @found;
      next;
    }
    print "p$path\0" if @found || $which eq "all";
    print "a$$_[0]=$$_[1]\0" for @found;
  }
}
