//! What a host does with a released order ahead of its activation: look, and fetch. Neither changes anything or uses anything up.

use std::fs;

use patchlab_protocol::{
    Digest, Envelope, Role,
    document::{Action, Preparation, ProductionCheck, RunState},
    mib,
};

use super::{
    host::{Host, NAME, missing},
    manager::{Manager, oid},
};

/// Starts a run that prepares, by one SET.
pub fn prepare(manager: &Manager, row: u32, run: u32, what: Preparation) -> RunState {
    let cell = |column| oid(mib::order::ENTRY, &[column, row]);
    let action = (cell(mib::order::ACTION), 'i', (what as i32).to_string());
    manager.set(&[action, (cell(mib::order::START), 'u', run.to_string())]).unwrap();
    manager.wait(row, run)
}

fn refusal(host: &Host, row: u32, run: u32) -> Option<&'static str> {
    host.result(row, run).0.refusal.map(|refusal| refusal.name())
}

#[test]
fn a_probe_says_what_apply_would_be_refused_for_and_a_prefetch_keeps_what_it_takes() {
    if missing() {
        return;
    }
    let host = Host::new();
    let authority = &host.authority;
    let old = host.installed(&host.package("web", "1", "", None));
    let new = host.package("web", "2", "", None);
    let (mut order, _) = authority.order("PO-1", &host.class, vec![new.clone()], vec![old.clone()]);
    let gate = host.path("may-pass");
    let step = serde_json::from_value(serde_json::json!({"name": "s", "run": format!("test -e {}", gate.display())}));
    order.production = vec![ProductionCheck { scenario: "x".into(), step: step.unwrap() }];
    let digest = host.publish(&Envelope::sign(order.clone(), &authority.keys[&Role::Drafter]));
    let release = host.publish(&authority.release(&order, digest, &["upgrade web all 1 -> 2"]));
    let manager = host.deployer();
    let cell = |column| oid(mib::order::ENTRY, &[column, 1]);

    // The order alone: its checks are commands, so the lab must have passed it before a host runs them.
    manager.create(1, &host.uri, [Some(digest), None, None, None]).unwrap();
    assert_eq!(prepare(&manager, 1, 1, Preparation::Probe), RunState::Refused);
    assert_eq!(refusal(&host, 1, 1), Some("not-released"));
    manager.set(&[(cell(mib::order::RELEASE), 'x', release.to_string())]).unwrap();
    let wrong = manager.set(&[(cell(mib::order::ACTION), 'i', "1".into())]).unwrap_err();
    assert!(wrong.contains("wrongValue"), "only an activation says apply: {wrong}");

    assert_eq!(prepare(&manager, 1, 2, Preparation::Probe), RunState::Failed, "{}", host.log());
    let error = manager.text(&manager.run_cell(mib::run::ERROR, 1, 2));
    assert!(error.starts_with("check x/s failed"), "{error}");
    fs::write(&gate, "").unwrap();
    assert_eq!(prepare(&manager, 1, 3, Preparation::Probe), RunState::Succeeded, "{}", host.log());
    let (result, head) = host.result(1, 3);
    assert_eq!((result.action, result.preparation), (None, Some(Preparation::Probe)));
    assert_eq!((result.before, result.checks.passed), (result.after, 1));
    assert_eq!(manager.number(&manager.run_cell(mib::run::ACTION, 1, 3)), 3);
    let item = |column| oid(mib::item::ENTRY, &[column, 1, 3, 1]);
    assert_eq!((manager.text(&item(mib::item::TO)), manager.number(&item(mib::item::STATE))), ("2".into(), 1));
    assert_eq!(host.packages(), "installed web 1\n");
    assert!(!host.path("state/files/1-3").exists() && !host.path("state/staged").exists(), "files are left");
    // A resent start starts nothing, whatever it was to do.
    manager.set(&[(cell(mib::order::ACTION), 'i', "4".into()), (cell(mib::order::START), 'u', "3".into())]).unwrap();
    assert_eq!(host.result(1, 3).1, head);

    assert_eq!(prepare(&manager, 1, 4, Preparation::Prefetch), RunState::Succeeded, "{}", host.log());
    let kept = |digest: &Digest, ending: &str| {
        host.path("state/staged").join(order_folder(&host)).join(format!("{digest}.{ending}"))
    };
    assert!(kept(&digest, "json").exists() && kept(&new.sha256, "deb").exists());
    assert!(kept(&old.file.as_ref().unwrap().sha256, "deb").exists(), "the way back");

    // From here on there are only documents to be had; a refusal in between loses nothing.
    fs::remove_dir_all(host.path("www/artifacts")).unwrap();
    let approval = host.publish(&authority.approval(digest, release));
    manager
        .set(&[(cell(mib::order::ACTION), 'i', "0".into()), (cell(mib::order::APPROVAL), 'x', approval.to_string())])
        .unwrap();
    manager.start(1, 5).unwrap();
    assert_eq!((manager.wait(1, 5), refusal(&host, 1, 5)), (RunState::Refused, Some("not-active")));
    let activation = host.publish(&authority.activation(digest, Action::Apply, NAME, Role::Activator, 1));
    manager.set(&[(cell(mib::order::ACTIVATION), 'x', activation.to_string())]).unwrap();
    manager.start(1, 6).unwrap();
    assert_eq!(manager.wait(1, 6), RunState::Succeeded, "{}", host.log());
    assert_eq!(host.packages(), "installed web 2\n");
    assert_eq!(prepare(&manager, 1, 7, Preparation::Probe), RunState::Refused);
    assert_eq!(refusal(&host, 1, 7), Some("consumed"));
}

/// The folder of the one order that is staged.
fn order_folder(host: &Host) -> String {
    let entry = fs::read_dir(host.path("state/staged")).unwrap().next().unwrap().unwrap();
    entry.file_name().into_string().unwrap()
}

#[test]
fn what_is_installed_is_read_anew_when_a_manager_asks() {
    if missing() {
        return;
    }
    let host = Host::new();
    host.installed(&host.package("web", "1", "", None));
    let manager = host.deployer();
    let asked = oid(mib::agent::GROUP, &[mib::agent::READ_INVENTORY, 0]);
    let sequence = oid(mib::agent::GROUP, &[mib::agent::NOTIFICATION_SEQUENCE, 0]);
    let before = manager.number(&sequence);
    manager.set(&[(asked.clone(), 'u', "1".into())]).unwrap();
    while manager.number(&asked) == 1 {}
    assert_eq!(manager.number(&sequence), before + 1);
    let digest = manager.octets(&oid(mib::agent::GROUP, &[mib::agent::INVENTORY_DIGEST, 0]));
    assert_eq!(digest, Digest::of("web all 1\n").as_bytes());
    assert!(host.log().contains("what is installed was read"), "{}", host.log());
    assert!(manager.set(&[(asked, 'u', "2".into())]).unwrap_err().contains("wrong"));
}
