//! `lab validate`, from outside: which baselines, one worker each, and the report of all.

use std::{collections::BTreeSet, fs, path::Path, time::Instant};

use anyhow::{Context as _, bail};
use patchlab_lab::{
    Baseline,
    applier::Role,
    baseline::Baselines,
    report::{BaselineReport, Report, SCHEMA},
    scenario::Scenario,
    validation::Reboot,
    verdict::{Judged, overall},
    worker::{Network, Worker},
};
use patchlab_protocol::{document::Order, envelope::digest_of};

use super::{
    applier::host_name,
    job::{Job, launcher},
    provisional::Provisional,
    tools,
    worker::{Ask, SCENARIOS, Tell},
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
    reboot: Reboot,
    observer: &mut dyn FnMut(&str, Tell),
) -> anyhow::Result<Report> {
    let begun = Instant::now();
    let mut reports = Vec::new();
    for baseline in baselines {
        let mut told = |tell| observer(&baseline.full_name(), tell);
        let report = on_baseline(data, order, baseline, scenarios, reboot, &mut told)
            .with_context(|| format!("validation on {}", baseline.full_name()))?;
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
        total_ms: u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX),
    })
}

fn on_baseline(
    data: &Data,
    order: &Order,
    baseline: &Baseline,
    scenarios: &[Scenario],
    reboot: Reboot,
    told: &mut dyn FnMut(Tell),
) -> anyhow::Result<BaselineReport> {
    let mut worker = patchlab_lab::worker::spawn(&data.lab(), &launcher(Job::Validate)?, &Network::Isolated)?;
    let mut receiver = worker.take_receiver().context("the worker's channel was taken")?;
    put_scenarios(&worker, scenarios)?;
    let hosts = [Role::Control, Role::Patched].map(|role| host_name(&baseline.full_name(), role));
    worker.sender().send(&Ask {
        baseline: baseline.digest.to_string(),
        documents: Provisional::sign(order, &hosts, jiff::Timestamp::now())?,
        changed: changed(order),
        tools: tools::disk_in_worker(data, &worker)?,
        reboot,
    })?;
    loop {
        match receiver.receive::<Tell>()? {
            Some(Tell::Done(report)) => {
                worker.end()?;
                return Ok(*report);
            }
            Some(Tell::Failed(reason)) => bail!("{reason}"),
            Some(tell) => told(tell),
            None => bail!("its worker ended without a verdict"),
        }
    }
}

/// Copies the scenarios' folders to where the worker, who may not read people's folders, finds them.
fn put_scenarios(worker: &Worker, scenarios: &[Scenario]) -> anyhow::Result<()> {
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
