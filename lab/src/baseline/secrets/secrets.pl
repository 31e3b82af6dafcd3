# Finds secrets below ROOT ("" for the system itself), and scrubs them.
#
#   look ROOT BEFORE SYSTEM MOST (PATH TEXT)...   standard input: folders to begin with, a line each. Prints the number of the first rule
#                                                 that a file meets, NUL, its path, NUL. PATH: an expression that its path must meet.
#                                                 TEXT: one for what it says; or nothing; or "assigned", "hashes" (see below)
#   scrub ROOT (HOW PATH)...                      HOW: "remove", or "mask": only the secret is overwritten, and the file stays
#
# Looked at are files with something in them that are older than BEFORE (seconds), also of subvolumes; what is mounted is not entered, but
# begun with where it is the own disk. Not looked at: what packages alone fill. A file is no secret as its package (SYSTEM: dpkg, rpm)
# shipped it, and is one as soon as somebody changed it.
use strict;
my %passed = map { $_ => 1 } qw(/proc /sys /dev /run /usr /bin /sbin /lib /lib32 /lib64 /libx32 /lost+found /var/lib/dpkg /var/lib/apt
  /var/lib/rpm /var/cache/apt /var/cache/dnf /var/cache/man /var/log/journal /etc/pki/ca-trust/extracted /etc/ssl/certs/java);
# Larger ones are not read: 1 MiB.
my $largest = 1 << 20;

# A line that gives a secret to a name: where its value begins, and how long it is. Comments, references and paths are none.
my $named = qr{(?:pass(?:word|phrase)|bindpw|authtok|passwd(?=["\x27\]]?\s*=)
  |(?<![A-Za-z])(?:secret|token|(?:api|access|secret|auth|private|encryption|signing|shared|client|bearer)[_.-]?(?:key|secret|token)))}xi;
my $spaced = qr{requirepass|masterauth|createUser|usmUser|r[ow]community6?|wpa-(?:psk|passphrase|password)|com2sec6?}i;
my $value = qr{(?:"([^"]+)"|\x27([^\x27]+)\x27|([^\s"\x27,;#<>]+))};
my $none = qr{^(?:[\$%<\{\(\*/@!]|(?:true|false|yes|no|on|off|none|null|nil|required?|optional|sufficient|requisite|include|files?|ask|prompt
  |never|always|default|public|disabled?|enabled?|sha-?\d+|md5|crypt|scram-sha-256)$)}xi;
sub assigned {
  my ($line) = @_;
  return if $line =~ m{^\s*(?:[#;]|//\s|<!--)};
  while ($line =~ m{$named["\x27\]]*\s*(?:=>|[:=>])\s*$value|^\s*(?:$spaced)\s+$value}g) {
    for (1 .. 6) {
      next unless defined($-[$_]);
      my ($at, $length) = ($-[$_], $+[$_] - $-[$_]);
      return ($at, $length) if $length >= 4 && substr($line, $at, $length) !~ $none;
    }
  }
  return;
}

# Hashes of passwords, by their form in crypt(5), that is not all of an account file.
my $hashes = qr{\$(?:1|5|6|7|y|gy|apr1|2[aby])\$[./A-Za-z0-9\$=,]{20,}};

# Account files: the second field of a line is a hash unless it is locked.
my $accounts = qr{/g?shadow[^/]*$};

sub holds {
  my ($path, $text, $wanted) = @_;
  return 1 if $wanted eq "";
  return 0 if !defined($$text);
  if ($wanted eq "assigned") {
    return 0 if $$text =~ /\0/;
    for my $line (split(/\n/, $$text)) { return 1 if assigned($line) }
    return 0;
  }
  if ($wanted eq "hashes") { return $path =~ $accounts ? $$text =~ /^[^:\n]*:[^:!*\n]/m : $$text =~ $hashes }
  return $$text =~ /$wanted/m;
}

sub first_line_of { open(my $said, "-|", @_) or return ""; local $/; my $all = <$said>; close($said); return defined($all) ? $all : "" }

my (%sums, $known);
sub as_shipped {
  my ($root, $system, $path) = @_;
  my $sum = sub { first_line_of("$_[0]sum", "--", "$root$path") =~ /^\\?([0-9a-f]+) / ? $1 : "" };
  if ($system eq "rpm") {
    my @root = $root eq "" ? () : ("--root", $root);
    for (split(/\n/, first_line_of("rpm", @root, "-qf", "--qf", "[%{FILENAMES}\\t%{FILEDIGESTS}\\n]", $path))) {
      my ($file, $shipped) = split(/\t/);
      next unless defined($shipped) && $file eq $path && $shipped ne "";
      return 1 if $sum->(length($shipped) == 32 ? "md5" : "sha256") eq $shipped;
    }
    return 0;
  }
  if (!$known++) {
    opendir(my $lists, "$root/var/lib/dpkg/info");
    for my $list (grep { /\.md5sums$/ } readdir($lists)) {
      open(my $file, "<", "$root/var/lib/dpkg/info/$list") or next;
      while (<$file>) { $sums{"/$2"}{$1} = 1 if m{^([0-9a-f]{32})  ((?!usr/(?!local/)|s?bin/|lib)[^\n]+)} }
    }
    if (open(my $status, "<", "$root/var/lib/dpkg/status")) {
      while (<$status>) { $sums{$1}{$2} = 1 if m{^ (/.*?) ([0-9a-f]{32})(?: [a-z-]+)*$} }
    }
  }
  return $sums{$path} && $sums{$path}{$sum->("md5")};
}

sub look {
  my ($root, $before, $system, $most, @rules) = @_;
  my %mounted;
  if (open(my $table, "<", "/proc/self/mountinfo")) {
    while (<$table>) { my $point = (split(/ /))[4]; $point =~ s/\\([0-7]{3})/chr(oct($1))/ge; $mounted{$point} = 1 }
  }
  my @begin = <STDIN>;
  chomp(@begin);
  my $is_passed = sub { my ($path) = @_; while ($path ne "" && $path ne "/usr/local") { return 1 if $passed{$path}; $path =~ s{/[^/]*$}{} } 0 };
  my %entered;
  my $found = 0;
  my @folders = map { $_ eq "/" ? "" : $_ } grep { !$is_passed->($_) } @begin;
  push @folders, "/usr/local";
  while (defined(my $folder = shift(@folders))) {
    my @folder = lstat("$root$folder/.") or next;
    next if $entered{"$folder[0] $folder[1]"}++;
    opendir(my $entries, "$root$folder/") or next;
    for my $name (sort readdir($entries)) {
      next if $name eq "." || $name eq "..";
      my $path = "$folder/$name";
      my @about = lstat("$root$path") or next;
      if (-d _) { push(@folders, $path) unless $passed{$path} || $mounted{"$root$path"}; next }
      next unless -f _ && $about[7] > 0 && $about[10] <= $before;
      my ($text, $read);
      for (my $rule = 0; $rule < @rules; $rule += 2) {
        next unless $rules[$rule] eq "" || $path =~ $rules[$rule];
        if ($rules[$rule + 1] ne "" && !$read++ && $about[7] <= $largest && open(my $file, "<", "$root$path")) { local $/; $text = <$file> }
        next unless holds($path, \$text, $rules[$rule + 1]);
        last if as_shipped($root, $system, $path);
        print $rule / 2, "\0$path\0";
        return if ++$found >= $most;
        last;
      }
    }
  }
}

sub masked {
  my ($path, $text) = @_;
  if ($path =~ $accounts) {
    $text =~ s/^([^:\n]*:)([^:!*\n][^:\n]*)/$1 . "!" . ("*" x (length($2) - 1))/gme;
    return $text;
  }
  my @lines = split(/(\n)/, $text, -1);
  for my $line (@lines) {
    while (my ($at, $length) = assigned($line)) { substr($line, $at, $length) = "*" x $length }
    $line =~ s/($hashes)/"*" x length($1)/ge;
  }
  return join("", @lines);
}

sub scrub {
  my ($root, @wanted) = @_;
  while (my ($how, $path) = splice(@wanted, 0, 2)) {
    my $file_name = "$root$path";
    next unless -f $file_name && !-l $file_name;
    my $size = -s $file_name;
    open(my $file, "+<", $file_name) or die "$path: $!\n";
    if ($how eq "mask") {
      my $text = do { local $/; <$file> };
      seek($file, 0, 0);
      print $file masked($path, $text);
    } else {
      for (my $left = $size; $left > 0; $left -= 65536) { print $file "\0" x ($left < 65536 ? $left : 65536) }
    }
    $file->flush();
    $file->sync();
    close($file) or die "$path: $!\n";
    $how eq "mask" || unlink($file_name) or die "$path: $!\n";
  }
}

my $work = shift(@ARGV);
$work eq "look" ? look(@ARGV) : scrub(@ARGV);
