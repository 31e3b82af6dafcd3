//! The time that one piece of work in a guest may take: whatever it asks there is given what is left of it.

use std::time::{Duration, Instant};

/// Seconds that one agent command may take at most, whatever is left. All of them only start, ask or read.
const COMMAND_S: u64 = 60;

/// What a piece of work may take; runs from its making.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Budget {
    until: Instant,
    whole: Duration,
}

impl Budget {
    /// From now on.
    pub(crate) fn of(whole: Duration) -> Self {
        Self { until: Instant::now() + whole, whole }
    }

    /// What is left.
    pub(crate) fn left(self) -> Duration {
        self.until.saturating_duration_since(Instant::now())
    }

    /// Whether nothing is left.
    pub(crate) fn is_over(self) -> bool {
        self.left().is_zero()
    }

    /// What it was at first, seconds: for people.
    pub(crate) fn seconds(self) -> u64 {
        self.whole.as_secs()
    }

    /// How long the next agent command may take: what is left, in whole seconds, at least one and at most a minute. An answer that comes
    /// late is still read by the next command, and thrown away.
    pub(crate) fn command_s(self) -> i32 {
        i32::try_from(self.left().as_secs().clamp(1, COMMAND_S)).unwrap_or(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_gets_what_is_left_within_limits() {
        let of = |seconds| Budget::of(Duration::from_secs(seconds));
        assert_eq!(of(600).command_s(), 60);
        assert!((28..=30).contains(&of(30).command_s()));
        assert_eq!((of(0).command_s(), of(0).is_over()), (1, true));
        assert_eq!(of(7).seconds(), 7);
    }
}
