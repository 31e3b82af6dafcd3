//! What people ask on the host itself.

use std::{fs, process::Output};

use patchlab_protocol::{
    Digest, Envelope, Role,
    document::{Action, Order, RunState},
};

use super::{
    host::{Host, NAME, missing},
    orders::hours,
};

fn ask(host: &Host, words: &[&str]) -> (Option<i32>, String, String) {
    let Output { status, stdout, stderr } =
        host.agent().args(words).arg("--config").arg(host.path("id/agent.toml")).output().unwrap();
    let [out, err] = [stdout, stderr].map(|bytes| String::from_utf8(bytes).unwrap());
    (status.code(), out, err)
}

#[test]
fn inventory_verify_and_simulate_answer_as_the_agent_would_act() {
    if missing() {
        return;
    }
    let host = Host::new();
    let authority = &host.authority;
    let old = host.installed(&host.package("web", "1", "", None));
    let new = [host.package("web", "2", "Depends: lib\n", None), host.package("lib", "1", "", None)];
    let (order, envelope) = authority.order("PO-1", &host.class, new.to_vec(), vec![old]);
    let digest = host.publish(&envelope);
    let release =
        host.publish(&authority.release(&order, digest, &["install lib all - -> 1", "upgrade web all 1 -> 2"]));
    let approval = host.publish(&authority.approval(digest, release));
    let activation = host.publish(&authority.activation(digest, Action::Apply, NAME, Role::Activator, 1));
    let file = |digest: Digest| host.path("www/documents").join(digest.to_string()).display().to_string();

    let (code, said, error) = ask(&host, &["inventory", "--json"]);
    assert_eq!(code, Some(0), "{error}");
    let found: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert_eq!(found["packages"], serde_json::json!(["web all 1"]));
    assert_eq!(found["digest"], Digest::of("web all 1\n").to_string());
    let [parts, source] = ["parts", "source"].map(|key| found["details"][0][key].clone());
    assert_eq!(parts, serde_json::json!({ "epoch": 0, "version": "1", "release": "" }));
    assert_eq!(source, serde_json::json!({ "name": "web", "version": "1" }));

    let folder = host.path("files");
    fs::create_dir(&folder).unwrap();
    for (number, file) in new.iter().enumerate() {
        let from = host.path("www/artifacts").join(file.sha256.to_string());
        fs::copy(from, folder.join(format!("any-name-{number}.deb"))).unwrap();
    }
    let files = folder.display().to_string();
    let (code, said, error) = ask(&host, &["simulate", &file(digest), "--files", &files]);
    assert_eq!((code, said.as_str()), (Some(0), "install lib all - -> 1\nupgrade web all 1 -> 2\n"), "{error}");
    let (code, _, error) = ask(&host, &["simulate", &file(digest), "--files", "/var/empty"]);
    assert!(code == Some(1) && error.contains("/var/empty"), "{code:?} {error}");

    let (code, said, error) = ask(&host, &["verify", &file(digest)]);
    assert_eq!((code, error.as_str()), (Some(0), ""), "an order alone");
    assert!(said.contains("order PO-1 itself is fit; no permission was looked at"), "{said}");
    let given: Vec<String> = [digest, release, approval, activation].map(file).to_vec();
    let all = ["verify", &given[0], "--release", &given[1], "--approval", &given[2], "--activation", &given[3]];
    let (code, said, error) = ask(&host, &all);
    assert!(code == Some(0) && said.contains("PO-1 would be obeyed"), "{said}{error}");
    let untold = host.publish(&authority.release(&order, digest, &[]));
    let approval_of_it = host.publish(&authority.approval(digest, untold));
    let [untold, approval_of_it] = [untold, approval_of_it].map(file);
    let proves_nothing =
        ["verify", &given[0], "--release", &untold, "--approval", &approval_of_it, "--activation", &given[3]];
    let (code, _, error) = ask(&host, &proves_nothing);
    assert!(code == Some(5) && error.contains("not-released"), "{error}");
    let (code, _, error) = ask(&host, &all[..all.len() - 2]);
    assert!(code == Some(5) && error.contains("not-active"), "{error}");
    let stranger = Envelope::sign(order, &authority.keys[&Role::Releaser]);
    // The same order, so the same digest: only the signature is another.
    let forged = host.path("forged.json");
    fs::write(&forged, stranger.to_bytes()).unwrap();
    let (code, _, error) = ask(&host, &["verify", &forged.display().to_string()]);
    assert!(code == Some(5) && error.contains("bad-signature"), "{error}");

    let manager = host.deployer();
    manager.create(1, &host.uri, [Some(digest), Some(release), Some(approval), Some(activation)]).unwrap();
    manager.start(1, 1).unwrap();
    assert_eq!(manager.wait(1, 1), RunState::Succeeded, "{}", host.log());
    let (code, _, error) = ask(&host, &all);
    assert!(code == Some(5) && error.contains("consumed"), "{error}");
    let (code, _, error) = ask(&host, &["verify", &file(digest)]);
    assert!(code == Some(5) && error.contains("consumed"), "{error}");
}

#[test]
fn an_order_alone_is_judged_by_what_the_host_remembers() {
    if missing() {
        return;
    }
    let mut host = Host::new();
    host.kill();
    let replaced = host.installed(&host.package("web", "1", "", None));
    let new = host.package("web", "2", "", None);
    let (order, _) = host.authority.order("PO-1", &host.class, vec![new], vec![replaced]);
    let signed = |order: Order| host.publish(&Envelope::sign(order, &host.authority.keys[&Role::Drafter]));
    let file = |digest: Digest| host.path("www/documents").join(digest.to_string()).display().to_string();
    let refused = |digest: Digest, word: &str| {
        let (code, said, error) = ask(&host, &["verify", &file(digest)]);
        assert!(code == Some(5) && said.is_empty() && error.contains(word), "{word}: {code:?} {said}{error}");
    };
    let good = signed(order.clone());
    assert_eq!(ask(&host, &["verify", &file(good)]).0, Some(0));
    refused(signed(Order { not_after: Some(hours(-1)), ..order.clone() }), "expired");
    refused(signed(Order { after: vec![Digest::of("another")], ..order.clone() }), "must have succeeded here before");

    // The journal was turned back, and the ledger was not: it knows what the host no longer does.
    let path = host.path("state/ledger.json");
    let mut ledger: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let mut remember = |what: &str, digests: &[Digest]| {
        ledger["generation"] = (ledger["generation"].as_u64().unwrap() + 1).into();
        ledger[what] = serde_json::to_value(digests).unwrap();
        fs::write(&path, ledger.to_string()).unwrap();
        fs::read(&path).unwrap()
    };
    let written = remember("applied", &[good]);
    refused(good, "consumed");
    let revoked = signed(Order { id: "PO-2".into(), ..order });
    assert_eq!(ask(&host, &["verify", &file(revoked)]).0, Some(0));
    assert_eq!(fs::read(&path).unwrap(), written, "nothing is written");
    remember("revoked", &[revoked]);
    refused(revoked, "revoked");
}

#[test]
fn a_reader_that_has_gone_is_no_error() {
    if missing() {
        return;
    }
    let host = Host::new();
    let (order, envelope) = host.authority.order("PO-1", &host.class, vec![host.package("web", "2", "", None)], vec![]);
    host.publish(&envelope);
    let file = host.path("www/documents").join(envelope.digest().to_string()).display().to_string();
    for words in [&["status"][..], &["status", "--json"], &["inventory"], &["inventory", "--json"], &["verify", &file]]
    {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut agent = host.agent();
        agent.args(words).arg("--config").arg(host.path("id/agent.toml")).stdout(writer);
        let Output { status, stderr, .. } = agent.output().unwrap();
        let said = String::from_utf8_lossy(&stderr);
        assert!(status.success() && said.is_empty(), "{words:?} of {}: {status} {said}", order.id);
    }
}
