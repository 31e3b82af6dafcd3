//! The handshake after every clone: what must not be shared with its siblings is made new, with proof.
//!
//! A clone wakes up with its template's clock, random state, machine id and host name. Until all four are its own, nothing
//! it does is worth a test: two clones would draw the same keys.

use std::{fmt, time::Duration};

use jiff::Timestamp;
use patchlab_check::Digest;
use serde::{Deserialize, Serialize};

use super::{Guest, GuestError, LabError};

/// How far a machine's clock may be from the lab's right after it was set: by no more than an answer may take on a host that emulates many.
const CLOCK_LIMIT_MS: i64 = 10_000;
/// How often a clock is looked at until it is within the limit: an answer that took long says little.
const CLOCK_LOOKS: usize = 3;

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

impl fmt::Display for Handshake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { machine_id, hostname, clock_offset_ms, drawn, .. } = self;
        write!(f, "machine id {machine_id}, host name {hostname}, clock {clock_offset_ms} ms off, ")?;
        write!(f, "random numbers of its own ({})", drawn.short())
    }
}

/// Every machine of a lab that was introduced, with what it said.
#[derive(Debug, Default)]
pub(super) struct Introduced(Vec<(String, Handshake)>);

impl Introduced {
    /// Takes in another machine.
    ///
    /// # Errors
    /// Its clock is not the lab's, or it is some other machine's twin; why.
    pub(super) fn admit(&mut self, machine: &str, handshake: &Handshake) -> Result<(), String> {
        let offset = handshake.clock_offset_ms;
        if offset.unsigned_abs() > CLOCK_LIMIT_MS.unsigned_abs() {
            return Err(format!("its clock is {offset} ms off after it was set, and may be {CLOCK_LIMIT_MS} ms"));
        }
        for (other, theirs) in &self.0 {
            if theirs.machine_id == handshake.machine_id {
                return Err(format!("it has the machine id of machine {other}, {}", theirs.machine_id));
            }
            if theirs.drawn == handshake.drawn {
                return Err(format!("it draws the random numbers of machine {other} ({})", theirs.drawn.short()));
            }
        }
        self.0.push((machine.to_owned(), handshake.clone()));
        Ok(())
    }
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
    let offset_ms = nearest(|| clock_lacks_ns(guest).map(|lacks| -lacks / 1_000_000))?;
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

/// How far a clock is off: the first look that finds it within the limit, or the one of all that finds it nearest.
fn nearest<E>(mut look: impl FnMut() -> Result<i128, E>) -> Result<i128, E> {
    let mut best = look()?;
    for _ in 1..CLOCK_LOOKS {
        if best.unsigned_abs() <= u128::from(CLOCK_LIMIT_MS.unsigned_abs()) {
            break;
        }
        best = std::cmp::min_by_key(best, look()?, |offset| offset.unsigned_abs());
    }
    Ok(best)
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

    fn said(machine_id: &str, drawn: &str, clock_offset_ms: i64) -> Handshake {
        Handshake {
            machine_id: machine_id.into(),
            hostname: "control".into(),
            boot_id: "b".into(),
            clock_offset_ms,
            drawn: Digest::of(drawn),
        }
    }

    #[test]
    fn a_twin_and_a_clock_that_is_off_are_not_taken_for_machines_of_their_own() {
        let mut introduced = Introduced::default();
        let mut admit = |machine: &str, handshake: Handshake| introduced.admit(machine, &handshake);
        assert_eq!(admit("control", said("1", "a", 10_000)), Ok(()));
        assert_eq!(admit("patched", said("2", "b", -10_000)), Ok(()));
        assert_eq!(
            admit("patched-db", said("2", "c", 0)),
            Err("it has the machine id of machine patched, 2".to_owned())
        );
        let twin = admit("patched-db", said("3", "a", 0)).unwrap_err();
        assert!(twin.starts_with("it draws the random numbers of machine control ("), "{twin}");
        for offset in [10_001, -10_001] {
            let late = admit("patched-db", said("3", "c", offset)).unwrap_err();
            assert_eq!(late, format!("its clock is {offset} ms off after it was set, and may be 10000 ms"));
        }
        // What was refused is nobody's elder twin.
        assert_eq!(admit("patched-db", said("3", "c", 1)), Ok(()));
    }

    #[test]
    fn a_slow_answer_about_the_time_is_asked_for_again() {
        let of = |answers: &[i128]| {
            let mut answers = answers.iter().copied();
            nearest(|| answers.next().ok_or(())).unwrap()
        };
        assert_eq!(of(&[100]), 100);
        assert_eq!(of(&[-30_000, 15_000, -4]), -4);
        assert_eq!(of(&[-90_000, 15_000, 17_000]), 15_000);
    }

    #[test]
    fn what_a_clone_has_of_its_own_is_one_line() {
        let line = said("0af1", "a", -3).to_string();
        let drawn = Digest::of("a").short().to_string();
        let expected = "machine id 0af1, host name control, clock -3 ms off, random numbers of its own";
        assert_eq!(line, format!("{expected} ({drawn})"));
    }
}
