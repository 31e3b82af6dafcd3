//! Validations killed in the middle, on real machines: whatever was killed, nothing is left and nobody is hindered, and a worker that is
//! killed never blames the patch.
//!
//! Skips aloud where it cannot run: without root, without the lab's packages, or where `PATCHLAB_TEST_BASELINES` names no data
//! folder with a baseline.

use patchlab_tests::{
    killed::{APPLY, CLONE, COMPARE, Moment, PREPARE, REBOOT, ROLLBACK, SAVE, SCENARIOS, Victim},
    program::{Need, Patchlab, folder, obstacle},
    trial::Trial,
};

#[test]
fn a_validation_killed_anywhere_leaves_nothing() {
    if let Some(why) = obstacle(&[Need::Program, Need::Lab, Need::Agent, Need::Time, Need::Stored]) {
        eprintln!("SKIP a_validation_killed_anywhere_leaves_nothing: {why}");
        return;
    }
    let folder = folder();
    let patchlab = Patchlab::on_a_copy(folder.path());
    // Long enough to be interrupted while it runs.
    let trial = Trial::new("harmless", &[], "sleep 5", folder.path());
    let arguments = trial.arguments(&patchlab);
    let mark = folder.path().file_name().expect("a name").to_string_lossy();
    let victim = Victim { patchlab: &patchlab, mark: &mark, validate: &arguments };
    let is_soak = obstacle(&[Need::Soak]).is_none();
    let moments: &[Moment] = match is_soak {
        true => &[CLONE, PREPARE, APPLY, SCENARIOS, ROLLBACK],
        false => &[CLONE, APPLY],
    };
    for moment in moments {
        victim.is_killed_at(*moment);
    }
    victim.is_interrupted_at(SCENARIOS, "-INT");
    victim.loses_every_worker();
    if is_soak {
        victim.is_interrupted_at(CLONE, "-TERM");
        victim.is_interrupted_at(PREPARE, "-HUP");
    }
    // Each of these passes in the end: nothing that was killed hinders anybody.
    let moments: &[Moment] = match is_soak {
        true => &[CLONE, PREPARE, APPLY, SCENARIOS, REBOOT, ROLLBACK, COMPARE, SAVE],
        false => &[ROLLBACK],
    };
    for moment in moments {
        victim.loses_one_worker(*moment);
    }
}
