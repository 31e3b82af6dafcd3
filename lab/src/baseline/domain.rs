//! A machine that another libvirt has, taken as a baseline's source: its disk, with all that it is a layer over, while it is off.
//!
//! Nothing is changed there: the connection is read-only, and so is what is done to the disk. What comes of it is an image like any other,
//! and goes through the same [`super::intake`].

use std::{
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use patchlab_check::Digest;
use roxmltree::{Document, Node};
use virt::{connect::Connect, sys};

use super::{BuildError, failed, intake::said};
use crate::{
    machine::start_events,
    recipe::{Domain, Image, Place},
};

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
    let Domain { uri, name, .. } = domain;
    let broken = |reason: String| DomainError::Libvirt { uri: uri.clone(), reason };
    let refused = |error: virt::error::Error| broken(error.message().to_owned());
    // What it says comes back as an error.
    virt::error::clear_error_callback();
    start_events().map_err(|error| broken(error.to_string()))?;
    let connect = Connect::open_read_only(Some(uri)).map_err(refused)?;
    let found = connect.lookup_domain_by_name(name).map_err(refused)?;
    if found.is_active().map_err(refused)? {
        return Err(DomainError::Runs { name: name.clone(), uri: uri.clone() });
    }
    let xml = found.xml_desc(sys::VIR_DOMAIN_XML_INACTIVE).map_err(refused)?;
    disk(&xml).map_err(|reason| DomainError::Unusable { name: name.clone(), reason })
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
    use super::*;

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
