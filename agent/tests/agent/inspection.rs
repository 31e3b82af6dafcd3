//! What people ask on the host itself.

use std::process::Output;

use patchlab_protocol::{
    Digest, Role,
    document::{Action, RunState},
};

use super::host::{Host, NAME, missing};

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
    std::fs::create_dir(&folder).unwrap();
    for (number, file) in new.iter().enumerate() {
        let from = host.path("www/artifacts").join(file.sha256.to_string());
        std::fs::copy(from, folder.join(format!("any-name-{number}.deb"))).unwrap();
    }
    let files = folder.display().to_string();
    let (code, said, error) = ask(&host, &["simulate", &file(digest), "--files", &files]);
    assert_eq!((code, said.as_str()), (Some(0), "install lib all - -> 1\nupgrade web all 1 -> 2\n"), "{error}");
    let (code, _, error) = ask(&host, &["simulate", &file(digest), "--files", "/var/empty"]);
    assert!(code == Some(1) && error.contains("/var/empty"), "{code:?} {error}");

    assert_eq!(ask(&host, &["verify", &file(digest)]).0, Some(0), "an order alone");
    let given: Vec<String> = [digest, release, approval, activation].map(file).to_vec();
    let all = ["verify", &given[0], "--release", &given[1], "--approval", &given[2], "--activation", &given[3]];
    let (code, said, error) = ask(&host, &all);
    assert!(code == Some(0) && said.contains("PO-1"), "{error}");
    let (code, _, error) = ask(&host, &all[..all.len() - 2]);
    assert!(code == Some(5) && error.contains("not-active"), "{error}");
    let stranger = patchlab_protocol::Envelope::sign(order, &authority.keys[&Role::Releaser]);
    // The same order, so the same digest: only the signature is another.
    let forged = host.path("forged.json");
    std::fs::write(&forged, stranger.to_bytes()).unwrap();
    let (code, _, error) = ask(&host, &["verify", &forged.display().to_string()]);
    assert!(code == Some(5) && error.contains("bad-signature"), "{error}");

    let manager = host.deployer();
    manager.create(1, &host.uri, [Some(digest), Some(release), Some(approval), Some(activation)]).unwrap();
    manager.start(1, 1).unwrap();
    assert_eq!(manager.wait(1, 1), RunState::Succeeded, "{}", host.log());
    let (code, _, error) = ask(&host, &all);
    assert!(code == Some(5) && error.contains("consumed"), "{error}");
    let (code, _, error) = ask(&host, &["verify", &file(digest)]);
    assert!(code == Some(5) && error.contains("versions-differ"), "{error}");
}
