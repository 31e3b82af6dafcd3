//! `lab shell` of a run whose clones were not kept: fresh ones, right before the step that failed.
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
    // It is no verdict, and says so.
    let again = json(&patchlab.run(&["lab", "show", "last", "--json", "-"]));
    assert_eq!(again["report"]["verdict"], "missing", "{:#}", again["report"]["reason"]);
    assert_eq!(again["record"]["retry_of"], run);
}
