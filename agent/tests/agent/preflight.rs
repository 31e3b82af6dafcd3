//! A host that is in no state to be patched refuses before anything is changed, and says what to do.

use std::{
    fs::{self, File},
    process::Command,
    time::{Duration, Instant},
};

use patchlab_protocol::{
    Digest, Role,
    document::{Action, Growth, RunState},
    mib,
};
use rustix::fs::{FlockOperation, flock};

use super::{
    host::{Host, NAME, give_shell, missing, run},
    manager::{Manager, oid},
};

/// Tells the host of an order from web 1 to `new`; it can be started with run indices as often as it is refused.
fn told(host: &Host, control: &str, postinst: Option<&str>) -> Manager {
    told_that_took(host, control, postinst, Vec::new())
}

/// The same of an order that took so much in the lab.
fn told_that_took(host: &Host, control: &str, postinst: Option<&str>, grown: Vec<Growth>) -> Manager {
    let authority = &host.authority;
    let old = host.installed(&host.package("web", "1", "", None));
    let new = host.package("web", "2", control, postinst);
    let (order, envelope) = authority.order("PO-1", &host.class, vec![new], vec![old]);
    let digest = host.publish(&envelope);
    let release = authority.release_that_took(&order, digest, &["upgrade web all 1 -> 2"], grown);
    let release = host.publish(&release);
    let approval = host.publish(&authority.approval(digest, release));
    let activation = host.publish(&authority.activation(digest, Action::Apply, NAME, Role::Activator, 1));
    let manager = host.deployer();
    let all: [Option<Digest>; 4] = [digest, release, approval, activation].map(Some);
    manager.create(1, &host.uri, all).unwrap();
    manager
}

fn refused(host: &Host, manager: &Manager, index: u32) -> String {
    manager.start(1, index).unwrap();
    assert_eq!(manager.wait(1, index), RunState::Refused, "{}", host.log());
    assert_eq!(host.result(1, index).0.refusal.map(|refusal| refusal.name()), Some("preflight"));
    assert_eq!(host.packages(), "installed web 1\n");
    manager.text(&oid(mib::order::ENTRY, &[mib::order::REFUSAL_REASON, 1]))
}

#[test]
fn a_held_package_and_a_package_that_does_not_fit_are_refused_and_nothing_is_used_up() {
    if missing() {
        return;
    }
    let host = Host::new();
    // A GiB of GiB.
    let manager = told(&host, "Installed-Size: 1073741824\n", None);
    let reason = refused(&host, &manager, 1);
    assert!(reason.contains("bytes are needed in /") && reason.contains("make room"), "{reason}");

    // Its package is small, and what its script makes was not.
    let host = Host::new();
    let grown = |bytes| vec![Growth { path: "/var".into(), bytes }];
    let manager = told_that_took(&host, "", None, grown(1 << 50));
    let reason = refused(&host, &manager, 1);
    assert!(reason.contains("1125899906842624 bytes are needed in /var"), "{reason}");
    let host = Host::new();
    let manager = told_that_took(&host, "", None, grown(1 << 20));
    manager.start(1, 1).unwrap();
    assert_eq!(manager.wait(1, 1), RunState::Succeeded, "{}", host.log());

    let host = Host::new();
    let manager = told(&host, "", None);
    let admin = format!("--admindir={}", host.path("root/var/lib/dpkg").display());
    let mark = |selection: &str| {
        let list = host.path("selections");
        fs::write(&list, format!("web {selection}\n")).unwrap();
        run(Command::new("dpkg").args([&admin, "--set-selections"]).stdin(File::open(&list).unwrap()));
    };
    mark("hold");
    let reason = refused(&host, &manager, 1);
    assert!(reason.to_lowercase().contains("held"), "{reason}");
    mark("install");
    manager.start(1, 2).unwrap();
    assert_eq!(manager.wait(1, 2), RunState::Succeeded, "{}", host.log());
}

#[test]
fn an_automatic_updater_at_work_is_named_and_waited_for_and_paused_for_the_run() {
    if missing() {
        return;
    }
    let host = Host::new();
    give_shell(&host.path("root"));
    for folder in ["root/usr/lib/apt", "root/var/lib/apt"] {
        fs::create_dir_all(host.path(folder)).unwrap();
    }
    fs::write(host.path("root/usr/lib/apt/apt.systemd.daily"), "").unwrap();
    run(Command::new("mkfifo").arg(host.path("root/gate")));
    let manager = told(&host, "", Some("#!/bin/sh\n: > /begun\nread line < /gate\nexit 0\n"));
    let lock = host.path("root/var/lib/apt/daily_lock");
    let daily = File::create(&lock).unwrap();
    let take = || flock(&daily, FlockOperation::NonBlockingLockExclusive);
    take().unwrap();
    manager.start(1, 1).unwrap();
    let phase = manager.wait_until(1, 1, RunState::WaitingLock);
    assert!(phase.contains("apt-daily is at work"), "{phase}");
    assert_eq!(host.packages(), "installed web 1\n");
    flock(&daily, FlockOperation::Unlock).unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    while !host.path("root/begun").exists() {
        assert!(Instant::now() < deadline, "dpkg does not come to its script:\n{}", host.log());
        std::thread::yield_now();
    }
    assert_eq!(take(), Err(rustix::io::Errno::WOULDBLOCK), "the updater is not paused");
    fs::write(host.path("root/gate"), "go\n").unwrap();
    assert_eq!(manager.wait(1, 1), RunState::Succeeded, "{}", host.log());
    let deadline = Instant::now() + Duration::from_secs(20);
    while take().is_err() {
        assert!(Instant::now() < deadline, "the updater stays paused");
        std::thread::yield_now();
    }
}
