//! A baseline's judgement, and the whole validation's.

use serde::{Deserialize, Serialize};

use super::{Judgement, Verdict};
use crate::report::{About, BaselineReport, Objection, RollbackClass, RollbackReport, RollbackStatus, ScenarioReport};

/// What policy decides.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Policy {
    /// What a failure on both clones means.
    pub pre_existing: PreExisting,
}

/// What a failure on both clones means.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PreExisting {
    /// It is shown, and does not block.
    #[default]
    Show,
    /// It blocks.
    Block,
}

/// How applying the order went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Applied {
    /// It was applied.
    Yes,
    /// The patch cannot be applied there; why.
    Inapplicable(String),
    /// The lab broke before or while applying; how.
    LabError(String),
}

/// What is known when a baseline is judged.
#[derive(Debug, Clone)]
pub struct Facts<'a> {
    /// How applying went.
    pub applied: &'a Applied,
    /// Every scenario, phase by phase.
    pub scenarios: &'a [ScenarioReport],
    /// Names of the scenarios that are evidence (see [`super::has_evidence`]).
    pub evidence: &'a [String],
    /// Names of those that are evidence against the order (see [`super::has_counter_evidence`]).
    pub counter_evidence: &'a [String],
    /// How the way back went.
    pub rollback: &'a RollbackReport,
    /// What policy decides.
    pub policy: Policy,
}

/// A judgement and the line for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Judged {
    /// In a word.
    pub judgement: Judgement,
    /// Why.
    pub reason: String,
}

/// Judges a baseline: the worst of everything known, with the first reason for it.
pub fn judge(facts: &Facts<'_>) -> Judged {
    let found = objections(facts);
    let worst = found.iter().map(|objection| objection.judgement).fold(Judgement::Passed, Judgement::worse);
    match found.into_iter().find(|objection| objection.judgement == worst) {
        Some(Objection { judgement, reason, .. }) => Judged { judgement, reason },
        None => Judged {
            judgement: Judgement::Passed,
            reason: format!("{}; the rollback is {}", passed(facts), class(facts.rollback)),
        },
    }
}

/// Everything that speaks against passing: whoever waives one thing must not waive another unseen.
pub fn objections(facts: &Facts<'_>) -> Vec<Objection> {
    let mut found: Vec<Objection> = Vec::new();
    let mut push = |judgement, about, reason: String| found.push(Objection { judgement, about, reason });
    match facts.applied {
        Applied::Yes => {}
        Applied::Inapplicable(reason) => {
            let why = format!("the patch cannot be applied: {reason}; the control was left without it");
            push(Judgement::Inapplicable, About::Apply, why);
        }
        Applied::LabError(reason) => push(Judgement::LabError, About::Apply, reason.clone()),
    }
    for scenario in facts.scenarios {
        if let Some(judgement) = consequence(scenario.verdict, facts.policy) {
            let ScenarioReport { name, phase, verdict, reason, .. } = scenario;
            let about = About::Scenario { name: name.clone(), phase: *phase, verdict: *verdict };
            push(judgement, about, format!("{verdict} in {name} {phase}: {reason}"));
        }
    }
    if *facts.applied == Applied::Yes {
        let why = &facts.rollback.reason;
        match facts.rollback.status {
            RollbackStatus::Proven => {}
            RollbackStatus::Failed => push(Judgement::Rejected, About::Rollback, format!("the rollback failed: {why}")),
            RollbackStatus::Skipped => {
                push(Judgement::Missing, About::Rollback, format!("the rollback was not tried: {why}"));
            }
        }
        // Where one that covers the change regressed, its own objection says so: that nothing speaks for the change is no news then.
        let is_told = |objection: &Objection| match &objection.about {
            About::Scenario { name, verdict: Verdict::Regression, .. } => facts.counter_evidence.contains(name),
            _ => false,
        };
        if facts.evidence.is_empty() && !found.iter().any(is_told) {
            let reason = "no scenario that covers a changed package passed a meaningful step on both clones".into();
            found.push(Objection { judgement: Judgement::Missing, about: About::Evidence, reason });
        }
    }
    found
}

/// How sure a proven rollback is, for people.
fn class(rollback: &RollbackReport) -> &'static str {
    match rollback.class {
        Some(RollbackClass::ProvenAfterWrites) => "proven over written data",
        _ => "proven",
    }
}

fn passed(facts: &Facts<'_>) -> String {
    let steps: usize = facts.scenarios.iter().map(|scenario| scenario.steps.len()).sum();
    let count = |wanted| facts.scenarios.iter().filter(|scenario| scenario.verdict == wanted).count();
    let mut text = format!("{steps} steps of {} scenario runs hold on both clones", facts.scenarios.len());
    for (verdict, name) in [(Verdict::Fixed, "fixed"), (Verdict::PreExisting, "failing before and after")] {
        if count(verdict) > 0 {
            text += &format!(", {} {name}", count(verdict));
        }
    }
    text
}

/// What a scenario's verdict means for its baseline; `None` when nothing bad.
fn consequence(verdict: Verdict, policy: Policy) -> Option<Judgement> {
    match verdict {
        Verdict::Pass | Verdict::Fixed => None,
        Verdict::PreExisting => (policy.pre_existing == PreExisting::Block).then_some(Judgement::Rejected),
        Verdict::Missing => Some(Judgement::Missing),
        Verdict::LabError => Some(Judgement::LabError),
        Verdict::Flaky | Verdict::Regression => Some(Judgement::Rejected),
    }
}

/// The whole validation: as bad as its worst baseline; `missing` when there is none.
pub fn overall(baselines: &[BaselineReport]) -> Judged {
    let Some(judgement) = baselines.iter().map(|baseline| baseline.verdict).reduce(Judgement::worse) else {
        return Judged { judgement: Judgement::Missing, reason: "no baseline represents the order's hosts".into() };
    };
    let worst = baselines.iter().find(|baseline| baseline.verdict == judgement);
    let reason = worst.map_or_else(String::new, |worst| format!("{}: {}", worst.name, worst.reason));
    Judged { judgement, reason }
}
