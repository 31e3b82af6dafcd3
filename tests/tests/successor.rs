//! A real baseline's successor by a real order: refused without a release of that very order on that very baseline, then made, and whole.
//!
//! Skips aloud where it cannot run: without root, without the lab's packages, or where `PATCHLAB_TEST_BASELINES` names no data
//! folder with a baseline.

use std::{fs, path::Path};

use patchlab::{order::compile_file, trust::release::release};
use patchlab_lab::{
    Places,
    artifact::ArtifactStore,
    baseline::{Baseline, Baselines},
    report::Report,
};
use patchlab_protocol::{Envelope, SigningKey};
use patchlab_tests::program::{Need, Patchlab, folder, json, obstacle, said};

fn newest(patchlab: &Patchlab) -> Baseline {
    Baselines::open(&Places::of_data(&patchlab.data)).list().expect("baselines").pop().expect("a baseline")
}

/// Signs what the demonstration's validation of the order found, as `lab validate --sign-key` does.
fn released(patchlab: &Patchlab, folder: &Path, change: impl FnOnce(&mut Report)) {
    let artifacts = ArtifactStore::open(patchlab.data.join("artifacts")).expect("a store");
    let order = compile_file(&folder.join("order.toml"), &artifacts).expect("an order");
    let verdict = fs::read(folder.join("verdict.json")).expect("a verdict");
    let mut report: Report = serde_json::from_slice(&verdict).expect("a report");
    change(&mut report);
    let key = SigningKey::read(&patchlab.data.join("keys/releaser.pem")).expect("the releaser's key");
    let signed = Envelope::sign(release(&report, &order, jiff::Timestamp::now()), &key);
    fs::write(folder.join("order.release.json"), signed.to_bytes()).expect("written");
}

#[test]
fn a_released_order_makes_a_baselines_successor() {
    let needs = [Need::Program, Need::Agent, Need::Lab, Need::Time, Need::Stored];
    if let Some(why) = obstacle(&needs) {
        eprintln!("SKIP a_released_order_makes_a_baselines_successor: {why}");
        return;
    }
    let dir = folder();
    let patchlab = Patchlab::on_a_copy(dir.path());
    let parent = newest(&patchlab);
    let (old, good) = (parent.full_name(), patchlab.data.join("orders/good"));
    let order = good.join("order.toml").display().to_string();
    let key = patchlab.data.join("keys/releaser.pem.pub").display().to_string();
    let make = |trust: &[&str]| {
        let words = ["baseline", "successor", &parent.record.name, "--order", &order, "--json", "-"];
        patchlab.run(&[&words, trust].concat())
    };

    said(&make(&["--trust", &key]), 65, &["order.release.json", "lab validate --sign-key"]);
    released(&patchlab, &good, |report| report.baselines[0].digest = patchlab_check::Digest::of("another"));
    said(&make(&["--trust", &key]), 5, &["not on", &old, "validate it there first"]);
    released(&patchlab, &good, |_| {});
    said(&make(&[]), 5, &["no releaser that is trusted here signed the release", "--trust KEY.pub"]);
    assert_eq!(newest(&patchlab).digest, parent.digest, "nothing was made");

    let made = json(&make(&["--trust", &key]));
    let successor = newest(&patchlab);
    let new = successor.full_name();
    assert_eq!(made["digest"], successor.digest.to_string());
    assert_eq!((successor.record.number, successor.record.parent), (parent.record.number + 1, Some(parent.digest)));
    assert!(successor.record.order.is_some() && successor.record.verified.is_some());
    println!("{new} made in {} ms", made["ms"]);

    // The order's packages and nothing of the agent's; its pool is whole, and known to the store.
    let found = json(&patchlab.run(&["baseline", "diff", &old, &new, "--json", "-"]))["diff"].clone();
    let artifacts = ArtifactStore::open(patchlab.data.join("artifacts")).expect("a store");
    let install = compile_file(Path::new(&order), &artifacts).expect("an order").install;
    let versions = |baseline: &Baseline| -> Vec<(String, String)> {
        baseline.record.pool.iter().map(|file| (file.name.clone(), file.version.clone())).collect()
    };
    for file in &install {
        let version = (file.name.clone(), file.version.clone());
        assert!(versions(&successor).contains(&version) && !versions(&parent).contains(&version), "{version:?}");
        assert!(found["packages"].to_string().contains(&file.version), "{found}");
    }
    assert_eq!(parent.record.pool.len(), successor.record.pool.len());
    assert!(successor.record.pool.iter().all(|file| artifacts.has(&file.sha256)));
    let text = found.to_string();
    assert!(!text.contains("patchlab"), "the agent left something: {text}");
    said(&patchlab.run(&["baseline", "verify", &new]), 0, &[]);
    let shown = patchlab.run(&["baseline", "show", &new]).out;
    assert!(shown.contains(&format!("of {} by order", parent.digest.short())), "{shown}");

    // The same again is the same; and its clones go on from its memory.
    let again = patchlab.run(&["baseline", "successor", &old, "--order", &order, "--trust", &key]);
    assert!(again.out.contains("made before") && again.out.contains(&new), "{} {}", again.out, again.err);
    let ran = json(&patchlab.run(&["scenario", "run", "scenarios/web-smoke", "--baseline", &new, "--json", "-"]));
    assert_eq!(ran["clone"]["rung"], "template-clone");
    assert_eq!(patchlab.run(&["lab", "gc", "--dry-run"]).out.trim(), "nothing to collect");
}
