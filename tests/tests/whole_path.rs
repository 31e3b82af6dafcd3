//! The whole path on real machines: what `./quickstart` shows, looked at from outside, also by Net-SNMP, and
//! validations killed in the middle.
//!
//! Skips aloud where it cannot run: without root, without the lab's packages, or when only quick tests were asked for.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Command, Stdio},
};

use patchlab::{deploy::Credentials, lab::managed::Segment};
use patchlab_tests::{
    killed::{APPLY, CLONE, Moment, PREPARE, ROLLBACK, SCENARIOS, Victim},
    program::{Need, Patchlab, Running, folder, obstacle},
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
    let shown = folder.path().join("shown.json");
    let outer = Patchlab { data: folder.path().to_owned() };
    demonstration(&outer, &shown);
    assert_eq!(json(&shown)["stages"].as_array().map(Vec::len), Some(8));

    let demo = Patchlab { data: folder.path().join("demo") };
    let order = |name: &str| demo.data.join("orders").join(name).join("order.toml");
    let good = json(&order("good").with_file_name("verdict.json"));
    assert_eq!((&good["verdict"], &good["baselines"][0]["rollback"]["status"]), (&"passed".into(), &"proven".into()));
    assert_eq!(good["baselines"][0]["clone"]["rung"], "template-clone");
    let bad = json(&order("bad").with_file_name("verdict.json"));
    assert_eq!(bad["verdict"], "rejected");
    let journal = bad["baselines"][0]["journal"].to_string();
    for reason in ["[emerg] ", "Failed to start nginx.service", "dpkg: configure nginx-tuning-demo"] {
        assert!(journal.contains(reason), "{reason:?} is not in {journal}");
    }
    let gc = demo.run(&["lab", "gc", "--dry-run"]);
    assert_eq!(gc.out.trim(), "nothing to collect");

    killed_anywhere(&demo, folder.path(), &order("good"));
}

/// Killed by signal 9 wherever it is, a validation leaves nothing and hinders nobody; a worker that is killed never
/// blames the patch.
fn killed_anywhere(demo: &Patchlab, folder: &Path, order: &Path) {
    let is_soak = std::env::var_os("PATCHLAB_SOAK").is_some_and(|soak| !soak.is_empty());
    let moments: &[Moment] = match is_soak {
        true => &[CLONE, PREPARE, APPLY, SCENARIOS, ROLLBACK],
        false => &[CLONE, APPLY],
    };
    let mark = folder.file_name().expect("a name").to_string_lossy();
    let victim = Victim { patchlab: &|arguments| demo.command(arguments), data: &demo.data, mark: &mark, order };
    for moment in moments {
        victim.is_killed_at(*moment);
    }
    victim.is_interrupted_at(SCENARIOS, "-INT");
    victim.loses_every_worker();
    if is_soak {
        victim.is_interrupted_at(CLONE, "-TERM");
        victim.is_interrupted_at(PREPARE, "-HUP");
        victim.loses_one_worker();
        let again = demo.run(&["lab", "validate", "--order", &order.display().to_string()]);
        assert_eq!(again.code, Some(0), "{}", again.err);
    }
}
