//! Whether libvirt works here, found out as the lab would use it: a worker opens the embedded driver and asks for its versions.
//! What QEMU can do is then known in the data folder's cache, so that the first baseline need not wait for it.

use anyhow::{Context as _, bail};
use patchlab_lab::{
    LabHost,
    machine::{Lab, Versions},
    worker::{Inside, Network, OPEN_TIMEOUT},
};
use serde::{Deserialize, Serialize};

use super::job::{Job, launcher};
use crate::place::Data;

/// What the worker says.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Tell {
    Open(Versions),
    Failed(String),
}

/// Opens libvirt in a worker, and takes no longer than [`OPEN_TIMEOUT`].
///
/// # Errors
/// No worker could be made, or libvirt did not open: in libvirt's own words, with what to install.
pub fn ask(data: &Data) -> anyhow::Result<Versions> {
    let mut worker =
        patchlab_lab::worker::spawn(&LabHost::here(), &data.lab(), &launcher(Job::Versions)?, &Network::Isolated)?;
    let mut receiver = worker.take_receiver().context("the worker's channel was taken")?;
    receiver.set_timeout(Some(OPEN_TIMEOUT))?;
    let told = receiver
        .receive::<Tell>()
        .with_context(|| format!("libvirt did not open within {} s", OPEN_TIMEOUT.as_secs()))?;
    match told {
        Some(Tell::Open(versions)) => Ok(versions),
        Some(Tell::Failed(reason)) => bail!("{reason}"),
        None => bail!("the worker ended while it opened libvirt"),
    }
}

/// The worker's side.
pub fn serve(inside: Inside) -> anyhow::Result<()> {
    let told = match Lab::open(&inside.places, &inside.driver) {
        Ok(lab) => Tell::Open(lab.versions().clone()),
        Err(error) => Tell::Failed(format!("{:#}", anyhow::Error::from(error))),
    };
    Ok(inside.sender.send(&told)?)
}
