//! `patchlab serve`: puts the pipeline together, opens its doors and closes them in order.

use std::{
    fs, io,
    net::SocketAddr,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, RwLock},
};

use patchlab_lab::{ArtifactError, ArtifactStore};
use patchlab_protocol::{Digest, Role, SigningKey, key::KeyError};
use rustix::{
    fs::{FlockOperation, flock},
    process::{Resource, Rlimit, getrlimit, setrlimit},
};
use tokio::{
    net::{TcpListener, UnixListener},
    sync::watch,
    task::JoinSet,
};

use crate::{
    api::{self, Door},
    audit::Event,
    deploy::{
        executor::Executor,
        offers::{Offers, Turns},
        sink::{Bells, Sink, SinkError},
        snapshots, visits,
    },
    enrol::{
        door,
        identity::{Identity, IdentityError},
    },
    payload::{self, Stored},
    pipeline::{self, Pipeline, PipelineError},
    place::{Data, PlaceError, private_folder, write_private},
    store::{Store, StoreError},
    trust::{
        authority::Authority,
        root::{self, RootFileError},
        rotation::expiry,
        signer::{Signer, SignerError},
    },
};

/// How the server is to run.
#[derive(Debug, Clone)]
pub struct Options {
    /// The data folder.
    pub data: Data,
    /// Where the API and the console listen; loopback.
    pub listen: SocketAddr,
    /// Where agents fetch documents and files; the first is what enrolment tells hosts.
    pub payload: Vec<SocketAddr>,
    /// Where informs come in.
    pub informs: SocketAddr,
    /// Where hosts with a token come to be enrolled; the first is what tokens tell them.
    pub enrolment: Vec<SocketAddr>,
    /// The release key, for the signer alone.
    pub release_key: Option<PathBuf>,
}

/// Where a running server is reached.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Addresses {
    /// The API's unix socket.
    pub socket: PathBuf,
    /// Console and API on TCP.
    pub console: SocketAddr,
    /// Documents and files.
    pub payload: Vec<SocketAddr>,
    /// Informs.
    pub informs: SocketAddr,
    /// Enrolment.
    pub enrolment: Vec<SocketAddr>,
    /// How many deployments were taken up again.
    pub resumed: usize,
}

/// The server could not start, or had to stop.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// A folder or file.
    #[error(transparent)]
    Place(#[from] PlaceError),
    /// There is one already.
    #[error("another patchlab serve runs on {path}: use it, stop it, or choose another folder with --data", path = .0.display())]
    Running(PathBuf),
    /// The API changes things: it stays on this machine.
    #[error("--listen {0} is not a loopback address: the API stays on this machine")]
    NotLoopback(SocketAddr),
    /// A port or socket.
    #[error("cannot listen on {on}: {source}")]
    Listen {
        /// Where.
        on: String,
        /// Why not.
        source: io::Error,
    },
    /// The root document.
    #[error(transparent)]
    Root(#[from] RootFileError),
    /// The activation key.
    #[error("activation key: {0}; patchlab root init makes it")]
    Activator(#[from] KeyError),
    /// The activation key is not in the root document.
    #[error(
        "the activation key in the data folder is not in the root document: run patchlab root init on this data folder"
    )]
    NotAnActivator,
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The artifact store.
    #[error(transparent)]
    Artifacts(#[from] ArtifactError),
    /// The signer.
    #[error(transparent)]
    Signer(#[from] SignerError),
    /// The inform sink.
    #[error(transparent)]
    Sink(#[from] SinkError),
    /// The enrolment door.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// What the pipeline needs.
    #[error(transparent)]
    Pipeline(#[from] PipelineError),
}

/// Runs the server until `stop`; `ready` is told once every door is open.
///
/// # Errors
/// Whatever keeps it from starting; afterwards, a listener that breaks.
pub async fn serve(
    options: Options,
    ready: impl FnOnce(&Addresses),
    stop: impl Future<Output = ()>,
) -> Result<(), ServeError> {
    if !options.listen.ip().is_loopback() {
        return Err(ServeError::NotLoopback(options.listen));
    }
    let _lock = lock(&options.data)?;
    allow_many_files();
    let token = token(&options.data)?;
    let (payload_listeners, payload_addresses) = bind_all(&options.payload).await?;
    let console = bind(options.listen).await?;
    let console_address = console.local_addr().map_err(listening(options.listen.to_string()))?;
    let (enrolment_listeners, enrolment_addresses) = bind_all(&options.enrolment).await?;
    let identity = Identity::open(&options.data.enrolment_key())?;
    let pipeline = pipeline(&options, payload_addresses[0], (enrolment_addresses[0], identity.pin)).await?;
    let pipeline = Arc::new(pipeline);
    pipeline.forget_admissions();
    let (socket, socket_path) = socket(&options.data)?;

    let mut doors = JoinSet::new();
    let source = Arc::new(Stored::new(Arc::clone(&pipeline.store), pipeline.artifacts.clone()));
    for listener in payload_listeners {
        let router = payload::router(source.clone());
        doors.spawn(async move { axum::serve(listener, router).await });
    }
    for listener in enrolment_listeners {
        doors.spawn(door::serve(listener, identity.clone(), Arc::clone(&pipeline)));
    }
    let tcp = api::router(Arc::clone(&pipeline), Door::Tcp { token: token.into() });
    doors.spawn(async move { axum::serve(console, tcp).await });
    let local = api::router(Arc::clone(&pipeline), Door::Socket);
    doors.spawn(async move { axum::serve(socket, local).await });

    pipeline.store.record(&Event::new(
        "server-started",
        "server",
        serde_json::json!({ "version": env!("CARGO_PKG_VERSION") }),
    ))?;
    let resumed = pipeline.executor.resume()?;
    let standing = pipeline.authority.standing();
    let root = &standing.root().root;
    if let Some(warning) = expiry(root.expires, jiff::Timestamp::now()).warning(root.version) {
        tracing::warn!("{warning}");
    }
    let visits = tokio::spawn(visits::run(pipeline.executor.offers.clone()));
    let snapshots = tokio::spawn(snapshots::keep(pipeline.executor.clone()));
    ready(&Addresses {
        socket: socket_path.clone(),
        console: console_address,
        payload: payload_addresses,
        informs: pipeline.sink.address,
        enrolment: enrolment_addresses,
        resumed,
    });
    let broken = tokio::select! {
        () = stop => None,
        ended = doors.join_next() => ended,
    };
    visits.abort();
    snapshots.abort();
    // Runs go on at their hosts; the journal knows where to take them up.
    let _ = fs::remove_file(&socket_path);
    let _ = socket_path.parent().map(fs::remove_dir);
    match broken {
        Some(Ok(Err(source))) => Err(ServeError::Listen { on: "one of its doors".into(), source }),
        _ => {
            pipeline.store.record(&Event::new("server-stopped", "server", serde_json::json!({})))?;
            Ok(())
        }
    }
}

/// Every host that is spoken to takes a socket of its own, and a window has thousands of hosts wait: as many as the hard limit allows.
fn allow_many_files() {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
        tracing::warn!(%error, ?current, "the limit of open files stays as it is: not more hosts than that can be spoken to at once");
    }
}

async fn pipeline(
    options: &Options,
    payload: SocketAddr,
    (enrolment, pin): (SocketAddr, Digest),
) -> Result<Pipeline, ServeError> {
    let data = options.data.clone();
    let root = root::read(&data.root_document())?;
    let activator = SigningKey::read(&data.activator_key())?;
    if !root.root.keys(Role::Activator).any(|known| *known == activator.public()) {
        return Err(ServeError::NotAnActivator);
    }
    let activator = RwLock::new(Arc::new(activator));
    let signer = match &options.release_key {
        Some(key) => {
            let program = std::env::current_exe().map_err(PlaceError::io("find", Path::new("this program")))?;
            let key = key.canonicalize().map_err(PlaceError::io("find", key))?;
            Some(Signer::start(program, key, data.root_document()).await?)
        }
        None => None,
    };
    let store = Arc::new(Store::open(&data.database())?);
    let bells = Bells::default();
    let senders = pipeline::senders(&store, &data)?;
    let sink = Sink::open(&data.manager_engine(), options.informs, senders, bells.clone()).await?;
    let authority = Arc::new(Authority::open(data.root_document(), Arc::clone(&store)).map_err(PipelineError::from)?);
    let offers = Offers {
        store: Arc::clone(&store),
        data: data.clone(),
        authority: Arc::clone(&authority),
        bells,
        turns: Turns::default(),
    };
    let executor = Executor { store: Arc::clone(&store), offers, changes: watch::Sender::new(0) };
    let artifacts = ArtifactStore::open(data.artifacts())?;
    let admitting = Mutex::default();
    Ok(Pipeline {
        store,
        artifacts,
        authority,
        executor,
        sink,
        payload,
        enrolment,
        pin,
        admitting,
        activator,
        signer,
        data,
    })
}

/// One server a data folder, for as long as the file is open.
fn lock(data: &Data) -> Result<fs::File, ServeError> {
    let path = data.server_lock();
    private_folder(path.parent().unwrap_or(data.dir()))?;
    let file = fs::OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(PlaceError::io("open", &path))?;
    flock(&file, FlockOperation::NonBlockingLockExclusive).map_err(|_| ServeError::Running(data.dir().to_owned()))?;
    Ok(file)
}

/// The bearer token for changes over TCP; made at the first start.
fn token(data: &Data) -> Result<String, ServeError> {
    let path = data.token();
    match fs::read_to_string(&path) {
        Ok(text) if text.trim().len() >= 32 => Ok(text.trim().to_owned()),
        _ => {
            let mut random = [0; 32];
            getrandom::fill(&mut random).map_err(|error| KeyError::Entropy(error.to_string()))?;
            let token = hex::encode(random);
            write_private(&path, token.as_bytes())?;
            Ok(token)
        }
    }
}

fn listening(on: String) -> impl FnOnce(io::Error) -> ServeError {
    move |source| ServeError::Listen { on, source }
}

async fn bind(address: SocketAddr) -> Result<TcpListener, ServeError> {
    TcpListener::bind(address).await.map_err(listening(address.to_string()))
}

async fn bind_all(addresses: &[SocketAddr]) -> Result<(Vec<TcpListener>, Vec<SocketAddr>), ServeError> {
    let (mut listeners, mut bound) = (Vec::new(), Vec::new());
    for address in addresses {
        let listener = bind(*address).await?;
        bound.push(listener.local_addr().map_err(listening(address.to_string()))?);
        listeners.push(listener);
    }
    Ok((listeners, bound))
}

/// The lock is held, so a socket that lies there is left over from a killed server.
fn socket(data: &Data) -> Result<(UnixListener, PathBuf), ServeError> {
    let path = data.socket()?;
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(PlaceError::io("remove", &path)(error).into());
        }
        _ => {}
    }
    let listener = UnixListener::bind(&path).map_err(listening(path.display().to_string()))?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600))
        .map_err(PlaceError::io("change the mode of", &path))?;
    Ok((listener, path))
}
