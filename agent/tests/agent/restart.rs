//! The agent's end in the middle of things.

use std::{
    fs,
    time::{Duration, Instant},
};

use patchlab_protocol::{
    Digest, Role,
    document::{Action, RunState},
    mib,
};

use super::{
    host::{Host, NAME, give_shell, missing, run},
    manager::oid,
};

/// A postinst that waits for ever the first time, and is content the second time.
const STUCK: &str = "#!/bin/sh\nif [ -e /begun ]; then exit 0; fi\n: > /begun\nread line < /gate\n";

fn stuck_run(host: &Host, lifetime: u32) -> Digest {
    give_shell(&host.path("root"));
    run(std::process::Command::new("mkfifo").arg(host.path("root/gate")));
    let authority = &host.authority;
    let replaced = host.installed(&host.package("web", "1", "", None));
    let stuck = host.package("web", "2", "", Some(STUCK));
    let (order, envelope) = authority.order("PO-1", &host.class, vec![stuck], vec![replaced]);
    let digest = host.publish(&envelope);
    let release = host.publish(&authority.release(&order, digest, &["upgrade web all 1 -> 2"]));
    let approval = host.publish(&authority.approval(digest, release));
    let activation = host.publish(&authority.activation(digest, Action::Apply, NAME, Role::Activator, 1));
    let manager = host.deployer();
    manager.create(3, &host.uri, [Some(digest), Some(release), Some(approval), Some(activation)]).unwrap();
    manager.set(&[(oid(mib::order::ENTRY, &[mib::order::LIFETIME, 3]), 'u', lifetime.to_string())]).unwrap();
    manager.start(3, 1).unwrap();
    digest
}

fn wait_for(host: &Host, name: &str) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !host.path(name).exists() {
        assert!(Instant::now() < deadline, "{name} does not appear:\n{}", host.log());
        std::thread::yield_now();
    }
}

#[test]
fn a_killed_agent_ends_its_run_cleanly_after_a_restart() {
    if missing() {
        return;
    }
    let mut host = Host::new();
    let digest = stuck_run(&host, 600);
    wait_for(&host, "root/begun");
    // While the package manager works, an abort is too late, another run is refused as busy, and the row stays as it is.
    let manager = host.deployer();
    let abort = manager.run_cell(mib::run::ABORT, 3, 1);
    assert!(manager.set(&[(abort, 'u', "1".into())]).unwrap_err().contains("inconsistentValue"));
    manager.create(4, &host.uri, [Some(digest), None, None, None]).unwrap();
    manager.start(4, 1).unwrap();
    assert_eq!(manager.wait(4, 1), RunState::Refused);
    assert_eq!(host.result(4, 1).0.refusal.map(|r| r.name()), Some("busy"));

    host.kill();
    host.start();
    let manager = host.deployer();
    assert_eq!(manager.wait(3, 1), RunState::Aborted);
    assert_eq!(host.packages(), "installed web 2\n", "what was half-way is finished");
    let (result, head) = host.result(3, 1);
    assert_eq!((result.state, result.after), (RunState::Aborted, Digest::of("web all 2\n")));
    assert_eq!(manager.octets(&oid(mib::agent::GROUP, &[mib::agent::RESULT_HEAD, 0])), head.as_bytes());

    // The permission stays used up, the run index too.
    manager.start(3, 1).expect("a repeated start is no error");
    manager.start(3, 2).unwrap();
    assert_eq!(manager.wait(3, 2), RunState::Refused);
    assert_eq!(host.result(3, 2).0.refusal.map(|r| r.name()), Some("consumed"));
    let shown = host.agent().args(["status", "--config"]).arg(host.path("id/agent.toml")).output().unwrap();
    let shown = String::from_utf8(shown.stdout).unwrap();
    assert!(shown.contains("run 1: aborted") && shown.contains("run 2: refused consumed"), "{shown}");
}

#[test]
fn a_stuck_run_is_ended_by_its_lifetime() {
    if missing() {
        return;
    }
    let host = Host::new();
    stuck_run(&host, 5);
    wait_for(&host, "root/begun");
    assert_eq!(host.deployer().wait(3, 1), RunState::Aborted);
    assert_eq!(host.packages(), "installed web 2\n", "what was half-way is finished");
    assert!(host.deployer().text(&host.deployer().run_cell(mib::run::ERROR, 3, 1)).contains("lifetime"));
}

#[test]
fn a_second_agent_on_the_same_state_is_turned_away_and_exposed_secrets_too() {
    if missing() {
        return;
    }
    let host = Host::new();
    let config = host.path("id/agent.toml");
    let run = || host.agent().args(["run", "--config"]).arg(&config).output().unwrap();
    let second = run();
    assert!(!second.status.success());
    assert!(String::from_utf8_lossy(&second.stderr).contains("in use by another agent"));
    fs::set_permissions(&config, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    let exposed = run();
    assert!(!exposed.status.success());
    assert!(String::from_utf8_lossy(&exposed.stderr).contains("can be read by others"));
}
