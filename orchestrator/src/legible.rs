//! Durations, moments and particulars as people read them: on terminals, in the console, in reports. Programs get JSON, with milliseconds,
//! RFC 3339 and whole digests.

use std::time::Duration;

use jiff::Timestamp;
use patchlab_protocol::Digest;

/// A duration: `270 ms`, `4.2 s`, `73 s`, `3 min 39 s`.
pub fn duration(duration: Duration) -> String {
    let (seconds, tenths) = (duration.as_secs(), duration.as_millis() / 100 % 10);
    match seconds {
        0 => format!("{} ms", duration.as_millis()),
        1..10 => format!("{seconds}.{tenths} s"),
        10..120 => format!("{seconds} s"),
        _ => format!("{} min {} s", seconds / 60, seconds % 60),
    }
}

/// A duration given in milliseconds, as results carry it.
pub fn millis(ms: u64) -> String {
    duration(Duration::from_millis(ms))
}

/// A moment, to the second, with its zone: `2026-11-30 22:58:03 UTC`.
pub fn moment(at: Timestamp) -> String {
    at.strftime("%Y-%m-%d %H:%M:%S UTC").to_string()
}

/// The same of an RFC 3339 text; anything else is shown as it is.
pub fn moment_of(text: &str) -> String {
    text.parse().map_or_else(|_| text.to_owned(), moment)
}

/// Particulars that travel as a JSON object: `action apply, hosts web-2 web-1, not_after 2026-11-24 06:58:03 UTC`. Digests are
/// shortened, what is empty is left out; anything but an object is shown as it is.
pub fn particulars(json: &str) -> String {
    let Ok(serde_json::Value::Object(fields)) = serde_json::from_str(json) else { return json.to_owned() };
    let shown = fields.iter().map(|(name, value)| (name, particular(value))).filter(|(_, value)| !value.is_empty());
    shown.map(|(name, value)| format!("{name} {value}")).collect::<Vec<_>>().join(", ")
}

fn particular(value: &serde_json::Value) -> String {
    use serde_json::Value;
    match value {
        Value::Null => String::new(),
        Value::String(text) => match text.parse::<Digest>() {
            Ok(digest) => digest.short(),
            Err(_) => moment_of(text),
        },
        Value::Array(items) => items.iter().map(particular).collect::<Vec<_>>().join(" "),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_as_many_figures_as_are_worth_reading() {
        for (ms, text) in [
            (0, "0 ms"),
            (999, "999 ms"),
            (1_000, "1.0 s"),
            (9_999, "9.9 s"),
            (10_000, "10 s"),
            (119_999, "119 s"),
            (120_000, "2 min 0 s"),
            (219_400, "3 min 39 s"),
        ] {
            assert_eq!(millis(ms), text);
        }
    }

    #[test]
    fn particulars_are_words() {
        let json = format!(
            r#"{{"activation":"{}","hosts":["web-2","web-1"],"not_after":"2026-11-24T06:58:03.95Z","reason":"","run":1}}"#,
            "ab".repeat(32)
        );
        let said = "activation abababababab, hosts web-2 web-1, not_after 2026-11-24 06:58:03 UTC, run 1";
        assert_eq!(particulars(&json), said);
        assert_eq!(particulars("{}"), "");
        assert_eq!(particulars("no object"), "no object");
    }

    #[test]
    fn moments_name_their_zone_and_leave_out_fractions() {
        assert_eq!(moment_of("2026-11-30T22:58:03.894888808Z"), "2026-11-30 22:58:03 UTC");
        assert_eq!(moment_of("2026-11-30T23:58:03+01:00"), "2026-11-30 22:58:03 UTC");
        assert_eq!(moment_of("never"), "never");
    }
}
