//! `lab validate`, from outside: which baselines, one worker each, and the report of all.

use std::{collections::BTreeSet, fs, path::Path, time::Instant};

use anyhow::{Context as _, bail};
use patchlab_lab::{
    Baseline,
    applier::Role,
    baseline::Baselines,
    kept::{KeptClones, Record, SavedClone},
    report::{BaselineReport, Report, SCHEMA},
    scenario::Scenario,
    verdict::{Judged, LAB_ERROR_REQUEUES, overall},
    worker::{ChannelError, Network, Worker},
};
use patchlab_protocol::{document::Order, envelope::digest_of};

use super::{
    applier::host_name,
    job::{Job, launcher},
    provisional::Provisional,
    tools,
    worker::{Ask, Manner, SAVED, SCENARIOS, Tell},
};
use crate::place::Data;

/// The baselines that an order is validated on: those named, or every newest one of the order's class that represents one of its
/// packages.
pub fn baselines(data: &Data, order: &Order, named: &[String]) -> anyhow::Result<Vec<Baseline>> {
    let store = Baselines::open(&data.lab());
    let is_class = |baseline: &Baseline| {
        let os = &baseline.record.os;
        (&os.family, &os.release, &os.arch) == (&order.class.family, &order.class.release, &order.class.arch)
    };
    if !named.is_empty() {
        let chosen = named.iter().map(|name| store.get(name)).collect::<Result<Vec<_>, _>>()?;
        if let Some(other) = chosen.iter().find(|baseline| !is_class(baseline)) {
            bail!("order {} is for {}, baseline {} is not", order.id, order.class, other.full_name());
        }
        return Ok(chosen);
    }
    let changed = changed(order);
    let all = store.list()?;
    let newest = |baseline: &Baseline| {
        !all.iter()
            .any(|other| other.record.name == baseline.record.name && other.record.number > baseline.record.number)
    };
    let speaks = |baseline: &Baseline| baseline.record.represents.packages.iter().any(|name| changed.contains(name));
    Ok(all.iter().filter(|baseline| newest(baseline) && is_class(baseline) && speaks(baseline)).cloned().collect())
}

/// Names of the packages that an order changes.
pub fn changed(order: &Order) -> BTreeSet<String> {
    order.install.iter().map(|file| file.name.clone()).collect()
}

/// Validates `order` on `baselines`, one after the other.
pub fn validate(
    data: &Data,
    order: &Order,
    baselines: &[Baseline],
    scenarios: &[Scenario],
    manner: Manner,
    observer: &mut dyn FnMut(&str, Tell),
) -> anyhow::Result<Report> {
    let begun = Instant::now();
    let mut reports = Vec::new();
    for baseline in baselines {
        let mut told = |tell| observer(&baseline.full_name(), tell);
        let validation = OnBaseline { data, order, baseline, scenarios, manner };
        let report = validation.run(&mut told).with_context(|| format!("validation on {}", baseline.full_name()))?;
        reports.push(report);
    }
    let Judged { judgement, reason } = overall(&reports);
    Ok(Report {
        schema: SCHEMA,
        order: digest_of(order.clone()),
        id: order.id.clone(),
        verdict: judgement,
        reason,
        baselines: reports,
        total_ms: millis(begun),
    })
}

/// One order on one baseline.
struct OnBaseline<'a> {
    data: &'a Data,
    order: &'a Order,
    baseline: &'a Baseline,
    scenarios: &'a [Scenario],
    manner: Manner,
}

/// How a worker ended.
enum Ended {
    /// It said what it found.
    Told(Box<BaselineReport>),
    /// It was gone before it could; why, as far as that is known.
    Died(String),
}

impl OnBaseline<'_> {
    /// Runs it in a worker; one that dies is replaced a bounded number of times, and its death never blames the patch.
    fn run(&self, told: &mut dyn FnMut(Tell)) -> anyhow::Result<BaselineReport> {
        let begun = Instant::now();
        let mut deaths = 0;
        loop {
            match self.in_worker(told)? {
                Ended::Told(report) => return Ok(*report),
                Ended::Died(reason) if deaths < LAB_ERROR_REQUEUES => {
                    told(Tell::Note(format!("{reason}: once more, in a fresh worker")));
                    deaths += 1;
                }
                Ended::Died(reason) => {
                    let mut report = BaselineReport::begun(self.baseline.full_name(), self.baseline.digest);
                    (report.reason, report.total_ms) = (reason, millis(begun));
                    return Ok(report);
                }
            }
        }
    }

    fn in_worker(&self, told: &mut dyn FnMut(Tell)) -> anyhow::Result<Ended> {
        let (data, baseline) = (self.data, self.baseline);
        let mut worker = patchlab_lab::worker::spawn(&data.lab(), &launcher(Job::Validate)?, &Network::Isolated)?;
        let mut receiver = worker.take_receiver().context("the worker's channel was taken")?;
        put_scenarios(&worker, self.scenarios)?;
        let hosts = [Role::Control, Role::Patched].map(|role| host_name(&baseline.full_name(), role));
        worker.sender().send(&Ask {
            baseline: baseline.digest.to_string(),
            documents: Provisional::sign(self.order, &hosts, jiff::Timestamp::now())?,
            changed: changed(self.order),
            tools: tools::disk_in_worker(data, &worker)?,
            manner: self.manner,
        })?;
        let mut phase = String::from("start");
        loop {
            let tell = match receiver.receive::<Tell>() {
                // Its end of the socket went with something unread.
                Err(ChannelError::Io(_)) => None,
                other => other?,
            };
            match tell {
                Some(Tell::Done { mut report, saved }) => {
                    if !saved.is_empty() {
                        report.kept = self.keep(&worker, &report, saved, told);
                    }
                    worker.end()?;
                    return Ok(Ended::Told(report));
                }
                Some(Tell::Failed(reason)) => bail!("{reason}"),
                Some(tell) => {
                    if let Tell::Phase(name) = &tell {
                        phase.clone_from(name);
                    }
                    told(tell);
                }
                None => return Ok(Ended::Died(died(&worker, &phase))),
            }
        }
    }

    /// Takes over the clones that the worker saved. That they cannot be kept is told, and changes no verdict.
    fn keep(
        &self,
        worker: &Worker,
        report: &BaselineReport,
        saved: Vec<SavedClone>,
        told: &mut dyn FnMut(Tell),
    ) -> Option<String> {
        let order = (self.order.id.as_str(), digest_of(self.order.clone()));
        let record = Record::new(order, report, saved, jiff::Timestamp::now());
        match KeptClones::open(&self.data.lab()).adopt(&worker.folder().join(SAVED), record) {
            Ok(kept) => Some(kept.record.name),
            Err(error) => {
                told(Tell::Note(format!("the clones are not kept: {error}")));
                None
            }
        }
    }
}

/// Why a worker is gone: its last word, since its log goes with it.
fn died(worker: &Worker, phase: &str) -> String {
    let log = fs::read_to_string(worker.folder().join("worker.log")).unwrap_or_default();
    let last = log.trim_end().lines().last().map(|line| format!(" (it wrote: {line})")).unwrap_or_default();
    format!("the worker {} died in the phase {phase}{last}", worker.id())
}

fn millis(begun: Instant) -> u64 {
    u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX)
}

/// Copies the scenarios' folders to where the worker, who may not read people's folders, finds them.
pub(super) fn put_scenarios(worker: &Worker, scenarios: &[Scenario]) -> anyhow::Result<()> {
    let root = worker.folder().join(SCENARIOS);
    make(&root)?;
    for scenario in scenarios {
        let dir = root.join(&scenario.name);
        make(&dir)?;
        for file in scenario.files()? {
            let copy = dir.join(&file.relative);
            if let Some(parent) = copy.parent() {
                make(parent)?;
            }
            fs::copy(&file.path, &copy).with_context(|| format!("copy {}", file.path.display()))?;
            mode(&copy, if file.mode & 0o111 == 0 { 0o644 } else { 0o755 })?;
        }
    }
    Ok(())
}

fn make(dir: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
    mode(dir, 0o755)
}

fn mode(path: &Path, mode: u32) -> anyhow::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
        .with_context(|| format!("change the mode of {}", path.display()))
}
