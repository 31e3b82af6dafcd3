//! What a machine's journal says about a patch that did not pass: the last lines, and before them those that matter.

use std::{collections::BTreeSet, time::Duration};

use jiff::Timestamp;
use patchlab_check::Target as _;
use serde::Deserialize;
use serde_json::Value;

use crate::machine::Machine;

/// Lines that are kept of a validation that did not pass.
const LINES: usize = 60;

/// Asks for the clock's offset, what dpkg did, and the journal's entries since `$SINCE`, without the lab's own
/// questions to the machine: they are no news about the patch and far more than everything else. An entry is one line
/// of JSON whatever its message holds, so a line can be left out; the bounds are on what the journal reads (entries)
/// and on what the guest sends (bytes; a first line that they cut is skipped).
const COMMAND: &str = r#"date +%:z
grep -hE '^[^ ]+ [^ ]+ (install|upgrade|configure|trigproc|remove|purge) ' /var/log/dpkg.log 2>/dev/null | tail -n 40
journalctl --boot --since="@$SINCE" --no-pager --lines=6000 --output=json \
  --output-fields=PRIORITY,SYSLOG_IDENTIFIER,_COMM,SYSLOG_PID,_PID,MESSAGE |
  grep -v -e '"SYSLOG_IDENTIFIER":"qemu-ga"' -e '"_COMM":"qemu-ga"' | tail --bytes=200000"#;

/// Words of messages that matter whatever their priority: what a program prints has the priority *info*, also when it
/// dies of it.
const WORDS: &[&str] = &["fail", "error", "emerg", "fatal", "panic", "cannot", "unable", "dpkg", "killed"];

/// As `journalctl` writes a time.
const TIME: &str = "%b %d %H:%M:%S";

/// Priorities that matter by themselves (syslog.h): emergency to warning.
const WARNING: u8 = 4;

/// The lines of a machine's journal since then that people want to see, with dpkg's log; what cannot be read is said
/// instead.
pub(super) fn journal(machine: &Machine, since: Timestamp) -> Vec<String> {
    let command = format!("SINCE={}; {COMMAND}", since.as_second());
    match machine.guest().run(&command, None, Duration::from_secs(120)) {
        Ok(ran) => chosen(&parse(&ran.stdout, since)),
        Err(error) => vec![format!("the journal could not be read: {error}")],
    }
}

/// An entry of the journal, as `--output=json` writes it: every value is a string, except a message that is not text.
#[derive(Debug, Deserialize)]
struct Written {
    #[serde(rename = "__REALTIME_TIMESTAMP")]
    microseconds: String,
    #[serde(rename = "PRIORITY", default)]
    priority: Option<String>,
    #[serde(rename = "SYSLOG_IDENTIFIER", default)]
    identifier: Option<String>,
    #[serde(rename = "_COMM", default)]
    command: Option<String>,
    #[serde(rename = "SYSLOG_PID", default)]
    said_pid: Option<String>,
    #[serde(rename = "_PID", default)]
    pid: Option<String>,
    #[serde(rename = "MESSAGE", default)]
    message: Value,
}

#[derive(Debug, PartialEq, Eq)]
struct Entry {
    at: Timestamp,
    /// As `journalctl` shows it, without the host: a message of several lines goes on indented.
    text: String,
    matters: bool,
}

/// Entries in the order of time; what is not one, such as a line cut short, is skipped.
fn parse(text: &str, since: Timestamp) -> Vec<Entry> {
    let (offset, rest) = text.split_once('\n').unwrap_or_default();
    let mut entries: Vec<Entry> = rest
        .lines()
        .filter_map(|line| match serde_json::from_str::<Written>(line) {
            Ok(written) => entry(written),
            Err(_) => dpkg_entry(line, offset),
        })
        .filter(|entry| entry.at >= since)
        .collect();
    entries.sort_by_key(|entry| entry.at);
    entries
}

/// A line of dpkg's log: `2026-01-02 03:04:05 configure nginx:amd64 1.22 <none>`, in local time.
fn dpkg_entry(line: &str, offset: &str) -> Option<Entry> {
    let (time, what) = line.split_at_checked("2026-01-02 03:04:05".len())?;
    let at: Timestamp = format!("{time}{offset}").parse().ok()?;
    Some(Entry { at, text: format!("{} dpkg:{what}", at.strftime(TIME)), matters: true })
}

fn entry(written: Written) -> Option<Entry> {
    let at = Timestamp::from_microsecond(written.microseconds.parse().ok()?).ok()?;
    let message = match written.message {
        Value::String(text) => text,
        // What is not UTF-8 comes as numbers.
        Value::Array(bytes) => {
            let bytes: Vec<u8> = bytes.iter().filter_map(|byte| u8::try_from(byte.as_u64()?).ok()).collect();
            String::from_utf8_lossy(&bytes).into_owned()
        }
        _ => return None,
    };
    let identifier = written.identifier.or(written.command).unwrap_or_else(|| "unknown".into());
    let pid = written.said_pid.or(written.pid).map(|pid| format!("[{pid}]")).unwrap_or_default();
    let is_warning = written.priority.and_then(|word| word.parse::<u8>().ok()).is_some_and(|number| number <= WARNING);
    let lower = format!("{identifier} {message}").to_lowercase();
    Some(Entry {
        at,
        text: format!("{} {identifier}{pid}: {}", at.strftime(TIME), message.replace('\n', "\n    ")),
        matters: is_warning || WORDS.iter().any(|word| lower.contains(word)),
    })
}

/// [`LINES`] lines in their order: the last that matter, at most two thirds of all, and otherwise the last.
fn chosen(entries: &[Entry]) -> Vec<String> {
    let newest_first = || entries.iter().enumerate().rev();
    let mattering = newest_first().filter(|(_, entry)| entry.matters).map(|(index, _)| index).take(LINES * 2 / 3);
    let mut shown: BTreeSet<usize> = mattering.collect();
    for (index, _) in newest_first() {
        if shown.len() >= LINES {
            break;
        }
        shown.insert(index);
    }
    // An entry of many lines may not push the others out: its first lines say what it is.
    shown.into_iter().flat_map(|index| entries[index].text.lines().take(8)).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(second: u64, priority: u8, identifier: &str, message: &str) -> String {
        serde_json::json!({
            "__REALTIME_TIMESTAMP": (second * 1_000_000).to_string(), "__CURSOR": "s=1", "_BOOT_ID": "b",
            "PRIORITY": priority.to_string(), "SYSLOG_IDENTIFIER": identifier, "_COMM": "x", "_PID": "7",
            "MESSAGE": message,
        })
        .to_string()
    }

    fn shown(lines: &[String]) -> Vec<Entry> {
        parse(&format!("+00:00\n{}\n", lines.join("\n")), Timestamp::UNIX_EPOCH)
    }

    #[test]
    fn entries_look_as_journalctl_shows_them() {
        let whole = line(3600, 6, "nginx", "first\nsecond");
        let bytes = r#"{"__REALTIME_TIMESTAMP":"7200000000","_COMM":"cat","PRIORITY":"3","MESSAGE":[104,105,255]}"#;
        let found = shown(&[whole[20..].to_owned(), whole, bytes.to_owned()]);
        assert_eq!(found[0].text, "Jan 01 01:00:00 nginx[7]: first\n    second");
        assert!(!found[0].matters);
        assert_eq!((found[1].text.as_str(), found[1].matters), ("Jan 01 02:00:00 cat: hi\u{fffd}", true));
        assert_eq!(found.len(), 2);
    }

    #[test]
    fn dpkg_stands_between_the_entries_of_its_time_and_what_is_older_than_the_freeze_is_left_out() {
        let dpkg = "1970-01-01 03:00:02 configure web:all 1.0 <none>\n1970-01-01 02:00:00 install old:all 1 <none>";
        let text = format!("+02:00\n{dpkg}\n{}\n{}\n", line(3600, 6, "x", "before"), line(3603, 6, "x", "after"));
        let texts: Vec<String> =
            parse(&text, Timestamp::from_second(3600).unwrap()).into_iter().map(|e| e.text).collect();
        let expected = [
            "Jan 01 01:00:00 x[7]: before",
            "Jan 01 01:00:02 dpkg: configure web:all 1.0 <none>",
            "Jan 01 01:00:03 x[7]: after",
        ];
        assert_eq!(texts, expected);
    }

    #[test]
    fn what_matters_is_shown_however_much_came_after_it() {
        let early = line(1, 6, "nginx", "nginx: [emerg] unknown directive \"tuned\"");
        let dpkg = "1970-01-01 00:00:02 configure nginx:amd64 2 <none>".to_owned();
        let noise = (10..500).map(|second| line(second, 6, "systemd", &format!("Started {second}")));
        let lines: Vec<String> = [line(0, 6, "kernel", "hello"), early, dpkg].into_iter().chain(noise).collect();
        let entries = shown(&lines);
        let lines = chosen(&entries);
        assert_eq!((entries.len(), lines.len()), (493, LINES));
        assert!(lines[0].contains("[emerg]") && lines[1].contains("dpkg"), "{lines:?}");
        assert!(lines[2].ends_with("Started 442") && lines[LINES - 1].ends_with("Started 499"), "{lines:?}");
    }

    #[test]
    fn many_warnings_leave_room_for_the_last_lines() {
        let lines: Vec<String> = (0..330)
            .map(|second| if second < 300 { line(second, 4, "x", "careful") } else { line(second, 6, "y", "calm") })
            .collect();
        let lines = chosen(&shown(&lines));
        let calm = lines.iter().filter(|line| line.contains("calm")).count();
        assert_eq!((lines.len(), calm), (LINES, LINES / 3));
        assert_eq!(chosen(&[]), Vec::<String>::new());
    }
}
