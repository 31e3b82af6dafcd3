//! What is done with a run that failed: `lab shell` of clones that were not kept, which are fresh ones right before the step that failed, and
//! at a terminal a shell with one of its own; their consoles and pictures; and a retry.
//!
//! Skips aloud what this machine cannot run.

use patchlab_tests::{
    package,
    program::{Need, Patchlab, file, folder, json, obstacle},
};

const SCENARIO: &str = r#"name = "story"
owner = "tests"
summary = "steps that leave traces"
applies = { packages = ["harmful", "dpkg"] }
fixtures = ["stage"]

[[step]]
name = "first"
run = "touch /var/tmp/first"

[[step]]
name = "no harm"
run = "test ! -e /etc/harm && test ! -e /var/tmp/tried || { touch /var/tmp/tried; exit 1; }"

[[step]]
name = "last"
run = "touch /var/tmp/last"
"#;

const FIXTURE: &str = r#"summary = "a stage"

[[set-up]]
name = "stage is set"
run = "touch /var/tmp/stage"

[[tear-down]]
name = "stage is cleared"
run = "rm /var/tmp/stage"
"#;

#[test]
fn the_moment_before_the_failing_step_can_be_looked_into() {
    let test = "the_moment_before_the_failing_step_can_be_looked_into";
    if let Some(why) = obstacle(&[Need::Program, Need::Lab, Need::Agent, Need::Time, Need::Stored]) {
        eprintln!("SKIP {test}: {why}");
        return;
    }
    let dir = folder();
    let patchlab = Patchlab::on_a_copy(dir.path());
    let baseline = patchlab.baseline();
    let file = |name: &str, text: &str| file(dir.path(), name, text);
    let package = package::build("harmful", &[("etc/harm", "harm\n", 0o644)], dir.path());
    let order = file("order.toml", &package::order("PO-HARM-1", "harmful", &package));
    file("scenarios/story/scenario.toml", SCENARIO);
    file("scenarios/fixtures/stage/fixture.toml", FIXTURE);
    let scenarios = dir.path().join("scenarios").display().to_string();
    let ended =
        patchlab.run(&["lab", "validate", "--order", &order, "--baseline", &baseline, "--scenarios", &scenarios]);
    assert_eq!(ended.code, Some(1), "{}{}", ended.out, ended.err);
    assert!(ended.err.contains("story/no harm"), "{}", ended.err);
    let run = json(&patchlab.run(&["lab", "show", "last", "--json", "-"]))["record"]["id"].clone();
    let run = run.as_str().expect("an id");

    let traces = "cd /var/tmp && ls -d stage first tried last /etc/harm 2>/dev/null; true";
    let look = |which: &str| patchlab.run(&["lab", "shell", run, "--clone", which, "--", "sh", "-c", traces]);
    let patched = look("patched");
    assert_eq!(patched.code, Some(0), "{}{}", patched.out, patched.err);
    assert_eq!(patched.out, "/etc/harm\nfirst\nstage\n", "{}", patched.err);
    assert!(patched.err.contains("before story/no harm after the patch"), "{}", patched.err);
    // The moment is kept: nothing is done again for a second look.
    let count = || json(&patchlab.run(&["lab", "runs", "--json", "-"])).as_array().map(Vec::len);
    assert_eq!(count(), Some(2));
    let control = look("control");
    assert_eq!((control.out.as_str(), count()), ("first\nstage\n", Some(2)), "{}", control.err);
    // At a terminal it is a shell, which has a place and a size.
    let typed = "cd /var/tmp\nls -d first; pwd\nstty size\ntest -t 0 && exit 7\n";
    let sat = patchlab.at_a_terminal(&["lab", "shell", run], (31, 97), typed);
    assert_eq!(sat.code, Some(7), "{}{}", sat.out, sat.err);
    for line in ["first", "/var/tmp", "31 97"] {
        assert!(sat.out.lines().any(|said| said.trim_end() == line), "{line:?} is not in {}", sat.out);
    }
    let left = patchlab.at_a_terminal(&["lab", "shell", run], (24, 80), "sleep 1d\n\x1d");
    assert_eq!(left.code, Some(130), "{}{}", left.out, left.err);
    assert_eq!(count(), Some(2));
    // It is no verdict, and says so.
    let again = json(&patchlab.run(&["lab", "show", "last", "--json", "-"]));
    assert_eq!(again["report"]["verdict"], "missing", "{:#}", again["report"]["reason"]);
    assert_eq!(again["record"]["retry_of"], run);
    drop(again);

    let kept = || json(&patchlab.run(&["lab", "kept", "--json", "-"]));
    let name = kept()[0]["name"].as_str().expect("a name").to_owned();
    for which in ["patched", "control"] {
        let console = json(&patchlab.run(&["lab", "console", &name, "--clone", which, "--json", "-"]));
        assert_eq!((console["kept"].as_str(), console["clone"].as_str()), (Some(name.as_str()), Some(which)));
    }
    let picture =
        patchlab.run(&["lab", "screenshot", &name, "--out", &dir.path().join("screen.png").to_string_lossy()]);
    assert!(picture.code == Some(4) && picture.err.contains("screen"), "{}{}", picture.out, picture.err);
    let removed = patchlab.run(&["lab", "rm", &name]);
    assert_eq!((removed.code, removed.out.trim()), (Some(0), format!("{name}\tremoved").as_str()), "{}", removed.err);
    assert_eq!(kept(), serde_json::json!([]));

    // A retry of what fails says so again and keeps both clones; of a part that holds, it keeps nothing and is no verdict.
    let retry = |step: &str| {
        patchlab.run(&["lab", "retry", run, "--scenario", "story", "--step", step, "--keep", "on-failure"])
    };
    if obstacle(&[Need::Soak]).is_none() {
        let holds = retry("first");
        assert_eq!(holds.code, Some(2), "{}{}", holds.out, holds.err);
        assert_eq!(kept(), serde_json::json!([]));
    }
    let fails = retry("no harm");
    assert!(fails.code == Some(1) && fails.err.contains("story/no harm"), "{}{}", fails.out, fails.err);
    let all = kept();
    assert_eq!((all.as_array().map(Vec::len), all[0]["verdict"].as_str()), (Some(1), Some("rejected")), "{all:#}");
    let found = patchlab.run(&["lab", "gc", "--dry-run"]);
    assert_eq!(found.out.trim(), "nothing to collect", "{}", found.err);
}
