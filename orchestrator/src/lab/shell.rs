//! A look into a kept clone: a worker of its own goes on from the moment in which the clone was saved, and runs
//! commands in it.
//!
//! What is kept is never changed: the machine works on a new layer over the kept disk, which goes with its worker.

use std::{
    fs, io,
    os::{
        fd::{AsFd as _, AsRawFd as _, BorrowedFd},
        unix::net::UnixStream,
    },
    path::Path,
    time::Duration,
};

use anyhow::{Context as _, bail};
use patchlab_check::{Target as _, target};
use patchlab_lab::{
    Lab, LabHost, Machine,
    applier::Role,
    kept::{Hold, Kept, KeptClones, TOOLS},
    machine::{CloneReport, TERMINAL, Tty},
    runs::take_out,
    scenario::requirement,
    worker::{Inside, Network, Receiver, Worker},
};
use rustix::fs::{FileType, Mode, OFlags, fstat, open};
use serde::{Deserialize, Serialize};

use super::{
    halt,
    job::{Job, launcher},
};
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
    /// Give it a terminal, and have a shell there once somebody says that he sits at it.
    Terminal(Tty),
    /// Somebody does.
    Seated,
}

/// What it answers.
#[derive(Debug, Serialize, Deserialize)]
enum Tell {
    Resumed(CloneReport),
    Ran(Ran),
    Looked,
    /// It has a terminal.
    Terminal,
    /// The shell there has ended, with its exit code; `None` where there can be none.
    Left(Option<i32>),
    Failed(String),
}

/// How a shell at a terminal ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Left {
    /// By itself, with its exit code.
    Exit(i32),
    /// Who sat there left it.
    Abandoned,
    /// There was none: the guest has nothing that makes a terminal.
    NoTerminal,
}

/// Why bytes are carried no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Carried {
    /// The shell has ended.
    ToTheEnd,
    /// Who sits there does not want to wait for that.
    UntilLeft,
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

    /// A shell at a terminal in it, until it ends. `carry` carries bytes between the stream and who sits there, until the descriptor hangs up.
    pub fn sit(
        &mut self,
        tty: Tty,
        carry: impl FnOnce(&UnixStream, BorrowedFd<'_>) -> io::Result<Carried>,
    ) -> anyhow::Result<Left> {
        self.worker.sender().send(&Ask::Terminal(tty))?;
        match answer(&self.worker, &mut self.receiver)? {
            Tell::Terminal => {}
            other => bail!("unexpected answer {other:?}"),
        }
        let socket = self.worker.folder().join(TERMINAL);
        let stream = connect(&socket).with_context(|| format!("connect to {}", socket.display()))?;
        self.worker.sender().send(&Ask::Seated)?;
        let (over, ends) = UnixStream::pair().context("make a pair of sockets")?;
        let Self { worker, receiver, .. } = self;
        let process = worker.process().clone();
        std::thread::scope(|scope| {
            let shell = scope.spawn(|| {
                let answer = answer(worker, receiver);
                drop(ends);
                answer
            });
            let carried = carry(&stream, over.as_fd());
            if !matches!(carried, Ok(Carried::ToTheEnd)) {
                halt::end(&process);
            }
            let told = shell.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            match carried.context("carry what is typed and shown")? {
                Carried::UntilLeft => Ok(Left::Abandoned),
                Carried::ToTheEnd => match told? {
                    Tell::Left(Some(code)) => Ok(Left::Exit(code)),
                    Tell::Left(None) => Ok(Left::NoTerminal),
                    other => bail!("unexpected answer {other:?}"),
                },
            }
        })
    }

    /// Ends the machine and takes away what it changed.
    pub fn end(self) -> anyhow::Result<()> {
        Ok(self.worker.end()?)
    }
}

/// Connects to a socket in a folder that a worker writes to: to what is there, and not to what a link there leads to.
fn connect(socket: &Path) -> io::Result<UnixStream> {
    let opened = open(socket, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
    if FileType::from_raw_mode(fstat(&opened)?.st_mode) != FileType::Socket {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no socket"));
    }
    UnixStream::connect(format!("/proc/self/fd/{}", opened.as_raw_fd()))
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
            (Ask::Terminal(tty), Some((machine, lab))) => sit(&mut inside, machine, lab, &tty).map(Tell::Left),
            (Ask::Seated, Some(_)) => Err(anyhow::anyhow!("somebody sits at a terminal that is not there")),
            (Ask::Run { .. } | Ask::Look | Ask::Terminal(_) | Ask::Seated, None) => {
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

fn sit(inside: &mut Inside, machine: &Machine, lab: &Lab, tty: &Tty) -> anyhow::Result<Option<i32>> {
    let terminal = machine.terminal(lab)?;
    inside.sender.send(&Tell::Terminal)?;
    match inside.receiver.receive::<Ask>()? {
        Some(Ask::Seated) => Ok(terminal.shell(tty)?),
        other => bail!("told {other:?} while it waits for somebody to sit at the terminal"),
    }
}

fn run(machine: &Machine, command: String, timeout: Duration) -> anyhow::Result<Ran> {
    let ran = machine.guest().run(&command, None, timeout)?;
    let ended = match ran.ended {
        target::Ended::ByItself => Ended::ByItself,
        target::Ended::ByTimeout => Ended::ByTimeout,
    };
    Ok(Ran { command, exit: ran.exit, stdout: ran.stdout, stderr: ran.stderr, ended })
}

#[cfg(test)]
mod tests {
    use std::os::unix::{fs::symlink, net::UnixListener};

    use super::*;

    #[test]
    fn a_link_in_a_workers_folder_leads_nowhere() {
        let dir = tempfile::tempdir().unwrap();
        let [socket, link, file] = ["socket", "link", "file"].map(|name| dir.path().join(name));
        let _listener = UnixListener::bind(&socket).unwrap();
        symlink(&socket, &link).unwrap();
        fs::write(&file, "").unwrap();
        connect(&socket).unwrap();
        assert!(connect(&link).is_err());
        assert_eq!(connect(&file).unwrap_err().to_string(), "it is no socket");
    }
}
