//! How fast an answer comes. One that drips would keep a run waiting to the end of its lifetime, without a moment of silence.

use std::time::Duration;

use patchlab_check::written::ByteSize;
use patchlab_protocol::Rate;

/// How long an answer may be slower, whatever comes.
const GRACE: Duration = Duration::from_secs(5);
/// Less in a second than any agent may be told to fetch is no use to anybody.
const LEAST: ByteSize = Rate::LEAST;

/// What came of an answer, and the time in which its server was waited for; the agent's own waiting is not in it. Pure.
#[derive(Debug, Default, Clone, Copy)]
pub struct Pace {
    /// Bytes.
    pub bytes: u64,
    /// Time.
    pub waited: Duration,
}

impl Pace {
    /// Enters what came after how long.
    pub fn enter(&mut self, bytes: u64, waited: Duration) {
        self.bytes = self.bytes.saturating_add(bytes);
        self.waited = self.waited.saturating_add(waited);
    }

    /// Whether somebody else should be asked.
    pub fn is_crawling(&self) -> bool {
        let due = self.waited.saturating_sub(GRACE).as_secs().saturating_mul(LEAST.bytes());
        self.bytes < due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_drips_is_found_out_and_a_pause_is_none() {
        let mut drip = Pace::default();
        let seconds = (1..=60).find(|_| {
            drip.enter(1, Duration::from_secs(1));
            drip.is_crawling()
        });
        assert_eq!(seconds, Some(6));

        let mut pausing = Pace::default();
        for _ in 0..100 {
            pausing.enter(16 * 1024, Duration::from_secs(1));
            assert!(!pausing.is_crawling(), "{pausing:?}");
        }
        pausing.enter(0, Duration::from_secs(4));
        assert!(!pausing.is_crawling(), "{pausing:?}");
        pausing.enter(0, Duration::from_secs(3));
        assert!(pausing.is_crawling(), "{pausing:?}");
    }
}
