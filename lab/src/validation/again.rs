//! Whether a pass over a pair of clones stands, or is to be made again on fresh ones. Pure: what was found, now and before, in; a decision
//! out.

use std::collections::BTreeMap;

use super::lost::Lost;
use crate::{
    report::{BaselineReport, Failed, ScenarioReport},
    scenario::CheckKind,
    verdict::{BOOTS, Judgement, KEEPS_TIME, LAB_ERROR_REQUEUES, THE_MACHINE, Verdict},
};

/// How often a step failed that did on one pair of clones, on the patched one alone, and not on another.
const ON_ONE_PAIR_OF_TWO: Failed = Failed { control: 0, patched: 1, of: 2 };

/// How a pass ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Ending {
    /// It went as far as it could.
    Came,
    /// The patched clone was lost, the control was not.
    Lost(Lost),
    /// Rejected by nothing but traces that a machine keeps, or by what became of it: to look again on the same clones is to see the same.
    Traces(Vec<ScenarioReport>),
    /// A scenario in quarantine lost the patched clone, and how: what came after it is not known.
    Unruly(String, String),
    /// What is remembered of the control does not do, and why.
    Disagreed(String),
}

/// What was found on pairs of clones before.
#[derive(Debug, Default)]
pub(super) struct Before {
    broken: usize,
    /// How the patched clone was lost.
    pub(super) lost: Option<Lost>,
    /// What rejected the patch by traces alone.
    pub(super) traces: Vec<ScenarioReport>,
    /// Scenarios in quarantine that are left out now, and what they did.
    pub(super) without: BTreeMap<String, String>,
}

impl Before {
    /// Why it is all done once more; `None` when what was found stands.
    pub(super) fn again(&mut self, ending: Ending, report: &BaselineReport) -> Option<String> {
        match ending {
            Ending::Lost(lost) if self.lost.is_none() => {
                let Lost { phase, how } = self.lost.insert(lost);
                Some(format!("the patched clone is lost {phase} ({how}), the control is not"))
            }
            Ending::Traces(found) if self.traces.is_empty() => {
                self.traces = found;
                Some(format!("rejected by traces alone ({})", report.reason))
            }
            Ending::Unruly(scenario, how) => {
                let why = format!("{scenario}, in quarantine, lost the patched clone ({how}) and is left out");
                self.without.insert(scenario, how);
                Some(why)
            }
            _ if report.verdict == Judgement::LabError && self.broken < LAB_ERROR_REQUEUES => {
                self.broken += 1;
                Some(format!("the lab broke ({})", report.reason))
            }
            _ => None,
        }
    }

    /// The traces of before that are not there now, as what they are: seen once, and not another time.
    pub(super) fn flaky(&self, now: &[ScenarioReport]) -> Vec<ScenarioReport> {
        let is_there = |before: &ScenarioReport| {
            now.iter()
                .any(|ran| (&ran.name, ran.phase, ran.verdict) == (&before.name, before.phase, Verdict::Regression))
        };
        let flaky = |before: &ScenarioReport| {
            let mut ran = before.clone();
            ran.verdict = Verdict::Flaky;
            ran.reason += "; and not on another pair of clones";
            for step in ran.steps.iter_mut().filter(|step| step.verdict == Some(Verdict::Regression)) {
                step.verdict = Some(Verdict::Flaky);
                step.failed = Some(ON_ONE_PAIR_OF_TWO);
            }
            ran
        };
        self.traces.iter().filter(|before| !is_there(before)).map(flaky).collect()
    }
}

/// Whether a row tells what became of a machine as a whole: its clock, the kernel that it did not come up with.
fn is_of_the_machine(ran: &ScenarioReport, step: &str) -> bool {
    ran.name == THE_MACHINE && [KEEPS_TIME, BOOTS].contains(&step)
}

/// The scenarios that reject a patch, when each does so by nothing but what the same clones cannot be asked again: checks of traces, and
/// what became of the machine.
pub(super) fn by_traces(counted: &[ScenarioReport]) -> Option<Vec<ScenarioReport>> {
    let rejecting = |ran: &&ScenarioReport| matches!(ran.verdict, Verdict::Regression | Verdict::Flaky);
    let rejecting: Vec<&ScenarioReport> = counted.iter().filter(rejecting).collect();
    let traces = CheckKind::ALL.into_iter().filter(|kind| kind.reads_traces()).map(CheckKind::step_name);
    let traces: Vec<String> = traces.collect();
    let is_well = |verdict| matches!(verdict, None | Some(Verdict::Pass | Verdict::Fixed | Verdict::PreExisting));
    let is_of_traces = |ran: &&ScenarioReport| {
        let mut bad = ran.steps.iter().filter(|step| !is_well(step.verdict));
        let seen_once = |step: &str| traces.iter().any(|trace| trace == step) || is_of_the_machine(ran, step);
        ran.verdict == Verdict::Regression && bad.all(|step| seen_once(&step.name))
    };
    (!rejecting.is_empty() && rejecting.iter().all(is_of_traces)).then(|| rejecting.into_iter().cloned().collect())
}

#[cfg(test)]
mod tests {
    use patchlab_check::Digest;

    use super::*;
    use crate::{
        report::StepReport,
        verdict::{self, Phase},
    };

    fn ran(name: &str, verdict: Verdict, steps: &[(&str, Verdict)]) -> ScenarioReport {
        let step = |(name, verdict): &(&str, Verdict)| StepReport {
            name: (*name).into(),
            verdict: Some(*verdict),
            control: None,
            patched: None,
            metric: None,
            failed: None,
        };
        let steps = steps.iter().map(step).collect();
        ScenarioReport { name: name.into(), phase: Phase::Applied, verdict, reason: "it failed".into(), steps }
    }

    fn report(verdict: Judgement) -> BaselineReport {
        BaselineReport { verdict, ..BaselineReport::begun("web@1".into(), Digest::of("web")) }
    }

    fn logged() -> ScenarioReport {
        let steps = [("a", Verdict::Pass), ("check journal-errors", Verdict::Regression)];
        ran("web", Verdict::Regression, &steps)
    }

    #[test]
    fn a_broken_lab_is_tried_again_a_bounded_number_of_times() {
        let mut before = Before::default();
        let mut tries = 0;
        while before.again(Ending::Came, &report(Judgement::LabError)).is_some() {
            tries += 1;
        }
        assert_eq!(tries, LAB_ERROR_REQUEUES);
        assert_eq!(before.again(Ending::Came, &report(Judgement::Rejected)), None);
    }

    #[test]
    fn what_the_same_clones_cannot_be_asked_twice_is_believed_the_second_time() {
        let (mut before, rejected) = (Before::default(), report(Judgement::Rejected));
        let lost = || Ending::Lost(Lost { phase: Phase::Applying, how: "a kernel panic".into() });
        assert!(before.again(lost(), &rejected).unwrap().contains("a kernel panic"));
        assert_eq!(before.again(lost(), &rejected), None);
        let traces = || Ending::Traces(vec![logged()]);
        assert!(before.again(traces(), &rejected).is_some());
        assert_eq!(before.again(traces(), &rejected), None);
        assert!(before.again(Ending::Unruly("wild".into(), "it hung".into()), &rejected).unwrap().contains("wild"));
        assert_eq!(before.without.len(), 1);
    }

    #[test]
    fn a_patch_is_rejected_by_traces_when_nothing_else_rejects_it() {
        assert_eq!(by_traces(&[logged(), ran("db", Verdict::Pass, &[])]), Some(vec![logged()]));
        assert_eq!(by_traces(&[]), None);
        let port = ran("web", Verdict::Regression, &[("check listening-ports", Verdict::Regression)]);
        let step = ran("web", Verdict::Regression, &[("a", Verdict::Regression)]);
        let flaky = ran("web", Verdict::Flaky, &[("check coredump", Verdict::Flaky)]);
        for other in [port, step, flaky] {
            assert_eq!(by_traces(&[logged(), other]), None);
        }
    }

    #[test]
    fn a_clock_that_is_off_and_a_kernel_that_did_not_come_up_are_believed_when_they_show_twice() {
        let of = |step: &str| verdict::of_the_machine(Phase::Rebooted, step, "it is off", Verdict::Regression);
        for step in [KEEPS_TIME, BOOTS] {
            let found = by_traces(&[of(step), ran("web", Verdict::Pass, &[])]).unwrap();
            let (mut before, rejected) = (Before::default(), report(Judgement::Rejected));
            assert!(before.again(Ending::Traces(found), &rejected).is_some());
            assert_eq!(before.again(Ending::Traces(vec![of(step)]), &rejected), None);
            assert_eq!(before.flaky(&[of(step)]), []);
            assert_eq!(before.flaky(&[])[0].verdict, Verdict::Flaky);
            // A scenario's step of that name was asked twice already.
            assert_eq!(by_traces(&[ran("web", Verdict::Regression, &[(step, Verdict::Regression)])]), None);
        }
        assert_eq!(by_traces(&[verdict::lost(Phase::Applied, "a panic", verdict::Lives::Never)]), None);
    }

    #[test]
    fn traces_that_are_not_there_again_are_flaky() {
        let before = Before { traces: vec![logged()], ..Before::default() };
        assert_eq!(before.flaky(&[logged()]), []);
        let flaky = before.flaky(&[ran("web", Verdict::Pass, &[])]);
        assert_eq!((flaky[0].verdict, flaky[0].steps[1].verdict), (Verdict::Flaky, Some(Verdict::Flaky)));
        let counted = flaky[0].steps[1].failed.map(|failed| (failed.control, failed.patched, failed.of));
        assert_eq!((counted, flaky[0].steps[0].failed), (Some((0, 1, 2)), None));
        assert_eq!(flaky[0].steps[0].verdict, Some(Verdict::Pass));
        assert!(flaky[0].reason.ends_with("not on another pair of clones"));
    }
}
