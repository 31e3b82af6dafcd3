//! One pass over a pair of clones, phase by phase, and the judgement on what it found.

use std::{collections::BTreeSet, time::Instant};

use super::{
    Against, Broke, Clones, Reboot, Validation,
    again::{Before, Ending, by_traces},
    joined, lab,
    lost::Lost,
    millis, other,
};
use crate::{
    applier::ApplierError,
    control::{Course, Stage},
    diff::{Diff, Group, diff_beside, equal_but_for_workload, equal_to_baseline, groups},
    machine::{LabError, Machine},
    manifest::{self, Manifest},
    report::{BaselineReport, Over, Remembered, RollbackReport, ScenarioReport, SkippedScenario, Unapplied},
    scenario::Scenario,
    verdict::{self, Applied, Facts, Judgement, Lives, Phase, Verdict, has_counter_evidence, has_evidence},
};

/// Whether a machine is as before, or what is not.
type Compared = Result<(), Box<Diff>>;

/// After the patch.
const APPLIED: Stage = Stage { phase: Phase::Applied, course: Course::Straight };

/// After the reboot that follows a patch.
pub(super) const REBOOTED: Stage = Stage { phase: Phase::Rebooted, course: Course::Rebooted };

/// How often a rolled-back clone is looked at while all that differs is what runs at the moment. A look takes seconds.
const COMPARISONS: usize = 4;

/// What one pass over a pair of clones leaves.
pub(super) struct Pass<'a> {
    pub(super) report: BaselineReport,
    pub(super) clones: Option<Clones<'a>>,
    pub(super) ending: Ending,
}

impl Validation<'_> {
    /// Once over a pair of clones, after what was found on others before.
    pub(super) fn pass(&self, begun: Instant, before: &Before) -> Pass<'_> {
        let mut report = BaselineReport::begun(self.baseline.full_name(), self.baseline.digest);
        report.boots = self.baseline.record.coverage.as_ref().map(|coverage| coverage.boots());
        let (mut clones, mut ending, mut reached) = (None, Ending::Came, None);
        let applied = match self.phases(&mut report, &mut clones, before) {
            Ok(applied) => applied,
            Err(Broke::Lost(found)) => {
                report.journal = clones.as_ref().map_or_else(Vec::new, |clones| self.last_words_of_lost(clones));
                report.rollback = match found.phase {
                    Phase::RolledBack => RollbackReport::failed(format!("the machine was lost: {}", found.how)),
                    _ => RollbackReport::skipped("the patch was rejected before"),
                };
                report.scenarios.push(verdict::lost(found.phase, &found.how, Lives::Never));
                ending = Ending::Lost(found);
                Applied::Yes
            }
            Err(broke @ Broke::Reached(_)) => {
                report.rollback = RollbackReport::skipped("it was to stop before");
                reached = Some(broke.to_string());
                Applied::Yes
            }
            Err(Broke::Disagrees(what)) => {
                report.rollback = RollbackReport::skipped("the control is to be asked again before");
                ending = Ending::Disagreed(what);
                Applied::Yes
            }
            Err(Broke::Unruly { scenario, how }) => {
                report.rollback = RollbackReport::skipped("the patched clone was lost before");
                ending = Ending::Unruly(scenario, how);
                Applied::Yes
            }
            Err(broke) => Applied::LabError(broke.to_string()),
        };
        if ending == Ending::Came && !matches!(applied, Applied::LabError(_)) {
            if let Some(lost) = &before.lost {
                report.scenarios.push(verdict::lost(lost.phase, &lost.how, Lives::Sometimes));
            }
            let flaky = before.flaky(&report.scenarios);
            report.scenarios.extend(flaky);
        }
        let those = |tells: fn(&Scenario, &BTreeSet<String>, &ScenarioReport) -> bool| -> Vec<String> {
            let counted = self.scenarios.iter().filter(|scenario| self.counts(&scenario.name));
            let telling = counted.filter(|scenario| {
                let mut runs = report.scenarios.iter().filter(|ran| ran.name == scenario.name);
                runs.any(|ran| ran.phase != Phase::RolledBack && tells(scenario, self.changed, ran))
            });
            telling.map(|scenario| scenario.name.clone()).collect()
        };
        let (evidence, counter_evidence) = (those(has_evidence), those(has_counter_evidence));
        let counted: Vec<ScenarioReport> =
            report.scenarios.iter().filter(|ran| self.counts(&ran.name)).cloned().collect();
        let facts = Facts {
            applied: &applied,
            scenarios: &counted,
            evidence: &evidence,
            counter_evidence: &counter_evidence,
            rollback: &report.rollback,
            policy: self.policy,
        };
        let (judged, objections) = (verdict::judge(&facts), verdict::objections(&facts));
        report.objections = objections;
        report.verdict = judged.judgement;
        report.reason = judged.reason + &self.set_aside(&report.scenarios);
        if let Some(reached) = reached {
            (report.verdict, report.reason) = (Judgement::Missing, reached);
        }
        if let (Ending::Came, Some(traces)) = (&ending, by_traces(&counted)) {
            ending = Ending::Traces(traces);
        }
        if let Against::Remembered(control) = self.against {
            match report.verdict {
                Judgement::Passed => {
                    let Remembered { run, at } =
                        report.control.insert(Remembered { run: control.run.clone(), at: control.at });
                    report.reason += &format!("; the control is as run {run} saw it ({at:.0})");
                }
                // The package manager said so, and would beside any control.
                Judgement::Inapplicable | Judgement::LabError => {}
                _ if matches!(ending, Ending::Disagreed(_)) => {}
                _ => ending = Ending::Disagreed(report.reason.clone()),
            }
        }
        report.total_ms = millis(begun.elapsed());
        Pass { report, clones, ending }
    }

    /// Everything up to the judgement. What is known so far is in `report`, and what lives in `clones`, also when the
    /// lab breaks on the way.
    fn phases<'c>(
        &'c self,
        report: &mut BaselineReport,
        clones: &mut Option<Clones<'c>>,
        before: &Before,
    ) -> Result<Applied, Broke> {
        let manifest = self.manifest()?;
        let mut scenarios = self.runnable(self.applicable(&manifest), report);
        scenarios.retain(|scenario| !before.without.contains_key(&scenario.name));
        for (name, how) in &before.without {
            let reason = format!("in quarantine, and the patched clone was lost in it: {how}");
            report.skipped.push(SkippedScenario { name: name.clone(), reason });
        }
        let clones = clones.insert(self.clones(report)?);
        self.phase("apply");
        // The control is idle meanwhile, so this costs no time of its own.
        let (applied, idle) = std::thread::scope(|scope| {
            let idle = scope.spawn(|| self.state_of_control(clones, APPLIED, &manifest));
            (self.of_guest(|| self.applier.apply(&clones.patched)), joined(idle))
        });
        let complaint = match applied {
            Ok(applied) => {
                report.transaction = applied.transaction;
                report.apply_ms = millis(applied.duration);
                report.reboot_needed = applied.reboot_needed;
                applied.complaint
            }
            Err(ApplierError::Inapplicable { reason }) => {
                report.unapplied = Some(Unapplied::Refused);
                return Ok(Applied::Inapplicable(reason));
            }
            Err(error @ (ApplierError::Failed { .. } | ApplierError::Endless { .. })) => {
                let is_endless = matches!(error, ApplierError::Endless { .. });
                report.unapplied = Some(if is_endless { Unapplied::Endless } else { Unapplied::Failed });
                report.journal = self.last_words(clones);
                // How far it came is worth a look; that there is none changes nothing.
                if !is_endless
                    && let Ok(control) = idle
                    && let Ok(now) = self.state(&clones.patched, &manifest)
                {
                    report.diff = Some(diff_beside(&manifest, &now, &control));
                }
                return Ok(Applied::Inapplicable(error.to_string()));
            }
            Err(ApplierError::Lost { how, .. }) => {
                idle?;
                return Err(self.lost(clones, Lost { phase: Phase::Applying, how }));
            }
            Err(error) => return Err(self.of_patched(clones, Phase::Applying, other("apply", error))),
        };
        let mut control = idle?;
        self.keeps_time(clones, Phase::Applied, report)?;
        if self.is_rejected(clones, report) {
            return Ok(Applied::Yes);
        }
        let reboots = self.reboot == Reboot::Always || report.reboot_needed;
        // Before the scenarios: what they leave behind is not the patch's doing. Where a reboot is to follow, it may not come to that.
        self.phase("state of the patched clone");
        let broke = |error| self.of_patched(clones, Phase::Applied, lab("state of the patched clone")(error));
        let now = self.state(&clones.patched, &manifest).map_err(broke)?;
        report.diff = Some(diff_beside(&manifest, &now, &control));
        let course = if reboots { Course::Rebooted } else { Course::Straight };
        self.round(&scenarios, clones, APPLIED, report)?;
        if reboots {
            self.reboot(clones, report)?;
            if self.is_rejected(clones, report) {
                return Ok(Applied::Yes);
            }
            // A reboot changes a machine that was left alone, too; and a new kernel shows only now.
            self.phase("state of both clones");
            let now;
            (control, now) = self.states(clones, REBOOTED, &manifest, "state of both clones")?;
            report.diff = Some(diff_beside(&manifest, &now, &control));
            self.round(&scenarios, clones, REBOOTED, report)?;
        }
        if self.is_rejected(clones, report) {
            return Ok(Applied::Yes);
        }
        // No scenario saw it, but a host's agent would fail for it.
        if let Some(complaint) = complaint {
            report.journal = self.journal(clones);
            report.unapplied = Some(Unapplied::Unsound);
            return Ok(Applied::Inapplicable(format!("the checks that hosts repeat fail: {complaint}")));
        }
        let over = self.write(&scenarios, clones, course, report)?;
        if !self.is_rejected(clones, report) {
            self.roll_back((&scenarios, course), clones, (&manifest, &control, over), report)?;
        }
        Ok(Applied::Yes)
    }

    /// Whether the patch is rejected whatever the way back does. What broke is still there to be read.
    fn is_rejected(&self, clones: &Clones<'_>, report: &mut BaselineReport) -> bool {
        let bad = |verdict| matches!(verdict, Verdict::Regression | Verdict::Flaky);
        let rejected = report.scenarios.iter().any(|ran| self.counts(&ran.name) && bad(ran.verdict));
        if rejected {
            report.journal = self.last_words(clones);
            report.rollback = RollbackReport::skipped("the patch was rejected before");
        }
        rejected
    }

    /// Runs the workload that scenarios have for before the rollback, on both clones.
    fn write(
        &self,
        scenarios: &[&Scenario],
        clones: &Clones<'_>,
        course: Course,
        report: &mut BaselineReport,
    ) -> Result<Over, Broke> {
        let workloads: Vec<Scenario> = scenarios.iter().filter_map(|scenario| scenario.workload()).collect();
        if workloads.is_empty() {
            return Ok(Over::Unchanged);
        }
        let stage = Stage { phase: Phase::AfterWrites, course };
        self.round(&workloads.iter().collect::<Vec<_>>(), clones, stage, report)?;
        let wrote = |ran: &ScenarioReport| ran.phase == Phase::AfterWrites && ran.verdict == Verdict::Pass;
        Ok(if report.scenarios.iter().any(wrote) { Over::Written } else { Over::Unchanged })
    }

    fn roll_back(
        &self,
        (scenarios, course): (&[&Scenario], Course),
        clones: &Clones<'_>,
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
            Err(
                error
                @ (ApplierError::Failed { .. } | ApplierError::Endless { .. } | ApplierError::Inapplicable { .. }),
            ) => {
                report.journal = self.last_words(clones);
                report.rollback = RollbackReport::broke(&error);
                return Ok(());
            }
            Err(ApplierError::Lost { how, .. }) => {
                return Err(self.lost(clones, Lost { phase: Phase::RolledBack, how }));
            }
            Err(error) => return Err(self.of_patched(clones, Phase::RolledBack, other("rollback", error))),
        }
        self.phase("compare with the baseline");
        let stage = Stage { phase: Phase::RolledBack, course };
        let (now, compared) = self.compare(clones, stage, manifest, over)?;
        report.rollback = match compared {
            // Beside the control as it was before: what is told here decides nothing, and is not worth another look.
            Ok(()) => RollbackReport::proven(over).leaving(diff_beside(manifest, &now, control).of_the_running()),
            Err(left) => {
                let told: Vec<String> = groups(&left).iter().map(Group::line).collect();
                RollbackReport::differs(&told).leaving(*left)
            }
        };
        let after: Vec<Scenario> = scenarios.iter().map(|scenario| scenario.after_workload()).collect();
        self.round(&after.iter().collect::<Vec<_>>(), clones, stage, report)
    }

    /// Whether the patched clone is as its baseline was, or as the control has become. What runs at the moment is looked at again, since
    /// the two clones do not do the same at the same moment.
    fn compare(
        &self,
        clones: &Clones<'_>,
        stage: Stage,
        baseline: &Manifest,
        over: Over,
    ) -> Result<(Manifest, Compared), Broke> {
        let mut looks = 0;
        loop {
            // Both at once: where something differs, whether time alone did that is what the control tells.
            let (control, now) = self.states(clones, stage, baseline, "compare with the baseline")?;
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
    fn states(
        &self,
        clones: &Clones<'_>,
        stage: Stage,
        baseline: &Manifest,
        doing: &'static str,
    ) -> Result<(Manifest, Manifest), Broke> {
        let (control, patched) = std::thread::scope(|scope| {
            let control = scope.spawn(|| self.state_of_control(clones, stage, baseline));
            let patched = self.state(&clones.patched, baseline);
            (joined(control), patched)
        });
        let broke = |error| self.of_patched(clones, stage.phase, lab(doing)(error));
        Ok((control?, patched.map_err(broke)?))
    }

    fn state(&self, machine: &Machine, baseline: &Manifest) -> Result<Manifest, LabError> {
        manifest::collect_since(machine, baseline, self.baseline.record.frozen.at)
    }

    fn state_of_control(&self, clones: &Clones<'_>, stage: Stage, baseline: &Manifest) -> Result<Manifest, Broke> {
        clones.control.is(
            |machine| self.state(machine, baseline).map_err(lab("state of the control")),
            |record, state| record.keep_state(stage, state.clone(), baseline),
            |record| record.state(stage, baseline),
        )
    }
}
