//! When an activation counts: at once, or in a window that somebody chose. Pure: what was asked for, what the lab measured and the
//! clock in; the activation's two moments, or why not, out.

use std::time::Duration;

use jiff::{SignedDuration, SpanRelativeTo, Timestamp};
use patchlab_protocol::document::{Action, Activation, Release};
use serde::{Deserialize, Serialize};

use crate::legible;

/// How far a host's clock may be behind the server's: what counts at once is valid from that long before it was signed.
pub const CLOCK_SLACK: SignedDuration = SignedDuration::from_mins(5);
/// How long an activation is valid unless told otherwise: hours, as activations are.
pub const LIFETIME: Duration = Duration::from_secs(8 * 3600);
/// Longest lifetime of an activation, and longest window.
pub const LIFETIME_MOST: Duration = Duration::from_secs(24 * 3600);
/// How far ahead a window may be chosen: documents, keys and package lists age.
pub const AHEAD_MOST: Duration = Duration::from_secs(31 * 24 * 3600);

/// A window that somebody asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wanted {
    /// When it opens.
    pub not_before: Timestamp,
    /// When it closes; absent: with the activation's lifetime, counted from its opening.
    #[serde(default)]
    pub until: Option<Timestamp>,
}

/// A window that was signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Window {
    /// Nothing begins before.
    pub opens: Timestamp,
    /// Nothing begins after.
    pub closes: Timestamp,
}

impl Window {
    /// The window of an activation; `None` of one that counts from its signing on.
    pub fn of(activation: &Activation) -> Option<Self> {
        let opens = activation.not_before;
        (opens > activation.at).then_some(Self { opens, closes: activation.not_after })
    }

    /// The last moment at which work that takes `needs` may begin, to end in the window.
    pub fn last_begin(&self, needs: Duration) -> Timestamp {
        self.closes.checked_sub(needs).map_or(self.opens, |last| last.max(self.opens))
    }
}

/// Why an activation cannot have these times.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WindowError {
    /// It would open in the past.
    #[error("the window would open at {}, which is past: choose a later --not-before, or leave it out", legible::moment(*.0))]
    Past(Timestamp),
    /// It would open too far ahead.
    #[error("the window would open at {}, more than {} days ahead", legible::moment(*.0), AHEAD_MOST.as_secs() / 86_400)]
    TooFar(Timestamp),
    /// It would close before it opens.
    #[error("the window would close at {}, before it opens at {}", legible::moment(*.closes), legible::moment(*.opens))]
    Inverted {
        /// When it opens.
        opens: Timestamp,
        /// When it closes.
        closes: Timestamp,
    },
    /// The activation would end before.
    #[error(
        "the activation would end at {}, before its window closes at {}: give a longer --lifetime, or none",
        legible::moment(*.ends),
        legible::moment(*.closes)
    )]
    EndsBefore {
        /// When the activation ends.
        ends: Timestamp,
        /// When the window closes, or opens where no end was chosen.
        closes: Timestamp,
    },
    /// The work does not fit.
    #[error("the window is {has_s} s long, and the lab measured {needs_s} s for this work: choose a longer one")]
    TooShort {
        /// Seconds.
        has_s: i64,
        /// Seconds.
        needs_s: u64,
    },
    /// Longer than an activation may be valid.
    #[error("the window is longer than {} h, as long as an activation may be valid", LIFETIME_MOST.as_secs() / 3600)]
    TooLong,
    /// No time there is.
    #[error("there is no such time: {0}")]
    NoTime(String),
}

/// From when to when an activation counts that is signed `now`, with the `lifetime` and the window that were asked for, for work
/// that takes `needs`.
///
/// # Errors
/// When no host could do the work in it.
pub fn validity(
    now: Timestamp,
    wanted: Option<Wanted>,
    lifetime: Option<Duration>,
    needs: Duration,
) -> Result<(Timestamp, Timestamp), WindowError> {
    let after = |from: Timestamp, long: Duration| {
        from.checked_add(long).map_err(|error| WindowError::NoTime(error.to_string()))
    };
    let Some(Wanted { not_before: opens, until }) = wanted else {
        return Ok((now - CLOCK_SLACK, after(now, lifetime.unwrap_or(LIFETIME).min(LIFETIME_MOST))?));
    };
    if opens <= now {
        return Err(WindowError::Past(opens));
    }
    if opens > after(now, AHEAD_MOST)? {
        return Err(WindowError::TooFar(opens));
    }
    let ends = lifetime.map(|lifetime| after(now, lifetime)).transpose()?;
    if let Some(ends) = ends.filter(|ends| *ends < until.unwrap_or(opens)) {
        return Err(WindowError::EndsBefore { ends, closes: until.unwrap_or(opens) });
    }
    let closes = match until.or(ends) {
        Some(closes) => closes,
        None => after(opens, LIFETIME)?,
    };
    if closes <= opens {
        return Err(WindowError::Inverted { opens, closes });
    }
    if closes > after(opens, LIFETIME_MOST)? {
        return Err(WindowError::TooLong);
    }
    if closes < after(opens, needs)? {
        let has_s = closes.duration_since(opens).as_secs();
        return Err(WindowError::TooShort { has_s, needs_s: needs.as_millis().div_ceil(1000) as u64 });
    }
    Ok((opens, closes))
}

/// How long the lab measured the package manager's work to take, at most; nothing where nothing was measured.
pub fn measured(action: Action, release: Option<&Release>) -> Duration {
    let of = |release: &Release| {
        release
            .proof
            .baselines
            .iter()
            .map(|baseline| match action {
                Action::Apply => baseline.apply_ms,
                Action::Rollback => baseline.rollback_ms,
            })
            .max()
    };
    Duration::from_millis(release.and_then(of).unwrap_or(0))
}

/// A time as people write it: RFC 3339, or from now on (`+2h`, `+1d 12h`).
///
/// # Errors
/// A sentence that shows both forms.
pub fn moment(text: &str, now: Timestamp) -> Result<Timestamp, String> {
    let wrong = |error: jiff::Error| format!("{error}; write 2026-03-01T02:00:00Z, or +2h from now on");
    let Some(ahead) = text.strip_prefix('+') else { return text.parse().map_err(wrong) };
    let span: jiff::Span = ahead.parse().map_err(wrong)?;
    let long = span.to_duration(SpanRelativeTo::days_are_24_hours()).map_err(wrong)?;
    now.checked_add(long).map_err(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn time(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    const NOW: &str = "2026-03-01T12:00:00Z";

    fn asked(opens: &str, until: Option<&str>, lifetime_h: Option<u64>) -> Result<(Timestamp, Timestamp), WindowError> {
        let now = time(NOW);
        let wanted =
            Wanted { not_before: moment(opens, now).unwrap(), until: until.map(|until| moment(until, now).unwrap()) };
        let lifetime = lifetime_h.map(|hours| Duration::from_secs(hours * 3600));
        validity(now, Some(wanted), lifetime, Duration::from_secs(600))
    }

    #[test]
    fn a_window_is_what_was_asked_for_and_else_as_long_as_an_activation() {
        let from_to = |opens: &str, closes: &str| Ok((time(opens), time(closes)));
        let (opens, closes) = ("2026-03-02T02:00:00Z", "2026-03-02T04:00:00Z");
        assert_eq!(asked(opens, Some(closes), None), from_to(opens, closes));
        assert_eq!(asked(opens, None, None), from_to(opens, "2026-03-02T10:00:00Z"));
        assert_eq!(asked(opens, None, Some(15)), from_to(opens, "2026-03-02T03:00:00Z"));
        assert_eq!(asked("+2h", Some("+2h 10m"), Some(3)), from_to("2026-03-01T14:00:00Z", "2026-03-01T14:10:00Z"));
        let (begins, ends) = validity(time(NOW), None, None, Duration::MAX).unwrap();
        assert_eq!((begins, ends), (time("2026-03-01T11:55:00Z"), time("2026-03-01T20:00:00Z")));
    }

    #[test]
    fn a_window_that_no_host_could_keep_is_refused() {
        let no = |opens: &str, until: Option<&str>, lifetime| asked(opens, until, lifetime).unwrap_err();
        assert_eq!(no(NOW, None, None), WindowError::Past(time(NOW)));
        assert!(matches!(no("+32d", None, None), WindowError::TooFar(_)));
        assert!(matches!(no("+2h", Some("+1h"), None), WindowError::Inverted { .. }));
        assert!(matches!(no("+2h", Some("+4h"), Some(3)), WindowError::EndsBefore { .. }));
        assert!(matches!(no("+2h", None, Some(1)), WindowError::EndsBefore { .. }));
        assert_eq!(no("+2h", Some("+2h 9m"), None), WindowError::TooShort { has_s: 540, needs_s: 600 });
        assert_eq!(no("+1h", Some("+1d 2h"), None), WindowError::TooLong);
    }

    #[test]
    fn what_begins_last_ends_in_the_window() {
        let window = Window { opens: time("2026-03-02T02:00:00Z"), closes: time("2026-03-02T04:00:00Z") };
        assert_eq!(window.last_begin(Duration::from_secs(600)), time("2026-03-02T03:50:00Z"));
        assert_eq!(window.last_begin(Duration::from_secs(86_400)), window.opens);
    }

    #[test]
    fn times_are_absolute_or_from_now_on_and_nothing_else() {
        let now = time(NOW);
        assert_eq!(moment("2026-03-02T02:00:00+02:00", now), Ok(time("2026-03-02T00:00:00Z")));
        assert_eq!(moment("+90m", now), Ok(time("2026-03-01T13:30:00Z")));
        assert_eq!(moment("+1d 12h", now), Ok(time("2026-03-03T00:00:00Z")));
        for bad in ["2h", "tomorrow", "2026-03-02T02:00:00", "+", "+2", "+999999999d"] {
            assert!(moment(bad, now).is_err_and(|error| error.contains("+2h")), "{bad}");
        }
    }
}
