//! `patchlab doctor`: can this machine run the lab? Every finding with its remedy.

use std::{fs, process::Command};

use clap::Args;
use jiff::Timestamp;
use patchlab_lab::{
    accelerator::{self, Accelerator},
    room::{self, Bytes},
};
use serde::Serialize;

use super::{CliError, Exit, Global, progress::Progress};
use crate::{
    lab::{tools, versions},
    legible,
    place::Data,
    trust::{
        root::{self, InForce, RootFileError},
        rotation::expiry,
    },
};

/// Programs that the lab starts, and the package each comes from.
const PROGRAMS: [(&str, &str); 10] = [
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("qemu-img", "qemu-utils"),
    ("mmdebstrap", "mmdebstrap"),
    ("grub-mkimage", "grub-common"),
    ("mke2fs", "e2fsprogs"),
    ("sfdisk", "fdisk"),
    ("ip", "iproute2"),
    ("setpriv", "util-linux"),
    ("apt-get", "apt"),
    ("dpkg-deb", "dpkg"),
];
/// Free disk that a baseline and its clones want.
const DISK: Bytes = Bytes(4 << 30);
/// Memory that two clones and their template want, kB: 2 GiB.
const MEMORY_KB: u64 = 2 << 20;

const EXAMPLES: &str = "Examples:
  patchlab doctor
  patchlab doctor --data /srv/patchlab --json -

Exit codes: 0 it can, 4 it cannot: the rows that say no name the remedy.";

/// The doctor.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Doctor {}

/// One finding.
#[derive(Debug, Serialize)]
struct Finding {
    what: &'static str,
    state: State,
    found: String,
    remedy: String,
}

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum State {
    Good,
    Slow,
    /// It works, and will not for long.
    Due,
    /// Not tried, since something else that is needed for it is missing.
    Untried,
    Bad,
}

impl State {
    fn name(self) -> &'static str {
        match self {
            Self::Good => "yes",
            Self::Slow => "slow",
            Self::Due => "due",
            Self::Untried => "not tried",
            Self::Bad => "no",
        }
    }
}

impl Doctor {
    pub(super) fn run(self, global: &Global) -> Result<Exit, CliError> {
        let data = global.data()?;
        let output = global.output();
        let mut progress = Progress::new(output.voice());
        let (programs, rights) = (programs(), rights());
        progress.now("opening libvirt, which the first time takes some seconds");
        let libvirt = libvirt(&data, &rights);
        progress.now("running a payload");
        let accelerator = accelerator();
        drop(progress);
        let mut findings = vec![programs, rights, libvirt, accelerator, disk(&data), memory(), agent()];
        findings.extend(root_document(root::read(&data.root_document()), Timestamp::now()));
        let rows: Vec<_> = findings
            .iter()
            .map(|finding| {
                vec![
                    finding.what.to_owned(),
                    finding.state.name().to_owned(),
                    finding.found.clone(),
                    finding.remedy.clone(),
                ]
            })
            .collect();
        output.table(&["what", "good", "found", "remedy"], &rows);
        output.json(&findings)?;
        let bad = findings.iter().any(|finding| finding.state == State::Bad);
        Ok(if bad { Exit::Broken } else { Exit::Passed })
    }
}

fn finding(what: &'static str, state: State, found: impl Into<String>, remedy: &str) -> Finding {
    let remedy = if state == State::Good { String::new() } else { remedy.to_owned() };
    Finding { what, state, found: found.into(), remedy }
}

fn in_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let usual = ["/usr/sbin", "/sbin"].map(Into::into);
    std::env::split_paths(&path).chain(usual).any(|dir| dir.join(program).is_file())
}

fn programs() -> Finding {
    let missing: Vec<&str> =
        PROGRAMS.iter().filter(|(program, _)| !in_path(program)).map(|(_, package)| *package).collect();
    if !missing.is_empty() {
        return finding(
            "programs",
            State::Bad,
            format!("missing packages: {}", missing.join(", ")),
            "run lab/setup-host as root",
        );
    }
    let version = Command::new("qemu-system-x86_64").arg("--version").output().ok();
    let version =
        version.map(|output| String::from_utf8_lossy(&output.stdout).lines().next().unwrap_or_default().to_owned());
    finding("programs", State::Good, version.unwrap_or_default(), "")
}

fn rights() -> Finding {
    let is_root = rustix::process::geteuid().is_root();
    let user = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let has_user = user.lines().any(|line| line.starts_with(&format!("{}:", patchlab_lab::worker::USER)));
    match (is_root, has_user) {
        (true, true) => {
            finding("rights", State::Good, format!("root, and machines run as {}", patchlab_lab::worker::USER), "")
        }
        (false, _) => finding("rights", State::Bad, "not root", "the lab makes network namespaces: run with sudo"),
        (true, false) => finding(
            "rights",
            State::Bad,
            format!("no user {}", patchlab_lab::worker::USER),
            "run lab/setup-host as root",
        ),
    }
}

/// Opens libvirt for real, in a worker, as every lab command does.
fn libvirt(data: &Data, rights: &Finding) -> Finding {
    if rights.state != State::Good {
        return finding(
            "libvirt",
            State::Untried,
            "the worker that opens it needs what is missing above",
            &rights.remedy,
        );
    }
    match versions::ask(data) {
        Ok(versions) => finding(
            "libvirt",
            State::Good,
            format!("embedded driver of libvirt {} opens, with QEMU {}", versions.libvirt, versions.qemu),
            "",
        ),
        Err(error) => {
            let remedy = if room::ran_out(&*error) {
                "make room, or choose another folder with --data"
            } else {
                "install libvirt-daemon-driver-qemu and qemu-system-x86 (lab/setup-host as root does)"
            };
            finding("libvirt", State::Bad, format!("{error:#}"), remedy)
        }
    }
}

fn accelerator() -> Finding {
    match accelerator::probe() {
        Ok(probed) if probed.accelerator == Accelerator::Kvm => {
            finding("accelerator", State::Good, probed.to_string(), "")
        }
        Ok(probed) => finding(
            "accelerator",
            State::Slow,
            probed.to_string(),
            "everything works, and takes longer; use a host whose /dev/kvm runs a kernel",
        ),
        Err(error) => finding("accelerator", State::Bad, error.to_string(), "run lab/setup-host as root"),
    }
}

fn disk(data: &Data) -> Finding {
    match room::free(data.dir()) {
        Ok(free) => {
            let state = if free < DISK { State::Bad } else { State::Good };
            let remedy = format!("{DISK} are needed: make room, or choose another folder with --data");
            finding("disk", state, format!("{free} free in {}", data.dir().display()), &remedy)
        }
        Err(error) => finding(
            "disk",
            State::Bad,
            format!("{}: {error}", data.dir().display()),
            "choose another folder with --data",
        ),
    }
}

fn memory() -> Finding {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let available = text
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:")?.split_whitespace().next()?.parse::<u64>().ok());
    let available = available.unwrap_or(0);
    let state = if available < MEMORY_KB { State::Bad } else { State::Good };
    finding("memory", state, format!("{} MiB available", available >> 10), "2 GiB are needed: stop something")
}

fn agent() -> Finding {
    match tools::agent_program() {
        Ok(path) => finding("agent", State::Good, path.display().to_string(), ""),
        Err(error) => finding("agent", State::Bad, error.to_string(), "run tests/build"),
    }
}

/// The root document, where there is one: the lab needs none.
fn root_document(there: Result<InForce, RootFileError>, now: Timestamp) -> Option<Finding> {
    let what = "root document";
    Some(match there {
        Err(RootFileError::Absent(_)) => return None,
        Err(error) => finding(what, State::Bad, error.to_string(), "bring it back from a backup"),
        Ok(InForce { root, .. }) => match expiry(root.expires, now).warning(root.version) {
            None => {
                let until = legible::moment(root.expires);
                finding(what, State::Good, format!("root {}, valid until {until}", root.version), "")
            }
            Some(warning) => finding(what, State::Due, warning, "make the next one, have it signed, and import it"),
        },
    })
}

#[cfg(test)]
mod tests {
    use jiff::ToSpan as _;
    use patchlab_protocol::Envelope;

    use super::*;

    #[test]
    fn a_root_that_expires_soon_is_due_and_one_that_is_not_there_is_not_missed() {
        let absent = || Err(RootFileError::Absent("root.json".into()));
        let root = crate::gate::tests::root();
        let envelope = Envelope::unsigned(root.clone());
        let there = || Ok(InForce { digest: envelope.digest(), envelope: envelope.clone(), root: root.clone() });
        let state = |there, hours: i64| {
            let now = root.expires.checked_sub(hours.hours()).unwrap();
            root_document(there, now).map(|finding| finding.state)
        };
        assert_eq!(state(absent(), 1), None);
        assert_eq!(state(there(), 31 * 24), Some(State::Good));
        assert_eq!(state(there(), 29 * 24), Some(State::Due));
        assert_eq!(state(there(), -1), Some(State::Due));
    }
}
