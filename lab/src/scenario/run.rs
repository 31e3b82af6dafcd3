//! Running a scenario on one machine, within its budget.

use std::time::{Duration, Instant};

use patchlab_check::{Outcome, Status, Target, step::Context, target::TargetError};
use serde::{Deserialize, Serialize};

use super::Scenario;

/// What a scenario gave on one machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScenarioRun {
    /// The scenario.
    pub scenario: String,
    /// Every step, in order; steps that the budget did not reach are here too, as failed.
    pub steps: Vec<StepRun>,
    /// Duration, milliseconds.
    pub ms: u64,
}

/// What a step gave on one machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepRun {
    /// The step.
    pub name: String,
    /// How it ended.
    pub outcome: Outcome,
}

/// Told while a scenario runs, for people who watch.
#[derive(Debug, Clone, Copy)]
pub enum Progress<'a> {
    /// A step begins; `index` is from 0.
    Begins {
        /// The step.
        step: &'a str,
        /// Its place.
        index: usize,
        /// How many there are.
        of: usize,
    },
    /// A step ended.
    Ended {
        /// The step.
        step: &'a str,
        /// How.
        outcome: &'a Outcome,
    },
}

/// Runs every step of `scenario` on `target`, where its files are in `dir`. A failed step does not end it: the clones are
/// compared step by step.
///
/// # Errors
/// The machine or the way to it broke: the run says nothing about the patch.
pub fn run(
    scenario: &Scenario,
    target: &dyn Target,
    dir: &str,
    observer: &mut dyn FnMut(Progress<'_>),
) -> Result<ScenarioRun, TargetError> {
    let start = Instant::now();
    let mut steps = Vec::with_capacity(scenario.steps.len());
    for (index, step) in scenario.steps.iter().enumerate() {
        observer(Progress::Begins { step: &step.name, index, of: scenario.steps.len() });
        let budget = scenario.timeout.saturating_sub(start.elapsed());
        let outcome = if budget.is_zero() {
            out_of_budget(scenario.timeout)
        } else {
            step.evaluate(target, Context { dir: Some(dir), budget })?
        };
        observer(Progress::Ended { step: &step.name, outcome: &outcome });
        steps.push(StepRun { name: step.name.clone(), outcome });
    }
    let ms = u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX);
    Ok(ScenarioRun { scenario: scenario.name.clone(), steps, ms })
}

fn out_of_budget(timeout: Duration) -> Outcome {
    let reason = format!("the scenario's budget of {} s was used up before this step", timeout.as_secs_f32());
    Outcome { status: Status::Fail, exit: None, ms: 0, output: String::new(), reason }
}
