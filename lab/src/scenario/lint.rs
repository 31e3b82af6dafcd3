//! Linting scenarios: everything that is wrong or unwise in a folder, in one go, for the people who write them.

use std::{
    collections::BTreeSet,
    fmt, io,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use patchlab_check::{
    Step,
    step::{Depth, Errand, Kind, MachineName},
    written::{self, WrittenError},
};

use crate::verdict::LEAST_SAMPLES;

use super::{FILE, Scenario, ScenarioError, Standing, Written, folders, problems, requirement, today};

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

/// Everything wrong or unwise in the scenario folder `dir`, or in every scenario folder in it. Commands are read by the shell, scripts
/// by shellcheck(1); where that is not installed, a finding says so.
///
/// # Errors
/// The folder cannot be read.
pub fn lint(dir: &Path) -> Result<Vec<Finding>, ScenarioError> {
    let mut findings = Vec::new();
    let folders = folders(dir)?;
    if folders.is_empty() {
        findings.push(Finding {
            weight: Weight::Error,
            text: format!("{}: no {FILE} here or in a folder of it", dir.display()),
        });
    }
    for folder in folders {
        lint_folder(&folder, &mut findings);
    }
    Ok(findings)
}

fn lint_folder(dir: &Path, findings: &mut Vec<Finding>) {
    let path = dir.join(FILE);
    let mut push = |weight, text: String| findings.push(Finding { weight, text });
    let text = match written::read_text(&path) {
        Ok(text) => text,
        Err(error) => return push(Weight::Error, error.to_string()),
    };
    let combinations = match written::combinations(&text, &path) {
        Ok(combinations) => combinations,
        Err(error) => return push(Weight::Error, error.to_string()),
    };
    let at = |key: &str, problem: String| WrittenError::at_key(&path, &text, key, problem).to_string();
    let mut found: Vec<(Weight, String)> = Vec::new();
    for combination in &combinations {
        let (written, used) = match written::parse_with::<Written>(&text, &path, combination) {
            Ok(read) => read,
            Err(error) => return push(Weight::Error, error.to_string()),
        };
        let errors = problems(&written, dir).into_iter().chain(wrong_commands(&written));
        found.extend(errors.map(|(key, problem)| (Weight::Error, at(&key, problem))));
        let advices = advice(&written).into_iter().chain(unused(&written, &used));
        found.extend(advices.map(|(key, problem)| (Weight::Advice, at(&key, problem))));
    }
    // What is wrong in all combinations is wrong once.
    let mut told = BTreeSet::new();
    found.retain(|(_, text)| told.insert(text.clone()));
    let usable = found.iter().all(|(weight, _)| *weight == Weight::Advice);
    found.into_iter().for_each(|(weight, text)| push(weight, text));
    if !usable {
        return;
    }
    match Scenario::read_all(dir).and_then(|all| all.first().map_or(Ok(Vec::new()), Scenario::files)) {
        Err(error) => push(Weight::Error, error.to_string()),
        Ok(files) => {
            let scripts: Vec<PathBuf> =
                files.into_iter().map(|file| file.path).filter(|path| is_script(path)).collect();
            match shellcheck(&scripts) {
                Checked::By(findings) => findings.into_iter().for_each(|finding| push(Weight::Error, finding)),
                Checked::Not(why) => {
                    let count = scripts.len();
                    push(Weight::Advice, format!("{}: {count} scripts were not checked: {why}", dir.display()));
                }
            }
        }
    }
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

/// Commands that the shell cannot parse.
fn wrong_commands(written: &Written) -> Vec<(String, String)> {
    let command = |(index, step): (usize, &Step)| {
        let (key, kind) = match &step.kind {
            Kind::Wait(wait) => ("wait.until.run", wait.until.kind()),
            kind => ("run", kind),
        };
        let Kind::Run { command, .. } = kind else { return None };
        let said = Command::new("/bin/sh").args(["-n", "-c", command]).output().ok()?;
        let why = String::from_utf8_lossy(&said.stderr);
        let why = why.lines().next().unwrap_or_default().trim_start_matches("/bin/sh: ");
        let problem = format!("step {:?}: the shell cannot read this command: {why}", step.name);
        (!said.status.success()).then(|| (format!("step.{index}.{key}"), problem))
    };
    written.step.iter().enumerate().filter_map(command).collect()
}

/// What works but could be better, with the key it is about.
fn advice(written: &Written) -> Vec<(String, String)> {
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
        if step.timeout.is_some_and(|timeout| timeout > written.timeout) {
            let problem = format!("step {:?} may take longer than the whole scenario", step.name);
            found.push((format!("step.{index}.timeout"), problem));
        }
    }
    found.extend(out_of_reach(written));
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

/// The first step that is not reached when every wait before it takes as long as it may.
fn out_of_reach(written: &Written) -> Option<(String, String)> {
    let mut waited = Duration::ZERO;
    for (index, step) in written.step.iter().enumerate() {
        if waited >= written.timeout.0 {
            let problem = format!(
                "step {:?} may never be reached: waits and sleeps before it may take {} s, the scenario has {} s",
                step.name,
                waited.as_secs(),
                written.timeout.0.as_secs()
            );
            return Some((format!("step.{index}"), problem));
        }
        let more = match &step.kind {
            Kind::Wait(wait) => wait.limit.0.saturating_mul(step.repeat.times()),
            Kind::Errand(Errand::Sleep(sleep)) => sleep.time.0,
            _ => Duration::ZERO,
        };
        waited = waited.saturating_add(more);
    }
    None
}

/// What shells and shellcheck(1) find in those of these scripts that shells run; a shell that cannot read one is an error, everything else
/// is advice.
pub fn lint_scripts(scripts: &[PathBuf]) -> Vec<Finding> {
    let scripts: Vec<PathBuf> = scripts.iter().filter(|path| is_script(path)).cloned().collect();
    let mut findings: Vec<Finding> = scripts.iter().filter_map(|path| unreadable(path)).collect();
    let advice = match shellcheck(&scripts) {
        Checked::By(found) => found,
        Checked::Not(why) => vec![format!("{} scripts were not checked: {why}", scripts.len())],
    };
    findings.extend(advice.into_iter().map(|text| Finding { weight: Weight::Advice, text }));
    findings
}

/// What the shell that a script is for says against it. Only shells that are known are asked, by their names here: a file that somebody
/// else wrote does not choose what is run.
fn unreadable(path: &Path) -> Option<Finding> {
    let line = first_line(path);
    let shell = SHELLS.into_iter().find(|shell| is_for(&line, shell))?;
    let said = Command::new(shell).args(["-n", "--"]).arg(path).output().ok()?;
    let why = String::from_utf8_lossy(&said.stderr).lines().next().unwrap_or_default().to_owned();
    (!said.status.success()).then_some(Finding { weight: Weight::Error, text: why })
}

/// Shells that read a script without running it.
const SHELLS: [&str; 3] = ["bash", "dash", "sh"];

/// Whether it is a shell script by its name or its first line.
fn is_script(path: &Path) -> bool {
    let line = first_line(path);
    path.extension().is_some_and(|extension| extension == "sh") || SHELLS.iter().any(|shell| is_for(&line, shell))
}

/// Whether a first line names this interpreter: by its path, or by env(1).
fn is_for(line: &str, shell: &str) -> bool {
    let words = line.strip_prefix("#!").unwrap_or_default().split_whitespace();
    let mut names = words.map(|word| word.rsplit('/').next().unwrap_or(word));
    match names.next() {
        Some("env") => names.next() == Some(shell),
        name => name == Some(shell),
    }
}

/// The begin of a file, up to the first line's end.
fn first_line(path: &Path) -> String {
    use std::io::Read as _;
    let mut first = [0; 64];
    let read = std::fs::File::open(path).and_then(|mut file| file.read(&mut first)).unwrap_or(0);
    String::from_utf8_lossy(&first[..read]).lines().next().unwrap_or_default().to_owned()
}

/// Whether scripts were checked.
enum Checked {
    /// With these findings, one a line.
    By(Vec<String>),
    /// They were not; why.
    Not(String),
}

fn shellcheck(scripts: &[PathBuf]) -> Checked {
    if scripts.is_empty() {
        return Checked::By(Vec::new());
    }
    match Command::new("shellcheck").args(["--format=gcc", "--"]).args(scripts).output() {
        Ok(output) => Checked::By(String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Checked::Not("shellcheck is not installed".into()),
        Err(error) => Checked::Not(format!("shellcheck could not be run: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_is_read_by_the_shell_that_it_is_for_and_by_no_program_that_it_names() {
        let dir = tempfile::tempdir().unwrap();
        let found = |text: &str| {
            let path = dir.path().join("apply");
            std::fs::write(&path, text).unwrap();
            unreadable(&path).map(|finding| finding.weight)
        };
        for good in ["#!/bin/sh\ntrue\n", "#!/usr/bin/env bash\nlist=(a b)\n", "#! /bin/bash -eu\nlist=(a)\n"] {
            assert_eq!(found(good), None, "{good}");
        }
        for bad in ["#!/bin/sh\nif true\n", "#!/usr/bin/env bash\ndone\n"] {
            assert_eq!(found(bad), Some(Weight::Error), "{bad}");
        }
        let ran = dir.path().join("ran");
        let evil = dir.path().join("evil");
        std::fs::write(&evil, format!("#!/bin/sh\ntouch {}\n", ran.display())).unwrap();
        std::fs::set_permissions(&evil, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        assert_eq!(found(&format!("#!{}\n", evil.display())), None);
        assert!(!ran.exists());
    }
}
