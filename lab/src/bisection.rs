//! Bisection: which of an order's packages make it fail, and which of them could ship.
//!
//! Delta debugging (Zeller and Hildebrandt, "Simplifying and Isolating Failure-Inducing Input", 2002) over the *parts* of an order:
//! packages that only go together are one part, and a part brings along those that it needs. Each try is a validation, so no
//! set is tried twice, and their number is limited. Pure: what a set does is the caller's to find out.

use std::collections::{BTreeMap, BTreeSet};

/// Packages of an order that only go together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// Their names.
    pub packages: BTreeSet<String>,
    /// The parts that must go along, by their places among all parts.
    pub needs: BTreeSet<usize>,
}

/// Some of the parts, by their places.
pub type Parts = BTreeSet<usize>;

/// What a set of parts does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tried {
    /// It passes.
    Passes,
    /// It fails as the whole does.
    Fails,
    /// It says neither: it cannot be applied, or the lab broke.
    Unclear,
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bisection {
    /// Sets that fail and would not without any one of their parts, as far as the tries went; found one after the other, each among
    /// what was left without the culprits of those before.
    pub failing: Vec<Parts>,
    /// The largest set that was seen to pass; empty when none was.
    pub passing: Parts,
    /// How many sets were tried.
    pub tries: usize,
    /// Whether the tries were enough.
    pub reach: Reach,
}

/// How far a bisection came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// As far as it goes.
    Complete,
    /// The limit of tries ended it: the sets may be larger than they need be.
    Limited,
}

/// Parts of `set` that no other part of it needs: the ones that a failing set is about.
pub fn culprits(parts: &[Part], set: &Parts) -> Parts {
    let is_needed = |place: &usize| set.iter().any(|other| other != place && reach(parts, *other).contains(place));
    set.iter().copied().filter(|place| !is_needed(place)).collect()
}

/// A part and all that must go along.
fn reach(parts: &[Part], part: usize) -> Parts {
    let mut found = Parts::new();
    let mut open = vec![part];
    while let Some(place) = open.pop() {
        if found.insert(place) {
            open.extend(parts[place].needs.iter().filter(|needed| **needed < parts.len()));
        }
    }
    found
}

/// Splits a set of parts that fails as a whole. `attempt` finds out what a set does; at most `limit` are tried, the whole not counted.
pub fn bisect<E>(
    parts: &[Part],
    limit: usize,
    attempt: &mut dyn FnMut(&Parts) -> Result<Tried, E>,
) -> Result<Bisection, E> {
    let whole: Parts = (0..parts.len()).collect();
    let known = BTreeMap::from([(whole.clone(), Tried::Fails)]);
    let mut search = Search { parts, limit, known, reach: Reach::Complete, attempt };
    let mut failing: Vec<Parts> = Vec::new();
    let mut left = whole.clone();
    while !left.is_empty() && search.ask(&left)? == Some(Tried::Fails) {
        let smallest = search.smallest(left.clone())?;
        let guilty = culprits(parts, &smallest);
        failing.push(smallest);
        // Without the culprits, and without what needs them.
        left.retain(|place| reach(parts, *place).is_disjoint(&guilty));
    }
    search.widen(&whole, &failing)?;
    Ok(Bisection { failing, passing: search.passing(), tries: search.known.len() - 1, reach: search.reach })
}

fn packages(parts: &[Part], set: &Parts) -> usize {
    set.iter().map(|place| parts[*place].packages.len()).sum()
}

struct Search<'a, E> {
    parts: &'a [Part],
    limit: usize,
    known: BTreeMap<Parts, Tried>,
    reach: Reach,
    attempt: &'a mut dyn FnMut(&Parts) -> Result<Tried, E>,
}

impl<E> Search<'_, E> {
    /// What a set does; `None` when it was not tried before and no try is left.
    fn ask(&mut self, set: &Parts) -> Result<Option<Tried>, E> {
        if let Some(tried) = self.known.get(set) {
            return Ok(Some(*tried));
        }
        if self.known.len() > self.limit {
            self.reach = Reach::Limited;
            return Ok(None);
        }
        let tried = (self.attempt)(set)?;
        self.known.insert(set.clone(), tried);
        Ok(Some(tried))
    }

    /// The set with the most packages that was seen to pass.
    fn passing(&self) -> Parts {
        let passing = self.known.iter().filter(|(_, tried)| **tried == Tried::Passes).map(|(set, _)| set);
        passing.max_by_key(|set| packages(self.parts, set)).cloned().unwrap_or_default()
    }

    /// Gives every part that was left out another chance beside what passes: of several that fail only together, all but one can ship.
    fn widen(&mut self, whole: &Parts, failing: &[Parts]) -> Result<(), E> {
        for place in whole {
            let passing = self.passing();
            let wider: Parts = passing.iter().copied().chain(reach(self.parts, *place)).collect();
            if wider != passing && !failing.iter().any(|set| set.is_subset(&wider)) {
                self.ask(&wider)?;
            }
        }
        Ok(())
    }

    /// A failing set within `failing` that does not fail without any one of its parts.
    fn smallest(&mut self, mut failing: Parts) -> Result<Parts, E> {
        let mut pieces = 2;
        loop {
            let split = split(&failing, pieces);
            let complements = split.iter().map(|piece| failing.difference(piece).copied().collect());
            let found = self.first_failing(&failing, split.iter().cloned().chain(complements))?;
            match found {
                Some(smaller) => (failing, pieces) = (smaller, 2),
                None if pieces < failing.len() => pieces = (2 * pieces).min(failing.len()),
                None => return Ok(failing),
            }
        }
    }

    /// The first of the candidates, with all that they need, that is smaller than `than` and fails.
    fn first_failing(&mut self, than: &Parts, candidates: impl Iterator<Item = Parts>) -> Result<Option<Parts>, E> {
        for candidate in candidates {
            let closed: Parts = candidate.iter().flat_map(|place| reach(self.parts, *place)).collect();
            let is_smaller = !closed.is_empty() && closed.len() < than.len() && closed.is_subset(than);
            if is_smaller && self.ask(&closed)? == Some(Tried::Fails) {
                return Ok(Some(closed));
            }
        }
        Ok(None)
    }
}

/// A set in so many pieces of about one size.
fn split(set: &Parts, pieces: usize) -> Vec<Parts> {
    let all: Vec<usize> = set.iter().copied().collect();
    all.chunks(all.len().div_ceil(pieces).max(1)).map(|piece| piece.iter().copied().collect()).collect()
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use proptest::prelude::*;

    use super::*;

    fn alone(count: usize) -> Vec<Part> {
        (0..count)
            .map(|number| Part { packages: BTreeSet::from([format!("p{number}")]), needs: Parts::new() })
            .collect()
    }

    /// Bisects parts of which any of the `bad` sets, whole, makes an order fail.
    fn found(parts: &[Part], limit: usize, bad: &[Parts]) -> Bisection {
        let mut attempt = |set: &Parts| -> Result<Tried, Infallible> {
            Ok(if bad.iter().any(|bad| bad.is_subset(set)) { Tried::Fails } else { Tried::Passes })
        };
        bisect(parts, limit, &mut attempt).unwrap()
    }

    #[test]
    fn one_bad_package_among_many_is_found_in_few_tries() {
        let found = found(&alone(16), 32, &[Parts::from([11])]);
        assert_eq!(found.failing, [Parts::from([11])]);
        assert_eq!(found.passing, (0..16).filter(|place| *place != 11).collect());
        assert!(found.tries <= 9, "{}", found.tries);
        assert_eq!(found.reach, Reach::Complete);
    }

    #[test]
    fn two_that_fail_together_and_one_that_fails_alone() {
        let found = found(&alone(8), 64, &[Parts::from([1, 6]), Parts::from([4])]);
        let mut failing = found.failing.clone();
        failing.sort();
        assert_eq!(failing, [Parts::from([1, 6]), Parts::from([4])]);
        assert_eq!(found.passing, Parts::from([0, 2, 3, 5, 6, 7]), "of two that fail together, one may ship");
    }

    #[test]
    fn what_a_culprit_needs_goes_along_and_is_no_culprit() {
        let mut parts = alone(3);
        parts[2].needs.insert(0);
        let found = found(&parts, 32, &[Parts::from([2])]);
        assert_eq!(found.failing, [Parts::from([0, 2])]);
        assert_eq!(culprits(&parts, &found.failing[0]), Parts::from([2]));
        assert_eq!(found.passing, Parts::from([0, 1]));
    }

    #[test]
    fn what_needs_a_culprit_cannot_ship_either() {
        let mut parts = alone(3);
        parts[2].needs.insert(0);
        let found = found(&parts, 32, &[Parts::from([0])]);
        assert_eq!((found.failing, found.passing), (vec![Parts::from([0])], Parts::from([1])));
    }

    #[test]
    fn a_single_part_is_its_own_culprit_and_nothing_passes() {
        let found = found(&alone(1), 32, &[Parts::from([0])]);
        assert_eq!((found.failing, found.passing, found.tries), (vec![Parts::from([0])], Parts::new(), 0));
    }

    #[test]
    fn unclear_sets_lead_nowhere_and_the_limit_is_kept() {
        let mut tries = 0;
        let mut attempt = |_: &Parts| -> Result<Tried, Infallible> {
            tries += 1;
            Ok(Tried::Unclear)
        };
        let found = bisect(&alone(12), 5, &mut attempt).unwrap();
        assert_eq!((found.failing, found.tries, found.reach), (vec![(0..12).collect()], 5, Reach::Limited));
        assert_eq!(tries, 5);
    }

    proptest! {
        /// Whatever is bad: every failing set found fails, none of its culprits can be spared, and what passes passes.
        #[test]
        fn what_is_said_is_so(
            bad in prop::collection::vec(prop::collection::btree_set(0usize..7, 1..3), 1..3),
            needs in prop::collection::vec((0usize..7, 0usize..7), 0..4),
        ) {
            let mut parts = alone(7);
            // Only on earlier ones, so that there are no circles.
            for (one, other) in needs.into_iter().filter(|(one, other)| other < one) {
                parts[one].needs.insert(other);
            }
            let fails = |set: &Parts| bad.iter().any(|bad| bad.is_subset(set));
            let found = found(&parts, 1000, &bad);
            prop_assert_eq!(found.reach, Reach::Complete);
            prop_assert!(!fails(&found.passing));
            prop_assert!(!found.failing.is_empty());
            for set in &found.failing {
                prop_assert!(fails(set));
                for place in culprits(&parts, set) {
                    let without: Parts = set.iter().copied().filter(|other| *other != place).collect();
                    prop_assert!(!fails(&without), "{:?} without {}", set, place);
                }
            }
        }
    }
}
