//! A patch whose machine does not come back from the reboot that it asks for: the control does, so it is the patch, and the lab says so
//! only when it has not come back from another start either. Skips aloud what this machine cannot run.

use std::fs;

use patchlab_lab::{
    Places,
    baseline::Baselines,
    report::{Report, RollbackStatus},
    verdict::{Judgement, Verdict},
};
use patchlab_tests::{
    package,
    program::{Need, Patchlab, folder, obstacle},
};

/// Asks for a reboot, and has the bootloader start a first process that ends at once.
const POSTINST: &str = r#"#!/bin/sh
set -e
[ "$1" = configure ] || exit 0
sed -i 's|^linux .*|& init=/bin/false|' /boot/grub/grub.cfg
touch /run/reboot-required
"#;

const SCENARIO: &str = "name = \"alive\"\nowner = \"tests\"\nsummary = \"it answers\"\n\n\
    [[step]]\nname = \"it answers\"\nrun = \"true\"\n";

#[test]
fn a_machine_that_does_not_come_back_is_a_regression() {
    if let Some(why) = obstacle(&[Need::Program, Need::Lab, Need::Agent, Need::Time, Need::Stored]) {
        eprintln!("SKIP a_machine_that_does_not_come_back_is_a_regression: {why}");
        return;
    }
    let dir = folder();
    let patchlab = Patchlab::on_a_copy(dir.path());
    let package = package::build("unbootable", &[("DEBIAN/postinst", POSTINST, 0o755)], dir.path());
    let order = dir.path().join("order.toml");
    fs::write(&order, package::order("PO-UNRETURNED-1", "unbootable", &package)).expect("an order");
    let scenarios = dir.path().join("scenarios");
    fs::create_dir_all(scenarios.join("alive")).expect("a folder");
    fs::write(scenarios.join("alive/scenario.toml"), SCENARIO).expect("a scenario");
    let verdict = dir.path().join("verdict.json");
    let [order, scenarios, json] = [&order, &scenarios, &verdict].map(|path| path.display().to_string());
    let baselines = Baselines::open(&Places::of_data(&patchlab.data)).list().expect("baselines");
    let name = baselines.first().expect("a baseline").full_name();
    let inputs = ["--order", &order, "--baseline", &name, "--scenarios", &scenarios];
    let ended = patchlab.run(&[&["lab", "validate", "--json", &json], &inputs[..]].concat());
    assert_eq!(ended.code, Some(1), "{}{}", ended.out, ended.err);
    let report = Report::from_json(&fs::read(&verdict).expect("a verdict")).expect("a verdict");
    let baseline = report.baselines.first().expect("a baseline");
    assert_eq!(baseline.verdict, Judgement::Rejected, "{}", baseline.reason);
    let reason = &baseline.reason;
    for part in ["panic", "nor when its power was cycled, and the control comes back"] {
        assert!(reason.contains(part), "{part:?} is not in {reason:?}");
    }
    assert_eq!(baseline.rollback.status, RollbackStatus::Skipped);
    assert!(baseline.scenarios.iter().any(|ran| ran.name == "alive" && ran.verdict == Verdict::Pass), "{baseline:?}");
}
