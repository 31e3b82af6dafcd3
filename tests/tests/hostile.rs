//! Guests that hang, panic, flood, fill and lie: packages made on the spot do the worst to the patched clone, and the control stays good.
//! Each validation must end inside its budget, be the patch's fault and not the lab's, say in its first line when, where and how, keep its
//! evidence within limits, and leave nothing on the host. Skips aloud what this machine cannot run.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use patchlab_check::Outcome;
use patchlab_lab::{
    Places,
    baseline::Baselines,
    report::{BaselineReport, Report, RollbackStatus},
    verdict::{Judgement, Verdict},
};
use patchlab_tests::{
    package,
    program::{Ended, Need, Patchlab, folder, obstacle},
};

/// What every one of them needs.
const NEEDS: [Need; 5] = [Need::Program, Need::Lab, Need::Agent, Need::Time, Need::Stored];

/// Where the evil package leaves the mark by which a scenario's step knows the patched clone.
const MARK: &str = "/etc/hostile";

/// Bytes of a console that are kept with a run: those of its begin, those of its end, and a line that says how many were left out.
const CONSOLE_BYTES: u64 = (1 << 20) + (4 << 20) + 100;

/// Ends the test aloud where the machine lacks something.
macro_rules! needs {
    ($test:literal $(, $more:expr)*) => {
        if let Some(why) = obstacle(&[&NEEDS[..], &[$($more),*]].concat()) {
            eprintln!("SKIP {}: {why}", $test);
            return;
        }
    };
}

/// Stored baselines, and what is done to clones of one.
struct Ground {
    dir: tempfile::TempDir,
    patchlab: Patchlab,
    baseline: String,
}

/// What a validation came to.
struct Judged {
    ended: Ended,
    report: BaselineReport,
    took: Duration,
    /// The folder of its record.
    record: PathBuf,
}

impl Ground {
    fn new() -> Self {
        let dir = folder();
        let patchlab = Patchlab::on_a_copy(dir.path());
        let baselines = Baselines::open(&Places::of_data(&patchlab.data)).list().expect("baselines");
        let baseline = baselines.first().expect("a baseline").full_name();
        Self { dir, patchlab, baseline }
    }

    /// Validates a package `name` that does `evil` when it is configured, against one scenario with these steps.
    fn validate(&self, name: &str, evil: &str, steps: &str, more: &[&str]) -> Judged {
        let dir = self.dir.path().join(name);
        fs::create_dir_all(dir.join("scenarios/drill")).expect("a folder");
        let postinst = format!("#!/bin/sh\n[ \"$1\" = configure ] || exit 0\n{evil}\n");
        let files = [("DEBIAN/postinst", postinst.as_str(), 0o755), ("etc/hostile", "hostile\n", 0o644)];
        let package = package::build(name, &files, &dir);
        let (order, json) = (dir.join("order.toml"), dir.join("verdict.json"));
        fs::write(&order, package::order(&format!("PO-{}-1", name.to_uppercase()), name, &package)).expect("an order");
        let scenario =
            format!("name = \"drill\"\nowner = \"tests\"\nsummary = \"{name}\"\ntimeout = \"2min\"\n\n{steps}");
        fs::write(dir.join("scenarios/drill/scenario.toml"), scenario).expect("a scenario");
        let [order, scenarios, json_file] =
            [&order, &dir.join("scenarios"), &json].map(|path| path.display().to_string());
        let inputs = ["--order", &order, "--baseline", &self.baseline, "--scenarios", &scenarios, "--json", &json_file];
        let begun = Instant::now();
        let ended = self.patchlab.run(&[&["lab", "validate"], &inputs[..], more].concat());
        let took = begun.elapsed();
        eprintln!("{name}: {:.1} s, exit {:?}: {}", took.as_secs_f32(), ended.code, first_line(&ended));
        let report =
            Report::from_json(&fs::read(&json).unwrap_or_else(|_| panic!("{}", ended.err))).expect("a verdict");
        let report = report.baselines.into_iter().next().expect("a baseline");
        Judged { record: self.newest_record().join(&self.baseline), ended, report, took }
    }

    fn newest_record(&self) -> PathBuf {
        let runs = fs::read_dir(self.patchlab.data.join("runs")).expect("records");
        let runs = runs.map(|entry| entry.expect("a record").path()).filter(|path| path.is_dir());
        runs.max_by_key(|path| fs::metadata(path).and_then(|found| found.modified()).expect("a time"))
            .expect("a record")
    }

    /// Nothing is left on the host: no machine, no folder, no line in the ledger.
    fn is_clean(&self) {
        assert_eq!(self.patchlab.run(&["lab", "gc", "--dry-run"]).out.trim(), "nothing to collect");
        let work = Places::of_data(&self.patchlab.data).work;
        let left: Vec<_> = fs::read_dir(work).map_or_else(|_| Vec::new(), |dir| dir.flatten().collect());
        assert!(left.iter().all(|entry| !entry.file_name().to_string_lossy().starts_with("w-")), "{left:?}");
    }
}

fn first_line(ended: &Ended) -> &str {
    ended
        .out
        .lines()
        .chain(ended.err.lines())
        .find(|line| line.contains("hostile") || line.contains("the machine"))
        .unwrap_or("")
}

impl Judged {
    /// The patch is to blame: it is rejected, in time, and the reason says all of these.
    fn is_rejected(&self, within: Duration, parts: &[&str]) {
        self.is(Judgement::Rejected, within, parts);
    }

    /// The patch is to blame: it cannot be applied, which is seen in time, and the reason says all of these.
    fn is_inapplicable(&self, within: Duration, parts: &[&str]) {
        self.is(Judgement::Inapplicable, within, parts);
        self.says(&self.report.reason, &["the patch cannot be applied: apply failed on the machine"]);
    }

    fn is(&self, judgement: Judgement, within: Duration, parts: &[&str]) {
        let reason = &self.report.reason;
        assert_eq!(self.report.verdict, judgement, "{reason}\n{}{}", self.ended.out, self.ended.err);
        assert_eq!(self.ended.code, Some(judgement.exit_code().into()), "{}{}", self.ended.out, self.ended.err);
        self.says(reason, parts);
        assert!(self.took < within, "it took {:?}: {reason}", self.took);
    }

    fn says(&self, said: &str, parts: &[&str]) {
        for part in parts {
            assert!(said.contains(part), "{part:?} is not in {said:?}\n{}{}", self.ended.out, self.ended.err);
        }
    }

    /// What a step gave on the patched clone, which is to be a regression.
    fn regression(&self, step: &str) -> &Outcome {
        let mut steps = self.report.scenarios.iter().flat_map(|ran| &ran.steps);
        let found = steps.find(|found| found.name == step).unwrap_or_else(|| panic!("{step}: {:?}", self.report));
        assert_eq!(found.verdict, Some(Verdict::Regression), "{found:?}");
        found.patched.as_ref().expect("it ran")
    }

    /// The console that is kept of the patched clone.
    fn console(&self) -> String {
        let path = self.record.join("patched.console");
        let size = fs::metadata(&path).expect("a console").len();
        assert!(size <= CONSOLE_BYTES, "{size} bytes of console were kept");
        String::from_utf8_lossy(&fs::read(&path).expect("a console")).into_owned()
    }
}

/// A step that does this on the patched clone alone.
fn step(name: &str, timeout: &str, command: &str) -> String {
    format!(
        "[[step]]\nname = \"{name}\"\ntimeout = \"{timeout}\"\nrun = '''\ntest -e {MARK} || exit 0\n{command}\n'''\n\n"
    )
}

fn good() -> String {
    step("good", "20s", "true")
}

/// In seconds, with room for a host that does other things as well.
fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

#[test]
fn a_panic_in_the_apply_and_steps_that_flood_and_hang() {
    needs!("a_panic_in_the_apply_and_steps_that_flood_and_hang");
    let ground = Ground::new();

    let judged = ground.validate("hostile-panic", "echo c >/proc/sysrq-trigger; sleep 600", &good(), &[]);
    let parts = ["regression in the machine while the patch is applied: lives", "Kernel panic - not syncing: sysrq"];
    judged.is_rejected(s(200), &parts);
    judged.says(&judged.report.reason, &["its agent said last: ", "another pair of clones", "the control is well"]);
    assert_eq!(judged.report.rollback.status, RollbackStatus::Skipped);
    assert!(judged.console().contains("Kernel panic"), "the console's end is kept");
    assert!(judged.report.journal.iter().any(|line| line.contains("Kernel panic")), "{:?}", judged.report.journal);
    ground.is_clean();

    let steps = [
        step("gigabyte", "60s", "echo begin; head -c 1000000000 /dev/zero; echo end >&2; exit 3"),
        step("hangs", "1s", "trap '' TERM INT HUP; while :; do sleep 1; done"),
    ];
    let judged = ground.validate("hostile-steps", ":", &steps.concat(), &[]);
    judged.is_rejected(s(400), &["regression in drill after the patch: gigabyte", "exit 3, expected 0"]);
    let flood = judged.regression("gigabyte");
    assert!(flood.output.starts_with("begin\n") && flood.output.ends_with("end"), "{} bytes", flood.output.len());
    assert!(flood.output.contains("… 9999") && flood.output.contains("bytes left out …"), "how much is told");
    assert!(flood.output.len() < 20_000, "{} bytes", flood.output.len());
    assert!(judged.regression("hangs").reason.contains("it ran longer than 1 s"), "{:?}", judged.regression("hangs"));
    ground.is_clean();
}

#[test]
fn a_maintainer_script_that_never_ends_and_never_stops_writing() {
    needs!("a_maintainer_script_that_never_ends_and_never_stops_writing", Need::Soak);
    let ground = Ground::new();
    let evil = "trap '' TERM INT HUP PIPE; while :; do yes 'it goes on' | head -c 100000000 >&2; done";
    let judged = ground.validate("hostile-hang", evil, &good(), &["--apply-within", "30s"]);
    judged.is_inapplicable(s(200), &["its lifetime ended", "it goes on", "hostile-hang"]);
    ground.is_clean();
}

#[test]
fn machines_that_reboot_or_switch_themselves_off() {
    needs!("machines_that_reboot_or_switch_themselves_off", Need::Soak);
    let ground = Ground::new();
    // On a busy host the boot takes longer than a machine may be silent: then that is what is seen first.
    for (name, evil, how) in [
        ("hostile-reset", "echo b >/proc/sysrq-trigger; sleep 600", "the patched clone was lost"),
        ("hostile-off", "echo o >/proc/sysrq-trigger; sleep 600", "it switched itself off"),
        ("hostile-oops", "echo 1 >/proc/sys/kernel/panic; echo c >/proc/sysrq-trigger; sleep 600", "Kernel panic"),
    ] {
        let judged = ground.validate(name, evil, &good(), &[]);
        judged.is_rejected(s(240), &["regression in the machine while the patch is applied: lives", how]);
        ground.is_clean();
    }
    let steps = step("panics", "20s", "echo c >/proc/sysrq-trigger; sleep 60");
    let judged = ground.validate("hostile-step-panic", ":", &steps, &[]);
    judged
        .is_rejected(s(400), &["regression in drill after the patch: panics", "the machine was lost", "Kernel panic"]);
    ground.is_clean();
}

#[test]
fn a_disk_that_is_full_a_fork_bomb_and_a_console_without_end() {
    needs!("a_disk_that_is_full_a_fork_bomb_and_a_console_without_end", Need::Soak);
    let ground = Ground::new();
    let evil = "fallocate -l $(df --output=avail -B1 /var | tail -n 1) /var/fill; cat /dev/zero >>/var/fill; exit 0";
    let judged = ground.validate("hostile-full", evil, &good(), &[]);
    judged.is_inapplicable(s(400), &["No space left on device"]);
    ground.is_clean();

    // The agent has its own room left; the lab's files have none.
    let evil = "mkdir -p /var/tmp/patchlab-scenarios && mount -t tmpfs -o size=4k full /var/tmp/patchlab-scenarios && \
                head -c 100000 /dev/zero >/var/tmp/patchlab-scenarios/x; exit 0";
    let judged = ground.validate("hostile-no-room", evil, &good(), &[]);
    judged.is_rejected(
        s(200),
        &["regression in drill after the patch: good", "its files cannot be put on the machine", "No space left"],
    );
    ground.is_clean();

    let steps = [
        step("forks", "5s", "bomb() { bomb | bomb & }; bomb; sleep 60"),
        step("console", "20s", "yes 'a line of the console' | head -c 30000000 >/dev/ttyS0; exit 4"),
    ];
    let judged = ground.validate("hostile-forks", ":", &steps.concat(), &[]);
    judged.is_rejected(s(600), &["regression in drill after the patch: forks"]);
    let kept = judged.console();
    eprintln!("{} bytes of console kept", kept.len());
    ground.is_clean();
}

#[test]
fn an_agent_that_is_stopped_gone_or_lies() {
    needs!("an_agent_that_is_stopped_gone_or_lies", Need::Soak);
    let ground = Ground::new();
    let lies = |said: &str| {
        format!(
            "systemctl stop qemu-guest-agent\nsetsid perl -e \
             'open(my $port, \"+<\", \"/dev/virtio-ports/org.qemu.guest_agent.0\") or die; $| = 1; select($port); $| = 1; {said}' \
             </dev/null >/dev/null 2>&1 &\nexit 0"
        )
    };
    let endless = lies("while (1) { print \"{\\\"return\\\": \\\"\" . \"x\" x 1000000 }");
    let nonsense = lies(
        "while (sysread($port, my $line, 4096)) { print \"\\xff{\\\"return\\\": [1, {}, 99999999999999999999]}\\n\" x 100 }",
    );
    for (name, evil) in [
        ("hostile-gone", "systemctl mask --now qemu-guest-agent; exit 0"),
        ("hostile-stopped", "pkill -STOP qemu-ga; exit 0"),
        ("hostile-endless", endless.as_str()),
        ("hostile-nonsense", nonsense.as_str()),
    ] {
        let judged = ground.validate(name, evil, &good(), &[]);
        judged.is_rejected(s(500), &["the machine", "lives", "no command is obeyed in it", "the control is well"]);
        ground.is_clean();
    }
}

#[test]
fn a_clock_that_is_set_and_a_network_that_is_cut() {
    needs!("a_clock_that_is_set_and_a_network_that_is_cut", Need::Soak);
    let ground = Ground::new();
    for (name, time) in [("hostile-past", "2001-01-01"), ("hostile-future", "2037-01-01")] {
        let judged = ground.validate(name, &format!("date -s {time}; exit 0"), &good(), &[]);
        judged.is_rejected(
            s(600),
            &["regression in the machine after the patch: keeps the time", "days off", "the control is well"],
        );
        ground.is_clean();
    }
    let judged =
        ground.validate("hostile-cut", "ip link set dev $(ls /sys/class/net | grep -v lo) down; exit 0", &good(), &[]);
    judged.is_rejected(s(600), &["the machine while the patch is applied", "the agent on it has not answered"]);
    ground.is_clean();
}

/// The lab works on a small file system of its own; gone when dropped.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn on(folder: &Path, size: &str) -> Self {
        fs::create_dir_all(folder).expect("a folder");
        let mut mount = Command::new("mount");
        let mounted =
            mount.args(["-t", "tmpfs", "-o", &format!("size={size},mode=0755"), "small"]).arg(folder).status();
        assert!(mounted.expect("mount starts").success());
        Self(folder.to_owned())
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // What is still in use goes with the test's namespace, or the host's next start.
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

#[test]
fn a_guest_that_writes_until_the_host_is_full() {
    needs!("a_guest_that_writes_until_the_host_is_full", Need::Soak);
    let ground = Ground::new();
    let _small = SmallDisk::on(&Places::of_data(&ground.patchlab.data).work, "1600m");
    let judged = ground.validate("hostile-writer", "cat /dev/urandom >/var/fill; exit 0", &good(), &[]);
    judged.is_rejected(s(600), &["the machine while the patch is applied", "to its disk, until the host had"]);
    ground.is_clean();
}
