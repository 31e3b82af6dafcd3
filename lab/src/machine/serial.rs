//! The serial console: a log, in which some lines mean that the machine broke.

use std::{
    fs::File,
    io::{self, Read as _, Seek as _, SeekFrom},
    path::Path,
};

use serde::{Deserialize, Serialize};

/// Bytes of a console log that are looked at, from its end: 4 MiB.
const LOG_LIMIT: u64 = 4 * 1024 * 1024;

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
    ("Oops: ", FailureKind::Panic),
    ("general protection fault", FailureKind::Panic),
    ("Out of memory: Killed process", FailureKind::OutOfMemory),
    ("oom-kill:", FailureKind::OutOfMemory),
    ("EXT4-fs error", FailureKind::FileSystem),
    ("XFS (", FailureKind::FileSystem),
    ("Remounting filesystem read-only", FailureKind::FileSystem),
    ("Buffer I/O error", FailureKind::FileSystem),
    ("blk_update_request: I/O error", FailureKind::FileSystem),
    ("blocked for more than", FailureKind::Stall),
    ("watchdog: BUG: soft lockup", FailureKind::Stall),
    ("rcu: INFO: rcu_sched detected stalls", FailureKind::Stall),
    ("You are in emergency mode", FailureKind::Emergency),
];

/// Failures in a console's text, in order.
pub fn failures(text: &str) -> Vec<Failure> {
    text.lines()
        .filter_map(|line| {
            let (_, kind) = PATTERNS.iter().find(|(pattern, _)| line.contains(pattern))?;
            // XFS writes its name before good news, too.
            let harmless = line.contains("XFS (") && !line.contains("orruption") && !line.contains("error");
            (!harmless).then(|| Failure { kind: *kind, line: line.trim_end().to_owned() })
        })
        .collect()
}

/// Failures in a console log from byte `from` on, of which the last 4 MiB are read. A log that does not exist yet has none.
pub fn failures_in(log: &Path, from: u64) -> io::Result<Vec<Failure>> {
    let mut file = match File::open(log) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(LOG_LIMIT).max(from)))?;
    let mut bytes = Vec::new();
    file.take(LOG_LIMIT).read_to_end(&mut bytes)?;
    Ok(failures(&String::from_utf8_lossy(&bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_that_mean_failure() {
        for (line, kind) in [
            ("[   12.3] Kernel panic - not syncing: VFS: Unable to mount root fs", FailureKind::Panic),
            ("[    9.1] Out of memory: Killed process 231 (stress)", FailureKind::OutOfMemory),
            ("[    7.7] EXT4-fs error (device vda1): ext4_lookup:1855", FailureKind::FileSystem),
            ("INFO: task jbd2/vda1-8:150 blocked for more than 120 seconds.", FailureKind::Stall),
            ("You are in emergency mode. After logging in,", FailureKind::Emergency),
        ] {
            assert_eq!(failures(line), [Failure { kind, line: line.into() }]);
        }
    }

    #[test]
    fn good_news_is_none() {
        let text = "EXT4-fs (vda1): mounted filesystem\nXFS (vda1): Ending clean mount\nsystemd[1]: Reached target\n";
        assert_eq!(failures(text), []);
    }
}
