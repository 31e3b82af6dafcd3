//! What the gate lets somebody answer for, and what nobody can.

use jiff::ToSpan as _;
use patchlab_check::{Outcome, Status};
use patchlab_lab::report::{RollbackReport, ScenarioReport, StepReport};
use patchlab_protocol::{
    Role,
    document::{Rollback, TestResult},
};

use super::*;
use crate::{
    gate::tests::{key, order, passed, root},
    trust::signer::{Answer, Request, answer},
};

fn now() -> Timestamp {
    "2026-05-01T12:00:00Z".parse().unwrap()
}

fn step(name: &str, verdict: Option<Verdict>, patched: Status) -> StepReport {
    let outcome = |status| Outcome {
        status,
        exit: None,
        ms: 1,
        output: String::new(),
        reason: String::new(),
        samples: Vec::new(),
    };
    StepReport {
        name: name.into(),
        verdict,
        control: Some(outcome(Status::Pass)),
        patched: Some(outcome(patched)),
        metric: None,
        failed: None,
    }
}

fn ran(name: &str, phase: Phase, verdict: Verdict, steps: Vec<StepReport>) -> ScenarioReport {
    ScenarioReport { name: name.into(), phase, verdict, reason: "r".into(), steps }
}

fn objection(judgement: Judgement, about: About) -> Objection {
    Objection { judgement, about, reason: "because".into() }
}

fn of_scenario(name: &str, phase: Phase, verdict: Verdict) -> Objection {
    objection(Judgement::Rejected, About::Scenario { name: name.into(), phase, verdict })
}

/// Rejected, since web-smoke's page and load fail; beside them one that passed, and one that failed before.
fn rejected(order: Digest) -> Report {
    let mut report = passed(order);
    (report.verdict, report.reason) = (Judgement::Rejected, "web-smoke fails".into());
    let baseline = &mut report.baselines[0];
    baseline.verdict = Judgement::Rejected;
    let steps = vec![
        step("page", Some(Verdict::Regression), Status::Fail),
        step("load", Some(Verdict::Regression), Status::Pass),
        step("config", Some(Verdict::Pass), Status::Pass),
        step("old", Some(Verdict::PreExisting), Status::Fail),
        step("after it", Some(Verdict::Missing), Status::Skip),
    ];
    baseline.scenarios = vec![ran("web-smoke", Phase::Applied, Verdict::Regression, steps)];
    baseline.rollback = RollbackReport::skipped("the patch was rejected before");
    baseline.objections = vec![
        of_scenario("web-smoke", Phase::Applied, Verdict::Regression),
        objection(Judgement::Missing, About::Rollback),
    ];
    report
}

fn signed_order(rollback: RollbackClass) -> Envelope {
    Envelope::sign(Order { rollback, ..order() }, &key(Role::Drafter))
}

fn waiver(order: &Envelope, waived: Waived) -> Waiver {
    Waiver {
        order: order.digest(),
        baseline: "b@1".into(),
        baseline_digest: Digest::of("b"),
        waived,
        class: self::order().class,
        hosts_at_most: 2,
        owner: "ann".into(),
        reason: "the page moves on Friday".into(),
        at: now(),
        not_after: now().checked_add(48.hours()).unwrap(),
    }
}

fn smoke() -> Waived {
    Waived::Scenario("web-smoke".into())
}

fn sign(waiver: Waiver) -> Envelope {
    Envelope::sign(waiver, &key(Role::Approver))
}

fn asked(order: &Envelope, report: &Report, waivers: &[Envelope]) -> Result<Release, Refused> {
    release(&root(), order, Some(report), waivers, &[], now())
}

#[test]
fn an_order_with_waivers_of_all_that_was_found_is_released_as_what_it_is() {
    let order = signed_order(RollbackClass::Proven);
    let report = rejected(order.digest());
    let refused = asked(&order, &report, &[]).unwrap_err();
    assert_eq!(refused.refusal, Refusal::NotReleased);
    for word in ["web-smoke fails", "page failed on b@1", "waivers of scenario web-smoke on b@1, the way back on b@1"] {
        assert!(refused.reason.contains(word), "{refused}");
    }
    let waivers = [smoke(), Waived::WayBack].map(|waived| sign(waiver(&order, waived)));
    for one in &waivers {
        assert_eq!(asked(&order, &report, std::slice::from_ref(one)).unwrap_err().refusal, Refusal::NotReleased);
    }
    let idle = sign(Waiver { owner: "bob".into(), ..waiver(&order, Waived::Scenario("db".into())) });
    let said = asked(&order, &report, &[idle, waivers[0].clone(), waivers[1].clone()]).unwrap();
    assert_eq!(said.result, TestResult::Warned);
    assert_eq!(said.failed_tests, ["b@1/applied/web-smoke/page", "b@1/applied/web-smoke/load"]);
    assert_eq!(
        (said.warned_tests, said.passed_tests),
        (vec!["b@1/applied/web-smoke/old".into()], vec!["b@1/applied/web-smoke/config".to_owned()])
    );
    assert_eq!(said.proof.baselines[0].rollback, Rollback::Skipped);
    assert_eq!(said.proof.waivers, waivers, "only those that cover something go along");
    // The signer decides by itself.
    let ask = |waivers: Vec<Envelope>| {
        let verdict = serde_json::to_string(&report).unwrap();
        answer(&key(Role::Releaser), &root(), &Request { order: order.clone(), verdict, waivers }, now())
    };
    assert!(matches!(ask(waivers.to_vec()), Answer::Released(_)));
    assert!(matches!(ask(vec![]), Answer::Refused { refusal: Refusal::NotReleased, .. }));
}

#[test]
fn a_waiver_that_does_not_count_is_named() {
    let order = signed_order(RollbackClass::Proven);
    let report = rejected(order.digest());
    let way_back = sign(waiver(&order, Waived::WayBack));
    let refusal = |scenario: Envelope, revoked: &[Digest], now| {
        release(&root(), &order, Some(&report), &[scenario, way_back.clone()], revoked, now).err().map(|no| no.refusal)
    };
    let good = waiver(&order, smoke());
    let digest = sign(good.clone()).digest();
    assert_eq!(refusal(sign(good.clone()), &[], now()), None);
    assert_eq!(refusal(sign(good.clone()), &[digest], now()), Some(Refusal::Revoked));
    let later = now().checked_add(49.hours()).unwrap();
    assert_eq!(refusal(sign(good.clone()), &[], later), Some(Refusal::Expired));
    assert_eq!(refusal(Envelope::sign(good, &key(Role::Operator)), &[], now()), Some(Refusal::BadSignature));
}

#[test]
fn what_nobody_can_judge_nobody_can_waive() {
    type Change = fn(&mut Report);
    let cases: [(&str, Change); 15] = [
        ("the lab broke in all", |r| r.verdict = Judgement::LabError),
        ("nothing ran", |r| r.verdict = Judgement::Missing),
        ("it cannot be applied", |r| r.verdict = Judgement::Inapplicable),
        ("no baseline", |r| r.baselines.clear()),
        ("no transaction", |r| r.baselines[0].transaction.clear()),
        ("another order", |r| r.order = Digest::of("another")),
        ("the lab broke on the baseline", |r| r.baselines[0].verdict = Judgement::LabError),
        ("nothing ran on the baseline", |r| r.baselines[0].verdict = Judgement::Missing),
        ("an older lab did not say all", |r| r.baselines[0].objections.clear()),
        ("the lab broke besides", |r| {
            r.baselines[0].objections.push(objection(Judgement::LabError, About::Apply));
        }),
        ("nothing meaningful passed besides", |r| {
            r.baselines[0].objections.push(objection(Judgement::Missing, About::Evidence));
        }),
        ("another scenario is flaky", |r| {
            r.baselines[0].objections.push(of_scenario("db", Phase::Applied, Verdict::Flaky));
        }),
        ("a step of the scenario is flaky", |r| {
            r.baselines[0].scenarios[0].steps.push(step("s", Some(Verdict::Flaky), Status::Fail));
        }),
        ("the machine is lost", |r| {
            r.baselines[0].scenarios[0].name = THE_MACHINE.into();
            r.baselines[0].objections[0] = of_scenario(THE_MACHINE, Phase::Applied, Verdict::Regression);
        }),
        ("no step says why", |r| r.baselines[0].scenarios.clear()),
    ];
    let order = signed_order(RollbackClass::Proven);
    for (what, change) in cases {
        let mut report = rejected(order.digest());
        change(&mut report);
        let all = [smoke(), Waived::WayBack, Waived::Scenario("db".into()), Waived::Scenario(THE_MACHINE.into())];
        let waivers = all.map(|waived| sign(waiver(&order, waived)));
        let refused = asked(&order, &report, &waivers).unwrap_err();
        assert_eq!(refused.refusal, Refusal::NotReleased, "{what}: {refused}");
        // And none is taken in that would say so.
        for waiver in &waivers {
            let taken = waive(&root(), &order, Some(&report), waiver, &[], now());
            assert_eq!(taken.unwrap_err().refusal, Refusal::NotReleased, "{what}");
        }
    }
    assert_eq!(release(&root(), &order, None, &[], &[], now()).unwrap_err().refusal, Refusal::NotReleased);
}

#[test]
fn an_order_without_a_proven_way_back_ships_by_a_waiver_of_that_alone() {
    for none in [RollbackClass::SnapshotOnly, RollbackClass::Impossible] {
        let order = signed_order(none);
        let mut report = passed(order.digest());
        let refused = asked(&order, &report, &[]).unwrap_err();
        assert!(refused.reason.contains("waivers of the way back on b@1"), "{refused}");
        let way_back = sign(waiver(&order, Waived::WayBack));
        let said = asked(&order, &report, std::slice::from_ref(&way_back)).unwrap();
        assert_eq!((said.result, said.failed_tests.len()), (TestResult::Warned, 0));
        // The lab walked it, and it failed: that is what the order says.
        (report.verdict, report.baselines[0].verdict) = (Judgement::Rejected, Judgement::Rejected);
        report.baselines[0].rollback = RollbackReport::failed("files are left");
        report.baselines[0].objections = vec![objection(Judgement::Rejected, About::Rollback)];
        assert_eq!(asked(&order, &report, &[way_back]).unwrap().proof.baselines[0].rollback, Rollback::Failed);
    }
    // A class that the lab says is worse than its status.
    let order = signed_order(RollbackClass::Proven);
    let mut report = passed(order.digest());
    report.baselines[0].rollback.class = Some(Found::SnapshotOnly);
    assert_eq!(asked(&order, &report, &[]).unwrap_err().refusal, Refusal::NotReleased);
    assert!(asked(&order, &report, &[sign(waiver(&order, Waived::WayBack))]).is_ok());
    // What an order promises over written data is tried, not waived.
    let order = signed_order(RollbackClass::ProvenAfterWrites);
    let report = passed(order.digest());
    assert!(asked(&order, &report, &[sign(waiver(&order, Waived::WayBack))]).is_err());
}

#[test]
fn a_scenario_that_fails_after_the_rollback_is_the_way_backs() {
    let order = signed_order(RollbackClass::Proven);
    let mut report = rejected(order.digest());
    let baseline = &mut report.baselines[0];
    baseline.scenarios[0].phase = Phase::RolledBack;
    baseline.rollback = passed(order.digest()).baselines.remove(0).rollback;
    baseline.objections = vec![of_scenario("web-smoke", Phase::RolledBack, Verdict::Regression)];
    assert!(asked(&order, &report, &[sign(waiver(&order, smoke()))]).is_err());
    assert!(asked(&order, &report, &[sign(waiver(&order, Waived::WayBack))]).is_ok());
}

#[test]
fn each_baseline_needs_its_own() {
    let order = signed_order(RollbackClass::Impossible);
    let mut report = passed(order.digest());
    let mut other = report.baselines[0].clone();
    (other.name, other.digest) = ("c@1".into(), Digest::of("c"));
    report.baselines.push(other);
    let first = sign(waiver(&order, Waived::WayBack));
    assert!(asked(&order, &report, std::slice::from_ref(&first)).is_err());
    let other = Waiver { baseline: "c@1".into(), baseline_digest: Digest::of("c"), ..waiver(&order, Waived::WayBack) };
    assert_eq!(asked(&order, &report, &[first, sign(other)]).unwrap().proof.waivers.len(), 2);
}

#[test]
fn a_waiver_is_taken_in_only_for_what_was_found() {
    let order = signed_order(RollbackClass::Proven);
    let report = rejected(order.digest());
    let taken = |waiver: &Envelope| waive(&root(), &order, Some(&report), waiver, &[], now());
    assert_eq!(taken(&sign(waiver(&order, smoke()))), Ok(waiver(&order, smoke())));
    type Change = fn(&mut Waiver);
    let cases: [(Refusal, Change); 7] = [
        (Refusal::NotReleased, |w| w.waived = Waived::Scenario("db".into())),
        (Refusal::NotReleased, |w| w.baseline = "c@1".into()),
        (Refusal::NotReleased, |w| w.baseline_digest = Digest::of("c")),
        (Refusal::NotReleased, |w| w.order = Digest::of("another")),
        (Refusal::NotMyClass, |w| w.class.release = "13".into()),
        (Refusal::Expired, |w| (w.at, w.not_after) = (now() - 9.hours(), now() - 1.hours())),
        (Refusal::Expired, |w| w.at = now() + 1.hours()),
    ];
    for (refusal, change) in cases {
        let mut changed = waiver(&order, smoke());
        change(&mut changed);
        let no = taken(&sign(changed.clone())).unwrap_err();
        assert_eq!(no.refusal, refusal, "{changed:?}: {no}");
    }
    let by = |role| taken(&Envelope::sign(waiver(&order, smoke()), &key(role))).unwrap_err().refusal;
    for role in [Role::Root, Role::Drafter, Role::Releaser, Role::Activator, Role::Operator] {
        assert_eq!(by(role), Refusal::BadSignature);
    }
    let way = passed(order.digest());
    let nothing = waive(&root(), &order, Some(&way), &sign(waiver(&order, smoke())), &[], now()).unwrap_err();
    assert!(nothing.reason.contains("nothing to waive"), "{nothing}");
    assert!(waive(&root(), &order, None, &sign(waiver(&order, smoke())), &[], now()).is_err());
}
