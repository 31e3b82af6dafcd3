//! How much may be fetched in a second: one leaky bucket for everything that an agent fetches.
//!
//! What has come is entered, and nothing more is read until that much time has gone by as it may take; the network's own buffers then fill,
//! and the sender waits. Beyond the rate comes no more than what those buffers and one read take.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use patchlab_protocol::Rate;

/// How much of what was not used may be made up for: a quarter of a second's worth.
const CREDIT: Duration = Duration::from_millis(250);

/// When the next bytes may be taken. Pure: the clock is passed in.
#[derive(Debug)]
struct Bucket {
    rate: Rate,
    free: Option<Instant>,
}

impl Bucket {
    /// Enters bytes that came at `now`; says for how long nothing more is to be taken.
    fn take(&mut self, bytes: u64, now: Instant) -> Duration {
        let earliest = now.checked_sub(CREDIT).unwrap_or(now);
        let begin = self.free.map_or(now, |free| free.max(earliest));
        let free = begin + self.rate.time_for(bytes);
        self.free = Some(free);
        free.saturating_duration_since(now)
    }
}

/// A bucket that several runs share.
#[derive(Debug)]
pub struct Limit {
    rate: Rate,
    bucket: Mutex<Bucket>,
}

impl Limit {
    /// An unused one.
    pub fn new(rate: Rate) -> Self {
        Self { rate, bucket: Mutex::new(Bucket { rate, free: None }) }
    }

    /// The rate.
    pub fn rate(&self) -> Rate {
        self.rate
    }

    /// Enters bytes that have come, and waits until more may be read.
    pub async fn pass(&self, bytes: u64) {
        let wait = self.bucket.lock().unwrap_or_else(PoisonError::into_inner).take(bytes, Instant::now());
        tokio::time::sleep(wait).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: fn(u64) -> Duration = Duration::from_millis;

    fn bucket() -> Bucket {
        Bucket { rate: "1MiB/s".parse().unwrap(), free: None }
    }

    #[test]
    fn what_came_is_waited_for_and_what_comes_together_adds_up() {
        let (mut bucket, now) = (bucket(), Instant::now());
        assert_eq!(bucket.take(1 << 19, now), MS(500));
        assert_eq!(bucket.take(1 << 19, now), MS(1000), "another run at the same time");
        assert_eq!(bucket.take(1 << 18, now + MS(1000)), MS(250));
        assert_eq!(bucket.take(0, now + MS(1100)), MS(150));
    }

    #[test]
    fn time_on_the_network_counts_and_idle_time_only_a_little() {
        let (mut bucket, now) = (bucket(), Instant::now());
        assert_eq!(bucket.take(1 << 18, now), MS(250));
        // It was free at 250 ms, and the next came 100 ms later: these are made up for.
        assert_eq!(bucket.take(1 << 18, now + MS(350)), MS(150));
        // After an hour it is not an hour's worth that may come at once.
        let later = now + Duration::from_secs(3600);
        assert_eq!(bucket.take(1 << 20, later), MS(750));
    }

    #[test]
    fn whoever_takes_when_it_may_never_gets_more_than_the_rate_and_the_credit() {
        for (step, pause) in [(1_000, 0), (65_536, 3), (300_000, 0), (16_384, 200), (1, 1)] {
            let (mut bucket, start) = (bucket(), Instant::now());
            let (mut now, mut bytes) = (start, 0_u64);
            for _ in 0..500 {
                bytes += step;
                now += bucket.take(step, now) + MS(pause);
                let may = (now - start).as_secs_f64() * f64::from(1 << 20) + f64::from(1 << 18) + 1.0;
                assert!(bytes as f64 <= may, "{bytes} bytes in {:?}, steps of {step}", now - start);
            }
            // And it gets all of the rate, as long as it does not dawdle.
            let needs = bucket.rate.time_for(bytes) + MS(500 * pause);
            assert!(now - start <= needs + MS(1), "steps of {step}: {:?} instead of {needs:?}", now - start);
        }
    }
}
