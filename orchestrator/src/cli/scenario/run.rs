//! `patchlab scenario run`: a scenario on a fresh clone, once or at each save, told as a test runner tells it.

use std::{
    path::{Path, PathBuf},
    sync::mpsc::{self, Receiver, Sender},
    thread,
    time::{Duration, Instant},
};

use clap::Args;
use patchlab_check::{
    Status, Step,
    step::{Errand, Kind},
};
use patchlab_lab::{
    Baseline,
    baseline::Baselines,
    machine::{CloneReport, Rung},
    scenario::{Scenario, ScenarioRun, StepRun, Subject},
};
use serde_json::{Value, json};

use super::{
    super::{CliError, Exit, Global, Output, output::Voice, progress::Progress},
    watch::Watch,
    words,
};
use crate::{
    lab::{
        stop::Stops,
        trial::{Ahead, Steps, Tell, Trial},
        validate::others,
    },
    legible,
    place::Data,
};

pub(super) const EXAMPLES: &str = "Examples:
  patchlab scenario run scenarios/web-smoke
  patchlab scenario run scenarios/web-smoke --baseline debian-12-web --step config
  patchlab scenario run scenarios/web-smoke --watch                 # again at each save
  patchlab scenario run scenarios/web-smoke --out brought-out       # keeps what copy-out and screenshot bring out
  patchlab scenario run scenarios/web-smoke --watch config --only   # this step alone, again at each save

Every run has a clone of its own, which is gone afterwards. There is no patch and no second clone: metrics are not compared, and what
is watched all the time ([[check]]) is not looked at; `patchlab lab validate` does both.

Exit codes: 0 every step passed, 1 one failed, 2 every one was skipped, 4 the lab broke, 65 wrong input, 130 interrupted.";

/// Lines of output that are shown of a step that failed.
const TAIL: usize = 20;
/// How long an interrupt may be behind the end of a worker that it ended too.
const INTERRUPT_LAG: Duration = Duration::from_secs(1);

/// A scenario on a fresh clone.
#[derive(Debug, Args)]
pub struct RunCommand {
    /// The scenario's folder
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    /// The baseline to clone; unless given, the newest that the scenario applies to
    #[arg(long, value_name = "NAME")]
    baseline: Option<String>,
    /// Run this step and those before it
    #[arg(long, value_name = "STEP", conflicts_with = "watch")]
    step: Option<String>,
    /// Run again at each save in the folder, on a fresh clone: all steps, or this one and those before it
    #[arg(long, value_name = "STEP", num_args = 0..=1)]
    watch: Option<Option<String>>,
    /// Leave out the steps before the one named
    #[arg(long)]
    only: bool,
    /// A folder for what the steps bring out of the machines (copy-out, screenshot); it is made
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

/// What the command waits for.
enum Event {
    /// A word of the worker, or its end.
    Told(Option<Tell>),
    /// Something in the folder was saved.
    Saved,
    /// The folder can no longer be watched.
    Unwatched(String),
    /// A person or a runner said that it is enough.
    Interrupted,
}

impl RunCommand {
    pub(super) fn run(self, global: &Global) -> Result<Exit, CliError> {
        let data = global.data()?;
        let output = global.output();
        let steps = self.steps()?;
        let scenario = read(&self.dir, &steps)?;
        let baseline = choose(&data, &scenario, self.baseline.as_deref(), &output)?;
        let (events, happened) = mpsc::channel();
        on_signals(events.clone()).map_err(broken)?;
        if self.watch.is_some() {
            watch(&self.dir, events.clone())?;
        }
        let ahead = if self.watch.is_some() { Ahead::One } else { Ahead::None };
        let (trial, mut receiver) = Trial::open(&data, &baseline, ahead).map_err(broken)?;
        thread::spawn(move || {
            loop {
                // What is no word is an end too.
                let told = receiver.receive::<Tell>().ok().flatten();
                let is_end = told.is_none();
                if events.send(Event::Told(told)).is_err() || is_end {
                    return;
                }
            }
        });
        let store = &Baselines::open(&data.lab());
        let out = self.out.as_deref();
        let mut session =
            Session { out, output: &output, baseline: &baseline, store, dir: &self.dir, steps, trial, happened };
        let ended = match self.watch {
            Some(_) => session.watch(scenario),
            None => session.once(&scenario),
        };
        session.trial.end().map_err(broken)?;
        ended
    }

    fn steps(&self) -> Result<Steps, CliError> {
        let named = self.step.clone().or_else(|| self.watch.clone().flatten());
        match (named, self.only) {
            (Some(name), true) => Ok(Steps::Only(name)),
            (Some(name), false) => Ok(Steps::Through(name)),
            (None, false) => Ok(Steps::All),
            (None, true) => Err(CliError::Input("--only goes with a step: name it, by --step or --watch".into())),
        }
    }
}

fn broken(error: anyhow::Error) -> CliError {
    CliError::Failed(format!("{error:#}"))
}

/// The scenario in a folder, with the steps that are to be run.
fn read(dir: &Path, steps: &Steps) -> Result<Scenario, CliError> {
    let mut scenario = Scenario::read(dir).map_err(CliError::input)?;
    steps.choose(&mut scenario).map_err(CliError::Input)?;
    scenario.files().map_err(CliError::input)?;
    Ok(scenario)
}

/// The baseline of that name, or the newest one that the scenario applies to.
fn choose(data: &Data, scenario: &Scenario, named: Option<&str>, output: &Output) -> Result<Baseline, CliError> {
    let store = Baselines::open(&data.lab());
    if let Some(name) = named {
        let baseline = store.get(name).map_err(CliError::input)?;
        if !applies(scenario, &baseline)? {
            output.note(format!("{} does not apply to {}: run all the same", scenario.name, baseline.full_name()));
        }
        return Ok(baseline);
    }
    let mut all = store.list().map_err(CliError::failed)?;
    all.sort_by_key(|baseline| std::cmp::Reverse(baseline.record.frozen.at));
    let known: Vec<String> = all.iter().map(Baseline::full_name).collect();
    for baseline in all {
        if applies(scenario, &baseline)? {
            return Ok(baseline);
        }
    }
    let there = if known.is_empty() { "none is stored".to_owned() } else { format!("stored: {}", known.join(", ")) };
    Err(CliError::Input(format!(
        "scenario {} applies to no baseline ({there}): build one with `patchlab baseline build`, or name one with --baseline",
        scenario.name
    )))
}

fn applies(scenario: &Scenario, baseline: &Baseline) -> Result<bool, CliError> {
    let manifest = baseline.manifest().map_err(|error| CliError::Failed(error.to_string()))?;
    Ok(scenario.applies_to(&Subject::of(baseline, &manifest)))
}

/// Tells of the words that end a program, which from here on end nothing by themselves.
fn on_signals(events: Sender<Event>) -> anyhow::Result<()> {
    let mut stops = Stops::listen()?;
    thread::spawn(move || {
        stops.await_next();
        // Who no longer listens ends already.
        let _ = events.send(Event::Interrupted);
    });
    Ok(())
}

/// Tells of saves in a folder.
fn watch(dir: &Path, events: Sender<Event>) -> Result<(), CliError> {
    let unwatched = format!("watch {}", dir.display());
    let watch = Watch::begin(dir).map_err(|error| CliError::Failed(format!("{unwatched}: {error}")))?;
    thread::spawn(move || {
        loop {
            let event = match watch.await_save() {
                Ok(()) => Event::Saved,
                Err(error) => Event::Unwatched(format!("{unwatched}: {error}")),
            };
            let is_end = matches!(event, Event::Unwatched(_));
            if events.send(event).is_err() || is_end {
                return;
            }
        }
    });
    Ok(())
}

/// How a trial ended.
enum Ended {
    /// Every step said how it went.
    Told(Told),
    /// The lab broke.
    Broke(String),
    /// It was to end before.
    Interrupted,
}

/// What a trial told.
struct Told {
    clone: Option<CloneReport>,
    /// How long the clone was waited for, milliseconds.
    waited_ms: u64,
    runs: Vec<ScenarioRun>,
    /// Whether something was saved while it ran.
    is_stale: bool,
}

struct Session<'a> {
    out: Option<&'a Path>,
    output: &'a Output,
    baseline: &'a Baseline,
    store: &'a Baselines,
    dir: &'a Path,
    steps: Steps,
    trial: Trial,
    happened: Receiver<Event>,
}

impl Session<'_> {
    fn once(&mut self, scenario: &Scenario) -> Result<Exit, CliError> {
        let begun = Instant::now();
        match self.trial(scenario)? {
            Ended::Told(told) => {
                self.sum_up(&told, begun, "");
                self.bring_out(scenario)?;
                self.json(scenario, &told, begun)?;
                Ok(match status(&told.runs) {
                    Status::Pass => Exit::Passed,
                    Status::Fail => Exit::Rejected,
                    Status::Skip => Exit::Missing,
                })
            }
            Ended::Broke(reason) => Err(CliError::Failed(reason)),
            Ended::Interrupted => Ok(Exit::Interrupted),
        }
    }

    /// A trial now and at each save, until it is enough.
    fn watch(&mut self, scenario: Scenario) -> Result<Exit, CliError> {
        let mut next = Some(scenario);
        let mut begun = Instant::now();
        let mut after = "";
        loop {
            let mut is_stale = false;
            if let Some(scenario) = next.take() {
                match self.trial(&scenario)? {
                    Ended::Told(told) => {
                        self.sum_up(&told, begun, after);
                        self.bring_out(&scenario)?;
                        self.json(&scenario, &told, begun)?;
                        is_stale = told.is_stale;
                    }
                    Ended::Broke(reason) => return Err(CliError::Failed(reason)),
                    Ended::Interrupted => return Ok(Exit::Interrupted),
                }
                self.output.note(format!("watching {}: save to run again, Ctrl-C to end", self.dir.display()));
            }
            if !is_stale {
                match self.next()? {
                    Event::Saved => {}
                    Event::Interrupted => return Ok(Exit::Interrupted),
                    Event::Told(Some(Tell::Failed(reason))) | Event::Unwatched(reason) => {
                        return Err(CliError::Failed(reason));
                    }
                    Event::Told(Some(_)) => continue,
                    Event::Told(None) => return self.gone(),
                }
            }
            (begun, after) = (Instant::now(), " after the save");
            match read(self.dir, &self.steps) {
                Ok(scenario) => next = Some(scenario),
                // Where only JSON is printed, beside it.
                Err(error) if self.output.is_machine_read() => self.output.note(error.to_string()),
                Err(error) => self.output.line(format!("\n{error}")),
            }
        }
    }

    /// Keeps what the steps brought out of the machines, or says that nothing does.
    fn bring_out(&self, scenario: &Scenario) -> Result<(), CliError> {
        let brings = |step: &Step| matches!(step.kind, Kind::Errand(Errand::CopyOut(_) | Errand::Screenshot));
        let Some(out) = self.out else {
            if scenario.all_steps().any(brings) {
                self.output.note("what its steps bring out goes with the clone: --out DIR keeps it");
            }
            return Ok(());
        };
        for name in self.trial.take_out(out).map_err(broken)? {
            self.output.note(format!("brought out: {}", out.join(name).display()));
        }
        Ok(())
    }

    fn next(&self) -> Result<Event, CliError> {
        self.happened.recv().map_err(|_| CliError::Failed("nothing is left to wait for".into()))
    }

    /// The worker is gone: of itself, or by the interrupt that its whole group got.
    fn gone(&self) -> Result<Exit, CliError> {
        match self.happened.recv_timeout(INTERRUPT_LAG) {
            Ok(Event::Interrupted) => Ok(Exit::Interrupted),
            _ => Err(CliError::Failed(format!("the worker ended; it wrote: {}", self.trial.last_words()))),
        }
    }

    /// One trial, told as it goes.
    fn trial(&mut self, scenario: &Scenario) -> Result<Ended, CliError> {
        let name = self.baseline.full_name();
        if self.output.is_for_people() {
            self.output.line(format!("\n{} on a clone of {name}", scenario.name));
        } else {
            self.output.note(format!("{} on a clone of {name}", scenario.name));
        }
        let others = others(self.store, std::slice::from_ref(scenario)).map_err(broken)?;
        if let Some(lacking) = scenario.lacking(|wanted| others.contains_key(wanted)) {
            return Err(CliError::Input(format!("scenario {}: {lacking}: build it, or name another", scenario.name)));
        }
        self.trial.begin(scenario, &others, self.steps.clone()).map_err(broken)?;
        let mut told = Told { clone: None, waited_ms: 0, runs: Vec::new(), is_stale: false };
        let mut doing = self.doing("clone");
        loop {
            let tell = match self.next()? {
                Event::Told(Some(tell)) => tell,
                Event::Told(None) => {
                    drop(doing);
                    return self.gone().map(|_| Ended::Interrupted);
                }
                Event::Saved => {
                    told.is_stale = true;
                    continue;
                }
                Event::Interrupted => return Ok(Ended::Interrupted),
                Event::Unwatched(reason) => return Ok(Ended::Broke(reason)),
            };
            drop(doing.take());
            match tell {
                Tell::Cloned { report, waited_ms } => {
                    if report.rung == Rung::ColdBoot {
                        let reason = report.fallback.clone().unwrap_or_default();
                        self.output.note(format!("booted, not cloned, which takes long: {reason}"));
                    }
                    (told.clone, told.waited_ms) = (Some(report), waited_ms);
                    doing = self.doing("files");
                }
                Tell::Begins(step) => doing = self.doing(&step),
                Tell::Step(step) => self.show(scenario, &step),
                Tell::Done(runs) => return Ok(Ended::Told(Told { runs, ..told })),
                Tell::Failed(reason) => return Ok(Ended::Broke(reason)),
            }
        }
    }

    /// A moving line for who looks on; a log has the steps as they end.
    fn doing(&self, what: &str) -> Option<Progress> {
        (self.output.is_for_people() && self.output.voice() == Voice::Normal).then(|| {
            let mut progress = Progress::new(Voice::Normal);
            progress.now(what);
            progress
        })
    }

    fn show(&self, scenario: &Scenario, run: &StepRun) {
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
            let step = scenario.steps.iter().find(|step| step.name == run.name);
            for line in particulars(run, step) {
                // Beside the lines that programs read.
                if self.output.is_for_people() { self.output.line(line) } else { self.output.note(line) }
            }
        }
    }

    fn sum_up(&self, told: &Told, begun: Instant, after: &str) {
        let mut parts = Vec::new();
        for (status, word) in [(Status::Fail, "failed"), (Status::Pass, "passed"), (Status::Skip, "skipped")] {
            let steps = told.runs.iter().flat_map(|run| &run.steps);
            match steps.filter(|step| step.outcome.status == status).count() {
                0 => {}
                count => parts.push(format!("{count} {word}")),
            }
        }
        self.output.note(format!(
            "{} in {}{after} (clone after {}, steps took {})",
            parts.join(", "),
            legible::duration(begun.elapsed()),
            legible::millis(told.waited_ms),
            legible::millis(told.runs.iter().map(|run| run.ms).sum()),
        ));
    }

    fn json(&self, scenario: &Scenario, told: &Told, begun: Instant) -> Result<(), CliError> {
        self.output.json(&result(scenario, self.baseline, told, begun.elapsed()))
    }
}

fn result(scenario: &Scenario, baseline: &Baseline, told: &Told, took: Duration) -> Value {
    json!({
        "scenario": scenario.name,
        "baseline": baseline.full_name(),
        "digest": baseline.digest,
        "status": status(&told.runs),
        "clone": told.clone,
        "clone_waited_ms": told.waited_ms,
        "runs": told.runs,
        "total_ms": u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
    })
}

/// One failed step fails all; what only skips neither passed nor failed.
fn status(runs: &[ScenarioRun]) -> Status {
    let is = |status| runs.iter().flat_map(|run| &run.steps).any(|step| step.outcome.status == status);
    match (is(Status::Fail), is(Status::Pass)) {
        (true, _) => Status::Fail,
        (false, true) => Status::Pass,
        (false, false) => Status::Skip,
    }
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
        let all = |statuses: &[Status]| {
            let steps = statuses.iter().map(|status| run(*status, "")).collect();
            status(&[ScenarioRun { scenario: "s".into(), steps, ms: 1, gone: None }])
        };
        assert_eq!(all(&[Status::Pass, Status::Skip]), Status::Pass);
        assert_eq!(all(&[Status::Pass, Status::Fail]), Status::Fail);
        assert_eq!(all(&[Status::Skip]), Status::Skip);
        assert_eq!(all(&[]), Status::Skip);
    }
}
