//! `patchlab lab runs`, `show`, `log`, `retry` and `report`: what validations left. Need no server.

use std::{io::IsTerminal as _, path::PathBuf};

use clap::{Args, ValueEnum};
use jiff::Timestamp;
use patchlab_check::written::Span;
use patchlab_lab::{
    Baseline,
    applier::Role,
    baseline::Baselines,
    host::Libvirt,
    report::BaselineReport,
    runs::{Event, Happening, Run, Runs, RunsError, Scope, State},
    scenario::{Scenario, discover},
    verdict::Judgement,
};
use patchlab_protocol::document::Order;
use serde_json::json;

use super::{
    CliError, Exit, Global, Output,
    kept::Which,
    validate::{self, Results},
    verdict,
};
use crate::{
    lab::{pool::Pool, validate::Batch, worker::Manner},
    legible::millis,
    place::Data,
};

pub(super) const RUNS_EXAMPLES: &str = "Examples:
  patchlab lab runs
  patchlab lab runs --verdict rejected --since 2d
  patchlab lab runs --order PO-2026-0001 --baseline debian-12-web --json -";

pub(super) const SHOW_EXAMPLES: &str = "Examples:
  patchlab lab show last
  patchlab lab show 261124-0931 --json -";

pub(super) const LOG_EXAMPLES: &str = "Examples:
  patchlab lab log last
  patchlab lab log last --clone control --console
  patchlab lab log 261124-0931 --baseline debian-12-web@1 --journal";

pub(super) const RETRY_EXAMPLES: &str = "Examples:
  patchlab lab retry last
  patchlab lab retry last --scenario web-smoke --step config
  patchlab lab retry last --step 2 --keep always
  patchlab lab retry last --pre-existing block

With --scenarios, they are read anew from there. A part of an order never passes it: that needs the whole.";

pub(super) const REPORT_EXAMPLES: &str = "Examples:
  patchlab lab report last --out report.html";

/// Which runs are listed.
#[derive(Debug, Args)]
pub struct RunsCommand {
    /// Only of this order
    #[arg(long, value_name = "ID")]
    order: Option<String>,
    /// Only on this baseline, by its name or exactly (debian-12-web@1)
    #[arg(long, value_name = "NAME")]
    baseline: Option<String>,
    /// Only those that ended like this
    #[arg(long, value_enum, value_name = "VERDICT")]
    verdict: Option<Wanted>,
    /// Only those that began so long ago at most, e.g. 2h, 7d
    #[arg(long, value_name = "TIME")]
    since: Option<Span>,
    /// At most so many
    #[arg(long, value_name = "N", default_value_t = 50)]
    limit: usize,
}

/// How a run ended, or has not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Wanted {
    /// Ship it
    Passed,
    /// It breaks something
    Rejected,
    /// It cannot be applied
    Inapplicable,
    /// The lab broke
    LabError,
    /// Nothing meaningful ran
    Missing,
    /// It was ended before it had a verdict
    Interrupted,
    /// It goes on
    Running,
}

impl Wanted {
    fn is(self, state: State) -> bool {
        self.to_possible_value().is_some_and(|value| value.get_name() == state.name())
    }
}

impl RunsCommand {
    pub(super) fn run(self, global: &Global) -> Result<Exit, CliError> {
        let (runs, wrong) = Runs::open(&global.data()?.lab()).list().map_err(classify)?;
        let output = global.output();
        wrong.iter().for_each(|error| output.note(error.to_string()));
        let now = Timestamp::now();
        let found: Vec<&Run> = runs.iter().filter(|run| self.wants(run, now)).take(self.limit).collect();
        let rows: Vec<_> = found.iter().map(|run| row(&output, run)).collect();
        output.annotated(&["run", "order", "verdict", "began", "took", "baselines"], &rows);
        if runs.is_empty() {
            output.note("none: `patchlab lab validate` leaves a record of every run");
        }
        output.json(&found.iter().map(|run| listed(run)).collect::<Vec<_>>())?;
        Ok(Exit::Passed)
    }

    fn wants(&self, run: &Run, now: Timestamp) -> bool {
        let record = &run.record;
        let on = |wanted: &String| {
            record
                .baselines
                .iter()
                .any(|baseline| baseline.name == *wanted || baseline.name.split('@').next() == Some(wanted.as_str()))
        };
        let age = now.duration_since(record.begun).unsigned_abs();
        self.order.as_ref().is_none_or(|wanted| *wanted == record.order)
            && self.baseline.as_ref().is_none_or(on)
            && self.verdict.is_none_or(|wanted| wanted.is(run.state()))
            && self.since.is_none_or(|since| age <= since.0)
    }
}

fn row(output: &Output, run: &Run) -> (Vec<String>, String) {
    let record = &run.record;
    let took = record.end.as_ref().map(|end| end.at.duration_since(record.begun).unsigned_abs());
    let names: Vec<&str> = record.baselines.iter().map(|baseline| baseline.name.as_str()).collect();
    let fields = vec![
        record.id.clone(),
        record.order.clone(),
        run.state().name().to_owned(),
        output.moment(&record.begun.to_string()),
        took.map_or_else(|| "-".into(), crate::legible::duration),
        names.join(" "),
    ];
    let (part, reason) = (record.scope.describe(), reason(run));
    // A part that holds says by itself that it is one.
    let is_said = part.is_empty() || reason.starts_with("only ");
    (fields, if is_said { reason.to_owned() } else { format!("only {part}: {reason}") })
}

fn reason(run: &Run) -> &str {
    match (&run.record.end, run.state()) {
        (Some(end), _) => &end.reason,
        (None, State::Running) => "",
        (None, _) => "its process was ended",
    }
}

fn listed(run: &Run) -> serde_json::Value {
    json!({ "state": run.state().name(), "record": run.record, "bytes": run.size, "folder": run.folder })
}

/// Says what a run found.
pub(super) fn show(global: &Global, wanted: &str) -> Result<Exit, CliError> {
    let run = Runs::open(&global.data()?.lab()).get(wanted).map_err(classify)?;
    let output = global.output();
    let report = run.report().map_err(classify)?;
    let record = &run.record;
    let mut pairs = vec![
        ("run", record.id.clone()),
        ("state", run.state().name().to_owned()),
        ("began", output.moment(&record.begun.to_string())),
        ("record", format!("{} ({})", run.folder.display(), run.bytes())),
    ];
    if record.scope != Scope::Whole {
        pairs.push(("only", record.scope.describe()));
    }
    if let Some(before) = &record.retry_of {
        pairs.push(("retry of", before.clone()));
    }
    output.pairs(&pairs);
    verdict::print(&output, &report, record);
    let mut phases = serde_json::Map::new();
    let mut rows = Vec::new();
    for baseline in &record.baselines {
        let found = run.phases_on(&baseline.name).map_err(classify)?;
        rows.extend(
            found
                .iter()
                .map(|phase| vec![baseline.name.clone(), phase.name.clone(), millis(phase.begun_ms), millis(phase.ms)]),
        );
        phases.insert(baseline.name.clone(), json!(found));
    }
    output.table(&["baseline", "phase", "began after", "took"], &rows);
    output.json(&json!({
        "state": run.state().name(), "record": record, "report": report, "phases": phases, "bytes": run.size,
        "folder": run.folder,
    }))?;
    Ok(Exit::Passed)
}

/// What was said in a run.
#[derive(Debug, Args)]
pub struct LogCommand {
    /// The run's id, how only one begins, or `last`
    run: String,
    /// On which baseline; the only one, or the first that did not pass, unless given
    #[arg(long, value_name = "NAME")]
    baseline: Option<String>,
    /// Whose console
    #[arg(long = "clone", value_enum, default_value_t = Which::Patched)]
    which: Which,
    /// What that clone's serial console said
    #[arg(long, conflicts_with = "journal")]
    console: bool,
    /// The last lines of the patched clone's journal, when it did not pass
    #[arg(long)]
    journal: bool,
}

impl LogCommand {
    pub(super) fn run(self, global: &Global) -> Result<Exit, CliError> {
        let run = Runs::open(&global.data()?.lab()).get(&self.run).map_err(classify)?;
        let output = global.output();
        if !self.console && !self.journal {
            let events = run.events().map_err(classify)?;
            let on = self.baseline.as_deref().map(|name| baseline_of(&run, Some(name))).transpose()?;
            let wanted = |event: &&Event| on.as_ref().is_none_or(|name| event.baseline == *name);
            let events: Vec<Event> = events.iter().filter(wanted).cloned().collect();
            events.iter().for_each(|event| output.line(said(event)));
            output.json(&events)?;
            return Ok(Exit::Passed);
        }
        let baseline = baseline_of(&run, self.baseline.as_deref())?;
        let role = Role::from(self.which).name();
        let file = if self.journal { "journal.txt".to_owned() } else { format!("{role}.console") };
        let nothing = || {
            let what = if self.journal {
                "no journal: it is read of a patched clone that does not pass".to_owned()
            } else {
                format!("no console of the {role} clone: it said nothing there, or was ended before there was one")
            };
            classify(RunsError::Nothing { run: run.record.id.clone(), what })
        };
        let text = run.text_of(&baseline, &file).map_err(classify)?.ok_or_else(nothing)?;
        text.lines().for_each(|line| output.line(legible_line(line)));
        output.json(&json!({ "run": run.record.id, "baseline": baseline, "clone": role, "text": text }))?;
        Ok(Exit::Passed)
    }
}

/// A line of a machine's: what it says must not steer the terminal of who reads it.
pub(super) fn legible_line(line: &str) -> String {
    if !std::io::stdout().is_terminal() {
        return line.to_owned();
    }
    line.chars().filter(|c| *c == '\t' || !c.is_control()).collect()
}

fn said(event: &Event) -> String {
    let what = match &event.what {
        Happening::Started { host } => format!("on host {host}"),
        Happening::HostGone { host, reason } => format!("host {host} is out: {reason}"),
        Happening::Phase { name } => name.clone(),
        Happening::Step { scenario, step, role, status } => {
            format!("{scenario}/{step} on the {} clone: {status}", role.name())
        }
        Happening::Note { text } => text.clone(),
        Happening::Ended { verdict, reason } => format!("{verdict}: {reason}"),
        Happening::Interrupted => "interrupted".into(),
    };
    format!("{}.{:03}\t{}\t{what}", event.ms / 1000, event.ms % 1000, event.baseline)
}

/// The name of one of a run's baselines: the one wanted, the only one, or the first that did not pass.
pub(super) fn baseline_of(run: &Run, wanted: Option<&str>) -> Result<String, CliError> {
    let names: Vec<&str> = run.record.baselines.iter().map(|baseline| baseline.name.as_str()).collect();
    match wanted {
        Some(wanted) => names
            .iter()
            .find(|name| **name == wanted || name.split('@').next() == Some(wanted))
            .map(|name| (*name).to_owned())
            .ok_or_else(|| {
                CliError::Input(format!("run {} is not on {wanted}, but on {}", run.record.id, names.join(", ")))
            }),
        None => {
            let report = run.report().map_err(classify)?;
            let bad = |baseline: &&BaselineReport| baseline.verdict != Judgement::Passed;
            let chosen = report.baselines.iter().find(bad).or(report.baselines.first());
            chosen
                .map(|baseline| baseline.name.clone())
                .ok_or_else(|| CliError::Input(format!("run {} is on no baseline", run.record.id)))
        }
    }
}

/// A run, or a part of it, once more.
#[derive(Debug, Args)]
pub struct Retry {
    /// The run's id, how only one begins, or `last`
    run: String,
    /// Only this scenario
    #[arg(long, value_name = "NAME")]
    scenario: Vec<String>,
    /// Only up to and with this step, by its name or its number, from 1; of the one scenario there is
    #[arg(long, value_name = "STEP")]
    step: Option<String>,
    /// Only on this baseline
    #[arg(long, value_name = "NAME")]
    baseline: Option<String>,
    /// Folder of scenarios to read anew, instead of those that the run had
    #[arg(long, value_name = "DIR")]
    scenarios: Vec<PathBuf>,
    /// Hosts that lend machines, by the URIs of their libvirt, instead of those in DATA/patchlab.toml
    #[arg(long, value_name = "URI")]
    libvirt: Vec<Libvirt>,
    /// When both clones are kept
    #[arg(long, value_enum)]
    keep: Option<super::kept::KeepWhen>,
    /// What a step means that fails on both clones; what it meant in the run unless given
    #[arg(long, value_enum)]
    pre_existing: Option<validate::PreExistingMeans>,
    /// Where results go.
    #[command(flatten)]
    results: Results,
}

impl Retry {
    pub(super) fn run(self, global: &Global) -> Result<Exit, CliError> {
        let data = global.data()?;
        let output = global.output();
        let run = Runs::open(&data.lab()).get(&self.run).map_err(classify)?;
        let folders = if self.scenarios.is_empty() { vec![run.scenarios()] } else { self.scenarios.clone() };
        let mut again = Again::of(&data, &run, &folders, self.baseline.as_deref())?;
        let scope = scope(&again.scenarios, &self.scenario, self.step.as_deref()).map_err(CliError::Input)?;
        again.scenarios.retain(|scenario| is_in(&scope, scenario));
        let pool = Pool::of(&data, &self.libvirt).map_err(CliError::input)?;
        if let Some(keep) = self.keep {
            again.manner.keep = keep.into();
        }
        if let Some(means) = self.pre_existing {
            again.manner.pre_existing = means.into();
        }
        let validated = validate::run(&output, &again.batch(&data, &pool, scope))?;
        validate::finish(&output, &data, &self.results, &validated)
    }
}

/// What a run was asked, to be asked once more.
pub(super) struct Again {
    orders: [(Order, Vec<Baseline>); 1],
    scenarios: Vec<Scenario>,
    retry_of: String,
    /// How.
    pub(super) manner: Manner,
}

impl Again {
    /// With the scenarios of these folders, on all of its baselines or on one.
    pub(super) fn of(data: &Data, run: &Run, folders: &[PathBuf], baseline: Option<&str>) -> Result<Self, CliError> {
        let order: Order = run.order().map_err(classify)?;
        let folders: Vec<PathBuf> = folders.iter().filter(|dir| dir.exists()).cloned().collect();
        let scenarios = discover(&folders).map_err(CliError::input)?;
        let manner = serde_json::from_value(run.record.manner.clone())
            .map_err(|error| CliError::Failed(format!("run {}: how it ran: {error}", run.record.id)))?;
        let orders = [(order, Self::baselines(data, run, baseline)?)];
        Ok(Self { orders, scenarios, retry_of: run.record.id.clone(), manner })
    }

    /// As it is asked.
    pub(super) fn batch<'a>(&'a self, data: &'a Data, pool: &'a Pool, scope: Scope) -> Batch<'a> {
        let Self { orders, scenarios, retry_of, manner } = self;
        let (retry_of, manner) = (Some(retry_of.clone()), *manner);
        Batch { data, orders, scenarios, scope, retry_of, manner, jobs: None, pool }
    }

    /// The run's baselines, as they were: by their digests.
    fn baselines(data: &Data, run: &Run, only: Option<&str>) -> Result<Vec<Baseline>, CliError> {
        let only = only.map(|wanted| baseline_of(run, Some(wanted))).transpose()?;
        let store = Baselines::open(&data.lab());
        let wanted = run.record.baselines.iter().filter(|on| only.as_ref().is_none_or(|name| on.name == *name));
        wanted
            .map(|on| {
                store.get(&on.digest.to_string()).map_err(|error| {
                    CliError::Input(format!("run {} was on {}, which is not there: {error}", run.record.id, on.name))
                })
            })
            .collect()
    }
}

/// What is tried again: all, some scenarios, or one up to a step.
fn scope(known: &[Scenario], scenarios: &[String], step: Option<&str>) -> Result<Scope, String> {
    let names = || known.iter().map(|scenario| scenario.name.as_str()).collect::<Vec<_>>().join(", ");
    if let Some(other) = scenarios.iter().find(|name| known.iter().all(|scenario| scenario.name != **name)) {
        return Err(format!("the run has no scenario {other:?}; it has {}", names()));
    }
    let Some(step) = step else {
        return Ok(if scenarios.is_empty() { Scope::Whole } else { Scope::Scenarios(scenarios.to_vec()) });
    };
    let mut chosen = known.iter().filter(|scenario| scenarios.is_empty() || scenarios.contains(&scenario.name));
    let (Some(scenario), None) = (chosen.next(), chosen.next()) else {
        return Err(format!("--step is of one scenario: choose it with --scenario; the run has {}", names()));
    };
    let place = match step.parse::<usize>() {
        Ok(number) => number.checked_sub(1),
        Err(_) => scenario.steps.iter().position(|other| other.name == step),
    };
    match place.and_then(|place| scenario.steps.get(place)) {
        Some(found) => Ok(Scope::Step { scenario: scenario.name.clone(), step: found.name.clone() }),
        None => {
            let steps: Vec<String> =
                scenario.steps.iter().enumerate().map(|(at, step)| format!("{} {:?}", at + 1, step.name)).collect();
            Err(format!("{} has no step {step:?}; it has {}", scenario.name, steps.join(", ")))
        }
    }
}

fn is_in(scope: &Scope, scenario: &Scenario) -> bool {
    match scope {
        Scope::Whole | Scope::Before(_) => true,
        Scope::Scenarios(names) => names.contains(&scenario.name),
        Scope::Step { scenario: name, .. } => *name == scenario.name,
    }
}

/// A run as a page.
#[derive(Debug, Args)]
pub struct ReportOf {
    /// The run's id, how only one begins, or `last`
    run: String,
    /// The file
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

impl ReportOf {
    pub(super) fn run(self, global: &Global) -> Result<Exit, CliError> {
        let data = global.data()?;
        let text = page(&data, &self.run)?;
        validate::write("--out", &self.out, &text)?;
        let output = global.output();
        output.line(self.out.display().to_string());
        output.json(&json!({ "page": self.out, "bytes": text.len() }))?;
        Ok(Exit::Passed)
    }
}

/// The page of a run.
pub(super) fn page(data: &Data, wanted: &str) -> Result<String, CliError> {
    let run = Runs::open(&data.lab()).get(wanted).map_err(classify)?;
    let told = crate::report::run::Told::read(&run).map_err(classify)?;
    crate::report::run::html(&told).map_err(CliError::failed)
}

pub(super) fn classify(error: RunsError) -> CliError {
    match error {
        RunsError::Unknown { .. } | RunsError::Nothing { .. } => CliError::Input(error.to_string()),
        other => CliError::Failed(other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scenarios() -> (tempfile::TempDir, Vec<Scenario>) {
        let dir = tempfile::tempdir().unwrap();
        for name in ["mail", "web"] {
            let text = format!(
                "name = \"{name}\"\nowner = \"qa\"\nsummary = \"s\"\n[[step]]\nname = \"a\"\nrun = \"true\"\n\
                 [[step]]\nname = \"b\"\nrun = \"true\"\n"
            );
            std::fs::create_dir(dir.path().join(name)).unwrap();
            std::fs::write(dir.path().join(name).join("scenario.toml"), text).unwrap();
        }
        let found = discover(&[dir.path().to_owned()]).unwrap();
        (dir, found)
    }

    #[test]
    fn a_retry_is_of_the_whole_some_scenarios_or_one_up_to_a_step() {
        let (_dir, known) = scenarios();
        let of = |names: &[&str], step| scope(&known, &names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>(), step);
        let upto = |step: &str| Ok(Scope::Step { scenario: "web".into(), step: step.into() });
        assert_eq!(of(&[], None), Ok(Scope::Whole));
        assert_eq!(of(&["web"], None), Ok(Scope::Scenarios(vec!["web".into()])));
        assert_eq!((of(&["web"], Some("2")), of(&["web"], Some("a"))), (upto("b"), upto("a")));
        assert_eq!(scope(&known[1..], &[], Some("1")), upto("a"), "of the only one there is");
    }

    #[test]
    fn what_there_is_not_is_named_with_what_there_is() {
        let (_dir, known) = scenarios();
        let of = |names: &[&str], step| {
            scope(&known, &names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>(), step).unwrap_err()
        };
        assert_eq!(of(&["wep"], None), "the run has no scenario \"wep\"; it has mail, web");
        assert!(of(&[], Some("1")).contains("--scenario"));
        for step in ["0", "3", "c"] {
            assert_eq!(of(&["web"], Some(step)), format!("web has no step {step:?}; it has 1 \"a\", 2 \"b\""));
        }
    }
}
