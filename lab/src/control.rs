//! What a control was found to be, stage by stage: kept of a validation that passed, so that the next one under the same
//! [`Conditions`] need not make a control and run everything on it again.
//!
//! What is remembered of a control is believed only while it agrees. It never explains a failure: whatever is not well on the patched clone
//! beside a remembered control is asked once more, on fresh clones, with a control beside it ([`crate::validation::Against`]). Metrics are
//! never remembered: they are taken on both clones by turns.

mod store;

use std::collections::BTreeMap;

use jiff::Timestamp;
use patchlab_check::{Digest, Status};
use serde::{Deserialize, Serialize};

pub use store::{Adopted, Controls, given, put};

use crate::{
    manifest::{Entry, Manifest},
    runs::Tested,
    scenario::{CheckKind, Scenario, ScenarioRun},
    validation::Reboot,
    verdict::Phase,
};

/// Version of [`ControlRecord`]'s form; another one is not read.
const SCHEMA: u32 = 1;
/// Most bytes of a record that are read or kept: 64 MiB. One of the demonstration's has 100 KiB.
pub const RECORD_BYTES: u64 = 64 << 20;

/// What a control's results depend on: equal conditions, equal controls.
#[derive(Debug)]
pub struct Conditions<'a> {
    /// Digest of the lab's program.
    pub lab: Digest,
    /// Digest of the agent's, which runs on the control too.
    pub agent: Digest,
    /// Digest of the baseline.
    pub baseline: Digest,
    /// The scenarios, in the order in which they run: what one leaves behind, the next one finds.
    pub scenarios: &'a [Scenario],
    /// Digests of the baselines of machines beside the one under test, by the names that scenarios give them.
    pub others: BTreeMap<String, Digest>,
    /// When clones reboot.
    pub reboot: Reboot,
}

impl Conditions<'_> {
    /// The name of these conditions. Scenarios count by all that is in their folders.
    pub fn key(&self) -> Digest {
        let mut text = format!("{SCHEMA}\n{}\n{}\n{}\n{:?}\n", self.lab, self.agent, self.baseline, self.reboot);
        for (name, digest) in &self.others {
            text += &format!("{name} {digest}\n");
        }
        for scenario in self.scenarios {
            let tested = Tested::of(scenario);
            text += &format!("{} {}\n", tested.name, tested.digest);
        }
        Digest::of(text)
    }
}

/// Whether the clones were rebooted since they were made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Course {
    /// They were not.
    Straight,
    /// They were, after the patch.
    Rebooted,
}

/// A stage of a validation: everything from one change of the clones to the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stage {
    /// The phase.
    pub phase: Phase,
    /// What was before.
    pub course: Course,
}

/// What a control was found to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ControlRecord {
    schema: u32,
    /// The run that saw it.
    pub run: String,
    /// When.
    pub at: Timestamp,
    stages: Vec<At>,
}

/// The same, in one stage.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct At {
    stage: Stage,
    /// How long the reboot took with which it begins, milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    reboot_ms: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    state: Option<State>,
    scenarios: BTreeMap<String, Ran>,
}

/// A scenario on it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Ran {
    run: ScenarioRun,
    /// What checks read after it.
    read: BTreeMap<String, String>,
}

/// A manifest, with only those files that are not as in the baseline's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct State {
    rest: Manifest,
    files: BTreeMap<String, Option<Entry>>,
}

impl State {
    fn of(mut manifest: Manifest, baseline: &Manifest) -> Self {
        let now = std::mem::take(&mut manifest.files);
        let gone = baseline.files.keys().filter(|path| !now.contains_key(*path)).map(|path| (path.clone(), None));
        let mut files: BTreeMap<String, Option<Entry>> = gone.collect();
        let differ = now.into_iter().filter(|(path, entry)| baseline.files.get(path) != Some(entry));
        files.extend(differ.map(|(path, entry)| (path, Some(entry))));
        Self { rest: manifest, files }
    }

    fn on(&self, baseline: &Manifest) -> Manifest {
        let mut files = baseline.files.clone();
        for (path, entry) in &self.files {
            match entry {
                Some(entry) => drop(files.insert(path.clone(), entry.clone())),
                None => drop(files.remove(path)),
            }
        }
        Manifest { files, ..self.rest.clone() }
    }
}

impl ControlRecord {
    /// Nothing is known yet.
    pub fn begun(at: Timestamp) -> Self {
        Self { schema: SCHEMA, run: String::new(), at, stages: Vec::new() }
    }

    fn at(&mut self, stage: Stage) -> &mut At {
        let place = self.stages.iter().position(|at| at.stage == stage).unwrap_or_else(|| {
            self.stages.push(At { stage, reboot_ms: None, state: None, scenarios: BTreeMap::new() });
            self.stages.len() - 1
        });
        &mut self.stages[place]
    }

    fn known(&self, stage: Stage) -> Option<&At> {
        self.stages.iter().find(|at| at.stage == stage)
    }

    /// Writes down what it was made of; what was written of that before is replaced.
    pub fn keep_state(&mut self, stage: Stage, manifest: Manifest, baseline: &Manifest) {
        self.at(stage).state = Some(State::of(manifest, baseline));
    }

    /// Writes down what a scenario gave, and that its checks are still to come.
    pub fn keep_run(&mut self, stage: Stage, run: ScenarioRun) {
        let name = run.scenario.clone();
        self.at(stage).scenarios.insert(name, Ran { run, read: BTreeMap::new() });
    }

    /// Writes down what a check read after a scenario that was written down.
    pub fn keep_read(&mut self, stage: Stage, (scenario, check): (&str, CheckKind), text: String) {
        if let Some(ran) = self.at(stage).scenarios.get_mut(scenario) {
            ran.read.insert(check.name().to_owned(), text);
        }
    }

    /// Writes down how long its reboot took, milliseconds.
    pub fn keep_reboot(&mut self, stage: Stage, ms: u64) {
        self.at(stage).reboot_ms = Some(ms);
    }

    /// What it was made of.
    pub fn state(&self, stage: Stage, baseline: &Manifest) -> Option<Manifest> {
        Some(self.known(stage)?.state.as_ref()?.on(baseline))
    }

    /// What a scenario gave.
    pub fn run(&self, stage: Stage, scenario: &str) -> Option<&ScenarioRun> {
        Some(&self.known(stage)?.scenarios.get(scenario)?.run)
    }

    /// What a check read after a scenario.
    pub fn read(&self, stage: Stage, (scenario, check): (&str, CheckKind)) -> Option<&str> {
        Some(self.known(stage)?.scenarios.get(scenario)?.read.get(check.name())?)
    }

    /// How long its reboot took, milliseconds.
    pub fn reboot_ms(&self, stage: Stage) -> Option<u64> {
        self.known(stage)?.reboot_ms
    }

    /// Whether it was well throughout: nothing that failed on it, and no metric, which says nothing without the other clone's.
    pub fn is_well(&self) -> bool {
        let steps = self.stages.iter().flat_map(|at| at.scenarios.values()).flat_map(|ran| &ran.run.steps);
        let is_well = |status: Status| matches!(status, Status::Pass | Status::Skip);
        let mut outcomes = steps.map(|step| &step.outcome);
        outcomes.all(|outcome| is_well(outcome.status) && outcome.samples.is_empty())
    }

    /// With the stages that only an `older` record under the same conditions has: one course of a validation does not pass the other's.
    #[must_use]
    pub fn beside(mut self, older: Self) -> Self {
        let is_new = |at: &At| !self.stages.iter().any(|known| known.stage == at.stage);
        let more: Vec<At> = older.stages.into_iter().filter(is_new).collect();
        self.stages.extend(more);
        self
    }
}

#[cfg(test)]
mod tests;
