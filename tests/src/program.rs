//! The program `patchlab` as a user would type it, and what a machine must have for a test of it.

use std::{
    io::Write as _,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
};

use patchlab_lab::{Places, baseline::Baselines};

use crate::mount_namespace::MountNamespace;

/// Something that a test needs and a machine may not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// `patchlab`, built.
    Program,
    /// Root and the lab's packages and user.
    Lab,
    /// A static agent, named by `PATCHLAB_AGENT`.
    Agent,
    /// Minutes: not when only quick tests were asked for.
    Time,
    /// Many minutes: only when repetitions and scale were asked for.
    Soak,
    /// What builds packages and repositories of rpm.
    Rpm,
    /// A data folder with a baseline, as the demonstration leaves it, named by `PATCHLAB_TEST_BASELINES`.
    Stored,
}

/// Why this machine cannot run a test that has these needs.
pub fn obstacle(needs: &[Need]) -> Option<String> {
    needs.iter().find_map(|need| match need {
        Need::Program => program("patchlab").is_none().then(|| "patchlab is not built: tests/run sees to it".into()),
        Need::Lab => lab_obstacle(),
        Need::Agent => {
            let agent = std::env::var_os("PATCHLAB_AGENT").is_some_and(|path| Path::new(&path).is_file());
            (!agent).then(|| "PATCHLAB_AGENT names no static agent: tests/run sees to it".into())
        }
        Need::Time => {
            let quick = std::env::var_os("PATCHLAB_QUICK").is_some_and(|quick| !quick.is_empty());
            quick.then(|| "only quick tests were asked for".into())
        }
        Need::Soak => {
            let soak = std::env::var_os("PATCHLAB_SOAK").is_some_and(|soak| !soak.is_empty());
            (!soak).then(|| "it takes many minutes; tests/run --soak runs it".into())
        }
        Need::Rpm => ["rpmbuild", "rpmsign", "createrepo_c", "dnf", "gpg"].into_iter().find_map(|program| {
            let there = Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
            there.is_err().then(|| format!("{program} is not there: lab/setup-host --tests installs it"))
        }),
        Need::Stored => {
            stored().is_none().then(|| "PATCHLAB_TEST_BASELINES names no data folder with a baseline".into())
        }
    })
}

/// The folder that [`Need::Stored`] is about.
fn stored() -> Option<PathBuf> {
    named().filter(|named| named.join("baselines/names").is_file())
}

/// The data folder in which the demonstration is to be made, when others wait for what it leaves.
pub fn wanted() -> Option<PathBuf> {
    let made = named().filter(|named| named.ends_with("demo") && !named.exists())?;
    made.parent().map(Path::to_owned)
}

fn named() -> Option<PathBuf> {
    std::env::var_os("PATCHLAB_TEST_BASELINES").filter(|name| !name.is_empty()).map(PathBuf::from)
}

fn lab_obstacle() -> Option<String> {
    let id = Command::new("id").arg("-u").output().ok()?;
    if String::from_utf8_lossy(&id.stdout).trim() != "0" {
        return Some("not root".into());
    }
    let ready = Command::new(source().join("lab/setup-host")).arg("--check").output().ok()?;
    (!ready.status.success()).then(|| String::from_utf8_lossy(&ready.stdout).trim().to_owned())
}

/// Where `tests/build` puts the programs: beside the test's folder.
pub fn program(name: &str) -> Option<PathBuf> {
    let test = std::env::current_exe().ok()?;
    let path = test.parent()?.parent()?.join(name);
    path.is_file().then_some(path)
}

/// The folder of the sources, with `images` and `scenarios`.
pub fn source() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// A folder for one test, on a disk and open to the lab's user; gone when it is dropped.
///
/// # Panics
/// It cannot be made.
pub fn folder() -> tempfile::TempDir {
    let parent = std::env::var_os("PATCHLAB_TEST_DATA").unwrap_or_else(|| "/var/tmp".into());
    let folder = tempfile::Builder::new().prefix("patchlab-test-").tempdir_in(parent).expect("a folder");
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).expect("open to the lab's user");
    folder
}

/// Writes a file below `dir`; its path, as on a command line.
///
/// # Panics
/// It cannot be written.
pub fn file(dir: &Path, name: &str, text: &str) -> String {
    let path = dir.join(name);
    std::fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
    std::fs::write(&path, text).expect("a file");
    path.display().to_string()
}

/// `patchlab` on a data folder.
#[derive(Debug)]
pub struct Patchlab {
    /// The data folder.
    pub data: PathBuf,
}

/// A command that runs beside the test; killed when it is dropped, also by a test that fails.
#[derive(Debug)]
pub struct Running(pub Child);

impl Running {
    /// Starts it.
    ///
    /// # Panics
    /// It does not start.
    pub fn start(command: &mut Command) -> Self {
        Self(command.spawn().expect("patchlab starts"))
    }

    /// Waits for its end and says its exit code; absent when a signal ended it.
    ///
    /// # Panics
    /// The kernel does not know it.
    pub fn code(&mut self) -> Option<i32> {
        self.0.wait().expect("it ends").code()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Already gone is as good.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// How a command ended.
#[derive(Debug)]
pub struct Ended {
    /// Its exit code; absent when a signal ended it.
    pub code: Option<i32>,
    /// Its standard output.
    pub out: String,
    /// Its standard error.
    pub err: String,
}

impl From<Output> for Ended {
    fn from(output: Output) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Self { code: output.status.code(), out: text(&output.stdout), err: text(&output.stderr) }
    }
}

/// The document on the standard output of a command that must have ended well.
///
/// # Panics
/// It did not, or its output is no JSON.
pub fn json(ended: &Ended) -> serde_json::Value {
    assert_eq!(ended.code, Some(0), "{}", ended.err);
    serde_json::from_str(&ended.out).expect("JSON")
}

/// A command ended with that code, and said each of these.
///
/// # Panics
/// It did not.
pub fn said(ended: &Ended, code: i32, parts: &[&str]) {
    assert_eq!(ended.code, Some(code), "{}", ended.err);
    for part in parts {
        assert!(ended.err.contains(part), "{part:?} is not in {}", ended.err);
    }
}

impl Patchlab {
    /// On a copy, below `dir`, of the stored baselines and all that belongs to them ([`Need::Stored`]), so that nothing can alter what
    /// other tests work on.
    ///
    /// # Panics
    /// There are none, or they cannot be copied.
    pub fn on_a_copy(dir: &Path) -> Self {
        let (from, data) = (stored().expect("stored baselines"), dir.join("data"));
        std::fs::create_dir(&data).expect("a folder");
        let names = ["baselines", "artifacts", "cache", "keys", "orders"];
        for name in names.into_iter().filter(|name| from.join(name).exists()) {
            let mut copy = Command::new("cp");
            let status = copy.args(["-a", "--sparse=always"]).args([from.join(name), data.join(name)]).status();
            assert!(status.expect("cp starts").success(), "{name} cannot be copied");
        }
        Self { data }
    }

    /// Brings the server's own files beside them: its orders and their releases, as the demonstration left them.
    ///
    /// # Panics
    /// They cannot be copied.
    pub fn with_its_server(&self) {
        let from = stored().expect("stored baselines");
        for name in ["root.json", "server"] {
            let status = Command::new("cp").arg("-a").args([from.join(name), self.data.join(name)]).status();
            assert!(status.expect("cp starts").success(), "{name} cannot be copied");
        }
    }

    /// The full name of the first of its stored baselines.
    ///
    /// # Panics
    /// There is none.
    pub fn baseline(&self) -> String {
        let baselines = Baselines::open(&Places::of_data(&self.data)).list().expect("baselines");
        baselines.first().expect("a baseline").full_name()
    }

    /// `patchlab --data DATA ARGUMENTS`, run where the sources lie.
    ///
    /// # Panics
    /// It is not built.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(program("patchlab").expect("patchlab is built"));
        self.finish(&mut command, arguments);
        command
    }

    /// The same, in a mount namespace.
    ///
    /// # Panics
    /// It is not built.
    pub fn command_in(&self, namespace: &MountNamespace, arguments: &[&str]) -> Command {
        let mut command = namespace.command(program("patchlab").expect("patchlab is built"));
        self.finish(&mut command, arguments);
        command
    }

    fn finish(&self, command: &mut Command, arguments: &[&str]) {
        command.arg("--data").arg(&self.data).args(arguments).current_dir(source()).stdin(Stdio::null());
    }

    /// Runs it to its end at a terminal of so many rows and columns, at which this is typed; what is shown there is its output.
    ///
    /// # Panics
    /// It does not start.
    pub fn at_a_terminal(&self, arguments: &[&str], (rows, columns): (u16, u16), typed: &str) -> Ended {
        let inner = self.command(arguments);
        let words = std::iter::once(inner.get_program()).chain(inner.get_args());
        let words: Vec<String> = words.map(|word| format!("'{}'", word.to_string_lossy())).collect();
        let line = format!("stty rows {rows} cols {columns} && exec {}", words.join(" "));
        let mut script = Command::new("script");
        script.args(["-q", "-e", "-c", &line, "/dev/null"]).current_dir(source()).env("TERM", "dumb");
        script.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = script.spawn().expect("script (package bsdutils) starts");
        // Open until the end: who sits there does not go away.
        let mut keyboard = child.stdin.take().expect("its standard input");
        keyboard.write_all(typed.as_bytes()).expect("it is typed");
        let ended = child.wait_with_output().expect("it ends").into();
        drop(keyboard);
        ended
    }

    /// Runs it to its end.
    ///
    /// # Panics
    /// It does not start.
    pub fn run(&self, arguments: &[&str]) -> Ended {
        self.command(arguments).output().expect("patchlab starts").into()
    }

    /// Runs it to its end in a mount namespace.
    ///
    /// # Panics
    /// It does not start.
    pub fn run_in(&self, namespace: &MountNamespace, arguments: &[&str]) -> Ended {
        self.command_in(namespace, arguments).output().expect("patchlab starts").into()
    }
}
