//! What the samples of a metric say on both clones. Pure: two lists of numbers in, a word and its reason out.
//!
//! The question is whether the patched clone is worse than the control by more than the tolerance. Every sample of the control is worsened
//! by the tolerance, and Mann and Whitney's rank test (1947) says whether the patched clone's samples lie beyond those: it counts in how
//! many of all pairs they do, and how often chance alone gives as many. It knows nothing of how samples are spread, and an outlier is one
//! rank. Three answers follow: *worse*, *as good*, and *undecided*, when chance explains either. Nothing undecided passes.

use patchlab_check::step::{Better, Metric, Percent, Sample};
use serde::{Deserialize, Serialize};

/// Samples of each clone below which nothing is said, whatever they are: of 3 and 3 every order comes by chance once in 20 times.
pub const LEAST_SAMPLES: usize = 4;
/// How often chance may give what is taken for an answer: once in 40 times, on one side. A regression is believed when it shows in
/// two attempts.
const CHANCE: f64 = 0.025;
/// The same in standard deviations of a normal distribution.
const CHANCE_DEVIATIONS: f64 = 1.96;
/// Samples of both clones up to which every order is counted; above, the normal distribution is as good (an error below 0.001).
const COUNTED: usize = 80;

/// A metric on both clones.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MetricReport {
    /// Its name.
    pub name: String,
    /// Which numbers are the better ones.
    pub better: Better,
    /// How much worse than the control is still good.
    pub worse_than_control: Percent,
    /// What the samples say.
    pub found: Found,
    /// By how many percent the patched clone's median is worse; below zero where it is better. Absent where the control's is 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worse_by_percent: Option<Sample>,
    /// On the control.
    pub control: Spread,
    /// On the patched clone.
    pub patched: Spread,
}

/// What samples say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Found {
    /// The patched clone is worse by more than the tolerance.
    Worse,
    /// It is not.
    AsGood,
    /// They are too few, or too far apart, to say.
    Undecided,
}

impl Found {
    /// The word in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Worse => "worse",
            Self::AsGood => "as-good",
            Self::Undecided => "undecided",
        }
    }
}

/// Where samples lie.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spread {
    /// Half of them are below; absent when there are none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub median: Option<Sample>,
    /// Median of their distances from the median.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deviation: Option<Sample>,
    /// All, as they were measured.
    pub samples: Vec<Sample>,
}

impl Spread {
    fn of(samples: &[Sample]) -> Self {
        let middle = median(samples.iter().map(|sample| sample.number()).collect());
        let away = |middle: Sample| samples.iter().map(|sample| (sample.number() - middle.number()).abs()).collect();
        Self { median: middle, deviation: middle.and_then(|middle| median(away(middle))), samples: samples.to_vec() }
    }
}

impl std::fmt::Display for Spread {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self.median, self.deviation) {
            (Some(median), Some(deviation)) => write!(f, "{median} ±{deviation} (n {})", self.samples.len()),
            _ => f.write_str("no samples"),
        }
    }
}

impl MetricReport {
    /// Why it does not hold; empty when it does.
    pub fn reason(&self) -> String {
        let Self { name, worse_than_control: tolerance, control, patched, .. } = self;
        let medians = format!("median {patched} against {control}");
        let (m, n) = (patched.samples.len(), control.samples.len());
        match self.found {
            Found::AsGood => String::new(),
            Found::Worse => {
                let by = self.worse_by_percent.map_or_else(String::new, |by| format!(" {by}%"));
                format!("{name} is{by} worse than the control's, {tolerance} is allowed: {medians}")
            }
            Found::Undecided if m.min(n) < LEAST_SAMPLES => format!(
                "{name} cannot be compared: {m} samples against {n}, at least {LEAST_SAMPLES} of each are needed: give the \
                 step a higher repeat"
            ),
            Found::Undecided => format!(
                "whether {name} is more than {tolerance} worse than the control's cannot be told from {m} and {n} samples so far \
                 apart: {medians}: give the step a higher repeat, or the metric more tolerance"
            ),
        }
    }
}

/// Compares a metric's samples on both clones.
pub fn compare_metric(metric: &Metric, control: &[Sample], patched: &[Sample]) -> MetricReport {
    let (control, patched) = (Spread::of(control), Spread::of(patched));
    let worse_by = match (control.median, patched.median) {
        (Some(control), Some(patched)) if control.number() != 0.0 => {
            let rise = (patched.number() - control.number()) / control.number().abs() * 100.0;
            Sample::try_from(if metric.better == Better::Higher { 0.0 - rise } else { rise }).ok()
        }
        _ => None,
    };
    MetricReport {
        name: metric.name.clone(),
        better: metric.better,
        worse_than_control: metric.worse_than_control,
        found: found(metric, &control, &patched),
        worse_by_percent: worse_by,
        control,
        patched,
    }
}

fn found(metric: &Metric, control: &Spread, patched: &Spread) -> Found {
    let (n, m) = (control.samples.len(), patched.samples.len());
    let (Some(middle), Some(patched_middle)) = (control.median, patched.median) else { return Found::Undecided };
    if n.min(m) < LEAST_SAMPLES {
        return Found::Undecided;
    }
    let is_worse = |patched: Sample, control: Sample| {
        let allowed = control.number().abs() * metric.worse_than_control.factor();
        match metric.better {
            Better::Higher => patched.number() < control.number() - allowed,
            Better::Lower => patched.number() > control.number() + allowed,
        }
    };
    let worse = patched
        .samples
        .iter()
        .map(|patched| control.samples.iter().filter(|control| is_worse(*patched, **control)).count())
        .sum();
    // A pair at the tolerance exactly is within it.
    if is_beyond_chance(n, m, worse) && is_worse(patched_middle, middle) {
        Found::Worse
    } else if is_beyond_chance(n, m, n * m - worse) && !is_worse(patched_middle, middle) {
        Found::AsGood
    } else {
        Found::Undecided
    }
}

/// Whether chance gives `wins` or more of the `n · m` pairs less often than [`CHANCE`], if both lists came from one source.
fn is_beyond_chance(n: usize, m: usize, wins: usize) -> bool {
    if n + m > COUNTED {
        let (pairs, all) = ((n * m) as f64, (n + m + 1) as f64);
        return wins as f64 - 0.5 >= pairs / 2.0 + CHANCE_DEVIATIONS * (pairs * all / 12.0).sqrt();
    }
    let orders = orders(n, m);
    let at_least: f64 = orders[wins.min(n * m)..].iter().sum();
    at_least <= CHANCE * orders.iter().sum::<f64>()
}

/// In how many orders of `n` and `m` samples which number of pairs, from 0 to `n · m`, is won: an order that ends with one of the first
/// has won its `m` pairs beside those of the rest.
fn orders(n: usize, m: usize) -> Vec<f64> {
    // Row by row: with `i` of the first, for every number of the second.
    let mut row: Vec<Vec<f64>> = (0..=m).map(|_| vec![1.0]).collect();
    for i in 1..=n {
        let mut next: Vec<Vec<f64>> = Vec::with_capacity(m + 1);
        for j in 0..=m {
            let mut counts = vec![0.0; i * j + 1];
            for (wins, count) in row[j].iter().enumerate() {
                counts[wins + j] += count;
            }
            if let Some(before) = j.checked_sub(1).and_then(|j| next.get(j)) {
                for (wins, count) in before.iter().enumerate() {
                    counts[wins] += count;
                }
            }
            next.push(counts);
        }
        row = next;
    }
    row.pop().unwrap_or_default()
}

fn median(mut numbers: Vec<f64>) -> Option<Sample> {
    numbers.sort_by(f64::total_cmp);
    let upper = numbers.get(numbers.len() / 2)?;
    let lower = numbers.get((numbers.len() - 1) / 2)?;
    Sample::try_from(lower / 2.0 + upper / 2.0).ok()
}

#[cfg(test)]
mod tests;
