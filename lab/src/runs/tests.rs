use std::collections::BTreeSet;

use patchlab_check::Status;
use serde_json::json;

use super::*;
use crate::{
    applier::Role,
    gc::Mode,
    report::{BaselineReport, BisectionReport, Over, RollbackReport},
    scenario::{FILE, Scenario},
    verdict::tests::baseline,
};

fn lab() -> (tempfile::TempDir, Runs) {
    let dir = tempfile::tempdir().unwrap();
    let runs = Runs::open(&Places::of_data(dir.path()));
    (dir, runs)
}

fn scenario(dir: &Path) -> Scenario {
    let folder = dir.join("web-smoke");
    fs::create_dir_all(folder.join("data")).unwrap();
    let text = "name = \"web-smoke\"\nowner = \"qa\"\nsummary = \"s\"\n[[step]]\nname = \"config\"\nrun = \"./x.sh\"\n";
    fs::write(folder.join(FILE), text).unwrap();
    fs::write(folder.join("data/page"), "page").unwrap();
    Scenario::read(&folder).unwrap()
}

fn begin(runs: &Runs, scenarios: &[Scenario]) -> Recording {
    let on = |name: &str| OnBaseline { name: name.into(), digest: Digest::of(name) };
    runs.begin(Asked {
        id: ("PO-1", Digest::of("order")),
        order: &json!({ "id": "PO-1" }),
        baselines: vec![on("web@1"), on("db@2")],
        scenarios,
        manner: &json!({ "reboot": "when-asked" }),
        scope: Scope::Whole,
        retry_of: None,
    })
    .unwrap()
}

fn report(baselines: Vec<BaselineReport>) -> Report {
    Report {
        schema: REPORT_SCHEMA,
        order: Digest::of("order"),
        id: "PO-1".into(),
        verdict: Judgement::Passed,
        reason: "it holds".into(),
        baselines,
        total_ms: 9,
        bisection: None,
    }
}

fn phase(name: &str) -> Happening {
    Happening::Phase { name: name.into() }
}

#[test]
fn a_run_is_on_the_disk_from_its_beginning_and_ends_with_its_verdict() {
    let (dir, runs) = lab();
    let recording = begin(&runs, &[scenario(dir.path())]);
    let id = recording.id().to_owned();
    let running = runs.get(&id).unwrap();
    assert_eq!((running.state(), running.record.scenarios[0].steps[0].line), (State::Running, 5));
    assert_eq!(fs::read(running.scenarios().join("web-smoke/data/page")).unwrap(), b"page");
    assert_eq!(running.order::<serde_json::Value>().unwrap()["id"], "PO-1");

    recording.happened("web@1", phase("clone")).unwrap();
    let step = Happening::Step {
        scenario: "web-smoke".into(),
        step: "config".into(),
        role: Role::Patched,
        status: Status::Fail,
    };
    recording.happened("web@1", step).unwrap();
    let worker = dir.path().join("worker");
    fs::create_dir(&worker).unwrap();
    fs::write(worker.join("patched.console"), "Linux version").unwrap();
    recording.take("web@1", &worker).unwrap();
    let mut found = baseline("web@1", Judgement::Passed, Vec::new());
    found.journal = vec!["a line".into()];
    recording.found(&found).unwrap();
    let verdict = report(vec![found]);
    recording.judged(&verdict).unwrap();

    let run = runs.get(LAST).unwrap();
    assert_eq!((run.state(), run.report().unwrap()), (State::Judged(Judgement::Passed), verdict.clone()));
    let split = BisectionReport { breaking: Vec::new(), passing: vec!["web".into()], tries: 3, limited: false };
    let more = Report { bisection: Some(split), ..verdict };
    runs.amend(&id, &more).unwrap();
    assert_eq!((run.state(), run.report().unwrap()), (State::Judged(Judgement::Passed), more));
    assert_eq!(run.phases_on("web@1").unwrap()[0].name, "clone");
    let text = |name| run.text_of("web@1", name).unwrap();
    assert_eq!(text("patched.console").as_deref(), Some("Linux version"));
    assert_eq!((text("journal.txt").as_deref(), text("control.console")), (Some("a line\n"), None));
    assert!(fs::read_to_string(run.folder.join(JUNIT)).unwrap().contains("web@1"));
    assert_eq!(runs.get(&id[..8]).unwrap(), run, "a part of an id that says which");
}

#[test]
fn scenarios_of_a_matrix_are_read_again_as_they_were() {
    let (dir, runs) = lab();
    let folder = scenario(dir.path()).dir;
    let path = folder.join(FILE);
    let text = fs::read_to_string(&path).unwrap().replace("[[step]]", "[matrix]\nport = [80, 443]\n[[step]]");
    fs::write(&path, text).unwrap();
    let both = Scenario::read_all(&folder).unwrap();
    let recording = begin(&runs, &both);
    let again = crate::scenario::discover(&[runs.get(recording.id()).unwrap().scenarios()]).unwrap();
    let names = |all: &[Scenario]| all.iter().map(|scenario| scenario.name.clone()).collect::<BTreeSet<_>>();
    assert_eq!(names(&again), names(&both));
}

#[test]
fn a_run_whose_process_is_gone_was_interrupted_and_says_what_was_known() {
    let (_dir, runs) = lab();
    let recording = begin(&runs, &[]);
    recording.happened("web@1", phase("clone")).unwrap();
    let fails = |status| {
        let (scenario, step) = ("web-smoke".into(), "config".into());
        recording.happened("web@1", Happening::Step { scenario, step, role: Role::Patched, status }).unwrap();
    };
    [Status::Pass, Status::Fail, Status::Fail].into_iter().for_each(fails);
    recording.found(&baseline("db@2", Judgement::Rejected, Vec::new())).unwrap();
    let path = runs.get(LAST).unwrap().folder.join(RECORD);
    // As a process that is gone now left it.
    let mut record: Record = json(&path, RECORD_LIMIT).unwrap();
    record.owner.start -= 1;
    fs::write(&path, serde_json::to_vec(&record).unwrap()).unwrap();
    let events = path.with_file_name(EVENTS);
    fs::write(&events, [fs::read(&events).unwrap(), b"{\"ms\":9,\"base".to_vec()].concat()).unwrap();

    let run = runs.get(LAST).unwrap();
    let report = run.report().unwrap();
    assert_eq!(run.state(), State::Interrupted);
    // Never passed: the worst of what is known, which is at least that something is not.
    assert_eq!(report.verdict, Judgement::Rejected);
    let reasons: Vec<_> = report.baselines.iter().map(|baseline| baseline.reason.as_str()).collect();
    assert_eq!(reasons[0], "it was ended in the phase clone; by then web-smoke/config had failed on the patched clone");
    assert_eq!(report.baselines[1].verdict, Judgement::Rejected);
    assert_eq!(run.events().unwrap().len(), 4, "a line cut short is none");
}

#[test]
fn an_interrupted_run_says_so_and_keeps_what_was_found() {
    let (_dir, runs) = lab();
    let recording = begin(&runs, &[]);
    let mut found = baseline("web@1", Judgement::Passed, Vec::new());
    found.rollback = RollbackReport::proven(Over::Unchanged);
    recording.found(&found).unwrap();
    recording.interrupted("interrupted after 3 s").unwrap();
    let run = runs.get(LAST).unwrap();
    let report = run.report().unwrap();
    assert_eq!((run.state(), report.verdict), (State::Interrupted, Judgement::LabError), "half is not passed");
    assert_eq!(report.reason, "interrupted after 3 s");
    assert_eq!(report.baselines[1].reason, "it was ended before it began");
}

#[test]
fn runs_of_one_second_are_told_apart_and_sort_as_they_began() {
    let (_dir, runs) = lab();
    let ids: Vec<String> = (0..12).map(|_| begin(&runs, &[]).id().to_owned()).collect();
    assert_eq!(runs.ids().unwrap(), ids);
    assert!(age("261124-093102") < age("261124-093102-2") && age("261124-093102-2") < age("261124-093102-10"));
    let error = runs.get("2").unwrap_err().to_string();
    assert!(error.contains("no run \"2\"") && error.contains(&ids[11]), "{error}");
    assert!(matches!(runs.get(""), Err(RunsError::Unknown { .. })));
    let (_other, empty) = lab();
    assert!(empty.get(LAST).unwrap_err().to_string().contains("there are none"));
}

#[test]
fn what_is_too_much_goes_with_all_its_files() {
    let (_dir, runs) = lab();
    for _ in 0..3 {
        begin(&runs, &[]).judged(&report(Vec::new())).unwrap();
    }
    let limits = Limits { count: 1, ..Limits::default() };
    let ids = runs.ids().unwrap();
    let said = |gone: Vec<Run>| gone.into_iter().map(|run| run.record.id).collect::<Vec<_>>();
    assert_eq!(said(runs.retain(limits, Mode::DryRun).unwrap()), [ids[1].clone(), ids[0].clone()]);
    assert_eq!(runs.ids().unwrap().len(), 3);
    runs.retain(limits, Mode::Collect).unwrap();
    assert_eq!(runs.ids().unwrap(), [ids[2].clone()]);
    assert_eq!(fs::read_dir(&runs.places.runs).unwrap().count(), 1, "nothing hidden is left");
}

#[test]
fn one_record_that_cannot_be_read_hides_no_other() {
    let (_dir, runs) = lab();
    let good = begin(&runs, &[]);
    let bad = runs.places.runs.join("261124-000000");
    fs::create_dir(&bad).unwrap();
    fs::write(bad.join(RECORD), "{").unwrap();
    let (found, wrong) = runs.list().unwrap();
    assert_eq!((found.len(), found[0].record.id.as_str()), (1, good.id()));
    assert!(wrong[0].to_string().contains("261124-000000/run.json"), "{}", wrong[0]);
}
