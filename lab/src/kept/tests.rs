use super::*;
use crate::{
    accelerator::Accelerator,
    gc,
    machine::{Hardware, SavedFile, Versions},
    verdict::tests::baseline,
};

fn saved(role: Role) -> SavedClone {
    let hardware = Hardware {
        memory_mib: 1,
        vcpus: 1,
        accelerator: Accelerator::Tcg,
        machine: "pc-q35-10.0".into(),
        screen: None,
    };
    let versions = Versions { qemu: "10.0.2".into(), libvirt: "9.0.0".into() };
    SavedClone { role, saved: Saved { machine: role.name().into(), hardware, versions, host_cpu: "x".into() } }
}

/// A lab, and a folder as its worker leaves it.
fn lab() -> (tempfile::TempDir, Places, KeptClones) {
    let dir = tempfile::tempdir().unwrap();
    let places = Places::of_data(dir.path());
    fs::create_dir_all(&places.work).unwrap();
    let kept = KeptClones::open(&places);
    (dir, places, kept)
}

fn keep(places: &Places, kept: &KeptClones, now: Timestamp) -> Result<Kept, KeptError> {
    let folder = places.work.join("saved");
    let clones: Vec<_> = [Role::Control, Role::Patched].map(saved).into();
    fs::create_dir_all(&folder).unwrap();
    for clone in &clones {
        fs::write(clone.saved.file(&folder, SavedFile::State), "state").unwrap();
    }
    kept.adopt(
        &folder,
        Record::new(("PO-1", Digest::of("order")), &baseline("web@1", Judgement::Rejected, Vec::new()), clones, now),
    )
}

#[test]
fn what_a_policy_wants() {
    let wants = |keep: Keep| Judgement::ALL.map(|verdict| keep.wants(verdict));
    assert_eq!(wants(Keep::Never), [false; 5]);
    assert_eq!(wants(Keep::OnFailure), [false, true, true, true, true]);
    assert_eq!(wants(Keep::Always), [true; 5]);
}

#[test]
fn what_is_kept_is_brought_from_another_disk_and_nothing_that_a_worker_put_beside_it() {
    let (dir, places, _) = lab();
    let clones: Vec<_> = [Role::Control, Role::Patched].map(saved).into();
    let (from, to) = (places.work.join("saved"), dir.path().join("kept"));
    fs::create_dir_all(&from).unwrap();
    for (clone, file) in clones.iter().flat_map(|clone| SavedFile::ALL.map(|file| (clone, file))) {
        fs::write(clone.saved.file(&from, file), "state").unwrap();
    }
    fs::write(from.join("more"), "x").unwrap();
    let secret = dir.path().join("secret");
    fs::write(&secret, "secret").unwrap();
    std::os::unix::fs::symlink(&secret, from.join(TOOLS)).unwrap();
    let report = baseline("web@1", Judgement::Rejected, Vec::new());
    let record = Record::new(("PO-1", Digest::of("order")), &report, clones, Timestamp::now());
    assert!(bring(&from, &record, &to).is_err(), "a link is followed");
    fs::remove_dir_all(&to).unwrap();
    fs::remove_file(from.join(TOOLS)).unwrap();
    fs::write(from.join(TOOLS), "tools").unwrap();
    bring(&from, &record, &to).unwrap();
    let mut names: Vec<_> = fs::read_dir(&to).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    let expected =
        ["control.console", "control.qcow2", "control.state", "patched.console", "patched.qcow2", "patched.state"];
    assert_eq!(names[..6], expected.map(std::ffi::OsString::from));
    assert_eq!((names[6].to_str(), names.len()), (Some(TOOLS), 7));
}

#[test]
fn adopted_clones_are_listed_found_and_removed() {
    let (_dir, places, kept) = lab();
    let now = "2026-01-02T03:04:05Z".parse().unwrap();
    let first = keep(&places, &kept, now).unwrap();
    assert_eq!(first.record.name, "PO-1-web@1-0102-030405");
    assert!(!places.work.join("saved").exists(), "moved, not copied");
    let patched = first.clone_of(Role::Patched).unwrap();
    assert_eq!(fs::read(patched.saved.file(&first.folder, SavedFile::State)).unwrap(), b"state");
    let second = keep(&places, &kept, now).unwrap();
    assert_eq!(second.record.name, "PO-1-web@1-0102-030405-2");
    assert_eq!(kept.list().unwrap(), [first.clone(), second]);
    assert_eq!(kept.get("PO-1-web@1-0102-030405").unwrap(), first, "a whole name before what begins like it");
    let error = kept.get("PO-1").unwrap_err();
    assert!(matches!(&error, KeptError::Ambiguous { alike, .. } if alike.len() == 2), "{error}");
    assert!(error.to_string().contains("PO-1-web@1-0102-030405-2; say one of them whole"), "{error}");
    let error = kept.get("PO-2").unwrap_err();
    assert!(matches!(&error, KeptError::Unknown { known, .. } if known.len() == 2), "{error}");
    assert_eq!(kept.remove("PO-1-web@1-0102-030405-2").unwrap(), "PO-1-web@1-0102-030405-2");
    assert_eq!(kept.get("PO-1").unwrap(), first, "the only one that begins like that");
    assert!(kept.get("").is_err(), "nothing is no beginning");
    assert_eq!(kept.needing(&Digest::of("web@1")).unwrap().len(), 1);
    assert_eq!(kept.needing(&Digest::of("another")).unwrap(), []);
    assert!(Ledger::open(&places).unwrap().lock().unwrap().open_undertakings().unwrap().is_empty());
}

#[test]
fn what_is_looked_into_stays() {
    let (_dir, places, kept) = lab();
    let one = keep(&places, &kept, Timestamp::UNIX_EPOCH).unwrap();
    let hold = kept.hold(&one).unwrap();
    assert!(matches!(kept.remove(&one.record.name), Err(KeptError::InUse { .. })));
    let left = gc::collect(&places, gc::Mode::Collect).unwrap();
    assert!(left[0].failure.as_deref().is_some_and(|why| why.contains("in use")), "{left:?}");
    drop(hold);
    kept.remove(&one.record.name).unwrap();
    assert_eq!(kept.list().unwrap(), []);
}

#[test]
fn expired_ones_and_halves_are_collected_and_others_stay() {
    let (_dir, places, kept) = lab();
    let fresh = keep(&places, &kept, Timestamp::now()).unwrap();
    assert!(!fresh.is_expired(Timestamp::now()));
    let old = keep(&places, &kept, Timestamp::UNIX_EPOCH).unwrap();
    assert!(old.is_expired(Timestamp::now()));
    fs::create_dir(places.kept.join(".half")).unwrap();
    let found = gc::collect(&places, gc::Mode::DryRun).unwrap();
    assert_eq!((found.len(), kept.list().unwrap().len()), (2, 2), "{found:?}");
    assert_eq!(gc::collect(&places, gc::Mode::Collect).unwrap(), found);
    assert_eq!(kept.list().unwrap(), [fresh]);
    assert_eq!(gc::collect(&places, gc::Mode::Collect).unwrap(), []);
}

#[test]
fn a_record_that_cannot_be_read_is_named_and_can_be_removed() {
    let (_dir, places, kept) = lab();
    let one = keep(&places, &kept, Timestamp::now()).unwrap();
    fs::write(one.folder.join(RECORD), "{}").unwrap();
    let error = kept.list().unwrap_err().to_string();
    assert!(error.contains("kept.json") && error.contains("lab rm"), "{error}");
    fs::remove_file(one.folder.join(RECORD)).unwrap();
    kept.remove(&one.record.name).unwrap();
    assert_eq!(kept.list().unwrap(), []);
}

#[test]
fn names_are_safe_as_file_names() {
    assert_eq!(name("../x/y z", "web@1", Timestamp::UNIX_EPOCH), "-x-y-z-web@1-0101-000000");
}
