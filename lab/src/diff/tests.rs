use patchlab_check::Digest;

use super::*;
use crate::manifest::{Entry, Kind, Package, Unit};

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
        ..Manifest::default()
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
        "packages  +1 ~1  ~ nginx:amd64 1.22.1-9 -> 1.22.1-9+deb12u3 (2 files)\n                 \
         + tuning:all 1.0\n\
         files     +1     + /etc/nginx/conf.d/tuning.conf (no package's)\n\
         units     ~1     ~ nginx.service active -> failed\n\
         ports     +1 -1  + tcp 0.0.0.0:8080 nginx\n                 \
         - tcp 0.0.0.0:80 nginx\n\
         kernel    ~1     ~ running 6.1.0-37-cloud-amd64 -> 6.1.0-38-cloud-amd64\n"
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
    let mut found = diff(&from, &to);
    let whole = found.clone();
    let text = found.shorten("diff-patched.jsonl").unwrap();
    assert_eq!((found.files.len(), found.files_omitted), (FILES_LISTED, 5));
    let lines: Vec<FileChange> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines, whole.files);
    assert!(!found.is_as_before() && summary(&found).lines().count() < 30);
    let row = "~ 5 more files are not listed, all are in diff-patched.jsonl of the run's record";
    let files = groups(&found).into_iter().find(|group| group.name == "files").unwrap();
    assert_eq!(format!("~ {}", files.rows.last().unwrap().text), row);
    // The file has a limit of its own, and says what it leaves out.
    let mut long = whole.clone();
    let text = long.shorten_to(1, 200, "x").unwrap();
    let (listed, last) = (text.lines().count() - 1, text.lines().last().unwrap());
    assert_eq!(last, format!("{{\"omitted\":{}}}", whole.files.len() - listed));
    assert_eq!(whole.clone().shorten_to(whole.files.len(), 0, "x"), None);
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
    // Nor is a capability on what the workload wrote.
    let attributes = |with: &[&str]| {
        let own = BTreeMap::from([("security.capability".to_owned(), "01".to_owned())]);
        Some(with.iter().map(|path| ((*path).to_owned(), own.clone())).collect())
    };
    let [from_too, control_too] = [&from, &control].map(|of| Manifest { attributes: attributes(&[]), ..of.clone() });
    let capable = Manifest { attributes: attributes(&["/srv/table"]), ..now.clone() };
    assert_eq!(equal_but_for_workload(&from_too, &capable, &control_too).unwrap_err().files.len(), 1);
    // A file of the patch that is still there is not either, though the workload touched another.
    let mut still = now;
    still.files.insert("/usr/sbin/nginx".into(), file("new", Some("nginx:amd64")));
    assert!(equal_but_for_workload(&from, &still, &control).is_err());
}

#[test]
fn what_dpkg_notes_of_a_package_counts_as_the_packages() {
    let mut to = baseline();
    to.packages.insert("nginx:amd64".into(), package("2"));
    to.packages.insert("nginx-common:all".into(), package("1"));
    for note in ["nginx.list", "nginx.md5sums", "nginx:amd64.triggers", "nginx-common.list", "format", "ngin.list"] {
        to.files.insert(format!("/var/lib/dpkg/info/{note}"), file("x", None));
    }
    to.files.insert("/usr/sbin/shared".into(), file("x", Some("other:amd64")));
    let found = diff(&baseline(), &to);
    let counts: Vec<usize> = found.packages.iter().map(|change| change.files).collect();
    assert_eq!(counts, [1, 3]);
    let files = groups(&found).into_iter().find(|group| group.name == "files").unwrap();
    let rows: Vec<String> = files.rows.into_iter().map(|row| row.text).collect();
    let expected = [
        "/usr/sbin/shared (other:amd64)",
        "/var/lib/dpkg/info/format (no package's)",
        "/var/lib/dpkg/info/ngin.list (no package's)",
    ];
    assert_eq!(rows, expected);
}

#[test]
fn what_a_script_set_beside_content_and_mode_is_not_as_before() {
    let with = |value: &str| {
        let own = [("security.capability".to_owned(), value.to_owned())].into();
        Manifest { attributes: Some([("/usr/sbin/nginx".to_owned(), own)].into()), ..baseline() }
    };
    let none = Manifest { attributes: Some([].into()), ..baseline() };
    for (from, now) in [(&none, &with("01")), (&with("01"), &none), (&with("01"), &with("02"))] {
        let left = equal_to_baseline(from, now, from).unwrap_err();
        assert_eq!(left.files[0].aspects, ["capabilities"]);
        assert!(equal_but_for_workload(from, now, from).is_err());
    }
    equal_to_baseline(&with("01"), &with("01"), &none).unwrap();
    // An older lab did not look: nobody knows.
    equal_to_baseline(&baseline(), &with("01"), &none).unwrap();
}

#[test]
fn a_daemon_that_was_restarted_has_another_port_of_the_kernels() {
    let with = |number: u16| Manifest { ports: vec![port(80, "nginx"), port(number, "rpc.statd")], ..baseline() };
    let (from, control) = (with(40_001), with(40_002));
    equal_to_baseline(&from, &with(55_555), &control).unwrap();
    let mut two = with(55_555);
    two.ports.push(port(40_001, "rpc.statd"));
    let left = equal_to_baseline(&from, &two, &control).unwrap_err();
    assert_eq!((left.ports_opened, left.ports_closed), (vec![port(55_555, "rpc.statd")], vec![]));
    let none = Manifest { ports: vec![port(80, "nginx")], ..baseline() };
    assert_eq!(equal_to_baseline(&from, &none, &control).unwrap_err().ports_closed.len(), 1);
}

#[test]
fn a_disk_that_an_older_lab_did_not_list_is_as_the_control_has_it() {
    let points = |points: &[&str]| Some(points.iter().map(|point| (*point).to_owned()).collect());
    let with = |boot: &str, listed: &[&str]| {
        let mut manifest = baseline();
        manifest.file_systems = points(listed);
        manifest.files.insert("/boot/efi/EFI/grub".into(), file(boot, None));
        manifest
    };
    let (old, control) = (baseline(), with("1", &["/", "/boot/efi"]));
    equal_to_baseline(&old, &control, &control).unwrap();
    let left = |now: &Manifest| equal_to_baseline(&old, now, &control).unwrap_err().files;
    let changed = left(&with("2", &["/", "/boot/efi"]));
    assert_eq!((changed[0].path.as_str(), changed[0].change), ("/boot/efi/EFI/grub", Change::Changed));
    let mut gone = control.clone();
    gone.files.remove("/boot/efi/EFI/grub");
    assert_eq!(left(&gone)[0].change, Change::Removed);
    // Of two baselines nothing is said of what only one lists; where both say what they list, a new disk is a difference.
    assert!(diff(&old, &control).is_empty());
    assert_eq!(diff(&Manifest { file_systems: points(&["/"]), ..old.clone() }, &control).files.len(), 1);
}

/// The baseline with every section that this lab collects.
fn whole() -> Manifest {
    use crate::manifest::{BootMode, ConfigurationFile, DiskUse, FileSystem, Group, Kernels, Password, User};
    let user = User { uid: 33, gid: 33, home: "/srv".into(), shell: "/bin/sh".into(), password: Password::Locked };
    let conf = |found: &str| ConfigurationFile {
        package: "nginx:amd64".into(),
        shipped: "aa".into(),
        found: Some(found.into()),
        obsolete: false,
    };
    let mut manifest = baseline();
    manifest.files.insert("/etc/nginx/mime.types".into(), file("mime", Some("nginx:amd64")));
    manifest.accounts = Some(crate::manifest::Accounts {
        users: [("www-data".to_owned(), user)].into(),
        groups: [("adm".to_owned(), Group { gid: 4, members: vec![] })].into(),
    });
    manifest.kernels = Some(Kernels {
        installed: vec!["6.1.0-37-cloud-amd64".into()],
        running_version: None,
        modules: ["ext4".to_owned()].into(),
        boot: BootMode::Bios,
    });
    let root = FileSystem { kind: "ext4".into(), size: 4 << 30, used: 1 << 30 };
    manifest.disk =
        Some(DiskUse { file_systems: [("/".to_owned(), root)].into(), folders: [("/opt".to_owned(), 0)].into() });
    manifest.configuration = Some(
        [("/etc/nginx/nginx.conf".to_owned(), conf("aa")), ("/etc/nginx/mime.types".to_owned(), conf("bb"))].into(),
    );
    manifest.restarts = Some(Restarts::default());
    manifest
}

/// What one alteration of the whole machine is told as, a line a group.
fn told(alter: impl Fn(&mut Manifest)) -> Vec<String> {
    let mut to = whole();
    alter(&mut to);
    groups(&diff(&whole(), &to)).iter().map(Group::line).collect()
}

#[test]
fn every_section_is_told_in_a_group_of_its_own() {
    use crate::manifest::{BootMode, Password};
    assert_eq!(told(|_| ()), Vec::<String>::new());
    let accounts = told(|to| {
        let accounts = to.accounts.as_mut().unwrap();
        let mut new = accounts.users["www-data"].clone();
        new.password = Password::Empty;
        accounts.users.get_mut("www-data").unwrap().shell = "/bin/bash".into();
        accounts.users.insert("tuner".into(), new);
        accounts.groups.get_mut("adm").unwrap().members = vec!["tuner".into()];
    });
    let added = "+ tuner (uid 33, gid 33, home /srv, shell /bin/sh, password empty)";
    assert_eq!(
        accounts,
        [format!("users {added}, ~ www-data (shell /bin/sh -> /bin/bash)"), "groups ~ adm (members  -> tuner)".into()]
    );
    let kernels = told(|to| {
        let kernels = to.kernels.as_mut().unwrap();
        kernels.installed.push("6.1.0-38-cloud-amd64".into());
        kernels.modules = ["overlay".to_owned()].into();
        kernels.boot = BootMode::Uefi;
        let restarts = to.restarts.as_mut().unwrap();
        restarts.reboot.insert("dbus ask for it".into());
        restarts.units.insert("nginx.service".into(), ["/usr/lib/a.so".to_owned(), "/usr/lib/b.so".into()].into());
    });
    assert_eq!(
        kernels,
        [
            "kernel + installed 6.1.0-38-cloud-amd64, ~ boot bios -> uefi",
            "modules + overlay, - ext4",
            "restarts + reboot: dbus ask for it, + nginx.service runs /usr/lib/a.so and 1 more, which is gone",
        ]
    );
    // A tolerance is none, a byte beyond it is told.
    let disk = |used: u64, folder: u64| {
        told(|to| {
            let disk = to.disk.as_mut().unwrap();
            disk.file_systems.get_mut("/").unwrap().used += used;
            disk.folders.insert("/opt".into(), folder);
        })
    };
    assert_eq!(disk(FILE_SYSTEM_TOLERANCE, FOLDER_TOLERANCE), Vec::<String>::new());
    assert_eq!(
        disk(FILE_SYSTEM_TOLERANCE + 1, FOLDER_TOLERANCE + 1),
        ["disk ~ file system / +16MiB to 1040MiB, ~ /opt +1MiB to 1MiB"]
    );
}

#[test]
fn configuration_says_whose_doing_it_is() {
    let change = |to: &mut Manifest, path: &str, found: Option<&str>| {
        to.files.insert(path.into(), file("new", None));
        if let Some(found) = found {
            let mut conf = to.configuration.as_ref().unwrap()["/etc/nginx/nginx.conf"].clone();
            (conf.shipped, conf.found) = ("new".into(), Some(found.into()));
            to.configuration.as_mut().unwrap().insert(path.into(), conf);
        }
    };
    let lines = told(|to| {
        change(to, "/etc/nginx/nginx.conf", Some("new"));
        change(to, "/etc/nginx/mime.types", Some("other"));
        change(to, "/etc/nginx/conf.d/tuning.conf", None);
        change(to, "/etc/nginx/nginx.conf.dpkg-dist", None);
        change(to, "/opt/tuning.conf", None);
    });
    assert_eq!(
        lines,
        [
            "configuration + /etc/nginx/conf.d/tuning.conf (no package's), \
             ~ /etc/nginx/mime.types (not as nginx:amd64 ships it, was altered before), \
             ~ /etc/nginx/nginx.conf (as nginx:amd64 ships it)",
            "leftovers + /etc/nginx/nginx.conf.dpkg-dist",
            "files + /opt/tuning.conf (no package's)",
        ]
    );
}

#[test]
fn nothing_is_said_of_a_section_that_one_lacks() {
    for (old, new) in [(baseline(), whole()), (whole(), baseline())] {
        let (mut old, mut new) = (old, new);
        old.files.remove("/etc/nginx/mime.types");
        new.files.remove("/etc/nginx/mime.types");
        assert!(diff(&old, &new).is_empty());
        assert!(diff_beside(&old, &new, &new).is_empty() && diff_beside(&new, &new, &old).is_empty());
    }
}

#[test]
fn what_runs_and_amounts_decide_no_rollback_and_the_controls_doing_is_no_news() {
    let (from, mut now) = (whole(), whole());
    now.kernels.as_mut().unwrap().modules.insert("overlay".into());
    now.disk.as_mut().unwrap().folders.insert("/opt".into(), 1 << 30);
    now.restarts.as_mut().unwrap().units.insert("nginx.service".into(), ["/usr/lib/a.so".to_owned()].into());
    equal_to_baseline(&from, &now, &from).unwrap();
    let left = diff_beside(&from, &now, &from).of_the_running();
    assert_eq!(groups(&left).iter().map(|group| group.name).collect::<Vec<_>>(), ["modules", "disk", "restarts"]);
    assert!(diff_beside(&from, &now, &now).is_empty());
    // Accounts lie in files, which decide.
    now.accounts.as_mut().unwrap().users.clear();
    now.files.insert("/etc/passwd".into(), file("", None));
    let told = equal_to_baseline(&from, &now, &from).unwrap_err();
    assert_eq!((told.users.len(), told.files.len(), told.is_of_the_moment()), (1, 1, false));
}

#[test]
fn a_summary_is_one_screen_however_much_differs() {
    let mut to = whole();
    for number in 0..50 {
        to.files.insert(format!("/opt/{number}"), file("", None));
        to.files.insert(format!("/etc/{number}.conf"), file("", None));
        to.files.insert(format!("/etc/{number}.rpmnew"), file("", None));
        to.units.insert(format!("{number}.service"), unit("failed"));
        to.ports.push(port(number, "x"));
        to.packages.insert(format!("p{number}:all"), package("1"));
        to.kernels.as_mut().unwrap().modules.insert(format!("m{number}"));
        to.disk.as_mut().unwrap().folders.insert(format!("/{number}"), 1 << 30);
        to.restarts.as_mut().unwrap().reboot.insert(format!("{number}"));
        to.accounts
            .as_mut()
            .unwrap()
            .groups
            .insert(format!("{number}"), crate::manifest::Group { gid: 1, members: vec![] });
    }
    let text = summary(&diff(&whole(), &to));
    assert!((20..=32).contains(&text.lines().count()), "{text}");
    assert!(text.contains("+50") && text.contains("… and 48 more"), "{text}");
}
