//! Durations, moments and digests as people read them: on terminals, in the console, in reports. Programs get JSON, with milliseconds,
//! RFC 3339 and whole digests.

use std::time::Duration;

use jiff::Timestamp;

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
    fn moments_name_their_zone_and_leave_out_fractions() {
        assert_eq!(moment_of("2026-11-30T22:58:03.894888808Z"), "2026-11-30 22:58:03 UTC");
        assert_eq!(moment_of("2026-11-30T23:58:03+01:00"), "2026-11-30 22:58:03 UTC");
        assert_eq!(moment_of("never"), "never");
    }
}
