//! The demonstration: the whole path on real input, in eight stages, by the commands a user would type.
//!
//! It has a data folder of its own (`DATA/demo`), so that it never touches an installation's keys or orders. Baselines, package
//! files and caches in it stay for the next time; the pipeline's own state (keys, hosts, orders, audit) is made anew each time.

pub mod breaking_package;
mod lock;
mod stage;

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Stdio},
    time::Duration,
};

use anyhow::{Context as _, bail};
use serde_json::Value;

pub use self::stage::{Finished, Voice};
use self::{
    lock::DemoLock,
    stage::{Stages, seconds},
};
use crate::{
    deploy::{Credentials, Patience, Row, SnmpManager, push_and_run, row},
    lab::{
        agent::EnrolmentFiles,
        managed::{ManagedHost, Segment},
    },
    place::{Data, private_folder, runtime_folder},
};

/// The baseline that the demonstration builds, and the package whose update it proves.
const RECIPE: &str = "images/debian-12-web.toml";
const BASELINE: &str = "debian-12-web";
const PACKAGE: &str = "nginx";
/// The managed hosts.
const HOSTS: [&str; 2] = ["web-1", "web-2"];

/// What a user may choose.
#[derive(Debug, Clone)]
pub struct Options {
    /// Folder that holds `images` and `scenarios`.
    pub source: PathBuf,
    /// Where the server's API and console listen.
    pub listen: SocketAddr,
    /// What happens at the end.
    pub after: After,
    /// Who watches.
    pub voice: Voice,
}

/// What happens at the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum After {
    /// Server and hosts end.
    Stop,
    /// They stay until Ctrl-C.
    Keep,
}

/// What the demonstration showed.
#[derive(Debug, serde::Serialize)]
pub struct Shown {
    /// The eight stages.
    pub stages: Vec<Finished>,
    /// In all, milliseconds.
    pub ms: u64,
    /// Where everything is.
    pub data: PathBuf,
    /// The console.
    pub console: String,
    /// The report's folder.
    pub report: PathBuf,
}

/// Runs the demonstration in `data`.
pub fn run(data: &Data, options: &Options) -> anyhow::Result<Shown> {
    let dir = data.dir().join("demo");
    fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
    let _lock = DemoLock::take(&runtime_folder()?.join("demo.lock"), &dir)?;
    let data = Data::open(Some(dir))?;
    forget_pipeline(&data)?;
    let program = std::env::current_exe().context("find this program's own file")?;
    let mut demo = Demo {
        stages: Stages::new(program, data.dir().to_owned(), options.voice),
        data,
        options,
        server: None,
        hosts: Vec::new(),
        orders: Orders::default(),
    };
    demo.show()?;
    demo.finish()
}

/// Takes away keys, hosts, orders and audit of the demonstration before; what was costly to make stays.
fn forget_pipeline(data: &Data) -> anyhow::Result<()> {
    for name in ["server", "keys", "orders", "report", "hosts", "root.json"] {
        let path = data.dir().join(name);
        let gone = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        match gone {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("remove {}", path.display()));
            }
            _ => {}
        }
    }
    Ok(())
}

/// The demonstration while it runs.
struct Demo<'a> {
    stages: Stages,
    data: Data,
    options: &'a Options,
    server: Option<Child>,
    hosts: Vec<ManagedHost>,
    orders: Orders,
}

/// The two orders.
#[derive(Debug, Default)]
struct Orders {
    good: Drafted,
    bad: Drafted,
}

/// An order and where its files are.
#[derive(Debug, Default, Clone)]
struct Drafted {
    id: String,
    file: String,
    verdict: String,
    digest: String,
}

impl Drop for Demo<'_> {
    fn drop(&mut self) {
        if let Some(mut server) = self.server.take() {
            let pid = i32::try_from(server.id()).ok().and_then(rustix::process::Pid::from_raw);
            if let Some(pid) = pid {
                // It closes its doors in order; one that is gone already is as good.
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
            }
            let _ = server.wait();
        }
    }
}

impl Demo<'_> {
    fn show(&mut self) -> anyhow::Result<()> {
        let source = self.options.source.clone();
        let path = |name: &str| source.join(name).display().to_string();
        let (recipe, scenarios) = (path(RECIPE), path("scenarios"));
        let good = self.drafted("good", 1);
        let bad = self.drafted("bad", 2);
        let mut stages =
            std::mem::replace(&mut self.stages, Stages::new(PathBuf::new(), PathBuf::new(), self.options.voice));
        let shown = self.eight(&mut stages, &recipe, &scenarios, good, bad);
        self.stages = stages;
        shown
    }

    fn drafted(&self, name: &str, number: u32) -> Drafted {
        let dir = self.data.dir().join("orders").join(name);
        let file = |name: &str| dir.join(name).display().to_string();
        Drafted {
            id: format!("PO-{}-{number:04}", jiff::Timestamp::now().strftime("%Y")),
            file: file("order.toml"),
            verdict: file("verdict.json"),
            digest: String::new(),
        }
    }

    fn eight(
        &mut self,
        stages: &mut Stages,
        recipe: &str,
        scenarios: &str,
        good: Drafted,
        bad: Drafted,
    ) -> anyhow::Result<()> {
        self.orders = Orders { good, bad };
        stages.run("doctor: can this machine run the lab?", |stages| {
            stages.patchlab(&["doctor"], 0)?;
            Ok("it can".to_owned())
        })?;
        stages.run("baseline: a running system, frozen", |stages| {
            stages.patchlab(&["baseline", "build", recipe], 0)?;
            let shown = stages.ask(&["baseline", "list"])?;
            Ok(format!("{} baseline(s) in the store", shown.as_array().map_or(0, Vec::len)))
        })?;
        stages.run("order draft: what apt would really install", |stages| self.draft_good(stages, scenarios))?;
        stages.run("lab validate: the good order", |stages| {
            let good = &self.orders.good;
            let junit = Path::new(&good.file).with_file_name("junit.xml").display().to_string();
            stages.patchlab(
                &[
                    "lab",
                    "validate",
                    "--order",
                    &good.file,
                    "--scenarios",
                    scenarios,
                    "--json",
                    &good.verdict,
                    "--junit",
                    &junit,
                ],
                0,
            )?;
            reason(&good.verdict)
        })?;
        stages.run("lab validate: a bad order", |stages| self.reject_bad(stages, scenarios))?;
        stages.run("release, approve, activate: two managed hosts", |stages| self.deploy(stages))?;
        stages.run("rollback of one host, by an operator alone", |stages| self.roll_back(stages))?;
        stages.run("report and console", |stages| {
            let report = self.data.dir().join("report").display().to_string();
            stages.patchlab(&["report", "--out", &report], 0)?;
            Ok(format!("{report}; console at http://{}/", self.options.listen))
        })
    }

    fn draft_good(&mut self, stages: &Stages, scenarios: &str) -> anyhow::Result<String> {
        let good = self.orders.good.clone();
        stages.patchlab(
            &[
                "order",
                "draft",
                "--baseline",
                BASELINE,
                "--upgrade",
                PACKAGE,
                "--or-next",
                "--id",
                &good.id,
                "--scenarios",
                scenarios,
                "--out",
                &good.file,
            ],
            0,
        )?;
        Ok(format!("{} in {}", good.id, good.file))
    }

    fn reject_bad(&mut self, stages: &Stages, scenarios: &str) -> anyhow::Result<String> {
        let bad = self.orders.bad.clone();
        let dir = Path::new(&bad.file).parent().unwrap_or(Path::new("."));
        let package = breaking_package::build(PACKAGE, dir)?.display().to_string();
        stages.say(&format!("  a package that breaks {PACKAGE}'s configuration in its own postinst: {package}"));
        stages.patchlab(
            &[
                "order",
                "draft",
                "--baseline",
                BASELINE,
                "--upgrade",
                PACKAGE,
                "--or-next",
                "--package",
                &package,
                "--id",
                &bad.id,
                "--scenarios",
                scenarios,
                "--out",
                &bad.file,
            ],
            0,
        )?;
        stages.patchlab(
            &["lab", "validate", "--order", &bad.file, "--scenarios", scenarios, "--json", &bad.verdict],
            1,
        )?;
        reason(&bad.verdict)
    }

    fn key(&self, name: &str) -> String {
        self.data.dir().join("keys").join(format!("{name}.pem")).display().to_string()
    }

    fn deploy(&mut self, stages: &Stages) -> anyhow::Result<String> {
        private_folder(&self.data.dir().join("keys"))?;
        private_folder(&self.data.dir().join("hosts"))?;
        for role in ["root", "drafter", "releaser", "approver", "operator"] {
            let out = self.key(role);
            stages.patchlab(&["key", "generate", "--role", role, "--out", &out], 0)?;
        }
        let [root, drafter, releaser, approver, operator] =
            ["root", "drafter", "releaser", "approver", "operator"].map(|role| self.key(role));
        stages.patchlab(
            &[
                "root",
                "init",
                "--key",
                &root,
                "--drafter-key",
                &drafter,
                "--release-key",
                &releaser,
                "--approver-key",
                &approver,
                "--operator-key",
                &operator,
            ],
            0,
        )?;
        for (number, host) in HOSTS.iter().enumerate() {
            let segment = Segment::new(u8::try_from(number)?);
            let managed = ManagedHost::boot(&self.data, host, segment, BASELINE)?;
            stages.say(&format!("  {host}: a machine of its own, ready in {} ms", managed.ready_ms));
            self.hosts.push(managed);
        }
        self.start_server(stages, &releaser)?;
        let member = Segment::new(0).server().to_string();
        for (number, host) in HOSTS.iter().enumerate() {
            let address = Segment::new(u8::try_from(number)?).agent().to_string();
            let out = self.data.dir().join("hosts").join(host);
            let out_text = out.display().to_string();
            stages.patchlab(
                &[
                    "host",
                    "enroll",
                    host,
                    "--address",
                    &address,
                    "--site",
                    "demo",
                    "--member",
                    &member,
                    "--listen",
                    "0.0.0.0:161",
                    "--out",
                    &out_text,
                ],
                0,
            )?;
            let files = EnrolmentFiles::read(&out).with_context(|| format!("read {}", out.display()))?;
            self.hosts.get_mut(number).context("the host was not booted")?.enrol(files)?;
        }
        let (good, bad) = (self.orders.good.clone(), self.orders.bad.clone());
        stages.patchlab(&["order", "submit", &good.file, "--key", &drafter, "--verdict", &good.verdict], 0)?;
        stages.patchlab(&["order", "release", &good.id], 0)?;
        stages.patchlab(&["order", "approve", &good.id, "--key", &approver, "--hosts", "2", "--name", "demo"], 0)?;
        stages.patchlab(&["order", "activate", &good.id, "--host", HOSTS[0], "--host", HOSTS[1], "--wait"], 0)?;
        stages.say("  the bad order: the gate says no, and so does a host when it is told anyway");
        stages.patchlab(&["order", "submit", &bad.file, "--key", &drafter, "--verdict", &bad.verdict], 0)?;
        stages.patchlab(&["order", "release", &bad.id], 5)?;
        self.orders.bad.digest = field(&stages.ask(&["order", "show", &bad.id])?, "/order/digest")?;
        let refusal = self.push_past_the_gate()?;
        stages.say(&format!("  {} refuses it: {refusal}", HOSTS[1]));
        Ok(format!(
            "{} on {}; the bad order was refused by the gate and by the host ({refusal})",
            good.id,
            HOSTS.join(" and ")
        ))
    }

    fn start_server(&mut self, stages: &Stages, release_key: &str) -> anyhow::Result<()> {
        let member = Segment::new(0).server();
        let log = self.data.dir().join("server.log");
        let (payload, informs) = (format!("{member}:8471"), format!("{member}:8472"));
        let listen = self.options.listen.to_string();
        let arguments =
            ["serve", "--listen", &listen, "--payload", &payload, "--informs", &informs, "--release-key", release_key];
        stages.say(&format!("  $ patchlab {} &", arguments.join(" ")));
        let output = fs::File::create(&log).with_context(|| format!("create {}", log.display()))?;
        let mut command = stages.command();
        command.args(arguments).stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        let mut server = command.spawn().context("start the server")?;
        let begun = std::time::Instant::now();
        while stages.ask(&["host", "list"]).is_err() {
            if let Some(status) = server.try_wait()? {
                bail!("the server ended with {status}; see {}", log.display());
            }
            if begun.elapsed() > Duration::from_secs(30) {
                let _ = server.kill();
                bail!("the server did not answer within 30 s; see {}", log.display());
            }
        }
        self.server = Some(server);
        Ok(())
    }

    /// Tells the second host by SNMP, with its valid credentials, to carry out the bad order, which has no release: what somebody
    /// could do who holds the server's SNMP credentials and nothing else.
    fn push_past_the_gate(&self) -> anyhow::Result<String> {
        let host = HOSTS[1];
        let credentials = Credentials::read(&self.data.credentials(host))?;
        let enrolled = fs::read_to_string(self.data.dir().join("hosts").join(host).join("agent.toml"))?;
        let enrolment: patchlab_protocol::enrolment::Enrolment = toml::from_str(&enrolled)?;
        let engine = enrolment.engine_id.context("the host's engine id stands in its enrolment")?;
        let order = self.orders.bad.digest.parse()?;
        let address = Segment::new(1).agent().into();
        let member = Segment::new(0).server();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let manager = SnmpManager::new(host, address, &engine, &credentials.deployer, Patience::default()).await?;
            let row = Row {
                index: 4_000_000,
                order,
                release: None,
                approval: None,
                activation: None,
                uri: format!("http://{member}:8471"),
                lifetime: Duration::from_secs(120),
            };
            let report = push_and_run(&manager, &row, 1, &mut row::Unobserved).await?;
            match report.refusal {
                Some(refusal) => Ok(refusal.to_string()),
                None => bail!("the host did not refuse an order without a release: {:?}", report.state),
            }
        })
    }

    fn roll_back(&self, stages: &Stages) -> anyhow::Result<String> {
        let (good, operator) = (&self.orders.good.id, self.key("operator"));
        stages.patchlab(&["order", "rollback", good, "--host", HOSTS[0], "--key", &operator, "--wait"], 0)?;
        stages.patchlab(&["order", "show", good], 0)?;
        stages.patchlab(&["audit", "verify"], 0)?;
        Ok(format!("{} is back on its own versions, {} keeps the new ones", HOSTS[0], HOSTS[1]))
    }

    /// Says what was shown, and waits when that was asked for.
    fn finish(mut self) -> anyhow::Result<Shown> {
        let stages = std::mem::replace(&mut self.stages, Stages::new(PathBuf::new(), PathBuf::new(), Voice::Quiet));
        let (finished, took) = stages.finish();
        let shown = Shown {
            stages: finished,
            ms: u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
            data: self.data.dir().to_owned(),
            console: format!("http://{}/", self.options.listen),
            report: self.data.dir().join("report"),
        };
        if self.options.voice == Voice::Aloud {
            println!();
            for stage in &shown.stages {
                println!("  {}  {:<48} {:>8}", stage.number, stage.title, seconds(Duration::from_millis(stage.ms)));
            }
            println!("     {:<48} {:>8}", "in all", seconds(took));
            println!("\n  report   {}", shown.report.display());
            println!(
                "  console  {}{}",
                shown.console,
                match self.options.after {
                    After::Keep => "  (until Ctrl-C)",
                    After::Stop => "  (while the server runs: --keep leaves it on)",
                }
            );
        }
        if self.options.after == After::Keep {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(tokio::signal::ctrl_c())?;
        }
        Ok(shown)
    }
}

/// The reason in a verdict's file.
fn reason(path: &str) -> anyhow::Result<String> {
    let text = fs::read_to_string(path).with_context(|| format!("read {path}"))?;
    let verdict: Value = serde_json::from_str(&text)?;
    Ok(format!("{}: {}", field(&verdict, "/verdict")?, field(&verdict, "/reason")?))
}

fn field(value: &Value, pointer: &str) -> anyhow::Result<String> {
    let found = value.pointer(pointer).and_then(Value::as_str);
    Ok(found.with_context(|| format!("no {pointer} in {value}"))?.to_owned())
}
