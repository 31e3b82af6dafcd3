//! The server and the real agent: real documents, real signatures, real SNMPv3 and informs, real packages by the real package
//! manager, in a package root of its own. The agent's binary is found beside ours, as in production.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod managed;
mod site;

use std::{fs, path::Path, process::Command, time::Duration};

use managed::{Agent, package, program};
use patchlab::deploy::Row;
use patchlab_protocol::{Digest, Refusal, document::RunState};
use serde_json::json;
use site::{Site, order, until};

/// A shell for a package's script below a package root, and the gate that [`WAITS`] stands before.
fn give_shell_and_gate(root: &Path) {
    let listed = Command::new("ldd").arg("/bin/sh").output().unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    for file in listed.split_whitespace().filter(|word| word.starts_with('/')).chain(["/bin/sh"]) {
        let to = root.join(file.trim_start_matches('/'));
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::copy(file, to).unwrap();
    }
    let made = Command::new("mkfifo").arg(root.join("gate")).status().unwrap();
    assert!(made.success());
}

/// A package's script that says that it was run, and waits until the gate is opened.
const WAITS: &str = "#!/bin/sh\necho run >>/begun\nread line </gate\n";

#[test]
fn an_order_is_applied_and_taken_back_on_real_agents_and_an_unreleased_one_is_refused_there_too() {
    let Some(program) = program() else { return };
    let mut site = Site::new();
    let packages = site.path("packages");
    fs::create_dir(&packages).unwrap();
    let (old, new) = (package(&packages, "1.0-1", None), package(&packages, "1.0-2", None));
    site.serve();
    let agents = ["web-1", "web-2"].map(|name| Agent::start(&site, &program, name, &old));

    let files = || (site.package(&new, "demo", "all", "1.0-2"), site.package(&old, "demo", "all", "1.0-1"));
    let (to, from) = files();
    let digest = site.submit_order(&order("PO-1", to, from), "passed", "upgrade demo all 1.0-1 -> 1.0-2");
    let (to, from) = files();
    let bad = site.submit_order(&order("PO-BAD", to, from), "rejected", "upgrade demo all 1.0-1 -> 1.0-2");

    // Valid SNMP credentials, the rejected order, and no release.
    let uri = site.ok_json(&["host", "show", "web-1"])["payload_uri"].as_str().unwrap().to_owned();
    let row = Row {
        index: 900,
        order: bad.parse::<Digest>().unwrap(),
        release: None,
        approval: None,
        activation: None,
        uri,
        lifetime: Duration::from_secs(60),
    };
    let (state, refusal) = agents[0].pushed(&row, 1);
    assert_eq!(state, RunState::Refused);
    assert!(matches!(refusal, Some(Refusal::NotReleased | Refusal::NotActive)), "{refusal:?}");
    assert_eq!(agents[0].version(), "1.0-1");

    site.to_approved("PO-1");
    let story = site.ok_json(&["order", "activate", "PO-1", "--host", "web-1", "--host", "web-2", "--wait"]);
    assert_eq!(story["deployment"]["state"], "done", "{story}");
    for run in story["runs"].as_array().unwrap() {
        assert_eq!((&run["state"], &run["verified"]), (&json!("succeeded"), &json!("yes")));
    }
    agents.iter().for_each(|agent| assert_eq!(agent.version(), "1.0-2"));
    let log = site.ok(&["audit", "show"]);
    assert!(log.contains("foreign-result"), "the refusal that this server had no part in is noted:\n{log}");

    // What the host has is read when it rings, and is what it has.
    let packages = || site.ok_json(&["host", "show", "web-1", "--packages"]);
    let versions =
        || packages()["packages"].as_array().unwrap().iter().map(|p| p["version"].clone()).collect::<Vec<_>>();
    until("the upgrade is seen", || versions() == [json!("1.0-2")]);
    // A package that is half-way is not installed: the change before was that it went.
    assert_eq!(packages()["packages"][0]["index"], 1, "its index stayed");
    assert!(!site.ok_json(&["host", "show", "web-1", "--profile"])["at"].is_null());

    let operator = site.key("operator");
    let story = site.ok_json(&["order", "rollback", "PO-1", "--host", "web-1", "--wait", "--key", &operator]);
    assert_eq!(story["runs"][0]["state"], "rolled-back", "{story}");
    assert_eq!((agents[0].version().as_str(), agents[1].version().as_str()), ("1.0-1", "1.0-2"));
    let shown = site.ok_json(&["order", "show", &digest]);
    assert_eq!(shown["order"]["state"], "partly");
    assert_eq!(site.ok_json(&["audit", "verify"])["findings"], json!([]));
    until("the host has seen an audit head", || !site.ok_json(&["host", "show", "web-1"])["audit_head"].is_null());
}

/// The server dies while a real agent's package manager is at work. Its successor finds the run where it is, and goes
/// on.
#[test]
fn a_server_killed_in_the_middle_of_a_real_agents_run_carries_on_and_starts_nothing_twice() {
    let Some(program) = program() else { return };
    let mut site = Site::new();
    let packages = site.path("packages");
    fs::create_dir(&packages).unwrap();
    let (old, new) = (package(&packages, "1.0-1", None), package(&packages, "1.0-2", Some(WAITS)));
    site.serve();
    let agents = ["web-1", "web-2"].map(|name| Agent::start(&site, &program, name, &old));
    agents.iter().for_each(|agent| give_shell_and_gate(&agent.root));
    let (to, from) = (site.package(&new, "demo", "all", "1.0-2"), site.package(&old, "demo", "all", "1.0-1"));
    site.submit_order(&order("PO-1", to, from), "passed", "upgrade demo all 1.0-1 -> 1.0-2");
    site.to_approved("PO-1");
    site.ok(&["order", "activate", "PO-1", "--host", "web-1", "--host", "web-2"]);
    let begun = |agent: &Agent| fs::read_to_string(agent.root.join("begun")).unwrap_or_default();
    until("a package manager is at work", || agents.iter().any(|agent| !begun(agent).is_empty()));
    site.kill();

    // The host goes on without its server; the other one waits at its gate until somebody comes.
    for agent in &agents {
        let gate = agent.root.join("gate");
        std::thread::spawn(move || fs::write(gate, "go\n"));
    }
    site.serve();
    until("the order is deployed", || site.ok_json(&["order", "show", "PO-1"])["order"]["state"] == "deployed");
    for agent in &agents {
        assert_eq!((agent.version().as_str(), begun(agent).as_str()), ("1.0-2", "run\n"), "{}", agent.enrolment.host);
    }
    assert_eq!(site.ok_json(&["audit", "verify"])["findings"], json!([]));
}
