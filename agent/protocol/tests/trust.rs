//! One test per threat to whom a host believes: roots that do not follow, revocations that are forged, replayed or
//! taken back.

// JUSTIFICATION: helpers of tests may stop a test as tests do.
#![allow(clippy::unwrap_used)]

use jiff::Timestamp;
use patchlab_protocol::{
    Audience, Digest, Envelope, Refusal, Role, SigningKey,
    document::{Approval, Revocation, Revoked, Root, RootKey, Scheme},
    trust::{Known, RootError, pinned_root, revoke, root_in_force, successor},
};

fn now() -> Timestamp {
    "2026-03-01T12:00:00Z".parse().unwrap()
}

fn key(seed: u8) -> SigningKey {
    SigningKey::from_seed(&[seed; 32])
}

fn root_key(role: Role, key: &SigningKey, audience: Audience) -> RootKey {
    RootKey { holder: "test".into(), roles: vec![role], audience, scheme: Scheme::Ed25519, public: key.public() }
}

/// A root of that version whose root keys are these, two of which must sign.
fn root(version: u32, keys: &[&SigningKey]) -> Root {
    let operator = root_key(Role::Operator, &key(50), Audience::Production);
    let releaser = root_key(Role::Releaser, &key(51), Audience::Production);
    Root {
        version,
        expires: now(),
        audience: Audience::Production,
        keys: keys
            .iter()
            .map(|key| root_key(Role::Root, key, Audience::Production))
            .chain([operator, releaser])
            .collect(),
        thresholds: [(Role::Root, 2)].into(),
    }
}

fn sign(root: &Root, keys: &[&SigningKey]) -> Envelope {
    let mut envelope = Envelope::sign(root.clone(), keys[0]);
    keys.iter().for_each(|key| envelope.add_signature(key));
    envelope
}

fn refusal<T: std::fmt::Debug>(result: Result<T, patchlab_protocol::Refused>) -> Refusal {
    result.unwrap_err().refusal
}

#[test]
fn a_root_is_what_was_pinned_and_signed_by_itself() {
    let [a, b, c] = [1, 2, 3].map(key);
    let good = sign(&root(1, &[&a, &b]), &[&a, &b]);
    assert_eq!(pinned_root(&good, good.digest()).unwrap().version, 1);
    assert!(matches!(pinned_root(&good, Digest::of("other")), Err(RootError::NotPinned { .. })));
    for signers in [vec![&a], vec![&a, &c], vec![&c]] {
        let envelope = sign(&root(1, &[&a, &b]), &signers);
        assert!(matches!(pinned_root(&envelope, envelope.digest()), Err(RootError::Invalid(_))), "{signers:?}");
    }
}

#[test]
fn a_root_follows_only_with_the_old_threshold_and_its_own() {
    let [a, b, c, d] = [1, 2, 3, 4].map(key);
    let old = root(1, &[&a, &b]);
    let new = root(2, &[&b, &c, &d]);
    let strangers = [90, 91].map(key);
    assert_eq!(successor(&old, &sign(&new, &[&a, &b, &c])).unwrap(), new);
    let cases = [
        ("without any of the old", vec![&c, &d]),
        ("with one of the old, below its threshold", vec![&b, &c, &d]),
        ("without enough of its own", vec![&a, &b]),
        ("by strangers", vec![&strangers[0], &strangers[1]]),
    ];
    for (what, signers) in cases {
        assert_eq!(refusal(successor(&old, &sign(&new, &signers))), Refusal::BadSignature, "{what}");
    }
    // The operator's key and the server's keys are no root keys.
    let by_others = sign(&root(2, &[&key(50), &key(51)]), &[&key(50), &key(51)]);
    assert_eq!(refusal(successor(&old, &by_others)), Refusal::BadSignature);
}

#[test]
fn a_root_follows_only_as_the_very_next_version() {
    let [a, b] = [1, 2].map(key);
    let old = root(5, &[&a, &b]);
    for version in [0, 4, 5, 7] {
        let offered = sign(&root(version, &[&a, &b]), &[&a, &b]);
        assert_eq!(refusal(successor(&old, &offered)), Refusal::Stale, "version {version}");
    }
    assert_eq!(successor(&old, &sign(&root(6, &[&a, &b]), &[&a, &b])).unwrap().version, 6);
}

#[test]
fn a_root_for_the_lab_never_follows_one_for_production() {
    let [a, b] = [1, 2].map(key);
    let mut lab = root(2, &[&a, &b]);
    lab.audience = Audience::Lab;
    lab.keys.extend([&a, &b].map(|key| root_key(Role::Root, key, Audience::Lab)));
    assert_eq!(refusal(successor(&root(1, &[&a, &b]), &sign(&lab, &[&a, &b]))), Refusal::BadSignature);
}

#[test]
fn an_altered_root_and_another_document_are_no_root() {
    let [a, b] = [1, 2].map(key);
    let old = root(1, &[&a, &b]);
    let good = sign(&root(2, &[&a, &b]), &[&a, &b]);
    let forged = sign(&root(2, &[&a, &b, &key(9)]), &[&key(9)]);
    let mut json: serde_json::Value = serde_json::from_slice(&good.to_bytes()).unwrap();
    let other: serde_json::Value = serde_json::from_slice(&forged.to_bytes()).unwrap();
    json["payload"] = other["payload"].clone();
    let altered = Envelope::from_bytes(&serde_json::to_vec(&json).unwrap()).unwrap();
    assert_eq!(refusal(successor(&old, &altered)), Refusal::BadSignature);
    let list = Envelope::sign(list(2, &[]), &a);
    assert_eq!(refusal(successor(&old, &list)), Refusal::BadSignature);
}

#[test]
fn a_host_that_was_away_follows_every_version_and_no_gap() {
    let [a, b, c] = [1, 2, 3].map(key);
    let second = sign(&root(2, &[&b, &c]), &[&a, &b, &c]);
    let third = sign(&root(3, &[&b, &c]), &[&b, &c]);
    let pinned = || root(1, &[&a, &b]);
    assert_eq!(root_in_force(pinned(), &[second.clone(), third.clone()]).unwrap().version, 3);
    assert_eq!(root_in_force(pinned(), &[]).unwrap().version, 1);
    assert!(root_in_force(pinned(), std::slice::from_ref(&third)).is_err());
    assert!(root_in_force(pinned(), &[third, second]).is_err());
}

fn list(version: u32, documents: &[&str]) -> Revocation {
    let revoked = documents.iter().map(|text| Revoked { document: Digest::of(text), reason: "withdrawn".into() });
    Revocation { version, audience: Audience::Production, at: now(), revoked: revoked.collect() }
}

const NOTHING: Known<'_> = Known { version: 0, digest: None, revoked: &[] };

#[test]
fn a_revocation_list_is_signed_by_an_operator_or_by_the_root_and_nobody_else() {
    let [a, b] = [1, 2].map(key);
    let root = root(1, &[&a, &b]);
    let list = || list(1, &["order"]);
    assert!(revoke(&root, &NOTHING, &Envelope::sign(list(), &key(50))).is_ok(), "an operator alone");
    let mut by_root = Envelope::sign(list(), &a);
    assert_eq!(refusal(revoke(&root, &NOTHING, &by_root)), Refusal::BadSignature, "one root key of two");
    by_root.add_signature(&b);
    assert!(revoke(&root, &NOTHING, &by_root).is_ok());
    for stranger in [key(51), key(99)] {
        assert_eq!(refusal(revoke(&root, &NOTHING, &Envelope::sign(list(), &stranger))), Refusal::BadSignature);
    }
    let lab = Revocation { audience: Audience::Lab, ..list() };
    assert_eq!(refusal(revoke(&root, &NOTHING, &Envelope::sign(lab, &key(50)))), Refusal::BadSignature);
}

#[test]
fn an_older_list_another_of_the_same_version_and_one_that_forgets_are_stale() {
    let [a, b] = [1, 2].map(key);
    let root = root(1, &[&a, &b]);
    let operator = key(50);
    let current = Envelope::sign(list(3, &["one", "two"]), &operator);
    let revoked = ["one", "two"].map(Digest::of);
    let known = Known { version: 3, digest: Some(current.digest()), revoked: &revoked };
    assert_eq!(revoke(&root, &known, &current).unwrap().version, 3, "the same again changes nothing");
    let cases = [
        ("older", list(2, &["one", "two"])),
        ("same version, more in it", list(3, &["one", "two", "three"])),
        ("newer, and takes one back", list(4, &["one", "three"])),
        ("newer and empty", list(4, &[])),
    ];
    for (what, list) in cases {
        assert_eq!(refusal(revoke(&root, &known, &Envelope::sign(list, &operator))), Refusal::Stale, "{what}");
    }
    let next = Envelope::sign(list(9, &["two", "one", "three"]), &operator);
    assert_eq!(revoke(&root, &known, &next).unwrap().revoked.len(), 3);
}

#[test]
fn a_list_without_end_and_another_document_are_no_list() {
    let [a, b] = [1, 2].map(key);
    let root = root(1, &[&a, &b]);
    let mut endless = list(1, &["x"]);
    endless.revoked = vec![endless.revoked[0].clone(); patchlab_protocol::limits::REVOKED_DOCUMENTS + 1];
    assert_eq!(refusal(revoke(&root, &NOTHING, &Envelope::sign(endless, &key(50)))), Refusal::BadSignature);
    let [order, release] = ["order", "release"].map(Digest::of);
    let approval = Approval { approver: "x".into(), order, release, hosts_at_most: 1, at: now(), not_after: now() };
    assert_eq!(refusal(revoke(&root, &NOTHING, &Envelope::sign(approval, &key(50)))), Refusal::BadSignature);
}

#[test]
fn signatures_are_gathered_from_copies_of_a_document_and_only_those_that_verify() {
    let [a, b, stranger] = [1, 2, 99].map(key);
    let root = root(2, &[&a, &b]);
    let keys = || root.keys(Role::Root);
    let draft = Envelope::unsigned(root.clone());
    assert_eq!((draft.signers(keys()).len(), draft.digest()), (0, sign(&root, &[&a]).digest()));
    let mut gathered = sign(&root, &[&a]);
    gathered.absorb(&sign(&root, &[&b, &stranger]), keys());
    assert_eq!(gathered.signers(keys()).len(), 2);
    assert_eq!(gathered.claimed_signers().len(), 2, "a stranger's signature is not carried along");
    // A signature that does not verify gives way to one by the same key that does.
    let text = String::from_utf8(sign(&root, &[&a]).to_bytes()).unwrap();
    let signature = text.rsplit("\"sig\":\"").next().unwrap().split('"').next().unwrap().to_owned();
    let forged = text.replace(&signature, &format!("AAAA{}", &signature[4..]));
    let mut forged = Envelope::from_bytes(forged.as_bytes()).unwrap();
    assert!(forged.signers(keys()).is_empty());
    forged.absorb(&sign(&root, &[&a]), keys());
    assert_eq!((forged.signers(keys()).len(), forged.claimed_signers().len()), (1, 1));
    // Another document's signatures say nothing about this one.
    let before = gathered.clone();
    gathered.absorb(&sign(&Root { version: 3, ..root.clone() }, &[&a, &b]), keys());
    assert_eq!(gathered, before);
}
