//! The records of validations, through the program as a user would type it. The records are real ones, written by the lab's own
//! library; machines are the whole path's business.

use std::{fs, path::Path};

use patchlab_check::{Digest, Outcome, Status};
use patchlab_lab::{
    Places,
    report::{BaselineReport, Report, SCHEMA, ScenarioReport, StepReport},
    runs::{Asked, Happening, OnBaseline, Recording, Runs, Scope},
    scenario::Scenario,
    verdict::{Judgement, Phase, Verdict},
};
use patchlab_tests::program::{Ended, Need, Patchlab, folder, obstacle};
use serde_json::{Value, json};

/// Ends the test aloud where the machine lacks something.
macro_rules! needs {
    ($test:literal) => {
        if let Some(why) = obstacle(&[Need::Program]) {
            eprintln!("SKIP {}: {why}", $test);
            return;
        }
    };
}

const SCENARIO: &str = "name = \"web-smoke\"\nowner = \"qa-web\"\nsummary = \"s\"\n\n[[step]]\nname = \"config\"\nrun = \
                        \"nginx -t\"\n";

fn scenario(dir: &Path) -> Scenario {
    let folder = dir.join("web-smoke");
    fs::create_dir_all(&folder).expect("a folder");
    fs::write(folder.join("scenario.toml"), SCENARIO).expect("a scenario");
    Scenario::read(&folder).expect("a good one")
}

fn begin(data: &Path, order: &str) -> Recording {
    let asked = Asked {
        id: (order, Digest::of(order)),
        order: &json!({ "id": order }),
        baselines: vec![OnBaseline { name: "web@1".into(), digest: Digest::of("web@1") }],
        scenarios: &[scenario(data)],
        manner: &json!({ "reboot": "when-asked", "keep": "never" }),
        scope: Scope::Whole,
        retry_of: None,
    };
    let recording = Runs::open(&Places::of_data(data)).begin(asked).expect("a record");
    recording.happened("web@1", Happening::Phase { name: "clone".into() }).expect("written");
    recording
}

/// A run that ended with a verdict: what the patch broke, or nothing.
fn judged(data: &Path, order: &str, verdict: Judgement) -> String {
    let recording = begin(data, order);
    let id = recording.id().to_owned();
    let worker = data.join("a-worker");
    fs::create_dir_all(&worker).expect("a folder");
    fs::write(worker.join("patched.console"), "Linux version 6.1\n\u{1b}[31mred\n").expect("a console");
    recording.take("web@1", &worker).expect("taken");
    let outcome = |status, exit| Outcome {
        status,
        exit: Some(exit),
        ms: 5,
        output: "unknown directive".into(),
        reason: if exit == 0 { String::new() } else { format!("exit {exit}, expected 0") },
        samples: Vec::new(),
    };
    let steps = vec![StepReport {
        name: "config".into(),
        verdict: Some(Verdict::Regression),
        control: Some(outcome(Status::Pass, 0)),
        patched: Some(outcome(Status::Fail, 1)),
        metric: None,
        failed: None,
    }];
    let ran = ScenarioReport {
        name: "web-smoke".into(),
        phase: Phase::Applied,
        verdict: Verdict::Regression,
        reason: String::new(),
        steps,
    };
    let baseline = BaselineReport {
        verdict,
        reason: "because".into(),
        scenarios: if verdict == Judgement::Passed { Vec::new() } else { vec![ran] },
        journal: vec!["nginx: [emerg]".into()],
        ..BaselineReport::begun("web@1".into(), Digest::of("web@1"))
    };
    recording.found(&baseline).expect("written");
    let report = Report {
        schema: SCHEMA,
        order: Digest::of(order),
        id: order.into(),
        verdict,
        reason: "web@1: because".into(),
        baselines: vec![baseline],
        total_ms: 1000,
        bisection: None,
    };
    recording.judged(&report).expect("written");
    id
}

fn good(ended: Ended) -> String {
    assert_eq!(ended.code, Some(0), "{}{}", ended.out, ended.err);
    ended.out
}

#[test]
fn runs_are_listed_newest_first_and_found_by_what_they_were() {
    needs!("runs_are_listed");
    let dir = folder();
    let patchlab = Patchlab { data: dir.path().to_owned() };
    let empty = patchlab.run(&["lab", "runs"]);
    assert!(empty.out.is_empty() && empty.err.contains("patchlab lab validate"), "{}{}", empty.out, empty.err);
    let first = judged(dir.path(), "PO-1", Judgement::Passed);
    let second = judged(dir.path(), "PO-2", Judgement::Rejected);
    let listed = |more: &[&str]| -> Vec<String> {
        let out = good(patchlab.run(&[&["lab", "runs"], more].concat()));
        out.lines().map(|line| line.split('\t').next().unwrap_or_default().to_owned()).collect()
    };
    assert_eq!(listed(&[]), [second.clone(), first.clone()]);
    assert_eq!(listed(&["--order", "PO-1"]), [first.as_str()]);
    assert_eq!(listed(&["--verdict", "rejected"]), [second.as_str()]);
    assert_eq!(listed(&["--baseline", "web", "--since", "1h", "--limit", "1"]), [second]);
    assert_eq!(listed(&["--baseline", "db"]), Vec::<String>::new());
    let wrong = patchlab.run(&["lab", "show", "nope"]);
    assert_eq!(wrong.code, Some(65));
    assert!(wrong.err.contains("no run \"nope\"") && wrong.err.contains(&first), "{}", wrong.err);
}

#[test]
fn a_run_is_shown_and_its_words_are_printed_and_it_becomes_a_page() {
    needs!("a_run_is_shown");
    let dir = folder();
    let patchlab = Patchlab { data: dir.path().to_owned() };
    let id = judged(dir.path(), "PO-2", Judgement::Rejected);
    let shown = good(patchlab.run(&["lab", "show", &id[..8]]));
    let line = "web@1: regression after the patch: web-smoke/config, `nginx -t`: fails, exit 1, expected 0; the control passes \
                (exit 0)";
    assert!(shown.contains(line), "{shown}");
    let json: Value = serde_json::from_str(&good(patchlab.run(&["lab", "show", "last", "--json", "-"]))).expect("JSON");
    assert_eq!((&json["state"], &json["phases"]["web@1"][0]["name"]), (&"rejected".into(), &"clone".into()));
    let console = good(patchlab.run(&["lab", "log", "last", "--console"]));
    assert_eq!(console, "Linux version 6.1\n\u{1b}[31mred\n", "in a pipe as it was");
    assert_eq!(good(patchlab.run(&["lab", "log", "last", "--journal"])), "nginx: [emerg]\n");
    assert!(good(patchlab.run(&["lab", "log", "last"])).contains("web@1\tclone"));
    let none = patchlab.run(&["lab", "log", "last", "--console", "--clone", "control"]);
    assert_eq!((none.code, none.err.contains("no console of the control clone")), (Some(65), true), "{}", none.err);

    let page = dir.path().join("page.html");
    good(patchlab.run(&["lab", "report", "last", "--out", &page.display().to_string()]));
    let page = fs::read_to_string(page).expect("a page");
    assert!(page.contains("It must not ship") && !page.contains("<script"), "{page}");
}

#[test]
fn a_retry_says_what_the_run_does_not_have() {
    needs!("a_retry_says");
    let dir = folder();
    let patchlab = Patchlab { data: dir.path().to_owned() };
    // The order of a record that was made by hand is none that can be run.
    judged(dir.path(), "PO-2", Judgement::Rejected);
    let broken = patchlab.run(&["lab", "retry", "last"]);
    assert_eq!(broken.code, Some(4), "{}", broken.err);
    assert!(broken.err.contains("order.json"), "{}", broken.err);
}

#[test]
fn gc_takes_the_oldest_records_and_says_so_before() {
    needs!("gc_takes");
    let dir = folder();
    let patchlab = Patchlab { data: dir.path().to_owned() };
    let first = judged(dir.path(), "PO-1", Judgement::Passed);
    let second = judged(dir.path(), "PO-2", Judgement::Passed);
    assert_eq!(good(patchlab.run(&["lab", "gc", "--dry-run"])), "nothing to collect\n");
    let said = good(patchlab.run(&["lab", "gc", "--dry-run", "--runs", "1"]));
    assert!(said.starts_with(&format!("runs\trecord {first} of PO-1")), "{said}");
    assert_eq!(good(patchlab.run(&["lab", "gc", "--run-bytes", "1KiB"])), said);
    assert!(good(patchlab.run(&["lab", "runs"])).starts_with(&second));
    assert_eq!(good(patchlab.run(&["lab", "gc"])), "nothing to collect\n");
}

#[test]
fn a_run_whose_process_was_killed_is_interrupted() {
    needs!("a_run_whose_process_was_killed");
    let dir = folder();
    let patchlab = Patchlab { data: dir.path().to_owned() };
    let recording = begin(dir.path(), "PO-1");
    let state = || good(patchlab.run(&["lab", "runs"])).split('\t').nth(2).map(str::to_owned);
    assert_eq!(state().as_deref(), Some("running"), "this process lives");
    // As a process that is gone now left it.
    let path = Places::of_data(dir.path()).runs.join(recording.id()).join("run.json");
    let mut record: Value = serde_json::from_slice(&fs::read(&path).expect("a record")).expect("JSON");
    record["owner"]["start"] = 1.into();
    fs::write(&path, record.to_string()).expect("written");
    assert_eq!(state().as_deref(), Some("interrupted"));
    let shown = good(patchlab.run(&["lab", "show", "last"]));
    for part in ["interrupted", "its process was ended before it had a verdict", "it was ended in the phase clone"] {
        assert!(shown.contains(part), "{part:?} is not in:\n{shown}");
    }
}
