//! Whom hosts believe, from the server's command line to real agents: what is revoked here is refused there, whoever asks.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod managed;
mod site;

use std::{fs, path::PathBuf, time::Duration};

use jiff::{SignedDuration, Timestamp};
use managed::{Agent, package, program};
use patchlab::{
    audit::Event,
    deploy::{Row, executor},
    place::Data,
    store::{Store, Ties},
};
use patchlab_protocol::{
    Digest, Envelope, Refusal, SigningKey,
    document::{Action, Activation, Approval, Order, Release, RunState, TestResult, Waived, Waiver},
};
use serde_json::{Value, json};
use site::{Site, order, until, verdict_json};

/// A site with two hosts, of which the one that an order would reach first is away.
struct World {
    site: Site,
    packages: [PathBuf; 2],
    first: Agent,
    second: Agent,
}

impl World {
    /// With an order `id` for both that everything is there for but its activation.
    fn new(id: &str) -> Option<(Self, Digest)> {
        let program = program()?;
        let mut site = Site::new();
        let folder = site.path("packages");
        fs::create_dir(&folder).unwrap();
        let packages = ["1.0-1", "1.0-2"].map(|version| package(&folder, version, None));
        site.serve();
        let [one, two] = ["web-1", "web-2"].map(|name| Agent::start(&site, &program, name, &packages[0]));
        let digest = submit(&site, &packages, id, "drafter");
        site.to_approved(id);
        let names = [one.enrolment.host.clone(), two.enrolment.host.clone()];
        let (first, second) = if executor::sequence(&digest, &names)[0] == names[0] { (one, two) } else { (two, one) };
        Some((Self { site, packages, first, second }, digest))
    }

    /// Activates the order for both while the first is away, so that the second is not told; the row that somebody with the server's
    /// SNMP credentials could tell it.
    fn activated(&mut self, id: &str, order: Digest) -> Row {
        self.first.stop();
        let hosts = ["--host", &self.first.enrolment.host, "--host", &self.second.enrolment.host];
        self.site.ok(&[["order", "activate", id].as_slice(), &hosts].concat());
        let story = self.site.ok_json(&["order", "show", id]);
        let digest = |value: &Value| Some(value.as_str().unwrap().parse::<Digest>().unwrap());
        Row {
            index: 900,
            order,
            release: digest(&story["release"]),
            approval: digest(&story["approvals"][0]["digest"]),
            activation: digest(&story["deployments"][0]["activation"]),
            uri: self.site.ok_json(&["host", "show", "web-1"])["payload_uri"].as_str().unwrap().to_owned(),
            lifetime: Duration::from_secs(60),
            window: None,
            preparation: None,
        }
    }

    fn trust(&self, agent: &Agent) -> Value {
        self.site.ok_json(&["host", "show", &agent.enrolment.host])["trust"].clone()
    }

    /// Waits until a host has everything, and says which root and which list that is.
    fn current(&self, agent: &Agent, root: u32, revocation: u32) {
        let wanted = json!({ "root": root, "revocation": revocation, "offer": "current" });
        until(&format!("{} has {wanted}", agent.enrolment.host), || {
            let trust = self.trust(agent);
            let held = &trust["held"];
            json!({
                "root": held["root_version"], "revocation": held["revocation_version"], "offer": trust["offer"],
            }) == wanted
        });
    }
}

/// An order that upgrades the demonstration package, signed and handed in with a verdict that passed.
fn submit(site: &Site, packages: &[PathBuf; 2], id: &str, drafter: &str) -> Digest {
    let [old, new] = packages;
    let (to, from) = (site.package(new, "demo", "all", "1.0-2"), site.package(old, "demo", "all", "1.0-1"));
    let order = order(id, to, from);
    let transaction = "upgrade demo all 1.0-1 -> 1.0-2";
    site.submit_order_by(&order, drafter, "passed", transaction).parse().unwrap()
}

#[test]
fn what_is_revoked_at_the_server_is_refused_by_the_gate_and_by_every_host() {
    let Some((mut world, digest)) = World::new("PO-1") else { return };
    let (operator, why) = (world.site.key("operator"), "breaks logins");
    submit(&world.site, &world.packages, "PO-0", "drafter");
    world.site.to_approved("PO-0");
    let second = world.second.enrolment.host.clone();
    world.site.ok(&["order", "activate", "PO-0", "--host", &second, "--wait"]);
    world.current(&world.second, 1, 0);
    assert_eq!(world.second.version(), "1.0-2");

    // Applied and then revoked: nothing is brought back by that, and the way back is open and named.
    let stranger = world.site.key("drafter");
    world.site.refused(&["order", "revoke", "PO-0", "--reason", why, "--key", &stranger], "bad-signature");
    let ran = world.site.run(&["order", "revoke", "PO-0", "--reason", why, "--key", &operator]);
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    assert!(ran.err.contains(&format!("patchlab order rollback PO-0 --host {second}")), "{}", ran.err);
    world.current(&world.second, 1, 1);
    world.site.ok(&["order", "rollback", "PO-0", "--host", &second, "--key", &operator, "--wait"]);
    assert_eq!(world.second.version(), "1.0-1");

    // Activated, not told yet, and revoked: neither the server nor somebody with its SNMP credentials gets it onto a host.
    let row = world.activated("PO-1", digest);
    world.site.ok(&["order", "revoke", "PO-1", "--reason", why, "--key", &operator]);
    world.current(&world.second, 1, 2);
    assert_eq!(world.second.pushed(&row, 1), (RunState::Refused, Some(Refusal::Revoked)));
    assert_eq!(world.second.version(), "1.0-1");
    until("the other host does not answer", || world.trust(&world.first)["offer"] == "silent");
    world.first.start_again();
    world.current(&world.first, 1, 2);
    until("the deployment stops", || {
        world.site.ok_json(&["order", "show", "PO-1"])["deployments"][0]["state"] == "stopped"
    });
    let story = world.site.ok_json(&["order", "show", "PO-1"]);
    assert_eq!((&story["runs"][0]["refusal"], &story["runs"][1]["stage"]), (&json!("revoked"), &json!("skipped")));
    assert_eq!(world.first.version(), "1.0-1");

    // It stays so, over a restart too, and everybody can see it.
    world.site.kill();
    world.site.serve();
    world.site.refused(&["order", "activate", "PO-1", "--host", "web-1"], "revoked");
    world.site.refused(&["order", "approve", "PO-1", "--key", &world.site.key("approver")], "revoked");
    assert!(world.site.ok(&["order", "list"]).contains("PO-1\trevoked"));
    let again = world.site.run(&["order", "revoke", "PO-1", "--reason", why, "--key", &operator]);
    assert_eq!((again.code, again.err.contains("revoked already")), (Some(65), true), "{}", again.err);
    let log = world.site.ok(&["audit", "show"]);
    for event in ["revocation-taken", "revocation-refused", "offer-taken", "activation-refused"] {
        assert!(log.contains(event), "{event}:\n{log}");
    }
    assert_eq!(world.site.ok_json(&["audit", "verify"])["findings"], json!([]));
}

/// With keys that no server and no network ever sees: files go there and back.
#[test]
fn a_list_is_made_elsewhere_and_taken_only_when_it_follows() {
    let Some((world, digest)) = World::new("PO-1") else { return };
    let site = &world.site;
    let path = |name: &str| site.path(name).display().to_string();
    let [order, other] = [digest.to_string(), Digest::of("a document of another server").to_string()];
    let next = |document: &str, out: &str, more: &[&str]| {
        let command = ["revocation", "next", document, "--reason", "withdrawn", "--out", out];
        site.ok(&[command.as_slice(), more].concat());
    };
    let (first, operator) = (path("first.json"), site.key("operator"));
    next(&order, &first, &[]);
    site.refused(&["revocation", "import", &first], "bad-signature");
    site.ok(&["revocation", "sign", &first, "--key", &operator]);
    site.ok(&["revocation", "import", &first]);
    let (kept, second) = (path("kept.json"), path("second.json"));
    site.ok(&["revocation", "show", "--out", &kept]);
    next(&other, &second, &["--list", &kept, "--key", &operator]);
    site.ok(&["revocation", "import", &second]);
    site.refused(&["revocation", "import", &first], "stale");
    let forgetful = path("forgetful.json");
    next(&other, &forgetful, &["--key", &operator]);
    site.refused(&["revocation", "import", &forgetful], "stale");

    [&world.first, &world.second].into_iter().for_each(|agent| world.current(agent, 1, 2));
    let shown = site.ok_json(&["revocation", "show"]);
    assert_eq!(shown["version"], 2);
    let revoked: Vec<_> = shown["revoked"].as_array().unwrap().iter().map(|one| one["what"].clone()).collect();
    assert_eq!(revoked, [json!("order PO-1"), Value::Null]);

    // A part of an order: its approval counts no more, another one does.
    let fresh = submit(site, &world.packages, "PO-2", "drafter").to_string();
    site.to_approved("PO-2");
    let approval = site.ok_json(&["order", "show", &fresh])["approvals"][0]["digest"].as_str().unwrap().to_owned();
    let revoke = ["order", "revoke", "PO-2", "--reason", "by mistake", "--key", &operator, "--document"];
    assert_eq!(site.run(&[revoke.as_slice(), &[&order]].concat()).code, Some(65), "a document of another order");
    site.ok(&[revoke.as_slice(), &[&approval]].concat());
    site.refused(&["order", "activate", "PO-2", "--host", "web-1"], "revoked");
    site.ok(&["order", "approve", "PO-2", "--key", &site.key("approver"), "--hosts", "2"]);
    site.ok(&["order", "activate", "PO-2", "--host", "web-1", "--wait"]);
}

/// Removing a key, then asking for two root keys, while one host is away; that one comes back after both.
#[test]
fn a_root_is_rotated_by_its_threshold_and_reaches_hosts_that_were_away_one_by_one() {
    let Some((mut world, digest)) = World::new("PO-1") else { return };
    [&world.first, &world.second].into_iter().for_each(|agent| world.current(agent, 1, 0));
    let row = world.activated("PO-1", digest);
    let site = &world.site;
    let path = |name: &str| site.path(name).display().to_string();
    let generate = |role: &str, name: &str| {
        site.ok(&["key", "generate", "--role", role, "--out", &site.key(name)]);
        site.key(name)
    };
    let (root, drafter) = (site.key("root"), site.key("drafter"));
    let (another_root, another) = (generate("root", "another-root"), generate("drafter", "another-drafter"));

    // The drafter's key is removed. An operator cannot do that, nor anybody without the root's keys.
    let second = path("root.2.json");
    site.ok(&["root", "next", "--add", &another, "--remove", &format!("{drafter}.pub"), "--out", &second]);
    site.refused(&["root", "import", &second], "bad-signature");
    assert_eq!(site.run(&["root", "sign", &second, "--key", &site.key("operator")]).code, Some(65));
    site.refused(&["root", "verify", &second], "bad-signature");
    site.ok(&["root", "sign", &second, "--key", &root]);
    site.ok(&["root", "verify", &second]);
    let second_digest = site.ok_json(&["root", "import", &second])["digest"].clone();
    world.current(&world.second, 2, 0);

    // What the removed key signed counts no more, neither here nor at the host, whoever tells it.
    let host = world.second.enrolment.host.as_str();
    site.refused(&["order", "activate", "PO-1", "--host", host], "bad-signature");
    assert_eq!(world.second.pushed(&row, 1), (RunState::Refused, Some(Refusal::BadSignature)));
    assert_eq!(world.second.version(), "1.0-1");

    // From now on two root keys: the old threshold alone is not enough for that root's own.
    let third = path("root.3.json");
    site.ok(&["root", "next", "--add", &another_root, "--threshold", "root=2", "--out", &third]);
    site.ok(&["root", "sign", &third, "--key", &root]);
    site.refused(&["root", "import", &third], "bad-signature");
    let signed = site.ok_json(&["root", "sign", &third, "--key", &another_root]);
    assert_eq!(signed["valid"], true, "{signed}");
    let third_digest = site.ok_json(&["root", "import", &third])["digest"].clone();
    assert_eq!(site.ok_json(&["root", "import", &second])["version"], 2, "known is known");
    world.current(&world.second, 3, 0);

    // The other host pinned root 1 and was away for both.
    assert_eq!(world.trust(&world.first)["held"]["root_version"], 1);
    world.first.start_again();
    world.current(&world.first, 3, 0);
    let first = json!(world.first.enrolment.host);
    // In one row or in two: a host may go away between two offers.
    let taken = || {
        let log = site.ok_json(&["audit", "show"]);
        let rows =
            log.as_array().unwrap().iter().filter(|row| row["event"] == "offer-taken" && row["subject"] == first);
        rows.flat_map(|row| {
            let detail: Value = serde_json::from_str(row["detail"].as_str().unwrap()).unwrap();
            detail["taken"].as_array().unwrap().clone()
        })
        .collect::<Vec<Value>>()
    };
    until("each root is noted once", || taken() == [second_digest.clone(), third_digest.clone()]);

    // And the new drafter's orders go all the way, with the server's own signer and activation key, over a restart too.
    world.site.kill();
    world.site.serve();
    let site = &world.site;
    until("PO-1 stops", || site.ok_json(&["order", "show", "PO-1"])["deployments"][0]["state"] == "stopped");
    submit(site, &world.packages, "PO-2", "another-drafter");
    site.to_approved("PO-2");
    site.ok(&["order", "activate", "PO-2", "--host", "web-1", "--host", "web-2", "--wait"]);
    assert_eq!((world.first.version().as_str(), world.second.version().as_str()), ("1.0-2", "1.0-2"));
    assert_eq!(site.ok_json(&["root", "show"])["root"]["version"], 3);
    assert_eq!(site.ok_json(&["audit", "verify"])["findings"], json!([]));
}

/// An order that the lab rejected, since its front page does not come any more: signed, and handed in with that verdict.
fn submit_rejected(site: &Site, packages: &[PathBuf; 2], id: &str) -> Digest {
    let [old, new] = packages;
    let order = order(id, site.package(new, "demo", "all", "1.0-2"), site.package(old, "demo", "all", "1.0-1"));
    let path = site.path(&format!("{id}.json"));
    fs::write(&path, serde_json::to_vec(&order).unwrap()).unwrap();
    let row = site.ok_json(&["order", "submit", &path.display().to_string(), "--key", &site.key("drafter")]);
    let digest = row["digest"].as_str().unwrap();
    let mut verdict = verdict_json(digest, "rejected", "upgrade demo all 1.0-1 -> 1.0-2");
    let baseline = &mut verdict["baselines"][0];
    baseline["rollback"] = json!({ "status": "skipped", "reason": "the patch was rejected before" });
    baseline["objections"] = json!([
        { "judgement": "rejected", "reason": "regression in web-smoke after the patch: 500",
          "about": { "scenario": { "name": "web-smoke", "phase": "applied", "verdict": "regression" } } },
        { "judgement": "missing", "reason": "the rollback was not tried", "about": "rollback" },
    ]);
    let scenario = &mut baseline["scenarios"][0];
    scenario["verdict"] = json!("regression");
    scenario["steps"][0]["verdict"] = json!("regression");
    scenario["steps"][0]["patched"]["status"] = json!("fail");
    let path = site.path(&format!("{id}-verdict.json"));
    fs::write(&path, verdict.to_string()).unwrap();
    site.ok(&["order", "verdict", id, &path.display().to_string()]);
    digest.parse().unwrap()
}

/// `order waive`, up to what is waived.
fn waive(site: &Site, id: &str, key: &str, what: &[&str]) -> Vec<String> {
    let words = ["order", "waive", id, "--baseline", "debian-12-web@1", "--hosts", "1", "--until", "+2d"];
    let who = ["--owner", "ann", "--reason", "the page moves on Friday", "--key", &site.key(key)];
    [&words[..], &who, what].concat().into_iter().map(str::to_owned).collect()
}

#[test]
fn what_the_lab_rejected_reaches_a_host_by_waivers_alone_and_is_seen_to() {
    let Some((mut world, _)) = World::new("PO-1") else { return };
    let console = {
        world.site.kill();
        world.site.serve()
    };
    let site = &world.site;
    let id = "PO-2";
    submit_rejected(site, &world.packages, id);
    let words = |key: &str, what: &[&str]| waive(site, id, key, what);
    let ok = |words: &[String]| site.ok(&words.iter().map(String::as_str).collect::<Vec<_>>());
    let no = |words: &[String], by: &str| site.refused(&words.iter().map(String::as_str).collect::<Vec<_>>(), by);

    site.refused(&["order", "release", id], "waivers of scenario web-smoke on debian-12-web@1, the way back");
    no(&words("operator", &["--scenario", "web-smoke"]), "bad-signature");
    no(&words("approver", &["--scenario", "db-smoke"]), "not-released");
    ok(&words("approver", &["--scenario", "web-smoke"]));
    site.refused(&["order", "release", id], "the way back is not proven on debian-12-web@1, and no waiver covers that");
    ok(&words("approver", &["--way-back"]));
    assert!(site.ok(&["order", "list"]).contains("PO-2\trejected\t"), "nobody has released it");
    site.ok(&["order", "release", id]);

    // Nobody can take it for one that passed.
    assert!(site.ok(&["order", "list"]).contains("PO-2\treleased, waived"));
    let shown = site.ok(&["order", "show", id]);
    for words in [
        "The lab did not pass it: it is released by 2 waivers",
        "(waived, not passed)",
        "ann waived scenario web-smoke on debian-12-web@1 for at most 1 hosts: the page moves on Friday",
    ] {
        assert!(shown.contains(words), "{words}: {shown}");
    }

    site.refused(&["order", "approve", id, "--key", &site.key("approver"), "--hosts", "2"], "not-approved");
    site.ok(&["order", "approve", id, "--key", &site.key("approver"), "--hosts", "1"]);
    let [first, second] = [&world.first, &world.second].map(|agent| agent.enrolment.host.as_str());
    site.ok(&["order", "activate", id, "--host", second, "--wait"]);
    assert_eq!((world.second.version().as_str(), world.first.version().as_str()), ("1.0-2", "1.0-1"));
    // A second approval makes a waiver no larger.
    site.ok(&["order", "approve", id, "--key", &site.key("approver"), "--hosts", "1", "--name", "bob"]);
    site.refused(&["order", "activate", id, "--host", first], "for at most 1 hosts");

    let out = site.path("report").display().to_string();
    site.ok(&["report", "--out", &out]);
    let page = fs::read_to_string(site.path("report/index.html")).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let console = runtime.block_on(async { reqwest::get(console).await.unwrap().text().await.unwrap() });
    for page in [&page, &console] {
        assert!(page.contains(">waived</span>") && page.contains("the page moves on Friday"), "{page}");
    }
    let log = site.ok(&["audit", "show"]);
    for event in ["order-waived", "waiver-refused", "release-refused", "order-released"] {
        assert!(log.contains(event), "{event}:\n{log}");
    }

    // A waiver is taken back: no other host gets the order, and the way back is open.
    let waiver = site.ok_json(&["order", "show", id])["waivers"][0]["digest"].as_str().unwrap().to_owned();
    let operator = site.key("operator");
    site.ok(&["order", "revoke", id, "--document", &waiver, "--reason", "moved already", "--key", &operator]);
    assert!(site.ok_json(&["revocation", "show"])["revoked"][0]["what"] == json!("waiver of PO-2"));
    site.ok(&["order", "rollback", id, "--host", second, "--key", &operator, "--wait"]);
    assert_eq!(world.second.version(), "1.0-1");
    site.refused(&["order", "activate", id, "--host", second], "revoked");
    assert_eq!(site.ok_json(&["audit", "verify"])["findings"], json!([]));
}

/// A server that lets through what it must not, as one would that somebody else has: the host says no by itself, and why.
#[test]
fn a_host_refuses_a_release_whose_waiver_is_of_something_else() {
    let Some((mut world, _)) = World::new("PO-1") else { return };
    let id = "PO-2";
    let order = submit_rejected(&world.site, &world.packages, id);
    let host = world.second.enrolment.host.clone();
    let (baseline, digest) = ("debian-12-web@1".to_owned(), "b".repeat(64).parse().unwrap());
    let site = &mut world.site;
    site.kill();

    let key = |role: &str| SigningKey::read(std::path::Path::new(&site.key(role))).unwrap();
    let now = Timestamp::now();
    let later = now + SignedDuration::from_hours(1);
    let event = Event::new("forged", id, json!({}));
    let data = Data::open(Some(site.path("data"))).unwrap();
    let store = Store::open(&data.database()).unwrap();
    let passed: Release = {
        let passed = store.newest_release(&store.order("PO-1").unwrap().digest).unwrap().unwrap();
        store.envelope(&passed).unwrap().statement().unwrap().predicate
    };
    let waiver = {
        let class = passed.proof.class.clone();
        let (owner, reason) = ("ann".to_owned(), "the page moves on Friday".to_owned());
        let (baseline, waived) = (baseline.clone(), Waived::Scenario("db-smoke".into()));
        Waiver {
            order,
            baseline,
            baseline_digest: digest,
            waived,
            class,
            hosts_at_most: 1,
            owner,
            reason,
            at: now,
            not_after: later,
        }
    };
    let signed = Envelope::sign(waiver.clone(), &key("approver"));
    let waived = store.waive(&signed, &waiver, &event).unwrap();
    let mut release = passed.clone();
    release.result = TestResult::Warned;
    release.failed_tests = vec![format!("{baseline}/applied/web-smoke/front page")];
    release.proof.order = order;
    release.proof.at = now;
    release.proof.waivers = vec![signed];
    let release = Envelope::sign(release, &key("releaser"));
    let release_digest = store.release(&order, &release, Ties { waivers: &[waived], supersedes: &[] }, &event).unwrap();
    let approval = Approval {
        approver: "ann".into(),
        order,
        release: release_digest,
        hosts_at_most: 1,
        at: now,
        not_after: later,
    };
    let signed = Envelope::sign(approval.clone(), &key("approver"));
    let approval_digest = store.approve(&signed, &approval, &event).unwrap();
    let activation = Activation {
        order,
        action: Action::Apply,
        site: "lab".into(),
        wave: 1,
        hosts: vec![host.clone()],
        at: now,
        not_before: now,
        not_after: later,
    };
    let signed = Envelope::sign(activation.clone(), &SigningKey::read(&data.activator_key()).unwrap());
    let rests_on = Some((release_digest, approval_digest));
    store.activate(&signed, &activation, rests_on, std::slice::from_ref(&host), &event).unwrap();
    drop((store, data));

    site.serve();
    let story = || site.ok_json(&["order", "show", id]);
    until("the deployment stops", || story()["deployments"][0]["state"] == "stopped");
    let run = &story()["runs"][0];
    assert_eq!((&run["refusal"], &run["verified"]), (&json!("not-released"), &json!("yes")), "{run}");
    let reason = run["reason"].as_str().unwrap();
    assert!(reason.contains("web-smoke/front page failed on debian-12-web@1"), "{reason}");
    assert!(reason.contains("(scenario db-smoke on debian-12-web@1 by ann)"), "{reason}");
    assert_eq!(world.second.version(), "1.0-1");
    // The same by whoever has the SNMP credentials: the refusal stands in the host's own table.
    let row = Row {
        index: 901,
        order,
        release: Some(release_digest),
        approval: Some(approval_digest),
        activation: Some(signed.digest()),
        uri: world.site.ok_json(&["host", "show", &host])["payload_uri"].as_str().unwrap().to_owned(),
        lifetime: Duration::from_secs(60),
        window: None,
        preparation: None,
    };
    assert_eq!(world.second.pushed(&row, 1), (RunState::Refused, Some(Refusal::NotReleased)));
}

/// Two orders for the same, of which the second says that it takes the first one's place.
#[test]
fn a_superseded_order_is_carried_nowhere_any_more_and_is_still_brought_back() {
    let Some((world, first)) = World::new("PO-1") else { return };
    let site = &world.site;
    let (one, two) = (world.first.enrolment.host.as_str(), world.second.enrolment.host.as_str());
    site.ok(&["order", "activate", "PO-1", "--host", one, "--wait"]);
    let [old, new] = &world.packages;
    let newer = Order {
        supersedes: vec![first],
        ..order("PO-2", site.package(new, "demo", "all", "1.0-2"), site.package(old, "demo", "all", "1.0-1"))
    };
    site.submit_order(&newer, "passed", "upgrade demo all 1.0-1 -> 1.0-2");
    assert_eq!(site.ok_json(&["order", "show", "PO-1"])["order"]["superseded"], Value::Null, "nobody released PO-2");
    site.ok(&["order", "release", "PO-2"]);
    assert!(site.ok(&["order", "list"]).contains("PO-1\tdeployed, superseded by PO-2"));
    assert!(site.ok(&["order", "show", "PO-2"]).contains(&first.to_string()));
    let superseded = "is superseded by PO-2";
    site.refused(&["order", "approve", "PO-1", "--key", &site.key("approver"), "--hosts", "2"], superseded);
    site.refused(&["order", "activate", "PO-1", "--host", two], superseded);
    site.refused(&["order", "probe", "PO-1", "--host", two], superseded);
    site.ok(&["order", "rollback", "PO-1", "--host", one, "--key", &site.key("operator"), "--wait"]);
    assert_eq!((world.first.version().as_str(), world.second.version().as_str()), ("1.0-1", "1.0-1"));
    // One that counts no more takes nobody's place.
    site.ok(&["order", "revoke", "PO-2", "--reason", "breaks logins", "--key", &site.key("operator")]);
    site.ok(&["order", "activate", "PO-1", "--host", two, "--wait"]);
    assert_eq!(world.second.version(), "1.0-2");
}
