//! A verdict as `lab validate` prints it: what it is and why, what ran, both clones' words on what the patch broke, what the patch
//! changed, how the way back went, how long it took.

use patchlab_check::Outcome;
use patchlab_lab::{
    diff,
    failure::{self, Blame, Failure},
    report::{About, BaselineReport, Report, ScenarioReport, StepReport},
    runs::{End, How, Record},
    verdict::Verdict,
};

use super::{Output, bisection, runs::legible_line};
use crate::legible::millis;

/// Most lines of a step's output shown of each clone; the JSON has all.
const LINES: usize = 12;

/// What stands over what is its owners'.
const NOT_HELD: &str = "for the scenarios' owners, not held against the patch:";
/// The same, where that blocks.
const BLOCKED: &str =
    "for the scenarios' owners; what fails without the patch as well blocks it, as was asked (--pre-existing):";

/// Prints a run's report.
pub(super) fn print(output: &Output, report: &Report, record: &Record) {
    // What has a verdict says it; what has none was ended, or goes on.
    let word = match &record.end {
        Some(End { how: How::Judged(verdict), .. }) => verdict.name(),
        Some(End { how: How::Interrupted, .. }) => "interrupted",
        None => "no verdict",
    };
    let headline = failure::headline(report, &record.scenarios);
    output.fields(&[&report.id, word, &headline]);
    let rows: Vec<_> = report.baselines.iter().flat_map(rows).collect();
    if !rows.is_empty() {
        output.table(&["baseline", "when", "step", "control", "patched", "verdict"], &rows);
    }
    let measured: Vec<_> = report.baselines.iter().flat_map(metrics).collect();
    if !measured.is_empty() {
        output
            .table(&["baseline", "when", "metric", "control", "patched", "worse by", "allowed", "verdict"], &measured);
    }
    for baseline in &report.baselines {
        let found = failure::failures(baseline, &record.scenarios);
        failures(output, &found);
        for_owners(output, baseline, &found);
        aside(output, baseline, &found);
        journal(output, baseline);
        changes(output, baseline);
        let why = if headline.contains(&baseline.reason) { "" } else { &baseline.reason };
        end(output, baseline, why);
    }
    if let Some(found) = &report.bisection {
        bisection::print(output, &report.id, found);
    }
    output.pairs(&[("record", format!("{0}  (patchlab lab show {0})", record.id))]);
}

/// A line a step.
fn rows(baseline: &BaselineReport) -> Vec<Vec<String>> {
    let status =
        |outcome: &Option<Outcome>| outcome.as_ref().map_or_else(|| "-".to_owned(), |found| found.status.to_string());
    let steps = baseline.scenarios.iter().flat_map(|ran| ran.steps.iter().map(move |step| (ran, step)));
    steps
        .map(|(ran, step)| {
            vec![
                baseline.name.clone(),
                ran.phase.to_string(),
                format!("{}/{}", ran.name, step.name),
                status(&step.control),
                status(&step.patched),
                step.verdict.map_or("-", Verdict::name).to_owned(),
            ]
        })
        .collect()
}

/// A line a metric: medians with the median absolute deviation and the number of samples.
fn metrics(baseline: &BaselineReport) -> Vec<Vec<String>> {
    let steps = baseline.scenarios.iter().flat_map(|ran| ran.steps.iter().map(move |step| (ran, step)));
    let line = |(ran, step): (&ScenarioReport, &StepReport)| {
        let metric = step.metric.as_ref()?;
        Some(vec![
            baseline.name.clone(),
            ran.phase.to_string(),
            format!("{}/{}", ran.name, metric.name),
            metric.control.to_string(),
            metric.patched.to_string(),
            metric.worse_by_percent.map_or_else(|| "-".to_owned(), |by| format!("{by}%")),
            metric.worse_than_control.to_string(),
            step.verdict.map_or("-", Verdict::name).to_owned(),
        ])
    };
    steps.filter_map(line).collect()
}

/// What the patch broke, each with its first line and what both clones said.
fn failures(output: &Output, found: &[Failure<'_>]) {
    for failure in found.iter().filter(|failure| matches!(failure.blame, Blame::Patch | Blame::Lab)) {
        output.line(format!("{}: {failure}", failure.baseline));
        for (side, outcome) in [("control", failure.control), ("patched", failure.patched)] {
            let Some(outcome) = outcome else { continue };
            let reason = if outcome.reason.is_empty() { "" } else { ": " };
            output.line(format!("  {side}  {}{reason}{}", outcome.status, outcome.reason));
            outcome.output.lines().take(LINES).for_each(|line| output.line(format!("    | {}", legible_line(line))));
        }
    }
}

/// What fails without the patch as well: their owners' business.
fn for_owners(output: &Output, baseline: &BaselineReport, found: &[Failure<'_>]) {
    let mut found = found.iter().filter(|failure| failure.blame == Blame::Owner).peekable();
    if found.peek().is_some() {
        output.line(if blocks(baseline) { BLOCKED } else { NOT_HELD });
        found.for_each(|failure| output.line(format!("  {}: {}: {failure}", failure.owner(), failure.baseline)));
    }
}

/// Whether what fails on both clones was held against the order.
fn blocks(baseline: &BaselineReport) -> bool {
    let of_old = |about: &About| matches!(about, About::Scenario { verdict: Verdict::PreExisting, .. });
    baseline.objections.iter().any(|objection| of_old(&objection.about))
}

/// What was skipped or is in quarantine, and what that found.
fn aside(output: &Output, baseline: &BaselineReport, found: &[Failure<'_>]) {
    baseline.aside().iter().for_each(|line| output.line(format!("{}: {line}", baseline.name)));
    for failure in found.iter().filter(|failure| failure.blame == Blame::Quarantine) {
        output.line(format!("  {failure}"));
    }
}

fn journal(output: &Output, baseline: &BaselineReport) {
    if !baseline.journal.is_empty() {
        output.line(format!("{}: last lines of the patched clone's journal", baseline.name));
        baseline.journal.iter().for_each(|line| output.line(format!("  | {}", legible_line(line))));
    }
}

/// What the package manager did, and what that changed on the machine.
fn changes(output: &Output, baseline: &BaselineReport) {
    if !baseline.transaction.is_empty() {
        output.line(format!("{}: what was done", baseline.name));
        baseline.transaction.iter().for_each(|line| output.line(format!("  {line}")));
    }
    if let Some(diff) = &baseline.diff {
        output.line(format!("{}: what that changed on the machine", baseline.name));
        diff::summary(diff).lines().for_each(|line| output.line(format!("  {line}")));
    }
    if let Some(diff) = &baseline.rollback.diff {
        output.line(format!("{}: what is other after the rollback", baseline.name));
        diff::summary(diff).lines().for_each(|line| output.line(format!("  {line}")));
    }
}

/// How the way back went, and how long it all took. `why` is the verdict's reason, when that was not said yet.
fn end(output: &Output, baseline: &BaselineReport, why: &str) {
    let way_back = match baseline.rollback.reason.as_str() {
        "" => baseline.rollback.status.to_string(),
        reason => format!("{}, {reason}", baseline.rollback.status),
    };
    let why = if why.is_empty() { String::new() } else { format!(", {why}") };
    let verdict = format!("{}: {}{why}", baseline.name, baseline.verdict);
    let mut pairs = vec![("baseline", verdict), ("rollback", way_back)];
    if baseline.apply_ms > 0 {
        pairs.push(("applied in", millis(baseline.apply_ms)));
    }
    if baseline.rollback_ms > 0 {
        pairs.push(("rolled back in", millis(baseline.rollback_ms)));
    }
    if let Some(clone) = &baseline.clone {
        let why = clone.fallback.as_ref().map_or_else(String::new, |reason| format!(": {reason}"));
        pairs.push(("clone ready in", format!("{}, by {}{why}", millis(clone.ready_ms), clone.rung)));
    }
    pairs.push(("all took", millis(baseline.total_ms)));
    if let Some(kept) = &baseline.kept {
        pairs.push(("kept", format!("{kept}  (patchlab lab shell {kept})")));
    }
    output.pairs(&pairs);
}
