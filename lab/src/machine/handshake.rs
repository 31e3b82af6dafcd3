//! The handshake after every clone: what must not be shared with its siblings is made new, with proof.
//!
//! A clone wakes up with its template's clock, random state, machine id and host name. Until all four are its own, nothing
//! it does is worth a test: two clones would draw the same keys.

use std::time::Duration;

use jiff::Timestamp;
use patchlab_check::Digest;
use serde::{Deserialize, Serialize};

use super::{Guest, LabError};

/// What made a clone's kernel draw new random state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reseed {
    /// The machine's generation id changed, and the kernel's log says that it took notice.
    GenerationId,
    /// The lab told it to.
    Lab,
}

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
    /// How far its clock was from the lab's after it was set, milliseconds; includes the way there and back.
    pub clock_offset_ms: i64,
    /// What made its kernel draw new random state.
    pub reseeded_by: Reseed,
    /// Digest of bytes drawn from its generator after it was reseeded: no two clones show the same.
    pub drawn: Digest,
}

/// Sets clock, entropy, machine id and host name, then shows them. Arguments: seconds, machine id, host name, seed (hex).
///
/// Every program that a clone starts costs it some 50 ms under emulation, so the shell does what it can. The generation id
/// device makes the kernel reseed by itself at its first breath; a kernel that does not say so is made to (perl is part of
/// Debian's essential set). The journal's folders are named by the machine id: they move along, or nobody would find them.
const SCRIPT: &str = r#"
read -r old </etc/machine-id
date -s "@$1" >/dev/null || exit 1
printf '%s' "$4" >/dev/urandom || exit 1
if dmesg | grep -q 'crng reseeded due to virtual machine fork'; then by=generation-id; else
  perl -e 'open(my $f, "+>", "/dev/urandom") or die "urandom: $!"; my $s = pack("H*", $ARGV[0]);
    my $p = pack("ii", 8 * length($s), length($s)) . $s;
    ioctl($f, 0x40085203, $p) or die "RNDADDENTROPY: $!"; ioctl($f, 0x5207, 0) or die "RNDRESEEDCRNG: $!"' "$4" || exit 1
  by=lab
fi
echo "$2" >/etc/machine-id && echo "$3" >/etc/hostname && echo "$3" >/proc/sys/kernel/hostname || exit 1
for journal in /run/log/journal /var/log/journal; do
  if [ -d "$journal/$old" ]; then mv "$journal/$old" "$journal/$2" || exit 1; fi
done
read -r id </etc/machine-id; read -r name </proc/sys/kernel/hostname
read -r boot </proc/sys/kernel/random/boot_id; read -r drawn </proc/sys/kernel/random/uuid
printf '%s\n' "$drawn" "$id" "$name" "$boot" "$by"
"#;

pub(super) fn shake(guest: &Guest, hostname: &str, timeout: Duration) -> Result<Handshake, LabError> {
    let mut seed = [0; 64];
    let mut id = [0; 16];
    for bytes in [&mut seed[..], &mut id[..]] {
        getrandom::fill(bytes)
            .map_err(|error| LabError::Handshake { machine: hostname.into(), reason: error.to_string() })?;
    }
    let id = machine_id(id);
    let now = Timestamp::now();
    let seconds = format!("{}.{:03}", now.as_second(), now.subsec_millisecond());
    let output = guest.script(SCRIPT, &[&seconds, &id, hostname, &hex::encode(seed)], timeout)?;
    let offset_ms = guest.clock_ns()? / 1_000_000 - Timestamp::now().as_millisecond();
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

/// A machine id is a version 4 UUID without dashes (machine-id(5)).
fn machine_id(mut bytes: [u8; 16]) -> String {
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    hex::encode(bytes)
}

fn parse(output: &str, clock_offset_ms: i64) -> Option<Handshake> {
    let mut lines = output.lines();
    Some(Handshake {
        drawn: Digest::of(lines.next()?),
        machine_id: lines.next()?.to_owned(),
        hostname: lines.next()?.to_owned(),
        boot_id: lines.next()?.to_owned(),
        reseeded_by: match lines.next()? {
            "generation-id" => Reseed::GenerationId,
            "lab" => Reseed::Lab,
            _ => return None,
        },
        clock_offset_ms,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_is_read_whole_or_not_at_all() {
        let whole = format!("u-u-i-d\n{}\ncontrol\nb-o-o-t\ngeneration-id\n", machine_id([0xff; 16]));
        let handshake = parse(&whole, 100).unwrap();
        assert_eq!((handshake.reseeded_by, handshake.drawn), (Reseed::GenerationId, Digest::of("u-u-i-d")));
        assert_eq!(handshake.machine_id, "ffffffffffff4fffbfffffffffffffff");
        assert_eq!(parse(&whole[..50], 0), None);
    }
}
