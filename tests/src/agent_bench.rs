//! `bench agent`: what an agent costs the host it runs on. The static binary that ships, on a dpkg database below a
//! root of its own, with Net-SNMP's tools as the manager.

use std::{
    collections::BTreeMap,
    fs,
    net::SocketAddr,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use axum::{Router, extract, routing::get};
use patchlab_protocol::{
    Audience, Digest, Envelope, Role, SigningKey,
    document::{
        Action, Activation, Approval, BaselineProof, Class, Kind, OnFailure, Order, Origin, PackageFile, Proof,
        Release, Rollback, RollbackClass, RollbackFiles, Root, RootKey, RunState, Scheme, Severity, TestResult,
    },
    enrolment::{Booting, Enrolment, Fetching, Packages, PinnedRoot, Scripts, SnmpUser},
    mib,
};
use serde_json::{Value, json};

const MIB: f64 = 1024.0 * 1024.0;
const HOST: &str = "bench";

/// What is to be measured.
#[derive(Debug, Clone)]
pub struct Bench {
    /// The agent's binary.
    pub agent: PathBuf,
    /// Where to work, on a disk with room for three times the order.
    pub folder: PathBuf,
    /// Starts to take the median of.
    pub starts: u32,
    /// How long to watch it idle.
    pub idle: Duration,
    /// Size of the order's one package, MiB.
    pub order_mib: u64,
}

/// An agent that runs, and is killed with this.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Running {
    fn status(&self, key: &str) -> anyhow::Result<f64> {
        let text = fs::read_to_string(format!("/proc/{}/status", self.0.id()))?;
        let line = text.lines().find_map(|line| line.strip_prefix(key)).with_context(|| format!("no {key}"))?;
        let kib: f64 = line.trim_start_matches(':').split_whitespace().next().context("no number")?.parse()?;
        Ok(kib * 1024.0 / MIB)
    }

    /// Seconds of processor time so far, in steps of a clock tick: all threads, those that ended too, kernel and user.
    fn cpu(&self) -> anyhow::Result<f64> {
        let text = fs::read_to_string(format!("/proc/{}/stat", self.0.id()))?;
        let fields: Vec<&str> = text.rsplit_once(')').context("no stat")?.1.split_whitespace().collect();
        let ticks = |field: usize| -> anyhow::Result<f64> { Ok(fields.get(field).context("a short stat")?.parse()?) };
        let second: f64 = run(Command::new("getconf").arg("CLK_TCK"))?.trim().parse()?;
        Ok((ticks(11)? + ticks(12)?) / second)
    }
}

impl Bench {
    /// Measures everything, and says so on standard error as it goes.
    ///
    /// # Errors
    /// When a part of it cannot be done here.
    pub fn measure(&self) -> anyhow::Result<BTreeMap<String, Value>> {
        let mut medians = BTreeMap::new();
        let mut put = |name: &str, value: f64| {
            eprintln!("agent.{name} = {value:.4}");
            medians.insert(format!("agent.{name}"), json!((value * 1e4).round() / 1e4));
        };
        put("binary_mib", fs::metadata(&self.agent)?.len() as f64 / MIB);
        let folder = tempfile::tempdir_in(&self.folder)?;
        let world = World::new(folder.path())?;
        let mut starts = Vec::new();
        for _ in 0..self.starts.max(1) {
            starts.push(world.start(&self.agent)?.1.as_secs_f64() * 1e3);
        }
        starts.sort_by(f64::total_cmp);
        put("start_ms", starts[starts.len() / 2]);

        let (running, _) = world.start(&self.agent)?;
        // Asked once, so that what a first answer needs is there.
        world.get(&oid(mib::agent::GROUP, &[mib::agent::INVENTORY_DIGEST, 0]))?;
        let (before, begun) = (running.cpu()?, Instant::now());
        std::thread::sleep(self.idle);
        put("idle_cpu_share", (running.cpu()? - before) / begun.elapsed().as_secs_f64());
        put("idle_rss_mib", running.status("VmRSS")?);

        fs::write(format!("/proc/{}/clear_refs", running.0.id()), "5")?;
        let took = world.apply(self.order_mib)?;
        put("apply_rss_mib", running.status("VmHWM")?);
        put("apply_s", took.as_secs_f64());
        Ok(medians)
    }
}

fn oid(prefix: &[u32], rest: &[u32]) -> String {
    let arcs: Vec<String> = prefix.iter().chain(rest).map(u32::to_string).collect();
    format!(".{}", arcs.join("."))
}

fn run(command: &mut Command) -> anyhow::Result<String> {
    let output = command.output().with_context(|| format!("{command:?}"))?;
    let [out, err] = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes).into_owned());
    ensure!(output.status.success(), "{command:?}: {out}{err}");
    Ok(out)
}

/// A host with nothing installed, its member, and the keys that sign for it.
struct World {
    folder: PathBuf,
    keys: BTreeMap<Role, SigningKey>,
    users: [SnmpUser; 2],
    member: SocketAddr,
    class: Class,
    _server: tokio::runtime::Runtime,
}

impl World {
    fn new(folder: &Path) -> anyhow::Result<Self> {
        let path = |name: &str| folder.join(name);
        for name in
            ["root/etc", "root/var/lib/dpkg/info", "root/var/lib/dpkg/updates", "www/documents", "www/artifacts", "id"]
        {
            fs::create_dir_all(path(name))?;
        }
        for name in ["status", "available"] {
            fs::write(path("root/var/lib/dpkg").join(name), "")?;
        }
        fs::write(path("root/etc/os-release"), "ID=debian\nVERSION_ID=\"12\"\n")?;
        let roles = [Role::Root, Role::Drafter, Role::Releaser, Role::Approver, Role::Activator];
        let keys = roles
            .into_iter()
            .map(|role| Ok((role, SigningKey::generate()?)))
            .collect::<anyhow::Result<BTreeMap<Role, SigningKey>>>()?;
        let root = sign_root(&keys);
        SigningKey::generate()?.write_new(&path("id/host.pem"))?;
        fs::write(path("id/root.json"), root.to_bytes())?;
        let user = |name: &str| SnmpUser {
            name: name.into(),
            auth: format!("{name}-auth-passphrase"),
            privacy: format!("{name}-privacy-passphrase"),
        };
        let users = [user("monitor"), user("deployer")];
        let enrolment = Enrolment {
            host: HOST.into(),
            listen: "127.0.0.1:0".parse()?,
            state_dir: path("state"),
            ledger_dir: None,
            hooks: None,
            engine_id: None,
            root: PinnedRoot { path: "root.json".into(), digest: root.digest() },
            host_key: "host.pem".into(),
            monitor: users[0].clone(),
            deployer: users[1].clone(),
            key_administrator: None,
            inform: None,
            packages: Packages { root: path("root"), ..Packages::default() },
            fetch: Fetching::default(),
            boot: Booting::default(),
            scripts: Scripts::default(),
            tags: patchlab_protocol::description::Tags::default(),
        };
        fs::write(path("id/agent.toml"), toml::to_string(&enrolment)?)?;
        fs::set_permissions(path("id/agent.toml"), fs::Permissions::from_mode(0o600))?;
        let server = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let member = server.block_on(serve(path("www")))?;
        let class = patchlab_agent::host::class(&path("root"))?;
        Ok(Self { folder: folder.to_owned(), keys, users, member, class, _server: server })
    }

    /// Starts the agent; with how long it took until it answered.
    fn start(&self, agent: &Path) -> anyhow::Result<(Running, Duration)> {
        let address = self.folder.join("state/address");
        let _ = fs::remove_file(&address);
        let log = fs::OpenOptions::new().create(true).append(true).open(self.folder.join("log"))?;
        let begun = Instant::now();
        let child = Command::new(agent)
            .args(["run", "--config"])
            .arg(self.folder.join("id/agent.toml"))
            .stderr(Stdio::from(log))
            .spawn()
            .with_context(|| format!("{}: tests/build makes it", agent.display()))?;
        let mut running = Running(child);
        while !address.exists() {
            ensure!(
                running.0.try_wait()?.is_none(),
                "the agent ended: {}",
                fs::read_to_string(self.folder.join("log"))?
            );
            ensure!(begun.elapsed() < Duration::from_secs(60), "the agent does not start");
            std::thread::sleep(Duration::from_micros(200));
        }
        Ok((running, begun.elapsed()))
    }

    fn tool(&self, name: &str, user: &SnmpUser, arguments: &[String]) -> anyhow::Result<String> {
        let address = fs::read_to_string(self.folder.join("state/address"))?;
        run(Command::new(name)
            .args(["-v3", "-l", "authPriv", "-u", &user.name, "-a", "SHA-256", "-A", &user.auth])
            .args(["-x", "AES", "-X", &user.privacy, "-m", "", "-Oqvn", "-t", "5"])
            .arg(address.trim())
            .args(arguments))
    }

    fn get(&self, object: &str) -> anyhow::Result<String> {
        Ok(self.tool("snmpget", &self.users[0], &[object.to_owned()])?.trim().to_owned())
    }

    fn publish<P: patchlab_protocol::envelope::Predicate>(&self, document: P, role: Role) -> anyhow::Result<Digest> {
        let envelope = Envelope::sign(document, &self.keys[&role]);
        let digest = envelope.digest();
        fs::write(self.folder.join("www/documents").join(digest.to_string()), envelope.to_bytes())?;
        Ok(digest)
    }

    /// Applies an order with one package of that size.
    fn apply(&self, mib: u64) -> anyhow::Result<Duration> {
        let file = self.package(mib)?;
        let hours = |hours: i64| jiff::Timestamp::now() + jiff::SignedDuration::from_hours(hours);
        let order = Order {
            id: "PO-1".into(),
            title: "bench".into(),
            severity: Severity::Low,
            kind: Kind::Routine,
            advisories: vec![],
            class: self.class.clone(),
            install: vec![file],
            replaces: vec![],
            production: vec![],
            after: vec![],
            supersedes: vec![],
            rollback: RollbackClass::Proven,
            not_after: None,
            on_failure: OnFailure::Leave,
            rollback_files: RollbackFiles::WhenNeeded,
            reboot: None,
            script: None,
        };
        let digest = self.publish(order, Role::Drafter)?;
        let baseline = BaselineProof {
            name: "bench@1".into(),
            digest: Digest::of("bench"),
            transaction: vec!["install big all - -> 1".into()],
            apply_ms: 1,
            rollback_ms: 1,
            reboot_needed: false,
            rollback: Rollback::Proven,
            grown: Vec::new(),
            boots: None,
        };
        let proof = Proof {
            order: digest,
            class: self.class.clone(),
            at: hours(-2),
            not_after: None,
            baselines: vec![baseline],
            waivers: vec![],
        };
        let release = Release {
            result: TestResult::Passed,
            configuration: vec![],
            passed_tests: vec![],
            failed_tests: vec![],
            warned_tests: vec![],
            proof,
        };
        let release = self.publish(release, Role::Releaser)?;
        let approval = Approval {
            approver: "bench".into(),
            order: digest,
            release,
            hosts_at_most: 1,
            at: hours(-1),
            not_after: hours(10),
        };
        let approval = self.publish(approval, Role::Approver)?;
        let activation = Activation {
            order: digest,
            action: Action::Apply,
            site: "bench".into(),
            wave: 1,
            hosts: vec![HOST.into()],
            at: hours(-1),
            not_before: hours(-1),
            not_after: hours(1),
        };
        let activation = self.publish(activation, Role::Activator)?;
        self.carry_out([digest, release, approval, activation])
    }

    fn carry_out(&self, documents: [Digest; 4]) -> anyhow::Result<Duration> {
        use mib::order;
        let cell = |column| oid(order::ENTRY, &[column, 1]);
        let mut words: Vec<String> = [(order::ROW_STATUS, "i", "4".to_owned())]
            .into_iter()
            .chain([(order::URI, "s", format!("http://{}/", self.member)), (order::START, "u", "1".to_owned())])
            .flat_map(|(column, kind, value)| [cell(column), kind.to_owned(), value])
            .collect();
        let columns = [order::DIGEST, order::RELEASE, order::APPROVAL, order::ACTIVATION];
        for (column, digest) in columns.into_iter().zip(documents) {
            words.extend([cell(column), "x".to_owned(), digest.to_string()]);
        }
        let begun = Instant::now();
        self.tool("snmpset", &self.users[1], &words)?;
        loop {
            let number: i64 = self.get(&oid(mib::run::ENTRY, &[mib::run::STATE, 1, 1]))?.parse()?;
            match RunState::from_number(number) {
                Some(RunState::Succeeded) => return Ok(begun.elapsed()),
                Some(state) if !state.is_final() => std::thread::sleep(Duration::from_millis(200)),
                _ => bail!("the run ended as {number}: {}", fs::read_to_string(self.folder.join("log"))?),
            }
        }
    }

    /// A package of one file; its content does not matter, since nothing is compressed.
    fn package(&self, mib: u64) -> anyhow::Result<PackageFile> {
        let tree = self.folder.join("build");
        fs::create_dir_all(tree.join("DEBIAN"))?;
        fs::create_dir_all(tree.join("usr/share/big"))?;
        fs::File::create(tree.join("usr/share/big/file"))?.set_len(mib * 1024 * 1024)?;
        let fields =
            "Package: big\nVersion: 1\nArchitecture: all\nMaintainer: Bench <bench@example.org>\nDescription: bench\n";
        fs::write(tree.join("DEBIAN/control"), fields)?;
        let file = self.folder.join("big.deb");
        run(Command::new("dpkg-deb").args(["--root-owner-group", "-Znone", "--build"]).args([&tree, &file]))?;
        fs::remove_dir_all(&tree)?;
        let (sha256, size) = Digest::of_file(&file)?;
        fs::rename(&file, self.folder.join("www/artifacts").join(sha256.to_string()))?;
        Ok(PackageFile {
            name: "big".into(),
            version: "1".into(),
            arch: "all".into(),
            size,
            sha256,
            origin: Origin::Local,
        })
    }
}

fn sign_root(keys: &BTreeMap<Role, SigningKey>) -> Envelope {
    let root_key = |(role, key): (&Role, &SigningKey)| RootKey {
        holder: format!("{role:?}"),
        roles: vec![*role],
        audience: Audience::Production,
        scheme: Scheme::Ed25519,
        public: key.public(),
    };
    let root = Root {
        version: 1,
        expires: jiff::Timestamp::now() + jiff::SignedDuration::from_hours(1000),
        audience: Audience::Production,
        keys: keys.iter().map(root_key).collect(),
        thresholds: BTreeMap::new(),
    };
    Envelope::sign(root, &keys[&Role::Root])
}

/// The member: documents and artifacts by digest.
async fn serve(www: PathBuf) -> anyhow::Result<SocketAddr> {
    use axum::http::StatusCode;
    let answer = |extract::Path((kind, digest)): extract::Path<(String, String)>,
                  extract::State(www): extract::State<PathBuf>| async move {
        let allowed = ["documents", "artifacts"].contains(&kind.as_str()) && digest.parse::<Digest>().is_ok();
        match tokio::fs::read(www.join(kind).join(digest)).await {
            Ok(bytes) if allowed => Ok(bytes),
            _ => Err(StatusCode::NOT_FOUND),
        }
    };
    let router: Router = Router::new().route("/{kind}/{digest}", get(answer)).with_state(www);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move { axum::serve(listener, router).await });
    Ok(address)
}
