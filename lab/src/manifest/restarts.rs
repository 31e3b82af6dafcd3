//! What a machine still runs of what was replaced: the signals by which needrestart(1) says that a reboot or restarts are due.
//!
//! A kernel is due when the running one is not the newest installed, or its own package has another version by now. A process is due when
//! it maps a program or library that is no longer on the disk; its unit is found by its control group. `/run/reboot-required` is what
//! packages say themselves.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::{Kernels, Package};

/// What is due.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restarts {
    /// Why a reboot is due, for people; empty when none is.
    pub reboot: BTreeSet<String>,
    /// Units with processes that map what is gone, each with those files. A process of no unit stands under `(NAME)`.
    pub units: BTreeMap<String, BTreeSet<String>>,
}

/// Processes of the lab's own, which no host has in this form.
const OWN: &[&str] = &["patchlab-agent"];

/// What the running kernel and packages say of a reboot (whether one is required, and by which packages), and processes of what they map:
/// `PID\tname\tcgroup` of each, and
/// `/proc/PID/maps:…` lines of mappings whose file is gone.
pub(super) fn parse(
    running: &str,
    kernels: &Kernels,
    packages: &BTreeMap<String, Package>,
    (required, asking): (&str, &str),
    (processes, maps): (&str, &str),
) -> Restarts {
    let mut reboot = BTreeSet::new();
    // Only a kernel that is installed can be asked about: a machine may be booted by its host with one that is not.
    if let Some(newest) = kernels.installed.last().filter(|newest| *newest != running)
        && kernels.installed.iter().any(|installed| installed == running)
    {
        reboot.insert(format!("kernel {running} runs, {newest} is installed"));
    }
    let image = format!("linux-image-{running}");
    let installed = packages.values().find(|package| package.name == image).map(|package| package.version.as_str());
    if let (Some(installed), Some(runs)) = (installed, kernels.running_version.as_deref())
        && installed != runs
    {
        reboot.insert(format!("kernel {running} runs as of {runs}, {installed} is installed"));
    }
    if !required.trim().is_empty() {
        let packages: BTreeSet<&str> = asking.split_whitespace().collect();
        let of = packages.into_iter().collect::<Vec<_>>().join(", ");
        reboot.insert(if of.is_empty() { "a package asks for it".to_owned() } else { format!("{of} ask for it") });
    }
    let named: BTreeMap<&str, (&str, &str)> = processes
        .lines()
        .filter_map(|line| {
            let mut fields = line.splitn(3, '\t');
            Some((fields.next()?, (fields.next()?, fields.next()?)))
        })
        .collect();
    let mut units: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for line in maps.lines() {
        let Some((process, file)) = mapping(line) else { continue };
        let Some((name, group)) = named.get(process) else { continue };
        if !OWN.contains(name) {
            units.entry(unit(name, group)).or_default().insert(file.to_owned());
        }
    }
    Restarts { reboot, units }
}

/// `/proc/12/maps:7f…-7f… r-xp 00000000 fe:01 123   /usr/lib/x.so (deleted)`: the process and the file.
fn mapping(line: &str) -> Option<(&str, &str)> {
    let (process, rest) = line.strip_prefix("/proc/")?.split_once("/maps:")?;
    let at = rest.find('/')?;
    let device_and_number = &rest[..at];
    // `fe:01` is the device's number; the path is what begins with the first slash behind it.
    (device_and_number.split_whitespace().count() >= 5).then_some(())?;
    Some((process, rest[at..].strip_suffix(" (deleted)")?))
}

/// The unit of a control group's path (`0::/system.slice/nginx.service`), else the process's name in brackets.
fn unit(name: &str, group: &str) -> String {
    let last = group.rsplit('/').find(|part| part.ends_with(".service"));
    last.map_or_else(|| format!("({name})"), str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kernels(installed: &[&str], running_version: &str) -> Kernels {
        Kernels {
            installed: installed.iter().map(|release| (*release).to_owned()).collect(),
            running_version: Some(running_version.to_owned()),
            modules: BTreeSet::new(),
            boot: super::super::BootMode::Bios,
        }
    }

    fn package(version: &str) -> BTreeMap<String, Package> {
        let (name, arch, status) =
            ("linux-image-6.1.0-50".to_owned(), "amd64".to_owned(), "install ok installed".to_owned());
        [(format!("{name}:{arch}"), Package { name, arch, version: version.to_owned(), status })].into()
    }

    #[test]
    fn a_reboot_is_due_for_another_kernel_and_when_packages_say_so() {
        let due = |installed: &[&str], version: &str, required: (&str, &str)| {
            let found = parse("6.1.0-50", &kernels(installed, "6.1.170-3"), &package(version), required, ("", ""));
            found.reboot.into_iter().collect::<Vec<_>>().join("; ")
        };
        assert_eq!(due(&["6.1.0-49", "6.1.0-50"], "6.1.170-3", ("", "")), "");
        assert_eq!(
            due(&["6.1.0-50", "6.1.0-51"], "6.1.170-3", ("", "")),
            "kernel 6.1.0-50 runs, 6.1.0-51 is installed"
        );
        assert_eq!(
            due(&["6.1.0-50"], "6.1.171-1", ("", "x")),
            "kernel 6.1.0-50 runs as of 6.1.170-3, 6.1.171-1 is installed"
        );
        // Booted with a kernel that is not its own.
        assert_eq!(due(&["6.1.0-51"], "6.1.170-3", ("", "")), "");
        assert_eq!(due(&["6.1.0-50"], "6.1.170-3", ("required\n", "libc6\ndbus\nlibc6\n")), "dbus, libc6 ask for it");
        assert_eq!(due(&["6.1.0-50"], "6.1.170-3", ("required\n", "")), "a package asks for it");
    }

    #[test]
    fn units_that_run_what_was_replaced() {
        let processes = "7\tnginx\t0::/system.slice/nginx.service\n8\tsleep\t0::/\n9\tpatchlab-agent\t0::/system.slice/patchlab-agent.service\n";
        let maps = "/proc/7/maps:7f10-7f20 r-xp 00001000 fe:01 42                     /usr/lib/libssl.so.3 (deleted)\n\
            /proc/7/maps:7f30-7f40 r-xp 00001000 fe:01 43   /usr/lib/a b.so (deleted)\n\
            /proc/8/maps:7f10-7f20 r-xp 0 fe:01 42 /usr/bin/sleep (deleted)\n\
            /proc/9/maps:7f10-7f20 r-xp 0 fe:01 42 /usr/lib/libssl.so.3 (deleted)\n\
            /proc/77/maps:7f10-7f20 r-xp 0 fe:01 42 /usr/lib/libssl.so.3 (deleted)\n\
            nonsense\n";
        let found = parse("6.1", &kernels(&[], ""), &BTreeMap::new(), ("", ""), (processes, maps));
        let units: Vec<(&str, Vec<&str>)> = found
            .units
            .iter()
            .map(|(unit, files)| (unit.as_str(), files.iter().map(String::as_str).collect()))
            .collect();
        assert_eq!(
            units,
            [("(sleep)", vec!["/usr/bin/sleep"]), ("nginx.service", vec!["/usr/lib/a b.so", "/usr/lib/libssl.so.3"])]
        );
        assert!(found.reboot.is_empty());
    }
}
