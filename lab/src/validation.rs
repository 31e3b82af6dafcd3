//! A validation on one baseline: control and patched clone, phase by phase, to a judgement.
//!
//! ```text
//! clone both → prepare → apply → scenarios on both → [reboot both → scenarios]
//!            → state of both clones → [workload on both] → rollback → compare with the baseline → scenarios → judgement
//! ```
//!
//! The control gets the same waits and reboots, and its agent stays idle. Nothing here knows how a patch is applied
//! ([`Applier`]) or what a word means ([`crate::verdict`]): this is the order of things, and where they break.

mod journal;
mod lost;
mod round;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    time::{Duration, Instant},
};

use self::{journal::journal, lost::Lost};
use crate::{
    applier::{Applier, ApplierError, NextBoot, Role},
    baseline::Baseline,
    diff::{Diff, Group, diff, diff_beside, equal_but_for_workload, equal_to_baseline, groups},
    kept::{self, Keep, SavedClone},
    machine::{CloneSpec, Lab, LabError, Machine, with_source},
    manifest::{self, Manifest},
    report::{BaselineReport, CloneTimes, Over, RollbackReport, ScenarioReport},
    runs::Point,
    scenario::{RebootError, Scenario, Standing, Subject},
    verdict::{self, Applied, Facts, Judgement, LAB_ERROR_REQUEUES, Lives, Phase, Policy, Verdict, has_evidence},
};

/// Whether a machine is as before, or what is not.
type Compared = Result<(), Box<Diff>>;

/// Time for a reboot with kvm; scaled by the accelerator's factor.
const REBOOT_TIMEOUT: Duration = Duration::from_secs(60);

/// How often a rolled-back clone is looked at while all that differs is what runs at the moment. A look takes seconds.
const COMPARISONS: usize = 4;

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
}

/// Both clones.
struct Clones {
    control: Machine,
    patched: Machine,
}

impl Validation<'_> {
    /// Runs it; a lab that breaks is tried again a bounded number of times, and never blames the patch. A patched clone that is lost, and a
    /// control that is not, are tried once more too: a regression is believed when it shows twice.
    pub fn run(&self) -> Validated {
        let begun = Instant::now();
        let (mut broken, mut lost) = (0, None);
        loop {
            let (mut report, clones, now_lost) = self.once(begun, lost.as_ref());
            if let Some(clones) = clones.as_ref().filter(|_| report.verdict != Judgement::Passed) {
                self.look_at(clones);
            }
            report.guest_ms = millis(self.lab.guest_time().total());
            let why = match now_lost {
                Some(now) if lost.is_none() => {
                    let Lost { phase, how } = lost.insert(now);
                    format!("the patched clone is lost {phase} ({how}), the control is not")
                }
                _ if report.verdict == Judgement::LabError && broken < LAB_ERROR_REQUEUES => {
                    broken += 1;
                    format!("the lab broke ({})", report.reason)
                }
                _ => {
                    report.total_ms = millis(begun.elapsed());
                    let saved = clones.map_or_else(Vec::new, |clones| self.save(clones, report.verdict));
                    return Validated { report, saved };
                }
            };
            drop(clones);
            (self.observer)(Event::Note(&format!("{why}: once more, on fresh clones")));
        }
    }

    /// Takes pictures of both clones' screens, when they have any, for who asks why a validation did not pass. One that cannot be taken is no
    /// news about the patch.
    fn look_at(&self, clones: &Clones) {
        let out = self.lab.out();
        for role in [Role::Control, Role::Patched] {
            let machine = clones.of(role);
            if machine.hardware().screen.is_none() {
                continue;
            }
            let made = std::fs::create_dir_all(&out).map_err(|error| error.to_string());
            let to = out.join(format!("end_{}_screen.png", role.name()));
            let taken = made.and_then(|()| machine.screenshot(&to).map_err(|error| error.to_string()));
            if let Err(reason) = taken {
                (self.observer)(Event::Note(&format!("no picture of the {} clone's screen: {reason}", role.name())));
            }
        }
    }

    /// Saves the clones when they are to be kept. A failure is told and changes nothing else: the verdict stands.
    fn save(&self, clones: Clones, verdict: Judgement) -> Vec<SavedClone> {
        let (keep, folder) = self.keep;
        if !keep.wants(verdict) {
            return Vec::new();
        }
        self.phase("save the clones");
        let clones = vec![(Role::Control, clones.control), (Role::Patched, clones.patched)];
        kept::save(self.lab, clones, self.applier.tools(), folder).unwrap_or_else(|error| {
            let reason = with_source(&error);
            (self.observer)(Event::Note(&format!("the clones are not kept: {reason}")));
            Vec::new()
        })
    }

    /// Once on a pair of clones; `before` says how the patched one was lost the last time.
    fn once(&self, begun: Instant, before: Option<&Lost>) -> (BaselineReport, Option<Clones>, Option<Lost>) {
        let mut report = BaselineReport::begun(self.baseline.full_name(), self.baseline.digest);
        let (mut clones, mut lost, mut reached) = (None, None, None);
        let applied = match self.phases(&mut report, &mut clones) {
            Ok(applied) => applied,
            Err(Broke::Lost(found)) => {
                report.journal = clones.as_ref().map_or_else(Vec::new, |clones| self.last_words_of_lost(clones));
                report.rollback = match found.phase {
                    Phase::RolledBack => RollbackReport::failed(format!("the machine was lost: {}", found.how)),
                    _ => RollbackReport::skipped("the patch was rejected before"),
                };
                report.scenarios.push(verdict::lost(found.phase, &found.how, Lives::Never));
                lost = Some(found);
                Applied::Yes
            }
            Err(broke @ Broke::Reached(_)) => {
                report.rollback = RollbackReport::skipped("it was to stop before");
                reached = Some(broke.to_string());
                Applied::Yes
            }
            Err(broke) => Applied::LabError(broke.to_string()),
        };
        if let (Some(before), None, Applied::Yes | Applied::Inapplicable(_)) = (before, &lost, &applied) {
            report.scenarios.push(verdict::lost(before.phase, &before.how, Lives::Sometimes));
        }
        let evidence: Vec<String> = self
            .scenarios
            .iter()
            .filter(|scenario| self.counts(&scenario.name))
            .filter(|scenario| {
                let mut runs = report.scenarios.iter().filter(|ran| ran.name == scenario.name);
                runs.any(|ran| ran.phase != Phase::RolledBack && has_evidence(scenario, self.changed, ran))
            })
            .map(|scenario| scenario.name.clone())
            .collect();
        let counted: Vec<ScenarioReport> =
            report.scenarios.iter().filter(|ran| self.counts(&ran.name)).cloned().collect();
        let judged = verdict::judge(&Facts {
            applied: &applied,
            scenarios: &counted,
            evidence: &evidence,
            rollback: &report.rollback,
            policy: Policy::default(),
        });
        report.verdict = judged.judgement;
        report.reason = judged.reason + &self.set_aside(&report.scenarios);
        if let Some(reached) = reached {
            (report.verdict, report.reason) = (Judgement::Missing, reached);
        }
        report.total_ms = millis(begun.elapsed());
        (report, clones, lost)
    }

    /// Everything up to the judgement. What is known so far is in `report`, and what lives in `clones`, also when the
    /// lab breaks on the way.
    fn phases(&self, report: &mut BaselineReport, clones: &mut Option<Clones>) -> Result<Applied, Broke> {
        let manifest = self.manifest()?;
        let scenarios = self.runnable(self.applicable(&manifest), report);
        let clones = clones.insert(self.clones(report)?);
        self.phase("apply");
        // The control is idle meanwhile, so this costs no time of its own.
        let (applied, idle) = std::thread::scope(|scope| {
            let idle = scope.spawn(|| self.state(clones, Role::Control, &manifest));
            (self.of_guest(|| self.applier.apply(&clones.patched)), joined(idle))
        });
        let complaint = match applied {
            Ok(applied) => {
                report.transaction = applied.transaction;
                report.apply_ms = millis(applied.duration);
                report.reboot_needed = applied.reboot_needed;
                applied.complaint
            }
            Err(ApplierError::Inapplicable { reason }) => return Ok(Applied::Inapplicable(reason)),
            Err(error @ ApplierError::Failed { .. }) => {
                report.journal = self.last_words(clones);
                return Ok(Applied::Inapplicable(error.to_string()));
            }
            Err(ApplierError::Lost { how, .. }) => {
                idle.map_err(lab("state of the control"))?;
                return Err(Broke::Lost(Lost { phase: Phase::Applying, how }));
            }
            Err(error) => return Err(self.of_patched(clones, Phase::Applying, other("apply", error))),
        };
        let mut control = idle.map_err(lab("state of the control"))?;
        self.keeps_time(clones, Phase::Applied, report)?;
        if self.is_rejected(clones, report) {
            return Ok(Applied::Yes);
        }
        let reboots = self.reboot == Reboot::Always || report.reboot_needed;
        if !reboots {
            // Before the scenarios: what they leave behind is not the patch's doing.
            self.phase("state of the patched clone");
            let broke = |error| self.of_patched(clones, Phase::Applied, lab("state of the patched clone")(error));
            let now = self.state(clones, Role::Patched, &manifest).map_err(broke)?;
            report.diff = Some(diff_beside(&manifest, &now, &control));
        }
        self.round(&scenarios, clones, Phase::Applied, report)?;
        if reboots {
            self.reboot(clones, report)?;
            if self.is_rejected(clones, report) {
                return Ok(Applied::Yes);
            }
            // A reboot changes a machine that was left alone, too; and a new kernel shows only now.
            self.phase("state of both clones");
            let now;
            let broke = |error| self.of_patched(clones, Phase::Rebooted, lab("state of both clones")(error));
            (control, now) = self.states(clones, &manifest).map_err(broke)?;
            report.diff = Some(diff_beside(&manifest, &now, &control));
            self.round(&scenarios, clones, Phase::Rebooted, report)?;
        }
        if self.is_rejected(clones, report) {
            return Ok(Applied::Yes);
        }
        // No scenario saw it, but a host's agent would fail for it.
        if let Some(complaint) = complaint {
            report.journal = self.journal(clones);
            return Ok(Applied::Inapplicable(format!("the checks that hosts repeat fail: {complaint}")));
        }
        let over = self.write(&scenarios, clones, report)?;
        if !self.is_rejected(clones, report) {
            self.roll_back(&scenarios, clones, (&manifest, &control, over), report)?;
        }
        Ok(Applied::Yes)
    }

    /// Whether the patch is rejected whatever the way back does. What broke is still there to be read.
    fn is_rejected(&self, clones: &Clones, report: &mut BaselineReport) -> bool {
        let bad = |verdict| matches!(verdict, Verdict::Regression | Verdict::Flaky);
        let rejected = report.scenarios.iter().any(|ran| self.counts(&ran.name) && bad(ran.verdict));
        if rejected {
            report.journal = self.last_words(clones);
            report.rollback = RollbackReport::skipped("the patch was rejected before");
        }
        rejected
    }

    /// Runs the workload that scenarios have for before the rollback, on both clones.
    fn write(&self, scenarios: &[&Scenario], clones: &Clones, report: &mut BaselineReport) -> Result<Over, Broke> {
        let workloads: Vec<Scenario> = scenarios.iter().filter_map(|scenario| scenario.workload()).collect();
        if workloads.is_empty() {
            return Ok(Over::Unchanged);
        }
        self.round(&workloads.iter().collect::<Vec<_>>(), clones, Phase::AfterWrites, report)?;
        let wrote = |ran: &ScenarioReport| ran.phase == Phase::AfterWrites && ran.verdict == Verdict::Pass;
        Ok(if report.scenarios.iter().any(wrote) { Over::Written } else { Over::Unchanged })
    }

    fn roll_back(
        &self,
        scenarios: &[&Scenario],
        clones: &Clones,
        (manifest, control, over): (&Manifest, &Manifest, Over),
        report: &mut BaselineReport,
    ) -> Result<(), Broke> {
        self.keeps_time(clones, Phase::RolledBack, report)?;
        if self.is_rejected(clones, report) {
            return Ok(());
        }
        self.phase("rollback");
        match self.of_guest(|| self.applier.rollback(&clones.patched)) {
            Ok(applied) => report.rollback_ms = millis(applied.duration),
            Err(error @ (ApplierError::Failed { .. } | ApplierError::Inapplicable { .. })) => {
                report.journal = self.last_words(clones);
                report.rollback = RollbackReport::failed(error.to_string());
                return Ok(());
            }
            Err(ApplierError::Lost { how, .. }) => return Err(Broke::Lost(Lost { phase: Phase::RolledBack, how })),
            Err(error) => return Err(self.of_patched(clones, Phase::RolledBack, other("rollback", error))),
        }
        self.phase("compare with the baseline");
        let broke = |error| self.of_patched(clones, Phase::RolledBack, lab("compare with the baseline")(error));
        let (now, compared) = self.compare(clones, manifest, over).map_err(broke)?;
        report.rollback = match compared {
            // Beside the control as it was before: what is told here decides nothing, and is not worth another look.
            Ok(()) => RollbackReport::proven(over).leaving(diff_beside(manifest, &now, control).of_the_running()),
            Err(left) => {
                let told: Vec<String> = groups(&left).iter().map(Group::line).collect();
                RollbackReport::failed(format!("the machine is not as before: {}", told.join("; "))).leaving(*left)
            }
        };
        self.round(scenarios, clones, Phase::RolledBack, report)
    }

    /// Whether the patched clone is as its baseline was, or as the control has become. What runs at the moment is looked at again, since
    /// the two clones do not do the same at the same moment.
    fn compare(&self, clones: &Clones, baseline: &Manifest, over: Over) -> Result<(Manifest, Compared), LabError> {
        let mut looks = 0;
        loop {
            // Both at once: where something differs, whether time alone did that is what the control tells.
            let (control, now) = self.states(clones, baseline)?;
            if diff(baseline, &now).is_as_before() {
                return Ok((now, Ok(())));
            }
            looks += 1;
            let equal = match over {
                Over::Unchanged => equal_to_baseline,
                Over::Written => equal_but_for_workload,
            };
            match equal(baseline, &now, &control) {
                Err(left) if left.is_of_the_moment() && looks < COMPARISONS => {}
                result => return Ok((now, result)),
            }
        }
    }

    /// What the control and the patched clone are made of now; what has not changed since the freeze is not read again.
    fn states(&self, clones: &Clones, baseline: &Manifest) -> Result<(Manifest, Manifest), LabError> {
        let (control, patched) = both(|role| self.state(clones, role, baseline));
        Ok((control?, patched?))
    }

    fn state(&self, clones: &Clones, role: Role, baseline: &Manifest) -> Result<Manifest, LabError> {
        manifest::collect_since(clones.of(role), baseline, self.baseline.record.frozen.at)
    }

    /// What the patched clone's journal says since its baseline was frozen.
    fn journal(&self, clones: &Clones) -> Vec<String> {
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

    fn clones(&self, report: &mut BaselineReport) -> Result<Clones, Broke> {
        self.phase("clone");
        let (control, patched) = both(|role| self.make(role));
        let clones = Clones { control: control?, patched: patched? };
        let made = clones.patched.report();
        report.clone = Some(CloneTimes {
            rung: made.rung.name().to_owned(),
            fallback: made.fallback.clone(),
            ready_ms: made.ready_ms,
            handshake_ms: made.handshake_ms,
        });
        Ok(clones)
    }

    fn make(&self, role: Role) -> Result<Machine, Broke> {
        let spec = CloneSpec {
            name: role.name().to_owned(),
            tools: self.applier.tools().map(Into::into),
            forwards: self.applier.forwards(role),
        };
        let machine = self.lab.clone_baseline(self.baseline, &spec).map_err(lab("clone"))?;
        if let Some(reason) = &machine.report().fallback {
            (self.observer)(Event::Note(&format!("{} was booted instead of cloned: {reason}", role.name())));
        }
        for line in self.of_guest(|| self.applier.prepare(role, &machine)).map_err(|error| other("prepare", error))? {
            (self.observer)(Event::Evidence(&format!("{}: {line}", role.name())));
        }
        Ok(machine)
    }

    fn reboot_timeout(&self) -> Duration {
        REBOOT_TIMEOUT * self.baseline.record.hardware.accelerator.factor()
    }

    /// Reboots both clones. A patched one that does not come back, while the control does, stands in the report.
    fn reboot(&self, clones: &Clones, report: &mut BaselineReport) -> Result<(), Broke> {
        self.phase("reboot");
        let timeout = self.reboot_timeout();
        let reboot = |role| self.of_guest(|| reboot_and_resume(self.applier, role, clones.of(role), timeout));
        let broke = |error: RebootError| match error {
            RebootError::Lab(source) => lab("reboot")(source),
            RebootError::Applier(error) => other("reboot", error),
        };
        let (control, patched) = both(reboot);
        let took = control.map_err(broke)?;
        let Err(error) = patched else { return Ok(()) };
        let is_lost = match &error {
            RebootError::Lab(error) => error.is_of_the_machine() || matches!(clones.patched.lost(), Ok(Some(_))),
            // What applies started again on the control.
            RebootError::Applier(_) => true,
        };
        if !is_lost {
            return Err(broke(error));
        }
        let error = match self.fallen_back(&clones.patched, error) {
            Ok(reason) => {
                report.scenarios.push(verdict::of_the_machine(Phase::Rebooted, "boots", &reason, Verdict::Regression));
                return Ok(());
            }
            Err(error) => error,
        };
        let back = self.power_cycle(&clones.patched)?;
        report.scenarios.push(verdict::lost_in_reboot(millis(took), &error.to_string(), back));
        Ok(())
    }

    /// What the patched clone's own agent says of a reboot that went wrong; the error again when it does not. A clone that tried a kernel
    /// once is given the time to come back from it by itself, as a host would.
    fn fallen_back(&self, patched: &Machine, error: RebootError) -> Result<String, RebootError> {
        let on_trial = self.applier.next_boot(patched) == NextBoot::KernelOnTrial;
        let error = match error {
            RebootError::Lab(error) if on_trial && error.is_of_the_machine() => {
                (self.observer)(Event::Note(&format!(
                    "{error}: waits for the kernel of before, which should come by itself"
                )));
                let returned = || -> Result<(), RebootError> {
                    patched.await_return(self.reboot_timeout())?;
                    Ok(self.applier.resume(Role::Patched, patched)?)
                };
                // What it came back from stands, also when nothing is said of it.
                self.of_guest(returned).err().unwrap_or(RebootError::Lab(error))
            }
            error => error,
        };
        match error {
            RebootError::Applier(ApplierError::Failed { reason, .. }) => Ok(reason),
            error => Err(error),
        }
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

impl Clones {
    fn of(&self, role: Role) -> &Machine {
        match role {
            Role::Control => &self.control,
            Role::Patched => &self.patched,
        }
    }
}

/// Reboots a clone and starts again what applies: the one way in which a clone reboots. How long its reboot took.
fn reboot_and_resume(
    applier: &dyn Applier,
    role: Role,
    machine: &Machine,
    timeout: Duration,
) -> Result<Duration, RebootError> {
    let took = machine.reboot(timeout)?;
    applier.resume(role, machine)?;
    Ok(took)
}

/// Does the same on both clones at the same time.
fn both<T: Send>(work: impl Fn(Role) -> T + Sync) -> (T, T) {
    std::thread::scope(|scope| {
        let control = scope.spawn(|| work(Role::Control));
        let patched = work(Role::Patched);
        (joined(control), patched)
    })
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
