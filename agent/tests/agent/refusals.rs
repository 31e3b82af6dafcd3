//! Valid SNMP credentials are not enough: whatever is missing, altered or of another order is refused, by name.

use patchlab_protocol::{
    Digest, Envelope, Role,
    document::{Action, Order, RunState},
    mib,
};

use super::{
    host::{Host, NAME, missing},
    manager::{Manager, oid},
};

/// One order and its four documents, published.
struct Set {
    order: Order,
    envelopes: [Envelope; 4],
}

fn set(host: &Host, id: &str, transaction: &[&str]) -> Set {
    let authority = &host.authority;
    let replaced = host.package("web", "1", "", None);
    let old = patchlab_protocol::document::Replaced {
        name: "web".into(),
        arch: "all".into(),
        version: "1".into(),
        file: Some(replaced),
    };
    let (order, envelope) = authority.order(id, &host.class, vec![host.package("web", "2", "", None)], vec![old]);
    let digest = envelope.digest();
    let release = authority.release(&order, digest, transaction);
    let approval = authority.approval(digest, release.digest());
    let activation = authority.activation(digest, Action::Apply, NAME, Role::Activator, 1);
    let envelopes = [envelope, release, approval, activation];
    for envelope in &envelopes {
        host.publish(envelope);
    }
    Set { order, envelopes }
}

/// The envelope with its payload changed, or only its signature: base64 text in the JSON.
fn altered(envelope: &Envelope, field: &str) -> Vec<u8> {
    let text = String::from_utf8(envelope.to_bytes()).unwrap();
    let start = text.find(&format!("\"{field}\":\"")).unwrap() + field.len() + 4;
    let place = start + 40;
    let mut bytes = text.into_bytes();
    bytes[place] = if bytes[place] == b'A' { b'B' } else { b'A' };
    bytes
}

struct Case<'m> {
    host: &'m Host,
    manager: Manager,
    row: u32,
}

impl Case<'_> {
    fn refused(&mut self, what: &str, documents: [Option<Digest>; 4], expected: &str) {
        self.row += 1;
        let (row, manager) = (self.row, &self.manager);
        manager.create(row, &self.host.uri, documents).unwrap();
        manager.start(row, 1).unwrap();
        assert_eq!(manager.wait(row, 1), RunState::Refused, "{what}");
        let (result, _) = self.host.result(row, 1);
        let number = manager.number(&oid(mib::order::ENTRY, &[mib::order::REFUSAL, row]));
        let reason = manager.text(&oid(mib::order::ENTRY, &[mib::order::REFUSAL_REASON, row]));
        assert_eq!(result.refusal.map(|r| r.name()), Some(expected), "{what}: {reason}");
        assert_eq!(result.refusal.map(|r| r as i64), Some(number), "{what}");
        assert!(!reason.is_empty(), "{what}");
        assert_eq!(self.host.packages(), "installed web 1\n", "{what}: something was changed");
    }
}

#[test]
fn each_document_missing_altered_or_of_another_order_is_refused_by_name() {
    if missing() {
        return;
    }
    let host = Host::new();
    host.installed(&host.package("web", "1", "", None));
    let good = set(&host, "PO-1", &["upgrade web all 1 -> 2"]);
    let other = set(&host, "PO-2", &["upgrade web all 1 -> 2"]);
    assert_ne!(good.order, other.order);
    let digests = good.envelopes.each_ref().map(|envelope| Some(envelope.digest()));
    let mut case = Case { host: &host, manager: host.deployer(), row: 0 };
    let names = ["order", "release", "approval", "activation"];

    for (place, expected) in [(1, "not-released"), (2, "not-approved"), (3, "not-active")] {
        let mut absent = digests;
        absent[place] = None;
        case.refused(&format!("no {}", names[place]), absent, expected);
        let mut lost = digests;
        lost[place] = Some(Digest::of("nobody has this"));
        case.refused(&format!("{} that the member lacks", names[place]), lost, expected);
        let mut foreign = digests;
        foreign[place] = Some(other.envelopes[place].digest());
        case.refused(&format!("{} of another order", names[place]), foreign, expected);
    }
    let mut lost = digests;
    lost[0] = Some(Digest::of("nobody has this"));
    case.refused("order that the member lacks", lost, "preflight");

    for (envelope, name) in good.envelopes.iter().zip(names) {
        for field in ["payload", "sig"] {
            host.publish_as(envelope.digest(), &altered(envelope, field));
            case.refused(&format!("altered {field} of the {name}"), digests, "bad-signature");
            host.publish(envelope);
        }
    }

    let authority = &host.authority;
    let order = good.envelopes[0].digest();
    let with_activation = |envelope: &Envelope| {
        let mut all = digests;
        all[3] = Some(host.publish(envelope));
        all
    };
    let elsewhere = authority.activation(order, Action::Apply, "host-2", Role::Activator, 1);
    case.refused("activation for another host", with_activation(&elsewhere), "not-active");
    let operator = authority.activation(order, Action::Apply, NAME, Role::Operator, 1);
    case.refused("apply activated by an operator", with_activation(&operator), "bad-signature");
    let back = authority.activation(order, Action::Rollback, NAME, Role::Operator, 1);
    case.refused("rollback of what was never applied", with_activation(&back), "versions-differ");

    // Nothing of all this used anything up: the good order still goes through.
    case.manager.create(100, &host.uri, digests).unwrap();
    case.manager.start(100, 1).unwrap();
    assert_eq!(case.manager.wait(100, 1), RunState::Succeeded, "{}", host.log());
    assert_eq!(host.packages(), "installed web 2\n");
}

#[test]
fn versions_transaction_and_files_must_be_the_proven_ones() {
    if missing() {
        return;
    }
    let host = Host::new();
    host.installed(&host.package("web", "1", "", None));
    let mut case = Case { host: &host, manager: host.deployer(), row: 0 };
    let other = set(&host, "PO-1", &["upgrade web all 1 -> 2", "remove other all 1 -> -"]);
    let digests = other.envelopes.each_ref().map(|envelope| Some(envelope.digest()));
    case.refused("another transaction than the proven one", digests, "transaction-differs");

    let good = set(&host, "PO-2", &["upgrade web all 1 -> 2"]);
    let digests = good.envelopes.each_ref().map(|envelope| Some(envelope.digest()));
    let artifact = host.path("www/artifacts").join(good.order.install[0].sha256.to_string());
    let bytes = std::fs::read(&artifact).unwrap();
    let mut changed = bytes.clone();
    changed[100] ^= 1;
    std::fs::write(&artifact, changed).unwrap();
    case.refused("an altered package file", digests, "preflight");
    std::fs::remove_file(&artifact).unwrap();
    case.refused("a missing package file", digests, "preflight");
    std::fs::write(&artifact, bytes).unwrap();

    host.installed(&host.package("web", "1.5", "", None));
    case.row += 1;
    case.manager.create(case.row, &host.uri, digests).unwrap();
    case.manager.start(case.row, 1).unwrap();
    assert_eq!(case.manager.wait(case.row, 1), RunState::Refused);
    assert_eq!(host.result(case.row, 1).0.refusal.map(|r| r.name()), Some("versions-differ"));
}
