//! Running a scenario on one machine, within its budget.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    thread::{Scope, ScopedJoinHandle},
    time::{Duration, Instant},
};

use patchlab_check::{
    Outcome, Status, Step, Target,
    step::{Context, CopyIn, CopyOut, Errand, Kind, MachineName, Repeat},
    target::TargetError,
};
use serde::{Deserialize, Serialize};

use super::{
    Moment, Scenario,
    fixture::{FIXTURES, TEAR_DOWN},
};

/// What a scenario gave on one machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScenarioRun {
    /// The scenario.
    pub scenario: String,
    /// Every step, in order; steps that the budget did not reach are here too, as failed.
    pub steps: Vec<StepRun>,
    /// Duration, milliseconds.
    pub ms: u64,
    /// The step in which the machine was lost, e.g. a reboot from which it did not come back; nobody can ask it anything any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gone: Option<String>,
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

/// What became of an errand: the machine's word on how it went, or on why it did not; or the lab's on how it broke.
pub type ErrandEnd = Result<Result<String, String>, TargetError>;

/// A machine as the lab has it: what every target can do, and what only the lab can do with it.
pub trait Bench {
    /// Its inside.
    fn target(&self) -> &(dyn Target + Sync);

    /// By what times that nobody said are multiplied on it: see [`Context::pace`].
    fn pace(&self) -> u32 {
        1
    }

    /// Reboots it, and starts again what a reboot ends; at most for `timeout`.
    fn reboot(&self, timeout: Duration) -> ErrandEnd;

    /// Puts the file `from` of the scenario's or fixture's folder `dir`, on this host, onto it; at most for `timeout`.
    fn copy_in(&self, dir: &Path, copy: &CopyIn, timeout: Duration) -> ErrandEnd;

    /// Takes a file of it into the run's evidence, at most for `timeout`. `step` is what it is for.
    fn copy_out(&self, step: &Step, copy: &CopyOut, timeout: Duration) -> ErrandEnd;

    /// Takes a picture of its screen into the run's evidence. `step` is what it is for.
    fn screenshot(&self, step: &Step) -> ErrandEnd;

    /// How the machine was lost, when an errand or a look at it broke; `None` when it was not, or when nobody is to know.
    fn lost(&self) -> Option<String> {
        None
    }

    /// Waits until a sample of a metric may be taken, at most for `patience`, and says how long that took. A machine that is compared with
    /// no other need not wait.
    fn wait_turn(&self, _moment: Moment, _patience: Duration) -> Duration {
        Duration::ZERO
    }

    /// No sample before `moment` is taken any more.
    fn leave_turn(&self, _moment: Moment) {}
}

/// The machines of a run.
pub struct Benches<'a> {
    /// The one under test.
    pub subject: &'a dyn Bench,
    /// Those beside it.
    pub others: BTreeMap<&'a MachineName, &'a dyn Bench>,
}

impl<'a> Benches<'a> {
    /// Of a run on one machine alone.
    pub fn alone(subject: &'a dyn Bench) -> Self {
        Self { subject, others: BTreeMap::new() }
    }

    /// The machine on which a step is done.
    fn of(&self, step: &Step) -> Result<&'a dyn Bench, TargetError> {
        let Some(name) = &step.machine else { return Ok(self.subject) };
        self.others.get(name).copied().ok_or_else(|| TargetError {
            action: format!("do the step {:?}", step.name),
            reason: format!("there is no machine {name}"),
        })
    }
}

/// Runs every step of `scenario` on `benches`, where its files are in `dir`: its fixtures' set-up, its own steps as often as it says,
/// the fixtures' tear-down. A failed step does not end it: the clones are compared step by step.
///
/// # Errors
/// The machine or the way to it broke: the run says nothing about the patch.
pub fn run(
    scenario: &Scenario,
    benches: &Benches<'_>,
    dir: &str,
    observer: &mut dyn FnMut(Progress<'_>),
) -> Result<ScenarioRun, TargetError> {
    let of = scenario.all_steps().count();
    let mut running = Running {
        benches,
        observer,
        of,
        begun: Instant::now(),
        budget: scenario.budget(benches.subject.pace()),
        obstacle: None,
        lost: BTreeSet::new(),
        begun_steps: 0,
        steps: Vec::with_capacity(of),
    };
    let places: Vec<String> =
        scenario.fixtures.iter().map(|fixture| format!("{dir}/{FIXTURES}/{}", fixture.name)).collect();
    for (fixture, guest) in scenario.fixtures.iter().zip(&places) {
        for step in &fixture.set_up {
            let status = running.step(step, Place { guest, host: &fixture.dir })?;
            if status != Status::Pass && running.obstacle.is_none() {
                running.obstacle = Some(Obstacle::NotSetUp(step.name.clone()));
            }
        }
    }
    running.rounds(scenario, Place { guest: dir, host: &scenario.dir })?;
    // Nobody is to find what is left of this scenario: every fixture is taken away, beyond the budget too.
    running.obstacle.take_if(|obstacle| matches!(obstacle, Obstacle::NotSetUp(_)));
    for (fixture, guest) in scenario.fixtures.iter().zip(&places).rev() {
        running.budget = running.budget.max(running.begun.elapsed() + TEAR_DOWN);
        for step in fixture.taken_away() {
            running.step(step, Place { guest, host: &fixture.dir })?;
        }
    }
    let ms = millis(running.begun.elapsed());
    let gone = match running.obstacle {
        Some(Obstacle::Gone(step)) => Some(step),
        _ => None,
    };
    Ok(ScenarioRun { scenario: scenario.name.clone(), steps: running.steps, ms, gone })
}

/// A scenario that could not be begun on a machine, and why; `gone` says where it was lost, when it was.
pub fn not_begun(scenario: &Scenario, reason: &str, gone: Option<&str>) -> ScenarioRun {
    let step = |step: &Step| StepRun { name: step.name.clone(), outcome: failed(format!("not run, since {reason}")) };
    let (scenario, steps) = (scenario.name.clone(), scenario.all_steps().map(step).collect());
    ScenarioRun { scenario, steps, ms: 0, gone: gone.map(str::to_owned) }
}

/// Where a step's files are: in the guest, and on this host.
#[derive(Clone, Copy)]
struct Place<'a> {
    guest: &'a str,
    host: &'a Path,
}

/// Why steps are not run.
enum Obstacle {
    /// This step of a fixture did not pass.
    NotSetUp(String),
    /// The machine was lost in this step.
    Gone(String),
}

/// A step that goes on beside others.
struct Beside<'scope> {
    step: &'scope Step,
    /// Its place among the steps' outcomes.
    at: usize,
    begun: Instant,
    doing: ScopedJoinHandle<'scope, Result<Outcome, TargetError>>,
}

/// A scenario on its way.
struct Running<'a> {
    benches: &'a Benches<'a>,
    observer: &'a mut dyn FnMut(Progress<'_>),
    of: usize,
    begun: Instant,
    /// From `begun`.
    budget: Duration,
    obstacle: Option<Obstacle>,
    /// Machines beside the one under test that were lost.
    lost: BTreeSet<MachineName>,
    begun_steps: usize,
    steps: Vec<StepRun>,
}

impl<'a> Running<'a> {
    /// The scenario's own steps, as often as it says, or until one fails.
    fn rounds(&mut self, scenario: &Scenario, place: Place<'_>) -> Result<(), TargetError> {
        let (times, own) = (scenario.repeat.times(), self.steps.len());
        for round in 1..=times {
            let first = self.steps.len();
            self.list(&scenario.steps, place)?;
            for (at, new) in self.steps.split_off(first).into_iter().enumerate() {
                let new = StepRun { outcome: in_round(new.outcome, round, times), ..new };
                match self.steps.get_mut(own + at) {
                    Some(before) => before.outcome = after(&before.outcome, new.outcome),
                    None => self.steps.push(new),
                }
            }
            if self.steps[own..].iter().any(|step| step.outcome.status == Status::Fail) {
                break;
            }
        }
        Ok(())
    }

    /// Steps in order; those that go on until a barrier, beside the ones between.
    fn list(&mut self, steps: &[Step], place: Place<'_>) -> Result<(), TargetError> {
        std::thread::scope(|scope| {
            let mut beside = Vec::new();
            for step in steps {
                if step.until.is_some() {
                    beside.extend(self.begin(scope, step, place)?);
                    continue;
                }
                if step.kind == Kind::Errand(Errand::Barrier) {
                    let is_over = |other: &mut Beside<'_>| other.step.until.as_ref() == Some(&step.name);
                    beside.extract_if(.., is_over).try_for_each(|other| self.end(other))?;
                }
                self.step(step, place)?;
            }
            // Where steps are left out, barriers may be among them.
            beside.into_iter().try_for_each(|other| self.end(other))
        })
    }

    /// Begins a step that goes on beside others; `None` when it is over at once.
    fn begin<'scope>(
        &mut self,
        scope: &'scope Scope<'scope, '_>,
        step: &'scope Step,
        place: Place<'scope>,
    ) -> Result<Option<Beside<'scope>>, TargetError>
    where
        'a: 'scope,
    {
        let left = self.begins(step);
        let at = self.steps.len();
        if let Some(obstacle) = self.obstacle_to(step, left) {
            self.ended(step, obstacle);
            return Ok(None);
        }
        self.steps.push(StepRun { name: step.name.clone(), outcome: failed("its end was not waited for".into()) });
        let bench = self.benches.of(step)?;
        let (target, pace) = (bench.target(), bench.pace());
        let doing = scope.spawn(move || step.evaluate(target, Context { dir: Some(place.guest), budget: left, pace }));
        Ok(Some(Beside { step, at, begun: Instant::now(), doing }))
    }

    /// Waits for the end of a step that was begun: it comes at the end of its time at the latest.
    fn end(&mut self, beside: Beside<'_>) -> Result<(), TargetError> {
        let Beside { step, at, begun, doing } = beside;
        let asked = doing.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        let outcome = self.word(step, begun, asked)?;
        (self.observer)(Progress::Ended { step: &step.name, outcome: &outcome });
        self.steps[at].outcome = outcome;
        Ok(())
    }

    fn step(&mut self, step: &Step, place: Place<'_>) -> Result<Status, TargetError> {
        let left = self.begins(step);
        let outcome = match self.obstacle_to(step, left) {
            Some(outcome) => outcome,
            None => self.ask(step, place, left)?,
        };
        Ok(self.ended(step, outcome))
    }

    /// Tells that a step begins; how much of the budget is left.
    fn begins(&mut self, step: &Step) -> Duration {
        let index = self.steps.len().min(self.of.saturating_sub(1));
        self.begun_steps += 1;
        (self.observer)(Progress::Begins { step: &step.name, index, of: self.of });
        self.budget.saturating_sub(self.begun.elapsed())
    }

    /// Tells and writes down how a step ended.
    fn ended(&mut self, step: &Step, outcome: Outcome) -> Status {
        (self.observer)(Progress::Ended { step: &step.name, outcome: &outcome });
        let status = outcome.status;
        self.steps.push(StepRun { name: step.name.clone(), outcome });
        status
    }

    /// Why a step is not done, if it is not.
    fn obstacle_to(&self, step: &Step, left: Duration) -> Option<Outcome> {
        let reason = match &self.obstacle {
            Some(Obstacle::NotSetUp(other)) => format!("not run, since {other:?} did not pass"),
            Some(Obstacle::Gone(other)) => format!("not run, since the machine was lost in {other:?}"),
            None if step.machine.as_ref().is_some_and(|name| self.lost.contains(name)) => {
                "not run, since its machine was lost before".into()
            }
            None if left.is_zero() => {
                format!("the scenario's budget of {} s was used up before this step", self.budget.as_secs_f32())
            }
            None => return None,
        };
        Some(failed(reason))
    }

    fn ask(&mut self, step: &Step, place: Place<'_>, left: Duration) -> Result<Outcome, TargetError> {
        let (begun, bench) = (Instant::now(), self.benches.of(step)?);
        let asked = match &step.kind {
            Kind::Errand(errand) => self.errand(bench, (step, errand), place, left),
            Kind::Run { metric: Some(_), .. } => self.samples(bench, step, place),
            _ => {
                let context = Context { dir: Some(place.guest), budget: left, pace: bench.pace() };
                step.evaluate(bench.target(), context)
            }
        };
        self.word(step, begun, asked)
    }

    /// What a step came to. When it broke because the machine is lost, that is the machine's word.
    fn word(
        &mut self,
        step: &Step,
        begun: Instant,
        asked: Result<Outcome, TargetError>,
    ) -> Result<Outcome, TargetError> {
        asked.or_else(|error| {
            let Some(how) = self.benches.of(step)?.lost() else { return Err(error) };
            let reason = self.loses(step, &how);
            Ok(Outcome { ms: millis(begun.elapsed()), ..failed(reason) })
        })
    }

    /// A step lost its machine: what is still to be done there is not done. The sentence for it.
    fn loses(&mut self, step: &Step, how: &str) -> String {
        let reason = match &step.machine {
            None => {
                self.obstacle = Some(Obstacle::Gone(step.name.clone()));
                format!("the machine was lost: {how}")
            }
            Some(name) => {
                self.lost.insert(name.clone());
                format!("the machine {name} was lost: {how}")
            }
        };
        step.redacted(reason)
    }

    /// Does a step with a metric as often as it says, by turns with the other clone. Waiting for that one is no part of the budget.
    fn samples(&mut self, bench: &dyn Bench, step: &Step, place: Place<'_>) -> Result<Outcome, TargetError> {
        let (times, once) = (step.repeat.times(), Step { repeat: Repeat::default(), ..step.clone() });
        let mut whole: Option<Outcome> = None;
        for time in 1..=times {
            let moment = Moment { step: self.begun_steps, sample: time };
            self.budget += self.benches.subject.wait_turn(moment, self.budget);
            let left = self.budget.saturating_sub(self.begun.elapsed());
            let context = Context { dir: Some(place.guest), budget: left, pace: bench.pace() };
            let mut outcome = once.evaluate(bench.target(), context)?;
            let passed = outcome.status == Status::Pass;
            if !passed && times > 1 {
                outcome.reason = format!("time {time} of {times}: {}", outcome.reason);
            }
            whole = Some(match &whole {
                Some(before) => after(before, outcome),
                None => outcome,
            });
            if !passed {
                break;
            }
        }
        self.benches.subject.leave_turn(Moment { step: self.begun_steps + 1, sample: 0 });
        Ok(whole.unwrap_or_else(|| failed("it was not done".into())))
    }

    fn errand(
        &mut self,
        bench: &dyn Bench,
        (step, errand): (&Step, &Errand),
        place: Place<'_>,
        left: Duration,
    ) -> Result<Outcome, TargetError> {
        let start = Instant::now();
        let said = match errand {
            Errand::Reboot => {
                let ended = bench.reboot(step.timeout.map_or(left, |span| span.0.min(left)))?;
                if let Err(how) = &ended {
                    self.loses(step, how);
                }
                ended
            }
            Errand::CopyIn(copy) => bench.copy_in(place.host, copy, step.time(left, bench.pace()))?,
            Errand::CopyOut(copy) => bench.copy_out(step, copy, step.time(left, bench.pace()))?,
            Errand::Screenshot => bench.screenshot(step)?,
            Errand::Sleep(sleep) => {
                // Who wrote it says why nothing can be waited for.
                std::thread::sleep(sleep.time.0.min(left));
                Ok(sleep.why.clone())
            }
            // Those that go on until it have been waited for.
            Errand::Barrier => Ok(String::new()),
        };
        let outcome = match said {
            Ok(output) => Outcome { status: Status::Pass, output: step.redacted(output), ..failed(String::new()) },
            Err(reason) => failed(step.redacted(reason)),
        };
        Ok(Outcome { ms: millis(start.elapsed()), ..outcome })
    }
}

fn failed(reason: String) -> Outcome {
    Outcome { status: Status::Fail, exit: None, ms: 0, output: String::new(), reason, samples: Vec::new() }
}

/// The outcome of one of several rounds, which says of which when it is bad.
fn in_round(outcome: Outcome, round: u32, times: u32) -> Outcome {
    match outcome.status {
        Status::Fail if times > 1 => {
            Outcome { reason: format!("round {round} of {times}: {}", outcome.reason), ..outcome }
        }
        _ => outcome,
    }
}

/// What a step comes to after another time: the last that was seen, and time and samples of all.
fn after(before: &Outcome, new: Outcome) -> Outcome {
    let samples = before.samples.iter().chain(&new.samples).copied().collect();
    Outcome { ms: before.ms + new.ms, samples, ..new }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
