//! A trial of a scenario, for who writes it: no order, no agent, one clone.
//!
//! A worker keeps libvirt open and, where somebody watches, clones waiting; each time it is told, it runs the
//! scenario in its folder on a fresh clone. What a trial finds is no verdict: that takes two clones and a patch.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use patchlab_check::Step;
use patchlab_lab::{
    Baseline, Lab, LabError, LabHost, Machine,
    baseline::Baselines,
    machine::{CloneReport, CloneSpec, PreparedClones},
    report::SkippedScenario,
    runs::take_out,
    scenario::{self, Occasion, Progress, Scenario, ScenarioRun, StepRun, Suspected},
    worker::{Inside, Network, Receiver, Worker},
};
use serde::{Deserialize, Serialize};

use super::{
    job::{Job, launcher},
    pair::{digests, put_scenarios},
    worker::{SCENARIOS, opened},
};
use crate::place::Data;

/// How long a clone that is being prepared is waited for before one is made on demand.
const PREPARING: Duration = Duration::from_secs(5);
/// How long a clone that runs already is taken for a fresh one: longer, and its timers and logs are no longer those
/// of the start.
const FRESH: Duration = Duration::from_secs(300);

/// How many clones wait before they are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ahead {
    /// None: there is one trial only.
    None,
    /// One that runs, and one behind it that is paused: while a person edits, the next is made ready.
    One,
}

impl Ahead {
    /// How many wait paused.
    fn count(self) -> usize {
        match self {
            Self::None => 0,
            Self::One => 1,
        }
    }
}

/// Which steps of a scenario are run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Steps {
    /// Every one.
    All,
    /// Those before the one of that name, and it.
    Through(String),
    /// The one of that name.
    Only(String),
}

impl Steps {
    /// Takes the others out of these scenarios, and those out that have no such step: of a matrix, a step's name may be one combination's alone.
    ///
    /// # Errors
    /// None has a step of that name: those that there are are named.
    pub fn choose(&self, scenarios: Vec<Scenario>) -> Result<Vec<Scenario>, String> {
        let (Self::Through(name) | Self::Only(name)) = self else { return Ok(scenarios) };
        let mut known: Vec<String> = Vec::new();
        let mut chosen = Vec::new();
        for mut scenario in scenarios {
            let steps = scenario.steps.iter().chain(&scenario.after_writes).map(|step| format!("{:?}", step.name));
            known.extend(steps.filter(|step| !known.contains(step)).collect::<Vec<_>>());
            if self.choose_in(&mut scenario, name) {
                chosen.push(scenario);
            }
        }
        match chosen.is_empty() {
            true => Err(format!("no step {name:?}; the steps are {}", known.join(", "))),
            false => Ok(chosen),
        }
    }

    /// Takes the others out; whether there is one of that name. What writes before the rollback comes after the other steps.
    fn choose_in(&self, scenario: &mut Scenario, name: &str) -> bool {
        let at = |steps: &[Step]| steps.iter().position(|step| step.name == *name);
        let (own, after) = (at(&scenario.steps), at(&scenario.after_writes));
        match (own, after) {
            (Some(at), _) => {
                keep(&mut scenario.steps, at, self);
                scenario.after_writes.clear();
            }
            (None, Some(at)) => {
                keep(&mut scenario.after_writes, at, self);
                if matches!(self, Self::Only(_)) {
                    scenario.steps.clear();
                }
            }
            (None, None) => return false,
        }
        true
    }
}

/// Leaves the step at this place and, unless it is wanted alone, those before it.
fn keep(steps: &mut Vec<Step>, at: usize, wanted: &Steps) {
    steps.truncate(at + 1);
    if matches!(wanted, Steps::Only(_)) {
        steps.drain(..at);
    }
}

/// What the worker is told first: of which baseline clones are wanted.
#[derive(Debug, Serialize, Deserialize)]
struct Begin {
    baseline: String,
    ahead: Ahead,
}

/// What it is told then, as often as somebody likes: run these steps of the scenario in its folder.
#[derive(Debug, Serialize, Deserialize)]
struct Ask {
    steps: Steps,
    /// Digests of the baselines of the machines beside the one under test, by the names that the scenario gives them.
    others: BTreeMap<String, String>,
}

/// What it says.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Tell {
    /// The scenario of this name, of a matrix with its combination, is next; steps that are told of are its own until the next.
    Next(String),
    /// That one is not run, since what it requires is not given.
    Skipped(SkippedScenario),
    /// The steps that are told of from here on are those that write before the rollback.
    AfterWrites,
    /// The clone runs.
    Cloned {
        /// How it was made.
        report: CloneReport,
        /// How long it was waited for, milliseconds.
        waited_ms: u64,
    },
    /// A step of this name begins.
    Begins(String),
    /// A step ended.
    Step(StepRun),
    /// The end of a trial.
    Done(Found),
    /// There was none: the lab broke.
    Failed(String),
}

/// What a trial found, of a matrix for every combination.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Found {
    /// The steps.
    pub runs: Vec<ScenarioRun>,
    /// What writes before the rollback, run after the steps on the same clone.
    pub after_writes: Vec<ScenarioRun>,
    /// What was not run, since what it requires is not given.
    pub skipped: Vec<SkippedScenario>,
}

impl Found {
    /// All that was run.
    pub fn all(&self) -> impl Iterator<Item = &ScenarioRun> {
        self.runs.iter().chain(&self.after_writes)
    }
}

/// A worker that is ready for trials on clones of one baseline. Dropping it ends it.
pub struct Trial {
    worker: Worker,
}

impl Trial {
    /// Starts it; what it says comes from the receiver, whose end is the worker's.
    pub fn open(data: &Data, baseline: &Baseline, ahead: Ahead) -> anyhow::Result<(Self, Receiver)> {
        let mut worker =
            patchlab_lab::worker::spawn(&LabHost::here(), &data.lab(), &launcher(Job::Trial)?, &Network::Isolated)?;
        let receiver = worker.take_receiver().context("the worker's channel was taken")?;
        worker.sender().send(&Begin { baseline: baseline.digest.to_string(), ahead })?;
        Ok((Self { worker }, receiver))
    }

    /// Begins a trial of a scenario as its folder is now: of all its combinations, with these baselines for the machines beside the one under
    /// test. The one before must have ended.
    pub fn begin(&self, all: &[Scenario], others: &BTreeMap<String, Baseline>, steps: Steps) -> anyhow::Result<()> {
        let folder = self.worker.folder().join(SCENARIOS);
        if folder.exists() {
            fs::remove_dir_all(&folder).with_context(|| format!("empty {}", folder.display()))?;
        }
        put_scenarios(&self.worker, all)?;
        Ok(self.worker.sender().send(&Ask { steps, others: digests(others) })?)
    }

    /// Copies what the steps brought out of the machines into a folder; their names. What is there under the same name is written over.
    pub fn take_out(&self, to: &Path) -> anyhow::Result<Vec<String>> {
        take_out(self.worker.folder(), to).with_context(|| format!("bring files out to {}", to.display()))
    }

    /// What the worker wrote last, for who asks why it is gone.
    pub fn last_words(&self) -> String {
        self.worker.last_words()
    }

    /// Ends the worker and takes away what it made.
    pub fn end(self) -> anyhow::Result<()> {
        Ok(self.worker.end()?)
    }
}

/// The worker's side: trials until the parent is gone.
pub fn serve(mut inside: Inside) -> anyhow::Result<()> {
    let Some(begin) = inside.receiver.receive::<Begin>()? else { return Ok(()) };
    let open = || -> anyhow::Result<(Lab, Baseline)> {
        let baseline = Baselines::open(&inside.places).get(&begin.baseline)?;
        Ok((Lab::open(&inside.places, &inside.driver)?, baseline))
    };
    let (lab, baseline) = match open() {
        Ok(opened) => opened,
        Err(error) => return Ok(inside.sender.send(&Tell::Failed(format!("{error:#}")))?),
    };
    let number = AtomicU32::new(0);
    // Two are never made under one name, though one may be prepared while another is made on demand.
    let spec =
        || CloneSpec { name: format!("trial-{}", number.fetch_add(1, Ordering::Relaxed)), ..CloneSpec::default() };
    let clones = PreparedClones::new(&lab, &baseline, &spec, begin.ahead.count());
    thread::scope(|scope| {
        scope.spawn(|| clones.tend());
        let served = until_gone(&mut inside, (&lab, &baseline), &clones, begin.ahead);
        clones.close();
        served
    })
}

/// The clone that runs already when somebody asks.
struct Ready {
    machine: Machine,
    since: Instant,
}

fn until_gone(
    inside: &mut Inside,
    (lab, baseline): (&Lab, &Baseline),
    clones: &PreparedClones<'_>,
    ahead: Ahead,
) -> anyhow::Result<()> {
    let mut ready: Option<Ready> = None;
    while let Some(Ask { steps, others }) = inside.receiver.receive::<Ask>()? {
        let mut next = || match ready.take().filter(|ready| ready.since.elapsed() < FRESH) {
            Some(ready) => Ok(ready.machine),
            None => {
                // One that is nearly prepared is sooner there than one that begins beside it.
                clones.await_waiting(ahead.count(), PREPARING);
                clones.take()
            }
        };
        let trial =
            opened(inside, &others).and_then(|others| trial(inside, (lab, baseline), &mut next, (&steps, &others)));
        let told = match trial {
            Ok(found) => Tell::Done(found),
            Err(error) => Tell::Failed(format!("{error:#}")),
        };
        inside.sender.send(&told)?;
        if ahead == Ahead::One {
            clones.await_waiting(ahead.count(), PREPARING);
            // A failure shows again, and is told, when the clone is asked for.
            ready = clones.take().ok().map(|machine| Ready { machine, since: Instant::now() });
        }
    }
    Ok(())
}

fn trial(
    inside: &Inside,
    (lab, baseline): (&Lab, &Baseline),
    next: &mut dyn FnMut() -> Result<Machine, LabError>,
    (steps, others): (&Steps, &BTreeMap<String, Baseline>),
) -> anyhow::Result<Found> {
    let all = scenario::discover(&[inside.places.work.join(SCENARIOS)])?;
    if all.is_empty() {
        bail!("no scenario in the worker's folder");
    }
    let mut found = Found::default();
    for scenario in steps.choose(all).map_err(anyhow::Error::msg)? {
        let name = scenario.name.clone();
        inside.sender.send(&Tell::Next(name.clone()))?;
        let hardware = &baseline.record.hardware;
        if let Some(reason) = scenario.unmet(hardware, |wanted| others.contains_key(wanted)) {
            let skipped = SkippedScenario { name, reason };
            inside.sender.send(&Tell::Skipped(skipped.clone()))?;
            found.skipped.push(skipped);
            continue;
        }
        let begun = Instant::now();
        let machine = next()?;
        let waited_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        inside.sender.send(&Tell::Cloned { report: machine.report().clone(), waited_ms })?;
        // None are left where one that writes before the rollback is wanted alone.
        if !scenario.steps.is_empty() {
            found.runs.push(on_clone(inside, lab, (&machine, baseline), (&scenario, others))?);
        }
        let is_gone = found.runs.last().is_some_and(|run| run.scenario == name && run.gone.is_some());
        if let Some(workload) = scenario.workload().filter(|_| !is_gone) {
            inside.sender.send(&Tell::AfterWrites)?;
            found.after_writes.push(on_clone(inside, lab, (&machine, baseline), (&workload, others))?);
        }
    }
    Ok(found)
}

fn on_clone(
    inside: &Inside,
    lab: &Lab,
    (machine, baseline): (&Machine, &Baseline),
    (scenario, others): (&Scenario, &BTreeMap<String, Baseline>),
) -> anyhow::Result<ScenarioRun> {
    let mut observe = |progress: Progress<'_>| {
        let told = match progress {
            Progress::Begins { step, .. } => Tell::Begins(step.to_owned()),
            Progress::Ended { step, outcome } => {
                Tell::Step(StepRun { name: step.to_owned(), outcome: outcome.clone() })
            }
        };
        // A parent that is gone ends us by other means.
        let _ = inside.sender.send(&told);
    };
    let reboot = |timeout| Ok(machine.reboot(timeout)?);
    // What breaks on it is what its steps did: there is nobody else.
    let (name, seat, suspected) = (&["trial"], None, Suspected::Yes);
    let occasion = Occasion { lab, scenario, machine, baseline, others, name, reboot: &reboot, seat, suspected };
    Ok(occasion.run(&mut observe)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Names of a scenario's steps, and of those that write before the rollback.
    type Names = (Vec<String>, Vec<String>);

    /// Those that are chosen, for each combination.
    fn steps(chosen: &Steps) -> Result<Vec<Names>, String> {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("web");
        fs::create_dir(&dir).unwrap();
        let text = "name = \"web\"\nowner = \"qa\"\nsummary = \"s\"\nmatrix = { port = [80, 443] }\n\
            step = [{ name = \"page\", run = \"a\" }, { name = \"on ${port}\", run = \"b\" }, { name = \"end\", run = \"c\" }]\n\
            after-writes = [{ name = \"rows\", run = \"d\" }, { name = \"more\", run = \"e\" }]\n";
        fs::write(dir.join("scenario.toml"), text).unwrap();
        let names = |steps: Vec<Step>| steps.into_iter().map(|step| step.name).collect();
        let chosen = chosen.choose(Scenario::read_all(&dir).unwrap())?;
        Ok(chosen.into_iter().map(|scenario| (names(scenario.steps), names(scenario.after_writes))).collect())
    }

    fn pair(own: &[&str], after: &[&str]) -> Names {
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        (owned(own), owned(after))
    }

    #[test]
    fn a_step_is_run_with_those_before_it_or_alone() {
        let through = |name: &str| steps(&Steps::Through(name.into())).unwrap();
        let only = |name: &str| steps(&Steps::Only(name.into())).unwrap();
        assert_eq!(through("page"), [pair(&["page"], &[]), pair(&["page"], &[])]);
        assert_eq!(only("end"), [pair(&["end"], &[]), pair(&["end"], &[])]);
        // What writes before the rollback comes after all other steps.
        assert_eq!(through("rows")[1], pair(&["page", "on 443", "end"], &["rows"]));
        assert_eq!(only("more")[0], pair(&[], &["more"]));
        assert_eq!(steps(&Steps::All).unwrap()[0], pair(&["page", "on 80", "end"], &["rows", "more"]));
    }

    #[test]
    fn a_step_that_only_some_combinations_have_is_run_in_those() {
        assert_eq!(steps(&Steps::Only("on 443".into())).unwrap(), [pair(&["on 443"], &[])]);
    }

    #[test]
    fn a_step_that_is_not_there_is_named_with_those_that_are() {
        let error = steps(&Steps::Only("pge".into())).unwrap_err();
        let expected = "no step \"pge\"; the steps are \"page\", \"on 80\", \"end\", \"rows\", \"more\", \"on 443\"";
        assert_eq!(error, expected);
    }
}
