//! Proof that a freeze holds, before the baseline is stored.
//!
//! Just before the freeze, a nonce and a counter that goes on are put into the guest's memory, below `/run`, where no disk ever sees
//! them. Afterwards two clones are made of the frozen files at the same time, as any clone will be. It must be so that
//!
//! 1. the frozen memory holds the nonce, and the frozen disk does not;
//! 2. both clones know the nonce and the template's boot: they go on from its memory, and did not boot;
//! 3. in both the counter goes on from where it was;
//! 4. what one writes to its memory and its disk, the other does not see;
//! 5. after the handshake nothing of nonce and counter is left: no clone that is tested ever sees them;
//! 6. the frozen files are afterwards what they were before: [`super::build`] compares, since it reads them anyway.
//!
//! Otherwise the baseline is refused. The decisions are pure; the machines are asked around them.

use std::{
    io::{self, Read},
    path::Path,
    time::{Duration, Instant},
};

use patchlab_check::Digest;
use regex::bytes::Regex;
use serde::{Deserialize, Serialize};

use crate::machine::{CloneSpec, FROZEN_PROOF, Guest, Lab, LabError, Machine, Template};

/// What was shown of a freeze before its baseline was stored: all that this module's head says, or there is no baseline.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verified {
    /// Digest of the nonce that was in the memory and nowhere else.
    pub nonce: Digest,
    /// The counter, last read before the freeze.
    pub counter: u64,
    /// The clones that were made of the frozen files, side by side.
    pub siblings: Vec<Sibling>,
    /// How long the proof took, milliseconds.
    pub ms: u64,
}

/// One of the clones that proved a freeze.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sibling {
    /// The counter at the first look.
    pub counter: u64,
    /// The counter as soon as it had gone on.
    pub later: u64,
    /// From the request to its first answer, milliseconds.
    pub ready_ms: u64,
}

/// What does not hold of a freeze.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Flaw {
    #[error("the frozen memory does not hold what was put into the guest's memory")]
    NotInMemory,
    #[error("the frozen disk holds what was in the guest's memory alone: the guest swaps, or keeps /run on its disk")]
    OnDisk,
    #[error("clone {clone} does not know what was in the template's memory: it found {found:?}")]
    Forgotten { clone: usize, found: String },
    #[error("clone {clone} booted instead of going on: its boot is {found:?}, the template's was {expected:?}")]
    Booted { clone: usize, found: String, expected: String },
    #[error("in clone {clone} a counter that was at {before} stands at {found:?} and does not go on")]
    Stands { clone: usize, before: u64, found: String },
    #[error("in clone {clone} a counter that had reached {before} is at {found}: its memory is older than the freeze")]
    WentBack { clone: usize, before: u64, found: u64 },
    #[error("clone {clone} reads {found:?} from its {place}, where it wrote {written:?}: clones are not apart")]
    Shared { clone: usize, place: &'static str, found: String, written: String },
    #[error("after the handshake a clone still has {0} of what proved the freeze: later comparisons would see it")]
    TraceLeft(String),
}

/// A freeze could not be shown to hold.
#[derive(Debug, thiserror::Error)]
pub(super) enum ProofError {
    #[error("the freeze does not hold: {0}")]
    Flaw(#[from] Flaw),
    #[error("no clone of the frozen machine comes up")]
    Clone(#[from] LabError),
}

/// What a clone showed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Seen {
    nonce: String,
    boot: String,
    first: String,
    later: String,
}

/// What one of the siblings wrote to a place, and what it read there after both had written.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Mark {
    place: &'static str,
    written: String,
    read: String,
}

/// What was put into a template's memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Planted {
    nonce: String,
    process: String,
    boot: String,
    counter: u64,
}

/// Arguments: the folder. Standard input: the nonce. It is never on a command line: the guest agent logs those, on the disk.
///
/// The counter ends by itself after five minutes of the guest's time, should its clone get no handshake. It begins anywhere, so that one
/// that began again is not taken for one that goes on.
const PLANT: &str = r#"
umask 077
mkdir "$1" && cat >"$1/nonce" || exit 1
setsid /usr/bin/perl -e '
  my ($folder) = @ARGV;
  my $count = 1 + int(rand(1e12));
  open(my $file, ">", "$folder/counter") or die;
  for (1 .. 6000) {
    sysseek($file, 0, 0);
    syswrite($file, sprintf("%016d\n", $count++));
    select(undef, undef, undef, 0.05);
  }
  unlink(glob("$folder/*"));
  rmdir($folder);
' "$1" </dev/null >/dev/null 2>&1 &
echo $! >"$1/process"
until [ -s "$1/counter" ]; do sleep 0.05; done
cat "$1/process" /proc/sys/kernel/random/boot_id
"#;

/// Argument: the folder. Waits up to ten seconds for the counter to go on.
const LOOK: &str = r#"
counter() { cat "$1/counter" 2>/dev/null; }
first=$(counter "$1"); later=$first; left=200
while [ "$later" = "$first" ] && [ "$left" -gt 0 ]; do sleep 0.05; later=$(counter "$1"); left=$((left - 1)); done
echo "$(cat "$1/nonce" 2>/dev/null)"
cat /proc/sys/kernel/random/boot_id
echo "$first"
echo "$later"
"#;

/// Where a clone writes on its disk. It is thrown away afterwards.
const DISK_MARK: &str = "/var/patchlab-freeze-mark";

/// Arguments: a file in memory, a file on the disk, what to write to both.
const WRITE: &str = r#"echo "$3" >"$1" && echo "$3" >"$2" && sync"#;

/// Arguments: the two files. From the disk, not from what the memory keeps of it.
const READ: &str = r#"cat "$1" && echo 3 >/proc/sys/vm/drop_caches && cat "$2""#;

/// Arguments: the folder, the counter's process. Says what is left of them.
const TRACE: &str = r#"if [ -e "$1" ]; then echo "$1"; fi; if [ -e "/proc/$2" ]; then echo "process $2"; fi"#;

/// How long one of these may take, with kvm.
const TIMEOUT: Duration = Duration::from_secs(20);

fn random() -> Result<String, LabError> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(|error| LabError::Io {
        action: "draw random bytes from",
        path: "/dev/urandom".into(),
        source: io::Error::other(error.to_string()),
    })?;
    Ok(hex::encode(bytes))
}

fn timeout(machine: &Machine) -> Duration {
    TIMEOUT * machine.hardware().accelerator.factor()
}

fn lines(output: &[u8]) -> impl Iterator<Item = String> {
    String::from_utf8_lossy(output).lines().map(|line| line.trim().to_owned()).collect::<Vec<_>>().into_iter()
}

impl Planted {
    /// Puts a nonce and a counter into the memory of a machine that is about to be frozen.
    pub(super) fn plant(machine: &Machine) -> Result<Self, LabError> {
        let nonce = random()?;
        let argv = ["/bin/sh", "-c", PLANT, "lab", FROZEN_PROOF];
        let executed = machine.guest().exec(&argv, format!("{nonce}\n").as_bytes(), timeout(machine))?;
        let mut said = lines(&executed.stdout);
        match (executed.exit, said.next(), said.next()) {
            (Some(0), Some(process), Some(boot)) => Ok(Self { nonce, process, boot, counter: 0 }),
            (exit, ..) => {
                let reason = format!("exit {exit:?}: {}", String::from_utf8_lossy(&executed.stderr).trim());
                let source = io::Error::other(reason);
                Err(LabError::Io { action: "put a nonce into", path: FROZEN_PROOF.into(), source })
            }
        }
    }

    /// Reads the counter: the last that is heard of the machine before it is frozen.
    pub(super) fn last_look(&mut self, machine: &Machine) -> Result<(), LabError> {
        let file = format!("{FROZEN_PROOF}/counter");
        let text = machine.guest().script(r#"cat "$1""#, &[&file], timeout(machine))?;
        let text = String::from_utf8_lossy(&text).into_owned();
        self.counter = text.trim().parse().map_err(|_| LabError::Io {
            action: "read a number from",
            path: file.into(),
            source: io::Error::other(format!("it says {text:?}")),
        })?;
        Ok(())
    }
}

/// The digest of a frozen file, and whether it holds the nonce.
pub(super) fn read_frozen(path: &Path, planted: &Planted) -> io::Result<(Digest, Presence)> {
    let file = std::fs::File::open(path)?;
    let nonce = Regex::new(&planted.nonce).map_err(io::Error::other)?;
    let mut search = Search { file, nonce, window: Vec::new(), presence: Presence::Absent };
    let (digest, _) = Digest::of_reader(&mut search)?;
    Ok((digest, search.presence))
}

/// Whether something is in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Presence {
    Present,
    Absent,
}

/// Looks for the nonce in what is read through it, also where it lies across two readings.
struct Search<R> {
    file: R,
    nonce: Regex,
    window: Vec<u8>,
    presence: Presence,
}

impl<R: Read> Read for Search<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read(buffer)?;
        self.window.extend_from_slice(&buffer[..read]);
        if self.nonce.is_match(&self.window) {
            self.presence = Presence::Present;
        }
        let kept = self.nonce.as_str().len().saturating_sub(1).min(self.window.len());
        self.window.drain(..self.window.len() - kept);
        Ok(read)
    }
}

/// The nonce is in the memory alone.
pub(super) fn judge_files(ram: Presence, disk: Presence) -> Result<(), Flaw> {
    match (ram, disk) {
        (Presence::Absent, _) => Err(Flaw::NotInMemory),
        (_, Presence::Present) => Err(Flaw::OnDisk),
        (Presence::Present, Presence::Absent) => Ok(()),
    }
}

/// The clone, by its place among its siblings, goes on from the template's memory. Its counter at the two looks.
fn judge_seen(planted: &Planted, clone: usize, seen: &Seen) -> Result<(u64, u64), Flaw> {
    let before = planted.counter;
    if seen.nonce != planted.nonce {
        return Err(Flaw::Forgotten { clone, found: seen.nonce.clone() });
    }
    if seen.boot != planted.boot {
        return Err(Flaw::Booted { clone, found: seen.boot.clone(), expected: planted.boot.clone() });
    }
    match (seen.first.parse(), seen.later.parse()) {
        (Ok(found), _) if found < before => Err(Flaw::WentBack { clone, before, found }),
        (Ok(first), Ok(later)) if later > first => Ok((first, later)),
        _ => Err(Flaw::Stands { clone, before, found: seen.later.clone() }),
    }
}

/// Each sibling reads what it wrote itself.
fn judge_marks(marks: &[(usize, Mark)]) -> Result<(), Flaw> {
    match marks.iter().find(|(_, mark)| mark.read != mark.written) {
        None => Ok(()),
        Some((clone, Mark { place, written, read })) => {
            Err(Flaw::Shared { clone: *clone, place, found: read.clone(), written: written.clone() })
        }
    }
}

/// Makes two clones of a frozen template and shows that the freeze holds.
pub(super) fn prove(lab: &Lab, template: &Template<'_>, planted: &Planted) -> Result<Verified, ProofError> {
    let begun = Instant::now();
    let mut siblings = Vec::new();
    let mut machines = Vec::new();
    for clone in 1..=2 {
        let asked = Instant::now();
        let spec = CloneSpec { name: format!("sibling-{clone}"), ..CloneSpec::default() };
        let machine = lab.prepare(template, &spec)?.wake()?;
        let ready_ms = millis(asked);
        let (counter, later) = judge_seen(planted, clone, &look(&machine)?)?;
        siblings.push(Sibling { counter, later, ready_ms });
        machines.push(machine);
    }
    judge_marks(&marks(&machines)?)?;
    for machine in machines {
        leave_no_trace(lab, machine, planted)?;
    }
    Ok(Verified { nonce: Digest::of(&planted.nonce), counter: planted.counter, siblings, ms: millis(begun) })
}

fn look(machine: &Machine) -> Result<Seen, LabError> {
    let said = machine.guest().script(LOOK, &[FROZEN_PROOF], timeout(machine))?;
    let mut said = lines(&said);
    let mut next = || said.next().unwrap_or_default();
    Ok(Seen { nonce: next(), boot: next(), first: next(), later: next() })
}

/// Lets all write before any reads.
fn marks(machines: &[Machine]) -> Result<Vec<(usize, Mark)>, LabError> {
    let memory_mark = format!("{FROZEN_PROOF}/mark");
    let asked = |guest: Guest, machine: &Machine, script: &str, arguments: &[&str]| {
        guest.script(script, &[&[memory_mark.as_str(), DISK_MARK], arguments].concat(), timeout(machine))
    };
    let mut written = Vec::new();
    for machine in machines {
        let mark = random()?;
        asked(machine.guest(), machine, WRITE, &[&mark])?;
        written.push(mark);
    }
    let mut marks = Vec::new();
    for ((clone, machine), written) in (1..).zip(machines).zip(written) {
        let said = asked(machine.guest(), machine, READ, &[])?;
        for (place, read) in ["memory", "disk"].into_iter().zip(lines(&said).chain([String::new(), String::new()])) {
            marks.push((clone, Mark { place, written: written.clone(), read }));
        }
    }
    Ok(marks)
}

fn leave_no_trace(lab: &Lab, machine: Machine, planted: &Planted) -> Result<(), ProofError> {
    let machine = lab.introduce(machine)?;
    let left = machine.guest().script(TRACE, &[FROZEN_PROOF, &planted.process], timeout(&machine));
    let left = left.map_err(LabError::from)?;
    match String::from_utf8_lossy(&left).trim() {
        "" => Ok(machine.destroy()?),
        left => Err(Flaw::TraceLeft(left.lines().collect::<Vec<_>>().join(" and ")).into()),
    }
}

fn millis(begun: Instant) -> u64 {
    u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn planted() -> Planted {
        Planted { nonce: "0123abcd".into(), process: "7".into(), boot: "b".into(), counter: 41 }
    }

    fn seen(nonce: &str, boot: &str, first: &str, later: &str) -> Seen {
        Seen { nonce: nonce.into(), boot: boot.into(), first: first.into(), later: later.into() }
    }

    #[test]
    fn a_clone_knows_the_nonce_the_boot_and_where_the_counter_was() {
        let judged = |seen| judge_seen(&planted(), 1, &seen);
        assert_eq!(judged(seen("0123abcd", "b", "0000000000000041", "0000000000000042")), Ok((41, 42)));
        assert!(matches!(judged(seen("", "b", "41", "42")), Err(Flaw::Forgotten { clone: 1, .. })));
        assert!(matches!(judged(seen("0123abce", "b", "41", "42")), Err(Flaw::Forgotten { .. })));
        assert!(matches!(judged(seen("0123abcd", "c", "41", "42")), Err(Flaw::Booted { .. })));
        assert!(matches!(judged(seen("0123abcd", "b", "40", "42")), Err(Flaw::WentBack { found: 40, .. })));
        assert!(matches!(judged(seen("0123abcd", "b", "41", "41")), Err(Flaw::Stands { .. })));
        assert!(matches!(judged(seen("0123abcd", "b", "", "")), Err(Flaw::Stands { .. })));
        assert!(matches!(judged(Seen::default()), Err(Flaw::Forgotten { .. })));
    }

    #[test]
    fn siblings_read_what_they_wrote_themselves() {
        let mark =
            |clone, place, read: &str| (clone, Mark { place, written: format!("mark {clone}"), read: read.into() });
        let apart = [mark(1, "memory", "mark 1"), mark(1, "disk", "mark 1"), mark(2, "memory", "mark 2")];
        assert_eq!(judge_marks(&apart), Ok(()));
        let shared = [apart.as_slice(), &[mark(1, "disk", "mark 2")]].concat();
        let flaw = judge_marks(&shared).unwrap_err();
        assert!(matches!(&flaw, Flaw::Shared { clone: 1, place: "disk", .. }), "{flaw}");
    }

    #[test]
    fn the_nonce_is_in_the_memory_alone() {
        use Presence::{Absent, Present};
        assert_eq!(judge_files(Present, Absent), Ok(()));
        assert_eq!(judge_files(Absent, Absent), Err(Flaw::NotInMemory));
        assert_eq!(judge_files(Present, Present), Err(Flaw::OnDisk));
    }

    #[test]
    fn a_nonce_is_found_wherever_it_lies() {
        let file = tempfile::NamedTempFile::new().unwrap();
        // The digest's reader takes 128 KiB at a time.
        for (before, nonce, expected) in [
            (0, "0123abcd", Presence::Present),
            (128 * 1024 - 3, "0123abcd", Presence::Present),
            (128 * 1024 - 3, "0123abce", Presence::Absent),
        ] {
            let text = [vec![b'0'; before], nonce.into(), vec![b'0'; 300_000]].concat();
            std::fs::write(file.path(), &text).unwrap();
            assert_eq!(read_frozen(file.path(), &planted()).unwrap(), (Digest::of(&text), expected), "at {before}");
        }
    }
}
