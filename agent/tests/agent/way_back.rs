//! The way back that a host walks by itself, when the signed order says so and never otherwise, and the one that is walked
//! from staged files.

use std::fs;

use patchlab_protocol::{
    Digest, Envelope, Role,
    document::{Action, Cause, OnFailure, Order, PackageFile, ProductionCheck, RollbackFiles, RunState},
    mib,
};

use super::{
    host::{Host, NAME, give_shell, missing},
    manager::{Manager, oid},
};

/// Tells the host of an order that brings web from 1 to `new`, as `change` leaves it; its digest.
fn told(host: &Host, new: PackageFile, change: impl FnOnce(&mut Order)) -> Digest {
    let authority = &host.authority;
    let old = host.installed(&host.package("web", "1", "", None));
    let (mut order, _) = authority.order("PO-1", &host.class, vec![new], vec![old]);
    change(&mut order);
    let digest = host.publish(&Envelope::sign(order.clone(), &authority.keys[&Role::Drafter]));
    let release = host.publish(&authority.release(&order, digest, &["upgrade web all 1 -> 2"]));
    let approval = host.publish(&authority.approval(digest, release));
    let activation = host.publish(&authority.activation(digest, Action::Apply, NAME, Role::Activator, 1));
    host.deployer().create(1, &host.uri, [digest, release, approval, activation].map(Some)).unwrap();
    digest
}

fn check(command: &str) -> Vec<ProductionCheck> {
    let step = serde_json::from_value(serde_json::json!({"name": "s", "run": command})).unwrap();
    vec![ProductionCheck { scenario: "x".into(), step }]
}

/// A check that passes with web 1 only.
fn only_with_the_old(host: &Host) -> String {
    format!("grep -q 1 {}", host.path("root/usr/share/web/version").display())
}

fn error(manager: &Manager, run: u32) -> String {
    manager.text(&manager.run_cell(mib::run::ERROR, 1, run))
}

#[test]
fn failed_checks_are_walked_back_with_the_network_down_and_the_result_says_why() {
    if missing() {
        return;
    }
    let host = Host::new();
    let [there, gone] = ["www", "gone"].map(|name| host.path(name).display().to_string());
    let new = host.package("web", "2", "", None);
    // Whatever is not on the host when the check fails cannot be had any more.
    let command = format!("mv {there} {gone} 2> /dev/null; {}", only_with_the_old(&host));
    let digest = told(&host, new, |order| {
        order.on_failure = OnFailure::RollBack;
        order.production = check(&command);
    });
    let manager = host.deployer();
    manager.start(1, 1).unwrap();
    assert_eq!(manager.wait(1, 1), RunState::RolledBack, "{}", host.log());
    assert!(host.path("gone").exists());
    assert_eq!((host.packages().as_str(), host.audit().as_str()), ("installed web 1\n", ""));
    let (result, _) = host.result(1, 1);
    assert_eq!((result.action, result.cause), (Some(Action::Apply), Some(Cause::Checks)));
    assert_eq!((result.before, result.checks.passed, result.checks.failed), (result.after, 1, 0));
    assert!(
        error(&manager, 1).starts_with("rolled back, as the order says: check x/s failed"),
        "{}",
        error(&manager, 1)
    );
    assert!(!host.path("state/staged").join(digest.to_string()).exists(), "what was walked is kept no longer");
    manager.start(1, 2).unwrap();
    assert_eq!(manager.wait(1, 2), RunState::Refused, "it is not applied again");
}

#[test]
fn a_change_that_fails_or_does_not_end_is_walked_back() {
    if missing() {
        return;
    }
    // Stuck the first time: what ran out of time is finished before it is walked back.
    let stuck = "#!/bin/sh\nif [ -e /begun ]; then exit 0; fi\n: > /begun\nread line < /gate\n";
    for (script, reason) in [("#!/bin/sh\nexit 1\n", "the package manager failed"), (stuck, "its lifetime ended")] {
        let host = Host::new();
        give_shell(&host.path("root"));
        super::host::run(std::process::Command::new("mkfifo").arg(host.path("root/gate")));
        let new = host.package("web", "2", "", Some(script));
        told(&host, new, |order| order.on_failure = OnFailure::RollBack);
        let manager = host.deployer();
        manager.set(&[(oid(mib::order::ENTRY, &[mib::order::LIFETIME, 1]), 'u', "8".into())]).unwrap();
        manager.start(1, 1).unwrap();
        assert_eq!(manager.wait(1, 1), RunState::RolledBack, "{reason}: {}", host.log());
        assert_eq!((host.packages().as_str(), host.audit().as_str()), ("installed web 1\n", ""));
        assert_eq!(host.result(1, 1).0.cause, Some(Cause::Change));
        assert!(error(&manager, 1).contains(reason), "{}", error(&manager, 1));
    }
}

#[test]
fn an_order_that_does_not_say_so_is_never_walked_back_and_staged_files_serve_an_operator() {
    if missing() {
        return;
    }
    let host = Host::new();
    let new = host.package("web", "2", "", None);
    let digest = told(&host, new, |order| {
        order.rollback_files = RollbackFiles::Staged;
        order.production = check(&only_with_the_old(&host));
    });
    let manager = host.deployer();
    manager.start(1, 1).unwrap();
    assert_eq!(manager.wait(1, 1), RunState::Failed, "{}", host.log());
    assert_eq!(host.packages(), "installed web 2\n");
    assert_eq!(host.result(1, 1).0.cause, None);
    assert!(!host.log().contains("rolling back"), "{}", host.log());

    // Only the operator's word has to come; every file and the order are there.
    let back = host.publish(&host.authority.activation(digest, Action::Rollback, NAME, Role::Operator, 1));
    fs::remove_dir_all(host.path("www/artifacts")).unwrap();
    for entry in fs::read_dir(host.path("www/documents")).unwrap() {
        let path = entry.unwrap().path();
        if !path.ends_with(back.to_string()) {
            fs::remove_file(path).unwrap();
        }
    }
    manager.set(&[(oid(mib::order::ENTRY, &[mib::order::ACTIVATION, 1]), 'x', back.to_string())]).unwrap();
    manager.start(1, 2).unwrap();
    assert_eq!(manager.wait(1, 2), RunState::RolledBack, "{}", host.log());
    assert_eq!((host.packages().as_str(), host.result(1, 2).0.cause), ("installed web 1\n", None));
}

#[test]
fn words_that_were_put_into_an_order_afterwards_count_for_nothing() {
    if missing() {
        return;
    }
    let host = Host::new();
    let new = host.package("web", "2", "", None);
    let mut signed = None;
    let digest = told(&host, new, |order| {
        order.production = check(&only_with_the_old(&host));
        signed = Some(order.clone());
    });
    // A stranger's order with the words in it, in the signed one's place.
    let altered = Order { on_failure: OnFailure::RollBack, ..signed.unwrap() };
    let stranger = patchlab_protocol::SigningKey::generate().unwrap();
    host.publish_as(digest, &Envelope::sign(altered, &stranger).to_bytes());
    let manager = host.deployer();
    manager.start(1, 1).unwrap();
    assert_eq!(manager.wait(1, 1), RunState::Refused);
    assert_eq!(host.result(1, 1).0.refusal.map(|refusal| refusal.name()), Some("bad-signature"));
    assert!(!host.path("state/staged").exists());
}

#[test]
fn without_a_file_for_every_version_nothing_is_begun_and_a_way_back_that_fails_says_both_reasons() {
    if missing() {
        return;
    }
    let host = Host::new();
    let new = host.package("web", "2", "", None);
    told(&host, new, |order| {
        order.on_failure = OnFailure::RollBack;
        order.replaces[0].file = None;
    });
    let manager = host.deployer();
    manager.start(1, 1).unwrap();
    assert_eq!(manager.wait(1, 1), RunState::Refused);
    assert!(error(&manager, 1).contains("does not name a file for every version"), "{}", error(&manager, 1));
    assert_eq!(host.packages(), "installed web 1\n");

    let host = Host::new();
    let new = host.package("web", "2", "", None);
    told(&host, new, |order| {
        order.on_failure = OnFailure::RollBack;
        order.production = check("false");
    });
    let manager = host.deployer();
    manager.start(1, 1).unwrap();
    assert_eq!(manager.wait(1, 1), RunState::RollbackFailed, "{}", host.log());
    let said = error(&manager, 1);
    assert!(said.starts_with("the way back failed: check x/s") && said.contains("it was walked because"), "{said}");
    assert_eq!(host.packages(), "installed web 1\n", "the versions are back all the same");
}

#[test]
fn the_hosts_own_operator_walks_back_with_the_network_down_and_his_run_is_signed_like_any_other() {
    if missing() {
        return;
    }
    let host = Host::new();
    let new = host.package("web", "2", "", None);
    let digest = told(&host, new, |order| order.rollback_files = RollbackFiles::Staged);
    let manager = host.deployer();
    let ask = |order: &str| {
        let output =
            host.agent().args(["rollback", order, "--config"]).arg(host.path("id/agent.toml")).output().unwrap();
        let [out, err] = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap());
        (output.status.code(), out, err)
    };
    let (code, _, error) = ask("PO-1");
    assert!(code == Some(5) && error.contains("0 orders of this host"), "nothing is staged yet: {error}");
    manager.start(1, 1).unwrap();
    assert_eq!(manager.wait(1, 1), RunState::Succeeded, "{}", host.log());
    let (_, applied) = host.result(1, 1);

    fs::remove_dir_all(host.path("www")).unwrap();
    let (code, said, error) = ask("PO-1");
    assert!(code == Some(0) && said.contains("by the host's operator, uid "), "{code:?} {said} {error}");
    assert_eq!((host.packages().as_str(), host.audit().as_str()), ("installed web 1\n", ""));
    let own = patchlab_agent::state::OWN_RUNS;
    let (result, _) = host.result(1, own);
    assert_eq!((result.state, result.action), (RunState::RolledBack, Some(Action::Rollback)));
    assert!(result.operator.is_some() && result.previous == Some(applied));
    assert!(manager.text(&manager.run_cell(mib::run::ORIGIN, 1, own)).starts_with("operator "));

    // A manager's next index is what it was; his own runs are not the manager's to start.
    assert_eq!(manager.number(&oid(mib::order::ENTRY, &[mib::order::RUN_INDEX_NEXT, 1])), 2);
    assert!(manager.start(1, own + 1).unwrap_err().contains("wrongValue"));
    let (code, _, error) = ask(&digest.to_string()[..12]);
    assert!(code == Some(5) && error.contains("patchlab order prefetch"), "what was walked is kept no longer: {error}");
}
