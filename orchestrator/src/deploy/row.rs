//! An order on a host, by PATCHLAB-MIB: put the row there, start a run, watch it, read what came of it.
//!
//! Everything here may be repeated: a row that is there with the same documents is left alone, a run index that was used starts
//! nothing. So the executor's answer to any doubt, its own restart included, is to do it again.

use std::time::Duration;

use jiff::Timestamp;
use patchlab_protocol::{
    Digest, Item, ItemState, Refusal,
    document::{Preparation, RunState},
    limits::settle,
    mib::{agent, item, order, run},
    time,
};
use serde::{Deserialize, Serialize};

use super::{
    manager::{Manager, ManagerError, Oid, Value},
    room,
};
use crate::window::Window;

/// RowStatus createAndGo (RFC 2579).
const CREATE_AND_GO: i64 = 4;
/// What an agent answers that has no room for a row more (RFC 3416).
const NO_ROOM: &str = "resourceUnavailable";
/// RowStatus destroy.
const DESTROY: i64 = 6;
/// StorageType nonVolatile.
const NON_VOLATILE: i64 = 3;
/// How much longer than its lifetime, and than its host may take to finish what is half-way then, a run is waited for before it is lost:
/// processes that must be killed, its last inform, a reboot, a slow path.
const GRACE: Duration = Duration::from_secs(60);
/// How long a host is tried before nothing has begun on it.
const REACH: Duration = Duration::from_secs(120);
/// Longest time between two looks at a run; an inform brings the next look forward.
pub(super) const POLL: Duration = Duration::from_secs(1);
/// Longest time between two looks at a run that waits for its window, and is known to.
const WAITING: Duration = Duration::from_secs(300);
/// Most package items read of one run.
const ITEMS: usize = patchlab_protocol::limits::FILES_PER_ORDER;
/// Most old results looked through for a gap in a host's chain.
const RESULTS: usize = 1_000;

/// An order row: the documents a host is told to fetch, and from where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// Its index in the host's order table.
    pub index: u32,
    /// The order.
    pub order: Digest,
    /// The release.
    pub release: Option<Digest>,
    /// The approval.
    pub approval: Option<Digest>,
    /// The activation.
    pub activation: Option<Digest>,
    /// Base URI of documents and files.
    pub uri: String,
    /// Longest duration of a run.
    pub lifetime: Duration,
    /// When an apply may begin, at most as long as the activation says; none leaves that to the activation.
    pub window: Option<Window>,
    /// What a run does that is started; none for what the activation says.
    pub preparation: Option<Preparation>,
}

/// What an agent says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentScalars {
    /// Its version.
    pub version: String,
    /// The enrolled name it has.
    pub host: String,
    /// Its class.
    pub class: String,
    /// The root document it pins.
    pub root: Option<Digest>,
    /// Its newest signed result.
    pub result_head: Option<Digest>,
}

/// How far a run is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// Its state.
    pub state: RunState,
    /// 0 to 100.
    pub percent: u32,
    /// What it is doing.
    pub phase: String,
}

/// Everything a host says of a run that has ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunReport {
    /// How it ended.
    pub state: RunState,
    /// Why the host said no.
    pub refusal: Option<Refusal>,
    /// That, for people.
    pub reason: String,
    /// Last error.
    pub error: String,
    /// Exit status of the package manager; -1 when it was not started.
    pub exit_code: i64,
    /// Whether the host asks for a reboot.
    pub reboot_needed: bool,
    /// Milliseconds in all.
    pub duration_ms: u64,
    /// Milliseconds of the package manager alone.
    pub transaction_ms: u64,
    /// Package list before.
    pub before: Option<Digest>,
    /// Package list after.
    pub after: Option<Digest>,
    /// One a package.
    pub items: Vec<Item>,
    /// The signed statement, exactly as it came; absent when the host gave none.
    pub signed: Option<Signed>,
}

/// A signed result as it came.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signed {
    /// JSON of [`patchlab_protocol::document::RunResult`].
    pub statement: Vec<u8>,
    /// Ed25519 over [`patchlab_protocol::document::RunResult::signed_bytes`].
    pub signature: Vec<u8>,
}

/// A run could not be followed to its end.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DeployError {
    /// The way to the host.
    #[error(transparent)]
    Manager(#[from] ManagerError),
    /// The row index holds another order.
    #[error("row {index} of the host's order table holds another order ({found}): it was told by another manager")]
    RowTaken {
        /// The index.
        index: u32,
        /// The order there.
        found: String,
    },
    /// No row can be made, and none can go.
    #[error(
        "the host's table of orders is full, and each of its orders is under way or has a result that this server has not read: `patchlab host \
         show` says when it last answered; try again when its runs have ended"
    )]
    Full,
    /// The agent is not the one enrolled, or pins another root document.
    #[error("the agent is not the one that was enrolled: {0}")]
    NotTheHost(String),
    /// The agent accepted the start, but there is no run.
    #[error("the host took the start of run {run} without an error, but has no such run")]
    NoRun {
        /// The run index.
        run: u32,
    },
    /// The agent's table says something that is not in the MIB.
    #[error("{what} is {found}: the agent and this server do not speak the same PATCHLAB-MIB")]
    Nonsense {
        /// Which object.
        what: &'static str,
        /// What stands there.
        found: String,
    },
    /// Nobody wants it any more.
    #[error("cancelled before the host was told")]
    Cancelled,
    /// It went back to its snapshot.
    #[error("the host was reverted to its snapshot while this was under way")]
    Reverted,
    /// Silence until long after the run's lifetime.
    #[error("the host was silent until {waited_s} s after the run began: it is lost, and counts as failed")]
    Lost {
        /// Seconds.
        waited_s: u64,
    },
}

/// Somebody who wants to know how a run goes, and who may know that it is worth a look.
pub trait Observer: Send {
    /// The run is about to be told to start, or is found started.
    fn started(&mut self) {}
    /// Whether it is to end before it changes anything.
    fn is_cancelled(&mut self) -> bool {
        false
    }
    /// The newest result of the host that is in the store; what is newer must not be lost.
    fn known(&mut self) -> Option<Digest> {
        None
    }
    /// The host goes on all the same: it has begun.
    fn goes_on(&mut self) {}
    /// It moved.
    fn moved(&mut self, progress: &Progress) {
        let _ = progress;
    }
    /// It answered, moved or not.
    fn heard(&mut self) {}
    /// Comes back when the host hinted at news; never, when nobody listens for informs.
    fn hint(&mut self) -> std::pin::Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(std::future::pending())
    }
}

/// Nobody.
#[derive(Debug, Default)]
pub struct Unobserved;

impl Observer for Unobserved {}

/// Reads what an agent says of itself.
pub async fn scalars(manager: &dyn Manager) -> Result<AgentScalars, DeployError> {
    let columns = [agent::VERSION, agent::HOST, agent::CLASS, agent::ROOT_DIGEST, agent::RESULT_HEAD];
    let oids = columns.map(|column| Oid::of(agent::GROUP, column, &[0]));
    let found = manager.get(&oids).await?;
    let get = |n: usize| found.get(n).and_then(Option::as_ref);
    Ok(AgentScalars {
        version: string(get(0)),
        host: string(get(1)),
        class: string(get(2)),
        root: digest(get(3)),
        result_head: digest(get(4)),
    })
}

/// Tells an agent the newest audit head.
pub async fn put_audit_head(manager: &dyn Manager, head: &Digest) -> Result<(), DeployError> {
    let oid = Oid::of(agent::GROUP, agent::AUDIT_HEAD, &[0]);
    Ok(manager.set(&[(oid, Value::Octets(head.as_bytes().to_vec()))]).await?)
}

/// Puts an order row on a host: made in one SET when absent, given its new documents when there, left alone when it is as it
/// should be.
pub async fn push(manager: &dyn Manager, row: &Row) -> Result<(), DeployError> {
    let at = |column| Oid::of(order::ENTRY, column, &[row.index]);
    let octets = |digest: Option<&Digest>| Value::Octets(digest.map(|d| d.as_bytes().to_vec()).unwrap_or_default());
    let moment = |at: Option<Timestamp>| Value::Octets(time::optional(at));
    let wanted = [
        (at(order::RELEASE), octets(row.release.as_ref())),
        (at(order::APPROVAL), octets(row.approval.as_ref())),
        (at(order::ACTIVATION), octets(row.activation.as_ref())),
        (at(order::URI), Value::Octets(row.uri.clone().into_bytes())),
        (at(order::NOT_BEFORE), moment(row.window.map(|window| window.opens))),
        (at(order::NOT_AFTER), moment(row.window.map(|window| window.closes))),
        (at(order::ACTION), Value::Integer(row.preparation.map_or(0, |preparation| preparation as i64))),
    ];
    // What an agent does not have is as good as that.
    let is_nothing = |value: &Value| matches!(value, Value::Integer(0)) || value.octets() == Some(&[]);
    let oids: Vec<Oid> = std::iter::once(at(order::DIGEST)).chain(wanted.iter().map(|(oid, _)| oid.clone())).collect();
    let mut there = manager.get(&oids).await?.into_iter();
    match there.next().flatten() {
        Some(Value::Octets(found)) if found == row.order.as_bytes() => {
            let is_so = |found: Option<Value>, wanted: &Value| {
                found.map_or_else(|| is_nothing(wanted), |found| found == *wanted)
            };
            let found = there.chain(std::iter::repeat(None));
            let different = found.zip(wanted).filter(|(found, (_, wanted))| !is_so(found.clone(), wanted));
            let different: Vec<(Oid, Value)> = different.map(|(_, wanted)| wanted).collect();
            return if different.is_empty() { Ok(()) } else { Ok(manager.set(&different).await?) };
        }
        Some(other) => {
            let found = other.octets().and_then(Digest::from_bytes).map_or("not a digest".into(), |d| d.short());
            return Err(DeployError::RowTaken { index: row.index, found });
        }
        None => {}
    }
    let mut values = vec![
        (at(order::ROW_STATUS), Value::Integer(CREATE_AND_GO)),
        (at(order::STORAGE_TYPE), Value::Integer(NON_VOLATILE)),
        (at(order::DIGEST), octets(Some(&row.order))),
    ];
    values.extend(wanted.into_iter().filter(|(_, value)| !is_nothing(value)));
    values.push((at(order::LIFETIME), Value::Unsigned(row.lifetime.as_secs().clamp(1, 86_400))));
    match manager.set(&values).await {
        Ok(()) => Ok(()),
        // An answer that was lost on its way makes the resent SET find its own row.
        Err(error @ ManagerError::Refused { .. }) => match manager.get(&[at(order::DIGEST)]).await?.pop().flatten() {
            Some(Value::Octets(found)) if found == row.order.as_bytes() => Ok(()),
            _ => Err(error.into()),
        },
        Err(error) => Err(error.into()),
    }
}

/// Takes an order row away.
pub async fn destroy(manager: &dyn Manager, index: u32) -> Result<(), DeployError> {
    Ok(manager.set(&[(Oid::of(order::ENTRY, order::ROW_STATUS, &[index]), Value::Integer(DESTROY))]).await?)
}

/// Starts a run. Its index is the manager's: one that was used starts nothing and is no error.
pub async fn start(manager: &dyn Manager, row: u32, run: u32) -> Result<(), DeployError> {
    Ok(manager.set(&[(Oid::of(order::ENTRY, order::START, &[row]), Value::Unsigned(u64::from(run)))]).await?)
}

/// Stops a run that has not begun to change packages. Needs no signature.
pub async fn abort(manager: &dyn Manager, row: u32, run: u32) -> Result<(), DeployError> {
    Ok(manager.set(&[(Oid::of(run::ENTRY, run::ABORT, &[row, run]), Value::Unsigned(1))]).await?)
}

/// How far a run is; `None` when the host has no such run.
pub async fn progress(manager: &dyn Manager, row: u32, run: u32) -> Result<Option<Progress>, DeployError> {
    let oids = [run::STATE, run::PERCENT, run::PHASE].map(|column| Oid::of(run::ENTRY, column, &[row, run]));
    let found = manager.get(&oids).await?;
    let Some(state) = found.first().cloned().flatten() else { return Ok(None) };
    let number = state.number().unwrap_or(0);
    Ok(Some(Progress {
        state: RunState::from_number(number)
            .ok_or(DeployError::Nonsense { what: "plRunState", found: number.to_string() })?,
        percent: found.get(1).and_then(Option::as_ref).and_then(Value::number).map_or(0, |n| n.clamp(0, 100) as u32),
        phase: string(found.get(2).and_then(Option::as_ref)),
    }))
}

/// Everything a host says of a run.
pub async fn report(manager: &dyn Manager, row: u32, run: u32) -> Result<RunReport, DeployError> {
    let columns = [
        run::STATE,
        run::REFUSAL,
        run::ERROR,
        run::EXIT_CODE,
        run::REBOOT_NEEDED,
        run::DURATION,
        run::TRANSACTION_DURATION,
        run::DIGEST_BEFORE,
        run::DIGEST_AFTER,
    ];
    let mut oids: Vec<Oid> = columns.map(|column| Oid::of(run::ENTRY, column, &[row, run])).to_vec();
    oids.push(Oid::of(order::ENTRY, order::REFUSAL_REASON, &[row]));
    let found = manager.get(&oids).await?;
    let get = |n: usize| found.get(n).and_then(Option::as_ref);
    let count = |n: usize| get(n).and_then(Value::number);
    let number = count(0).ok_or(DeployError::NoRun { run })?;
    let state =
        RunState::from_number(number).ok_or(DeployError::Nonsense { what: "plRunState", found: number.to_string() })?;
    let refusal = Refusal::from_number(count(1).unwrap_or(0));
    Ok(RunReport {
        state,
        refusal,
        reason: if refusal.is_some() { string(get(9)) } else { String::new() },
        error: string(get(2)),
        exit_code: count(3).unwrap_or(-1),
        reboot_needed: count(4) == Some(1),
        duration_ms: count(5).and_then(|n| u64::try_from(n).ok()).unwrap_or(0),
        transaction_ms: count(6).and_then(|n| u64::try_from(n).ok()).unwrap_or(0),
        before: digest(get(7)),
        after: digest(get(8)),
        items: items(manager, row, run).await?,
        signed: signed(manager, row, run).await?,
    })
}

/// The signed result of a run: in a request of its own, since it fills one.
pub async fn signed(manager: &dyn Manager, row: u32, run: u32) -> Result<Option<Signed>, DeployError> {
    let oids = [run::RESULT, run::RESULT_SIGNATURE].map(|column| Oid::of(run::ENTRY, column, &[row, run]));
    let mut found =
        manager.get(&oids).await?.into_iter().map(|value| value.and_then(|v| v.octets().map(<[u8]>::to_vec)));
    Ok(match (found.next().flatten(), found.next().flatten()) {
        (Some(statement), Some(signature)) if !statement.is_empty() => Some(Signed { statement, signature }),
        _ => None,
    })
}

/// Every signed result that the host still has, of any order: for a gap in its chain.
pub async fn results(manager: &dyn Manager) -> Result<Vec<Signed>, DeployError> {
    let mut all = Vec::new();
    let mut at = Oid(run::ENTRY.iter().copied().chain([run::STATE]).collect());
    while let Some((oid, _)) = manager.next(&at).await? {
        let Some(&[row, run]) = oid.index_in(run::ENTRY, run::STATE) else { break };
        // An agent that does not move forward would keep us here for ever.
        if oid <= at || all.len() >= RESULTS {
            break;
        }
        all.extend(signed(manager, row, run).await?);
        at = oid;
    }
    Ok(all)
}

/// The packages of a run.
pub async fn items(manager: &dyn Manager, row: u32, run: u32) -> Result<Vec<Item>, DeployError> {
    let mut all = Vec::new();
    let mut at = Oid::of(item::ENTRY, item::STATE, &[row, run]);
    while let Some((oid, value)) = manager.next(&at).await? {
        let Some(index @ &[r, n, _]) = oid.index_in(item::ENTRY, item::STATE) else { break };
        if (r, n) != (row, run) || oid <= at || all.len() >= ITEMS {
            break;
        }
        let columns = [item::NAME, item::ARCH, item::FROM, item::TO];
        let texts = manager.get(&columns.map(|column| Oid::of(item::ENTRY, column, index))).await?;
        let text = |n: usize| string(texts.get(n).and_then(Option::as_ref));
        let number = value.number().unwrap_or(0);
        let state = ItemState::from_number(number)
            .ok_or(DeployError::Nonsense { what: "plItemState", found: number.to_string() })?;
        all.push(Item { name: text(0), arch: text(1), from: text(2), to: text(3), state });
        at = oid;
    }
    Ok(all)
}

/// Pushes an order row, starts a run and follows it to its end. May be repeated with the same run index: it then follows the
/// run that is there. A host that is silent for a while is asked again until the run's lifetime and more has passed, counted
/// anew as long as the run waits for its window or for a reboot; and one that has a window, until long after that.
///
/// A run that is cancelled is aborted at its host, unless that has begun to change itself.
pub async fn push_and_run(
    manager: &dyn Manager,
    row: &Row,
    run: u32,
    observer: &mut dyn Observer,
) -> Result<RunReport, DeployError> {
    let began = tokio::time::Instant::now();
    let patience = row.lifetime + settle(row.lifetime) + GRACE;
    let longest = || row.window.map_or(Duration::ZERO, |window| left(window.closes)) + patience;
    let reach = reach(row);
    let mut until = began + longest();
    loop {
        match begin(manager, row, run, observer).await {
            Ok(()) => break,
            // A host that is restarting is no failure yet.
            Err(DeployError::Manager(error)) if error.is_passing() && began.elapsed() < reach => {
                let _ = tokio::time::timeout(POLL, observer.hint()).await;
            }
            Err(error) => return Err(error),
        }
    }
    observer.started();
    let mut last: Option<Progress> = None;
    let mut asked_to_end = false;
    loop {
        if !asked_to_end && observer.is_cancelled() {
            asked_to_end = end(manager, row.index, run, observer).await?;
        }
        let looked = match progress(manager, row.index, run).await {
            Ok(found) => found,
            Err(DeployError::Manager(error)) if error.is_passing() => {
                tracing::debug!(%error, "polling");
                None
            }
            Err(error) => return Err(error),
        };
        if let Some(found) = looked {
            observer.heard();
            if last.as_ref() != Some(&found) {
                observer.moved(&found);
            }
            // What it waits for its window is not part of its lifetime, and ends with the activation; nor is the time in
            // which users may end their work, after which the lifetime is counted anew, as it is for a way back.
            let turned =
                found.state == RunState::RollingBack && last.as_ref().is_some_and(|last| last.state != found.state);
            if matches!(found.state, RunState::WaitingWindow | RunState::Rebooting) || turned {
                until = tokio::time::Instant::now() + longest();
            }
            if found.state.is_final() {
                match report(manager, row.index, run).await {
                    Ok(report) => return Ok(report),
                    Err(DeployError::Manager(error)) if error.is_passing() => {}
                    Err(error) => return Err(error),
                }
            }
            last = Some(found);
        }
        let now = tokio::time::Instant::now();
        if now >= until {
            return Err(match last {
                Some(_) => DeployError::Lost { waited_s: (now - began).as_secs() },
                None => DeployError::NoRun { run },
            });
        }
        let _ = tokio::time::timeout_at((now + pause(row, last.as_ref())).min(until), observer.hint()).await;
    }
}

/// How long a host is tried before nothing has begun on it: as long as its window is open, if it has one.
pub(super) fn reach(row: &Row) -> Duration {
    REACH.max(row.window.map_or(Duration::ZERO, |window| left(window.closes)))
}

/// How long until a moment; nothing when it was.
fn left(at: Timestamp) -> Duration {
    Duration::try_from(Timestamp::now().duration_until(at)).unwrap_or_default()
}

/// How long until the next look at a run. One that waits for its window needs none before that opens, but might have been ended there.
fn pause(row: &Row, last: Option<&Progress>) -> Duration {
    let waits = last.is_some_and(|last| last.state == RunState::WaitingWindow);
    let opens = row.window.filter(|_| waits).map_or(Duration::ZERO, |window| left(window.opens));
    opens.min(WAITING).max(POLL)
}

/// Puts the row there and starts the run, unless it is there.
async fn begin(manager: &dyn Manager, row: &Row, run: u32, observer: &mut dyn Observer) -> Result<(), DeployError> {
    if progress(manager, row.index, run).await?.is_none() {
        if observer.is_cancelled() {
            return Err(DeployError::Cancelled);
        }
        match push(manager, row).await {
            Err(DeployError::Manager(ManagerError::Refused { status: NO_ROOM, .. })) => {
                let gone = room::make(manager, row.index, observer.known()).await?;
                if gone == 0 {
                    return Err(DeployError::Full);
                }
                tracing::info!(row = row.index, gone, "the host's order table was full: settled rows went");
                push(manager, row).await?;
            }
            pushed => pushed?,
        }
        start(manager, row.index, run).await?;
    }
    Ok(())
}

/// Asks the host to end a run. Says whether it answered: it ends it, or says that it has begun.
async fn end(manager: &dyn Manager, row: u32, run: u32, observer: &mut dyn Observer) -> Result<bool, DeployError> {
    match abort(manager, row, run).await {
        Ok(()) => Ok(true),
        Err(DeployError::Manager(ManagerError::Refused { .. })) => {
            observer.goes_on();
            Ok(true)
        }
        Err(DeployError::Manager(error)) if error.is_passing() => Ok(false),
        Err(error) => Err(error),
    }
}

pub(super) fn string(value: Option<&Value>) -> String {
    value.and_then(Value::octets).map(|bytes| String::from_utf8_lossy(bytes).into_owned()).unwrap_or_default()
}

pub(super) fn digest(value: Option<&Value>) -> Option<Digest> {
    value.and_then(Value::octets).and_then(Digest::from_bytes)
}
