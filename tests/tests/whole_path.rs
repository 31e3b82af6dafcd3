//! The whole path on real machines: what `./quickstart` shows, looked at from outside, and a validation killed in the middle.
//!
//! Skips aloud where it cannot run: without root, without the lab's packages, or when only quick tests were asked for.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use serde_json::Value;

/// Where `tests/build` puts the programs: beside this test's folder.
fn program(name: &str) -> Option<PathBuf> {
    let test = std::env::current_exe().ok()?;
    let path = test.parent()?.parent()?.join(name);
    path.is_file().then_some(path)
}

/// Why this machine cannot run it.
fn obstacle() -> Option<String> {
    if std::env::var_os("PATCHLAB_QUICK").is_some_and(|quick| !quick.is_empty()) {
        return Some("only quick tests were asked for".into());
    }
    let id = Command::new("id").arg("-u").output().ok()?;
    if String::from_utf8_lossy(&id.stdout).trim() != "0" {
        return Some("not root".into());
    }
    let agent = std::env::var_os("PATCHLAB_AGENT").is_some_and(|path| Path::new(&path).is_file());
    if program("patchlab").is_none() || !agent {
        return Some("patchlab is not built or PATCHLAB_AGENT names no static agent: tests/run sees to both".into());
    }
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../lab/setup-host");
    let ready = Command::new(source).arg("--check").output().ok()?;
    (!ready.status.success()).then(|| String::from_utf8_lossy(&ready.stdout).trim().to_owned())
}

struct Patchlab {
    data: PathBuf,
}

impl Patchlab {
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(program("patchlab").expect("patchlab is built"));
        command.arg("--data").arg(&self.data).args(arguments);
        command.current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("..")).stdin(Stdio::null());
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().expect("patchlab starts")
    }
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).expect("a file")).expect("JSON")
}

/// Processes of the lab's user whose command line names this data folder's workers are all gone.
fn machines_of(worker: &str) -> Vec<String> {
    let list = Command::new("pgrep").args(["-a", "-f", worker]).output().expect("pgrep runs");
    String::from_utf8_lossy(&list.stdout).lines().map(str::to_owned).collect()
}

#[test]
fn the_whole_path_on_real_machines() {
    if let Some(why) = obstacle() {
        eprintln!("SKIP the_whole_path_on_real_machines: {why}");
        return;
    }
    let parent = std::env::var_os("PATCHLAB_TEST_DATA").unwrap_or_else(|| "/var/tmp".into());
    let folder = tempfile::Builder::new().prefix("patchlab-test-").tempdir_in(parent).expect("a folder");
    use std::os::unix::fs::PermissionsExt as _;
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).expect("open to the lab's user");
    let shown = folder.path().join("shown.json");
    let outer = Patchlab { data: folder.path().to_owned() };
    let status = outer
        .command(&["demo", "--listen", "127.0.0.1:0", "--json", &shown.display().to_string()])
        .status()
        .expect("patchlab starts");
    assert!(status.success(), "the demonstration ended with {status}");
    assert_eq!(json(&shown)["stages"].as_array().map(Vec::len), Some(8));

    let demo = Patchlab { data: folder.path().join("demo") };
    let order = |name: &str| demo.data.join("orders").join(name).join("order.toml");
    let good = json(&order("good").with_file_name("verdict.json"));
    assert_eq!((&good["verdict"], &good["baselines"][0]["rollback"]["status"]), (&"passed".into(), &"proven".into()));
    assert_eq!(good["baselines"][0]["clone"]["rung"], "template-clone");
    let bad = json(&order("bad").with_file_name("verdict.json"));
    assert_eq!(bad["verdict"], "rejected");
    assert!(bad["baselines"][0]["journal"].as_array().is_some_and(|lines| !lines.is_empty()));
    let gc = demo.run(&["lab", "gc", "--dry-run"]);
    assert_eq!(String::from_utf8_lossy(&gc.stdout).trim(), "nothing to collect");

    killed_in_the_middle(&demo, &order("good"));
}

/// A validation killed with -9 while the patch is being applied: after the next `gc` nothing of it is left.
fn killed_in_the_middle(demo: &Patchlab, order: &Path) {
    let mut validation = demo
        .command(&["lab", "validate", "--order", &order.display().to_string()])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("patchlab starts");
    let lines = BufReader::new(validation.stderr.take().expect("its standard error")).lines();
    let applying = lines.map_while(Result::ok).any(|line| line.contains(": apply"));
    assert!(applying, "the validation never came to apply");
    validation.kill().expect("it can be killed");
    validation.wait().expect("it ends");
    let collected = demo.run(&["lab", "gc"]);
    assert!(collected.status.success());
    let again = demo.run(&["lab", "gc"]);
    assert_eq!(String::from_utf8_lossy(&again.stdout).trim(), "nothing to collect");
    let work = fs::read_dir(demo.data.join("work")).map(|entries| entries.count()).unwrap_or(0);
    assert_eq!(work, 0, "folders of dead workers are left");
    let collected = String::from_utf8_lossy(&collected.stdout).into_owned();
    for worker in collected.lines().filter_map(|line| line.split('\t').next()) {
        assert_eq!(machines_of(worker), Vec::<String>::new());
    }
}
