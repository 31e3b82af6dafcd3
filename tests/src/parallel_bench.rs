//! The parallel bench: many validations at once, beside what the processors need for them when none of them ever waits.
//!
//! One validation alone says how much processor time it takes, of everything on this machine: machines, tools, kernel. As many as are
//! wanted cannot be done sooner than that much, times their number, by all processors together. Nothing else may run on the machine:
//! what does counts as the lab's. Where the system is busy with others (steal), it says so.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Stdio,
    time::Instant,
};

use anyhow::{Context as _, bail, ensure};
use serde_json::{Value, json};

use crate::validate_bench::Bench;

/// Clock ticks in a second, as `/proc/stat` counts (proc_stat(5)): 100 on every Linux that runs a lab.
const TICKS: f64 = 100.0;

/// What all processors did so far, seconds.
#[derive(Debug, Clone, Copy)]
struct Processors {
    busy: f64,
    stolen: f64,
}

impl Processors {
    fn now() -> anyhow::Result<Self> {
        Self::read(&fs::read_to_string("/proc/stat").context("read /proc/stat")?).context("understand /proc/stat")
    }

    /// The first line: user, nice, system, idle, iowait, irq, softirq, steal; guest time is in user.
    fn read(text: &str) -> Option<Self> {
        let words = text.lines().next()?.strip_prefix("cpu ")?.split_whitespace();
        let ticks: Vec<f64> = words.map(str::parse).collect::<Result<_, _>>().ok()?;
        let [user, nice, system, _, _, irq, softirq, stolen, ..] = ticks[..] else { return None };
        Some(Self { busy: (user + nice + system + irq + softirq) / TICKS, stolen: stolen / TICKS })
    }
}

/// How long something took, and how long processors were busy meanwhile, seconds.
#[derive(Debug, Clone, Copy)]
struct Took {
    wall: f64,
    busy: f64,
    stolen: f64,
}

/// Validates as many orders at once; figures, flat.
pub fn measure(bench: &Bench, count: u32) -> anyhow::Result<BTreeMap<String, Value>> {
    ensure!(count > 0, "no validation, nothing to measure");
    let processors = std::thread::available_parallelism().context("count the processors")?.get();
    let folder = tempfile::tempdir_in(bench.data())?;
    let orders: Vec<_> = (1..=count).map(|number| bench.copy_order(number)).collect::<Result<_, _>>()?;
    let alone = took(bench, (&orders[..1], &[]), folder.path()).context("one alone")?;
    eprintln!("one alone: {:.1} s, processors busy {:.1} s", alone.wall, alone.busy);
    let all = took(bench, (&orders, &[]), folder.path()).context("all of them")?;
    let optimum = alone.busy * f64::from(count) / processors as f64;
    eprintln!("{count} at once: {:.1} s, processors busy {:.1} s; optimum {optimum:.1} s", all.wall, all.busy);
    // The first finds out what the control is, and is not measured.
    let remembering = ["--control", "remembered"];
    took(bench, (&orders[..1], &remembering), folder.path()).context("one that is remembered")?;
    let remembered =
        took(bench, (&orders, &remembering), folder.path()).context("all of them, by a remembered control")?;
    eprintln!("the same by a remembered control: {:.1} s, busy {:.1} s", remembered.wall, remembered.busy);
    let figures = [
        ("parallel.validations", f64::from(count)),
        ("parallel.processors", processors as f64),
        ("parallel.one_s", alone.wall),
        ("parallel.one_busy_s", alone.busy),
        ("parallel.all_s", all.wall),
        ("parallel.all_busy_s", all.busy),
        ("parallel.remembered_s", remembered.wall),
        ("parallel.remembered_busy_s", remembered.busy),
        ("parallel.remembered_times_faster", all.wall / remembered.wall),
        ("parallel.stolen_s", alone.stolen + all.stolen),
        ("parallel.optimum_s", optimum),
        ("parallel.times_optimum", all.wall / optimum),
        ("parallel.busy_share", all.busy / all.wall / processors as f64),
    ];
    Ok(figures.into_iter().map(|(name, value)| (name.to_owned(), json!(value))).collect())
}

fn took(bench: &Bench, (orders, more): (&[PathBuf], &[&str]), folder: &Path) -> anyhow::Result<Took> {
    let mut command = bench.validation(&folder.join("verdict.json"));
    for order in orders {
        command.arg("--order").arg(order);
    }
    command.args(more);
    let (before, begun) = (Processors::now()?, Instant::now());
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("start {command:?}"))?;
    let (wall, after) = (begun.elapsed().as_secs_f64(), Processors::now()?);
    if !output.status.success() {
        bail!("{command:?} ended with {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(Took { wall, busy: after.busy - before.busy, stolen: after.stolen - before.stolen })
}

impl Bench {
    /// The bench's order once more, under another id, beside it: its files are named from there.
    fn copy_order(&self, number: u32) -> anyhow::Result<PathBuf> {
        let from = self.order_file();
        let text = fs::read_to_string(&from).with_context(|| format!("read {}", from.display()))?;
        let named = text.replacen("PO-BENCH", &format!("PO-BENCH-{number}"), 1);
        ensure!(named != text, "{} names no PO-BENCH", from.display());
        let to = from.with_file_name(format!("order-{number}.toml"));
        fs::write(&to, named)?;
        Ok(to)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn busy_is_all_that_is_neither_idle_nor_stolen() {
        let text = "cpu  1000 100 200 5000 300 50 50 700 900 0\ncpu0 1 2 3\n";
        let processors = Processors::read(text).unwrap();
        assert_eq!((processors.busy, processors.stolen), (14.0, 7.0));
        assert!(Processors::read("cpu 1 2\n").is_none() && Processors::read("").is_none());
        Processors::now().unwrap();
    }
}
