//! Physical, virtual, or a container: by the signs that systemd-detect-virt(1) goes by, without asking it.

use std::path::Path;

use super::text;

/// Most that is read of one sign, bytes; processors say the same thing each.
const SIGN_BYTES: u64 = 4096;

/// How DMI strings begin (systemd's `virt.c` has the same list), and whose machine that is. The first that fits counts.
const SIGNS: &[(&str, &str)] = &[
    ("KVM", "kvm"),
    ("OpenStack", "kvm"),
    ("KubeVirt", "kvm"),
    ("Amazon EC2", "amazon"),
    ("QEMU", "qemu"),
    ("VMware", "vmware"),
    ("VMW", "vmware"),
    ("innotek GmbH", "oracle"),
    ("VirtualBox", "oracle"),
    ("Oracle Corporation", "oracle"),
    ("Xen", "xen"),
    ("Bochs", "bochs"),
    ("Parallels", "parallels"),
    ("BHYVE", "bhyve"),
    ("Hyper-V", "microsoft"),
    ("Virtual Machine", "microsoft"),
    ("Apple Virtualization", "apple"),
    ("Google Compute Engine", "google"),
];

/// The kind of machine of the system below `root`; empty when nothing there says.
pub fn kind(root: &Path) -> &'static str {
    let sign = |place: &str| text(&root.join(place), SIGN_BYTES);
    let said = sign("proc/1/environ").split('\0').any(|word| word.starts_with("container="));
    let marked =
        ["run/systemd/container", ".dockerenv", "run/.containerenv"].iter().any(|mark| root.join(mark).exists());
    if said || marked {
        return "container";
    }
    let dmi = ["product_name", "sys_vendor", "board_vendor", "bios_vendor", "product_version"]
        .map(|name| sign(&format!("sys/class/dmi/id/{name}")));
    let whose = SIGNS.iter().find(|(begins, _)| dmi.iter().any(|said| said.starts_with(begins)));
    if let Some((_, whose)) = whose {
        return whose;
    }
    if sign("sys/hypervisor/type").starts_with("xen") {
        return "xen";
    }
    let processor = sign("proc/cpuinfo");
    let flags = processor.lines().find(|line| line.starts_with("flags")).unwrap_or_default();
    match () {
        () if flags.split_whitespace().any(|flag| flag == "hypervisor") => "virtual",
        () if processor.is_empty() && dmi.iter().all(String::is_empty) => "",
        () => "physical",
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn kind_with(signs: &[(&str, &str)]) -> &'static str {
        let root = tempfile::tempdir().unwrap();
        for (place, said) in signs {
            let path = root.path().join(place);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, said).unwrap();
        }
        kind(root.path())
    }

    #[test]
    fn each_sign_counts_and_none_is_nothing() {
        let (product, processor) = ("sys/class/dmi/id/product_name", "proc/cpuinfo");
        let cases: [(&[(&str, &str)], &str); 7] = [
            (&[], ""),
            (&[(product, "PowerEdge R640\n"), (processor, "flags\t\t: fpu vme\n")], "physical"),
            (&[(product, "Standard PC\n"), ("sys/class/dmi/id/sys_vendor", "QEMU\n")], "qemu"),
            (&[(product, "VMware Virtual Platform\n")], "vmware"),
            (
                &[(product, "Virtual Machine\n"), ("sys/class/dmi/id/sys_vendor", "Microsoft Corporation\n")],
                "microsoft",
            ),
            (&[(processor, "flags\t\t: fpu hypervisor\n")], "virtual"),
            (&[(product, "KVM\n"), ("proc/1/environ", "PATH=/bin\0container=lxc\0")], "container"),
        ];
        for (signs, expected) in cases {
            assert_eq!(kind_with(signs), expected, "{signs:?}");
        }
    }
}
