use patchlab_check::Digest;

use super::*;
use crate::manifest::{Kind, Package, Unit};

fn file(content: &str, package: Option<&str>) -> Entry {
    Entry {
        kind: Kind::File,
        mode: 0o644,
        uid: 0,
        gid: 0,
        size: content.len() as u64,
        sha256: Some(Digest::of(content)),
        target: None,
        package: package.map(str::to_owned),
    }
}

fn unit(active: &str) -> Unit {
    Unit { load: "loaded".into(), active: active.into(), sub: "x".into() }
}

fn port(port: u16, process: &str) -> Port {
    Port { protocol: "tcp".into(), address: "0.0.0.0".into(), port, process: Some(process.into()) }
}

fn package(version: &str) -> Package {
    Package {
        name: "nginx".into(),
        arch: "amd64".into(),
        version: version.into(),
        status: "install ok installed".into(),
    }
}

fn baseline() -> Manifest {
    let owned = Some("nginx:amd64");
    Manifest {
        schema: Manifest::SCHEMA,
        kernel: "6.1.0-37-cloud-amd64".into(),
        packages: [("nginx:amd64".to_owned(), package("1.22.1-9"))].into(),
        files: [
            ("/usr/sbin/nginx".to_owned(), file("old", owned)),
            ("/etc/nginx/nginx.conf".to_owned(), file("conf", owned)),
            ("/etc/machine-id".to_owned(), file("1", None)),
            ("/var/lib/dpkg/status".to_owned(), file("status", None)),
        ]
        .into(),
        units: [("nginx.service".to_owned(), unit("active")), ("a.service".to_owned(), unit("inactive"))].into(),
        ports: vec![port(80, "nginx")],
    }
}

#[test]
fn what_a_patch_changed_on_one_screen() {
    let from = baseline();
    assert!(diff(&from, &from).is_empty());
    assert_eq!(summary(&diff(&from, &from)), "nothing differs\n");
    let mut to = baseline();
    to.packages.insert("nginx:amd64".into(), package("1.22.1-9+deb12u3"));
    to.packages.insert("tuning:all".into(), Package { name: "tuning".into(), arch: "all".into(), ..package("1.0") });
    to.files.insert("/usr/sbin/nginx".into(), file("new", Some("nginx:amd64")));
    to.files.insert("/etc/nginx/conf.d/tuning.conf".into(), file("turbo", None));
    to.files.get_mut("/etc/nginx/nginx.conf").unwrap().mode = 0o600;
    to.files.remove("/var/lib/dpkg/status");
    to.units.insert("nginx.service".into(), unit("failed"));
    to.units.remove("a.service");
    to.ports = vec![port(8080, "nginx"), port(161, "patchlab-agent")];
    to.kernel = "6.1.0-38-cloud-amd64".into();
    let found = diff(&from, &to);
    assert_eq!(
        summary(&found),
        "packages  nginx:amd64 1.22.1-9 -> 1.22.1-9+deb12u3 (2 files)\n          \
         tuning:all - -> 1.0\n\
         files     + /etc/nginx/conf.d/tuning.conf\n\
         units     nginx.service active -> failed\n\
         ports     + tcp 0.0.0.0:8080 nginx\n          \
         - tcp 0.0.0.0:80 nginx\n\
         kernel    6.1.0-37-cloud-amd64 -> 6.1.0-38-cloud-amd64\n"
    );
    let json = serde_json::to_string(&found).unwrap();
    assert_eq!(serde_json::from_str::<Diff>(&json).unwrap(), found);
    assert_eq!(*equal_to_baseline(&from, &to, &from).unwrap_err(), found);
}

#[test]
fn every_aspect_of_a_file_counts() {
    let from = baseline();
    type Alter = fn(&mut Entry);
    let table: [(&str, Alter); 5] = [
        ("mode", |entry| entry.mode = 0o4755),
        ("owner", |entry| entry.gid = 33),
        ("content", |entry| entry.sha256 = Some(Digest::of("x"))),
        ("kind", |entry| entry.kind = Kind::Special),
        ("target", |entry| entry.target = Some("/x".into())),
    ];
    for (aspect, alter) in table {
        let mut to = baseline();
        alter(to.files.get_mut("/usr/sbin/nginx").unwrap());
        let found = equal_to_baseline(&from, &to, &from).unwrap_err();
        assert_eq!(found.files[0].aspects, [aspect]);
    }
}

#[test]
fn what_may_differ_does_and_nothing_beside_it() {
    let from = baseline();
    let mut to = baseline();
    to.files.insert("/etc/machine-id".into(), file("2", None));
    to.files.insert("/var/lib/dpkg/status".into(), file("rewritten", None));
    to.files.insert("/var/lib/systemd/timers/stamp-x.timer".into(), file("", None));
    to.files.insert("/usr/lib/python3/__pycache__".into(), file("", None));
    to.units.insert("dev-vdb.device".into(), unit("active"));
    to.units.insert("patchlab-agent.service".into(), unit("active"));
    to.units.remove("a.service");
    to.ports.push(port(161, "patchlab-agent"));
    to.ports.push(port(162, "patchlab-agent "));
    assert_eq!(equal_to_baseline(&from, &to, &from).unwrap_err().ports_opened.len(), 1);
    to.ports.pop();
    equal_to_baseline(&from, &to, &from).unwrap();
    for path in
        ["/etc/machine-id2", "/var/lib/dpkg/status.d", "/var/lib/systemd/timersx", "/var/lib/systemd", "/x.pyc/y"]
    {
        assert!(allowed::path(path).is_none(), "{path}");
        let mut to = baseline();
        to.files.insert(path.into(), file("", None));
        assert!(equal_to_baseline(&from, &to, &from).is_err(), "{path}");
    }
    for (_, reason) in allowed::PATHS {
        assert!(!reason.is_empty());
    }
}

#[test]
fn a_package_that_left_its_configuration_is_not_as_before() {
    let from = baseline();
    let mut to = baseline();
    let left = Package { name: "tuning".into(), status: "deinstall ok config-files".into(), ..package("1.0") };
    to.packages.insert("tuning:all".into(), left);
    let found = equal_to_baseline(&from, &to, &from).unwrap_err();
    assert_eq!(found.packages[0].to.as_deref(), Some("1.0 (deinstall ok config-files)"));
}

#[test]
fn a_huge_diff_is_cut_and_counted() {
    let from = baseline();
    let mut to = baseline();
    for number in 0..FILES_LISTED + 5 {
        to.files.insert(format!("/opt/{number:05}"), file("", None));
    }
    let found = diff(&from, &to);
    assert_eq!((found.files.len(), found.files_omitted), (FILES_LISTED, 5));
    assert!(summary(&found).lines().count() < 30);
}

#[test]
fn what_the_control_came_to_as_well_is_times_doing() {
    let from = baseline();
    let (mut to, mut control) = (baseline(), baseline());
    for machine in [&mut to, &mut control] {
        machine.units.insert("nginx.service".into(), unit("inactive"));
        machine.files.insert("/var/lib/web/counter".into(), file("1", None));
        machine.ports = vec![port(81, "nginx")];
        machine.packages.insert("nginx:amd64".into(), package("2"));
        machine.kernel = "6.2".into();
    }
    equal_to_baseline(&from, &to, &control).unwrap();
    // A way of its own is a difference; that the control alone went one is none.
    control.files.insert("/var/lib/web/counter".into(), file("2", None));
    control.units.insert("a.service".into(), unit("active"));
    to.ports.push(port(82, "nginx"));
    let found = equal_to_baseline(&from, &to, &control).unwrap_err();
    assert_eq!(found.files.iter().map(|file| file.path.as_str()).collect::<Vec<_>>(), ["/var/lib/web/counter"]);
    assert_eq!((found.units.len(), found.ports_opened.len(), found.packages.len()), (0, 1, 0));
    assert!(!found.is_of_the_moment());
    to.files = from.files.clone();
    assert!(equal_to_baseline(&from, &to, &control).unwrap_err().is_of_the_moment());
}

#[test]
fn what_a_workload_wrote_on_the_control_too_is_not_held_against_the_rollback() {
    let from = baseline();
    let wrote = |content: &str| {
        let mut manifest = baseline();
        manifest.files.insert("/srv/table".into(), file(content, None));
        manifest
    };
    let (control, now) = (wrote("rows at 10:01"), wrote("rows at 10:02"));
    assert!(equal_to_baseline(&from, &now, &control).is_err());
    assert_eq!(equal_but_for_workload(&from, &now, &control), Ok(()));
    // What only the patched clone has, and what has another owner there, is not the workload's.
    let mut left = now.clone();
    left.files.insert("/srv/converted".into(), file("x", None));
    left.files.get_mut("/srv/table").unwrap().uid = 33;
    let told = equal_but_for_workload(&from, &left, &control).unwrap_err();
    let paths: Vec<&str> = told.files.iter().map(|file| file.path.as_str()).collect();
    assert_eq!(paths, ["/srv/converted", "/srv/table"]);
    // A file of the patch that is still there is not either, though the workload touched another.
    let mut still = now;
    still.files.insert("/usr/sbin/nginx".into(), file("new", Some("nginx:amd64")));
    assert!(equal_but_for_workload(&from, &still, &control).is_err());
}
