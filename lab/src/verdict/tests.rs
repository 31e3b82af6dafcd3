use std::collections::BTreeSet;

use patchlab_check::{Digest, Outcome, Status};

use super::*;
use crate::{
    report::{About, BaselineReport, Over, RollbackReport, RollbackStatus, ScenarioReport},
    scenario::{FILE, Scenario, ScenarioRun, StepRun},
};

const SIDES: [Side; 5] =
    [Side::Ran(Status::Pass), Side::Ran(Status::Fail), Side::Ran(Status::Skip), Side::LabError, Side::Nothing];

/// The design's table, every cell, control down and patched across, in the order of `SIDES`; `-` is no verdict.
const TABLE: [[&str; 5]; 5] = [
    ["pass", "regression", "missing", "lab-error", "missing"],
    ["fixed", "pre-existing", "pre-existing", "lab-error", "missing"],
    ["pass", "regression", "-", "lab-error", "missing"],
    ["lab-error", "lab-error", "lab-error", "lab-error", "lab-error"],
    ["missing", "missing", "missing", "lab-error", "missing"],
];

fn all_observations() -> impl Iterator<Item = (Side, Side)> {
    SIDES.into_iter().flat_map(|control| SIDES.into_iter().map(move |patched| (control, patched)))
}

#[test]
fn one_observation_is_the_designs_table() {
    for (row, control) in SIDES.into_iter().enumerate() {
        for (column, patched) in SIDES.into_iter().enumerate() {
            let found = compare(control, patched).map_or("-", Verdict::name);
            assert_eq!(found, TABLE[row][column], "{control:?} {patched:?}");
        }
    }
}

#[test]
fn every_pair_of_observations_is_decided() {
    assert_eq!(decide(&[]), Decision::Is(Some(Verdict::Missing)));
    for first in all_observations() {
        let one = compare(first.0, first.1);
        let alone = decide(&[first]);
        match one {
            Some(Verdict::Regression) => assert_eq!(alone, Decision::Repeat),
            other => assert_eq!(alone, Decision::Is(other)),
        }
        for second in all_observations() {
            let Decision::Is(both) = decide(&[first, second]) else { panic!("{first:?} {second:?}: asks again") };
            let broken = [one, compare(second.0, second.1)].contains(&Some(Verdict::LabError));
            match both {
                Some(Verdict::LabError) => assert!(broken),
                _ if broken => panic!("{first:?} {second:?}: {both:?} although the lab broke"),
                Some(Verdict::Flaky) => {
                    let failed = [first.1, second.1].contains(&Side::Ran(Status::Fail));
                    assert!(first != second && failed, "{first:?} {second:?}");
                }
                verdict if first == second => assert_eq!(verdict, one, "{first:?}"),
                // The patched clone never failed: the patch is not blamed, and no better is said than what was seen.
                verdict => {
                    let worst = one.into_iter().chain(compare(second.0, second.1)).reduce(Verdict::worse);
                    assert_eq!(verdict, worst, "{first:?} {second:?}");
                    assert!(![first.1, second.1].contains(&Side::Ran(Status::Fail)), "{first:?} {second:?}");
                    assert_ne!(verdict, Some(Verdict::Regression));
                }
            }
        }
    }
}

#[test]
fn a_control_that_failed_once_is_not_held_against_a_patch_under_which_it_always_held() {
    use Status::{Fail, Pass, Skip};
    let decided = |seen: &[(Status, Status)]| {
        let seen: Vec<_> = seen.iter().map(|(c, p)| (Side::Ran(*c), Side::Ran(*p))).collect();
        decide(&seen)
    };
    let is = |verdict| Decision::Is(Some(verdict));
    assert_eq!(decided(&[(Fail, Pass), (Pass, Pass)]), is(Verdict::Fixed));
    assert_eq!(decided(&[(Pass, Pass), (Fail, Pass)]), is(Verdict::Fixed));
    assert_eq!(decided(&[(Skip, Pass), (Pass, Pass)]), is(Verdict::Pass));
    assert_eq!(decided(&[(Pass, Skip), (Pass, Pass)]), is(Verdict::Missing), "it was not tested once");
    assert_eq!(decided(&[(Fail, Pass), (Pass, Fail)]), is(Verdict::Flaky));
    assert_eq!(decided(&[(Fail, Fail), (Pass, Pass)]), is(Verdict::Flaky));
    // Another step asked for the second attempt, and the counts are told.
    let report = compared(&[attempt((Fail, Pass), (Pass, Fail)), attempt((Pass, Pass), (Pass, Fail))]);
    let page = &report.steps[0];
    let often = page.failed.map(|failed| (failed.control, failed.patched, failed.of));
    assert_eq!((page.verdict, often), (Some(Verdict::Fixed), Some((1, 0, 2))));
    assert_eq!(page.control.as_ref().unwrap().status, Fail, "shown is the time it failed");
}

#[test]
fn a_clone_that_was_lost_says_on_how_many_pairs() {
    for (lives, verdict, patched) in [(Lives::Never, Verdict::Regression, 2), (Lives::Sometimes, Verdict::Flaky, 1)] {
        let report = lost(Phase::Applying, "a kernel panic", lives);
        let often = report.steps[0].failed.map(|failed| (failed.control, failed.patched, failed.of));
        assert_eq!((report.verdict, often), (verdict, Some((0, patched, 2))));
    }
}

#[test]
fn worst_wins() {
    for (index, verdict) in Verdict::ALL.into_iter().enumerate() {
        for (other_index, other) in Verdict::ALL.into_iter().enumerate() {
            assert_eq!(verdict.worse(other), Verdict::ALL[index.max(other_index)]);
        }
    }
    // Exit codes, worst wins in this order: 1 rejected, 3 inapplicable, 4 lab failure, 2 nothing meaningful ran, 0 passed.
    let codes: Vec<u8> = Judgement::ALL.into_iter().rev().map(Judgement::exit_code).collect();
    assert_eq!(codes, [1, 3, 4, 2, 0]);
    for (index, judgement) in Judgement::ALL.into_iter().enumerate() {
        for (other_index, other) in Judgement::ALL.into_iter().enumerate() {
            assert_eq!(judgement.worse(other), Judgement::ALL[index.max(other_index)]);
        }
        assert_eq!(serde_json::to_value(judgement).unwrap(), judgement.name());
    }
    for verdict in Verdict::ALL {
        assert_eq!(serde_json::to_value(verdict).unwrap(), verdict.name());
    }
}

fn scenario() -> Scenario {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("web");
    std::fs::create_dir(&path).unwrap();
    let toml = "name = \"web\"\nowner = \"qa\"\nsummary = \"s\"\napplies = { packages = [\"nginx\"] }\n\
        [[step]]\nname = \"page\"\nrun = \"true\"\n[[step]]\nname = \"port\"\nrun = \"true\"\nsuperficial = true\n";
    std::fs::write(path.join(FILE), toml).unwrap();
    Scenario::read(&path).unwrap()
}

fn outcome(status: Status) -> Outcome {
    let reason = if status == Status::Pass { String::new() } else { format!("it said {status}") };
    Outcome { status, exit: None, ms: 5, output: "seen".into(), reason, samples: Vec::new() }
}

fn run(page: Status, port: Status) -> ScenarioRun {
    let step = |name: &str, status| StepRun { name: name.into(), outcome: outcome(status) };
    ScenarioRun { scenario: "web".into(), steps: vec![step("page", page), step("port", port)], ms: 10, gone: None }
}

fn attempt(control: (Status, Status), patched: (Status, Status)) -> Attempt {
    Attempt {
        control: Ok(run(control.0, control.1)),
        patched: Ok(run(patched.0, patched.1)),
        checks: Vec::new(),
        patched_clone: Presence::There,
    }
}

fn compared(attempts: &[Attempt]) -> ScenarioReport {
    match compare_scenario(&scenario(), Phase::Applied, attempts) {
        Compared::Verdict(report) => report,
        Compared::Repeat => panic!("asks again"),
    }
}

#[test]
fn a_step_that_was_broken_before_hides_none_that_the_patch_broke() {
    use Status::{Fail, Pass, Skip};
    let broken = attempt((Fail, Pass), (Fail, Fail));
    assert_eq!(compare_scenario(&scenario(), Phase::Applied, std::slice::from_ref(&broken)), Compared::Repeat);
    let report = compared(&[broken.clone(), broken.clone()]);
    assert_eq!(report.verdict, Verdict::Regression);
    assert_eq!(report.reason, "port (`true`): it said fail, and the control passes");
    assert_eq!(report.steps[0].verdict, Some(Verdict::PreExisting));
    // It held the second time: unstable, and shown is the time it failed.
    let report = compared(&[broken, attempt((Fail, Pass), (Fail, Pass))]);
    assert_eq!(report.verdict, Verdict::Flaky);
    let told = "port (`true`): failed 1 of 2 times on the patched clone, 0 of 2 on the control: it said fail";
    assert_eq!(report.reason, told);
    let often = |step: usize| report.steps[step].failed.map(|failed| (failed.control, failed.patched, failed.of));
    assert_eq!((often(0), often(1)), (Some((2, 2, 2)), Some((0, 1, 2))));
    assert_eq!(report.steps[1].patched.as_ref().unwrap().status, Fail);
    assert_eq!(compared(&[attempt((Skip, Skip), (Skip, Skip))]).verdict, Verdict::Missing);
    assert_eq!(compared(&[attempt((Pass, Skip), (Pass, Skip))]).verdict, Verdict::Pass);
    assert_eq!(compared(&[]).verdict, Verdict::Missing);
    let broke = Attempt { patched: Err("guest channel closed".into()), ..attempt((Pass, Pass), (Pass, Pass)) };
    let report = compared(&[broke]);
    assert_eq!((report.verdict, report.reason.as_str()), (Verdict::LabError, "patched clone: guest channel closed"));
    let check = CheckRun { name: "check failed-units".into(), control: outcome(Pass), patched: outcome(Fail) };
    let checked = Attempt { checks: vec![check], ..attempt((Pass, Pass), (Pass, Pass)) };
    let report = compared(&[checked.clone(), checked]);
    assert_eq!((report.verdict, report.steps.len()), (Verdict::Regression, 3));
}

#[test]
fn evidence_is_a_meaningful_step_that_passed_on_both_in_a_scenario_that_covers_a_changed_package() {
    use Status::{Fail, Pass};
    let changed = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
    let good = compared(&[attempt((Pass, Pass), (Pass, Pass))]);
    assert!(has_evidence(&scenario(), &changed(&["nginx"]), &good));
    assert!(!has_evidence(&scenario(), &changed(&["openssl"]), &good));
    // Only the superficial step passed on both.
    let poor = compared(&[attempt((Fail, Pass), (Pass, Pass))]);
    assert!(!has_evidence(&scenario(), &changed(&["nginx"]), &poor));
    assert!(!has_counter_evidence(&scenario(), &changed(&["nginx"]), &good));
    let mut bad = good.clone();
    bad.steps.iter_mut().for_each(|step| step.verdict = Some(Verdict::Regression));
    assert!(has_counter_evidence(&scenario(), &changed(&["nginx"]), &bad));
    assert!(!has_counter_evidence(&scenario(), &changed(&["openssl"]), &bad));
}

#[test]
fn a_baseline_is_judged_over_the_whole_product() {
    let applied =
        [Applied::Yes, Applied::Inapplicable("held".into()), Applied::LabError("the clone did not answer".into())];
    let rollbacks = [RollbackStatus::Proven, RollbackStatus::Failed, RollbackStatus::Skipped];
    let evidences: [&[String]; 2] = [&["web".to_owned()], &[]];
    for applied in &applied {
        for verdict in Verdict::ALL {
            for status in rollbacks {
                for evidence in evidences {
                    for pre_existing in [PreExisting::Show, PreExisting::Block] {
                        let report = ScenarioReport {
                            name: "web".into(),
                            phase: Phase::Rebooted,
                            verdict,
                            reason: "r".into(),
                            steps: Vec::new(),
                        };
                        let rollback = RollbackReport { status, class: None, reason: "x".into(), diff: None };
                        let facts = Facts {
                            applied,
                            scenarios: &[report],
                            evidence,
                            counter_evidence: &[],
                            rollback: &rollback,
                            policy: Policy { pre_existing },
                        };
                        let yes = *applied == Applied::Yes;
                        let blocked = verdict == Verdict::PreExisting && pre_existing == PreExisting::Block;
                        let expected = if blocked
                            || matches!(verdict, Verdict::Regression | Verdict::Flaky)
                            || yes && status == RollbackStatus::Failed
                        {
                            Judgement::Rejected
                        } else if matches!(applied, Applied::Inapplicable(_)) {
                            Judgement::Inapplicable
                        } else if matches!(applied, Applied::LabError(_)) || verdict == Verdict::LabError {
                            Judgement::LabError
                        } else if verdict == Verdict::Missing
                            || yes && (status == RollbackStatus::Skipped || evidence.is_empty())
                        {
                            Judgement::Missing
                        } else {
                            Judgement::Passed
                        };
                        let judged = judge(&facts);
                        assert_eq!(judged.judgement, expected, "{facts:?}");
                        let told: Vec<_> = objections(&facts).iter().map(|objection| objection.judgement).collect();
                        let worst = told.iter().copied().fold(Judgement::Passed, Judgement::worse);
                        assert_eq!((worst, told.is_empty()), (expected, expected == Judgement::Passed), "{facts:?}");
                        assert!(!judged.reason.is_empty() && !judged.reason.contains('\n'), "{judged:?}");
                    }
                }
            }
        }
    }
}

#[test]
fn what_the_worst_would_hide_is_told_beside_it() {
    let broken = Applied::LabError("the clone did not answer".into());
    let scenario = |name: &str, verdict| ScenarioReport {
        name: name.into(),
        phase: Phase::Applied,
        verdict,
        reason: "r".into(),
        steps: Vec::new(),
    };
    let facts = Facts {
        applied: &broken,
        scenarios: &[
            scenario("web", Verdict::Regression),
            scenario("old", Verdict::PreExisting),
            scenario("db", Verdict::Flaky),
        ],
        evidence: &[],
        counter_evidence: &[],
        rollback: &RollbackReport::skipped("the patch was not applied"),
        policy: Policy::default(),
    };
    let about = |name: &str, verdict| About::Scenario { name: name.into(), phase: Phase::Applied, verdict };
    let told: Vec<About> = objections(&facts).into_iter().map(|objection| objection.about).collect();
    assert_eq!(told, [About::Apply, about("web", Verdict::Regression), about("db", Verdict::Flaky)]);
    let facts = Facts { applied: &Applied::Yes, ..facts };
    let told: Vec<About> = objections(&facts).into_iter().map(|objection| objection.about).collect();
    assert_eq!(told[2..], [About::Rollback, About::Evidence]);
    // What speaks against the change is no want of evidence; where it did not count in the end, it is none.
    let abouts = |counter_evidence: &[String]| -> Vec<About> {
        objections(&Facts { counter_evidence, ..facts.clone() }).into_iter().map(|objection| objection.about).collect()
    };
    assert_eq!(abouts(&["web".to_owned()])[2..], [About::Rollback]);
    assert_eq!(abouts(&["db".to_owned()])[2..], [About::Rollback, About::Evidence]);
}

#[test]
fn what_the_control_did_is_said_of_apply_and_rollback_too() {
    let ran = |applied: &Applied, rollback: &RollbackReport| {
        judge(&Facts {
            applied,
            scenarios: &[],
            evidence: &["web".to_owned()],
            counter_evidence: &[],
            rollback,
            policy: Policy::default(),
        })
        .reason
    };
    let inapplicable = Applied::Inapplicable("the checks that hosts repeat fail: nginx -t".into());
    let said = ran(&inapplicable, &RollbackReport::skipped("x"));
    let expected = "the patch cannot be applied: the checks that hosts repeat fail: nginx -t; the control was left \
                    without it";
    assert_eq!(said, expected);
    let said = ran(&Applied::Yes, &RollbackReport::broke("rollback failed on the machine: dpkg"));
    assert_eq!(said, "the rollback failed: rollback failed on the machine: dpkg; the control had nothing to take back");
    let said = ran(&Applied::Yes, &RollbackReport::differs(&["a".into(), "b".into()]));
    assert_eq!(said, "the rollback failed: the machine is not as before: a; b; the control shows none of it");
}

pub(crate) fn baseline(name: &str, verdict: Judgement, scenarios: Vec<ScenarioReport>) -> BaselineReport {
    BaselineReport {
        verdict,
        reason: format!("{name} says {verdict}"),
        scenarios,
        rollback: RollbackReport::proven(Over::Unchanged),
        transaction: vec!["upgrade nginx amd64 1 -> 2".into()],
        apply_ms: 1,
        rollback_ms: 2,
        total_ms: 3,
        guest_ms: 2,
        ..BaselineReport::begun(name.into(), Digest::of(name))
    }
}

#[test]
fn the_whole_is_as_bad_as_its_worst_baseline() {
    assert_eq!(overall(&[]).judgement, Judgement::Missing);
    for one in Judgement::ALL {
        for other in Judgement::ALL {
            let judged = overall(&[baseline("a@1", one, Vec::new()), baseline("b@1", other, Vec::new())]);
            assert_eq!(judged.judgement, one.worse(other));
            let name = if one.worse(other) == one { "a@1" } else { "b@1" };
            assert!(judged.reason.starts_with(&format!("{name}: ")), "{judged:?}");
        }
    }
}

/// A scenario with one metric, run on both with these samples, attempt by attempt.
fn measured(attempts: &[(&[f64], &[f64])]) -> Compared {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("web");
    std::fs::create_dir(&path).unwrap();
    let toml = "name = \"web\"\nowner = \"qa\"\nsummary = \"s\"\napplies = { packages = [\"nginx\"] }\n[[step]]\nname = \"load\"\n\
        run = \"./load\"\nmetric = { name = \"rate\", regex = \"([0-9]+)\", worse_than_control = \"20%\" }\n";
    std::fs::write(path.join(FILE), toml).unwrap();
    let scenario = Scenario::read(&path).unwrap();
    let side = |numbers: &[f64]| {
        let samples = numbers.iter().map(|number| (*number).try_into().unwrap()).collect();
        let outcome = Outcome { samples, exit: Some(0), ..outcome(Status::Pass) };
        let steps = vec![StepRun { name: "load".into(), outcome }];
        Ok(ScenarioRun { scenario: "web".into(), steps, ms: 10, gone: None })
    };
    let attempts: Vec<Attempt> = attempts
        .iter()
        .map(|(control, patched)| Attempt {
            control: side(control),
            patched: side(patched),
            checks: Vec::new(),
            patched_clone: Presence::There,
        })
        .collect();
    compare_scenario(&scenario, Phase::Applied, &attempts)
}

#[test]
fn a_metric_that_is_worse_twice_is_a_regression_and_one_that_cannot_be_told_is_flaky() {
    const GOOD: &[f64] = &[100.0, 101.0, 99.0, 100.0, 102.0];
    const BAD: &[f64] = &[50.0, 51.0, 49.0, 50.0, 52.0];
    const WILD: &[f64] = &[100.0, 20.0, 180.0, 60.0, 140.0];
    const WILDER: &[f64] = &[90.0, 50.0, 20.0, 150.0, 70.0];
    // One at the tolerance in some times: five do not tell, ten do.
    const CLOSE: &[f64] = &[80.0, 81.0, 95.0, 96.0, 97.0];
    assert_eq!(measured(&[(GOOD, BAD)]), Compared::Repeat);
    assert_eq!(measured(&[(GOOD, CLOSE)]), Compared::Repeat);
    // What cannot be told is asked for again, a bounded number of times.
    for attempts in 1..ATTEMPTS {
        assert_eq!(measured(&vec![(WILD, WILDER); attempts]), Compared::Repeat);
    }
    let told = |attempts: &[(&[f64], &[f64])]| match measured(attempts) {
        Compared::Verdict(report) => (report.verdict, report.reason.clone(), report.steps[0].clone()),
        Compared::Repeat => panic!("asks again"),
    };
    let (verdict, reason, step) = told(&[(GOOD, GOOD)]);
    assert_eq!((verdict, reason.as_str()), (Verdict::Pass, ""));
    let metric = step.metric.unwrap();
    assert_eq!((metric.control.samples.len(), metric.found), (5, Found::AsGood));
    assert_eq!(step.control.unwrap().samples, []);

    let (verdict, reason, step) = told(&[(GOOD, BAD), (GOOD, BAD)]);
    let why =
        "rate is 50.0% worse than the control's, 20% is allowed: median 50.0 ±1.00 (n 10) against 100 ±1.00 (n 10)";
    assert_eq!((verdict, reason), (Verdict::Regression, format!("load (`./load`): {why}")));
    let patched = step.patched.unwrap();
    assert_eq!((patched.status, patched.reason.as_str(), patched.exit), (Status::Fail, why, None));
    assert_eq!(step.control.unwrap().status, Status::Pass);

    assert_eq!(told(&[(GOOD, CLOSE), (GOOD, CLOSE)]).0, Verdict::Pass);
    let (verdict, reason, step) = told(&[(WILD, WILDER); ATTEMPTS]);
    assert_eq!((verdict, step.patched.unwrap().status), (Verdict::Flaky, Status::Fail));
    assert!(reason.contains("cannot be told from 20 and 20 samples"), "{reason}");
    // One sample a time is too few until there are four.
    assert_eq!(measured(&[(&GOOD[..1], &GOOD[..1]); 3]), Compared::Repeat);
    assert_eq!(told(&[(&GOOD[..1], &GOOD[..1]); 4]).0, Verdict::Pass);
    // Worse in one attempt, and as good in the other.
    assert_eq!(told(&[(GOOD, BAD), (GOOD, GOOD)]).0, Verdict::Flaky);
}

#[test]
fn a_clone_that_does_not_come_back_is_the_patchs_doing_when_the_control_does() {
    use Status::{Fail, Pass};
    // The reboot is `port`; nobody can be asked once more.
    let seen = attempt((Pass, Pass), (Pass, Fail));
    assert_eq!(compare_scenario(&scenario(), Phase::Applied, std::slice::from_ref(&seen)), Compared::Repeat);
    let report = compared(&[Attempt { patched_clone: Presence::Lost, ..seen.clone() }]);
    assert_eq!((report.verdict, report.steps[0].verdict), (Verdict::Regression, Some(Verdict::Pass)));
    // It came back when its power was cycled, and then the step passed.
    assert_eq!(compared(&[seen, attempt((Pass, Pass), (Pass, Pass))]).verdict, Verdict::Flaky);
    for (back, verdict) in [(Presence::Lost, Verdict::Regression), (Presence::There, Verdict::Flaky)] {
        let report = lost_in_reboot(9, "no answer within 60 s", back);
        assert_eq!((report.verdict, report.phase), (verdict, Phase::Rebooted));
        let failure = report.steps[0].patched.clone().unwrap();
        assert!(failure.status == Fail && failure.reason.contains("60 s"), "{failure:?}");
    }
}
