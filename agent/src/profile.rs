//! The host's week: how busy each of its 168 hours usually is, so that a patch can be put where it disturbs least.
//! Looked at once a minute in /proc, averaged over the hour, and taken into that hour of the week as an exponential
//! average over weeks.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use jiff::{Timestamp, tz::TimeZone};
use serde::{Deserialize, Serialize};
use tokio::time::MissedTickBehavior;

use crate::journal::replace;

/// The file's name in the state folder.
pub const FILE_NAME: &str = "week.json";
/// Hours of a week.
pub const HOURS: usize = 168;
/// How much of an hour's slot the newest week is, per cent: a habit that changed shows after three weeks.
pub(crate) const NEWEST: f64 = 30.0;
/// How often the host is looked at.
pub(crate) const EVERY: Duration = Duration::from_secs(60);

/// How busy the host is. Shares are of the whole host, 0 to 1.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub struct Load {
    /// Processor time that was used.
    pub cpu: f64,
    /// Memory that is not available.
    pub memory: f64,
    /// Time in which the busiest disk worked.
    pub disk: f64,
    /// TCP sockets in use, of IPv4 and IPv6: connections, and what listens.
    pub sessions: f64,
}

impl Load {
    fn map2(self, other: Self, with: impl Fn(f64, f64) -> f64) -> Self {
        Self {
            cpu: with(self.cpu, other.cpu),
            memory: with(self.memory, other.memory),
            disk: with(self.disk, other.disk),
            sessions: with(self.sessions, other.sessions),
        }
    }
}

/// One hour of the week.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub struct Hour {
    /// Its usual load.
    pub load: Load,
    /// How many weeks it was seen; 0 for never.
    pub weeks: u32,
}

/// The 168 hours, from Monday 00:00 UTC on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Week {
    /// In order.
    pub hours: Vec<Hour>,
}

impl Default for Week {
    fn default() -> Self {
        Self { hours: vec![Hour::default(); HOURS] }
    }
}

/// The hour of the week of a moment, 0 to 167, UTC.
pub fn hour_of_week(at: Timestamp) -> usize {
    let utc = at.to_zoned(TimeZone::UTC);
    let number = i16::from(utc.weekday().to_monday_zero_offset()) * 24 + i16::from(utc.hour());
    usize::try_from(number).unwrap_or(0)
}

impl Week {
    /// Takes the mean of an hour in.
    pub fn take(&mut self, hour: usize, mean: Load) {
        let Some(slot) = self.hours.get_mut(hour) else { return };
        let part = if slot.weeks == 0 { 1.0 } else { NEWEST / 100.0 };
        slot.load = slot.load.map2(mean, |usual, new| usual + part * (new - usual));
        slot.weeks = slot.weeks.saturating_add(1);
    }

    /// Reads the week in a folder; one that cannot be read is learned again.
    pub fn read(folder: &Path) -> Self {
        let read = fs::read(folder.join(FILE_NAME));
        match read.and_then(|bytes| Ok(serde_json::from_slice::<Self>(&bytes)?)) {
            Ok(week) if week.hours.len() == HOURS => week,
            Ok(_) => Self::default(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Self::default(),
            Err(error) => {
                tracing::warn!(%error, "the host's week cannot be read; it is learned again");
                Self::default()
            }
        }
    }
}

/// Counters of /proc that only grow, at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Counters {
    /// Clock ticks in which processors worked.
    busy: u64,
    /// Clock ticks altogether.
    total: u64,
    /// Milliseconds in which each disk worked.
    disks: Vec<(String, u64)>,
}

fn counters(stat: &str, diskstats: &str) -> Counters {
    let fields: Vec<u64> = stat
        .lines()
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .skip(1)
        // user, nice, system, idle, iowait, irq, softirq, steal; guests are part of user.
        .take(8)
        .map_while(|field| field.parse().ok())
        .collect();
    let idle: u64 = fields.iter().skip(3).take(2).sum();
    let total = fields.iter().sum();
    let disk = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let name = *fields.get(2)?;
        // Loop and RAM devices have no spindle of their own.
        let real = !["loop", "ram", "zram", "dm-", "md"].iter().any(|prefix| name.starts_with(prefix));
        real.then(|| Some((name.to_owned(), fields.get(12)?.parse().ok()?)))?
    };
    Counters { busy: u64::saturating_sub(total, idle), total, disks: diskstats.lines().filter_map(disk).collect() }
}

/// The load between two looks that are `between` apart. A host without IPv6 has no `sockstat6`.
fn load(before: &Counters, after: &Counters, between: Duration, meminfo: &str, sockstat: [&str; 2]) -> Load {
    let part = |part: u64, whole: f64| if whole > 0.0 { (part as f64 / whole).clamp(0.0, 1.0) } else { 0.0 };
    let disk = after.disks.iter().filter_map(|(name, now)| {
        let (_, then) = before.disks.iter().find(|(known, _)| known == name)?;
        Some(part(now.saturating_sub(*then), between.as_millis() as f64))
    });
    let kib = |key: &str| -> Option<u64> {
        meminfo.lines().find_map(|line| line.strip_prefix(key))?.split_whitespace().next()?.parse().ok()
    };
    let (total, available) = (kib("MemTotal:").unwrap_or(0), kib("MemAvailable:").unwrap_or(0));
    let in_use = |[text, key]: [&str; 2]| -> Option<f64> {
        text.lines().find_map(|line| line.strip_prefix(key)?.split_whitespace().next()?.parse().ok())
    };
    let [four, six] = sockstat;
    let sessions = [[four, "TCP: inuse "], [six, "TCP6: inuse "]].into_iter().filter_map(in_use).sum();
    Load {
        cpu: part(after.busy.saturating_sub(before.busy), after.total.saturating_sub(before.total) as f64),
        memory: part(total.saturating_sub(available), total as f64),
        disk: disk.fold(0.0, f64::max),
        sessions,
    }
}

fn proc(file: &str) -> String {
    fs::read_to_string(Path::new("/proc").join(file)).unwrap_or_default()
}

/// Learns the host's week, for ever.
pub async fn learn(week: Arc<std::sync::Mutex<Week>>, folder: PathBuf) {
    let look = || counters(&proc("stat"), &proc("diskstats"));
    let mut ticks = tokio::time::interval(EVERY);
    // After a suspension, one look and not one for each minute of it.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks.tick().await;
    let (mut before, mut at) = (look(), std::time::Instant::now());
    let mut hour = hour_of_week(Timestamp::now());
    let (mut sum, mut looks) = (Load::default(), 0_u32);
    loop {
        ticks.tick().await;
        let after = look();
        let now =
            load(&before, &after, at.elapsed(), &proc("meminfo"), [&proc("net/sockstat"), &proc("net/sockstat6")]);
        (before, at) = (after, std::time::Instant::now());
        let current = hour_of_week(Timestamp::now());
        // Half an hour that was seen stands for the hour; less does not.
        if current != hour && looks >= 30 {
            let mean = sum.map2(Load::default(), |sum, _| sum / f64::from(looks));
            let text = {
                let mut week = week.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                week.take(hour, mean);
                serde_json::to_vec(&*week).unwrap_or_default()
            };
            if let Err(error) = replace(&folder.join(FILE_NAME), &text) {
                tracing::warn!(%error, "the host's week could not be kept");
            }
        }
        if current != hour {
            (hour, sum, looks) = (current, Load::default(), 0);
        }
        sum = sum.map2(now, |sum, new| sum + new);
        looks += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_load_is_what_happened_between_two_looks() {
        let before = counters(
            "cpu  100 0 100 800 0 0 0 0 0 0\n",
            "8 0 sda 1 0 0 0 1 0 0 0 0 1000 9\n7 0 loop0 1 0 0 0 1 0 0 0 0 9 9\n",
        );
        let after = counters(
            "cpu  160 0 140 900 0 0 0 0 0 0\n",
            "8 0 sda 1 0 0 0 1 0 0 0 0 16000 9\n8 1 new 1 0 0 0 1 0 0 0 0 5 9\n",
        );
        assert_eq!(before.disks.len(), 1, "{before:?}");
        let meminfo = "MemTotal: 1000 kB\nMemFree: 1 kB\nMemAvailable: 250 kB\n";
        let sockets = ["sockets: used 9\nTCP: inuse 7 orphan 0\n", "TCP6: inuse 4\nUDP6: inuse 9\n"];
        let seen = load(&before, &after, Duration::from_secs(60), meminfo, sockets);
        assert_eq!(seen, Load { cpu: 0.5, memory: 0.75, disk: 0.25, sessions: 11.0 });
        let seen = load(&before, &after, Duration::from_secs(60), meminfo, [sockets[0], ""]);
        assert_eq!(seen.sessions, 7.0, "without IPv6");
        assert_eq!(
            load(&after, &before, Duration::ZERO, "", [""; 2]),
            Load::default(),
            "counters that went back say nothing"
        );
        let own = counters(&proc("stat"), &proc("diskstats"));
        assert!(own.total > own.busy && own.busy > 0, "this machine's own files are read: {own:?}");
    }

    #[test]
    fn an_hour_is_averaged_over_weeks_and_the_newest_counts_most() {
        let mut week = Week::default();
        let cpu = |cpu| Load { cpu, ..Load::default() };
        week.take(5, cpu(0.2));
        assert_eq!(week.hours[5], Hour { load: cpu(0.2), weeks: 1 });
        week.take(5, cpu(0.6));
        assert!((week.hours[5].load.cpu - 0.32).abs() < 1e-9, "{:?}", week.hours[5]);
        for _ in 0..20 {
            week.take(5, cpu(0.9));
        }
        assert!(week.hours[5].load.cpu > 0.89 && week.hours[4].weeks == 0);
        week.take(HOURS, cpu(1.0));
    }

    #[test]
    fn weeks_begin_on_monday_at_midnight_utc() {
        let hour = |text: &str| hour_of_week(text.parse().unwrap());
        assert_eq!(hour("2026-11-23T00:00:00Z"), 0);
        assert_eq!(hour("2026-11-29T23:59:59Z"), 167);
        assert_eq!(hour("2026-11-24T13:30:00+02:00"), 24 + 11);
    }

    #[test]
    fn a_week_is_kept_and_a_damaged_one_is_learned_again() {
        let folder = tempfile::tempdir().unwrap();
        let mut week = Week::read(folder.path());
        week.take(7, Load { sessions: 3.0, ..Load::default() });
        fs::write(folder.path().join(FILE_NAME), serde_json::to_vec(&week).unwrap()).unwrap();
        assert_eq!(Week::read(folder.path()), week);
        fs::write(folder.path().join(FILE_NAME), "{\"hours\": []}").unwrap();
        assert_eq!(Week::read(folder.path()), Week::default());
    }
}
