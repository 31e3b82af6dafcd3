//! A rejected order of several packages, split: which of them break it, and which could ship without them.
//!
//! Each set is an order of its own, validated like any other, on the baselines that rejected the whole. What passes here has
//! passed everything, the way back included; it is still another order, with another digest, and goes its own way.

use std::collections::BTreeSet;

use anyhow::Context as _;
use patchlab_lab::{
    ArtifactStore, Baseline,
    bisection::{Part, Parts, Reach, Tried, bisect, culprits},
    report::{BisectionReport, Breaking, Report},
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

/// What there is to split in a rejected order: its parts, when there are several.
pub fn splittable(order: &Order, report: &Report, artifacts: &ArtifactStore) -> anyhow::Result<Option<Vec<Part>>> {
    if report.verdict != Judgement::Rejected {
        return Ok(None);
    }
    let parts = parts(order, artifacts)?;
    Ok((parts.len() > 1).then_some(parts))
}

/// Splits an order that `whole` rejected. `batch` says how it was validated; `observer` sees every validation of a set, after being
/// told which by `begins`.
pub fn split(
    batch: &Batch<'_>,
    (order, baselines): &(Order, Vec<Baseline>),
    whole: &Report,
    parts: &[Part],
    begins: &mut dyn FnMut(&BTreeSet<String>),
    observer: &mut dyn FnMut(Seen<'_>),
) -> Result<BisectionReport, SplitError> {
    let rejected = |baseline: &&Baseline| {
        let name = baseline.full_name();
        whole.baselines.iter().any(|report| report.name == name && report.verdict == Judgement::Rejected)
    };
    let baselines: Vec<Baseline> = baselines.iter().filter(rejected).cloned().collect();
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
        reasons.push((set.clone(), report.reason));
        Ok(match report.verdict {
            Judgement::Passed => Tried::Passes,
            Judgement::Rejected => Tried::Fails,
            Judgement::Inapplicable | Judgement::LabError | Judgement::Missing => Tried::Unclear,
        })
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
