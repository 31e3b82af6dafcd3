//! The report as one self-contained page.

use askama::Template;
use serde_json::Value;

use super::{Bundle, OrderStory, style};
use crate::{
    audit,
    deploy::RunReport,
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
    packages: Vec<Package>,
    baselines: Vec<Baseline>,
    verdict: String,
    reason: String,
    runs: Vec<RunLine<'a>>,
    bars: Vec<Bar>,
}

struct Package {
    name: String,
    arch: String,
    from: String,
    to: String,
}

struct Baseline {
    name: String,
    verdict: String,
    reason: String,
    rollback: String,
    scenarios: Vec<Scenario>,
}

struct Scenario {
    name: String,
    verdict: String,
    steps: Vec<Step>,
}

struct Step {
    name: String,
    control: String,
    patched: String,
    output: String,
}

struct RunLine<'a> {
    run: &'a Run,
    action: &'static str,
    report: Option<RunReport>,
}

/// A bar of the durations' drawing; lengths are SVG units.
struct Bar {
    label: String,
    ms: u64,
    y: usize,
    width: u64,
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
    let verdict = story.verdict.as_ref();
    let runs: Vec<RunLine<'_>> = story
        .runs
        .iter()
        .map(|run| RunLine {
            run,
            action: story
                .deployments
                .iter()
                .find(|deployment| deployment.activation == run.activation)
                .map_or("", |deployment| action_name(deployment.action)),
            report: run.report.as_ref().and_then(|text| serde_json::from_str(text).ok()),
        })
        .collect();
    Story {
        packages: packages(&story.document),
        baselines: list(verdict, "baselines").iter().map(baseline).collect(),
        verdict: text(verdict, "verdict"),
        reason: text(verdict, "reason"),
        bars: bars(&runs),
        runs,
        story,
    }
}

fn bars(runs: &[RunLine<'_>]) -> Vec<Bar> {
    let timed: Vec<_> = runs.iter().filter_map(|line| Some((line, line.report.as_ref()?.duration_ms))).collect();
    let longest = timed.iter().map(|(_, ms)| *ms).max().unwrap_or(0).max(1);
    timed
        .iter()
        .enumerate()
        .map(|(n, (line, ms))| Bar {
            label: format!("{} {}", line.run.host, line.action),
            ms: *ms,
            y: n * 24,
            width: (ms * 380 / longest).max(2),
        })
        .collect()
}

fn packages(order: &Value) -> Vec<Package> {
    let replaced = list(Some(order), "replaces");
    list(Some(order), "install")
        .iter()
        .map(|file| {
            let name = text(Some(file), "name");
            let before = replaced.iter().find(|r| text(Some(r), "name") == name);
            Package {
                from: before.map_or_else(|| "new".into(), |r| text(Some(r), "version")),
                arch: text(Some(file), "arch"),
                to: text(Some(file), "version"),
                name,
            }
        })
        .collect()
}

fn baseline(value: &Value) -> Baseline {
    Baseline {
        name: text(Some(value), "name"),
        verdict: text(Some(value), "verdict"),
        reason: text(Some(value), "reason"),
        rollback: text(value.get("rollback"), "status"),
        scenarios: list(Some(value), "scenarios")
            .iter()
            .map(|scenario| Scenario {
                name: text(Some(scenario), "name"),
                verdict: text(Some(scenario), "verdict"),
                steps: list(Some(scenario), "steps").iter().map(step).collect(),
            })
            .collect(),
    }
}

fn step(value: &Value) -> Step {
    let side = |name: &str| text(value.get(name), "status");
    // Output is shown where the two differ or something failed: the rest is in the JSON.
    let (control, patched) = (side("control"), side("patched"));
    let output = if control != patched || patched == "fail" {
        format!(
            "control:\n{}\n\npatched:\n{}",
            text(value.get("control"), "output"),
            text(value.get("patched"), "output")
        )
    } else {
        String::new()
    };
    Step { name: text(Some(value), "name"), control, patched, output }
}

fn text(value: Option<&Value>, key: &str) -> String {
    value.and_then(|v| v.get(key)).and_then(Value::as_str).unwrap_or_default().to_owned()
}

fn list<'v>(value: Option<&'v Value>, key: &str) -> &'v [Value] {
    value.and_then(|v| v.get(key)).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}
