//! Every kind of step, and everything else a scenario may say, in a validation on real machines.
//!
//! Needs a data folder with a baseline and an order that passes, as the demonstration leaves them: `PATCHLAB_TEST_BASELINES` names
//! it, and a copy of it is used. Skips aloud where there is none.

use std::fs;

use patchlab_lab::report::{Report, ScenarioReport};
use patchlab_tests::program::{Need, Patchlab, folder, obstacle, source};

/// The scenario's own steps, its fixture's, and its check.
const STEPS: usize = 16 + 2 + 1;

#[test]
fn every_kind_of_step_holds_on_real_machines() {
    let test = "every_kind_of_step_holds_on_real_machines";
    // Two reboots of two machines in each of two phases: five minutes under emulation.
    if let Some(why) = obstacle(&[Need::Program, Need::Lab, Need::Agent, Need::Soak, Need::Stored]) {
        eprintln!("SKIP {test}: {why}");
        return;
    }
    let dir = folder();
    let patchlab = Patchlab::on_a_copy(dir.path());
    let order = patchlab.data.join("orders/good/order.toml").display().to_string();
    let scenarios = source().join("tests/scenarios").display().to_string();
    let verdict = dir.path().join("verdict.json");
    let verdict = verdict.display().to_string();
    let ended = patchlab.run(&["lab", "validate", "--order", &order, "--scenarios", &scenarios, "--json", &verdict]);
    assert_eq!(ended.code, Some(0), "{}{}", ended.out, ended.err);
    let report = Report::from_json(&fs::read(&verdict).expect("a verdict")).expect("a verdict");
    for baseline in &report.baselines {
        let of =
            |name: &str| -> Vec<&ScenarioReport> { baseline.scenarios.iter().filter(|ran| ran.name == name).collect() };
        // After the patch and after the rollback, at least.
        let all = [("every-kind", STEPS), ("pages[host=127.0.0.1]", 1), ("pages[host=localhost]", 1), ("together", 9)];
        for (name, steps) in all {
            let runs = of(name);
            assert!(runs.len() >= 2, "{name} ran {} times", runs.len());
            for ran in runs {
                assert_eq!((ran.verdict.name(), ran.steps.len()), ("pass", steps), "{ran:?}");
            }
        }
        of("every-kind").into_iter().for_each(everything_was_done);
        let quarantined = of("quarantined");
        assert_eq!(quarantined.first().map(|ran| ran.verdict.name()), Some("regression"), "{quarantined:?}");
        assert_eq!(baseline.quarantined.first().map(|it| it.ticket.as_str()), Some("the tests"));
        let skipped = baseline.skipped.first().expect("a skipped scenario");
        assert_eq!(skipped.name, "elsewhere");
        assert!(skipped.reason.contains("network-outside"), "{skipped:?}");
    }
    assert!(ended.err.contains("quarantined is in quarantine until 2126-12-31"), "{}", ended.err);
    assert!(ended.err.contains("elsewhere is skipped: it requires \"network-outside\""), "{}", ended.err);
}

/// What the steps that do something say that they did, on both clones.
fn everything_was_done(ran: &ScenarioReport) {
    for (step, said) in [
        ("site", "bytes, mode 600, to /etc/nginx/conf.d/every-kind.conf.in"),
        ("serve it", "secret=[redacted]"),
        ("again after a reboot", "back after "),
        ("the log", "kept as every-kind_"),
    ] {
        let found = ran.steps.iter().find(|found| found.name == step).unwrap_or_else(|| panic!("no step {step}"));
        for outcome in [&found.control, &found.patched] {
            let output = outcome.as_ref().map(|outcome| outcome.output.as_str()).unwrap_or_default();
            assert!(output.contains(said), "{step}: {output:?}");
        }
    }
}
