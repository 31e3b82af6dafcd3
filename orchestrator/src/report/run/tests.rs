use patchlab_check::{Digest, Outcome, Status};
use patchlab_lab::{
    Places,
    report::{QuarantinedScenario, SCHEMA, ScenarioReport, SkippedScenario, StepReport},
    runs::{Asked, Happening, LAST, OnBaseline, Recording, Runs, Scope},
    scenario::{Scenario, Standing},
    verdict::{Phase as When, Verdict},
};

use super::*;

fn outcome(status: Status, exit: i32, output: &str) -> Option<Outcome> {
    let reason = if status == Status::Fail { "exit 1, expected 0".into() } else { String::new() };
    Some(Outcome { status, exit: Some(exit), ms: 40, output: output.into(), reason, samples: Vec::new() })
}

fn baseline(name: &str) -> BaselineReport {
    let step = |name: &str, verdict, control, patched| StepReport {
        name: name.into(),
        verdict: Some(verdict),
        control,
        patched,
        metric: None,
        failed: None,
    };
    let steps = vec![
        step("config", Verdict::Regression, outcome(Status::Pass, 0, "ok"), outcome(Status::Fail, 1, "<emerg> & more")),
        step("old sin", Verdict::PreExisting, outcome(Status::Fail, 1, "x"), outcome(Status::Fail, 1, "x")),
    ];
    BaselineReport {
        verdict: Judgement::Rejected,
        reason: "regression in web-smoke".into(),
        scenarios: vec![ScenarioReport {
            name: "web-smoke".into(),
            phase: When::Applied,
            verdict: Verdict::Regression,
            reason: String::new(),
            steps,
        }],
        ..BaselineReport::begun(name.into(), Digest::of(name))
    }
}

/// A run with a scenario, in a folder that is gone with the first of the result.
fn begun() -> (tempfile::TempDir, Runs, Recording) {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("web-smoke");
    fs::create_dir(&folder).unwrap();
    let text =
        "name = \"web-smoke\"\nowner = \"qa-web\"\nsummary = \"s\"\n[[step]]\nname = \"config\"\nrun = \"nginx -t\"\n";
    fs::write(folder.join("scenario.toml"), text).unwrap();
    let places = Places::of_data(dir.path());
    let runs = Runs::open(&places);
    let asked = Asked {
        id: ("PO-2026-0002", Digest::of("order")),
        order: &"order",
        baselines: vec![OnBaseline { name: "web@1".into(), digest: Digest::of("web@1") }],
        scenarios: &[Scenario::read(&folder).unwrap()],
        manner: &"manner",
        scope: Scope::Whole,
        retry_of: None,
    };
    let recording = runs.begin(asked).unwrap();
    (dir, runs, recording)
}

fn rendered(runs: &Runs) -> String {
    html(&Told::read(&runs.get(LAST).unwrap()).unwrap()).unwrap()
}

#[test]
fn what_was_set_aside_is_said() {
    let (_dir, runs, recording) = begun();
    let mut found = baseline("web@1");
    found.quarantined = vec![QuarantinedScenario {
        name: "web-smoke".into(),
        standing: Standing::Holds,
        owner: "qa-web".into(),
        until: "2027-01-31".into(),
        ticket: "QA-7".into(),
    }];
    found.skipped = vec![SkippedScenario { name: "desktop".into(), reason: "it requires a screen".into() }];
    recording.found(&found).unwrap();
    let page = rendered(&runs);
    assert!(page.contains("<h3>Set aside</h3>") && !page.contains("<h3>What does not hold</h3>"), "{page}");
    for said in
        ["desktop was skipped: it requires a screen", "web-smoke is in quarantine until 2027-01-31, owner qa-web"]
    {
        assert!(page.contains(said), "{said}: {page}");
    }
}

#[test]
fn a_rejected_run_says_first_that_it_must_not_ship_and_then_everything() {
    let (dir, runs, recording) = begun();
    let worker = dir.path().join("worker");
    fs::create_dir_all(worker.join("out")).unwrap();
    fs::write(worker.join("patched.console"), "\x1b[1;31mKernel\x1b[0m panic <here>\r\n").unwrap();
    fs::write(worker.join("out/page.png"), b"\x89PNG").unwrap();
    fs::write(worker.join("out/dump.txt"), b"text").unwrap();
    recording.take("web@1", &worker).unwrap();
    recording.happened("web@1", Happening::Phase { name: "clone".into() }).unwrap();
    let found = baseline("web@1");
    recording.found(&found).unwrap();
    let report = Report {
        schema: SCHEMA,
        order: Digest::of("order"),
        id: "PO-2026-0002".into(),
        verdict: Judgement::Rejected,
        reason: "web@1: regression in web-smoke".into(),
        baselines: vec![found],
        total_ms: 61_000,
        bisection: None,
    };
    recording.judged(&report).unwrap();

    let page = rendered(&runs);
    let place = |text: &str| page.find(text).unwrap_or_else(|| panic!("{text:?} is not in:\n{page}"));
    assert!(place("It must not ship") < place("regression after the patch: web-smoke/config, `nginx -t`"));
    assert!(place("What does not hold") < place("For the scenarios’ owners"));
    assert!(place("<b>qa-web</b>: pre-existing after the patch") < place("Side by side"));
    place("&#60;emerg&#62; &#38; more");
    place("Kernel panic &#60;here&#62;");
    place("data:image/png;base64,iVBORw==");
    place("dump.txt");
    for foreign in ["<script", "http://", "https://", "\x1b", "<emerg>"] {
        assert!(!page.contains(foreign), "{foreign:?}");
    }
    assert_eq!(page.matches("<details").count(), page.matches("</details>").count());
}

#[test]
fn a_run_that_was_ended_says_so_and_how_far_it_was() {
    let (_dir, runs, recording) = begun();
    recording.happened("web@1", Happening::Phase { name: "rollback".into() }).unwrap();
    recording.interrupted("interrupted after 30 s").unwrap();
    let page = rendered(&runs);
    assert!(page.contains("It was ended before there was a verdict."), "{page}");
    assert!(page.contains("interrupted after 30 s") && page.contains("it was ended in the phase rollback"), "{page}");
}

#[test]
fn what_steers_a_terminal_is_left_out_and_long_texts_keep_their_end() {
    assert_eq!(plain("\x1b[1;32mok\x1b[0m\x07\ttab\r\nnext\x1b"), "ok\ttab\nnext");
    let long = shown("x", &format!("{}ü the end", "ä".repeat(TEXT_SHOWN)));
    assert!(long.cut && long.text.ends_with("ü the end") && long.text.chars().count() == TEXT_SHOWN + 1);
    assert!(!shown("x", "short").cut);
}
