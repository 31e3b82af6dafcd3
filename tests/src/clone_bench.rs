//! The clone bench's far side, in a worker: clones through libvirt beside clones by bare QEMU.

use std::{
    collections::BTreeMap,
    process::ExitCode,
    thread,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use patchlab_lab::{
    Baseline, Lab, Machine,
    baseline::Baselines,
    machine::{CloneReport, CloneSpec, PreparedClones, Rung},
    worker::{self, Inside},
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::bare_qemu;

/// What the worker is to measure.
#[derive(Debug, Serialize, Deserialize)]
pub struct Order {
    /// Which baseline.
    pub baseline: String,
    /// Clones of each kind.
    pub runs: u32,
    /// Cold boots among them.
    pub cold_boots: u32,
}

/// What it says.
#[derive(Debug, Serialize, Deserialize)]
pub enum Word {
    /// What it is at.
    Said(String),
    /// The result, flat.
    Medians(BTreeMap<String, Value>),
    /// The reason for none.
    Failed(String),
}

/// How long two clones may take to be prepared.
const PREPARING: Duration = Duration::from_secs(60);

/// How many clones at once.
const MANY: usize = 8;

/// Becomes a worker, measures, says what came out.
pub fn serve() -> ExitCode {
    let mut inside = match worker::enter() {
        Ok(inside) => inside,
        Err(code) => return code,
    };
    let Ok(Some(order)) = inside.receiver.receive::<Order>() else { return ExitCode::FAILURE };
    let word = match measure(&inside, &order) {
        Ok(medians) => Word::Medians(medians),
        Err(error) => Word::Failed(format!("{error:#}")),
    };
    match inside.sender.send(&word) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

/// Milliseconds by name, one a run.
#[derive(Default)]
struct Samples(BTreeMap<&'static str, Vec<f64>>);

impl Samples {
    fn add(&mut self, name: &'static str, value: f64) {
        self.0.entry(name).or_default().push(value);
    }

    fn add_clone(&mut self, report: &CloneReport) {
        for (name, ms) in [
            ("clone.ready_ms", report.ready_ms),
            ("clone.start_ms", report.start_ms),
            ("clone.incoming_ms", report.incoming_ms),
            ("clone.handshake_ms", report.handshake_ms),
        ] {
            self.add(name, ms as f64);
        }
    }

    fn medians(self) -> BTreeMap<String, Value> {
        self.0.into_iter().map(|(name, values)| (name.to_owned(), json!(median(values)))).collect()
    }
}

/// The middle one of some values; of an even number, the mean of the two in the middle.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => f64::NAN,
        even if even % 2 == 0 => (values[middle - 1] + values[middle]) / 2.0,
        _ => values[middle],
    }
}

fn spec(name: &str) -> CloneSpec {
    CloneSpec { name: name.into(), ..CloneSpec::default() }
}

fn template_clone(lab: &Lab, baseline: &Baseline, name: &str) -> anyhow::Result<Machine> {
    let machine = lab.clone_baseline(baseline, &spec(name))?;
    let report = machine.report();
    let reason = report.fallback.clone().unwrap_or_default();
    anyhow::ensure!(report.rung == Rung::TemplateClone, "no template clone: {reason}");
    Ok(machine)
}

fn measure(inside: &Inside, order: &Order) -> anyhow::Result<BTreeMap<String, Value>> {
    let say = |text: String| inside.sender.send(&Word::Said(text));
    let opening = Instant::now();
    let lab = Lab::open(&inside.places, &inside.driver)?;
    say(format!("libvirt {} open after {} ms", lab.versions().libvirt, opening.elapsed().as_millis()))?;
    let baseline = Baselines::open(&inside.places).get(&order.baseline)?;
    let mut samples = Samples::default();
    // The first clone reads the template from the disk and shows the command line that bare QEMU gets.
    let first = template_clone(&lab, &baseline, "first")?;
    let command_line = first.command_line()?;
    say(format!("first clone, not counted: {:?} {:?}", first.report(), first.handshake()))?;
    first.destroy()?;
    for run in 0..order.runs {
        let bare = bare_qemu::ready_ms(&command_line, &baseline, &inside.places.work).context("bare QEMU")?;
        samples.add("clone.bare_ready_ms", bare);
        let machine = template_clone(&lab, &baseline, "one")?;
        let report = machine.report();
        say(format!("run {run}: bare {bare:.0} ms, libvirt {report:?}"))?;
        samples.add_clone(report);
        machine.destroy()?;
        if run < order.cold_boots {
            let machine = lab.cold_boot(&baseline, &spec("cold"))?;
            say(format!("run {run}: cold boot {} ms", machine.report().ready_ms))?;
            samples.add("clone.cold_boot_ms", machine.report().ready_ms as f64);
            machine.destroy()?;
        }
    }
    prepared(&lab, &baseline, order.runs, &mut samples)?;
    many(&lab, &baseline, &mut samples)?;
    let mut medians = samples.medians();
    medians.insert("machine.accelerator".into(), serde_json::to_value(baseline.record.hardware.accelerator)?);
    medians.insert("machine.qemu".into(), json!(lab.versions().qemu));
    medians.insert("machine.libvirt".into(), json!(lab.versions().libvirt));
    Ok(medians)
}

/// Clones that wait before they are asked for: what is left to do then, and what one costs while it waits.
fn prepared(lab: &Lab, baseline: &Baseline, runs: u32, samples: &mut Samples) -> anyhow::Result<()> {
    let waiting = lab.prepare_clone(baseline, &spec("waiting"))?;
    samples.add("clone.prepared_pss_mib", waiting.pss_kib()? as f64 / 1024.0);
    drop(waiting);
    let spec = || spec("prepared");
    let clones = PreparedClones::new(lab, baseline, &spec, 2);
    thread::scope(|scope| {
        scope.spawn(|| clones.tend());
        let mut take = || {
            anyhow::ensure!(clones.await_waiting(2, PREPARING), "no clones were prepared");
            let machine = clones.take()?;
            samples.add("clone.prepared_ready_ms", machine.report().ready_ms as f64);
            samples.add("clone.prepared_handshake_ms", machine.report().handshake_ms as f64);
            Ok(machine.destroy()?)
        };
        let taken = (0..runs).try_for_each(|_| take());
        clones.close();
        taken
    })
}

/// Eight clones at once, and what each costs while all of them live.
fn many(lab: &Lab, baseline: &Baseline, samples: &mut Samples) -> anyhow::Result<()> {
    let begun = Instant::now();
    let machines = thread::scope(|scope| {
        let names: Vec<String> = (0..MANY).map(|number| format!("many-{number}")).collect();
        let threads: Vec<_> =
            names.into_iter().map(|name| scope.spawn(move || template_clone(lab, baseline, &name))).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().map_err(|_| anyhow::anyhow!("a cloning thread panicked"))?)
            .collect::<anyhow::Result<Vec<Machine>>>()
    })?;
    let slowest = machines.iter().map(|machine| machine.report().ready_ms).max().unwrap_or_default();
    samples.add("clone.eight_ready_ms", slowest as f64);
    samples.add("clone.eight_handshaken_ms", begun.elapsed().as_secs_f64() * 1000.0);
    for machine in &machines {
        samples.add("clone.pss_mib", machine.pss_kib()? as f64 / 1024.0);
    }
    Ok(())
}
