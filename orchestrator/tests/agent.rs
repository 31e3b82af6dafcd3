//! The server and the real agent: real documents, real signatures, real SNMPv3 and informs, real packages by the real package
//! manager, in a package root of its own. The agent's binary is found beside ours, as in production.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod site;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use patchlab::deploy::{DeployError, Manager, Patience, Row, SnmpManager, push_and_run, row::Unobserved};
use patchlab_protocol::{
    Digest, Refusal,
    document::RunState,
    enrolment::{Enrolment, Packages},
};
use serde_json::json;
use site::{Site, free_port, order, until};

/// The agent's program, when it was built.
fn program() -> Option<PathBuf> {
    let beside = Path::new(env!("CARGO_BIN_EXE_patchlab")).with_file_name("patchlab-agent");
    let usable = beside.is_file() && ["dpkg-deb", "apt-get"].iter().all(|tool| on_path(tool));
    if !usable || !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: needs root, dpkg, apt and {} (cargo build -p patchlab-agent)", beside.display());
        return None;
    }
    Some(beside)
}

fn on_path(tool: &str) -> bool {
    Command::new(tool).arg("--version").stdout(Stdio::null()).status().is_ok_and(|status| status.success())
}

/// A tiny package, built on the spot; `postinst` is its script, if it has one.
fn package(dir: &Path, version: &str, postinst: Option<&str>) -> PathBuf {
    let tree = dir.join(format!("demo-{version}"));
    fs::create_dir_all(tree.join("DEBIAN")).unwrap();
    fs::create_dir_all(tree.join("usr/share/demo")).unwrap();
    fs::write(tree.join("usr/share/demo/version"), version).unwrap();
    let control = format!(
        "Package: demo\nVersion: {version}\nArchitecture: all\nMaintainer: nobody <nobody@example.org>\nDescription: demo\n"
    );
    fs::write(tree.join("DEBIAN/control"), control).unwrap();
    if let Some(script) = postinst {
        use std::os::unix::fs::PermissionsExt as _;
        let path = tree.join("DEBIAN/postinst");
        fs::write(&path, script).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let file = dir.join(format!("demo_{version}_all.deb"));
    let built = Command::new("dpkg-deb").args(["--root-owner-group", "-b"]).arg(&tree).arg(&file).output().unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    file
}

/// A package root with demo 1 installed.
fn package_root(dir: &Path, old: &Path) {
    for folder in ["var/lib/dpkg/info", "var/lib/dpkg/updates", "var/log", "etc"] {
        fs::create_dir_all(dir.join(folder)).unwrap();
    }
    fs::write(dir.join("var/lib/dpkg/status"), "").unwrap();
    fs::write(dir.join("etc/os-release"), "ID=debian\nVERSION_ID=\"12\"\n").unwrap();
    let installed = Command::new("dpkg").arg(format!("--root={}", dir.display())).arg("-i").arg(old).output().unwrap();
    assert!(installed.status.success(), "{}", String::from_utf8_lossy(&installed.stderr));
}

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

/// A running agent, killed when dropped.
struct Agent {
    child: Child,
    enrolment: Enrolment,
    root: PathBuf,
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Agent {
    /// Enrols a host and starts its agent.
    fn start(site: &Site, program: &Path, name: &str, old: &Path) -> Self {
        let folder = site.path(name);
        let (text, root) = (folder.display().to_string(), site.path(&format!("{name}-root")));
        let state = site.path(&format!("{name}-state")).display().to_string();
        let address = free_port().to_string();
        site.ok(&[
            "host",
            "enroll",
            name,
            "--address",
            &address,
            "--listen",
            &address,
            "--site",
            "lab",
            "--out",
            &text,
            "--state-dir",
            &state,
        ]);
        package_root(&root, old);
        let config = folder.join("agent.toml");
        let mut enrolment: Enrolment = toml::from_str(&fs::read_to_string(&config).unwrap()).unwrap();
        enrolment.packages = Packages { root: root.clone() };
        fs::write(&config, toml::to_string(&enrolment).unwrap()).unwrap();
        let child = Command::new(program).arg("run").arg("--config").arg(&config).spawn().unwrap();
        Self { child, enrolment, root }
    }

    fn version(&self) -> String {
        fs::read_to_string(self.root.join("usr/share/demo/version")).unwrap()
    }

    async fn manager(&self) -> SnmpManager {
        let e = &self.enrolment;
        let engine = e.engine_id.as_ref().unwrap();
        SnmpManager::new(&e.host, e.listen, engine, &e.deployer, Patience::default()).await.unwrap()
    }
}

/// Pushes a row past the server, with valid SNMP credentials.
async fn pushed(agent: &Agent, row: &Row) -> Result<(RunState, Option<Refusal>), DeployError> {
    let manager = agent.manager().await;
    let manager: &dyn Manager = &manager;
    let report = push_and_run(manager, row, 1, &mut Unobserved).await?;
    Ok((report.state, report.refusal))
}

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
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (state, refusal) = runtime.block_on(pushed(&agents[0], &row)).unwrap();
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
