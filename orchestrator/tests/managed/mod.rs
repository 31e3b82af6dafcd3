//! A managed host: the real agent over a package root of its own, with packages that are built on the spot. The agent's binary is
//! found beside ours, as in production.

#![allow(dead_code, reason = "each test file uses its part of it")]

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use patchlab::deploy::{
    Manager, Patience, Row, SnmpManager, push_and_run, rotation,
    row::{self, Unobserved},
};
use patchlab_protocol::{
    Refusal,
    description::Tags,
    document::RunState,
    enrolment::{Enrolment, Packages, SnmpUser},
};

use super::site::{Site, free_port};

/// The agent's program, when it was built.
pub fn program() -> Option<PathBuf> {
    let beside = Path::new(env!("CARGO_BIN_EXE_patchlab")).with_file_name("patchlab-agent");
    let usable = beside.is_file() && ["dpkg-deb", "apt-get"].iter().all(|tool| on_path(tool));
    if !usable || !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: needs root, dpkg, apt and {} (cargo build -p patchlab-agent)", beside.display());
        return None;
    }
    Some(beside)
}

fn on_path(tool: &str) -> bool {
    Command::new(tool).arg("--version").stdout(Stdio::null()).status().is_ok_and(|status| status.success())
}

/// A tiny package, built on the spot; `postinst` is its script, if it has one.
pub fn package(dir: &Path, version: &str, postinst: Option<&str>) -> PathBuf {
    let tree = dir.join(format!("demo-{version}"));
    fs::create_dir_all(tree.join("DEBIAN")).unwrap();
    fs::create_dir_all(tree.join("usr/share/demo")).unwrap();
    fs::write(tree.join("usr/share/demo/version"), version).unwrap();
    let control = format!(
        "Package: demo\nVersion: {version}\nArchitecture: all\nMaintainer: nobody <nobody@example.org>\nDescription: demo\n"
    );
    fs::write(tree.join("DEBIAN/control"), control).unwrap();
    if let Some(script) = postinst {
        use std::os::unix::fs::PermissionsExt as _;
        let path = tree.join("DEBIAN/postinst");
        fs::write(&path, script).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let file = dir.join(format!("demo_{version}_all.deb"));
    let built = Command::new("dpkg-deb").args(["--root-owner-group", "-b"]).arg(&tree).arg(&file).output().unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    file
}

/// `/proc/net/tcp` of a host with something on port 80.
const LISTENS: &str = "0: 00000000:0050 00000000:0000 0A 0:0 00:0 0 0 0 4711 1 0\n";

/// A package root with demo 1 installed.
fn package_root(dir: &Path, old: &Path) {
    for folder in ["var/lib/dpkg/info", "var/lib/dpkg/updates", "var/log", "etc"] {
        fs::create_dir_all(dir.join(folder)).unwrap();
    }
    fs::write(dir.join("var/lib/dpkg/status"), "").unwrap();
    fs::create_dir_all(dir.join("proc/net")).unwrap();
    fs::write(dir.join("proc/net/tcp"), LISTENS).unwrap();
    fs::write(dir.join("etc/os-release"), "ID=debian\nVERSION_ID=\"12\"\n").unwrap();
    let installed = Command::new("dpkg").arg(format!("--root={}", dir.display())).arg("-i").arg(old).output().unwrap();
    assert!(installed.status.success(), "{}", String::from_utf8_lossy(&installed.stderr));
}

/// A running agent, killed when dropped.
pub struct Agent {
    child: Child,
    program: PathBuf,
    config: PathBuf,
    pub enrolment: Enrolment,
    pub root: PathBuf,
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Agent {
    /// Enrols a host and starts its agent.
    pub fn start(site: &Site, program: &Path, name: &str, old: &Path) -> Self {
        Self::start_as(site, program, name, old, &[])
    }

    /// The same, with more words of the enrolment's command line.
    pub fn start_as(site: &Site, program: &Path, name: &str, old: &Path, words: &[&str]) -> Self {
        let text = site.path(name).display().to_string();
        let state = site.path(&format!("{name}-state")).display().to_string();
        let address = free_port().to_string();
        let enroll = ["host", "enroll", name, "--address", &address, "--listen", &address, "--site", "lab"];
        site.ok(&[&enroll, &["--out", &text, "--state-dir", &state][..], words].concat());
        Self::start_enrolled(site, program, name, old)
    }

    /// Starts the agent of a host that is enrolled, and whose folder is there.
    pub fn start_enrolled(site: &Site, program: &Path, name: &str, old: &Path) -> Self {
        let root = site.path(&format!("{name}-root"));
        package_root(&root, old);
        let config = site.path(name).join("agent.toml");
        let mut enrolment: Enrolment = toml::from_str(&fs::read_to_string(&config).unwrap()).unwrap();
        enrolment.packages = Packages { root: root.clone(), ..Packages::default() };
        enrolment.tags = Tags { location: "hall-2".into(), function: "web".into() };
        fs::write(&config, toml::to_string(&enrolment).unwrap()).unwrap();
        Self { child: spawn(program, &config), program: program.to_owned(), config, enrolment, root }
    }

    /// The host goes away.
    pub fn stop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// A command of its program on the host itself.
    pub fn command(&self, arguments: &[&str]) -> std::process::Output {
        Command::new(&self.program).args(arguments).arg("--config").arg(&self.config).output().unwrap()
    }

    /// It comes back.
    pub fn start_again(&mut self) {
        self.child = spawn(&self.program, &self.config);
    }

    /// Pushes a row past the server, with valid SNMP credentials, and says how the host ended its run.
    pub fn pushed(&self, row: &Row, run: u32) -> (RunState, Option<Refusal>) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let manager = self.manager(&self.enrolment.deployer).await;
            let manager: &dyn Manager = &manager;
            let report = push_and_run(manager, row, run, &mut Unobserved).await.unwrap();
            (report.state, report.refusal)
        })
    }

    /// The same in each of these rows; all of them end.
    pub fn filled(&self, row: &Row, indices: std::ops::Range<u32>) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let manager = self.manager(&self.enrolment.deployer).await;
            let manager: &dyn Manager = &manager;
            let rows: Vec<Row> = indices.map(|index| Row { index, ..row.clone() }).collect();
            for row in &rows {
                row::push(manager, row).await.unwrap();
                row::start(manager, row.index, 1).await.unwrap();
            }
            for row in &rows {
                push_and_run(manager, row, 1, &mut Unobserved).await.unwrap();
            }
        });
    }

    pub fn version(&self) -> String {
        fs::read_to_string(self.root.join("usr/share/demo/version")).unwrap()
    }

    /// Whether it answers this user.
    pub fn answers(&self, user: &SnmpUser) -> bool {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async { self.manager(user).await.get(&[rotation::who()]).await.is_ok() })
    }

    async fn manager(&self, user: &SnmpUser) -> SnmpManager {
        let e = &self.enrolment;
        let engine = e.engine_id.as_ref().unwrap();
        SnmpManager::new(&e.host, e.listen, engine, user, Patience::default()).await.unwrap()
    }
}

fn spawn(program: &Path, config: &Path) -> Child {
    Command::new(program).arg("run").arg("--config").arg(config).spawn().unwrap()
}
