# Runs a command line in a guest, within limits: $ARGV[0], for at most $ARGV[1] seconds, in the folder $ARGV[2]; of each of its output
# streams the first and the last bytes are kept, $ARGV[3] in all. Nothing is written to a disk, which may be full. The clock is the
# monotonic one (228 is x86-64's clock_gettime), since the command may set the other. No module is loaded: each costs a guest under
# emulation time. The last thing on standard error, after a zero byte, is how it ended: `BYTES WORD`, how much it wrote in all and
# whether it ended by `itself` or by the `timeout`.
my ($command, $seconds, $folder, $kept) = @ARGV;
my $tail_kept = int($kept * 3 / 4);
sub now {
  my $time = pack("qq", 0, 0);
  syscall(228, 1, $time);
  my ($whole, $nano) = unpack("qq", $time);
  return $whole + $nano / 1e9;
}
my (@streams, @ends);
for (1, 2) {
  pipe(my $from, my $to) or die "pipe: $!\n";
  push @streams, { from => $from, head => "", tail => "", bytes => 0 };
  push @ends, $to;
}
pipe(my $exited, my $tell) or die "pipe: $!\n";
$SIG{CHLD} = sub { syswrite($tell, "x") };
my $process = fork();
defined $process or die "fork: $!\n";
if (!$process) {
  setpgrp(0, 0);
  open(STDIN, "<", "/dev/null");
  open(STDOUT, ">&", $ends[0]);
  open(STDERR, ">&", $ends[1]);
  chdir($folder) or do { print STDERR "cd $folder: $!\n"; exit 2 };
  exec("/bin/sh", "-c", $command) or do { print STDERR "/bin/sh: $!\n"; exit 127 };
}
close($_) for @ends;

# One read; what is neither of the first nor of the last bytes goes.
sub take {
  my ($stream) = @_;
  my $read = sysread($stream->{from}, my $data, 65536);
  return -1 unless defined $read;
  if (!$read) { close($stream->{from}); $stream->{from} = undef; return 0 }
  $stream->{bytes} += $read;
  my $room = $kept - $tail_kept - length($stream->{head});
  $stream->{head} .= substr($data, 0, $room, "") if $room > 0;
  $stream->{tail} .= $data;
  substr($stream->{tail}, 0, -$tail_kept) = "" if length($stream->{tail}) > $tail_kept + 1048576;
  return $read;
}

my ($until, $ended, @signals) = (now() + $seconds, "itself", 15, 9, 9, 9);
while (1) {
  my $wanted = "";
  vec($wanted, fileno($_->{from}), 1) = 1 for grep { $_->{from} } @streams;
  vec($wanted, fileno($exited), 1) = 1;
  my $left = $until - now();
  my $ready = select(my $found = $wanted, undef, undef, $left > 0 ? $left : 0);
  next if $ready < 0;
  if (now() >= $until) {
    $ended = "timeout";
    my $signal = shift(@signals) or last;
    kill($signal, -$process);
    $until = now() + 5;
  }
  next unless $ready;
  for (grep { $_->{from} } @streams) { take($_) if vec($found, fileno($_->{from}), 1) }
  last if vec($found, fileno($exited), 1);
}
# What the command started and left in its group has had its time, too.
kill(9, -$process) if $ended eq "timeout";
my $gone = waitpid($process, $ended eq "timeout" && !@signals ? 1 : 0) == $process;
my $status = $?;

# What is in the pipes now; who still holds their other end may write for ever.
for my $stream (grep { $_->{from} } @streams) {
  for (1 .. 16) {
    my $found = "";
    vec($found, fileno($stream->{from}), 1) = 1;
    last unless select($found, undef, undef, 0) > 0;
    last unless take($stream) > 0;
  }
}
# Who still holds it shall not end of that nobody reads any more.
if (grep { $_->{from} } @streams) {
  my $reader = fork();
  if (defined $reader && !$reader) {
    open(STDIN, "<", "/dev/null");
    open($_, ">", "/dev/null") for *STDOUT, *STDERR;
    while (my @open = grep { $_->{from} } @streams) {
      my $found = "";
      vec($found, fileno($_->{from}), 1) = 1 for @open;
      next if select($found, undef, undef, undef) < 0;
      for (@open) {
        next unless vec($found, fileno($_->{from}), 1);
        $_->{from} = undef unless sysread($_->{from}, my $nothing, 65536);
      }
    }
    exit 0;
  }
}
my $written = 0;
for my $number (0, 1) {
  my $stream = $streams[$number];
  substr($stream->{tail}, 0, -$tail_kept) = "" if length($stream->{tail}) > $tail_kept;
  my $left_out = $stream->{bytes} - length($stream->{head}) - length($stream->{tail});
  my $mark = $left_out > 0 ? "\n… $left_out bytes left out …\n" : "";
  print { $number ? *STDERR : *STDOUT } $stream->{head}, $mark, $stream->{tail};
  $written += $stream->{bytes};
}
print STDERR "\0$written $ended";
exit 124 if $ended eq "timeout" || !$gone;
exit($status & 127 ? 128 + ($status & 127) : $status >> 8);
