//! What a scenario is to people who read a result: who answers for it, what each step does, and where it is written.

use std::path::{Path, PathBuf};

use patchlab_check::{Digest, Step, step::Kind};
use serde::{Deserialize, Serialize};

use crate::scenario::{FILE, FIXTURE_FILE, Fixture, Scenario};

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
    /// Its steps, in order; then those before the rollback, and those of its fixtures.
    pub steps: Vec<TestedStep>,
}

/// A step of a scenario.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TestedStep {
    /// Its name.
    pub name: String,
    /// What it does: its command, or its kind and what that is about.
    pub does: String,
    /// The line of its file that names it, from 1.
    pub line: usize,
    /// Its file, where that is not the scenario's: a fixture's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<PathBuf>,
}

impl Tested {
    /// Of a scenario. What of its folder cannot be read is not told here: running it will say so.
    pub fn of(scenario: &Scenario) -> Self {
        let file = scenario.dir.join(FILE);
        let text = std::fs::read_to_string(&file).unwrap_or_default();
        let own = |table: &str, steps: &[Step]| {
            let step = |step: &Step| TestedStep {
                name: step.name.clone(),
                does: does(step),
                line: line(&text, table, &step.name),
                file: None,
            };
            steps.iter().map(step).collect::<Vec<_>>()
        };
        let mut steps = own("[[step]]", &scenario.steps);
        steps.extend(own("[[after-writes]]", &scenario.after_writes));
        steps.extend(scenario.fixtures.iter().flat_map(of_fixture));
        Self {
            name: scenario.name.clone(),
            owner: scenario.owner.clone(),
            summary: scenario.summary.clone(),
            digest: digest(scenario),
            file: file.canonicalize().unwrap_or(file),
            steps,
        }
    }

    /// Where a step is written: its file, and the line.
    pub fn place(&self, step: &str) -> (&Path, usize) {
        self.step(step).map_or((&self.file, 1), |(_, step)| (step.file.as_ref().unwrap_or(&self.file), step.line))
    }

    /// A step and its number, from 1.
    pub fn step(&self, name: &str) -> Option<(usize, &TestedStep)> {
        self.steps.iter().enumerate().find(|(_, step)| step.name == name).map(|(index, step)| (index + 1, step))
    }
}

fn of_fixture(fixture: &Fixture) -> Vec<TestedStep> {
    let file = fixture.dir.join(FIXTURE_FILE);
    let text = std::fs::read_to_string(&file).unwrap_or_default();
    let file = file.canonicalize().unwrap_or(file);
    let written = |step: &Step| step.name.rsplit_once(": ").map_or(step.name.clone(), |(_, name)| name.to_owned());
    let step = |table: &str, step: &Step| TestedStep {
        name: step.name.clone(),
        does: does(step),
        line: line(&text, table, &written(step)),
        file: Some(file.clone()),
    };
    let set_up = fixture.set_up.iter().map(|it| step("[[set-up]]", it));
    set_up.chain(fixture.tear_down.iter().map(|it| step("[[tear-down]]", it))).collect()
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

/// The line on which the name of a step in the tables `table` is written; the file's first when it is not written as it is.
fn line(text: &str, table: &str, name: &str) -> usize {
    let is_it = |line: &str| {
        let value = line.trim_start().strip_prefix("name").map(str::trim_start).and_then(|rest| rest.strip_prefix('='));
        value.is_some_and(|value| {
            let value = value.trim_start();
            [format!("{name:?}"), format!("'{name}'")].iter().any(|quoted| value.starts_with(quoted))
        })
    };
    // The scenario's own name may be a step's too.
    let from = text.lines().position(|line| line.trim_start().starts_with(table)).unwrap_or(0);
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

        let fixture = dir.path().join("fixtures/data");
        std::fs::create_dir_all(&fixture).unwrap();
        let lines = "summary = \"s\"\n[[set-up]]\nname = \"make\"\nrun = \"createdb\"\n";
        std::fs::write(fixture.join(FIXTURE_FILE), lines).unwrap();
        let more = "[[after-writes]]\nname = \"rows\"\nrun = \"./rows.sh\"\n";
        let more = text.replace("summary", "fixtures = [\"data\"]\nsummary") + more;
        std::fs::write(folder.join(FILE), more).unwrap();
        let more = Tested::of(&Scenario::read(&folder).unwrap());
        assert_eq!(more.place("rows"), (more.file.as_path(), 15));
        assert_eq!(more.step("rows").unwrap().1.does, "./rows.sh");
        let (place, line) = more.place("fixture data: make");
        assert!(place.ends_with("fixtures/data/fixture.toml") && line == 3, "{place:?} {line}");

        std::fs::write(folder.join("more.sh"), "true").unwrap();
        let other = Tested::of(&Scenario::read(&folder).unwrap());
        assert_ne!(tested.digest, other.digest);
    }
}
