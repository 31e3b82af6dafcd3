use patchlab_lab::snapshot::{Format, Guest, Layer, Stillness};
use patchlab_protocol::{
    Envelope, SigningKey,
    document::{Action, Activation, Checks, Order, RunResult, RunState, Waived, Waiver},
    enrolment::EngineId,
};
use serde_json::json;

use super::*;

fn event() -> Event {
    Event::new("test", "x", json!({}))
}

fn order(id: &str) -> (Envelope, Order) {
    let order = Order { id: id.into(), ..crate::gate::tests::order() };
    (Envelope::sign(order.clone(), &SigningKey::from_seed(&[1; 32])), order)
}

fn host(name: &str) -> NewHost {
    NewHost {
        name: name.into(),
        site: "lab".into(),
        address: "127.0.0.1:161".parse().unwrap(),
        engine_id: EngineId::generate().unwrap(),
        public_key: SigningKey::from_seed(&[2; 32]).public(),
        root: Digest::of("root"),
        payload_uri: "http://127.0.0.1:1".into(),
    }
}

fn open() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("store.sqlite")).unwrap();
    (dir, store)
}

/// A store with an approved order and an activation for two hosts.
fn activated() -> (tempfile::TempDir, Store, Deployment) {
    let (dir, store) = open();
    let (envelope, written) = order("PO-1");
    let row = store.submit(&envelope, &written, &event()).unwrap();
    for state in [OrderState::Validated, OrderState::Released, OrderState::Approved] {
        store.advance(&row.digest, state, "", &event()).unwrap();
    }
    store.enrol(&host("web-1"), &event()).unwrap();
    store.enrol(&host("web-2"), &event()).unwrap();
    let now = jiff::Timestamp::now();
    let activation = Activation {
        order: row.digest,
        action: Action::Apply,
        site: "lab".into(),
        wave: 1,
        hosts: vec!["web-2".into(), "web-1".into()],
        at: now,
        not_before: now,
        not_after: now,
    };
    let signed = Envelope::sign(activation.clone(), &SigningKey::from_seed(&[3; 32]));
    let deployment = store.activate(&signed, &activation, None, &activation.hosts, &event()).unwrap();
    (dir, store, deployment)
}

fn progress(stage: Stage) -> RunProgress {
    RunProgress { stage, state: None, phase: String::new(), percent: 0, refusal: None, reason: String::new() }
}

#[test]
fn migrations_are_valid_and_opening_again_changes_nothing() {
    Migrations::from_slice(MIGRATIONS).validate().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.sqlite");
    let store = Store::open(&path).unwrap();
    let (envelope, written) = order("PO-1");
    store.submit(&envelope, &written, &event()).unwrap();
    drop(store);
    let again = Store::open(&path).unwrap();
    assert_eq!(again.orders().unwrap().len(), 1);
    let mode: String = again.read().query_row("PRAGMA journal_mode", [], |row| row.get(0)).unwrap();
    assert_eq!(mode, "wal");
}

#[test]
fn a_store_of_a_newer_program_is_left_alone() {
    let (dir, store) = open();
    store.read().pragma_update(None, "user_version", 99).unwrap();
    drop(store);
    let error = Store::open(&dir.path().join("store.sqlite")).unwrap_err();
    assert!(matches!(error, StoreError::Migrate { .. }), "{error}");
}

#[test]
fn every_pair_of_order_states_is_decided() {
    use OrderState::{
        Active, Approved, Deployed, Partly, Rejected, Released, RollbackFailed, RolledBack, RollingBack, Submitted,
        Validated,
    };
    let allowed = [
        (Submitted, Validated),
        (Submitted, Rejected),
        (Validated, Released),
        (Validated, Rejected),
        (Rejected, Released),
        (Released, Approved),
        (Approved, Approved),
        (Approved, Active),
        (Approved, RollingBack),
        (Active, Deployed),
        (Active, Partly),
        (Active, Approved),
        (Active, RollingBack),
        (Deployed, Approved),
        (Deployed, Active),
        (Deployed, RollingBack),
        (Partly, Approved),
        (Partly, Active),
        (Partly, RollingBack),
        (RolledBack, Approved),
        (RolledBack, Active),
        (RolledBack, RollingBack),
        (RollbackFailed, RollingBack),
        (RollingBack, RolledBack),
        (RollingBack, Partly),
        (RollingBack, Deployed),
        (RollingBack, RollbackFailed),
    ];
    for from in OrderState::ALL {
        for to in OrderState::ALL {
            assert_eq!(from.allows(*to), allowed.contains(&(*from, *to)), "{from} to {to}");
        }
    }
}

#[test]
fn a_rejected_order_is_released_by_waivers_alone_and_marked() {
    let (_dir, store) = open();
    let (envelope, written) = order("PO-1");
    let digest = store.submit(&envelope, &written, &event()).unwrap().digest;
    store.advance(&digest, OrderState::Rejected, "", &event()).unwrap();
    let release = Envelope::sign(crate::gate::tests::order(), &SigningKey::from_seed(&[4; 32]));
    let bare = store.release(&digest, &release, Ties::default(), &event());
    assert!(matches!(bare, Err(StoreError::Transition { from: "rejected", to: "released", .. })), "{bare:?}");
    assert!(store.order("PO-1").unwrap().marks().is_empty());

    let now = jiff::Timestamp::now();
    let waiver = Waiver {
        order: digest,
        baseline: "b@1".into(),
        baseline_digest: Digest::of("b"),
        waived: Waived::WayBack,
        class: written.class.clone(),
        hosts_at_most: 2,
        owner: "ann".into(),
        reason: "hosts have snapshots".into(),
        at: now,
        not_after: now,
    };
    let signed = Envelope::sign(waiver.clone(), &SigningKey::from_seed(&[5; 32]));
    let waived = store.waive(&signed, &waiver, &event()).unwrap();
    assert_eq!(store.waive(&signed, &waiver, &event()).unwrap(), waived, "the same again");
    assert_eq!(store.waivers(&digest).unwrap()[0].release, None);
    let released = store.release(&digest, &release, Ties { waivers: &[waived], supersedes: &[] }, &event()).unwrap();
    let row = store.order("PO-1").unwrap();
    assert_eq!((row.state, row.marks(), row.waivers), (OrderState::Released, vec!["waived"], 1));
    let of_release = store.waivers_of_release(&released).unwrap();
    assert_eq!(of_release, store.waivers(&digest).unwrap());
    assert_eq!((of_release[0].release, &of_release[0].waived), (Some(released), &Waived::WayBack));
    let said = of_release[0].line();
    assert_eq!(said, "ann waived the way back on b@1 for at most 2 hosts: hosts have snapshots");
    assert_eq!(store.what_is(&waived).unwrap().as_deref(), Some("waiver of PO-1"));
}

#[test]
fn an_order_is_superseded_as_long_as_a_released_one_says_so() {
    let (_dir, store) = open();
    let submitted = |id: &str| {
        let (envelope, written) = order(id);
        let digest = store.submit(&envelope, &written, &event()).unwrap().digest;
        store.advance(&digest, OrderState::Validated, "", &event()).unwrap();
        digest
    };
    let (old, new) = (submitted("PO-1"), submitted("PO-2"));
    let (document, _) = order("the release");
    assert_eq!(store.order("PO-1").unwrap().superseded, None, "nobody has released the newer one");
    store
        .release(&new, &document, Ties { waivers: &[], supersedes: &[old, Digest::of("elsewhere")] }, &event())
        .unwrap();
    let row = store.order("PO-1").unwrap();
    assert_eq!((row.superseded.as_deref(), row.marks()), (Some("PO-2"), vec!["superseded"]));
    assert_eq!(store.order("PO-2").unwrap().superseded, None);
    let says = crate::trust::revocation::next(None, &[new], "breaks logins", jiff::Timestamp::now()).unwrap();
    let list = Envelope::sign(says, &SigningKey::from_seed(&[6; 32]));
    store.take_revocation(&crate::trust::revocation::List::read(list).unwrap(), &event()).unwrap();
    assert_eq!(store.order("PO-1").unwrap().superseded, None, "one that counts no more takes nobody's place");
}

#[test]
fn a_forbidden_transition_changes_nothing_not_even_the_log() {
    let (_dir, store) = open();
    let (envelope, written) = order("PO-1");
    let row = store.submit(&envelope, &written, &event()).unwrap();
    let before = store.audit_head().unwrap();
    let error = store.advance(&row.digest, OrderState::Released, "", &event()).unwrap_err();
    assert!(matches!(error, StoreError::Transition { from: "submitted", to: "released", .. }), "{error}");
    assert_eq!(store.audit_head().unwrap(), before);
    assert_eq!(store.order("PO-1").unwrap().state, OrderState::Submitted);
}

#[test]
fn orders_are_immutable_and_submitting_again_is_no_error() {
    let (_dir, store) = open();
    let (envelope, written) = order("PO-1");
    let first = store.submit(&envelope, &written, &event()).unwrap();
    assert_eq!(store.submit(&envelope, &written, &event()).unwrap().digest, first.digest);
    let other = Order { title: "another".into(), ..written };
    let signed = Envelope::sign(other.clone(), &SigningKey::from_seed(&[1; 32]));
    assert!(matches!(store.submit(&signed, &other, &event()), Err(StoreError::Conflict { .. })));
}

#[test]
fn an_activation_is_taken_in_once_with_a_planned_run_a_host() {
    let (_dir, store, deployment) = activated();
    let runs = store.runs_of(&deployment.activation).unwrap();
    let planned: Vec<_> = runs.iter().map(|run| (run.host.as_str(), run.run, run.stage)).collect();
    assert_eq!(planned, [("web-2", 1, Stage::Planned), ("web-1", 1, Stage::Planned)]);
    assert_eq!(store.order("PO-1").unwrap().state, OrderState::Active);
    assert_eq!(store.deployments_running().unwrap().len(), 1);
    let row = store.order_row("web-1", &deployment.order).unwrap();
    assert_eq!(store.order_row("web-1", &deployment.order).unwrap(), row, "a row index is chosen once");
}

#[test]
fn runs_move_forward_only() {
    let (_dir, store, deployment) = activated();
    let run = store.runs_of(&deployment.activation).unwrap().remove(0);
    assert!(store.journal_run(&run, &progress(Stage::Running), &event()).is_err(), "nothing was sent yet");
    for stage in [Stage::Pushing, Stage::Running, Stage::Pushing, Stage::Running, Stage::Finished] {
        store.journal_run(&run, &progress(stage), &event()).unwrap();
    }
    let error = store.journal_run(&run, &progress(Stage::Running), &event()).unwrap_err();
    assert!(matches!(error, StoreError::Transition { what: "run", .. }), "{error}");
}

#[test]
fn a_run_that_is_cancelled_stays_so_until_it_has_ended_and_one_that_ended_is_left() {
    let (_dir, store, deployment) = activated();
    let runs = store.runs_of(&deployment.activation).unwrap();
    store.journal_run(&runs[0], &progress(Stage::Pushing), &event()).unwrap();
    for run in &runs {
        assert_eq!(store.cancel_run(run, "no more", &event()).unwrap().stage, Stage::Cancelling);
        // Whoever follows it meanwhile does not undo that.
        store.note_run(run, &progress(Stage::Running)).unwrap();
        assert_eq!(store.run(&run.order, &run.host, run.run).unwrap().stage, Stage::Cancelling);
    }
    store.journal_run(&runs[0], &progress(Stage::Finished), &event()).unwrap();
    assert_eq!(store.cancel_run(&runs[0], "again", &event()).unwrap().stage, Stage::Finished);
    store.end_deployment(&deployment, DeploymentState::Stopped, OrderState::Approved, "", &event()).unwrap();
    let stages: Vec<_> = store.runs_of(&deployment.activation).unwrap().iter().map(|run| run.stage).collect();
    assert_eq!(stages, [Stage::Finished, Stage::Skipped]);
}

#[test]
fn an_order_stays_under_way_until_the_last_of_its_deployments_has_ended() {
    let (_dir, store, first) = activated();
    let again = |action, hours: i64| {
        let signed = store.envelope(&first.activation).unwrap().statement::<Activation>().unwrap().predicate;
        let not_before = signed.at + jiff::SignedDuration::from_hours(hours);
        let activation = Activation { action, not_before, not_after: not_before, ..signed };
        let envelope = Envelope::sign(activation.clone(), &SigningKey::from_seed(&[3; 32]));
        store.activate(&envelope, &activation, None, &activation.hosts, &event()).unwrap()
    };
    let scheduled = again(Action::Apply, 2);
    let window = scheduled.window.unwrap();
    assert_eq!((first.window, store.deployment(&scheduled.activation).unwrap().window), (None, Some(window)));
    let state = || store.order("PO-1").unwrap().state;
    let end = |deployment: &Deployment, state| {
        store.end_deployment(deployment, DeploymentState::Done, state, "", &event()).unwrap();
    };
    end(&first, OrderState::Deployed);
    assert_eq!(state(), OrderState::Active, "another host still waits for its window");
    // What has it can be brought back meanwhile.
    let back = again(Action::Rollback, 0);
    assert_eq!(state(), OrderState::RollingBack);
    end(&back, OrderState::RolledBack);
    assert_eq!(state(), OrderState::Active);
    end(&scheduled, OrderState::Deployed);
    assert_eq!(state(), OrderState::Deployed);
}

#[test]
fn a_stopped_deployment_leaves_the_rest_alone() {
    let (_dir, store, deployment) = activated();
    let runs = store.runs_of(&deployment.activation).unwrap();
    store.journal_run(&runs[0], &progress(Stage::Pushing), &event()).unwrap();
    store.journal_run(&runs[0], &progress(Stage::Lost), &event()).unwrap();
    store.end_deployment(&deployment, DeploymentState::Stopped, OrderState::Approved, "lost", &event()).unwrap();
    let stages: Vec<_> = store.runs_of(&deployment.activation).unwrap().iter().map(|run| run.stage).collect();
    assert_eq!(stages, [Stage::Lost, Stage::Skipped]);
    assert!(store.deployments_running().unwrap().is_empty());
}

#[test]
fn the_log_grows_with_every_change_and_holds() {
    let (_dir, store, _) = activated();
    let (rows, findings) = store.audit_verify().unwrap();
    assert_eq!((rows, findings), (7, vec![]));
    store.read().execute("DELETE FROM audit WHERE seq = 4", []).unwrap();
    assert_eq!(store.audit_verify().unwrap().1, [audit::Finding::Missing { from: 4, to: 4 }]);
}

#[test]
fn a_log_that_was_rewritten_contradicts_what_hosts_have_signed() {
    let (_dir, store, deployment) = activated();
    let run = store.runs_of(&deployment.activation).unwrap().remove(0);
    store.journal_run(&run, &progress(Stage::Pushing), &event()).unwrap();
    let end = RunEnd {
        progress: progress(Stage::Finished),
        report: String::new(),
        signed: None,
        verified: Verified::Yes,
        heads: Some((Digest::of("result"), Some(store.audit_head().unwrap()))),
        current_order: Some(Some(deployment.order)),
    };
    store.end_run(&run, &end, &event()).unwrap();
    assert_eq!(store.audit_verify().unwrap().1, []);
    store.read().execute("DELETE FROM audit WHERE seq > 6", []).unwrap();
    let findings = store.audit_verify().unwrap().1;
    assert!(
        matches!(findings.as_slice(), [audit::Finding::Contradicted { host, .. }] if host == "web-2"),
        "{findings:?}"
    );
}

#[test]
fn a_rewritten_log_contradicts_what_a_host_signed_before_it_saw_a_newer_head() {
    let (_dir, store, deployment) = activated();
    let run = store.runs_of(&deployment.activation).unwrap().remove(0);
    store.journal_run(&run, &progress(Stage::Pushing), &event()).unwrap();
    let signed = store.audit_head().unwrap();
    let result = RunResult {
        host: run.host.clone(),
        order: deployment.order,
        run: run.run,
        action: Some(Action::Apply),
        preparation: None,
        operator: None,
        state: RunState::Succeeded,
        refusal: None,
        started: 1,
        ended: 2,
        before: Digest::of("a"),
        after: Digest::of("b"),
        checks: Checks::default(),
        cause: None,
        previous: None,
        audit: Some(signed),
    };
    let end = RunEnd {
        progress: progress(Stage::Finished),
        report: String::new(),
        signed: Some((serde_json::to_vec(&result).unwrap(), vec![0; 64])),
        verified: Verified::Yes,
        heads: Some((Digest::of("result"), Some(signed))),
        current_order: Some(Some(deployment.order)),
    };
    store.end_run(&run, &end, &event()).unwrap();
    assert_eq!(store.audit_verify().unwrap().1, []);
    // Rewritten, chained anew, and shown to the host.
    store.read().execute("DELETE FROM audit WHERE seq > 6", []).unwrap();
    store.move_head(&run.host, &Digest::of("newer"), Some(store.audit_head().unwrap())).unwrap();
    let expected = audit::Finding::Contradicted { host: run.host.clone(), head: signed };
    assert_eq!(store.audit_verify().unwrap().1, [expected]);
}

#[test]
fn names_and_engine_ids_of_hosts_are_unique() {
    let (_dir, store) = open();
    let one = host("web-1");
    store.enrol(&one, &event()).unwrap();
    assert!(store.enrol(&host("web-1"), &event()).is_err());
    let twin = NewHost { name: "web-2".into(), ..one };
    assert!(store.enrol(&twin, &event()).is_err());
    // What clients get can be read back.
    let text = serde_json::to_string(&store.host("web-1").unwrap()).unwrap();
    let read: Host = serde_json::from_str(&text).unwrap();
    assert_eq!(read.enrolled.name, "web-1");
}

#[test]
fn a_store_from_before_revocations_is_brought_up_and_its_hosts_are_owed_a_visit() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.sqlite");
    let mut old = Connection::open(&path).unwrap();
    Migrations::from_slice(&MIGRATIONS[..1]).to_latest(&mut old).unwrap();
    let row = "'web-1', NULL, 'lab', '127.0.0.1:161', ?1, ?2, ?3, 'http://127.0.0.1:1', NULL, NULL, NULL, NULL, 'then'";
    let new = host("web-1");
    let key = new.public_key.to_string();
    old.execute(&format!("INSERT INTO host VALUES ({row})"), [new.engine_id.to_string(), key, new.root.to_string()])
        .unwrap();
    drop(old);
    let store = Store::open(&path).unwrap();
    let trust = store.host("web-1").unwrap().trust;
    assert_eq!((trust.held, trust.offer), (None, OfferState::Waiting));
    assert_eq!(store.survey("web-1").unwrap(), Survey::default());
}

#[test]
fn what_was_read_before_sources_were_told_is_kept_and_read_once_more() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.sqlite");
    let mut old = Connection::open(&path).unwrap();
    Migrations::from_slice(&MIGRATIONS[..7]).to_latest(&mut old).unwrap();
    old.execute_batch(
        "PRAGMA foreign_keys = OFF; INSERT INTO survey VALUES ('web-1', NULL, 9, 'then', '[]', NULL);
         INSERT INTO host_package VALUES ('web-1', 1, 9, 'web', 'all', '1-2');",
    )
    .unwrap();
    drop(old);
    let known = Store::open(&path).unwrap().survey("web-1").unwrap().packages;
    let installed: Vec<_> = known.installed().map(|p| (&*p.name, &*p.version, p.source.clone())).collect();
    assert_eq!((known.change, installed), (0, vec![("web", "1-2", None)]));
}

#[test]
fn what_a_host_believes_is_kept_as_it_says_and_silence_takes_nothing_away() {
    use crate::trust::authority::Held;
    let (_dir, store) = open();
    store.enrol(&host("web-1"), &event()).unwrap();
    let held = Held {
        root_version: 2,
        root: Some(Digest::of("root")),
        revocation_version: 7,
        revocation: Some(Digest::of("list")),
    };
    let said = HostTrust {
        held: Some(held.clone()),
        offer: OfferState::Refused,
        reason: "stale: no".into(),
        at: Some("2026-11-24T18:00:00Z".into()),
    };
    let rows = || store.audit(0, 100).unwrap().len();
    let before = rows();
    store.note_trust("web-1", &said, Some(&event())).unwrap();
    assert_eq!((store.host("web-1").unwrap().trust, rows()), (said.clone(), before + 1));
    let silent = HostTrust { held: None, offer: OfferState::Silent, ..said };
    store.note_trust("web-1", &silent, None).unwrap();
    assert_eq!(
        (store.host("web-1").unwrap().trust, rows()),
        (HostTrust { held: Some(held.clone()), ..silent }, before + 1)
    );
    // A host whose ledger was turned back has no list any more, and says so.
    let back = Held { revocation_version: 0, revocation: None, ..held };
    let turned = HostTrust { held: Some(back), offer: OfferState::Current, reason: String::new(), at: None };
    store.note_trust("web-1", &turned, None).unwrap();
    assert_eq!(store.host("web-1").unwrap().trust, turned);
}

#[test]
fn a_survey_is_kept_whole_and_its_parts_do_not_disturb_each_other() {
    use crate::deploy::survey::{Hour, Package, Packages};
    use patchlab_protocol::inventory::Source;
    let (_dir, store) = open();
    store.enrol(&host("web-1"), &event()).unwrap();
    let now = jiff::Timestamp::now();
    let week = [Hour { hour: 168, cpu: 1, memory: 2, disk: 3, sessions: 4, weeks: 5 }];
    store.keep_week("web-1", &week, now).unwrap();
    let package = |index, version: &str| Package {
        index,
        change: 3,
        name: format!("p{index}"),
        arch: "all".into(),
        version: version.into(),
        source: (index == 1).then(|| Source::new("p", "1").unwrap()),
    };
    for packages in [vec![package(1, "1"), package(2, "1")], vec![package(2, "")]] {
        let packages = Packages { inventory: Some(Digest::of("inventory")), change: 3, packages };
        store.keep_packages("web-1", &packages, now).unwrap();
        let survey = store.survey("web-1").unwrap();
        assert_eq!((&survey.packages, survey.week.as_slice()), (&packages, week.as_slice()));
    }
    assert_eq!(store.survey("web-1").unwrap().packages.installed().count(), 0);
    assert_eq!(store.week_read_at("web-1").unwrap(), Some(now.to_string()));
}

fn machine(domain: &str) -> HostMachine {
    let guest = Guest { libvirt: "qemu:///system".into(), domain: domain.into(), outside: ["vdb".to_owned()].into() };
    HostMachine { guest, keep_s: 3600 }
}

/// A snapshot of web-1, taken before its run of the order.
fn taken(store: &Store, deployment: &Deployment) -> Snapshot {
    let guest = machine("web-1").guest;
    let (base, layer) = ("/d/a.qcow2".into(), "/d/a.qcow2.s".into());
    let layers = [Layer { target: "vda".into(), base, format: Format::Qcow2, layer }];
    let new = NewSnapshot {
        order: deployment.order,
        run: 1,
        name: "s",
        guest: &guest,
        layers: &layers,
        inventory: Some(Digest::of("before")),
    };
    let planned = store.plan_snapshot("web-1", &new, &event()).unwrap();
    assert_eq!((planned.state, planned.stillness), (SnapshotState::Taking, None));
    store.snapshot_taken(&planned, Stillness::Quiesced, &event()).unwrap();
    let taken = store.snapshot(planned.number).unwrap();
    assert_eq!(
        (taken.state, taken.stillness, &taken.layers[..]),
        (SnapshotState::Taken, Some(Stillness::Quiesced), &layers[..])
    );
    taken
}

#[test]
fn a_host_has_one_snapshot_at_a_time_and_its_machine_stays_until_it_has_none() {
    let (_dir, store, deployment) = activated();
    assert_eq!(store.machine("web-1").unwrap(), None);
    store.set_machine("web-1", Some(&machine("web-1")), &event()).unwrap();
    assert_eq!(store.machine("web-1").unwrap(), Some(machine("web-1")));
    let error = store.set_machine("web-2", Some(&machine("web-1")), &event()).unwrap_err();
    assert!(error.to_string().contains("web-1 of host web-1"), "{error}");

    let snapshot = taken(&store, &deployment);
    assert_eq!(store.open_snapshot("web-1").unwrap().as_ref(), Some(&snapshot));
    let again = NewSnapshot {
        order: deployment.order,
        run: 2,
        name: "t",
        guest: &snapshot.guest,
        layers: &snapshot.layers,
        inventory: None,
    };
    assert!(store.plan_snapshot("web-1", &again, &event()).is_err());
    assert!(matches!(store.set_machine("web-1", None, &event()), Err(StoreError::Conflict { .. })));

    let moved = |state| {
        let moved = SnapshotMove { state, reason: String::new(), merge_at: None };
        store.move_snapshot(&snapshot, &moved, &event())
    };
    assert!(matches!(moved(SnapshotState::Merged), Err(StoreError::Transition { .. })));
    moved(SnapshotState::Merging).unwrap();
    moved(SnapshotState::Merged).unwrap();
    assert!(moved(SnapshotState::Taken).is_err() && store.snapshots().unwrap().is_empty());
    assert!(store.snapshot(snapshot.number).unwrap().ended_at.is_some());
    store.plan_snapshot("web-1", &again, &event()).unwrap();
}

#[test]
fn a_host_that_was_reverted_has_what_it_had_and_its_order_is_taken_back() {
    for before in [OrderState::Partly, OrderState::RollbackFailed] {
        let (_dir, store, deployment) = activated();
        let snapshot = taken(&store, &deployment);
        let digest = deployment.order.to_string();
        let sql = "UPDATE host SET current_order = ?1 WHERE name = 'web-1'";
        store.read().execute(sql, [&digest]).unwrap();
        let sql = "UPDATE patch_order SET state = ?1";
        store.read().execute(sql, [before.name()]).unwrap();
        let moved = SnapshotMove { state: SnapshotState::Reverting, reason: String::new(), merge_at: None };
        store.move_snapshot(&snapshot, &moved, &event()).unwrap();
        store.snapshot_reverted(&snapshot, "", &event()).unwrap();
        assert_eq!(store.host("web-1").unwrap().current_order, None);
        let order = store.order(&digest).unwrap();
        assert_eq!(order.state, OrderState::RolledBack, "from {before}");
        assert!(order.reason.contains("web-1 was reverted to its snapshot"), "{}", order.reason);
    }
}
