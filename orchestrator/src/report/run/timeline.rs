//! When what happened, as bars: places in percent of the whole, so that text keeps its size on any screen. Pure.

use patchlab_lab::runs::PhaseTime;

use crate::legible::millis;

/// A baseline's phases on one line.
pub(super) struct Lane {
    pub(super) name: String,
    pub(super) bars: Vec<Bar>,
}

/// A phase.
pub(super) struct Bar {
    pub(super) name: String,
    pub(super) took: String,
    /// What sort of work it is: a class of the sheet.
    pub(super) sort: &'static str,
    /// Where it begins and how wide it is, percent with two digits.
    pub(super) x: String,
    pub(super) width: String,
    /// Whether its name has room inside on a usual screen.
    pub(super) is_wide: bool,
}

/// About how many lines mark the time.
const TICKS: u64 = 6;
/// Percent of the whole from which a name has room, by its letters.
const LETTER_PERCENT: f64 = 0.75;

/// Lanes of baselines, and the marks of time: where, and when.
pub(super) fn draw(baselines: &[(&str, &[PhaseTime])]) -> (Vec<Lane>, Vec<(String, String)>) {
    let ends = baselines.iter().flat_map(|(_, phases)| phases.iter().map(|phase| phase.begun_ms + phase.ms));
    let whole = ends.max().unwrap_or(0).max(1);
    let percent = |ms: u64| ms as f64 * 100.0 / whole as f64;
    let bar = |phase: &PhaseTime| {
        let width = percent(phase.ms);
        Bar {
            took: millis(phase.ms),
            sort: sort(&phase.name),
            x: format!("{:.2}%", percent(phase.begun_ms)),
            width: format!("{width:.2}%"),
            is_wide: width > phase.name.chars().count() as f64 * LETTER_PERCENT,
            name: phase.name.clone(),
        }
    };
    let lane = |(name, phases): &(&str, &[PhaseTime])| Lane {
        name: (*name).to_owned(),
        bars: phases.iter().map(bar).collect(),
    };
    let step = step(whole);
    let ticks = (1..).map(|n| n * step).take_while(|ms| ms * 100 < whole * 97);
    let ticks = ticks.map(|ms| (format!("{:.2}%", percent(ms)), millis(ms))).collect();
    (baselines.iter().map(lane).collect(), ticks)
}

/// A round length of time that goes into the whole about [`TICKS`] times, milliseconds.
fn step(whole: u64) -> u64 {
    const ROUND: &[u64] =
        &[100, 250, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 30_000, 60_000, 120_000, 300_000, 600_000];
    ROUND.iter().copied().find(|step| whole / step <= TICKS).unwrap_or(3_600_000)
}

/// What sort of work a phase is, by its name.
fn sort(name: &str) -> &'static str {
    match name {
        "clone" | "reboot" | "save the clones" => "machine",
        "apply" | "rollback" => "change",
        name if name.starts_with("scenarios") => "test",
        _ => "look",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn phase(name: &str, begun_ms: u64, ms: u64) -> PhaseTime {
        PhaseTime { name: name.into(), begun_ms, ms }
    }

    #[test]
    fn bars_are_shares_of_the_longest_baselines_time() {
        let web = [phase("clone", 0, 10_000), phase("apply", 10_000, 30_000)];
        let db = [phase("clone", 20_000, 40_000), phase("scenarios after the patch", 60_000, 20_000)];
        let (lanes, ticks) = draw(&[("web@1", &web), ("db@1", &db)]);
        let places: Vec<_> = lanes
            .iter()
            .flat_map(|lane| &lane.bars)
            .map(|bar| (bar.x.as_str(), bar.width.as_str(), bar.sort))
            .collect();
        assert_eq!(
            places,
            [
                ("0.00%", "12.50%", "machine"),
                ("12.50%", "37.50%", "change"),
                ("25.00%", "50.00%", "machine"),
                ("75.00%", "25.00%", "test"),
            ]
        );
        assert_eq!(ticks[0], ("25.00%".to_owned(), "20 s".to_owned()));
        assert_eq!(ticks.len(), 3);
        assert!(lanes[0].bars[0].is_wide && lanes[1].bars[1].is_wide);
    }

    #[test]
    fn nothing_is_drawn_of_nothing() {
        let (lanes, ticks) = draw(&[("web@1", &[])]);
        assert!(lanes[0].bars.is_empty() && ticks.is_empty());
        assert_eq!([900, 59_000, 500_000].map(step), [250, 10_000, 120_000]);
    }
}
