//! A data folder with keys, a root document, and the real server on it, driven by its real command line.

#![allow(dead_code, reason = "each test file uses its part of it")]

use std::{
    fs,
    io::{BufRead as _, BufReader},
    net::{SocketAddr, UdpSocket},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use patchlab::place::Data;
use patchlab_lab::{ArtifactStore, report::SCHEMA};
use patchlab_protocol::document::{
    Class, Kind, OnFailure, Order, Origin, PackageFile, Replaced, RollbackClass, RollbackFiles, Severity,
};
use serde_json::{Value, json};

const PROGRAM: &str = env!("CARGO_BIN_EXE_patchlab");

/// A data folder with keys and a root document, and the server on it.
pub struct Site {
    dir: tempfile::TempDir,
    server: Option<Child>,
    /// Where hosts find the member. A restarted server is where it was: hosts were told at their enrolment.
    payload: SocketAddr,
    informs: SocketAddr,
    /// Where hosts with a token come.
    pub enrolment: SocketAddr,
}

pub struct Ran {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

impl Site {
    pub fn new() -> Self {
        let [payload, informs, enrolment] = [free_port(), free_port(), free_port()];
        let site = Self { dir: tempfile::tempdir().unwrap(), server: None, payload, informs, enrolment };
        fs::create_dir(site.path("keys")).unwrap();
        for role in ["root", "drafter", "releaser", "approver", "operator"] {
            site.ok(&["key", "generate", "--role", role, "--out", &site.key(role)]);
        }
        site.ok(&[
            "root",
            "init",
            "--key",
            &site.key("root"),
            "--drafter-key",
            &site.key("drafter"),
            "--release-key",
            &site.key("releaser"),
            "--approver-key",
            &site.key("approver"),
            "--operator-key",
            &site.key("operator"),
        ]);
        site
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn key(&self, role: &str) -> String {
        self.path(&format!("keys/{role}.pem")).display().to_string()
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(PROGRAM);
        command.arg("--data").arg(self.path("data")).args(arguments);
        command
    }

    pub fn run(&self, arguments: &[&str]) -> Ran {
        let output = self.command(arguments).output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Ran { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
    }

    pub fn ok(&self, arguments: &[&str]) -> String {
        let ran = self.run(arguments);
        assert_eq!(ran.code, Some(0), "{arguments:?}: {}{}", ran.out, ran.err);
        ran.out
    }

    pub fn ok_json(&self, arguments: &[&str]) -> Value {
        serde_json::from_str(&self.ok(&[arguments, &["--json", "-"]].concat())).unwrap()
    }

    pub fn refused(&self, arguments: &[&str], by: &str) {
        let ran = self.run(arguments);
        assert_eq!(ran.code, Some(5), "{arguments:?}: {}{}", ran.out, ran.err);
        assert!(ran.err.contains(by), "{}", ran.err);
    }

    /// Starts the server, and says where its console is. Its addresses are fixed, since hosts know them: where another test's connection
    /// has just been given one of their ports, it is started again when that has ended.
    pub fn serve(&mut self) -> String {
        for _ in 0..40 {
            let mut child = self.start();
            let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
            let Some(console) = lines.next() else {
                assert_eq!(child.wait().unwrap().code(), Some(4), "it ended otherwise than for an address");
                continue;
            };
            let console = console.unwrap();
            // Its other lines are read so that it never writes to a closed pipe.
            std::thread::spawn(move || lines.count());
            self.server = Some(child);
            return console.trim_start_matches("console\t").to_owned();
        }
        panic!("the server does not start");
    }

    fn start(&self) -> Child {
        self.command(&[
            "serve",
            "--listen",
            "127.0.0.1:0",
            "--payload",
            &self.payload.to_string(),
            "--informs",
            &self.informs.to_string(),
            "--enrolment",
            &self.enrolment.to_string(),
            "--release-key",
            &self.key("releaser"),
        ])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
    }

    pub fn kill(&mut self) {
        let mut server = self.server.take().unwrap();
        server.kill().unwrap();
        server.wait().unwrap();
    }

    /// An order over stand-in files, signed and handed in with a verdict.
    pub fn submit(&self, id: &str, verdict: &str) -> String {
        let package = |content: &str| {
            let file = self.path("package");
            fs::write(&file, content).unwrap();
            file
        };
        let new = self.package(&package(&format!("new {id}")), "nginx", "amd64", "1.22-2");
        let old = self.package(&package("old"), "nginx", "amd64", "1.22-1");
        self.submit_order(&order(id, new, old), verdict, "upgrade nginx amd64 1.22-1 -> 1.22-2")
    }

    /// Puts a package file into the artifact store.
    pub fn package(&self, file: &Path, name: &str, arch: &str, version: &str) -> PackageFile {
        let (sha256, size) = ArtifactStore::open(self.path("data/artifacts")).unwrap().put(file).unwrap();
        PackageFile {
            name: name.into(),
            version: version.into(),
            arch: arch.into(),
            size,
            sha256,
            origin: Origin::Local,
        }
    }

    /// Signs an order and hands it in with a verdict. Says its digest.
    pub fn submit_order(&self, order: &Order, verdict: &str, transaction: &str) -> String {
        self.submit_order_by(order, "drafter", verdict, transaction)
    }

    /// The same, by whoever has the key of that name.
    pub fn submit_order_by(&self, order: &Order, drafter: &str, verdict: &str, transaction: &str) -> String {
        let id = &order.id;
        let path = self.path(&format!("{id}.json"));
        fs::write(&path, serde_json::to_vec(order).unwrap()).unwrap();
        let row = self.ok_json(&["order", "submit", &path.display().to_string(), "--key", &self.key(drafter)]);
        let digest = row["digest"].as_str().unwrap().to_owned();
        let path = self.path(&format!("{id}-verdict.json"));
        fs::write(&path, verdict_json(&digest, verdict, transaction).to_string()).unwrap();
        self.ok(&["order", "verdict", id, &path.display().to_string()]);
        digest
    }

    pub fn to_approved(&self, id: &str) {
        self.ok(&["order", "release", id]);
        self.ok(&["order", "approve", id, "--key", &self.key("approver"), "--hosts", "2"]);
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        if self.server.is_some() {
            self.kill();
        }
        // A killed server leaves its socket; nobody will start another on this folder.
        if let Ok(socket) = Data::open(Some(self.path("data"))).map(|data| data.socket().unwrap()) {
            let _ = fs::remove_dir_all(socket.parent().unwrap());
        }
    }
}

/// An order that replaces one package by another version of it.
pub fn order(id: &str, new: PackageFile, old: PackageFile) -> Order {
    Order {
        id: id.into(),
        title: format!("{} security update", new.name),
        severity: Severity::Important,
        kind: Kind::Routine,
        advisories: vec![],
        class: Class { family: "debian".into(), release: "12".into(), arch: "x86_64".into() },
        replaces: vec![Replaced {
            name: old.name.clone(),
            arch: old.arch.clone(),
            version: old.version.clone(),
            file: Some(old),
        }],
        install: vec![new],
        production: vec![],
        after: vec![],
        supersedes: vec![],
        rollback: RollbackClass::Proven,
        not_after: None,
        on_failure: OnFailure::Leave,
        rollback_files: RollbackFiles::WhenNeeded,
        reboot: None,
        script: None,
    }
}

pub fn verdict_json(order: &str, verdict: &str, transaction: &str) -> Value {
    json!({
        "schema": SCHEMA, "id": "PO", "order": order, "verdict": verdict, "reason": format!("it is {verdict}"),
        "total_ms": 60_000,
        "baselines": [{
            "name": "debian-12-web@1", "digest": "b".repeat(64), "verdict": verdict, "reason": "",
            "clone": { "rung": "template", "ready_ms": 900, "handshake_ms": 100 },
            "transaction": [transaction], "apply_ms": 5000, "rollback_ms": 4000,
            "total_ms": 60_000, "reboot_needed": false, "rollback": { "status": "proven", "reason": "" },
            "scenarios": [{ "name": "web-smoke", "phase": "applied", "verdict": "pass", "reason": "", "steps": [
                { "name": "front page", "verdict": "pass",
                  "control": { "status": "pass", "exit": 0, "ms": 3, "output": "200", "reason": "" },
                  "patched": { "status": "pass", "exit": 0, "ms": 3, "output": "200", "reason": "" } }] }],
        }],
    })
}

pub fn free_port() -> SocketAddr {
    UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

pub fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(30);
    while !holds() {
        assert!(Instant::now() < end, "{what}: not within 30 s");
        std::thread::sleep(Duration::from_millis(50));
    }
}
