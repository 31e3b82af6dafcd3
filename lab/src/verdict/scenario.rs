//! A scenario's verdict from its runs on both clones.

use std::collections::BTreeSet;

use patchlab_check::{
    Outcome, Status, Step,
    step::{Kind, Metric, Sample},
};

use super::{ATTEMPTS, Decision, Found, MetricReport, Phase, Side, Verdict, compare, compare_metric, decide};
use crate::{
    report::{Failed, ScenarioReport, StepReport},
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
    /// Whether the patched clone can be asked again.
    pub patched_clone: Presence,
}

/// Whether a clone can be asked again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Presence {
    /// It answers.
    There,
    /// It did not come back from a reboot, nor after its power was cycled, and the control did. That was seen twice; what else it said, once.
    Lost,
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
    metric: Option<&'a Metric>,
    seen: Vec<(Side, Side)>,
    outcomes: Vec<(Option<&'a Outcome>, Option<&'a Outcome>)>,
}

/// Compares all attempts of `scenario`, oldest first.
pub fn compare_scenario(scenario: &Scenario, phase: Phase, attempts: &[Attempt]) -> Compared {
    let mut steps = Vec::new();
    let mut worst: Option<(Verdict, String)> = None;
    for row in rows(scenario, attempts) {
        let Some((step, reason)) = compare_step(scenario, &row, attempts) else { return Compared::Repeat };
        if let Some(verdict) = step.verdict
            && worst.as_ref().is_none_or(|(other, _)| verdict.badness() > other.badness())
        {
            worst = Some((verdict, reason));
        }
        steps.push(step);
    }
    let (verdict, reason) =
        worst.unwrap_or_else(|| (Verdict::Missing, "every step says that it does not apply here".to_owned()));
    Compared::Verdict(ScenarioReport { name: scenario.name.clone(), phase, verdict, reason, steps })
}

/// How often a step failed, where it was done more than once.
fn failed(seen: &[(Side, Side)]) -> Option<Failed> {
    let count =
        |side: &dyn Fn(&(Side, Side)) -> Side| seen.iter().filter(|pair| side(pair) == Side::Ran(Status::Fail)).count();
    (seen.len() > 1).then(|| Failed { control: count(&|pair| pair.0), patched: count(&|pair| pair.1), of: seen.len() })
}

/// What both clones say of a step, and why; `None` asks for another attempt.
fn compare_step(scenario: &Scenario, row: &Row<'_>, attempts: &[Attempt]) -> Option<(StepReport, String)> {
    let lost = attempts.last().is_some_and(|attempt| attempt.patched_clone == Presence::Lost);
    let verdict = match decide(&row.seen) {
        Decision::Is(verdict) => verdict,
        Decision::Repeat if lost => Some(Verdict::Regression),
        Decision::Repeat => return None,
    };
    // Shown is the attempt that says most: the worst.
    let shown = (0..row.seen.len())
        .max_by_key(|at| compare(row.seen[*at].0, row.seen[*at].1).map(Verdict::badness))
        .map(|at| row.outcomes[at]);
    let (control, patched) = shown.unwrap_or((None, None));
    let (name, label) = (row.name.to_owned(), label(scenario, row.name));
    let (control, failed) = (control.cloned(), failed(&row.seen));
    let step = StepReport { name, verdict, control, patched: patched.cloned(), metric: None, failed };
    // Numbers are compared where the step holds on both.
    let holds = row.seen.iter().all(|seen| *seen == (Side::Ran(Status::Pass), Side::Ran(Status::Pass)));
    if let (true, Some(metric)) = (holds, row.metric) {
        let (verdict, report, why) = match measured(metric, &row.outcomes) {
            None if lost => return Some((step, String::new())),
            other => other?,
        };
        let step = with_metric(StepReport { verdict: Some(verdict), ..step }, report, &why);
        return Some((step, if why.is_empty() { why } else { format!("{label}: {why}") }));
    }
    let reason = verdict.map_or_else(String::new, |verdict| reason(&label, verdict, patched, (attempts, failed)));
    Some((step, reason))
}

/// The step with what its metric says: where that does not hold, the patched clone failed it.
fn with_metric(mut step: StepReport, report: MetricReport, why: &str) -> StepReport {
    if let Some(patched) = step.patched.as_mut().filter(|_| step.verdict != Some(Verdict::Pass)) {
        (patched.status, patched.exit, patched.reason) = (Status::Fail, None, why.to_owned());
    }
    // They stand in the report of the metric, over all attempts.
    step.control.iter_mut().chain(&mut step.patched).for_each(|outcome| outcome.samples.clear());
    StepReport { metric: Some(report), ..step }
}

/// Decides on a metric from the samples of all attempts together, and says why it does not hold. A regression is believed when it shows
/// in two attempts, and what cannot be told yet may be told by more samples: `None` asks for them. An attempt that says the contrary makes
/// it flaky.
fn measured(
    metric: &Metric,
    outcomes: &[(Option<&Outcome>, Option<&Outcome>)],
) -> Option<(Verdict, MetricReport, String)> {
    let samples = |outcome: &Option<&Outcome>| outcome.map_or_else(Vec::new, |outcome| outcome.samples.clone());
    let attempts: Vec<[Vec<Sample>; 2]> = outcomes.iter().map(|(c, p)| [samples(c), samples(p)]).collect();
    let of = |side: usize| attempts.iter().flat_map(|attempt| attempt[side].clone()).collect::<Vec<Sample>>();
    let report = compare_metric(metric, &of(0), &of(1));
    let one_says = |wanted| attempts.iter().any(|[c, p]| compare_metric(metric, c, p).found == wanted);
    let (worse, good) = (one_says(Found::Worse), one_says(Found::AsGood));
    let (verdict, why) = match report.found {
        // More samples would not make them agree.
        _ if worse && good => {
            let why = format!("{} is worse than the control's in one attempt, and as good in another", report.name);
            (Verdict::Flaky, why)
        }
        Found::Worse if attempts.len() == 1 => return None,
        Found::Undecided if attempts.len() < ATTEMPTS => return None,
        Found::AsGood if worse => {
            (Verdict::Flaky, format!("{} is worse than the control's in one attempt, and not in all", report.name))
        }
        Found::Worse if good => (Verdict::Flaky, format!("{}, and in one attempt it is as good", report.reason())),
        Found::AsGood => (Verdict::Pass, String::new()),
        Found::Worse => (Verdict::Regression, report.reason()),
        Found::Undecided => (Verdict::Flaky, report.reason()),
    };
    Some((verdict, report, why))
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
        Row { metric: step.kind.metric(), ..row(&step.name, &both) }
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
        metric: None,
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
    (attempts, failed): (&[Attempt], Option<Failed>),
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
            let often = failed.map_or_else(String::new, |failed| format!(" {failed}"));
            let why = why.map_or_else(String::new, |why| format!(": {why}"));
            format!("{step}: failed{often}{why}")
        }
        Verdict::PreExisting => format!("{step}: {}, on the control too", why.unwrap_or("failed")),
        Verdict::Missing => format!("{step}: {}", why.unwrap_or("did not run")),
        Verdict::LabError => broke().unwrap_or_else(|| format!("{step}: the lab broke")),
    }
}

/// Whether the scenario, as it went, is evidence for the change of `changed` packages: it names one of them, and a step of it
/// that is not superficial passed on both clones. Checks are no evidence.
pub fn has_evidence(scenario: &Scenario, changed: &BTreeSet<String>, report: &ScenarioReport) -> bool {
    tells(scenario, changed, report, |ran| {
        ran.verdict == Some(Verdict::Pass) && passed(&ran.control) && passed(&ran.patched)
    })
}

/// Whether the scenario, as it went, is evidence against the change: it names one of the packages, and a step of it that is not superficial
/// passed on the control and regressed.
pub fn has_counter_evidence(scenario: &Scenario, changed: &BTreeSet<String>, report: &ScenarioReport) -> bool {
    tells(scenario, changed, report, |ran| ran.verdict == Some(Verdict::Regression) && passed(&ran.control))
}

fn tells(
    scenario: &Scenario,
    changed: &BTreeSet<String>,
    report: &ScenarioReport,
    what: impl Fn(&StepReport) -> bool,
) -> bool {
    let counts = |ran: &StepReport| {
        let step = scenario.steps.iter().find(|step| step.name == ran.name);
        step.is_some_and(Step::is_evidence) && what(ran)
    };
    scenario.covers(changed) && report.steps.iter().any(counts)
}

fn passed(outcome: &Option<Outcome>) -> bool {
    outcome.as_ref().is_some_and(|outcome| outcome.status == Status::Pass)
}

/// How often a patched clone lived, beside a control that did each time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lives {
    /// It was lost each time, on two pairs of clones.
    Never,
    /// It was lost once, and not another time.
    Sometimes,
}

/// A patched clone that was lost, beside a control that was not.
pub fn lost(phase: Phase, how: &str, lives: Lives) -> ScenarioReport {
    let (verdict, how_often) = match lives {
        Lives::Never => (Verdict::Regression, "so it was on another pair of clones"),
        Lives::Sometimes => (Verdict::Flaky, "and was not on another pair of clones"),
    };
    let mut lost = of_the_machine(phase, "lives", &format!("the patched clone was lost: {how}; {how_often}"), verdict);
    // Two pairs of clones, of which the patched one of this was lost.
    let patched = if lives == Lives::Never { 2 } else { 1 };
    lost.steps.iter_mut().for_each(|step| step.failed = Some(Failed { control: 0, patched, of: 2 }));
    lost
}

/// Under what stands what no scenario's step tells: no scenario can have this name.
pub const THE_MACHINE: &str = "the machine";
/// The row about its clock.
pub const KEEPS_TIME: &str = "keeps the time";
/// The row about the kernel that it was to come up with.
pub const BOOTS: &str = "boots";

/// Something that no scenario's step tells of the patched clone, and that the control is well in.
pub fn of_the_machine(phase: Phase, step: &str, why: &str, verdict: Verdict) -> ScenarioReport {
    let outcome = |status, reason: &str| Outcome {
        status,
        exit: None,
        ms: 0,
        output: String::new(),
        reason: reason.to_owned(),
        samples: Vec::new(),
    };
    let steps = vec![StepReport {
        name: step.to_owned(),
        verdict: Some(verdict),
        control: Some(outcome(Status::Pass, "")),
        patched: Some(outcome(Status::Fail, why)),
        metric: None,
        failed: None,
    }];
    let reason = format!("{step}: {why}, and the control is well");
    ScenarioReport { name: THE_MACHINE.into(), phase, verdict, reason, steps }
}

/// A patched clone that did not come back from the reboot that follows a patch, as the control did within `control_ms`. That it came
/// `back` when its power was cycled makes it flaky.
pub fn lost_in_reboot(control_ms: u64, why: &str, back: Presence) -> ScenarioReport {
    let outcome = |status, ms, reason: &str| Outcome {
        status,
        exit: None,
        ms,
        output: String::new(),
        reason: reason.to_owned(),
        samples: Vec::new(),
    };
    let (verdict, end) = match back {
        Presence::Lost => (Verdict::Regression, "nor when its power was cycled, and the control comes back"),
        Presence::There => (Verdict::Flaky, "but does when its power is cycled; the control comes back"),
    };
    let reason = format!("comes back: {why}, {end}");
    let step = StepReport {
        name: "comes back".into(),
        verdict: Some(verdict),
        control: Some(outcome(Status::Pass, control_ms, "")),
        patched: Some(outcome(Status::Fail, 0, &format!("{why}, {end}"))),
        metric: None,
        failed: None,
    };
    ScenarioReport { name: "the reboot".into(), phase: Phase::Rebooted, verdict, reason, steps: vec![step] }
}
