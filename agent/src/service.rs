//! The agent as a service: everything opened in order, then run until it is told to stop.

use std::{
    fs::{self, File},
    io,
    net::SocketAddr,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use patchlab_protocol::enrolment::{EngineId, InformSink, SnmpUser};
use rustix::fs::{FlockOperation, flock};

use crate::{
    change::script::Rule,
    configuration::Configuration,
    fetch::{Downloads, FetchError},
    host::{self, ClassError},
    jobs,
    journal::{JournalError, replace},
    notify::Systemd,
    operator::{Door, SOCKET},
    packages::{self, OpenError as PackagesError},
    production::Evaluate,
    profile,
    record::{OpenError, Record},
    reserve::{Reserve, insist},
    run::{Engine, EngineError},
    snmp::{
        self, Answering, SnmpError,
        handler::Tables,
        identity::{self, IdentityError},
        inform::{InformError, Informer},
        keys::Keys,
        view::Facts,
    },
    staged::Staged,
    state::Event,
    target::LocalTarget,
    trust::{BrokenChain, InForce, Trust},
};

/// Holds the address the agent really answers on, in the state folder, e.g. `127.0.0.1:40161`.
pub const ADDRESS_FILE: &str = "address";

/// The agent cannot start, or cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    /// The state folder cannot be used.
    #[error("state folder {path}: {source}")]
    StateFolder {
        /// The folder.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Another agent uses it.
    #[error("state folder {path} is in use by another agent: stop that one first")]
    InUse {
        /// The folder.
        path: PathBuf,
    },
    /// Others can change what is verified there.
    #[error("state folder {path} can be changed by others: chown it to the agent's user, and chmod go-w")]
    Exposed {
        /// The folder.
        path: PathBuf,
    },
    /// The host's class.
    #[error(transparent)]
    Class(#[from] ClassError),
    /// From where to fetch.
    #[error("[fetch] in the configuration: {0}")]
    Fetch(#[from] FetchError),
    /// The package manager.
    #[error(transparent)]
    Packages(#[from] PackagesError),
    /// The journal.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The record.
    #[error(transparent)]
    Record(#[from] OpenError),
    /// The roots.
    #[error(transparent)]
    Trust(#[from] BrokenChain),
    /// The SNMP engine's identity.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The SNMP engine.
    #[error(transparent)]
    Snmp(#[from] SnmpError),
    /// Informs.
    #[error(transparent)]
    Inform(#[from] InformError),
    /// Who started it is not told.
    #[error("systemd's socket, NOTIFY_SOCKET: {0}")]
    Notify(io::Error),
    /// A run.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// Its engine id.
    #[error("SNMP engine: {0}")]
    EngineId(String),
    /// No message can be received any more.
    #[error("SNMP: receiving failed over and over: {0}")]
    Receiving(io::Error),
    /// The SNMP engine ended.
    #[error("SNMP ended: {0}")]
    Ended(Box<async_snmp::Error>),
}

/// An agent that is ready to run.
pub struct Service {
    snmp: Answering,
    address: SocketAddr,
    class: String,
    engine: Arc<Engine>,
    trust: Arc<Trust>,
    tables: Arc<Tables>,
    inform: Option<InformSink>,
    state_dir: PathBuf,
    _locks: Vec<File>,
}

impl Service {
    /// Opens everything: state folder, journal, package manager, SNMP engine. Nothing is answered and nothing is done
    /// yet.
    ///
    /// # Errors
    /// When any of it cannot be used.
    pub async fn open(configuration: Configuration, evaluate: Option<Evaluate>) -> Result<Self, ServiceError> {
        let Configuration { enrolment, root, key } = configuration;
        let mut locks = vec![take_folder(&enrolment.state_dir)?];
        if enrolment.ledger() != enrolment.state_dir {
            locks.push(take_folder(enrolment.ledger())?);
        }
        let class = host::class(&enrolment.packages.root)?.to_string();
        let packages = packages::open(&enrolment.packages, &enrolment.state_dir)?;
        let record = Arc::new(Record::open(&enrolment.state_dir, enrolment.ledger())?);
        let root_version = root.version;
        let downloads = Arc::new(Downloads::new(&enrolment.fetch, enrolment.state_dir.join("parts"))?);
        let trust = Arc::new(Trust::new(root, Arc::clone(&record), Arc::clone(&downloads))?);
        let facts = Facts {
            version: env!("CARGO_PKG_VERSION"),
            host: enrolment.host.clone(),
            class: class.clone(),
            root: InForce { version: root_version, digest: enrolment.root.digest },
            inventory: None,
            uptime: 0,
            last_change: 0,
            now: 0,
            parse_errors: 0,
            bad_versions: 0,
            silent_drops: 0,
        };
        let places = (enrolment.packages.root.as_path(), enrolment.state_dir.as_path());
        let tables = Arc::new(Tables::new(Arc::clone(&record), Arc::clone(&packages), facts, places));
        let identity = identity::engine(enrolment.ledger(), enrolment.engine_id.as_ref())?;
        let users: Vec<&SnmpUser> = enrolment.users().collect();
        let engine_id =
            EngineId::from_bytes(identity.engine_id()).map_err(|bad| ServiceError::EngineId(bad.to_string()))?;
        let keys = Keys::open(enrolment.ledger(), &engine_id, &users).map_err(SnmpError::from)?;
        let snmp = snmp::bind(&enrolment, identity, Arc::new(keys), Arc::clone(&tables)).await?;
        tables.count_with(snmp.engine.clone(), snmp.front.bad_versions());
        let listen = enrolment.listen;
        let address = snmp.front.address().map_err(|source| SnmpError::Listen { listen, source })?;
        let engine = Arc::new(Engine {
            host: enrolment.host,
            trust: Arc::clone(&trust),
            key,
            record,
            packages,
            downloads,
            files: enrolment.state_dir.join("files"),
            reserve: Reserve::of(&enrolment.state_dir),
            staged: Staged::new(enrolment.state_dir.join("staged")),
            target: LocalTarget::new(enrolment.packages.root),
            hooks: enrolment.hooks,
            scripts: Rule::from(&enrolment.scripts),
            without_fallback: enrolment.boot.without_fallback,
            pending_reboot: enrolment.boot.pending_reboot,
            uncovered: enrolment.boot.uncovered,
            evaluate,
            turn: tokio::sync::Mutex::new(()),
            ends: tokio::sync::Mutex::new(()),
        });
        Ok(Self {
            snmp,
            address,
            class,
            engine,
            trust,
            tables,
            inform: enrolment.inform,
            state_dir: enrolment.state_dir,
            _locks: locks,
        })
    }

    /// The address it answers on.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Runs until `stop` is ready. Runs that an earlier agent left under way are ended first, which may take minutes. A run whose package
    /// manager works when the agent is stopped is ended by the next one.
    ///
    /// # Errors
    /// When the record cannot be kept any more or SNMP ends by itself.
    pub async fn run(self, stop: impl Future<Output = ()>) -> Result<(), ServiceError> {
        let mut stop = std::pin::pin!(stop);
        tokio::select! {
            biased;
            // What is not finished then is left to the next agent.
            () = &mut stop => return Ok(()),
            recovered = self.engine.recover() => recovered?,
        }
        self.engine.record.enter(Event::Started)?;
        self.engine.reserve.keep();
        let (address, file) = (self.address, self.state_dir.join(ADDRESS_FILE));
        insist(&file, || replace(&file, format!("{address}\n").as_bytes()))
            .map_err(|source| ServiceError::StateFolder { path: self.state_dir.clone(), source })?;
        let door = Door::open(&self.state_dir, Arc::clone(&self.engine.record), self.engine.staged.clone())
            .map_err(|source| ServiceError::StateFolder { path: self.state_dir.join(SOCKET), source })?;
        tracing::info!(%address, host = %self.engine.host, class = self.class, "answering SNMPv3");
        let systemd = Systemd::from_environment().map_err(ServiceError::Notify)?;
        if let Some(systemd) = &systemd {
            systemd.tell("READY=1").map_err(ServiceError::Notify)?;
        }
        tokio::select! {
            ended = self.snmp.engine.run() => ended.map_err(ServiceError::Ended),
            ended = Arc::clone(&self.snmp.front).run() => ended.map_err(ServiceError::Receiving),
            ended = Arc::clone(&self.engine).supervise() => ended.map_err(ServiceError::Engine),
            ended = Arc::clone(&self.trust).supervise() => ended.map_err(ServiceError::Journal),
            ended = self.tables.answer() => ended.map_err(ServiceError::Journal),
            ended = self.inform() => ended,
            () = door.answer() => Ok(()),
            () = profile::learn(self.tables.week(), self.state_dir.clone()) => Ok(()),
            () = jobs::learn(self.state_dir.clone()) => Ok(()),
            () = self.watchdog(systemd.as_ref()) => Ok(()),
            () = stop => Ok(()),
        }
    }

    /// For ever: lets whoever watches know that the record can still be read, which everything here needs.
    async fn watchdog(&self, systemd: Option<&Systemd>) {
        match systemd {
            Some(systemd) => systemd.watch(|| self.engine.record.read(|_| ())).await,
            None => std::future::pending().await,
        }
    }

    /// Tells the manager, when there is one, for ever.
    async fn inform(&self) -> Result<(), ServiceError> {
        let Some(sink) = &self.inform else { return std::future::pending().await };
        let informer = Informer::new(sink, &self.engine.host, Arc::clone(&self.tables)).await?;
        Ok(informer.deliver(Arc::clone(&self.engine.record)).await?)
    }
}

/// Makes the state folder, private, and takes it for this process alone.
fn take_folder(path: &Path) -> Result<File, ServiceError> {
    let failed = |source| ServiceError::StateFolder { path: path.to_owned(), source };
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed)?;
    // What is verified there is what is installed: nobody else may have a hand in it.
    let found = fs::metadata(path).map_err(failed)?;
    if found.uid() != rustix::process::geteuid().as_raw() || found.mode() & 0o022 != 0 {
        return Err(ServiceError::Exposed { path: path.to_owned() });
    }
    let file = File::create(path.join("lock")).map_err(failed)?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(ServiceError::InUse { path: path.to_owned() }),
        Err(error) => Err(failed(error.into())),
    }
}
