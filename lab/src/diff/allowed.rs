//! What may differ between two runs of one machine, and why. Everything else is a difference.
//!
//! The list is part of what a proven rollback means, so it names things one by one. What changes by merely running and lies below
//! [`crate::manifest::VOLATILE`] is in no manifest to begin with.

use crate::manifest::Port;

/// How a path is named.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// This path.
    Exactly(&'static str),
    /// Everything below this folder, not the folder itself.
    Below(&'static str),
    /// This folder and everything below it.
    Tree(&'static str),
    /// Paths that end so.
    Ending(&'static str),
}

/// Paths that may differ, each with its reason.
pub const PATHS: &[(Place, &str)] = &[
    (Place::Exactly("/etc/machine-id"), "every clone has an identity of its own, given by the handshake"),
    (Place::Exactly("/var/lib/dbus/machine-id"), "every clone has an identity of its own, given by the handshake"),
    (Place::Exactly("/etc/hostname"), "every clone has a name of its own, given by the handshake"),
    (Place::Exactly("/etc/hosts"), "every clone has a name of its own, given by the handshake"),
    (Place::Exactly("/etc/ld.so.cache"), "cache, made by ldconfig from the libraries that are there"),
    (Place::Exactly("/etc/resolv.conf"), "written by the network's configuration at run time"),
    (Place::Exactly("/etc/adjtime"), "time stamp of the hardware clock"),
    (Place::Exactly("/etc/.updated"), "time stamp of systemd"),
    (Place::Exactly("/var/.updated"), "time stamp of systemd"),
    (Place::Exactly("/etc/passwd-"), "backup that the account tools write before any change"),
    (Place::Exactly("/etc/group-"), "backup that the account tools write before any change"),
    (Place::Exactly("/etc/shadow-"), "backup that the account tools write before any change"),
    (Place::Exactly("/etc/gshadow-"), "backup that the account tools write before any change"),
    (Place::Exactly("/etc/.pwd.lock"), "lock file of the account tools, empty"),
    (Place::Exactly("/var/lib/dpkg/status"), "rewritten by every dpkg run; its meaning is compared as packages"),
    (Place::Exactly("/var/lib/dpkg/status-old"), "backup that dpkg writes before any change"),
    (Place::Exactly("/var/lib/dpkg/available"), "list of packages on offer, not of installed ones"),
    (Place::Exactly("/var/lib/dpkg/available-old"), "backup that dpkg writes before any change"),
    (Place::Exactly("/var/lib/dpkg/diversions-old"), "backup that dpkg writes before any change"),
    (Place::Exactly("/var/lib/dpkg/statoverride-old"), "backup that dpkg writes before any change"),
    (Place::Exactly("/var/lib/dpkg/lock"), "lock file, empty"),
    (Place::Exactly("/var/lib/dpkg/lock-frontend"), "lock file, empty"),
    (Place::Exactly("/var/lib/dpkg/triggers/Lock"), "lock file, empty"),
    (Place::Exactly("/var/lib/dpkg/triggers/Unincorp"), "triggers under way, empty between runs"),
    (Place::Below("/var/lib/dpkg/updates"), "dpkg's own journal, empty between runs"),
    (Place::Exactly("/var/lib/apt/extended_states"), "apt's note of what was installed on its own account"),
    (Place::Below("/var/lib/apt/periodic"), "time stamps of apt's timers"),
    (Place::Below("/var/lib/apt/mirrors"), "apt's note of mirrors used"),
    (
        Place::Below("/var/lib/rpm"),
        "rpm's database, rewritten by every transaction; its meaning is compared as packages",
    ),
    (
        Place::Below("/usr/lib/sysimage/rpm"),
        "rpm's database, where Fedora and SUSE have it; its meaning is compared as packages",
    ),
    (Place::Below("/var/lib/rpm-state"), "scratch of packages' scripts during a transaction"),
    (Place::Below("/var/lib/dnf"), "dnf's history, and its note of what was installed on its own account"),
    (Place::Below("/var/lib/systemd/timers"), "time stamps of timers"),
    (Place::Below("/var/lib/systemd/timesync"), "time stamp of the clock"),
    (Place::Below("/var/lib/systemd/coredump"), "core dumps; watched by the check coredump"),
    (Place::Below("/var/lib/systemd/linger"), "users' sessions"),
    (Place::Below("/var/lib/systemd/rfkill"), "state of radio switches"),
    (Place::Below("/var/lib/systemd/backlight"), "state of screens"),
    (Place::Exactly("/var/lib/systemd/random-seed"), "entropy, new at every start and handshake"),
    (Place::Exactly("/var/lib/systemd/credential.secret"), "made at first use, different on every machine"),
    (Place::Exactly("/var/lib/systemd/catalog/database"), "cache, made from the message catalogues"),
    (Place::Exactly("/var/lib/logrotate/status"), "time stamps of log rotation"),
    (Place::Exactly("/var/lib/man-db/auto-update"), "time stamp of the manual's index"),
    (Place::Exactly("/usr/lib/udev/hwdb.bin"), "cache, made from the hardware data that is there"),
    (Place::Exactly("/etc/udev/hwdb.bin"), "cache, made from the hardware data that is there"),
    (Place::Exactly("/root/.bash_history"), "history of a shell"),
    (Place::Exactly("/root/.lesshst"), "history of a pager"),
    (Place::Ending(".pyc"), "cache, compiled by Python"),
    (Place::Ending("/__pycache__"), "cache, compiled by Python"),
    (Place::Tree("/etc/patchlab-agent"), "the agent's enrolment: it comes with the lab, not with the patch"),
    (Place::Tree("/var/lib/patchlab-agent"), "the agent's records: they outlive what they record"),
    (Place::Tree("/mnt/patchlab"), "mount point of the lab's second disk"),
];

/// Units that may differ, by the beginning of their names, each with its reason.
pub const UNITS_BEGINNING: &[(&str, &str)] = &[
    ("patchlab", "the lab's own"),
    ("mnt-patchlab", "mount of the lab's second disk"),
    ("run-", "transient unit"),
    ("session-", "session of a user or of the guest channel"),
    ("user@", "session of a user"),
    ("user-", "session of a user"),
    ("apt-daily", "started by its timer"),
    ("dpkg-db-backup.", "started by its timer"),
    ("dnf-makecache.", "started by its timer"),
    ("e2scrub_", "started by its timer"),
    ("fstrim.", "started by its timer"),
    ("logrotate.", "started by its timer"),
    ("man-db.", "started by its timer"),
    ("systemd-tmpfiles-clean.", "started by its timer"),
    ("systemd-hostnamed.", "started on demand, ends when idle"),
    ("systemd-timedated.", "started on demand, ends when idle"),
    ("systemd-localed.", "started on demand, ends when idle"),
    ("systemd-machine-id-commit.", "acts once on a new machine-id, which the handshake gives"),
    ("systemd-fsck@", "runs when a disk appears"),
    ("modprobe@", "runs when a module is asked for"),
    ("getty@", "appears and goes with its terminal"),
    ("serial-getty@", "appears and goes with its terminal"),
];

/// Units that may differ, by the end of their names, each with its reason.
pub const UNITS_ENDING: &[(&str, &str)] = &[
    (".device", "appears with its device: the lab's second disk is one"),
    (".scope", "group of processes, not a service"),
    (".slice", "group of units, not a service"),
    (".automount", "state follows its mount"),
];

/// Processes whose ports may differ, each with its reason.
pub const PORT_PROCESSES: &[(&str, &str)] = &[("patchlab-agent", "the lab's own")];

/// Why a path may differ; `None` when it may not.
pub fn path(path: &str) -> Option<&'static str> {
    let below = |folder: &str| path.strip_prefix(folder).is_some_and(|rest| rest.starts_with('/'));
    let fits = |place: &Place| match place {
        Place::Exactly(exact) => path == *exact,
        Place::Below(folder) => below(folder),
        Place::Tree(folder) => path == *folder || below(folder),
        Place::Ending(end) => path.ends_with(end),
    };
    PATHS.iter().find(|(place, _)| fits(place)).map(|(_, reason)| *reason)
}

/// Why a unit may differ; `None` when it may not.
pub fn unit(name: &str) -> Option<&'static str> {
    let beginning = UNITS_BEGINNING.iter().find(|(start, _)| name.starts_with(start));
    let ending = || UNITS_ENDING.iter().find(|(end, _)| name.ends_with(end));
    beginning.or_else(ending).map(|(_, reason)| *reason)
}

/// Why a port may differ; `None` when it may not.
pub fn port(port: &Port) -> Option<&'static str> {
    let process = port.process.as_deref()?;
    // The kernel keeps 15 characters of a process name.
    let fits = |name: &str| process == name || (process.len() == 15 && name.starts_with(process));
    PORT_PROCESSES.iter().find(|(name, _)| fits(name)).map(|(_, reason)| *reason)
}
