//! `patchlab scenario run`: a scenario on a fresh clone, once or at each save, told as a test runner tells it.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        mpsc::{self, Receiver, Sender},
    },
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
    machine::Rung,
    report::QuarantinedScenario,
    scenario::{Scenario, Subject, today},
};

use super::{
    super::{CliError, Exit, Global, Output, output::Voice, progress::Progress},
    told::{Screen, Told},
    watch::Watch,
};
use crate::{
    lab::{
        stop::Stops,
        trial::{Ahead, Steps, Tell, Trial},
        validate::others,
    },
    place::Data,
};

pub(super) const EXAMPLES: &str = "Examples:
  patchlab scenario run scenarios/web-smoke
  patchlab scenario run scenarios/web-smoke --baseline debian-12-web --step config
  patchlab scenario run scenarios/web-smoke --watch                 # again at each save
  patchlab scenario run scenarios/web-smoke --out brought-out       # keeps what copy-out and screenshot bring out
  patchlab scenario run scenarios/web-smoke --watch config --only   # this step alone, again at each save

Every run has a clone of its own, of a matrix every combination, which is gone afterwards. [[after-writes]] steps are run after the
others. There is no patch and no second clone: metrics are not compared, and what is watched all the time ([[check]]) is not looked at;
`patchlab lab validate` does both. Where the baseline does not give what the scenario requires, it is skipped.

Exit codes: 0 every step passed, 1 one failed, 2 all was skipped, 4 the lab broke, 65 wrong input, 130 interrupted.";

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
        let scenarios = read(&self.dir, &steps)?;
        let baseline = choose(&data, &scenarios, self.baseline.as_deref(), &output)?;
        let (events, happened) = mpsc::channel();
        on_signals(events.clone()).map_err(broken)?;
        let watch = self.watch.is_some().then(|| watch(&self.dir, &scenarios, events.clone())).transpose()?;
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
        let screen = Screen { output: &output, baseline: &baseline };
        let mut session = Session { out, screen, store, dir: &self.dir, steps, trial, happened };
        let ended = match watch {
            Some(watch) => session.watch(&watch, scenarios),
            None => session.once(&scenarios),
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

/// The scenario in a folder, of a matrix every combination, with the steps that are to be run.
fn read(dir: &Path, steps: &Steps) -> Result<Vec<Scenario>, CliError> {
    let all = Scenario::read_all(dir).map_err(CliError::input)?;
    let chosen = steps.choose(all).map_err(|problem| CliError::Input(format!("{}: {problem}", dir.display())))?;
    for scenario in &chosen {
        scenario.files().map_err(CliError::input)?;
    }
    Ok(chosen)
}

/// The baseline of that name, or the newest one that the scenario applies to, of a matrix one combination.
fn choose(data: &Data, all: &[Scenario], named: Option<&str>, output: &Output) -> Result<Baseline, CliError> {
    let store = Baselines::open(&data.lab());
    let chosen = match named {
        Some(name) => store.get(name).map_err(CliError::input)?,
        None => newest(&store, all)?,
    };
    for scenario in all {
        if !applies(scenario, &chosen)? {
            output.note(format!("{} does not apply to {}: run all the same", scenario.name, chosen.full_name()));
        }
    }
    Ok(chosen)
}

fn newest(store: &Baselines, all: &[Scenario]) -> Result<Baseline, CliError> {
    let mut stored = store.list().map_err(CliError::failed)?;
    stored.sort_by_key(|baseline| std::cmp::Reverse(baseline.record.frozen.at));
    let known: Vec<String> = stored.iter().map(Baseline::full_name).collect();
    for baseline in stored {
        for scenario in all {
            if applies(scenario, &baseline)? {
                return Ok(baseline);
            }
        }
    }
    let there = if known.is_empty() { "none is stored".to_owned() } else { format!("stored: {}", known.join(", ")) };
    let name = all.first().map_or("", Scenario::folder);
    Err(CliError::Input(format!(
        "scenario {name} applies to no baseline ({there}): build one with `patchlab baseline build`, or name one with --baseline"
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

/// Tells of saves in a scenario's folder, and in those of its fixtures.
fn watch(dir: &Path, scenarios: &[Scenario], events: Sender<Event>) -> Result<Arc<Watch>, CliError> {
    let unwatched = format!("watch {}", dir.display());
    let failed = |error| CliError::Failed(format!("{unwatched}: {error}"));
    let watch = Arc::new(Watch::begin(dir).map_err(failed)?);
    watch.also(&fixtures(scenarios)).map_err(failed)?;
    let shared = Arc::clone(&watch);
    thread::spawn(move || {
        loop {
            let event = match shared.await_save() {
                Ok(()) => Event::Saved,
                Err(error) => Event::Unwatched(format!("{unwatched}: {error}")),
            };
            let is_end = matches!(event, Event::Unwatched(_));
            if events.send(event).is_err() || is_end {
                return;
            }
        }
    });
    Ok(watch)
}

/// The folders of the fixtures that scenarios use.
fn fixtures(scenarios: &[Scenario]) -> Vec<PathBuf> {
    scenarios.iter().flat_map(|scenario| &scenario.fixtures).map(|fixture| fixture.dir.clone()).collect()
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

struct Session<'a> {
    out: Option<&'a Path>,
    screen: Screen<'a>,
    store: &'a Baselines,
    dir: &'a Path,
    steps: Steps,
    trial: Trial,
    happened: Receiver<Event>,
}

impl Session<'_> {
    fn once(&mut self, scenarios: &[Scenario]) -> Result<Exit, CliError> {
        let begun = Instant::now();
        match self.trial(scenarios)? {
            Ended::Told(told) => {
                self.screen.sum_up(&told, begun, "");
                self.bring_out(scenarios)?;
                self.screen.json(scenarios, &told, begun)?;
                Ok(match told.status() {
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
    fn watch(&mut self, watch: &Watch, scenarios: Vec<Scenario>) -> Result<Exit, CliError> {
        let output = self.screen.output;
        let mut next = Some(scenarios);
        let mut begun = Instant::now();
        let mut after = "";
        loop {
            let mut is_stale = false;
            if let Some(scenarios) = next.take() {
                // One that was not there before is watched from here on.
                watch
                    .also(&fixtures(&scenarios))
                    .map_err(|error| CliError::Failed(format!("watch fixtures: {error}")))?;
                match self.trial(&scenarios)? {
                    Ended::Told(told) => {
                        self.screen.sum_up(&told, begun, after);
                        self.bring_out(&scenarios)?;
                        self.screen.json(&scenarios, &told, begun)?;
                        is_stale = told.is_stale;
                    }
                    Ended::Broke(reason) => return Err(CliError::Failed(reason)),
                    Ended::Interrupted => return Ok(Exit::Interrupted),
                }
                output.note(format!("watching {}: save to run again, Ctrl-C to end", self.dir.display()));
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
                Ok(scenarios) => next = Some(scenarios),
                // Where only JSON is printed, beside it.
                Err(error) if output.is_machine_read() => output.note(error.to_string()),
                Err(error) => output.line(format!("\n{error}")),
            }
        }
    }

    /// Keeps what the steps brought out of the machines, or says that nothing does.
    fn bring_out(&self, scenarios: &[Scenario]) -> Result<(), CliError> {
        let brings = |step: &Step| matches!(step.kind, Kind::Errand(Errand::CopyOut(_) | Errand::Screenshot));
        let Some(out) = self.out else {
            let mut steps = scenarios.iter().flat_map(|scenario| scenario.all_steps().chain(&scenario.after_writes));
            if steps.any(brings) {
                self.screen.output.note("what its steps bring out goes with the clone: --out DIR keeps it");
            }
            return Ok(());
        };
        for name in self.trial.take_out(out).map_err(broken)? {
            self.screen.output.note(format!("brought out: {}", out.join(name).display()));
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
    fn trial(&mut self, scenarios: &[Scenario]) -> Result<Ended, CliError> {
        let others = others(self.store, scenarios).map_err(broken)?;
        for scenario in scenarios {
            if let Some(lacking) = scenario.lacking(|wanted| others.contains_key(wanted)) {
                let problem = format!("scenario {}: {lacking}: build it, or name another", scenario.name);
                return Err(CliError::Input(problem));
            }
        }
        if let Some((name, quarantine)) =
            scenarios.first().and_then(|scenario| Some((scenario.folder(), scenario.quarantine.as_ref()?)))
        {
            self.screen.output.note(QuarantinedScenario::of(name, quarantine, today()).to_string());
        }
        self.trial.begin(scenarios, &others, self.steps.clone()).map_err(broken)?;
        let mut told = Told::default();
        // The combination whose steps are told of.
        let mut now: Option<&Scenario> = None;
        let mut doing = None;
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
                Tell::Next(name) => {
                    self.screen.next(&name);
                    now = scenarios.iter().find(|scenario| scenario.name == name);
                    doing = self.doing("clone");
                }
                Tell::Skipped(skipped) => self.screen.skipped(&skipped),
                Tell::AfterWrites => self.screen.after_writes(),
                Tell::Cloned { report, waited_ms } => {
                    if report.rung == Rung::ColdBoot {
                        let reason = report.fallback.clone().unwrap_or_default();
                        self.screen.output.note(format!("booted, not cloned, which takes long: {reason}"));
                    }
                    told.waited_ms += waited_ms;
                    told.clones.push(report);
                    doing = self.doing("files");
                }
                Tell::Begins(step) => doing = self.doing(&step),
                Tell::Step(run) => self.screen.step(now, &run),
                Tell::Done(found) => return Ok(Ended::Told(Told { found, ..told })),
                Tell::Failed(reason) => return Ok(Ended::Broke(reason)),
            }
        }
    }

    /// A moving line for who looks on; a log has the steps as they end.
    fn doing(&self, what: &str) -> Option<Progress> {
        let output = self.screen.output;
        (output.is_for_people() && output.voice() == Voice::Normal).then(|| {
            let mut progress = Progress::new(Voice::Normal);
            progress.now(what);
            progress
        })
    }
}
