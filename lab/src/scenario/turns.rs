//! Turns: two clones that measure one after the other, so that neither measures while the other does.
//!
//! Both run the same scenario at the same time on one host; what one does there slows the other. So samples of a metric are taken by turns,
//! control first: first, second, first, second. Whatever makes the host slower for a while then meets both alike. Nobody waits for one that
//! has left a step behind or is gone, so that a clone that broke holds up nothing.

use std::{
    sync::{Condvar, Mutex, PoisonError},
    time::{Duration, Instant},
};

use crate::applier::Role;

/// Where in a scenario a sample is taken; both clones go through the same in the same order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Moment {
    /// How many steps were begun before this one, in all rounds of the scenario.
    pub step: usize,
    /// Which time the step is done.
    pub sample: u32,
}

/// How far both are.
#[derive(Debug, Default)]
pub struct Turns {
    /// Of control and patched: the moment of the sample that is taken next, all before it being done or left out; `None` when gone.
    next: Mutex<[Progress; 2]>,
    moved: Condvar,
}

#[derive(Debug, Clone, Copy)]
enum Progress {
    At(Moment),
    Gone,
}

impl Default for Progress {
    fn default() -> Self {
        Self::At(Moment::default())
    }
}

/// One clone's share of the turns. Dropped, it is gone.
#[derive(Debug)]
pub struct Seat<'a> {
    turns: &'a Turns,
    own: usize,
}

impl Turns {
    /// The seat of a clone.
    pub fn seat(&self, role: Role) -> Seat<'_> {
        Seat { turns: self, own: if role == Role::Control { 0 } else { 1 } }
    }
}

impl Seat<'_> {
    /// Waits until it is this clone's turn to take the sample at `moment`, or until `patience` is at its end: then it is taken at once,
    /// since a sample beside the other clone is better than none. The sample before it is over. How long was waited.
    pub fn wait(&self, moment: Moment, patience: Duration) -> Duration {
        let begun = Instant::now();
        self.leave(moment);
        let next = self.turns.next.lock().unwrap_or_else(PoisonError::into_inner);
        let others_turn = |next: &mut [Progress; 2]| match (next[1 - self.own], self.own) {
            (Progress::Gone, _) => false,
            // The first waits until the other is here as well, the second until the first has had its turn.
            (Progress::At(other), 0) => other < moment,
            (Progress::At(other), _) => other <= moment,
        };
        let waited = self.turns.moved.wait_timeout_while(next, patience, others_turn);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
        begun.elapsed()
    }

    /// No sample before `moment` will be taken any more.
    pub fn leave(&self, moment: Moment) {
        self.put(Progress::At(moment));
    }

    fn put(&self, progress: Progress) {
        self.turns.next.lock().unwrap_or_else(PoisonError::into_inner)[self.own] = progress;
        self.turns.moved.notify_all();
    }
}

impl Drop for Seat<'_> {
    fn drop(&mut self) {
        self.put(Progress::Gone);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Work<'a> = Box<dyn FnOnce(&dyn Fn(Moment)) + Send + 'a>;

    const PATIENCE: Duration = Duration::from_secs(60);

    fn moment(step: usize, sample: u32) -> Moment {
        Moment { step, sample }
    }

    /// Runs both sides and gives who took which sample, in order.
    fn order(
        control: impl FnOnce(&dyn Fn(Moment)) + Send,
        patched: impl FnOnce(&dyn Fn(Moment)) + Send,
    ) -> Vec<String> {
        let (turns, taken) = (Turns::default(), Mutex::new(Vec::new()));
        let side = |role: Role, work: Work<'_>| {
            let seat = turns.seat(role);
            work(&|moment: Moment| {
                assert!(seat.wait(moment, PATIENCE) < PATIENCE, "{moment:?}: nobody came");
                let name = if role == Role::Control { "c" } else { "p" };
                taken.lock().unwrap().push(format!("{name}{}.{}", moment.step, moment.sample));
            });
        };
        std::thread::scope(|scope| {
            scope.spawn(|| side(Role::Control, Box::new(control)));
            scope.spawn(|| side(Role::Patched, Box::new(patched)));
        });
        taken.into_inner().unwrap()
    }

    #[test]
    fn samples_are_taken_by_turns() {
        let all = |take: &dyn Fn(Moment)| (1..=3).for_each(|sample| take(moment(0, sample)));
        assert_eq!(order(all, all), ["c0.1", "p0.1", "c0.2", "p0.2", "c0.3", "p0.3"]);
    }

    #[test]
    fn nobody_waits_for_one_that_failed_or_is_gone() {
        let all = |take: &dyn Fn(Moment)| [(0, 1), (0, 2), (1, 1)].map(|(step, sample)| take(moment(step, sample)));
        // The other one fails in the first sample of step 0 and goes on to step 1.
        let fails = |take: &dyn Fn(Moment)| [(0, 1), (1, 1)].map(|(step, sample)| take(moment(step, sample)));
        let taken = order(
            |take| {
                all(take);
            },
            |take| {
                fails(take);
            },
        );
        assert_eq!(taken.iter().filter(|name| name.starts_with('c')).count(), 3);
        assert!(taken.iter().position(|name| name == "c1.1") < taken.iter().position(|name| name == "p1.1"));
        assert_eq!(
            order(
                |take| {
                    all(take);
                },
                |_| ()
            ),
            ["c0.1", "c0.2", "c1.1"]
        );
        assert_eq!(
            order(
                |_| (),
                |take| {
                    all(take);
                }
            ),
            ["p0.1", "p0.2", "p1.1"]
        );
    }

    #[test]
    fn patience_ends() {
        let turns = Turns::default();
        let (control, _patched) = (turns.seat(Role::Control), turns.seat(Role::Patched));
        let patience = Duration::from_millis(20);
        assert!(control.wait(moment(0, 1), patience) >= patience);
    }
}
