//! The whole path on real machines: what `./quickstart` shows, looked at from outside, also by Net-SNMP.
//!
//! What it leaves behind other tests begin with, when `tests/run` asks for it. Skips aloud where it cannot run: without root, without the
//! lab's packages, or when only quick tests were asked for.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Command, Stdio},
};

use patchlab::{deploy::Credentials, lab::managed::Segment};
use patchlab_tests::{
    program::{Need, Patchlab, Running, folder, obstacle, wanted},
    third_opinion,
};
use serde_json::Value;

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).expect("a file")).expect("JSON")
}

/// Runs the demonstration, and while it stays on, lets Net-SNMP look at its managed hosts; then ends it as Ctrl-C does.
fn demonstration(outer: &Patchlab, shown: &Path) {
    let shown = shown.display().to_string();
    let mut command = outer.command(&["demo", "--keep", "--listen", "127.0.0.1:0", "--json", &shown]);
    let mut demo = Running::start(command.stdout(Stdio::piped()));
    let mut lines = BufReader::new(demo.0.stdout.take().expect("its standard output")).lines().map_while(Result::ok);
    let ready = lines.by_ref().inspect(|line| println!("{line}")).any(|line| line.contains("until Ctrl-C"));
    if !ready {
        panic!("the demonstration ended with {:?}", demo.code());
    }
    for (number, host) in [(0, "web-1"), (1, "web-2")] {
        let secrets = outer.data.join("demo/keys/hosts").join(host).with_extension("json");
        let credentials = Credentials::read(&secrets).expect("the host's credentials");
        let address = Segment::new(number).agent().into();
        third_opinion::reads_with_credentials_alone(address, host, &credentials.deployer);
    }
    let interrupted = Command::new("kill").args(["-INT", &demo.0.id().to_string()]).status().expect("kill runs");
    assert!(interrupted.success());
    lines.for_each(|line| println!("{line}"));
    assert_eq!(demo.code(), Some(0), "how the demonstration ended");
}

#[test]
fn the_whole_path_on_real_machines() {
    if let Some(why) = obstacle(&[Need::Time, Need::Program, Need::Lab, Need::Agent]) {
        eprintln!("SKIP the_whole_path_on_real_machines: {why}");
        return;
    }
    let folder = folder();
    let outer = Patchlab { data: wanted().unwrap_or_else(|| folder.path().to_owned()) };
    let shown = folder.path().join("shown.json");
    demonstration(&outer, &shown);
    assert_eq!(json(&shown)["stages"].as_array().map(Vec::len), Some(8));

    let demo = Patchlab { data: outer.data.join("demo") };
    let verdict = |name: &str| json(&demo.data.join("orders").join(name).join("verdict.json"));
    let good = verdict("good");
    assert_eq!((&good["verdict"], &good["baselines"][0]["rollback"]["status"]), (&"passed".into(), &"proven".into()));
    assert_eq!(good["baselines"][0]["clone"]["rung"], "template-clone");
    let bad = verdict("bad");
    assert_eq!(bad["verdict"], "rejected");
    let journal = bad["baselines"][0]["journal"].to_string();
    for reason in ["[emerg] ", "Failed to start nginx.service", "dpkg: configure nginx-tuning-demo"] {
        assert!(journal.contains(reason), "{reason:?} is not in {journal}");
    }
    let gc = demo.run(&["lab", "gc", "--dry-run"]);
    assert_eq!(gc.out.trim(), "nothing to collect");
}
