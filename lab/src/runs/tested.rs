//! What a scenario is to people who read a result: who answers for it, what each step does, and where it is written.

use std::path::PathBuf;

use patchlab_check::{Digest, Step, step::Kind};
use serde::{Deserialize, Serialize};

use crate::scenario::{FILE, Scenario};

/// A scenario of a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tested {
    /// Its name.
    pub name: String,
    /// Who answers for it.
    pub owner: String,
    /// One line.
    pub summary: String,
    /// Digest of its folder: names, modes and contents of its files.
    pub digest: Digest,
    /// Its file, where it was read.
    pub file: PathBuf,
    /// Its steps, in order.
    pub steps: Vec<TestedStep>,
}

/// A step of a scenario.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TestedStep {
    /// Its name.
    pub name: String,
    /// What it does: its command, or its kind and what that is about.
    pub does: String,
    /// The line of the scenario's file that names it, from 1.
    pub line: usize,
}

impl Tested {
    /// Of a scenario. What of its folder cannot be read is not told here: running it will say so.
    pub fn of(scenario: &Scenario) -> Self {
        let file = scenario.dir.join(FILE);
        let text = std::fs::read_to_string(&file).unwrap_or_default();
        let step =
            |step: &Step| TestedStep { name: step.name.clone(), does: does(step), line: line(&text, &step.name) };
        Self {
            name: scenario.name.clone(),
            owner: scenario.owner.clone(),
            summary: scenario.summary.clone(),
            digest: digest(scenario),
            file: file.canonicalize().unwrap_or(file),
            steps: scenario.steps.iter().map(step).collect(),
        }
    }

    /// A step and its number, from 1.
    pub fn step(&self, name: &str) -> Option<(usize, &TestedStep)> {
        self.steps.iter().enumerate().find(|(_, step)| step.name == name).map(|(index, step)| (index + 1, step))
    }
}

fn digest(scenario: &Scenario) -> Digest {
    let files = scenario.files().unwrap_or_default();
    let line = |file: &crate::scenario::ScenarioFile| {
        let content = Digest::of_file(&file.path).map(|(digest, _)| digest.to_string()).unwrap_or_default();
        format!("{:o} {} {content}\n", file.mode, file.relative)
    };
    Digest::of(files.iter().map(line).collect::<String>())
}

/// The command of a step that runs one; of any other its kind, and what it looks at. On another machine than the one under test: where.
fn does(step: &Step) -> String {
    let place = step.machine.as_ref().map(|machine| format!("on {machine}: ")).unwrap_or_default();
    place + &done(step)
}

fn done(step: &Step) -> String {
    let about = match &step.kind {
        Kind::Run { command, .. } => return command.trim().to_owned(),
        Kind::Http(http) => http.url.to_string(),
        Kind::Tcp(tcp) => format!("{}:{}", tcp.host, tcp.port),
        Kind::Unit(unit) => unit.name.to_string(),
        Kind::File(file) => file.path.to_string(),
        Kind::Package(package) => package.name.to_string(),
        Kind::Port(port) => port.number.to_string(),
        #[allow(unreachable_patterns, reason = "a kind that says enough by its name")]
        _ => String::new(),
    };
    format!("{} {about}", step.kind.name()).trim_end().to_owned()
}

/// The line on which a step's name is written; the file's first when it is not written as it is.
fn line(text: &str, name: &str) -> usize {
    let is_it = |line: &str| {
        let value = line.trim_start().strip_prefix("name").map(str::trim_start).and_then(|rest| rest.strip_prefix('='));
        value.is_some_and(|value| {
            let value = value.trim_start();
            [format!("{name:?}"), format!("'{name}'")].iter().any(|quoted| value.starts_with(quoted))
        })
    };
    // Its own name may be a step's too.
    let from = text.lines().position(|line| line.trim_start().starts_with("[[step]]")).unwrap_or(0);
    text.lines().skip(from).position(is_it).map_or(1, |index| from + index + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scenario_says_what_its_steps_do_and_where_they_are_written() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("config");
        std::fs::create_dir(&folder).unwrap();
        let text = "name = \"config\"\nowner = \"qa-web\"\nsummary = \"s\"\n\n[[step]]\nname = \"config\"\n\
                    run = \"\"\"\nnginx -t\"\"\"\n\n[[step]]\n  name = 'front page'\nhttp = { url = \"http://127.0.0.1/\" }\n";
        std::fs::write(folder.join(FILE), text).unwrap();
        let tested = Tested::of(&Scenario::read(&folder).unwrap());
        let steps: Vec<_> = tested.steps.iter().map(|step| (step.does.as_str(), step.line)).collect();
        assert_eq!(steps, [("nginx -t", 6), ("http http://127.0.0.1/", 11)]);
        assert_eq!(tested.step("front page").map(|(number, _)| number), Some(2));

        std::fs::write(folder.join("more.sh"), "true").unwrap();
        let other = Tested::of(&Scenario::read(&folder).unwrap());
        assert_ne!(tested.digest, other.digest);
    }
}
