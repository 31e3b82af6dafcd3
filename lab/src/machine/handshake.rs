//! The handshake after every clone: what must not be shared with its siblings is made new, with proof.
//!
//! A clone wakes up with its template's clock, random state, machine id and host name. Until all four are its own, nothing
//! it does is worth a test: two clones would draw the same keys.

use std::time::Duration;

use jiff::Timestamp;
use patchlab_check::Digest;
use serde::{Deserialize, Serialize};

use super::{Guest, GuestError, LabError};

/// What the guest said after the handshake.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Handshake {
    /// Its machine id.
    pub machine_id: String,
    /// Its host name.
    pub hostname: String,
    /// Its boot id: shared by all clones of one template, until they boot for themselves.
    pub boot_id: String,
    /// How far its clock was from the lab's after it was set, milliseconds; includes the way back.
    pub clock_offset_ms: i64,
    /// Digest of bytes drawn from its generator after it was reseeded: no two clones show the same.
    pub drawn: Digest,
}

/// Sets clock, entropy, machine id and host name, then shows them. Arguments: what the clock lacks (nanoseconds), machine id, host
/// name, seed (hex).
///
/// Every program that a clone starts costs it some 50 ms under emulation, so one does it all: perl, which is part of Debian's
/// essential set. The clock gets a difference, not a time, since nobody knows how long the way to here was; 228 and 227 are
/// x86-64's `clock_gettime` and `clock_settime`. The two commands to `/dev/urandom` are `RNDADDENTROPY` and `RNDRESEEDCRNG`
/// (random(4)). The journal's folders are named by the machine id: they move along, or nobody would find them. What proved the
/// template's freeze goes.
const SCRIPT: &str = r#"
my ($lacks, $id, $name, $seed) = @ARGV;
my $time = pack("qq", 0, 0);
syscall(228, 0, $time) == 0 or die "clock_gettime: $!";
my ($seconds, $nanoseconds) = unpack("qq", $time);
my $now = $seconds * 1000000000 + $nanoseconds + $lacks;
$time = pack("qq", int($now / 1000000000), $now % 1000000000);
syscall(227, 0, $time) == 0 or die "clock_settime: $!";
my $random = pack("H*", $seed);
open(my $pool, "+>", "/dev/urandom") or die "urandom: $!";
my $entropy = pack("ii", 8 * length($random), length($random)) . $random;
ioctl($pool, 0x40085203, $entropy) or die "RNDADDENTROPY: $!";
ioctl($pool, 0x5207, 0) or die "RNDRESEEDCRNG: $!";
sub first_line { open(my $file, "<", $_[0]) or die "$_[0]: $!"; my $line = <$file>; chomp($line); $line }
sub write_line { open(my $file, ">", $_[0]) or die "$_[0]: $!"; print $file "$_[1]\n"; close($file) or die "$_[0]: $!" }
my $old = first_line("/etc/machine-id");
write_line("/etc/machine-id", $id);
write_line("/etc/hostname", $name);
write_line("/proc/sys/kernel/hostname", $name);
for my $journal ("/run/log/journal", "/var/log/journal") {
  next unless -d "$journal/$old";
  rename("$journal/$old", "$journal/$id") or die "$journal: $!";
}
if (-d "FROZEN_PROOF") {
  kill("KILL", first_line("FROZEN_PROOF/process")) if -e "FROZEN_PROOF/process";
  unlink(glob("FROZEN_PROOF/*"));
  rmdir("FROZEN_PROOF") or die "FROZEN_PROOF: $!";
}
my $random_of = "/proc/sys/kernel/random";
print "$_\n" for first_line("$random_of/uuid"), first_line("/etc/machine-id"),
  first_line("/proc/sys/kernel/hostname"), first_line("$random_of/boot_id");
"#;

/// Where nonce and counter lie that prove a freeze: in the guest's memory, until its first handshake.
pub(crate) const FROZEN_PROOF: &str = "/run/patchlab-freeze";

/// Brings what the handshake runs into a template's memory, so that no clone has to read it from its disk.
pub(crate) fn rehearse(guest: &Guest, timeout: Duration) -> Result<(), GuestError> {
    guest.exec(&["/usr/bin/perl", "-e", "1"], &[], timeout).map(drop)
}

pub(super) fn shake(guest: &Guest, hostname: &str, timeout: Duration) -> Result<Handshake, LabError> {
    let mut seed = [0; 64];
    let mut id = [0; 16];
    for bytes in [&mut seed[..], &mut id[..]] {
        getrandom::fill(bytes)
            .map_err(|error| LabError::Handshake { machine: hostname.into(), reason: error.to_string() })?;
    }
    let id = machine_id(id);
    let lacks = clock_lacks_ns(guest)?;
    let seed = hex::encode(seed);
    let script = SCRIPT.replace("FROZEN_PROOF", FROZEN_PROOF);
    let argv = ["/usr/bin/perl", "-e", &script, &lacks.to_string(), &id, hostname, &seed];
    let executed = guest.exec(&argv, &[], timeout)?;
    if executed.exit != Some(0) {
        let said = String::from_utf8_lossy(&executed.stderr);
        let reason = format!("perl in the guest: exit {:?}: {}", executed.exit, said.trim());
        return Err(LabError::Handshake { machine: hostname.into(), reason });
    }
    let output = executed.stdout;
    let offset_ms = -clock_lacks_ns(guest)? / 1_000_000;
    let handshake = parse(&String::from_utf8_lossy(&output), offset_ms)
        .ok_or_else(|| LabError::Handshake { machine: hostname.into(), reason: "its answer is incomplete".into() })?;
    if handshake.machine_id != id || handshake.hostname != hostname {
        return Err(LabError::Handshake {
            machine: hostname.into(),
            reason: format!("it still calls itself {} ({})", handshake.hostname, handshake.machine_id),
        });
    }
    Ok(handshake)
}

/// What must be added to the guest's clock, nanoseconds. The guest's answer is taken for one from the middle of the way there and back.
pub(super) fn clock_lacks_ns(guest: &Guest) -> Result<i128, GuestError> {
    let asked = Timestamp::now().as_nanosecond();
    let theirs = i128::from(guest.clock_ns()?);
    Ok((asked + Timestamp::now().as_nanosecond()) / 2 - theirs)
}

/// A machine id is a version 4 UUID without dashes (machine-id(5)).
fn machine_id(mut bytes: [u8; 16]) -> String {
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    hex::encode(bytes)
}

fn parse(output: &str, clock_offset_ms: i128) -> Option<Handshake> {
    // The last line is whole only with its end.
    let mut lines = output.strip_suffix('\n')?.lines();
    Some(Handshake {
        drawn: Digest::of(lines.next()?),
        machine_id: lines.next()?.to_owned(),
        hostname: lines.next()?.to_owned(),
        boot_id: lines.next()?.to_owned(),
        clock_offset_ms: i64::try_from(clock_offset_ms).ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_is_read_whole_or_not_at_all() {
        let whole = format!("u-u-i-d\n{}\ncontrol\nb-o-o-t\n", machine_id([0xff; 16]));
        let handshake = parse(&whole, 100).unwrap();
        assert_eq!((handshake.clock_offset_ms, handshake.drawn), (100, Digest::of("u-u-i-d")));
        assert_eq!(handshake.machine_id, "ffffffffffff4fffbfffffffffffffff");
        assert_eq!(parse(&whole[..50], 0), None);
    }
}
