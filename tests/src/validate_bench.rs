//! The validation bench: the same work by Debian's autopkgtest with its qemu backend and by patchlab, one after the other, on the same
//! image, under the same accelerator, with the same memory and processors.
//!
//! The work: five steps on an unpatched system; the patch and the five steps on another; the way back and the five steps
//! again. autopkgtest gets two runs, the fewest that give an unpatched and a patched system, and each step as a test of its own,
//! since that is how it reports one. What patchlab does beside (documents, signatures, the comparison of every file) counts
//! against patchlab.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs::{self, File, Permissions},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::{Context as _, bail, ensure};
use patchlab_check::{Digest, step::Kind};
use patchlab_lab::{
    ArtifactStore, Baseline, Places, accelerator::Accelerator, baseline::Baselines, report::Report, scenario::Scenario,
};
use patchlab_protocol::document::{Order, PackageFile};
use serde_json::{Value, json};

use crate::{clone_bench::median, program::source};

/// The name of the bench's baseline: both sides' image.
const BASELINE: &str = "debian-12-web-generic";

/// A data folder with all that both sides need.
pub struct Bench {
    data: PathBuf,
    patchlab: PathBuf,
    baseline: Baseline,
    order: Order,
    scenario: Scenario,
}

impl Bench {
    /// Builds the baseline and drafts an order, where they are not there from a run before.
    pub fn prepare(data: &Path) -> anyhow::Result<Self> {
        let patchlab = std::env::current_exe()?.with_file_name("patchlab");
        ensure!(patchlab.is_file(), "{} is not there: build it with tests/build", patchlab.display());
        ensure!(
            Command::new("autopkgtest").arg("--help").stdout(Stdio::null()).status().is_ok(),
            "autopkgtest is not installed: run lab/setup-host --tests"
        );
        let bench = source().join("tests/bench").canonicalize()?;
        let recipe = bench.join(BASELINE).with_extension("toml");
        fs::create_dir_all(data)?;
        let data = data.canonicalize()?;
        let order = data.join("bench-order/order.toml");
        run(Command::new(&patchlab).arg("--data").arg(&data).args(["baseline", "build"]).arg(recipe))?;
        if !order.exists() {
            run(Command::new(&patchlab)
                .arg("--data")
                .arg(&data)
                .args(["order", "draft", "--baseline", BASELINE, "--upgrade", "nginx", "--or-next", "--id", "PO-BENCH"])
                .arg("--scenarios")
                .arg(bench.join("scenarios"))
                .arg("--out")
                .arg(&order))?;
        }
        let places = Places::of_data(&data);
        let baseline = Baselines::open(&places).get(BASELINE)?;
        let accelerator = baseline.record.hardware.accelerator;
        ensure!(
            accelerator.opens(),
            "{BASELINE} was frozen under {accelerator:?}, which does not open here: patchlab would boot it under another than autopkgtest \
             gets; take it away (`patchlab baseline rm {BASELINE}`), and it is built anew"
        );
        Ok(Self {
            patchlab,
            baseline,
            order: patchlab::order::compile_file(&order, &ArtifactStore::open(&places.artifacts)?)?,
            scenario: Scenario::read(&bench.join("scenarios/five-steps"))?,
            data,
        })
    }

    /// Runs both sides in turn and gives the medians, flat.
    pub fn measure(&self, runs: u32) -> anyhow::Result<BTreeMap<String, Value>> {
        let mut samples: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
        for run in 0..runs {
            let mut add = |name, value: f64| samples.entry(name).or_default().push(value);
            let (patchlab, report) = self.patchlab().context("patchlab")?;
            let guest = report.baselines.iter().map(|baseline| baseline.guest_ms).sum::<u64>() as f64 / 1000.0;
            add("validate.patchlab_s", patchlab);
            add("validate.overhead_share", 1.0 - guest / patchlab);
            eprintln!("run {run}: patchlab {patchlab:.1} s, of which {guest:.1} s in guests");
            let autopkgtest = self.autopkgtest().context("autopkgtest")?;
            add("validate.autopkgtest_s", autopkgtest);
            add("validate.times_faster", autopkgtest / patchlab);
            eprintln!("run {run}: autopkgtest {autopkgtest:.1} s, {:.1} times as long", autopkgtest / patchlab);
        }
        let mut medians: BTreeMap<String, Value> =
            samples.into_iter().map(|(name, values)| (name.to_owned(), json!(median(values)))).collect();
        let hardware = &self.baseline.record.hardware;
        medians.insert("machine.accelerator".into(), serde_json::to_value(hardware.accelerator)?);
        medians.insert("machine.qemu".into(), json!(self.baseline.record.frozen.versions.qemu));
        Ok(medians)
    }

    /// One validation by the program, from its start to its end, in seconds.
    fn patchlab(&self) -> anyhow::Result<(f64, Report)> {
        let verdict = self.data.join("bench-order/verdict.json");
        let begun = Instant::now();
        run(self.validation(&verdict).arg("--order").arg(self.order_file()))?;
        let seconds = begun.elapsed().as_secs_f64();
        Ok((seconds, Report::from_json(&fs::read(&verdict)?)?))
    }

    /// A validation, with the bench's scenario, of orders that are still to be named.
    pub(crate) fn validation(&self, verdict: &Path) -> Command {
        let mut command = Command::new(&self.patchlab);
        // In a folder without scenarios: those of the sources would be run beside the bench's.
        command.current_dir(self.data.join("bench-order")).arg("--data").arg(&self.data).arg("--json").arg(verdict);
        command.args(["lab", "validate", "--baseline", BASELINE, "--scenarios"]);
        command.arg(self.scenario.dir.parent().unwrap_or(Path::new("/")));
        command
    }

    /// The order, as drafted.
    pub(crate) fn order_file(&self) -> PathBuf {
        self.data.join("bench-order/order.toml")
    }

    /// Where the baseline and the orders are.
    pub(crate) fn data(&self) -> &Path {
        &self.data
    }

    /// The same by autopkgtest, in seconds.
    fn autopkgtest(&self) -> anyhow::Result<f64> {
        let folder = tempfile::tempdir()?;
        let emulator = folder.path().join("qemu");
        fs::write(&emulator, emulator_script(self.baseline.record.hardware.accelerator))?;
        fs::set_permissions(&emulator, Permissions::from_mode(0o755))?;
        let (control, patched) = (folder.path().join("control"), folder.path().join("patched"));
        self.write_tests(&control, &self.five("control"))?;
        let (new, old) = self.package_files(&patched)?;
        let tests = [
            test("apply", &install("new", &new)),
            self.five("patched"),
            test("rollback", &install("old", &old)),
            self.five("back"),
        ];
        self.write_tests(&patched, &tests.concat())?;
        let begun = Instant::now();
        for tree in [control, patched] {
            self.autopkgtest_on(&tree, &emulator)?;
        }
        Ok(begun.elapsed().as_secs_f64())
    }

    fn autopkgtest_on(&self, tree: &Path, emulator: &Path) -> anyhow::Result<()> {
        let hardware = &self.baseline.record.hardware;
        let log = self.data.join("bench-autopkgtest.log");
        let output = File::create(&log)?;
        let status = Command::new("autopkgtest")
            .arg("--no-built-binaries")
            .arg(tree)
            .args(["--", "qemu", "--timeout-reboot=600"])
            .arg(format!("--qemu-command={}", emulator.display()))
            .args([format!("--ram-size={}", hardware.memory_mib), format!("--cpus={}", hardware.vcpus)])
            .arg(self.baseline.file("disk.qcow2"))
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .status()
            .context("start autopkgtest")?;
        ensure!(status.success(), "autopkgtest ended with {status}; see {}", log.display());
        Ok(())
    }

    /// The scenario's steps as tests.
    fn five(&self, prefix: &str) -> String {
        let steps = self.scenario.steps.iter().filter_map(|step| match &step.kind {
            Kind::Run { command, .. } => Some(test(&format!("{prefix}-{}", step.name), command)),
            _ => None,
        });
        steps.collect()
    }

    /// Puts the order's package files and those that bring the old versions back into a test tree, and gives their names.
    fn package_files(&self, tree: &Path) -> anyhow::Result<(Vec<String>, Vec<String>)> {
        let store = ArtifactStore::open(Places::of_data(&self.data).artifacts)?;
        let put = |folder: &str, name: &str, digest: &Digest| -> anyhow::Result<String> {
            let folder = tree.join(folder);
            fs::create_dir_all(&folder)?;
            let file = format!("{name}.deb");
            fs::copy(store.verify(digest)?, folder.join(&file))?;
            Ok(file)
        };
        let mut replaced = self.order.replaces.iter().filter_map(|old| old.file.as_ref());
        let put_all = |folder: &str, files: &mut dyn Iterator<Item = &PackageFile>| -> anyhow::Result<Vec<String>> {
            files.map(|file| put(folder, &file.name, &file.sha256)).collect()
        };
        let new = put_all("new", &mut self.order.install.iter())?;
        let old = put_all("old", &mut replaced)?;
        Ok((new, old))
    }

    /// A source tree as autopkgtest wants one (Debian policy 4 and 5).
    fn write_tests(&self, tree: &Path, tests: &str) -> anyhow::Result<()> {
        let debian = tree.join("debian");
        fs::create_dir_all(debian.join("tests"))?;
        fs::write(debian.join("changelog"), CHANGELOG)?;
        fs::write(debian.join("control"), CONTROL)?;
        Ok(fs::write(debian.join("tests/control"), tests)?)
    }
}

const CHANGELOG: &str = "bench (1) unstable; urgency=low\n\n  * Bench.\n\n \
                         -- Bench <bench@example.invalid>  Mon, 01 Jan 2024 00:00:00 +0000\n";
const CONTROL: &str = "Source: bench\nSection: misc\nPriority: optional\nMaintainer: Bench <bench@example.invalid>\n\n\
                       Package: bench\nArchitecture: all\nDescription: bench\n bench\n";

/// QEMU as patchlab runs it, under what its baseline was frozen under: autopkgtest by itself takes a device file for a working kvm, and
/// has another processor.
fn emulator_script(accelerator: Accelerator) -> String {
    let machine = match accelerator {
        Accelerator::Kvm => "-machine q35,accel=kvm -cpu host",
        Accelerator::Tcg => "-machine q35,accel=tcg -cpu max",
    };
    format!("{EMULATOR}exec qemu-system-x86_64 \"$@\" {machine}\n")
}

/// Leaves out what autopkgtest says of accelerator and processor.
const EMULATOR: &str = r#"#!/bin/sh
before=
for word; do
  shift
  if [ "$word" = -enable-kvm ] || [ "$word" = -cpu ]; then before=$word; continue; fi
  if [ "$before" = -cpu ]; then before=; continue; fi
  before=
  set -- "$@" "$word"
done
"#;

/// A stanza of `debian/tests/control`.
fn test(name: &str, command: &str) -> String {
    let mut stanza = String::new();
    // Writing to a String cannot fail.
    let _ = writeln!(
        stanza,
        "Test-Command: {command}\nFeatures: test-name={name}\nRestrictions: needs-root, allow-stderr\nDepends:\n"
    );
    stanza
}

/// Installs local package files, newer or older.
fn install(folder: &str, files: &[String]) -> String {
    let files: Vec<String> = files.iter().map(|file| format!("./{folder}/{file}")).collect();
    format!("env DEBIAN_FRONTEND=noninteractive apt-get install --yes --allow-downgrades {}", files.join(" "))
}

fn run(command: &mut Command) -> anyhow::Result<()> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("start {command:?}"))?;
    if output.status.success() {
        return Ok(());
    }
    bail!("{command:?} ended with {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What QEMU is told when autopkgtest tells the script this.
    fn told(accelerator: Accelerator, words: &[&str]) -> String {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in [
            ("emulator", emulator_script(accelerator)),
            ("qemu-system-x86_64", "#!/bin/sh\nfor word; do printf '[%s]' \"$word\"; done\n".to_owned()),
        ] {
            let path = folder.path().join(name);
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
        }
        let emulator = folder.path().join("emulator");
        let output = Command::new("/bin/sh").arg(emulator).args(words).env("PATH", folder.path()).output();
        String::from_utf8(output.unwrap().stdout).unwrap()
    }

    #[test]
    fn both_sides_have_the_accelerator_that_the_baseline_was_frozen_under() {
        let words = ["-enable-kvm", "-cpu", "kvm64,+vmx", "-m", "1024", "-drive", "file=a b"];
        let kept = "[-m][1024][-drive][file=a b][-machine]";
        assert_eq!(told(Accelerator::Tcg, &words), format!("{kept}[q35,accel=tcg][-cpu][max]"));
        assert_eq!(told(Accelerator::Kvm, &words), format!("{kept}[q35,accel=kvm][-cpu][host]"));
        assert_eq!(told(Accelerator::Kvm, &words[3..]), format!("{kept}[q35,accel=kvm][-cpu][host]"));
    }
}
