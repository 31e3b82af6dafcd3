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
use patchlab_lab::{
    Baseline, Lab, LabError, LabHost, Machine,
    baseline::Baselines,
    machine::{CloneReport, CloneSpec, PreparedClones},
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
    /// Takes the others out of `scenario`.
    ///
    /// # Errors
    /// It has no step of that name: those that it has are named.
    pub fn choose(&self, scenario: &mut Scenario) -> Result<(), String> {
        let (Self::Through(name) | Self::Only(name)) = self else { return Ok(()) };
        let Some(at) = scenario.steps.iter().position(|step| step.name == *name) else {
            let known: Vec<String> = scenario.steps.iter().map(|step| format!("{:?}", step.name)).collect();
            return Err(format!("scenario {}: no step {name:?}; the steps are {}", scenario.name, known.join(", ")));
        };
        scenario.steps.truncate(at + 1);
        if matches!(self, Self::Only(_)) {
            scenario.steps.drain(..at);
        }
        Ok(())
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
    Done(Vec<ScenarioRun>),
    /// There was none: the lab broke.
    Failed(String),
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

    /// Begins a trial of the scenario as its folder is now, with these baselines for the machines beside the one under test. The one before
    /// must have ended.
    pub fn begin(&self, scenario: &Scenario, others: &BTreeMap<String, Baseline>, steps: Steps) -> anyhow::Result<()> {
        let folder = self.worker.folder().join(SCENARIOS);
        if folder.exists() {
            fs::remove_dir_all(&folder).with_context(|| format!("empty {}", folder.display()))?;
        }
        put_scenarios(&self.worker, std::slice::from_ref(scenario))?;
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
            Ok(runs) => Tell::Done(runs),
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
) -> anyhow::Result<Vec<ScenarioRun>> {
    let mut runs = Vec::new();
    for mut scenario in scenario::discover(&[inside.places.work.join(SCENARIOS)])? {
        steps.choose(&mut scenario).map_err(anyhow::Error::msg)?;
        let begun = Instant::now();
        let machine = next()?;
        let waited_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        inside.sender.send(&Tell::Cloned { report: machine.report().clone(), waited_ms })?;
        runs.push(on_clone(inside, lab, (&machine, baseline), (&scenario, others))?);
    }
    if runs.is_empty() {
        bail!("no scenario in the worker's folder");
    }
    Ok(runs)
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

    fn steps(chosen: &Steps) -> Result<Vec<String>, String> {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scenarios/web-smoke");
        let mut scenario = Scenario::read(&dir).unwrap();
        chosen.choose(&mut scenario)?;
        Ok(scenario.steps.into_iter().map(|step| step.name).collect())
    }

    #[test]
    fn a_step_is_run_with_those_before_it_or_alone() {
        assert_eq!(steps(&Steps::Through("config".into())).unwrap(), ["front page", "config"]);
        assert_eq!(steps(&Steps::Only("config".into())).unwrap(), ["config"]);
        assert!(steps(&Steps::All).unwrap().len() > 2);
    }

    #[test]
    fn a_step_that_is_not_there_is_named_with_those_that_are() {
        let error = steps(&Steps::Only("confg".into())).unwrap_err();
        assert!(error.contains("\"confg\"") && error.contains("\"config\""), "{error}");
    }
}
