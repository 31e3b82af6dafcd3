//! An order whose change is made by scripts that it ships, on real clones: one passes, its way back and its being run twice proven; one
//! whose rollback leaves a file behind is rejected, and the file named.
//!
//! Skips aloud where it cannot run.

use std::{fs, path::Path};

use patchlab_lab::{
    report::{BaselineReport, Report, RollbackClass, RollbackStatus},
    verdict::{Judgement, Phase},
};
use patchlab_tests::program::{Need, Patchlab, file, folder, json, obstacle};

/// What nginx is told beside its own configuration.
const SNIPPET: &str = "add_header X-Change made;\n";
const AT: &str = "/etc/nginx/conf.d/change.conf";

const SCENARIO: &str = r#"name = "front"
owner = "tests"
summary = "the front page is there"
applies = { packages = ["nginx"] }

[[step]]
name = "front page"
run = "curl --fail --silent --show-error http://127.0.0.1/"
"#;

/// What is written into its fixture before the rollback is there after it.
const DATA: &str = r#"name = "data"
owner = "tests"
summary = "rows that somebody writes outlive the change and its way back"
applies = { packages = ["nginx"] }
fixtures = ["rows"]
redact = ["^password: (\\S+)"]

[[step]]
name = "rows"
run = "cat /srv/rows/all"

[[after-writes]]
name = "write"
run = "echo written >>/srv/rows/all; echo password: hunter2"
"#;

const ROWS: &str = r#"summary = "a folder with a row"

[[set-up]]
name = "make"
run = "mkdir /srv/rows && echo first >/srv/rows/all"

[[tear-down]]
name = "take away"
run = "rm -r /srv/rows"
"#;

/// Writes an order whose rollback does `more`, and drafts it; the path of the draft.
fn drafted(patchlab: &Patchlab, dir: &Path, id: &str, more: &str) -> String {
    let put = |name: &str, text: &str| file(dir, &format!("{id}/{name}"), text);
    put("change.conf", SNIPPET);
    put(
        "apply",
        &format!(
            "#!/bin/sh\nset -e\ncp change.conf {AT}.new\nmv {AT}.new {AT}\nnginx -t\nsystemctl reload nginx\n\
             touch /etc/nginx/ran-$(find /etc/nginx -maxdepth 1 -name 'ran-*' | wc -l)\n"
        ),
    );
    put(
        "rollback",
        &format!("#!/bin/sh\nset -e\nrm -f {AT} {AT}.new /etc/nginx/ran-*\nsystemctl reload nginx\n{more}\n"),
    );
    put("verify", &format!("#!/bin/sh\n[ -e {AT} ] || exit 10\ncmp change.conf {AT} && exit 0\nexit 3\n"));
    let written = format!(
        "id = \"{id}\"\ntitle = \"a header\"\nseverity = \"low\"\n\n[[change]]\n\
         on = {{ family = \"debian\", release = \"12\" }}\n\n[change.script]\n\
         apply = \"./apply\"\nrollback = \"./rollback\"\nverify = \"./verify\"\nfiles = [\"./change.conf\"]\n"
    );
    let written = put("written.toml", &written);
    let order = dir.join(id).join("order.toml").display().to_string();
    let ended = patchlab.run(&["order", "draft", "--from", &written, "--out", &order, "--json", "-"]);
    let document = json(&ended);
    assert_eq!(document["order"]["script"]["files"][0]["name"], "change.conf", "{document:#}");
    order
}

fn validated(patchlab: &Patchlab, dir: &Path, order: &str) -> BaselineReport {
    file(dir, "scenarios/front/scenario.toml", SCENARIO);
    file(dir, "scenarios/data/scenario.toml", DATA);
    file(dir, "scenarios/fixtures/rows/fixture.toml", ROWS);
    let scenarios = dir.join("scenarios").display().to_string();
    let (baseline, verdict) = (patchlab.baseline(), format!("{order}.verdict.json"));
    let arguments: &[&str] =
        &["lab", "validate", "--order", order, "--baseline", &baseline, "--scenarios", &scenarios, "--json", &verdict];
    let ended = patchlab.run(arguments);
    let report = Report::from_json(&fs::read(&verdict).expect(&ended.err)).expect("a verdict");
    report.baselines.into_iter().next().expect("a baseline")
}

#[test]
fn a_change_by_script_is_proven_with_its_way_back_and_one_that_leaves_something_behind_is_rejected() {
    if let Some(why) = obstacle(&[Need::Program, Need::Lab, Need::Agent, Need::Time, Need::Stored]) {
        eprintln!("SKIP a_change_by_script_is_proven: {why}");
        return;
    }
    let dir = folder();
    let patchlab = Patchlab::on_a_copy(dir.path());
    let good = validated(&patchlab, dir.path(), &drafted(&patchlab, dir.path(), "PO-HEADER-1", ":"));
    assert_eq!(good.verdict, Judgement::Passed, "{}", good.reason);
    assert_eq!(good.rollback.class, Some(RollbackClass::ProvenAfterWrites), "{:?}", good.rollback);
    let rows = |phase| {
        let ran = good.scenarios.iter().find(|ran| ran.name == "data" && ran.phase == phase).expect("it ran");
        let step = ran.steps.iter().find(|step| step.name == "rows").expect("a step");
        [&step.control, &step.patched].map(|side| side.as_ref().expect("an outcome").output.clone())
    };
    assert_eq!(rows(Phase::Applied), ["first", "first"]);
    assert_eq!(rows(Phase::RolledBack), ["first\nwritten", "first\nwritten"]);
    let told = serde_json::to_string(&good.scenarios).expect("JSON");
    assert!(told.contains("password: [redacted]") && !told.contains("hunter2"), "{told}");
    assert_eq!(good.transaction, ["install PO-HEADER-1 script - -> applied"]);
    let changed = serde_json::to_string(&good.diff).expect("JSON");
    assert!(changed.contains(AT), "the state diff does not name {AT}: {changed}");
    assert!(changed.contains("/etc/nginx/ran-1"), "apply was not run a second time: {changed}");

    let left = "/etc/nginx/conf.d/forgotten.conf";
    let bad = validated(&patchlab, dir.path(), &drafted(&patchlab, dir.path(), "PO-HEADER-2", &format!(": > {left}")));
    assert_eq!(bad.verdict, Judgement::Rejected, "{}", bad.reason);
    assert_eq!(bad.rollback.status, RollbackStatus::Failed, "{:?}", bad.rollback);
    assert!(bad.reason.contains(left) || format!("{:?}", bad.rollback).contains(left), "{}", bad.reason);
}
