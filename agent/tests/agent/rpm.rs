//! Orders on a real rpm database: what rpm has and dpkg does not, and what both must do alike.

use std::{
    fs::{self, File},
    os::unix::fs::PermissionsExt as _,
    process::{Command, Stdio},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use patchlab_protocol::{
    Digest, PackageSystem, Role,
    document::{Action, PackageFile, Replaced, RunState},
    mib,
};
use rustix::fs::{FlockOperation, fcntl_lock};

use super::{
    database::{self, Package},
    host::{Host, NAME, give_shell, missing_for, run},
    manager::{Manager, oid},
};

fn missing() -> bool {
    missing_for(PackageSystem::Rpm)
}

/// An order on a host, told and not started.
struct Told {
    manager: Manager,
    order: Digest,
    row: u32,
    run: u32,
}

impl Told {
    /// An order that installs `new` in place of `old`, as this transaction.
    fn new(host: &Host, row: u32, new: Vec<PackageFile>, old: Vec<Replaced>, transaction: &[&str]) -> Self {
        let authority = &host.authority;
        let (order, envelope) = authority.order(&format!("PO-{row}"), &host.class, new, old);
        let digest = host.publish(&envelope);
        let release = host.publish(&authority.release(&order, digest, transaction));
        let approval = host.publish(&authority.approval(digest, release));
        let manager = host.deployer();
        manager.create(row, &host.uri, [Some(digest), Some(release), Some(approval), None]).unwrap();
        Self { manager, order: digest, row, run: 0 }
    }

    fn start(&mut self, host: &Host, action: Action) {
        self.run += 1;
        let role = if action == Action::Apply { Role::Activator } else { Role::Operator };
        let wave = self.row * 100 + self.run;
        let activation = host.publish(&host.authority.activation(self.order, action, NAME, role, wave));
        let cell = oid(mib::order::ENTRY, &[mib::order::ACTIVATION, self.row]);
        self.manager.set(&[(cell, 'x', activation.to_string())]).unwrap();
        self.manager.start(self.row, self.run).unwrap();
    }

    fn run(&mut self, host: &Host, action: Action) -> RunState {
        self.start(host, action);
        self.manager.wait(self.row, self.run)
    }

    /// Why the last run ended as it did.
    fn reason(&self) -> String {
        let refused = self.manager.text(&oid(mib::order::ENTRY, &[mib::order::REFUSAL_REASON, self.row]));
        let error = self.manager.text(&self.manager.run_cell(mib::run::ERROR, self.row, self.run));
        format!("{refused} {error}")
    }
}

fn refused(told: &mut Told, host: &Host) -> String {
    assert_eq!(told.run(host, Action::Apply), RunState::Refused, "{}", host.log());
    assert_eq!(host.audit(), "");
    told.reason()
}

/// Builds a package whose only file says the version.
fn web(host: &Host, version: &str, fields: &str) -> PackageFile {
    host.package_with("web", version, fields, &[])
}

#[test]
fn versions_with_and_without_an_epoch_go_up_and_down_and_what_was_new_is_removed() {
    if missing() {
        return;
    }
    let host = Host::of(PackageSystem::Rpm);
    let config = |version, text| {
        let files = [("etc/web.conf", text), ("usr/share/web/version", version)];
        let fields = if version == "2:0.9-1" { "Requires: lib\n" } else { "" };
        host.built(&Package { name: "web", version, fields, files: &files, scripts: &[] })
    };
    let old = host.installed(&config("1.0-10", "old\n"));
    fs::write(host.path("root/etc/web.conf"), "the site's own\n").unwrap();
    let new = vec![config("2:0.9-1", "new\n"), host.package_with("lib", "1-1", "", &[])];
    let proven = ["install lib noarch - -> 1-1", "upgrade web noarch 1.0-10 -> 2:0.9-1"];
    let mut told = Told::new(&host, 1, new, vec![old.clone()], &proven);
    assert_eq!(told.run(&host, Action::Apply), RunState::Succeeded, "{}", host.log());
    assert_eq!(host.packages(), "installed lib 1-1\ninstalled web 2:0.9-1\n");
    let result = host.result(1, 1).0;
    let lists = ["shell noarch 1-1\nweb noarch 1.0-10\n", "lib noarch 1-1\nshell noarch 1-1\nweb noarch 2:0.9-1\n"];
    assert_eq!([result.before, result.after], lists.map(Digest::of));
    let kept = fs::read_to_string(host.path("root/etc/web.conf")).unwrap();
    assert_eq!(kept, "the site's own\n", "a configuration that was changed stays");
    assert_eq!(told.run(&host, Action::Rollback), RunState::RolledBack, "{}", host.log());
    assert_eq!(host.packages(), "installed web 1.0-10\n");
    assert!(!host.path("root/var/cache/patchlab-agent/rpmdb").exists(), "a copy of the database is left");
    // By rpm's rules 1.0-9 is older, by those of text it is not.
    let mut down =
        Told::new(&host, 2, vec![config("1.0-9", "older\n")], vec![old], &["downgrade web noarch 1.0-10 -> 1.0-9"]);
    assert_eq!(down.run(&host, Action::Apply), RunState::Succeeded, "{}", host.log());
    assert_eq!(host.packages(), "installed web 1.0-9\n");
}

#[test]
fn a_package_that_was_split_and_one_that_was_obsoleted_are_walked_back() {
    if missing() {
        return;
    }
    let host = Host::of(PackageSystem::Rpm);
    let package = |name, version, fields, text| {
        host.built(&Package { name, version, fields, files: &[("usr/share/web/common", text)], scripts: &[] })
    };
    let old = [package("web", "1-1", "", "one"), host.package_with("legacy", "1-1", "", &[])];
    let old = old.map(|file| host.installed(&file)).to_vec();
    // The file moves to a new package, which wants its own web, and takes the place of another.
    let common = "Requires: web = 2-1\nObsoletes: legacy\nConflicts: web < 2\n";
    let new = vec![
        host.package_with("web", "2-1", "Requires: web-common\n", &[]),
        package("web-common", "2-1", common, "two"),
    ];
    let proven =
        ["install web-common noarch - -> 2-1", "remove legacy noarch 1-1 -> -", "upgrade web noarch 1-1 -> 2-1"];
    let mut told = Told::new(&host, 1, new, old, &proven);
    assert_eq!(told.run(&host, Action::Apply), RunState::Succeeded, "{}\n{}", told.reason(), host.log());
    assert_eq!(host.packages(), "installed web 2-1\ninstalled web-common 2-1\n");
    assert_eq!(told.run(&host, Action::Rollback), RunState::RolledBack, "{}\n{}", told.reason(), host.log());
    assert_eq!((host.packages().as_str(), &*host.audit()), ("installed legacy 1-1\ninstalled web 1-1\n", ""));
    assert_eq!(fs::read_to_string(host.path("root/usr/share/web/common")).unwrap(), "one");
}

#[test]
fn a_kernel_comes_beside_the_old_one_asks_for_a_reboot_and_goes_again() {
    if missing() {
        return;
    }
    let host = Host::of(PackageSystem::Rpm);
    let kernel = |version: &str| {
        let place = format!("boot/vmlinuz-{version}");
        let fields = "Provides: installonlypkg(kernel)\n";
        host.built(&Package { name: "kernel-core", version, fields, files: &[(&place, version)], scripts: &[] })
    };
    host.installed(&kernel("5.14-1"));
    let new = PackageFile { name: "kernel-core@5.14-2".into(), ..kernel("5.14-2") };
    let mut told = Told::new(&host, 1, vec![new], vec![], &["install kernel-core@5.14-2 noarch - -> 5.14-2"]);
    assert_eq!(told.run(&host, Action::Apply), RunState::Succeeded, "{}\n{}", told.reason(), host.log());
    assert_eq!(host.packages(), "installed kernel-core 5.14-1\ninstalled kernel-core 5.14-2\n");
    assert!(
        ["5.14-1", "5.14-2"].iter().all(|version| host.path("root/boot").join(format!("vmlinuz-{version}")).exists())
    );
    assert_eq!(told.manager.number(&told.manager.run_cell(mib::run::REBOOT_NEEDED, 1, 1)), 1);
    assert_eq!(told.run(&host, Action::Rollback), RunState::RolledBack, "{}\n{}", told.reason(), host.log());
    assert_eq!(host.packages(), "installed kernel-core 5.14-1\n");
}

#[test]
fn what_rpm_or_the_site_does_not_allow_is_refused_before_anything_is_changed() {
    if missing() {
        return;
    }
    let host = Host::of(PackageSystem::Rpm);
    let old = host.installed(&web(&host, "1-1", ""));
    let other = Package { name: "other", version: "1-1", files: &[("usr/share/web/other", "x")], ..Package::default() };
    host.installed(&host.built(&other));
    let upgrade = ["upgrade web noarch 1-1 -> 2-1"];
    let order = |row, new: PackageFile| Told::new(&host, row, vec![new], vec![old.clone()], &upgrade);

    let reason = refused(&mut order(1, web(&host, "2-1", "Requires: nobody-has-this\n")), &host);
    assert!(reason.contains("nobody-has-this"), "{reason}");
    let files = [("usr/share/web/other", "mine")];
    let taken = host.built(&Package { name: "web", version: "2-1", files: &files, ..Package::default() });
    let reason = refused(&mut order(2, taken), &host);
    assert!(reason.contains("conflicts with file from package other"), "{reason}");
    let reason = refused(&mut order(3, web(&host, "2-1", "Obsoletes: other\n")), &host);
    assert!(reason.contains("it would remove other noarch 1-1 -> -"), "{reason}");

    let mut told = order(4, web(&host, "2-1", ""));
    let [locks, configuration] =
        ["etc/dnf/plugins/versionlock.list", "etc/dnf/dnf.conf"].map(|name| host.path("root").join(name));
    fs::create_dir_all(locks.parent().unwrap()).unwrap();
    fs::write(&locks, "web-0:1-1.*\n").unwrap();
    let reason = refused(&mut told, &host);
    assert!(reason.contains("held packages would change: web (locked at"), "{reason}");
    fs::write(&locks, "").unwrap();
    fs::write(&configuration, "[main]\nexclude=w*\n").unwrap();
    let reason = refused(&mut told, &host);
    assert!(reason.contains("web (excluded by"), "{reason}");
    fs::remove_file(&configuration).unwrap();
    assert_eq!(host.packages(), "installed other 1-1\ninstalled web 1-1\n");
    assert_eq!(told.run(&host, Action::Apply), RunState::Succeeded, "{}", host.log());
}

#[test]
fn a_script_that_fails_is_a_failed_run_whatever_rpm_calls_it_and_the_way_back_is_open() {
    if missing() {
        return;
    }
    for (failing, left) in [("pre", "1-1"), ("post", "2-1"), ("preun", "2-1"), ("postun", "2-1")] {
        let host = Host::of(PackageSystem::Rpm);
        give_shell(&host.path("root"));
        // What fails is the new one's before and after it is installed, and the old one's before and after it is erased.
        let fails = [(failing, "exit 1".to_owned())];
        let (of_old, of_new): (&[_], &[_]) = if failing.ends_with("un") { (&fails, &[]) } else { (&[], &fails) };
        let old = host.installed(&host.package_with("web", "1-1", "", of_old));
        let new = host.package_with("web", "2-1", "", of_new);
        let mut told = Told::new(&host, 1, vec![new], vec![old], &["upgrade web noarch 1-1 -> 2-1"]);
        assert_eq!(told.run(&host, Action::Apply), RunState::Failed, "{failing}: {}", host.log());
        let reason = told.reason();
        assert!(reason.contains("scriptlet failed"), "{failing}: {reason}");
        assert_eq!((host.packages(), host.audit()), (format!("installed web {left}\n"), String::new()), "{failing}");
        let back = if left == "2-1" { RunState::RolledBack } else { RunState::Refused };
        assert_eq!(told.run(&host, Action::Rollback), back, "{failing}: {}", host.log());
        assert_eq!((host.packages().as_str(), &*host.audit()), ("installed web 1-1\n", ""), "{failing}");
    }
}

#[test]
fn the_lock_of_rpm_is_waited_for_with_its_holders_name() {
    if missing() {
        return;
    }
    let host = Host::of(PackageSystem::Rpm);
    let old = host.installed(&web(&host, "1-1", ""));
    let new = web(&host, "2-1", "");
    let mut told = Told::new(&host, 1, vec![new], vec![old], &["upgrade web noarch 1-1 -> 2-1"]);
    let lock = File::options().write(true).open(host.path("root/var/lib/rpm/.rpm.lock")).unwrap();
    fcntl_lock(&lock, FlockOperation::NonBlockingLockExclusive).unwrap();
    told.start(&host, Action::Apply);
    let phase = told.manager.wait_until(1, 1, RunState::WaitingLock);
    assert!(
        phase.contains(&format!("(process {}) holds", std::process::id())) && phase.contains(".rpm.lock"),
        "{phase}"
    );
    drop(lock);
    assert_eq!(told.manager.wait(1, 1), RunState::Succeeded, "{}", host.log());
}

#[test]
fn dnf_waits_for_a_run_and_a_run_for_dnf() {
    let has_dnf = Command::new("dnf").arg("--version").output().is_ok();
    if missing() || !has_dnf {
        eprintln!("SKIPPED: dnf is there: {has_dnf}");
        return;
    }
    let host = Host::of(PackageSystem::Rpm);
    give_shell(&host.path("root"));
    // For dnf to be here, its program must be below the root; it is started from outside.
    let program = host.path("root/usr/bin/dnf");
    fs::create_dir_all(program.parent().unwrap()).unwrap();
    fs::write(&program, "").unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    fs::create_dir_all(host.path("root/var/lib/dnf")).unwrap();
    run(Command::new("mkfifo").arg(host.path("root/gate")));
    // This machine's rpm may have its database elsewhere.
    let home = host.path("home");
    fs::create_dir(&home).unwrap();
    fs::write(home.join(".rpmmacros"), "%_dbpath /var/lib/rpm\n").unwrap();
    fs::write(home.join("dnf.conf"), "[main]\nplugins=0\nreposdir=/var/empty\n").unwrap();

    let old = host.installed(&web(&host, "1-1", ""));
    let other = host.package_with("other", "1-1", "", &[]);
    host.installed(&other);
    let script = [("post", ": > /begun; read line < /gate".to_owned())];
    let new = host.package_with("web", "2-1", "", &script);
    let mut told = Told::new(&host, 1, vec![new], vec![old], &["upgrade web noarch 1-1 -> 2-1"]);

    // Another process that dnf's lock names.
    let mut holder = Command::new("sleep").arg("600").spawn().unwrap();
    fs::write(host.path("root/var/lib/dnf/rpmdb_lock.pid"), holder.id().to_string()).unwrap();
    told.start(&host, Action::Apply);
    let phase = told.manager.wait_until(1, 1, RunState::WaitingLock);
    assert!(phase.contains("dnf is at work"), "{phase}");
    holder.kill().unwrap();
    holder.wait().unwrap();
    let await_file = |path: &str, text: &str| {
        let deadline = Instant::now() + Duration::from_secs(60);
        while !fs::read_to_string(host.path(path)).is_ok_and(|said| said.contains(text)) {
            assert!(Instant::now() < deadline, "{path} does not say {text:?}:\n{}", host.log());
            std::thread::yield_now();
        }
    };
    await_file("root/begun", "");

    let said = File::create(host.path("dnf.said")).unwrap();
    let mut dnf = Command::new("dnf")
        .env("HOME", &home)
        .env("LC_ALL", "C.UTF-8")
        .args(["--assumeyes", "--config"])
        .arg(home.join("dnf.conf"))
        .arg("--installroot")
        .arg(host.path("root"))
        .args(["--releasever", "9", "remove", "other"])
        .stdin(Stdio::null())
        .stdout(said.try_clone().unwrap())
        .stderr(said)
        .spawn()
        .unwrap();
    await_file("dnf.said", &format!("Waiting for process with pid {}", host.pid()));
    fs::write(host.path("root/gate"), "go\n").unwrap();
    assert_eq!(told.manager.wait(1, 1), RunState::Succeeded, "{}", host.log());
    let ended = dnf.wait().unwrap();
    assert!(ended.success(), "{}", fs::read_to_string(host.path("dnf.said")).unwrap());
    assert_eq!((host.packages().as_str(), &*host.audit()), ("installed web 2-1\n", ""));
    assert!(!host.path("root/var/lib/dnf/rpmdb_lock.pid").exists());
}

#[test]
fn what_zypper_locks_stays_and_zypper_says_that_a_run_is_at_work() {
    let has_zypper = Command::new("zypper").arg("--version").output().is_ok();
    if missing() || !has_zypper {
        eprintln!("SKIPPED: zypper is there: {has_zypper}");
        return;
    }
    let host = Host::of(PackageSystem::Rpm);
    give_shell(&host.path("root"));
    for folder in ["usr/bin", "run", "etc/zypp"] {
        fs::create_dir_all(host.path("root").join(folder)).unwrap();
    }
    // For zypper to be here, its program must be below the root; it is started from outside.
    fs::write(host.path("root/usr/bin/zypper"), "").unwrap();
    run(Command::new("mkfifo").arg(host.path("root/gate")));
    let zypper = |words: &[&str]| {
        let mut zypper = Command::new("zypper");
        zypper.env("LC_ALL", "C.UTF-8").arg("--root").arg(host.path("root")).arg("--non-interactive").args(words);
        let ended = zypper.output().unwrap();
        (ended.status.code(), [ended.stdout, ended.stderr].map(|said| String::from_utf8(said).unwrap()).concat())
    };
    let old = host.installed(&web(&host, "1-1", ""));
    let script = [("post", ": > /begun; read line < /gate".to_owned())];
    let new = host.package_with("web", "2-1", "", &script);
    let mut told = Told::new(&host, 1, vec![new], vec![old], &["upgrade web noarch 1-1 -> 2-1"]);
    assert_eq!(zypper(&["addlock", "web"]).0, Some(0));
    let reason = refused(&mut told, &host);
    assert!(reason.contains("held packages would change: web (zypper's lock \"web\")"), "{reason}");
    assert_eq!(zypper(&["removelock", "web"]).0, Some(0));

    told.start(&host, Action::Apply);
    let deadline = Instant::now() + Duration::from_secs(60);
    while !host.path("root/begun").exists() {
        assert!(Instant::now() < deadline, "it does not begin:\n{}", host.log());
        std::thread::yield_now();
    }
    let (code, said) = zypper(&["addlock", "other"]);
    assert!(code == Some(7) && said.contains(&format!("with pid {}", host.pid())), "{code:?} {said}");
    fs::write(host.path("root/gate"), "go\n").unwrap();
    assert_eq!(told.manager.wait(told.row, told.run), RunState::Succeeded, "{}", host.log());
    assert_eq!(zypper(&["addlock", "other"]).0, Some(0));
}

#[test]
fn files_that_a_killed_rpm_was_writing_are_written_again_and_none_is_left() {
    if missing() {
        return;
    }
    let mut host = Host::of(PackageSystem::Rpm);
    // Large enough that it can be stopped while it is written, and not to be compressed in no time.
    let large = |seed: u64| -> String {
        let mut number = seed;
        let mut next = || {
            number = number.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            char::from(b'!' + u8::try_from((number >> 33) % 90).unwrap())
        };
        (0..64 << 20).map(|_| next()).collect()
    };
    let fields = "%define _binary_payload w0.gzdio\n";
    let package = |host: &Host, version, text: &str| {
        host.built(&Package { name: "web", version, fields, files: &[("usr/share/web/large", text)], scripts: &[] })
    };
    let old = host.installed(&package(&host, "1-1", &large(1)));
    let new = package(&host, "2-1", &large(2));
    let mut told = Told::new(&host, 1, vec![new], vec![old], &["upgrade web noarch 1-1 -> 2-1"]);
    told.start(&host, Action::Apply);
    let folder = host.path("root/usr/share/web");
    let deadline = Instant::now() + Duration::from_secs(60);
    while fs::read_dir(&folder).unwrap().count() < 2 {
        assert!(Instant::now() < deadline, "rpm writes nothing:\n{}", host.log());
    }
    // The agent's rpm, and none of somebody else's: stopped at once, so that it is killed where it was seen.
    let threads = fs::read_dir(format!("/proc/{}/task", host.pid())).unwrap().flatten();
    let children = threads.map(|thread| fs::read_to_string(thread.path().join("children")).unwrap_or_default());
    let children: Vec<String> =
        children.flat_map(|pids| pids.split_whitespace().map(str::to_owned).collect::<Vec<_>>()).collect();
    let signal = |signal: &str| run(Command::new("kill").arg(signal).args(&children));
    signal("-STOP");
    host.kill();
    signal("-KILL");
    assert!(host.audit().contains("large;"), "rpm was not writing any more");
    assert_eq!(host.packages(), "installed web 1-1\n");
    // It is named after the second in which rpm began; whenever the transaction is carried on, one of that second is in the way.
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    (now..now + 60).for_each(|second| fs::write(folder.join(format!("large;{second:08x}")), "").unwrap());
    host.start();
    assert_eq!(host.deployer().wait(1, 1), RunState::Aborted, "{}", host.log());
    assert_eq!((host.packages().as_str(), &*host.audit()), ("installed web 2-1\n", ""), "{}", host.log());
    told.manager = host.deployer();
    assert_eq!(told.run(&host, Action::Rollback), RunState::RolledBack, "{}", host.log());
    assert_eq!((host.packages().as_str(), &*host.audit()), ("installed web 1-1\n", ""));
}

#[test]
fn a_transaction_that_nobody_can_carry_on_stops_orders_until_a_person_ends_it() {
    if missing() {
        return;
    }
    let host = Host::of(PackageSystem::Rpm);
    give_shell(&host.path("root"));
    let old = host.installed(&web(&host, "1-1", ""));
    let deadly = host.package_with("web", "2-1", "", &[("pre", "kill -KILL $PPID".to_owned())]);
    let order = |row, new: PackageFile| {
        let proven = format!("upgrade web noarch 1-1 -> {}", new.version);
        Told::new(&host, row, vec![new], vec![old.clone()], &[&proven])
    };
    let mut told = order(1, deadly);
    assert_eq!(told.run(&host, Action::Apply), RunState::Failed, "{}", host.log());
    assert!(told.reason().contains("the package manager failed"), "{}", told.reason());
    let mut good = order(2, web(&host, "3-1", ""));
    let reason = refused(&mut good, &host);
    assert!(reason.contains("left half-way: web:noarch; install the files of one version"), "{reason}");
    let file = old.file.as_ref().unwrap().sha256;
    run(database::on(&host.path("root"), "rpm")
        .args(["-U", "--replacepkgs", "--oldpackage"])
        .arg(host.artifact(&file)));
    fs::remove_file(host.path("state/rpm/begun.json")).unwrap();
    assert_eq!(good.run(&host, Action::Apply), RunState::Succeeded, "{}\n{}", good.reason(), host.log());
}

#[test]
fn a_host_of_no_known_system_says_what_to_write_and_the_configuration_is_obeyed() {
    if missing() {
        return;
    }
    let mut host = Host::of(PackageSystem::Rpm);
    host.installed(&web(&host, "1-1", ""));
    host.kill();
    let inventory = |host: &Host| {
        let mut command = host.agent();
        command.args(["inventory", "--json", "--config"]).arg(host.path("id/agent.toml"));
        let output = command.output().unwrap();
        String::from_utf8([output.stdout, output.stderr].concat()).unwrap()
    };
    let said = inventory(&host);
    assert!(said.contains("\"system\": \"rpm\"") && said.contains("web noarch 1-1"), "{said}");
    fs::write(host.path("root/etc/os-release"), "ID=house\nVERSION_ID=1\n").unwrap();
    assert!(inventory(&host).contains("web noarch 1-1"), "the only database that is there");
    database::make(PackageSystem::Dpkg, &host.path("root"));
    fs::write(host.path("root/etc/os-release"), "ID=house\nVERSION_ID=1\n").unwrap();
    let said = inventory(&host);
    assert!(said.contains("this system (house)") && said.contains("system = \"rpm\""), "{said}");
    let file = host.path("id/agent.toml");
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, text.replace("[packages]\n", "[packages]\nsystem = \"rpm\"\n")).unwrap();
    assert!(inventory(&host).contains("web noarch 1-1"));
}
