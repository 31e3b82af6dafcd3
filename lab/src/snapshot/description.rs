//! What libvirt's description of a machine says of its disks, and what it is to say; pure.

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    ops::Range,
    path::{Path, PathBuf},
};

use roxmltree::{Document, Node};

use super::{Format, Layer, Standing};
use crate::machine::escape;

/// A disk that is written to.
struct Disk<'a, 'x> {
    node: Node<'a, 'x>,
    target: &'a str,
}

impl Disk<'_, '_> {
    /// Its file; `None` when it is none.
    fn file(&self) -> Option<PathBuf> {
        let source = child(self.node, "source")?.attribute("file")?;
        (self.node.attribute("type") == Some("file")).then(|| source.into())
    }

    fn format(&self) -> &str {
        child(self.node, "driver").and_then(|driver| driver.attribute("type")).unwrap_or("raw")
    }
}

fn child<'a, 'x>(node: Node<'a, 'x>, name: &str) -> Option<Node<'a, 'x>> {
    node.children().find(|child| child.has_tag_name(name))
}

fn parsed(xml: &str) -> Result<Document<'_>, String> {
    Document::parse(xml).map_err(|error| format!("its description cannot be read: {error}"))
}

fn disks<'a, 'x>(document: &'a Document<'x>) -> Vec<Disk<'a, 'x>> {
    let devices = child(document.root_element(), "devices");
    let is_disk = |node: &Node<'_, '_>| {
        node.has_tag_name("disk") && matches!(node.attribute("device"), None | Some("disk" | "lun"))
    };
    let written = |node: &Node<'_, '_>| child(*node, "readonly").is_none();
    let nodes = devices.into_iter().flat_map(|devices| devices.children()).filter(is_disk).filter(written);
    nodes.filter_map(|node| Some(Disk { node, target: child(node, "target")?.attribute("dev")? })).collect()
}

/// The disks that are kept by a snapshot of this name, and where they would go on: beside what they were.
pub(super) fn layers(xml: &str, outside: &BTreeSet<String>, name: &str) -> Result<Vec<Layer>, String> {
    let document = parsed(xml)?;
    let disks = disks(&document);
    if let Some(missing) = outside.iter().find(|target| !disks.iter().any(|disk| disk.target == **target)) {
        let there: Vec<&str> = disks.iter().map(|disk| disk.target).collect();
        return Err(format!("it has no disk {missing} that is written to; it has {}", there.join(", ")));
    }
    let kept: Vec<_> = disks.iter().filter(|disk| !outside.contains(disk.target)).collect();
    if kept.is_empty() {
        return Err("all its disks stay outside: nothing is left to go back".into());
    }
    kept.into_iter().map(|disk| layer(disk, name)).collect()
}

fn layer(disk: &Disk<'_, '_>, name: &str) -> Result<Layer, String> {
    let target = disk.target.to_owned();
    let Some(base) = disk.file() else {
        let kind = disk.node.attribute("type").unwrap_or("nothing");
        return Err(format!("its disk {target} is of type {kind:?}: only disks that are files are kept by a snapshot"));
    };
    let format = match disk.format() {
        "raw" => Format::Raw,
        "qcow2" => Format::Qcow2,
        other => return Err(format!("its disk {target} has the form {other}: raw and qcow2 are taken")),
    };
    let mut layer = base.clone().into_os_string();
    layer.push(format!(".{name}"));
    Ok(Layer { target, base, format, layer: layer.into() })
}

/// libvirt's description of the snapshot.
pub(super) fn snapshot(name: &str, layers: &[Layer], outside: &BTreeSet<String>) -> String {
    let mut xml = format!("<domainsnapshot><name>{}</name><disks>", escape(name));
    for Layer { target, layer, .. } in layers {
        let (target, file) = (escape(target), escape(&layer.display().to_string()));
        let source = format!("<driver type='qcow2'/><source file='{file}'/>");
        let _ = write!(xml, "<disk name='{target}' snapshot='external'>{source}</disk>");
    }
    for target in outside {
        let _ = write!(xml, "<disk name='{}' snapshot='no'/>", escape(target));
    }
    xml + "</disks></domainsnapshot>"
}

/// Where a machine is with a snapshot: all its disks in the same place, or nobody knows.
pub(super) fn standing(xml: &str, layers: &[Layer]) -> Result<Standing, String> {
    let mut all = layers.iter().map(|layer| disk_standing(xml, layer));
    let first = all.next().ok_or("no disk is in its snapshot")??;
    for (layer, other) in layers.iter().skip(1).zip(all) {
        if other? != first {
            return Err(format!("its disk {} is not where its disk {} is", layer.target, layers[0].target));
        }
    }
    Ok(first)
}

/// Where one disk is.
pub(super) fn disk_standing(xml: &str, layer: &Layer) -> Result<Standing, String> {
    let document = parsed(xml)?;
    let target = &layer.target;
    let disk = disks(&document).into_iter().find(|disk| disk.target == target);
    let disk = disk.ok_or_else(|| format!("its disk {target} is gone"))?;
    match disk.file() {
        Some(file) if file == layer.base => Ok(Standing::Below),
        Some(file) if file == layer.layer => Ok(Standing::Above),
        other => Err(format!(
            "its disk {target} is {}, neither what it was ({}) nor where it went on ({}): somebody else has changed that",
            other.as_deref().unwrap_or(Path::new("no file")).display(),
            layer.base.display(),
            layer.layer.display()
        )),
    }
}

/// Whether a disk's layer is being written to what is below it.
pub(super) fn is_merging(xml: &str, layer: &Layer) -> Result<bool, String> {
    let document = parsed(xml)?;
    Ok(disks(&document).iter().any(|disk| disk.target == layer.target && child(disk.node, "mirror").is_some()))
}

/// The description with the old files in place of the layers, and not a byte of it otherwise changed.
pub(super) fn reverted(xml: &str, layers: &[Layer]) -> Result<String, String> {
    let document = parsed(xml)?;
    let mut changes: Vec<(Range<usize>, String)> = Vec::new();
    for disk in disks(&document) {
        let Some(layer) = layers.iter().find(|layer| layer.target == disk.target) else { continue };
        let attribute = |element: &str, name: &str| {
            let node = child(disk.node, element)?;
            Some(node.attribute_node(name)?.range_value())
        };
        let missing = |what: &str| format!("the {what} of its disk {} is not in its description", disk.target);
        let file = attribute("source", "file").ok_or_else(|| missing("file"))?;
        changes.push((file, escape(&layer.base.display().to_string())));
        let form = attribute("driver", "type").ok_or_else(|| missing("form"))?;
        changes.push((form, layer.format.name().to_owned()));
        // What is below the old file, that file says itself.
        changes.extend(child(disk.node, "backingStore").map(|below| (below.range(), String::new())));
    }
    changes.sort_by_key(|(range, _)| range.start);
    let mut changed = xml.to_owned();
    for (range, text) in changes.into_iter().rev() {
        changed.replace_range(range, &text);
    }
    Ok(changed)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As libvirt 9.0 tells it, after a snapshot of the first of two disks.
    const ABOVE: &str = "<domain type='kvm'><name>web-1</name><devices>\
        <disk type='file' device='cdrom'><source file='/cd.iso'/><target dev='sda'/><readonly/></disk>\
        <disk type='file' device='disk'><driver name='qemu' type='qcow2' cache='none'/><source file='/d/a &amp; b.qcow2.PO-1'/>\
        <backingStore type='file'><format type='raw'/><source file='/d/a &amp; b.qcow2'/></backingStore>\
        <target dev='vda' bus='virtio'/></disk>\
        <disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='/d/ledger.img'/><target dev='vdb'/></disk>\
        </devices></domain>";

    fn outside(targets: &[&str]) -> BTreeSet<String> {
        targets.iter().map(|target| (*target).to_owned()).collect()
    }

    fn below() -> String {
        reverted(ABOVE, &[of_vda()]).unwrap()
    }

    fn of_vda() -> Layer {
        let layer = "/d/a & b.qcow2.PO-1".into();
        Layer { target: "vda".into(), base: "/d/a & b.qcow2".into(), format: Format::Raw, layer }
    }

    #[test]
    fn every_disk_but_those_outside_goes_on_beside_what_it_was() {
        assert_eq!(layers(&below(), &outside(&["vdb"]), "PO-1").unwrap(), [of_vda()]);
        let xml = snapshot("PO-1", &[of_vda()], &outside(&["vdb"]));
        for part in [
            "<name>PO-1</name>",
            "<disk name='vda' snapshot='external'><driver type='qcow2'/><source file='/d/a &amp; b.qcow2.PO-1'/></disk>",
            "<disk name='vdb' snapshot='no'/>",
        ] {
            assert!(xml.contains(part), "{part} is not in {xml}");
        }
    }

    #[test]
    fn machines_of_which_no_snapshot_can_be_taken_are_refused_by_name() {
        let block = below().replace(
            "<disk type='file' device='disk'><driver name='qemu' type='raw' c",
            "<disk type='block' device='disk'><driver name='qemu' type='raw' c",
        );
        let vmdk = below().replace("type='raw' cache", "type='vmdk' cache");
        for (xml, outside, why) in [
            (below(), outside(&["vdz"]), "it has no disk vdz that is written to; it has vda, vdb"),
            (below(), outside(&["sda"]), "it has no disk sda"),
            (below(), outside(&["vda", "vdb"]), "all its disks stay outside"),
            (block, outside(&["vdb"]), "its disk vda is of type \"block\""),
            (vmdk, outside(&["vdb"]), "its disk vda has the form vmdk"),
            (below().replace("</domain>", ""), outside(&["vdb"]), "its description cannot be read"),
        ] {
            let reason = layers(&xml, &outside, "PO-1").unwrap_err();
            assert!(reason.starts_with(why), "{why}: {reason}");
        }
    }

    #[test]
    fn a_machine_is_below_or_above_its_snapshot_or_somebody_else_was_there() {
        assert_eq!(standing(ABOVE, &[of_vda()]).unwrap(), Standing::Above);
        assert_eq!(standing(&below(), &[of_vda()]).unwrap(), Standing::Below);
        let other = ABOVE.replace("file='/d/a &amp; b.qcow2.PO-1'", "file='/d/other.qcow2'");
        let reason = standing(&other, &[of_vda()]).unwrap_err();
        assert!(reason.contains("vda is /d/other.qcow2") && reason.contains("somebody else"), "{reason}");
        let vdb = Layer { target: "vdb".into(), base: "/d/ledger.img".into(), ..of_vda() };
        let reason = standing(ABOVE, &[of_vda(), vdb]).unwrap_err();
        assert!(reason.contains("vdb is not where its disk vda is"), "{reason}");
        assert!(standing(ABOVE, &[]).is_err());
    }

    #[test]
    fn a_machine_that_goes_back_has_its_old_files_and_all_else_as_it_is_now() {
        let expected = ABOVE
            .replace("/d/a &amp; b.qcow2.PO-1'", "/d/a &amp; b.qcow2'")
            .replace("type='qcow2' cache", "type='raw' cache")
            .replace(
                "<backingStore type='file'><format type='raw'/><source file='/d/a &amp; b.qcow2'/></backingStore>",
                "",
            );
        assert_eq!(below(), expected);
    }

    #[test]
    fn a_merge_that_was_cut_off_is_seen() {
        assert!(!is_merging(ABOVE, &of_vda()).unwrap());
        let merging = ABOVE.replace("<target dev='vda'", "<mirror type='file' job='active-commit'/><target dev='vda'");
        assert!(is_merging(&merging, &of_vda()).unwrap());
    }
}
