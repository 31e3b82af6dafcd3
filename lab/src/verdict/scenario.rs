//! A scenario's verdict from its runs on both clones.

use std::collections::BTreeSet;

use patchlab_check::{Outcome, Status, Step, step::Kind};

use super::{Decision, Phase, Side, Verdict, compare, decide};
use crate::{
    report::{ScenarioReport, StepReport},
    scenario::{Scenario, ScenarioRun},
};

/// Characters of a command that a reason shows.
const COMMAND_SHOWN: usize = 80;

/// A scenario run once on both clones.
#[derive(Debug, Clone)]
pub struct Attempt {
    /// On the control; the error says how the machine broke.
    pub control: Result<ScenarioRun, String>,
    /// On the patched clone.
    pub patched: Result<ScenarioRun, String>,
    /// The scenario's checks.
    pub checks: Vec<CheckRun>,
}

/// A check on both clones, its statuses by [`crate::scenario::differential`].
#[derive(Debug, Clone)]
pub struct CheckRun {
    /// `check KIND`.
    pub name: String,
    /// On the control.
    pub control: Outcome,
    /// On the patched clone.
    pub patched: Outcome,
}

/// What comparing gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Compared {
    /// A verdict.
    Verdict(ScenarioReport),
    /// Run it once more on both clones, then compare all attempts.
    Repeat,
}

/// One step's name and, attempt by attempt, what was seen on (control, patched).
struct Row<'a> {
    name: &'a str,
    seen: Vec<(Side, Side)>,
    outcomes: Vec<(Option<&'a Outcome>, Option<&'a Outcome>)>,
}

/// Compares all attempts of `scenario`, oldest first.
pub fn compare_scenario(scenario: &Scenario, phase: Phase, attempts: &[Attempt]) -> Compared {
    let mut steps = Vec::new();
    let mut worst: Option<(Verdict, String)> = None;
    for row in rows(scenario, attempts) {
        let verdict = match decide(&row.seen) {
            Decision::Repeat => return Compared::Repeat,
            Decision::Is(verdict) => verdict,
        };
        // Shown is the attempt that says most: the worst.
        let shown = (0..row.seen.len())
            .max_by_key(|at| compare(row.seen[*at].0, row.seen[*at].1).map(Verdict::badness))
            .map(|at| row.outcomes[at]);
        let (control, patched) = shown.unwrap_or((None, None));
        if let Some(verdict) = verdict {
            let reason = reason(&label(scenario, row.name), verdict, patched, (attempts, &row.seen));
            if worst.as_ref().is_none_or(|(other, _)| verdict.badness() > other.badness()) {
                worst = Some((verdict, reason));
            }
        }
        let (control, patched) = (control.cloned(), patched.cloned());
        steps.push(StepReport { name: row.name.to_owned(), verdict, control, patched });
    }
    let (verdict, reason) =
        worst.unwrap_or_else(|| (Verdict::Missing, "every step says that it does not apply here".to_owned()));
    Compared::Verdict(ScenarioReport { name: scenario.name.clone(), phase, verdict, reason, steps })
}

fn rows<'a>(scenario: &'a Scenario, attempts: &'a [Attempt]) -> Vec<Row<'a>> {
    let steps = scenario.all_steps().map(|step| {
        let found = |run: &'a Result<ScenarioRun, String>| match run {
            Err(_) => (Side::LabError, None),
            Ok(run) => match run.steps.iter().find(|ran| ran.name == step.name) {
                Some(ran) => (Side::Ran(ran.outcome.status), Some(&ran.outcome)),
                None => (Side::Nothing, None),
            },
        };
        let both: Vec<_> = attempts.iter().map(|attempt| (found(&attempt.control), found(&attempt.patched))).collect();
        row(&step.name, &both)
    });
    // Attempts that broke have no checks; that is told by their steps.
    let names: BTreeSet<&str> =
        attempts.iter().flat_map(|attempt| &attempt.checks).map(|check| check.name.as_str()).collect();
    let checks = names.into_iter().map(|name| {
        let both: Vec<_> = attempts
            .iter()
            .filter_map(|attempt| attempt.checks.iter().find(|check| check.name == name))
            .map(|check| {
                let side = |outcome: &'a Outcome| (Side::Ran(outcome.status), Some(outcome));
                (side(&check.control), side(&check.patched))
            })
            .collect();
        row(name, &both)
    });
    steps.chain(checks).collect()
}

type Seen<'a> = (Side, Option<&'a Outcome>);

fn row<'a>(name: &'a str, both: &[(Seen<'a>, Seen<'a>)]) -> Row<'a> {
    Row {
        name,
        seen: both.iter().map(|(control, patched)| (control.0, patched.0)).collect(),
        outcomes: both.iter().map(|(control, patched)| (control.1, patched.1)).collect(),
    }
}

/// The step's name, and what it runs.
fn label(scenario: &Scenario, name: &str) -> String {
    match scenario.steps.iter().find(|step| step.name == name).map(|step| &step.kind) {
        Some(Kind::Run { command, .. }) => {
            let first = command.trim().lines().next().unwrap_or_default();
            let shown: String = first.chars().take(COMMAND_SHOWN).collect();
            let more = if shown.len() < command.trim().len() { " …" } else { "" };
            format!("{name} (`{shown}{more}`)")
        }
        _ => name.to_owned(),
    }
}

fn reason(
    step: &str,
    verdict: Verdict,
    patched: Option<&Outcome>,
    (attempts, seen): (&[Attempt], &[(Side, Side)]),
) -> String {
    let why = patched.map(|outcome| outcome.reason.as_str()).filter(|reason| !reason.is_empty());
    let broke = || {
        let sides = attempts.iter().flat_map(|attempt| [("control", &attempt.control), ("patched", &attempt.patched)]);
        sides.filter_map(|(side, run)| run.as_ref().err().map(|error| format!("{side} clone: {error}"))).next()
    };
    match verdict {
        Verdict::Pass | Verdict::Fixed => String::new(),
        Verdict::Regression => format!("{step}: {}, and the control passes", why.unwrap_or("failed")),
        Verdict::Flaky => {
            let failed = |side: &dyn Fn(&(Side, Side)) -> Side| {
                let count = seen.iter().filter(|pair| side(pair) == Side::Ran(Status::Fail)).count();
                format!("{count} of {}", seen.len())
            };
            let (patched, control) = (failed(&|pair| pair.1), failed(&|pair| pair.0));
            let why = why.map_or_else(String::new, |why| format!(": {why}"));
            format!("{step}: failed {patched} times on the patched clone, {control} on the control{why}")
        }
        Verdict::PreExisting => format!("{step}: {}, on the control too", why.unwrap_or("failed")),
        Verdict::Missing => format!("{step}: {}", why.unwrap_or("did not run")),
        Verdict::LabError => broke().unwrap_or_else(|| format!("{step}: the lab broke")),
    }
}

/// Whether the scenario, as it went, is evidence for the change of `changed` packages: it names one of them, and a step of it
/// that is not superficial passed on both clones. Checks are no evidence.
pub fn has_evidence(scenario: &Scenario, changed: &BTreeSet<String>, report: &ScenarioReport) -> bool {
    let passed = |outcome: &Option<Outcome>| outcome.as_ref().is_some_and(|outcome| outcome.status == Status::Pass);
    scenario.covers(changed)
        && report.steps.iter().any(|ran| {
            let step = scenario.steps.iter().find(|step| step.name == ran.name);
            step.is_some_and(Step::is_evidence)
                && ran.verdict == Some(Verdict::Pass)
                && passed(&ran.control)
                && passed(&ran.patched)
        })
}
