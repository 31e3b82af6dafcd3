//! The server and the real agent: real documents, real signatures, real SNMPv3 and informs, real packages by the real package
//! manager, in a package root of its own. The agent's binary is found beside ours, as in production.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod archive;
mod managed;
mod site;

use std::{fs, path::Path, process::Command, time::Duration};

use archive::Archive;
use jiff::{SignedDuration, Timestamp};
use managed::{Agent, package, program};
use patchlab::deploy::Row;
use patchlab_protocol::{Digest, Refusal, document::RunState};
use serde_json::{Value, json};
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
        window: None,
        preparation: None,
    };
    let (state, refusal) = agents[0].pushed(&row, 1);
    assert_eq!(state, RunState::Refused);
    assert!(matches!(refusal, Some(Refusal::NotReleased | Refusal::NotActive)), "{refusal:?}");
    assert_eq!(agents[0].version(), "1.0-1");
    // Its table is full with the next order.
    agents[0].filled(&row, 901..963);

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
    let told = &packages()["packages"][0];
    assert_eq!(told["source"], json!({ "name": "demo", "version": "1.0-2" }));
    assert_eq!(told["parts"], json!({ "epoch": 0, "version": "1.0", "release": "2" }));
    assert!(!site.ok_json(&["host", "show", "web-1", "--profile"])["at"].is_null());
    let shown = site.ok_json(&["host", "show", "web-1"]);
    assert_eq!(
        (&shown["name"], &shown["description"]["tags"]["function"]),
        (&json!("web-1"), &json!("web")),
        "{shown}"
    );
    assert!(shown["description"]["kernels"][0]["release"].is_string(), "{shown}");
    let does = site.ok(&["host", "show", "web-1", "--services"]);
    assert!(does.contains("80/tcp\t0.0.0.0"), "{does}");

    let operator = site.key("operator");
    let story = site.ok_json(&["order", "rollback", "PO-1", "--host", "web-1", "--wait", "--key", &operator]);
    assert_eq!(story["runs"][0]["state"], "rolled-back", "{story}");
    assert_eq!((agents[0].version().as_str(), agents[1].version().as_str()), ("1.0-1", "1.0-2"));
    // Of the 65th order that a host is told, a row goes that is settled.
    let (to, from) = files();
    site.submit_order(&order("PO-65", to, from), "passed", "upgrade demo all 1.0-1 -> 1.0-2");
    site.to_approved("PO-65");
    let story = site.ok_json(&["order", "activate", "PO-65", "--host", "web-1", "--wait"]);
    assert_eq!(story["runs"][0]["state"], "succeeded", "{story}");
    let shown = site.ok_json(&["order", "show", &digest]);
    assert_eq!(shown["order"]["state"], "partly");
    assert_eq!(site.ok_json(&["audit", "verify"])["findings"], json!([]));
    until("the host has seen an audit head", || !site.ok_json(&["host", "show", "web-1"])["audit_head"].is_null());
}

/// Writes an order by scripts that make and remove the file `made`, as people write it; its path.
fn by_script(dir: &Path, made: &Path) -> String {
    let made = made.display();
    fs::create_dir(dir).unwrap();
    for (name, text) in [
        ("apply", format!("#!/bin/sh\nset -e\ncp text {made}.new\nmv {made}.new {made}\n")),
        ("rollback", format!("#!/bin/sh\nrm -f {made} {made}.new\n")),
        ("verify", format!("#!/bin/sh\n[ -e {made} ] || exit 10\ncmp -s text {made} || exit 3\n")),
        ("text", "made by order\n".to_owned()),
    ] {
        fs::write(dir.join(name), text).unwrap();
    }
    let written = dir.join("written.toml");
    let text = "id = \"PO-S\"\ntitle = \"a file\"\nseverity = \"low\"\n[[change]]\n\
                on = { family = \"debian\", release = \"12\" }\n[change.script]\napply = \"apply\"\n\
                rollback = \"rollback\"\nverify = \"verify\"\nfiles = [\"text\"]\n";
    fs::write(&written, text).unwrap();
    written.display().to_string()
}

#[test]
fn a_change_by_script_is_carried_to_hosts_that_take_it_and_shown_and_taken_back() {
    let Some(program) = program() else { return };
    let mut site = Site::new();
    let packages = site.path("packages");
    fs::create_dir(&packages).unwrap();
    let old = package(&packages, "1.0-1", None);
    site.serve();
    let _takes = Agent::start_as(&site, &program, "takes", &old, &["--allow-scripts"]);
    let _refuses = Agent::start(&site, &program, "refuses", &old);

    let made = site.path("made");
    let written = by_script(&site.path("script"), &made);
    let order = site.path("script/order.toml").display().to_string();
    let bare = site.run(&["order", "submit", &written, "--key", &site.key("drafter")]);
    assert!(bare.err.contains("has no digest yet: let `patchlab order draft --from`"), "{}", bare.err);
    site.ok(&["order", "draft", "--from", &written, "--out", &order]);
    let row = site.ok_json(&["order", "submit", &order, "--key", &site.key("drafter")]);
    let verdict = site.path("verdict.json");
    let proven = site::verdict_json(row["digest"].as_str().unwrap(), "passed", "install PO-S script - -> applied");
    fs::write(&verdict, proven.to_string()).unwrap();
    site.ok(&["order", "verdict", "PO-S", &verdict.display().to_string()]);
    site.to_approved("PO-S");

    let story = site.ok_json(&["order", "activate", "PO-S", "--host", "takes", "--wait"]);
    assert_eq!((&story["runs"][0]["state"], &story["runs"][0]["verified"]), (&json!("succeeded"), &json!("yes")));
    assert_eq!(fs::read_to_string(&made).unwrap(), "made by order\n");
    let shown = site.ok(&["order", "show", "PO-S"]);
    assert!(shown.contains("a script, 1 files beside it"), "{shown}");
    let report = site.path("report");
    site.ok(&["report", "--out", &report.display().to_string()]);
    let page = fs::read_to_string(report.join("index.html")).unwrap();
    assert!(page.contains("not applied"), "{page}");

    let operator = site.key("operator");
    let story = site.ok_json(&["order", "rollback", "PO-S", "--host", "takes", "--wait", "--key", &operator]);
    assert_eq!(story["runs"][0]["state"], "rolled-back", "{story}");
    assert!(!made.exists());

    let refused = site.run(&["order", "activate", "PO-S", "--host", "refuses", "--wait"]);
    assert_eq!(refused.code, Some(5), "{}{}", refused.out, refused.err);
    let shown = site.ok(&["order", "show", "PO-S"]);
    assert!(shown.contains("allow = true under [scripts]"), "{shown}");
    assert!(!made.exists());
}

/// A moment so many seconds from now, and how it is written.
fn in_seconds(seconds: i64) -> (Timestamp, String) {
    let at = Timestamp::now() + SignedDuration::from_secs(seconds);
    (at, at.to_string())
}

/// Activates the order on both hosts, with the options of a window.
fn activate<'a>(window: &[&'a str]) -> Vec<&'a str> {
    [["order", "activate", "PO-1", "--host", "web-1", "--host", "web-2"].as_slice(), window].concat()
}

/// Two hosts are told of a window and make themselves ready; then the server dies. One applies by itself, one is off and comes back
/// too late. The server picks both up. Then a window is cancelled, and the order applied without one.
#[test]
fn hosts_keep_their_window_without_the_server_and_one_that_was_off_refuses_afterwards() {
    let Some(program) = program() else { return };
    let mut site = Site::new();
    let packages = site.path("packages");
    fs::create_dir(&packages).unwrap();
    let (old, new) = (package(&packages, "1.0-1", None), package(&packages, "1.0-2", None));
    site.serve();
    let mut agents = ["web-1", "web-2"].map(|name| Agent::start(&site, &program, name, &old));
    let (to, from) = (site.package(&new, "demo", "all", "1.0-2"), site.package(&old, "demo", "all", "1.0-1"));
    site.submit_order(&order("PO-1", to, from), "passed", "upgrade demo all 1.0-1 -> 1.0-2");
    site.refused(&["order", "probe", "PO-1", "--host", "web-1"], "not-released");
    site.ok(&["order", "release", "PO-1"]);

    // Before anybody approves: what apply would be refused for, and everything fetched ahead.
    let probed = site.ok_json(&["order", "probe", "PO-1", "--host", "web-1", "--host", "web-2"]);
    assert_eq!((&probed[0]["state"], &probed[1]["verified"]), (&json!("succeeded"), &json!("yes")), "{probed}");
    let fetched = site.ok(&["order", "prefetch", "PO-1", "--host", "web-2"]);
    assert!(fetched.contains("web-2\t2\tprefetch\tsucceeded"), "{fetched}");
    site.ok(&["order", "approve", "PO-1", "--key", &site.key("approver"), "--hosts", "2"]);
    let installed = site.ok_json(&["host", "inventory", "web-1"]);
    assert_eq!(installed["packages"][0]["version"], "1.0-1");

    // The lab measured 5 s of work.
    let wrong = |window: &[&str], why: &str| {
        let ran = site.run(&activate(window));
        assert!(matches!(ran.code, Some(64 | 65)) && ran.err.contains(why), "{window:?}: {:?} {}", ran.code, ran.err);
    };
    wrong(&["--not-before", "2020-01-01T00:00:00Z"], "which is past");
    wrong(&["--not-before", "+1h", "--until", "+3604s"], "the lab measured 5 s");
    wrong(&["--not-before", "+2h", "--lifetime", "3600"], "the activation would end at");
    wrong(&["--not-before", "tomorrow"], "+2h");
    site.refused(&activate(&["--not-before", "+8d"]), "not-approved");

    let ((opens, not_before), (closes, until_then)) = (in_seconds(8), in_seconds(16));
    site.ok(&activate(&["--not-before", &not_before, "--until", &until_then]));
    let runs = |site: &Site| site.ok_json(&["order", "show", "PO-1"])["runs"].as_array().unwrap().clone();
    until("both wait", || runs(&site).iter().all(|run| run["state"] == "waiting-window"));
    let shown = site.ok(&["order", "show", "PO-1"]);
    assert!(
        shown.contains(&format!("its window opens at {opens}")) && shown.contains("Waits for its window"),
        "{shown}"
    );
    site.kill();
    agents[1].stop();
    assert!(Timestamp::now() < opens, "this machine is too slow for the test: nothing is shown");
    agents.iter().for_each(|agent| assert_eq!(agent.version(), "1.0-1"));
    until("web-1 applies by itself", || agents[0].version() == "1.0-2");
    assert!((opens..closes).contains(&Timestamp::now()));

    // Less time is left than the work takes.
    until("it is too late to begin", || Timestamp::now() > closes - SignedDuration::from_secs(5));
    agents[1].start_again();
    site.serve();
    until("both have ended", || runs(&site).iter().all(|run| run["stage"] == "finished"));
    let ended = runs(&site);
    let of = |name: &str| ended.iter().find(|run| run["host"] == name).unwrap();
    assert_eq!((&of("web-1")["state"], &of("web-1")["verified"]), (&json!("succeeded"), &json!("yes")));
    assert_eq!((&of("web-2")["state"], &of("web-2")["refusal"]), (&json!("refused"), &json!("outside-window")));
    assert_eq!((of("web-2")["verified"].as_str(), agents[1].version().as_str()), (Some("yes"), "1.0-1"));
    until("the deployment stops", || site.ok_json(&["order", "show", "PO-1"])["order"]["state"] == "partly");

    // Nothing was used up: another window, a change of mind, and at once.
    let on_second = ["order", "activate", "PO-1", "--host", "web-2"];
    site.ok(&[on_second.as_slice(), &["--not-before", "+1h"]].concat());
    until("web-2 waits", || runs(&site).last().unwrap()["state"] == "waiting-window");
    let cancelled = site.ok_json(&["order", "cancel", "PO-1", "--host", "web-2"]);
    assert_eq!((&cancelled[0]["state"], &cancelled[0]["verified"]), (&json!("aborted"), &json!("yes")), "{cancelled}");
    assert_eq!(site.run(&["order", "cancel", "PO-1"]).code, Some(65), "nothing is under way");
    until("that deployment ends", || site.ok_json(&["order", "show", "PO-1"])["order"]["state"] == "partly");
    site.ok(&[on_second.as_slice(), &["--wait"]].concat());
    assert_eq!(agents[1].version(), "1.0-2");

    // What was fetched ahead, the way back too, is there: the host's own operator needs nobody, and is told of later.
    site.kill();
    let rolled_back = agents[1].command(&["rollback", "PO-1"]);
    assert!(rolled_back.status.success(), "{}", String::from_utf8_lossy(&rolled_back.stderr));
    assert_eq!(agents[1].version(), "1.0-1");
    site.serve();
    until("the server is told", || site.ok(&["audit", "show"]).contains("operator-rollback"));
    let host = site.ok_json(&["host", "show", "web-2"]);
    assert!(host["current_order"].is_null(), "{host}");
    let order = site.ok_json(&["order", "show", "PO-1"])["order"].clone();
    assert_eq!(order["state"], "partly");
    assert!(order["reason"].as_str().unwrap().contains("by its own operator, uid "), "{order}");
    assert_eq!(site.ok_json(&["audit", "verify"])["findings"], json!([]));
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

fn words(arguments: &[String]) -> Vec<&str> {
    arguments.iter().map(String::as_str).collect()
}

/// What a host reported becomes a recipe: exact where the archive has it, told where not, and nothing from an archive that was altered.
#[test]
fn a_recipe_is_drafted_from_what_a_real_agent_reported() {
    use std::os::unix::fs::PermissionsExt as _;
    let Some(program) = program() else { return };
    let mut site = Site::new();
    // apt reads the archive as a user of its own.
    fs::set_permissions(site.path("."), fs::Permissions::from_mode(0o755)).unwrap();
    let packages = site.path("packages");
    fs::create_dir(&packages).unwrap();
    let old = package(&packages, "1.0-1", None);
    let archive = Archive::new(&site.path("archive"));
    let line = archive.line();
    let draft = |host: &str, out: &Path| {
        let out = out.display().to_string();
        ["baseline", "draft", "--from-host", host, "--mirror", &line, "--out", &out].map(str::to_owned).to_vec()
    };
    site.serve();
    let agent = Agent::start(&site, &program, "web-1", &old);
    let unknown = site.run(&words(&draft("web-9", &site.path("x.toml"))));
    assert!(unknown.code == Some(65) && unknown.err.contains("`patchlab host inventory web-9`"), "{}", unknown.err);
    assert_eq!(site.ok_json(&["host", "inventory", "web-1"])["packages"][0]["version"], "1.0-1");

    // The builder's own packages are in every archive that it can build from.
    let builders =
        "systemd-sysv udev dbus qemu-guest-agent iproute2 ca-certificates procps grub2-common linux-image-cloud-amd64";
    let publish = |demo: &[(&'static str, &'static str)]| {
        let builders = builders.split(' ').map(|name| (name, "1"));
        archive.publish(&builders.chain(demo.iter().copied()).collect::<Vec<_>>());
    };
    publish(&[("demo", "1.0-1"), ("demo", "1.0-2")]);
    let exact = site.path("exact.toml");
    let drafted = site.ok_json(&words(&draft("web-1", &exact)))["draft"].clone();
    assert_eq!((&drafted["exact"], &drafted["unmatched"], &drafted["refused"]), (&json!(1), &json!([]), &json!(null)));
    assert!(fs::read_to_string(&exact).unwrap().contains("\"demo=1.0-1\""));
    patchlab_lab::recipe::Recipe::read(&exact).unwrap();
    let again = site.run(&words(&draft("web-1", &exact)));
    assert!(again.code == Some(65) && again.err.contains("is there already"), "{}", again.err);

    publish(&[("demo", "1.0-2"), ("demo", "1.0-3")]);
    let nearest = site.path("nearest.toml");
    let table = site.ok(&words(&draft("web-1", &nearest)));
    assert!(table.contains("demo\tall\t1.0-1\t1.0-2\tanother version"), "{table}");
    let text = fs::read_to_string(&nearest).unwrap();
    assert!(
        text.contains("#   demo:all  1.0-1  1.0-2  another version\n") && text.contains("\"demo=1.0-2\""),
        "{text}"
    );
    patchlab_lab::recipe::Recipe::read(&nearest).unwrap();

    // Without the builder's packages nothing can be built; an index that is not the signed one is not read.
    archive.publish(&[("demo", "1.0-1")]);
    let lacking = site.run(&words(&draft("web-1", &site.path("lacking.toml"))));
    assert!(lacking.code == Some(3) && lacking.err.contains("Unable to locate package"), "{}", lacking.err);
    publish(&[("demo", "1.0-1")]);
    fs::write(archive.packages(), fs::read_to_string(archive.packages()).unwrap().replace("1.0-1", "1.0-9")).unwrap();
    let altered = site.run(&words(&draft("web-1", &site.path("altered.toml"))));
    assert!(altered.code == Some(4) && altered.err.contains("fetch the package lists"), "{}", altered.err);
    assert!(!site.path("altered.toml").exists());
    drop(agent);
}

/// New keys count, the old ones no more, and whatever ends the server or the host in between, one of the two is always answered.
#[test]
fn keys_that_a_host_shares_with_the_server_are_replaced_and_a_lost_answer_is_made_good() {
    let Some(program) = program() else { return };
    let mut site = Site::new();
    let packages = site.path("packages");
    fs::create_dir(&packages).unwrap();
    let old = package(&packages, "1.0-1", None);
    site.serve();
    let mut agent = Agent::start(&site, &program, "web-1", &old);
    let path = site.path("data/keys/hosts/web-1.json");
    let held = || serde_json::from_slice::<Value>(&fs::read(&path).unwrap()).unwrap();
    let asked = || site.ok_json(&["host", "inventory", "web-1"])["packages"][0]["version"].clone();
    until("the host answers", || site.run(&["host", "inventory", "web-1"]).code == Some(0));

    let before = held();
    assert!(agent.answers(&agent.enrolment.deployer));
    site.ok(&["host", "rotate-keys", "web-1"]);
    let after = held();
    assert!(before["deployer"]["auth"] != after["deployer"]["auth"] && after["next"].is_null());
    assert!(!agent.answers(&agent.enrolment.deployer), "the passphrase in agent.toml counts no more");
    assert_eq!(asked(), "1.0-1");
    assert!(site.ok(&["audit", "show"]).contains("keys-rotated"));
    agent.stop();
    agent.start_again();
    assert_eq!(asked(), "1.0-1", "keys stay over the agent's end");

    // The host has the new keys, and the server was killed before it saw that.
    let begun = |now: &Value, next: &Value| {
        let users = ["deployer", "key_administrator"].map(|user| (user.to_owned(), next[user].clone()));
        let mut file = now.clone();
        file["next"] = users.into_iter().collect::<serde_json::Map<_, _>>().into();
        fs::write(&path, file.to_string()).unwrap();
    };
    begun(&before, &after);
    assert_eq!(asked(), "1.0-1");
    assert_eq!(held(), after, "the new keys were answered, so they count");
    begun(&before, &after);
    site.ok(&["host", "rotate-keys", "web-1"]);
    assert_eq!(held(), after, "the same change goes on, and no other begins");

    // The server was killed before it told the host.
    let mut planned = after.clone();
    for user in ["deployer", "key_administrator"] {
        planned[user]["auth"] = json!(format!("planned for {user}"));
    }
    begun(&after, &planned);
    assert_eq!(asked(), "1.0-1", "the old keys are tried too");
    site.ok(&["host", "rotate-keys", "web-1"]);
    assert_eq!(held(), planned);
    assert_eq!(asked(), "1.0-1");

    agent.stop();
    let away = site.run(&["host", "rotate-keys", "web-1"]);
    assert!(away.code != Some(0) && away.err.contains("not known yet"), "{:?} {}", away.code, away.err);
    agent.start_again();
    site.ok(&["host", "rotate-keys", "web-1"]);
    assert_eq!(asked(), "1.0-1");
}
