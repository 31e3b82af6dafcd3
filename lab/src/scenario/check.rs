//! Checks: what is watched all the time on both clones. Pure functions over text that the validation collects.

use std::collections::BTreeSet;

use patchlab_check::Status;
use serde::{Deserialize, Serialize};

/// A `[[check]]` of a scenario.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Check {
    /// What is watched.
    pub kind: CheckKind,
    /// What a finding means.
    #[serde(default)]
    pub level: Level,
}

/// What a check watches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CheckKind {
    /// Kernel panics and their kin on the serial console.
    SerialPanic,
    /// systemd units in state `failed`.
    FailedUnits,
    /// Core dumps taken.
    Coredump,
    /// Journal entries of priority `err` and worse.
    JournalErrors,
    /// Listening ports that were not there before.
    ListeningPorts,
    /// Growth of the disk's content.
    DiskGrowth,
}

/// What a finding means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Level {
    /// It fails the clone.
    #[default]
    Fail,
    /// It is shown.
    Info,
    /// It must be there: its absence fails the clone.
    ExpectFail,
}

impl CheckKind {
    /// The word it is written with.
    pub fn name(self) -> &'static str {
        match self {
            Self::SerialPanic => "serial-panic",
            Self::FailedUnits => "failed-units",
            Self::Coredump => "coredump",
            Self::JournalErrors => "journal-errors",
            Self::ListeningPorts => "listening-ports",
            Self::DiskGrowth => "disk-growth",
        }
    }

    /// The command whose standard output [`evaluate_check`] reads, run in the guest. `None` for the serial log, which is on the
    /// host, and for the kinds that need the manifest or come with a later version.
    pub fn collector(self) -> Option<&'static str> {
        match self {
            Self::FailedUnits => Some("systemctl list-units --failed --plain --no-legend --no-pager"),
            Self::JournalErrors => Some("journalctl --boot --priority=err --output=json --no-pager --lines=1000"),
            Self::SerialPanic | Self::Coredump | Self::ListeningPorts | Self::DiskGrowth => None,
        }
    }
}

/// What a check finds in the text collected for it; `None` for a kind that this version parses but does not evaluate.
pub fn evaluate_check(kind: CheckKind, text: &str) -> Option<BTreeSet<String>> {
    match kind {
        CheckKind::SerialPanic => Some(serial_panic(text)),
        CheckKind::FailedUnits => Some(failed_units(text)),
        CheckKind::JournalErrors => Some(journal_errors(text)),
        CheckKind::Coredump | CheckKind::ListeningPorts | CheckKind::DiskGrowth => None,
    }
}

/// Names of failed units, from `systemctl list-units --failed --plain --no-legend`.
pub fn failed_units(text: &str) -> BTreeSet<String> {
    text.lines()
        .map(|line| line.trim_start_matches(['●', '*', ' ']))
        .filter_map(|line| {
            let mut columns = line.split_whitespace();
            let name = columns.next()?;
            let (_load, active) = (columns.next()?, columns.next()?);
            (active == "failed").then(|| name.to_owned())
        })
        .collect()
}

/// Lines of a serial log that tell of a dead or damaged kernel, without their time stamps.
pub fn serial_panic(text: &str) -> BTreeSet<String> {
    const SIGNS: &[&str] = &[
        "Kernel panic - not syncing",
        "BUG: unable to handle",
        "BUG: kernel NULL pointer",
        "general protection fault",
        "Out of memory: Killed process",
        "Oops: ",
        "EXT4-fs error",
        "XFS (", // with "Corruption" below
        "Unable to mount root fs",
    ];
    text.lines()
        .filter(|line| SIGNS.iter().any(|sign| line.contains(sign)))
        .filter(|line| !line.contains("XFS (") || line.contains("orruption"))
        .map(|line| without_stamp(line).to_owned())
        .collect()
}

/// `[   12.345678] text` without its stamp.
fn without_stamp(line: &str) -> &str {
    let line = line.trim();
    match line.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((stamp, rest)) if stamp.trim().chars().all(|c| c.is_ascii_digit() || c == '.') => rest.trim_start(),
        _ => line,
    }
}

/// Errors from `journalctl --priority=err --output=json`, as `identifier: message` with numbers made `N`, so that two machines
/// that complain of the same thing say the same. Lines that are not JSON are passed over.
pub fn journal_errors(text: &str) -> BTreeSet<String> {
    #[derive(Deserialize)]
    struct Line {
        #[serde(rename = "SYSLOG_IDENTIFIER")]
        identifier: Option<String>,
        #[serde(rename = "_SYSTEMD_UNIT")]
        unit: Option<String>,
        // A message that is not UTF-8 comes as an array of numbers.
        #[serde(rename = "MESSAGE")]
        message: Option<serde_json::Value>,
    }
    text.lines()
        .filter_map(|line| serde_json::from_str::<Line>(line).ok())
        .filter_map(|line| {
            let message = match line.message? {
                serde_json::Value::String(text) => text,
                serde_json::Value::Array(bytes) => {
                    let bytes: Vec<u8> = bytes.iter().filter_map(|byte| u8::try_from(byte.as_u64()?).ok()).collect();
                    String::from_utf8_lossy(&bytes).into_owned()
                }
                _ => return None,
            };
            let who = line.identifier.or(line.unit).unwrap_or_else(|| "?".into());
            let first = message.lines().next().unwrap_or_default();
            Some(format!("{who}: {}", without_numbers(first.trim())))
        })
        .collect()
}

/// Every run of digits as `N`: process ids, times and addresses differ between machines that are alike.
fn without_numbers(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c.is_ascii_digit() {
            false => out.push(c),
            true if !out.ends_with('N') => out.push('N'),
            true => {}
        }
    }
    out
}

/// The status of a check on (control, patched), from what was found on each. A finding that the control has too is never
/// blamed on the patch; a new one is, even beside old ones.
pub fn differential(level: Level, control: &BTreeSet<String>, patched: &BTreeSet<String>) -> (Status, Status) {
    let status = |good: bool| if good { Status::Pass } else { Status::Fail };
    match level {
        Level::Info => (Status::Pass, Status::Pass),
        Level::ExpectFail => (status(!control.is_empty()), status(!patched.is_empty())),
        Level::Fail if patched.is_subset(control) => (status(control.is_empty()), status(patched.is_empty())),
        Level::Fail => (Status::Pass, Status::Fail),
    }
}
