//! A run that waits: for its window, for somebody else's lock, for the mains. It can be aborted there, killed there, and
//! goes on when what it waits for comes.

use std::{
    fs::{self, File},
    os::unix::fs::PermissionsExt as _,
    path::Path,
};

use jiff::{SignedDuration, Timestamp};
use patchlab_protocol::{
    Digest, Role,
    document::{Action, RunState},
    mib, time,
};
use rustix::fs::{FlockOperation, fcntl_lock};

use super::{
    host::{Host, NAME, missing},
    manager::{Manager, oid},
    orders::hours,
};

/// Long enough that a run is ready, and an agent killed and started again, before it is over.
const WINDOW: SignedDuration = SignedDuration::from_secs(12);

/// Tells the host of an order that brings `name` from 1 to 2.
fn told(host: &Host, row: u32, name: &str, activation_from: Timestamp) {
    let authority = &host.authority;
    let old = host.installed(&host.package(name, "1", "", None));
    let new = host.package(name, "2", "", None);
    let (order, envelope) = authority.order(&format!("PO-{row}"), &host.class, vec![new], vec![old]);
    let digest = host.publish(&envelope);
    let release = host.publish(&authority.release(&order, digest, &[&format!("upgrade {name} all 1 -> 2")]));
    let approval = host.publish(&authority.approval(digest, release));
    let apply = authority.activation_from(digest, Action::Apply, NAME, Role::Activator, 1, activation_from);
    let all = [digest, release, approval, host.publish(&apply)];
    host.deployer().create(row, &host.uri, all.map(Some)).unwrap();
}

fn window(manager: &Manager, row: u32, column: u32, at: Option<Timestamp>) {
    let value = at.map(|at| hex::encode(time::octets(at))).unwrap_or_default();
    manager.set(&[(oid(mib::order::ENTRY, &[column, row]), 'x', value)]).unwrap();
}

fn refusal(host: &Host, row: u32, run: u32) -> Option<&'static str> {
    host.result(row, run).0.refusal.map(|refusal| refusal.name())
}

/// A record lock as apt and dpkg hold one, held by this process, until it is dropped.
struct Holder(File);

impl Holder {
    fn of(path: &Path) -> Self {
        let file = File::options().write(true).open(path).unwrap();
        fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive).unwrap();
        Self(file)
    }

    fn let_go(self) {
        drop(self.0);
    }
}

#[test]
fn a_run_waits_for_its_window_over_a_kill_without_a_network_and_applies_when_it_opens() {
    if missing() {
        return;
    }
    let mut host = Host::new();
    let opens = Timestamp::now() + WINDOW;
    told(&host, 1, "web", opens);
    let manager = host.deployer();
    manager.start(1, 1).unwrap();
    let phase = manager.wait_until(1, 1, RunState::WaitingWindow);
    assert!(phase.contains(&opens.to_string()), "{phase}");

    // All that is needed is there already: documents and files are asked for no more.
    fs::rename(host.path("www"), host.path("gone")).unwrap();
    host.kill();
    host.start();
    let manager = host.deployer();
    assert_eq!(manager.state(1, 1), RunState::WaitingWindow);
    assert_eq!(host.packages(), "installed web 1\n");
    assert_eq!(manager.wait(1, 1), RunState::Succeeded, "{}", host.log());
    assert!(Timestamp::now() >= opens);
    assert_eq!(host.packages(), "installed web 2\n");
    let result = host.result(1, 1).0;
    assert_eq!([result.before, result.after], ["web all 1\n", "web all 2\n"].map(Digest::of));
    assert!(host.log().contains("goes on waiting for its window"), "{}", host.log());
}

#[test]
fn a_run_that_waits_lets_others_work_and_can_be_aborted_and_nothing_is_used_up() {
    if missing() {
        return;
    }
    let host = Host::new();
    told(&host, 1, "web", hours(-1));
    told(&host, 2, "other", hours(-1));
    let manager = host.deployer();
    window(&manager, 1, mib::order::NOT_BEFORE, Some(hours(24 * 7)));
    // The window would open when the activation counts no more.
    manager.start(1, 1).unwrap();
    assert_eq!((manager.wait(1, 1), refusal(&host, 1, 1)), (RunState::Refused, Some("expired")));

    let opens = Timestamp::now() + SignedDuration::from_mins(30);
    window(&manager, 1, mib::order::NOT_BEFORE, Some(opens));
    manager.start(1, 2).unwrap();
    manager.wait_until(1, 2, RunState::WaitingWindow);
    manager.start(2, 1).unwrap();
    assert_eq!(manager.wait(2, 1), RunState::Succeeded, "{}", host.log());
    assert_eq!(manager.state(1, 2), RunState::WaitingWindow);
    manager.abort(1, 2);
    assert_eq!(manager.wait(1, 2), RunState::Aborted);
    assert!(!host.path("state/files/1-2").exists(), "files of a run are left");
    assert_eq!(host.packages(), "installed other 2\ninstalled web 1\n");

    // A window that is closed refuses by its own name; without one the same permission counts.
    window(&manager, 1, mib::order::NOT_BEFORE, None);
    window(&manager, 1, mib::order::NOT_AFTER, Some(hours(-1)));
    manager.start(1, 3).unwrap();
    assert_eq!((manager.wait(1, 3), refusal(&host, 1, 3)), (RunState::Refused, Some("outside-window")));
    window(&manager, 1, mib::order::NOT_AFTER, None);
    manager.start(1, 4).unwrap();
    assert_eq!(manager.wait(1, 4), RunState::Succeeded, "{}", host.log());
}

#[test]
fn a_run_whose_window_opens_while_another_works_waits_its_turn_and_plans_anew() {
    if missing() {
        return;
    }
    let host = Host::new();
    told(&host, 1, "web", Timestamp::now() + WINDOW);
    told(&host, 2, "web", hours(-1));
    let manager = host.deployer();
    manager.start(1, 1).unwrap();
    manager.wait_until(1, 1, RunState::WaitingWindow);
    let holder = Holder::of(&host.path("root/var/lib/dpkg/lock-frontend"));
    manager.start(2, 1).unwrap();
    manager.wait_until(2, 1, RunState::WaitingLock);
    let phase = manager.wait_until(1, 1, RunState::WaitingLock);
    assert_eq!(phase, "another run is under way");
    holder.let_go();
    assert_eq!(manager.wait(2, 1), RunState::Succeeded, "{}", host.log());
    // The other one did the very same before: this one finds other versions than it was made ready for.
    assert_eq!((manager.wait(1, 1), refusal(&host, 1, 1)), (RunState::Refused, Some("versions-differ")));
}

#[test]
fn a_lock_of_another_program_is_waited_for_with_its_holders_name() {
    if missing() {
        return;
    }
    let mut host = Host::new();
    told(&host, 1, "web", hours(-1));
    let holder = Holder::of(&host.path("root/var/lib/dpkg/lock-frontend"));
    let manager = host.deployer();
    manager.start(1, 1).unwrap();
    let phase = manager.wait_until(1, 1, RunState::WaitingLock);
    let process = format!("(process {}) holds", std::process::id());
    assert!(phase.contains(&process) && phase.contains("lock-frontend"), "{phase}");
    // Killed while it waits: ended, and nothing is used up.
    host.kill();
    host.start();
    let manager = host.deployer();
    assert_eq!(manager.wait(1, 1), RunState::Aborted);
    manager.start(1, 2).unwrap();
    manager.wait_until(1, 2, RunState::WaitingLock);
    manager.abort(1, 2);
    assert_eq!(manager.wait(1, 2), RunState::Aborted);

    // The lifetime ends the wait, and says for what it was.
    let lifetime = oid(mib::order::ENTRY, &[mib::order::LIFETIME, 1]);
    manager.set(&[(lifetime.clone(), 'u', "3".into())]).unwrap();
    manager.start(1, 3).unwrap();
    assert_eq!(manager.wait(1, 3), RunState::Aborted);
    let error = manager.text(&manager.run_cell(mib::run::ERROR, 1, 3));
    assert!(error.contains("its lifetime ended (waiting-lock: ") && error.contains(&process), "{error}");

    manager.set(&[(lifetime, 'u', "120".into())]).unwrap();
    manager.start(1, 4).unwrap();
    manager.wait_until(1, 4, RunState::WaitingLock);
    holder.let_go();
    assert_eq!(manager.wait(1, 4), RunState::Succeeded, "{}", host.log());
    assert_eq!(host.packages(), "installed web 2\n");
}

#[test]
fn what_somebody_at_work_has_half_way_is_waited_for_and_not_refused() {
    if missing() {
        return;
    }
    let host = Host::new();
    told(&host, 1, "web", hours(-1));
    let list = host.path("root/var/lib/dpkg/status");
    let whole = fs::read_to_string(&list).unwrap();
    let holder = Holder::of(&host.path("root/var/lib/dpkg/lock-frontend"));
    fs::write(&list, whole.replace("install ok installed", "install ok unpacked")).unwrap();
    let manager = host.deployer();
    manager.start(1, 1).unwrap();
    let phase = manager.wait_until(1, 1, RunState::WaitingLock);
    assert!(phase.contains("lock-frontend"), "{phase}");
    fs::write(&list, &whole).unwrap();
    holder.let_go();
    assert_eq!(manager.wait(1, 1), RunState::Succeeded, "{}", host.log());
    // Half-way with nobody at work stays a refusal.
    told(&host, 2, "other", hours(-1));
    let whole = fs::read_to_string(&list).unwrap();
    fs::write(&list, whole.replace("install ok installed", "install ok unpacked")).unwrap();
    manager.start(2, 1).unwrap();
    assert_eq!((manager.wait(2, 1), refusal(&host, 2, 1)), (RunState::Refused, Some("preflight")));
}

#[test]
fn a_host_on_its_battery_waits_for_the_mains_and_what_the_site_prepared_is_put_back_after_a_kill() {
    if missing() {
        return;
    }
    let mut host = Host::new();
    let supply = host.path("root/sys/class/power_supply/BAT0");
    fs::create_dir_all(&supply).unwrap();
    fs::write(supply.join("type"), "Battery\n").unwrap();
    let put_back = host.path("put-back");
    let hook = host.path("hooks/after.d/site");
    fs::create_dir_all(hook.parent().unwrap()).unwrap();
    fs::write(&hook, format!("#!/bin/sh\n: > {}\n", put_back.display())).unwrap();
    fs::set_permissions(&hook, fs::Permissions::from_mode(0o755)).unwrap();

    told(&host, 1, "web", hours(-1));
    let manager = host.deployer();
    manager.start(1, 1).unwrap();
    manager.wait_until(1, 1, RunState::Preflight);
    host.kill();
    host.start();
    assert_eq!(host.deployer().wait(1, 1), RunState::Aborted);
    assert!(put_back.exists(), "{}", host.log());
    assert_eq!(host.packages(), "installed web 1\n");

    let manager = host.deployer();
    manager.start(1, 2).unwrap();
    manager.wait_until(1, 2, RunState::Preflight);
    assert!(host.log().contains("waiting for the mains"), "{}", host.log());
    let mains = host.path("root/sys/class/power_supply/AC");
    fs::create_dir_all(&mains).unwrap();
    fs::write(mains.join("type"), "Mains\n").unwrap();
    fs::write(mains.join("online"), "1\n").unwrap();
    assert_eq!(manager.wait(1, 2), RunState::Succeeded, "{}", host.log());
}
