//! The host's long-running jobs: units that work for a while, week by week at the same hour (backups, index runs, nightly builds), so that a
//! patch is not put on top of one. Looked at once a minute, by the processor time that control groups count (cgroups(7), version 2), which
//! systemd makes one of for every unit.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};
use patchlab_protocol::description::{JOBS, Job, UNIT_BYTES};
use serde::{Deserialize, Serialize};

use crate::{
    journal::replace,
    profile::{EVERY, HOURS, NEWEST, hour_of_week},
};

/// The file's name in the state folder.
pub const FILE_NAME: &str = "jobs.json";
/// Where control groups are.
const GROUPS: &str = "/sys/fs/cgroup";
/// The agent's own unit: what orders take is no job of the host's.
const OWN: &str = "patchlab-agent.service";
/// Most control groups that are looked at.
const MOST_GROUPS: usize = 2_000;
/// How deep they are looked for: slices, a unit, and what a manager of units makes below.
const DEPTH: u32 = 8;
/// What a unit has to use of one processor in a minute to be at work, per cent.
const AT_WORK: u32 = 5;
/// How long a unit may rest and still be at the same work.
const REST: SignedDuration = SignedDuration::from_mins(5);
/// From which duration on a work is a long one.
const LONG: SignedDuration = SignedDuration::from_mins(15);
/// What works longer than that works always: it is part of the load, and no job.
const ALWAYS: SignedDuration = SignedDuration::from_hours(24);
/// After how long without it a job is forgotten.
const FORGOTTEN: SignedDuration = SignedDuration::from_hours(5 * 7 * 24);

/// A stretch of time in which a unit worked.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Work {
    unit: String,
    begun: Timestamp,
    ended: Timestamp,
    /// Processor time.
    used: Duration,
}

/// A job that was seen.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Seen {
    unit: String,
    /// Hour of the week, UTC, in which it begins.
    hour: usize,
    /// How long it usually takes, minutes.
    minutes: f64,
    /// Processors that it keeps busy meanwhile.
    processors: f64,
    weeks: u32,
    last: Timestamp,
}

/// Every job that was seen.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Jobs {
    seen: Vec<Seen>,
}

impl Jobs {
    /// Reads the jobs in a folder; those that cannot be read are learned again.
    pub fn read(folder: &Path) -> Self {
        let read = fs::read(folder.join(FILE_NAME));
        match read.and_then(|bytes| Ok(serde_json::from_slice::<Self>(&bytes)?)) {
            Ok(jobs) => jobs,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Self::default(),
            Err(error) => {
                tracing::warn!(%error, "the host's jobs cannot be read; they are learned again");
                Self::default()
            }
        }
    }

    /// As they are told, in the order of the week.
    pub fn known(&self) -> Vec<Job> {
        let whole = |value: f64| value.round().clamp(0.0, 1e6) as u32;
        let mut jobs: Vec<Job> = self
            .seen
            .iter()
            .map(|seen| Job {
                unit: seen.unit.clone(),
                hour: u32::try_from(seen.hour + 1).unwrap_or(1),
                minutes: whole(seen.minutes),
                processors_percent: whole(seen.processors * 100.0),
                weeks: seen.weeks,
            })
            .collect();
        jobs.sort_by(|one, other| (one.hour, &one.unit).cmp(&(other.hour, &other.unit)));
        jobs
    }

    /// Takes a work in that has ended: that of another week, when one began in the same hour or one beside it.
    fn take(&mut self, work: &Work) {
        let (hour, at) = (hour_of_week(work.begun), work.ended);
        self.seen.retain(|seen| at.duration_since(seen.last) < FORGOTTEN);
        let minutes = work.ended.duration_since(work.begun).as_secs_f64() / 60.0;
        let processors = work.used.as_secs_f64() / 60.0 / minutes.max(1.0);
        let beside = |seen: &Seen| (seen.hour + HOURS - hour + 1) % HOURS <= 2;
        if let Some(seen) = self.seen.iter_mut().find(|seen| seen.unit == work.unit && beside(seen)) {
            let towards = |usual: f64, new: f64| usual + NEWEST / 100.0 * (new - usual);
            seen.minutes = towards(seen.minutes, minutes);
            seen.processors = towards(seen.processors, processors);
            // Twice in one night is one week.
            if at.duration_since(seen.last) > SignedDuration::from_hours(24) {
                seen.weeks = seen.weeks.saturating_add(1);
            }
            seen.last = at;
            return;
        }
        self.seen.push(Seen { unit: work.unit.clone(), hour, minutes, processors, weeks: 1, last: at });
        // What was seen in one week alone, and is short, is missed least.
        let weight = |seen: &Seen| (seen.weeks, seen.minutes as u64, seen.last);
        while self.seen.len() > JOBS {
            let Some(least) = (0..self.seen.len()).min_by_key(|n| weight(&self.seen[*n])) else { break };
            self.seen.remove(least);
        }
    }
}

/// Which units are at work.
#[derive(Debug, Default)]
struct AtWork {
    before: BTreeMap<String, Duration>,
    begun: BTreeMap<String, Work>,
}

impl AtWork {
    /// Takes in what every unit has used so far, `between` after it was taken in last, and says which long works have ended.
    fn look(&mut self, now: BTreeMap<String, Duration>, at: Timestamp, between: Duration) -> Vec<Work> {
        let since = at.checked_sub(between).unwrap_or(at);
        for (unit, used) in &now {
            // One that was not there has used all of that since.
            let then = self.before.get(unit).filter(|then| *then <= used).copied().unwrap_or_default();
            let known = !self.before.is_empty();
            let used = used.saturating_sub(then);
            if known && used * 100 >= between * AT_WORK {
                let fresh = || Work { unit: unit.clone(), begun: since, ended: at, used: Duration::ZERO };
                let work = self.begun.entry(unit.clone()).or_insert_with(fresh);
                work.ended = at;
                work.used += used;
            }
        }
        self.before = now;
        let rests = |work: &Work| at.duration_since(work.ended) > REST;
        let ended: Vec<String> =
            self.begun.iter().filter(|(_, work)| rests(work)).map(|(unit, _)| unit.clone()).collect();
        let ended = ended.into_iter().filter_map(|unit| self.begun.remove(&unit));
        ended.filter(|work| (LONG..ALWAYS).contains(&work.ended.duration_since(work.begun))).collect()
    }
}

/// What every unit below `groups` has used so far; those of one kind (sessions, transient units) together.
fn used(groups: &Path) -> BTreeMap<String, Duration> {
    let mut used: BTreeMap<String, Duration> = BTreeMap::new();
    let (mut left, mut folders) = (MOST_GROUPS, vec![(groups.to_owned(), 0)]);
    while let Some((folder, depth)) = folders.pop() {
        let unit = folder.file_name().and_then(|name| unit(&name.to_string_lossy()));
        if let Some(unit) = unit {
            // What is below a unit is counted in it, but a manager of units has units of its own there.
            if unit == OWN {
                continue;
            }
            if !unit.starts_with("user@") {
                let stat = fs::read_to_string(folder.join("cpu.stat")).unwrap_or_default();
                let micros = stat.lines().find_map(|line| line.strip_prefix("usage_usec ")?.trim().parse().ok());
                *used.entry(unit).or_default() += Duration::from_micros(micros.unwrap_or(0));
                continue;
            }
        }
        if depth >= DEPTH {
            continue;
        }
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
            if is_folder && let Some(fewer) = left.checked_sub(1) {
                left = fewer;
                folders.push((entry.path(), depth + 1));
            }
        }
    }
    used
}

/// The unit that a control group is of, with a star for each number and hash in its name that is another one each time.
fn unit(name: &str) -> Option<String> {
    let (stem, kind) = name.rsplit_once('.').filter(|(_, kind)| matches!(*kind, "service" | "scope"))?;
    let passes = |word: &str| {
        let (digits, hex) = (word.bytes().all(|b| b.is_ascii_digit()), word.bytes().all(|b| b.is_ascii_hexdigit()));
        !word.is_empty() && (digits || hex && word.len() >= 8)
    };
    // What is enabled by its name keeps it: `user@1000.service`.
    let words: Vec<&str> = stem.split('-').map(|word| if passes(word) { "*" } else { word }).collect();
    let transient = |word: &&str| word.len() > 8 && word.starts_with('r') && passes(&word[1..]);
    let words: Vec<&str> = words.into_iter().map(|word| if transient(&word) { "*" } else { word }).collect();
    let unit = format!("{}.{kind}", words.join("-"));
    let fits = unit.len() <= UNIT_BYTES && !unit.contains(|c: char| c.is_whitespace() || c.is_control());
    fits.then_some(unit)
}

/// Learns the host's jobs, for ever; keeps them in `folder`.
pub async fn learn(folder: PathBuf) {
    let mut jobs = Jobs::read(&folder);
    let mut at_work = AtWork::default();
    let mut ticks = tokio::time::interval(EVERY);
    // After a suspension, one look and not one for each minute of it.
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut looked = std::time::Instant::now();
    loop {
        ticks.tick().await;
        let now = used(Path::new(GROUPS));
        let ended = at_work.look(now, Timestamp::now(), looked.elapsed());
        looked = std::time::Instant::now();
        if ended.is_empty() {
            continue;
        }
        ended.iter().for_each(|work| jobs.take(work));
        let text = serde_json::to_vec(&jobs).unwrap_or_default();
        if let Err(error) = replace(&folder.join(FILE_NAME), &text) {
            tracing::warn!(%error, "the host's jobs could not be kept");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn at(minute: i64) -> Timestamp {
        // A Monday, 00:00 UTC.
        "2026-11-23T00:00:00Z".parse::<Timestamp>().unwrap() + SignedDuration::from_mins(minute)
    }

    /// The works that end when a unit uses so many seconds of processor time in each minute.
    fn works(seconds: &[u64]) -> Vec<Work> {
        let mut at_work = AtWork::default();
        let (mut total, mut ended) = (Duration::ZERO, Vec::new());
        at_work.look(BTreeMap::from([("backup.service".into(), total)]), at(0), MINUTE);
        for (minute, seconds) in (1..).zip(seconds) {
            total += Duration::from_secs(*seconds);
            ended.extend(at_work.look(BTreeMap::from([("backup.service".into(), total)]), at(minute), MINUTE));
        }
        ended
    }

    #[test]
    fn a_long_work_is_one_with_its_rests_and_short_ones_are_none() {
        let rest = [0; 7];
        let long = [&[60; 10][..], &[0; 4], &[30; 10], &rest].concat();
        let ended = works(&long);
        let expected =
            Work { unit: "backup.service".into(), begun: at(0), ended: at(24), used: Duration::from_secs(900) };
        assert_eq!(ended, [expected]);
        assert!(works(&[&[60; 10][..], &rest, &[60; 10], &rest].concat()).is_empty(), "two short ones");
        assert!(works(&[&[2; 60][..], &rest].concat()).is_empty(), "less than a twentieth of a processor");
        assert!(works(&[&[60; 25 * 60][..], &rest].concat()).is_empty(), "that one works always");
        assert!(works(&[60; 60]).is_empty(), "not ended yet");
    }

    #[test]
    fn what_a_unit_used_before_it_was_looked_at_does_not_count_and_what_one_used_that_just_came_does() {
        let mut at_work = AtWork::default();
        let of = |entries: &[(&str, u64)]| {
            entries.iter().map(|(unit, s)| ((*unit).to_owned(), Duration::from_secs(*s))).collect()
        };
        at_work.look(of(&[("old.service", 5_000)]), at(0), MINUTE);
        at_work.look(of(&[("old.service", 5_000), ("new.service", 30)]), at(1), MINUTE);
        assert_eq!(at_work.begun.keys().collect::<Vec<_>>(), ["new.service"]);
        // Started anew, its counter begins at nothing.
        at_work.look(of(&[("old.service", 20), ("new.service", 60)]), at(2), MINUTE);
        assert_eq!(at_work.begun["old.service"].used, Duration::from_secs(20));
    }

    #[test]
    fn the_same_job_of_every_week_is_one_and_its_habits_follow_it() {
        let mut jobs = Jobs::default();
        let week = 7 * 24 * 60;
        let mut work = |begun: i64, minutes: i64, processors: u64| {
            let used = MINUTE * u32::try_from(minutes).unwrap() * u32::try_from(processors).unwrap();
            jobs.take(&Work { unit: "backup.service".into(), begun: at(begun), ended: at(begun + minutes), used });
            jobs.known()
        };
        let job = |hour, minutes, processors_percent, weeks| Job {
            unit: "backup.service".into(),
            hour,
            minutes,
            processors_percent,
            weeks,
        };
        assert_eq!(work(130, 40, 2), [job(3, 40, 200, 1)]);
        // An hour later in the next week.
        assert_eq!(work(week + 185, 60, 2), [job(3, 46, 200, 2)]);
        // Once more in the same night is no other week; at another time of day it is another job.
        assert_eq!(work(week + 230 + 40, 46, 2).len(), 2);
        assert_eq!(work(week + 20 * 60, 30, 1).len(), 3);
        // What has not been seen for long is forgotten.
        assert_eq!(work(8 * week + 12 * 60, 30, 1), [job(13, 30, 100, 1)]);
    }

    #[test]
    fn hours_of_the_week_beside_each_other_go_over_its_end() {
        let mut jobs = Jobs::default();
        let work =
            |begun: i64| Work { unit: "x.service".into(), begun: at(begun), ended: at(begun + 20), used: MINUTE };
        jobs.take(&work(10));
        jobs.take(&work(7 * 24 * 60 - 10));
        assert_eq!(jobs.known().len(), 1, "{jobs:?}");
    }

    #[test]
    fn only_so_many_are_known_and_those_seen_most_stay() {
        let mut jobs = Jobs::default();
        let work = |number: usize, begun: i64, minutes: i64| {
            let (unit, used) = (format!("job{number}.service"), MINUTE);
            Work { unit, begun: at(begun), ended: at(begun + minutes), used }
        };
        for week in 0..2 {
            jobs.take(&work(0, week * 7 * 24 * 60, 20));
        }
        for number in 1..=JOBS + 5 {
            jobs.take(&work(number, 7 * 24 * 60 + 60, 30));
        }
        assert_eq!(jobs.known().len(), JOBS);
        assert!(jobs.known().iter().any(|job| job.unit == "job0.service"));
    }

    #[test]
    fn units_are_found_where_systemd_puts_them_and_those_of_one_kind_are_one() {
        let root = tempfile::tempdir().unwrap();
        for (group, micros) in [
            ("system.slice/backup.service", 7_000_000),
            ("system.slice/patchlab-agent.service", 8_000_000),
            ("system.slice/system-postgresql.slice/postgresql@15-main.service", 1_000_000),
            ("system.slice/docker-0123456789abcdef0123456789abcdef.scope", 2_000_000),
            ("system.slice/docker-fedcba9876543210fedcba9876543210.scope", 3_000_000),
            ("user.slice/user-1000.slice/session-12.scope", 4_000_000),
            ("user.slice/user-1000.slice/user@1000.service/app.slice/build.service", 5_000_000),
            ("system.slice/run-r0123456789abcdef0123456789abcdef.service", 6_000_000),
            ("system.slice/backup.service/below", 999),
        ] {
            let folder = root.path().join(group);
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join("cpu.stat"), format!("usage_usec {micros}\nuser_usec 1\n")).unwrap();
        }
        let found = used(root.path());
        let seconds: Vec<(&str, u64)> = found.iter().map(|(unit, used)| (unit.as_str(), used.as_secs())).collect();
        assert_eq!(
            seconds,
            [
                ("backup.service", 7),
                ("build.service", 5),
                ("docker-*.scope", 5),
                ("postgresql@15-main.service", 1),
                ("run-*.service", 6),
                ("session-*.scope", 4),
            ]
        );
        assert!(used(&root.path().join("nothing")).is_empty());
    }

    #[test]
    fn jobs_are_kept_and_damaged_ones_are_learned_again() {
        let folder = tempfile::tempdir().unwrap();
        let mut jobs = Jobs::read(folder.path());
        jobs.take(&Work { unit: "x.service".into(), begun: at(0), ended: at(20), used: MINUTE });
        fs::write(folder.path().join(FILE_NAME), serde_json::to_vec(&jobs).unwrap()).unwrap();
        assert_eq!(Jobs::read(folder.path()), jobs);
        fs::write(folder.path().join(FILE_NAME), "[").unwrap();
        assert_eq!(Jobs::read(folder.path()), Jobs::default());
    }
}
