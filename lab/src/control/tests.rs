use std::os::unix::fs::symlink;

use patchlab_check::{Outcome, step::Sample};

use super::*;
use crate::{
    Places,
    manifest::Kind,
    scenario::{FILE, StepRun},
};

const APPLIED: Stage = Stage { phase: Phase::Applied, course: Course::Straight };
const BACK: Stage = Stage { phase: Phase::RolledBack, course: Course::Straight };

fn entry(content: &str) -> Entry {
    Entry {
        kind: Kind::File,
        mode: 0o644,
        uid: 0,
        gid: 0,
        size: content.len() as u64,
        sha256: Some(Digest::of(content)),
        target: None,
        package: None,
    }
}

fn manifest(files: &[(&str, &str)]) -> Manifest {
    let files = files.iter().map(|(path, content)| ((*path).to_owned(), entry(content))).collect();
    Manifest { schema: Manifest::SCHEMA, kernel: "6.1".into(), files, ..Manifest::default() }
}

fn run(status: Status) -> ScenarioRun {
    let outcome =
        Outcome { status, exit: None, ms: 1, output: String::new(), reason: String::new(), samples: Vec::new() };
    let steps = vec![StepRun { name: "a".into(), outcome }];
    ScenarioRun { scenario: "web".into(), steps, ms: 1, gone: None }
}

fn record(status: Status) -> ControlRecord {
    let mut record = ControlRecord::begun(Timestamp::UNIX_EPOCH);
    record.keep_run(APPLIED, run(status));
    record
}

#[test]
fn a_state_is_what_it_was_whatever_came_went_or_changed() {
    let baseline = manifest(&[("/same", "1"), ("/changed", "1"), ("/gone", "1")]);
    let now = manifest(&[("/same", "1"), ("/changed", "2"), ("/new", "1")]);
    let mut record = ControlRecord::begun(Timestamp::UNIX_EPOCH);
    record.keep_state(APPLIED, now.clone(), &baseline);
    let text = serde_json::to_string(&record).unwrap();
    assert!(!text.contains("/same"), "{text}");
    let record: ControlRecord = serde_json::from_str(&text).unwrap();
    assert_eq!(record.state(APPLIED, &baseline), Some(now));
    assert_eq!(record.state(BACK, &baseline), None);
}

#[test]
fn what_ran_and_what_was_read_is_known_of_its_stage_alone() {
    let mut record = record(Status::Pass);
    record.keep_read(APPLIED, ("web", CheckKind::JournalErrors), "x".into());
    record.keep_read(APPLIED, ("other", CheckKind::JournalErrors), "y".into());
    record.keep_reboot(BACK, 5);
    assert_eq!(record.run(APPLIED, "web"), Some(&run(Status::Pass)));
    assert_eq!(record.read(APPLIED, ("web", CheckKind::JournalErrors)), Some("x"));
    assert_eq!(record.read(APPLIED, ("web", CheckKind::Coredump)), None);
    assert_eq!(record.read(APPLIED, ("other", CheckKind::JournalErrors)), None);
    assert_eq!((record.run(BACK, "web"), record.run(APPLIED, "other")), (None, None));
    assert_eq!((record.reboot_ms(BACK), record.reboot_ms(APPLIED)), (Some(5), None));
}

#[test]
fn nothing_is_remembered_of_a_control_that_failed_or_measured() {
    assert!(record(Status::Pass).is_well() && record(Status::Skip).is_well());
    assert!(!record(Status::Fail).is_well());
    let mut measured = run(Status::Pass);
    measured.steps[0].outcome.samples.push(Sample::try_from(1.0).unwrap());
    let mut record = ControlRecord::begun(Timestamp::UNIX_EPOCH);
    record.keep_run(APPLIED, measured);
    assert!(!record.is_well());
}

#[test]
fn conditions_are_the_same_only_when_nothing_differs() {
    let dir = tempfile::tempdir().unwrap();
    let scenario = |name: &str, more: &str| {
        let folder = dir.path().join(name);
        std::fs::create_dir_all(&folder).unwrap();
        let text =
            format!("name = \"{name}\"\nowner = \"qa\"\nsummary = \"s\"\n[[step]]\nname = \"a\"\nrun = \"true\"\n");
        std::fs::write(folder.join(FILE), text).unwrap();
        std::fs::write(folder.join("more.sh"), more).unwrap();
        Scenario::read(&folder).unwrap()
    };
    let [one, other] = [scenario("one", "true"), scenario("other", "true")];
    let of = |scenarios: &[Scenario], baseline: &str, program: &str, others: &[&str], reboot| {
        let others = others.iter().map(|name| ((*name).to_owned(), Digest::of(name))).collect();
        let (lab, agent, baseline) = (Digest::of(program), Digest::of("agent"), Digest::of(baseline));
        Conditions { lab, agent, baseline, scenarios, others, reboot }.key()
    };
    let both = [one.clone(), other.clone()];
    let key = of(&both, "web", "lab", &[], Reboot::WhenAsked);
    assert_eq!(of(&both, "web", "lab", &[], Reboot::WhenAsked), key);
    let differ = [
        of(&both, "db", "lab", &[], Reboot::WhenAsked),
        of(&both, "web", "lab 2", &[], Reboot::WhenAsked),
        of(&both, "web", "lab", &["db@1"], Reboot::WhenAsked),
        of(&both, "web", "lab", &[], Reboot::Always),
        of(&both[..1], "web", "lab", &[], Reboot::WhenAsked),
        of(&[other, one], "web", "lab", &[], Reboot::WhenAsked),
    ];
    assert!(differ.iter().all(|other| *other != key));
    let changed = [scenario("one", "false"), both[1].clone()];
    assert_ne!(of(&changed, "web", "lab", &[], Reboot::WhenAsked), key, "a script of a scenario counts");
}

#[test]
fn a_record_is_taken_from_a_worker_and_added_to_what_is_known() {
    let dir = tempfile::tempdir().unwrap();
    let controls = Controls::open(&Places::of_data(dir.path()));
    let (key, worker) = (Digest::of("key"), dir.path());
    assert_eq!(controls.adopt(&key, worker, "nothing was found").unwrap(), Adopted::No);
    assert!(!controls.has(&key) && controls.get(&key).unwrap().is_none());
    assert!(given(worker).is_err());

    put(&record(Status::Pass), worker).unwrap();
    assert_eq!(controls.adopt(&key, worker, "first").unwrap(), Adopted::Yes);
    let mut second = ControlRecord::begun(Timestamp::UNIX_EPOCH);
    second.keep_reboot(BACK, 7);
    put(&second, worker).unwrap();
    controls.adopt(&key, worker, "second").unwrap();
    let known = controls.get(&key).unwrap().unwrap();
    assert_eq!((known.run.as_str(), known.reboot_ms(BACK)), ("second", Some(7)));
    assert!(known.run(APPLIED, "web").is_some(), "what the newer one did not see stays");

    // A worker is not trusted: neither with what it says nor with where it says it.
    put(&record(Status::Fail), worker).unwrap();
    controls.adopt(&Digest::of("failed"), worker, "third").unwrap();
    assert!(!controls.has(&Digest::of("failed")));
    std::fs::write(worker.join("control.json"), "no record").unwrap();
    controls.adopt(&Digest::of("none"), worker, "fourth").unwrap();
    assert!(!controls.has(&Digest::of("none")));
    std::fs::rename(worker.join("control.json"), worker.join("elsewhere")).unwrap();
    symlink("elsewhere", worker.join("control.json")).unwrap();
    assert!(controls.adopt(&Digest::of("link"), worker, "fifth").is_err());
}

#[test]
fn only_the_newest_records_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    let controls = Controls::open(&Places::of_data(dir.path()));
    put(&record(Status::Pass), dir.path()).unwrap();
    let key = |number: u32| Digest::of(number.to_string());
    for number in 0..70 {
        controls.adopt(&key(number), dir.path(), "run").unwrap();
    }
    let left = (0..70).filter(|number| controls.has(&key(*number))).count();
    assert_eq!(left, 64);
    assert!(controls.has(&key(69)));
}
