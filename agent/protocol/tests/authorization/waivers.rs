//! An order that the lab did not pass ships only where somebody answers for each thing that it found: one test per threat.

use patchlab_protocol::{
    Refused,
    authorization::released,
    document::{BaselineProof, Rollback, Waived, Waiver},
    limits,
};

use super::*;

const SMOKE: &str = "web@1/applied/web-smoke/front page";
const LOGIN: &str = "web@1/rebooted/login/by password";

fn smoke() -> Waived {
    Waived::Scenario("web-smoke".into())
}

fn waiver(world: &World, waived: Waived) -> Waiver {
    Waiver {
        order: world.order.digest(),
        baseline: "web@1".into(),
        baseline_digest: Digest::of("web@1"),
        waived,
        class: class(),
        hosts_at_most: 2,
        owner: "ann".into(),
        reason: "the page moves on Friday".into(),
        at: now() - hours(4),
        not_after: now() + hours(24),
    }
}

impl World {
    fn waiver(&self, waived: Waived, change: impl FnOnce(&mut Waiver), key: usize) -> Envelope {
        let mut document = waiver(self, waived);
        change(&mut document);
        Envelope::sign(document, &self.keys[key])
    }

    /// With a release that is waived: of these tests, with that way back, and these waivers.
    fn waived(mut self, failed: &[&str], rollback: Rollback, waivers: Vec<Envelope>) -> Self {
        let mut document = release(self.order.digest(), TestResult::Warned);
        document.failed_tests = failed.iter().map(|test| (*test).to_owned()).collect();
        document.warned_tests = vec!["web@1/applied/old/failed before".into()];
        document.proof.baselines = vec![BaselineProof {
            name: "web@1".into(),
            digest: Digest::of("web@1"),
            transaction: vec!["upgrade nginx amd64 1 -> 2".into()],
            apply_ms: 1,
            rollback_ms: 1,
            reboot_needed: false,
            rollback,
            grown: vec![],
            boots: None,
        }];
        document.proof.waivers = waivers;
        self.release = Some(Envelope::sign(document, &self.keys[2]));
        self.set_approval(|_| (), 3);
        self
    }

    fn refused(&self) -> Refused {
        self.asked().unwrap_err()
    }
}

/// One that failed, waived by a waiver that is changed so and signed so.
fn waived_by(change: impl FnOnce(&mut Waiver), key: usize) -> World {
    let world = World::new();
    let waiver = world.waiver(smoke(), change, key);
    world.waived(&[SMOKE], Rollback::Proven, vec![waiver])
}

/// What it is refused as, in words that name the waiver or what lacks one.
fn is_refused(world: &World, refusal: Refusal, words: &str) {
    let refused = world.refused();
    assert_eq!(refused.refusal, refusal, "{refused}");
    assert!(refused.reason.contains(words), "{refused}");
    if refusal != Refusal::NotApproved {
        assert_eq!(world.prepared(), Err(refusal), "a preparation asks the same");
    }
}

#[test]
fn what_is_waived_may_be_applied_and_prepared() {
    let world = waived_by(|_| (), 3);
    assert_eq!((world.decide(), world.prepared()), (Ok(Action::Apply), Ok(Action::Apply)));
}

#[test]
fn a_rule_says_which_waivers_count() {
    let world = World::new();
    let [first, idle] = [smoke(), Waived::Scenario("another".into())].map(|waived| world.waiver(waived, |_| (), 3));
    let world = world.waived(&[SMOKE], Rollback::Proven, vec![idle, first.clone()]);
    let (order, document) = (order("PO-1"), world.release.as_ref().unwrap());
    let released = released(&world.root, document, &order, world.order.digest(), &[], now()).unwrap();
    let counted: Vec<Digest> = released.waivers.iter().map(|counted| counted.digest).collect();
    assert_eq!(counted, [first.digest()]);
}

#[test]
fn without_a_waiver_nothing_is_released() {
    let world = World::new().waived(&[SMOKE], Rollback::Proven, vec![]);
    is_refused(&world, Refusal::NotReleased, "web-smoke/front page failed on web@1");
    // A failure is no warning: waivers beside it count for nothing, and such a release is none.
    let mut world = World::new();
    let waiver = world.waiver(smoke(), |_| (), 3);
    let mut document = release(world.order.digest(), TestResult::Failed);
    document.proof.waivers = vec![waiver];
    world.release = Some(Envelope::sign(document, &world.keys[2]));
    world.set_approval(|_| (), 3);
    is_refused(&world, Refusal::NotReleased, "result is not WARNED");
}

#[test]
fn a_release_that_is_waived_and_says_of_nothing_counts_for_nothing() {
    let world = World::new();
    let waiver = world.waiver(smoke(), |_| (), 3);
    let world = world.waived(&[], Rollback::Proven, vec![waiver]);
    is_refused(&world, Refusal::NotReleased, "and not what");
}

#[test]
fn a_waiver_of_something_else_covers_nothing_and_is_named() {
    type Change = Box<dyn Fn(&mut Waiver)>;
    let other = Digest::of("another");
    let cases: [(&str, Change); 6] = [
        ("scenario login", Box::new(|waiver| waiver.waived = Waived::Scenario("login".into()))),
        ("scenario web", Box::new(|waiver| waiver.waived = Waived::Scenario("web".into()))),
        ("the way back", Box::new(|waiver| waiver.waived = Waived::WayBack)),
        ("on db@1", Box::new(|waiver| waiver.baseline = "db@1".into())),
        ("on web@1", Box::new(move |waiver| waiver.baseline_digest = other)),
        (&other.short(), Box::new(move |waiver| waiver.order = other)),
    ];
    for (named, change) in cases {
        let world = waived_by(change, 3);
        is_refused(&world, Refusal::NotReleased, "no waiver covers that; there is waiver");
        is_refused(&world, Refusal::NotReleased, named);
    }
}

#[test]
fn a_waiver_for_another_class_is_refused() {
    let world = waived_by(|waiver| waiver.class.release = "13".into(), 3);
    is_refused(&world, Refusal::NotMyClass, "by ann) is for hosts of debian-13-x86_64");
}

#[test]
fn an_approval_for_more_hosts_than_the_waiver_is_refused() {
    let mut world = waived_by(|waiver| waiver.hosts_at_most = 1, 3);
    is_refused(&world, Refusal::NotApproved, "approved for 2 hosts, and waiver");
    world.set_approval(|approval| approval.hosts_at_most = 1, 3);
    assert_eq!(world.decide(), Ok(Action::Apply));
}

#[test]
fn a_waiver_ends() {
    let mut world = waived_by(|waiver| waiver.not_after = now() + hours(1), 3);
    world.set_activation(|activation| activation.not_after = now() + hours(5), 4);
    world.now = now() + hours(1);
    assert_eq!(world.decide(), Ok(Action::Apply));
    // One that ends before the window opens is refused before.
    assert_eq!(world.look_ahead(Some(now() + hours(2))), Err(Refusal::Expired));
    world.now = now() + hours(2);
    is_refused(&world, Refusal::Expired, "scenario web-smoke on web@1 by ann) was valid until");
}

#[test]
fn an_unsigned_waiver_and_one_by_a_key_of_another_role_count_for_nothing() {
    for (key, role) in ROLES.iter().enumerate().filter(|(key, _)| *key != 3) {
        let world = waived_by(|_| (), key);
        assert_eq!(world.decide(), Err(Refusal::BadSignature), "{role:?}");
        is_refused(&world, Refusal::BadSignature, "is not signed by a key that may approve");
    }
    let world = World::new();
    let unsigned = Envelope::unsigned(waiver(&world, smoke()));
    is_refused(&world.waived(&[SMOKE], Rollback::Proven, vec![unsigned]), Refusal::BadSignature, "is not signed");
    let mut world = World::new();
    world.root.thresholds.insert(Role::Approver, 2);
    let alone = world.waiver(smoke(), |_| (), 3);
    let world = world.waived(&[SMOKE], Rollback::Proven, vec![alone]);
    assert_eq!(world.prepared(), Err(Refusal::BadSignature), "one of two approvers");
}

#[test]
fn an_altered_reason_breaks_the_signature() {
    let world = World::new();
    let json = |envelope: &Envelope| serde_json::from_slice::<serde_json::Value>(&envelope.to_bytes()).unwrap();
    let mut signed = json(&world.waiver(smoke(), |_| (), 3));
    let other = waiver(&world, smoke());
    signed["payload"] = json(&Envelope::unsigned(Waiver { reason: "all is well".into(), ..other }))["payload"].clone();
    let altered = Envelope::from_bytes(&serde_json::to_vec(&signed).unwrap()).unwrap();
    let world = world.waived(&[SMOKE], Rollback::Proven, vec![altered]);
    is_refused(&world, Refusal::BadSignature, "is not signed");
}

#[test]
fn a_revoked_waiver_covers_nothing_but_another_one_does() {
    let mut world = waived_by(|_| (), 3);
    let withdrawn = world.waiver(smoke(), |_| (), 3);
    world.ledger.revoked.push(withdrawn.digest());
    is_refused(&world, Refusal::Revoked, "by ann) was revoked");
    let again = world.waiver(smoke(), |waiver| waiver.owner = "bob".into(), 3);
    let world = world.waived(&[SMOKE], Rollback::Proven, vec![withdrawn, again]);
    assert_eq!(world.decide(), Ok(Action::Apply));
}

#[test]
fn each_of_several_failures_needs_its_own() {
    let world = World::new();
    let only = world.waiver(smoke(), |_| (), 3);
    let world = world.waived(&[SMOKE, LOGIN], Rollback::Proven, vec![only.clone()]);
    is_refused(&world, Refusal::NotReleased, "login/by password failed on web@1 (rebooted), and no waiver covers that");
    let login = world.waiver(Waived::Scenario("login".into()), |_| (), 3);
    let world = world.waived(&[SMOKE, LOGIN], Rollback::Proven, vec![only, login]);
    assert_eq!(world.decide(), Ok(Action::Apply));
}

#[test]
fn a_way_back_that_is_not_proven_needs_one_of_its_own() {
    for rollback in [Rollback::Failed, Rollback::Skipped] {
        let world = World::new();
        let of_scenario = world.waiver(smoke(), |_| (), 3);
        let world = world.waived(&[SMOKE], rollback, vec![of_scenario.clone()]);
        is_refused(&world, Refusal::NotReleased, "the way back is not proven on web@1, and no waiver covers that");
        let way_back = world.waiver(Waived::WayBack, |_| (), 3);
        let world = world.waived(&[SMOKE], rollback, vec![of_scenario, way_back]);
        assert_eq!(world.decide(), Ok(Action::Apply));
    }
}

#[test]
fn an_order_without_a_way_back_needs_one_whatever_the_lab_proved() {
    for none in [RollbackClass::SnapshotOnly, RollbackClass::Impossible] {
        let mut world = World::new();
        world.set_order(Order { rollback: none, ..order("PO-2") });
        let of_scenario = world.waiver(smoke(), |_| (), 3);
        let world = world.waived(&[SMOKE], Rollback::Proven, vec![of_scenario]);
        is_refused(&world, Refusal::NotReleased, "the way back is not proven");
        let way_back = world.waiver(Waived::WayBack, |_| (), 3);
        let world = world.waived(&[], Rollback::Proven, vec![way_back]);
        assert_eq!(world.decide(), Ok(Action::Apply));
    }
}

#[test]
fn what_fails_after_the_rollback_is_the_way_backs_and_no_scenarios() {
    let after = "web@1/rolled-back/web-smoke/front page";
    let world = World::new();
    let of_scenario = world.waiver(smoke(), |_| (), 3);
    let world = world.waived(&[after], Rollback::Proven, vec![of_scenario]);
    is_refused(&world, Refusal::NotReleased, "failed on web@1 after the rollback");
    let way_back = world.waiver(Waived::WayBack, |_| (), 3);
    assert_eq!(world.waived(&[after], Rollback::Proven, vec![way_back]).decide(), Ok(Action::Apply));
}

#[test]
fn a_failed_test_of_no_baseline_cannot_be_waived() {
    for test in ["db@1/applied/web-smoke/front page", "web@1", "web@1/applied", "front page", ""] {
        let world = World::new();
        let waiver = world.waiver(smoke(), |_| (), 3);
        let world = world.waived(&[test], Rollback::Proven, vec![waiver]);
        assert_eq!(world.decide(), Err(Refusal::NotReleased), "{test}");
    }
}

#[test]
fn a_waiver_that_was_signed_ahead_of_the_clock_is_refused_and_raises_no_floor() {
    let ahead = |waiver: &mut Waiver| (waiver.at, waiver.not_after) = (now() + hours(100), now() + hours(200));
    let world = waived_by(ahead, 3);
    is_refused(&world, Refusal::Expired, "set the clock");
    assert_eq!(world.newest(), Some(now() - hours(1)));
}

#[test]
fn what_is_no_waiver_or_too_many_or_too_large_is_no_release() {
    let world = World::new();
    let stranger = world.approval.clone().unwrap();
    is_refused(&world.waived(&[SMOKE], Rollback::Proven, vec![stranger]), Refusal::NotReleased, "a waiver: ");
    let world = World::new();
    let many: Vec<Envelope> = (0..=limits::WAIVERS_PER_RELEASE)
        .map(|n| world.waiver(smoke(), |waiver| waiver.owner = format!("ann {n}"), 3))
        .collect();
    let most = world.waived(&[SMOKE], Rollback::Proven, many[1..].to_vec());
    assert_eq!(most.decide(), Ok(Action::Apply));
    is_refused(&most.waived(&[SMOKE], Rollback::Proven, many), Refusal::NotReleased, "33 waivers, more than 32");
    let world = World::new();
    let mut large = world.waiver(smoke(), |_| (), 3);
    (0..limits::SIGNATURES_PER_ENVELOPE).for_each(|_| large.add_signature(&SigningKey::generate().unwrap()));
    let world = world.waived(&[SMOKE], Rollback::Proven, vec![large]);
    is_refused(&world, Refusal::NotReleased, "signatures");
}

#[test]
fn a_waiver_takes_nothing_from_the_other_documents() {
    let mut world = waived_by(|_| (), 3);
    world.approval = None;
    assert_eq!(world.decide(), Err(Refusal::NotApproved));
    let mut world = waived_by(|_| (), 3);
    world.activation = None;
    assert_eq!(world.decide(), Err(Refusal::NotActive));
    // Whoever may waive may not release.
    let mut world = waived_by(|_| (), 3);
    let document: Release = world.release.as_ref().unwrap().statement().unwrap().predicate;
    world.release = Some(Envelope::sign(document, &world.keys[3]));
    world.set_approval(|_| (), 3);
    assert_eq!(world.decide(), Err(Refusal::BadSignature));
}
