//! A clone in a worker of its own, as a validation has one, with the lab's payload server beside it: where its guest
//! gets through to, and where its worker does. Both sides of it.

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddrV4, TcpStream},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, bail};
use patchlab::payload::{self, InMemory};
use patchlab_check::Target as _;
use patchlab_lab::{
    ArtifactStore, Lab, LabHost, Machine, Places,
    baseline::Baselines,
    machine::{CloneSpec, Forward, Protocol},
    worker::{self, Inside, Launcher, Network, Receiver, Worker},
};
use serde::{Deserialize, Serialize};

/// How long a connection may take; under emulation, and beside others, a guest's own start of a program is a good part
/// of it.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// The guest's web server.
const GUEST_PORT: u16 = 80;

/// Ports on a worker's loopback. Two workers must not share one: a guest would find its own worker's.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Ports {
    /// The payload server's.
    pub payload: u16,
    /// Leads to the guest's web server.
    pub forward: u16,
}

/// Who connects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum From {
    /// The machine.
    Guest,
    /// Its worker.
    Worker,
}

/// What the worker is told.
#[derive(Debug, Serialize, Deserialize)]
enum Ask {
    Clone { baseline: String, ports: Ports },
    Connect { from: From, host: String, port: u16, request: String },
}

/// What it answers.
#[derive(Debug, Serialize, Deserialize)]
enum Tell {
    Running,
    /// What came back; `None` when there was no connection.
    Answer(Option<String>),
    Failed(String),
}

/// A clone in a worker of its own. Dropping it ends both.
pub struct Isolated {
    worker: Worker,
    receiver: Receiver,
    /// Where its worker listens.
    pub ports: Ports,
}

impl Isolated {
    /// Clones `baseline` on a host, in a worker that `launcher` starts; its program's first act is [`serve`].
    pub fn start(
        host: &LabHost,
        places: &Places,
        launcher: &Launcher,
        baseline: &str,
        ports: Ports,
    ) -> anyhow::Result<Self> {
        let mut worker = worker::spawn(host, places, launcher, &Network::Isolated)?;
        let receiver = worker.take_receiver().context("the worker's channel was taken")?;
        let mut isolated = Self { worker, receiver, ports };
        match isolated.ask(&Ask::Clone { baseline: baseline.to_owned(), ports })? {
            Tell::Running => Ok(isolated),
            other => bail!("unexpected answer {other:?}"),
        }
    }

    /// What comes back from there; `None` when there is no connection.
    pub fn connect(&mut self, from: From, host: &str, port: u16, request: &str) -> anyhow::Result<Option<String>> {
        let (host, request) = (host.to_owned(), request.to_owned());
        match self.ask(&Ask::Connect { from, host, port, request })? {
            Tell::Answer(answer) => Ok(answer),
            other => bail!("unexpected answer {other:?}"),
        }
    }

    fn ask(&mut self, ask: &Ask) -> anyhow::Result<Tell> {
        self.worker.sender().send(ask)?;
        match self.receiver.receive::<Tell>()?.context("the worker ended without a word")? {
            Tell::Failed(reason) => bail!("{reason}"),
            tell => Ok(tell),
        }
    }
}

/// Becomes a worker and does what it is told.
pub fn serve() -> ExitCode {
    let inside = match worker::enter() {
        Ok(inside) => inside,
        Err(code) => return code,
    };
    match answer_all(inside) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn answer_all(mut inside: Inside) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let mut running: Option<(Machine, Lab)> = None;
    while let Some(ask) = inside.receiver.receive::<Ask>()? {
        let told = match (ask, &running) {
            (Ask::Clone { baseline, ports }, _) => clone(&inside, &runtime, &baseline, ports).map(|made| {
                running = Some(made);
                Tell::Running
            }),
            (Ask::Connect { from: From::Guest, host, port, request }, Some((machine, _))) => machine
                .guest()
                .connect(&host, port, request.as_bytes(), CONNECT_TIMEOUT)
                .map(|answer| Tell::Answer(answer.map(|bytes| String::from_utf8_lossy(&bytes).into_owned())))
                .map_err(Into::into),
            (Ask::Connect { from: From::Worker, host, port, request }, _) => {
                Ok(Tell::Answer(exchange(&host, port, &request).ok()))
            }
            (Ask::Connect { from: From::Guest, .. }, None) => Err(anyhow::anyhow!("there is no guest yet")),
        };
        inside.sender.send(&told.unwrap_or_else(|error| Tell::Failed(format!("{error:#}"))))?;
    }
    Ok(())
}

fn clone(
    inside: &Inside,
    runtime: &tokio::runtime::Runtime,
    baseline: &str,
    ports: Ports,
) -> anyhow::Result<(Machine, Lab)> {
    let router = payload::router(Arc::new(InMemory::new([], ArtifactStore::open(&inside.places.artifacts)?)));
    let listener = runtime.block_on(tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, ports.payload)))?;
    runtime.spawn(async move { axum::serve(listener, router).await });
    let baseline = Baselines::open(&inside.places).get(baseline)?;
    let lab = Lab::open(&inside.places, &inside.driver)?;
    let host = SocketAddrV4::new(Ipv4Addr::LOCALHOST, ports.forward);
    let forwards = vec![Forward { protocol: Protocol::Tcp, host, guest_port: GUEST_PORT }];
    let machine = lab.clone_baseline(&baseline, &CloneSpec { name: "isolated".into(), tools: None, forwards })?;
    Ok((machine, lab))
}

/// Sends a request from here and reads the answer to its end.
pub fn exchange(host: &str, port: u16, request: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect((host, port))?;
    stream.set_read_timeout(Some(CONNECT_TIMEOUT))?;
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}
