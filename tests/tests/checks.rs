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
# cap_net_raw=ep (capabilities(7), VFS_CAP_REVISION_2); 188 is setxattr(2) of x86-64.
cp /bin/true /usr/bin/careless-capable
perl -e 'my ($file, $name) = ("/usr/bin/careless-capable", "security.capability"); my $value = pack("V5", 0x2000001, 1 << 13, 0, 0, 0);
  syscall(188, $file, $name, $value, length($value), 0) == 0 or die $!'
# More files than a report lists.
mkdir /usr/share/careless
cd /usr/share/careless
seq 2100 | xargs touch
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
    let setuid = steps.iter().find(|step| step["name"] == "check setuid-files").expect("it");
    let reason = setuid["patched"]["reason"].as_str().expect("a reason");
    assert!(reason.contains("/usr/bin/careless-capable has capabilities 0100000200200000"), "{reason}");
    // All that the report leaves out is in the run's record.
    let diff = &verdict["baselines"][0]["diff"];
    let (listed, omitted) =
        (diff["files"].as_array().expect("files").len(), diff["files_omitted"].as_u64().expect("a number"));
    let name = diff["files_in"].as_str().expect("a file");
    let records = fs::read_dir(dir.path().join("data/runs")).expect("runs").map(|entry| entry.expect("one").path());
    let folders = records.filter_map(|record| fs::read_dir(record).ok()).flatten();
    let wholes: Vec<String> = folders
        .filter_map(|folder| fs::read_to_string(folder.expect("one").path().join("out").join(name)).ok())
        .collect();
    assert_eq!(wholes.len(), 1, "{name}");
    assert_eq!(wholes[0].lines().count() as u64, listed as u64 + omitted);
    assert!(wholes[0].contains("\"/usr/share/careless/2100\""));
}
