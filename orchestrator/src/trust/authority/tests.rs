use jiff::ToSpan as _;
use patchlab_protocol::{
    Audience, SigningKey,
    document::{RootKey, Scheme},
};

use super::*;
use crate::{
    gate::tests::{key, root as first_root},
    store::NewHost,
    trust::revocation::next,
};

fn signed_root(root: &Root, signers: &[&SigningKey]) -> InForce {
    let mut envelope = Envelope::unsigned(root.clone());
    signers.iter().for_each(|key| envelope.add_signature(key));
    InForce { digest: envelope.digest(), envelope, root: root.clone() }
}

/// A root like the one before it, whose operator is another.
fn with_operator(before: &Root, operator: &SigningKey) -> Root {
    let mut root = before.clone();
    root.version += 1;
    root.keys.retain(|key| !key.roles.contains(&Role::Operator));
    root.keys.push(RootKey {
        holder: "another operator".into(),
        roles: vec![Role::Operator],
        audience: Audience::Production,
        scheme: Scheme::Ed25519,
        public: operator.public(),
    });
    root
}

fn list(before: Option<&List>, name: &str, key: &SigningKey) -> List {
    let says = next(before.map(|list| &list.says), &[Digest::of(name)], "withdrawn", Timestamp::now()).unwrap();
    List::read(Envelope::sign(says, key)).unwrap()
}

fn held(root: &InForce, list: Option<&List>) -> Held {
    Held {
        root_version: root.root.version,
        root: Some(root.digest),
        revocation_version: list.map_or(0, |list| list.says.version),
        revocation: list.map(|list| list.digest),
    }
}

struct World {
    _dir: tempfile::TempDir,
    document: PathBuf,
    store: Arc<Store>,
}

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let document = dir.path().join("root.json");
        let first = signed_root(&first_root(), &[&key(Role::Root)]);
        std::fs::write(&document, first.envelope.to_bytes()).unwrap();
        let store = Arc::new(Store::open(&dir.path().join("store.sqlite")).unwrap());
        let host = NewHost {
            name: "web-1".into(),
            site: "lab".into(),
            address: "127.0.0.1:161".parse().unwrap(),
            engine_id: patchlab_protocol::enrolment::EngineId::generate().unwrap(),
            public_key: SigningKey::from_seed(&[2; 32]).public(),
            root: first.digest,
            payload_uri: "http://127.0.0.1:1".into(),
        };
        store.enrol(&host, &Event::new("test", "x", json!({}))).unwrap();
        Self { _dir: dir, document, store }
    }

    fn open(&self) -> Authority {
        Authority::open(self.document.clone(), Arc::clone(&self.store)).unwrap()
    }
}

#[test]
fn a_host_is_offered_the_list_first_and_then_every_root_it_missed_in_order() {
    let (root_key, operator) = (key(Role::Root), key(Role::Operator));
    let roots: Vec<InForce> = (0..3)
        .scan(first_root(), |root, _| {
            let this = signed_root(root, &[&root_key]);
            root.version += 1;
            Some(this)
        })
        .collect();
    let one = list(None, "order", &operator);
    let standing = Standing::new(roots.clone(), Some(one.clone())).unwrap();
    assert_eq!(standing.next(&held(&roots[0], None)), Next::Revocation(one.digest));
    assert_eq!(standing.next(&held(&roots[0], Some(&one))), Next::Root(roots[1].digest));
    assert_eq!(standing.next(&held(&roots[1], Some(&one))), Next::Root(roots[2].digest));
    assert_eq!(standing.next(&held(&roots[2], Some(&one))), Next::Nothing);
    // A host that was turned back, and one that has more than this server.
    assert_eq!(standing.next(&held(&roots[2], None)), Next::Revocation(one.digest));
    let two = list(Some(&one), "other", &operator);
    assert!(matches!(standing.next(&held(&roots[2], Some(&two))), Next::Stuck(_)));
    assert_eq!(standing.next(&held(&roots[1], Some(&two))), Next::Root(roots[2].digest), "roots it still gets");
    let foreign = Held { root: Some(Digest::of("another")), ..held(&roots[2], None) };
    assert!(matches!(standing.next(&foreign), Next::Stuck(reason) if reason.contains("enrol")));
}

#[test]
fn what_a_host_took_is_what_it_believes_beyond_what_was_known() {
    let root_key = key(Role::Root);
    let roots: Vec<InForce> =
        (1..=3).map(|version| signed_root(&Root { version, ..first_root() }, &[&root_key])).collect();
    let one = list(None, "order", &key(Role::Operator));
    let standing = Standing::new(roots.clone(), Some(one.clone())).unwrap();
    let (first, last) = (held(&roots[0], None), held(&roots[2], Some(&one)));
    let pinned = Held::pinned(roots[0].digest);
    assert_eq!(standing.taken(&pinned, &last), [roots[1].digest, roots[2].digest, one.digest]);
    assert_eq!(standing.taken(&held(&roots[1], Some(&one)), &last), [roots[2].digest]);
    assert_eq!(standing.taken(&pinned, &first), [], "nothing, though its root's version was not known");
    assert_eq!(standing.taken(&last, &first), [], "a host that was turned back");
    assert_eq!(standing.taken(&Held::pinned(Digest::of("another")), &first), []);
}

#[test]
fn a_list_by_an_operator_whom_only_a_later_root_lists_waits_for_that_root() {
    let (root_key, another) = (key(Role::Root), SigningKey::from_seed(&[77; 32]));
    let roots = vec![
        signed_root(&first_root(), &[&root_key]),
        signed_root(&with_operator(&first_root(), &another), &[&root_key]),
    ];
    let by_new = list(None, "order", &another);
    let standing = Standing::new(roots.clone(), Some(by_new.clone())).unwrap();
    assert_eq!(standing.next(&held(&roots[0], None)), Next::Root(roots[1].digest));
    assert_eq!(standing.next(&held(&roots[1], None)), Next::Revocation(by_new.digest));
    // By an operator who was removed: hosts still at the old root take it; newer ones only once another signs it too.
    let mut by_old = list(None, "order", &key(Role::Operator));
    let standing = Standing::new(roots.clone(), Some(by_old.clone())).unwrap();
    assert_eq!(standing.next(&held(&roots[0], None)), Next::Revocation(by_old.digest));
    assert!(matches!(standing.next(&held(&roots[1], None)), Next::Stuck(reason) if reason.contains("revocation sign")));
    by_old.envelope.add_signature(&another);
    let standing = Standing::new(roots.clone(), Some(by_old.clone())).unwrap();
    assert_eq!(standing.next(&held(&roots[1], None)), Next::Revocation(by_old.digest));
}

#[test]
fn lists_are_taken_by_the_protocols_rules_kept_and_owed_to_every_host() {
    let world = World::new();
    let authority = world.open();
    let one = list(None, "order", &key(Role::Operator));
    let forged = list(None, "order", &key(Role::Drafter));
    let refusal = |result: Result<TakenIn, AuthorityError>| match result {
        Err(AuthorityError::Refused(refused)) => refused.refusal.name(),
        other => panic!("{other:?}"),
    };
    assert_eq!(refusal(authority.revoke(&forged.envelope, "local")), "bad-signature");
    assert!(authority.standing().list().is_none() && world.store.revocation().unwrap().is_none());

    let taken = authority.revoke(&one.envelope, "local").unwrap();
    assert_eq!((taken.version, taken.waiting, taken.signers.len()), (1, 1, 1));
    assert_eq!(authority.standing().revoked(), [Digest::of("order")]);
    let two = list(Some(&one), "other", &key(Role::Operator));
    authority.revoke(&two.envelope, "local").unwrap();
    assert_eq!(refusal(authority.revoke(&one.envelope, "local")), "stale");
    let forgets = list(None, "third", &key(Role::Operator));
    assert_eq!(refusal(authority.revoke(&forgets.envelope, "local")), "stale");

    // A server that starts again knows the same, and the same list again adds a signature and nothing else.
    let again = world.open();
    assert_eq!(*again.standing(), *authority.standing());
    let mut more = two.envelope.clone();
    more.add_signature(&key(Role::Root));
    assert_eq!(again.revoke(&more, "local").unwrap().signers.len(), 2);
    assert_eq!(again.revoke(&two.envelope, "local").unwrap().signers.len(), 2, "none is taken away");
    assert_eq!(world.store.revocation().unwrap().unwrap(), more);
    let events: Vec<_> = world.store.audit(0, 100).unwrap().into_iter().map(|row| row.event).collect();
    assert_eq!(events.iter().filter(|event| *event == "revocation-taken").count(), 4);
    assert_eq!(world.store.hosts().unwrap()[0].trust.offer, crate::store::OfferState::Waiting);
}

#[test]
fn a_root_is_replaced_by_its_successor_only_and_found_again_after_a_kill() {
    let world = World::new();
    let authority = world.open();
    let another = SigningKey::from_seed(&[77; 32]);
    let second = with_operator(&first_root(), &another);
    for (what, signer) in [("an operator", key(Role::Operator)), ("a stranger", SigningKey::from_seed(&[9; 32]))] {
        let root = signed_root(&second, &[&signer]);
        let error = authority.succeed(&root.envelope, "local").unwrap_err();
        assert!(matches!(error, AuthorityError::Refused(_)), "{what}: {error}");
    }
    let gap = Root { version: 3, ..second.clone() };
    assert!(authority.succeed(&signed_root(&gap, &[&key(Role::Root)]).envelope, "local").is_err());
    assert_eq!(authority.standing().root().root.version, 1);

    let good = signed_root(&second, &[&key(Role::Root)]);
    let by_removed = list(None, "order", &key(Role::Operator));
    authority.revoke(&by_removed.envelope, "local").unwrap();
    let taken = authority.succeed(&good.envelope, "local").unwrap();
    assert_eq!((taken.version, taken.waiting), (2, 1));
    assert!(taken.warnings.iter().any(|warning| warning.contains("revocation list 1")), "{:?}", taken.warnings);
    assert_eq!(authority.standing().root(), &good);
    // The same again is no error.
    assert_eq!(authority.succeed(&good.envelope, "local").unwrap().version, 2);
    let by_new = list(Some(&by_removed), "other", &another);
    authority.revoke(&by_new.envelope, "local").unwrap();

    let third = signed_root(&Root { version: 3, expires: third_expiry(), ..second }, &[&key(Role::Root)]);
    // Killed between the file and the store: the next start enters it.
    write_private(&root::successor_path(&world.document, 3), &third.envelope.to_bytes()).unwrap();
    let again = world.open();
    assert_eq!(again.standing().root(), &third);
    assert!(world.store.document(&third.digest).unwrap().is_some());
    assert_eq!(again.standing().list().map(|list| list.digest), Some(by_new.digest));

    // One that does not follow stops the server with its name.
    std::fs::write(root::successor_path(&world.document, 4), good.envelope.to_bytes()).unwrap();
    let error = Authority::open(world.document.clone(), Arc::clone(&world.store)).unwrap_err();
    assert!(error.to_string().contains("root.4.json"), "{error}");
}

fn third_expiry() -> Timestamp {
    Timestamp::now().checked_add(48.hours()).unwrap()
}

#[test]
fn a_list_that_was_signed_after_now_is_not_taken_in() {
    let world = World::new();
    let authority = world.open();
    let operator = key(Role::Operator);
    let ahead = Timestamp::now().checked_add(1.hours()).unwrap();
    let says = next(None, &[Digest::of("order")], "withdrawn", ahead).unwrap();
    let refused = authority.revoke(&Envelope::sign(says, &operator), "test").unwrap_err();
    assert!(refused.to_string().contains("set the clocks"), "{refused}");
    authority.revoke(&list(None, "order", &operator).envelope, "test").unwrap();
}
