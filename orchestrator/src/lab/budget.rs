//! What hosts can give to validations, and what one of them takes: read from the system, and decided by what was measured.

use std::{collections::BTreeMap, num::NonZeroUsize, time::Duration};

use anyhow::bail;
use patchlab_check::Digest;
use patchlab_lab::{
    Baseline, HostMemory, LabHost,
    kept::Keep,
    machine::{CLONE_DISK, TOOLS_BYTES},
    room::Bytes,
    runs::{How, Run, Scope},
    scenario::{Scenario, Subject},
    verdict::Judgement,
};

use super::{
    control::Control,
    pool::Lender,
    schedule::{Budget, Budgets, Needs, Work},
};

/// What an emulator takes beside its guest's memory, MiB: 60 to 90 were measured.
const EMULATOR_MIB: u64 = 128;
/// What a worker takes itself, MiB.
const WORKER_MIB: u64 = 128;
/// What the system and everybody else keep of the memory that is free, in percent.
const RESERVE_PERCENT: u64 = 10;
/// How long a validation is expected to take on a baseline that none was measured on.
const UNMEASURED: Duration = Duration::from_secs(120);

/// What a validation on a baseline takes while it runs; scenarios that apply there may ask for more machines, of baselines by the names
/// that they give.
pub fn needs(
    baseline: &Baseline,
    (keep, control): (Keep, Control),
    (scenarios, others): (&[Scenario], &BTreeMap<String, Baseline>),
) -> Needs {
    let guest = baseline.record.hardware.memory_mib;
    // The manifest is long: it is read where something hangs on it. Of one that cannot be read, the validation will tell.
    let mut several = scenarios.iter().filter(|scenario| !scenario.machines.is_empty()).peekable();
    let manifest = several.peek().and_then(|_| baseline.manifest().ok());
    let subject = manifest.map(|manifest| Subject::of(baseline, &manifest));
    let applying: Vec<&Scenario> =
        several.filter(|scenario| subject.as_ref().is_none_or(|subject| scenario.applies_to(subject))).collect();
    let beside = |scenario: &Scenario| -> u64 {
        let baselines = scenario.machines.values().filter_map(|machine| match &machine.baseline {
            None => Some(baseline),
            Some(wanted) => others.get(wanted),
        });
        baselines.map(|other| other.record.hardware.memory_mib + EMULATOR_MIB).sum()
    };
    // Each scenario's are gone before the next one's come.
    let beside_mib = applying.iter().copied().map(beside).max().unwrap_or(0);
    let machines = 1 + applying.iter().map(|scenario| scenario.machines.len()).max().unwrap_or(0) as u64;
    // A control that is remembered takes nothing.
    let clones = match control {
        Control::Beside => 2,
        Control::Remembered => 1,
    };
    // Clones' memory is written out when they are kept.
    let kept = if keep == Keep::Never { 0 } else { clones * (guest << 20) };
    Needs {
        memory_mib: clones * (guest + EMULATOR_MIB + beside_mib) + WORKER_MIB,
        disk: clones * machines * CLONE_DISK + TOOLS_BYTES + kept,
    }
}

/// What all may take together, and each host of those that were looked at: `jobs` as asked for, or as many as there are processors, or as
/// the hosts say if that is more. Refuses what cannot run even alone.
pub fn budgets(hosts: &[Lender<'_>], jobs: Option<usize>, all: &[Needs]) -> anyhow::Result<Budgets> {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let free = HostMemory::now().ok().map(|memory| memory.available_mib);
    let said: usize = hosts.iter().filter_map(|lender| lender.host.validations).map(NonZeroUsize::get).sum();
    let together = Budget {
        jobs: jobs.unwrap_or(processors.max(said)).max(1),
        memory_mib: free.map_or(u64::MAX, |free| free - free * RESERVE_PERCENT / 100),
        disk: u64::MAX,
    };
    let of = |lender: &Lender<'_>| {
        let found = lender.found.as_ref().ok()?;
        let LabHost { validations, memory_mib, .. } = lender.host;
        let (jobs, memory_mib) = (validations.map_or(processors, NonZeroUsize::get), memory_mib.unwrap_or(u64::MAX));
        Some(Budget { jobs, memory_mib, disk: found.disk_free })
    };
    let budgets = Budgets { all: together, hosts: hosts.iter().map(of).collect() };
    let out: Vec<String> = hosts.iter().filter_map(Lender::out).collect();
    if out.len() == hosts.len() {
        bail!("no host lends machines: {}", out.join("; "));
    }
    let memory = all.iter().map(|needs| needs.memory_mib).max().unwrap_or(0);
    if memory > together.memory_mib {
        let (needed, free) = (Bytes(memory << 20), Bytes(together.memory_mib << 20));
        bail!(
            "a validation needs {needed} of memory, and {free} can be had: end something, or give its recipe less memory"
        );
    }
    for needs in all {
        let work = Work { order: 0, expected: Duration::ZERO, needs: *needs, avoids: &[] };
        if !budgets.can_ever_run(&work) {
            bail!("{}", no_host(hosts, needs));
        }
    }
    Ok(budgets)
}

/// Why what needs so much fits none of the hosts.
fn no_host(hosts: &[Lender<'_>], needs: &Needs) -> String {
    let lends = |lender: &Lender<'_>| match &lender.found {
        Err(reason) => format!("{} lends nothing: {reason}", lender.host.name),
        Ok(found) => {
            let memory = lender.host.memory_mib.map(|mib| format!("{} of memory and ", Bytes(mib << 20)));
            format!("{} has {}{} of disk", lender.host.name, memory.unwrap_or_default(), Bytes(found.disk_free))
        }
    };
    let (memory, disk) = (Bytes(needs.memory_mib << 20), Bytes(needs.disk));
    let lent: Vec<String> = hosts.iter().map(lends).collect();
    format!(
        "a validation needs {memory} of memory and {disk} of disk, and no host has that for it: {}; make room there, or name another \
         host (DATA/patchlab.toml, --libvirt)",
        lent.join("; ")
    )
}

/// How long a validation of an order on a baseline will take, by the runs before, newest first: as long as the same one took, else as
/// whole ones on that baseline took (median), else as whole ones took anywhere.
pub fn expected(runs: &[Run], order: &Digest, baseline: &str) -> Duration {
    let mut same = None;
    let (mut there, mut anywhere) = (Vec::new(), Vec::new());
    for run in runs.iter().filter(|run| run.record.scope == Scope::Whole) {
        let Some(end) = run.record.end.as_ref().filter(|end| matches!(end.how, How::Judged(_))) else { continue };
        for measured in end.measured.iter().filter(|measured| measured.verdict != Judgement::LabError) {
            let took = Duration::from_millis(measured.total_ms);
            // What is rejected ends before its rollback.
            let is_whole = measured.verdict == Judgement::Passed;
            if measured.baseline == baseline {
                if run.record.order_digest == *order {
                    same.get_or_insert(took);
                }
                there.extend(is_whole.then_some(took));
            }
            anywhere.extend(is_whole.then_some(took));
        }
    }
    same.or_else(|| median(there)).or_else(|| median(anywhere)).unwrap_or(UNMEASURED)
}

fn median(mut all: Vec<Duration>) -> Option<Duration> {
    all.sort_unstable();
    all.get(all.len() / 2).copied()
}

#[cfg(test)]
mod tests {
    use patchlab_lab::{
        host::Found,
        ledger::Process,
        runs::{End, Measured, Record},
    };

    use super::*;

    fn run(order: &str, baseline: &str, verdict: Judgement, seconds: u64) -> Run {
        let measured = Measured { baseline: baseline.into(), verdict, total_ms: seconds * 1000, phases: Vec::new() };
        let end = End {
            at: jiff::Timestamp::UNIX_EPOCH,
            how: How::Judged(verdict),
            reason: String::new(),
            measured: vec![measured],
        };
        let record = Record {
            schema: 1,
            id: "1".into(),
            order: order.into(),
            order_digest: Digest::of(order),
            begun: jiff::Timestamp::UNIX_EPOCH,
            owner: Process::current().unwrap(),
            lab: String::new(),
            scope: Scope::Whole,
            retry_of: None,
            manner: serde_json::Value::Null,
            baselines: Vec::new(),
            scenarios: Vec::new(),
            end: Some(end),
        };
        Run { record, folder: "/".into(), size: 0 }
    }

    #[test]
    fn what_fits_no_host_is_refused_with_what_each_has() {
        let at = |name: &str, memory_mib| LabHost { memory_mib, ..LabHost::at(name, "qemu:///embed".parse().unwrap()) };
        let (small, gone) = (at("small", Some(512)), at("gone", None));
        let found = Found { libvirt: String::new(), disk_free: 10 << 30 };
        let hosts = [
            Lender { host: &small, found: Ok(found) },
            Lender { host: &gone, found: Err("/mnt/gone: no such folder".into()) },
        ];
        let needs = |memory_mib| Needs { memory_mib, disk: 1 << 30 };
        let given = budgets(&hosts, None, &[needs(512)]).unwrap();
        assert_eq!(given.hosts.iter().map(Option::is_some).collect::<Vec<_>>(), [true, false]);
        let error = budgets(&hosts, None, &[needs(512), needs(1024)]).unwrap_err().to_string();
        assert!(
            error.contains("1.0 GiB of memory") && error.contains("small has 512 MiB of memory and 10.0 GiB"),
            "{error}"
        );
        assert!(error.contains("gone lends nothing: /mnt/gone"), "{error}");
        let error = budgets(&hosts[1..], None, &[]).unwrap_err().to_string();
        assert_eq!(error, "no host lends machines: gone: /mnt/gone: no such folder");
    }

    #[test]
    fn what_was_measured_on_the_same_counts_most() {
        let passed = Judgement::Passed;
        let mut runs = vec![
            run("a", "web@1", Judgement::Rejected, 30),
            run("a", "web@1", passed, 90),
            run("b", "web@1", passed, 60),
            run("b", "web@1", passed, 80),
            run("b", "db@1", passed, 10),
            run("b", "web@1", Judgement::LabError, 1),
        ];
        let seconds = |runs: &[Run], order: &str, baseline| expected(runs, &Digest::of(order), baseline).as_secs();
        assert_eq!(seconds(&runs, "a", "web@1"), 30, "the newest of the same, rejected or not");
        assert_eq!(seconds(&runs, "c", "web@1"), 80, "the median of whole ones there");
        assert_eq!(seconds(&runs, "c", "mail@1"), 80, "the median of whole ones anywhere");
        runs.iter_mut().for_each(|run| run.record.scope = Scope::Scenarios(Vec::new()));
        assert_eq!(seconds(&runs, "a", "web@1"), UNMEASURED.as_secs(), "parts measure nothing");
    }
}
