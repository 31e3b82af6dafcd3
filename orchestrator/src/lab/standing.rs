//! Hosts that answer and break what runs on them: where a validation goes that the lab broke, and which host gets no more. Pure.
//!
//! A validation that broke on one host is made on another, as long as there is one that it did not break on. One that broke on all of them is
//! broken by itself, and no host answers for it. A host that breaks [`IN_A_ROW`] others in a row, and has none that it did not break in
//! between, is sick: it would be free soonest, and eat the queue.

use std::collections::BTreeMap;

use super::schedule::{Budgets, Work};

/// Validations that a host may break in a row before it gets no more.
const IN_A_ROW: usize = 2;

/// How hosts did, by their numbers.
#[derive(Debug, Default)]
pub struct Standing {
    /// On which hosts a validation broke, by its number.
    broke_on: BTreeMap<usize, Vec<usize>>,
    /// The validations that each host broke since the last that it did not.
    in_a_row: BTreeMap<usize, Vec<usize>>,
}

/// What follows when a validation broke on a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Follows {
    /// That it broke is its result: no host is left for it.
    Ends,
    /// Another host makes it.
    Moves,
    /// Another host makes it, and this one gets no more: it broke so many in a row.
    MovesAndHostIsOut(usize),
}

impl Standing {
    /// The hosts on which a validation is not to be made again.
    pub fn avoided(&self, validation: usize) -> &[usize] {
        self.broke_on.get(&validation).map_or(&[], Vec::as_slice)
    }

    /// A validation ended on a host as validations end.
    pub fn held(&mut self, host: usize) {
        self.in_a_row.remove(&host);
    }

    /// A validation broke on a host.
    pub fn broke(&mut self, validation: usize, host: usize, work: &Work<'_>, budgets: &Budgets) -> Follows {
        let on = self.broke_on.entry(validation).or_default();
        on.push(host);
        if !budgets.can_ever_run(&Work { avoids: on, ..*work }) {
            if on.len() > 1 {
                self.in_a_row.values_mut().for_each(|broke| broke.retain(|other| *other != validation));
            }
            return Follows::Ends;
        }
        let broke = self.in_a_row.entry(host).or_default();
        broke.push(validation);
        match broke.len() {
            ..IN_A_ROW => Follows::Moves,
            many => Follows::MovesAndHostIsOut(many),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{
        super::schedule::{Budget, Needs},
        *,
    };

    const WORK: Work<'static> =
        Work { order: 0, expected: Duration::from_secs(9), needs: Needs { memory_mib: 10, disk: 1 }, avoids: &[] };

    fn hosts(memory: &[u64]) -> Budgets {
        let of = |memory_mib| Budget { jobs: 2, memory_mib, disk: 100 };
        Budgets { all: of(1000), hosts: memory.iter().map(|mib| Some(of(*mib))).collect() }
    }

    #[test]
    fn what_one_host_breaks_another_makes_and_a_sick_one_gets_no_more() {
        let (mut standing, two) = (Standing::default(), hosts(&[100, 100]));
        assert_eq!(standing.broke(7, 0, &WORK, &two), Follows::Moves);
        assert_eq!((standing.avoided(7), standing.avoided(8)), (&[0][..], &[][..]));
        // In a row: one that it did not break is in between.
        standing.held(0);
        assert_eq!(standing.broke(8, 0, &WORK, &two), Follows::Moves);
        assert_eq!(standing.broke(9, 0, &WORK, &two), Follows::MovesAndHostIsOut(2));
    }

    #[test]
    fn what_breaks_everywhere_is_its_own_doing() {
        let (mut standing, two) = (Standing::default(), hosts(&[100, 100]));
        assert_eq!(standing.broke(1, 0, &WORK, &two), Follows::Moves);
        assert_eq!(standing.broke(1, 1, &WORK, &two), Follows::Ends);
        // Neither host answers for it.
        assert_eq!(standing.broke(2, 0, &WORK, &two), Follows::Moves);
        assert_eq!(standing.broke(3, 1, &WORK, &two), Follows::Moves);
    }

    #[test]
    fn where_no_other_host_could_make_it_that_it_broke_is_its_result() {
        let mut standing = Standing::default();
        for validation in 0..3 {
            assert_eq!(standing.broke(validation, 0, &WORK, &hosts(&[100])), Follows::Ends, "the only one stays");
        }
        // The other has too little memory, or is gone.
        let mut two = hosts(&[100, 5]);
        assert_eq!(standing.broke(4, 0, &WORK, &two), Follows::Ends);
        two.hosts[1] = None;
        assert_eq!(standing.broke(5, 0, &WORK, &two), Follows::Ends);
    }
}
