//! A validation on one baseline: control and patched clone, phase by phase, to a judgement.
//!
//! ```text
//! clone both → prepare → apply → scenarios on both → [reboot both → scenarios]
//!            → state of both clones → [workload on both] → rollback → compare with the baseline → scenarios → judgement
//! ```
//!
//! The control gets the same waits and reboots, and its agent stays idle. Nothing here knows how a patch is applied
//! ([`Applier`]) or what a word means ([`crate::verdict`]): this is the order of things, and where they break.

mod again;
mod clones;
mod journal;
mod lost;
mod pass;
mod reboot;
mod round;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    sync::PoisonError,
    time::{Duration, Instant},
};

use self::{
    again::{Before, Ending},
    clones::{Clones, Control},
    journal::journal,
    lost::Lost,
    pass::Pass,
};
use crate::{
    applier::{Applier, Role},
    baseline::Baseline,
    control::ControlRecord,
    kept::{self, Keep, SavedClone},
    machine::{Lab, LabError, with_source},
    manifest::Manifest,
    report::{BaselineReport, ScenarioReport},
    runs::Point,
    scenario::{Scenario, Standing, Subject},
    verdict::{Judgement, Policy, Verdict},
};

/// What is validated, on what.
pub struct Validation<'a> {
    /// The machines.
    pub lab: &'a Lab,
    /// The baseline.
    pub baseline: &'a Baseline,
    /// Every known scenario; those that apply are run.
    pub scenarios: &'a [Scenario],
    /// The baselines of the machines that scenarios ask for beside the one under test, by the names that they give them.
    pub others: &'a BTreeMap<String, Baseline>,
    /// Names of the packages that the patch changes.
    pub changed: &'a BTreeSet<String>,
    /// Puts the patch on.
    pub applier: &'a dyn Applier,
    /// When clones reboot.
    pub reboot: Reboot,
    /// When clones are kept, and where they are saved to.
    pub keep: (Keep, &'a Path),
    /// What the patched clone is compared with.
    pub against: Against<'a>,
    /// What policy decides of what was found.
    pub policy: Policy,
    /// Where it is to stop, when it is not to go through to its end.
    pub until: Option<&'a Point>,
    /// Today, in UTC: the day on which quarantines hold or have expired.
    pub today: jiff::civil::Date,
    /// Told what happens, from several threads.
    pub observer: &'a (dyn Fn(Event<'_>) + Sync),
}

/// When clones reboot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reboot {
    /// When the patched machine asks for it.
    WhenAsked,
    /// Always.
    Always,
}

/// What a patched clone is compared with.
#[derive(Debug, Clone, Copy)]
pub enum Against<'a> {
    /// A control, made and treated as it is at the same time.
    Beside,
    /// What an earlier control was found to be under the same conditions. Whatever is not well then is for a validation with a control beside
    /// the patched clone to judge.
    Remembered(&'a ControlRecord),
}

/// Something happened.
#[derive(Debug, Clone, Copy)]
pub enum Event<'a> {
    /// A phase begins.
    Phase(&'a str),
    /// A step ended on a clone.
    Step {
        /// The scenario.
        scenario: &'a str,
        /// The step.
        step: &'a str,
        /// The clone.
        role: Role,
        /// How.
        status: patchlab_check::Status,
    },
    /// Something people should know.
    Note(&'a str),
    /// What shows that a clone is nobody's twin.
    Evidence(&'a str),
}

/// A validation cannot go on.
#[derive(Debug, thiserror::Error)]
enum Broke {
    #[error("{phase}: {source}")]
    Lab { phase: &'static str, source: LabError },
    #[error("{phase}: {reason}")]
    Other { phase: &'static str, reason: String },
    /// Not the lab did: the patched clone, and not the control.
    #[error("the patched clone was lost: {}", _0.how)]
    Lost(Lost),
    /// Nothing did: it is where it was to stop.
    #[error("stopped {0}, as asked")]
    Reached(Point),
    /// Nothing did: a scenario in quarantine lost the patched clone, and not the control.
    #[error("{scenario}, which is in quarantine, lost the patched clone: {how}")]
    Unruly { scenario: String, how: String },
    /// What is remembered of the control does not do: this is not well, and nobody stands beside it.
    #[error("{0}")]
    Disagrees(String),
}

fn lab(phase: &'static str) -> impl FnOnce(LabError) -> Broke {
    move |source| Broke::Lab { phase, source }
}

fn other(phase: &'static str, reason: impl ToString) -> Broke {
    Broke::Other { phase, reason: reason.to_string() }
}

/// What a validation leaves.
#[derive(Debug)]
pub struct Validated {
    /// What was found.
    pub report: BaselineReport,
    /// The clones that were saved to be kept; none when they were not to be, or could not be.
    pub saved: Vec<SavedClone>,
    /// What the control was found to be, where it stood beside a patched clone that passed, and everything was well with it.
    pub control: Option<ControlRecord>,
    /// Why this decides nothing: what is remembered of the control does not do. To be validated with a control beside the patched clone.
    pub disagreement: Option<String>,
}

impl Validation<'_> {
    /// Runs it; a lab that breaks is tried again a bounded number of times, and never blames the patch. What cannot be asked a second time on
    /// the same clones is tried once more on others: a regression is believed when it shows twice.
    pub fn run(&self) -> Validated {
        let begun = Instant::now();
        let mut before = Before::default();
        loop {
            let Pass { mut report, clones, ending } = self.pass(begun, &before);
            if let Some(clones) = clones.as_ref().filter(|_| report.verdict != Judgement::Passed) {
                self.look_at(clones);
            }
            report.guest_ms = millis(self.lab.guest_time().total());
            report.total_ms = millis(begun.elapsed());
            self.shorten(&mut report);
            if let Ending::Disagreed(reason) = ending {
                return Validated { report, saved: Vec::new(), control: None, disagreement: Some(reason) };
            }
            let Some(why) = before.again(ending, &report) else {
                let control = clones.as_ref().and_then(|clones| self.remembered(clones, &report));
                let saved = clones.map_or_else(Vec::new, |clones| self.save(clones, report.verdict));
                return Validated { report, saved, control, disagreement: None };
            };
            drop(clones);
            (self.observer)(Event::Note(&format!("{why}: once more, on fresh clones")));
        }
    }

    /// Writes diffs that are too long for a report to files that stay in the run's record.
    fn shorten(&self, report: &mut BaselineReport) {
        let applied = report.diff.as_mut().map(|diff| (diff, "diff-patched.jsonl"));
        let rolled_back = report.rollback.diff.as_deref_mut().map(|diff| (diff, "diff-rolled-back.jsonl"));
        for (diff, name) in applied.into_iter().chain(rolled_back) {
            let Some(text) = diff.shorten(name) else { continue };
            let out = self.lab.out();
            if let Err(error) = fs::create_dir_all(&out).and_then(|()| fs::write(out.join(name), text)) {
                diff.files_in = None;
                (self.observer)(Event::Note(&format!("write {name}: {error}")));
            }
        }
    }

    /// What may be remembered of the control: all of it, where everything was well.
    fn remembered(&self, clones: &Clones<'_>, report: &BaselineReport) -> Option<ControlRecord> {
        let Control::Beside(_, notes) = &clones.control else { return None };
        let is_well = report.verdict == Judgement::Passed
            && self.until.is_none()
            && report.scenarios.iter().all(|ran| ran.verdict == Verdict::Pass);
        let notes = || notes.lock().unwrap_or_else(PoisonError::into_inner).clone();
        is_well.then(notes).filter(ControlRecord::is_well)
    }

    /// Takes pictures of both clones' screens, when they have any, for who asks why a validation did not pass. One that cannot be taken is no
    /// news about the patch.
    fn look_at(&self, clones: &Clones<'_>) {
        let out = self.lab.out();
        for (role, machine) in clones.machines() {
            if machine.hardware().screen.is_none() {
                continue;
            }
            let made = fs::create_dir_all(&out).map_err(|error| error.to_string());
            let to = out.join(format!("end_{}_screen.png", role.name()));
            let taken = made.and_then(|()| machine.screenshot(&to).map_err(|error| error.to_string()));
            if let Err(reason) = taken {
                (self.observer)(Event::Note(&format!("no picture of the {} clone's screen: {reason}", role.name())));
            }
        }
    }

    /// Saves the clones when they are to be kept. A failure is told and changes nothing else: the verdict stands.
    fn save(&self, clones: Clones<'_>, verdict: Judgement) -> Vec<SavedClone> {
        let (keep, folder) = self.keep;
        let (true, Control::Beside(control, _)) = (keep.wants(verdict), clones.control) else { return Vec::new() };
        self.phase("save the clones");
        let clones = vec![(Role::Control, *control), (Role::Patched, clones.patched)];
        kept::save(self.lab, clones, self.applier.tools(), folder).unwrap_or_else(|error| {
            let reason = with_source(&error);
            (self.observer)(Event::Note(&format!("the clones are not kept: {reason}")));
            Vec::new()
        })
    }

    /// What the patched clone's journal says since its baseline was frozen.
    fn journal(&self, clones: &Clones<'_>) -> Vec<String> {
        let lines = journal(&clones.patched, self.baseline.record.frozen.at);
        let redacted = |line| self.scenarios.iter().fold(line, |line, scenario| scenario.redacted(line));
        lines.into_iter().map(redacted).collect()
    }

    /// What the applier does is the guest's time: it waits for the agent inside.
    fn of_guest<T>(&self, work: impl FnOnce() -> T) -> T {
        let _awaiting = self.lab.guest_time().awaiting();
        work()
    }

    fn phase(&self, name: &str) {
        (self.observer)(Event::Phase(name));
    }

    fn manifest(&self) -> Result<Manifest, Broke> {
        self.baseline.manifest().map_err(|error| other("read the baseline's manifest", error))
    }

    fn applicable(&self, manifest: &Manifest) -> Vec<&Scenario> {
        let subject = Subject::of(self.baseline, manifest);
        self.scenarios.iter().filter(|scenario| scenario.applies_to(&subject)).collect()
    }

    /// What was found and does not count, for the end of a reason: a quarantine is never silent.
    fn set_aside(&self, ran: &[ScenarioReport]) -> String {
        use Verdict::{Fixed, Pass};
        let aside = ran.iter().filter(|ran| !self.counts(&ran.name) && !matches!(ran.verdict, Pass | Fixed));
        let aside: Vec<String> = aside.map(|ran| format!("{} {} {}", ran.verdict, ran.name, ran.phase)).collect();
        if aside.is_empty() { String::new() } else { format!("; in quarantine, not counted: {}", aside.join(", ")) }
    }

    /// Whether what a scenario finds decides anything: it does not while it is in quarantine.
    fn counts(&self, name: &str) -> bool {
        let quarantine = self.scenarios.iter().find(|scenario| scenario.name == name);
        let quarantine = quarantine.and_then(|scenario| scenario.quarantine.as_ref());
        quarantine.is_none_or(|quarantine| quarantine.standing(self.today) == Standing::Expired)
    }
}

/// What a thread gave; its panic goes on in this one.
fn joined<T>(thread: std::thread::ScopedJoinHandle<'_, T>) -> T {
    match thread.join() {
        Ok(given) => given,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
