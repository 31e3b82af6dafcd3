//! `patchlab scenario list` and `doc`: which scenarios there are, and one as a page for who does not read TOML.

use std::path::PathBuf;

use clap::Args;
use patchlab_check::step::{Depth, MachineName};
use patchlab_lab::scenario::{Applies, OtherMachine, Scenario};
use serde_json::{Value, json};

use super::{
    super::{CliError, Exit, Global, lab},
    words,
};
use crate::legible;

pub(super) const LIST_EXAMPLES: &str = "Examples:
  patchlab scenario list
  patchlab scenario list tests/scenarios --json -";

pub(super) const DOC_EXAMPLES: &str = "Examples:
  patchlab scenario doc scenarios/web-smoke
  patchlab scenario doc scenarios/web-smoke --json -";

/// Which scenarios there are.
#[derive(Debug, Args)]
pub struct ListCommand {
    /// Folders of scenarios, before ./scenarios
    #[arg(value_name = "DIR")]
    dirs: Vec<PathBuf>,
}

/// A scenario as a page.
#[derive(Debug, Args)]
pub struct DocCommand {
    /// The scenario's folder
    #[arg(value_name = "DIR")]
    dir: PathBuf,
}

impl ListCommand {
    pub(super) fn run(self, global: &Global) -> Result<Exit, CliError> {
        let output = global.output();
        let all = lab::scenarios(&self.dirs)?;
        let rows: Vec<_> = all
            .iter()
            .map(|scenario| {
                vec![
                    scenario.name.clone(),
                    scenario.owner.clone(),
                    scenario.summary.clone(),
                    scope(scenario.applies.as_ref()),
                    scenario.steps.len().to_string(),
                    legible::duration(scenario.timeout),
                ]
            })
            .collect();
        output.table(&["name", "owner", "summary", "applies to", "steps", "budget"], &rows);
        if all.is_empty() {
            output.note("none in ./scenarios: `patchlab scenario new NAME` makes one");
        }
        output.json(&all.iter().map(described).collect::<Vec<_>>())?;
        Ok(Exit::Passed)
    }
}

impl DocCommand {
    pub(super) fn run(self, global: &Global) -> Result<Exit, CliError> {
        let output = global.output();
        let scenario = Scenario::read(&self.dir).map_err(CliError::input)?;
        output.line(page(&scenario).trim_end());
        output.json(&described(&scenario))?;
        Ok(Exit::Passed)
    }
}

/// Where a scenario applies, in words.
fn scope(applies: Option<&Applies>) -> String {
    let Some(applies) = applies else { return "every machine".into() };
    let parts = [("packages", &applies.packages), ("tags", &applies.tags), ("baselines", &applies.baselines)];
    let parts: Vec<String> = parts
        .iter()
        .filter(|(_, names)| !names.is_empty())
        .map(|(what, names)| format!("{what} {}", names.join(" or ")))
        .collect();
    if parts.is_empty() { "every machine".into() } else { parts.join(", ") }
}

/// One page of Markdown.
fn page(scenario: &Scenario) -> String {
    let mut page = String::new();
    let mut line = |text: String| {
        page.push_str(&text);
        page.push('\n');
    };
    line(format!("# {}\n\n{}.\n", scenario.name, scenario.summary.trim_end_matches('.')));
    line(format!("- Owner: {}", scenario.owner));
    line(format!("- Applies to: {}", scope(scenario.applies.as_ref())));
    line(format!("- Time for all of it: {}", legible::duration(scenario.timeout)));
    if !scenario.machines.is_empty() {
        let machine = |(name, machine): (&MachineName, &OtherMachine)| {
            let baseline = machine.baseline.as_deref().unwrap_or("the same baseline");
            format!("{name} (a clone of {baseline})")
        };
        let machines: Vec<String> = scenario.machines.iter().map(machine).collect();
        line(format!("- Machines beside the one under test, on one network: {}", machines.join(", ")));
    }
    line("\n| step | what is done | what is expected | counts as evidence | repeated on real hosts |".into());
    line("|---|---|---|---|---|".into());
    for step in &scenario.steps {
        let expected = match words::expectation(step) {
            nothing if nothing.is_empty() => "that it works".into(),
            expected => expected,
        };
        let evidence = if step.depth == Depth::Meaningful { "yes" } else { "no" };
        let production = if scenario.production.contains(&step.name) { "yes" } else { "no" };
        let cells = [&step.name, &format!("`{}`", words::action(step)), &expected].map(|text| cell(text));
        line(format!("| {} | {evidence} | {production} |", cells.join(" | ")));
    }
    if !scenario.checks.is_empty() {
        let watched: Vec<&str> = scenario.checks.iter().map(|check| check.kind.name()).collect();
        line(format!("\nWatched all the time: {}.", watched.join(", ")));
    }
    line("\nEvery step runs on two clones of a stored system, one with the patch and one without. What fails with the patch".into());
    line("alone, twice, rejects it.".into());
    page
}

/// Text in a cell of a Markdown table.
fn cell(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ").replace('|', "\\|")
}

fn described(scenario: &Scenario) -> Value {
    let steps: Vec<Value> = scenario
        .steps
        .iter()
        .map(|step| {
            json!({
                "name": step.name,
                "does": words::action(step),
                "expects": words::expectation(step),
                "evidence": step.depth == Depth::Meaningful,
                "production": scenario.production.contains(&step.name),
                "written": step,
            })
        })
        .collect();
    let applies = scenario
        .applies
        .as_ref()
        .map(|applies| json!({ "packages": applies.packages, "tags": applies.tags, "baselines": applies.baselines }));
    let checks: Vec<_> =
        scenario.checks.iter().map(|check| json!({ "kind": check.kind, "level": check.level })).collect();
    let machines: serde_json::Map<String, Value> = scenario
        .machines
        .iter()
        .map(|(name, machine)| (name.to_string(), json!({ "baseline": machine.baseline })))
        .collect();
    json!({
        "name": scenario.name,
        "owner": scenario.owner,
        "summary": scenario.summary,
        "machines": machines,
        "applies": applies,
        "timeout_ms": u64::try_from(scenario.timeout.as_millis()).unwrap_or(u64::MAX),
        "steps": steps,
        "checks": checks,
        "folder": scenario.dir,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_says_who_what_where_and_what_is_expected() {
        let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../scenarios/web-smoke");
        let page = page(&Scenario::read(&dir).unwrap());
        for part in [
            "# web-smoke\n\nnginx serves pages",
            "- Owner: qa-web",
            "- Applies to: packages nginx",
            "| config | `nginx -t` | exit 0 | yes | no |",
            "| front page | `http http://127.0.0.1/, body contains Welcome, status 200` | that it works | yes | yes |",
            "req_per_s at most 50% worse than without the patch",
            "Watched all the time: failed-units",
        ] {
            assert!(page.contains(part), "{part}\n{page}");
        }
    }

    #[test]
    fn a_cell_never_ends_its_row() {
        assert_eq!(cell("a | b\nc"), "a \\| b c");
    }
}
