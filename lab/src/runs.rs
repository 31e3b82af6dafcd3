//! Records of validations: what was asked, what happened when, what was found, and what the machines said.
//!
//! ```text
//! DATA/runs/ID/run.json              what was asked of whom, and how it ended       (Record)
//!              events.jsonl          what happened, as it happened                  (Event, a line each)
//!              order.json            the order, as whoever runs it understands it
//!              scenarios/NAME/       the scenarios as they were
//!              verdict.json          the verdict, once there is one                 (crate::report)
//!              junit.xml             the same for CI
//!              BASELINE/report.json  what was found on one baseline
//!                       control.console patched.console worker.log journal.txt
//!                       out/         what the run brought out of its machines
//! ```
//!
//! A *run* here is one validation of one order, on as many baselines as it was asked for. [`Runs::begin`] writes the record before
//! anything is started, a [`Recording`] adds to it as things happen, and its last act says how it ended. A run whose process is
//! gone without that last act was interrupted: nobody has to be alive to write that down.

mod evidence;
mod recording;
mod retention;
mod tested;
mod timeline;

use std::{
    fs::{self, File},
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use jiff::Timestamp;
use patchlab_check::Digest;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

pub(crate) use self::retention::size;
pub use self::{
    recording::{Asked, Recording},
    retention::{Limits, Spare, surplus},
    tested::{Tested, TestedStep},
    timeline::{Event, Happening, PhaseTime, phases},
};
use crate::{
    ledger::{LedgerError, Process},
    places::Places,
    report::{BaselineReport, REPORT_BYTES, Report, SCHEMA as REPORT_SCHEMA},
    room::Bytes,
    verdict::{Judgement, Phase, overall},
};
pub use evidence::take_out;

/// Version of the record's form.
pub const SCHEMA: u32 = 1;
/// What stands for the newest run where a run's id is asked for.
pub const LAST: &str = "last";
/// Bytes of a record that are read: it lists the scenarios' steps.
const RECORD_LIMIT: u64 = 4 * 1024 * 1024;
/// Bytes of events that are read, from their beginning.
const EVENTS_LIMIT: u64 = 16 * 1024 * 1024;
/// Bytes of any other text that is read.
const TEXT_LIMIT: u64 = 16 * 1024 * 1024;

const RECORD: &str = "run.json";
const EVENTS: &str = "events.jsonl";
const ORDER: &str = "order.json";
const SCENARIOS: &str = "scenarios";
const VERDICT: &str = "verdict.json";
const JUNIT: &str = "junit.xml";
const REPORT: &str = "report.json";
const JOURNAL: &str = "journal.txt";

/// What was asked, by whom, and how it ended (`run.json`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Its id: the time it began at, so that ids sort as the runs began.
    pub id: String,
    /// The order's identifier.
    pub order: String,
    /// The order's digest.
    pub order_digest: Digest,
    /// When it began.
    pub begun: Timestamp,
    /// The process that validates, and writes this.
    pub owner: Process,
    /// Version of the program that validates.
    pub lab: String,
    /// The whole order, or the part that was tried again.
    #[serde(default)]
    pub scope: Scope,
    /// The run that this one repeats.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_of: Option<String>,
    /// How: when clones reboot and are kept, as its caller wrote it.
    pub manner: serde_json::Value,
    /// The baselines it is on.
    pub baselines: Vec<OnBaseline>,
    /// The scenarios it has, with what its steps do.
    pub scenarios: Vec<Tested>,
    /// How it ended; absent as long as it has not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end: Option<End>,
}

/// What of an order's validation is run.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scope {
    /// All of it.
    #[default]
    Whole,
    /// Some scenarios alone: no verdict on the order.
    Scenarios(Vec<String>),
    /// Everything before a step, and not that one: no verdict on the order, but clones to look into.
    Before(Point),
    /// One scenario, up to and with one of its steps: no verdict on the order.
    Step {
        /// The scenario.
        scenario: String,
        /// The step.
        step: String,
    },
}

/// A point in a validation: before a step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Point {
    /// When.
    pub phase: Phase,
    /// In which scenario.
    pub scenario: String,
    /// Before which step; a name that no step has (a check's) stands for the end of the steps.
    pub step: String,
}

impl std::fmt::Display for Point {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "before {}/{} {}", self.scenario, self.step, self.phase)
    }
}

impl Scope {
    /// For people; empty for the whole.
    pub fn describe(&self) -> String {
        match self {
            Self::Whole => String::new(),
            Self::Scenarios(names) => names.join(", "),
            Self::Before(point) => point.to_string(),
            Self::Step { scenario, step } => format!("{scenario} up to {step}"),
        }
    }
}

/// A baseline of a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OnBaseline {
    /// Its full name.
    pub name: String,
    /// Its digest.
    pub digest: Digest,
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct End {
    /// When.
    pub at: Timestamp,
    /// How.
    pub how: How,
    /// One line for people.
    pub reason: String,
    /// What was measured on each baseline that was gone through to its end.
    #[serde(default)]
    pub measured: Vec<Measured>,
}

/// In which way a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum How {
    /// With a verdict.
    Judged(Judgement),
    /// Somebody ended it before.
    Interrupted,
}

/// How long a validation took on a baseline.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Measured {
    /// The baseline's full name.
    pub baseline: String,
    /// Its verdict there.
    pub verdict: Judgement,
    /// All of it, milliseconds.
    pub total_ms: u64,
    /// Its phases, one after the other.
    pub phases: Vec<PhaseTime>,
}

/// Where a run is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Its process lives.
    Running,
    /// It was ended before it had a verdict.
    Interrupted,
    /// It has a verdict.
    Judged(Judgement),
}

impl State {
    /// The word in lists.
    pub fn name(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Interrupted => "interrupted",
            Self::Judged(verdict) => verdict.name(),
        }
    }
}

/// The record of a run.
#[derive(Debug, Clone, PartialEq)]
pub struct Run {
    /// What it is.
    pub record: Record,
    /// Where its files are.
    pub folder: PathBuf,
    /// Bytes it takes on the disk.
    pub size: u64,
}

/// A run's record could not be found, written or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunsError {
    /// No such id.
    #[error("no run {wanted:?}; {}", listed(.known))]
    Unknown {
        /// What was asked for.
        wanted: String,
        /// The newest there are.
        known: Vec<String>,
    },
    /// The run has nothing of that kind.
    #[error("run {run} has {what}")]
    Nothing {
        /// The run.
        run: String,
        /// What it has not, and what it has instead.
        what: String,
    },
    /// A record cannot be read.
    #[error("record {path}: {reason}; remove the folder if it is of no use to you")]
    Record {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The ledger.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The file system said no.
    #[error("records of runs: cannot {action} {path}: {reason}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        reason: io::Error,
    },
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> RunsError {
    let path = path.to_owned();
    move |reason| RunsError::Io { action, path, reason }
}

fn listed(known: &[String]) -> String {
    if known.is_empty() {
        "there are none: `patchlab lab validate` leaves one".into()
    } else {
        format!("the newest are {}; `patchlab lab runs` lists all", known.join(", "))
    }
}

/// The records of a lab.
#[derive(Debug, Clone)]
pub struct Runs {
    places: Places,
}

impl Runs {
    /// Those of a lab.
    pub fn open(places: &Places) -> Self {
        Self { places: places.clone() }
    }

    /// All that can be read, newest first, and what is wrong with the others.
    pub fn list(&self) -> Result<(Vec<Run>, Vec<RunsError>), RunsError> {
        let mut runs = Vec::new();
        let mut wrong = Vec::new();
        for id in self.ids()?.iter().rev() {
            match self.load(id) {
                Ok(run) => runs.push(run),
                Err(error) => wrong.push(error),
            }
        }
        Ok((runs, wrong))
    }

    /// The run with that id, the only one whose id begins like that, or [`LAST`].
    pub fn get(&self, wanted: &str) -> Result<Run, RunsError> {
        let ids = self.ids()?;
        let mut alike = ids.iter().filter(|id| id.starts_with(wanted) && !wanted.is_empty());
        let found = match (ids.iter().find(|id| *id == wanted), alike.next(), alike.next()) {
            (Some(id), _, _) | (None, Some(id), None) => Some(id),
            _ if wanted == LAST => ids.last(),
            _ => None,
        };
        match found {
            Some(id) => self.load(id),
            None => {
                let known = ids.into_iter().rev().take(5).collect();
                Err(RunsError::Unknown { wanted: wanted.to_owned(), known })
            }
        }
    }

    /// Ids, oldest first.
    fn ids(&self) -> Result<Vec<String>, RunsError> {
        let dir = &self.places.runs;
        let entries = match fs::read_dir(dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.map_err(failed("read", dir))?,
        };
        let mut ids = Vec::new();
        for entry in entries {
            let name = entry.map_err(failed("read", dir))?.file_name().to_string_lossy().into_owned();
            if !name.starts_with('.') {
                ids.push(name);
            }
        }
        ids.sort_by(|one, other| age(one).cmp(&age(other)));
        Ok(ids)
    }

    fn load(&self, id: &str) -> Result<Run, RunsError> {
        let folder = self.places.runs.join(id);
        let record: Record = json(&folder.join(RECORD), RECORD_LIMIT)?;
        // The name is the folder's: a record that says another was moved by hand.
        Ok(Run { record: Record { id: id.to_owned(), ..record }, size: size(&folder), folder })
    }
}

/// Ids of one second are told apart by a number: `261124-093102`, `261124-093102-2`, …, `-10`.
fn age(id: &str) -> (&str, u32) {
    let (time, rest) = id.split_at_checked("261124-093102".len()).unwrap_or((id, ""));
    (time, rest.trim_start_matches('-').parse().unwrap_or(0))
}

impl Run {
    /// Where it is.
    pub fn state(&self) -> State {
        match &self.record.end {
            Some(End { how: How::Judged(verdict), .. }) => State::Judged(*verdict),
            Some(End { how: How::Interrupted, .. }) => State::Interrupted,
            None if self.record.owner.is_alive() => State::Running,
            None => State::Interrupted,
        }
    }

    /// Its verdict; of a run that has none, what was known when it ended, as the lab's failure.
    pub fn report(&self) -> Result<Report, RunsError> {
        let path = self.folder.join(VERDICT);
        if path.exists() {
            let text = bytes(&path, REPORT_BYTES as u64)?;
            let wrong = |reason: String| RunsError::Record { path: path.clone(), reason };
            return Report::from_json(&text).map_err(|error| wrong(error.to_string()));
        }
        let events = self.events()?;
        let baselines = self.record.baselines.iter().map(|baseline| self.unfinished(baseline, &events));
        let baselines = baselines.collect::<Result<Vec<_>, _>>()?;
        let record = &self.record;
        let told = record.end.as_ref().map(|end| end.reason.clone());
        Ok(Report {
            schema: REPORT_SCHEMA,
            order: record.order_digest,
            id: record.order.clone(),
            verdict: Judgement::LabError.worse(overall(&baselines).judgement),
            reason: told.unwrap_or_else(|| match self.state() {
                State::Running => "it is still running".to_owned(),
                _ => "its process was ended before it had a verdict".to_owned(),
            }),
            total_ms: events.last().map_or(0, |event| event.ms),
            bisection: None,
            baselines,
        })
    }

    /// What was found on a baseline, or how far it was.
    fn unfinished(&self, baseline: &OnBaseline, events: &[Event]) -> Result<BaselineReport, RunsError> {
        let path = self.folder_of(&baseline.name).join(REPORT);
        if path.exists() {
            return json(&path, REPORT_BYTES as u64);
        }
        let last = phases(events, &baseline.name).pop();
        let mut report = BaselineReport::begun(baseline.name.clone(), baseline.digest);
        report.reason = match (&last, timeline::failed(events, &baseline.name)) {
            (Some(phase), failed) if failed.is_empty() => format!("it was ended in the phase {}", phase.name),
            (Some(phase), failed) => {
                format!("it was ended in the phase {}; by then {failed}", phase.name)
            }
            (None, _) => "it was ended before it began".to_owned(),
        };
        report.rollback.reason = "it was ended before".to_owned();
        report.total_ms = last.map_or(0, |phase| phase.begun_ms + phase.ms);
        Ok(report)
    }

    /// What happened, oldest first; a line cut short by a crash is left out.
    pub fn events(&self) -> Result<Vec<Event>, RunsError> {
        let path = self.folder.join(EVENTS);
        let mut text = Vec::new();
        match File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.map_err(failed("open", &path))?,
        }
        .take(EVENTS_LIMIT)
        .read_to_end(&mut text)
        .map_err(failed("read", &path))?;
        Ok(text.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect())
    }

    /// The phases on a baseline with their durations, as far as it came.
    pub fn phases_on(&self, baseline: &str) -> Result<Vec<PhaseTime>, RunsError> {
        let measured = self.record.end.iter().flat_map(|end| &end.measured);
        match measured.into_iter().find(|measured| measured.baseline == baseline) {
            Some(measured) => Ok(measured.phases.clone()),
            None => Ok(phases(&self.events()?, baseline)),
        }
    }

    /// A file of a baseline's that the run left, such as `patched.console`; lossily decoded.
    pub fn text_of(&self, baseline: &str, name: &str) -> Result<Option<String>, RunsError> {
        let path = self.folder_of(baseline).join(name);
        if !path.exists() {
            return Ok(None);
        }
        Ok(Some(String::from_utf8_lossy(&bytes(&path, TEXT_LIMIT)?).into_owned()))
    }

    /// What the run brought out of its machines on a baseline: name and file.
    pub fn brought_out(&self, baseline: &str) -> Vec<(String, PathBuf)> {
        let entries = fs::read_dir(self.folder_of(baseline).join(evidence::OUT)).into_iter().flatten().flatten();
        let mut files: Vec<_> =
            entries.map(|entry| (entry.file_name().to_string_lossy().into_owned(), entry.path())).collect();
        files.sort();
        files
    }

    /// The order, as it was written by whoever ran it.
    pub fn order<T: DeserializeOwned>(&self) -> Result<T, RunsError> {
        json(&self.folder.join(ORDER), RECORD_LIMIT)
    }

    /// The folder of the scenarios as they were.
    pub fn scenarios(&self) -> PathBuf {
        self.folder.join(SCENARIOS)
    }

    fn folder_of(&self, baseline: &str) -> PathBuf {
        self.folder.join(recording::folder_name(baseline))
    }

    /// How much it takes on the disk.
    pub fn bytes(&self) -> Bytes {
        Bytes(self.size)
    }
}

fn bytes(path: &Path, limit: u64) -> Result<Vec<u8>, RunsError> {
    let wrong = |reason: String| RunsError::Record { path: path.to_owned(), reason };
    let mut text = Vec::new();
    let file = File::open(path).map_err(|error| wrong(error.to_string()))?;
    file.take(limit + 1).read_to_end(&mut text).map_err(|error| wrong(error.to_string()))?;
    if text.len() as u64 > limit { Err(wrong(format!("more than {limit} bytes are too many"))) } else { Ok(text) }
}

fn json<T: DeserializeOwned>(path: &Path, limit: u64) -> Result<T, RunsError> {
    serde_json::from_slice(&bytes(path, limit)?)
        .map_err(|error| RunsError::Record { path: path.to_owned(), reason: error.to_string() })
}

#[cfg(test)]
mod tests;
