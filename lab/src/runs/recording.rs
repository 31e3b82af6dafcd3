//! A record that is being written: on the disk before anything is started, and whole at every moment.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::PermissionsExt as _,
    path::Path,
    time::Instant,
};

use jiff::Timestamp;
use patchlab_check::{Digest, step::Pattern};
use serde::Serialize;

use super::{
    EVENTS, End, Event, Happening, How, JOURNAL, JUNIT, Measured, ORDER, OnBaseline, RECORD, REPORT, Record, Runs,
    RunsError, SCENARIOS, SCHEMA, Scope, Tested, VERDICT, evidence, failed, phases,
};
use crate::{
    failure, junit,
    ledger::{Ledger, Process, Thing},
    report::{BaselineReport, Report},
    scenario::Scenario,
};

/// What is asked of a run that begins.
#[derive(Debug)]
pub struct Asked<'a, O: Serialize, M: Serialize> {
    /// The order's identifier and digest.
    pub id: (&'a str, Digest),
    /// The order, as [`super::Run::order`] gives it back.
    pub order: &'a O,
    /// The baselines: full names and digests.
    pub baselines: Vec<OnBaseline>,
    /// The scenarios.
    pub scenarios: &'a [Scenario],
    /// How: when clones reboot and are kept.
    pub manner: &'a M,
    /// The whole order, or a part of it.
    pub scope: Scope,
    /// The run that this one repeats.
    pub retry_of: Option<String>,
}

/// A run's record while the run goes on.
#[derive(Debug)]
pub struct Recording {
    record: Record,
    folder: std::path::PathBuf,
    events: File,
    begun: Instant,
    /// What its scenarios want to have taken out of whatever is stored.
    redact: Vec<Pattern>,
}

impl Runs {
    /// Begins a record. It is on the disk when this returns.
    pub fn begin<O: Serialize, M: Serialize>(&self, asked: Asked<'_, O, M>) -> Result<Recording, RunsError> {
        let begun = Timestamp::now();
        let runs = &self.places.runs;
        fs::create_dir_all(runs).map_err(failed("create", runs))?;
        // What machines said is nobody's business but the lab's.
        fs::set_permissions(runs, fs::Permissions::from_mode(0o750)).map_err(failed("restrict", runs))?;
        let unreadable = |reason: serde_json::Error| failed("write", &runs.join(RECORD))(reason.into());
        let mut record = Record {
            schema: SCHEMA,
            id: begun.strftime("%y%m%d-%H%M%S").to_string(),
            order: asked.id.0.to_owned(),
            order_digest: asked.id.1,
            begun,
            owner: Process::current().map_err(failed("identify the process for", runs))?,
            lab: env!("CARGO_PKG_VERSION").to_owned(),
            scope: asked.scope,
            retry_of: asked.retry_of,
            manner: serde_json::to_value(asked.manner).map_err(unreadable)?,
            baselines: asked.baselines,
            scenarios: asked.scenarios.iter().map(Tested::of).collect(),
            end: None,
        };
        let order = serde_json::to_vec_pretty(asked.order).map_err(unreadable)?;
        let undertaking = format!("run-{}-{}", record.id, record.owner.pid);
        let partial = runs.join(format!(".{}-{}", record.id, record.owner.pid));
        let ledger = Ledger::open(&self.places)?;
        ledger.begin(&undertaking)?;
        ledger.creating(&undertaking, Thing::Folder { path: partial.clone() })?;
        let named = fill(&partial, &record, &order, asked.scenarios).and_then(|()| self.name(&partial, &record.id));
        if named.is_err() {
            let _ = fs::remove_dir_all(&partial);
        }
        ledger.end(&undertaking)?;
        record.id = named?;
        let home = runs.join(&record.id);
        let path = home.join(EVENTS);
        let events = OpenOptions::new().create(true).append(true).open(&path).map_err(failed("create", &path))?;
        let redact = asked.scenarios.iter().flat_map(|scenario| scenario.redact.iter().cloned()).collect();
        Ok(Recording { record, folder: home, events, begun: Instant::now(), redact })
    }

    /// Writes a verdict that more was found out about since. How the run ended stays.
    ///
    /// # Errors
    /// There is no such run, or it cannot be written.
    pub fn amend(&self, id: &str, report: &Report) -> Result<(), RunsError> {
        write_json(&self.get(id)?.folder.join(VERDICT), report)
    }

    /// The last act: a name stands for all of it or does not exist. Of two that begin in one second, one gets a number.
    fn name(&self, partial: &Path, wanted: &str) -> Result<String, RunsError> {
        let numbered = (2_u32..).map(|number| format!("{wanted}-{number}"));
        for id in std::iter::once(wanted.to_owned()).chain(numbered) {
            let home = self.places.runs.join(&id);
            match fs::rename(partial, &home) {
                Ok(()) => return Ok(id),
                Err(error) if home.exists() && error.kind() == io::ErrorKind::DirectoryNotEmpty => {}
                Err(error) => return Err(failed("put in place", &home)(error)),
            }
        }
        Ok(wanted.to_owned())
    }
}

fn fill(folder: &Path, record: &Record, order: &[u8], scenarios: &[Scenario]) -> Result<(), RunsError> {
    fs::create_dir(folder).map_err(failed("create", folder))?;
    write(&folder.join(ORDER), order)?;
    for baseline in &record.baselines {
        let home = folder.join(folder_name(&baseline.name));
        fs::create_dir_all(&home).map_err(failed("create", &home))?;
    }
    for scenario in scenarios {
        // Of a matrix one folder for all: it is read again as it was.
        let home = folder.join(SCENARIOS).join(scenario.folder());
        if home.exists() {
            continue;
        }
        for file in scenario.files().unwrap_or_default() {
            let copy = home.join(&file.relative);
            let parent = copy.parent().unwrap_or(&home);
            fs::create_dir_all(parent).map_err(failed("create", parent))?;
            fs::copy(&file.path, &copy).map_err(failed("copy", &file.path))?;
        }
    }
    write_json(&folder.join(RECORD), record)
}

/// A baseline's name as that of a folder.
pub(super) fn folder_name(baseline: &str) -> String {
    let safe = |c: char| if c.is_ascii_alphanumeric() || "-_.@".contains(c) { c } else { '-' };
    let name: String = baseline.trim_start_matches('.').chars().map(safe).collect();
    // The other names in a run's folder are not a baseline's.
    if name == SCENARIOS { format!("{name}@") } else { name }
}

impl Recording {
    /// The run's id.
    pub fn id(&self) -> &str {
        &self.record.id
    }

    /// What it records.
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// Writes down that something happened on a baseline; now.
    pub fn happened(&self, baseline: &str, what: Happening) -> Result<(), RunsError> {
        let event = Event { ms: self.ms(), baseline: baseline.to_owned(), what };
        let path = self.folder.join(EVENTS);
        let mut line = serde_json::to_vec(&event).map_err(|error| failed("write", &path)(error.into()))?;
        line.push(b'\n');
        // Appended in one go: a line is there or not.
        (&self.events).write_all(&line).map_err(failed("write", &path))
    }

    /// Milliseconds since it began.
    pub fn ms(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Takes what is worth keeping out of a worker's folder. Of several workers for one baseline the last one counts.
    pub fn take(&self, baseline: &str, worker: &Path) -> Result<(), RunsError> {
        let home = self.folder.join(folder_name(baseline));
        evidence::take(worker, &home, &self.redact).map_err(failed("take evidence from", worker))
    }

    /// Writes down what was found on a baseline.
    pub fn found(&self, report: &BaselineReport) -> Result<(), RunsError> {
        let home = self.folder.join(folder_name(&report.name));
        if !report.journal.is_empty() {
            write(&home.join(JOURNAL), (report.journal.join("\n") + "\n").as_bytes())?;
        }
        write_json(&home.join(REPORT), report)
    }

    /// Ends it with a verdict.
    pub fn judged(&self, report: &Report) -> Result<Record, RunsError> {
        let path = self.folder.join(JUNIT);
        let xml = junit::render(std::slice::from_ref(report), &self.record.scenarios)
            .map_err(|error| failed("write", &path)(io::Error::other(error.to_string())))?;
        write(&path, xml.as_bytes())?;
        write_json(&self.folder.join(VERDICT), report)?;
        let reason = failure::headline(report, &self.record.scenarios);
        self.end(How::Judged(report.verdict), &reason, &report.baselines)
    }

    /// Ends it without: somebody ended it before.
    pub fn interrupted(&self, reason: &str) -> Result<Record, RunsError> {
        self.end(How::Interrupted, reason, &[])
    }

    fn end(&self, how: How, reason: &str, found: &[BaselineReport]) -> Result<Record, RunsError> {
        let path = self.folder.join(EVENTS);
        self.events.sync_data().map_err(failed("write", &path))?;
        let text = fs::read(&path).map_err(failed("read", &path))?;
        let events: Vec<Event> =
            text.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect();
        let measured = |report: &BaselineReport| Measured {
            baseline: report.name.clone(),
            verdict: report.verdict,
            total_ms: report.total_ms,
            phases: phases(&events, &report.name),
        };
        let end = End {
            at: Timestamp::now(),
            how,
            reason: reason.to_owned(),
            measured: found.iter().map(measured).collect(),
        };
        let record = Record { end: Some(end), ..self.record.clone() };
        write_json(&self.folder.join(RECORD), &record)?;
        Ok(record)
    }
}

fn write_json(path: &Path, value: &impl Serialize) -> Result<(), RunsError> {
    let mut text = serde_json::to_vec_pretty(value).map_err(|error| failed("write", path)(error.into()))?;
    text.push(b'\n');
    write(path, &text)
}

/// Whole or not at all.
fn write(path: &Path, bytes: &[u8]) -> Result<(), RunsError> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    let mut file = tempfile::NamedTempFile::new_in(folder).map_err(failed("write beside", path))?;
    file.write_all(bytes).and_then(|()| file.as_file().sync_all()).map_err(failed("write", path))?;
    fs::set_permissions(file.path(), fs::Permissions::from_mode(0o640)).map_err(failed("restrict", path))?;
    file.persist(path).map_err(|error| failed("replace", path)(error.error))?;
    Ok(())
}
