//! Which validation starts next and on which host, and how long all of them will take. Pure: what waits, what runs and what there is to
//! give in, a choice out.
//!
//! Orders take turns, so that a small order does not wait behind a large one's many baselines: the one of which the fewest have begun is
//! next, however many may run at once. Of its validations the longest starts first, so that no long one is left to the end. What does not
//! fit beside what runs waits, and may be passed by what does; nothing waits for ever, since what passes it ends.

use std::time::Duration;

/// One validation, as far as its turn depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Work<'a> {
    /// Which order, by its number.
    pub order: usize,
    /// How long it takes, by what was measured before.
    pub expected: Duration,
    /// What it takes of a host while it runs.
    pub needs: Needs,
    /// The hosts, by their numbers, that it is not to run on.
    pub avoids: &'a [usize],
}

/// What a validation takes of a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Needs {
    /// Memory, MiB.
    pub memory_mib: u64,
    /// Disk, bytes.
    pub disk: u64,
}

/// What validations may take, all together or of one host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// How many at once, at least 1.
    pub jobs: usize,
    /// Memory, MiB.
    pub memory_mib: u64,
    /// Disk, bytes.
    pub disk: u64,
}

/// What there is to give.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Budgets {
    /// All hosts together.
    pub all: Budget,
    /// Each host; `None` where it lends nothing any more.
    pub hosts: Vec<Option<Budget>>,
}

/// A validation that runs on the host of this number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Running<'a> {
    /// What.
    pub work: Work<'a>,
    /// Where.
    pub host: usize,
}

impl Budget {
    /// Whether `work` fits beside others.
    fn has_room<'a>(&self, work: &Work<'_>, beside: impl Iterator<Item = Work<'a>> + Clone) -> bool {
        let sum = |of: fn(&Needs) -> u64| beside.clone().map(|other| of(&other.needs)).sum::<u64>() + of(&work.needs);
        beside.clone().count() < self.jobs
            && sum(|needs| needs.memory_mib) <= self.memory_mib
            && sum(|needs| needs.disk) <= self.disk
    }
}

impl Budgets {
    /// The host on which `work` starts beside what runs; `None` when it fits none that it may run on. The one with the smallest part of what it can run
    /// running; of equals the first. What runs alone need not fit all together: whether it fits at all is asked before anything begins.
    fn host(&self, work: &Work<'_>, running: &[Running<'_>]) -> Option<usize> {
        if !running.is_empty() && !self.all.has_room(work, running.iter().map(|other| other.work)) {
            return None;
        }
        let on = |host: usize| running.iter().filter(move |other| other.host == host).map(|other| other.work);
        let lending = self.hosts.iter().enumerate().filter_map(|(host, budget)| Some((host, (*budget)?)));
        let fitting = lending.filter(|(host, budget)| !work.avoids.contains(host) && budget.has_room(work, on(*host)));
        fitting
            .min_by_key(|(host, budget)| (on(*host).count() * 1000 / budget.jobs.max(1), *host))
            .map(|(host, _)| host)
    }

    /// What is left of it beside others, who took so much memory of all hosts, and so much disk of each.
    #[must_use]
    pub fn beside(&self, memory_mib: u64, disk: &[u64]) -> Self {
        let mut left = self.clone();
        left.all.memory_mib = left.all.memory_mib.saturating_sub(memory_mib);
        for (host, taken) in left.hosts.iter_mut().zip(disk) {
            if let Some(budget) = host {
                budget.disk = budget.disk.saturating_sub(*taken);
            }
        }
        left
    }

    /// Whether `work` fits a host that has nothing else to do.
    pub fn can_ever_run(&self, work: &Work<'_>) -> bool {
        self.host(work, &[]).is_some()
    }
}

/// The place in `waiting` of the one that starts now, and the host that it starts on; `None` when none fits anywhere. `ended` says how many of
/// each order have ended, by its number; of those that it does not name, none.
pub fn next(
    waiting: &[Work<'_>],
    running: &[Running<'_>],
    ended: &[usize],
    budgets: &Budgets,
) -> Option<(usize, usize)> {
    let begun = |order: usize| {
        let running = running.iter().filter(|other| other.work.order == order).count();
        running + ended.get(order).copied().unwrap_or(0)
    };
    let fitting =
        waiting.iter().enumerate().filter_map(|(place, work)| Some((place, work, budgets.host(work, running)?)));
    // Of equals the first: the order in which they were given.
    fitting
        .min_by_key(|(place, work, _)| (begun(work.order), std::cmp::Reverse(work.expected), *place))
        .map(|(place, _, host)| (place, host))
}

/// How long it will take until all are done, when `running` began as long ago as is given with each, and `ended` is as for [`next`].
pub fn remaining(
    waiting: &[Work<'_>],
    running: &[(Running<'_>, Duration)],
    ended: &[usize],
    budgets: &Budgets,
) -> Duration {
    let (mut waiting, mut ended) = (waiting.to_vec(), ended.to_vec());
    // What has run longer than expected is expected to end now.
    let left = running.iter().map(|(running, ran)| (*running, running.work.expected.saturating_sub(*ran)));
    let mut running: Vec<(Running<'_>, Duration)> = left.collect();
    let mut total = Duration::ZERO;
    loop {
        loop {
            let now: Vec<Running<'_>> = running.iter().map(|(running, _)| *running).collect();
            let Some((place, host)) = next(&waiting, &now, &ended, budgets) else { break };
            let work = waiting.remove(place);
            running.push((Running { work, host }, work.expected));
        }
        let Some(first) = running.iter().map(|(_, left)| *left).min() else { return total };
        total += first;
        for (done, _) in running.extract_if(.., |(_, left)| *left <= first) {
            let order = done.work.order;
            ended.resize(ended.len().max(order + 1), 0);
            ended[order] += 1;
        }
        running.iter_mut().for_each(|(_, left)| *left -= first);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn work(order: usize, seconds: u64, memory_mib: u64) -> Work<'static> {
        let needs = Needs { memory_mib, disk: 1 };
        Work { order, expected: Duration::from_secs(seconds), needs, avoids: &[] }
    }

    fn budget(jobs: usize, memory_mib: u64) -> Budget {
        Budget { jobs, memory_mib, disk: 100 }
    }

    /// One host, with no limits of its own.
    fn alone(all: Budget) -> Budgets {
        Budgets { all, hosts: vec![Some(Budget { jobs: usize::MAX, memory_mib: u64::MAX, disk: u64::MAX })] }
    }

    fn on(host: usize, work: Work<'_>) -> Running<'_> {
        Running { work, host }
    }

    /// Which start, and where, when all start at once.
    fn started<'a>(mut waiting: Vec<Work<'a>>, budgets: &Budgets) -> Vec<Running<'a>> {
        let mut running = Vec::new();
        while let Some((place, host)) = next(&waiting, &running, &[], budgets) {
            running.push(on(host, waiting.remove(place)));
        }
        running
    }

    fn works(running: Vec<Running<'_>>) -> Vec<Work<'_>> {
        running.into_iter().map(|running| running.work).collect()
    }

    #[test]
    fn the_longest_starts_first_and_equals_in_the_order_given() {
        let all = [work(0, 10, 1), work(0, 60, 1), work(0, 30, 1), work(0, 60, 2)];
        assert_eq!(works(started(all.into(), &alone(budget(9, 100)))), [all[1], all[3], all[2], all[0]]);
    }

    #[test]
    fn orders_take_turns_whatever_they_take() {
        let all = [work(0, 90, 1), work(0, 80, 1), work(0, 70, 1), work(1, 10, 1), work(1, 5, 1)];
        let turns: Vec<usize> =
            started(all.into(), &alone(budget(9, 100))).iter().map(|other| other.work.order).collect();
        assert_eq!(turns, [0, 1, 0, 1, 0]);
    }

    /// The orders of those that begin, when each ends after as long as it takes.
    fn turns(mut waiting: Vec<Work<'_>>, jobs: usize) -> Vec<usize> {
        let budgets = alone(budget(jobs, 100));
        let (mut running, mut ended, mut turns) = (Vec::<Running<'_>>::new(), vec![0; 3], Vec::new());
        while !(waiting.is_empty() && running.is_empty()) {
            while let Some((place, host)) = next(&waiting, &running, &ended, &budgets) {
                let work = waiting.remove(place);
                turns.push(work.order);
                running.push(on(host, work));
            }
            let first = running.iter().map(|other| other.work.expected).min().unwrap();
            running.iter_mut().for_each(|other| other.work.expected -= first);
            let (done, left) = running.into_iter().partition(|other| other.work.expected.is_zero());
            running = left;
            Vec::into_iter(done).for_each(|other: Running<'_>| ended[other.work.order] += 1);
        }
        turns
    }

    #[test]
    fn a_small_order_is_next_however_few_may_run_at_once() {
        let all = || {
            let mut all = vec![work(0, 120, 1); 6];
            all.extend(vec![work(1, 120, 1); 6]);
            all.push(work(2, 30, 1));
            all
        };
        for jobs in [1, 2] {
            let turns = turns(all(), jobs);
            assert_eq!((&turns[..3], turns.len()), (&[0, 1, 2][..], 13), "{jobs} at once: {turns:?}");
            assert_eq!(turns[3..7], [0, 1, 0, 1], "{jobs} at once: {turns:?}");
        }
    }

    #[test]
    fn what_remains_counts_turns_as_they_will_come() {
        let waiting = [work(0, 60, 1), work(1, 50, 1), work(1, 50, 1)];
        let (two, seconds) = (alone(budget(2, 100)), Duration::from_secs);
        assert_eq!(remaining(&waiting, &[], &[], &two), seconds(100));
        // Of the first order so many have ended that both of the other come before its last one.
        assert_eq!(remaining(&waiting, &[], &[9], &two), seconds(110));
    }

    #[test]
    fn no_more_at_once_than_jobs_memory_and_disk_allow() {
        let all = [work(0, 3, 40), work(0, 2, 40), work(0, 1, 40)];
        assert_eq!(started(all.into(), &alone(budget(2, 1000))).len(), 2);
        assert_eq!(started(all.into(), &alone(budget(9, 100))).len(), 2);
        assert_eq!(started(all.into(), &alone(Budget { disk: 1, ..budget(9, 1000) })).len(), 1);
    }

    #[test]
    fn a_small_one_may_pass_a_large_one_that_must_wait_and_alone_everything_runs() {
        let (large, small, budgets) = (work(0, 90, 80), work(0, 10, 20), alone(budget(9, 100)));
        assert_eq!(next(&[large, small], &[on(0, work(0, 5, 60))], &[], &budgets), Some((1, 0)));
        assert_eq!(next(&[large], &[on(0, work(0, 5, 60))], &[], &budgets), None);
        assert_eq!(next(&[work(0, 9, 5000)], &[], &[], &budgets), Some((0, 0)));
        assert_eq!(next(&[], &[], &[], &budgets), None);
    }

    #[test]
    fn hosts_fill_up_evenly_for_what_each_lends_and_never_beyond() {
        let mut two = alone(budget(9, 1000));
        two.hosts = vec![Some(budget(1, 100)), Some(budget(3, 100))];
        let places = |budgets: &Budgets, all: Vec<Work<'_>>| -> Vec<usize> {
            started(all, budgets).iter().map(|running| running.host).collect()
        };
        assert_eq!(places(&two, vec![work(0, 9, 30); 5]), [0, 1, 1, 1]);
        // The first has no memory for it, whatever else it does not do.
        two.hosts[0] = Some(budget(1, 10));
        assert_eq!(places(&two, vec![work(0, 9, 60), work(0, 8, 60)]), [1]);
        assert!(two.can_ever_run(&work(0, 9, 60)) && !two.can_ever_run(&work(0, 9, 200)));
        // One that lends nothing any more gets nothing.
        two.hosts[1] = None;
        assert_eq!(places(&two, vec![work(0, 9, 60), work(0, 8, 10)]), [0]);
        assert!(!two.can_ever_run(&work(0, 9, 60)));
    }

    #[test]
    fn what_others_took_is_not_given_once_more() {
        let mut two = alone(budget(9, 100));
        two.hosts = vec![Some(budget(9, 1000)), None];
        let (runs, waits) = (on(0, work(0, 9, 40)), [work(0, 9, 40)]);
        assert_eq!(next(&waits, &[runs], &[], &two), Some((0, 0)));
        assert_eq!(next(&waits, &[runs], &[], &two.beside(21, &[0, 0])), None, "memory");
        assert_eq!(next(&waits, &[runs], &[], &two.beside(20, &[98, 0])), Some((0, 0)));
        assert_eq!(next(&waits, &[runs], &[], &two.beside(20, &[99, 0])), None, "disk");
    }

    #[test]
    fn what_avoids_a_host_runs_on_another_or_not_at_all() {
        let mut two = alone(budget(9, 1000));
        two.hosts.push(two.hosts[0]);
        let avoiding = |avoids| Work { avoids, ..work(0, 9, 1) };
        assert_eq!(next(&[avoiding(&[0])], &[], &[], &two), Some((0, 1)));
        assert_eq!(next(&[avoiding(&[0, 1]), work(0, 5, 1)], &[], &[], &two), Some((1, 0)));
        two.hosts[1] = None;
        assert!(!two.can_ever_run(&avoiding(&[0])) && two.can_ever_run(&avoiding(&[1])));
    }

    #[test]
    fn what_remains_is_what_the_same_choices_would_take() {
        let (two, seconds) = (alone(budget(2, 100)), Duration::from_secs);
        let waiting = [work(0, 10, 1), work(0, 60, 1), work(0, 50, 1)];
        assert_eq!(remaining(&waiting, &[], &[], &two), seconds(60));
        assert_eq!(remaining(&waiting, &[], &[], &alone(budget(1, 100))), seconds(120));
        // 20 s of it are left, then two more beside the 60 s.
        assert_eq!(remaining(&waiting[..2], &[(on(0, work(0, 30, 1)), seconds(10))], &[], &two), seconds(60));
        assert_eq!(remaining(&[], &[(on(0, work(0, 30, 1)), seconds(50))], &[], &two), Duration::ZERO);
        assert_eq!(remaining(&[], &[], &[], &two), Duration::ZERO);
    }
}
