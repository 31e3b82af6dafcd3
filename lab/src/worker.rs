//! A worker: this program again, alone in its own namespaces, as a user without rights.
//!
//! ```text
//! parent ──(setpriv, unshare)──▶ init ──▶ worker ──▶ QEMU, QEMU, …
//!        ◀────── socket pair ───────────▶
//! ```
//!
//! The parent calls [`spawn`] with a command line of its own program; that program's first act there is [`enter`]. *Init* is
//! process 1 of a process namespace: it brings up the network and the folders, gives up its rights, starts the worker and
//! reaps what the worker leaves. When the parent or init dies, by whatever signal, the kernel ends everything in the
//! namespace: no machine can outlive its worker. The network namespace has a loopback, and a link to the parent's only
//! when that was asked for.

mod channel;
mod inside;
mod link;
mod user;

use std::{
    ffi::OsString,
    fs::{self, File},
    io::{self, Read as _, Seek as _, SeekFrom},
    os::{
        fd::OwnedFd,
        unix::{fs::PermissionsExt as _, net::UnixStream, process::CommandExt as _},
    },
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
    sync::mpsc,
    thread::JoinHandle,
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};

pub use self::{
    channel::{ChannelError, Receiver, Sender},
    inside::{Inside, enter},
    link::Network,
};
use crate::{
    gc,
    host::{Driver, LabHost},
    ledger::{Ledger, LedgerError, Process, Thing},
    machine,
    places::Places,
};

/// The lab's user, made by `lab/setup-host`.
pub const USER: &str = "patchlab-lab";

/// Numbers of the lab's user and its group.
///
/// # Errors
/// There is no such user: `lab/setup-host` did not run.
pub(crate) fn user() -> Result<(u32, u32), WorkerError> {
    user::lookup(USER)?.map(|user| (user.uid, user.gid)).ok_or(WorkerError::NoUser)
}

/// How long a worker may take to open libvirt: the first time in a data folder it probes QEMU, which takes 4 to 12 s on an idle
/// host under software emulation.
pub const OPEN_TIMEOUT: Duration = Duration::from_secs(120);

/// The file in its folder that has its standard output and standard error.
const LOG: &str = "worker.log";
/// Bytes of it that are read for its last line.
const LAST_BYTES: u64 = 4096;

/// How long the namespaces may take to be set up.
const ENTER_TIMEOUT: Duration = Duration::from_secs(20);

/// A worker could not be started or lived no longer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WorkerError {
    /// Namespaces and users are root's to give.
    #[error("a lab worker needs root to make its namespaces: run as root or with sudo")]
    NotRoot,
    /// `lab/setup-host` did not run.
    #[error("the system user {USER} does not exist: run lab/setup-host as root")]
    NoUser,
    /// It never came up.
    #[error("the worker did not come up: {reason}; its log: {log}")]
    NotUp {
        /// What it said last.
        reason: String,
        /// Its standard error.
        log: PathBuf,
    },
    /// `ip` said no.
    #[error("network link {link}: {reason}")]
    Link {
        /// Name of the link.
        link: String,
        /// What `ip` said.
        reason: String,
    },
    /// The file system or the kernel said no.
    #[error("worker: cannot {action} {subject}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        subject: String,
        /// Why it failed.
        source: io::Error,
    },
    /// The ledger.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The channel.
    #[error(transparent)]
    Channel(#[from] ChannelError),
}

fn failed<E: Into<io::Error>>(action: &'static str, subject: impl AsRef<Path>) -> impl FnOnce(E) -> WorkerError {
    let subject = subject.as_ref().display().to_string();
    move |source| WorkerError::Io { action, subject, source: source.into() }
}

/// The command line by which this program becomes a worker: its own path and the hidden subcommand.
#[derive(Debug, Clone)]
pub struct Launcher {
    /// The program; usually `std::env::current_exe()`.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<OsString>,
}

/// What init is told, as the first line on the channel.
#[derive(Debug, Serialize, Deserialize)]
struct Assignment {
    id: String,
    places: Places,
    driver: Driver,
    network: Network,
    uid: u32,
    gid: u32,
    groups: Vec<u32>,
}

/// What init answers.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Word {
    /// The namespaces exist; the parent may move its link in.
    Namespaced,
    /// The parent has.
    Proceed,
    /// The worker runs.
    Up,
    /// It does not.
    Failed(String),
}

/// A running worker, seen from the parent. Dropping it ends it and takes away all it made.
#[derive(Debug)]
pub struct Worker {
    id: String,
    folder: PathBuf,
    process: Process,
    sender: Sender,
    receiver: Option<Receiver>,
    keeper: Option<JoinHandle<io::Result<ExitStatus>>>,
    ledger: Ledger,
    link: Option<String>,
    /// Its machines at a libvirt that runs by itself, which do not end with its namespaces: where, and with what their names begin.
    lent: Option<(String, String)>,
}

/// Starts `launcher` as a worker whose machines are `host`'s. Collects first what dead workers left behind.
pub fn spawn(host: &LabHost, places: &Places, launcher: &Launcher, network: &Network) -> Result<Worker, WorkerError> {
    let places = &host.places(places);
    if !rustix::process::geteuid().is_root() {
        return Err(WorkerError::NotRoot);
    }
    let user = user::lookup(USER)?.ok_or(WorkerError::NoUser)?;
    for left in gc::collect(places, gc::Mode::Collect)? {
        if let Some(why) = left.failure {
            tracing::warn!(what = left.what, why, "of a dead worker: left for `lab gc`");
        }
    }
    let ledger = Ledger::open(places)?;
    let id = new_id()?;
    let folder = places.work.join(&id);
    ledger.begin(&id)?;
    ledger.creating(&id, Thing::Folder { path: folder.clone() })?;
    let driver = host.libvirt.driver(&id);
    let lent = match &driver {
        Driver::Embedded => None,
        Driver::Foreign { uri, prefix } => Some((uri.clone(), prefix.clone())),
    };
    if let Some((uri, prefix)) = lent.clone() {
        ledger.creating(&id, Thing::Machines { uri, prefix })?;
    }
    make_folder(places, &folder, &user)?;

    let log = folder.join(LOG);
    let (ours, theirs) = UnixStream::pair().map_err(failed("make", "a socket pair"))?;
    let (pid, keeper) = keep(command(launcher, theirs, &log)?)?;
    let process = Process::of(pid).map_err(failed("identify", "the worker"))?;
    ledger.creating(&id, Thing::Process { process: process.clone() })?;
    let (sender, receiver) = channel::pair(ours)?;
    let mut worker = Worker {
        id,
        folder,
        process,
        sender,
        receiver: Some(receiver),
        keeper: Some(keeper),
        ledger,
        link: None,
        lent,
    };
    let assignment = Assignment {
        id: worker.id.clone(),
        places: Places { work: worker.folder.clone(), ..places.clone() },
        driver,
        network: network.clone(),
        uid: user.uid,
        gid: user.gid,
        groups: user.groups,
    };
    worker.bring_up(&assignment, &log)?;
    Ok(worker)
}

impl Worker {
    /// Its name, unique on this host.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The folder it writes to, as the parent sees it; gone when the worker is dropped.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The process that holds its namespaces.
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// The way to it; may be cloned.
    pub fn sender(&self) -> Sender {
        self.sender.clone()
    }

    /// What comes from it; `None` when it was taken before.
    pub fn take_receiver(&mut self) -> Option<Receiver> {
        self.receiver.take()
    }

    /// The last line that it wrote, for who asks why it is gone; of its log no more than the end is read.
    pub fn last_words(&self) -> String {
        let mut bytes = Vec::new();
        let read = |bytes: &mut Vec<u8>| -> io::Result<()> {
            let mut log = File::open(self.folder.join(LOG))?;
            let length = log.metadata()?.len();
            log.seek(SeekFrom::Start(length.saturating_sub(LAST_BYTES)))?;
            log.take(LAST_BYTES).read_to_end(bytes).map(drop)
        };
        // One that wrote nothing has no last words.
        let _ = read(&mut bytes);
        last_line(&String::from_utf8_lossy(&bytes)).to_owned()
    }

    /// Ends it at once, with all its machines, and takes away what it made.
    pub fn end(mut self) -> Result<(), WorkerError> {
        self.finish()
    }

    fn bring_up(&mut self, assignment: &Assignment, log: &Path) -> Result<(), WorkerError> {
        let not_up = |reason: String| WorkerError::NotUp {
            reason: match fs::read_to_string(log) {
                Ok(text) if !text.trim().is_empty() => format!("{reason}; it wrote: {}", last_line(&text)),
                _ => reason,
            },
            log: log.to_owned(),
        };
        self.sender.send(assignment)?;
        let pid = self.process.pid;
        let Some(receiver) = &mut self.receiver else { return Ok(()) };
        receiver.set_timeout(Some(ENTER_TIMEOUT))?;
        loop {
            match receiver.receive::<Word>() {
                Ok(Some(Word::Namespaced)) => {
                    if let Network::Joined { link, outside, .. } = &assignment.network {
                        // Before it is entered as ours: what is ours is taken away again.
                        link::refuse_taken(link)?;
                        self.ledger.creating(&self.id, Thing::Veth { name: link.clone() })?;
                        self.link = Some(link.clone());
                        link::join(link, outside, pid)?;
                    }
                    self.sender.send(&Word::Proceed)?;
                }
                Ok(Some(Word::Up)) => return Ok(receiver.set_timeout(None)?),
                Ok(Some(Word::Failed(reason))) => return Err(not_up(reason)),
                Ok(Some(Word::Proceed)) => return Err(not_up("it spoke out of turn".into())),
                Ok(None) => return Err(not_up("it ended".into())),
                Err(error) => return Err(not_up(error.to_string())),
            }
        }
    }

    fn finish(&mut self) -> Result<(), WorkerError> {
        let Some(keeper) = self.keeper.take() else { return Ok(()) };
        if let Some(pid) = i32::try_from(self.process.pid).ok().and_then(Pid::from_raw)
            && !keeper.is_finished()
        {
            // Already gone is as good.
            let _ = kill_process(pid, Signal::KILL);
        }
        let _ = keeper.join();
        // The far end of the link went with the namespace, and ours with it; unless it was never moved.
        let link = self.link.take().map_or(Ok(()), |name| {
            gc::remove(&Thing::Veth { name }).map_err(failed("remove the link of", &self.folder))
        });
        let machines = self.lent.take().map_or(Ok(()), |(uri, prefix)| {
            let ended = machine::end_all(&uri, &prefix).map_err(io::Error::other);
            ended.map_err(failed("end the machines of", &self.folder))
        });
        // One that stays is no reason for another to stay.
        link.and(machines).and(remove_folder(&self.folder))?;
        Ok(self.ledger.end(&self.id)?)
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        if let Err(error) = self.finish() {
            tracing::warn!(worker = %self.id, %error, "left for `lab gc`");
        }
    }
}

/// The kernel ends the namespace's processes asynchronously: a file may still appear while the folder is emptied.
fn remove_folder(folder: &Path) -> Result<(), WorkerError> {
    let deadline = std::time::Instant::now() + Duration::from_secs(5);
    loop {
        match fs::remove_dir_all(folder) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) if std::time::Instant::now() > deadline => return Err(failed("remove", folder)(error)),
            Err(_) => std::thread::sleep(Duration::from_millis(10)),
        }
    }
}

fn last_line(text: &str) -> &str {
    text.trim_end().lines().last().unwrap_or_default()
}

fn new_id() -> Result<String, WorkerError> {
    let mut bytes = [0; 4];
    getrandom::fill(&mut bytes).map_err(|error| failed("draw", "random bytes")(io::Error::other(error.to_string())))?;
    Ok(format!("w-{}", hex::encode(bytes)))
}

fn make_folder(places: &Places, folder: &Path, user: &user::User) -> Result<(), WorkerError> {
    for path in [&places.baselines, &places.artifacts, &places.kept, &places.cache, &folder.to_owned()] {
        fs::create_dir_all(path).map_err(failed("create", path))?;
    }
    for path in [&places.cache, folder] {
        std::os::unix::fs::chown(path, Some(user.uid), Some(user.gid)).map_err(failed("hand over", path))?;
    }
    fs::set_permissions(folder, fs::Permissions::from_mode(0o750)).map_err(failed("restrict", folder))
}

fn command(launcher: &Launcher, channel: UnixStream, log: &Path) -> Result<Command, WorkerError> {
    let output = File::create(log).map_err(failed("create", log))?;
    let mut command = Command::new("setpriv");
    command
        .args(["--pdeathsig", "KILL", "unshare", "--net", "--ipc", "--mount", "--pid", "--fork", "--kill-child=KILL"])
        .args(["--mount-proc", "--"])
        .arg(&launcher.program)
        .args(&launcher.arguments)
        .env(inside::STAGE, inside::STAGE_INIT)
        .current_dir("/")
        // What a terminal's Ctrl-C means for a worker is for its parent to say, who takes away what it made.
        .process_group(0)
        .stdin(OwnedFd::from(channel))
        .stdout(output.try_clone().map_err(failed("open", log))?)
        .stderr(Stdio::from(output));
    Ok(command)
}

/// Starts the command from a thread that then waits for it: the death signal follows the thread that forked, so that thread
/// must live as long as the worker.
fn keep(mut command: Command) -> Result<(u32, JoinHandle<io::Result<ExitStatus>>), WorkerError> {
    let (tell, told) = mpsc::channel();
    let keeper = std::thread::Builder::new()
        .name("worker-keeper".into())
        .spawn(move || {
            let spawned = command.spawn();
            // Closes our copy of the worker's end of the channel.
            drop(command);
            match spawned {
                Ok(mut child) => {
                    let _ = tell.send(Ok(child.id()));
                    child.wait()
                }
                Err(error) => {
                    let copy = io::Error::new(error.kind(), error.to_string());
                    let _ = tell.send(Err(copy));
                    Err(error)
                }
            }
        })
        .map_err(failed("start", "a thread"))?;
    let pid = told
        .recv()
        .map_err(|_| failed("start", "setpriv")(io::Error::other("its thread ended")))?
        .map_err(failed("start", "setpriv (package util-linux)"))?;
    Ok((pid, keeper))
}
