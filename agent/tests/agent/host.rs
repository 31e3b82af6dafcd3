//! A host: a system below a root of its own, an enrolled agent on it, and the member that serves documents and files.

use std::{
    fs,
    net::SocketAddr,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    Router, extract,
    http::{HeaderMap, StatusCode},
    routing::get,
};
use patchlab_agent::host::class;
use patchlab_protocol::{
    Audience, Digest, Envelope, PackageSystem, PublicKey, SigningKey,
    description::Tags,
    document::{Class, Origin, PackageFile, Replaced, RunResult, ShippedFile},
    enrolment::{
        Booting, Enrolment, Fetching, InformSink, Packages, PendingReboot, PinnedRoot, Scripts, SnmpUser, Uncovered,
        WithoutFallback,
    },
    mib,
};
use tokio::sync::watch;

use super::{
    database::{self, Package},
    manager::Manager,
    member::{Asked, Log, first_byte, of_kind},
    orders::Authority,
};

pub const NAME: &str = "host-1";

/// What is missing on this machine for these tests, said aloud.
pub fn missing() -> bool {
    missing_for(PackageSystem::Dpkg)
}

/// As [`missing`], for hosts of one package system.
pub fn missing_for(system: PackageSystem) -> bool {
    let tools = ["snmpget", "snmpset", "snmpwalk"].into_iter().chain(database::programs(system).iter().copied());
    let absent: Vec<&str> = tools.filter(|tool| Command::new(tool).arg("--version").output().is_err()).collect();
    let root = rustix::process::geteuid().is_root();
    if absent.is_empty() && root {
        return false;
    }
    eprintln!("SKIPPED: needs root ({root}) and {absent:?}");
    true
}

pub struct Host {
    pub folder: tempfile::TempDir,
    pub authority: Authority,
    pub class: Class,
    pub public: PublicKey,
    pub uri: String,
    pub system: PackageSystem,
    agent: Option<Child>,
    enrolment: Enrolment,
    held: Arc<Held>,
    asked: Log,
    _server: tokio::runtime::Runtime,
}

fn user(name: &str) -> SnmpUser {
    SnmpUser {
        name: name.into(),
        auth: format!("{name}-auth-passphrase"),
        privacy: format!("{name}-privacy-passphrase"),
    }
}

impl Host {
    /// A host with nothing installed, its agent running.
    pub fn new() -> Self {
        Self::with_inform(None)
    }

    /// As [`Self::new`], with this package system.
    pub fn of(system: PackageSystem) -> Self {
        Self::with(system, None, None, Fetching::default())
    }

    pub fn with_inform(inform: Option<InformSink>) -> Self {
        Self::with(PackageSystem::Dpkg, inform, None, Fetching::default())
    }

    /// A host whose ledger is not on the disk with the rest.
    pub fn with_ledger_elsewhere() -> Self {
        Self::with(PackageSystem::Dpkg, None, Some("../ledger"), Fetching::default())
    }

    /// A host that fetches in this way.
    pub fn fetching(fetch: Fetching) -> Self {
        Self::with(PackageSystem::Dpkg, None, None, fetch)
    }

    fn with(system: PackageSystem, inform: Option<InformSink>, ledger_dir: Option<&str>, fetch: Fetching) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        for name in ["root", "www/documents", "www/artifacts", "id", "hooks"] {
            fs::create_dir_all(path(name)).unwrap();
        }
        database::make(system, &path("root"));
        let authority = Authority::new();
        let key = SigningKey::generate().unwrap();
        key.write_new(&path("id/host.pem")).unwrap();
        fs::write(path("id/root.json"), authority.root.to_bytes()).unwrap();
        let enrolment = Enrolment {
            host: NAME.into(),
            listen: "127.0.0.1:0".parse().unwrap(),
            state_dir: path("state"),
            ledger_dir: ledger_dir.map(Into::into),
            hooks: Some(path("hooks")),
            engine_id: None,
            root: PinnedRoot { path: "root.json".into(), digest: authority.root.digest() },
            host_key: "host.pem".into(),
            monitor: user("monitor"),
            deployer: user("deployer"),
            key_administrator: None,
            inform,
            packages: Packages { root: path("root"), system: None },
            fetch,
            boot: Booting::default(),
            scripts: Scripts::default(),
            tags: Tags::default(),
        };
        let held = Arc::new(Held { state: watch::Sender::new(Gate::Open) });
        let asked = Log::default();
        let server = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let address = server.block_on(serve(path("www"), Arc::clone(&held), Arc::clone(&asked)));
        let mut host = Self {
            class: class(&path("root")).unwrap(),
            authority,
            public: key.public(),
            system,
            uri: format!("http://{address}/"),
            agent: None,
            enrolment,
            held,
            asked,
            _server: server,
            folder,
        };
        host.configure();
        host.start();
        host
    }

    /// From now on the member answers no request for an artifact until the gate is opened.
    pub fn hold_artifacts(&self) -> Arc<Held> {
        self.held.state.send_replace(Gate::Closed);
        Arc::clone(&self.held)
    }

    /// What the member was asked for, of one kind: from which byte on each time.
    pub fn asked(&self, kind: &str) -> Vec<usize> {
        of_kind(&self.asked, kind)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// From its next start on, the host takes a kernel that was proven on what it does not boot.
    pub fn go_on_uncovered(&mut self) {
        self.enrolment.boot.uncovered = Uncovered::GoOn;
        self.configure();
    }

    /// From its next start on, the host reboots into a kernel that it could not come back from.
    pub fn go_on_without_fallback(&mut self) {
        self.enrolment.boot.without_fallback = WithoutFallback::GoOn;
        self.configure();
    }

    /// From its next start on, the host takes along with an order's reboot what waits for one already.
    pub fn take_reboots_along(&mut self) {
        self.enrolment.boot.pending_reboot = PendingReboot::TakeAlong;
        self.configure();
    }

    /// A host whose keys may change.
    pub fn with_key_administrator() -> Self {
        let mut host = Self::new();
        host.enrolment.key_administrator = Some(user("keys"));
        host.anew()
    }

    /// A host that takes scripts.
    pub fn taking_scripts() -> Self {
        let mut host = Self::new();
        host.enrolment.scripts.allow = true;
        host.anew()
    }

    /// A host without a package system, which takes scripts.
    pub fn without_packages() -> Self {
        let mut host = Self::taking_scripts();
        host.kill();
        fs::remove_dir_all(host.path("root/var/lib/dpkg")).unwrap();
        fs::write(host.path("root/etc/os-release"), "ID=alpine\nVERSION_ID=3.20.1\n").unwrap();
        host.class = class(&host.path("root")).unwrap();
        fs::remove_dir_all(host.path("state")).unwrap();
        host.anew()
    }

    /// A host that takes scripts, of the lab's.
    pub fn of_lab() -> Self {
        let mut host = Self::taking_scripts();
        host.kill();
        host.authority = Authority::of(Audience::Lab);
        host.enrolment.root.digest = host.authority.root.digest();
        fs::write(host.path("id/root.json"), host.authority.root.to_bytes()).unwrap();
        fs::remove_dir_all(host.path("state")).unwrap();
        host.anew()
    }

    /// A host whose agent listens there.
    pub fn listening(listen: &str) -> Self {
        let mut host = Self::new();
        host.enrolment.listen = listen.parse().unwrap();
        host.anew()
    }

    fn anew(mut self) -> Self {
        self.kill();
        self.configure();
        self.start();
        self
    }

    /// From its next start on, its configuration says this of it.
    pub fn tag(&mut self, tags: Tags) {
        self.enrolment.tags = tags;
        self.configure();
    }

    /// As if it were enrolled anew: from its next start on, the deployer has this passphrase.
    pub fn enrol_deployer_with(&mut self, auth: &str) {
        self.enrolment.deployer.auth = auth.into();
        self.configure();
    }

    fn configure(&self) {
        let file = self.path("id/agent.toml");
        fs::write(&file, toml::to_string(&self.enrolment).unwrap()).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    }

    pub fn agent(&self) -> Command {
        Command::new(env!("CARGO_BIN_EXE_patchlab-agent"))
    }

    /// Starts the agent and waits until it says where it answers.
    pub fn start(&mut self) {
        self.spawn();
        self.await_start();
    }

    /// Waits until it says where it answers.
    pub fn await_start(&mut self) {
        let (address, deadline) = (self.path("state/address"), Instant::now() + Duration::from_secs(60));
        while !address.exists() {
            if self.agent.as_mut().unwrap().try_wait().unwrap().is_some() {
                // Killed between fork and exec of a program, one leaves its lock to that until it runs: systemd starts it again.
                let log = self.log();
                let in_use = log.lines().last().is_some_and(|line| line.contains("is in use by another agent"));
                assert!(in_use, "the agent ended:\n{log}");
                self.spawn();
            }
            assert!(Instant::now() < deadline, "the agent does not start:\n{}", self.log());
            std::thread::yield_now();
        }
    }

    /// Starts the agent, which may have something to settle before it answers.
    pub fn spawn(&mut self) {
        let _ = fs::remove_file(self.path("state/address"));
        let log = fs::OpenOptions::new().create(true).append(true).open(self.path("log")).unwrap();
        let mut command = self.agent();
        command.args(["run", "--config"]).arg(self.path("id/agent.toml")).stderr(Stdio::from(log));
        self.agent = Some(command.spawn().unwrap());
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    pub fn pid(&self) -> u32 {
        self.agent.as_ref().unwrap().id()
    }

    /// Whether it ends by itself in this time.
    pub fn ended_within(&mut self, longest: Duration) -> bool {
        let deadline = Instant::now() + longest;
        while self.agent.as_mut().unwrap().try_wait().unwrap().is_none() {
            if Instant::now() > deadline {
                return false;
            }
            std::thread::yield_now();
        }
        self.agent = None;
        true
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        if let Some(mut agent) = self.agent.take() {
            agent.kill().unwrap();
            agent.wait().unwrap();
        }
    }

    pub fn manager(&self, user: &SnmpUser) -> Manager {
        let address: SocketAddr = fs::read_to_string(self.path("state/address")).unwrap().trim().parse().unwrap();
        Manager { address, user: user.clone() }
    }

    pub fn deployer(&self) -> Manager {
        self.manager(&self.enrolment.deployer)
    }

    pub fn key_administrator(&self) -> Manager {
        self.manager(self.enrolment.key_administrator.as_ref().unwrap())
    }

    pub fn monitor(&self) -> Manager {
        self.manager(&self.enrolment.monitor)
    }

    /// Puts a document where the agent fetches it.
    pub fn publish(&self, envelope: &Envelope) -> Digest {
        self.publish_as(envelope.digest(), &envelope.to_bytes())
    }

    pub fn publish_as(&self, digest: Digest, bytes: &[u8]) -> Digest {
        fs::write(self.path("www/documents").join(digest.to_string()), bytes).unwrap();
        digest
    }

    /// Builds a package and puts it where the agent fetches it.
    pub fn package(&self, name: &str, version: &str, control: &str, postinst: Option<&str>) -> PackageFile {
        let scripts: Vec<(&str, String)> = postinst.map(|script| ("postinst", script.to_owned())).into_iter().collect();
        self.package_with(name, version, control, &scripts)
    }

    /// As [`Self::package`], with maintainer scripts by their names.
    pub fn package_with(&self, name: &str, version: &str, fields: &str, scripts: &[(&str, String)]) -> PackageFile {
        let place = format!("usr/share/{name}/version");
        self.built(&Package { name, version, fields, scripts, files: &[(&place, version)] })
    }

    /// As [`Self::package`], in all its parts.
    pub fn built(&self, package: &Package<'_>) -> PackageFile {
        let folder = self.path("build");
        fs::create_dir_all(&folder).unwrap();
        let file = database::build(self.system, &folder, package);
        let (sha256, size) = Digest::of_file(&file).unwrap();
        fs::rename(&file, self.artifact(&sha256)).unwrap();
        fs::remove_dir_all(&folder).unwrap();
        PackageFile {
            name: package.name.into(),
            version: package.version.into(),
            arch: database::every_arch(self.system).into(),
            size,
            sha256,
            origin: Origin::Local,
        }
    }

    /// Puts a file that an order ships where the agent fetches it.
    pub fn shipped(&self, name: &str, text: &str) -> ShippedFile {
        let sha256 = Digest::of(text);
        fs::write(self.artifact(&sha256), text).unwrap();
        ShippedFile { name: name.parse().unwrap(), size: text.len() as u64, sha256 }
    }

    /// Where the member has a file.
    pub fn artifact(&self, digest: &Digest) -> PathBuf {
        self.path("www/artifacts").join(digest.to_string())
    }

    /// Installs a package behind the agent's back, as it was before it came.
    pub fn installed(&self, file: &PackageFile) -> Replaced {
        database::install(self.system, &self.path("root"), &self.artifact(&file.sha256));
        let PackageFile { name, arch, version, .. } = file.clone();
        Replaced { name, arch, version, file: Some(file.clone()) }
    }

    /// What the package system finds wrong with its own database; nothing when all is well.
    pub fn audit(&self) -> String {
        database::audit(self.system, &self.path("root"))
    }

    /// `installed NAME VERSION` of everything installed.
    pub fn packages(&self) -> String {
        database::list(self.system, &self.path("root"))
    }

    /// The signed result of a run, its signature verified.
    pub fn result(&self, row: u32, run: u32) -> (RunResult, Digest) {
        let manager = self.monitor();
        let statement = manager.octets(&manager.run_cell(mib::run::RESULT, row, run));
        let signature = manager.octets(&manager.run_cell(mib::run::RESULT_SIGNATURE, row, run));
        assert!(self.public.verifies(&RunResult::signed_bytes(&statement), &signature), "signature of run {row}.{run}");
        (serde_json::from_slice(&statement).unwrap(), Digest::of(&statement))
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            eprintln!("the agent's log:\n{}", self.log());
        }
    }
}

pub fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Holds artifacts back.
pub struct Held {
    state: watch::Sender<Gate>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Gate {
    Open,
    Closed,
    Asked,
}

impl Held {
    pub fn wait_until_asked(&self) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while *self.state.borrow() != Gate::Asked {
            assert!(Instant::now() < deadline, "no artifact is asked for");
            std::thread::yield_now();
        }
    }

    pub fn open(&self) {
        self.state.send_replace(Gate::Open);
    }

    async fn pass(&self) {
        let mut state = self.state.subscribe();
        self.state.send_if_modified(|state| {
            let closed = *state == Gate::Closed;
            if closed {
                *state = Gate::Asked;
            }
            closed
        });
        let _ = state.wait_for(|state| *state == Gate::Open).await;
    }
}

/// The member: documents and artifacts by digest. It knows no ranges.
async fn serve(www: PathBuf, held: Arc<Held>, asked: Log) -> SocketAddr {
    let answer = |extract::Path((kind, digest)): extract::Path<(String, String)>,
                  extract::State((www, held, asked)): extract::State<(PathBuf, Arc<Held>, Log)>,
                  headers: HeaderMap| async move {
        let from = first_byte(headers.get("range").map(|range| range.to_str().unwrap()));
        asked.lock().unwrap().push(Asked { kind: kind.clone(), from });
        if kind == "artifacts" {
            held.pass().await;
        }
        let allowed = ["documents", "artifacts"].contains(&kind.as_str()) && digest.parse::<Digest>().is_ok();
        match fs::read(www.join(kind).join(digest)) {
            Ok(bytes) if allowed => Ok(bytes),
            _ => Err(StatusCode::NOT_FOUND),
        }
    };
    let router: Router = Router::new().route("/{kind}/{digest}", get(answer)).with_state((www, held, asked));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    address
}

/// Copies a shell into the root, so that maintainer scripts can run there.
pub fn give_shell(root: &Path) {
    let listed = Command::new("ldd").arg("/bin/sh").output().unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    let libraries = listed.split_whitespace().filter(|word| word.starts_with('/'));
    for file in libraries.chain(["/bin/sh"]) {
        let to = root.join(file.trim_start_matches('/'));
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::copy(file, to).unwrap();
    }
}
