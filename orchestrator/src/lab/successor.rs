//! A machine that becomes a baseline's successor: booted from its disk, the order put on by the agent as on a managed host, the agent
//! taken away again, shut down, its disk left.
//!
//! The machine keeps its baseline's identity: it has no siblings, and its own clones get theirs.

use std::{
    fs,
    os::unix::fs::chown,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use patchlab_check::{PackageSystem, Target as _};
use patchlab_lab::{
    Baseline, Lab, LabHost, Machine,
    applier::{Applied, Applier as _, NextBoot, Role},
    baseline::Baselines,
    machine::CloneSpec,
    worker::{Inside, Network, Worker},
};
use patchlab_protocol::{document::Order, enrolment::DEFAULT_STATE_DIR};
use serde::{Deserialize, Serialize};

use super::{
    agent,
    applier::{CloneIdentity, SnmpApplier, host_name},
    job::{Job, launcher},
    provisional::Provisional,
    tools,
    worker::open_endpoints,
};
use crate::{deploy::sink::Bells, place::Data};

/// The disk's name in the worker's folder.
const DISK: &str = "disk.qcow2";
/// The name there of what says which packages it has: dpkg's status, or the headers of rpm's.
const STATUS: &str = "status";
/// dpkg's status in the guest.
const STATUS_IN_GUEST: &str = "/var/lib/dpkg/status";
/// Where the guest writes rpm's headers.
const HEADERS_IN_GUEST: &str = "/run/patchlab-headers";
/// Bytes of it that are read: 64 MiB.
const STATUS_LIMIT: u64 = 64 << 20;
/// How long the agent's removal, a shutdown or a reboot may take with kvm; scaled by the accelerator's factor.
const STEP_TIMEOUT: Duration = Duration::from_secs(60);

/// What the worker is told.
#[derive(Serialize, Deserialize)]
struct Ask {
    baseline: String,
    documents: Provisional,
    tools: String,
}

/// What it says.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Tell {
    At(String),
    Left,
    Failed(String),
}

/// Puts `order` on a machine that boots `baseline`, and leaves the machine's disk and what says which packages it has.
///
/// # Errors
/// The order could not be put on whole, or the lab broke.
pub fn leave_patched(
    data: &Data,
    baseline: &Baseline,
    order: &Order,
    (disk, status): (&Path, &Path),
    told: &mut dyn FnMut(&str),
) -> anyhow::Result<()> {
    let mut worker =
        patchlab_lab::worker::spawn(&LabHost::here(), &data.lab(), &launcher(Job::Succeed)?, &Network::Isolated)?;
    let followed = follow(data, &mut worker, baseline, order, told);
    let taken = followed.and_then(|()| {
        take(&worker.folder().join(DISK), disk)?;
        take(&worker.folder().join(STATUS), status)
    });
    worker.end()?;
    taken
}

fn follow(
    data: &Data,
    worker: &mut Worker,
    baseline: &Baseline,
    order: &Order,
    told: &mut dyn FnMut(&str),
) -> anyhow::Result<()> {
    let mut receiver = worker.take_receiver().context("the worker's channel was taken")?;
    let host = host_name(&baseline.full_name(), Role::Patched);
    worker.sender().send(&Ask {
        baseline: baseline.digest.to_string(),
        documents: Provisional::sign(order, &[host], jiff::Timestamp::now())?,
        tools: tools::disk_in_worker(data, worker)?,
    })?;
    loop {
        match receiver.receive::<Tell>()? {
            Some(Tell::At(what)) => told(&what),
            Some(Tell::Left) => return Ok(()),
            Some(Tell::Failed(reason)) => bail!("{reason}"),
            None => {
                bail!("its worker ended; it wrote last: {}", worker.last_words());
            }
        }
    }
}

/// Takes over a file that the worker left.
fn take(from: &Path, to: &Path) -> anyhow::Result<()> {
    fs::rename(from, to).with_context(|| format!("move {} to {}", from.display(), to.display()))?;
    // Whoever broke out of a machine may have left a link to a file of ours there.
    if !fs::symlink_metadata(to).with_context(|| format!("look at {}", to.display()))?.is_file() {
        bail!("its worker left something else than a regular file at {}", from.display());
    }
    chown(to, Some(0), Some(0)).with_context(|| format!("take over {}", to.display()))
}

/// The worker's side.
pub fn serve(mut inside: Inside) -> anyhow::Result<()> {
    let Some(ask) = inside.receiver.receive::<Ask>()? else { return Ok(()) };
    let told = match patch(&inside, ask) {
        Ok(()) => Tell::Left,
        Err(error) => Tell::Failed(format!("{error:#}")),
    };
    Ok(inside.sender.send(&told)?)
}

fn patch(inside: &Inside, ask: Ask) -> anyhow::Result<()> {
    // A parent that is gone ends us by other means.
    let say = |what: &str| drop(inside.sender.send(&Tell::At(what.to_owned())));
    let baseline = Baselines::open(&inside.places).get(&ask.baseline)?;
    let lab = Lab::open(&inside.places, &inside.driver)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let clones = vec![CloneIdentity::generate(&baseline.full_name(), Role::Patched)?];
    let bells = Bells::default();
    let (endpoints, _sink) = runtime.block_on(open_endpoints(inside, &ask.documents, &clones, &bells))?;
    let disk = inside.places.work.join(&ask.tools);
    let handle = runtime.handle().clone();
    let applier = SnmpApplier::new(handle, ask.documents, endpoints, clones, bells, disk, |_, _| {});

    say("booting a machine that is to be the successor");
    let spec = CloneSpec {
        name: "successor".to_owned(),
        tools: applier.tools().map(Into::into),
        forwards: applier.forwards(Role::Patched),
    };
    let machine = lab.boot_unintroduced(&baseline, &spec)?;
    let timeout = STEP_TIMEOUT * machine.hardware().accelerator.factor();
    applier.prepare(Role::Patched, &machine)?;
    say("applying the order by the agent");
    let begun = Instant::now();
    let applied = applier.apply(&machine)?;
    whole(&applied)?;
    let took = begun.elapsed().as_secs();
    say(&format!("applied in {took} s: {} packages; taking the agent away", applied.transaction.len()));
    let on_trial = applier.next_boot(&machine) == NextBoot::KernelOnTrial;
    if on_trial {
        say("rebooting into the new kernel, which the agent confirms");
        machine.reboot(timeout)?;
        applier.resume(Role::Patched, &machine)?;
    }
    take_agent_away(&machine, timeout)?;
    if applied.reboot_needed && !on_trial {
        say("rebooting, as the order asks for");
        machine.reboot(timeout)?;
    }
    let place = match baseline.record.package_system() {
        PackageSystem::Dpkg => STATUS_IN_GUEST,
        PackageSystem::Rpm => {
            let ran = machine.guest().run(&format!("rpmdb --exportdb >{HEADERS_IN_GUEST}"), None, timeout)?;
            if ran.exit != Some(0) {
                bail!("rpmdb does not say which packages it has: {}", ran.stderr.trim());
            }
            HEADERS_IN_GUEST
        }
    };
    let status = machine.guest().read(place, STATUS_LIMIT)?;
    let status = status.with_context(|| format!("{place} is not there"))?;
    let path = inside.places.work.join(STATUS);
    fs::write(&path, status).with_context(|| format!("write {}", path.display()))?;
    say("shutting it down and writing its disk");
    machine.shut_down(timeout)?;
    Ok(machine.into_disk(&inside.places.work.join(DISK))?)
}

/// A machine on which the order's own checks fail is nobody's model.
fn whole(applied: &Applied) -> anyhow::Result<()> {
    match &applied.complaint {
        None => Ok(()),
        Some(complaint) => bail!("the checks that hosts repeat fail on it: {complaint}"),
    }
}

/// Takes away all that an enrolment and a run left in the guest.
fn take_agent_away(machine: &Machine, timeout: Duration) -> anyhow::Result<()> {
    let (tools, enrolment, state) = (tools::MOUNT_POINT, agent::ENROLMENT_DIR, DEFAULT_STATE_DIR);
    let script = format!(
        "systemctl stop {unit} && umount {tools} && rm -rf {enrolment} {state} && rmdir -p --ignore-fail-on-non-empty {tools} || exit
         for path in {tools} {enrolment} {state}; do [ ! -e $path ] || {{ echo $path is still there >&2; exit 1; }}; done",
        unit = agent::UNIT,
    );
    let ran = machine.guest().run(&script, None, timeout)?;
    match ran.exit {
        Some(0) => Ok(()),
        exit => bail!("take the agent away: exit {exit:?}: {}", ran.stderr.trim()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn applied(complaint: Option<String>) -> Applied {
        Applied { transaction: vec![], duration: Duration::ZERO, reboot_needed: false, complaint }
    }

    #[test]
    fn a_machine_that_complains_is_no_successor() {
        assert!(whole(&applied(None)).is_ok());
        let error = whole(&applied(Some("front page: 500".into()))).unwrap_err().to_string();
        assert!(error.contains("front page: 500"), "{error}");
    }

    #[test]
    fn only_a_regular_file_is_taken_over() {
        let dir = tempfile::tempdir().unwrap();
        let (link, to) = (dir.path().join("link"), dir.path().join("to"));
        std::os::unix::fs::symlink("/etc/passwd", &link).unwrap();
        assert!(take(&link, &to).unwrap_err().to_string().contains("something else than a regular file"));
    }
}
