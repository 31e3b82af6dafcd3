//! `patchlab doctor`: can this machine run the lab? Every finding with its remedy.

use std::{fs, path::Path, process::Command};

use clap::Args;
use patchlab_lab::accelerator::Accelerator;
use serde::Serialize;

use super::{CliError, Exit, Global};
use crate::{lab::tools, place::Data};

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
/// Free disk that a baseline and its clones want: 4 GiB.
const DISK_BYTES: u64 = 4 << 30;
/// Memory that two clones and their template want, kB: 2 GiB.
const MEMORY_KB: u64 = 2 << 20;

/// The doctor.
#[derive(Debug, Args)]
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
    Bad,
}

impl State {
    fn name(self) -> &'static str {
        match self {
            Self::Good => "yes",
            Self::Slow => "slow",
            Self::Bad => "no",
        }
    }
}

impl Doctor {
    pub(super) fn run(self, global: &Global) -> Result<Exit, CliError> {
        let data = global.data()?;
        let findings = [programs(), root(), libvirt(), accelerator(), disk(&data), memory(), agent()];
        let output = global.output();
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

fn root() -> Finding {
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

fn libvirt() -> Finding {
    let dirs = ["/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64", "/usr/lib"];
    let driver = dirs
        .iter()
        .map(|dir| Path::new(dir).join("libvirt/connection-driver/libvirt_driver_qemu.so"))
        .find(|path| path.exists());
    match driver {
        Some(path) => finding("libvirt", State::Good, format!("embedded driver {}", path.display()), ""),
        None => {
            finding("libvirt", State::Bad, "no QEMU driver", "install libvirt-daemon-driver-qemu (lab/setup-host does)")
        }
    }
}

fn accelerator() -> Finding {
    match patchlab_lab::accelerator::probe() {
        Ok(probed) if probed.accelerator == Accelerator::Kvm => {
            finding("accelerator", State::Good, probed.to_string(), "")
        }
        Ok(probed) => finding(
            "accelerator",
            State::Slow,
            probed.to_string(),
            "about ten times slower than kvm; use a host whose /dev/kvm runs a kernel",
        ),
        Err(error) => finding("accelerator", State::Bad, error.to_string(), "run lab/setup-host as root"),
    }
}

fn disk(data: &Data) -> Finding {
    match rustix::fs::statvfs(data.dir()) {
        Ok(found) => {
            let free = found.f_bavail * found.f_frsize;
            let state = if free < DISK_BYTES { State::Bad } else { State::Good };
            let text = format!("{} GiB free in {}", free >> 30, data.dir().display());
            finding("disk", state, text, "4 GiB are needed: make room, or choose another folder with --data")
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
