//! A baseline that ages by an order: validated there, released, and made its successor, on which machines go on.

use std::path::Path;

use patchlab_check::Digest;
use patchlab_lab::{
    Places,
    baseline::{Baseline, Baselines},
};

use crate::program::{Patchlab, json, said};

/// Validates a written order on the newest baseline of that name, releases it by a new key, makes the baseline's successor by it, and runs a
/// scenario on a clone of that. The successor, and the digest of what it succeeds.
///
/// # Panics
/// One of them fails.
pub fn succeed(patchlab: &Patchlab, baseline: &str, order: &str, scenario: &Path, dir: &Path) -> (Baseline, Digest) {
    let newest = || Baselines::open(&Places::of_data(&patchlab.data)).get(baseline).expect("a baseline");
    let parent = newest();
    let key = dir.join("successor.pem").display().to_string();
    said(&patchlab.run(&["key", "generate", "--role", "releaser", "--out", &key]), 0, &[]);
    let scenarios = scenario.parent().expect("a folder of scenarios").display().to_string();
    let validate = ["lab", "validate", "--order", order, "--baseline", baseline, "--scenarios", &scenarios];
    said(&patchlab.run(&[&validate[..], &["--sign-key", &key]].concat()), 0, &[]);
    let trusted = format!("{key}.pub");
    let words = ["baseline", "successor", baseline, "--order", order, "--trust", &trusted];
    said(&patchlab.run(&words), 0, &[]);
    let successor = newest();
    assert_eq!(successor.record.parent, Some(parent.digest));
    let scenario = scenario.display().to_string();
    let ran = json(&patchlab.run(&["scenario", "run", &scenario, "--baseline", baseline, "--json", "-"]));
    assert_eq!(ran["clone"]["rung"], "template-clone", "{ran}");
    (successor, parent.digest)
}
