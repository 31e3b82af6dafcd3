//! Linting scenarios: everything that is wrong or unwise in a folder, in one go, for the people who write them.

use std::{
    fmt, io,
    path::{Path, PathBuf},
    process::Command,
};

use patchlab_check::{
    step::Depth,
    written::{self, WrittenError},
};

use super::{FILE, Scenario, ScenarioError, Written, folders, problems};

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

/// Everything wrong or unwise in the scenario folder `dir`, or in every scenario folder in it. Scripts go through shellcheck(1)
/// where that is installed.
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
    let written: Written = match written::parse(&text, &path) {
        Ok(written) => written,
        Err(error) => return push(Weight::Error, error.to_string()),
    };
    let at = |key: &str, problem: String| WrittenError::at_key(&path, &text, key, problem).to_string();
    let errors = problems(&written, dir);
    for (key, problem) in &errors {
        push(Weight::Error, at(key, problem.clone()));
    }
    for (key, problem) in advice(&written) {
        push(Weight::Advice, at(&key, problem));
    }
    if !errors.is_empty() {
        return;
    }
    match Scenario::read(dir).and_then(|scenario| scenario.files()) {
        Err(error) => push(Weight::Error, error.to_string()),
        Ok(files) => {
            let scripts: Vec<PathBuf> =
                files.into_iter().map(|file| file.path).filter(|path| is_script(path)).collect();
            for finding in shellcheck(&scripts) {
                push(Weight::Error, finding);
            }
        }
    }
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
        if step.timeout.is_some_and(|timeout| timeout > written.timeout) {
            let problem = format!("step {:?} may take longer than the whole scenario", step.name);
            found.push((format!("step.{index}.timeout"), problem));
        }
    }
    if written.summary.trim().is_empty() {
        found.push(("summary".into(), "the summary is empty".into()));
    }
    found
}

/// Whether it is a shell script by its name or its first line.
fn is_script(path: &Path) -> bool {
    use std::io::Read as _;
    if path.extension().is_some_and(|extension| extension == "sh") {
        return true;
    }
    let mut first = [0; 32];
    let read = std::fs::File::open(path).and_then(|mut file| file.read(&mut first)).unwrap_or(0);
    let line = String::from_utf8_lossy(&first[..read]);
    let line = line.lines().next().unwrap_or_default();
    line.starts_with("#!") && ["/sh", "bash", "dash"].iter().any(|shell| line.trim_end().ends_with(shell))
}

/// shellcheck's findings, one a line; none when it is not installed.
fn shellcheck(scripts: &[PathBuf]) -> Vec<String> {
    if scripts.is_empty() {
        return Vec::new();
    }
    match Command::new("shellcheck").args(["--format=gcc", "--"]).args(scripts).output() {
        Ok(output) => String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(error) => vec![format!("shellcheck could not be run: {error}")],
    }
}
