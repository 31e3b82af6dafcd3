//! An order of several packages that fails, split: which of them break it, and which could ship without them.
//!
//! Each set is an order of its own, validated like any other, on the baselines that the whole failed on. It fails when it does so as the
//! whole did: what is rejected is one thing, what a package's script ends in the midst of it another. What passes here has
//! passed everything, the way back included; it is still another order, with another digest, and goes its own way.

use std::collections::BTreeSet;

use anyhow::Context as _;
use patchlab_lab::{
    ArtifactStore, Baseline,
    bisection::{Part, Parts, Reach, Tried, bisect, culprits},
    report::{BaselineReport, BisectionReport, Breaking, Report, Unapplied},
    runs::{End, How, Scope},
    verdict::Judgement,
};
use patchlab_protocol::document::Order;

use super::validate::{Batch, Seen, Validated, validate};
use crate::order::{named_after, parts::parts};

/// Most sets that are validated: with the usual minute for each, a coffee break.
const LIMIT: usize = 24;

/// A split did not come to its end.
#[derive(Debug, thiserror::Error)]
pub enum SplitError {
    /// Somebody ended it.
    #[error("interrupted while the order was split")]
    Interrupted,
    /// A validation of a set could not be had.
    #[error("{0:#}")]
    Broke(#[from] anyhow::Error),
}

/// How an order fails, where its packages can be asked which of them it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Failing {
    /// It is rejected.
    Rejected,
    /// It cannot be applied, and that showed on the machine.
    Unapplied(Unapplied),
}

impl Failing {
    /// How the whole fails; `None` when there is nothing to ask: it passes, the lab broke, a package manager refuses the order as it is, or
    /// every set that fails would take the apply's whole time.
    fn of(report: &Report) -> Option<Self> {
        let kinds = || report.baselines.iter().filter_map(Self::on);
        match report.verdict {
            Judgement::Rejected => Some(Self::Rejected),
            Judgement::Inapplicable => kinds().find(|kind| *kind != Self::Rejected),
            Judgement::Passed | Judgement::LabError | Judgement::Missing => None,
        }
    }

    /// How it fails on one baseline.
    fn on(baseline: &BaselineReport) -> Option<Self> {
        match (baseline.verdict, baseline.unapplied) {
            (Judgement::Rejected, _) => Some(Self::Rejected),
            (Judgement::Inapplicable, Some(kind @ (Unapplied::Failed | Unapplied::Unsound))) => {
                Some(Self::Unapplied(kind))
            }
            _ => None,
        }
    }

    /// What a set does, seen from here: on a baseline that refuses it, or breaks, it says nothing.
    fn tried(self, report: &Report) -> Tried {
        let is_of_that_kind = || report.baselines.iter().any(|baseline| Self::on(baseline) == Some(self));
        match (report.verdict, self) {
            (Judgement::Passed, _) => Tried::Passes,
            (Judgement::Rejected, Self::Rejected) => Tried::Fails,
            (Judgement::Inapplicable, Self::Unapplied(_)) if is_of_that_kind() => Tried::Fails,
            _ => Tried::Unclear,
        }
    }
}

/// What there is to split in an order that fails: its parts, when there are several.
pub fn splittable(order: &Order, report: &Report, artifacts: &ArtifactStore) -> anyhow::Result<Option<Vec<Part>>> {
    if Failing::of(report).is_none() {
        return Ok(None);
    }
    let parts = parts(order, artifacts)?;
    Ok((parts.len() > 1).then_some(parts))
}

/// Splits an order that fails by `whole`. `batch` says how it was validated; `observer` sees every validation of a set, after being
/// told which by `begins`.
pub fn split(
    batch: &Batch<'_>,
    (order, baselines): &(Order, Vec<Baseline>),
    whole: &Report,
    parts: &[Part],
    begins: &mut dyn FnMut(&BTreeSet<String>),
    observer: &mut dyn FnMut(Seen<'_>),
) -> Result<BisectionReport, SplitError> {
    let failing = Failing::of(whole).context("an order that does not fail has nothing to split")?;
    let failed = |baseline: &&Baseline| {
        let name = baseline.full_name();
        whole.baselines.iter().any(|report| report.name == name && Failing::on(report) == Some(failing))
    };
    let baselines: Vec<Baseline> = baselines.iter().filter(failed).cloned().collect();
    let mut reasons: Vec<(Parts, String)> = vec![((0..parts.len()).collect(), whole.reason.clone())];
    let mut attempt = |set: &Parts| -> Result<Tried, SplitError> {
        let packages = names(parts, set);
        begins(&packages);
        let part = part_of(order, &packages, reasons.len());
        let batch = Batch { orders: &[(part, baselines.clone())], scope: Scope::Whole, ..batch.clone() };
        let Validated { report, record } = validate(&batch, observer)?.pop().context("a validation has a verdict")?;
        if matches!(record.end, Some(End { how: How::Interrupted, .. })) {
            return Err(SplitError::Interrupted);
        }
        let tried = failing.tried(&report);
        reasons.push((set.clone(), report.reason));
        Ok(tried)
    };
    let found = bisect(parts, LIMIT, &mut attempt)?;
    let breaking = |set: &Parts| {
        let guilty = culprits(parts, set);
        let reason = reasons.iter().find(|(tried, _)| tried == set).map(|(_, reason)| reason.clone());
        Breaking {
            with: names(parts, &(set - &guilty)).into_iter().collect(),
            packages: names(parts, &guilty).into_iter().collect(),
            reason: reason.unwrap_or_default(),
        }
    };
    Ok(BisectionReport {
        breaking: found.failing.iter().map(breaking).collect(),
        passing: names(parts, &found.passing).into_iter().collect(),
        tries: found.tries,
        limited: found.reach == Reach::Limited,
    })
}

fn names(parts: &[Part], set: &Parts) -> BTreeSet<String> {
    set.iter().flat_map(|place| &parts[*place].packages).cloned().collect()
}

/// The order with some of its packages alone.
fn part_of(order: &Order, packages: &BTreeSet<String>, number: usize) -> Order {
    let mut part = order.clone();
    part.id = named_after(&order.id, &format!(".{number}"));
    part.install.retain(|file| packages.contains(&file.name));
    part.replaces.retain(|old| packages.contains(&old.name));
    part
}

#[cfg(test)]
mod tests {
    use patchlab_lab::{report::SCHEMA, verdict::overall};
    use patchlab_protocol::Digest;

    use super::*;

    /// What a validation found on its baselines, of which each says this.
    fn report(found: &[(Judgement, Option<Unapplied>)]) -> Report {
        let baseline = |(at, (verdict, unapplied)): (usize, &(Judgement, Option<Unapplied>))| {
            let name = format!("web@{}", at + 1);
            let digest = Digest::of(&name);
            BaselineReport { verdict: *verdict, unapplied: *unapplied, ..BaselineReport::begun(name, digest) }
        };
        let baselines: Vec<BaselineReport> = found.iter().enumerate().map(baseline).collect();
        let verdict = overall(&baselines).judgement;
        let (order, id, reason) = (Digest::of("order"), "PO-1".into(), String::new());
        Report { schema: SCHEMA, order, id, verdict, reason, baselines, total_ms: 0, bisection: None }
    }

    /// All that one baseline can say.
    fn all() -> Vec<(Judgement, Option<Unapplied>)> {
        let kinds = [Unapplied::Refused, Unapplied::Failed, Unapplied::Endless, Unapplied::Unsound];
        let kinds = || kinds.into_iter().map(Some).chain([None]);
        Judgement::ALL
            .into_iter()
            .flat_map(|verdict| match verdict {
                Judgement::Inapplicable => kinds().map(|kind| (verdict, kind)).collect(),
                _ => vec![(verdict, None)],
            })
            .collect()
    }

    #[test]
    fn what_is_split_is_rejected_or_failed_on_the_machine() {
        use Judgement::{Inapplicable, Rejected};
        for one in all() {
            let expected = match one {
                (Rejected, _) => Some(Failing::Rejected),
                (Inapplicable, Some(kind @ (Unapplied::Failed | Unapplied::Unsound))) => Some(Failing::Unapplied(kind)),
                _ => None,
            };
            assert_eq!(Failing::of(&report(&[one])), expected, "{one:?}");
        }
        // The worst of the baselines says what is asked, and of those that failed so the sets are asked.
        let failed = (Inapplicable, Some(Unapplied::Failed));
        assert_eq!(Failing::of(&report(&[failed, (Rejected, None)])), Some(Failing::Rejected));
        let refused = (Inapplicable, Some(Unapplied::Refused));
        assert_eq!(Failing::of(&report(&[refused, failed])), Some(Failing::Unapplied(Unapplied::Failed)));
    }

    #[test]
    fn a_set_fails_only_as_the_whole_does() {
        for whole in all() {
            let Some(failing) = Failing::of(&report(&[whole])) else { continue };
            for set in all() {
                let expected = match set {
                    (Judgement::Passed, _) => Tried::Passes,
                    set if set == whole => Tried::Fails,
                    _ => Tried::Unclear,
                };
                assert_eq!(failing.tried(&report(&[set])), expected, "{whole:?} {set:?}");
            }
        }
        let failed = (Judgement::Inapplicable, Some(Unapplied::Failed));
        let failing = Failing::of(&report(&[failed])).unwrap();
        assert_eq!(failing.tried(&report(&[(Judgement::Passed, None), failed])), Tried::Fails);
        assert_eq!(failing.tried(&report(&[(Judgement::Rejected, None), failed])), Tried::Unclear);
    }
}
