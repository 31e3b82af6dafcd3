use patchlab_check::{Digest, Status};

use super::*;
use crate::{
    report::{QuarantinedScenario, SCHEMA, SkippedScenario},
    scenario::Standing,
    verdict::tests::baseline,
};

fn report() -> Report {
    let outcome = |status, exit| Outcome {
        status,
        exit,
        ms: 1500,
        output: "nginx: [emerg] unknown directive \"turbo_mode\" <&>\u{1b}[0m".into(),
        reason: if status == Status::Pass { String::new() } else { "exit 1, expected 0".into() },
        samples: Vec::new(),
    };
    let step = |name: &str, verdict, control, patched| StepReport {
        name: name.into(),
        verdict,
        control: Some(outcome(control, Some(0))),
        patched: Some(outcome(patched, Some(1))),
        metric: None,
        failed: None,
    };
    let steps = vec![
        step("front page", Some(Verdict::Pass), Status::Pass, Status::Pass),
        step("config", Some(Verdict::Regression), Status::Pass, Status::Fail),
        step("old sin", Some(Verdict::PreExisting), Status::Fail, Status::Fail),
        step("no docker", None, Status::Skip, Status::Skip),
    ];
    let scenario = ScenarioReport {
        name: "web-smoke".into(),
        phase: Phase::Applied,
        verdict: Verdict::Regression,
        reason: "config: exit 1, expected 0, and the control passes".into(),
        steps,
    };
    let mut rebooted = scenario.clone();
    rebooted.phase = Phase::Rebooted;
    rebooted.steps.truncate(1);
    Report {
        schema: SCHEMA,
        order: Digest::of("order"),
        id: "PO-2026-0002".into(),
        verdict: Judgement::Rejected,
        reason: "r".into(),
        baselines: vec![baseline("debian-12-web@1", Judgement::Rejected, vec![scenario, rebooted])],
        total_ms: 9000,
        bisection: None,
    }
}

#[test]
fn a_rejected_order_as_junit() {
    let xml = render(&[report()], &[]).unwrap();
    assert!(xml.contains(r#"<testsuite name="debian-12-web@1" tests="7" skipped="2""#), "{xml}");
    assert!(xml.contains(r#"errors="0" failures="2""#), "{xml}");
    assert!(xml.contains(r#"<testcase name="config" classname="debian-12-web@1.web-smoke" time="1.500">"#), "{xml}");
    let said = "regression after the patch: web-smoke/config: fails, exit 1, expected 0; the control passes (exit 0)";
    assert!(xml.contains(&format!(r#"<failure message="{said}" type="regression"/>"#)), "{xml}");
    assert!(xml.contains(r#"name="front page (after the reboot)""#), "{xml}");
    // What XML cannot carry does not get into it.
    assert!(!xml.contains('\u{1b}') && xml.contains("&lt;&amp;&gt;"), "{xml}");
}

#[test]
fn a_scenario_in_quarantine_fails_nothing_and_nothing_is_left_out_without_a_word() {
    let mut report = report();
    report.baselines[0].quarantined = vec![QuarantinedScenario {
        name: "web-smoke".into(),
        standing: Standing::Holds,
        owner: "qa-web".into(),
        until: "2027-01-31".into(),
        ticket: "QA-7".into(),
    }];
    report.baselines[0].skipped =
        vec![SkippedScenario { name: "desktop".into(), reason: "requires a screen: none".into() }];
    let xml = render(&[report], &[]).unwrap();
    // The verdict's own case is the one failure left.
    assert!(xml.contains(r#"errors="0" failures="1""#), "{xml}");
    assert!(xml.contains("in quarantine, counts for nothing: regression after the patch: web-smoke/config"), "{xml}");
    assert!(xml.contains("web-smoke is in quarantine until 2027-01-31, owner qa-web, QA-7"), "{xml}");
    assert!(xml.contains(r#"name="requires" classname="debian-12-web@1.desktop""#), "{xml}");
    assert!(xml.contains(r#"<skipped message="requires a screen: none"/>"#), "{xml}");
}

#[test]
fn a_step_that_tells_nothing_says_phase_command_and_control() {
    let mut report = report();
    let ran = &mut report.baselines[0].scenarios[0];
    ran.reason = "machine patched: no agent answered".into();
    ran.steps.truncate(2);
    ran.steps[0].verdict = Some(Verdict::Missing);
    ran.steps[0].patched.as_mut().unwrap().status = Status::Skip;
    ran.steps[1].verdict = Some(Verdict::LabError);
    ran.steps[1].patched = None;
    let xml = render(&[report], &[]).unwrap();
    let missing = "missing after the patch: web-smoke/front page: is skipped (exit 1); the control passes (exit 0); \
                   machine patched: no agent answered";
    assert!(xml.contains(&format!(r#"<error message="{missing}" type="missing"/>"#)), "{xml}");
    let broke = "lab-error after the patch: web-smoke/config: did not run; the control passes (exit 0); machine \
                 patched: no agent answered";
    assert!(xml.contains(&format!(r#"<error message="{broke}" type="lab-error"/>"#)), "{xml}");
}

#[test]
fn without_a_baseline_there_is_still_one_case() {
    let report = Report { baselines: Vec::new(), verdict: Judgement::Missing, ..report() };
    let xml = render(&[report], &[]).unwrap();
    assert!(xml.contains(r#"<error message="r" type="missing"/>"#), "{xml}");
}

#[test]
fn suites_of_several_orders_are_told_apart() {
    let other = Report { id: "PO-2026-0003".into(), ..report() };
    let xml = render(&[report(), other], &[]).unwrap();
    for name in ["PO-2026-0002.debian-12-web@1", "PO-2026-0003.debian-12-web@1"] {
        assert!(xml.contains(&format!(r#"<testsuite name="{name}""#)), "{xml}");
    }
}

#[test]
fn the_json_has_the_designs_keys() {
    let json = serde_json::to_value(report()).unwrap();
    for key in ["schema", "order", "verdict", "reason", "baselines"] {
        assert!(json.get(key).is_some(), "{key}");
    }
    assert_eq!(json["verdict"], "rejected");
    let baseline = &json["baselines"][0];
    for key in
        ["name", "digest", "verdict", "reason", "scenarios", "rollback", "transaction", "apply_ms", "rollback_ms"]
    {
        assert!(baseline.get(key).is_some(), "{key}");
    }
    assert_eq!(baseline["rollback"]["status"], "proven");
    let step = &baseline["scenarios"][0]["steps"][1];
    assert_eq!(step["name"], "config");
    assert_eq!(step["patched"]["status"], "fail");
    assert_eq!(step["patched"]["exit"], 1);
    assert_eq!(step["control"]["ms"], 1500);
    assert_eq!(serde_json::from_value::<Report>(json).unwrap(), report());
}
