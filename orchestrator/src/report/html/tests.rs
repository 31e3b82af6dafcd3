use patchlab_lab::{
    report::{RollbackReport, SCHEMA},
    verdict::{Judgement, Phase as When},
};
use patchlab_protocol::Digest;
use serde_json::json;

use super::*;
use crate::{
    gate::tests::{order, passed},
    report::TrustStory,
    store::{OrderRow, OrderState},
};

fn outcome(status: Status, output: &str, reason: &str) -> Option<Outcome> {
    Some(Outcome { status, exit: None, ms: 1_234, output: output.into(), reason: reason.into(), samples: Vec::new() })
}

fn rejected() -> Report {
    let mut report = passed(Digest::of("order"));
    report.verdict = Judgement::Rejected;
    report.reason = "front page: no connection".into();
    let baseline = &mut report.baselines[0];
    baseline.rollback = RollbackReport::skipped("rejected before");
    baseline.journal = vec!["nginx[1]: <emerg> unknown directive".into()];
    baseline.scenarios = vec![ScenarioReport {
        name: "web-smoke".into(),
        phase: When::Applied,
        verdict: Verdict::Regression,
        reason: "front page".into(),
        steps: vec![
            StepReport {
                name: "front page".into(),
                verdict: Some(Verdict::Regression),
                control: outcome(Status::Pass, "200 OK", ""),
                patched: outcome(Status::Fail, "<script>", "no connection"),
                metric: None,
                failed: None,
            },
            StepReport {
                name: "kernel".into(),
                verdict: Some(Verdict::Pass),
                control: outcome(Status::Pass, "quiet", ""),
                patched: outcome(Status::Pass, "quiet", ""),
                metric: None,
                failed: None,
            },
        ],
    }];
    report
}

fn bundle(report: &Report) -> Bundle {
    let digest = Digest::of("order");
    let row = OrderRow {
        superseded: None,
        waivers: 0,
        digest,
        id: "PO-1".into(),
        title: "nginx".into(),
        state: OrderState::Rejected,
        reason: String::new(),
        submitted_at: "2026-11-23T22:58:03.8Z".into(),
        changed_at: "2026-11-23T22:58:03.8Z".into(),
        revoked: None,
    };
    let story = OrderStory {
        order: row,
        document: serde_json::to_value(order()).unwrap(),
        verdict: Some(serde_json::to_value(report).unwrap()),
        release: None,
        waivers: vec![],
        approvals: vec![],
        deployments: vec![],
        runs: vec![],
        preparations: vec![],
    };
    Bundle {
        schema: super::super::SCHEMA.into(),
        at: "2026-11-23T23:00:59.03Z".into(),
        orders: vec![story],
        hosts: vec![],
        audit: vec![],
        audit_findings: vec![],
        trust: TrustStory {
            root_version: 3,
            root: Digest::of("root"),
            expires: "2027-01-02T03:04:05Z".parse().unwrap(),
            revocation_version: 7,
            warnings: vec![],
        },
    }
}

#[test]
fn an_expiring_root_stands_before_everything_else() {
    let mut bundle = bundle(&rejected());
    let page = html(&bundle).unwrap();
    assert!(page.contains("valid until 2027-01-02 03:04:05 UTC") && page.contains("revocation list 7"));
    assert!(!page.contains("needs somebody"));
    bundle.trust.warnings = vec!["root 3 expires in 4 days".into()];
    let page = html(&bundle).unwrap();
    let at = |text: &str| page.find(text).unwrap();
    assert!(at("needs somebody") < at("root 3 expires in 4 days") && at("root 3 expires in 4 days") < at("PO-1"));
}

#[test]
fn the_verdict_comes_first_and_a_broken_step_shows_both_clones() {
    let page = html(&bundle(&rejected())).unwrap();
    let at = |text: &str| page.find(text).unwrap_or_else(|| panic!("{text} is not in {page}"));
    let order = ["Will not ship: the lab rejected it.", "What it changes", "web-smoke: front page, after the patch"];
    assert!(order.map(at).is_sorted());
    assert!(at("<b>control</b>") < at("200 OK") && at("200 OK") < at("<b>patched</b>"));
    assert!(page.contains("no connection") && page.contains("in 1.2 s"));
    assert!(page.contains("not installed") && page.contains("2026-11-23 23:00:59 UTC"));
    // What passed on both is a line and no more.
    assert!(!page.contains("quiet"));
    assert!(page.contains(r#"<th scope="row">web-smoke: kernel</th>"#));
}

#[test]
fn a_machines_words_are_never_markup_and_the_page_asks_nobody() {
    let page = html(&bundle(&rejected())).unwrap();
    assert!(!page.contains("<script>") && !page.contains("<emerg>"));
    for outside in ["src=", "url(", "@import", "<link", "href=\"http"] {
        assert!(!page.contains(outside), "{outside}");
    }
}

#[test]
fn a_verdict_that_cannot_be_read_does_not_hide_the_order() {
    let mut bundle = bundle(&rejected());
    bundle.orders[0].verdict = Some(json!({ "schema": SCHEMA, "verdict": "new word" }));
    let page = html(&bundle).unwrap();
    assert!(page.contains("Will not ship") && page.contains("a verdict that this patchlab cannot read"));
    bundle.orders[0].verdict = None;
    assert!(html(&bundle).unwrap().contains("it was not validated"));
}
