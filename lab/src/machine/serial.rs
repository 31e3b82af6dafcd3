//! The serial console: a log, in which some lines mean that the machine broke.
//!
//! A guest may write to it for ever, so its middle goes ([`bound`]): the first and the last of it stay, each where it is in the file, and
//! the disk holds no more.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read as _, Seek as _, SeekFrom},
    os::unix::fs::MetadataExt as _,
    path::Path,
};

use rustix::fs::{FallocateFlags, fallocate};
use serde::{Deserialize, Serialize};

/// Bytes of a console log that are kept from its begin: 1 MiB, a boot and more.
pub const LOG_HEAD: u64 = 1024 * 1024;
/// Bytes of a console log that are kept from its end, and looked at: 4 MiB.
pub const LOG_TAIL: u64 = 4 * 1024 * 1024;

/// Characters of a line that are shown.
const LINE_CHARACTERS: usize = 500;

/// What a line of the console says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// What broke.
    pub kind: FailureKind,
    /// The line, as written.
    pub line: String,
}

/// What broke.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FailureKind {
    /// The kernel panicked or hit a bug of its own.
    Panic,
    /// Memory ran out and a process was killed.
    OutOfMemory,
    /// A file system or the disk under it reported an error.
    FileSystem,
    /// A task or processor made no progress for long.
    Stall,
    /// systemd gave up and offers a rescue shell.
    Emergency,
}

/// Patterns are parts of lines, as the kernel and systemd write them.
const PATTERNS: &[(&str, FailureKind)] = &[
    ("Kernel panic - not syncing", FailureKind::Panic),
    ("BUG: unable to handle", FailureKind::Panic),
    ("BUG: kernel NULL pointer", FailureKind::Panic),
    ("kernel BUG at ", FailureKind::Panic),
    ("Oops: ", FailureKind::Panic),
    ("general protection fault", FailureKind::Panic),
    ("Unable to mount root fs", FailureKind::Panic),
    // Of the whole machine, and of a control group.
    ("ut of memory: Killed process", FailureKind::OutOfMemory),
    ("oom-kill:", FailureKind::OutOfMemory),
    ("EXT4-fs error", FailureKind::FileSystem),
    ("XFS (", FailureKind::FileSystem),
    ("BTRFS error", FailureKind::FileSystem),
    ("BTRFS critical", FailureKind::FileSystem),
    ("BTRFS: error", FailureKind::FileSystem),
    // The journal of ext4, in words of its own.
    ("Aborting journal on device", FailureKind::FileSystem),
    ("JBD2: Detected IO errors", FailureKind::FileSystem),
    ("Detected aborted journal", FailureKind::FileSystem),
    ("Remounting filesystem read-only", FailureKind::FileSystem),
    ("Buffer I/O error", FailureKind::FileSystem),
    ("blk_update_request: I/O error", FailureKind::FileSystem),
    ("blocked for more than", FailureKind::Stall),
    ("BUG: soft lockup", FailureKind::Stall),
    ("hard LOCKUP on cpu", FailureKind::Stall),
    // rcu_sched, rcu_preempt; of its own processor or of others.
    ("detected stall", FailureKind::Stall),
    ("detected expedited stall", FailureKind::Stall),
    ("You are in emergency mode", FailureKind::Emergency),
];

/// Failures in a console's text, in order.
pub fn failures(text: &str) -> Vec<Failure> {
    text.lines()
        .filter_map(|line| {
            let (_, kind) = PATTERNS.iter().find(|(pattern, _)| line.contains(pattern))?;
            // XFS writes its name before good news, too.
            let harmless = line.contains("XFS (") && !line.contains("orruption") && !line.contains("error");
            let line: String = line.trim_end().chars().take(LINE_CHARACTERS).collect();
            (!harmless).then_some(Failure { kind: *kind, line })
        })
        .collect()
}

/// A log's text from byte `from` on; of one with more than [`LOG_HEAD`] and [`LOG_TAIL`] bytes the first and the last, and between them how many were left out.
pub fn ends(log: &mut File, from: u64) -> io::Result<Vec<u8>> {
    let end = log.metadata()?.len();
    let length = end.saturating_sub(from);
    let mut bytes = Vec::new();
    log.seek(SeekFrom::Start(from))?;
    if length > LOG_HEAD + LOG_TAIL {
        log.by_ref().take(LOG_HEAD).read_to_end(&mut bytes)?;
        let left_out = length - LOG_HEAD - LOG_TAIL;
        bytes.extend_from_slice(format!("\n… {left_out} bytes left out …\n").as_bytes());
        log.seek(SeekFrom::Start(end - LOG_TAIL))?;
        log.by_ref().take(LOG_TAIL).read_to_end(&mut bytes)?;
    } else {
        log.by_ref().take(LOG_HEAD + LOG_TAIL).read_to_end(&mut bytes)?;
    }
    Ok(bytes)
}

/// What a console said from byte `from` of its log on, by [`ends`]. A log that does not exist yet says nothing.
pub fn said(log: &Path, from: u64) -> io::Result<String> {
    match File::open(log).and_then(|mut file| ends(&mut file, from)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        other => Ok(String::from_utf8_lossy(&other?).into_owned()),
    }
}

/// The last `lines` lines that are not empty of what a console said, without what only a terminal understands.
pub fn last_lines(log: &Path, lines: usize) -> io::Result<Vec<String>> {
    let text = said(log, 0)?;
    let plain = |line: &str| line.chars().filter(|c| !c.is_control()).take(LINE_CHARACTERS).collect::<String>();
    let all: Vec<String> = text.lines().map(plain).filter(|line| !line.trim().is_empty()).collect();
    Ok(all[all.len().saturating_sub(lines)..].to_vec())
}

/// Gives the disk back what a log holds between its first and its last bytes, once that is worth while. Nothing that its writer writes
/// meanwhile is lost, and nothing moves.
pub(super) fn bound(log: &Path) -> io::Result<()> {
    let file = match OpenOptions::new().write(true).open(log) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    let found = file.metadata()?;
    // Blocks of 512 bytes (stat(2)).
    if found.blocks() * 512 > LOG_HEAD + 2 * LOG_TAIL && found.len() > LOG_HEAD + LOG_TAIL {
        let middle = found.len() - LOG_TAIL - LOG_HEAD;
        fallocate(&file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, LOG_HEAD, middle)?;
    }
    Ok(())
}

/// Failures in a console log from byte `from` on, of which the last 4 MiB are read. A log that does not exist yet has none.
pub fn failures_in(log: &Path, from: u64) -> io::Result<Vec<Failure>> {
    let mut file = match File::open(log) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL).max(from)))?;
    let mut bytes = Vec::new();
    file.take(LOG_TAIL).read_to_end(&mut bytes)?;
    Ok(failures(&String::from_utf8_lossy(&bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_that_mean_failure() {
        for (line, kind) in [
            ("[   12.3] Kernel panic - not syncing: VFS: Unable to mount root fs", FailureKind::Panic),
            ("[    1.2] BUG: kernel NULL pointer dereference, address: 0000000000000008", FailureKind::Panic),
            ("[    1.2] kernel BUG at fs/ext4/inode.c:2721!", FailureKind::Panic),
            ("[    1.2] Oops: 0002 [#1] PREEMPT SMP", FailureKind::Panic),
            ("[    1.2] VFS: Unable to mount root fs on unknown-block(0,0)", FailureKind::Panic),
            ("[    9.1] Out of memory: Killed process 231 (stress)", FailureKind::OutOfMemory),
            ("[    9.1] Memory cgroup out of memory: Killed process 231 (stress)", FailureKind::OutOfMemory),
            ("[    9.1] oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null)", FailureKind::OutOfMemory),
            ("[    7.7] EXT4-fs error (device vda1): ext4_lookup:1855", FailureKind::FileSystem),
            ("[    7.7] EXT4-fs (vda1): Remounting filesystem read-only", FailureKind::FileSystem),
            ("[    7.7] Aborting journal on device vda1-8.", FailureKind::FileSystem),
            ("[    7.7] JBD2: Detected IO errors while flushing file data on vda1-8", FailureKind::FileSystem),
            ("[    7.7] XFS (vda1): Metadata corruption detected at xfs_agf_verify", FailureKind::FileSystem),
            ("[    7.7] BTRFS error (device vda1): bdev /dev/vda1 errs: wr 1", FailureKind::FileSystem),
            ("[    7.7] BTRFS critical (device vda1): corrupt leaf", FailureKind::FileSystem),
            ("[    7.7] BTRFS: error (device vda1) in cleanup_transaction:1982", FailureKind::FileSystem),
            ("[    7.7] Buffer I/O error on dev vda1, logical block 1", FailureKind::FileSystem),
            ("INFO: task jbd2/vda1-8:150 blocked for more than 120 seconds.", FailureKind::Stall),
            ("[   60.0] watchdog: BUG: soft lockup - CPU#0 stuck for 22s!", FailureKind::Stall),
            ("[   60.0] rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:", FailureKind::Stall),
            ("[   60.0] rcu: INFO: rcu_sched self-detected stall on CPU", FailureKind::Stall),
            ("You are in emergency mode. After logging in,", FailureKind::Emergency),
        ] {
            assert_eq!(failures(line), [Failure { kind, line: line.into() }]);
        }
    }

    #[test]
    fn of_a_log_without_end_the_first_and_the_last_stay_and_the_disk_holds_no_more() {
        use std::io::Write as _;
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("control.console");
        assert_eq!((bound(&log).unwrap(), said(&log, 0).unwrap()), ((), String::new()));
        let mut writer = OpenOptions::new().create(true).append(true).open(&log).unwrap();
        writer.write_all(b"Linux version 6.1\n").unwrap();
        let block = "0123456789abcde\n".repeat(65536);
        for _ in 0..64 {
            writer.write_all(block.as_bytes()).unwrap();
            bound(&log).unwrap();
        }
        writer.write_all(b"\x1b[0mlast\r\n\n").unwrap();
        let found = writer.metadata().unwrap();
        assert_eq!(found.len(), 18 + (64 << 20) + 11);
        assert!(found.blocks() * 512 <= LOG_HEAD + 2 * LOG_TAIL + (1 << 20), "{} blocks", found.blocks());
        let text = said(&log, 0).unwrap();
        assert!(text.starts_with("Linux version 6.1\n0123") && text.ends_with("last\r\n\n"));
        let left_out = found.len() - LOG_HEAD - LOG_TAIL;
        assert!(text.contains(&format!("\n… {left_out} bytes left out …\n")) && !text.contains('\0'));
        assert_eq!(last_lines(&log, 2).unwrap(), ["0123456789abcde", "[0mlast"]);
        writer.write_all(b"Kernel panic - not syncing: x\n").unwrap();
        assert_eq!(failures_in(&log, 0).unwrap().len(), 1);
        // As another machine of its name begins there.
        assert_eq!(said(&log, found.len()).unwrap(), "Kernel panic - not syncing: x\n");
    }

    #[test]
    fn good_news_is_none() {
        let text = "EXT4-fs (vda1): mounted filesystem\nXFS (vda1): Ending clean mount\nsystemd[1]: Reached target\n";
        assert_eq!(failures(text), []);
    }
}
