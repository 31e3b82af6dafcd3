//! The report as one self-contained page: what became of every order first, then why.

use askama::Template;
use patchlab_check::{Outcome, Status};
use patchlab_lab::{
    diff::{self, Diff},
    report::{BaselineReport, Report, ScenarioReport, StepReport},
    verdict::Verdict,
};
use patchlab_protocol::document::{Order, PackageFile, script};

use super::{Bundle, OrderStory, filters, style, told};
use crate::{
    audit,
    deploy::RunReport,
    legible::millis,
    store::{Host, Run, action_name},
};

#[derive(Template)]
#[template(path = "report.html")]
struct Page<'a> {
    style: &'static str,
    bundle: &'a Bundle,
    orders: Vec<Story<'a>>,
    hosts: &'a [Host],
    audit: &'a [audit::Row],
}

/// An order as the page tells it.
struct Story<'a> {
    story: &'a OrderStory,
    headline: String,
    packages: Vec<Package>,
    lab: Option<Lab>,
    runs: Vec<RunLine<'a>>,
}

struct Package {
    name: String,
    arch: String,
    from: String,
    to: String,
}

/// What the lab found.
struct Lab {
    verdict: &'static str,
    reason: String,
    took: String,
    baselines: Vec<Baseline>,
}

struct Baseline {
    report: BaselineReport,
    clone: Option<String>,
    times: Vec<(&'static str, String)>,
    differ: Vec<Differing>,
    phases: Vec<Phase>,
    metrics: Vec<Measured>,
    changes: Vec<Changed>,
    left: Vec<Changed>,
}

/// Most lines of a group of differences on a page; the JSON has all.
const ROWS: usize = 200;

/// What differs of one sort.
pub(super) struct Changed {
    pub(super) name: &'static str,
    pub(super) counts: String,
    pub(super) rows: String,
    pub(super) omitted: usize,
}

/// A metric on both clones.
pub(super) struct Measured {
    pub(super) name: String,
    pub(super) phase: String,
    pub(super) control: String,
    pub(super) patched: String,
    pub(super) worse_by: String,
    pub(super) allowed: String,
    pub(super) verdict: &'static str,
}

/// A step that did not pass on both clones: both are shown side by side.
pub(super) struct Differing {
    pub(super) name: String,
    pub(super) phase: String,
    pub(super) verdict: &'static str,
    pub(super) sides: [Side; 2],
}

pub(super) struct Side {
    pub(super) clone: &'static str,
    pub(super) status: &'static str,
    pub(super) reason: String,
    pub(super) took: String,
    pub(super) output: String,
}

/// Every step of a phase, on a line each.
pub(super) struct Phase {
    pub(super) name: String,
    pub(super) steps: Vec<Line>,
}

pub(super) struct Line {
    pub(super) name: String,
    pub(super) control: &'static str,
    pub(super) patched: &'static str,
    pub(super) verdict: &'static str,
}

struct RunLine<'a> {
    run: &'a Run,
    action: &'static str,
    took: String,
    transaction: String,
}

/// Renders the page.
///
/// # Errors
/// When the template cannot be rendered.
pub fn html(bundle: &Bundle) -> Result<String, askama::Error> {
    Page {
        style: style::SHEET,
        bundle,
        orders: bundle.orders.iter().map(story).collect(),
        hosts: &bundle.hosts,
        audit: &bundle.audit,
    }
    .render()
}

fn story(story: &OrderStory) -> Story<'_> {
    let report = story.report();
    let judgement = report.as_ref().map(|report| report.verdict);
    let order = serde_json::from_value::<Order>(story.document.clone()).ok();
    Story {
        headline: told(&story.order, judgement, &story.runs),
        packages: order.iter().flat_map(packages).collect(),
        lab: report.map(lab),
        runs: story.runs.iter().map(|run| run_line(story, run)).collect(),
        story,
    }
}

fn packages(order: &Order) -> Vec<Package> {
    let package = |file: &PackageFile| {
        let before = order.replaces.iter().find(|replaced| replaced.name == file.name);
        Package {
            name: file.name.clone(),
            arch: file.arch.clone(),
            from: before.map_or_else(|| "not installed".into(), |replaced| replaced.version.clone()),
            to: file.version.clone(),
        }
    };
    let script = order.script.iter().map(|_| Package {
        name: order.id.clone(),
        arch: script::ARCH.into(),
        from: "not applied".into(),
        to: "applied".into(),
    });
    order.install.iter().map(package).chain(script).collect()
}

fn run_line<'a>(story: &OrderStory, run: &'a Run) -> RunLine<'a> {
    let deployment = story.deployments.iter().find(|deployment| deployment.activation == run.activation);
    let report = run.report.as_ref().and_then(|text| serde_json::from_str::<RunReport>(text).ok());
    RunLine {
        run,
        action: deployment.map_or("", |deployment| action_name(deployment.action)),
        took: report.as_ref().map_or_else(String::new, |report| millis(report.duration_ms)),
        transaction: report.as_ref().map_or_else(String::new, |report| millis(report.transaction_ms)),
    }
}

fn lab(report: Report) -> Lab {
    Lab {
        verdict: report.verdict.name(),
        reason: report.reason,
        took: millis(report.total_ms),
        baselines: report.baselines.into_iter().map(baseline).collect(),
    }
}

fn baseline(report: BaselineReport) -> Baseline {
    let mut times = Vec::new();
    for (what, ms) in [("Applied in", report.apply_ms), ("Rolled back in", report.rollback_ms)] {
        if ms > 0 {
            times.push((what, millis(ms)));
        }
    }
    times.push(("All took", millis(report.total_ms)));
    Baseline {
        clone: report.clone.as_ref().map(|clone| {
            format!("{}, ready in {}, handshake {}", clone.rung, millis(clone.ready_ms), millis(clone.handshake_ms))
        }),
        times,
        differ: report.scenarios.iter().flat_map(differing).collect(),
        phases: phases(&report.scenarios),
        metrics: report.scenarios.iter().flat_map(metrics).collect(),
        changes: report.diff.as_ref().map(changed).unwrap_or_default(),
        left: report.rollback.diff.as_deref().map(changed).unwrap_or_default(),
        report,
    }
}

/// The steps of a scenario that somebody should look at.
pub(super) fn differing(scenario: &ScenarioReport) -> Vec<Differing> {
    let alike = |step: &&StepReport| matches!(step.verdict, None | Some(Verdict::Pass));
    let show = |step: &StepReport| Differing {
        name: format!("{}: {}", scenario.name, step.name),
        phase: scenario.phase.to_string(),
        verdict: step.verdict.map_or("", Verdict::name),
        sides: [side("control", step.control.as_ref()), side("patched", step.patched.as_ref())],
    };
    scenario.steps.iter().filter(|step| !alike(step)).map(show).collect()
}

fn side(clone: &'static str, outcome: Option<&Outcome>) -> Side {
    match outcome {
        Some(outcome) => Side {
            clone,
            status: status(Some(outcome)),
            reason: outcome.reason.clone(),
            // Checks watch all the time and take none of their own.
            took: if outcome.ms == 0 { String::new() } else { millis(outcome.ms) },
            output: outcome.output.trim_end().to_owned(),
        },
        None => {
            Side { clone, status: "did not run", reason: String::new(), took: String::new(), output: String::new() }
        }
    }
}

fn status(outcome: Option<&Outcome>) -> &'static str {
    match outcome.map(|outcome| outcome.status) {
        Some(Status::Pass) => "pass",
        Some(Status::Fail) => "fail",
        Some(Status::Skip) => "skip",
        None => "-",
    }
}

/// What differs, group by group.
pub(super) fn changed(diff: &Diff) -> Vec<Changed> {
    let group = |group: &diff::Group| {
        let rows = group.rows.iter().take(ROWS).map(|row| format!("{} {}", row.change.sign(), row.text));
        Changed {
            name: group.name,
            counts: group.counts(),
            rows: rows.collect::<Vec<_>>().join("\n"),
            omitted: group.rows.len().saturating_sub(ROWS),
        }
    };
    diff::groups(diff).iter().map(group).collect()
}

/// Every metric of a scenario: medians with the median absolute deviation and the number of samples.
pub(super) fn metrics(scenario: &ScenarioReport) -> Vec<Measured> {
    let line = |step: &StepReport| {
        let metric = step.metric.as_ref()?;
        Some(Measured {
            name: format!("{}: {}", scenario.name, metric.name),
            phase: scenario.phase.to_string(),
            control: metric.control.to_string(),
            patched: metric.patched.to_string(),
            worse_by: metric.worse_by_percent.map_or_else(|| "-".into(), |by| format!("{by}%")),
            allowed: metric.worse_than_control.to_string(),
            verdict: step.verdict.map_or("", Verdict::name),
        })
    };
    scenario.steps.iter().filter_map(line).collect()
}

/// Scenarios one after the other as they ran, a table a phase.
pub(super) fn phases(scenarios: &[ScenarioReport]) -> Vec<Phase> {
    let mut phases: Vec<Phase> = Vec::new();
    for scenario in scenarios {
        let name = scenario.phase.to_string();
        let lines = scenario.steps.iter().map(|step| Line {
            name: format!("{}: {}", scenario.name, step.name),
            control: status(step.control.as_ref()),
            patched: status(step.patched.as_ref()),
            verdict: step.verdict.map_or("skipped", Verdict::name),
        });
        match phases.last_mut().filter(|phase| phase.name == name) {
            Some(phase) => phase.steps.extend(lines),
            None => phases.push(Phase { name, steps: lines.collect() }),
        }
    }
    phases
}

#[cfg(test)]
mod tests;
