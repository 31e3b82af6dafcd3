//! A reboot that an order asks for. The system is below a root of its own, so it has a shutdown of its own, and boots when
//! the agent is started in another boot.

use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
};

use patchlab_protocol::{
    Envelope, Role,
    document::{Action, Cause, OnFailure, Order, ProductionCheck, RebootRule, RebootWhen, RunState},
    mib,
};

use super::{
    host::{Host, NAME, missing},
    manager::oid,
};

const BOOT: &str = "root/proc/sys/kernel/random/boot_id";

fn boot(host: &Host, name: &str) {
    fs::create_dir_all(host.path(BOOT).parent().unwrap()).unwrap();
    fs::write(host.path(BOOT), format!("{name}\n")).unwrap();
}

/// A host in its first boot, whose shutdown writes down what it was asked.
fn host() -> Host {
    let host = Host::new();
    boot(&host, "one");
    let program = host.path("root/sbin/shutdown");
    fs::create_dir_all(program.parent().unwrap()).unwrap();
    fs::write(&program, format!("#!/bin/sh\necho \"$*\" >> {}\n", host.path("asked").display())).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    host
}

fn told(host: &Host, lifetime: u32, change: impl FnOnce(&mut Order)) {
    let authority = &host.authority;
    let old = host.installed(&host.package("web", "1", "", None));
    let (mut order, _) = authority.order("PO-1", &host.class, vec![host.package("web", "2", "", None)], vec![old]);
    change(&mut order);
    let digest = host.publish(&Envelope::sign(order.clone(), &authority.keys[&Role::Drafter]));
    let release = host.publish(&authority.release(&order, digest, &["upgrade web all 1 -> 2"]));
    let approval = host.publish(&authority.approval(digest, release));
    let activation = host.publish(&authority.activation(digest, Action::Apply, NAME, Role::Activator, 1));
    let manager = host.deployer();
    manager.create(1, &host.uri, [digest, release, approval, activation].map(Some)).unwrap();
    manager.set(&[(oid(mib::order::ENTRY, &[mib::order::LIFETIME, 1]), 'u', lifetime.to_string())]).unwrap();
    manager.start(1, 1).unwrap();
}

fn always(grace_minutes: u16) -> Option<RebootRule> {
    Some(RebootRule { when: RebootWhen::Always, grace_minutes })
}

/// A check that passes in the second boot only.
fn booted(host: &Host) -> Vec<ProductionCheck> {
    let command = format!("grep -q two {}", host.path(BOOT).display());
    let step = serde_json::from_value(serde_json::json!({"name": "s", "run": command})).unwrap();
    vec![ProductionCheck { scenario: "x".into(), step }]
}

#[test]
fn a_run_reboots_the_host_with_a_message_and_goes_on_with_its_checks_after_the_boot() {
    if missing() {
        return;
    }
    let mut host = host();
    let checks = booted(&host);
    told(&host, 120, |order| (order.reboot, order.production) = (always(3), checks));
    let manager = host.deployer();
    manager.wait_until(1, 1, RunState::Rebooting);
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while manager.wait_until(1, 1, RunState::Rebooting) != "reboots in 3 min" {
        assert!(std::time::Instant::now() < deadline, "no shutdown is asked for:\n{}", host.log());
    }
    assert_eq!(host.packages(), "installed web 2\n");
    // The agent alone is started again: the boot is still to come, and is not asked for twice.
    host.kill();
    host.start();
    assert_eq!(host.deployer().state(1, 1), RunState::Rebooting);
    let asked = fs::read_to_string(host.path("asked")).unwrap();
    assert_eq!(asked, "-r +3 patchlab: order PO-1 (test) reboots this host\n");
    fs::rename(host.path("www"), host.path("gone")).unwrap();
    host.kill();
    boot(&host, "two");
    host.start();
    assert_eq!(host.deployer().wait(1, 1), RunState::Succeeded, "{}", host.log());
    let result = host.result(1, 1).0;
    assert_eq!((result.checks.passed, result.checks.failed, result.cause), (1, 0, None));
}

#[test]
fn checks_after_the_boot_wait_for_services_and_keep_updaters_away() {
    if missing() {
        return;
    }
    let mut host = host();
    let (started, seen) = (host.path("started"), host.path("asked-systemd"));
    let command = format!("test -e {} && ! flock --nonblock {} true", started.display(), lock(&host).display());
    let step = serde_json::from_value(serde_json::json!({"name": "s", "run": command})).unwrap();
    for folder in ["root/run/systemd/system", "root/bin", "root/usr/lib/apt", "root/var/lib/apt"] {
        fs::create_dir_all(host.path(folder)).unwrap();
    }
    fs::write(host.path("root/usr/lib/apt/apt.systemd.daily"), "").unwrap();
    // Of a systemd that does not wait by itself; services start after it was asked twice.
    let program = host.path("root/bin/systemctl");
    let script = format!(
        "#!/bin/sh\necho \"$*\" >> {seen}\nif [ $(wc -l < {seen}) -lt 3 ]; then echo starting; exit 1; fi\n: > {started}\necho degraded; exit 1\n",
        seen = seen.display(),
        started = started.display(),
    );
    fs::write(&program, script).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    told(&host, 120, |order| {
        order.reboot = always(0);
        order.production = vec![ProductionCheck { scenario: "x".into(), step }];
    });
    host.deployer().wait_until(1, 1, RunState::Rebooting);
    host.kill();
    boot(&host, "two");
    host.start();
    assert_eq!(host.deployer().wait(1, 1), RunState::Succeeded, "{}", host.log());
    assert_eq!(fs::read_to_string(&seen).unwrap(), "is-system-running --wait\n".repeat(3));
}

/// The lock of apt's daily job.
fn lock(host: &Host) -> std::path::PathBuf {
    host.path("root/var/lib/apt/daily_lock")
}

#[test]
fn a_reboot_that_never_comes_ends_the_run_as_failed_or_walks_it_back() {
    if missing() {
        return;
    }
    for (on_failure, ends, cause) in
        [(OnFailure::Leave, RunState::Failed, None), (OnFailure::RollBack, RunState::RolledBack, Some(Cause::Reboot))]
    {
        let host = host();
        told(&host, 6, |order| (order.reboot, order.on_failure) = (always(0), on_failure));
        let manager = host.deployer();
        assert_eq!(manager.wait(1, 1), ends, "{}", host.log());
        assert_eq!(host.result(1, 1).0.cause, cause);
        let error = manager.text(&manager.run_cell(mib::run::ERROR, 1, 1));
        assert!(error.contains("the host did not reboot"), "{error}");
        let expected = if cause.is_some() { "installed web 1\n" } else { "installed web 2\n" };
        assert_eq!(host.packages(), expected);
    }
}

#[test]
fn checks_that_fail_after_the_boot_are_walked_back_and_without_a_shutdown_the_run_fails() {
    if missing() {
        return;
    }
    let mut first = host();
    let old = format!("grep -q 1 {}", first.path("root/usr/share/web/version").display());
    let step = serde_json::from_value(serde_json::json!({"name": "s", "run": old})).unwrap();
    told(&first, 120, |order| {
        (order.reboot, order.on_failure) = (always(0), OnFailure::RollBack);
        order.production = vec![ProductionCheck { scenario: "x".into(), step }];
    });
    first.deployer().wait_until(1, 1, RunState::Rebooting);
    first.kill();
    boot(&first, "two");
    first.start();
    assert_eq!(first.deployer().wait(1, 1), RunState::RolledBack, "{}", first.log());
    assert_eq!((first.packages().as_str(), first.result(1, 1).0.cause), ("installed web 1\n", Some(Cause::Checks)));

    let second = host();
    fs::remove_file(second.path("root/sbin/shutdown")).unwrap();
    told(&second, 120, |order| order.reboot = always(0));
    let manager = second.deployer();
    assert_eq!(manager.wait(1, 1), RunState::Failed, "{}", second.log());
    let error = manager.text(&manager.run_cell(mib::run::ERROR, 1, 1));
    assert!(error.contains("shutdown cannot be run"), "{error}");
}

#[test]
fn a_reboot_only_if_needed_is_asked_for_when_the_host_says_so_and_takes_nothing_along_unasked() {
    if missing() {
        return;
    }
    let rule = Some(RebootRule { when: RebootWhen::IfNeeded, grace_minutes: 0 });
    let waits = |host: &Host| {
        fs::create_dir_all(host.path("root/run")).unwrap();
        fs::write(host.path("root/run/reboot-required"), "").unwrap();
    };
    let first = host();
    told(&first, 5, |order| order.reboot = rule);
    assert_eq!(first.deployer().wait(1, 1), RunState::Succeeded, "{}", first.log());
    assert!(!first.path("asked").exists());

    let second = host();
    waits(&second);
    told(&second, 5, |order| order.reboot = rule);
    let manager = second.deployer();
    assert_eq!(manager.wait(1, 1), RunState::Refused, "{}", second.log());
    let reason = manager.text(&oid(mib::order::ENTRY, &[mib::order::REFUSAL_REASON, 1]));
    assert!(reason.contains("dpkg says that a reboot is needed, and this order reboots the host"), "{reason}");
    assert_eq!(second.packages(), "installed web 1\n");
    // Nothing was used up: when it has been rebooted, the order goes its way.
    fs::remove_file(second.path("root/run/reboot-required")).unwrap();
    // Unless somebody prepared something else for that boot.
    symlink("/var/lib/PackageKit/prepared-update", second.path("root/system-update")).unwrap();
    manager.start(1, 2).unwrap();
    assert_eq!(manager.wait(1, 2), RunState::Refused, "{}", second.log());
    let reason = manager.text(&oid(mib::order::ENTRY, &[mib::order::REFUSAL_REASON, 1]));
    assert!(reason.contains("PackageKit/prepared-update"), "{reason}");
    fs::remove_file(second.path("root/system-update")).unwrap();
    manager.start(1, 3).unwrap();
    assert_eq!(manager.wait(1, 3), RunState::Succeeded, "{}", second.log());

    let mut third = host();
    third.kill();
    third.take_reboots_along();
    third.start();
    waits(&third);
    told(&third, 5, |order| order.reboot = rule);
    assert_eq!(third.deployer().wait(1, 1), RunState::Failed, "{}", third.log());
    assert!(third.path("asked").exists());

    // An order that reboots nobody is not kept waiting.
    let fourth = host();
    waits(&fourth);
    told(&fourth, 5, |_| ());
    assert_eq!(fourth.deployer().wait(1, 1), RunState::Succeeded, "{}", fourth.log());
}
