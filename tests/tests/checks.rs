//! Every kind of check fires: a package built on the spot does, while it is installed, one thing for each of them, and a validation on
//! real clones calls each a regression. dpkg is content, and so is every step: the checks alone see it.
//!
//! Skips aloud what this machine cannot run.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use patchlab_check::Digest;
use patchlab_lab::{Places, baseline::Baselines};
use patchlab_tests::program::{Need, Patchlab, folder, obstacle};
use serde_json::Value;

/// Every kind, and a part of what it must say of the package.
const KINDS: [(&str, &str); 8] = [
    ("serial-panic", "EXT4-fs error (device drill)"),
    ("failed-units", "careless-crash.service (failed meanwhile)"),
    ("coredump", "status=N/SEGV"),
    ("journal-errors", "careless: it went wrong"),
    ("listening-ports", ":8099"),
    ("disk-growth", "/ holds "),
    ("setuid-files", "-rwsr-xr-x root:root /usr/bin/careless-root"),
    ("changed-configuration", "left /etc/careless.conf.dpkg-new"),
];

const CONTROL: &str = "Package: careless\nVersion: 1.0\nArchitecture: all\nMaintainer: patchlab tests <tests@example.org>\n\
    Description: does one thing for every check of patchlab\n Never install it on a system that matters.\n";

const POSTINST: &str = r#"#!/bin/sh
set -e
[ "$1" = configure ] || exit 0
cp /etc/careless.conf /etc/careless.conf.dpkg-new
fallocate -l 300M /var/lib/careless.data
systemctl daemon-reload
systemctl start careless.socket
# A service that crashes, and is made to look as if it never had.
systemctl start careless-crash.service || true
systemctl reset-failed careless-crash.service || true
logger -t careless -p user.err 'it went wrong'
echo '<2>EXT4-fs error (device drill): a line, not an error' >/dev/kmsg
"#;

const SOCKET: &str = "[Socket]\nListenStream=8099\n";
const SERVICE: &str = "[Service]\nExecStart=/bin/true\n";
const CRASH: &str = "[Service]\nType=oneshot\nExecStart=/bin/sh -c 'kill -SEGV $$$$'\n";

/// Builds the package in `dir`.
fn package(dir: &Path) -> PathBuf {
    let root = dir.join("root");
    for (path, text, mode) in [
        ("DEBIAN/control", CONTROL, 0o644),
        ("DEBIAN/conffiles", "/etc/careless.conf\n", 0o644),
        ("DEBIAN/postinst", POSTINST, 0o755),
        ("etc/careless.conf", "careless = yes\n", 0o644),
        ("usr/bin/careless-root", "#!/bin/sh\n", 0o4755),
        ("lib/systemd/system/careless.socket", SOCKET, 0o644),
        ("lib/systemd/system/careless.service", SERVICE, 0o644),
        ("lib/systemd/system/careless-crash.service", CRASH, 0o644),
    ] {
        let path = root.join(path);
        fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        fs::write(&path, text).expect("a file");
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("its mode");
    }
    let package = dir.join("careless_1.0_all.deb");
    let built = Command::new("dpkg-deb").args(["--root-owner-group", "--build"]).args([&root, &package]).output();
    let built = built.expect("dpkg-deb starts");
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    package
}

/// An order that installs it.
fn order(package: &Path) -> String {
    let (digest, size) = Digest::of_file(package).expect("a readable package");
    format!(
        "id = \"PO-CHECKS-1\"\ntitle = \"careless\"\nseverity = \"low\"\n\n[[change]]\n\
         on = {{ family = \"debian\", release = \"12\", arch = \"x86_64\" }}\npackages = [\"careless_1.0_all.deb\"]\n\n\
         [[change.file]]\nname = \"careless\"\nversion = \"1.0\"\narch = \"all\"\nsize = {size}\nsha256 = \"{digest}\"\n\
         origin = \"local\"\npath = {package:?}\n"
    )
}

fn scenario() -> String {
    let checks: String = KINDS.iter().map(|(kind, _)| format!("\n[[check]]\nkind = \"{kind}\"\n")).collect();
    format!(
        "name = \"watched\"\nowner = \"tests\"\nsummary = \"every check\"\n\n\
         [[step]]\nname = \"nothing\"\nrun = \"true\"\n{checks}"
    )
}

#[test]
fn every_kind_of_check_calls_what_is_new_a_regression() {
    let given = std::env::var_os("PATCHLAB_TEST_BASELINES").filter(|given| !given.is_empty());
    let why = obstacle(&[Need::Program, Need::Lab, Need::Agent, Need::Time]);
    let why = why.or_else(|| given.is_none().then(|| "PATCHLAB_TEST_BASELINES names no data folder".into()));
    let (None, Some(given)) = (&why, given.map(PathBuf::from)) else {
        eprintln!("SKIP every_kind_of_check_calls_what_is_new_a_regression: {}", why.unwrap_or_default());
        return;
    };
    let dir = folder();
    let patchlab = Patchlab { data: dir.path().join("data") };
    fs::create_dir(&patchlab.data).expect("a folder");
    for name in ["baselines", "artifacts"] {
        let mut copy = Command::new("cp");
        copy.args(["-a", "--sparse=always"]).args([given.join(name), patchlab.data.join(name)]);
        assert!(copy.status().expect("cp starts").success());
    }
    let baselines = Baselines::open(&Places::of_data(&patchlab.data)).list().expect("baselines");
    let baseline = baselines.first().expect("a baseline").full_name();
    let file = |name: &str, text: &str| {
        let path = dir.path().join(name);
        fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        fs::write(&path, text).expect("a file");
        path.display().to_string()
    };
    let order = file("order.toml", &order(&package(dir.path())));
    file("scenarios/watched/scenario.toml", &scenario());
    let scenarios = dir.path().join("scenarios").display().to_string();
    let verdict = dir.path().join("verdict.json").display().to_string();
    let arguments: &[&str] =
        &["lab", "validate", "--order", &order, "--baseline", &baseline, "--scenarios", &scenarios, "--json", &verdict];
    let ended = patchlab.run(arguments);
    let verdict: Value = serde_json::from_slice(&fs::read(&verdict).expect(&ended.err)).expect("JSON");
    assert_eq!(verdict["verdict"], "rejected", "{}{}", ended.out, ended.err);
    let steps = verdict["baselines"][0]["scenarios"][0]["steps"].as_array().expect("steps");
    for (kind, part) in KINDS {
        let name = format!("check {kind}");
        let step = steps.iter().find(|step| step["name"] == name.as_str()).expect(&name);
        assert_eq!(step["verdict"], "regression", "{step:#}");
        let reason = step["patched"]["reason"].as_str().expect("a reason");
        assert!(reason.contains(part), "{part:?} is not named by {name}: {reason}");
        assert_eq!(step["control"]["status"], "pass", "{step:#}");
    }
}
