//! Apply and rollback, on a real dpkg database.

use patchlab_protocol::{
    Digest, Role,
    document::{Action, RunState},
    mib,
};

use super::{
    host::{Host, NAME, missing},
    manager::oid,
};

#[test]
fn an_order_is_applied_once_and_rolled_back() {
    if missing() {
        return;
    }
    let host = Host::new();
    let authority = &host.authority;
    let replaced = host.installed(&host.package("web", "1", "", None));
    let new = [host.package("web", "2", "Depends: lib\n", None), host.package("lib", "1", "", None)];
    let (order, envelope) = authority.order("PO-1", &host.class, new.to_vec(), vec![replaced]);
    let order_digest = host.publish(&envelope);
    let transaction = ["install lib all - -> 1", "upgrade web all 1 -> 2"];
    let release = host.publish(&authority.release(&order, order_digest, &transaction));
    let approval = host.publish(&authority.approval(order_digest, release));
    let activation = host.publish(&authority.activation(order_digest, Action::Apply, NAME, Role::Activator, 1));

    let manager = host.deployer();
    let documents = [Some(order_digest), Some(release), Some(approval), Some(activation)];
    manager.create(7, &host.uri, documents).unwrap();
    manager.start(7, 5).unwrap();
    assert_eq!(manager.wait(7, 5), RunState::Succeeded, "{}", host.log());
    assert_eq!(host.packages(), "installed lib 1\ninstalled web 2\n");
    let (result, head) = host.result(7, 5);
    assert_eq!((result.state, result.action, result.previous), (RunState::Succeeded, Some(Action::Apply), None));
    assert_eq!([result.before, result.after], ["web all 1\n", "lib all 1\nweb all 2\n"].map(Digest::of));
    assert_eq!(manager.number(&manager.run_cell(mib::run::EXIT_CODE, 7, 5)), 0);
    let item = |column, index| manager.text(&oid(mib::item::ENTRY, &[column, 7, 5, index]));
    assert_eq!([item(mib::item::NAME, 2), item(mib::item::FROM, 2), item(mib::item::TO, 2)], ["web", "1", "2"]);

    // A resent start starts nothing; a new one finds the activation used up.
    manager.start(7, 5).expect("a repeated start is no error");
    assert_eq!(manager.number(&oid(mib::order::ENTRY, &[mib::order::RUN_INDEX_NEXT, 7])), 6);
    manager.start(7, 6).unwrap();
    assert_eq!(manager.wait(7, 6), RunState::Refused);
    let (again, again_head) = host.result(7, 6);
    assert_eq!((again.refusal.map(|r| r.name()), again.previous), (Some("consumed"), Some(head)));

    // One operator's signature is enough for the way back.
    let back = host.publish(&authority.activation(order_digest, Action::Rollback, NAME, Role::Operator, 1));
    let cell = oid(mib::order::ENTRY, &[mib::order::ACTIVATION, 7]);
    manager.set(&[(cell, 'x', back.to_string())]).unwrap();
    manager.start(7, 7).unwrap();
    assert_eq!(manager.wait(7, 7), RunState::RolledBack, "{}", host.log());
    assert_eq!(host.packages(), "installed web 1\n");
    let (result, _) = host.result(7, 7);
    assert_eq!((result.action, result.after), (Some(Action::Rollback), Digest::of("web all 1\n")));
    assert_eq!(result.previous, Some(again_head));

    // What was applied and rolled back is not applied again, whatever is activated.
    let third = host.publish(&authority.activation(order_digest, Action::Apply, NAME, Role::Activator, 2));
    let cell = oid(mib::order::ENTRY, &[mib::order::ACTIVATION, 7]);
    manager.set(&[(cell, 'x', third.to_string())]).unwrap();
    manager.start(7, 8).unwrap();
    assert_eq!(manager.wait(7, 8), RunState::Refused);
    assert_eq!(host.result(7, 8).0.refusal.map(|r| r.name()), Some("consumed"));
    let log = host.log();
    let about_runs: Vec<&str> = log.lines().filter(|line| line.contains("patchlab_agent::run")).collect();
    assert!(about_runs.len() > 10, "{log}");
    for line in about_runs {
        assert!(line.contains(&order_digest.short()), "a line does not name its order: {line}");
    }
    let ends: Vec<&str> = log.lines().filter(|line| line.contains("run ended")).collect();
    assert!(ends.iter().all(|line| line.contains("id=\"PO-")), "{log}");
    assert!(std::fs::read_dir(host.path("state/files")).map_or(0, Iterator::count) == 0, "files of runs are left");
}

#[test]
fn a_failing_package_is_a_failed_run_that_can_be_rolled_back() {
    if missing() {
        return;
    }
    let host = Host::new();
    super::host::give_shell(&host.path("root"));
    let authority = &host.authority;
    let replaced = host.installed(&host.package("web", "1", "", None));
    let bad = host.package("web", "2", "", Some("#!/bin/sh\necho 'web cannot start' >&2\nexit 1\n"));
    let (order, envelope) = authority.order("PO-1", &host.class, vec![bad], vec![replaced]);
    let digest = host.publish(&envelope);
    let release = host.publish(&authority.release(&order, digest, &["upgrade web all 1 -> 2"]));
    let approval = host.publish(&authority.approval(digest, release));
    let activation = host.publish(&authority.activation(digest, Action::Apply, NAME, Role::Activator, 1));
    let manager = host.deployer();
    manager.create(1, &host.uri, [Some(digest), Some(release), Some(approval), Some(activation)]).unwrap();
    manager.start(1, 1).unwrap();
    assert_eq!(manager.wait(1, 1), RunState::Failed);
    assert!(manager.text(&manager.run_cell(mib::run::ERROR, 1, 1)).starts_with("the package manager failed"));
    assert_eq!(manager.number(&manager.run_cell(mib::run::EXIT_CODE, 1, 1)), 100);
    assert_eq!(host.packages(), "half-configured web 2\n");

    let back = host.publish(&authority.activation(digest, Action::Rollback, NAME, Role::Operator, 1));
    manager.set(&[(oid(mib::order::ENTRY, &[mib::order::ACTIVATION, 1]), 'x', back.to_string())]).unwrap();
    manager.start(1, 2).unwrap();
    assert_eq!(manager.wait(1, 2), RunState::RolledBack, "{}", host.log());
    assert_eq!(host.packages(), "installed web 1\n");
}

#[test]
fn production_checks_decide() {
    if missing() {
        return;
    }
    for (command, expected) in [("true", RunState::Succeeded), ("false", RunState::Failed)] {
        let host = Host::new();
        let authority = &host.authority;
        let replaced = host.installed(&host.package("web", "1", "", None));
        let (mut order, _) =
            authority.order("PO-1", &host.class, vec![host.package("web", "2", "", None)], vec![replaced]);
        let step = serde_json::from_value(serde_json::json!({"name": "s", "run": command})).unwrap();
        order.production = vec![patchlab_protocol::document::ProductionCheck { scenario: "x".into(), step }];
        let envelope = patchlab_protocol::Envelope::sign(order.clone(), &authority.keys[&Role::Drafter]);
        let digest = host.publish(&envelope);
        let release = host.publish(&authority.release(&order, digest, &["upgrade web all 1 -> 2"]));
        let approval = host.publish(&authority.approval(digest, release));
        let activation = host.publish(&authority.activation(digest, Action::Apply, NAME, Role::Activator, 1));
        let manager = host.deployer();
        manager.create(1, &host.uri, [Some(digest), Some(release), Some(approval), Some(activation)]).unwrap();
        manager.start(1, 1).unwrap();
        assert_eq!(manager.wait(1, 1), expected, "{}", host.log());
        let checks = host.result(1, 1).0.checks;
        assert_eq!((checks.passed, checks.failed), if command == "true" { (1, 0) } else { (0, 1) });
    }
}
