//! The gate as a table: each row changes one thing on a way that is open, and names the refusal it must meet.

use jiff::ToSpan as _;
use patchlab_lab::{
    report::{Report, RollbackClass as Found, RollbackStatus, SCHEMA},
    verdict::Judgement,
};
use patchlab_protocol::{
    Audience, SigningKey,
    document::{
        Action, Activation, Kind, OnFailure, Origin, PackageFile, Release, RollbackClass, RollbackFiles, RootKey,
        Scheme, Severity,
    },
};
use rstest::rstest;

use super::*;
use crate::trust::signer::{Answer, Request, answer};

const ROLES: [(Role, u8); 6] = [
    (Role::Root, 1),
    (Role::Drafter, 2),
    (Role::Releaser, 3),
    (Role::Approver, 4),
    (Role::Activator, 5),
    (Role::Operator, 6),
];

pub(crate) fn key(role: Role) -> SigningKey {
    SigningKey::from_seed(&[ROLES.iter().find(|(r, _)| *r == role).unwrap().1; 32])
}

pub(crate) fn root() -> Root {
    Root {
        version: 1,
        expires: now().checked_add(1000.hours()).unwrap(),
        audience: Audience::Production,
        keys: ROLES
            .iter()
            .map(|(role, _)| RootKey {
                holder: "test".into(),
                roles: vec![*role],
                audience: Audience::Production,
                scheme: Scheme::Ed25519,
                public: key(*role).public(),
            })
            .collect(),
        thresholds: Default::default(),
    }
}

fn now() -> Timestamp {
    "2026-05-01T12:00:00Z".parse().unwrap()
}

pub(crate) fn order() -> Order {
    Order {
        id: "PO-1".into(),
        title: "t".into(),
        severity: Severity::Important,
        kind: Kind::Routine,
        advisories: vec![],
        class: class("debian-12-x86_64").unwrap(),
        install: vec![PackageFile {
            name: "nginx".into(),
            version: "2".into(),
            arch: "amd64".into(),
            size: 1,
            sha256: Digest::of("x"),
            origin: Origin::VendorSigned,
        }],
        replaces: vec![],
        production: vec![],
        after: vec![],
        supersedes: vec![],
        rollback: RollbackClass::Proven,
        not_after: None,
        on_failure: OnFailure::Leave,
        rollback_files: RollbackFiles::WhenNeeded,
        reboot: None,
        script: None,
    }
}

fn sign<P: patchlab_protocol::envelope::Predicate>(predicate: P, role: Role) -> Envelope {
    Envelope::sign(predicate, &key(role))
}

/// A verdict that passed on one baseline, as the lab writes it.
pub(crate) fn passed(order: Digest) -> Report {
    let text = serde_json::json!({
        "schema": SCHEMA, "order": order, "id": "PO-1", "verdict": "passed", "reason": "", "total_ms": 60_000,
        "baselines": [{
            "name": "b@1", "digest": Digest::of("b"), "verdict": "passed", "reason": "", "scenarios": [],
            "rollback": { "status": "proven", "reason": "" }, "transaction": ["upgrade nginx amd64 1 -> 2"],
            "reboot_needed": false, "apply_ms": 5000, "rollback_ms": 4000, "total_ms": 60_000,
        }],
    });
    Report::from_json(text.to_string().as_bytes()).unwrap()
}

/// The gate, where nobody waived anything.
fn asked(envelope: &Envelope, verdict: Option<&Report>) -> Result<Release, Refused> {
    release(&root(), envelope, verdict, &[], &[], now())
}

type Change = fn(&mut Order, &mut Report);

#[rstest]
#[case::open(|_: &mut Order, _: &mut Report| {}, None)]
#[case::rejected(|_: &mut Order, v: &mut Report| v.verdict = Judgement::Rejected, Some(Refusal::NotReleased))]
#[case::lab_error(|_: &mut Order, v: &mut Report| v.verdict = Judgement::LabError, Some(Refusal::NotReleased))]
#[case::missing(|_: &mut Order, v: &mut Report| v.verdict = Judgement::Missing, Some(Refusal::NotReleased))]
#[case::inapplicable(|_: &mut Order, v: &mut Report| v.verdict = Judgement::Inapplicable, Some(Refusal::NotReleased))]
#[case::one_baseline_rejected(|_: &mut Order, v: &mut Report| v.baselines[0].verdict = Judgement::Rejected, Some(Refusal::NotReleased))]
#[case::no_baseline(|_: &mut Order, v: &mut Report| v.baselines.clear(), Some(Refusal::NotReleased))]
#[case::another_order(|_: &mut Order, v: &mut Report| v.order = Digest::of("another"), Some(Refusal::NotReleased))]
#[case::rollback_failed(|_: &mut Order, v: &mut Report| v.baselines[0].rollback.status = RollbackStatus::Failed, Some(Refusal::NotReleased))]
#[case::rollback_skipped(|_: &mut Order, v: &mut Report| v.baselines[0].rollback.status = RollbackStatus::Skipped, Some(Refusal::NotReleased))]
#[case::snapshot_only(|_: &mut Order, v: &mut Report| v.baselines[0].rollback.class = Some(Found::SnapshotOnly), Some(Refusal::NotReleased))]
#[case::impossible(|_: &mut Order, v: &mut Report| v.baselines[0].rollback.class = Some(Found::Impossible), Some(Refusal::NotReleased))]
#[case::more_than_promised(|_: &mut Order, v: &mut Report| v.baselines[0].rollback.class = Some(Found::ProvenAfterWrites), None)]
#[case::writes_promised(|o: &mut Order, _: &mut Report| o.rollback = RollbackClass::ProvenAfterWrites, Some(Refusal::NotReleased))]
#[case::writes_kept(|o: &mut Order, v: &mut Report| { o.rollback = RollbackClass::ProvenAfterWrites; v.baselines[0].rollback.class = Some(Found::ProvenAfterWrites) }, None)]
#[case::no_transaction(|_: &mut Order, v: &mut Report| v.baselines[0].transaction.clear(), Some(Refusal::NotReleased))]
#[case::no_way_back(|o: &mut Order, _: &mut Report| o.rollback = RollbackClass::Impossible, Some(Refusal::NotReleased))]
fn release_table(#[case] change: Change, #[case] expected: Option<Refusal>) {
    let mut order = order();
    let mut found = passed(Digest::of("set below"));
    let mut probe = passed(Digest::of("set below"));
    change(&mut order, &mut probe);
    let envelope = sign(order, Role::Drafter);
    found.order = envelope.digest();
    change(&mut self::order(), &mut found);
    assert_eq!(asked(&envelope, Some(&found)).err().map(|refused| refused.refusal), expected);
}

#[test]
fn no_verdict_and_no_drafter_release_nothing() {
    let envelope = sign(order(), Role::Drafter);
    assert_eq!(asked(&envelope, None).unwrap_err().refusal, Refusal::NotReleased);
    let stranger = sign(order(), Role::Approver);
    let found = passed(stranger.digest());
    assert_eq!(asked(&stranger, Some(&found)).unwrap_err().refusal, Refusal::BadSignature);
}

#[test]
fn the_signer_asks_the_gate_itself() {
    let envelope = sign(order(), Role::Drafter);
    let json = |verdict: Judgement, order: Digest| {
        let mut report = passed(order);
        (report.verdict, report.baselines[0].verdict) = (verdict, verdict);
        serde_json::to_string(&report).unwrap()
    };
    let ask = |verdict: String| {
        let request = Request { order: envelope.clone(), verdict, waivers: vec![] };
        answer(&key(Role::Releaser), &root(), &request, now())
    };
    match ask(json(Judgement::Passed, envelope.digest())) {
        Answer::Released(signed) => {
            let read = check_release(&root(), &envelope, &signed, &[], now()).unwrap();
            assert_eq!(read.release.proof.baselines[0].transaction, ["upgrade nginx amd64 1 -> 2"]);
        }
        Answer::Refused { reason, .. } => panic!("{reason}"),
    }
    for bad in [
        json(Judgement::Rejected, envelope.digest()),
        json(Judgement::Passed, Digest::of("another")),
        "{}".into(),
        String::new(),
    ] {
        assert!(matches!(ask(bad), Answer::Refused { refusal: Refusal::NotReleased, .. }));
    }
}

struct Way {
    order: Envelope,
    release: Envelope,
    approval: Envelope,
}

fn way() -> Way {
    let order = sign(order(), Role::Drafter);
    let proof = crate::trust::release::release(&passed(order.digest()), &self::order(), now());
    let release = sign(proof, Role::Releaser);
    let approval = sign(approval(&order, &release), Role::Approver);
    Way { order, release, approval }
}

fn approval(order: &Envelope, release: &Envelope) -> Approval {
    Approval {
        approver: "ann".into(),
        order: order.digest(),
        release: release.digest(),
        hosts_at_most: 1,
        at: now(),
        not_after: now().checked_add(24.hours()).unwrap(),
    }
}

#[rstest]
#[case::open(|_: &mut Approval| {}, Role::Approver, None)]
#[case::not_an_approver(|_: &mut Approval| {}, Role::Operator, Some(Refusal::BadSignature))]
#[case::another_order(|a: &mut Approval| a.order = Digest::of("another"), Role::Approver, Some(Refusal::NotApproved))]
#[case::another_release(|a: &mut Approval| a.release = Digest::of("another"), Role::Approver, Some(Refusal::NotApproved))]
#[case::for_nobody(|a: &mut Approval| a.hosts_at_most = 0, Role::Approver, Some(Refusal::NotApproved))]
#[case::ahead(|a: &mut Approval| a.at = now().checked_add(1.hours()).unwrap(), Role::Approver, Some(Refusal::Expired))]
#[case::too_late(|a: &mut Approval| a.not_after = "2026-04-01T00:00:00Z".parse().unwrap(), Role::Approver, Some(Refusal::Expired))]
fn approval_table(#[case] change: fn(&mut Approval), #[case] by: Role, #[case] expected: Option<Refusal>) {
    let way = way();
    let mut said = approval(&way.order, &way.release);
    change(&mut said);
    let envelope = sign(said, by);
    let asked = approve(&root(), &way.order, Some(&way.release), &envelope, &[], now());
    assert_eq!(asked.err().map(|refused| refused.refusal), expected);
    let unreleased = approve(&root(), &way.order, None, &envelope, &[], now());
    assert_eq!(unreleased.unwrap_err().refusal, Refusal::NotReleased);
}

#[rstest]
#[case::open(|_: &mut Activation| {}, Role::Activator, "web-1", "debian-12-x86_64", None)]
#[case::operators_do_not_apply(|_: &mut Activation| {}, Role::Operator, "web-1", "debian-12-x86_64", Some(Refusal::BadSignature))]
#[case::operators_roll_back(|a: &mut Activation| a.action = Action::Rollback, Role::Operator, "web-1", "debian-12-x86_64", None)]
#[case::another_host(|_: &mut Activation| {}, Role::Activator, "web-9", "debian-12-x86_64", Some(Refusal::NotActive))]
#[case::another_class(|_: &mut Activation| {}, Role::Activator, "web-1", "debian-11-x86_64", Some(Refusal::NotMyClass))]
#[case::ahead(|a: &mut Activation| a.at = now().checked_add(1.hours()).unwrap(), Role::Activator, "web-1", "debian-12-x86_64", Some(Refusal::Expired))]
#[case::back_and_ahead(|a: &mut Activation| (a.action, a.at) = (Action::Rollback, now().checked_add(9000.hours()).unwrap()), Role::Operator, "web-1", "debian-12-x86_64", Some(Refusal::Expired))]
#[case::back_from_another_release(|a: &mut Activation| a.action = Action::Rollback, Role::Operator, "web-1", "debian-12.1-x86_64", None)]
#[case::too_many(|a: &mut Activation| a.hosts.push("web-2".into()), Role::Activator, "web-1", "debian-12-x86_64", Some(Refusal::NotApproved))]
#[case::too_late(|a: &mut Activation| a.not_after = "2026-04-01T00:00:00Z".parse().unwrap(), Role::Activator, "web-1", "debian-12-x86_64", Some(Refusal::Expired))]
#[case::another_order(|a: &mut Activation| a.order = Digest::of("another"), Role::Activator, "web-1", "debian-12-x86_64", Some(Refusal::NotActive))]
fn activation_table(
    #[case] change: fn(&mut Activation),
    #[case] by: Role,
    #[case] host: &str,
    #[case] class: &str,
    #[case] expected: Option<Refusal>,
) {
    let way = way();
    let mut said = Activation {
        order: way.order.digest(),
        action: Action::Apply,
        site: "lab".into(),
        wave: 1,
        hosts: vec!["web-1".into()],
        at: now(),
        not_before: now(),
        not_after: now().checked_add(8.hours()).unwrap(),
    };
    change(&mut said);
    let envelope = sign(said, by);
    let documents = Documents {
        order: &way.order,
        release: Some(&way.release),
        approval: Some(&way.approval),
        activation: Some(&envelope),
    };
    let asked = activate(&root(), &documents, &Ledger::default(), [(host, self::class(class))], now());
    assert_eq!(asked.err().map(|refused| refused.refusal), expected);
}

#[test]
fn what_was_revoked_is_refused_by_name_and_the_way_back_stays_open() {
    let way = way();
    let activation = |action| Activation {
        order: way.order.digest(),
        action,
        site: "lab".into(),
        wave: 1,
        hosts: vec!["web-1".into()],
        at: now(),
        not_before: now(),
        not_after: now().checked_add(8.hours()).unwrap(),
    };
    let refusal = |action, revoked: &Envelope| {
        let signed = sign(activation(action), Role::Activator);
        let documents = Documents {
            order: &way.order,
            release: Some(&way.release),
            approval: Some(&way.approval),
            activation: Some(&signed),
        };
        let ledger = Ledger { revoked: vec![revoked.digest()], ..Ledger::default() };
        activate(&root(), &documents, &ledger, [("web-1", None)], now()).err().map(|refused| refused.refusal)
    };
    for revoked in [&way.order, &way.release, &way.approval] {
        assert_eq!(refusal(Action::Apply, revoked), Some(Refusal::Revoked));
        assert_eq!(refusal(Action::Rollback, revoked), None);
    }
    let activated = sign(activation(Action::Rollback), Role::Activator);
    assert_eq!(refusal(Action::Rollback, &activated), Some(Refusal::Revoked));

    let (order, other) = (way.order.digest(), Digest::of("other"));
    let asked = |documents: [(&str, Option<Digest>); 2]| not_revoked(&[order], documents);
    let no = asked([("release", Some(other)), ("order", Some(order))]).unwrap_err();
    assert_eq!((no.refusal, no.reason.starts_with("order ")), (Refusal::Revoked, true), "{no}");
    assert!(asked([("release", Some(other)), ("approval", None)]).is_ok());
}

#[test]
fn an_order_that_was_superseded_names_its_successor() {
    assert_eq!(not_superseded("PO-1", None, Refusal::NotActive), Ok(()));
    let no = not_superseded("PO-1", Some("PO-2"), Refusal::NotActive).unwrap_err();
    assert_eq!(no.refusal, Refusal::NotActive);
    assert!(no.reason.contains("PO-1 is superseded by PO-2"), "{no}");
}

#[test]
fn what_is_missing_has_a_name() {
    let way = way();
    let digest = Some(Digest::of("x"));
    let refusal = |release, approval| ready_to_apply(&way.order, release, approval).unwrap_err().refusal;
    assert_eq!(refusal(None, digest), Refusal::NotReleased);
    assert_eq!(refusal(digest, None), Refusal::NotApproved);
    assert!(ready_to_apply(&way.order, digest, digest).is_ok());
}
