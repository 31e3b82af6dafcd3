//! The agent killed at every point at which the package manager can be: the next agent ends the run, and what dpkg or rpm
//! finds is whole.

use std::{
    fs,
    process::Command,
    time::{Duration, Instant},
};

use patchlab_agent::lock::{self, Kind};
use patchlab_protocol::{
    Digest, Envelope, PackageSystem, Role,
    document::{Action, Cause, OnFailure, PackageFile, ProductionCheck, Replaced, RunState},
    mib,
};

use proptest::{
    collection::vec,
    prelude::{Just, Strategy, prop_oneof},
    strategy::ValueTree,
    test_runner::TestRunner,
};

use super::{
    host::{Host, NAME, give_shell, missing_for, run},
    manager::oid,
};

/// A maintainer script that waits for ever when `/hang` names it, the first time, and fails as long as there is `/fail`.
fn script(point: &str) -> String {
    format!(
        "#!/bin/sh\nif [ -e /fail ]; then exit 1; fi\nif [ -e /hang ] && ! [ -e /begun ]; then read where < /hang; \
         if [ \"$where\" = {point} ]; then : > /begun; read line < /gate; fi; fi\nexit 0\n"
    )
}

/// The old version and the new one.
fn versions(system: PackageSystem) -> [&'static str; 2] {
    match system {
        PackageSystem::Dpkg => ["1", "2"],
        PackageSystem::Rpm => ["1-1", "2-1"],
    }
}

/// The maintainer scripts of a way from one version to another, in the order in which they are run.
fn points(system: PackageSystem, from: &str, to: &str) -> [String; 4] {
    match system {
        PackageSystem::Dpkg => [(from, "prerm"), (to, "preinst"), (from, "postrm"), (to, "postinst")],
        PackageSystem::Rpm => [(to, "pre"), (to, "post"), (from, "preun"), (from, "postun")],
    }
    .map(|(version, name)| format!("{version}.{name}"))
}

fn package(host: &Host, version: &str) -> PackageFile {
    let names = match host.system {
        PackageSystem::Dpkg => ["preinst", "postinst", "prerm", "postrm"],
        PackageSystem::Rpm => ["pre", "post", "preun", "postun"],
    };
    let scripts = names.map(|name| (name, script(&format!("{version}.{name}"))));
    host.package_with("web", version, "", &scripts)
}

/// Whose end the kill is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Killed {
    /// The agent alone: its package manager goes on.
    Agent,
    /// Everything at once, as when the power fails.
    Everything,
}

/// A host with `web` 1, on which one order after the other leads to 2 and back.
struct World {
    host: Host,
    new: PackageFile,
    old: Replaced,
    row: u32,
}

/// An order on the host.
struct Told {
    row: u32,
    order: Digest,
    runs: u32,
}

impl World {
    fn new(system: PackageSystem) -> Self {
        let host = Host::of(system);
        give_shell(&host.path("root"));
        run(Command::new("mkfifo").arg(host.path("root/gate")));
        let [old, new] = versions(system);
        let old = host.installed(&package(&host, old));
        let new = package(&host, new);
        Self { host, new, old, row: 0 }
    }

    /// Where an apply can be killed.
    fn onward(&self) -> [String; 4] {
        points(self.host.system, &self.old.version, &self.new.version)
    }

    /// Where a rollback can be.
    fn back_again(&self) -> [String; 4] {
        points(self.host.system, &self.new.version, &self.old.version)
    }

    fn only(version: &str) -> String {
        format!("installed web {version}\n")
    }

    fn is_new(&self) -> bool {
        self.host.packages() == Self::only(&self.new.version)
    }

    fn tell(&mut self, check: Option<&str>) -> Told {
        self.tell_with(check, OnFailure::Leave)
    }

    fn tell_with(&mut self, check: Option<&str>, on_failure: OnFailure) -> Told {
        self.row += 1;
        let (host, authority) = (&self.host, &self.host.authority);
        let id = format!("PO-{}", self.row);
        let (mut order, _) = authority.order(&id, &host.class, vec![self.new.clone()], vec![self.old.clone()]);
        order.on_failure = on_failure;
        if let Some(command) = check {
            let step = serde_json::from_value(serde_json::json!({"name": "s", "run": command})).unwrap();
            order.production = vec![ProductionCheck { scenario: "x".into(), step }];
        }
        let digest = host.publish(&Envelope::sign(order.clone(), &authority.keys[&Role::Drafter]));
        let PackageFile { arch, version, .. } = &self.new;
        let transaction = format!("upgrade web {arch} {} -> {version}", self.old.version);
        let release = host.publish(&authority.release(&order, digest, &[&transaction]));
        let approval = host.publish(&authority.approval(digest, release));
        host.deployer().create(self.row, &host.uri, [Some(digest), Some(release), Some(approval), None]).unwrap();
        Told { row: self.row, order: digest, runs: 0 }
    }

    fn start(&self, told: &mut Told, action: Action) {
        told.runs += 1;
        let role = if action == Action::Apply { Role::Activator } else { Role::Operator };
        let wave = told.row * 100 + told.runs;
        let activation = self.host.publish(&self.host.authority.activation(told.order, action, NAME, role, wave));
        let manager = self.host.deployer();
        let cell = oid(mib::order::ENTRY, &[mib::order::ACTIVATION, told.row]);
        manager.set(&[(cell, 'x', activation.to_string())]).unwrap();
        manager.start(told.row, told.runs).unwrap();
    }

    fn wait(&self, told: &Told) -> RunState {
        self.host.deployer().wait(told.row, told.runs)
    }

    fn hang_at(&self, point: &str) {
        let _ = fs::remove_file(self.host.path("root/begun"));
        fs::write(self.host.path("root/hang"), format!("{point}\n")).unwrap();
    }

    fn wait_until_it_hangs(&self, point: &str) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while !self.host.path("root/begun").exists() {
            assert!(Instant::now() < deadline, "nothing waits at {point}:\n{}", self.host.log());
            std::thread::yield_now();
        }
    }

    /// An order under way whose last maintainer script hangs, and everything killed there.
    fn killed_in_the_last_script(&mut self) -> Told {
        let point = self.onward().into_iter().next_back().unwrap();
        let mut told = self.tell(None);
        self.hang_at(&point);
        self.start(&mut told, Action::Apply);
        self.wait_until_it_hangs(&point);
        let group = self.group(&told).unwrap();
        self.host.kill();
        run(Command::new("kill").args(["-KILL", "--", &format!("-{group}")]));
        told
    }

    /// The process group of its package manager.
    fn group(&self, told: &Told) -> Option<i64> {
        let mut status = self.host.agent();
        status.args(["status", "--json", "--config"]).arg(self.host.path("id/agent.toml"));
        let said: serde_json::Value = serde_json::from_slice(&status.output().unwrap().stdout).unwrap();
        let runs = &said["orders"][told.row.to_string()]["runs"][told.runs.to_string()];
        runs["process"]["pid"].as_i64()
    }

    fn wait_for_log(&self, words: &str, times: usize) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while self.host.log().matches(words).count() < times {
            assert!(Instant::now() < deadline, "no {words:?} in the log:\n{}", self.host.log());
            std::thread::yield_now();
        }
    }

    /// Kills and starts again; the run must then be ended and the package system content.
    fn kill(&mut self, told: &Told, killed: Killed, what: &str) -> String {
        self.kill_to(told, killed, RunState::Aborted, what)
    }

    /// As [`Self::kill`], with the state in which the run must end.
    fn kill_to(&mut self, told: &Told, killed: Killed, ends: RunState, what: &str) -> String {
        let group = self.group(told);
        self.host.kill();
        if let (Killed::Everything, Some(group)) = (killed, group) {
            run(Command::new("kill").args(["-KILL", "--", &format!("-{group}")]));
        }
        self.host.start();
        assert_eq!(self.wait(told), ends, "{what}: {}", self.host.log());
        assert_eq!(self.host.audit(), "", "{what}:\n{}", self.host.log());
        let packages = self.host.packages();
        let either = [&self.old.version, &self.new.version].map(|version| Self::only(version));
        assert!(either.contains(&packages), "{what}: {packages}");
        packages
    }

    /// Back to the old `web`, whatever is there.
    fn back(&self, told: &mut Told, what: &str) {
        let was_new = self.is_new();
        self.start(told, Action::Rollback);
        let ended = self.wait(told);
        assert_eq!(
            ended,
            if was_new { RunState::RolledBack } else { RunState::Refused },
            "{what}: {}",
            self.host.log()
        );
        assert_eq!((self.host.packages(), self.host.audit()), (Self::only(&self.old.version), String::new()), "{what}");
    }
}

/// A world of each package system whose programs are here.
fn worlds() -> impl Iterator<Item = World> {
    PackageSystem::ALL.into_iter().filter(|system| !missing_for(*system)).map(World::new)
}

#[test]
fn an_apply_that_is_killed_in_any_maintainer_script_ends_whole_and_can_be_walked_back() {
    for mut world in worlds() {
        for killed in [Killed::Agent, Killed::Everything] {
            for point in world.onward() {
                let what = format!("apply, {killed:?} killed in {point}");
                let mut told = world.tell(None);
                world.hang_at(&point);
                world.start(&mut told, Action::Apply);
                world.wait_until_it_hangs(&point);
                world.kill(&told, killed, &what);
                world.back(&mut told, &what);
            }
        }
    }
}

#[test]
fn a_rollback_that_is_killed_in_any_maintainer_script_ends_whole_and_can_be_walked_again() {
    for mut world in worlds() {
        for killed in [Killed::Agent, Killed::Everything] {
            for point in world.back_again() {
                let what = format!("rollback, {killed:?} killed in {point}");
                let mut told = world.tell(None);
                world.start(&mut told, Action::Apply);
                assert_eq!(world.wait(&told), RunState::Succeeded, "{what}: {}", world.host.log());
                world.hang_at(&point);
                world.start(&mut told, Action::Rollback);
                world.wait_until_it_hangs(&point);
                world.kill(&told, killed, &what);
                world.back(&mut told, &what);
            }
        }
    }
}

#[test]
fn an_order_that_is_to_be_rolled_back_on_failure_is_walked_back_wherever_it_is_killed() {
    for mut world in worlds() {
        let version = world.host.path("root/usr/share/web/version");
        let only_with_the_old = format!("grep -q '^{}' {}", world.old.version, version.display());
        let old = World::only(&world.old.version);
        for killed in [Killed::Agent, Killed::Everything] {
            for point in world.onward() {
                let what = format!("apply to be rolled back, {killed:?} killed in {point}");
                let mut told = world.tell_with(None, OnFailure::RollBack);
                world.hang_at(&point);
                world.start(&mut told, Action::Apply);
                world.wait_until_it_hangs(&point);
                assert_eq!(world.kill_to(&told, killed, RunState::RolledBack, &what), old, "{what}");
                assert_eq!(world.host.result(told.row, told.runs).0.cause, Some(Cause::Interrupted), "{what}");
            }
            for point in world.back_again() {
                let what = format!("way back by itself, {killed:?} killed in {point}");
                let mut told = world.tell_with(Some(&only_with_the_old), OnFailure::RollBack);
                world.hang_at(&point);
                world.start(&mut told, Action::Apply);
                world.wait_until_it_hangs(&point);
                assert_eq!(world.kill_to(&told, killed, RunState::RolledBack, &what), old, "{what}");
                assert_eq!(world.host.result(told.row, told.runs).0.cause, Some(Cause::Checks), "{what}");
            }
        }
    }
}

#[test]
fn every_line_about_a_run_that_was_killed_names_its_order() {
    if missing_for(PackageSystem::Dpkg) {
        return;
    }
    let mut world = World::new(PackageSystem::Dpkg);
    let mut told = world.tell(None);
    // While files are being replaced: the next agent has to carry the transaction on, and says so from where it blocks.
    let [.., replacing, _] = world.onward();
    world.hang_at(&replacing);
    world.start(&mut told, Action::Apply);
    world.wait_until_it_hangs(&replacing);
    world.kill(&told, Killed::Everything, "while files are replaced");

    let (log, digest) = (world.host.log(), told.order.short());
    assert!(log.contains("carrying the transaction on"), "{log}");
    let lines: Vec<&str> = log.lines().collect();
    let is_of = |line: &&&str| line.contains(&digest);
    let first = lines.iter().position(|line| is_of(&line)).unwrap();
    let last = lines.iter().rposition(|line| is_of(&line)).unwrap();
    // What these say is about a run; the start of an agent is not.
    let about = ["run", "change", "packages::", "process"].map(|part| format!("patchlab_agent::{part}"));
    let is_about = |line: &&&str| about.iter().any(|target| line.contains(target));
    let nameless: Vec<_> = lines[first..=last].iter().filter(is_about).filter(|line| !is_of(line)).collect();
    assert!(nameless.is_empty(), "{nameless:#?}\nof:\n{log}");
}

#[test]
fn a_kill_before_and_after_the_package_managers_work_ends_the_run_too() {
    if missing_for(PackageSystem::Dpkg) {
        return;
    }
    let mut world = World::new(PackageSystem::Dpkg);
    let mut told = world.tell(None);
    let gate = world.host.hold_artifacts();
    world.start(&mut told, Action::Apply);
    gate.wait_until_asked();
    assert_eq!(world.kill(&told, Killed::Agent, "while files are fetched"), "installed web 1\n");
    gate.open();
    // Nothing was used up: the same permission still counts.
    told.runs += 1;
    world.host.deployer().start(told.row, told.runs).unwrap();
    assert_eq!(world.wait(&told), RunState::Succeeded, "{}", world.host.log());
    world.back(&mut told, "after a fetch that was killed");

    let begun = world.host.path("checking");
    let mut told = world.tell(Some(&format!(": > {}; exec sleep 600", begun.display())));
    world.start(&mut told, Action::Apply);
    let deadline = Instant::now() + Duration::from_secs(60);
    while !begun.exists() {
        assert!(Instant::now() < deadline, "no check begins:\n{}", world.host.log());
        std::thread::yield_now();
    }
    assert_eq!(world.kill(&told, Killed::Agent, "while checks run"), "installed web 2\n");
}

#[test]
fn whoever_holds_dpkgs_lock_at_the_restart_is_waited_for_and_a_stop_meanwhile_is_obeyed() {
    if missing_for(PackageSystem::Dpkg) {
        return;
    }
    let mut world = World::new(PackageSystem::Dpkg);
    let told = world.killed_in_the_last_script();
    assert_ne!(world.host.audit(), "", "it is half-way");
    let path = world.host.path("root/var/lib/dpkg/lock-frontend");
    let held = lock::open(&path).unwrap().unwrap();
    // A dpkg that was killed lets it go a moment later.
    let deadline = Instant::now() + Duration::from_secs(60);
    while let Err(error) = lock::try_take(&held, Kind::Record) {
        assert!(Instant::now() < deadline, "{error}");
        std::thread::yield_now();
    }
    world.host.spawn();
    world.wait_for_log("packages are finished later", 1);
    run(Command::new("kill").args(["-TERM", &world.host.pid().to_string()]));
    assert!(world.host.ended_within(Duration::from_secs(20)), "it waits for the lock and not for its end");
    world.host.spawn();
    world.wait_for_log("packages are finished later", 2);
    drop(held);
    world.host.await_start();
    assert_eq!(world.wait(&told), RunState::Aborted, "{}", world.host.log());
    assert_eq!((world.host.audit(), world.host.packages()), (String::new(), World::only("2")), "{}", world.host.log());
}

#[test]
fn what_could_not_be_finished_at_one_start_is_at_the_next() {
    if missing_for(PackageSystem::Dpkg) {
        return;
    }
    let mut world = World::new(PackageSystem::Dpkg);
    let told = world.killed_in_the_last_script();
    let fail = world.host.path("root/fail");
    fs::write(&fail, "").unwrap();
    world.host.start();
    assert_eq!(world.wait(&told), RunState::Aborted, "{}", world.host.log());
    assert_ne!(world.host.audit(), "", "its script fails");
    fs::remove_file(&fail).unwrap();
    world.host.kill();
    world.host.start();
    assert_eq!((world.host.audit(), world.host.packages()), (String::new(), World::only("2")), "{}", world.host.log());
    // A start at which nothing is half-way does nothing.
    world.host.kill();
    world.host.start();
    assert_eq!(world.host.log().matches("packages of this run are half-way").count(), 1, "{}", world.host.log());
}

#[test]
fn a_run_under_way_outlives_however_many_others_are_started() {
    if missing_for(PackageSystem::Dpkg) {
        return;
    }
    let mut world = World::new(PackageSystem::Dpkg);
    let mut told = world.tell(None);
    let point = world.onward().into_iter().next_back().unwrap();
    world.hang_at(&point);
    world.start(&mut told, Action::Apply);
    world.wait_until_it_hangs(&point);
    let manager = world.host.deployer();
    for run in 2..40 {
        manager.start(told.row, run).unwrap();
        assert_eq!(manager.wait(told.row, run), RunState::Refused, "{}", world.host.log());
    }
    assert_eq!(manager.state(told.row, 1), RunState::Applying);
    fs::write(world.host.path("root/gate"), "on\n").unwrap();
    assert_eq!(world.wait(&told), RunState::Succeeded, "{}", world.host.log());
    assert!(world.host.result(told.row, 1).0.refusal.is_none());
}

/// One step of a random life: where the package manager hangs, if anywhere, and who is killed there.
type Step = (Option<usize>, Killed);

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let killed = prop_oneof![Just(Killed::Agent), Just(Killed::Everything)];
    // As often without a kill as in any one of the four scripts.
    let point = prop_oneof![1 => Just(None), 4 => (0_usize..4).prop_map(Some)];
    vec((point, killed), 3..7)
}

/// Lives one life: applies and rollbacks by turns, killed where the steps say.
fn live(system: PackageSystem, life: &[Step], case: usize) {
    let mut world = World::new(system);
    let mut told: Option<Told> = None;
    for (number, (point, killed)) in life.iter().enumerate() {
        let what = format!("{system}, case {case}, step {number} of {life:?}");
        let back = world.is_new();
        let mut order = if back { told.take().unwrap() } else { world.tell(None) };
        let points = if back { world.back_again() } else { world.onward() };
        if let Some(point) = point {
            world.hang_at(&points[*point]);
        }
        world.start(&mut order, if back { Action::Rollback } else { Action::Apply });
        match point {
            Some(point) => {
                world.wait_until_it_hangs(&points[*point]);
                world.kill(&order, *killed, &what);
            }
            None => {
                let ended = world.wait(&order);
                let expected = if back { RunState::RolledBack } else { RunState::Succeeded };
                assert_eq!(ended, expected, "{what}: {}", world.host.log());
                assert_eq!(world.host.audit(), "", "{what}");
                let version = if back { &world.old.version } else { &world.new.version };
                assert_eq!(world.host.packages(), World::only(version), "{what}");
            }
        }
        told = Some(order);
    }
}

#[test]
fn any_sequence_of_apply_kill_restart_and_rollback_ends_in_a_state_that_the_package_system_calls_consistent() {
    let soak = std::env::var_os("PATCHLAB_SOAK").is_some_and(|soak| !soak.is_empty());
    for system in PackageSystem::ALL.into_iter().filter(|system| !missing_for(*system)) {
        let mut runner = TestRunner::deterministic();
        for case in 0..if soak { 100 } else { 2 } {
            live(system, &steps().new_tree(&mut runner).unwrap().current(), case);
        }
    }
}
