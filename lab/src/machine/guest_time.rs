//! For how long a lab waited for its guests: what is left of a validation's time is the lab's own.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

/// Counts the time in which at least one thing was awaited of a guest. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct GuestTime(Arc<Mutex<Count>>);

#[derive(Debug, Default)]
struct Count {
    awaited: u32,
    since: Option<Instant>,
    total: Duration,
}

/// Something is awaited of a guest as long as this lives.
#[derive(Debug)]
pub struct Awaiting<'a>(&'a GuestTime);

impl GuestTime {
    /// From now on something is awaited.
    pub fn awaiting(&self) -> Awaiting<'_> {
        self.change(|count| {
            count.awaited += 1;
            count.since.get_or_insert_with(Instant::now);
        });
        Awaiting(self)
    }

    /// How long in all, until now.
    pub fn total(&self) -> Duration {
        self.change(|count| count.total + count.since.map_or(Duration::ZERO, |since| since.elapsed()))
    }

    fn change<T>(&self, change: impl FnOnce(&mut Count) -> T) -> T {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Drop for Awaiting<'_> {
    fn drop(&mut self) {
        self.0.change(|count| {
            count.awaited -= 1;
            if count.awaited == 0 {
                count.total += count.since.take().map_or(Duration::ZERO, |since| since.elapsed());
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_awaited_at_the_same_time_counts_once() {
        let time = GuestTime::default();
        assert_eq!(time.total(), Duration::ZERO);
        let outer = time.awaiting();
        let first = time.clone();
        drop(first.awaiting());
        let counted = time.total();
        assert!(counted > Duration::ZERO && time.total() >= counted, "it goes on while the outer one waits");
        drop(outer);
        let counted = time.total();
        assert_eq!(time.total(), counted, "nothing is awaited any more");
    }
}
