//! Checks: what is watched all the time on both clones. Pure functions over text that the validation collects.
//!
//! A check looks after each scenario's steps, in every phase. So that nothing between two looks is lost, what leaves a trace with a time
//! (journal, failed units, core dumps) is read from the baseline's freeze on, reboots included; the serial log is read whole; ports, disk,
//! setuid files and configuration are states, compared as they are at the look.
//!
//! ```text
//! collector (in the guest) → text → read::* → what each clone has → compare → Findings → differential → status of each side
//! ```

mod fold;
mod read;

use std::collections::BTreeSet;

use jiff::Timestamp;
use patchlab_check::{Outcome, Status, written::ByteSize};
use serde::{Deserialize, Serialize};

use crate::manifest::{attributes, disks};

pub use self::read::{failed_units, journal_errors, serial_panic};

/// How much more than the control a disk may hold when a check says nothing else: 100 MiB. Package files that are kept, and what two
/// machines write by running, stay far below.
pub const DISK_TOLERANCE: ByteSize = ByteSize(100 << 20);
/// Findings of a check that are shown.
const SHOWN: usize = 10;

/// A `[[check]]` of a scenario.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, schemars::JsonSchema)]
#[serde(try_from = "WrittenCheck")]
pub struct Check {
    /// What is watched.
    pub kind: CheckKind,
    /// What a finding means.
    pub level: Level,
    /// For [`CheckKind::DiskGrowth`]: how much more than the control is none.
    pub tolerance: ByteSize,
}

/// A check as it is written.
#[derive(Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
struct WrittenCheck {
    /// What is watched.
    kind: CheckKind,
    /// What a finding means; absent is `fail`.
    #[serde(default)]
    level: Level,
    /// Only of disk-growth: how much more than the control is none; absent is 100 MiB.
    tolerance: Option<ByteSize>,
}

impl TryFrom<WrittenCheck> for Check {
    type Error = String;

    fn try_from(written: WrittenCheck) -> Result<Self, String> {
        let WrittenCheck { kind, level, tolerance } = written;
        if tolerance.is_some() && kind != CheckKind::DiskGrowth {
            return Err(format!("only the check disk-growth has a tolerance, {} has none", kind.name()));
        }
        Ok(Self { kind, level, tolerance: tolerance.unwrap_or(DISK_TOLERANCE) })
    }
}

/// What a check watches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum CheckKind {
    /// Kernel panics and their kin on the serial console.
    SerialPanic,
    /// systemd units that are failed, or were since the freeze.
    FailedUnits,
    /// Programs that a signal ended as a crash does, whether the core was kept or not.
    Coredump,
    /// Journal entries of priority `err` and worse.
    JournalErrors,
    /// Listening ports that appeared or vanished against the control.
    ListeningPorts,
    /// More in use on a disk than on the control, beyond the tolerance.
    DiskGrowth,
    /// Programs that lend their owner's rights: setuid, setgid, file capabilities.
    SetuidFiles,
    /// Configuration files that are not what their package ships, and versions left beside them for somebody to merge.
    ChangedConfiguration,
}

/// What a finding means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Level {
    /// It fails the clone.
    #[default]
    Fail,
    /// It is shown.
    Info,
    /// It must be there: its absence fails the clone.
    ExpectFail,
}

/// What a check found on both clones.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Findings {
    /// On the control. Kinds that only compare find nothing there: the control is the measure.
    pub control: BTreeSet<String>,
    /// On the patched clone.
    pub patched: BTreeSet<String>,
}

impl CheckKind {
    /// Every kind.
    pub const ALL: [Self; 8] = [
        Self::SerialPanic,
        Self::FailedUnits,
        Self::Coredump,
        Self::JournalErrors,
        Self::ListeningPorts,
        Self::DiskGrowth,
        Self::SetuidFiles,
        Self::ChangedConfiguration,
    ];

    /// How its name among a scenario's steps begins.
    pub(super) const STEP_PREFIX: &'static str = "check ";

    /// The word it is written with.
    pub fn name(self) -> &'static str {
        match self {
            Self::SerialPanic => "serial-panic",
            Self::FailedUnits => "failed-units",
            Self::Coredump => "coredump",
            Self::JournalErrors => "journal-errors",
            Self::ListeningPorts => "listening-ports",
            Self::DiskGrowth => "disk-growth",
            Self::SetuidFiles => "setuid-files",
            Self::ChangedConfiguration => "changed-configuration",
        }
    }

    /// The name under which it stands among a scenario's steps in reports.
    pub fn step_name(self) -> String {
        format!("{}{}", Self::STEP_PREFIX, self.name())
    }

    /// Whether it reads what a machine keeps of what once happened: to look again on the same machine is to find the same.
    pub fn reads_traces(self) -> bool {
        match self {
            Self::SerialPanic | Self::FailedUnits | Self::Coredump | Self::JournalErrors => true,
            Self::ListeningPorts | Self::DiskGrowth | Self::SetuidFiles | Self::ChangedConfiguration => false,
        }
    }

    /// The command whose standard output [`Check::compare`] reads, run in the guest, for a baseline frozen `at` that time. `None` for
    /// the serial log, which is on the host.
    pub fn collector(self, at: Timestamp) -> Option<String> {
        let script = match self {
            Self::SerialPanic => return None,
            Self::FailedUnits => FAILED_UNITS,
            Self::Coredump => COREDUMPS,
            Self::JournalErrors => JOURNAL_ERRORS,
            Self::ListeningPorts => LISTENING,
            Self::DiskGrowth => DISK_USE,
            Self::SetuidFiles => SETUID_FILES,
            Self::ChangedConfiguration => CONFIGURATION,
        };
        // Paths of mount points may hold spaces.
        let places = "IFS='\n'\nset -f; places=$(disks | cut -f 2) && [ -n \"$places\" ] || exit 1; set -- $places; set +f; unset IFS\n";
        let disks =
            if script.contains("\"$@\"") { disks::shell() + &attributes::shell() + places } else { String::new() };
        Some(format!("since=@{}\n{BEGIN}{disks}# looks\n{script}", at.as_second()))
    }

    /// Whether only what the control does not have is a finding: every machine has setuid files, and most log an error. Of the others one
    /// that both have is told, as a thing that was wrong before.
    fn is_a_difference(self) -> bool {
        match self {
            Self::ListeningPorts
            | Self::DiskGrowth
            | Self::SetuidFiles
            | Self::ChangedConfiguration
            | Self::JournalErrors => true,
            Self::SerialPanic | Self::FailedUnits | Self::Coredump => false,
        }
    }
}

/// With which every collector begins: what is not there, or fails, ends it, since silence would pass for good news; and whose text it is.
const BEGIN: &str = "\
set -e
need() { for tool; do command -v \"$tool\" >/dev/null || { echo \"there is no program $tool: have the recipe install it\" >&2; exit 1; }; done; }
echo \"host $(uname -n)\"
";

/// The kernel's range of ports for whoever asks for none, then what is listened on.
const LISTENING: &str = "need ss; cat /proc/sys/net/ipv4/ip_local_port_range; ss -Hlntup";

/// Units that are failed, then the journal's word on every failure (systemd's SD_MESSAGE_UNIT_FAILURE_RESULT), and units that systemd
/// restarted.
const FAILED_UNITS: &str = "\
need systemctl journalctl
systemctl list-units --failed --plain --no-legend --no-pager
journalctl --since=$since --output=json --output-fields=UNIT --no-pager --lines=1000 \
  MESSAGE_ID=d9b373ed55a64feb8242e02dbe79a49c
systemctl show '*.service' --property=Id,NRestarts";

/// What systemd-coredump stored (its SD_MESSAGE_COREDUMP), what the kernel said of a fault, what systemd said of a service's end.
const COREDUMPS: &str = r#"
need journalctl grep find
journalctl --since=$since --output=json --output-fields=COREDUMP_COMM,COREDUMP_SIGNAL_NAME --no-pager --lines=1000 \
  MESSAGE_ID=fc2e22bc6ee647b6b90729ab34a250b1
journalctl --since=$since --output=cat --no-pager |
  grep -E 'segfault at [0-9a-f]+ ip |^traps: |code=(dumped|killed), status=[0-9]+/(SEGV|ABRT|BUS|ILL|FPE|SYS|TRAP)' | tail -n 1000
find "$@" -xdev -type f \( -name core -o -name 'core.[0-9]*' \) -newerct $since -printf 'core file %p\n' || :"#;

const JOURNAL_ERRORS: &str = "need journalctl; journalctl --since=$since --priority=err --output=json \
  --output-fields=SYSLOG_IDENTIFIER,_SYSTEMD_UNIT,MESSAGE --no-pager --lines=1000";

/// `bytes folder` a file system, then what the lab's own agent holds there, which is no growth by the patch.
const DISK_USE: &str = "\
need df du
df --local --block-size=1 --output=used,target -x tmpfs -x devtmpfs -x overlay -x squashfs -x iso9660 | tail -n +2
printf 'agent %s\\n' \"$(du -sxB1 /var/lib/patchlab-agent 2>/dev/null | cut -f1)\"";

/// Files with the bits, and executables with capabilities, with the value that they have (capabilities(7)).
const SETUID_FILES: &str = r#"
need find mktemp
find "$@" -xdev -type f -perm /6000 -printf '%M %u:%g %p\n' || :
list=$(mktemp -p /run)
find "$@" -xdev -type f -perm /111 -fprint0 "$list" || :
attributes capabilities "$list"
rm -f "$list""#;

/// md5sums of Debian's configuration files against those they were shipped with, the same by rpm, and leftovers of both and of ucf.
const CONFIGURATION: &str = r#"
need md5sum find
command -v dpkg-query >/dev/null || need rpm
dpkg-query -W -f '${Conffiles}\n' 2>/dev/null | sed -n 's/^ \(\/.*\) \([0-9a-f]\{32\}\)\( .*\)\{0,1\}$/\2  \1/p' |
  LC_ALL=C md5sum --check --quiet 2>/dev/null || :
command -v rpm >/dev/null && rpm --verify --all --nodeps --noscripts | awk '$2 == "c" && ($1 ~ /5/ || $1 == "missing") { print $3 ": FAILED" }'
find "$@" -xdev \( -path /proc -o -path /sys -o -path /dev -o -path /tmp -o -path /var/tmp \) -prune -o -type f \( \
  -name '*.dpkg-new' -o -name '*.dpkg-dist' -o -name '*.dpkg-old' -o -name '*.dpkg-tmp' -o -name '*.ucf-new' -o -name '*.ucf-old' \
  -o -name '*.ucf-dist' -o -name '*.rpmnew' -o -name '*.rpmsave' -o -name '*.rpmorig' \) -printf 'left %p\n' || :"#;

impl Check {
    /// What the check finds in the texts collected from the control and from the patched clone.
    pub fn compare(&self, control: &str, patched: &str) -> Findings {
        // What a machine logs names it; a file does not.
        let hosts = if self.kind.reads_traces() { fold::hosts([control, patched]) } else { BTreeSet::new() };
        let (control, patched) = (&*fold::without_names(control, &hosts), &*fold::without_names(patched, &hosts));
        let each = |read: fn(&str) -> BTreeSet<String>| Findings { control: read(control), patched: read(patched) };
        match self.kind {
            CheckKind::SerialPanic => each(serial_panic),
            CheckKind::FailedUnits => read::of_the_same_units(each(failed_units)),
            CheckKind::Coredump => each(read::coredumps),
            CheckKind::JournalErrors => each(journal_errors),
            CheckKind::SetuidFiles => each(read::setuid_files),
            CheckKind::ChangedConfiguration => each(read::changed_configuration),
            CheckKind::ListeningPorts => Findings {
                control: BTreeSet::new(),
                patched: read::ports_changed(&read::ports(control), &read::ports(patched)),
            },
            CheckKind::DiskGrowth => Findings {
                control: BTreeSet::new(),
                patched: read::growth(&read::disk_use(control), &read::disk_use(patched), self.tolerance),
            },
        }
    }

    /// The outcomes on (control, patched), by what was found on each.
    pub fn outcomes(&self, found: &Findings) -> (Outcome, Outcome) {
        let (control, patched) = differential(*self, &found.control, &found.patched);
        let new: BTreeSet<&String> = found.patched.difference(&found.control).collect();
        let old: BTreeSet<&String> = found.patched.intersection(&found.control).collect();
        // What the patch brought comes first.
        let shown = new.iter().chain(&old).copied();
        let blamed = if new.is_empty() { old.len() } else { new.len() };
        (outcome(control, found.control.iter(), found.control.len()), outcome(patched, shown, blamed))
    }
}

fn outcome<'a>(status: Status, found: impl Iterator<Item = &'a String>, count: usize) -> Outcome {
    let shown: Vec<&str> = found.take(SHOWN).map(String::as_str).collect();
    let reason = match status {
        Status::Pass | Status::Skip => String::new(),
        Status::Fail if count == 0 => "nothing found, and something was expected".into(),
        Status::Fail => {
            let more = if count > SHOWN { "; …" } else { "" };
            format!("{count} found: {}{more}", shown[..count.min(shown.len())].join("; "))
        }
    };
    Outcome { status, exit: None, ms: 0, output: shown.join("\n"), reason, samples: Vec::new() }
}

/// The status of a check on (control, patched), from what was found on each. A finding that the control has too is never
/// blamed on the patch; a new one is, even beside old ones.
pub fn differential(check: Check, control: &BTreeSet<String>, patched: &BTreeSet<String>) -> (Status, Status) {
    let status = |good: bool| if good { Status::Pass } else { Status::Fail };
    let nothing_new = patched.is_subset(control);
    match check.level {
        Level::Info => (Status::Pass, Status::Pass),
        Level::ExpectFail if check.kind.is_a_difference() => (Status::Pass, status(!nothing_new)),
        Level::Fail if check.kind.is_a_difference() => (Status::Pass, status(nothing_new)),
        Level::ExpectFail => (status(!control.is_empty()), status(!patched.is_empty())),
        Level::Fail if nothing_new => (status(control.is_empty()), status(patched.is_empty())),
        Level::Fail => (Status::Pass, Status::Fail),
    }
}

#[cfg(test)]
mod tests;
