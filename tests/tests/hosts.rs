//! Hosts that lend machines: what each must be, machines of a libvirt that runs by itself, and what becomes of a validation whose host goes
//! away.
//!
//! Skips aloud what this machine cannot run.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use patchlab_lab::{Places, baseline::Baselines};
use patchlab_tests::{
    daemon::Daemon,
    mount_namespace::MountNamespace,
    program::{Need, Patchlab, folder, json, obstacle, said},
    trial::Trial,
};
use serde_json::Value;

fn skips(test: &str, needs: &[Need]) -> bool {
    let obstacle = obstacle(needs);
    if let Some(why) = &obstacle {
        eprintln!("SKIP {test}: {why}");
    }
    obstacle.is_some()
}

/// Writes the pool of a data folder.
fn pool(data: &Path, hosts: &[(&str, String)]) {
    let text: String =
        hosts.iter().map(|(name, uri)| format!("[[lab.host]]\nname = \"{name}\"\nlibvirt = \"{uri}\"\n")).collect();
    fs::write(data.join("patchlab.toml"), text).expect("a file");
}

#[test]
fn each_host_says_what_it_has_or_why_it_lends_nothing() {
    if skips("each_host_says_what_it_has_or_why_it_lends_nothing", &[Need::Program]) {
        return;
    }
    let dir = folder();
    let data = dir.path().join("data");
    fs::create_dir(&data).expect("a folder");
    let patchlab = Patchlab { data: data.clone() };
    let alone = json(&patchlab.run(&["lab", "hosts", "--json", "-"]));
    assert_eq!((alone[0]["name"].as_str(), alone[0]["out"].as_str()), (Some("here"), None), "{alone:#}");

    let elsewhere = format!("qemu:///embed?root={}", dir.path().display());
    let gone = format!("{elsewhere}/gone");
    let nobody = format!("qemu+unix:///system?socket={}/nobody", dir.path().display());
    let hosts = [("tests", "test:///default".into()), ("disk", elsewhere), ("gone", gone), ("nobody", nobody)];
    pool(&data, &hosts);
    let found = json(&patchlab.run(&["lab", "hosts", "--json", "-"]));
    let out = |number: usize| found[number]["out"].as_str().unwrap_or_default().to_owned();
    assert!(out(0).contains("its machines are TEST's, and the lab's are QEMU's"), "{}", out(0));
    assert!(found[1]["found"]["disk_free"].as_u64().is_some_and(|free| free > 0), "{found:#}");
    assert!(out(2).contains("/gone: no such folder: create it, or mount its disk"), "{}", out(2));
    assert!(out(3).contains("cannot open"), "{}", out(3));

    pool(&data, &hosts[2..]);
    assert_eq!(patchlab.run(&["lab", "hosts"]).code, Some(4));
    let wrong = "[[lab.host]]\nname = \"x\"\nlibvirt = \"qemu:///embed\"\nvalidation = 2\n";
    fs::write(data.join("patchlab.toml"), wrong).expect("a file");
    said(&patchlab.run(&["lab", "hosts"]), 65, &["patchlab.toml:4:1", "did you mean \"validations\""]);
}

/// What happened in the newest run, in order.
fn events(patchlab: &Patchlab) -> Vec<Value> {
    json(&patchlab.run(&["lab", "log", "last", "--json", "-"])).as_array().expect("events").clone()
}

fn nothing_is_left(patchlab: &Patchlab) {
    let found = patchlab.run(&["lab", "gc", "--dry-run"]);
    assert_eq!(found.out.trim(), "nothing to collect", "{}", found.err);
}

/// A ledger in which a worker, gone long ago, had machines there.
fn orphan(data: &Path, uri: &str) {
    let lab = data.join("lab");
    fs::create_dir_all(&lab).expect("a folder");
    let owner = serde_json::json!({ "pid": 1, "start": 1, "boot": "another" });
    let begun = serde_json::json!({ "event": "begun", "id": "w-x", "owner": owner, "at": "2026-01-01T00:00:00Z" });
    let thing = serde_json::json!({ "kind": "machines", "uri": uri, "prefix": "patchlab-w-x-" });
    let creating = serde_json::json!({ "event": "creating", "id": "w-x", "thing": thing });
    fs::write(lab.join("ledger.jsonl"), format!("{begun}\n{creating}\n")).expect("a file");
}

#[test]
fn a_libvirt_that_hangs_is_named_and_holds_nobody_up() {
    if skips("a_libvirt_that_hangs_is_named_and_holds_nobody_up", &[Need::Program, Need::Lab]) {
        return;
    }
    let dir = folder();
    let (data, daemons) = (dir.path().join("data"), dir.path().join("d"));
    for folder in [&data, &daemons] {
        fs::create_dir(folder).expect("a folder");
    }
    let patchlab = Patchlab { data: data.clone() };
    let daemon = Daemon::start(&daemons);
    let uri = daemon.libvirt().to_string();
    pool(&data, &[("daemon", uri.clone())]);
    let hosts = patchlab.run(&["lab", "hosts"]);
    assert_eq!(hosts.code, Some(0), "{}{}", hosts.out, hosts.err);
    orphan(&data, &uri);
    daemon.freeze();
    let hosts = patchlab.run(&["lab", "hosts"]);
    assert!(hosts.code == Some(4) && hosts.out.contains("does not answer within 20 s"), "{}{}", hosts.out, hosts.err);
    for arguments in [&["lab", "gc", "--dry-run"][..], &["lab", "gc"]] {
        let left = patchlab.run(arguments);
        let is_told = left.out.contains("machines patchlab-w-x-*") && left.out.contains("does not answer within 20 s");
        assert!(left.code == Some(4) && is_told, "{}{}", left.out, left.err);
    }
    daemon.thaw();
    let collected = patchlab.run(&["lab", "gc"]);
    assert_eq!((collected.code, collected.out.trim()), (Some(0), "nothing to collect"), "{}", collected.err);
    let ledger = fs::read_to_string(data.join("lab/ledger.jsonl")).expect("a ledger");
    assert_eq!(ledger, "", "it has said that it has none");
}

#[test]
fn a_lab_that_cannot_begin_has_its_reports_all_the_same() {
    let test = "a_lab_that_cannot_begin_has_its_reports_all_the_same";
    if skips(test, &[Need::Program, Need::Lab, Need::Agent, Need::Stored]) {
        return;
    }
    let dir = folder();
    let patchlab = Patchlab::on_a_copy(dir.path());
    let trial = Trial::new("unbegun", &[], "true", dir.path());
    let junit = dir.path().join("junit.xml").display().to_string();
    let baseline = patchlab.baseline();
    // The same baseline, named in two ways, is validated once.
    let stored = Baselines::open(&Places::of_data(&patchlab.data)).get(&baseline).expect("it is stored");
    let digest = stored.digest.to_string();
    let mut arguments = trial.arguments(&patchlab);
    arguments.extend(["--baseline", &digest, "--json", "-", "--junit", &junit].map(str::to_owned));
    let validate = patchlab.command(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
    // Where nobody is root, a worker has no namespaces.
    let mut command = Command::new("unshare");
    command.args(["--user", "--"]).arg(validate.get_program()).args(validate.get_args());
    command.current_dir(validate.get_current_dir().expect("a folder"));
    let output = command.stdin(Stdio::null()).output().expect("unshare (package util-linux) starts");
    let err = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(4), "{err}");
    let verdict: Value = serde_json::from_slice(&output.stdout).expect("a verdict");
    assert_eq!(verdict["verdict"], "lab-error", "{verdict:#}");
    let reports = verdict["baselines"].as_array().expect("baselines");
    assert_eq!(reports.len(), 1, "{verdict:#}");
    assert!(reports[0]["reason"].as_str().is_some_and(|why| why.contains("needs root")), "{verdict:#}");
    let junit = fs::read_to_string(junit).expect("a report");
    assert!(junit.contains(&baseline) && junit.contains("needs root"), "{junit}");
}

/// A validation, followed line by line.
fn follow(patchlab: &Patchlab, trial: &Trial) -> (Child, impl Iterator<Item = String> + use<>) {
    let arguments = trial.arguments(patchlab);
    let mut command = patchlab.command(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("patchlab");
    let lines = BufReader::new(child.stderr.take().expect("its standard error")).lines().map_while(Result::ok);
    (child, lines)
}

#[test]
fn a_host_that_freezes_is_taken_out_and_nobody_waits_for_it() {
    let test = "a_host_that_freezes_is_taken_out_and_nobody_waits_for_it";
    if skips(test, &[Need::Program, Need::Lab, Need::Agent, Need::Time, Need::Stored, Need::Soak]) {
        return;
    }
    let dir = folder();
    let patchlab = Patchlab::on_a_copy(dir.path());
    let daemons = dir.path().join("d");
    fs::create_dir(&daemons).expect("a folder");
    let trial = Trial::new("frozen", &[], "true", dir.path());
    let daemon = Daemon::start(&daemons);
    let uri = daemon.libvirt().to_string();

    // What ran there runs on another.
    pool(&patchlab.data, &[("daemon", uri.clone()), ("here", "qemu:///embed".into())]);
    let (mut child, mut lines) = follow(&patchlab, &trial);
    assert!(lines.any(|line| line.contains(": apply")), "the moment did not come");
    daemon.freeze();
    let told: Vec<String> = lines.collect();
    let is_out = told.iter().any(|line| line.contains("host daemon is out: ") && line.contains("does not answer"));
    assert!(is_out, "{told:#?}");
    assert_eq!(child.wait().expect("it ends").code(), Some(0), "{told:#?}");
    daemon.thaw();
    let collected = patchlab.run(&["lab", "gc"]);
    assert_eq!(collected.code, Some(0), "{}{}", collected.out, collected.err);
    nothing_is_left(&patchlab);

    // And the first Ctrl-C ends it.
    pool(&patchlab.data, &[("daemon", uri)]);
    let (mut child, mut lines) = follow(&patchlab, &trial);
    assert!(lines.any(|line| line.contains(": apply")), "the moment did not come");
    daemon.freeze();
    let interrupted = Instant::now();
    let sent = Command::new("kill").args(["-INT", &child.id().to_string()]).status().expect("kill runs");
    assert!(sent.success());
    lines.for_each(drop);
    assert_eq!(child.wait().expect("it ends").code(), Some(130));
    assert!(interrupted.elapsed() < Duration::from_secs(60), "{:?}", interrupted.elapsed());
    daemon.thaw();
    let collected = patchlab.run(&["lab", "gc"]);
    assert_eq!(collected.code, Some(0), "{}{}", collected.out, collected.err);
    nothing_is_left(&patchlab);
    assert_eq!(daemon.machines(), Vec::<String>::new());
}

#[test]
fn what_runs_on_a_host_that_goes_away_runs_on_another() {
    let test = "what_runs_on_a_host_that_goes_away_runs_on_another";
    if skips(test, &[Need::Program, Need::Lab, Need::Agent, Need::Time, Need::Stored]) {
        return;
    }
    let dir = folder();
    let patchlab = Patchlab::on_a_copy(dir.path());
    let (daemons, disk) = (dir.path().join("d"), dir.path().join("disk"));
    for folder in [&daemons, &disk] {
        fs::create_dir(folder).expect("a folder");
    }
    let trial = Trial::new("lent", &[], "true", dir.path());
    let mut daemon = Daemon::start(&daemons);
    let uri = daemon.libvirt().to_string();

    // A whole validation on machines of the daemon's.
    let mut validate = trial.arguments(&patchlab);
    let more = ["--libvirt", &uri, "--keep", "always", "--json", "-"];
    validate.extend(more.map(str::to_owned));
    let validate: Vec<&str> = validate.iter().map(String::as_str).collect();
    let verdict = json(&patchlab.run(&validate));
    assert_eq!(verdict["verdict"], "passed", "{verdict:#}");
    // Kept of a libvirt that runs by itself, a clone goes on with the lab's own.
    let told = patchlab.run(&["lab", "shell", "last", "--clone", "control", "--", "hostname"]);
    assert!(told.code == Some(0) && told.out.contains("control"), "{}{}", told.out, told.err);
    assert_eq!(verdict["baselines"][0]["clone"]["rung"], "template-clone", "{:#}", verdict["baselines"][0]["clone"]);
    assert_eq!(verdict["baselines"][0]["rollback"]["class"], "proven", "{:#}", verdict["baselines"][0]["rollback"]);
    assert_eq!(daemon.machines(), Vec::<String>::new());
    nothing_is_left(&patchlab);

    // One whose host loses its power while the patch is applied. The other one's files are on another disk indeed.
    let namespace = MountNamespace::new();
    namespace.mount(&["-t", "tmpfs", "none", &disk.display().to_string()]);
    pool(&patchlab.data, &[("daemon", uri), ("disk", format!("qemu:///embed?root={}", disk.display()))]);
    let mut arguments = trial.arguments(&patchlab);
    arguments.extend(["--keep".into(), "always".into()]);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let mut command = patchlab.command_in(&namespace, &arguments);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("patchlab");
    let mut lines = BufReader::new(child.stderr.take().expect("its standard error")).lines().map_while(Result::ok);
    assert!(lines.any(|line| line.contains(": apply")), "the moment did not come");
    let machines = daemon.machines();
    let are_the_labs = machines.iter().all(|name| name.starts_with("patchlab-w-"));
    assert!(machines.len() == 2 && are_the_labs, "{machines:?}");
    daemon.kill();
    let on_disk = |line: &String| line.contains("on host disk");
    let told: Vec<String> = lines.by_ref().take_while(|line| !on_disk(line)).collect();
    for part in ["host daemon is out: ", "waits to be made once more"] {
        assert!(told.iter().any(|line| line.contains(part)), "{part:?} is not in {told:#?}");
    }
    let rest: Vec<String> = lines.collect();
    assert_eq!(child.wait().expect("it ends").code(), Some(0), "{told:#?}{rest:#?}");
    let events = events(&patchlab);
    let of = |kind: &str| -> Vec<&str> {
        let wanted = events.iter().filter(|event| event["event"] == kind);
        wanted.filter_map(|event| event["host"].as_str()).collect()
    };
    assert_eq!((of("started"), of("host-gone")), (vec!["daemon", "disk"], vec!["daemon"]));
    // Its machines' files were on the other disk, and are gone; its clones were kept here, and go on here.
    let left = namespace.command("find").arg(&disk).args(["-mindepth", "1"]).output().expect("find runs");
    let left = String::from_utf8_lossy(&left.stdout).into_owned();
    let is_its_folder = left.lines().count() == 1 && left.contains("/patchlab-work-");
    assert!(is_its_folder, "{left}");
    let told = patchlab.run(&["lab", "shell", "last", "--", "hostname"]);
    assert!(told.code == Some(0) && told.out.contains("patched"), "{}{}", told.out, told.err);

    // What a dead host may still have is not forgotten until it says.
    let left = patchlab.run(&["lab", "gc"]);
    assert!(left.code == Some(4) && left.out.contains("machines patchlab-w-"), "{}{}", left.out, left.err);
    let daemon = Daemon::start(&daemons);
    let collected = patchlab.run(&["lab", "gc"]);
    assert_eq!(collected.code, Some(0), "{}{}", collected.out, collected.err);
    nothing_is_left(&patchlab);
    drop(daemon);

    // And when no host is left, nothing begins.
    pool(&patchlab.data, &[("daemon", "qemu+unix:///system?socket=/nobody".into())]);
    said(&patchlab.run(&arguments), 4, &["no host lends machines: daemon: "]);
}
