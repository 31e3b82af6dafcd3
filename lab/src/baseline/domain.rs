//! A machine that another libvirt has, taken as a baseline's source: its disk, with all that it is a layer over, while it is off.
//!
//! Nothing is changed there: the connection is read-only, and so is what is done to the disk. What comes of it is an image like any other,
//! and goes through the same [`super::intake`].

use std::{
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use patchlab_check::Digest;
use roxmltree::{Document, Node};
use virt::{connect::Connect, sys};

use super::{BuildError, failed, intake::said};
use crate::{
    machine::{Elsewhere, LabError, asked_within, elsewhere, start_events},
    recipe::{Domain, Image, Place},
};

/// How long a libvirt may take to say what a domain is. An embedded one finds out first what its QEMU can do, which takes a dozen seconds.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

/// A domain cannot be taken. Nothing of it was used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DomainError {
    /// libvirt said no.
    #[error("libvirt at {uri}: {reason}")]
    Libvirt {
        /// Where.
        uri: String,
        /// Its own words.
        reason: String,
    },
    /// It runs.
    #[error(
        "domain {name} runs: its disk holds half of what it is, the rest is in its memory. Shut it down before (`virsh -c {uri} \
         shutdown {name}`), or take a clone of it"
    )]
    Runs {
        /// Which.
        name: String,
        /// Where.
        uri: String,
    },
    /// It was put to sleep.
    #[error(
        "domain {name} is saved: its disk holds half of what it is, the rest is in the memory that libvirt saved. Start it and shut it \
         down before (`virsh -c {uri} start {name}`, then `shutdown {name}`), or give that memory up (`virsh -c {uri} \
         managedsave-remove {name}`)"
    )]
    Saved {
        /// Which.
        name: String,
        /// Where.
        uri: String,
    },
    /// Its disk is a file of another host.
    #[error(
        "domain {name}: libvirt at {uri} is on {there}, and a disk is read on the host that it is on, not here on {here}: build the \
         baseline there and bring it here (`patchlab baseline export` and `import`), or copy the disk here and use kind = \"disk\""
    )]
    Elsewhere {
        /// Which.
        name: String,
        /// Where libvirt is asked.
        uri: String,
        /// What its host is called.
        there: String,
        /// What this one is called.
        here: String,
    },
    /// It does not answer, or cannot be asked.
    #[error(transparent)]
    Lab(#[from] LabError),
    /// The lab has no machine like it.
    #[error("domain {name} cannot be a baseline: {reason}")]
    Unusable {
        /// Which.
        name: String,
        /// Why.
        reason: String,
    },
}

/// The one disk of a domain.
#[derive(Debug, PartialEq, Eq)]
struct Disk {
    path: PathBuf,
    /// As libvirt has it; what a guest writes to its disk says nothing about that.
    format: String,
}

/// The digest of all that decides what is built of a domain: of its recipe, and of what its disk is now.
pub(super) fn inputs(domain: &Domain, recipe: Digest) -> Result<Digest, BuildError> {
    let disk = look(domain)?;
    let found = std::fs::metadata(&disk.path).map_err(failed("read", &disk.path))?;
    let written = (found.len(), found.mtime(), found.mtime_nsec());
    Ok(Digest::of(format!("recipe {recipe}\ndisk {} {written:?}\n", disk.path.display())))
}

/// Writes the disk of a domain to one image in `work`.
pub(super) fn take(domain: &Domain, work: &Path) -> Result<Image, BuildError> {
    let (disk, whole) = (look(domain)?, work.join("domain.qcow2"));
    // QEMU's own lock is the second guard: a disk that is written to cannot be read.
    let convert = ["convert", "-f", &disk.format, "-O", "qcow2"];
    let ended = Command::new("qemu-img").args(convert).arg(&disk.path).arg(&whole).env("LC_ALL", "C.UTF-8").output();
    let ended = ended.map_err(failed("run qemu-img (package qemu-utils) on", &disk.path))?;
    if !ended.status.success() {
        let reason = format!("its disk {} cannot be read: {}", disk.path.display(), said(&ended));
        return Err(DomainError::Unusable { name: domain.name.clone(), reason }.into());
    }
    let (sha256, _) = Digest::of_file(&whole).map_err(failed("read", &whole))?;
    Ok(Image { place: Place::Path(whole), sha256, secrets: domain.secrets })
}

fn look(domain: &Domain) -> Result<Disk, DomainError> {
    look_within(ANSWER_TIMEOUT, domain)
}

fn look_within(timeout: Duration, domain: &Domain) -> Result<Disk, DomainError> {
    let asked = domain.clone();
    let xml = asked_within(timeout, &domain.uri, move |_| description(&asked))?;
    disk(&xml).map_err(|reason| DomainError::Unusable { name: domain.name.clone(), reason })
}

/// libvirt's description of a domain that is off, whose disk is on this host.
fn description(domain: &Domain) -> Result<String, DomainError> {
    let Domain { uri, name, .. } = domain;
    let refused =
        |error: virt::error::Error| DomainError::Libvirt { uri: uri.clone(), reason: error.message().to_owned() };
    // What it says comes back as an error.
    virt::error::clear_error_callback();
    start_events()?;
    let connect = Connect::open_read_only(Some(uri)).map_err(refused)?;
    let there = connect.hostname().map_err(refused)?;
    if let Elsewhere::There { here } = elsewhere(&there) {
        return Err(DomainError::Elsewhere { name: name.clone(), uri: uri.clone(), there, here });
    }
    let found = connect.lookup_domain_by_name(name).map_err(refused)?;
    if found.is_active().map_err(refused)? {
        return Err(DomainError::Runs { name: name.clone(), uri: uri.clone() });
    }
    if found.has_managed_save(0).map_err(refused)? {
        return Err(DomainError::Saved { name: name.clone(), uri: uri.clone() });
    }
    found.xml_desc(sys::VIR_DOMAIN_XML_INACTIVE).map_err(refused)
}

/// The one disk in libvirt's description of a domain, or why the lab has no machine like it.
fn disk(xml: &str) -> Result<Disk, String> {
    let document = Document::parse(xml).map_err(|error| format!("its description cannot be read: {error}"))?;
    let domain = document.root_element();
    let os = child(domain, "os").ok_or("its description says no <os>")?;
    let arch = child(os, "type").and_then(|kind| kind.attribute("arch")).unwrap_or("none");
    if arch != "x86_64" {
        return Err(format!("its processor is {arch}, and the lab runs x86_64"));
    }
    let is_uefi = os.attribute("firmware") == Some("efi")
        || child(os, "loader").is_some_and(|loader| loader.attribute("type") == Some("pflash"));
    if is_uefi {
        return Err("it boots by UEFI, and the lab's machines by BIOS".into());
    }
    let devices = child(domain, "devices").ok_or("its description says no <devices>")?;
    let is_disk = |node: &Node<'_, '_>| {
        node.has_tag_name("disk") && matches!(node.attribute("device"), None | Some("disk" | "lun"))
    };
    let mut disks = devices.children().filter(is_disk);
    let (Some(only), None) = (disks.next(), disks.next()) else {
        return Err(format!("it has {} disks, and a baseline has one", devices.children().filter(is_disk).count()));
    };
    let source = child(only, "source").and_then(|source| source.attribute("file"));
    let Some(path) = source.filter(|_| only.attribute("type") == Some("file")) else {
        let kind = only.attribute("type").unwrap_or("nothing");
        return Err(format!("its disk is of type {kind:?}: copy it to a file and use kind = \"disk\""));
    };
    let format = child(only, "driver").and_then(|driver| driver.attribute("type")).unwrap_or("raw");
    match format {
        "raw" | "qcow2" => Ok(Disk { path: path.into(), format: format.to_owned() }),
        other => Err(format!("its disk has the form {other}: raw and qcow2 are taken")),
    }
}

fn child<'a, 'x>(node: Node<'a, 'x>, name: &str) -> Option<Node<'a, 'x>> {
    node.children().find(|child| child.has_tag_name(name))
}

#[cfg(test)]
mod tests {
    use std::{net::TcpListener, time::Instant};

    use super::*;
    use crate::baseline::SecretsPolicy;

    #[test]
    fn a_libvirt_that_never_answers_keeps_no_capture_waiting() {
        // It takes connections, and says nothing.
        let mute = TcpListener::bind("127.0.0.1:0").unwrap();
        let uri = format!("qemu+tcp://127.0.0.1:{}/system", mute.local_addr().unwrap().port());
        let domain = Domain { uri: uri.clone(), name: "web-01".into(), secrets: SecretsPolicy::Scrub };
        let begun = Instant::now();
        let error = look_within(Duration::from_millis(500), &domain).unwrap_err();
        assert!(matches!(&error, DomainError::Lab(LabError::Silent { uri: silent, .. }) if *silent == uri), "{error}");
        assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    }

    #[test]
    fn only_a_disk_of_this_host_is_read() {
        let here = rustix::system::uname().nodename().to_string_lossy().into_owned();
        assert!(matches!(elsewhere(&format!("{here}.example.org")), Elsewhere::Here));
        assert!(matches!(elsewhere("another-host"), Elsewhere::There { here: found } if found == here));
    }

    const WHOLE: &str = "<domain type='kvm'><name>web-01</name><os><type arch='x86_64' machine='pc-q35-7.2'>hvm</type></os>\
        <devices><disk type='file' device='cdrom'><source file='/cd.iso'/></disk>\
        <disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='/var/lib/web &amp; 1.qcow2'/>\
        <target dev='vda'/></disk></devices></domain>";

    #[test]
    fn a_domain_with_one_disk_that_a_bios_boots_can_be_taken() {
        let found = disk(WHOLE).unwrap();
        assert_eq!(found, Disk { path: "/var/lib/web & 1.qcow2".into(), format: "qcow2".into() });
        assert_eq!(disk(&WHOLE.replace("<driver name='qemu' type='qcow2'/>", "")).unwrap().format, "raw");
        let second = "<disk type='file'><source file='/b'/></disk></devices>";
        for (xml, why) in [
            (WHOLE.replace("</devices>", second), "it has 2 disks"),
            (WHOLE.replace("device='disk'", "device='floppy'"), "it has 0 disks"),
            (WHOLE.replace("x86_64", "aarch64"), "its processor is aarch64"),
            (WHOLE.replace("<os>", "<os firmware='efi'>"), "it boots by UEFI"),
            (WHOLE.replace("</os>", "<loader type='pflash'>/o.fd</loader></os>"), "it boots by UEFI"),
            (WHOLE.replace("type='file' device='disk'", "type='block' device='disk'"), "its disk is of type \"block\""),
            (WHOLE.replace("'qcow2'", "'vmdk'"), "its disk has the form vmdk"),
            (WHOLE.replace("</domain>", ""), "its description cannot be read"),
        ] {
            let reason = disk(&xml).unwrap_err();
            assert!(reason.starts_with(why), "{why}: {reason}");
        }
    }
}
