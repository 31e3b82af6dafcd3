//! A baseline's first boot, its freeze and the proof that it holds, in a worker.
//!
//! The worker is started before the system is installed: what it cannot do (no libvirt, no QEMU) is known in the build's first
//! seconds, and so is how slow the machine will be.

use std::{
    collections::BTreeMap,
    fs, io,
    path::Path,
    process::ExitCode,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use patchlab_check::{Digest, PackageSystem};
use serde::{Deserialize, Serialize};
use virt::sys;

use super::{
    Coverage, Frozen, Secret, Secrets, SecretsPolicy, Verified, Weight,
    captured::{self, Captured},
    cloud,
    image::BOOT_MENU,
    managed::OwnAgent,
    proof::{self, Planted, ProofError},
    secrets::{Extent, Scope, SecretsError},
};
use crate::{
    accelerator::{self, Accelerator, Probed, host_cpu},
    machine::{
        Carried, CloneSpec, DiskFate, GUEST_ADDRESS, Guest, Hardware, Lab, LabError, MACHINE, Machine, Memory, Plan,
        Rung, Screen, Template, rehearse, with_source,
    },
    manifest,
    worker::{self, Inside},
};

/// What the worker is to freeze: `disk.qcow2` in its folder.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FreezeOrder {
    pub(super) memory_mib: u64,
    #[serde(default)]
    pub(super) screen: Option<Screen>,
    pub(super) vcpus: u32,
    pub(super) ready_units: Vec<String>,
    /// With kvm.
    pub(super) ready_timeout_s: u64,
    pub(super) origin: Origin,
}

/// Who made the system on the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Origin {
    /// The lab: it has what the lab needs.
    Lab,
    /// Somebody else: what its packages are is taken from it, to [`captured::ARCHIVE`].
    Captured(SecretsPolicy),
    /// Somebody else, and it is given a seed, [`cloud::SEED`], in a boot before the one that is frozen.
    CloudImage(SecretsPolicy),
}

/// What the worker says.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum FreezeWord {
    /// libvirt is open; what will run the machine, as probed.
    Open {
        accelerator: Accelerator,
        probed: String,
    },
    Step {
        step: u32,
        what: String,
        weight: Weight,
    },
    Frozen(Box<Freezer>),
    /// The system holds secrets, and may not.
    Secrets {
        found: Vec<Secret>,
        extent: Extent,
    },
    Failed {
        reason: String,
    },
}

/// What a machine was frozen on and under.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Freezer {
    pub(super) hardware: Hardware,
    pub(super) frozen: Frozen,
    pub(super) verified: Verified,
    pub(super) coverage: Coverage,
    /// Of a captured system.
    pub(super) secrets: Option<Secrets>,
    /// The frozen files before any clone was made of them.
    pub(super) digests: BTreeMap<String, Digest>,
}

/// The first boot or the freeze failed, or the freeze does not hold.
#[derive(Debug, thiserror::Error)]
enum FreezeError {
    #[error(transparent)]
    Lab(#[from] LabError),
    #[error(transparent)]
    Proof(#[from] ProofError),
    /// Nobody answers from inside a system that somebody else made.
    #[error("{0}; does the system in the image have the package qemu-guest-agent?")]
    NoAgent(LabError),
    #[error("the system in the image lacks {0}: the lab needs it there")]
    Lacking(String),
    #[error(transparent)]
    Secrets(#[from] SecretsError),
}

/// How long the freeze itself may take: it writes the device state alone.
const FREEZE_TIMEOUT: Duration = Duration::from_secs(60);

/// How long the system may take to come to rest, with kvm.
const REST_TIMEOUT: Duration = Duration::from_secs(60);

/// Waits until the system is up and its processors are at rest: two seconds in a row with less than a tenth busy. Gives up after as
/// many seconds as its argument says, and shows what was busy.
const SETTLE: &str = r#"
systemctl is-system-running --wait >/dev/null 2>&1
rest=0
for _ in $(seq "$1"); do
  read -r _ u n s i w q t _ </proc/stat
  busy=$((u + n + s + q + t)); all=$((busy + i + w))
  sleep 1
  read -r _ u n s i w q t _ </proc/stat
  now=$((u + n + s + q + t)); total=$((now + i + w))
  if [ $(((now - busy) * 10)) -lt $((total - all)) ]; then rest=$((rest + 1)); else rest=0; fi
  [ "$rest" -lt 2 ] || exit 0
done
echo "the system does not come to rest within $1 s; busiest:" $(ps -eo comm= --sort=-pcpu | head -n 3) >&2
exit 1
"#;

/// Names what the lab needs and the system lacks: its argument is the address that it must have, if any.
const LACKING: &str = r#"
case $(package_system) in dpkg) of=dpkg-query;; rpm) of='rpm rpmdb';; esac
for program in $of bash find perl sha256sum ss systemctl tar timeout xargs; do
  command -v "$program" >/dev/null || printf 'the program %s, ' "$program"
done
[ -z "$1" ] || ip -4 -oneline address show | grep -q " inet $1/" ||
  printf 'the address %s (it must take its address by DHCP, or have this one), ' "$1"
exit 0
"#;

/// The hidden subcommand's body for [`super::Baselines::build`]: becomes a worker, opens libvirt, freezes what it is given, says how
/// that went.
pub fn serve_freeze() -> ExitCode {
    let mut inside = match worker::enter() {
        Ok(inside) => inside,
        Err(code) => return code,
    };
    let word = match serve(&mut inside) {
        Ok(Some(freezer)) => FreezeWord::Frozen(Box::new(freezer)),
        // The build ended before the system was installed.
        Ok(None) => return ExitCode::SUCCESS,
        Err(FreezeError::Secrets(SecretsError::Found(found, extent))) => FreezeWord::Secrets { found, extent },
        Err(error) => FreezeWord::Failed { reason: with_source(&error) },
    };
    match inside.sender.send(&word) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn serve(inside: &mut Inside) -> Result<Option<Freezer>, FreezeError> {
    let lab = Lab::open(&inside.places, &inside.driver)?;
    let probed = accelerator::probe().map_err(|source| LabError::Io {
        action: "try what runs machines, with",
        path: "qemu-system-x86_64".into(),
        source,
    })?;
    // A parent that is gone ends us by other means.
    let _ = inside.sender.send(&FreezeWord::Open { accelerator: probed.accelerator, probed: probed.to_string() });
    let Ok(Some(order)) = inside.receiver.receive::<FreezeOrder>() else { return Ok(None) };
    freeze(&lab, inside, &order, &probed).map(Some)
}

fn freeze(lab: &Lab, inside: &Inside, order: &FreezeOrder, probed: &Probed) -> Result<Freezer, FreezeError> {
    let say = |step: u32, what: &str, weight: Weight| {
        let _ = inside.sender.send(&FreezeWord::Step { step, what: what.to_owned(), weight });
    };
    let step = |step: u32, what: &str| say(step, what, Weight::Passing);
    let accelerator = choose(lab, inside, order, probed, &say)?;
    let secrets = match order.origin {
        Origin::CloudImage(policy) => {
            step(3, "letting cloud-init do its work, in a boot of its own");
            Some(first_boot(lab, inside, order, accelerator, policy)?)
        }
        Origin::Captured(SecretsPolicy::Scrub) => {
            step(3, "scrubbing secrets, in a boot of its own");
            Some(scrubbing_boot(lab, inside, order, accelerator, &say)?)
        }
        Origin::Captured(_) | Origin::Lab => None,
    };
    step(3, &format!("booting by its own bootloader ({accelerator:?})"));
    let work = &inside.places.work;
    let machine =
        lab.start_as(plan(lab, inside, order, accelerator, Memory::Template(work.join("ram")), DiskFate::Keep)?)?;
    let timeout = Duration::from_secs(order.ready_timeout_s) * accelerator.factor();
    machine.wait_agent(timeout).map_err(|error| order.origin.explain(error))?;
    machine.wait_units(timeout)?;
    if order.origin == Origin::Lab {
        machine.guest().script(BOOT_MENU, &[], timeout).map_err(LabError::from)?;
    }
    let guest = machine.guest();
    let own_agent = match order.origin {
        Origin::Lab => None,
        Origin::Captured(_) | Origin::CloudImage(_) => {
            equipped(&guest, "", timeout)?;
            OwnAgent::stop(&guest, timeout).map_err(LabError::from)?
        }
    };
    step(4, "letting it come to rest");
    let patience = REST_TIMEOUT * accelerator.factor();
    guest.script(SETTLE, &[&patience.as_secs().to_string()], timeout + patience * 2).map_err(LabError::from)?;
    let secrets = match (secrets, order.origin) {
        (None, Origin::Captured(policy)) => {
            step(5, "looking for secrets");
            Some(policy.apply(&guest, Scope::Whole, timeout)?)
        }
        (secrets, _) => secrets,
    };
    take_off(own_agent.as_ref(), &guest, timeout, &say)?;
    step(5, "asking it what it is made of");
    let captured = capture(&guest, order.origin, work, timeout)?;
    step(5, "taking the manifest");
    let at = machine.clock()?;
    let manifest = manifest::collect(&machine)?;
    let path = work.join("manifest.json");
    let text = serde_json::to_vec(&manifest).map_err(io::Error::from);
    text.and_then(|text| fs::write(&path, text)).map_err(|source| LabError::Io { action: "write", path, source })?;
    let coverage = captured.coverage(&manifest);
    rehearse(&guest, timeout).map_err(LabError::from)?;
    let mut planted = Planted::plant(&machine)?;
    guest.script("sync", &[], timeout).map_err(LabError::from)?;
    planted.last_look(&machine)?;
    step(6, "freezing memory and devices");
    let xml = machine.description()?;
    let hardware = Hardware { machine: machine_type(&xml), ..machine.hardware().clone() };
    machine.write_state(&work.join("state"), Carried::Devices, FREEZE_TIMEOUT)?;
    let path = work.join("domain.xml");
    fs::write(&path, xml).map_err(|source| LabError::Io { action: "write", path, source })?;
    machine.destroy()?;
    step(7, "proving the freeze on two clones");
    let digests = digests(work, &planted)?;
    let template = Template { folder: work, hardware: &hardware, ready_units: &order.ready_units };
    let verified = proof::prove(lab, &template, &planted)?;
    let frozen = Frozen { versions: lab.versions().clone(), host_cpu: host_cpu(), kernel: manifest.kernel, at };
    Ok(Freezer { hardware, frozen, verified, coverage, secrets, digests })
}

impl Origin {
    /// Why nobody answers, as far as it is known.
    fn explain(self, error: LabError) -> FreezeError {
        match self {
            Self::Captured(_) | Self::CloudImage(_) if matches!(error, LabError::Timeout { .. }) => {
                FreezeError::NoAgent(error)
            }
            _ => error.into(),
        }
    }
}

/// A script that can ask which package system the machine has.
fn knowing(script: &str) -> String {
    format!("{}{script}", PackageSystem::shell())
}

/// Takes what a system says of its packages; one that somebody else made must have what the lab needs.
fn capture(guest: &Guest, origin: Origin, work: &Path, timeout: Duration) -> Result<Captured, FreezeError> {
    if origin != Origin::Lab {
        equipped(guest, GUEST_ADDRESS, timeout)?;
    }
    let (inside, outside) = (format!("/run/patchlab-{}", captured::ARCHIVE), work.join(captured::ARCHIVE));
    let headers = format!("/{}", captured::HEADERS);
    let arguments: Vec<&str> = [inside.as_str(), &headers].into_iter().chain(Captured::wanted()).collect();
    guest.script(&knowing(captured::SCRIPT), &arguments, timeout).map_err(LabError::from)?;
    let archive =
        guest.read_file(&inside, captured::ARCHIVE_BYTES, timeout).map_err(LabError::from)?.unwrap_or_default();
    guest.script(r#"rm -f -- "$1""#, &[&inside], timeout).map_err(LabError::from)?;
    let captured = fs::write(&outside, &archive).and_then(|()| Captured::unpack(&archive[..]));
    Ok(captured.map_err(|source| LabError::Io { action: "keep", path: outside, source })?)
}

/// A system that somebody else made has the programs that the lab needs, and that address, unless none is asked for.
fn equipped(guest: &Guest, address: &str, timeout: Duration) -> Result<(), FreezeError> {
    let lacking = guest.script(&knowing(LACKING), &[address], timeout).map_err(LabError::from)?;
    let lacking = String::from_utf8_lossy(&lacking).trim_end_matches(", ").to_owned();
    if lacking.is_empty() { Ok(()) } else { Err(FreezeError::Lacking(lacking)) }
}

/// A host's own agent has no place in the lab; that it goes is said.
fn take_off(
    agent: Option<&OwnAgent>,
    guest: &Guest,
    timeout: Duration,
    say: &dyn Fn(u32, &str, Weight),
) -> Result<(), FreezeError> {
    let Some(agent) = agent else { return Ok(()) };
    let what = "the system is a managed host: its own agent is taken off, with its enrolment and its records; the lab brings one";
    say(5, what, Weight::Lasting);
    Ok(agent.take_off(guest, timeout).map_err(LabError::from)?)
}

/// Digests of the frozen files, which hold the nonce where they must and nowhere else.
fn digests(work: &Path, planted: &Planted) -> Result<BTreeMap<String, Digest>, FreezeError> {
    let read = |name: &str| {
        let path = work.join(name);
        let read = proof::read_frozen(&path, planted);
        read.map_err(|source| LabError::Io { action: "read", path, source })
    };
    let [(ram, in_ram), (disk, on_disk), (state, _)] = [read("ram")?, read("disk.qcow2")?, read("state")?];
    proof::judge_files(in_ram, on_disk).map_err(ProofError::from)?;
    Ok([("ram".into(), ram), ("disk.qcow2".into(), disk), ("state".into(), state)].into())
}

fn plan(
    lab: &Lab,
    inside: &Inside,
    order: &FreezeOrder,
    accelerator: Accelerator,
    memory: Memory,
    fate: DiskFate,
) -> Result<Plan, LabError> {
    let (disk, seed) = (inside.places.work.join("disk.qcow2"), inside.places.work.join(cloud::SEED));
    let (name, disk) = match fate {
        DiskFate::Keep => ("template".to_owned(), disk),
        DiskFate::Remove => ("probe".to_owned(), lab.layer(&disk, "probe")?),
    };
    Ok(Plan {
        name,
        hardware: Hardware {
            memory_mib: order.memory_mib,
            vcpus: order.vcpus,
            accelerator,
            machine: MACHINE.into(),
            screen: order.screen,
        },
        memory,
        disk,
        fate,
        tools: if seed.exists() { seed } else { lab.empty_tools()? },
        forwards: CloneSpec::default().forwards,
        ready_units: order.ready_units.clone(),
        flags: sys::VIR_DOMAIN_NONE,
        rung: Rung::ColdBoot,
    })
}

/// Boots with the seed, which goes: the system that is frozen never saw it in its present boot.
fn first_boot(
    lab: &Lab,
    inside: &Inside,
    order: &FreezeOrder,
    accelerator: Accelerator,
    policy: SecretsPolicy,
) -> Result<Secrets, FreezeError> {
    let timeout = Duration::from_secs(order.ready_timeout_s) * accelerator.factor();
    let machine = boot_before(lab, inside, order, accelerator, "first-boot")?;
    cloud::finish(&machine, timeout)?;
    let secrets = policy.apply(&machine.guest(), Scope::BeforeThisBoot, timeout)?;
    machine.shut_down(timeout)?;
    let seed = inside.places.work.join(cloud::SEED);
    fs::remove_file(&seed).map_err(|source| LabError::Io { action: "remove", path: seed, source })?;
    Ok(secrets)
}

/// A scrubbed system's memory held what was scrubbed: it ends with this boot.
fn scrubbing_boot(
    lab: &Lab,
    inside: &Inside,
    order: &FreezeOrder,
    accelerator: Accelerator,
    say: &dyn Fn(u32, &str, Weight),
) -> Result<Secrets, FreezeError> {
    let timeout = Duration::from_secs(order.ready_timeout_s) * accelerator.factor();
    let machine = boot_before(lab, inside, order, accelerator, "scrubbing")?;
    machine.wait_agent(timeout).map_err(|error| order.origin.explain(error))?;
    let guest = machine.guest();
    equipped(&guest, "", timeout)?;
    let own_agent = OwnAgent::stop(&guest, timeout).map_err(LabError::from)?;
    let secrets = SecretsPolicy::Scrub.apply(&guest, Scope::Whole, timeout)?;
    take_off(own_agent.as_ref(), &guest, timeout, say)?;
    machine.shut_down(timeout)?;
    Ok(secrets)
}

/// Starts the system for a boot that is not frozen.
fn boot_before(
    lab: &Lab,
    inside: &Inside,
    order: &FreezeOrder,
    accelerator: Accelerator,
    name: &str,
) -> Result<Machine, LabError> {
    let plan = plan(lab, inside, order, accelerator, Memory::Plain, DiskFate::Keep)?;
    lab.start_as(Plan { name: name.into(), ready_units: Vec::new(), ..plan })
}

/// kvm only when this very system boots under it: neither a device that opens nor a payload that runs proves that.
fn choose(
    lab: &Lab,
    inside: &Inside,
    order: &FreezeOrder,
    probed: &Probed,
    say: &dyn Fn(u32, &str, Weight),
) -> Result<Accelerator, LabError> {
    if probed.accelerator == Accelerator::Tcg {
        return Ok(Accelerator::Tcg);
    }
    say(3, "trying kvm with a boot of its own", Weight::Passing);
    // With a seed, packages are installed before anybody answers.
    let patience = match order.origin {
        Origin::CloudImage(_) => Duration::from_secs(order.ready_timeout_s),
        Origin::Lab | Origin::Captured(_) => Duration::from_secs(60),
    };
    let begun = Instant::now();
    let booted = lab
        .start_as(plan(lab, inside, order, Accelerator::Kvm, Memory::Plain, DiskFate::Remove)?)
        .and_then(|machine| machine.wait_agent(patience));
    match booted {
        Ok(()) => {
            say(3, &format!("kvm works: booted in {} s", begun.elapsed().as_secs()), Weight::Passing);
            Ok(Accelerator::Kvm)
        }
        Err(error) => {
            let what =
                format!("kvm runs a payload but does not boot this system ({error}): software emulation, slower");
            say(3, &what, Weight::Lasting);
            Ok(Accelerator::Tcg)
        }
    }
}

/// The machine type that libvirt made of [`MACHINE`]: clones name it, whatever a later QEMU makes of the alias.
fn machine_type(xml: &str) -> String {
    xml.split_once("machine='")
        .and_then(|(_, rest)| rest.split_once('\''))
        .map_or_else(|| MACHINE.into(), |(machine, _)| machine.to_owned())
}

/// The guest's clock, as its files will show it.
impl Machine {
    fn clock(&self) -> Result<Timestamp, LabError> {
        let text = self.guest().script("date +%s", &[], Duration::from_secs(60))?;
        let seconds = String::from_utf8_lossy(&text).trim().parse().unwrap_or_default();
        Ok(Timestamp::from_second(seconds).unwrap_or(Timestamp::UNIX_EPOCH))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_type_is_read_from_the_description() {
        assert_eq!(machine_type("<type arch='x86_64' machine='pc-q35-10.0'>hvm</type>"), "pc-q35-10.0");
        assert_eq!(machine_type("<domain/>"), "q35");
    }
}
