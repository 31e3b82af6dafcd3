//! The agent inside a clone: its identity put there, its program started from the tools disk, its first answer awaited.
//!
//! The lab's clones and the demonstration's managed hosts get their agent the same way; only the enrolment differs.

use std::{path::Path, time::Duration};

use patchlab_check::Target as _;
use patchlab_lab::machine::{Forward, Machine, Protocol};
use patchlab_protocol::enrolment::FILE_NAME;
use serde::{Deserialize, Serialize};

use super::tools::{AGENT, MOUNT_POINT};

/// The folder of an enrolment on a host.
pub const ENROLMENT_DIR: &str = "/etc/patchlab-agent";
/// Its unit on a machine of the lab's.
pub const UNIT: &str = "patchlab-agent.service";
/// The agent's SNMP port on a clone.
pub const SNMP_PORT: u16 = 161;
/// The unit that hosts get.
const SHIPPED: &str = include_str!("../../../agent/etc/patchlab-agent.service");
/// How long the guest may take to mount a disk and start a unit; under software emulation this is seconds.
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// How often an agent may start again before it counts as one that cannot.
const RESTARTS: u32 = 3;

/// The files of an enrolment, as they are put into a guest.
#[derive(Clone, Serialize, Deserialize)]
pub struct EnrolmentFiles {
    /// `agent.toml`.
    pub config: String,
    /// `root.json`.
    pub root: String,
    /// `host.pem`.
    pub host_key: String,
}

/// The agent could not be started in a guest.
#[derive(Debug, thiserror::Error)]
#[error("start the agent on {machine}: {reason}")]
pub struct StartError {
    machine: String,
    reason: String,
}

impl EnrolmentFiles {
    /// Reads the folder that an enrolment wrote.
    pub fn read(dir: &Path) -> std::io::Result<Self> {
        let read = |name: &str| std::fs::read_to_string(dir.join(name));
        Ok(Self { config: read(FILE_NAME)?, root: read("root.json")?, host_key: read("host.pem")? })
    }
}

/// The forward by which an agent is reached at `address` of the machine's worker.
pub fn forward(address: std::net::SocketAddrV4) -> Forward {
    Forward { protocol: Protocol::Udp, host: address, guest_port: SNMP_PORT }
}

/// Puts the enrolment into the guest and starts the agent, which answers when this returns.
pub fn start(machine: &Machine, files: &EnrolmentFiles) -> Result<(), StartError> {
    enrol(machine, files)?;
    launch(machine)
}

/// The same for a host that is to start its agent by itself in each boot, as hosts do.
pub fn settle(machine: &Machine, files: &EnrolmentFiles) -> Result<(), StartError> {
    enrol(machine, files)?;
    let service: String = service().map(|line| format!("{line}\n")).collect();
    let unit = format!(
        "[Unit]\nDescription=patchlab agent\n[Service]\n{service}ExecStartPre=mkdir -p {MOUNT_POINT}\n\
         ExecStartPre=-mount -o ro /dev/vdb {MOUNT_POINT}\n\
         ExecStart={MOUNT_POINT}/{AGENT} run --config {ENROLMENT_DIR}/{FILE_NAME}\n\
         [Install]\nWantedBy=multi-user.target\n"
    );
    let path = format!("/etc/systemd/system/{UNIT}");
    machine.put_file(&path, unit.as_bytes(), 0o644).map_err(|error| failed(machine)(error.to_string()))?;
    run(machine, &format!("systemctl --quiet enable --now {UNIT}"))
}

/// The lines of the shipped unit's `[Service]` but for the program: what an agent of the lab's may do, a host's may, and the other way round. A
/// clone that is emulated beside others, or was paused, may stand still for longer than a host does: nobody watches there but the lab.
pub fn service() -> impl Iterator<Item = &'static str> {
    let lines = SHIPPED.lines().skip_while(|line| *line != "[Service]").skip(1);
    let lines = lines.take_while(|line| !line.starts_with('['));
    lines.filter(|line| {
        !line.is_empty()
            && !line.starts_with('#')
            && !["ExecStart=", "WatchdogSec="].iter().any(|key| line.starts_with(key))
    })
}

fn enrol(machine: &Machine, files: &EnrolmentFiles) -> Result<(), StartError> {
    let files = [(FILE_NAME, &files.config), ("root.json", &files.root), ("host.pem", &files.host_key)];
    let files: Vec<_> = files.into_iter().map(|(name, text)| (name, text.as_bytes())).collect();
    machine.put_files(ENROLMENT_DIR, &files, 0o600).map_err(|error| failed(machine)(error.to_string()))
}

fn failed(machine: &Machine) -> impl Fn(String) -> StartError {
    let machine = machine.name().to_owned();
    move |reason| StartError { machine: machine.clone(), reason }
}

/// Starts the agent of an enrolled guest as a unit of its own: after its enrolment, and after every reboot.
pub fn launch(machine: &Machine) -> Result<(), StartError> {
    // It ends when the agent is ready to answer: an SNMP message before that would be lost, and its answer awaited for seconds.
    let properties: String = service().map(|line| format!(" --property={line}")).collect();
    let script = format!(
        "mkdir -p {MOUNT_POINT} && mount -o ro /dev/vdb {MOUNT_POINT} && \
         systemd-run --quiet --unit={UNIT}{properties} {MOUNT_POINT}/{AGENT} run --config {ENROLMENT_DIR}/{FILE_NAME}"
    );
    run(machine, &script)
}

fn run(machine: &Machine, script: &str) -> Result<(), StartError> {
    let failed = failed(machine);
    let ran = machine.guest().run(script, None, START_TIMEOUT).map_err(|error| failed(error.to_string()))?;
    if ran.exit != Some(0) {
        return Err(failed(format!("exit {:?}: {}", ran.exit, ran.stderr.trim())));
    }
    Ok(())
}

/// Whether the agent's unit has ended, or does nothing but start. A machine that does not say so does not count.
pub fn has_ended(machine: &Machine) -> bool {
    let command = format!("systemctl show --property=ActiveState,NRestarts --value {UNIT}");
    let Ok(ran) = machine.guest().run(&command, None, START_TIMEOUT) else { return false };
    let words: Vec<&str> = ran.stdout.split_whitespace().collect();
    let restarts = words.iter().find_map(|word| word.parse::<u32>().ok()).unwrap_or(0);
    restarts >= RESTARTS || words.iter().any(|word| matches!(*word, "failed" | "inactive"))
}

/// The agent's very last words, in one line.
pub fn last_words(machine: &Machine) -> String {
    let command = format!("journalctl --no-pager --output=cat --lines=4 --unit={UNIT}");
    let said = machine.guest().run(&command, None, START_TIMEOUT).map_or_else(|error| error.reason, |ran| ran.stdout);
    said.lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect::<Vec<_>>()
        .join("; ")
        .chars()
        .take(600)
        .collect()
}

/// The agent's last words, for whoever must find out why it does not answer.
pub fn journal(machine: &Machine) -> String {
    let command = format!("journalctl --no-pager --lines=20 --unit={UNIT}");
    match machine.guest().run(&command, None, START_TIMEOUT) {
        Ok(ran) => ran.stdout,
        Err(error) => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_of_the_labs_is_started_with_the_options_of_the_unit_that_hosts_get() {
        let lines: Vec<&str> = service().collect();
        for expected in ["Type=notify", "Restart=on-failure", "KillMode=process", "TimeoutStartSec=infinity"] {
            assert!(lines.contains(&expected), "{expected} in {lines:?}");
        }
        // Each goes through a shell, as one word.
        let is_word = |line: &&str| line.chars().all(|c| c.is_ascii_alphanumeric() || "=-/.".contains(c));
        assert!(lines.iter().all(is_word) && !lines.iter().any(|line| line.starts_with("Exec")), "{lines:?}");
    }
}
