//! A managed host of the demonstration: a machine of its own in a worker of its own, whose network is joined to the server's by a
//! pair of virtual links. Its agent gets its identity from `patchlab host enroll`, like any host's.

use std::net::{Ipv4Addr, SocketAddrV4};

use anyhow::{Context as _, bail};
use patchlab_lab::{
    LabHost,
    baseline::Baselines,
    machine::{CloneSpec, Lab},
    worker::{Inside, Launcher, Network, Worker},
};
use serde::{Deserialize, Serialize};

use super::{
    agent::{self, EnrolmentFiles},
    job::{Job, launcher},
};
use crate::place::Data;

/// The port at which a managed host's agent is reached from its server: the worker has no right to the low ports, and forwards
/// this one to the guest's 161.
const AGENT_PORT: u16 = 1161;

/// The two ends of a managed host's link, and nothing else in its subnet.
///
/// 198.18.0.0/15 is set aside for tests of network devices (RFC 2544, RFC 6890): no site uses it for its hosts.
#[derive(Debug, Clone, Copy)]
pub struct Segment {
    number: u8,
}

impl Segment {
    /// The segment of the host with this number, from 0 to 63.
    pub fn new(number: u8) -> Self {
        Self { number: number % 64 }
    }

    /// The server's address there.
    pub fn server(self) -> Ipv4Addr {
        Ipv4Addr::new(198, 18, 77, self.number * 4 + 1)
    }

    /// The host's address there.
    pub fn host(self) -> Ipv4Addr {
        Ipv4Addr::new(198, 18, 77, self.number * 4 + 2)
    }

    /// Where the host's agent answers.
    pub fn agent(self) -> SocketAddrV4 {
        SocketAddrV4::new(self.host(), AGENT_PORT)
    }

    fn network(self) -> Network {
        Network::Joined {
            link: format!("patchlab-h{}", self.number),
            inside: format!("{}/30", self.host()),
            outside: format!("{}/30", self.server()),
        }
    }
}

/// What the worker of a managed host is told.
#[derive(Serialize, Deserialize)]
enum Ask {
    /// Make the machine.
    Boot { host: String, baseline: String, address: SocketAddrV4, tools: String },
    /// Start its agent.
    Enrol(EnrolmentFiles),
}

/// What it answers.
#[derive(Debug, Serialize, Deserialize)]
enum Tell {
    Booted { ready_ms: u64 },
    Enrolled,
    Failed(String),
}

/// A running managed host. Dropping it ends it.
pub struct ManagedHost {
    worker: Worker,
    receiver: patchlab_lab::worker::Receiver,
    /// From the request to the machine's first answer, milliseconds.
    pub ready_ms: u64,
}

impl ManagedHost {
    /// Boots a host from `baseline`, without an agent: its link is up, so a server can bind to it.
    pub fn boot(data: &Data, host: &str, segment: Segment, baseline: &str) -> anyhow::Result<Self> {
        let launcher: Launcher = launcher(Job::Host)?;
        let places = data.lab();
        let mut worker = patchlab_lab::worker::spawn(&LabHost::here(), &places, &launcher, &segment.network())
            .with_context(|| format!("managed host {host}"))?;
        let receiver = worker.take_receiver().context("the worker's channel was taken")?;
        let tools = super::tools::disk_in_worker(data, &worker)?;
        let mut managed = Self { worker, receiver, ready_ms: 0 };
        let ask = Ask::Boot { host: host.to_owned(), baseline: baseline.to_owned(), address: segment.agent(), tools };
        match managed.ask(&ask).with_context(|| format!("managed host {host}"))? {
            Tell::Booted { ready_ms } => managed.ready_ms = ready_ms,
            other => bail!("managed host {host}: unexpected answer {other:?}"),
        }
        Ok(managed)
    }

    /// Gives it the identity that an enrolment wrote, and starts its agent.
    pub fn enrol(&mut self, files: EnrolmentFiles) -> anyhow::Result<()> {
        match self.ask(&Ask::Enrol(files))? {
            Tell::Enrolled => Ok(()),
            other => bail!("unexpected answer {other:?}"),
        }
    }

    fn ask(&mut self, ask: &Ask) -> anyhow::Result<Tell> {
        self.worker.sender().send(ask)?;
        match self.receiver.receive::<Tell>()? {
            Some(Tell::Failed(reason)) => bail!("{reason}"),
            Some(tell) => Ok(tell),
            None => bail!("its worker ended; see {}", self.worker.folder().join("worker.log").display()),
        }
    }
}

/// The worker's side: makes the machine, and keeps it until the parent is gone.
pub fn serve(mut inside: Inside) -> anyhow::Result<()> {
    let mut lab = None;
    let mut machine = None;
    while let Some(ask) = inside.receiver.receive::<Ask>()? {
        let told = match ask {
            Ask::Boot { host, baseline, address, tools } => {
                boot(&inside, &host, &baseline, address, &tools).map(|(l, m)| {
                    let ready_ms = m.report().ready_ms;
                    (lab, machine) = (Some(l), Some(m));
                    Tell::Booted { ready_ms }
                })
            }
            Ask::Enrol(files) => match &machine {
                Some(machine) => agent::settle(machine, &files).map(|()| Tell::Enrolled).map_err(Into::into),
                None => Err(anyhow::anyhow!("told to enrol before it was booted")),
            },
        };
        inside.sender.send(&told.unwrap_or_else(|error| Tell::Failed(format!("{error:#}"))))?;
    }
    drop((machine, lab));
    Ok(())
}

fn boot(
    inside: &Inside,
    host: &str,
    baseline: &str,
    address: SocketAddrV4,
    tools: &str,
) -> anyhow::Result<(Lab, patchlab_lab::machine::Machine)> {
    let baseline = Baselines::open(&inside.places).get(baseline)?;
    let lab = Lab::open(&inside.places, &inside.driver)?;
    let spec = CloneSpec {
        name: host.to_owned(),
        tools: Some(inside.places.work.join(tools)),
        forwards: vec![agent::forward(address)],
    };
    let machine = lab.clone_baseline(&baseline, &spec)?;
    Ok((lab, machine))
}
