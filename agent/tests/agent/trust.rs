//! What changes whom the agent believes, over the real protocol, and what it still knows when the disk under it was
//! turned back.

use std::{
    fs,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use jiff::SignedDuration;
use patchlab_protocol::{
    Audience, Digest, Envelope, Refusal, Role, SigningKey,
    document::{Action, Revocation, Revoked, Root, RootKey, RunState, Scheme},
    mib,
};

use super::{
    host::{Host, NAME, missing, run},
    manager::{Manager, oid},
    orders::hours,
};

fn scalar(column: u32) -> String {
    oid(mib::trust::GROUP, &[column, 0])
}

/// Offers documents and waits until that is decided.
fn offer(host: &Host, manager: &Manager, documents: &[(u32, Digest)]) -> Option<Refusal> {
    let mut bindings = vec![(scalar(mib::trust::OFFER_URI), 's', host.uri.clone())];
    bindings.extend(documents.iter().map(|(column, digest)| (scalar(*column), 'x', digest.to_string())));
    manager.set(&bindings).unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    let open = || [mib::trust::OFFER_ROOT, mib::trust::OFFER_REVOCATION].map(|column| manager.octets(&scalar(column)));
    while open().iter().any(|digest| !digest.is_empty()) {
        assert!(Instant::now() < deadline, "an offer is not decided:\n{}", host.log());
    }
    let refusal = Refusal::from_number(manager.number(&scalar(mib::trust::OFFER_REFUSAL)));
    assert_eq!(refusal.is_some(), !manager.text(&scalar(mib::trust::OFFER_REASON)).is_empty());
    refusal
}

fn revocation(version: u32, documents: &[Digest]) -> Revocation {
    let revoked = documents.iter().map(|document| Revoked { document: *document, reason: "withdrawn".into() });
    Revocation { version, audience: Audience::Production, at: hours(0), revoked: revoked.collect() }
}

/// An order with everything that apply needs, published; its digests.
fn good_order(host: &Host, id: &str, wave: u32) -> [Digest; 4] {
    let authority = &host.authority;
    let replaced = host.installed(&host.package("web", "1", "", None));
    let new = host.package("web", "2", "", None);
    let (order, envelope) = authority.order(id, &host.class, vec![new], vec![replaced]);
    let digest = host.publish(&envelope);
    let release = host.publish(&authority.release(&order, digest, &["upgrade web all 1 -> 2"]));
    let approval = host.publish(&authority.approval(digest, release));
    let activation = host.publish(&authority.activation(digest, Action::Apply, NAME, Role::Activator, wave));
    [digest, release, approval, activation]
}

fn start(host: &Host, row: u32, run: u32, documents: [Digest; 4]) -> (RunState, Option<&'static str>) {
    let manager = host.deployer();
    manager.create(row, &host.uri, documents.map(Some)).unwrap();
    manager.start(row, run).unwrap();
    let state = manager.wait(row, run);
    (state, host.result(row, run).0.refusal.map(Refusal::name))
}

#[test]
fn a_revocation_list_is_offered_taken_and_obeyed_and_an_older_one_is_stale() {
    if missing() {
        return;
    }
    let mut host = Host::new();
    let documents = good_order(&host, "PO-1", 1);
    let manager = host.deployer();
    let operator = &host.authority.keys[&Role::Operator];
    let publish = |list: Revocation, key: &SigningKey| host.publish(&Envelope::sign(list, key));

    let by_stranger = publish(revocation(1, &documents[..1]), &SigningKey::generate().unwrap());
    let column = mib::trust::OFFER_REVOCATION;
    assert_eq!(offer(&host, &manager, &[(column, by_stranger)]), Some(Refusal::BadSignature));
    assert_eq!(offer(&host, &manager, &[(column, Digest::of("nobody has this"))]), Some(Refusal::Preflight));
    assert_eq!(manager.number(&scalar(mib::trust::REVOCATION_VERSION)), 0);

    let list = publish(revocation(4, &documents[1..2]), operator);
    assert_eq!(offer(&host, &manager, &[(column, list)]), None);
    assert_eq!(manager.number(&scalar(mib::trust::REVOCATION_VERSION)), 4);
    assert_eq!(manager.octets(&scalar(mib::trust::REVOCATION_DIGEST)), list.as_bytes());
    assert_eq!(manager.octets(&scalar(mib::trust::TIME_FLOOR)).len(), 11, "the list's own time is a floor");
    assert_eq!(start(&host, 1, 1, documents), (RunState::Refused, Some("revoked")));
    assert_eq!(host.packages(), "installed web 1\n");

    // What was revoked stays so: an older list, an emptied one, and a restart change nothing.
    for (version, named) in [(3, &documents[1..2]), (5, &documents[..1])] {
        let digest = publish(revocation(version, named), operator);
        assert_eq!(offer(&host, &manager, &[(column, digest)]), Some(Refusal::Stale), "version {version}");
    }
    host.kill();
    host.start();
    assert_eq!(host.monitor().number(&scalar(mib::trust::REVOCATION_VERSION)), 4);
    assert_eq!(start(&host, 2, 1, documents), (RunState::Refused, Some("revoked")));
    let log = host.log();
    assert!(log.contains("refusal=revoked") && log.contains(&documents[0].to_string()), "{log}");
}

#[test]
fn a_list_that_comes_with_a_root_is_obeyed_whatever_becomes_of_the_root() {
    if missing() {
        return;
    }
    let host = Host::new();
    let documents = good_order(&host, "PO-1", 1);
    let manager = host.deployer();
    let stranger = SigningKey::generate().unwrap();
    let refused = host.publish(&next_root(&host, 2, &stranger, &[&stranger]));
    let cases = [(refused, Refusal::BadSignature), (Digest::of("nobody has this"), Refusal::Preflight)];
    for (version, (root, refusal)) in (1..).zip(cases) {
        let named = &documents[..usize::try_from(version).unwrap()];
        let list = Envelope::sign(revocation(version, named), &host.authority.keys[&Role::Operator]);
        let both = [(mib::trust::OFFER_ROOT, root), (mib::trust::OFFER_REVOCATION, host.publish(&list))];
        assert_eq!(offer(&host, &manager, &both), Some(refusal));
        assert_eq!(manager.number(&scalar(mib::trust::REVOCATION_VERSION)), i64::from(version));
    }
    assert_eq!(start(&host, 1, 1, documents), (RunState::Refused, Some("revoked")));
}

#[test]
fn a_list_signed_by_a_clock_that_is_a_year_ahead_is_obeyed_and_stops_no_order() {
    if missing() {
        return;
    }
    let host = Host::new();
    let documents = good_order(&host, "PO-1", 1);
    let manager = host.deployer();
    let list = Revocation { at: hours(24 * 365), ..revocation(1, &[Digest::of("another")]) };
    let list = host.publish(&Envelope::sign(list, &host.authority.keys[&Role::Operator]));
    assert_eq!(offer(&host, &manager, &[(mib::trust::OFFER_REVOCATION, list)]), None);
    assert_eq!(manager.number(&scalar(mib::trust::REVOCATION_VERSION)), 1);
    assert_eq!(start(&host, 1, 1, documents), (RunState::Succeeded, None), "{}", host.log());
}

#[test]
fn what_is_revoked_while_a_run_fetches_is_not_applied() {
    if missing() {
        return;
    }
    let host = Host::new();
    let documents = good_order(&host, "PO-1", 1);
    let manager = host.deployer();
    // The member holds the package back until the list is in force.
    let gate = host.hold_artifacts();
    manager.create(1, &host.uri, documents.map(Some)).unwrap();
    manager.start(1, 1).unwrap();
    gate.wait_until_asked();
    let list = Envelope::sign(revocation(1, &documents[..1]), &host.authority.keys[&Role::Operator]);
    assert_eq!(offer(&host, &manager, &[(mib::trust::OFFER_REVOCATION, host.publish(&list))]), None);
    gate.open();
    assert_eq!(manager.wait(1, 1), RunState::Refused);
    assert_eq!(host.result(1, 1).0.refusal, Some(Refusal::Revoked));
    assert_eq!(host.packages(), "installed web 1\n");
}

/// A successor of the host's root, with another releaser, signed by these.
fn next_root(host: &Host, version: u32, releaser: &SigningKey, signers: &[&SigningKey]) -> Envelope {
    let mut root: Root = host.authority.root.statement().unwrap().predicate;
    root.version = version;
    root.keys.retain(|key| !key.roles.contains(&Role::Releaser));
    root.keys.push(RootKey {
        holder: "new releaser".into(),
        roles: vec![Role::Releaser],
        audience: Audience::Production,
        scheme: Scheme::Ed25519,
        public: releaser.public(),
    });
    let mut envelope = Envelope::sign(root, signers[0]);
    signers.iter().for_each(|key| envelope.add_signature(key));
    envelope
}

#[test]
fn a_root_is_rotated_by_the_old_threshold_only_and_its_old_keys_then_count_no_more() {
    if missing() {
        return;
    }
    let mut host = Host::new();
    let manager = host.deployer();
    let (root_key, new) = (&host.authority.keys[&Role::Root], SigningKey::generate().unwrap());
    let column = mib::trust::OFFER_ROOT;
    let pinned = host.authority.root.digest();
    let cases = [
        ("by the new key alone", next_root(&host, 2, &new, &[&new]), Refusal::BadSignature),
        ("by the operator", next_root(&host, 2, &new, &[&host.authority.keys[&Role::Operator]]), Refusal::BadSignature),
        ("with a gap", next_root(&host, 3, &new, &[root_key]), Refusal::Stale),
        ("of the version in force", next_root(&host, 1, &new, &[root_key]), Refusal::Stale),
    ];
    for (what, envelope, refusal) in cases {
        assert_eq!(offer(&host, &manager, &[(column, host.publish(&envelope))]), Some(refusal), "{what}");
        let digest = manager.octets(&oid(mib::agent::GROUP, &[mib::agent::ROOT_DIGEST, 0]));
        assert_eq!(digest, pinned.as_bytes(), "{what}");
    }
    let good = next_root(&host, 2, &new, &[root_key]);
    assert_eq!(offer(&host, &manager, &[(column, host.publish(&good))]), None);

    let documents = good_order(&host, "PO-1", 1);
    assert_eq!(start(&host, 1, 1, documents), (RunState::Refused, Some("bad-signature")), "the old releaser");
    host.kill();
    host.start();
    let manager = host.deployer();
    assert_eq!(manager.number(&scalar(mib::trust::ROOT_VERSION)), 2);
    let digest = manager.octets(&oid(mib::agent::GROUP, &[mib::agent::ROOT_DIGEST, 0]));
    assert_eq!(digest, good.digest().as_bytes());
    assert_eq!(start(&host, 2, 1, documents), (RunState::Refused, Some("bad-signature")), "after a restart");

    let release: Envelope = {
        let old: Envelope =
            Envelope::from_bytes(&fs::read(host.path("www/documents").join(documents[1].to_string())).unwrap())
                .unwrap();
        let mut release: patchlab_protocol::document::Release = old.statement().unwrap().predicate;
        release.passed_tests.push("by the new releaser".into());
        Envelope::sign(release, &new)
    };
    let release = host.publish(&release);
    let approval = host.publish(&host.authority.approval(documents[0], release));
    let all = [documents[0], release, approval, documents[3]];
    assert_eq!(start(&host, 3, 1, all), (RunState::Succeeded, None), "{}", host.log());
}

fn copy(from: &Path, to: &Path) {
    let _ = fs::remove_dir_all(to);
    run(Command::new("cp").arg("-a").args([from, to]));
}

#[test]
fn a_disk_that_is_reverted_under_the_agent_brings_no_permission_back() {
    if missing() {
        return;
    }
    let mut host = Host::with_ledger_elsewhere();
    let documents = good_order(&host, "PO-1", 1);
    host.kill();
    // A snapshot of the host's disk: the system and the agent's state, not the ledger.
    for part in ["root", "state"] {
        copy(&host.path(part), &host.path(&format!("snapshot-{part}")));
    }
    host.start();
    let boots = |host: &Host| host.monitor().number(".1.3.6.1.6.3.10.2.1.2.0");
    let sequence =
        |host: &Host| host.monitor().number(&oid(mib::agent::GROUP, &[mib::agent::NOTIFICATION_SEQUENCE, 0]));
    let floor = |host: &Host| host.monitor().octets(&scalar(mib::trust::TIME_FLOOR));
    assert_eq!(start(&host, 1, 1, documents), (RunState::Succeeded, None), "{}", host.log());
    assert_eq!(host.packages(), "installed web 2\n");
    let list = Envelope::sign(revocation(1, &[Digest::of("other")]), &host.authority.keys[&Role::Operator]);
    let manager = host.deployer();
    assert_eq!(offer(&host, &manager, &[(mib::trust::OFFER_REVOCATION, host.publish(&list))]), None);
    let (boots_before, sequence_before, floor_before) = (boots(&host), sequence(&host), floor(&host));
    let (_, head) = host.result(1, 1);

    host.kill();
    for part in ["root", "state"] {
        copy(&host.path(&format!("snapshot-{part}")), &host.path(part));
    }
    host.start();
    assert_eq!(host.packages(), "installed web 1\n", "the disk is as it was");
    assert!(boots(&host) > boots_before && sequence(&host) > sequence_before);
    assert_eq!(floor(&host), floor_before);
    assert_eq!(host.monitor().number(&scalar(mib::trust::REVOCATION_VERSION)), 1);
    assert_eq!(start(&host, 2, 1, documents), (RunState::Refused, Some("consumed")), "{}", host.log());
    assert_eq!(host.result(2, 1).0.previous, Some(head), "the chain of results goes on");
    assert!(host.log().contains("turned back"), "{}", host.log());

    // The ledger's own disk is gone: better no agent than one that forgot.
    host.kill();
    fs::remove_file(host.path("ledger/ledger.json")).unwrap();
    let output = host.agent().args(["run", "--config"]).arg(host.path("id/agent.toml")).output().unwrap();
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("not mounted or was turned back"), "{said}");
}

#[test]
fn a_clock_before_the_floor_refuses_apply() {
    if missing() {
        return;
    }
    let mut host = Host::new();
    let documents = good_order(&host, "PO-1", 1);
    // What was seen two hours from now, as a host remembers it whose clock was turned back by two hours.
    host.kill();
    let path = host.path("state/ledger.json");
    let mut ledger: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    ledger["generation"] = (ledger["generation"].as_u64().unwrap() + 1).into();
    ledger["time_floor"] = (hours(0) + SignedDuration::from_hours(2)).to_string().into();
    fs::write(&path, ledger.to_string()).unwrap();
    host.start();
    let manager = host.deployer();
    assert_eq!(start(&host, 1, 1, documents), (RunState::Refused, Some("expired")));
    let reason = manager.text(&oid(mib::order::ENTRY, &[mib::order::REFUSAL_REASON, 1]));
    assert!(reason.contains("was seen signed before: set the clock"), "{reason}");
}
