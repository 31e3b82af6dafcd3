//! One test per threat: what an agent must refuse, by name, whatever SNMP said.

// JUSTIFICATION: helpers of tests may stop a test as tests do.
#![allow(clippy::unwrap_used)]

#[path = "authorization/waivers.rs"]
mod waivers;

use jiff::{SignedDuration, Timestamp};
use patchlab_protocol::{
    Audience, Authorized, Digest, Envelope, Ledger, Refusal, Refused, Role, SigningKey,
    authorization::{Documents, Identity, authorize, fit, foresee, newest_signed_time, prepare},
    document::{
        Action, Activation, Approval, Class, Kind, OnFailure, Order, Origin, PackageFile, Proof, Release,
        RollbackClass, RollbackFiles, Root, RootKey, Scheme, Script, Severity, ShippedFile, TestResult,
    },
};

fn now() -> Timestamp {
    "2026-03-01T12:00:00Z".parse().unwrap()
}

fn hours(hours: i64) -> SignedDuration {
    SignedDuration::from_hours(hours)
}

fn class() -> Class {
    Class { family: "debian".into(), release: "12".into(), arch: "x86_64".into() }
}

/// Everything that a good apply needs; tests change one thing each.
struct World {
    keys: [SigningKey; 6],
    root: Root,
    class: Class,
    ledger: Ledger,
    order: Envelope,
    release: Option<Envelope>,
    approval: Option<Envelope>,
    activation: Option<Envelope>,
    now: Timestamp,
}

const ROLES: [Role; 6] = [Role::Root, Role::Drafter, Role::Releaser, Role::Approver, Role::Activator, Role::Operator];

fn order(id: &str) -> Order {
    Order {
        id: id.into(),
        title: "nginx".into(),
        severity: Severity::Important,
        kind: Kind::Routine,
        advisories: vec![],
        class: class(),
        install: vec![PackageFile {
            name: "nginx".into(),
            version: "2".into(),
            arch: "amd64".into(),
            size: 1,
            sha256: Digest::of("nginx 2"),
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

fn release(order: Digest, result: TestResult) -> Release {
    let proof =
        Proof { order, class: class(), at: now() - hours(3), not_after: None, baselines: vec![], waivers: vec![] };
    Release { result, configuration: vec![], passed_tests: vec![], failed_tests: vec![], warned_tests: vec![], proof }
}

fn approval(order: Digest, release: Digest) -> Approval {
    Approval {
        approver: "alice".into(),
        order,
        release,
        hosts_at_most: 2,
        at: now() - hours(2),
        not_after: now() + hours(24),
    }
}

fn activation(order: Digest, action: Action) -> Activation {
    Activation {
        order,
        action,
        site: "hq".into(),
        wave: 1,
        hosts: vec!["web-1".into()],
        at: now() - hours(1),
        not_before: now() - hours(1),
        not_after: now() + hours(1),
    }
}

impl World {
    fn new() -> Self {
        let keys: [SigningKey; 6] = std::array::from_fn(|_| SigningKey::generate().unwrap());
        let root = Root {
            version: 1,
            expires: now() + hours(1000),
            audience: Audience::Production,
            keys: ROLES.iter().zip(&keys).map(|(role, key)| root_key(*role, key, Audience::Production)).collect(),
            thresholds: [].into(),
        };
        let mut world = Self {
            order: Envelope::sign(order("PO-1"), &keys[1]),
            keys,
            root,
            class: class(),
            ledger: Ledger::default(),
            release: None,
            approval: None,
            activation: None,
            now: now(),
        };
        let digest = world.order.digest();
        world.set_release(digest, TestResult::Passed, 2);
        world.set_approval(|_| (), 3);
        world.set_activation(|_| (), 4);
        world
    }

    fn set_release(&mut self, order: Digest, result: TestResult, key: usize) {
        let release = release(order, result);
        self.release = Some(Envelope::sign(release, &self.keys[key]));
    }

    fn set_approval(&mut self, change: impl FnOnce(&mut Approval), key: usize) {
        let mut document = approval(self.order.digest(), self.release.as_ref().unwrap().digest());
        change(&mut document);
        self.approval = Some(Envelope::sign(document, &self.keys[key]));
    }

    fn set_activation(&mut self, change: impl FnOnce(&mut Activation), key: usize) {
        let mut document = activation(self.order.digest(), Action::Apply);
        change(&mut document);
        self.activation = Some(Envelope::sign(document, &self.keys[key]));
    }

    /// The same with another order.
    fn set_order(&mut self, order: Order) {
        self.order = Envelope::sign(order, &self.keys[1]);
        self.set_release(self.order.digest(), TestResult::Passed, 2);
        self.set_approval(|_| (), 3);
        self.set_activation(|_| (), 4);
    }

    fn decide(&self) -> Result<Action, Refusal> {
        self.permitted().map(|authorized| authorized.action())
    }

    fn permitted(&self) -> Result<Authorized, Refusal> {
        self.asked().map_err(|refused| refused.refusal)
    }

    fn asked(&self) -> Result<Authorized, Refused> {
        let documents = Documents {
            order: &self.order,
            release: self.release.as_ref(),
            approval: self.approval.as_ref(),
            activation: self.activation.as_ref(),
        };
        let identity = Identity { host: "web-1", class: &self.class };
        authorize(&self.root, &identity, &documents, &self.ledger, self.now)
    }
}

impl World {
    /// The newest signed time that raises the floor.
    fn newest(&self) -> Option<Timestamp> {
        let documents = Documents {
            order: &self.order,
            release: self.release.as_ref(),
            approval: self.approval.as_ref(),
            activation: self.activation.as_ref(),
        };
        newest_signed_time(&self.root, &documents, self.now)
    }

    /// What is foreseen: the action and how long its window stays shut.
    fn look_ahead(&self, not_before: Option<Timestamp>) -> Result<(Action, SignedDuration), Refusal> {
        let documents = Documents {
            order: &self.order,
            release: self.release.as_ref(),
            approval: self.approval.as_ref(),
            activation: self.activation.as_ref(),
        };
        let identity = Identity { host: "web-1", class: &self.class };
        foresee(&self.root, &identity, &documents, &self.ledger, self.now, not_before)
            .map(|foreseen| (foreseen.action(), self.now.duration_until(foreseen.opens())))
            .map_err(|refused| refused.refusal)
    }
}

impl World {
    /// Whether order and release alone may be looked at and fetched.
    fn prepared(&self) -> Result<Action, Refusal> {
        let documents =
            Documents { order: &self.order, release: self.release.as_ref(), approval: None, activation: None };
        let identity = Identity { host: "web-1", class: &self.class };
        prepare(&self.root, &identity, &documents, &self.ledger, self.now)
            .map(|foreseen| foreseen.action())
            .map_err(|refused| refused.refusal)
    }
}

fn root_key(role: Role, key: &SigningKey, audience: Audience) -> RootKey {
    RootKey { holder: "test".into(), roles: vec![role], audience, scheme: Scheme::Ed25519, public: key.public() }
}

#[test]
fn all_four_documents_allow_apply() {
    assert_eq!(World::new().decide(), Ok(Action::Apply));
}

#[test]
fn a_missing_document_is_named() {
    let mut world = World::new();
    world.release = None;
    assert_eq!(world.decide(), Err(Refusal::NotReleased));
    let mut world = World::new();
    world.approval = None;
    assert_eq!(world.decide(), Err(Refusal::NotApproved));
    let mut world = World::new();
    world.activation = None;
    assert_eq!(world.decide(), Err(Refusal::NotActive));
}

#[test]
fn a_document_of_another_order_counts_for_nothing() {
    let other = Digest::of("another order");
    let mut world = World::new();
    world.set_release(other, TestResult::Passed, 2);
    world.set_approval(|_| (), 3);
    assert_eq!(world.decide(), Err(Refusal::NotReleased));
    let mut world = World::new();
    world.set_approval(|approval| approval.order = other, 3);
    assert_eq!(world.decide(), Err(Refusal::NotApproved));
    let mut world = World::new();
    world.set_approval(|approval| approval.release = other, 3);
    assert_eq!(world.decide(), Err(Refusal::NotApproved));
    let mut world = World::new();
    world.set_activation(|activation| activation.order = other, 4);
    assert_eq!(world.decide(), Err(Refusal::NotActive));
}

#[test]
fn a_signature_by_a_key_of_another_role_counts_for_nothing() {
    for (wrong, role) in ROLES.iter().enumerate() {
        let mut world = World::new();
        if wrong != 1 {
            world.order = Envelope::sign(order("PO-1"), &world.keys[wrong]);
            assert_eq!(world.decide(), Err(Refusal::BadSignature), "order signed by {role:?}");
        }
        let mut world = World::new();
        if wrong != 2 {
            world.set_release(world.order.digest(), TestResult::Passed, wrong);
            world.set_approval(|_| (), 3);
            assert_eq!(world.decide(), Err(Refusal::BadSignature), "release signed by {role:?}");
        }
        let mut world = World::new();
        if wrong != 3 {
            world.set_approval(|_| (), wrong);
            assert_eq!(world.decide(), Err(Refusal::BadSignature), "approval signed by {role:?}");
        }
        let mut world = World::new();
        if wrong != 4 {
            world.set_activation(|_| (), wrong);
            assert_eq!(world.decide(), Err(Refusal::BadSignature), "activation signed by {role:?}");
        }
    }
}

#[test]
fn an_altered_payload_breaks_the_signature() {
    let world = World::new();
    let mut json: serde_json::Value = serde_json::from_slice(&world.release.as_ref().unwrap().to_bytes()).unwrap();
    let mut altered = release(world.order.digest(), TestResult::Passed);
    altered.passed_tests.push("a test that never ran".into());
    let stranger = SigningKey::generate().unwrap();
    let forged: serde_json::Value = serde_json::from_slice(&Envelope::sign(altered, &stranger).to_bytes()).unwrap();
    json["payload"] = forged["payload"].clone();
    let mut world = world;
    world.release = Some(Envelope::from_bytes(&serde_json::to_vec(&json).unwrap()).unwrap());
    world.set_approval(|_| (), 3);
    assert_eq!(world.decide(), Err(Refusal::BadSignature));
}

#[test]
fn a_failed_validation_releases_nothing() {
    let mut world = World::new();
    world.set_release(world.order.digest(), TestResult::Failed, 2);
    world.set_approval(|_| (), 3);
    assert_eq!(world.decide(), Err(Refusal::NotReleased));
}

#[test]
fn a_lab_key_opens_nothing_in_production() {
    let mut world = World::new();
    let lab = SigningKey::generate().unwrap();
    world.root.keys.push(root_key(Role::Releaser, &lab, Audience::Lab));
    let document = release(world.order.digest(), TestResult::Passed);
    world.release = Some(Envelope::sign(document, &lab));
    world.set_approval(|_| (), 3);
    assert_eq!(world.decide(), Err(Refusal::BadSignature));
}

#[test]
fn time_is_up() {
    let mut world = World::new();
    world.now = now() + hours(2);
    assert_eq!(world.decide(), Err(Refusal::Expired), "activation");
    let mut world = World::new();
    world.set_approval(|approval| approval.not_after = now() - hours(1), 3);
    assert_eq!(world.decide(), Err(Refusal::Expired), "approval");
    let mut world = World::new();
    world.root.expires = now() - hours(1);
    assert_eq!(world.decide(), Err(Refusal::Expired), "root");
    let mut world = World::new();
    world.ledger.time_floor = Some(now() + hours(1));
    assert_eq!(world.decide(), Err(Refusal::Expired), "clock before the floor");
    world.ledger.time_floor = Some(now() + SignedDuration::from_secs(601));
    assert_eq!(world.decide(), Err(Refusal::Expired), "clock before the floor");
    // What was signed a moment ago by a clock that is ahead is no reason.
    world.ledger.time_floor = Some(now() + SignedDuration::from_secs(600));
    assert_eq!(world.decide(), Ok(Action::Apply));
}

#[test]
fn nothing_is_used_twice() {
    let mut world = World::new();
    world.ledger.consumed.push(world.activation.as_ref().unwrap().digest());
    assert_eq!(world.decide(), Err(Refusal::Consumed));
    let mut world = World::new();
    world.ledger.applied.push(world.order.digest());
    assert_eq!(world.decide(), Err(Refusal::Consumed));
}

#[test]
fn revoked_documents_are_refused() {
    for pick in 0..4 {
        let mut world = World::new();
        let digest = match pick {
            0 => world.order.digest(),
            1 => world.release.as_ref().unwrap().digest(),
            2 => world.approval.as_ref().unwrap().digest(),
            _ => world.activation.as_ref().unwrap().digest(),
        };
        world.ledger.revoked.push(digest);
        assert_eq!(world.decide(), Err(Refusal::Revoked));
    }
}

#[test]
fn a_revoked_order_can_still_be_rolled_back_and_a_revoked_activation_cannot_be_used() {
    let mut world = World::new();
    let all = [&Some(world.order.clone()), &world.release, &world.approval];
    world.ledger.revoked = all.into_iter().flatten().map(Envelope::digest).collect();
    world.ledger.applied.push(world.order.digest());
    world.set_activation(|activation| activation.action = Action::Rollback, 5);
    assert_eq!(world.decide(), Ok(Action::Rollback));
    world.ledger.revoked.push(world.activation.as_ref().unwrap().digest());
    assert_eq!(world.decide(), Err(Refusal::Revoked));
}

#[test]
fn an_unsigned_document_counts_for_nothing() {
    for pick in 0..4 {
        let mut world = World::new();
        let strip = |envelope: &Envelope| {
            let mut json: serde_json::Value = serde_json::from_slice(&envelope.to_bytes()).unwrap();
            json["signatures"] = serde_json::json!([]);
            Envelope::from_bytes(&serde_json::to_vec(&json).unwrap()).unwrap()
        };
        match pick {
            0 => world.order = strip(&world.order),
            1 => world.release = world.release.as_ref().map(strip),
            2 => world.approval = world.approval.as_ref().map(strip),
            _ => world.activation = world.activation.as_ref().map(strip),
        }
        assert_eq!(world.decide(), Err(Refusal::BadSignature), "document {pick}");
    }
}

#[test]
fn a_signature_over_other_bytes_or_by_an_unknown_key_counts_for_nothing() {
    for field in ["sig", "keyid"] {
        for pick in 0..4 {
            let mut world = World::new();
            let other = activation(Digest::of("other"), Action::Apply);
            let stranger = SigningKey::generate().unwrap();
            let foreign: serde_json::Value =
                serde_json::from_slice(&Envelope::sign(other, &stranger).to_bytes()).unwrap();
            let swap = |envelope: &Envelope| {
                let mut json: serde_json::Value = serde_json::from_slice(&envelope.to_bytes()).unwrap();
                json["signatures"][0][field] = foreign["signatures"][0][field].clone();
                Envelope::from_bytes(&serde_json::to_vec(&json).unwrap()).unwrap()
            };
            match pick {
                0 => world.order = swap(&world.order),
                1 => world.release = world.release.as_ref().map(swap),
                2 => world.approval = world.approval.as_ref().map(swap),
                _ => world.activation = world.activation.as_ref().map(swap),
            }
            assert_eq!(world.decide(), Err(Refusal::BadSignature), "{field} of document {pick}");
        }
    }
}

#[test]
fn an_activation_for_longer_than_31_days_is_none() {
    for action in [Action::Apply, Action::Rollback] {
        for (more, expected) in [(0, Ok(action)), (1, Err(Refusal::NotActive))] {
            let mut world = World::new();
            world.set_activation(
                |activation| {
                    activation.action = action;
                    activation.not_after = activation.not_before + hours(31 * 24) + SignedDuration::from_secs(more);
                },
                4,
            );
            assert_eq!(world.decide(), expected, "{action:?}, {more} s too long");
        }
    }
}

#[test]
fn an_order_alone_is_fit_until_something_speaks_against_it() {
    let world = World::new();
    let identity = Identity { host: "web-1", class: &world.class };
    let asked = |envelope: &Envelope, ledger: &Ledger, now| {
        fit(&world.root, &identity, envelope, ledger, now).map(|order| order.id).map_err(|refused| refused.refusal)
    };
    let (fresh, digest) = (Ledger::default(), world.order.digest());
    assert!(asked(&world.order, &fresh, now()).is_ok());
    let revoked = Ledger { revoked: vec![digest], ..Ledger::default() };
    assert_eq!(asked(&world.order, &revoked, now()), Err(Refusal::Revoked));
    let applied = Ledger { applied: vec![digest], ..Ledger::default() };
    assert_eq!(asked(&world.order, &applied, now()), Err(Refusal::Consumed));
    let seen = Ledger { time_floor: Some(now() + hours(1)), ..Ledger::default() };
    assert_eq!(asked(&world.order, &seen, now()), Err(Refusal::Expired));
    let over = Order { not_after: Some(now() - hours(1)), ..order("PO-1") };
    let drafter = &world.keys[1];
    assert_eq!(asked(&Envelope::sign(over.clone(), drafter), &fresh, now()), Err(Refusal::Expired));
    assert!(asked(&Envelope::sign(over, drafter), &fresh, now() - hours(2)).is_ok());
    let by_another = Envelope::sign(order("PO-1"), &world.keys[2]);
    assert_eq!(asked(&by_another, &fresh, now()), Err(Refusal::BadSignature));
    let elsewhere = Class { release: "13".into(), ..class() };
    let other = Envelope::sign(Order { class: elsewhere, ..order("PO-1") }, drafter);
    assert_eq!(asked(&other, &fresh, now()), Err(Refusal::NotMyClass));
}

#[test]
fn a_clock_that_was_turned_back_before_a_signature_is_not_believed() {
    // The activation would be in date for the turned-back clock; the signatures over it are from after.
    let mut world = World::new();
    world.now = now() - hours(4);
    world.set_activation(|activation| activation.not_before = now() - hours(9), 4);
    assert_eq!(world.decide(), Err(Refusal::Expired));
    // A few minutes are a difference between two clocks.
    world.now = now() - hours(1) - SignedDuration::from_mins(5);
    assert_eq!(world.decide(), Ok(Action::Apply));
    // The way back needs no clock that is right.
    world.now = now() - hours(4);
    world.set_activation(
        |activation| {
            activation.not_before = now() - hours(9);
            activation.action = Action::Rollback;
        },
        5,
    );
    assert_eq!(world.decide(), Ok(Action::Rollback));
}

#[test]
fn only_signed_times_raise_the_floor() {
    let mut world = World::new();
    let floor = World::newest;
    assert_eq!(floor(&world), Some(now() - hours(1)), "the activation's");
    // A signer whose clock is ahead raises none: every apply would be refused until then.
    world.set_activation(|activation| activation.at = now() + hours(9999), 4);
    assert_eq!(floor(&world), Some(now() - hours(2)), "the approval's");
    let stranger = SigningKey::generate().unwrap();
    let forged = Activation { at: now() + hours(9999), ..activation(world.order.digest(), Action::Apply) };
    world.activation = Some(Envelope::sign(forged, &stranger));
    assert_eq!(floor(&world), Some(now() - hours(2)), "the approval's; a stranger's activation says nothing");
}

#[test]
fn a_rollback_signed_by_a_clock_that_is_ahead_is_permitted_and_raises_no_floor() {
    let mut world = World::new();
    let ahead = |activation: &mut Activation| {
        activation.at = now() + hours(9999);
        activation.action = Action::Rollback;
    };
    world.set_activation(ahead, 5);
    (world.release, world.approval) = (None, None);
    assert_eq!((world.permitted().unwrap().newest_time(), world.newest()), (None, None));
    world.set_activation(|activation| activation.action = Action::Rollback, 5);
    let floor = Some(now() - hours(1));
    assert_eq!((world.permitted().unwrap().newest_time(), world.newest()), (floor, floor));
}

#[test]
fn another_class_another_host_too_many_hosts() {
    let mut world = World::new();
    world.class.release = "13".into();
    assert_eq!(world.decide(), Err(Refusal::NotMyClass));
    let mut world = World::new();
    world.set_activation(|activation| activation.hosts = vec!["web-2".into()], 4);
    assert_eq!(world.decide(), Err(Refusal::NotActive));
    let mut world = World::new();
    world.set_activation(|activation| activation.hosts = ["web-1", "web-2", "web-3"].map(Into::into).into(), 4);
    assert_eq!(world.decide(), Err(Refusal::NotApproved));
}

#[test]
fn a_rollback_needs_one_operator_and_no_lab() {
    let mut world = World::new();
    (world.release, world.approval) = (None, None);
    world.root.expires = now() - hours(1);
    world.ledger.applied.push(world.order.digest());
    world.set_activation(|activation| activation.action = Action::Rollback, 5);
    assert_eq!(world.decide(), Ok(Action::Rollback));
    // An operator may not start an apply.
    world.set_activation(|_| (), 5);
    assert_eq!(world.decide(), Err(Refusal::BadSignature));
}

#[test]
fn the_way_back_stays_open_when_the_hosts_release_has_moved_on() {
    let mut world = World::new();
    world.class.release = "12.1".into();
    world.set_activation(|activation| activation.action = Action::Rollback, 5);
    assert_eq!(world.decide(), Err(Refusal::NotMyClass), "it was never here");
    world.ledger.applied.push(world.order.digest());
    assert_eq!(world.decide(), Ok(Action::Rollback));
    world.set_activation(|_| (), 4);
    assert_eq!(world.decide(), Err(Refusal::NotMyClass), "an apply needs the class");
}

#[test]
fn a_threshold_counts_distinct_keys() {
    let mut world = World::new();
    world.root.thresholds.insert(Role::Approver, 2);
    assert_eq!(world.decide(), Err(Refusal::BadSignature));
    let second = SigningKey::generate().unwrap();
    world.root.keys.push(root_key(Role::Approver, &second, Audience::Production));
    let mut approval = world.approval.clone().unwrap();
    approval.add_signature(&world.keys[3]);
    world.approval = Some(approval.clone());
    assert_eq!(world.decide(), Err(Refusal::BadSignature), "one key twice is one signature");
    approval.add_signature(&second);
    world.approval = Some(approval);
    assert_eq!(world.decide(), Ok(Action::Apply));
}

#[test]
fn looking_and_fetching_need_the_order_and_its_release_and_nothing_that_apply_would_refuse() {
    assert_eq!(World::new().prepared(), Ok(Action::Apply));
    let refused = |change: fn(&mut World)| {
        let mut world = World::new();
        change(&mut world);
        world.prepared().unwrap_err()
    };
    assert_eq!(refused(|world| world.release = None), Refusal::NotReleased);
    assert_eq!(refused(|world| world.set_release(world.order.digest(), TestResult::Failed, 2)), Refusal::NotReleased);
    assert_eq!(refused(|world| world.set_release(world.order.digest(), TestResult::Passed, 3)), Refusal::BadSignature);
    assert_eq!(refused(|world| world.order = Envelope::sign(order("PO-1"), &world.keys[2])), Refusal::BadSignature);
    assert_eq!(refused(|world| world.class.release = "13".into()), Refusal::NotMyClass);
    assert_eq!(refused(|world| world.root.expires = now() - hours(1)), Refusal::Expired);
    assert_eq!(refused(|world| world.ledger.time_floor = Some(now() + hours(1))), Refusal::Expired);
    assert_eq!(refused(|world| world.ledger.applied = vec![world.order.digest()]), Refusal::Consumed);
    assert_eq!(refused(|world| world.ledger.revoked = vec![world.order.digest()]), Refusal::Revoked);
    let by_release = |world: &mut World| world.ledger.revoked.extend(world.release.as_ref().map(Envelope::digest));
    assert_eq!(refused(by_release), Refusal::Revoked);
}

#[test]
fn a_window_that_is_not_open_is_foreseen_and_permits_nothing_yet() {
    let mut world = World::new();
    world.set_activation(
        |activation| {
            activation.not_before = now() + hours(5);
            activation.not_after = now() + hours(9);
        },
        4,
    );
    assert_eq!(world.look_ahead(None), Ok((Action::Apply, hours(5))));
    assert_eq!(world.decide(), Err(Refusal::Expired), "foreseen is not permitted");
    assert_eq!(world.look_ahead(Some(now() + hours(7))), Ok((Action::Apply, hours(7))), "the later one counts");
    assert_eq!(world.look_ahead(Some(now() - hours(7))), Ok((Action::Apply, hours(5))));
    assert_eq!(world.look_ahead(Some(now() + hours(10))), Err(Refusal::Expired), "it opens after the activation's end");
    world.now = now() + hours(6);
    assert_eq!(world.decide(), Ok(Action::Apply));
}

#[test]
fn what_will_be_out_of_date_when_the_window_opens_is_refused_at_once() {
    let mut world = World::new();
    let opens_late = |activation: &mut Activation| {
        activation.not_before = now() + hours(5);
        activation.not_after = now() + hours(9);
    };
    world.set_approval(|approval| approval.not_after = now() + hours(4), 3);
    world.set_activation(opens_late, 4);
    assert_eq!(world.look_ahead(None), Err(Refusal::Expired), "approval");
    let mut world = World::new();
    world.root.expires = now() + hours(4);
    world.set_activation(opens_late, 4);
    assert_eq!(world.look_ahead(None), Err(Refusal::Expired), "root");
}

#[test]
fn a_clock_that_is_wrong_is_not_made_right_by_a_window_to_come() {
    let mut world = World::new();
    world.set_activation(|activation| activation.not_after = now() + hours(9), 4);
    world.ledger.time_floor = Some(now() + hours(1));
    assert_eq!(world.look_ahead(Some(now() + hours(5))), Err(Refusal::Expired), "before the floor");
    world.ledger.time_floor = None;
    world.now = now() - hours(4);
    assert_eq!(world.look_ahead(Some(now() + hours(5))), Err(Refusal::Expired), "before a signature");
}

#[test]
fn a_rollback_is_bound_by_its_activation_and_by_no_other_window() {
    let mut world = World::new();
    world.set_activation(|activation| activation.action = Action::Rollback, 5);
    assert_eq!(world.look_ahead(Some(now() + hours(7))), Ok((Action::Rollback, -hours(1))));
}

#[test]
fn a_host_walks_back_by_itself_only_when_the_order_it_applies_says_so() {
    let mut world = World::new();
    assert_eq!(world.permitted().unwrap().on_failure(), OnFailure::Leave, "an order that says nothing");
    // Where the files are is no permission to use them.
    world.set_order(Order { rollback_files: RollbackFiles::Staged, ..order("PO-2") });
    assert_eq!(world.permitted().unwrap().on_failure(), OnFailure::Leave);
    world.set_order(Order { on_failure: OnFailure::RollBack, ..order("PO-3") });
    assert_eq!(world.permitted().unwrap().on_failure(), OnFailure::RollBack);
    world.set_activation(|activation| activation.action = Action::Rollback, 5);
    assert_eq!(world.permitted().unwrap().on_failure(), OnFailure::Leave, "a way back has no way back");
}

#[test]
fn what_an_order_says_beyond_its_first_form_changes_no_digest_of_orders_without_it() {
    let plain = serde_json::to_value(order("PO-1")).unwrap();
    assert!(
        plain.get("on_failure").is_none() && plain.get("rollback_files").is_none() && plain.get("reboot").is_none(),
        "{plain}"
    );
    let read: Order = serde_json::from_value(plain).unwrap();
    assert!(!read.stages_way_back());
    assert!(Order { on_failure: OnFailure::RollBack, ..order("PO-1") }.stages_way_back());
}

#[test]
fn an_order_has_packages_or_a_script_and_no_other_form_is_read() {
    let file = |name: &str| ShippedFile { name: name.parse().unwrap(), size: 1, sha256: Digest::of(name) };
    let script = Script { apply: file("apply"), rollback: file("rollback"), verify: file("verify"), files: vec![] };
    let of_script = Order { install: vec![], script: Some(script.clone()), ..order("PO-1") };
    let collides = Script { files: vec![file("verify")], ..script.clone() };
    for (order, expected) in [
        (of_script.clone(), None),
        (Order { script: Some(script), ..order("PO-1") }, Some("packages and a script")),
        (Order { install: vec![], ..order("PO-1") }, Some("changes nothing")),
        (Order { script: Some(collides), ..of_script.clone() }, Some("two of its files are called verify")),
    ] {
        let read = Envelope::sign(order, &SigningKey::from_seed(&[1; 32])).statement::<Order>();
        match (read, expected) {
            (Ok(_), None) => {}
            (Err(error), Some(expected)) => assert!(error.to_string().contains(expected), "{error}"),
            (read, expected) => panic!("{expected:?}: {read:?}"),
        }
    }
    // A name that leads elsewhere is none.
    let mut value = serde_json::to_value(of_script).unwrap();
    value["script"]["files"] = serde_json::json!([{"name": "../../etc/passwd", "size": 1, "sha256": Digest::of("x")}]);
    assert!(serde_json::from_value::<Order>(value).unwrap_err().to_string().contains("no plain file name"));
}

#[test]
fn an_order_of_another_form_is_refused_whoever_signed_it() {
    let mut world = World::new();
    world.set_order(Order { install: vec![], ..order("PO-1") });
    assert_eq!(world.decide(), Err(Refusal::BadSignature));
}
