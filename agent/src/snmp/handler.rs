//! Joins the objects to the record: reads from a table made of the state, SETs as one change of it.

use std::{
    sync::{Arc, Mutex, OnceLock, PoisonError, Weak},
    time::{Instant, SystemTime},
};

use async_snmp::{
    Agent, BoxFuture, GetNextResult, GetResult, HandlerResult, MibHandler, Oid, OidTable, PreparedSet, RequestContext,
    SetCommitError, SetCommitResult, SetTestError, SetTestResult, SetUndoResult, Value, VarBind,
};
use patchlab_protocol::{Digest, mib};

use super::{
    view::{Facts, objects},
    write::{self, Write},
};
use crate::{
    packages::PackageManager,
    record::{Record, Undecided},
    run::now,
    state::Event,
};

/// How long a table is answered from before it is made anew though nothing changed: durations and uptime go on.
const FRESH: std::time::Duration = std::time::Duration::from_secs(1);

/// The tables and scalars of PATCHLAB-MIB, and `system`.
pub struct Tables {
    record: Arc<Record>,
    packages: Arc<dyn PackageManager>,
    facts: Facts,
    started: Instant,
    made: Mutex<Option<Made>>,
    inventory: Mutex<Option<(SystemTime, Digest)>>,
    pending: Mutex<Weak<Mutex<Vec<Write>>>>,
    /// The engine that answers from these tables and counts what it drops. They end together, with the process.
    engine: OnceLock<Agent>,
}

struct Made {
    version: u64,
    at: Instant,
    inventory: Option<Digest>,
    table: Arc<OidTable<Value>>,
}

impl Tables {
    /// The tables over a record; what changes in `facts` is filled in at every look.
    pub fn new(record: Arc<Record>, packages: Arc<dyn PackageManager>, facts: Facts) -> Self {
        Self {
            record,
            packages,
            facts,
            started: Instant::now(),
            made: Mutex::new(None),
            inventory: Mutex::new(None),
            pending: Mutex::new(Weak::new()),
            engine: OnceLock::new(),
        }
    }

    /// Takes the counters of SNMPv2-MIB from this engine.
    pub fn count_with(&self, engine: Agent) {
        self.engine.get_or_init(|| engine);
    }

    /// Version of the pinned root.
    pub fn pinned_version(&self) -> u32 {
        self.facts.root.version
    }

    /// Hundredths of seconds since the agent started: `sysUpTime`.
    pub fn uptime(&self) -> u32 {
        self.hundredths(Instant::now())
    }

    fn hundredths(&self, at: Instant) -> u32 {
        u32::try_from(at.saturating_duration_since(self.started).as_millis() / 10).unwrap_or(u32::MAX)
    }

    /// The objects as they are now.
    async fn table(&self) -> Arc<OidTable<Value>> {
        let inventory = self.inventory().await;
        let version = *self.record.subscribe().borrow();
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(made) = &*made
            && made.version == version
            && made.inventory == inventory
            && made.at.elapsed() < FRESH
        {
            return Arc::clone(&made.table);
        }
        let facts = Facts {
            inventory,
            uptime: self.uptime(),
            last_change: self.record.changed().map_or(0, |at| self.hundredths(at)),
            now: now(),
            parse_errors: self.engine.get().map_or(0, Agent::snmp_in_asn_parse_errs),
            silent_drops: self.engine.get().map_or(0, Agent::snmp_silent_drops),
            ..self.facts.clone()
        };
        let table = Arc::new(self.record.read(|state| objects(state, &facts)));
        *made = Some(Made { version, at: Instant::now(), inventory, table: Arc::clone(&table) });
        table
    }

    /// Digest of the package list, made anew when the package manager's database changed.
    async fn inventory(&self) -> Option<Digest> {
        let changed = std::fs::metadata(self.packages.database()).and_then(|file| file.modified()).ok()?;
        let known = *self.inventory.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((at, digest)) = known
            && at == changed
        {
            return Some(digest);
        }
        let packages = Arc::clone(&self.packages);
        let installed = tokio::task::spawn_blocking(move || packages.installed()).await.ok()?;
        let digest = installed.inspect_err(|error| tracing::warn!(%error, "no package list")).ok()?.settled.digest();
        *self.inventory.lock().unwrap_or_else(PoisonError::into_inner) = Some((changed, digest));
        Some(digest)
    }

    /// The bindings of the SET under way. The SNMP engine takes one SET at a time and holds its prepared bindings to the end, so
    /// bindings that are still held belong to this SET.
    fn pending(&self) -> Arc<Mutex<Vec<Write>>> {
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        pending.upgrade().unwrap_or_else(|| {
            let new = Arc::new(Mutex::new(Vec::new()));
            *pending = Arc::downgrade(&new);
            new
        })
    }
}

impl MibHandler for Tables {
    fn get<'a>(&'a self, _: &'a RequestContext, oid: &'a Oid) -> BoxFuture<'a, HandlerResult<GetResult>> {
        Box::pin(async move {
            Ok(match self.table().await.get(oid) {
                Some(value) => GetResult::Value(value.clone()),
                None if oid.starts_with(&Oid::from_slice(mib::OBJECTS)) => GetResult::NoSuchInstance,
                None => GetResult::NoSuchObject,
            })
        })
    }

    fn get_next<'a>(&'a self, _: &'a RequestContext, oid: &'a Oid) -> BoxFuture<'a, HandlerResult<GetNextResult>> {
        Box::pin(async move {
            Ok(match self.table().await.get_next(oid) {
                Some((oid, value)) => GetNextResult::Value(VarBind::new(oid.clone(), value.clone())),
                None => GetNextResult::EndOfMibView,
            })
        })
    }

    fn test_set<'a>(&'a self, _: &'a RequestContext, oid: &'a Oid, value: &'a Value) -> BoxFuture<'a, SetTestResult> {
        Box::pin(async move {
            let write = write::parse(oid, value)?;
            let pending = self.pending();
            {
                let mut before = pending.lock().map_err(|_| SetTestError::GeneralFailure)?;
                self.record.read(|state| write::admit(state, &before, &write))?;
                before.push(write);
            }
            Ok(Box::new(Binding { record: Arc::clone(&self.record), set: pending }) as Box<dyn PreparedSet>)
        })
    }
}

/// One binding of a SET. The first that is committed commits all; the others find nothing left to do.
struct Binding {
    record: Arc<Record>,
    set: Arc<Mutex<Vec<Write>>>,
}

impl Binding {
    fn commit_all(&self) -> Result<(), SetCommitError> {
        let writes = std::mem::take(&mut *self.set.lock().map_err(|_| SetCommitError::Failed)?);
        if writes.is_empty() {
            return Ok(());
        }
        let mut aborts = Vec::new();
        let entered = self.record.decide(|state| {
            let (change, aborted) = write::resolve(state, &writes, now())?;
            aborts = aborted;
            Ok::<_, write::NotWhole>(Event::Set(change))
        });
        match entered {
            Ok(()) => {}
            Err(Undecided::No(error)) => {
                tracing::info!(%error, "a SET was turned away");
                return Err(SetCommitError::Failed);
            }
            Err(Undecided::Journal(error)) => {
                tracing::error!(%error, "a SET could not be journaled");
                return Err(SetCommitError::Failed);
            }
        }
        for (order, run) in aborts {
            // Too late since it was admitted: the run goes on, and the manager sees that in its state.
            if let Err(state) = self.record.abort(order, run) {
                tracing::info!(order, run, ?state, "an abort came too late");
            }
        }
        Ok(())
    }
}

impl PreparedSet for Binding {
    fn commit<'a>(&'a mut self, _: &'a RequestContext, _: &'a Oid, _: &'a Value) -> BoxFuture<'a, SetCommitResult> {
        Box::pin(async move { self.commit_all() })
    }

    /// Only the first binding's commit can fail, and then nothing was changed.
    fn undo<'a>(&'a mut self, _: &'a RequestContext, _: &'a Oid, _: &'a Value) -> BoxFuture<'a, SetUndoResult> {
        Box::pin(async { Ok(()) })
    }
}
