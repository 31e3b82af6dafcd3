//! `patchlab scenario run` as its users type it, on real clones: what passes, what fails, and a watch from one save to the next.
//!
//! Skips aloud where it cannot run: without root, without the lab's packages, or where `PATCHLAB_TEST_BASELINES` names no data
//! folder with a baseline.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Command, Stdio},
};

use patchlab_tests::program::{Need, Patchlab, Running, file, folder, obstacle, source};
use serde_json::Value;

/// A scenario whose first step passes, and whose second ends with `exit`; one of its files is larger than what a guest is told at once, and
/// one is empty.
fn write(dir: &Path, exit: u8) {
    fs::create_dir_all(dir).expect("a folder");
    let text = format!(
        "name = \"trial\"\nowner = \"qa\"\nsummary = \"two steps\"\n\
         [[step]]\nname = \"script\"\nrun = \"sh ./seen.sh\"\nexpect = {{ stdout_contains = \"seen\" }}\n\
         [[step]]\nname = \"end\"\nrun = \"echo this is why >&2; exit {exit}\"\n"
    );
    fs::write(
        dir.join("seen.sh"),
        "test -f empty && test \"$(wc -c <large)\" = 600000 && sort -uc large && echo seen\n",
    )
    .expect("a script");
    let large: String = (0..60_000).map(|number| format!("{number:09}\n")).collect();
    fs::write(dir.join("large"), large).expect("a large file");
    fs::write(dir.join("empty"), "").expect("an empty file");
    fs::write(dir.join("scenario.toml"), text).expect("a scenario");
}

fn statuses(result: &Value) -> Vec<(&str, &str)> {
    let steps = result["runs"][0]["steps"].as_array().expect("steps");
    steps
        .iter()
        .map(|step| (step["name"].as_str().expect("a name"), step["outcome"]["status"].as_str().expect("a status")))
        .collect()
}

#[test]
fn a_scenario_is_run_on_a_clone_and_again_at_each_save() {
    if let Some(why) = obstacle(&[Need::Program, Need::Lab, Need::Time, Need::Stored]) {
        eprintln!("SKIP a_scenario_is_run_on_a_clone_and_again_at_each_save: {why}");
        return;
    }
    let folder = folder();
    let patchlab = Patchlab::on_a_copy(folder.path());
    let dir = folder.path().join("trial");
    let shown = dir.display().to_string();

    write(&dir, 0);
    let passed = patchlab.run(&["scenario", "run", &shown, "--json", "-"]);
    assert_eq!(passed.code, Some(0), "{}", passed.err);
    let result: Value = serde_json::from_str(&passed.out).expect("JSON");
    assert_eq!(statuses(&result), [("script", "pass"), ("end", "pass")]);
    assert_eq!(result["clone"]["rung"], "template-clone");

    write(&dir, 3);
    let failed = patchlab.run(&["scenario", "run", &shown]);
    assert_eq!(failed.code, Some(1), "{}", failed.err);
    assert!(failed.out.contains("pass\t") && failed.out.contains("fail\t"), "{}", failed.out);
    for part in ["why ", "command  echo this is why", "exit     3", "this is why"] {
        assert!(failed.err.contains(part), "{part:?} is not in {}", failed.err);
    }
    let chosen = patchlab.run(&["scenario", "run", &shown, "--step", "script", "--json", "-"]);
    assert_eq!((chosen.code, chosen.out.contains("\"end\"")), (Some(0), false), "{}", chosen.err);

    // A step that switches the machine off is what broke it, not the lab.
    let off = "name = \"off\"\nowner = \"qa\"\nsummary = \"s\"\n[[step]]\nname = \"off\"\n\
               run = \"systemctl poweroff -ff; sleep 60\"\n";
    file(folder.path(), "off/scenario.toml", off);
    let lost = patchlab.run(&["scenario", "run", &folder.path().join("off").display().to_string()]);
    assert_eq!(lost.code, Some(1), "{}{}", lost.out, lost.err);
    assert!(lost.err.contains("the machine was lost"), "{}", lost.err);

    combined(&patchlab, folder.path());
    watched(&patchlab, &dir);
    let left = patchlab.run(&["lab", "gc", "--dry-run"]);
    assert_eq!(left.out.trim(), "nothing to collect");
}

/// Every combination is told under its own name, what writes before the rollback comes after its steps, and what the baseline does not give
/// skips.
fn combined(patchlab: &Patchlab, folder: &Path) {
    let text = "name = \"ports\"\nowner = \"qa\"\nsummary = \"s\"\nmatrix = { port = [1, 2] }\n\
        quarantine = { owner = \"qa\", until = \"2999-01-01\", ticket = \"QA-1\" }\n\
        [[step]]\nname = \"own\"\nrun = \"touch /tmp/own; test ${port} = 1\"\n\
        [[after-writes]]\nname = \"rows\"\nrun = \"test -e /tmp/own || exit 77\"\n";
    file(folder, "ports/scenario.toml", text);
    let shown = folder.join("ports").display().to_string();
    let ran = patchlab.run(&["scenario", "run", &shown, "--json", "-"]);
    assert_eq!(ran.code, Some(1), "{}{}", ran.out, ran.err);
    for part in ["ports[port=1] on a clone", "ports[port=2] on a clone", "ports is in quarantine until 2999-01-01"] {
        assert!(ran.err.contains(part), "{part:?} is not in {}", ran.err);
    }
    assert!(ran.err.contains("command  touch /tmp/own; test 2 = 1"), "{}", ran.err);
    let result: Value = serde_json::from_str(&ran.out).expect("JSON");
    assert_eq!(result["runs"][1]["scenario"], "ports[port=2]");
    assert_eq!(result["after_writes"][0]["steps"][0]["outcome"]["status"], "pass", "{result}");
    let alone = patchlab.run(&["scenario", "run", &shown, "--step", "rows", "--only"]);
    assert_eq!((alone.code, alone.out.matches("skip\t").count()), (Some(2), 2), "{}{}", alone.out, alone.err);

    let text = "name = \"asks\"\nowner = \"qa\"\nsummary = \"s\"\nrequires = [\"quantum\"]\n\
        [[step]]\nname = \"own\"\nrun = \"true\"\n";
    file(folder, "asks/scenario.toml", text);
    let asks = patchlab.run(&["scenario", "run", &folder.join("asks").display().to_string()]);
    let why = "skip\t0\tasks\tit requires \"quantum\": this patchlab does not know the word";
    assert_eq!((asks.code, asks.out.contains(why)), (Some(2), true), "{}{}", asks.out, asks.err);
}

#[test]
fn several_machines_are_on_one_network_and_steps_go_on_beside_others() {
    let test = "several_machines_are_on_one_network_and_steps_go_on_beside_others";
    if let Some(why) = obstacle(&[Need::Program, Need::Lab, Need::Time, Need::Stored]) {
        eprintln!("SKIP {test}: {why}");
        return;
    }
    let folder = folder();
    let patchlab = Patchlab::on_a_copy(folder.path());
    let together = source().join("tests/scenarios/together").display().to_string();
    let passed = patchlab.run(&["scenario", "run", &together, "--json", "-"]);
    assert_eq!(passed.code, Some(0), "{}{}", passed.out, passed.err);
    let result: Value = serde_json::from_str(&passed.out).expect("JSON");
    assert_eq!(statuses(&result).len(), 9);
    assert!(statuses(&result).iter().all(|(_, status)| *status == "pass"), "{result}");

    let dir = folder.path().join("alone");
    fs::create_dir_all(&dir).expect("a folder");
    let text = "name = \"alone\"\nowner = \"qa\"\nsummary = \"s\"\n[machine.db]\nbaseline = \"no-such-one\"\n\
                [[step]]\nname = \"there\"\nrun = \"true\"\nmachine = \"db\"\n";
    fs::write(dir.join("scenario.toml"), text).expect("a scenario");
    let refused = patchlab.run(&["scenario", "run", &dir.display().to_string()]);
    let why = "its machine db is a clone of no-such-one, which is no stored baseline";
    assert_eq!((refused.code, refused.err.contains(why)), (Some(65), true), "{}", refused.err);
    let left = patchlab.run(&["lab", "gc", "--dry-run"]);
    assert_eq!(left.out.trim(), "nothing to collect");
}

/// Fails, is broken, is put right: each told after its save; then Ctrl-C.
fn watched(patchlab: &Patchlab, dir: &Path) {
    let mut command = patchlab.command(&["scenario", "run", &dir.display().to_string(), "--watch"]);
    let mut run = Running::start(command.stdout(Stdio::piped()));
    let mut lines = BufReader::new(run.0.stdout.take().expect("its standard output")).lines().map_while(Result::ok);
    let mut told = |part: &str| {
        let found = lines.by_ref().inspect(|line| println!("{line}")).any(|line| line.contains(part));
        assert!(found, "{part:?} was not told");
    };
    told("fail\t");
    fs::write(dir.join("scenario.toml"), "name = \"trial\"\nowner = qa\n").expect("a scenario");
    told("scenario.toml:2:");
    write(dir, 0);
    told("\tend\t");
    let interrupted = Command::new("kill").args(["-INT", &run.0.id().to_string()]).status().expect("kill runs");
    assert!(interrupted.success());
    assert_eq!(run.code(), Some(130));
}
