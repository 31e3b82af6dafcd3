//! Bad input gets a clear error and loses nothing. Each test is one sentence of that promise, through the program as a user would
//! type it: exit code, what the error names, and a store that is afterwards what it was.
//!
//! Skips aloud what this machine cannot run.

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead as _, BufReader, Read as _},
    path::{Path, PathBuf},
    process::Stdio,
};

use patchlab_check::Digest;
use patchlab_lab::{
    ArtifactStore, Places,
    accelerator::Accelerator,
    baseline::{Baselines, Frozen, Os, PoolFile, Record, StoredFile},
    machine::{Hardware, Versions},
};
use patchlab_tests::{
    mount_namespace::MountNamespace,
    program::{Ended, Need, Patchlab, Running, folder, obstacle, source},
};
use serde_json::Value;

/// Ends the test aloud where the machine lacks something.
macro_rules! needs {
    ($test:literal, $($need:ident),+) => {
        if let Some(why) = obstacle(&[$(Need::$need),+]) {
            eprintln!("SKIP {}: {why}", $test);
            return;
        }
    };
}

/// The command failed with that exit code, and its last words are one line that names every part.
fn refused(ended: &Ended, code: i32, parts: &[&str]) -> String {
    let line = ended.err.lines().last().unwrap_or_default().to_owned();
    assert_eq!(ended.code, Some(code), "{}{}", ended.out, ended.err);
    assert!(line.starts_with("patchlab: "), "{}", ended.err);
    for part in parts {
        assert!(line.contains(part), "{part:?} is not named in:\n{line}");
    }
    line
}

/// Every file of the store with its digest.
fn holdings(data: &Path) -> BTreeMap<PathBuf, Digest> {
    fn walk(dir: &Path, found: &mut BTreeMap<PathBuf, Digest>) {
        for entry in fs::read_dir(dir).into_iter().flatten() {
            let path = entry.expect("an entry").path();
            match path.is_dir() {
                true => walk(&path, found),
                // The lock of builds holds nothing.
                false if path.ends_with(".building") => {}
                false => {
                    let digest = Digest::of_file(&path).expect("a readable file").0;
                    found.insert(path, digest);
                }
            }
        }
    }
    let mut found = BTreeMap::new();
    walk(&data.join("baselines"), &mut found);
    walk(&data.join("artifacts"), &mut found);
    found
}

/// A data folder whose store holds a baseline of a few bytes, `small@1`, with one package file in its pool.
fn seeded(data: PathBuf) -> Patchlab {
    let places = Places::of_data(&data);
    let artifacts = ArtifactStore::open(&places.artifacts).expect("an artifact store");
    let package = data.join("nginx.deb");
    fs::write(&package, "the old nginx").expect("a package file");
    let (sha256, size) = artifacts.put(&package).expect("stored");
    let pool = vec![PoolFile { name: "nginx".into(), version: "1".into(), arch: "amd64".into(), size, sha256 }];
    let staged = places.baselines.join(".staged");
    fs::create_dir_all(&staged).expect("a folder");
    fs::write(staged.join("disk.qcow2"), "a disk").expect("a disk");
    let stored = StoredFile { sha256: Digest::of("a disk"), size: 6 };
    let record = Record {
        schema: 1,
        name: "small".into(),
        number: 1,
        parent: None,
        order: None,
        recipe: String::new(),
        inputs: Digest::of("small"),
        os: Os { family: "debian".into(), release: "12".into(), arch: "x86_64".into() },
        hardware: Hardware {
            memory_mib: 512,
            vcpus: 2,
            accelerator: Accelerator::Tcg,
            machine: "q35".into(),
            screen: None,
        },
        frozen: Frozen {
            versions: Versions { qemu: "10.0.2".into(), libvirt: "9.0.0".into() },
            host_cpu: "any".into(),
            kernel: "6.1".into(),
            at: "2026-01-01T00:00:00Z".parse().expect("a time"),
        },
        ready_units: Vec::new(),
        represents: Default::default(),
        files: [("disk.qcow2".to_owned(), stored)].into(),
        pool,
        unpooled: vec![],
        coverage: None,
        secrets: None,
        verified: None,
        original: None,
    };
    Baselines::open(&places).adopt(&staged, record).expect("adopted");
    Patchlab { data }
}

/// An order that brings nginx from the seeded baseline's version to the content `new`, from `path` if there is one.
fn order(new: &[u8], path: Option<&str>) -> String {
    let path = path.map(|path| format!("path = {path:?}\n")).unwrap_or_default();
    let (size, digest, old) = (new.len(), Digest::of(new), Digest::of("the old nginx"));
    format!(
        "id = \"PO-TEST-1\"\ntitle = \"nginx\"\nseverity = \"important\"\n\n[[change]]\n\
         on = {{ family = \"debian\", release = \"12\" }}\nupgrade = [{{ name = \"nginx\" }}]\n\n\
         [[change.file]]\nname = \"nginx\"\nversion = \"2\"\narch = \"amd64\"\nsize = {size}\nsha256 = \"{digest}\"\n{path}\n\
         [[change.replaces]]\nname = \"nginx\"\nversion = \"1\"\narch = \"amd64\"\n\
         file = {{ size = 13, sha256 = \"{old}\", origin = \"vendor-signed\" }}\n"
    )
}

fn written(dir: &Path, name: &str, text: &str) -> String {
    let path = dir.join(name);
    fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
    fs::write(&path, text).expect("a file");
    path.display().to_string()
}

const RECIPE: &str = "name = \"web\"\nos = { family = \"debian\", release = \"12\", arch = \"x86_64\" }\n\
    source = { kind = \"mmdebstrap\", suite = \"bookworm\", pockets = [\"main\"] }\npackages = [\"nginx\"]\n\
    memory = \"512MiB\"\nvcpus = 2\ndisk = \"4GiB\"\n";

/// Nothing was left behind for the collector.
fn nothing_to_collect(patchlab: &Patchlab) {
    let gc = patchlab.run(&["lab", "gc", "--dry-run"]);
    assert_eq!(gc.out.trim(), "nothing to collect", "{}", gc.err);
}

#[test]
fn a_slip_in_a_recipe_names_file_line_key_and_the_nearest_known_key() {
    needs!("a_slip_in_a_recipe", Program);
    let dir = folder();
    let patchlab = seeded(dir.path().join("data"));
    let before = holdings(&patchlab.data);
    for (from, to, expected) in [
        ("packages", "pakages", "web.toml:4:1: unknown key \"pakages\": did you mean \"packages\"?"),
        ("vcpus = 2", "vcpus = \"two\"", "web.toml:6:9: key \"vcpus\": expected u32, found string \"two\""),
        ("\"512MiB\"", "512", "web.toml:5:10: key \"memory\": expected a size such as \"512MiB\" or \"4GiB\", found"),
        ("release = \"12\", ", "", "web.toml:2:6: missing key \"release\" in \"os\""),
        (
            "\"4GiB\"",
            "\"1MiB\"",
            "web.toml:7:1: key \"disk\": expected a size between \"1GiB\" and \"1TiB\", found 1MiB",
        ),
    ] {
        let recipe = written(dir.path(), "web.toml", &RECIPE.replacen(from, to, 1));
        refused(&patchlab.run(&["baseline", "build", &recipe]), 65, &[expected]);
    }
    assert_eq!(holdings(&patchlab.data), before);
}

#[test]
fn a_slip_in_a_scenario_names_file_line_key_and_the_nearest_known_key() {
    needs!("a_slip_in_a_scenario", Program);
    let dir = folder();
    let patchlab = seeded(dir.path().join("data"));
    let before = holdings(&patchlab.data);
    let good = "name = \"s\"\nowner = \"qa\"\nsummary = \"x\"\n\n[[step]]\nname = \"a\"\nrun = \"true\"\n";
    let orders = written(dir.path(), "order.toml", &order(b"the old nginx", None));
    for (from, to, expected) in [
        ("summary", "sumary", "scenario.toml:3:1: unknown key \"sumary\": did you mean \"summary\"?"),
        ("\"true\"", "5", "scenario.toml:7:7: key \"step.run\": expected"),
    ] {
        written(dir.path(), "scenarios/s/scenario.toml", &good.replacen(from, to, 1));
        let scenarios = dir.path().join("scenarios").display().to_string();
        let lint = patchlab.run(&["scenario", "lint", &scenarios]);
        assert!(lint.code == Some(65) && lint.out.contains(expected), "{expected}\n{}{}", lint.out, lint.err);
        let validate = ["lab", "validate", "--order", &orders, "--scenarios", &scenarios];
        refused(&patchlab.run(&validate), 65, &[expected]);
    }
    assert_eq!(holdings(&patchlab.data), before);
}

#[test]
fn a_slip_in_an_order_names_file_line_key_and_the_nearest_known_key() {
    needs!("a_slip_in_an_order", Program);
    let dir = folder();
    let patchlab = seeded(dir.path().join("data"));
    let before = holdings(&patchlab.data);
    for (from, to, expected) in [
        ("severity", "severty", "order.toml:3:1: unknown key \"severty\": did you mean \"severity\"?"),
        (
            "\"important\"",
            "\"importend\"",
            "order.toml:3:12: key \"severity\": unknown value \"importend\": did you mean",
        ),
        ("size = 13", "size = \"13\"", "order.toml:13:8: key \"change.file.size\": expected u64, found string \"13\""),
    ] {
        let path = written(dir.path(), "order.toml", &order(b"the old nginx", None).replacen(from, to, 1));
        refused(&patchlab.run(&["lab", "validate", "--order", &path]), 65, &[expected]);
    }
    assert_eq!(holdings(&patchlab.data), before);
}

#[test]
fn an_order_whose_artifact_is_missing_or_altered_names_its_digest() {
    needs!("an_order_whose_artifact_is_missing_or_altered", Program);
    let dir = folder();
    let patchlab = seeded(dir.path().join("data"));
    let before = holdings(&patchlab.data);
    let path = written(dir.path(), "order.toml", &order(b"the new nginx", Some("new.deb")));
    let validate = ["lab", "validate", "--order", &path, "--baseline", "small"];
    let (new, old) = (Digest::of("the new nginx").to_string(), Digest::of("the old nginx"));
    let missing = format!("artifact {new} is missing");
    refused(&patchlab.run(&validate), 65, &["order.toml:14: order PO-TEST-1", "nginx 2", &missing, "draft the order"]);

    written(dir.path(), "new.deb", "another nginx");
    let found = Digest::of("another nginx").to_string();
    refused(&patchlab.run(&validate), 65, &[&new, "was altered", "new.deb", &found]);
    assert_eq!(holdings(&patchlab.data), before);

    // In the store, too, a file is believed by its content only.
    written(dir.path(), "new.deb", "the new nginx");
    let stored = patchlab.data.join("artifacts").join(old.to_string());
    fs::write(&stored, "the 0ld nginx").expect("altered");
    let (named, found) = (old.to_string(), Digest::of("the 0ld nginx").to_string());
    refused(&patchlab.run(&validate), 65, &["order.toml:21:", &named, "was altered", &found]);
    fs::write(&stored, "the old nginx").expect("as it was");
    let mut expected = before;
    expected.insert(patchlab.data.join("artifacts").join(&new), Digest::of("the new nginx"));
    assert_eq!(holdings(&patchlab.data), expected, "the new file was taken in whole, and nothing else");
}

#[test]
fn an_order_for_a_baseline_that_does_not_exist_says_which_do() {
    needs!("an_order_for_a_baseline_that_does_not_exist", Program);
    let dir = folder();
    let patchlab = seeded(dir.path().join("data"));
    let before = holdings(&patchlab.data);
    let path = written(dir.path(), "order.toml", &order(b"the old nginx", None));
    let out = dir.path().join("new.toml").display().to_string();
    let parts = ["no baseline \"nope\"", "small@1", "patchlab baseline build"];
    refused(&patchlab.run(&["lab", "validate", "--order", &path, "--baseline", "nope"]), 65, &parts);
    let draft = ["order", "draft", "--baseline", "nope", "--upgrade", "nginx", "--id", "PO-2", "--out", &out];
    refused(&patchlab.run(&draft), 65, &parts);
    refused(&patchlab.run(&["baseline", "verify", "nope"]), 65, &parts);
    assert!(!Path::new(&out).exists());
    assert_eq!(holdings(&patchlab.data), before);
}

/// Flips one bit of the byte in the middle of a file.
fn flip(path: &Path) {
    use std::os::unix::fs::FileExt as _;
    let file = fs::OpenOptions::new().read(true).write(true).open(path).expect("a file");
    let middle = file.metadata().expect("its length").len() / 2;
    let mut byte = [0];
    file.read_exact_at(&mut byte, middle).expect("a byte");
    file.write_all_at(&[byte[0] ^ 1], middle).expect("written");
}

/// Every file of the baseline, altered by one bit, is named by `verify` with both digests; put back, the baseline is intact.
fn altered_files_are_named(patchlab: &Patchlab, name: &str) {
    let baseline = Baselines::open(&Places::of_data(&patchlab.data)).get(name).expect("a baseline");
    let intact = || {
        let ended = patchlab.run(&["baseline", "verify", name]);
        assert_eq!(ended.code, Some(0), "{}", ended.err);
    };
    intact();
    for (file, stored) in &baseline.record.files {
        let path = baseline.file(file);
        flip(&path);
        let found = Digest::of_file(&path).expect("readable").0.to_string();
        let altered = format!("baseline {}: {file} was altered", baseline.full_name());
        let expected = stored.sha256.to_string();
        refused(&patchlab.run(&["baseline", "verify", name]), 4, &[&altered, &found, &expected, "build it again"]);
        flip(&path);
    }
    let package = &baseline.record.pool[0];
    let path = patchlab.data.join("artifacts").join(package.sha256.to_string());
    flip(&path);
    let digest = package.sha256.to_string();
    let parts = [package.name.as_str(), &package.version, &digest, "was altered"];
    refused(&patchlab.run(&["baseline", "verify", name]), 4, &parts);
    flip(&path);
    intact();
}

#[test]
fn verify_says_which_file_of_a_baseline_was_altered() {
    needs!("verify_says_which_file_of_a_baseline_was_altered", Program);
    let dir = folder();
    let patchlab = seeded(dir.path().join("data"));
    altered_files_are_named(&patchlab, "small");
    let baseline = Baselines::open(&Places::of_data(&patchlab.data)).get("small").expect("a baseline");
    flip(&baseline.file("baseline.json"));
    let parts = ["baseline small@1: baseline.json was altered", &baseline.digest.to_string()];
    refused(&patchlab.run(&["baseline", "verify", "small"]), 4, &parts);
    let removed = patchlab.run(&["baseline", "rm", "small"]);
    assert_eq!(removed.code, Some(0), "what the error advises does not work: {}", removed.err);
    assert_eq!(patchlab.run(&["baseline", "list"]).out, "");
}

#[test]
fn verify_says_which_file_of_a_real_baseline_was_altered() {
    needs!("verify_says_which_file_of_a_real_baseline_was_altered", Program, Time, Stored);
    let dir = folder();
    let patchlab = Patchlab::on_a_copy(dir.path());
    let baselines = Baselines::open(&Places::of_data(&patchlab.data)).list().expect("baselines");
    altered_files_are_named(&patchlab, &baselines.first().expect("a baseline").full_name());
}

#[test]
fn a_recipe_whose_package_does_not_exist_names_it_in_the_first_seconds() {
    needs!("a_recipe_whose_package_does_not_exist", Program, Lab);
    let dir = folder();
    let patchlab = seeded(dir.path().join("data"));
    let before = holdings(&patchlab.data);
    let text = RECIPE.replacen("[\"nginx\"]", "[\"nginx\", \"nginxx\"]", 1);
    let recipe = written(dir.path(), "web.toml", &text);
    let ended = patchlab.run(&["baseline", "build", &recipe]);
    let line = refused(&ended, 65, &["baseline web, step 1 of 8", "no package named nginxx in bookworm:", "web.toml"]);
    assert!(!ended.err.contains("downloading packages"), "it was found late:\n{}", ended.err);
    let log = line.split_once("; log ").and_then(|(_, rest)| rest.split_once("): ")).expect("its log is named").0;
    assert!(fs::read_to_string(log).expect("the log is there").contains("Unable to locate package nginxx"));
    assert_eq!(holdings(&patchlab.data), before);
    nothing_to_collect(&patchlab);
}

/// A data folder on a file system in memory of that size, seeded, in a mount namespace.
fn small_disk(dir: &Path, size: &str) -> (MountNamespace, Patchlab, String) {
    let data = dir.join("data");
    fs::create_dir(&data).expect("a folder");
    let namespace = MountNamespace::new();
    let shown = data.display().to_string();
    namespace.mount(&["-t", "tmpfs", "-o", &format!("size={size},mode=755"), "tmpfs", &shown]);
    let seed = seeded(dir.join("seed"));
    let status = namespace.command("cp").arg("-a").arg(seed.data.join(".")).arg(&data).status().expect("cp starts");
    assert!(status.success());
    (namespace, Patchlab { data }, shown)
}

/// The store in a namespace is whole, has the seeded baseline alone, and nothing is left behind.
fn is_whole(patchlab: &Patchlab, namespace: &MountNamespace) {
    let listed = patchlab.run_in(namespace, &["baseline", "list"]);
    assert_eq!(listed.out.lines().count(), 1, "{}{}", listed.out, listed.err);
    assert_eq!(patchlab.run_in(namespace, &["baseline", "verify", "small"]).code, Some(0));
    assert_eq!(patchlab.run_in(namespace, &["lab", "gc", "--dry-run"]).out.trim(), "nothing to collect");
    let files = ["-c", "ls -A \"$0/work\" \"$0/artifacts\" | grep -c incoming", &patchlab.data.display().to_string()];
    let halves = namespace.command("sh").args(files).output().expect("sh starts");
    assert_eq!(String::from_utf8_lossy(&halves.stdout).trim(), "0");
}

#[test]
fn a_build_on_a_disk_without_room_says_so_before_it_begins() {
    needs!("a_build_on_a_disk_without_room", Program, Lab);
    let dir = folder();
    let (namespace, patchlab, data) = small_disk(dir.path(), "64m");
    let recipe = written(dir.path(), "web.toml", RECIPE);
    let ended = patchlab.run_in(&namespace, &["baseline", "build", &recipe]);
    refused(&ended, 4, &["building baseline web needs 3.5 GiB free in", &data, "make room", "--data DIR"]);
    assert!(!ended.err.contains("installing"), "{}", ended.err);
    is_whole(&patchlab, &namespace);
}

#[test]
fn a_validation_on_a_disk_without_room_says_so_before_any_machine_is_made() {
    needs!("a_validation_on_a_disk_without_room", Program, Lab);
    let dir = folder();
    let (namespace, patchlab, data) = small_disk(dir.path(), "16m");
    let new = b"the new nginx";
    fs::write(dir.path().join("new.deb"), new).expect("a file");
    let orders = written(dir.path(), "order.toml", &order(new, Some("new.deb")));
    let scenario = "name = \"s\"\nowner = \"qa\"\nsummary = \"x\"\n\n[[step]]\nname = \"a\"\nrun = \"true\"\n";
    written(dir.path(), "scenarios/s/scenario.toml", scenario);
    let scenarios = dir.path().join("scenarios").display().to_string();
    let validate = ["lab", "validate", "--order", &orders, "--baseline", "small", "--scenarios", &scenarios];
    let ended = patchlab.run_in(&namespace, &validate);
    refused(&ended, 4, &["a validation needs ", " free in ", &data, "make room", "--data DIR"]);
    assert!(!ended.err.contains("clone"), "{}", ended.err);
    is_whole(&patchlab, &namespace);
}

#[test]
fn a_disk_that_becomes_full_during_a_build_is_named_and_nothing_half_is_stored() {
    needs!("a_disk_that_becomes_full_during_a_build", Program, Lab);
    let dir = folder();
    let (namespace, patchlab, data) = small_disk(dir.path(), "5g");
    let recipe = written(dir.path(), "web.toml", RECIPE);
    let mut command = patchlab.command_in(&namespace, &["baseline", "build", &recipe]);
    let mut build = Running::start(command.stderr(Stdio::piped()));
    let mut lines = BufReader::new(build.0.stderr.take().expect("its standard error"));
    let mut line = String::new();
    while !line.contains("installing packages") {
        line.clear();
        assert!(lines.read_line(&mut line).expect("readable") > 0, "it ended before it installed anything");
    }
    // Enough for what is there and for index files, and for nothing that is to come.
    namespace.mount(&["-o", "remount,size=90m", &data]);
    let mut err = String::new();
    lines.read_to_string(&mut err).expect("text");
    let ended = Ended { code: build.code(), out: String::new(), err };
    let parts =
        ["baseline web, step 1 of 8", "last-failed-build.log", "the disk is full", &data, "needs about 3.5 GiB"];
    refused(&ended, 4, &parts);
    is_whole(&patchlab, &namespace);
}

#[test]
fn an_artifact_that_does_not_fit_leaves_the_store_as_it_was_and_fits_when_there_is_room() {
    needs!("an_artifact_that_does_not_fit", Program, Lab);
    let dir = folder();
    let (namespace, patchlab, data) = small_disk(dir.path(), "16m");
    let new = vec![7; 32 << 20];
    fs::write(dir.path().join("new.deb"), &new).expect("a file");
    let path = written(dir.path(), "order.toml", &order(&new, Some("new.deb")));
    let validate = ["lab", "validate", "--order", &path, "--baseline", "nope"];
    let ended = patchlab.run_in(&namespace, &validate);
    refused(&ended, 4, &["order PO-TEST-1", &data, "the disk is full", "needs 32 MiB", "make room", "--data DIR"]);
    is_whole(&patchlab, &namespace);
    namespace.mount(&["-o", "remount,size=64m", &data]);
    // It comes as far as the baseline that does not exist.
    refused(&patchlab.run_in(&namespace, &validate), 65, &["no baseline \"nope\""]);
    is_whole(&patchlab, &namespace);
}

/// What `doctor` found about `what`.
fn finding(patchlab: &Patchlab, namespace: &MountNamespace, what: &str) -> Value {
    let ended = patchlab.run_in(namespace, &["doctor", "--json", "-", "--quiet"]);
    let findings: Vec<Value> = serde_json::from_str(&ended.out).expect("JSON");
    let found = findings.iter().find(|finding| finding["what"] == what);
    found.unwrap_or_else(|| panic!("nothing about {what}: {}", ended.out)).clone()
}

/// Where libvirt's drivers lie, from Debian's package and from elsewhere.
fn driver_folders() -> Vec<PathBuf> {
    let known = ["/usr/lib/x86_64-linux-gnu/libvirt/connection-driver", "/usr/lib64/libvirt/connection-driver"];
    known.map(PathBuf::from).into_iter().filter(|folder| folder.is_dir()).collect()
}

#[test]
fn without_libvirt_every_command_says_in_one_line_what_to_install() {
    needs!("without_libvirt", Program, Lab);
    let dir = folder();
    let patchlab = seeded(dir.path().join("data"));
    let before = holdings(&patchlab.data);
    let namespace = MountNamespace::new();
    let empty = dir.path().join("empty");
    fs::create_dir(&empty).expect("a folder");
    for folder in driver_folders() {
        namespace.mount(&["--bind", &empty.display().to_string(), &folder.display().to_string()]);
    }
    let doctor = finding(&patchlab, &namespace, "libvirt");
    assert_eq!(doctor["state"], "bad", "{doctor}");
    assert!(doctor["remedy"].as_str().is_some_and(|remedy| remedy.contains("libvirt-daemon-driver-qemu")), "{doctor}");
    let recipe = written(dir.path(), "web.toml", RECIPE);
    let ended = patchlab.run_in(&namespace, &["baseline", "build", &recipe]);
    refused(
        &ended,
        4,
        &["baseline web, step 1 of 8 (opening libvirt)", "libvirt-daemon-driver-qemu", "lab/setup-host"],
    );
    if let Some(why) = obstacle(&[Need::Agent]) {
        eprintln!("SKIP without_libvirt, lab validate: {why}");
    } else {
        let path = written(dir.path(), "order.toml", &order(b"the old nginx", None));
        let ended = patchlab.run_in(&namespace, &["lab", "validate", "--order", &path, "--baseline", "small"]);
        // A validation has a report, whatever became of it.
        assert_eq!(ended.code, Some(4), "{}{}", ended.out, ended.err);
        let first = ended.out.lines().next().unwrap_or_default();
        for part in ["lab-error", "cannot open qemu:///embed", "libvirt-daemon-driver-qemu", "lab/setup-host"] {
            assert!(first.contains(part), "{part:?} is not named in:\n{first}");
        }
    }
    assert_eq!(holdings(&patchlab.data), before);
    nothing_to_collect(&patchlab);
}

#[test]
fn with_libvirt_doctor_opens_it_and_keeps_what_it_learned() {
    needs!("with_libvirt_doctor_opens_it", Program, Lab);
    let dir = folder();
    let patchlab = Patchlab { data: dir.path().join("data") };
    let doctor = finding(&patchlab, &MountNamespace::new(), "libvirt");
    assert_eq!(doctor["state"], "good", "{doctor}");
    let learned = patchlab.data.join("lab/cache/libvirt/qemu/capabilities");
    assert!(fs::read_dir(&learned).is_ok_and(|entries| entries.count() > 0), "{} is empty", learned.display());
    nothing_to_collect(&patchlab);
}

#[test]
fn without_a_usable_accelerator_it_falls_back_and_says_how_slow_it_will_be() {
    needs!("without_a_usable_accelerator", Program, Lab);
    let dir = folder();
    let patchlab = seeded(dir.path().join("data"));
    let before = holdings(&patchlab.data);
    let namespace = MountNamespace::new();
    if Path::new("/dev/kvm").exists() {
        // It opens, as on hosts where it is there and of no use.
        namespace.mount(&["--bind", "/dev/null", "/dev/kvm"]);
    }
    let doctor = finding(&patchlab, &namespace, "accelerator");
    let found = doctor["found"].as_str().unwrap_or_default();
    assert_eq!(doctor["state"], "slow", "{doctor}");
    assert!(times_slower(found).is_some(), "{found}");
    let recipe = written(dir.path(), "web.toml", RECIPE);
    let mut command = patchlab.command_in(&namespace, &["baseline", "build", &recipe]);
    let mut build = Running::start(command.stderr(Stdio::piped()));
    let lines = BufReader::new(build.0.stderr.take().expect("its standard error")).lines();
    let mut until_installing = lines.map_while(Result::ok).take_while(|line| !line.contains("running apt-get update"));
    assert!(until_installing.any(|line| times_slower(&line).is_some()), "the build does not say how slow it will be");
    // What comes then takes minutes, and other tests look at it.
    drop(build);
    assert_eq!(patchlab.run(&["lab", "gc"]).code, Some(0));
    nothing_to_collect(&patchlab);
    assert_eq!(holdings(&patchlab.data), before);
}

/// The factor of a sentence about software emulation.
fn times_slower(text: &str) -> Option<u32> {
    text.split_once("slower than kvm (arithmetic alone: ")?.1.split_once(" times, measured)")?.0.parse().ok()
}

#[test]
fn of_two_quickstarts_at_once_the_second_says_who_was_first_and_disturbs_nothing() {
    needs!("of_two_quickstarts_at_once", Program, Lab, Agent);
    let dir = folder();
    let patchlab = Patchlab { data: dir.path().join("data") };
    // The first ends by itself in its second stage.
    let slip = fs::read_to_string(source().join("images/debian-12-web.toml")).expect("the recipe") + "slip = 1\n";
    written(dir.path(), "source/images/debian-12-web.toml", &slip);
    let source = dir.path().join("source").display().to_string();
    let demo = ["demo", "--source", &source, "--listen", "127.0.0.1:0"];
    // One demonstration a machine: a runtime folder of the test's own keeps it apart from any other that runs here.
    let namespace = MountNamespace::new();
    fs::create_dir_all("/run/patchlab").expect("a folder");
    namespace.mount(&["-t", "tmpfs", "-o", "mode=700", "tmpfs", "/run/patchlab"]);
    let mut command = patchlab.command_in(&namespace, &demo);
    let mut first = Running::start(command.stdout(Stdio::piped()).stderr(Stdio::piped()));
    let mut out = BufReader::new(first.0.stdout.take().expect("its output"));
    let mut line = String::new();
    while !line.starts_with("[1/8]") {
        line.clear();
        assert!(out.read_line(&mut line).expect("readable") > 0, "the first did not begin");
    }
    let (who, place) = (format!("process {}", first.0.id()), patchlab.data.join("demo").display().to_string());
    let parts = ["another demonstration is running", &who, &place, "wait for its end"];
    refused(&patchlab.run_in(&namespace, &demo), 4, &parts);
    let mut rest = String::new();
    out.read_to_string(&mut rest).expect("text");
    assert!(rest.contains("=> it can"), "the first was disturbed: {rest}");
    let mut err = String::new();
    first.0.stderr.take().expect("its standard error").read_to_string(&mut err).expect("text");
    let ended = Ended { code: first.code(), out: rest, err };
    refused(&ended, 4, &["stage 2 of 8"]);
    assert!(ended.err.contains("unknown key \"slip\""), "{}", ended.err);
}
