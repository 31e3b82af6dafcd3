//! Fixtures: what several scenarios need on a machine before their steps, and take away after them.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use patchlab_check::{
    Step,
    step::{Errand, Kind, Pattern},
    written::{self, Combination, WrittenError},
};
use serde::Deserialize;

/// The folder of fixtures, in a scenario's own folder or beside it.
pub const FIXTURES: &str = "fixtures";
/// The file that makes a folder a fixture.
pub const FIXTURE_FILE: &str = "fixture.toml";
/// Time that every fixture has to be taken away, beyond the scenario's budget.
pub const TEAR_DOWN: Duration = Duration::from_secs(60);

/// A fixture as it is written.
#[derive(Debug, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Written {
    /// One line.
    summary: String,
    /// What is done before a scenario's own steps.
    #[serde(rename = "set-up")]
    pub(super) set_up: Vec<Step>,
    /// What is done after them, whatever happened.
    #[serde(default, rename = "tear-down")]
    pub(super) tear_down: Vec<Step>,
}

impl Written {
    /// Its steps, by the keys that they have.
    pub(super) fn lists(&self) -> [(&'static str, &[Step]); 2] {
        [("set-up", &self.set_up), ("tear-down", &self.tear_down)]
    }

    /// What is wrong although the form is right, with the key it is about.
    pub(super) fn problems(&self, dir: &Path) -> Vec<(String, String)> {
        let mut found = Vec::new();
        if self.set_up.is_empty() {
            found.push(("set-up".into(), "no [[set-up]]: a fixture sets something up".into()));
        }
        let mut seen: Vec<&str> = Vec::new();
        for (table, steps) in self.lists() {
            for (index, step) in steps.iter().enumerate() {
                let at = format!("{table}.{index}");
                if seen.contains(&step.name.as_str()) {
                    let problem = format!("a second step is named {:?}: results go by name", step.name);
                    found.push((format!("{at}.name"), problem));
                }
                seen.push(&step.name);
                if step.until.is_some() || step.kind == Kind::Errand(Errand::Barrier) {
                    let problem = format!("step {:?}: a fixture's steps are done one after the other", step.name);
                    found.push((at.clone(), problem));
                }
                if let Kind::Errand(Errand::CopyIn(copy)) = &step.kind
                    && !dir.join(copy.from.as_str()).is_file()
                {
                    let problem =
                        format!("step {:?}: there is no file {} in the fixture's folder", step.name, copy.from);
                    found.push((format!("{at}.copy-in.from"), problem));
                }
            }
        }
        found
    }
}

/// A fixture, valid. Its steps are named `fixture NAME: STEP`, and are no evidence for any patch.
#[derive(Debug, Clone, PartialEq)]
pub struct Fixture {
    /// Name: that of its folder.
    pub name: String,
    /// One line.
    pub summary: String,
    /// What is done before a scenario's own steps. When one fails, the scenario's own are not run.
    pub set_up: Vec<Step>,
    /// What is done after them, in any case.
    pub tear_down: Vec<Step>,
    /// How long it stays.
    pub stay: Stay,
    /// Its folder on this machine.
    pub dir: PathBuf,
}

/// How long a fixture stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stay {
    /// As long as a scenario's steps are done.
    Steps,
    /// Beyond them: what comes after is to find it.
    Beyond,
}

impl Fixture {
    /// Where the fixture `name` of the scenario in `dir` is: in the scenario's own folder, else beside it.
    pub fn find(dir: &Path, name: &str) -> Option<PathBuf> {
        let beside =
            dir.canonicalize().ok().and_then(|dir| dir.parent().map(|parent| parent.join(FIXTURES).join(name)));
        let own = dir.join(FIXTURES).join(name);
        [Some(own), beside].into_iter().flatten().find(|dir| dir.join(FIXTURE_FILE).is_file())
    }

    /// The JSON Schema of [`FIXTURE_FILE`].
    pub fn schema() -> schemars::Schema {
        written::schema::<Written>(written::Parameters::Used)
    }

    /// Reads the fixture in the folder `dir`, with the values that the scenario which uses it has for its parameters.
    ///
    /// # Errors
    /// Its file cannot be read or is wrong, or names a parameter that the scenario does not say: file, line and key are named.
    pub fn read(dir: &Path, combination: &Combination) -> Result<Self, WrittenError> {
        let path = dir.join(FIXTURE_FILE);
        let text = written::read_text(&path)?;
        let (written, _) = written::parse_with::<Written>(&text, &path, combination)?;
        if let Some((key, problem)) = written.problems(dir).into_iter().next() {
            return Err(WrittenError::at_key(&path, &text, &key, problem));
        }
        let Written { summary, mut set_up, mut tear_down } = written;
        let name = dir.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        for step in set_up.iter_mut().chain(&mut tear_down) {
            step.name = format!("fixture {name}: {}", step.name);
        }
        Ok(Self { name, summary, set_up, tear_down, stay: Stay::Steps, dir: dir.to_owned() })
    }

    /// The steps that take it away after a scenario's own: none when it stays.
    pub fn taken_away(&self) -> &[Step] {
        match self.stay {
            Stay::Steps => &self.tear_down,
            Stay::Beyond => &[],
        }
    }

    /// Takes what these match out of the output of its steps, besides what they say themselves.
    pub(super) fn redacting(mut self, patterns: &[Pattern]) -> Self {
        for step in self.set_up.iter_mut().chain(&mut self.tear_down) {
            step.redact.extend_from_slice(patterns);
        }
        self
    }
}
