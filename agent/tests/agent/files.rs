//! Installed files against what their packages shipped, on real databases of dpkg and rpm.

use std::{fs, os::unix::fs::PermissionsExt as _};

use patchlab_protocol::{
    Envelope, PackageSystem, Role,
    document::{Action, OnFailure, Preparation, RunState},
    mib,
};

use super::{
    actions::prepare,
    database::Package,
    host::{Host, NAME, missing_for},
};

const PROGRAM: &str = "usr/bin/web";
const CONFIGURATION: &str = "etc/web.conf";
const MANUAL: &str = "usr/share/doc/web/manual";

/// The old version and the new one.
fn versions(system: PackageSystem) -> [&'static str; 2] {
    match system {
        PackageSystem::Dpkg => ["1", "2"],
        PackageSystem::Rpm => ["1-1", "2-1"],
    }
}

fn package<'a>(version: &'a str, files: &'a [(&'a str, &'a str)], fields: &'a str) -> Package<'a> {
    Package { name: "web", version, fields, scripts: &[], files }
}

/// A host with the old `web`, and an order in row 1 that leads to the new one, with all that apply needs.
fn told(system: PackageSystem, on_failure: OnFailure) -> Host {
    let host = Host::of(system);
    let authority = &host.authority;
    let [from, to] = versions(system);
    let built = |version| {
        let files = [(PROGRAM, version), (CONFIGURATION, "as shipped"), (MANUAL, "read me")];
        host.built(&package(version, &files, ""))
    };
    let (old, new) = (host.installed(&built(from)), built(to));
    let transaction = format!("upgrade web {} {from} -> {to}", new.arch);
    let (mut order, _) = authority.order("PO-1", &host.class, vec![new], vec![old]);
    order.on_failure = on_failure;
    let digest = host.publish(&Envelope::sign(order.clone(), &authority.keys[&Role::Drafter]));
    let release = host.publish(&authority.release(&order, digest, &[&transaction]));
    let approval = host.publish(&authority.approval(digest, release));
    let activation = host.publish(&authority.activation(digest, Action::Apply, NAME, Role::Activator, 1));
    host.deployer().create(1, &host.uri, [digest, release, approval, activation].map(Some)).unwrap();
    host
}

/// A file of the system below the host's root.
fn put(host: &Host, place: &str, text: &str) {
    fs::write(host.path("root").join(place), text).unwrap();
}

/// The site's own program right after the package manager's work; it does what a power loss does to what was not written yet.
fn loses(host: &Host, place: &str, when: &str) {
    let path = host.path("hooks/after.d/10-site");
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let file = host.path("root").join(place);
    fs::write(&path, format!("#!/bin/sh\n{when}\n: > {}\n", file.display())).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
}

fn error(host: &Host, run: u32) -> String {
    let manager = host.monitor();
    manager.text(&manager.run_cell(mib::run::ERROR, 1, run))
}

fn systems() -> impl Iterator<Item = PackageSystem> {
    PackageSystem::ALL.into_iter().filter(|system| !missing_for(*system))
}

#[test]
fn the_host_itself_tells_files_that_are_not_what_was_shipped_and_configuration_apart() {
    for system in systems() {
        let host = told(system, OnFailure::Leave);
        let ask = |words: &[&str]| {
            let output = host.agent().args(words).arg("--config").arg(host.path("id/agent.toml")).output().unwrap();
            (output.status.code(), String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap())
        };
        let (code, said, _) = ask(&["inventory", "--verify"]);
        assert!(
            code == Some(0) && said.contains("0 files are not as they were shipped\n"),
            "{system}: {code:?} {said}"
        );
        put(&host, CONFIGURATION, "as somebody likes it");
        fs::remove_file(host.path("root").join(MANUAL)).unwrap();
        let (code, said, _) = ask(&["inventory", "--verify"]);
        let expected = [
            "2 files are not as they were shipped",
            "file /etc/web.conf (altered, configuration)",
            "file /usr/share/doc/web/manual (missing, documentation)",
        ];
        assert!(code == Some(0) && said.contains(&expected.join("\n")), "{system}: {code:?} {said}");

        put(&host, PROGRAM, "");
        let (code, said, reason) = ask(&["inventory", "--verify", "--json"]);
        assert!(code == Some(1) && reason.contains("1 files of packages are missing or altered"), "{system}: {reason}");
        let found: serde_json::Value = serde_json::from_str(&said).unwrap();
        let program = serde_json::json!({ "path": "/usr/bin/web", "difference": "contents", "kind": "shipped" });
        assert_eq!((&found["files"]["altered"][1], &found["files"]["untold"]), (&program, &serde_json::json!(0)));
        let (_, said, _) = ask(&["inventory", "--json"]);
        assert_eq!(serde_json::from_str::<serde_json::Value>(&said).unwrap()["files"], serde_json::Value::Null);
    }
}

#[test]
fn a_change_whose_files_are_not_what_was_shipped_fails_though_the_versions_are_right() {
    for system in systems() {
        let host = told(system, OnFailure::Leave);
        loses(&host, PROGRAM, "");
        let manager = host.deployer();
        manager.start(1, 1).unwrap();
        assert_eq!(manager.wait(1, 1), RunState::Failed, "{system}: {}", host.log());
        assert_eq!(error(&host, 1), "files are not what their packages shipped: /usr/bin/web (altered)", "{system}");
        assert_eq!(host.result(1, 1).0.checks.failed, 1);
        assert_eq!(host.packages(), format!("installed web {}\n", versions(system)[1]));
    }
}

#[test]
fn what_was_broken_before_is_not_blamed_on_the_change_and_a_probe_tells_it() {
    for system in systems() {
        let host = told(system, OnFailure::Leave);
        let manager = host.deployer();
        put(&host, CONFIGURATION, "as somebody likes it");
        assert_eq!(prepare(&manager, 1, 1, Preparation::Probe), RunState::Succeeded, "{system}: {}", host.log());
        put(&host, PROGRAM, "");
        assert_eq!(prepare(&manager, 1, 2, Preparation::Probe), RunState::Failed, "{system}: {}", host.log());
        assert_eq!(error(&host, 2), "files are not what their packages shipped: /usr/bin/web (altered)", "{system}");
        loses(&host, PROGRAM, "");
        let action = super::manager::oid(mib::order::ENTRY, &[mib::order::ACTION, 1]);
        manager.set(&[(action, 'i', "0".into())]).unwrap();
        manager.start(1, 3).unwrap();
        assert_eq!(manager.wait(1, 3), RunState::Succeeded, "{system}: {}", host.log());
        assert!(host.log().contains("files of packages were altered before the run"), "{}", host.log());
    }
}

#[test]
fn a_host_that_is_to_goes_back_from_files_that_were_lost() {
    for system in systems() {
        let host = told(system, OnFailure::RollBack);
        // Lost once: the way back writes its own files.
        loses(&host, PROGRAM, &format!("[ -e {0} ] && exit 0; : > {0}", host.path("lost").display()));
        let manager = host.deployer();
        manager.start(1, 1).unwrap();
        assert_eq!(manager.wait(1, 1), RunState::RolledBack, "{system}: {}", host.log());
        assert!(error(&host, 1).contains("/usr/bin/web (altered)"), "{}", error(&host, 1));
        assert_eq!(host.packages(), format!("installed web {}\n", versions(system)[0]));
        assert_eq!(host.audit(), "");
    }
}
