//! The operator on the host itself: root may have an order rolled back from what was staged, with nothing from the network and
//! without an activation, since root could do worse without asking. A socket in the state folder, which only root enters; the kernel
//! says who asks.
//!
//! A connection carries one request, a line of JSON ([`Request`]), and answers with lines ([`Said`]) until the run has ended. Who
//! hangs up leaves the run to go on.

use std::{
    fs,
    io::{self, BufRead as _, BufReader, Write as _},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use patchlab_protocol::{
    Digest, Refusal,
    document::{Order, RunState},
};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _},
    net::{UnixListener, UnixStream, unix::UCred},
};

use crate::{
    record::{Record, Undecided},
    run::now,
    staged::Staged,
    state::{Event, State},
};

/// The socket's name in the state folder.
pub const SOCKET: &str = "operator.sock";
/// Longest request, bytes.
const REQUEST_BYTES: u64 = 1024;
/// How long a request is waited for.
const REQUEST: Duration = Duration::from_secs(10);
/// Longest answer line that a client reads, bytes.
const LINE_BYTES: u64 = 64 * 1024;
/// `loginuid` of a process that nobody logged in for, proc(5).
const NOBODY_LOGGED_IN: u32 = u32::MAX;

/// What is asked for.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub enum Request {
    /// An order is to be rolled back: its id, or its digest, or how only that begins.
    Rollback(String),
}

/// What is answered, a line each.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub enum Said {
    /// The run is there.
    Moved {
        /// Where it is.
        state: RunState,
        /// What it is doing.
        phase: String,
    },
    /// It has ended: nothing follows.
    Ended {
        /// How.
        state: RunState,
        /// Why it was refused.
        refusal: Option<Refusal>,
        /// The sentence for people.
        reason: String,
    },
    /// It was not begun: nothing follows.
    No(String),
}

/// Why nothing is begun.
#[derive(Debug, thiserror::Error)]
enum NotBegun {
    #[error("only root may do that, not uid {0}")]
    NotRoot(u32),
    #[error("who asks cannot be told: {0}")]
    Nobody(io::Error),
    #[error("the request cannot be read: {0}")]
    Request(String),
    #[error("{found} orders of this host are {asked:?} or begin so: patchlab-agent status lists them")]
    Which { found: usize, asked: String },
    #[error("order {0} was not applied here: there is nothing to roll back")]
    NotApplied(String),
    #[error(
        "the way back of order {0} is not on this host: it comes with patchlab order rollback, or ahead with patchlab order \
         prefetch"
    )]
    NotStaged(String),
    #[error(transparent)]
    Journal(#[from] crate::journal::JournalError),
}

/// The operator's door to an agent.
pub struct Door {
    listener: UnixListener,
    record: Arc<Record>,
    staged: Staged,
}

impl Door {
    /// Opens it in a state folder that this process alone uses: a socket that lies there is left from an earlier agent.
    ///
    /// # Errors
    /// When the socket cannot be made.
    pub fn open(folder: &Path, record: Arc<Record>, staged: Staged) -> io::Result<Self> {
        let path = folder.join(SOCKET);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(&path)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
        Ok(Self { listener, record, staged })
    }

    /// Answers for ever. One who says nothing holds up nobody else.
    pub async fn answer(&self) {
        loop {
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    let (record, staged) = (Arc::clone(&self.record), self.staged.clone());
                    tokio::spawn(async move {
                        if let Err(error) = serve(stream, &record, &staged).await {
                            tracing::debug!(%error, "the operator hung up");
                        }
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "the operator's socket");
                    tokio::time::sleep(REQUEST).await;
                }
            }
        }
    }
}

async fn say(stream: &mut UnixStream, said: &Said) -> io::Result<()> {
    let mut line = serde_json::to_vec(said)?;
    line.push(b'\n');
    stream.write_all(&line).await
}

async fn serve(mut stream: UnixStream, record: &Record, staged: &Staged) -> io::Result<()> {
    let begun = match asked(&mut stream).await {
        Ok((operator, Request::Rollback(order))) => begin(record, staged, &order, operator),
        Err(error) => Err(error),
    };
    let (order, run) = match begun {
        Ok(begun) => begun,
        Err(error) => {
            tracing::warn!(%error, "the host's operator was turned away");
            return say(&mut stream, &Said::No(error.to_string())).await;
        }
    };
    let mut changes = record.subscribe();
    let mut last = None;
    loop {
        changes.borrow_and_update();
        let Some(row) = record.read(|state| state.run(order, run).cloned()) else { return Ok(()) };
        if row.state.is_final() {
            let ended = Said::Ended { state: row.state, refusal: row.refusal, reason: row.error };
            return say(&mut stream, &ended).await;
        }
        let here = (row.state, row.phase.clone());
        if last.as_ref() != Some(&here) {
            say(&mut stream, &Said::Moved { state: row.state, phase: row.phase }).await?;
            last = Some(here);
        }
        drop(changes.changed().await);
    }
}

/// Who asks, and for what.
async fn asked(stream: &mut UnixStream) -> Result<(u32, Request), NotBegun> {
    let who = stream.peer_cred().map_err(NotBegun::Nobody)?;
    if who.uid() != 0 {
        return Err(NotBegun::NotRoot(who.uid()));
    }
    let mut line = String::new();
    let mut reader = tokio::io::BufReader::new(stream.take(REQUEST_BYTES));
    match tokio::time::timeout(REQUEST, reader.read_line(&mut line)).await {
        Ok(Ok(_)) => {}
        Ok(Err(error)) => return Err(NotBegun::Request(error.to_string())),
        Err(_) => return Err(NotBegun::Request("nothing came".into())),
    }
    let request = serde_json::from_str(&line).map_err(|error| NotBegun::Request(error.to_string()))?;
    Ok((person(&who), request))
}

/// The person behind root, where somebody logged in and became root.
fn person(who: &UCred) -> u32 {
    let login = who.pid().and_then(|pid| fs::read_to_string(format!("/proc/{pid}/loginuid")).ok());
    let login = login.and_then(|text| text.trim().parse().ok());
    login.filter(|uid| *uid != NOBODY_LOGGED_IN).unwrap_or(who.uid())
}

/// Enters a run that rolls an order back; its row and its index.
fn begin(record: &Record, staged: &Staged, asked: &str, operator: u32) -> Result<(u32, u32), NotBegun> {
    let rows: Vec<(u32, Digest)> =
        record.read(|state| state.orders.iter().map(|(index, row)| (*index, row.columns.digest)).collect());
    let id = |digest: &Digest| staged.order(digest)?.statement::<Order>().ok().map(|order| order.predicate.id);
    let is_meant = |digest: &Digest| {
        (asked.len() >= 8 && digest.to_string().starts_with(asked)) || id(digest).is_some_and(|id| id == asked)
    };
    let mut meant = rows.iter().filter(|(_, digest)| is_meant(digest));
    let (Some((order, digest)), None) = (meant.next(), meant.next()) else {
        let found = rows.iter().filter(|(_, digest)| is_meant(digest)).count();
        return Err(NotBegun::Which { found, asked: asked.to_owned() });
    };
    if staged.order(digest).is_none() {
        return Err(NotBegun::NotStaged(digest.short()));
    }
    let mut run = 0;
    let entered = record.decide(|state: &State| {
        if !state.applied.contains(digest) {
            return Err(NotBegun::NotApplied(digest.short()));
        }
        run = state.orders.get(order).map_or(0, crate::state::Order::next_own_run);
        Ok(Event::OwnRun { order: *order, run, operator, at: now() })
    });
    match entered {
        Ok(()) => {
            let digest = digest.short();
            tracing::warn!(order, run, %digest, operator, "the host's operator has an order rolled back");
            Ok((*order, run))
        }
        Err(Undecided::No(error)) => Err(error),
        Err(Undecided::Journal(error)) => Err(error.into()),
    }
}

/// The agent could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// No agent answers.
    #[error("{path}: {source}; the agent must run for that, and you must be root")]
    Socket {
        /// The socket.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// What it answers cannot be read.
    #[error("the agent's answer cannot be read: {0}")]
    Answer(String),
    /// It hung up.
    #[error("the agent ended meanwhile; the one that starts next settles the run: patchlab-agent status shows it")]
    HungUp,
}

/// Asks the agent of a state folder, and passes on what it says up to the last.
///
/// # Errors
/// When it does not answer as it should.
pub fn ask(folder: &Path, request: &Request, mut said: impl FnMut(&Said)) -> Result<Said, AskError> {
    let path = folder.join(SOCKET);
    let socket = |source| AskError::Socket { path: path.clone(), source };
    let mut stream = std::os::unix::net::UnixStream::connect(&path).map_err(socket)?;
    let line = serde_json::to_string(request).map_err(|error| AskError::Answer(error.to_string()))?;
    stream.write_all(format!("{line}\n").as_bytes()).map_err(socket)?;
    let mut reader = BufReader::new(stream);
    loop {
        let mut line = String::new();
        io::Read::take(&mut reader, LINE_BYTES).read_line(&mut line).map_err(socket)?;
        if line.is_empty() {
            return Err(AskError::HungUp);
        }
        let heard: Said = serde_json::from_str(&line).map_err(|error| AskError::Answer(error.to_string()))?;
        match heard {
            Said::Moved { .. } => said(&heard),
            last => return Ok(last),
        }
    }
}
