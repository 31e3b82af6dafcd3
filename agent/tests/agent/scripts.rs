//! Changes by scripts that an order ships: made, taken back, refused, cut off at any point.
//!
//! The scripts write a file in two steps, so that there is a state between: `half`. Each hangs before, between or after them when the file
//! `hang` names it and the point, the first time.

use std::{
    fs,
    os::unix::process::CommandExt as _,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use patchlab_protocol::{
    Digest, Envelope, Role,
    document::{Action, Cause, OnFailure, Order, Preparation, ProductionCheck, RollbackFiles, RunState, Script},
    mib,
};

use super::{
    actions::prepare,
    host::{Host, NAME, missing, run},
    manager::oid,
};

/// The transaction that the lab proved.
const PROVEN: &str = "install PO-1 script - -> applied";

/// A host, and the paths that its scripts work with.
struct World {
    host: Host,
    runs: u32,
    order: Option<Digest>,
}

impl World {
    fn new(host: Host) -> Self {
        run(Command::new("mkfifo").arg(host.path("gate")));
        fs::write(host.path("subject"), "old\n").unwrap();
        Self { host, runs: 0, order: None }
    }

    fn at(&self, name: &str) -> String {
        self.host.path(name).display().to_string()
    }

    fn subject(&self) -> String {
        fs::read_to_string(self.host.path("subject")).unwrap().trim().to_owned()
    }

    /// A script that writes `word`, half of it first; `between` is done after that. It may hang at three points.
    fn writes(&self, name: &str, word: &str, between: &str) -> String {
        let [subject, hang, begun, gate] = ["subject", "hang", "begun", "gate"].map(|name| self.at(name));
        let point = |point: &str| {
            let is_meant = format!("[ \"$(cat {hang} 2>/dev/null)\" = {name}.{point} ]");
            format!("if {is_meant}; then rm {hang}; : > {begun}; read line < {gate}; fi")
        };
        let [begin, half, end] = ["begin", "half", "end"].map(point);
        format!(
            "#!/bin/sh\nset -e\n{begin}\necho half > {subject}\n{half}\n{between}\necho {word} > {subject}\n{end}\n"
        )
    }

    fn verify(&self) -> String {
        let subject = self.at("subject");
        format!(
            "#!/bin/sh\ncase $(cat {subject}) in new) exit 0;; old) exit 10;; esac\n\
             echo \"{subject} is half-written\" >&2; exit 3\n"
        )
    }

    fn script(&self) -> Script {
        self.script_of(&self.writes("apply", "new", ":"), &self.writes("rollback", "old", ":"))
    }

    fn script_of(&self, apply: &str, rollback: &str) -> Script {
        let ship = |name, text: &str| self.host.shipped(name, text);
        Script {
            apply: ship("apply", apply),
            rollback: ship("rollback", rollback),
            verify: ship("verify", &self.verify()),
            files: vec![ship("snippet", "a line\n")],
        }
    }

    /// Tells the host of an order with this script, proven by the lab, as `change` leaves it.
    fn tell(&mut self, script: Script, change: impl FnOnce(&mut Order)) {
        let authority = &self.host.authority;
        let (mut order, _) = authority.order("PO-1", &self.host.class, vec![], vec![]);
        order.script = Some(script);
        change(&mut order);
        let digest = self.host.publish(&Envelope::sign(order.clone(), &authority.keys[&Role::Drafter]));
        let release = self.host.publish(&authority.release(&order, digest, &[PROVEN]));
        let approval = self.host.publish(&authority.approval(digest, release));
        let documents = [Some(digest), Some(release), Some(approval), None];
        self.host.deployer().create(1, &self.host.uri, documents).unwrap();
        self.order = Some(digest);
    }

    fn start(&mut self, action: Action) {
        self.runs += 1;
        let role = if action == Action::Apply { Role::Activator } else { Role::Operator };
        let activation = self.host.authority.activation(self.order.unwrap(), action, NAME, role, self.runs);
        let activation = self.host.publish(&activation);
        let manager = self.host.deployer();
        let cell = oid(mib::order::ENTRY, &[mib::order::ACTIVATION, 1]);
        manager.set(&[(cell, 'x', activation.to_string())]).unwrap();
        manager.start(1, self.runs).unwrap();
    }

    fn wait(&self) -> RunState {
        self.host.deployer().wait(1, self.runs)
    }

    fn done(&mut self, action: Action) -> RunState {
        self.start(action);
        self.wait()
    }

    fn error(&self) -> String {
        let manager = self.host.deployer();
        manager.text(&manager.run_cell(mib::run::ERROR, 1, self.runs))
    }

    fn refusal(&self) -> Option<&'static str> {
        self.host.result(1, self.runs).0.refusal.map(|refusal| refusal.name())
    }

    fn item(&self) -> [String; 4] {
        let manager = self.host.deployer();
        [mib::item::NAME, mib::item::ARCH, mib::item::FROM, mib::item::TO]
            .map(|column| manager.text(&oid(mib::item::ENTRY, &[column, 1, self.runs, 1])))
    }

    /// Until a script hangs where it was told to.
    fn hang_in(&mut self, script: &str, action: Action) {
        fs::write(self.host.path("hang"), script).unwrap();
        self.start(action);
        self.wait_until_it_hangs(script);
    }

    fn wait_until_it_hangs(&self, script: &str) {
        let begun = self.host.path("begun");
        let deadline = Instant::now() + Duration::from_secs(60);
        while !begun.exists() {
            assert!(Instant::now() < deadline, "{script} does not hang:\n{}", self.host.log());
            std::thread::yield_now();
        }
        fs::remove_file(begun).unwrap();
    }

    /// Kills the agent, and what it started too, as a power failure does; the next one settles it.
    fn kill(&mut self, killed: Killed) {
        self.host.kill();
        let mut status = self.host.agent();
        status.args(["status", "--json", "--config"]).arg(self.host.path("id/agent.toml"));
        let said: serde_json::Value = serde_json::from_slice(&status.output().unwrap().stdout).unwrap();
        let group = said["orders"]["1"]["runs"][self.runs.to_string()]["process"]["pid"].as_i64();
        if let (Killed::Everything, Some(group)) = (killed, group) {
            // It may have ended meanwhile.
            let _ = Command::new("kill").args(["-KILL", "--", &format!("-{group}")]).stderr(Stdio::null()).status();
        }
        self.host.start();
    }

    /// Whether a script of this host runs anywhere.
    fn assert_nothing_is_left(&self) {
        let left = Command::new("pgrep").args(["--full", &self.at("state/files")]).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&left.stdout), "", "scripts of earlier agents are left");
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Killed {
    Agent,
    Everything,
}

#[test]
fn a_script_is_applied_once_and_taken_back_and_stands_in_items_and_results_as_packages_do() {
    if missing() {
        return;
    }
    let mut world = World::new(Host::taking_scripts());
    world.tell(world.script(), |_| ());
    // Nobody may run it back where it was never begun: that takes one signature, and no lab has seen it.
    assert_eq!(world.done(Action::Rollback), RunState::Refused);
    assert!(world.error().contains("never begun on this host"), "{}", world.error());
    assert!(world.host.asked("artifacts").is_empty(), "nothing of it was fetched");

    assert_eq!(world.done(Action::Apply), RunState::Succeeded, "{}", world.host.log());
    assert_eq!(world.subject(), "new");
    assert_eq!(world.item(), ["PO-1", "script", "", "applied"]);
    let manager = world.host.deployer();
    assert_eq!(manager.number(&manager.run_cell(mib::run::EXIT_CODE, 1, world.runs)), 0);
    assert_eq!(world.done(Action::Apply), RunState::Refused);
    assert_eq!(world.refusal(), Some("consumed"));

    assert_eq!(world.done(Action::Rollback), RunState::RolledBack, "{}", world.host.log());
    assert_eq!((world.subject().as_str(), world.item()), ("old", ["PO-1", "script", "applied", ""].map(str::to_owned)));
    assert_eq!(world.done(Action::Rollback), RunState::Refused);
    assert!(world.error().contains("there is nothing to roll back"), "{}", world.error());
    assert_eq!(fs::read_dir(world.host.path("state/files")).map_or(0, Iterator::count), 0, "files of runs are left");
}

#[test]
fn a_host_that_takes_no_scripts_or_is_not_as_it_must_be_refuses_and_runs_nothing() {
    if missing() {
        return;
    }
    let mut world = World::new(Host::new());
    world.tell(world.script(), |_| ());
    assert_eq!(world.done(Action::Apply), RunState::Refused);
    assert!(world.error().contains("allow = true under [scripts]"), "{}", world.error());
    assert!(world.host.asked("artifacts").is_empty(), "nothing of it was fetched");

    let mut world = World::new(Host::taking_scripts());
    world.tell(world.script(), |_| ());
    for (found, says) in [("half", "half-written"), ("new", "it is applied")] {
        fs::write(world.host.path("subject"), found).unwrap();
        assert_eq!(world.done(Action::Apply), RunState::Refused);
        assert_eq!((world.refusal(), world.subject().as_str()), (Some("versions-differ"), found));
        assert!(world.error().contains(says), "{}", world.error());
    }

    // Other bytes under its name, and what is no script.
    fs::write(world.host.path("subject"), "old").unwrap();
    let script = world.script();
    fs::write(world.host.artifact(&script.apply.sha256), "#!/bin/sh\n: > /dev/null\n").unwrap();
    assert_eq!(world.done(Action::Apply), RunState::Refused);
    assert!(world.error().contains("not what its digest names"), "{}", world.error());
    let mut world = World::new(Host::taking_scripts());
    world.tell(world.script_of("echo new > subject\n", "#!/bin/sh\n"), |_| ());
    assert_eq!(world.done(Action::Apply), RunState::Refused);
    assert!(world.error().contains("apply does not begin with #!"), "{}", world.error());
    assert_eq!(world.subject(), "old");
}

#[test]
fn a_host_without_a_package_system_takes_scripts_and_refuses_packages_by_name() {
    if missing() {
        return;
    }
    let mut world = World::new(Host::without_packages());
    world.tell(world.script(), |_| ());
    assert_eq!(world.done(Action::Apply), RunState::Succeeded, "{}", world.host.log());
    assert_eq!(world.subject(), "new");
    let result = world.host.result(1, world.runs).0;
    assert_eq!((result.before, result.after), (Digest::of(""), Digest::of("")), "nothing is installed");
    assert_eq!(world.done(Action::Rollback), RunState::RolledBack, "{}", world.host.log());
    assert_eq!(world.subject(), "old");

    let mut world = World::new(Host::without_packages());
    let package = world.host.package("web", "1", "", None);
    world.tell(world.script(), |order| {
        order.script = None;
        order.install = vec![package];
    });
    assert_eq!((world.done(Action::Apply), world.refusal()), (RunState::Refused, Some("preflight")));
    assert!(world.error().contains("this host has no package system: only script orders"), "{}", world.error());
}

#[test]
fn another_form_of_order_is_none() {
    if missing() {
        return;
    }
    let mut world = World::new(Host::taking_scripts());
    let package = world.host.package("web", "1", "", None);
    let script = world.script();
    world.tell(script, |order| order.install = vec![package]);
    assert_eq!(world.done(Action::Apply), RunState::Refused);
    assert!(world.error().contains("packages and a script"), "{}", world.error());
    assert_eq!(world.subject(), "old");
}

#[test]
fn a_script_that_is_killed_in_the_middle_is_carried_on_and_never_left_there() {
    if missing() {
        return;
    }
    for killed in [Killed::Agent, Killed::Everything] {
        for (point, applied) in [("begin", "old"), ("half", "new"), ("end", "new")] {
            let mut world = World::new(Host::taking_scripts());
            world.tell(world.script(), |_| ());
            world.hang_in(&format!("apply.{point}"), Action::Apply);
            world.kill(killed);
            let what = format!("apply, {killed:?} killed at its {point}");
            assert_eq!(world.wait(), RunState::Aborted, "{what}: {}", world.host.log());
            assert_eq!(world.subject(), applied, "{what}: half-way it is carried on");
            let stands =
                if applied == "new" { "verify says that it is applied" } else { "verify says that it is not applied" };
            assert!(world.error().ends_with(stands), "{what}: {}", world.error());
            if applied == "old" {
                // Begun and not made: there is nothing to take back.
                assert_eq!((world.done(Action::Rollback), world.subject().as_str()), (RunState::Refused, "old"));
                continue;
            }
            world.hang_in(&format!("rollback.{point}"), Action::Rollback);
            world.kill(killed);
            let what = format!("rollback, {killed:?} killed at its {point}");
            assert_eq!(world.wait(), RunState::Aborted, "{what}: {}", world.host.log());
            assert_eq!(world.subject(), "old", "{what}");
        }
        let mut world = World::new(Host::taking_scripts());
        world.tell(world.script(), |_| ());
        assert_eq!(world.done(Action::Apply), RunState::Succeeded, "{}", world.host.log());
        world.hang_in("rollback.begin", Action::Rollback);
        world.kill(killed);
        assert_eq!((world.wait(), world.subject().as_str()), (RunState::Aborted, "new"), "{killed:?}");
        assert_eq!((world.done(Action::Rollback), world.subject().as_str()), (RunState::RolledBack, "old"));
    }
    // Killed again while it was carried on.
    let mut world = World::new(Host::taking_scripts());
    world.tell(world.script(), |_| ());
    world.hang_in("apply.half", Action::Apply);
    world.host.kill();
    fs::write(world.host.path("hang"), "apply.half").unwrap();
    world.host.spawn();
    world.wait_until_it_hangs("apply.half");
    world.host.kill();
    // And one that was started in the moment of the kill, so that no journal knows it.
    let mut unknown = Command::new("/bin/sh")
        .args(["-c", "sleep 600; exit 0", "unknown"])
        .current_dir(world.host.path("state/files/1-1/script/work"))
        .process_group(0)
        .spawn()
        .unwrap();
    world.host.start();
    assert!(!unknown.wait().unwrap().success(), "it was ended");
    assert_eq!((world.wait(), world.subject().as_str()), (RunState::Aborted, "new"), "{}", world.host.log());
    world.assert_nothing_is_left();

    // One that cannot be carried on is walked back.
    let mut world = World::new(Host::taking_scripts());
    let once = format!("[ -e {0} ] && exit 1; : > {0}; read line < {1}", world.at("begun"), world.at("gate"));
    let apply = world.writes("apply", "new", &once);
    world.tell(world.script_of(&apply, &world.writes("rollback", "old", ":")), |_| ());
    world.start(Action::Apply);
    let deadline = Instant::now() + Duration::from_secs(60);
    while !world.host.path("begun").exists() {
        assert!(Instant::now() < deadline, "apply does not hang:\n{}", world.host.log());
        std::thread::yield_now();
    }
    world.kill(Killed::Everything);
    assert_eq!((world.wait(), world.subject().as_str()), (RunState::Aborted, "old"), "{}", world.host.log());
}

#[test]
fn killed_at_any_moment_a_host_is_never_left_between() {
    if missing() {
        return;
    }
    let soak = std::env::var_os("PATCHLAB_SOAK").is_some_and(|soak| !soak.is_empty());
    let kills = if soak { 100 } else { 8 };
    // From the start to about the end of a run whose script takes a quarter of it; the moments themselves are what is tried.
    for number in 0..kills {
        let moment = Duration::from_millis(number * 160 / kills);
        let killed = if number % 2 == 0 { Killed::Agent } else { Killed::Everything };
        let mut world = World::new(Host::taking_scripts());
        let [apply, rollback] =
            [("apply", "new"), ("rollback", "old")].map(|(name, word)| world.writes(name, word, "sleep 0.04"));
        world.tell(world.script_of(&apply, &rollback), |_| ());
        world.start(Action::Apply);
        std::thread::sleep(moment);
        world.kill(killed);
        let (ended, what) = (world.wait(), format!("{killed:?} killed after {moment:?}"));
        assert!(matches!(ended, RunState::Aborted | RunState::Succeeded), "{what}: {ended:?}: {}", world.host.log());
        assert!(["old", "new"].contains(&&*world.subject()), "{what}: {}", world.host.log());
        world.assert_nothing_is_left();
        if world.subject() == "new" {
            world.start(Action::Rollback);
            std::thread::sleep(moment);
            world.kill(killed);
            let ended = world.wait();
            assert!(
                matches!(ended, RunState::Aborted | RunState::RolledBack),
                "{what}: {ended:?}: {}",
                world.host.log()
            );
            assert!(["old", "new"].contains(&&*world.subject()), "{what}, on its way back: {}", world.host.log());
        }
    }
}

#[test]
fn an_order_that_is_to_be_rolled_back_on_failure_is_walked_back_from_what_was_staged() {
    if missing() {
        return;
    }
    let back = |order: &mut Order| order.on_failure = OnFailure::RollBack;
    // Killed in the middle.
    let mut world = World::new(Host::taking_scripts());
    world.tell(world.script(), back);
    world.hang_in("apply.half", Action::Apply);
    world.kill(Killed::Everything);
    assert_eq!((world.wait(), world.subject().as_str()), (RunState::RolledBack, "old"), "{}", world.host.log());
    assert_eq!(world.host.result(1, world.runs).0.cause, Some(Cause::Interrupted));

    // Failed by itself, half-way.
    let mut world = World::new(Host::taking_scripts());
    let apply = world.writes("apply", "new", "echo 'the daemon does not take it' >&2; exit 4");
    world.tell(world.script_of(&apply, &world.writes("rollback", "old", ":")), back);
    assert_eq!((world.done(Action::Apply), world.subject().as_str()), (RunState::RolledBack, "old"));
    assert!(world.error().contains("the daemon does not take it"), "{}", world.error());
    assert_eq!(world.host.result(1, world.runs).0.cause, Some(Cause::Change));

    // A check that fails, with the network down by then.
    let mut world = World::new(Host::taking_scripts());
    let check = format!("mv {} {}; grep -q old {}", world.at("www"), world.at("gone"), world.at("subject"));
    world.tell(world.script(), |order| {
        back(order);
        let step = serde_json::from_value(serde_json::json!({"name": "s", "run": check})).unwrap();
        order.production = vec![ProductionCheck { scenario: "x".into(), step }];
    });
    assert_eq!((world.done(Action::Apply), world.subject().as_str()), (RunState::RolledBack, "old"));
    assert!(world.host.path("gone").exists() && world.error().contains("check x/s failed"), "{}", world.error());
    assert_eq!(world.host.result(1, world.runs).0.cause, Some(Cause::Checks));
}

#[test]
fn a_failed_apply_says_where_the_host_stands_and_a_way_back_that_fails_too() {
    if missing() {
        return;
    }
    let mut world = World::new(Host::taking_scripts());
    let apply = world.writes("apply", "new", "yes | head -c 3000000 >&2; echo 'E: no' >&2; exit 4");
    world.tell(world.script_of(&apply, &world.writes("rollback", "old", ":")), |_| ());
    assert_eq!(
        (world.done(Action::Apply), world.subject().as_str()),
        (RunState::Failed, "old"),
        "{}",
        world.host.log()
    );
    let expected = "the order's script apply failed (exit 4); verify says that it is not applied; it said: E: no";
    assert_eq!(world.error(), expected);
    let manager = world.host.deployer();
    assert_eq!(manager.number(&manager.run_cell(mib::run::EXIT_CODE, 1, world.runs)), 4);

    let mut world = World::new(Host::taking_scripts());
    let apply = world.writes("apply", "new", "exit 4");
    let rollback =
        format!("#!/bin/sh\n[ -e {0} ] || exit 5\necho old > {1}\n", world.at("mended"), world.at("subject"));
    world.tell(world.script_of(&apply, &rollback), |_| ());
    assert_eq!((world.done(Action::Apply), world.subject().as_str()), (RunState::Failed, "half"));
    assert!(world.error().contains("neither applied nor not applied (exit 3"), "{}", world.error());
    // When somebody has mended what kept it from that, the way back is open.
    fs::write(world.host.path("mended"), "").unwrap();
    assert_eq!((world.done(Action::Rollback), world.subject().as_str()), (RunState::RolledBack, "old"));
}

#[test]
fn one_that_does_not_end_is_ended_by_the_runs_lifetime() {
    if missing() {
        return;
    }
    let mut world = World::new(Host::taking_scripts());
    world.tell(world.script(), |_| ());
    let manager = world.host.deployer();
    manager.set(&[(oid(mib::order::ENTRY, &[mib::order::LIFETIME, 1]), 'u', "8".into())]).unwrap();
    fs::write(world.host.path("hang"), "apply.half").unwrap();
    assert_eq!(world.done(Action::Apply), RunState::Aborted, "{}", world.host.log());
    let expected = "its lifetime ended while the order's script apply worked; verify says that it is applied";
    assert!(world.error().starts_with(expected), "{}", world.error());
    assert_eq!(world.subject(), "new", "run again, it came to its end");
}

#[test]
fn staged_scripts_serve_an_operator_with_the_server_gone() {
    if missing() {
        return;
    }
    let mut world = World::new(Host::taking_scripts());
    world.tell(world.script(), |order| order.rollback_files = RollbackFiles::Staged);
    assert_eq!(world.done(Action::Apply), RunState::Succeeded, "{}", world.host.log());
    fs::remove_dir_all(world.host.path("www")).unwrap();
    let output =
        world.host.agent().args(["rollback", "PO-1", "--config"]).arg(world.host.path("id/agent.toml")).output();
    let output = output.unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(world.subject(), "old");
}

#[test]
fn the_lab_proves_that_it_can_be_run_again() {
    if missing() {
        return;
    }
    let mut world = World::new(Host::of_lab());
    world.tell(world.script(), |_| ());
    assert_eq!(world.done(Action::Apply), RunState::Succeeded, "{}", world.host.log());
    assert_eq!(world.done(Action::Rollback), RunState::RolledBack, "{}", world.host.log());
    assert_eq!(world.host.log().matches("phase=\"again\"").count(), 2, "{}", world.host.log());

    for (action, ends) in [(Action::Apply, RunState::Failed), (Action::Rollback, RunState::RollbackFailed)] {
        let mut world = World::new(Host::of_lab());
        let once = |name: &str| format!("[ -e {0} ] && exit 7; : > {0}", world.at(name));
        let of = |which, name| if which == action { once(name) } else { ":".to_owned() };
        let apply = world.writes("apply", "new", &of(Action::Apply, "applied"));
        let rollback = world.writes("rollback", "old", &of(Action::Rollback, "back"));
        world.tell(world.script_of(&apply, &rollback), |_| ());
        if action == Action::Rollback {
            assert_eq!(world.done(Action::Apply), RunState::Succeeded, "{}", world.host.log());
        }
        assert_eq!(world.done(action), ends, "{action:?}: {}", world.host.log());
        assert!(world.error().starts_with("it is not idempotent"), "{}", world.error());
        let manager = world.host.deployer();
        assert_eq!(manager.number(&manager.run_cell(mib::run::EXIT_CODE, 1, world.runs)), 7);
    }
}

#[test]
fn a_probe_asks_verify_alone_and_a_prefetch_keeps_every_file() {
    if missing() {
        return;
    }
    let prepared = |world: &mut World, what| {
        world.runs += 1;
        prepare(&world.host.deployer(), 1, world.runs, what)
    };
    let mut world = World::new(Host::taking_scripts());
    world.tell(world.script(), |_| ());
    assert_eq!(prepared(&mut world, Preparation::Probe), RunState::Succeeded, "{}", world.host.log());
    assert_eq!((world.subject().as_str(), world.item()), ("old", ["PO-1", "script", "", "applied"].map(str::to_owned)));
    fs::write(world.host.path("subject"), "half").unwrap();
    assert_eq!(
        (prepared(&mut world, Preparation::Probe), world.refusal()),
        (RunState::Refused, Some("versions-differ"))
    );
    // Another order may have to come first.
    assert_eq!(prepared(&mut world, Preparation::Prefetch), RunState::Succeeded, "{}", world.host.log());
    fs::write(world.host.path("subject"), "old").unwrap();
    fs::remove_dir_all(world.host.path("www/artifacts")).unwrap();
    let action = oid(mib::order::ENTRY, &[mib::order::ACTION, 1]);
    world.host.deployer().set(&[(action, 'i', "0".into())]).unwrap();
    assert_eq!(world.done(Action::Apply), RunState::Succeeded, "{}", world.host.log());
    assert_eq!(world.subject(), "new");

    let mut world = World::new(Host::new());
    world.tell(world.script(), |_| ());
    for what in [Preparation::Probe, Preparation::Prefetch] {
        assert_eq!(prepared(&mut world, what), RunState::Refused);
        assert!(world.error().contains("allow = true under [scripts]"), "{}", world.error());
    }
    assert!(world.host.asked("artifacts").is_empty(), "nothing of it was fetched");
}

#[test]
fn a_host_says_itself_what_a_script_would_do() {
    if missing() {
        return;
    }
    let mut world = World::new(Host::taking_scripts());
    world.tell(world.script(), |_| ());
    let order = world.host.path("www/documents").join(world.order.unwrap().to_string()).display().to_string();
    let files = world.at("www/artifacts");
    let ask = || {
        let mut agent = world.host.agent();
        agent.args(["simulate", &order, "--files", &files, "--config"]).arg(world.host.path("id/agent.toml"));
        let output = agent.output().unwrap();
        let [out, err] = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap());
        (output.status.code(), out, err)
    };
    let (code, said, error) = ask();
    assert_eq!((code, said), (Some(0), format!("{PROVEN}\n")), "{error}");
    fs::write(world.host.path("subject"), "half").unwrap();
    let (code, _, error) = ask();
    assert!(code == Some(5) && error.contains("half-written"), "{code:?} {error}");
    let left = fs::read_dir(world.host.path("state")).unwrap().map(|entry| entry.unwrap().file_name());
    assert!(left.into_iter().all(|name| !name.to_string_lossy().starts_with("simulation")));
}

/// A file system over a folder, until the end of the test.
struct Mounted(std::path::PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

#[test]
fn a_state_folder_on_which_nothing_can_be_run_is_named_before_anything_is_done() {
    if missing() {
        return;
    }
    let mut world = World::new(Host::taking_scripts());
    world.host.kill();
    let state = world.host.path("state");
    let mut mount = Command::new("mount");
    mount.args(["-t", "tmpfs", "-o", "noexec,mode=0700", "tmpfs"]).arg(&state);
    if !mount.status().is_ok_and(|status| status.success()) {
        eprintln!("SKIPPED: nothing can be mounted here");
        world.host.start();
        return;
    }
    let mounted = Mounted(state);
    world.host.start();
    world.tell(world.script(), |_| ());
    assert_eq!(world.done(Action::Apply), RunState::Refused, "{}", world.host.log());
    assert!(world.error().contains("is on a file system that is mounted noexec"), "{}", world.error());
    assert_eq!(world.subject(), "old");
    world.host.kill();
    drop(mounted);
}
