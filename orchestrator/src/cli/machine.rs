//! `patchlab host machine`, `host snapshots`, `host revert`, `host merge`: hosts that are virtual machines themselves.

use std::collections::BTreeSet;

use clap::Args;
use patchlab_lab::snapshot::{Guest, Stillness};

use super::{CliError, Client, Exit, Output, client::segment};
use crate::{
    api::MachineStory,
    pipeline::MachineRequest,
    store::{HostMachine, Snapshot, SnapshotState},
};

const MACHINE_EXAMPLES: &str = "Examples:
  patchlab host machine web-1 --libvirt qemu+ssh://kvm-3.example.org/system --domain web-1 --outside vdb
  patchlab host machine web-1 --forget

From then on a snapshot of its disks is taken before each apply, while it runs. When the order went well it is merged after --keep hours, and
when the host was not changed at once; after anything else it stays until somebody says `patchlab host revert` or `patchlab host merge`.

--outside names a disk that never goes back: the agent's ledger_dir (patchlab host enroll --ledger-dir) lies on it. In a window such a host
begins when this server takes its snapshot, so this server has to run then.";

/// Which machine a host is.
#[derive(Debug, Args)]
#[command(after_help = MACHINE_EXAMPLES)]
pub struct Machine {
    /// The host's name
    name: String,
    /// Where its libvirt is, as this server reaches it
    #[arg(long, value_name = "URI", required_unless_present = "forget", requires = "domain")]
    libvirt: Option<String>,
    /// Its name there
    #[arg(long, value_name = "NAME", requires = "libvirt")]
    domain: Option<String>,
    /// A disk of it that never goes back, by its target there; may be given several times
    #[arg(long, value_name = "TARGET", required_unless_present = "forget")]
    outside: Vec<String>,
    /// Hours that a snapshot is kept after an order went well
    #[arg(long, value_name = "HOURS", default_value_t = 24, value_parser = clap::value_parser!(u64).range(0..=720))]
    keep: u64,
    /// Take no more snapshots of it
    #[arg(long, conflicts_with_all = ["libvirt", "domain", "outside"])]
    forget: bool,
}

const REVERT_EXAMPLES: &str = "Example: patchlab host revert web-1

It is switched off as it is, gets the disks that it had before the order, boots from them, and is looked at: what it says is installed must be
what was then. All that was written to those disks since is gone from it; the files with that stay where they are, and are named. The disks
outside stay as they are, and so what its agent must not forget. Ends with 1 when it did not come back as it was. A run that is under way
on it ends. Ctrl-C leaves it to the server.";

/// A host to bring back.
#[derive(Debug, Args)]
#[command(after_help = REVERT_EXAMPLES)]
pub struct Revert {
    /// The host's name
    name: String,
}

const MERGE_EXAMPLES: &str = "Example: patchlab host merge web-1

What was written since its snapshot goes into its disks while it runs, and there is no way back to before the order any more.";

/// A host whose snapshot is not needed any more.
#[derive(Debug, Args)]
#[command(after_help = MERGE_EXAMPLES)]
pub struct Merge {
    /// The host's name
    name: String,
}

impl Machine {
    pub(super) async fn run(self, client: &Client, output: &Output) -> Result<Exit, CliError> {
        let machine = self.libvirt.zip(self.domain).map(|(libvirt, domain)| {
            let outside: BTreeSet<String> = self.outside.into_iter().collect();
            HostMachine { guest: Guest { libvirt, domain, outside }, keep_s: self.keep * 3600 }
        });
        let path = format!("hosts/{}/machine", segment(&self.name));
        let request = MachineRequest { machine };
        let _: MachineRequest = client.post(&path, &request).await?;
        match &request.machine {
            Some(machine) => {
                output.line(format!("{}\t{} at {}", self.name, machine.guest.domain, machine.guest.libvirt))
            }
            None => output.line(format!("{}\tno snapshot is taken of it", self.name)),
        }
        output.json(&request)?;
        Ok(Exit::Passed)
    }
}

/// Which machine a host is, in words.
pub(super) fn of(story: &MachineStory) -> String {
    let Some(HostMachine { guest, .. }) = &story.machine else { return "no machine".into() };
    let outside = guest.outside.iter().cloned().collect::<Vec<_>>().join(", ");
    format!("{} at {}, without {outside}", guest.domain, guest.libvirt)
}

/// The snapshot that a host has, in words.
pub(super) fn snapshot(story: &MachineStory) -> String {
    let Some(there) = &story.snapshot else { return "none".into() };
    let stillness = match there.stillness {
        Some(Stillness::Quiesced) => ", its disks at rest",
        Some(Stillness::PowerLoss) => ", its disks as after a power failure",
        None => "",
    };
    format!("{} before order {}{stillness}", there.state, there.order.short())
}

/// Says where there is a way back that nobody has gone.
pub(super) async fn hint(client: &Client, output: &Output, hosts: &[&str]) -> Result<(), CliError> {
    let open: Vec<Snapshot> = client.get("snapshots").await?;
    let held = |one: &&Snapshot| one.state == SnapshotState::Taken && one.merge_at.is_none();
    for one in open.iter().filter(held).filter(|one| hosts.contains(&one.host.as_str())) {
        output.note(format!(
            "{}: there is a snapshot from before this order: `patchlab host revert {0}` brings it back, `patchlab host merge {0}` goes on",
            one.host
        ));
    }
    Ok(())
}

/// Every snapshot that there is.
pub(super) async fn list(client: &Client, output: &Output) -> Result<Exit, CliError> {
    let open: Vec<Snapshot> = client.get("snapshots").await?;
    let rows: Vec<_> = open
        .iter()
        .map(|one| {
            let until = match (&one.merge_at, one.state) {
                (Some(at), _) => output.moment(at),
                (None, SnapshotState::Taken) => "somebody says".into(),
                (None, _) => "-".into(),
            };
            let (order, at) = (one.order.short(), output.moment(&one.at));
            vec![one.host.clone(), order, one.state.to_string(), at, until, one.reason.clone()]
        })
        .collect();
    output.table(&["host", "before order", "state", "taken", "kept until", "reason"], &rows);
    output.json(&open)?;
    Ok(Exit::Passed)
}

impl Revert {
    pub(super) async fn run(self, client: &Client, output: &Output) -> Result<Exit, CliError> {
        let begun: Snapshot = client.post(&format!("hosts/{}/revert", segment(&self.name)), &()).await?;
        let ended = follow(client, output, begun).await?;
        let layers = ended.layers.iter().map(|layer| layer.layer.display().to_string()).collect::<Vec<_>>().join(", ");
        let well = ended.state == SnapshotState::Reverted && ended.reason.is_empty();
        if ended.state == SnapshotState::Reverted {
            output.line(format!("{}\treverted to before order {}", ended.host, ended.order.short()));
            output.note(format!(
                "what it was then lies in {layers} on its machine's host: delete that when nobody needs it"
            ));
        }
        match ended.state {
            _ if well => {}
            SnapshotState::Reverted => output.note(format!("{}: look at it: {}", ended.host, ended.reason)),
            _ => output.note(format!(
                "{0}: not reverted, and maybe switched off: {1}. Put that right, then run `patchlab host revert {0}` again: it goes on from there",
                ended.host, ended.reason
            )),
        }
        output.json(&ended)?;
        Ok(if well { Exit::Passed } else { Exit::Rejected })
    }
}

impl Merge {
    pub(super) async fn run(self, client: &Client, output: &Output) -> Result<Exit, CliError> {
        let begun: Snapshot = client.post(&format!("hosts/{}/merge", segment(&self.name)), &()).await?;
        let ended = follow(client, output, begun).await?;
        let well = ended.state == SnapshotState::Merged;
        match well {
            true => output.line(format!("{}\tgoes on without its snapshot", ended.host)),
            false => output.note(format!("{}: not merged: {}", ended.host, ended.reason)),
        }
        output.json(&ended)?;
        Ok(if well { Exit::Passed } else { Exit::Rejected })
    }
}

/// Waits until what was begun with a snapshot has ended, well or not.
async fn follow(client: &Client, output: &Output, begun: Snapshot) -> Result<Snapshot, CliError> {
    let mut said = String::new();
    loop {
        let there: Snapshot = client.get(&format!("snapshots/{}?wait=2", begun.number)).await?;
        if !matches!(there.state, SnapshotState::Reverting | SnapshotState::Merging) {
            return Ok(there);
        }
        let line = format!("{}: {} {}", there.host, there.state, there.reason);
        if line != said {
            output.note(line.trim_end());
            said = line;
        }
    }
}
