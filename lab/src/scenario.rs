//! Scenarios: folders that say, as steps, what must hold on a machine.
//!
//! QA engineers write them ([`Scenario::read`], `scenario lint`), the validation finds those that apply to a baseline
//! ([`discover`], [`Applies`]), copies [`Scenario::files`] into the guest and [`run`]s them on both clones. What was seen
//! ([`ScenarioRun`]) goes to [`crate::verdict`], which compares the clones; a scenario alone never blames a patch.

mod bench;
mod check;
mod fixture;
mod lint;
mod occasion;
mod quarantine;
pub mod requirement;
mod run;
mod turns;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use patchlab_check::{
    Step,
    step::{Errand, Kind, MachineName, Pattern, Repeat},
    written::{self, Combination, Scalar, Span, WrittenError},
};
use serde::Deserialize;

use crate::{baseline::Baseline, manifest::Manifest};

pub use bench::{RebootError, Suspected};
pub use check::{Check, CheckKind, DISK_TOLERANCE, Findings, Level};
pub use fixture::{FIXTURE_FILE, FIXTURES, Fixture, Stay};
pub use lint::{Finding, Weight, lint, lint_scripts};
pub use occasion::{Occasion, OccasionError};
pub use quarantine::{Quarantine, Standing, today};
pub use run::{Bench, Benches, ErrandEnd, Progress, ScenarioRun, StepRun, not_begun, run};
pub use turns::{Moment, Seat, Turns};

/// The file that makes a folder a scenario.
pub const FILE: &str = "scenario.toml";
/// Most files in a scenario's folder.
pub const FILES: usize = 200;
/// Most bytes in a scenario's folder: 16 MiB. They go through the guest channel, which is slow.
pub const FOLDER_BYTES: u64 = 16 << 20;

/// The most machines beside the one under test.
pub const OTHER_MACHINES: usize = 4;
/// The name of the machine under test, where others name it.
pub const SUBJECT: &str = "subject";

/// A scenario as it is written.
#[derive(Debug, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
struct Written {
    /// The folder's name: lower-case letters, digits and -.
    name: String,
    /// Who answers for it.
    owner: String,
    /// One line.
    summary: String,
    /// Where it applies; absent is everywhere.
    applies: Option<Applies>,
    /// One budget for all steps, reboots included; absent is 5 minutes, and eight times that on a machine under software emulation.
    timeout: Option<Span>,
    /// Names of the steps that an agent repeats on real hosts.
    #[serde(default)]
    production: Vec<String>,
    /// Values for `${name}` in the texts of this file.
    #[serde(default)]
    parameters: BTreeMap<String, Scalar>,
    /// Values of which every combination is a run of its own.
    #[serde(default)]
    matrix: BTreeMap<String, Vec<Scalar>>,
    /// Names of folders `fixtures/NAME`, set up before its steps and taken away after them.
    #[serde(default)]
    fixtures: Vec<String>,
    /// What the lab must give: isolated, kvm, network-outside, reboot, screen.
    #[serde(default)]
    requires: Vec<String>,
    /// How often its own steps are done; every time must pass.
    #[serde(default)]
    repeat: Repeat,
    /// That it is known to be unsound: it runs and rejects nothing until a day.
    quarantine: Option<Quarantine>,
    /// Regular expressions of what is taken out of outputs, findings and journals.
    #[serde(default)]
    redact: Vec<Pattern>,
    /// Machines beside the one under test, by name, on one network with it and nobody else.
    #[serde(default)]
    machine: BTreeMap<MachineName, OtherMachine>,
    /// What to do, in order.
    step: Vec<Step>,
    /// What is watched on both clones.
    #[serde(default)]
    check: Vec<Check>,
    /// What writes data on both clones before the rollback.
    #[serde(default, rename = "after-writes")]
    after_writes: Vec<Step>,
}

/// A machine beside the one under test.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct OtherMachine {
    /// The baseline that it is a clone of, e.g. `debian-12-db` or `debian-12-db@2`; absent is the one under test.
    pub baseline: Option<String>,
}

/// The budget of a scenario that says none, before a machine's pace.
const USUAL_BUDGET: Duration = Duration::from_secs(300);

/// A scenario, valid.
#[derive(Debug, Clone)]
pub struct Scenario {
    /// Name: that of its folder, and of a matrix its combination, e.g. `web[port=443]`.
    pub name: String,
    /// Who answers for it.
    pub owner: String,
    /// One line.
    pub summary: String,
    /// Where it applies; `None` is everywhere.
    pub applies: Option<Applies>,
    /// One budget for all steps, reboots included; absent is not said, see [`Scenario::budget`].
    pub timeout: Option<Duration>,
    /// Names of the steps that an agent repeats on real hosts.
    pub production: Vec<String>,
    /// Machines beside the one under test, by name, on one network with it and nobody else; fresh each time it is run.
    pub machines: BTreeMap<MachineName, OtherMachine>,
    /// What to do, in order.
    pub steps: Vec<Step>,
    /// What is watched all the time.
    pub checks: Vec<Check>,
    /// What its parameters are in this reading.
    pub combination: Combination,
    /// What is set up before its steps, in order, and taken away after them, in the other.
    pub fixtures: Vec<Fixture>,
    /// Words for what it asks of the lab: [`requirement::WORDS`].
    pub requires: Vec<String>,
    /// How often its own steps are done, one after the other; every time must pass.
    pub repeat: Repeat,
    /// That it is known to be unsound.
    pub quarantine: Option<Quarantine>,
    /// What is taken out of outputs, findings and journals before anything is stored or shown. Its steps have it too.
    pub redact: Vec<Pattern>,
    /// What writes data on both clones before the rollback, so that the rollback is proven over changed data.
    pub after_writes: Vec<Step>,
    /// Its folder on this machine.
    pub dir: PathBuf,
}

/// Where a scenario applies. Every list that is given must have a member that fits.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Applies {
    /// Machines on which one of these packages is installed.
    pub packages: Vec<String>,
    /// Baselines that represent one of these tags.
    pub tags: Vec<String>,
    /// Baselines by name (`debian-12-web`) or exactly (`debian-12-web@2`).
    pub baselines: Vec<String>,
}

/// What a scenario's `applies` is compared with.
#[derive(Debug, Clone)]
pub struct Subject {
    /// The baseline, `name@n`.
    pub baseline: String,
    /// The tags it represents.
    pub tags: Vec<String>,
    /// Names of the packages installed on it.
    pub installed: BTreeSet<String>,
}

impl Subject {
    /// A baseline, with what it is made of.
    pub fn of(baseline: &Baseline, manifest: &Manifest) -> Self {
        Self {
            baseline: baseline.full_name(),
            tags: baseline.record.represents.tags.clone(),
            installed: manifest.packages.values().map(|package| package.name.clone()).collect(),
        }
    }
}

impl Applies {
    /// Whether the subject fits every list that is given.
    pub fn fits(&self, subject: &Subject) -> bool {
        let name = subject.baseline.split('@').next().unwrap_or_default();
        let any = |list: &[String], fits: &dyn Fn(&String) -> bool| list.is_empty() || list.iter().any(fits);
        any(&self.packages, &|package| subject.installed.contains(package))
            && any(&self.tags, &|tag| subject.tags.contains(tag))
            && any(&self.baselines, &|wanted| *wanted == subject.baseline || wanted == name)
    }
}

/// A file of a scenario's folder, to be put beside the others in the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScenarioFile {
    /// Path in the folder, with `/`.
    pub relative: String,
    /// Where it is on this machine.
    pub path: PathBuf,
    /// Permission bits.
    pub mode: u32,
    /// Bytes.
    pub size: u64,
}

/// A scenario cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ScenarioError {
    /// Its file says something wrong.
    #[error(transparent)]
    Written(#[from] WrittenError),
    /// The folder cannot be read.
    #[error("scenario folder {path}: {source}", path = path.display())]
    Io {
        /// The folder or file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The folder holds what cannot be copied into a guest.
    #[error("scenario folder {path}: {problem}", path = path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// What, and the limit.
        problem: String,
    },
}

impl Scenario {
    /// The JSON Schema of [`FILE`].
    pub fn schema() -> schemars::Schema {
        written::schema::<Written>(written::Parameters::Used)
    }

    /// Reads the scenario in the folder `dir`; of a matrix, the first combination.
    ///
    /// # Errors
    /// `scenario.toml` cannot be read or is wrong: file, line and key are named.
    pub fn read(dir: &Path) -> Result<Self, ScenarioError> {
        let path = dir.join(FILE);
        let text = written::read_text(&path)?;
        let combination = written::combinations(&text, &path)?.into_iter().next().unwrap_or_default();
        Self::of(dir, &text, combination)
    }

    /// Reads every combination of the scenario in the folder `dir`, in the order of its matrix: one without a matrix.
    ///
    /// # Errors
    /// `scenario.toml` cannot be read or is wrong: file, line and key are named.
    pub fn read_all(dir: &Path) -> Result<Vec<Self>, ScenarioError> {
        let path = dir.join(FILE);
        let text = written::read_text(&path)?;
        let all = written::combinations(&text, &path)?;
        all.into_iter().map(|combination| Self::of(dir, &text, combination)).collect()
    }

    fn of(dir: &Path, text: &str, combination: Combination) -> Result<Self, ScenarioError> {
        let path = dir.join(FILE);
        let (written, _) = written::parse_with::<Written>(text, &path, &combination)?;
        if let Some((key, problem)) = problems(&written, dir).into_iter().next() {
            return Err(WrittenError::at_key(&path, text, &key, problem).into());
        }
        let mut fixtures = Vec::with_capacity(written.fixtures.len());
        for found in written.fixtures.iter().filter_map(|name| Fixture::find(dir, name)) {
            let fixture = Fixture::read(&found, &combination)?.redacting(&written.redact);
            let mut steps = fixture.set_up.iter().chain(&fixture.tear_down);
            if let Some(problem) = steps.find_map(|step| not_a_machine(step, &written.machine)) {
                return Err(WrittenError::at_key(&path, text, "fixtures", problem).into());
            }
            fixtures.push(fixture);
        }
        let (mut steps, mut after_writes) = (written.step, written.after_writes);
        for step in steps.iter_mut().chain(&mut after_writes) {
            step.redact.extend_from_slice(&written.redact);
        }
        let mut requires = written.requires;
        let pictured = |step: &Step| step.kind == Kind::Errand(Errand::Screenshot) && step.machine.is_none();
        let fixed = fixtures.iter().flat_map(|fixture: &Fixture| fixture.set_up.iter().chain(&fixture.tear_down));
        if steps.iter().chain(&after_writes).chain(fixed).any(pictured)
            && !requires.iter().any(|word| word == requirement::SCREEN)
        {
            requires.push(requirement::SCREEN.to_owned());
        }
        Ok(Self {
            name: format!("{}{combination}", written.name),
            owner: written.owner,
            summary: written.summary,
            applies: written.applies,
            timeout: written.timeout.map(|span| span.0),
            production: written.production,
            machines: written.machine,
            steps,
            checks: written.check,
            combination,
            fixtures,
            requires,
            repeat: written.repeat,
            quarantine: written.quarantine,
            redact: written.redact,
            after_writes,
            dir: dir.to_owned(),
        })
    }

    /// The name of its folder, which all combinations of a matrix share.
    pub fn folder(&self) -> &str {
        self.name.split_once('[').map_or(self.name.as_str(), |(folder, _)| folder)
    }

    /// How long all its steps may take together on a machine of this pace.
    pub fn budget(&self, pace: u32) -> Duration {
        self.timeout.unwrap_or(USUAL_BUDGET * pace)
    }

    /// Every step in the order in which it is done: the fixtures' set-up, its own, the fixtures' tear-down.
    pub fn all_steps(&self) -> impl Iterator<Item = &Step> {
        let set_up = self.fixtures.iter().flat_map(|fixture| &fixture.set_up);
        let tear_down = self.fixtures.iter().rev().flat_map(|fixture| fixture.taken_away());
        set_up.chain(&self.steps).chain(tear_down)
    }

    /// `text` without what its `redact` matches.
    pub fn redacted(&self, text: String) -> String {
        self.redact.iter().fold(text, |text, pattern| pattern.redact(&text).into_owned())
    }

    /// The baselines that its machines beside the one under test are clones of, by the names that it gives them.
    pub fn other_baselines(&self) -> impl Iterator<Item = &str> {
        self.machines.values().filter_map(|machine| machine.baseline.as_deref())
    }

    /// Why it cannot be run where only those baselines are stored of which `is_stored` says so; `None` when it can.
    pub fn lacking(&self, is_stored: impl Fn(&str) -> bool) -> Option<String> {
        let wanted = |(name, machine): (&MachineName, &OtherMachine)| {
            let baseline = machine.baseline.clone().filter(|baseline| !is_stored(baseline))?;
            Some(format!("its machine {name} is a clone of {baseline}, which is no stored baseline"))
        };
        self.machines.iter().find_map(|(name, machine)| wanted((name, machine)))
    }

    /// Whether it is to be run on a baseline.
    pub fn applies_to(&self, subject: &Subject) -> bool {
        self.applies.as_ref().is_none_or(|applies| applies.fits(subject))
    }

    /// Whether it speaks about one of the `changed` packages by name. Only such a scenario is evidence that a change works.
    pub fn covers(&self, changed: &BTreeSet<String>) -> bool {
        self.applies.as_ref().is_some_and(|applies| applies.packages.iter().any(|package| changed.contains(package)))
    }

    /// The workload before the rollback as a scenario of its own, under the same name and budget; `None` when it has none. Its fixtures
    /// stay where they were set up: what was written into them is what the rollback is to go over.
    pub fn workload(&self) -> Option<Self> {
        let (steps, checks, after_writes) = (self.after_writes.clone(), Vec::new(), Vec::new());
        let stays = |fixture: &Fixture| Fixture { stay: Stay::Beyond, ..fixture.clone() };
        (!steps.is_empty()).then(|| Self {
            steps,
            checks,
            after_writes,
            fixtures: self.fixtures.iter().map(stays).collect(),
            repeat: Repeat::default(),
            production: Vec::new(),
            ..self.clone()
        })
    }

    /// As it is run after its workload, if it has one: where its fixtures are already.
    pub fn after_workload(&self) -> Self {
        let mut scenario = self.clone();
        if !self.after_writes.is_empty() {
            for fixture in &mut scenario.fixtures {
                (fixture.set_up, fixture.stay) = (Vec::new(), Stay::Beyond);
            }
        }
        scenario
    }

    /// What takes its fixtures away before it sets them up once more; `None` when it has taken them away itself, or set up none.
    pub fn taking_away(&self) -> Option<Self> {
        let left = |fixture: &Fixture| fixture.stay == Stay::Beyond && !fixture.set_up.is_empty();
        self.fixtures.iter().any(left).then(|| {
            let away = |fixture: &Fixture| Fixture { set_up: Vec::new(), stay: Stay::Steps, ..fixture.clone() };
            let fixtures = self.fixtures.iter().map(away).collect();
            Self { fixtures, steps: Vec::new(), checks: Vec::new(), ..self.clone() }
        })
    }

    /// As far as the step of that name, once, and no further: what was set up stays. A name that no step has stands for the end of them.
    pub fn before(&self, step: &str) -> Self {
        let at = |steps: &[Step]| steps.iter().position(|other| other.name == step);
        let mut scenario = Self { checks: Vec::new(), repeat: Repeat::default(), ..self.clone() };
        let setting_up = scenario.fixtures.iter().position(|fixture| at(&fixture.set_up).is_some());
        scenario.fixtures.truncate(setting_up.map_or(usize::MAX, |place| place + 1));
        for fixture in &mut scenario.fixtures {
            let upto = at(&fixture.set_up).unwrap_or(usize::MAX);
            fixture.set_up.truncate(upto);
            fixture.tear_down.clear();
        }
        let upto = setting_up.map(|_| 0).or_else(|| at(&scenario.steps)).unwrap_or(usize::MAX);
        scenario.steps.truncate(upto);
        scenario
    }

    /// The steps that an agent repeats on real hosts.
    pub fn production_steps(&self) -> impl Iterator<Item = &Step> {
        self.production.iter().filter_map(|name| self.steps.iter().find(|step| step.name == *name))
    }

    /// The files of its folder and of its fixtures' (as `fixtures/NAME/…`), to be copied into the guest, sorted by path.
    ///
    /// # Errors
    /// The folder cannot be read, holds something other than files and folders, or is larger than the limits.
    pub fn files(&self) -> Result<Vec<ScenarioFile>, ScenarioError> {
        let mut files = Vec::new();
        collect_files(&self.dir, &self.dir, &mut files)?;
        for fixture in self.fixtures.iter().filter(|fixture| !fixture.dir.starts_with(&self.dir)) {
            let mut brought = Vec::new();
            collect_files(&fixture.dir, &fixture.dir, &mut brought)?;
            let placed = |file: ScenarioFile| ScenarioFile {
                relative: format!("{FIXTURES}/{}/{}", fixture.name, file.relative),
                ..file
            };
            files.extend(brought.into_iter().map(placed));
        }
        let size: u64 = files.iter().map(|file| file.size).sum();
        if size > FOLDER_BYTES {
            let problem =
                format!("{size} bytes, the limit is {FOLDER_BYTES}: let the baseline's recipe bring big files");
            return Err(ScenarioError::Folder { path: self.dir.clone(), problem });
        }
        files.sort_by(|a, b| a.relative.cmp(&b.relative));
        Ok(files)
    }
}

/// What is wrong although the form is right, with the key it is about.
fn problems(written: &Written, dir: &Path) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let folder =
        dir.canonicalize().ok().and_then(|dir| dir.file_name().map(|name| name.to_string_lossy().into_owned()));
    let valid = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if written.name.is_empty() || written.name.len() > 100 || !written.name.chars().all(valid) {
        found
            .push(("name".into(), format!("key \"name\": {:?} is not lower-case letters, digits and -", written.name)));
    } else if let Some(folder) = folder.filter(|folder| *folder != written.name) {
        found.push((
            "name".into(),
            format!("key \"name\": {:?} is not the folder's name, {folder:?}: make them equal", written.name),
        ));
    }
    if written.step.is_empty() {
        found.push(("step".into(), "no [[step]]: a scenario without steps proves nothing".into()));
    }
    if written.timeout.is_some_and(|timeout| timeout.0.is_zero()) {
        found.push(("timeout".into(), "key \"timeout\": no step can run in 0s".into()));
    }
    let names: Vec<&str> = written.step.iter().map(|step| step.name.as_str()).collect();
    for (index, name) in names.iter().enumerate() {
        if names[..index].contains(name) {
            found.push((format!("step.{index}.name"), format!("a second step is named {name:?}: results go by name")));
        }
    }
    for (index, step) in written.after_writes.iter().enumerate() {
        let others = &written.after_writes[..index];
        if names.contains(&step.name.as_str()) || others.iter().any(|other| other.name == step.name) {
            let problem = format!("a second step is named {:?}: results go by name", step.name);
            found.push((format!("after-writes.{index}.name"), problem));
        }
    }
    for (list, steps) in [("step", &written.step), ("after-writes", &written.after_writes)] {
        let of_a_check = |(index, step): (usize, &Step)| {
            let problem = format!("a step is named {:?}: results go by name, and checks have such names", step.name);
            step.name.starts_with(CheckKind::STEP_PREFIX).then(|| (format!("{list}.{index}.name"), problem))
        };
        found.extend(steps.iter().enumerate().filter_map(of_a_check));
    }
    for (index, check) in written.check.iter().enumerate() {
        if written.check[..index].iter().any(|other| other.kind == check.kind) {
            let problem =
                format!("a second [[check]] of kind {:?}: one level goes for all it finds", check.kind.name());
            found.push((format!("check.{index}.kind"), problem));
        }
    }
    for (index, name) in written.production.iter().enumerate() {
        let key = format!("production.{index}");
        match written.step.iter().find(|step| step.name == *name) {
            None => {
                let known: Vec<String> = names.iter().map(|name| format!("{name:?}")).collect();
                let problem =
                    format!("key \"production\": there is no step {name:?}; the steps are {}", known.join(", "));
                found.push((key, problem));
            }
            Some(step) => {
                let elsewhere = step.machine.as_ref().map(|machine| format!("is done on {machine}, not on the host"));
                let beside = step.until.as_ref().map(|_| "goes on beside other steps".to_owned());
                let not_there = elsewhere.or(beside).or_else(|| not_on_hosts(&step.kind));
                found.extend(not_there.map(|why| (key, format!("key \"production\": step {name:?} {why}"))));
            }
        }
    }
    for (list, steps) in [("step", &written.step), ("after-writes", &written.after_writes)] {
        for (index, step) in steps.iter().enumerate() {
            if let Kind::Errand(Errand::CopyIn(copy)) = &step.kind
                && !dir.join(copy.from.as_str()).is_file()
            {
                let problem = format!("step {:?}: there is no file {} in the scenario's folder", step.name, copy.from);
                found.push((format!("{list}.{index}.copy-in.from"), problem));
            }
        }
        let unknown = |(index, step): (usize, &Step)| {
            Some((format!("{list}.{index}.machine"), not_a_machine(step, &written.machine)?))
        };
        found.extend(steps.iter().enumerate().filter_map(unknown));
        found.extend(wrong_barriers(steps).map(|(index, key, problem)| (format!("{list}.{index}{key}"), problem)));
    }
    if written.machine.len() > OTHER_MACHINES {
        let problem = format!("{} machines beside the one under test: at most {OTHER_MACHINES}", written.machine.len());
        found.push(("machine".into(), problem));
    }
    for name in written.machine.keys().filter(|name| [SUBJECT, "localhost"].contains(&name.as_str())) {
        found.push((
            format!("machine.{name}"),
            format!("a machine cannot be named {:?}: that is the one under test", name.as_str()),
        ));
    }
    for (index, name) in written.fixtures.iter().enumerate() {
        let key = format!("fixtures.{index}");
        if !name.chars().all(valid) || name.is_empty() || name.len() > 40 {
            found.push((key, format!("key \"fixtures\": {name:?} is not lower-case letters, digits and -")));
        } else if written.fixtures[..index].contains(name) {
            found.push((key, format!("key \"fixtures\": {name:?} is there twice")));
        } else if Fixture::find(dir, name).is_none() {
            let problem = format!(
                "key \"fixtures\": there is no fixture {name:?}: make {FIXTURES}/{name}/{FIXTURE_FILE} in the scenario's folder \
                 or beside it"
            );
            found.push((key, problem));
        }
    }
    if let Some(quarantine) = &written.quarantine {
        for (key, text) in [("owner", &quarantine.owner), ("ticket", &quarantine.ticket)] {
            if text.trim().is_empty() {
                found.push((format!("quarantine.{key}"), format!("key \"quarantine.{key}\": it is empty")));
            }
        }
    }
    if written.redact.iter().any(|pattern| pattern.is_match("")) {
        found.push(("redact".into(), "key \"redact\": a pattern matches everything".into()));
    }
    found
}

/// What is wrong with the machine that a step names; `None` when nothing is.
fn not_a_machine(step: &Step, machines: &BTreeMap<MachineName, OtherMachine>) -> Option<String> {
    let name = step.machine.as_ref().filter(|name| !machines.contains_key(*name))?;
    let known: Vec<&str> = machines.keys().map(MachineName::as_str).collect();
    let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
    Some(format!(
        "step {:?}: there is no machine {name:?} (there is {known}): add [machine.{name}], and leave it out for the one \
         under test",
        step.name,
        name = name.as_str()
    ))
}

/// Steps that go on until what is no barrier after them, and barriers that nothing goes on until: their places, the keys after those, and
/// what is wrong.
fn wrong_barriers(steps: &[Step]) -> impl Iterator<Item = (usize, &'static str, String)> {
    let is_barrier = |step: &Step| step.kind == Kind::Errand(Errand::Barrier);
    let wrong = move |(index, step): (usize, &Step)| match &step.until {
        Some(name) if !steps[index..].iter().any(|later| later.name == *name && is_barrier(later)) => {
            let problem = format!(
                "step {:?}: there is no barrier {name:?} after it: add a [[step]] with that name and barrier = true",
                step.name
            );
            Some((index, ".until", problem))
        }
        None if is_barrier(step) && !steps[..index].iter().any(|other| other.until.as_ref() == Some(&step.name)) => {
            let problem = format!("step {0:?}: no step before it goes on until it: give one until = {0:?}", step.name);
            Some((index, "", problem))
        }
        _ => None,
    };
    steps.iter().enumerate().filter_map(wrong)
}

/// Why a real host cannot repeat a step; `None` when it can.
fn not_on_hosts(kind: &Kind) -> Option<String> {
    match kind {
        Kind::Errand(errand) => Some(format!("is {}, which the lab alone does", errand.name())),
        Kind::Wait(wait) => not_on_hosts(wait.until.kind()),
        Kind::Run { command, .. } if command.split_whitespace().any(|word| word.starts_with("./")) => {
            Some("runs a file of the scenario's folder, which real hosts do not have".into())
        }
        _ => None,
    }
}

fn collect_files(root: &Path, dir: &Path, files: &mut Vec<ScenarioFile>) -> Result<(), ScenarioError> {
    use std::os::unix::fs::PermissionsExt as _;
    let io = |path: &Path| {
        let path = path.to_owned();
        move |source| ScenarioError::Io { path, source }
    };
    let folder = |problem| ScenarioError::Folder { path: root.to_owned(), problem };
    for entry in fs::read_dir(dir).map_err(io(dir))? {
        let path = entry.map_err(io(dir))?.path();
        let metadata = fs::symlink_metadata(&path).map_err(io(&path))?;
        if metadata.is_dir() {
            collect_files(root, &path, files)?;
        } else if metadata.is_file() {
            let relative = path.strip_prefix(root).ok().and_then(Path::to_str);
            let relative =
                relative.ok_or_else(|| folder(format!("{} is not a UTF-8 name", path.display())))?.to_owned();
            let mode = metadata.permissions().mode() & 0o777;
            files.push(ScenarioFile { relative, mode, size: metadata.len(), path });
        } else {
            return Err(folder(format!("{} is neither a file nor a folder", path.display())));
        }
        if files.len() > FILES {
            return Err(folder(format!("more than {FILES} files")));
        }
    }
    Ok(())
}

/// The scenarios in `dirs`, each of which is the folder of one or holds some, sorted by name; of a matrix, every combination. Where
/// two folders have one name, the one from the earlier of `dirs` is taken.
///
/// # Errors
/// A folder cannot be read, or the first scenario that is wrong.
pub fn discover(dirs: &[PathBuf]) -> Result<Vec<Scenario>, ScenarioError> {
    let mut found: Vec<Scenario> = Vec::new();
    for dir in dirs {
        for folder in folders(dir)? {
            let all = Scenario::read_all(&folder)?;
            if !found.iter().any(|other| all.first().is_some_and(|first| first.folder() == other.folder())) {
                found.extend(all);
            }
        }
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(found)
}

/// What there is in folders of scenarios.
#[derive(Debug, Default)]
pub struct Survey {
    /// The scenarios that can be read, as [`discover`] has them.
    pub scenarios: Vec<Scenario>,
    /// What cannot be, folder by folder.
    pub broken: Vec<ScenarioError>,
}

/// The scenarios in `dirs` as [`discover`] finds them, beside what is wrong with the others: one that is broken hides none.
pub fn survey(dirs: &[PathBuf]) -> Survey {
    let mut survey = Survey::default();
    for dir in dirs {
        let folders = folders(dir).unwrap_or_else(|error| {
            survey.broken.push(error);
            Vec::new()
        });
        for folder in folders {
            let known = |all: &[Scenario]| {
                survey.scenarios.iter().any(|other| all.first().is_some_and(|first| first.folder() == other.folder()))
            };
            match Scenario::read_all(&folder) {
                Ok(all) if known(&all) => {}
                Ok(all) => survey.scenarios.extend(all),
                Err(error) => survey.broken.push(error),
            }
        }
    }
    survey.scenarios.sort_by(|a, b| a.name.cmp(&b.name));
    survey
}

/// The scenario folders in `dir`, or `dir` itself when it is one.
fn folders(dir: &Path) -> Result<Vec<PathBuf>, ScenarioError> {
    let io = |source| ScenarioError::Io { path: dir.to_owned(), source };
    if dir.join(FILE).exists() {
        return Ok(vec![dir.to_owned()]);
    }
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).map_err(io)? {
        let path = entry.map_err(io)?.path();
        if path.join(FILE).exists() {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests;
