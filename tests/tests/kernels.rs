//! Orders that bring a kernel, on real machines: packages made on the spot bring a copy of the guest's own kernel under another release,
//! with its initial ram disk or, so that it panics, without one. The new kernel is booted once by GRUB; one that panics brings the old one
//! back by itself, and the order is rejected and walked back; one that runs is confirmed. Skips aloud what this machine cannot run.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use patchlab_lab::{
    Places,
    baseline::Baselines,
    report::{BaselineReport, Report, RollbackStatus},
    verdict::Judgement,
};
use patchlab_tests::{
    package,
    program::{Ended, Need, Patchlab, Running, folder, obstacle},
};

/// What both need.
const NEEDS: [Need; 5] = [Need::Program, Need::Lab, Need::Agent, Need::Time, Need::Stored];

/// Ends the test aloud where the machine lacks something.
macro_rules! needs {
    ($test:literal $(, $more:expr)*) => {
        if let Some(why) = obstacle(&[&NEEDS[..], &[$($more),*]].concat()) {
            eprintln!("SKIP {}: {why}", $test);
            return;
        }
    };
}

/// What the scenario's steps see: which kernel GRUB booted, and what it will boot next.
const SCENARIO: &str = r#"
name = "kernel"
owner = "tests"
summary = "the machine runs"
timeout = "2min"
applies = { packages = ["nginx", "linux-image-9.9.9-broken", "linux-image-9.9.9-good"] }

[[step]]
name = "runs"
run = "sed 's/ .*//' /proc/cmdline; grub-editenv /boot/grub/grubenv list; grep -c 'menuentry ' /boot/grub/grub.cfg"
"#;

/// A package with a kernel of this release; `more` is what else its script puts into `/boot`.
fn kernel_package(release: &str, more: &str, dir: &Path) -> (String, PathBuf) {
    let name = format!("linux-image-{release}");
    let postinst = format!(
        "#!/bin/sh\nset -e\n[ \"$1\" = configure ] || exit 0\nkernel=$(ls /boot/vmlinuz-6* | tail -n 1)\n\
         cp \"$kernel\" /boot/vmlinuz-{release}\n{more}\nupdate-grub\n"
    );
    let postrm = format!(
        "#!/bin/sh\nset -e\n[ \"$1\" = remove ] || exit 0\n\
         rm -f /boot/vmlinuz-{release} /boot/initrd.img-{release}\nupdate-grub\n"
    );
    let files = [("DEBIAN/postinst", postinst.as_str(), 0o755), ("DEBIAN/postrm", postrm.as_str(), 0o755)];
    let package = package::build(&name, &files, dir);
    (name, package)
}

/// Validates an order that brings such a kernel, reboots, and is rolled back on failure. What it is made of is left in `dir`.
fn validate(patchlab: &Patchlab, dir: &Path, release: &str, more: &str) -> (Ended, BaselineReport) {
    let baselines = Baselines::open(&Places::of_data(&patchlab.data)).list().expect("baselines");
    let baseline = baselines.first().expect("a baseline").full_name();
    let (name, package) = kernel_package(release, more, dir);
    let order = package::order(&format!("PO-{}", release.to_uppercase()), &name, &package);
    let (head, change) = order.split_once("\n[[change]]").expect("an order");
    let order = format!(
        "{head}on_failure = \"roll-back\"\nreboot = {{ when = \"if-needed\", grace_minutes = 0 }}\n\n[[change]]{change}"
    );
    let scenarios = dir.join("scenarios");
    fs::create_dir_all(scenarios.join("kernel")).expect("a folder");
    fs::write(scenarios.join("kernel/scenario.toml"), SCENARIO).expect("a scenario");
    let paths = [dir.join("order.toml"), scenarios, dir.join("verdict.json")];
    fs::write(&paths[0], order).expect("an order");
    let [order, scenarios, json] = paths.each_ref().map(|path| path.display().to_string());
    let begun = Instant::now();
    let ended = patchlab.run(&[
        "lab",
        "validate",
        "--order",
        &order,
        "--baseline",
        &baseline,
        "--scenarios",
        &scenarios,
        "--json",
        &json,
    ]);
    eprintln!("{name}: {:.1} s, exit {:?}", begun.elapsed().as_secs_f32(), ended.code);
    eprintln!("{}{}", ended.out, ended.err);
    let report = fs::read(&paths[2]).unwrap_or_else(|_| panic!("{}", ended.err));
    let report = Report::from_json(&report).expect("a verdict").baselines.into_iter().next().expect("a baseline");
    assert!(begun.elapsed() < Duration::from_secs(1800), "{}", report.reason);
    (ended, report)
}

#[test]
fn a_kernel_that_panics_brings_the_old_one_back_and_its_order_is_rejected_and_walked_back() {
    needs!("a_kernel_that_panics_brings_the_old_one_back_and_its_order_is_rejected_and_walked_back");
    // Without an initial ram disk there is no driver for the disk, so no root.
    let dir = folder();
    let patchlab = Patchlab::on_a_copy(dir.path());
    let (ended, report) = validate(&patchlab, dir.path(), "9.9.9-broken", "");
    assert_eq!(report.verdict, Judgement::Rejected, "{}\n{}{}", report.reason, ended.out, ended.err);
    let parts = ["after the reboot", "boots: rolled back, as the order says", "kernel 9.9.9-broken was booted once"];
    for part in parts.into_iter().chain(["the host fell back to kernel 6.", "and the control is well"]) {
        assert!(report.reason.contains(part), "{part:?} is not in {:?}", report.reason);
    }
}

#[test]
fn a_kernel_that_runs_is_confirmed_and_rolled_back() {
    needs!("a_kernel_that_runs_is_confirmed_and_rolled_back", Need::Soak);
    let dir = folder();
    let patchlab = Patchlab::on_a_copy(dir.path());
    let more = "cp /boot/initrd.img-6* /boot/initrd.img-9.9.9-good";
    let (ended, report) = validate(&patchlab, dir.path(), "9.9.9-good", more);
    assert_eq!(report.verdict, Judgement::Passed, "{}\n{}{}", report.reason, ended.out, ended.err);
    assert_eq!(report.rollback.status, RollbackStatus::Proven, "{:?}", report.rollback);
    let said = |phase: &str| {
        let ran = report.scenarios.iter().find(|ran| ran.phase.name() == phase).expect("a round");
        ran.steps[0].patched.as_ref().expect("it ran").output.clone()
    };
    let [before, after] = ["applied", "rebooted"].map(said);
    assert!(before.contains("next_entry=gnulinux-advanced-") && before.contains("saved_entry="), "armed: {before}");
    assert!(after.contains("BOOT_IMAGE=/boot/vmlinuz-9.9.9-good"), "{after}");
    assert!(
        !after.contains("saved_entry=") && !after.contains("next_entry=g"),
        "the menu's first is the default: {after}"
    );
}

/// The demonstration on a folder of its own, its server and its managed hosts running. Interrupted and waited for at its end.
struct Demonstration {
    running: Running,
    lines: Box<dyn Iterator<Item = String>>,
    patchlab: Patchlab,
}

impl Demonstration {
    /// With a stored baseline, which is not to be built again.
    fn start(dir: &Path) -> Self {
        let stored = Patchlab::on_a_copy(dir).data;
        for name in ["keys", "orders"].map(|name| stored.join(name)).into_iter().filter(|path| path.exists()) {
            fs::remove_dir_all(name).expect("it goes");
        }
        fs::rename(stored, dir.join("demo")).expect("a folder");
        let outer = Patchlab { data: dir.to_owned() };
        let mut command = outer.command(&["demo", "--keep", "--listen", "127.0.0.1:0"]);
        let mut running = Running::start(command.stdout(Stdio::piped()));
        let output = running.0.stdout.take().expect("its standard output");
        let mut lines = BufReader::new(output).lines().map_while(Result::ok);
        let ready = lines.by_ref().inspect(|line| println!("{line}")).any(|line| line.contains("until Ctrl-C"));
        assert!(ready, "the demonstration ended with {:?}", running.code());
        Self { running, lines: Box::new(lines), patchlab: Patchlab { data: dir.join("demo") } }
    }

    fn end(mut self) {
        let interrupted = Command::new("kill").args(["-INT", &self.running.0.id().to_string()]).status();
        assert!(interrupted.expect("kill runs").success());
        self.lines.by_ref().for_each(|line| println!("{line}"));
        assert_eq!(self.running.code(), Some(0), "how the demonstration ended");
    }
}

#[test]
fn a_kernel_that_the_lab_passed_falls_back_by_itself_on_a_host_where_it_panics() {
    needs!("a_kernel_that_the_lab_passed_falls_back_by_itself_on_a_host_where_it_panics", Need::Soak);
    let dir = folder();
    let demonstration = Demonstration::start(dir.path());
    let patchlab = &demonstration.patchlab;
    // What no lab can see: it is this one host's doing.
    let more = "[ \"$(hostname)\" = web-2 ] || cp /boot/initrd.img-6* /boot/initrd.img-9.9.9-good";
    let (ended, report) = validate(patchlab, dir.path(), "9.9.9-good", more);
    assert_eq!(report.verdict, Judgement::Passed, "{}\n{}{}", report.reason, ended.out, ended.err);

    let file = |name: &str| dir.path().join(name).display().to_string();
    let key = |name: &str| patchlab.data.join("keys").join(name).with_extension("pem").display().to_string();
    let (order, verdict, id) = (file("order.toml"), file("verdict.json"), "PO-9.9.9-GOOD");
    let does = |arguments: &[&str]| {
        let ended = patchlab.run(arguments);
        assert_eq!(ended.code, Some(0), "{arguments:?}: {}{}", ended.out, ended.err);
    };
    does(&["order", "submit", &order, "--key", &key("drafter"), "--verdict", &verdict]);
    does(&["order", "release", id]);
    does(&["order", "approve", id, "--key", &key("approver"), "--hosts", "2", "--name", "tests"]);
    let begun = Instant::now();
    let activated = patchlab.run(&["order", "activate", id, "--host", "web-2", "--wait"]);
    eprintln!("{:.1} s\n{}{}", begun.elapsed().as_secs_f32(), activated.out, activated.err);
    assert_eq!(activated.code, Some(1), "{}{}", activated.out, activated.err);
    let shown = patchlab.run(&["order", "show", id]);
    let fell_back: Vec<&str> = shown.out.lines().filter(|line| line.starts_with("web-2")).collect();
    for part in ["rolled-back", "kernel 9.9.9-good was booted once", "fell back to kernel 6."] {
        assert!(fell_back.iter().any(|line| line.contains(part)), "{part:?} is not in {}", shown.out);
    }
    demonstration.end();
}
