//! A patch whose machine does not come back from the reboot that it asks for: the control does, so it is the patch, and the lab says so
//! only when it has not come back from another start either. Skips aloud what this machine cannot run.

use std::fs;

use patchlab_lab::{
    report::{Report, RollbackStatus},
    verdict::{Judgement, Verdict},
};
use patchlab_tests::{
    program::{Need, Patchlab, folder, obstacle},
    trial::Trial,
};

/// Asks for a reboot, and has the bootloader start a first process that ends at once.
const POSTINST: &str = r#"#!/bin/sh
set -e
[ "$1" = configure ] || exit 0
sed -i 's|^[[:space:]]*linux[[:space:]].*|& init=/bin/false|' /boot/grub/grub.cfg
grep -q 'init=/bin/false' /boot/grub/grub.cfg
touch /run/reboot-required
"#;

#[test]
fn a_machine_that_does_not_come_back_is_a_regression() {
    if let Some(why) = obstacle(&[Need::Program, Need::Lab, Need::Agent, Need::Time, Need::Stored]) {
        eprintln!("SKIP a_machine_that_does_not_come_back_is_a_regression: {why}");
        return;
    }
    let dir = folder();
    let patchlab = Patchlab::on_a_copy(dir.path());
    let trial = Trial::new("unbootable", &[("DEBIAN/postinst", POSTINST, 0o755)], "true", dir.path());
    let verdict = dir.path().join("verdict.json");
    let json = ["--json".to_owned(), verdict.display().to_string()];
    let arguments = [trial.arguments(&patchlab), json.to_vec()].concat();
    let ended = patchlab.run(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
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
