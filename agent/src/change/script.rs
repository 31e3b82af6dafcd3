//! A change by the scripts that an order ships. What an exit status means, what a host must be like before, and what is done after an
//! interruption are pure; the rest lays files out and runs them.
//!
//! Every script is run in a folder that only the agent's user enters, made anew for it out of the files as they were verified: the bytes are
//! hashed as they are written there, so what was verified is what runs.
//!
//! ```text
//! ROOM/script   made anew for each script
//!   work        apply, rollback, verify, the files beside them; the current directory
//!   tmp         TMPDIR
//! ```

use std::{
    fmt, fs,
    io::{self, Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use patchlab_protocol::{
    Digest, Refusal, Refused,
    document::{Action, Order, Script, ShippedFile, Standing, script},
    enrolment::Scripts,
    inventory::Change,
    limits,
};
use rustix::fs::StatVfsMountFlags;
use serde::{Deserialize, Serialize};

use super::{Part, Places, Started};
use crate::{
    packages::{Committed, command},
    process::{self, Finished},
};

/// What is kept of what a script says, bytes.
const OUTPUT_BYTES: u64 = 64 * 1024;
/// How long a script's file may be open for writing elsewhere: a thread that started another program at the wrong moment gave it our
/// open file, until that program runs.
const BUSY: Duration = Duration::from_secs(5);
/// Time between two tries meanwhile: nothing tells when it is over.
const BUSY_STEP: Duration = Duration::from_millis(5);

/// Whether this host takes scripts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// Orders may change it by scripts.
    Allow,
    /// It refuses them.
    Refuse,
}

impl From<&Scripts> for Rule {
    fn from(said: &Scripts) -> Self {
        if said.allow { Self::Allow } else { Self::Refuse }
    }
}

/// Whether this host began to apply an order at some time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Begun {
    /// It did: what is half-way is its own doing.
    Here,
    /// It never did.
    Never,
}

/// What decides on a host whether a script may be run at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Here {
    /// What its configuration says.
    pub rule: Rule,
    /// What its ledger says of the order.
    pub begun: Begun,
}

/// What an order's script is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    id: String,
    /// Which way.
    pub action: Action,
    /// The script.
    pub script: Script,
}

/// A plan with its files in their places.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Goal {
    /// The order's digest.
    pub order: Digest,
    /// Its id.
    pub id: String,
    /// Which way.
    pub action: Action,
    /// The script.
    pub script: Script,
    /// Where its files were fetched to, in the order of [`Script::shipped`].
    pub files: Vec<PathBuf>,
    /// A folder of the run's own.
    pub room: PathBuf,
}

/// What `verify` says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// One of the two things that it may say.
    Clear(Standing),
    /// Anything else, with why.
    Neither(String),
}

/// A script could not be run.
#[derive(Debug, thiserror::Error)]
pub enum ScriptError {
    /// The disk said no.
    #[error("cannot lay out the order's script, {path}: {source}")]
    Disk {
        /// Where.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Another content than was verified.
    #[error("{path} is not any more what it was when it was verified: start the run again")]
    Altered {
        /// Where it is.
        path: PathBuf,
    },
    /// Nothing can be run there.
    #[error(
        "{path} is on a file system that is mounted noexec, where no script can be run: mount it with exec, or name another \
         state_dir in agent.toml"
    )]
    NoExec {
        /// Where.
        path: PathBuf,
    },
    /// The kernel said no.
    #[error("cannot run the order's script {name}: {source}; is there the program that its #! line names?")]
    Run {
        /// Which.
        name: String,
        /// Why not.
        source: io::Error,
    },
}

/// Whether the host takes the script at all. How the host stands is not known before the script is there to be asked.
///
/// A rollback needs no release: one operator's word is enough for it. So it is only the way back of an apply that was begun here, with all
/// that this needs, or scripts could be run that no lab has seen.
///
/// # Errors
/// The refusal.
pub fn plan(order: &Order, script: &Script, action: Action, here: Here) -> Result<Plan, Refused> {
    let id = &order.id;
    takes(order, here.rule)?;
    if (action, here.begun) == (Action::Rollback, Begun::Never) {
        let reason = format!(
            "order {id} was never begun on this host: there is nothing to roll back, and its script is not run"
        );
        return Err(Refused::new(Refusal::VersionsDiffer, reason));
    }
    match script.check() {
        Ok(()) => Ok(Plan { id: id.clone(), action, script: script.clone() }),
        Err(error) => Err(Refused::new(Refusal::Preflight, format!("the script of order {id}: {error}"))),
    }
}

/// Whether a host's configuration lets an order change it.
///
/// # Errors
/// The refusal.
pub fn takes(order: &Order, rule: Rule) -> Result<(), Refused> {
    if order.script.is_none() || rule == Rule::Allow {
        return Ok(());
    }
    let reason = format!(
        "order {} changes hosts by a script, and this host takes none: allow = true under [scripts] in agent.toml lets it",
        order.id
    );
    Err(Refused::new(Refusal::Preflight, reason))
}

/// The files of a script, in the order of [`Script::shipped`].
pub fn parts(script: &Script) -> impl Iterator<Item = Part> {
    let programs = script.programs().into_iter().cloned().map(Part::Program);
    programs.chain(script.files.iter().cloned().map(Part::Beside))
}

/// What going for the goal would change, where `verify` found the host like this.
///
/// # Errors
/// A refusal, when the host is not as the order needs it.
pub fn may(goal: &Goal, found: &Found) -> Result<Change, Refused> {
    use Standing::{Applied, NotApplied};
    let Goal { id, action, .. } = goal;
    let refuse = |reason: String| Err(Refused::new(Refusal::VersionsDiffer, reason));
    match (action, found) {
        (Action::Apply, Found::Clear(NotApplied)) => {}
        // As packages that are half-way are walked back.
        (Action::Rollback, Found::Clear(Applied) | Found::Neither(_)) => {}
        (Action::Apply, Found::Clear(Applied)) => {
            return refuse(format!("{found}: order {id} needs a host without it"));
        }
        (Action::Rollback, Found::Clear(NotApplied)) => {
            return refuse(format!("{found}: there is nothing to roll back"));
        }
        (Action::Apply, Found::Neither(_)) => return refuse(format!("{found}: order {id} cannot begin there")),
    }
    Ok(script::change(id, *action))
}

/// What was done already for a goal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Past {
    /// The script was cut off: killed, or out of time.
    Interrupted,
    /// It ended by itself, well or not.
    Ended,
    /// It was run again.
    RanAgain,
    /// Its `rollback` was run.
    WalkedBack,
}

/// What is done next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    /// Nothing: it is one of the two, or nothing more can be done.
    Stop,
    /// The same script once more.
    Again,
    /// `rollback`.
    WalkBack,
}

/// What is done about a host that was found like this.
fn next(action: Action, found: &Found, past: Past) -> Next {
    match (found, past, action) {
        (Found::Clear(_), ..) | (_, Past::WalkedBack, _) => Next::Stop,
        (Found::Neither(_), Past::Interrupted, _) => Next::Again,
        // What failed by itself would fail again.
        (Found::Neither(_), Past::Ended | Past::RanAgain, Action::Apply) => Next::WalkBack,
        (Found::Neither(_), Past::Ended | Past::RanAgain, Action::Rollback) => Next::Stop,
    }
}

impl Found {
    /// What an ended `verify` said.
    fn of(finished: &Finished) -> Self {
        if let Some(standing) = finished.exit.and_then(Standing::of_exit) {
            return Self::Clear(standing);
        }
        let how = finished.exit.map_or_else(
            || format!("took longer than {} s, or was killed", limits::SCRIPT_VERIFY.as_secs()),
            |exit| format!("exit {exit}"),
        );
        Self::Neither(with_words(how, finished))
    }

    /// Whether that is where `action` leads.
    pub fn is_after(&self, action: Action) -> bool {
        *self == Self::Clear(Standing::after(action))
    }
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Clear(Standing::Applied) => f.write_str("verify says that it is applied"),
            Self::Clear(Standing::NotApplied) => f.write_str("verify says that it is not applied"),
            Self::Neither(why) => write!(f, "verify says neither applied nor not applied ({why})"),
        }
    }
}

fn with_words(how: String, finished: &Finished) -> String {
    let words = finished.last_words();
    if words.is_empty() { how } else { format!("{how}: {words}") }
}

impl Plan {
    /// With its files there.
    pub(super) fn goal(&self, places: Places) -> Goal {
        let Places { order, files, room } = places;
        let Self { id, action, script } = self.clone();
        Goal { order, id, action, script, files, room }
    }

    /// What it changes.
    pub(super) fn change(&self) -> Change {
        script::change(&self.id, self.action)
    }
}

impl Goal {
    /// Who works on it, for people.
    pub(super) fn worker(&self) -> &'static str {
        match self.action {
            Action::Apply => "the order's script apply",
            Action::Rollback => "the order's script rollback",
        }
    }

    fn program(&self, action: Action) -> &ShippedFile {
        match action {
            Action::Apply => &self.script.apply,
            Action::Rollback => &self.script.rollback,
        }
    }

    /// Whether the host is where the goal leads already.
    ///
    /// # Errors
    /// When `verify` could not be run.
    pub(super) fn is_reached(&self, started: &mut Started<'_>) -> Result<bool, ScriptError> {
        Ok(self.look(started)?.is_after(self.action))
    }

    /// Asks `verify`.
    ///
    /// # Errors
    /// When it could not be run.
    pub(super) fn look(&self, started: &mut Started<'_>) -> Result<Found, ScriptError> {
        let deadline = Instant::now() + limits::SCRIPT_VERIFY;
        Ok(Found::of(&self.run(&self.script.verify, self.action, deadline, started)?))
    }

    /// Runs the action's script.
    ///
    /// # Errors
    /// When it could not be started.
    pub(super) fn commit(&self, deadline: Instant, started: &mut Started<'_>) -> Result<Committed, ScriptError> {
        let begun = Instant::now();
        let finished = self.run(self.program(self.action), self.action, deadline, started)?;
        Ok(Committed { finished, duration: begun.elapsed(), failed_scripts: Vec::new() })
    }

    /// Leads a host on which the script was begun to one of the two states, if that can be done; each script may take `time`.
    pub(super) fn settle(&self, past: Past, time: Duration, started: &mut Started<'_>) -> Found {
        let mut past = past;
        loop {
            let found = self.look(started).unwrap_or_else(|error| Found::Neither(error.to_string()));
            let (action, done) = match next(self.action, &found, past) {
                Next::Stop => return found,
                Next::Again => (self.action, Past::RanAgain),
                Next::WalkBack => (Action::Rollback, Past::WalkedBack),
            };
            let program = self.program(action);
            tracing::warn!(%found, script = %program.name, "the change is half-way; running a script to end that");
            match self.run(program, action, Instant::now() + time, started) {
                Ok(finished) if finished.succeeded() => {}
                Ok(finished) => tracing::warn!(script = %program.name, said = finished.last_words(), "it failed"),
                Err(error) => tracing::warn!(%error, "it could not be run"),
            }
            past = done;
        }
    }

    /// The same of one that an earlier agent had begun when it ended. A script of it that was never journaled must not go on beside ours.
    pub(super) fn recover(&self, time: Duration, started: &mut Started<'_>) -> Found {
        if let Err(error) = process::end_all_in(&self.room) {
            tracing::warn!(%error, room = %self.room.display(), "what was left running there could not be ended");
        }
        self.settle(Past::Interrupted, time, started)
    }

    /// Runs one of the scripts, which is told `action`.
    fn run(
        &self,
        program: &ShippedFile,
        action: Action,
        deadline: Instant,
        started: &mut Started<'_>,
    ) -> Result<Finished, ScriptError> {
        let folder = self.room.join("script");
        let (work, scratch) = (folder.join("work"), folder.join("tmp"));
        self.lay_out(&folder, [&work, &scratch])?;
        let busy = Instant::now() + BUSY;
        loop {
            let mut command = command(work.join(program.name.as_str()));
            let action = if action == Action::Apply { "apply" } else { "rollback" };
            command
                .current_dir(&work)
                .env("TMPDIR", &scratch)
                .env("PATCHLAB_ORDER", self.order.to_string())
                .env("PATCHLAB_ACTION", action);
            match process::run(&mut command, deadline, OUTPUT_BYTES, &mut *started) {
                Err(error) if error.kind() == io::ErrorKind::ExecutableFileBusy && Instant::now() < busy => {
                    std::thread::sleep(BUSY_STEP);
                }
                Err(source) => return Err(ScriptError::Run { name: program.name.to_string(), source }),
                Ok(finished) => return Ok(finished),
            }
        }
    }

    /// Makes the folders anew, with the files as they were verified.
    fn lay_out(&self, folder: &Path, [work, scratch]: [&Path; 2]) -> Result<(), ScriptError> {
        let disk = |path: &Path| {
            let path = path.to_owned();
            move |source| ScriptError::Disk { path, source }
        };
        match fs::remove_dir_all(folder) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(disk(folder)(error)),
            _ => {}
        }
        for path in [work, scratch] {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(disk(path))?;
        }
        let mounted = rustix::fs::statvfs(work).map_err(|error| disk(work)(error.into()))?;
        if mounted.f_flag.contains(StatVfsMountFlags::NOEXEC) {
            return Err(ScriptError::NoExec { path: self.room.clone() });
        }
        for (file, from) in self.script.shipped().zip(&self.files) {
            let bytes = verified(file, from)?;
            let is_program = self.script.programs().contains(&file);
            let to = work.join(file.name.as_str());
            let mode = if is_program { 0o700 } else { 0o600 };
            let written = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&to);
            written.and_then(|mut out| out.write_all(&bytes)).map_err(disk(&to))?;
        }
        Ok(())
    }
}

/// The bytes of a file, when they are those that the order names.
fn verified(file: &ShippedFile, path: &Path) -> Result<Vec<u8>, ScriptError> {
    let mut bytes = Vec::new();
    let read = fs::File::open(path).and_then(|from| from.take(file.size + 1).read_to_end(&mut bytes));
    read.map_err(|source| ScriptError::Disk { path: path.to_owned(), source })?;
    if Digest::of(&bytes) == file.sha256 { Ok(bytes) } else { Err(ScriptError::Altered { path: path.to_owned() }) }
}

#[cfg(test)]
mod tests;
