//! The worker's network: alone, or joined to the parent's by a pair of virtual links.

use std::{path::Path, process::Command};

use serde::{Deserialize, Serialize};

use super::WorkerError;

/// What a worker's network namespace is connected to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Network {
    /// Nothing: a loopback alone.
    Isolated,
    /// The parent's namespace, by a pair of virtual links; everything not local goes there.
    Joined {
        /// Name of the parent's end, at most 15 bytes.
        link: String,
        /// Address of the worker's end with its prefix, e.g. `10.77.1.2/30`.
        inside: String,
        /// Address of the parent's end with its prefix, e.g. `10.77.1.1/30`.
        outside: String,
    },
}

/// Name of the worker's end.
const INSIDE: &str = "uplink";

/// A link of that name that is there already is somebody else's.
pub(super) fn refuse_taken(link: &str) -> Result<(), WorkerError> {
    if !Path::new("/sys/class/net").join(link).exists() {
        return Ok(());
    }
    let reason = "a network link of that name is there already: another managed host has it, or `patchlab lab gc` \
                  takes it away if its owner is dead";
    Err(WorkerError::Link { link: link.to_owned(), reason: reason.to_owned() })
}

/// Makes the pair and moves the far end into the namespaces of process `pid`.
pub(super) fn join(link: &str, outside: &str, pid: u32) -> Result<(), WorkerError> {
    let pid = pid.to_string();
    ip(link, &["link", "add", link, "type", "veth", "peer", "name", INSIDE, "netns", &pid])?;
    ip(link, &["address", "add", outside, "dev", link])?;
    ip(link, &["link", "set", link, "up"])
}

/// Brings up the worker's side of the network, from inside.
pub(super) fn bring_up(network: &Network) -> Result<(), WorkerError> {
    ip("lo", &["link", "set", "lo", "up"])?;
    if let Network::Joined { inside, outside, .. } = network {
        let gateway = outside.split('/').next().unwrap_or(outside);
        ip(INSIDE, &["address", "add", inside, "dev", INSIDE])?;
        ip(INSIDE, &["link", "set", INSIDE, "up"])?;
        ip(INSIDE, &["route", "add", "default", "via", gateway])?;
    }
    Ok(())
}

fn ip(link: &str, arguments: &[&str]) -> Result<(), WorkerError> {
    let refused = |reason: String| WorkerError::Link { link: link.to_owned(), reason };
    let output = Command::new("ip")
        .args(arguments)
        .output()
        .map_err(|error| refused(format!("ip (package iproute2) does not run: {error}")))?;
    if output.status.success() {
        return Ok(());
    }
    Err(refused(format!("ip {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim())))
}
