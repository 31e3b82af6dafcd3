//! Linting scenarios: everything that is wrong or unwise in a folder, in one go, for the people who write them.

mod command;
mod reach;
mod script;

use std::{
    collections::BTreeSet,
    fmt,
    path::{Path, PathBuf},
};

use patchlab_check::{
    Step,
    step::{Depth, MachineName},
    written::{self, Combination, Findings, WrittenError},
};

use crate::verdict::LEAST_SAMPLES;

use self::{
    command::{Shellcheck, lint_commands},
    reach::out_of_reach,
};
use super::{
    FILE, FIXTURE_FILE, FIXTURES, Fixture, Scenario, ScenarioError, Standing, USUAL_BUDGET, Written, collect_files,
    fixture, folders, problems, requirement, today,
};

pub use script::lint_scripts;

/// One thing that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Whether it makes the scenario unusable.
    pub weight: Weight,
    /// `FILE:LINE:COL: sentence`, or without line and column when it is about the whole file.
    pub text: String,
}

/// How much a finding weighs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Weight {
    /// The scenario works, but not as well as it might.
    Advice,
    /// The scenario cannot be used as it stands.
    Error,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.weight {
            Weight::Error => f.write_str(&self.text),
            Weight::Advice => write!(f, "{} (advice)", self.text),
        }
    }
}

/// Everything wrong or unwise in the scenario folder `dir`, or in every folder of a scenario or a fixture in it. Commands are read by the
/// shell and, where it is installed, by shellcheck(1); scripts by their shells and by shellcheck, or a finding says that it is not there.
///
/// # Errors
/// The folder cannot be read.
pub fn lint(dir: &Path) -> Result<Vec<Finding>, ScenarioError> {
    let mut linter = Linter { findings: Vec::new(), named: BTreeSet::new(), shellcheck: Shellcheck::default() };
    let folders = folders(dir)?;
    if folders.is_empty() {
        linter.push(Weight::Error, format!("{}: no {FILE} here or in a folder of it", dir.display()));
    }
    for folder in &folders {
        linter.scenario(folder);
    }
    for place in folders.iter().map(PathBuf::as_path).chain([dir]) {
        for fixture in fixtures(&place.join(FIXTURES)) {
            if fixture.canonicalize().is_ok_and(|fixture| linter.named.insert(fixture)) {
                linter.unnamed(&fixture);
            }
        }
    }
    // What is wrong in all combinations, or in a fixture of several scenarios, is wrong once.
    let mut told = BTreeSet::new();
    linter.findings.retain(|finding| told.insert(finding.text.clone()));
    Ok(linter.findings)
}

/// The folders of fixtures in `dir`; none where that is not there.
fn fixtures(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let mut found: Vec<PathBuf> =
        entries.map(|entry| entry.path()).filter(|path| path.join(FIXTURE_FILE).is_file()).collect();
    found.sort();
    found
}

struct Linter {
    findings: Vec<Finding>,
    /// Fixtures that were linted.
    named: BTreeSet<PathBuf>,
    /// What is known of commands.
    shellcheck: Shellcheck,
}

/// A file, and how it is told of.
struct Source<'a> {
    path: &'a Path,
    text: &'a str,
}

impl Source<'_> {
    fn at(&self, key: &str, problem: String) -> String {
        WrittenError::at_key(self.path, self.text, key, problem).to_string()
    }
}

impl Linter {
    fn push(&mut self, weight: Weight, text: String) {
        self.findings.push(Finding { weight, text });
    }

    fn errors(&mut self, source: &Source<'_>, found: impl IntoIterator<Item = (String, String)>) {
        found.into_iter().for_each(|(key, problem)| self.push(Weight::Error, source.at(&key, problem)));
    }

    fn advices(&mut self, source: &Source<'_>, found: impl IntoIterator<Item = (String, String)>) {
        found.into_iter().for_each(|(key, problem)| self.push(Weight::Advice, source.at(&key, problem)));
    }

    fn commands(&mut self, source: &Source<'_>, (list, steps): (&str, &[Step]), dir: &Path) {
        for (weight, key, problem) in lint_commands(list, steps, dir, &mut self.shellcheck) {
            self.push(weight, source.at(&key, problem));
        }
    }

    fn scenario(&mut self, dir: &Path) {
        let path = dir.join(FILE);
        let text = match written::read_text(&path) {
            Ok(text) => text,
            Err(error) => return self.push(Weight::Error, error.to_string()),
        };
        let combinations = match written::combinations(&text, &path) {
            Ok(combinations) => combinations,
            Err(error) => return self.push(Weight::Error, error.to_string()),
        };
        let (source, before) = (Source { path: &path, text: &text }, self.findings.len());
        for combination in &combinations {
            self.combination(&source, dir, combination);
        }
        if self.findings[before..].iter().any(|finding| finding.weight == Weight::Error) {
            return;
        }
        let files = |scenario: &Scenario| -> Result<Vec<PathBuf>, ScenarioError> {
            Ok(scenario.files()?.into_iter().map(|file| file.path).collect())
        };
        let all = Scenario::read_all(dir).and_then(|all| all.iter().map(files).collect::<Result<Vec<_>, _>>());
        match all {
            Err(error) => self.push(Weight::Error, error.to_string()),
            Ok(files) => {
                let files: BTreeSet<PathBuf> = files.into_iter().flatten().collect();
                self.findings.extend(lint_scripts(&files.into_iter().collect::<Vec<_>>()));
            }
        }
    }

    fn combination(&mut self, source: &Source<'_>, dir: &Path, combination: &Combination) {
        let Findings { read, errors } = written::parse_all::<Written>(source.text, source.path, combination);
        // A key under a wrong name is missing under its right one: what that makes wrong is told when it is mended.
        let is_whole = errors.is_empty();
        errors.into_iter().for_each(|error| self.push(Weight::Error, error.to_string()));
        let Some((written, mut used)) = read else { return };
        for list in [("step", written.step.as_slice()), ("after-writes", written.after_writes.as_slice())] {
            self.commands(source, list, dir);
        }
        let fixtures: Vec<PathBuf> = written.fixtures.iter().filter_map(|name| Fixture::find(dir, name)).collect();
        let mut set_up = Vec::new();
        for fixture in fixtures {
            self.named.extend(fixture.canonicalize());
            if let Some((fixture, more)) = self.fixture(&fixture, combination) {
                set_up.extend(fixture.set_up);
                used.extend(more);
            }
        }
        if !is_whole {
            return;
        }
        self.errors(source, problems(&written, dir));
        self.advices(source, advice(&written, &set_up));
        self.advices(source, unused(&written, &used));
    }

    /// A fixture as a scenario with this combination has it, and the parameters that it uses.
    fn fixture(&mut self, dir: &Path, combination: &Combination) -> Option<(fixture::Written, BTreeSet<String>)> {
        let path = dir.join(FIXTURE_FILE);
        let text = match written::read_text(&path) {
            Ok(text) => text,
            Err(error) => {
                self.push(Weight::Error, error.to_string());
                return None;
            }
        };
        let source = Source { path: &path, text: &text };
        let Findings { read, errors } = written::parse_all::<fixture::Written>(&text, &path, combination);
        let is_whole = errors.is_empty();
        errors.into_iter().for_each(|error| self.push(Weight::Error, error.to_string()));
        let (written, used) = read?;
        for list in written.lists() {
            self.commands(&source, list, dir);
        }
        if is_whole {
            self.errors(&source, written.problems(dir));
        }
        Some((written, used))
    }

    /// A fixture that none of the scenarios names: nobody says its parameters.
    fn unnamed(&mut self, dir: &Path) {
        let path = dir.join(FIXTURE_FILE);
        if written::read_text(&path).is_ok_and(|text| has_parameters(&text)) {
            let text = format!("{}: not checked: it has parameters, and no scenario here names it", path.display());
            return self.push(Weight::Advice, text);
        }
        let _ = self.fixture(dir, &Combination::default());
        let mut files = Vec::new();
        match collect_files(dir, dir, &mut files) {
            Err(error) => self.push(Weight::Error, error.to_string()),
            Ok(()) => {
                let files: Vec<PathBuf> = files.into_iter().map(|file| file.path).collect();
                self.findings.extend(lint_scripts(&files));
            }
        }
    }
}

/// Whether a parameter stands in a text.
fn has_parameters(text: &str) -> bool {
    let is_name = |name: &str| {
        name.starts_with(|c: char| c.is_ascii_lowercase())
            && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "_-".contains(c))
    };
    text.match_indices("${").any(|(at, _)| {
        !text[..at].ends_with('$') && text[at + 2..].split_once('}').is_some_and(|(name, _)| is_name(name))
    })
}

/// Parameters that no text uses.
fn unused(written: &Written, used: &BTreeSet<String>) -> Vec<(String, String)> {
    let parameters = written.parameters.keys().filter(|name| !written.matrix.contains_key(*name));
    let parameters =
        parameters.map(|name| ("parameters", name)).chain(written.matrix.keys().map(|name| ("matrix", name)));
    parameters
        .filter(|(_, name)| !used.contains(*name))
        .map(|(table, name)| {
            (format!("{table}.{name}"), format!("parameter {name:?} is not used: ${{{name}}} stands nowhere"))
        })
        .collect()
}

/// What works but could be better, with the key it is about.
fn advice(written: &Written, set_up: &[Step]) -> Vec<(String, String)> {
    let mut found = Vec::new();
    if !written.step.is_empty() && written.step.iter().all(|step| step.depth == Depth::Superficial) {
        found.push((
            "step".into(),
            "every step is superficial: this scenario alone is no evidence for any patch".into(),
        ));
    }
    let names_packages = written.applies.as_ref().is_some_and(|applies| !applies.packages.is_empty());
    if !names_packages {
        let problem = "applies names no packages: the scenario runs, but is no evidence for any changed package";
        found.push(("applies".into(), problem.into()));
    }
    for (index, step) in written.step.iter().enumerate() {
        let samples = step.repeat.times().saturating_mul(written.repeat.times());
        if let Some(metric) = step.kind.metric().filter(|_| (samples as usize) < LEAST_SAMPLES) {
            let problem = format!(
                "step {:?}: {samples} samples of {} cannot be compared, at least {LEAST_SAMPLES} are needed: the scenario would \
                 be run again and again",
                step.name, metric.name
            );
            found.push((format!("step.{index}.repeat"), problem));
        }
    }
    // The shortest that it may be: a machine under software emulation has more where nothing is said.
    let budget = written.timeout.map_or(USUAL_BUDGET, |span| span.0);
    let lists = [("step", written.step.as_slice()), ("after-writes", written.after_writes.as_slice())];
    for (list, steps) in lists {
        for (index, step) in steps.iter().enumerate() {
            if step.timeout.is_some_and(|timeout| timeout.0 > budget) {
                let problem = format!("step {:?} may take longer than the whole scenario", step.name);
                found.push((format!("{list}.{index}.timeout"), problem));
            }
        }
        let late = out_of_reach(set_up, steps, budget);
        found.extend(late.into_iter().map(|(index, key, problem)| (format!("{list}.{index}{key}"), problem)));
    }
    // One of a fixture's steps may be done there.
    let idle = |name: &&MachineName| {
        let steps = written.step.iter().chain(&written.after_writes);
        written.fixtures.is_empty() && !steps.into_iter().any(|step| step.machine.as_ref() == Some(*name))
    };
    for name in written.machine.keys().filter(idle) {
        let problem = format!("no step is done on the machine {name}: it is there, and nothing more");
        found.push((format!("machine.{name}"), problem));
    }
    if let Some(quarantine) = written.quarantine.as_ref().filter(|it| it.standing(today()) == Standing::Expired) {
        found.push(("quarantine.until".into(), format!("the quarantine {quarantine} has expired: it counts again")));
    }
    for (index, word) in written.requires.iter().enumerate() {
        if !requirement::WORDS.iter().any(|(known, _)| known == word) {
            found.push((
                format!("requires.{index}"),
                format!("the scenario is skipped: {}", requirement::unknown(word)),
            ));
        }
    }
    if written.summary.trim().is_empty() {
        found.push(("summary".into(), "the summary is empty".into()));
    }
    found
}

#[cfg(test)]
mod tests;
