//! A baseline and a QEMU that did not freeze it: it is booted, and says why; a build freezes it again, and is cloned again.
//!
//! The other QEMU is a real one: that of this Debian's own release, where the installed one is from its backports. It is put over the
//! installed one in a mount namespace of the test's own. Skips aloud what this machine cannot run.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use patchlab_lab::{Places, baseline::Baselines};
use patchlab_tests::{
    mount_namespace::MountNamespace,
    program::{Need, Patchlab, folder, json, obstacle, said, source},
    trial::Trial,
};

/// What of QEMU is looked for at fixed places, beside its program.
const FOLDERS: [&str; 3] = ["/usr/share/qemu", "/usr/share/seabios", "/usr/lib/x86_64-linux-gnu/qemu"];
const PROGRAM: &str = "/usr/bin/qemu-system-x86_64";
const PACKAGES: [&str; 4] = ["qemu-system-x86", "qemu-system-common", "qemu-system-data", "seabios"];

fn output(command: &mut Command) -> Option<String> {
    let output = command.output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

/// `10.0.2`, of what `program --version` says.
fn version(program: &Path) -> Option<String> {
    let said = output(Command::new(program).arg("--version"))?;
    said.split_whitespace().nth(3).map(str::to_owned)
}

/// Unpacks the release's own QEMU below `dir`; why there is none that is another than the installed one.
fn other_qemu(dir: &Path) -> Result<PathBuf, String> {
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let codename = release.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    let codename = codename.ok_or("this system does not say which release it is")?;
    let root = dir.join("qemu");
    fs::create_dir(&root).expect("a folder");
    let wanted = PACKAGES.map(|name| format!("{name}/{codename}"));
    output(Command::new("apt-get").arg("download").args(wanted).current_dir(dir).env("LC_ALL", "C"))
        .ok_or("apt-get cannot fetch the release's own QEMU")?;
    for entry in fs::read_dir(dir).expect("a folder").flatten() {
        if entry.path().extension().is_some_and(|extension| extension == "deb") {
            output(Command::new("dpkg-deb").arg("--extract").arg(entry.path()).arg(&root)).ok_or("it is no package")?;
        }
    }
    let (here, there) = (version(Path::new(PROGRAM)), version(&root.join(&PROGRAM[1..])));
    match (here, there) {
        (Some(here), Some(there)) if here != there => Ok(root),
        (Some(here), Some(_)) => Err(format!("the installed QEMU is the release's own, {here}")),
        _ => Err("the release's own QEMU does not run here".into()),
    }
}

#[test]
fn a_baseline_under_another_qemu_is_booted_and_then_frozen_again_by_its_build() {
    let test = "a_baseline_under_another_qemu_is_booted_and_then_frozen_again_by_its_build";
    let skip = |why: String| eprintln!("SKIP {test}: {why}");
    if let Some(why) = obstacle(&[Need::Program, Need::Lab, Need::Agent, Need::Soak, Need::Stored]) {
        return skip(why);
    }
    let dir = folder();
    let root = match other_qemu(dir.path()) {
        Ok(root) => root,
        Err(why) => return skip(why),
    };
    let there = version(&root.join(&PROGRAM[1..])).expect("a version");
    let namespace = MountNamespace::new();
    for path in FOLDERS.iter().chain([&PROGRAM]) {
        let from = root.join(&path[1..]).display().to_string();
        namespace.mount(&["--bind", &from, path]);
    }
    let patchlab = Patchlab::on_a_copy(dir.path());
    let store = || Baselines::open(&Places::of_data(&patchlab.data)).list().expect("baselines");
    let old = store().remove(0);
    let here = &old.record.frozen.versions.qemu;
    let trial = Trial::new("moved", &[], "true", dir.path());

    let mut validate = trial.arguments(&patchlab);
    validate.extend(["--json".into(), "-".into()]);
    let validate: Vec<&str> = validate.iter().map(String::as_str).collect();
    let booted = patchlab.run_in(&namespace, &validate);
    said(&booted, 0, &["so its clones boot its disk", here, &there]);
    let clone = json(&booted)["baselines"][0]["clone"].clone();
    assert_eq!(clone["rung"], "cold-boot", "{clone:#}");

    let recipe = source().join("images").join(&old.record.name).with_extension("toml");
    let built = patchlab.run_in(&namespace, &["baseline", "build", &recipe.display().to_string()]);
    said(&built, 0, &["again by a cold boot of its disk", here, &there]);
    let all = store();
    let new = all.iter().find(|baseline| baseline.record.parent == Some(old.digest)).expect("a new one");
    assert_eq!(new.record.frozen.versions.qemu, there);

    let name = new.full_name();
    let again: Vec<&str> =
        validate.iter().map(|word| if *word == old.full_name() { name.as_str() } else { *word }).collect();
    let cloned = json(&patchlab.run_in(&namespace, &again));
    assert_eq!(cloned["baselines"][0]["clone"]["rung"], "template-clone", "{:#}", cloned["baselines"][0]["clone"]);
    assert_eq!(cloned["verdict"], "passed", "{:#}", cloned["reason"]);
    // And the other way round: here, it is the new one that does not fit.
    assert!(new.unfit_here().is_some_and(|why| why.contains(&there) && why.contains(here)));
}
