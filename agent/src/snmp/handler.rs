//! Joins the objects to the record: reads from a table made of the state, SETs as one change of it.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, OnceLock, PoisonError, Weak,
        atomic::{AtomicU32, Ordering},
    },
    time::{Instant, SystemTime},
};

use async_snmp::{
    Agent, BoxFuture, GetNextResult, GetResult, HandlerResult, MibHandler, Oid, OidTable, PreparedSet, RequestContext,
    SetCommitError, SetCommitResult, SetTestError, SetTestResult, SetUndoResult, Value, VarBind,
};
use patchlab_protocol::{Digest, mib};

use super::{
    view::{self, Facts, objects},
    write::{self, Write},
};
use crate::{
    catalog::Catalog,
    host,
    journal::JournalError,
    packages::{PackageError, PackageManager, written},
    profile::Week,
    record::{AbortError, Record, Undecided},
    run::now,
    state::{Event, State},
};

/// How long a table is answered from before it is made anew though nothing changed: durations and uptime go on.
const FRESH: std::time::Duration = std::time::Duration::from_secs(1);

/// The tables and scalars of PATCHLAB-MIB, and `system`.
pub struct Tables {
    record: Arc<Record>,
    packages: Arc<dyn PackageManager>,
    facts: Facts,
    /// The system's.
    root: PathBuf,
    started: Instant,
    made: Mutex<Option<Made>>,
    inventory: Mutex<Option<Known>>,
    /// One at a time asks the package manager; the others wait for its answer.
    asking: tokio::sync::Mutex<()>,
    folder: PathBuf,
    week: Arc<Mutex<Week>>,
    pending: Mutex<Weak<Mutex<Vec<Write>>>>,
    /// The engine that answers from these tables and counts what it drops. They end together, with the process.
    engine: OnceLock<(Agent, Arc<AtomicU32>)>,
}

/// What is installed, as of the package manager's database at one moment.
#[derive(Clone)]
struct Known {
    at: Vec<Option<SystemTime>>,
    digest: Digest,
    packages: Arc<OidTable<Value>>,
}

struct Made {
    version: u64,
    at: Instant,
    inventory: Option<Digest>,
    table: Arc<OidTable<Value>>,
}

impl Tables {
    /// The tables over a record; what changes in `facts` of the system below `root` is filled in at every look. The package catalogue is
    /// kept in `folder`.
    pub fn new(
        record: Arc<Record>,
        packages: Arc<dyn PackageManager>,
        facts: Facts,
        (root, folder): (&Path, &Path),
    ) -> Self {
        Self {
            root: root.to_owned(),
            record,
            packages,
            facts,
            started: Instant::now(),
            made: Mutex::new(None),
            inventory: Mutex::new(None),
            asking: tokio::sync::Mutex::new(()),
            folder: folder.to_owned(),
            week: Arc::new(Mutex::new(Week::read(folder))),
            pending: Mutex::new(Weak::new()),
            engine: OnceLock::new(),
        }
    }

    /// Takes the counters of SNMPv2-MIB from this engine, and that of other versions from before it.
    pub fn count_with(&self, engine: Agent, bad_versions: Arc<AtomicU32>) {
        self.engine.get_or_init(|| (engine, bad_versions));
    }

    /// The host's week, for who learns it.
    pub fn week(&self) -> Arc<Mutex<Week>> {
        Arc::clone(&self.week)
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

    /// The objects as they are now: those that change with the state, and the packages.
    async fn tables(&self) -> [Option<Arc<OidTable<Value>>>; 2] {
        let known = self.inventory().await;
        let inventory = known.as_ref().map(|known| known.digest);
        let version = *self.record.subscribe().borrow();
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        let packages = known.map(|known| known.packages);
        if let Some(made) = &*made
            && made.version == version
            && made.inventory == inventory
            && made.at.elapsed() < FRESH
        {
            return [Some(Arc::clone(&made.table)), packages];
        }
        let facts = Facts {
            class: host::class(&self.root).map_or_else(|_| self.facts.class.clone(), |class| class.to_string()),
            inventory,
            uptime: self.uptime(),
            last_change: self.record.changed().map_or(0, |at| self.hundredths(at)),
            now: now(),
            parse_errors: self.engine.get().map_or(0, |(engine, _)| engine.snmp_in_asn_parse_errs()),
            bad_versions: self.engine.get().map_or(0, |(_, bad_versions)| bad_versions.load(Ordering::Relaxed)),
            silent_drops: self.engine.get().map_or(0, |(engine, _)| engine.snmp_silent_drops()),
            ..self.facts.clone()
        };
        let week = self.week.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let table = Arc::new(self.record.read(|state| objects(state, &facts, &week)));
        *made = Some(Made { version, at: Instant::now(), inventory, table: Arc::clone(&table) });
        [Some(table), packages]
    }

    /// What is installed, asked anew when the package manager's database changed.
    async fn inventory(&self) -> Option<Known> {
        let changed = || written(&*self.packages);
        let fresh = |at: &[Option<SystemTime>]| {
            let known = self.inventory.lock().unwrap_or_else(PoisonError::into_inner).clone();
            known.filter(|known| known.at == at)
        };
        if let Some(known) = fresh(&changed()?) {
            return Some(known);
        }
        let _one_at_a_time = self.asking.lock().await;
        let at = changed()?;
        if let Some(known) = fresh(&at) {
            return Some(known);
        }
        let (packages, folder) = (Arc::clone(&self.packages), self.folder.clone());
        let asked = tokio::task::spawn_blocking(move || {
            let installed = packages.installed()?;
            let before = Catalog::read(&folder);
            let mut catalog = before.clone();
            catalog.update(&installed.settled, &installed.sources);
            if catalog != before
                && let Err(error) = catalog.write(&folder)
            {
                tracing::error!(%error, "the package catalogue could not be kept");
            }
            Ok::<_, PackageError>((installed.settled.digest(), view::packages(&catalog)))
        });
        let (digest, packages) =
            asked.await.ok()?.inspect_err(|error| tracing::warn!(%error, "no package list")).ok()?;
        let known = Known { at, digest, packages: Arc::new(packages) };
        *self.inventory.lock().unwrap_or_else(PoisonError::into_inner) = Some(known.clone());
        Some(known)
    }

    /// Reads what is installed anew whenever a manager asks for it, and has that told, for ever.
    ///
    /// # Errors
    /// When it could not be journaled.
    pub async fn answer(&self) -> Result<(), JournalError> {
        let mut changes = self.record.subscribe();
        loop {
            changes.borrow_and_update();
            if !self.record.read(|state| state.inventory_asked) {
                drop(changes.changed().await);
                continue;
            }
            drop(self.inventory.lock().unwrap_or_else(PoisonError::into_inner).take());
            let digest = self.inventory().await.map(|known| known.digest);
            tracing::info!(
                digest = digest.map(|digest| digest.short()),
                "what is installed was read, as the manager asked"
            );
            self.record.enter(Event::InventoryRead { digest })?;
        }
    }

    /// The bindings of the SET under way. The SNMP engine takes one SET at a time and holds its prepared bindings to
    /// the end, so bindings that are still held belong to this SET.
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
            let tables = self.tables().await;
            Ok(match tables.iter().flatten().find_map(|table| table.get(oid)) {
                Some(value) => GetResult::Value(value.clone()),
                None if oid.starts_with(&Oid::from_slice(mib::OBJECTS)) => GetResult::NoSuchInstance,
                None => GetResult::NoSuchObject,
            })
        })
    }

    fn get_next<'a>(&'a self, _: &'a RequestContext, oid: &'a Oid) -> BoxFuture<'a, HandlerResult<GetNextResult>> {
        Box::pin(async move {
            let tables = self.tables().await;
            let next = tables.iter().flatten().filter_map(|table| table.get_next(oid)).min_by_key(|(oid, _)| *oid);
            Ok(match next {
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
            let digest = |state: &State| state.orders.get(&order).map(|row| row.columns.digest.short());
            let digest = self.record.read(digest).unwrap_or_default();
            match self.record.abort(order, run, now()) {
                Ok(()) => {}
                // Since it was admitted: the run goes on, and the manager sees that in its state.
                Err(error @ AbortError::TooLate(_)) => {
                    tracing::info!(order, run, %digest, %error, "an abort came too late");
                }
                Err(AbortError::Record(error)) => {
                    tracing::error!(order, run, %digest, %error, "an abort could not be journaled");
                    return Err(SetCommitError::Failed);
                }
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
