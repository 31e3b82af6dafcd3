//! The server as people use it: the real program, its signer, its socket and its command line, with hosts that answer over real
//! SNMPv3. From keys to rollback, the gate's refusals, a kill in the middle, and a log that somebody wrote in.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod host;
mod site;

use std::{fs, net::SocketAddr, path::Path};

use host::{Course, TestHost};
use patchlab_protocol::{SigningKey, document::RunState, enrolment::Enrolment};
use serde_json::{Value, json};
use site::{Site, free_port, until, verdict_json};

/// Enrols a host, which answers from then on.
fn enrol(site: &Site, runtime: &tokio::runtime::Runtime, name: &str) -> TestHost {
    let address = free_port();
    let out = site.path(name);
    site.ok(&[
        "host",
        "enroll",
        name,
        "--address",
        &address.to_string(),
        "--site",
        "lab",
        "--out",
        &out.display().to_string(),
    ]);
    runtime.block_on(host_from(&out, address))
}

async fn host_from(folder: &Path, address: SocketAddr) -> TestHost {
    let text = fs::read_to_string(folder.join("agent.toml")).unwrap();
    let enrolment: Enrolment = toml::from_str(&text).unwrap();
    enrolment.check().unwrap();
    let key = SigningKey::read(&folder.join("host.pem")).unwrap();
    let engine = enrolment.engine_id.as_ref().unwrap();
    let name = enrolment.host.clone();
    TestHost::start_on(&address.to_string(), &name, engine, &enrolment.deployer, key, enrolment.root.digest).await
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

#[test]
fn from_submit_to_rollback() {
    let runtime = runtime();
    let mut site = Site::new();
    let ran = site.run(&["order", "list"]);
    assert_eq!(ran.code, Some(4));
    assert!(ran.err.contains("patchlab serve --data"), "{}", ran.err);

    let console = site.serve();
    let hosts = [enrol(&site, &runtime, "web-1"), enrol(&site, &runtime, "web-2")];
    let digest = site.submit("PO-1", "passed");
    site.refused(&["order", "activate", "PO-1", "--host", "web-1"], "not-released");
    site.ok(&["order", "release", "PO-1"]);
    site.refused(&["order", "activate", "PO-1", "--host", "web-1"], "not-approved");
    site.refused(&["order", "approve", "PO-1", "--key", &site.key("operator")], "bad-signature");
    site.ok(&["order", "approve", "PO-1", "--key", &site.key("approver"), "--hosts", "1"]);
    let both = ["order", "activate", "PO-1", "--host", "web-1", "--host", "web-2", "--wait"];
    site.refused(&both, "not-approved");
    site.ok(&["order", "approve", "PO-1", "--key", &site.key("approver"), "--hosts", "2"]);

    let story = site.ok_json(&both);
    assert_eq!(story["deployment"]["state"], "done");
    for run in story["runs"].as_array().unwrap() {
        assert_eq!((&run["state"], &run["verified"]), (&json!("succeeded"), &json!("yes")));
    }
    assert_eq!(site.ok_json(&["order", "show", "PO-1"])["order"]["state"], "deployed");

    hosts.iter().for_each(|host| host.will(Course::Ends(RunState::RolledBack)));
    site.ok(&["order", "rollback", "PO-1", "--host", "web-1", "--wait", "--key", &site.key("operator")]);
    assert_eq!(site.ok_json(&["order", "show", "PO-1"])["order"]["state"], "partly");
    site.ok(&["order", "rollback", "PO-1", "--host", "web-2", "--wait"]);
    assert_eq!(site.ok_json(&["order", "show", "PO-1"])["order"]["state"], "rolled-back");
    assert_eq!(site.ok_json(&["host", "show", "web-1"])["current_order"], Value::Null);

    let check = site.ok_json(&["audit", "verify"]);
    assert_eq!(check["findings"], json!([]));
    let report = site.path("report");
    site.ok(&["report", "--out", &report.display().to_string()]);
    let page = fs::read_to_string(report.join("index.html")).unwrap();
    for needed in ["PO-1", "web-1", "web-2", "rolled-back", "front page", "1.22-2", &digest] {
        assert!(page.contains(needed), "the report does not say {needed}");
    }
    assert!(!page.contains("<script") && !page.contains("http://"), "the page is self-contained");

    runtime.block_on(async {
        let page = reqwest::get(&console).await.unwrap().text().await.unwrap();
        assert!(page.contains("PO-1") && page.contains("web-2"));
        let rebound = reqwest::Client::new().get(&console).header("host", "evil.example").send().await.unwrap();
        assert_eq!(rebound.status(), 421);
        // TCP shows; it does not change without the token.
        let change = reqwest::Client::new().post(format!("{console}api/v1/orders/PO-1/release")).send().await.unwrap();
        assert_eq!(change.status(), 401);
        let token = fs::read_to_string(site.path("data/keys/api.token")).unwrap();
        let change = reqwest::Client::new()
            .post(format!("{console}api/v1/orders/PO-9/release"))
            .bearer_auth(token)
            .send()
            .await
            .unwrap();
        assert_eq!(change.status(), 404);
    });
}

#[test]
fn a_rejected_order_goes_nowhere() {
    let runtime = runtime();
    let mut site = Site::new();
    site.serve();
    let _host = enrol(&site, &runtime, "web-1");
    site.submit("PO-BAD", "rejected");
    site.refused(&["order", "release", "PO-BAD"], "not-released");
    site.refused(&["order", "approve", "PO-BAD", "--key", &site.key("approver")], "not-released");
    site.refused(&["order", "activate", "PO-BAD", "--host", "web-1"], "not-released");
    let log = site.ok(&["audit", "show"]);
    assert!(log.contains("release-refused") && log.contains("activation-refused"), "{log}");
    // A better verdict later does not help: that would be shopping for one.
    let digest = site.ok_json(&["order", "show", "PO-BAD"])["order"]["digest"].as_str().unwrap().to_owned();
    let path = site.path("better.json");
    fs::write(&path, verdict_json(&digest, "passed", "x").to_string()).unwrap();
    site.refused(&["order", "verdict", "PO-BAD", &path.display().to_string()], "rejected");
    let missing = site.path("PO-BAD.json");
    let mut order: Value = serde_json::from_slice(&fs::read(&missing).unwrap()).unwrap();
    order["id"] = json!("PO-MISSING");
    order["install"][0]["sha256"] = json!("c".repeat(64));
    fs::write(&missing, order.to_string()).unwrap();
    let ran = site.run(&["order", "submit", &missing.display().to_string(), "--key", &site.key("drafter")]);
    assert_eq!(ran.code, Some(65));
    assert!(ran.err.contains(&"c".repeat(64)), "the missing artifact is named: {}", ran.err);
}

#[test]
fn a_killed_server_carries_on() {
    let runtime = runtime();
    let mut site = Site::new();
    site.serve();
    let hosts = [enrol(&site, &runtime, "web-1"), enrol(&site, &runtime, "web-2")];
    site.submit("PO-1", "passed");
    site.to_approved("PO-1");
    hosts.iter().for_each(|host| host.will(Course::Holds(RunState::Applying)));
    site.ok(&["order", "activate", "PO-1", "--host", "web-1", "--host", "web-2"]);
    until("a host was told", || hosts.iter().any(|host| !host.starts().is_empty()));
    site.kill();

    let first = hosts.iter().find(|host| !host.starts().is_empty()).unwrap();
    let (row, run) = first.starts()[0];
    first.finish(row, run, RunState::Succeeded);
    hosts.iter().for_each(|host| host.will(Course::Ends(RunState::Succeeded)));
    site.serve();
    until("the order is deployed", || site.ok_json(&["order", "show", "PO-1"])["order"]["state"] == "deployed");
    for host in &hosts {
        assert_eq!(host.starts().len(), 1, "{} was told once", host.name);
    }
    assert_eq!(site.ok_json(&["audit", "verify"])["findings"], json!([]));
}

#[test]
fn the_first_host_that_does_not_end_well_stops_the_rest() {
    let runtime = runtime();
    let mut site = Site::new();
    site.serve();
    let hosts = [enrol(&site, &runtime, "web-1"), enrol(&site, &runtime, "web-2")];
    site.submit("PO-1", "passed");
    site.to_approved("PO-1");
    // The hosts say that it went well, but not with their own signature.
    hosts.iter().for_each(|host| host.forge(SigningKey::from_seed(&[66; 32])));
    let ran = site.run(&["order", "activate", "PO-1", "--host", "web-1", "--host", "web-2", "--wait", "--json", "-"]);
    assert_eq!(ran.code, Some(1), "{}{}", ran.out, ran.err);
    let story: Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!(story["deployment"]["state"], "stopped");
    let told: usize = hosts.iter().map(|host| host.starts().len()).sum();
    assert_eq!(told, 1, "the second host was left alone");
    assert_eq!(story["runs"][0]["verified"], "no");
    assert_eq!(story["runs"][1]["stage"], "skipped");
}

#[test]
fn a_log_that_somebody_wrote_in_is_found_out() {
    let mut site = Site::new();
    site.serve();
    site.submit("PO-1", "passed");
    site.kill();
    let database = rusqlite::Connection::open(site.path("data/server/store.sqlite")).unwrap();
    database.execute("UPDATE audit SET actor = 'nobody' WHERE seq = 2", []).unwrap();
    drop(database);
    site.serve();
    let ran = site.run(&["audit", "verify"]);
    assert_eq!(ran.code, Some(1));
    assert!(ran.out.contains("row 2 was altered"), "{}", ran.out);
}

#[test]
fn two_servers_do_not_share_a_data_folder() {
    let mut site = Site::new();
    site.serve();
    let free = "127.0.0.1:0";
    let ran = site.run(&["serve", "--listen", free, "--payload", free, "--informs", free, "--enrolment", free]);
    assert_eq!(ran.code, Some(65));
    assert!(ran.err.contains("another patchlab serve"), "{}", ran.err);
}
