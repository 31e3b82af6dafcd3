//! Every kind of check fires: a package built on the spot does, while it is installed, one thing for each of them, and a validation on
//! real clones calls each a regression. dpkg is content, and so is every step: the checks alone see it.
//!
//! Skips aloud what this machine cannot run.

use std::fs;

use patchlab_tests::{
    package::{self, File},
    program::{Need, Patchlab, file, folder, obstacle},
};
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

const FILES: [File<'_>; 7] = [
    ("DEBIAN/conffiles", "/etc/careless.conf\n", 0o644),
    ("DEBIAN/postinst", POSTINST, 0o755),
    ("etc/careless.conf", "careless = yes\n", 0o644),
    ("usr/bin/careless-root", "#!/bin/sh\n", 0o4755),
    ("lib/systemd/system/careless.socket", SOCKET, 0o644),
    ("lib/systemd/system/careless.service", SERVICE, 0o644),
    ("lib/systemd/system/careless-crash.service", CRASH, 0o644),
];

fn scenario() -> String {
    let checks: String = KINDS.iter().map(|(kind, _)| format!("\n[[check]]\nkind = \"{kind}\"\n")).collect();
    format!(
        "name = \"watched\"\nowner = \"tests\"\nsummary = \"every check\"\n\n\
         [[step]]\nname = \"nothing\"\nrun = \"true\"\n{checks}"
    )
}

#[test]
fn every_kind_of_check_calls_what_is_new_a_regression() {
    if let Some(why) = obstacle(&[Need::Program, Need::Lab, Need::Agent, Need::Time, Need::Stored]) {
        eprintln!("SKIP every_kind_of_check_calls_what_is_new_a_regression: {why}");
        return;
    }
    let dir = folder();
    let patchlab = Patchlab::on_a_copy(dir.path());
    let baseline = patchlab.baseline();
    let file = |name: &str, text: &str| file(dir.path(), name, text);
    let order =
        file("order.toml", &package::order("PO-CHECKS-1", "careless", &package::build("careless", &FILES, dir.path())));
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
