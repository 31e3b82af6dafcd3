//! The whole path on real machines: what `./quickstart` shows, looked at from outside, and a validation killed in the middle.
//!
//! Skips aloud where it cannot run: without root, without the lab's packages, or when only quick tests were asked for.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Command, Stdio},
};

use patchlab_tests::program::{Need, Patchlab, folder, obstacle};
use serde_json::Value;

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).expect("a file")).expect("JSON")
}

/// Processes of the lab's user whose command line names this data folder's workers are all gone.
fn machines_of(worker: &str) -> Vec<String> {
    let list = Command::new("pgrep").args(["-a", "-f", worker]).output().expect("pgrep runs");
    String::from_utf8_lossy(&list.stdout).lines().map(str::to_owned).collect()
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
    let status = outer
        .command(&["demo", "--listen", "127.0.0.1:0", "--json", &shown.display().to_string()])
        .status()
        .expect("patchlab starts");
    assert!(status.success(), "the demonstration ended with {status}");
    assert_eq!(json(&shown)["stages"].as_array().map(Vec::len), Some(8));

    let demo = Patchlab { data: folder.path().join("demo") };
    let order = |name: &str| demo.data.join("orders").join(name).join("order.toml");
    let good = json(&order("good").with_file_name("verdict.json"));
    assert_eq!((&good["verdict"], &good["baselines"][0]["rollback"]["status"]), (&"passed".into(), &"proven".into()));
    assert_eq!(good["baselines"][0]["clone"]["rung"], "template-clone");
    let bad = json(&order("bad").with_file_name("verdict.json"));
    assert_eq!(bad["verdict"], "rejected");
    assert!(bad["baselines"][0]["journal"].as_array().is_some_and(|lines| !lines.is_empty()));
    let gc = demo.run(&["lab", "gc", "--dry-run"]);
    assert_eq!(gc.out.trim(), "nothing to collect");

    killed_in_the_middle(&demo, &order("good"));
}

/// A validation killed with -9 while the patch is being applied: after the next `gc` nothing of it is left.
fn killed_in_the_middle(demo: &Patchlab, order: &Path) {
    let mut validation = demo
        .command(&["lab", "validate", "--order", &order.display().to_string()])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("patchlab starts");
    let lines = BufReader::new(validation.stderr.take().expect("its standard error")).lines();
    let applying = lines.map_while(Result::ok).any(|line| line.contains(": apply"));
    assert!(applying, "the validation never came to apply");
    validation.kill().expect("it can be killed");
    validation.wait().expect("it ends");
    let collected = demo.run(&["lab", "gc"]);
    assert_eq!(collected.code, Some(0));
    let again = demo.run(&["lab", "gc"]);
    assert_eq!(again.out.trim(), "nothing to collect");
    let work = fs::read_dir(demo.data.join("work")).map(|entries| entries.count()).unwrap_or(0);
    assert_eq!(work, 0, "folders of dead workers are left");
    for worker in collected.out.lines().filter_map(|line| line.split('\t').next()) {
        assert_eq!(machines_of(worker), Vec::<String>::new());
    }
}
