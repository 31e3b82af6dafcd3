//! A look into a kept clone: a worker of its own goes on from the moment in which the clone was saved, and runs
//! commands in it.
//!
//! What is kept is never changed: the machine works on a new layer over the kept disk, which goes with its worker.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context as _, bail};
use patchlab_check::{Target as _, target};
use patchlab_lab::{
    Lab, LabHost, Machine,
    applier::Role,
    kept::{Hold, Kept, KeptClones, TOOLS},
    machine::CloneReport,
    runs::take_out,
    scenario::requirement,
    worker::{Inside, Network, Receiver, Worker},
};
use serde::{Deserialize, Serialize};

use super::job::{Job, launcher};
use crate::place::Data;

/// The name of a picture of the screen, among what comes out of the worker.
const PICTURE: &str = "screen.png";

/// What the worker is told.
#[derive(Debug, Serialize, Deserialize)]
enum Ask {
    /// Go on from where this clone was saved.
    Resume { kept: String, role: Role },
    /// Run a command line in it.
    Run { command: String, timeout: Duration },
    /// Take a picture of its screen.
    Look,
}

/// What it answers.
#[derive(Debug, Serialize, Deserialize)]
enum Tell {
    Resumed(CloneReport),
    Ran(Ran),
    Looked,
    Failed(String),
}

/// How a command in a kept clone ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ran {
    /// The command line.
    pub command: String,
    /// Exit status; `None` when it was killed, by a signal or by the timeout.
    pub exit: Option<i32>,
    /// Standard output, lossily decoded, up to the lab's limit.
    pub stdout: String,
    /// Standard error, likewise.
    pub stderr: String,
    /// What ended it.
    pub ended: Ended,
}

/// What ended a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ended {
    /// It ended by itself, or by a signal.
    ByItself,
    /// It ran longer than it was allowed.
    ByTimeout,
}

/// A kept clone that runs. Dropping it ends the machine.
pub struct Shell {
    worker: Worker,
    receiver: Receiver,
    /// How the clone came back to life.
    pub report: CloneReport,
    // After the worker: what it uses must not go before it.
    _hold: Hold,
}

impl Shell {
    /// Lets a kept clone go on.
    pub fn open(data: &Data, kept: &Kept, role: Role) -> anyhow::Result<Self> {
        let places = data.lab();
        // Before the worker starts, which first collects what is expired.
        let hold = KeptClones::open(&places).hold(kept)?;
        let mut worker =
            patchlab_lab::worker::spawn(&LabHost::here(), &places, &launcher(Job::Shell)?, &Network::Isolated)?;
        let mut receiver = worker.take_receiver().context("the worker's channel was taken")?;
        worker.sender().send(&Ask::Resume { kept: kept.record.name.clone(), role })?;
        match answer(&worker, &mut receiver)? {
            Tell::Resumed(report) => Ok(Self { worker, receiver, report, _hold: hold }),
            other => bail!("unexpected answer {other:?}"),
        }
    }

    /// Runs a command line in it, in a shell of its own.
    pub fn run(&mut self, command: &str, timeout: Duration) -> anyhow::Result<Ran> {
        self.worker.sender().send(&Ask::Run { command: command.to_owned(), timeout })?;
        match answer(&self.worker, &mut self.receiver)? {
            Tell::Ran(ran) => Ok(ran),
            other => bail!("unexpected answer {other:?}"),
        }
    }

    /// Takes a picture of its screen, a PNG, to `to`.
    pub fn look(&mut self, to: &Path) -> anyhow::Result<()> {
        self.worker.sender().send(&Ask::Look)?;
        match answer(&self.worker, &mut self.receiver)? {
            Tell::Looked => {}
            other => bail!("unexpected answer {other:?}"),
        }
        let folder = tempfile::tempdir().context("make a folder for the picture")?;
        let taken =
            take_out(self.worker.folder(), folder.path()).context("take the picture out of the worker's folder")?;
        let name = taken.iter().find(|name| *name == PICTURE).context("the picture is not there")?;
        fs::copy(folder.path().join(name), to).with_context(|| format!("write {}", to.display()))?;
        Ok(())
    }

    /// Ends the machine and takes away what it changed.
    pub fn end(self) -> anyhow::Result<()> {
        Ok(self.worker.end()?)
    }
}

fn answer(worker: &Worker, receiver: &mut Receiver) -> anyhow::Result<Tell> {
    match receiver.receive::<Tell>()? {
        Some(Tell::Failed(reason)) => bail!("{reason}"),
        Some(tell) => Ok(tell),
        None => bail!("its worker ended; see {}", worker.folder().join("worker.log").display()),
    }
}

/// The worker's side: one machine, and commands in it until the parent is gone.
pub fn serve(mut inside: Inside) -> anyhow::Result<()> {
    let mut running: Option<(Machine, Lab)> = None;
    while let Some(ask) = inside.receiver.receive::<Ask>()? {
        let told = match (ask, &running) {
            (Ask::Resume { kept, role }, _) => resume(&inside, &kept, role).map(|(machine, lab)| {
                let report = machine.report().clone();
                running = Some((machine, lab));
                Tell::Resumed(report)
            }),
            (Ask::Run { command, timeout }, Some((machine, _))) => run(machine, command, timeout).map(Tell::Ran),
            (Ask::Look, Some((machine, lab))) => look(machine, lab).map(|()| Tell::Looked),
            (Ask::Run { .. } | Ask::Look, None) => {
                Err(anyhow::anyhow!("told to do something before there was a machine"))
            }
        };
        inside.sender.send(&told.unwrap_or_else(|error| Tell::Failed(format!("{error:#}"))))?;
    }
    Ok(())
}

fn resume(inside: &Inside, kept: &str, role: Role) -> anyhow::Result<(Machine, Lab)> {
    let kept = KeptClones::open(&inside.places).get(kept)?;
    let clone = kept.clone_of(role).with_context(|| format!("{} has no {} clone", kept.record.name, role.name()))?;
    let lab = Lab::open(&inside.places, &inside.driver)?;
    let machine = lab.resume(&clone.saved, &kept.folder, &kept.folder.join(TOOLS))?;
    Ok((machine, lab))
}

fn look(machine: &Machine, lab: &Lab) -> anyhow::Result<()> {
    if machine.hardware().screen.is_none() {
        bail!("{}", requirement::NO_SCREEN);
    }
    fs::create_dir_all(lab.out())?;
    Ok(machine.screenshot(&lab.out().join(PICTURE))?)
}

fn run(machine: &Machine, command: String, timeout: Duration) -> anyhow::Result<Ran> {
    let ran = machine.guest().run(&command, None, timeout)?;
    let ended = match ran.ended {
        target::Ended::ByItself => Ended::ByItself,
        target::Ended::ByTimeout => Ended::ByTimeout,
    };
    Ok(Ran { command, exit: ran.exit, stdout: ran.stdout, stderr: ran.stderr, ended })
}
