//! A snapshot of a machine that a libvirt has and that is nobody's clone: a managed host that is itself a virtual machine.
//!
//! It is taken while the machine runs: each of its disks goes on in a new file, the *layer*, and what the disk was stays as it is below
//! (libvirt's external snapshot of disks, without memory: <https://libvirt.org/formatsnapshot.html>). Disks that are named to stay outside are
//! left alone: on one of them lies what must not go back. From there two ways lead:
//!
//! - [`revert`]: the machine is switched off, its description names the old files again, and it boots from them. The layers stay, with what
//!   the machine was in the end, for whoever wants to know.
//! - [`merge`]: what was written since goes into the old files while the machine runs, and the layers are gone.
//!
//! Whoever calls writes down what [`layers`] says before [`take`], and the way before it is taken: each may be done again when it was cut off.

mod description;

use std::{
    collections::BTreeSet,
    path::PathBuf,
    process::{Command, Output},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use virt::{connect::Connect, domain::Domain, sys};

use crate::machine::{LabError, asked_within, start_events};

/// How long the old files may take to get what was written since: gigabytes, over a network.
const MERGE_WITHIN: Duration = Duration::from_secs(3600);
/// Seconds between two questions whether the other side is there, and how many may go without an answer.
const KEEP_ALIVE: (i32, u32) = (5, 4);
/// How long the libvirt of a machine may take to be opened: it may be at the other end of an ssh session.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// Longest name of a snapshot, bytes: it is a part of file names.
const NAME_BYTES: usize = 80;

/// A machine as its libvirt knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Guest {
    /// libvirt's URI, e.g. `qemu+ssh://kvm-3.example.org/system`.
    pub libvirt: String,
    /// The domain's name there.
    pub domain: String,
    /// Disks that never go back, by their targets (`vdb`): the agent's ledger lies on one of them.
    pub outside: BTreeSet<String>,
}

/// A disk, and the file in which it goes on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Layer {
    /// The disk's target, e.g. `vda`.
    pub target: String,
    /// What the disk was, on the machine's own host.
    pub base: PathBuf,
    /// The form of that file.
    pub format: Format,
    /// Where it goes on.
    pub layer: PathBuf,
}

/// The form of a disk's file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// Every byte in its place.
    Raw,
    /// QEMU's own.
    Qcow2,
}

impl Format {
    /// libvirt's name for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
        }
    }
}

/// In what state the disks are in a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stillness {
    /// The guest wrote down what it had, and waited.
    Quiesced,
    /// As after a power failure: no guest agent answered.
    PowerLoss,
}

/// Where a machine is with a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Its disks are the old files.
    Below,
    /// Its disks are the layers.
    Above,
}

/// A machine could not be dealt with.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SnapshotError {
    /// libvirt said no.
    #[error("{action} {domain} at {libvirt}: {reason}")]
    Libvirt {
        /// What was tried.
        action: &'static str,
        /// On which machine.
        domain: String,
        /// Whose.
        libvirt: String,
        /// Its own words.
        reason: String,
    },
    /// Nothing can be done with a machine like this.
    #[error("machine {domain} at {libvirt}: {reason}")]
    Unfit {
        /// Which.
        domain: String,
        /// Whose.
        libvirt: String,
        /// Why, and what to do.
        reason: String,
    },
}

impl Guest {
    fn failed(&self, action: &'static str) -> impl Fn(String) -> SnapshotError + '_ {
        move |reason| {
            let (domain, libvirt) = (self.domain.clone(), self.libvirt.clone());
            SnapshotError::Libvirt { action, domain, libvirt, reason }
        }
    }

    fn refused(&self, action: &'static str) -> impl Fn(virt::error::Error) -> SnapshotError + '_ {
        move |error| self.failed(action)(error.message().to_owned())
    }

    fn unfit(&self, reason: String) -> SnapshotError {
        SnapshotError::Unfit { domain: self.domain.clone(), libvirt: self.libvirt.clone(), reason }
    }

    fn open_within(&self, timeout: Duration) -> Result<Connect, SnapshotError> {
        let broken = self.failed("open the libvirt of");
        asked_within(timeout, &self.libvirt, opened).map_err(|error| broken(error.to_string()))
    }

    fn find(&self) -> Result<(Connect, Domain), SnapshotError> {
        let connect = self.open_within(ANSWER_TIMEOUT)?;
        // A connection that cannot ask finds out when it next says something.
        let _ = connect.set_keep_alive(KEEP_ALIVE.0, KEEP_ALIVE.1);
        let domain = connect.lookup_domain_by_name(&self.domain).map_err(self.refused("find"))?;
        if !domain.is_persistent().map_err(self.refused("ask about"))? {
            return Err(self.unfit("it is gone when it is switched off: define it (`virsh define`) first".into()));
        }
        Ok((connect, domain))
    }

    /// The description of what runs, or of what would.
    fn described(&self, domain: &Domain) -> Result<String, SnapshotError> {
        let flags =
            if domain.is_active().map_err(self.refused("ask about"))? { 0 } else { sys::VIR_DOMAIN_XML_INACTIVE };
        domain.xml_desc(flags).map_err(self.refused("read the description of"))
    }
}

/// A connection, or libvirt's own words.
fn opened(uri: &str) -> Result<Connect, LabError> {
    // What it says comes back as an error.
    virt::error::clear_error_callback();
    start_events()?;
    Connect::open(Some(uri)).map_err(|error| LabError::Libvirt {
        action: "open",
        subject: uri.to_owned(),
        reason: error.message().to_owned(),
    })
}

/// The disks that a snapshot of this name would keep, and where each would go on. Changes nothing.
///
/// # Errors
/// The machine cannot be found, does not run, or has a disk of which no layer can be made.
pub fn layers(guest: &Guest, name: &str) -> Result<Vec<Layer>, SnapshotError> {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    if name.is_empty() || name.len() > NAME_BYTES || !name.bytes().all(is_plain) {
        return Err(guest.unfit(format!("{name:?} is no name for a snapshot")));
    }
    let (_connect, domain) = guest.find()?;
    if !domain.is_active().map_err(guest.refused("ask about"))? {
        return Err(guest.unfit("it is switched off: start it first".into()));
    }
    description::layers(&guest.described(&domain)?, &guest.outside, name).map_err(|reason| guest.unfit(reason))
}

/// Where the machine is with these layers.
///
/// # Errors
/// It cannot be found, or its disks are neither: somebody else works with them.
pub fn standing(guest: &Guest, layers: &[Layer]) -> Result<Standing, SnapshotError> {
    let (_connect, domain) = guest.find()?;
    description::standing(&guest.described(&domain)?, layers).map_err(|reason| guest.unfit(reason))
}

/// Takes the snapshot. The machine goes on meanwhile, but for the moment in which its disks are still.
///
/// # Errors
/// libvirt says no; then no disk has changed its file.
pub fn take(guest: &Guest, name: &str, layers: &[Layer]) -> Result<Stillness, SnapshotError> {
    let (_connect, domain) = guest.find()?;
    let xml = description::snapshot(name, layers, &guest.outside);
    let flags = sys::VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY
        | sys::VIR_DOMAIN_SNAPSHOT_CREATE_ATOMIC
        | sys::VIR_DOMAIN_SNAPSHOT_CREATE_NO_METADATA;
    let quiesced = domain.create_snapshot_xml(&xml, flags | sys::VIR_DOMAIN_SNAPSHOT_CREATE_QUIESCE);
    if quiesced.is_ok() {
        return Ok(Stillness::Quiesced);
    }
    // Without a guest agent, or one that does not answer, nothing was changed yet.
    domain.create_snapshot_xml(&xml, flags).map_err(guest.refused("take a snapshot of"))?;
    Ok(Stillness::PowerLoss)
}

/// Brings the machine back: switches it off as it is, gives it its old files, and starts it. The layers stay.
///
/// # Errors
/// libvirt says no, or the machine's disks are others by now. It may be off then; doing it again goes on.
pub fn revert(guest: &Guest, layers: &[Layer]) -> Result<(), SnapshotError> {
    let (connect, domain) = guest.find()?;
    let described = domain.xml_desc(sys::VIR_DOMAIN_XML_INACTIVE | sys::VIR_DOMAIN_XML_SECURE);
    let described = described.map_err(guest.refused("read the description of"))?;
    match description::standing(&described, layers).map_err(|reason| guest.unfit(reason))? {
        Standing::Above => {
            let old = description::reverted(&described, layers).map_err(|reason| guest.unfit(reason))?;
            if domain.is_active().map_err(guest.refused("ask about"))? {
                domain.destroy().map_err(guest.refused("switch off"))?;
            }
            connect.define_domain_xml(&old).map_err(guest.refused("give its old disks to"))?;
        }
        // Cut off before its start.
        Standing::Below => {}
    }
    if !domain.is_active().map_err(guest.refused("ask about"))? {
        domain.create().map_err(guest.refused("start"))?;
    }
    Ok(())
}

/// Writes what is in the layers to the old files while the machine runs, and goes on with those.
///
/// # Errors
/// The machine is off, its disks are others by now, or libvirt says no. Doing it again goes on.
pub fn merge(guest: &Guest, layers: &[Layer]) -> Result<(), SnapshotError> {
    let (_connect, domain) = guest.find()?;
    if !domain.is_active().map_err(guest.refused("ask about"))? {
        return Err(guest.unfit("it is switched off: its snapshot is merged while it runs, start it first".into()));
    }
    let described = guest.described(&domain)?;
    for layer in layers {
        match description::disk_standing(&described, layer).map_err(|reason| guest.unfit(reason))? {
            Standing::Below => continue,
            Standing::Above => {}
        }
        if description::is_merging(&described, layer).map_err(|reason| guest.unfit(reason))? {
            // Of whoever was killed meanwhile: nothing is lost by beginning again.
            let ended = virsh(guest, &["blockjob", &guest.domain, &layer.target, "--abort"]);
            said(ended).map_err(guest.failed("begin the merge of a snapshot of"))?;
        }
        let (base, within) = (layer.base.display().to_string(), MERGE_WITHIN.as_secs().to_string());
        let commit = ["blockcommit", &guest.domain, &layer.target, "--base", &base, "--active"];
        let more = ["--delete", "--pivot", "--wait", "--timeout", &within];
        let ended = virsh(guest, &[&commit[..], &more[..]].concat());
        said(ended).map_err(guest.failed("merge a snapshot of"))?;
    }
    Ok(())
}

/// virsh(1): the way to libvirt's block jobs that sees them through to their end.
fn virsh(guest: &Guest, arguments: &[&str]) -> std::io::Result<Output> {
    Command::new("virsh")
        .args(["--quiet", "--connect", &guest.libvirt])
        .args(arguments)
        .env("LC_ALL", "C.UTF-8")
        .output()
}

/// Nothing, or what it said.
fn said(ended: std::io::Result<Output>) -> Result<(), String> {
    match ended {
        Err(error) => Err(format!("run virsh (package libvirt-clients): {error}")),
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(String::from_utf8_lossy(&output.stderr).trim().chars().take(600).collect()),
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn a_libvirt_that_never_answers_keeps_no_revert_waiting() {
        // It takes connections, and says nothing.
        let mute = TcpListener::bind("127.0.0.1:0").unwrap();
        let libvirt = format!("qemu+tcp://127.0.0.1:{}/system", mute.local_addr().unwrap().port());
        let guest = Guest { libvirt: libvirt.clone(), domain: "web-1".into(), outside: BTreeSet::new() };
        let error = guest.open_within(Duration::from_millis(500)).unwrap_err().to_string();
        let said = format!("open the libvirt of web-1 at {libvirt}: libvirt at {libvirt} does not answer within 0 s");
        assert!(error.starts_with(&said), "{error}");
    }
}
