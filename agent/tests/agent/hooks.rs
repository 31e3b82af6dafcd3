//! The site's own programs around a run.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    process::Command,
    time::{Duration, Instant},
};

use patchlab_protocol::{
    Envelope, Role,
    document::{Action, RollbackFiles, RunState},
    mib,
};
use rustix::fs::{FlockOperation, fcntl_lock};

use super::{
    host::{Host, NAME, missing, run},
    manager::oid,
};

/// A program of the site's.
fn hook(host: &Host, moment: &str, script: &str) {
    named_hook(host, moment, "10-site", script);
}

fn named_hook(host: &Host, moment: &str, name: &str, script: &str) {
    let path = host.path("hooks").join(moment).join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
}

/// An order that leads `web` from 1 to 2, with all that apply needs, in row 1.
fn told(host: &Host, rollback_files: RollbackFiles) {
    let authority = &host.authority;
    let old = host.installed(&host.package("web", "1", "", None));
    let (mut order, _) = authority.order("PO-1", &host.class, vec![host.package("web", "2", "", None)], vec![old]);
    order.rollback_files = rollback_files;
    let digest = host.publish(&Envelope::sign(order.clone(), &authority.keys[&Role::Drafter]));
    let release = host.publish(&authority.release(&order, digest, &["upgrade web all 1 -> 2"]));
    let approval = host.publish(&authority.approval(digest, release));
    let activation = host.publish(&authority.activation(digest, Action::Apply, NAME, Role::Activator, 1));
    host.deployer().create(1, &host.uri, [digest, release, approval, activation].map(Some)).unwrap();
}

/// A host whose `before.d` goes on until it is ended, once; says who was there, and when the program is.
fn slow_to_drain(host: &Host) -> std::path::PathBuf {
    let (seen, once) = (host.path("seen"), host.path("once"));
    let says = |word: &str| format!("echo {word} >> {}", seen.display());
    hook(
        host,
        "before.d",
        &format!(
            "if [ -e {once} ]; then exit 0; fi; : > {once}\ntrap '{ended}; exit 1' TERM\n{begun}\nsleep 100 & wait",
            once = once.display(),
            ended = says("ended"),
            begun = says("begun"),
        ),
    );
    hook(host, "after.d", &says("after"));
    seen
}

fn wait_for(path: &std::path::Path, host: &Host) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !fs::read_to_string(path).unwrap_or_default().contains("begun\n") {
        assert!(Instant::now() < deadline, "nothing is begun:\n{}", host.log());
        std::thread::yield_now();
    }
}

/// A program is journaled when it is there: a moment after it has begun.
fn wait_until_journaled(host: &Host) {
    let deadline = Instant::now() + Duration::from_secs(60);
    let mut status = host.agent();
    status.args(["status", "--json", "--config"]).arg(host.path("id/agent.toml"));
    loop {
        let said: serde_json::Value = serde_json::from_slice(&status.output().unwrap().stdout).unwrap();
        if said["orders"]["1"]["runs"]["1"]["process"]["pid"].is_i64() {
            return;
        }
        assert!(Instant::now() < deadline, "nothing is journaled: {said:#}");
        std::thread::yield_now();
    }
}

#[test]
fn an_abort_ends_what_the_site_does_before_the_work_and_nothing_is_used_up() {
    if missing() {
        return;
    }
    let host = Host::new();
    told(&host, RollbackFiles::WhenNeeded);
    let seen = slow_to_drain(&host);
    let manager = host.deployer();
    manager.start(1, 1).unwrap();
    wait_for(&seen, &host);
    manager.abort(1, 1);
    assert_eq!(manager.wait(1, 1), RunState::Aborted, "{}", host.log());
    assert_eq!(fs::read_to_string(&seen).unwrap(), "begun\nended\nafter\n");
    assert_eq!(host.packages(), "installed web 1\n");
    manager.start(1, 2).unwrap();
    assert_eq!(manager.wait(1, 2), RunState::Succeeded, "the same permission counts:\n{}", host.log());
}

#[test]
fn what_the_site_does_before_the_work_is_ended_before_it_is_put_back_when_the_agent_was_killed() {
    if missing() {
        return;
    }
    let mut host = Host::new();
    told(&host, RollbackFiles::WhenNeeded);
    let seen = slow_to_drain(&host);
    host.deployer().start(1, 1).unwrap();
    wait_for(&seen, &host);
    wait_until_journaled(&host);
    host.kill();
    host.start();
    assert_eq!(host.deployer().wait(1, 1), RunState::Aborted, "{}", host.log());
    assert_eq!(fs::read_to_string(&seen).unwrap(), "begun\nended\nafter\n");
}

#[test]
fn a_way_back_that_went_meanwhile_stops_the_run_before_anything_is_used_up() {
    if missing() {
        return;
    }
    let host = Host::new();
    told(&host, RollbackFiles::Staged);
    let manager = host.deployer();
    let (staged, once) = (host.path("state/staged"), host.path("once"));
    let once = once.display();
    hook(&host, "before.d", &format!("if [ -e {once} ]; then exit 0; fi; : > {once}\nrm -r {}", staged.display()));
    manager.start(1, 1).unwrap();
    assert_eq!(manager.wait(1, 1), RunState::Refused, "{}", host.log());
    let reason = manager.text(&oid(mib::order::ENTRY, &[mib::order::REFUSAL_REASON, 1]));
    assert!(reason.contains("start the run again"), "{reason}");
    manager.start(1, 2).unwrap();
    assert_eq!(manager.wait(1, 2), RunState::Succeeded, "{}", host.log());
}

#[test]
fn a_hook_may_refuse_before_the_work_and_another_sees_that_it_was_done() {
    if missing() {
        return;
    }
    let host = Host::new();
    let hook = |moment: &str, script: String| hook(&host, moment, &script);
    let (drained, seen) = (host.path("drained"), host.path("seen"));
    hook("before.d", format!("test -e {} || {{ echo 'still serving' >&2; exit 1; }}", drained.display()));
    let list = host.path("root/var/lib/dpkg/status");
    hook("after.d", format!("grep '^Version: ' {} > {}; echo $PATCHLAB_ACTION >> {1}", list.display(), seen.display()));

    let authority = &host.authority;
    let old = host.installed(&host.package("web", "1", "", None));
    let (order, envelope) = authority.order("PO-1", &host.class, vec![host.package("web", "2", "", None)], vec![old]);
    let digest = host.publish(&envelope);
    let release = host.publish(&authority.release(&order, digest, &["upgrade web all 1 -> 2"]));
    let approval = host.publish(&authority.approval(digest, release));
    let activation = host.publish(&authority.activation(digest, Action::Apply, NAME, Role::Activator, 1));
    let manager = host.deployer();
    manager.create(1, &host.uri, [digest, release, approval, activation].map(Some)).unwrap();
    manager.start(1, 1).unwrap();
    assert_eq!(manager.wait(1, 1), RunState::Refused, "{}", host.log());
    let reason = manager.text(&oid(mib::order::ENTRY, &[mib::order::REFUSAL_REASON, 1]));
    assert!(reason.contains("still serving"), "{reason}");
    assert!(!seen.exists() && host.packages() == "installed web 1\n");

    // Nothing was used up: the host is drained, and the same permission counts.
    fs::write(&drained, "").unwrap();
    manager.start(1, 2).unwrap();
    assert_eq!(manager.wait(1, 2), RunState::Succeeded, "{}", host.log());
    assert_eq!(fs::read_to_string(&seen).unwrap(), "Version: 2\napply\n");
}

#[test]
fn what_one_hook_prepared_is_put_back_when_the_next_one_refuses() {
    if missing() {
        return;
    }
    let host = Host::new();
    told(&host, RollbackFiles::WhenNeeded);
    let seen = host.path("seen");
    let says = |word: &str| format!("echo {word} >> {}", seen.display());
    named_hook(&host, "before.d", "10-drain.sh", &says("drained"));
    named_hook(&host, "before.d", "20-backup", "echo 'no backup today' >&2; exit 1");
    hook(&host, "after.d", &says("back"));
    let manager = host.deployer();
    manager.start(1, 1).unwrap();
    assert_eq!(manager.wait(1, 1), RunState::Refused, "{}", host.log());
    let reason = manager.text(&oid(mib::order::ENTRY, &[mib::order::REFUSAL_REASON, 1]));
    assert!(reason.contains("20-backup") && reason.contains("no backup today"), "{reason}");
    assert_eq!(fs::read_to_string(&seen).unwrap(), "drained\nback\n");
    assert_eq!(host.packages(), "installed web 1\n");
}

#[test]
fn packages_that_change_between_the_simulation_and_the_work_are_seen_before_it() {
    if missing() {
        return;
    }
    let host = Host::new();
    told(&host, RollbackFiles::WhenNeeded);
    let (root, seen) = (host.path("root"), host.path("seen"));
    // The package manager would remove this one now, and be content.
    let other = host.package("other", "1", "Conflicts: web (>> 1)\n", None);
    let install = format!("dpkg --root={} --install {}", root.display(), host.artifact(&other.sha256).display());
    hook(&host, "before.d", &format!("{install} >&2"));
    hook(&host, "after.d", &format!(": > {}", seen.display()));
    let manager = host.deployer();
    manager.start(1, 1).unwrap();
    assert_eq!(manager.wait(1, 1), RunState::Refused, "{}", host.log());
    assert_eq!(host.result(1, 1).0.refusal.map(|refusal| refusal.name()), Some("transaction-differs"));
    let reason = manager.text(&oid(mib::order::ENTRY, &[mib::order::REFUSAL_REASON, 1]));
    assert!(reason.contains("it would remove other all 1"), "{reason}");
    assert_eq!(host.packages(), "installed other 1\ninstalled web 1\n");
    assert!(seen.exists(), "what was prepared is put back");
    // One that changes nothing of the transaction is no reason to stop.
    run(Command::new("dpkg").arg(format!("--root={}", root.display())).args(["--remove", "other"]));
    let harmless = host.package("third", "1", "", None);
    let install = format!("dpkg --root={} --install {}", root.display(), host.artifact(&harmless.sha256).display());
    hook(&host, "before.d", &format!("{install} >&2"));
    manager.start(1, 2).unwrap();
    assert_eq!(manager.wait(1, 2), RunState::Succeeded, "{}", host.log());
}

#[test]
fn what_the_package_manager_changes_beside_what_it_said_fails_the_run() {
    if missing() {
        return;
    }
    let host = Host::new();
    told(&host, RollbackFiles::WhenNeeded);
    host.installed(&host.package("other", "1", "", None));
    let (root, gate) = (host.path("root"), host.path("gate"));
    run(Command::new("mkfifo").arg(&gate));
    hook(&host, "before.d", &format!("echo begun >> {}; read line < {}", host.path("seen").display(), gate.display()));
    let manager = host.deployer();
    manager.start(1, 1).unwrap();
    wait_for(&host.path("seen"), &host);
    // Somebody has the lock when the package manager comes, and changes packages: it plans when it gets the lock.
    let lock = fs::File::options().write(true).open(root.join("var/lib/dpkg/lock-frontend")).unwrap();
    fcntl_lock(&lock, FlockOperation::NonBlockingLockExclusive).unwrap();
    fs::write(&gate, "go\n").unwrap();
    manager.wait_until(1, 1, RunState::Applying);
    let other = host.package("other", "2", "Conflicts: web (>> 1)\n", None);
    let mut dpkg = Command::new("dpkg");
    dpkg.arg(format!("--root={}", root.display())).arg("--install").arg(host.artifact(&other.sha256));
    run(dpkg.env("DPKG_FRONTEND_LOCKED", "1"));
    drop(lock);
    assert_eq!(manager.wait(1, 1), RunState::Failed, "{}", host.log());
    let error = manager.text(&manager.run_cell(mib::run::ERROR, 1, 1));
    assert!(error.contains("more was changed than what was simulated: remove other all 1 -> -"), "{error}");
    assert_eq!(host.packages(), "installed web 2\n");
}
