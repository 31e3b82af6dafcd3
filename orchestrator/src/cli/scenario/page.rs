//! `patchlab scenario list` and `doc`: which scenarios there are, and one as a page for who does not read TOML.

use std::path::PathBuf;

use clap::Args;
use patchlab_check::{Step, step::MachineName};
use patchlab_lab::{
    report::QuarantinedScenario,
    scenario::{Applies, OtherMachine, Scenario, Standing, Survey, survey, today},
};
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
        let Survey { scenarios, broken } = survey(&lab::scenario_dirs(&self.dirs));
        let rows: Vec<_> = scenarios.iter().map(row).collect();
        output.table(&["name", "owner", "summary", "applies to", "steps", "budget", "quarantine"], &rows);
        if scenarios.is_empty() && broken.is_empty() {
            output.note("none in ./scenarios: `patchlab scenario new NAME` makes one");
        }
        output.json(&scenarios.iter().map(described).collect::<Vec<_>>())?;
        if broken.is_empty() {
            return Ok(Exit::Passed);
        }
        let told: Vec<String> = broken.iter().map(ToString::to_string).collect();
        Err(CliError::Input(told.join("\n")))
    }
}

impl DocCommand {
    pub(super) fn run(self, global: &Global) -> Result<Exit, CliError> {
        let output = global.output();
        let all = Scenario::read_all(&self.dir).map_err(CliError::input)?;
        output.line(page(&all).trim_end());
        let mut shown = all.first().map(described).unwrap_or_default();
        if all.len() > 1 {
            shown["name"] = json!(all.first().map(Scenario::folder));
            shown["combinations"] = json!(all.iter().map(described).collect::<Vec<_>>());
        }
        output.json(&shown)?;
        Ok(Exit::Passed)
    }
}

/// A line of the list.
fn row(scenario: &Scenario) -> Vec<String> {
    let quarantine = scenario.quarantine.as_ref().map(|quarantine| match quarantine.standing(today()) {
        Standing::Holds => quarantine.to_string(),
        Standing::Expired => format!("expired: {quarantine}"),
    });
    vec![
        scenario.name.clone(),
        scenario.owner.clone(),
        scenario.summary.clone(),
        scope(scenario.applies.as_ref()),
        scenario.steps.len().to_string(),
        legible::duration(scenario.budget(1)),
        quarantine.unwrap_or_else(|| "-".into()),
    ]
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

/// One page of Markdown: what all combinations have in common, and what is done in each.
fn page(all: &[Scenario]) -> String {
    let Some(first) = all.first() else { return String::new() };
    let mut page = head(first);
    if all.len() > 1 {
        let names: Vec<&str> = all.iter().map(|scenario| scenario.name.as_str()).collect();
        page.push(format!("- Run {} times, each on clones of its own: {}", all.len(), names.join(", ")));
    }
    for scenario in all {
        if all.len() > 1 {
            page.push(format!("\n## {}", scenario.name));
        }
        page.extend(deeds(scenario));
    }
    page.push("\nEvery step runs on two clones of a stored system, one with the patch and one without. What fails with the patch".into());
    page.push("alone, twice, rejects it.".into());
    page.push(String::new());
    page.join("\n")
}

/// Who answers for it, where it applies, what it asks for.
fn head(scenario: &Scenario) -> Vec<String> {
    let more = if scenario.timeout.is_none() { ", and more on a machine under software emulation" } else { "" };
    let mut lines = vec![
        format!("# {}\n\n{}.\n", scenario.folder(), scenario.summary.trim_end_matches('.')),
        format!("- Owner: {}", scenario.owner),
        format!("- Applies to: {}", scope(scenario.applies.as_ref())),
        format!("- Time for all of it: {}{more}", legible::duration(scenario.budget(1))),
    ];
    if !scenario.requires.is_empty() {
        lines.push(format!("- Requires of the lab, else it is skipped: {}", scenario.requires.join(", ")));
    }
    if scenario.repeat.times() > 1 {
        lines.push(format!(
            "- Its steps are done {} times, one after the other; every time must pass",
            scenario.repeat.times()
        ));
    }
    if let Some(quarantine) = &scenario.quarantine {
        lines.push(format!("- {}", QuarantinedScenario::of("It", quarantine, today())));
    }
    if !scenario.machines.is_empty() {
        let machine = |(name, machine): (&MachineName, &OtherMachine)| {
            let baseline = machine.baseline.as_deref().unwrap_or("the same baseline");
            format!("{name} (a clone of {baseline})")
        };
        let machines: Vec<String> = scenario.machines.iter().map(machine).collect();
        lines.push(format!("- Machines beside the one under test, on one network: {}", machines.join(", ")));
    }
    lines
}

/// What is done, in the order in which it is.
fn deeds(scenario: &Scenario) -> Vec<String> {
    let mut lines = Vec::new();
    for fixture in &scenario.fixtures {
        lines.push(format!(
            "\nSet up before its steps, and taken away after them: {}.\n",
            fixture.summary.trim_end_matches('.')
        ));
        lines.push("| step | what is done |\n|---|---|".into());
        let steps = fixture.set_up.iter().chain(&fixture.tear_down);
        lines.extend(steps.map(|step| format!("| {} | {} |", cell(&step.name), cell(&done(step)))));
    }
    lines.push("\n| step | what is done | what is expected | counts as evidence | repeated on real hosts |".into());
    lines.push("|---|---|---|---|---|".into());
    for step in &scenario.steps {
        let evidence = if step.is_evidence() { "yes" } else { "no" };
        let production = if scenario.production.contains(&step.name) { "yes" } else { "no" };
        lines.push(format!("| {} | {evidence} | {production} |", asked(step)));
    }
    if !scenario.after_writes.is_empty() {
        lines.push("\nDone before the rollback, so that it is proven over changed data:\n".into());
        lines.push("| step | what is done | what is expected |\n|---|---|---|".into());
        lines.extend(scenario.after_writes.iter().map(|step| format!("| {} |", asked(step))));
    }
    if !scenario.checks.is_empty() {
        let watched: Vec<&str> = scenario.checks.iter().map(|check| check.kind.name()).collect();
        lines.push(format!("\nWatched all the time: {}.", watched.join(", ")));
    }
    lines
}

/// The first three cells of a step: its name, what it does, what it expects.
fn asked(step: &Step) -> String {
    let expected = match words::expectation(step) {
        nothing if nothing.is_empty() => "that it works".into(),
        expected => expected,
    };
    [&step.name, &done(step), &expected].map(|text| cell(text)).join(" | ")
}

/// What a step does, and how often.
fn done(step: &Step) -> String {
    let times = if step.repeat.times() > 1 { format!(", {} times", step.repeat.times()) } else { String::new() };
    format!("`{}`{times}", words::action(step))
}

/// Text in a cell of a Markdown table.
fn cell(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ").replace('|', "\\|")
}

fn described(scenario: &Scenario) -> Value {
    let told = |step: &Step| {
        json!({
            "name": step.name,
            "does": words::action(step),
            "expects": words::expectation(step),
            "evidence": step.is_evidence(),
            "production": scenario.production.contains(&step.name),
            "written": step,
        })
    };
    let all = |steps: &[Step]| steps.iter().map(told).collect::<Vec<_>>();
    let fixtures: Vec<Value> = scenario
        .fixtures
        .iter()
        .map(|fixture| {
            let (set_up, tear_down) = (all(&fixture.set_up), all(&fixture.tear_down));
            json!({ "name": fixture.name, "summary": fixture.summary, "set_up": set_up, "tear_down": tear_down })
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
        "timeout_ms": u64::try_from(scenario.budget(1).as_millis()).unwrap_or(u64::MAX),
        "parameters": scenario.combination.values(),
        "requires": scenario.requires,
        "repeat": scenario.repeat,
        "quarantine": scenario.quarantine,
        "fixtures": fixtures,
        "steps": all(&scenario.steps),
        "after_writes": all(&scenario.after_writes),
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
        let page = page(&Scenario::read_all(&dir).unwrap());
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
    fn a_page_leaves_nothing_out() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("web");
        std::fs::create_dir_all(dir.join("fixtures/db")).unwrap();
        let fixture = "summary = \"rows\"\nset-up = [{ name = \"up\", run = \"load ${port}\" }]\n";
        std::fs::write(dir.join("fixtures/db/fixture.toml"), fixture).unwrap();
        let text = "name = \"web\"\nowner = \"qa\"\nsummary = \"s\"\nfixtures = [\"db\"]\nrequires = [\"kvm\"]\nrepeat = 3\n\
            redact = [\"x=(.)\"]\nmatrix = { port = [80, 443] }\n\
            quarantine = { owner = \"ann\", until = \"2999-01-01\", ticket = \"QA-1\" }\n\
            step = [{ name = \"page\", run = \"curl h:${port}\", repeat = 2 }, { name = \"again\", reboot = true }]\n\
            after-writes = [{ name = \"rows\", run = \"write ${port}\" }]\n";
        std::fs::write(dir.join("scenario.toml"), text).unwrap();
        let page = page(&Scenario::read_all(&dir).unwrap());
        for part in [
            "# web\n",
            "- Requires of the lab, else it is skipped: kvm",
            "- Its steps are done 3 times",
            "- It is in quarantine until 2999-01-01, owner ann, QA-1: it runs and rejects nothing",
            "- Run 2 times, each on clones of its own: web[port=80], web[port=443]",
            "## web[port=443]",
            "before its steps, and taken away after them: rows.",
            "| fixture db: up | `load 443` |",
            "| page | `curl h:443`, 2 times | that it works | yes | no |",
            "| again | `reboot true` | that it works | no | no |",
            "| rows | `write 80` | that it works |",
        ] {
            assert!(page.contains(part), "{part}\n{page}");
        }
    }

    #[test]
    fn one_that_is_broken_hides_none_and_a_quarantine_is_shown() {
        let folder = tempfile::tempdir().unwrap();
        let text = |name: &str, more: &str| {
            format!(
                "name = \"{name}\"\nowner = \"qa\"\nsummary = \"s\"\n{more}\n[[step]]\nname = \"a\"\nrun = \"true\"\n"
            )
        };
        let until = |day: &str| format!("quarantine = {{ owner = \"ann\", until = \"{day}\", ticket = \"QA-1\" }}");
        for (name, more) in [
            ("a", "ownr = 1"),
            ("b", ""),
            ("c", &until("2999-01-01")),
            ("d", &until("2001-01-01")),
            ("e", "timeout = 1"),
        ] {
            std::fs::create_dir(folder.path().join(name)).unwrap();
            std::fs::write(folder.path().join(name).join("scenario.toml"), text(name, more)).unwrap();
        }
        let absent = folder.path().join("absent");
        let Survey { scenarios, broken } = survey(&[folder.path().to_owned(), absent]);
        let rows: Vec<_> = scenarios.iter().map(|scenario| (scenario.name.clone(), row(scenario)[6].clone())).collect();
        let expected = [
            ("b", "-"),
            ("c", "until 2999-01-01, owner ann, QA-1"),
            ("d", "expired: until 2001-01-01, owner ann, QA-1"),
        ];
        assert_eq!(rows, expected.map(|(name, quarantine)| (name.to_owned(), quarantine.to_owned())));
        let told: Vec<String> = broken.iter().map(ToString::to_string).collect();
        assert_eq!(told.len(), 3, "{told:#?}");
        let parts = ["a/scenario.toml:4:1: unknown key", "e/scenario.toml:4:11: key \"timeout\"", "absent"];
        told.iter().zip(parts).for_each(|(told, part)| assert!(told.contains(part), "{part}\n{told}"));
    }

    #[test]
    fn a_cell_never_ends_its_row() {
        assert_eq!(cell("a | b\nc"), "a \\| b c");
    }
}
