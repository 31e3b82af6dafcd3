//! On what a release may be signed: a verdict that passed, or waivers of each thing that the lab found. Pure.
//!
//! Only two things can be waived: that a scenario fails with the order applied, and that the way back is not proven. Where the lab broke,
//! told nothing, could not apply the order, or found something that was not so twice, nobody knows what would be waived.

use std::fmt;

use jiff::Timestamp;
use patchlab_lab::{
    report::{About, BaselineReport, Objection, Report, RollbackClass as Found, RollbackStatus},
    verdict::{Judgement, Phase, THE_MACHINE, Verdict},
};
use patchlab_protocol::{
    Digest, Envelope, Refusal, Refused,
    authorization::{self, Counted},
    document::{Order, Release, RollbackClass, Root, Waived, Waiver},
    limits,
};

use super::{not_ahead, submit};
use crate::trust::release::{release as proof, waived};

/// Something that the lab found against an order, and that a person may answer for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The baseline, `name@n`.
    pub baseline: String,
    /// Its digest.
    pub digest: Digest,
    /// What a waiver for it names.
    pub waived: Waived,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} on {}", self.waived, self.baseline)
    }
}

fn no<T>(reason: String) -> Result<T, Refused> {
    Err(Refused::new(Refusal::NotReleased, reason))
}

/// The release that may be signed over an order: on a verdict that is a proof over this very order, or with those of the waivers that cover
/// what it lacks.
///
/// # Errors
/// `not-released`, with what is missing; of a waiver that does not count, why, by name.
pub fn release(
    root: &Root,
    envelope: &Envelope,
    verdict: Option<&Report>,
    waivers: &[Envelope],
    revoked: &[Digest],
    now: Timestamp,
) -> Result<Release, Refused> {
    let order = submit(root, envelope)?;
    let verdict = over(&order, envelope, verdict)?;
    let findings = findings(&order, verdict)?;
    if findings.is_empty() {
        return Ok(proof(verdict, &order, now));
    }
    let asked = authorization::counts(
        root,
        waived(verdict, &order, waivers.to_vec(), now),
        &order,
        envelope.digest(),
        revoked,
        now,
    );
    let released = asked.map_err(|refused| {
        let found = match verdict.verdict {
            Judgement::Passed => format!("order {} has no proven way back", order.id),
            other => format!("the lab's verdict on {} is {other}: {}", order.id, verdict.reason),
        };
        let (why, needed) = (&refused.reason, list(&findings));
        let reason = format!("{found}; {why}; it ships only with waivers of {needed} (patchlab order waive --help)");
        Refused::new(refused.refusal, reason)
    })?;
    if released.waivers.len() > limits::WAIVERS_PER_RELEASE {
        let (found, most) = (released.waivers.len(), limits::WAIVERS_PER_RELEASE);
        return no(format!("order {} would rest on {found} waivers, more than {most}: draft another one", order.id));
    }
    let mut release = released.release;
    release.proof.waivers = released.waivers.into_iter().map(|counted| counted.envelope).collect();
    Ok(release)
}

/// Whether a waiver is one of something that the lab found against this order, by a key that may, and in date.
///
/// # Errors
/// The refusal: nothing else can be waived.
pub fn waive(
    root: &Root,
    envelope: &Envelope,
    verdict: Option<&Report>,
    waiver: &Envelope,
    revoked: &[Digest],
    now: Timestamp,
) -> Result<Waiver, Refused> {
    let order = submit(root, envelope)?;
    let said: Waiver = match waiver.statement::<Waiver>() {
        Ok(statement) => statement.predicate,
        Err(error) => return no(format!("waiver: {error}")),
    };
    if said.order != envelope.digest() {
        return no(format!("the waiver is for order {}, this is {}", said.order.short(), envelope.digest().short()));
    }
    let counted = Counted { envelope: waiver.clone(), digest: waiver.digest(), waiver: said };
    authorization::holds(root, &counted, &order, revoked, now)?;
    let size = waiver.to_bytes().len();
    if size > limits::WAIVER_BYTES {
        return no(format!("{counted} has {size} bytes, more than {}", limits::WAIVER_BYTES));
    }
    let said = counted.waiver;
    not_ahead("the waiver", said.at, now)?;
    let findings = findings(&order, over(&order, envelope, verdict)?)?;
    let is_it = |finding: &&Finding| {
        (&finding.baseline, finding.digest, &finding.waived) == (&said.baseline, said.baseline_digest, &said.waived)
    };
    match findings.iter().find(is_it) {
        Some(_) => Ok(said),
        None if findings.is_empty() => no(format!("the lab passed order {}: there is nothing to waive", order.id)),
        None => no(format!(
            "the lab found nothing against order {} that {} on {} would waive, but {}",
            order.id,
            said.waived,
            said.baseline,
            list(&findings)
        )),
    }
}

/// What the lab found against an order that may be waived.
///
/// # Errors
/// `not-released`, where the verdict is none over this order, or found something else.
pub fn to_waive(order: &Order, envelope: &Envelope, verdict: Option<&Report>) -> Result<Vec<Finding>, Refused> {
    findings(order, over(order, envelope, verdict)?)
}

fn list(findings: &[Finding]) -> String {
    findings.iter().map(Finding::to_string).collect::<Vec<_>>().join(", ")
}

/// The verdict, when it is one over this very order.
fn over<'r>(order: &Order, envelope: &Envelope, verdict: Option<&'r Report>) -> Result<&'r Report, Refused> {
    let Some(verdict) = verdict else {
        return no(format!("order {} has no verdict: run patchlab lab validate first", order.id));
    };
    if verdict.order != envelope.digest() {
        let (found, wanted) = (verdict.order.short(), envelope.digest().short());
        return no(format!("the verdict is over order {found}, this is {wanted}"));
    }
    if !matches!(verdict.verdict, Judgement::Passed | Judgement::Rejected) {
        return no(format!("the lab's verdict on {} is {}: {}", order.id, verdict.verdict, verdict.reason));
    }
    if verdict.baselines.is_empty() {
        return no(format!("the verdict on {} names no baseline", order.id));
    }
    Ok(verdict)
}

fn findings(order: &Order, verdict: &Report) -> Result<Vec<Finding>, Refused> {
    let mut all = Vec::new();
    for baseline in &verdict.baselines {
        // An agent compares its own transaction with the proven one; without lines there is nothing to compare.
        if baseline.transaction.is_empty() {
            return no(format!("{}: no transaction was recorded on baseline {}", order.id, baseline.name));
        }
        let mut found: Vec<Waived> = match baseline.verdict {
            Judgement::Passed => passed(order, baseline)?,
            Judgement::Rejected => rejected(order, baseline)?,
            other => return no(format!("{}: the verdict on baseline {} is {other}", order.id, baseline.name)),
        };
        if matches!(order.rollback, RollbackClass::SnapshotOnly | RollbackClass::Impossible) {
            found.push(Waived::WayBack);
        }
        found.sort();
        found.dedup();
        let finding = |waived| Finding { baseline: baseline.name.clone(), digest: baseline.digest, waived };
        all.extend(found.into_iter().map(finding));
    }
    if verdict.verdict == Judgement::Rejected && all.is_empty() {
        return no(format!("the lab's verdict on {} is rejected: {}", order.id, verdict.reason));
    }
    Ok(all)
}

/// A baseline that passed: what its way back still lacks.
fn passed(order: &Order, baseline: &BaselineReport) -> Result<Vec<Waived>, Refused> {
    let rollback = &baseline.rollback;
    let promised = matches!(order.rollback, RollbackClass::Proven | RollbackClass::ProvenAfterWrites);
    if promised && rollback.status != RollbackStatus::Proven {
        return no(format!("{}: the way back was not proven on baseline {}", order.id, baseline.name));
    }
    // The lab's word and the order's must agree; a verdict of an older lab has no class, and its status said all.
    match rollback.class {
        Some(Found::SnapshotOnly | Found::Impossible) => Ok(vec![Waived::WayBack]),
        Some(Found::Proven) | None if order.rollback == RollbackClass::ProvenAfterWrites => {
            let hint = "no scenario with [[after-writes]] steps ran";
            no(format!("{}: the way back was not proven after writes on {}: {hint}", order.id, baseline.name))
        }
        Some(Found::Proven | Found::ProvenAfterWrites) | None => Ok(Vec::new()),
    }
}

/// A baseline that was rejected: each objection, when all can be waived.
fn rejected(order: &Order, baseline: &BaselineReport) -> Result<Vec<Waived>, Refused> {
    if baseline.objections.is_empty() {
        return no(format!(
            "the lab's verdict on {} is rejected on {}: {}; whether that can be waived is not said in a verdict of this form: validate it again",
            order.id, baseline.name, baseline.reason
        ));
    }
    let waived = baseline.objections.iter().map(|objection| match objection.about {
        About::Scenario { ref name, phase, verdict: Verdict::Regression } if name != THE_MACHINE => {
            let runs = baseline.scenarios.iter().filter(|ran| ran.name == *name && ran.phase == phase);
            let steps: Vec<Option<Verdict>> = runs.flat_map(|ran| &ran.steps).map(|step| step.verdict).collect();
            let untold = [Verdict::Flaky, Verdict::LabError];
            match steps.contains(&Some(Verdict::Regression)) && !untold.iter().any(|one| steps.contains(&Some(*one))) {
                true if phase == Phase::RolledBack => Ok(Waived::WayBack),
                true => Ok(Waived::Scenario(name.clone())),
                false => never(order, baseline, objection),
            }
        }
        // That it was not walked is no news where the order was rejected before.
        About::Rollback if matches!(objection.judgement, Judgement::Rejected | Judgement::Missing) => {
            Ok(Waived::WayBack)
        }
        _ => never(order, baseline, objection),
    });
    waived.collect()
}

fn never<T>(order: &Order, baseline: &BaselineReport, objection: &Objection) -> Result<T, Refused> {
    no(format!("{}: on {}: {}: that cannot be waived", order.id, baseline.name, objection.reason))
}

#[cfg(test)]
mod tests;
