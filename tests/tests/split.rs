//! An order of two packages of which one breaks something: split by further validations, into what breaks it and what could ship, which is
//! offered as an order of its own. On real clones; skips aloud what this machine cannot run.

use std::fs;

use patchlab_lab::{report::Report, verdict::Judgement};
use patchlab_tests::{
    package,
    program::{Ended, Need, Patchlab, file, folder, obstacle},
};

const SCENARIO: &str = r#"name = "sound"
owner = "tests"
summary = "nobody left a broken file"
applies = { packages = ["fine", "rotten", "dpkg"] }

[[step]]
name = "sound"
run = "test ! -e /etc/rotten"
"#;

/// Long enough for nothing to fit behind it.
const ID: &str = "PO-TWO-012345678901234567890123456789012345678901234567890123456";

#[test]
fn what_breaks_an_order_is_found_and_what_passes_is_offered() {
    let needs = [Need::Program, Need::Lab, Need::Agent, Need::Time, Need::Stored];
    if let Some(why) = obstacle(&needs) {
        eprintln!("SKIP what_breaks_an_order_is_found_and_what_passes_is_offered: {why}");
        return;
    }
    let dir = folder();
    let dir = dir.path();
    let patchlab = Patchlab::on_a_copy(dir);
    file(dir, "scenarios/sound/scenario.toml", SCENARIO);
    let packages =
        ["fine", "rotten"].map(|name| (name, package::build(name, &[(&format!("etc/{name}"), "1\n", 0o644)], dir)));
    let order =
        file(dir, "two.toml", &package::order_of(ID, &packages.each_ref().map(|(name, path)| (*name, path.as_path()))));
    let validate = |order: &str| -> (Option<Report>, Ended) {
        let verdict = dir.join("verdict.json");
        let [scenarios, out] = [&dir.join("scenarios"), &verdict].map(|path| path.display().to_string());
        let baseline = patchlab.baseline();
        let asked =
            ["lab", "validate", "--order", order, "--baseline", &baseline, "--scenarios", &scenarios, "--json", &out];
        let ended = patchlab.command(&asked).current_dir(dir).output().expect("patchlab starts").into();
        (fs::read(&verdict).ok().map(|json| Report::from_json(&json).expect("a verdict")), ended)
    };

    let (report, ended) = validate(&order);
    let report = report.unwrap_or_else(|| panic!("no verdict: {}{}", ended.out, ended.err));
    assert_eq!((report.verdict, ended.code), (Judgement::Rejected, Some(1)), "{}{}", ended.out, ended.err);
    let found = report.bisection.expect("it was split");
    let breaking: Vec<_> = found.breaking.iter().map(|set| (set.packages.clone(), set.with.clone())).collect();
    assert_eq!(breaking, [(vec!["rotten".to_owned()], Vec::new())], "{}{}", ended.out, ended.err);
    assert_eq!((found.passing.as_slice(), found.limited), (&["fine".to_owned()][..], false));

    let offered = dir.join("two.passing.toml");
    let text = fs::read_to_string(&offered).expect("an order is offered");
    assert!(text.contains("fine") && !text.contains("rotten") && text.contains("-passing\""), "{text}");
    let (report, ended) = validate(&offered.display().to_string());
    let report = report.unwrap_or_else(|| panic!("no verdict: {}{}", ended.out, ended.err));
    assert_eq!((report.verdict, ended.code), (Judgement::Passed, Some(0)), "{}{}", ended.out, ended.err);
}
