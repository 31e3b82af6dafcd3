//! The demonstration: the whole path on real input, in eight stages, by the commands a user would type.
//!
//! It has a data folder of its own (`DATA/demo`), so that it never touches an installation's keys or orders. Baselines, package
//! files and caches in it stay for the next time; the pipeline's own state (keys, hosts, orders, audit) is made anew each time.

pub mod breaking_package;
mod lock;
mod server;
mod stage;
mod summary;

use std::{
    fs,
    io::{self, Write as _},
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, bail};
use patchlab_lab::report::Report;
use patchlab_protocol::Digest;
use serde_json::Value;

pub use self::stage::{Finished, Voice};
use self::{lock::DemoLock, server::Server, stage::Stages};
use crate::{
    deploy::{Credentials, Patience, Row, SnmpManager, push_and_run, row},
    lab::{
        agent::EnrolmentFiles,
        managed::{ManagedHost, Segment},
    },
    legible::millis,
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
    let mut stages = Stages::new(program, data.dir().to_owned(), options.voice);
    let mut demo = Demo::new(data, options);
    demo.show(&mut stages)?;
    demo.finish(stages)
}

/// Takes away keys, hosts, orders and audit of the demonstration before; what was costly to make stays.
fn forget_pipeline(data: &Data) -> anyhow::Result<()> {
    for name in ["server", "keys", "orders", "report", "hosts", "root.json"] {
        let path = data.dir().join(name);
        let gone = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        match gone {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("remove {}", path.display()));
            }
            _ => {}
        }
    }
    Ok(())
}

/// The demonstration while it runs.
struct Demo<'a> {
    data: Data,
    options: &'a Options,
    /// Folder of the scenarios.
    scenarios: String,
    good: Drafted,
    bad: Drafted,
    server: Option<Server>,
    hosts: Vec<ManagedHost>,
}

/// An order and where its files are.
#[derive(Debug)]
struct Drafted {
    id: String,
    file: String,
    verdict: String,
}

impl Drafted {
    fn new(data: &Data, name: &str, number: u32) -> Self {
        let dir = data.dir().join("orders").join(name);
        let file = |name: &str| dir.join(name).display().to_string();
        Self {
            id: format!("PO-{}-{number:04}", jiff::Timestamp::now().strftime("%Y")),
            file: file("order.toml"),
            verdict: file("verdict.json"),
        }
    }
}

impl<'a> Demo<'a> {
    fn new(data: Data, options: &'a Options) -> Self {
        Self {
            scenarios: options.source.join("scenarios").display().to_string(),
            good: Drafted::new(&data, "good", 1),
            bad: Drafted::new(&data, "bad", 2),
            data,
            options,
            server: None,
            hosts: Vec::new(),
        }
    }

    /// The eight stages.
    fn show(&mut self, stages: &mut Stages) -> anyhow::Result<()> {
        stages.run("doctor: can this machine run the lab?", |stages| {
            stages.patchlab(&["doctor"], 0)?;
            Ok("it can".to_owned())
        })?;
        stages.run("baseline: a running system, frozen", |stages| self.build(stages))?;
        stages.run("order draft: what apt would really install", |stages| {
            self.draft(stages, &self.good, &[])?;
            Ok(format!("{} in {}", self.good.id, self.good.file))
        })?;
        stages.run("lab validate: the good order", |stages| {
            let junit = Path::new(&self.good.file).with_file_name("junit.xml").display().to_string();
            self.validate(stages, &self.good, &["--junit", &junit], 0)
        })?;
        stages.run("lab validate: a bad order", |stages| self.reject_bad(stages))?;
        stages.run("release, approve, activate: two managed hosts", |stages| self.deploy(stages))?;
        stages.run("rollback of one host, by an operator alone", |stages| self.roll_back(stages))?;
        stages.run("report and console", |stages| {
            let report = self.report().display().to_string();
            stages.patchlab(&["report", "--out", &report], 0)?;
            Ok(format!("{report}; console at {}", self.console()))
        })
    }

    fn build(&self, stages: &Stages) -> anyhow::Result<String> {
        let recipe = self.options.source.join(RECIPE).display().to_string();
        stages.patchlab(&["baseline", "build", &recipe], 0)?;
        let stored = stages.ask(&["baseline", "list"])?;
        Ok(format!("{} in the store", counted(stored.as_array().map_or(0, Vec::len), "baseline")))
    }

    /// Drafts an order for the update of [`PACKAGE`], with what else is asked for in `more`.
    fn draft(&self, stages: &Stages, order: &Drafted, more: &[&str]) -> anyhow::Result<()> {
        let (Drafted { id, file, .. }, scenarios) = (order, &self.scenarios);
        let asked = ["order", "draft", "--baseline", BASELINE, "--upgrade", PACKAGE, "--or-next", "--id", id];
        stages.patchlab(&[&asked, more, &["--scenarios", scenarios, "--out", file]].concat(), 0)
    }

    /// Validates an order and demands the exit code `expected`. Says the verdict.
    fn validate(&self, stages: &Stages, order: &Drafted, more: &[&str], expected: i32) -> anyhow::Result<String> {
        let (Drafted { file, verdict, .. }, scenarios) = (order, &self.scenarios);
        let asked = ["lab", "validate", "--order", file, "--scenarios", scenarios, "--json", verdict];
        stages.patchlab(&[&asked, more].concat(), expected)?;
        let json = fs::read(verdict).with_context(|| format!("read {verdict}"))?;
        let report = Report::from_json(&json).with_context(|| verdict.clone())?;
        Ok(format!("{}: {}", report.verdict, report.reason))
    }

    fn reject_bad(&self, stages: &Stages) -> anyhow::Result<String> {
        let dir = Path::new(&self.bad.file).parent().unwrap_or(Path::new("."));
        let package = breaking_package::build(PACKAGE, dir)?.display().to_string();
        stages.say(&format!("  a package that breaks {PACKAGE}'s configuration in its own postinst: {package}"));
        self.draft(stages, &self.bad, &["--package", &package])?;
        // Which of its packages it is, two more validations would find; the summary says how.
        self.validate(stages, &self.bad, &["--bisect", "never"], 1)
    }

    fn key(&self, name: &str) -> String {
        self.data.dir().join("keys").join(format!("{name}.pem")).display().to_string()
    }

    fn deploy(&mut self, stages: &Stages) -> anyhow::Result<String> {
        self.make_keys(stages)?;
        for (number, host) in HOSTS.iter().enumerate() {
            let segment = Segment::new(u8::try_from(number)?);
            let managed = ManagedHost::boot(&self.data, host, segment, BASELINE)?;
            stages.say(&format!("  {host}: a machine of its own, ready in {}", millis(managed.ready_ms)));
            self.hosts.push(managed);
        }
        self.server = Some(self.start_server(stages)?);
        for (number, host) in HOSTS.iter().enumerate() {
            self.enrol(stages, number, host)?;
        }
        self.ship_good(stages)?;
        let refusal = self.refuse_bad(stages)?;
        let both = HOSTS.join(" and ");
        Ok(format!("{} on {both}; the bad order was refused by the gate and by the host ({refusal})", self.good.id))
    }

    fn make_keys(&self, stages: &Stages) -> anyhow::Result<()> {
        private_folder(&self.data.dir().join("keys"))?;
        for role in ["root", "drafter", "releaser", "approver", "operator"] {
            stages.patchlab(&["key", "generate", "--role", role, "--out", &self.key(role)], 0)?;
        }
        let [root, drafter, releaser, approver, operator] =
            ["root", "drafter", "releaser", "approver", "operator"].map(|role| self.key(role));
        let mut arguments = vec!["root", "init", "--key", &root, "--drafter-key", &drafter, "--release-key", &releaser];
        arguments.extend(["--approver-key", &approver, "--operator-key", &operator]);
        stages.patchlab(&arguments, 0)
    }

    fn start_server(&self, stages: &Stages) -> anyhow::Result<Server> {
        let member = Segment::new(0).server();
        let [payload, informs, enrolment] = [8471, 8472, 8473].map(|port| format!("{member}:{port}"));
        let (listen, key) = (self.options.listen.to_string(), self.key("releaser"));
        let mut arguments = vec!["serve", "--listen", &listen, "--payload", &payload, "--informs", &informs];
        arguments.extend(["--enrolment", &enrolment, "--release-key", &key]);
        stages.say(&format!("  $ patchlab {} &", arguments.join(" ")));
        let mut command = stages.command();
        command.args(arguments);
        Server::start(command, &self.data.dir().join("server.log"))
    }

    fn enrol(&mut self, stages: &Stages, number: usize, host: &str) -> anyhow::Result<()> {
        let folder = self.data.dir().join("hosts");
        private_folder(&folder)?;
        let out = folder.join(host);
        let address = Segment::new(u8::try_from(number)?).agent().to_string();
        let (member, out_text) = (Segment::new(0).server().to_string(), out.display().to_string());
        let mut arguments = vec!["host", "enroll", host, "--address", &address, "--site", "demo", "--member", &member];
        arguments.extend(["--listen", "0.0.0.0:161", "--out", &out_text]);
        stages.patchlab(&arguments, 0)?;
        let files = EnrolmentFiles::read(&out).with_context(|| format!("read {}", out.display()))?;
        self.hosts.get_mut(number).context("the host was not booted")?.enrol(files)
    }

    fn ship_good(&self, stages: &Stages) -> anyhow::Result<()> {
        let Drafted { id, file, verdict } = &self.good;
        let (drafter, approver) = (self.key("drafter"), self.key("approver"));
        stages.patchlab(&["order", "submit", file, "--key", &drafter, "--verdict", verdict], 0)?;
        stages.patchlab(&["order", "release", id], 0)?;
        stages.patchlab(&["order", "approve", id, "--key", &approver, "--hosts", "2", "--name", "demo"], 0)?;
        stages.patchlab(&["order", "activate", id, "--host", HOSTS[0], "--host", HOSTS[1], "--wait"], 0)
    }

    /// Shows that nobody takes the bad order; says the host's refusal.
    fn refuse_bad(&self, stages: &Stages) -> anyhow::Result<String> {
        let Drafted { id, file, verdict } = &self.bad;
        stages.say("  the bad order: the gate says no, and so does a host when it is told anyway");
        stages.patchlab(&["order", "submit", file, "--key", &self.key("drafter"), "--verdict", verdict], 0)?;
        stages.patchlab(&["order", "release", id], 5)?;
        let shown = stages.ask(&["order", "show", id])?;
        let digest = shown.pointer("/order/digest").and_then(Value::as_str);
        let digest = digest.with_context(|| format!("no digest of order {id} in {shown}"))?;
        let refusal = self.push_past_the_gate(digest.parse()?)?;
        stages.say(&format!("  {} refuses it: {refusal}", HOSTS[1]));
        Ok(refusal)
    }

    /// Tells the second host by SNMP, with its valid credentials, to carry out the bad order, which has no release: what somebody
    /// could do who holds the server's SNMP credentials and nothing else.
    fn push_past_the_gate(&self, order: Digest) -> anyhow::Result<String> {
        let host = HOSTS[1];
        let credentials = Credentials::read(&self.data.credentials(host))?;
        let enrolled = fs::read_to_string(self.data.dir().join("hosts").join(host).join("agent.toml"))?;
        let enrolment: patchlab_protocol::enrolment::Enrolment = toml::from_str(&enrolled)?;
        let engine = enrolment.engine_id.context("the host's engine id stands in its enrolment")?;
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
                window: None,
                preparation: None,
            };
            let report = push_and_run(&manager, &row, 1, &mut row::Unobserved).await?;
            match report.refusal {
                Some(refusal) => Ok(refusal.to_string()),
                None => bail!("the host did not refuse an order without a release: {:?}", report.state),
            }
        })
    }

    fn roll_back(&self, stages: &Stages) -> anyhow::Result<String> {
        let (good, operator) = (&self.good.id, self.key("operator"));
        stages.patchlab(&["order", "rollback", good, "--host", HOSTS[0], "--key", &operator, "--wait"], 0)?;
        stages.patchlab(&["order", "show", good], 0)?;
        stages.patchlab(&["audit", "verify"], 0)?;
        Ok(format!("{} is back on its own versions, {} keeps the new ones", HOSTS[0], HOSTS[1]))
    }

    fn report(&self) -> PathBuf {
        self.data.dir().join("report")
    }

    /// Where the console is, or was.
    fn console(&self) -> String {
        self.server.as_ref().map_or_else(|| format!("http://{}/", self.options.listen), |on| on.console().to_owned())
    }

    /// Says what was shown, and waits when that was asked for.
    fn finish(self, stages: Stages) -> anyhow::Result<Shown> {
        let (finished, took) = stages.finish();
        let shown = Shown {
            stages: finished,
            ms: u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
            data: self.data.dir().to_owned(),
            console: self.console(),
            report: self.report(),
        };
        if self.options.voice == Voice::Aloud {
            print!("{}", summary::text(&shown, &self.options.source, self.options.after));
            io::stdout().flush()?;
        }
        if self.options.after == After::Keep {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(tokio::signal::ctrl_c())?;
        }
        Ok(shown)
    }
}

/// `1 baseline`, `2 baselines`.
fn counted(count: usize, what: &str) -> String {
    if count == 1 { format!("1 {what}") } else { format!("{count} {what}s") }
}
