//! A real baseline on a copy of its store: sent to another data folder and refused where it must be, frozen again for this host, pruned.
//!
//! Skips aloud where it cannot run: without root, without the lab's packages, or where `PATCHLAB_TEST_BASELINES` names no data
//! folder with a baseline.

use std::{fs, path::Path};

use patchlab_check::Digest;
use patchlab_lab::{
    Places,
    artifact::ArtifactStore,
    baseline::{Baseline, Baselines},
};
use patchlab_tests::program::{Need, Patchlab, folder, json, obstacle, said};
use serde_json::Value;

/// On a copy of the baselines; `None`, aloud, where there are none or a need is not met.
fn copied(test: &str, needs: &[Need], dir: &Path) -> Option<Patchlab> {
    if let Some(why) = obstacle(&[needs, &[Need::Stored]].concat()) {
        eprintln!("SKIP {test}: {why}");
        return None;
    }
    Some(Patchlab::on_a_copy(dir))
}

fn baselines(patchlab: &Patchlab) -> Vec<Baseline> {
    Baselines::open(&Places::of_data(&patchlab.data)).list().expect("baselines")
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}

#[test]
fn a_real_baseline_goes_to_another_host_as_one_signed_file() {
    let dir = folder();
    let needs = [Need::Program, Need::Time];
    let Some(here) = copied("a_real_baseline_goes_to_another_host", &needs, dir.path()) else { return };
    let there = Patchlab { data: dir.path().join("there") };
    let sent = baselines(&here).pop().expect("a baseline");
    let name = sent.full_name();
    let [parcel, key, other] = ["web.baseline", "keeper.pem", "other.pem"].map(|name| shown(&dir.path().join(name)));
    for key in [&key, &other] {
        said(&here.run(&["key", "generate", "--role", "keeper", "--out", key]), 0, &[]);
    }
    let exported = json(&here.run(&["baseline", "export", &name, "--out", &parcel, "--sign-key", &key, "--json", "-"]));
    assert_eq!(exported["digest"], sent.digest.to_string());
    let size = fs::metadata(&parcel).expect("the file").len();
    println!("{name} is {} MiB as one file", size >> 20);
    said(&here.run(&["baseline", "export", &name, "--out", &parcel, "--sign-key", &key]), 65, &["is there already"]);

    let import = |file: &str, trust: &[&str]| {
        let trust = trust.iter().flat_map(|key| ["--trust".to_owned(), format!("{key}.pub")]);
        let words: Vec<String> = ["baseline", "import", file].map(str::to_owned).into_iter().chain(trust).collect();
        let words: Vec<&str> = words.iter().map(String::as_str).chain(["--json", "-"]).collect();
        there.run(&words)
    };
    said(&import(&parcel, &[]), 5, &["no key is trusted here", "--trust KEY.pub"]);
    said(&import(&parcel, &[&other]), 5, &["it is signed by", "only", "is trusted here"]);
    let bytes = fs::read(&parcel).expect("the file");
    let broken = shown(&dir.path().join("broken.baseline"));
    fs::write(&broken, &bytes[..bytes.len() / 2]).expect("a file");
    said(&import(&broken, &[&key]), 65, &["is cut short", "fetch it again"]);
    let mut altered = bytes;
    let middle = altered.len() / 2;
    altered[middle] ^= 1;
    fs::write(&broken, &altered).expect("a file");
    drop(altered);
    said(&import(&broken, &[&key]), 65, &["altered"]);
    assert!(baselines(&there).is_empty());
    assert_eq!(there.run(&["lab", "gc", "--dry-run"]).out.trim(), "nothing to collect");

    let imported = json(&import(&parcel, &[&other, &key]));
    assert_eq!((&imported["new"], &imported["digest"]), (&Value::Bool(true), &sent.digest.to_string().into()));
    said(&there.run(&["baseline", "verify", &name]), 0, &[]);
    assert_eq!(json(&import(&parcel, &[&key]))["new"], false);
    let pool = ArtifactStore::open(there.data.join("artifacts")).expect("a store");
    assert!(!sent.record.pool.is_empty() && sent.record.pool.iter().all(|file| pool.has(&file.sha256)));
}

/// Lets the record of the first baseline say that another QEMU froze it, as after an upgrade of this host's. Its full name.
fn frozen_elsewhere(patchlab: &Patchlab) -> String {
    let store = patchlab.data.join("baselines");
    let old = baselines(patchlab).remove(0);
    let mut record: Value =
        serde_json::from_slice(&fs::read(old.file("baseline.json")).expect("a record")).expect("JSON");
    record["frozen"]["versions"]["qemu"] = "1.2.3".into();
    let text = serde_json::to_vec_pretty(&record).expect("JSON");
    let digest = Digest::of(&text);
    fs::write(old.file("baseline.json"), &text).expect("written");
    fs::rename(&old.folder, store.join(digest.to_string())).expect("renamed");
    fs::write(store.join("names"), format!("{} {digest}\n", old.full_name())).expect("written");
    old.full_name()
}

#[test]
fn a_baseline_of_another_qemu_is_frozen_again_and_proven() {
    let dir = folder();
    let needs = [Need::Program, Need::Lab, Need::Time];
    let test = "a_baseline_of_another_qemu_is_frozen_again_and_proven";
    let Some(patchlab) = copied(test, &needs, dir.path()) else { return };
    let old = frozen_elsewhere(&patchlab);
    let about = patchlab.run(&["baseline", "show", &old]);
    assert!(about.out.contains("it was frozen under QEMU 1.2.3"), "{}", about.out);
    let (name, _) = old.split_once('@').expect("a full name");

    let refrozen = patchlab.run(&["baseline", "refreeze", name, "--json", "-"]);
    said(&refrozen, 0, &["freezing", &old, "again by a cold boot of its disk", "it was frozen under QEMU 1.2.3"]);
    assert_eq!(json(&refrozen)["refrozen"], true);
    let mut all = baselines(&patchlab);
    let (new, parent) = (all.pop().expect("the new one"), all.pop().expect("the old one"));
    assert_eq!((parent.full_name().as_str(), new.record.parent), (old.as_str(), Some(parent.digest)));
    assert_eq!((new.record.pool.as_slice(), new.unfit_here()), (parent.record.pool.as_slice(), None));
    let verified = new.record.verified.as_ref().expect("what was shown");
    println!("proven in {} ms: {verified:?}", verified.ms);
    assert_eq!(verified.siblings.len(), 2);
    assert!(verified.siblings.iter().all(|clone| clone.counter >= verified.counter && clone.later > clone.counter));
    said(&patchlab.run(&["baseline", "verify", name]), 0, &[]);
    let again = patchlab.run(&["baseline", "refreeze", name]);
    assert!(again.out.contains("fits this host"), "{}", again.out);

    // A clone goes on from the new memory, sees nothing of the proof (what runs the step is perl, too), and keeps its baseline from being
    // taken away.
    let scenario = dir.path().join("trace");
    fs::create_dir(&scenario).expect("a folder");
    let text = "name = \"trace\"\nowner = \"qa\"\nsummary = \"nothing is left of the proof\"\n[[step]]\nname = \"trace\"\n\
                run = 'test ! -e /run/patchlab-freeze && test \"$(pgrep -x perl)\" = \"$PPID\"'\n";
    fs::write(scenario.join("scenario.toml"), text).expect("a scenario");
    let ran = json(&patchlab.run(&["scenario", "run", &shown(&scenario), "--baseline", name, "--json", "-"]));
    assert_eq!(
        (&ran["clone"]["rung"], &ran["runs"][0]["steps"][0]["outcome"]["status"]),
        (&"template-clone".into(), &"pass".into())
    );

    let pruned = json(&patchlab.run(&["baseline", "prune", "--keep", "1", "--dry-run", "--json", "-"]));
    assert_eq!(pruned["pruning"]["baselines"][0]["why"], format!("{} was made from it", new.full_name()));
    said(&patchlab.run(&["baseline", "rm", &parent.full_name()]), 0, &[]);
    said(&patchlab.run(&["baseline", "verify", name]), 0, &[]);
    assert_eq!(patchlab.run(&["lab", "gc", "--dry-run"]).out.trim(), "nothing to collect");
}
