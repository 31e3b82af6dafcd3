//! What the collectors' texts say.

use std::collections::{BTreeMap, BTreeSet};

use patchlab_check::written::ByteSize;
use serde::Deserialize;

use super::{
    Findings,
    fold::{self, Digits},
};
use crate::{
    diff::ports::{Chosen, Listening},
    machine::{FailureKind, failures},
    manifest::{Port, PortRange},
};

/// Units that are failed, from `systemctl list-units --failed --plain --no-legend`; those that were since, from the journal's `UNIT`s;
/// and those that systemd started again by itself, from `systemctl show --property=Id,NRestarts`.
pub fn failed_units(text: &str) -> BTreeSet<String> {
    #[derive(Deserialize)]
    struct Line {
        #[serde(rename = "UNIT")]
        unit: String,
    }
    let mut found: BTreeSet<String> = text
        .lines()
        .map(|line| line.trim_start_matches(['●', '*', ' ']))
        .filter_map(|line| {
            let mut columns = line.split_whitespace();
            let name = columns.next()?;
            let (_load, active) = (columns.next()?, columns.next()?);
            (active == "failed").then(|| name.to_owned())
        })
        .collect();
    let journal = text.lines().filter_map(|line| serde_json::from_str::<Line>(line).ok()).map(|line| line.unit);
    let restarted = text.split("\n\n").filter_map(|record| {
        let value = |key: &str| record.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        (value("NRestarts")? != "0").then(|| value("Id").unwrap_or_default().to_owned())
    });
    let meanwhile = journal.chain(restarted).filter(|unit| !found.contains(unit) && unit != GUEST_AGENT);
    let meanwhile: BTreeSet<String> = meanwhile.collect();
    found.extend(meanwhile.into_iter().map(|unit| format!("{unit}{MEANWHILE}")));
    found
}

/// The lab's own way into a guest. A reboot ends it in the middle of an answer, by chance on one clone and not on the other.
const GUEST_AGENT: &str = "qemu-guest-agent.service";

/// What follows a unit's name that failed, and no longer is failed.
const MEANWHILE: &str = " (failed meanwhile)";

/// Failed units without those that failed meanwhile on the patched clone and at any time on the control: a unit that fails and is started
/// again in turns is caught in another state on every machine.
pub(super) fn of_the_same_units(found: Findings) -> Findings {
    let Findings { control, mut patched } = found;
    let alike = |finding: &String| {
        let unit = finding.strip_suffix(MEANWHILE)?;
        [unit.to_owned(), finding.clone()].into_iter().find(|known| control.contains(known))
    };
    patched = patched.into_iter().map(|finding| alike(&finding).unwrap_or(finding)).collect();
    Findings { control, patched }
}

/// Lines of a serial log that tell of a broken machine ([`failures`]), without their time stamps, and with numbers made `N`: process and inode
/// numbers differ between two machines of which the same happens. Stalls are not among them: a processor that made no progress is as often one
/// that a busy host did not let.
pub fn serial_panic(text: &str) -> BTreeSet<String> {
    let broke = failures(text).into_iter().filter(|failure| failure.kind != FailureKind::Stall);
    broke.map(|failure| fold::folded(without_stamp(&failure.line), Digits::Loose)).collect()
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
            Some(format!("{who}: {}", fold::folded(first.trim(), Digits::All)))
        })
        .collect()
}

/// Crashes, each as who and by what signal: from systemd-coredump's journal entries, from lines of the kernel and of systemd, and core
/// files by path. What differs between machines that are alike is folded.
pub fn coredumps(text: &str) -> BTreeSet<String> {
    #[derive(Deserialize)]
    struct Line {
        #[serde(rename = "COREDUMP_COMM")]
        program: String,
        #[serde(rename = "COREDUMP_SIGNAL_NAME")]
        signal: Option<String>,
    }
    text.lines()
        .filter(|line| !line.trim().is_empty())
        .map(|line| match serde_json::from_str::<Line>(line) {
            Ok(Line { program, signal }) => format!("{program}: {}", signal.as_deref().unwrap_or("core dumped")),
            Err(_) => crash(line.trim()),
        })
        .collect()
}

/// `nginx[123]: segfault at 0 ip 00007f… sp …` without what differs from one crash to the next.
fn crash(line: &str) -> String {
    if let Some(path) = line.strip_prefix("core file ") {
        // The kernel names a core file for the process.
        let (folder, name) = path.rsplit_once('/').unwrap_or(("", path));
        return format!("core file {folder}/{}", fold::folded(name, Digits::All));
    }
    let end = line.find(" at ").filter(|_| line.contains("segfault")).unwrap_or(line.len());
    let text = &line[..end];
    fold::folded(text.find(" ip:").map_or(text, |at| &text[..at]), Digits::All)
}

/// `-rwsr-xr-x root:root /usr/bin/x`, `/usr/bin/x has capabilities 01…`: the line is the finding.
pub fn setuid_files(text: &str) -> BTreeSet<String> {
    text.lines().map(str::trim).filter(|line| line.contains('/')).map(str::to_owned).collect()
}

/// Lines of `md5sum --check --quiet` and of rpm's verification as `changed PATH` or `missing PATH`, and `left PATH`.
pub fn changed_configuration(text: &str) -> BTreeSet<String> {
    text.lines()
        .filter_map(|line| {
            if line.starts_with("left /") {
                return Some(line.to_owned());
            }
            let (path, word) = line.rsplit_once(": ")?;
            match word {
                "FAILED" => Some(format!("changed {path}")),
                "FAILED open or read" => Some(format!("missing {path}")),
                _ => None,
            }
        })
        .collect()
}

/// What a machine listens on, from `ip_local_port_range` and `ss -Hlntup`; the lab's own is left out.
pub fn ports(text: &str) -> Listening {
    let given = text.lines().find_map(PortRange::of_line).unwrap_or_default();
    Listening::on(text.lines().filter_map(Port::of_line), given)
}

/// Ports that only one of the two listens on.
pub fn ports_changed(control: &Listening, patched: &Listening) -> BTreeSet<String> {
    let told = |port: Port, what: &str| {
        let process = port.process.map_or_else(String::new, |process| format!(" by {process}"));
        format!("{} {}:{}{process} {what}", port.protocol, port.address, port.port)
    };
    let only = |one: &Listening, other: &Listening, what: &'static str| {
        one.without(other, Chosen::ByAnyProgram).into_iter().map(move |port| told(port, what))
    };
    only(patched, control, "appeared").chain(only(control, patched, "vanished")).collect()
}

/// Bytes in use by file system, from `df --output=used,target`; of the root's, those of the lab's own agent are taken off.
pub fn disk_use(text: &str) -> BTreeMap<String, u64> {
    let mut disks: BTreeMap<String, u64> = BTreeMap::new();
    let mut agent = 0;
    for line in text.lines() {
        match line.trim().split_once(' ') {
            Some(("agent", bytes)) => agent = bytes.trim().parse().unwrap_or(0),
            Some((bytes, folder)) if !folder.trim().starts_with("/mnt/patchlab") => {
                if let Ok(bytes) = bytes.parse() {
                    disks.insert(folder.trim().to_owned(), bytes);
                }
            }
            _ => {}
        }
    }
    if let Some(root) = disks.get_mut("/") {
        *root = root.saturating_sub(agent);
    }
    disks
}

/// File systems on which more is in use than on the control, beyond the tolerance.
pub fn growth(
    control: &BTreeMap<String, u64>,
    patched: &BTreeMap<String, u64>,
    tolerance: ByteSize,
) -> BTreeSet<String> {
    let more = |(folder, bytes): (&String, &u64)| {
        let more = ByteSize(bytes.saturating_sub(control.get(folder).copied().unwrap_or(0)));
        let told = || format!("{folder} holds {} MiB more than on the control ({tolerance} allowed)", more.mebibytes());
        (more > tolerance).then(told)
    };
    patched.iter().filter_map(more).collect()
}
