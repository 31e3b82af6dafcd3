//! Which validation starts next, and how long all of them will take. Pure: what waits, what runs and a budget in, a choice out.
//!
//! The longest first, so that no long one is left to the end; fair between orders, so that a small order does not wait behind a large
//! one's many baselines. What does not fit beside what runs waits, and may be passed by what does; nothing waits for ever, since what
//! passes it ends.

use std::time::Duration;

/// One validation, as far as its turn depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Work {
    /// Which order, by its number.
    pub order: usize,
    /// How long it takes, by what was measured before.
    pub expected: Duration,
    /// What it takes of this machine while it runs.
    pub needs: Needs,
}

/// What a validation takes of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Needs {
    /// Memory, MiB.
    pub memory_mib: u64,
    /// Disk, bytes.
    pub disk: u64,
}

/// What all validations together may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// How many at once, at least 1.
    pub jobs: usize,
    /// Memory, MiB.
    pub memory_mib: u64,
    /// Disk, bytes.
    pub disk: u64,
}

impl Budget {
    /// Whether `work` fits beside `running`. What runs alone always does: whether it fits at all is asked before anything begins.
    fn has_room(&self, work: &Work, running: &[Work]) -> bool {
        let sum = |of: fn(&Needs) -> u64| running.iter().map(|other| of(&other.needs)).sum::<u64>() + of(&work.needs);
        running.is_empty()
            || running.len() < self.jobs
                && sum(|needs| needs.memory_mib) <= self.memory_mib
                && sum(|needs| needs.disk) <= self.disk
    }
}

/// The place in `waiting` of the one that starts now; `None` when none fits.
pub fn next(waiting: &[Work], running: &[Work], budget: &Budget) -> Option<usize> {
    let of_order = |order| running.iter().filter(|work| work.order == order).count();
    let fitting = waiting.iter().enumerate().filter(|(_, work)| budget.has_room(work, running));
    // Of equals the first: the order in which they were given.
    fitting
        .min_by_key(|(place, work)| (of_order(work.order), std::cmp::Reverse(work.expected), *place))
        .map(|(place, _)| place)
}

/// How long it will take until all are done, when `running` began as long ago as is given with each.
pub fn remaining(waiting: &[Work], running: &[(Work, Duration)], budget: &Budget) -> Duration {
    let mut waiting = waiting.to_vec();
    // What has run longer than expected is expected to end now.
    let left = |(work, ran): &(Work, Duration)| (*work, work.expected.saturating_sub(*ran));
    let mut running: Vec<(Work, Duration)> = running.iter().map(left).collect();
    let mut total = Duration::ZERO;
    loop {
        loop {
            let works: Vec<Work> = running.iter().map(|(work, _)| *work).collect();
            let Some(place) = next(&waiting, &works, budget) else { break };
            let work = waiting.remove(place);
            running.push((work, work.expected));
        }
        let Some(first) = running.iter().map(|(_, left)| *left).min() else { return total };
        total += first;
        running.retain(|(_, left)| *left > first);
        running.iter_mut().for_each(|(_, left)| *left -= first);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn work(order: usize, seconds: u64, memory_mib: u64) -> Work {
        Work { order, expected: Duration::from_secs(seconds), needs: Needs { memory_mib, disk: 1 } }
    }

    fn budget(jobs: usize, memory_mib: u64) -> Budget {
        Budget { jobs, memory_mib, disk: 100 }
    }

    /// The order in which all start when each ends before the next begins, or all at once.
    fn started(mut waiting: Vec<Work>, budget: Budget) -> Vec<Work> {
        let mut running = Vec::new();
        while let Some(place) = next(&waiting, &running, &budget) {
            running.push(waiting.remove(place));
        }
        running
    }

    #[test]
    fn the_longest_starts_first_and_equals_in_the_order_given() {
        let all = [work(0, 10, 1), work(0, 60, 1), work(0, 30, 1), work(0, 60, 2)];
        assert_eq!(started(all.into(), budget(9, 100)), [all[1], all[3], all[2], all[0]]);
    }

    #[test]
    fn orders_take_turns_whatever_they_take() {
        let all = [work(0, 90, 1), work(0, 80, 1), work(0, 70, 1), work(1, 10, 1), work(1, 5, 1)];
        let turns: Vec<usize> = started(all.into(), budget(9, 100)).iter().map(|work| work.order).collect();
        assert_eq!(turns, [0, 1, 0, 1, 0]);
    }

    #[test]
    fn no_more_at_once_than_jobs_memory_and_disk_allow() {
        let all = [work(0, 3, 40), work(0, 2, 40), work(0, 1, 40)];
        assert_eq!(started(all.into(), budget(2, 1000)).len(), 2);
        assert_eq!(started(all.into(), budget(9, 100)).len(), 2);
        assert_eq!(started(all.into(), Budget { disk: 1, ..budget(9, 1000) }).len(), 1);
    }

    #[test]
    fn a_small_one_may_pass_a_large_one_that_must_wait_and_alone_everything_runs() {
        let (large, small) = (work(0, 90, 80), work(0, 10, 20));
        assert_eq!(next(&[large, small], &[work(0, 5, 60)], &budget(9, 100)), Some(1));
        assert_eq!(next(&[large], &[work(0, 5, 60)], &budget(9, 100)), None);
        assert_eq!(next(&[work(0, 9, 5000)], &[], &budget(9, 100)), Some(0));
        assert_eq!(next(&[], &[], &budget(9, 100)), None);
    }

    #[test]
    fn what_remains_is_what_the_same_choices_would_take() {
        let (two, seconds) = (budget(2, 100), Duration::from_secs);
        let waiting = [work(0, 10, 1), work(0, 60, 1), work(0, 50, 1)];
        assert_eq!(remaining(&waiting, &[], &two), seconds(60));
        assert_eq!(remaining(&waiting, &[], &budget(1, 100)), seconds(120));
        // 20 s of it are left, then two more beside the 60 s.
        assert_eq!(remaining(&waiting[..2], &[(work(0, 30, 1), seconds(10))], &two), seconds(60));
        assert_eq!(remaining(&[], &[(work(0, 30, 1), seconds(50))], &two), Duration::ZERO);
        assert_eq!(remaining(&[], &[], &two), Duration::ZERO);
    }
}
