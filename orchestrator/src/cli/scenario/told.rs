//! What `patchlab scenario run` tells of a trial: a line a step, why one failed, the sum of it, and all of it as JSON.

use std::time::{Duration, Instant};

use patchlab_check::{Status, Step, step::Kind};
use patchlab_lab::{
    Baseline,
    machine::CloneReport,
    report::SkippedScenario,
    scenario::{Scenario, StepRun},
};
use serde_json::{Value, json};

use super::{
    super::{CliError, Output},
    words,
};
use crate::{lab::trial::Found, legible};

/// Lines of output that are shown of a step that failed.
const TAIL: usize = 20;

/// What a trial told.
#[derive(Default)]
pub(super) struct Told {
    /// How the clones were made, one for each combination that was run.
    pub(super) clones: Vec<CloneReport>,
    /// How long they were waited for, milliseconds.
    pub(super) waited_ms: u64,
    pub(super) found: Found,
    /// Whether something was saved while it ran.
    pub(super) is_stale: bool,
}

impl Told {
    /// One failed step fails all; what only skips neither passed nor failed.
    pub(super) fn status(&self) -> Status {
        let is = |status| self.steps().any(|step| step.outcome.status == status);
        match (is(Status::Fail), is(Status::Pass)) {
            (true, _) => Status::Fail,
            (false, true) => Status::Pass,
            (false, false) => Status::Skip,
        }
    }

    fn steps(&self) -> impl Iterator<Item = &StepRun> {
        self.found.all().flat_map(|run| &run.steps)
    }

    /// How many steps failed, passed and were skipped, and how many scenarios.
    fn counts(&self) -> String {
        let of = |(status, word)| {
            let count = self.steps().filter(|step| step.outcome.status == status).count();
            (count > 0).then(|| format!("{count} {word}"))
        };
        let steps = [(Status::Fail, "failed"), (Status::Pass, "passed"), (Status::Skip, "skipped")];
        let mut parts: Vec<String> = steps.into_iter().filter_map(of).collect();
        match self.found.skipped.len() {
            0 => {}
            1 => parts.push("1 scenario skipped".into()),
            count => parts.push(format!("{count} scenarios skipped")),
        }
        parts.join(", ")
    }

    fn json(&self, scenarios: &[Scenario], baseline: &Baseline, took: Duration) -> Value {
        json!({
            "scenario": scenarios.first().map(Scenario::folder),
            "baseline": baseline.full_name(),
            "digest": baseline.digest,
            "status": self.status(),
            "clone": self.clones.first(),
            "clones": self.clones,
            "clone_waited_ms": self.waited_ms,
            "runs": self.found.runs,
            "after_writes": self.found.after_writes,
            "skipped": self.found.skipped,
            "total_ms": u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
        })
    }
}

/// Where it is told.
#[derive(Clone, Copy)]
pub(super) struct Screen<'a> {
    pub(super) output: &'a Output,
    pub(super) baseline: &'a Baseline,
}

impl Screen<'_> {
    /// The scenario of that name is next.
    pub(super) fn next(&self, name: &str) {
        let text = format!("{name} on a clone of {}", self.baseline.full_name());
        self.beside(if self.output.is_for_people() { format!("\n{text}") } else { text });
    }

    /// What writes before the rollback is next.
    pub(super) fn after_writes(&self) {
        self.beside("[[after-writes]]".into());
    }

    /// Among the steps for people, beside the lines that programs read.
    fn beside(&self, text: String) {
        if self.output.is_for_people() { self.output.line(text) } else { self.output.note(text) }
    }

    pub(super) fn skipped(&self, skipped: &SkippedScenario) {
        let (status, reason) = (Status::Skip.to_string(), one_line(&skipped.reason));
        if self.output.is_for_people() {
            self.output.fields(&[&status, &skipped.name, &reason]);
        } else {
            self.output.fields(&[&status, "0", &skipped.name, &reason]);
        }
    }

    /// A step of `scenario` ended.
    pub(super) fn step(&self, scenario: Option<&Scenario>, run: &StepRun) {
        let outcome = &run.outcome;
        let status = outcome.status.to_string();
        if self.output.is_for_people() {
            let took = format!("{:>8}", legible::millis(outcome.ms));
            let reason = if outcome.status == Status::Skip { outcome.reason.as_str() } else { "" };
            self.output.fields(&[&status, &took, &run.name, reason]);
        } else {
            self.output.fields(&[&status, &outcome.ms.to_string(), &run.name, &one_line(&outcome.reason)]);
        }
        if outcome.status == Status::Fail {
            let written = scenario.and_then(|scenario| written(scenario, &run.name));
            particulars(run, written).into_iter().for_each(|line| self.beside(line));
        }
    }

    pub(super) fn sum_up(&self, told: &Told, begun: Instant, after: &str) {
        self.output.note(format!(
            "{} in {}{after} (clone after {}, steps took {})",
            told.counts(),
            legible::duration(begun.elapsed()),
            legible::millis(told.waited_ms),
            legible::millis(told.found.all().map(|run| run.ms).sum()),
        ));
    }

    pub(super) fn json(&self, scenarios: &[Scenario], told: &Told, begun: Instant) -> Result<(), CliError> {
        self.output.json(&told.json(scenarios, self.baseline, begun.elapsed()))
    }
}

/// The step of that name as it is written, also of a fixture and of what writes before the rollback.
fn written<'a>(scenario: &'a Scenario, name: &str) -> Option<&'a Step> {
    scenario.all_steps().chain(&scenario.after_writes).find(|step| step.name == name)
}

/// What a person needs to know of a step that failed: why, what was done, how it ended, what it said last.
fn particulars(run: &StepRun, step: Option<&Step>) -> Vec<String> {
    let outcome = &run.outcome;
    let mut lines = vec![format!("      why      {}", one_line(&outcome.reason))];
    if let Some(step) = step {
        let what = if matches!(step.kind, Kind::Run { .. }) { "command" } else { "step" };
        lines.push(format!("      {what:<8} {}", words::action(step).replace('\n', "\n               ")));
    }
    lines.extend(outcome.exit.map(|exit| format!("      exit     {exit}")));
    let output: Vec<&str> = outcome.output.trim_end().lines().collect();
    let left_out = output.len().saturating_sub(TAIL);
    if left_out > 0 {
        lines.push(format!("      output   … {left_out} lines, all of them with --json"));
    }
    for (index, line) in output[left_out..].iter().enumerate() {
        let title = if index == 0 && left_out == 0 { "output" } else { "" };
        lines.push(format!("      {title:<8} {line}"));
    }
    lines
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use patchlab_check::Outcome;
    use patchlab_lab::scenario::ScenarioRun;

    use super::*;

    fn run(status: Status, output: &str) -> StepRun {
        let outcome = Outcome {
            status,
            exit: Some(3),
            ms: 1,
            output: output.into(),
            reason: "exit 3,\nnot 0".into(),
            samples: Vec::new(),
        };
        StepRun { name: "config".into(), outcome }
    }

    #[test]
    fn a_failure_says_why_what_how_and_the_last_lines() {
        let step: Step = serde_json::from_str(r#"{"name":"config","run":"nginx -t"}"#).unwrap();
        let output: String = (1..=30).map(|number| format!("line {number}\n")).collect();
        let told = particulars(&run(Status::Fail, &output), Some(&step)).join("\n");
        for part in ["why      exit 3, not 0", "command  nginx -t", "exit     3", "… 10 lines", "line 11", "line 30"]
        {
            assert!(told.contains(part), "{part}\n{told}");
        }
        assert!(!told.contains("line 10\n"), "{told}");
    }

    #[test]
    fn one_failed_step_fails_all_and_what_only_skips_did_not_pass() {
        let told = |statuses: &[Status], after: &[Status]| {
            let scenario = |statuses: &[Status]| {
                let steps = statuses.iter().map(|status| run(*status, "")).collect();
                vec![ScenarioRun { scenario: "s".into(), steps, ms: 1, gone: None }]
            };
            let found = Found { runs: scenario(statuses), after_writes: scenario(after), skipped: Vec::new() };
            Told { found, ..Told::default() }
        };
        let all = |statuses: &[Status]| told(statuses, &[]).status();
        assert_eq!(all(&[Status::Pass, Status::Skip]), Status::Pass);
        assert_eq!(all(&[Status::Pass, Status::Fail]), Status::Fail);
        assert_eq!(all(&[Status::Skip]), Status::Skip);
        assert_eq!(all(&[]), Status::Skip);
        assert_eq!(told(&[Status::Pass], &[Status::Fail]).status(), Status::Fail);
        assert_eq!(told(&[Status::Pass], &[Status::Fail]).counts(), "1 failed, 1 passed");
    }

    #[test]
    fn a_scenario_that_is_skipped_did_not_pass_and_is_counted() {
        let skipped = vec![SkippedScenario { name: "s".into(), reason: "no screen".into() }];
        let told = Told { found: Found { skipped, ..Found::default() }, ..Told::default() };
        assert_eq!((told.status(), told.counts().as_str()), (Status::Skip, "1 scenario skipped"));
    }

    #[test]
    fn a_step_is_looked_up_in_its_own_combination_wherever_it_is_written() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("web");
        std::fs::create_dir(&dir).unwrap();
        let text = "name = \"web\"\nowner = \"qa\"\nsummary = \"s\"\nmatrix = { port = [80, 443] }\n\
            step = [{ name = \"page\", run = \"curl h:${port}\" }]\n\
            after-writes = [{ name = \"rows\", run = \"write ${port}\" }]\n";
        std::fs::write(dir.join("scenario.toml"), text).unwrap();
        let all = Scenario::read_all(&dir).unwrap();
        let command = |at: usize, step| words::action(written(&all[at], step).unwrap());
        assert_eq!((command(0, "page"), command(1, "page")), ("curl h:80".into(), "curl h:443".into()));
        assert_eq!(command(1, "rows"), "write 443");
    }
}
