//! `patchlab order`: a patch order on its way.

use std::{
    fs,
    io::Read as _,
    path::{Path, PathBuf},
    time::Duration,
};

use clap::{Args, Subcommand, ValueEnum};
use jiff::{Timestamp, ToSpan as _};
use patchlab_lab::{ArtifactStore, report::REPORT_BYTES};
use patchlab_protocol::{
    Digest, Envelope, SigningKey,
    document::{Action, Activation, Approval, Order, Release, RunState},
    limits,
};
use serde_json::json;

use super::{
    CliError, Client, Exit, Global, Output, client::segment, machine, preparation::preparation_table, revocation,
    waiver,
};
use crate::{
    api::{DeploymentStory, Taken},
    deploy::executor,
    legible,
    order::compile_file,
    pipeline::ActivationRequest,
    place::Data,
    report::{OrderStory, told},
    store::{Deployment, DeploymentState, Host, OrderRow, Run},
    trust::revocation::next,
    window::{self, Wanted, Window},
};

/// Patch orders.
#[derive(Debug, Subcommand)]
pub enum OrderCommand {
    /// Write the order that apt would carry out on a baseline, and fetch its files
    Draft(super::draft::Draft),
    /// Sign an order and hand it in
    Submit {
        /// The order, as drafted
        #[arg(value_name = "ORDER.toml")]
        file: PathBuf,
        /// The drafter's key
        #[arg(long, value_name = "FILE")]
        key: PathBuf,
        /// The lab's verdict on it
        #[arg(long, value_name = "FILE")]
        verdict: Option<PathBuf>,
    },
    /// Hand in the lab's verdict
    Verdict {
        /// Id or digest
        order: String,
        /// What `lab validate --json` wrote
        file: PathBuf,
    },
    /// List orders
    List,
    /// Show an order and all that came of it
    Show {
        /// Id or digest
        order: String,
    },
    /// Answer for one thing that the lab found against an order, with your own key: it is read here and never leaves
    Waive(waiver::Waive),
    /// Have the signer release an order that passed the lab, or whose every failure is waived
    Release {
        /// Id or digest
        order: String,
    },
    /// Say yes, with your own key: it is read here and never leaves
    Approve(Approve),
    /// Ask hosts what applying an order would be refused for, and whether its checks pass there; changes nothing
    Probe(super::preparation::Probe),
    /// Have hosts fetch and verify an order ahead, the way back too, and keep it
    Prefetch(super::preparation::Prefetch),
    /// Carry an order to hosts, at once or in a window
    #[command(after_help = ACTIVATE_EXAMPLES)]
    Activate {
        /// Id or digest
        order: String,
        /// Apply, or roll back
        #[arg(long, value_enum, default_value_t = ActionName::Apply)]
        action: ActionName,
        /// Where, and whether to wait
        #[command(flatten)]
        hosts: Hosts,
    },
    /// End runs of an order that have not begun to change their hosts
    Cancel(super::cancellation::Cancel),
    /// Make an order, or documents of it, count no more, with an operator's key: it is read here and never leaves
    Revoke(Revoke),
    /// Take an order back from hosts
    Rollback {
        /// Id or digest
        order: String,
        /// An operator's key: a rollback that needs nobody else
        #[arg(long, value_name = "FILE")]
        key: Option<PathBuf>,
        /// Where, and whether to wait
        #[command(flatten)]
        hosts: Hosts,
    },
}

/// A person's yes.
#[derive(Debug, Args)]
pub struct Approve {
    /// Id or digest
    order: String,
    /// Your approver's key
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// Most hosts that may get it
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    hosts: u32,
    /// Until when, RFC 3339; seven days from now unless given
    #[arg(long, value_name = "TIME")]
    not_after: Option<Timestamp>,
    /// Your name, for people
    #[arg(long, env = "USER", default_value = "approver")]
    name: String,
}

const ACTIVATE_EXAMPLES: &str = "Examples:
  patchlab order activate PO-2026-0001 --host web-1 --wait
  patchlab order activate PO-2026-0001 --host web-1 --host web-2 --not-before +2h --until +4h
  patchlab order activate PO-2026-0001 --host web-1 --not-before 2026-03-02T02:00:00+01:00

Hosts of a window are told at once: they fetch and verify ahead, and apply by themselves when it opens, all in that window, also when this
server is away then. patchlab order show says who waits; patchlab order cancel ends a wait.";

const REVOKE_EXAMPLES: &str = "Examples:
  patchlab order revoke PO-2026-0001 --reason 'breaks logins' --key operator.pem
  patchlab order revoke PO-2026-0001 --document DIGEST --reason 'approved by mistake' --key operator.pem

Every host is told, and refuses it as `revoked` from then on. What has it keeps it: patchlab order rollback brings it back.
With the key on another machine, or with several: patchlab revocation --help.";

/// An order, or documents of it, to revoke.
#[derive(Debug, Args)]
#[command(after_help = REVOKE_EXAMPLES)]
pub struct Revoke {
    /// Id or digest
    order: String,
    /// Only this document of it, a release, a waiver, an approval or an activation; may be given several times
    #[arg(long = "document", value_name = "DIGEST")]
    documents: Vec<Digest>,
    /// Why, in one line: hosts keep it
    #[arg(long)]
    reason: String,
    /// An operator's key, or a root key
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
}

/// Hosts of an activation.
#[derive(Debug, Args)]
pub struct Hosts {
    /// A host, by name; may be given several times
    #[arg(long = "host", value_name = "NAME", required = true)]
    hosts: Vec<String>,
    /// Wait for its end; exit 1 when a host does not end as it should
    #[arg(long)]
    wait: bool,
    /// Seconds the activation is valid
    #[arg(long, value_name = "SECONDS")]
    lifetime: Option<u64>,
    /// When its window opens, RFC 3339 or from now on (+2h); at once unless given
    #[arg(long, value_name = "TIME", value_parser = moment)]
    not_before: Option<Timestamp>,
    /// When its window closes, RFC 3339 or from now on (+4h); with the activation unless given
    #[arg(long, value_name = "TIME", value_parser = moment, requires = "not_before")]
    until: Option<Timestamp>,
}

/// A time, as of now.
fn moment(text: &str) -> Result<Timestamp, String> {
    window::moment(text, Timestamp::now())
}

/// An action by name.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum ActionName {
    /// Install what it names
    Apply,
    /// Bring back what it replaced
    Rollback,
}

impl OrderCommand {
    pub(super) async fn run(self, global: &Global) -> Result<Exit, CliError> {
        let client = Client::new(global)?;
        let output = global.output();
        match self {
            Self::Draft(draft) => draft.run(global),
            Self::Submit { file, key, verdict } => {
                submit(&global.data()?, &client, &output, &file, &key, verdict.as_deref()).await
            }
            Self::Verdict { order, file } => {
                let row = hand_in(&client, &order, &file).await?;
                shown(&output, &row)
            }
            Self::List => list(&client, &output).await,
            Self::Show { order } => show(&client, &output, &order).await,
            Self::Release { order } => {
                let taken: Taken = client.post(&format!("orders/{}/release", segment(&order)), &json!({})).await?;
                let story = story(&client, &order).await?;
                waiver::pairs(&output, &story).iter().for_each(|(name, line)| output.note(format!("{name}: {line}")));
                output.line(taken.digest.to_string());
                output.json(&taken)?;
                Ok(Exit::Passed)
            }
            Self::Waive(waive) => waive.run(&client, &output).await,
            Self::Approve(approve) => approve.run(&client, &output).await,
            Self::Probe(probe) => probe.run(&client, &output).await,
            Self::Prefetch(prefetch) => prefetch.run(&client, &output).await,
            Self::Activate { order, action, hosts } => {
                let action = match action {
                    ActionName::Apply => Action::Apply,
                    ActionName::Rollback => Action::Rollback,
                };
                hosts.activate(&client, &output, &order, action).await
            }
            Self::Cancel(cancel) => cancel.run(&client, &output).await,
            Self::Revoke(revoke) => revoke.run(&client, &output).await,
            Self::Rollback { order, key: None, hosts } => {
                hosts.activate(&client, &output, &order, Action::Rollback).await
            }
            Self::Rollback { order, key: Some(key), hosts } => {
                hosts.roll_back_signed(&client, &output, &order, &key).await
            }
        }
    }
}

async fn submit(
    data: &Data,
    client: &Client,
    output: &Output,
    file: &Path,
    key: &Path,
    verdict: Option<&Path>,
) -> Result<Exit, CliError> {
    let order = read_order(data, file)?;
    let key = SigningKey::read(key).map_err(CliError::input)?;
    let envelope = Envelope::sign(order, &key);
    let mut row: OrderRow = client.post("orders", &envelope).await?;
    if let Some(verdict) = verdict {
        row = hand_in(client, &row.id, verdict).await?;
    }
    shown(output, &row)
}

/// An order as drafted, or in its compiled form (`ORDER.json`, as `order draft --json` shows it).
fn read_order(data: &Data, path: &Path) -> Result<Order, CliError> {
    if path.extension().is_some_and(|extension| extension == "json") {
        let text = read(path, limits::DOCUMENT_BYTES)?;
        return serde_json::from_str(&text)
            .map_err(|error| CliError::Input(format!("{}: not a compiled order: {error}", path.display())));
    }
    let artifacts = ArtifactStore::open(data.artifacts()).map_err(CliError::failed)?;
    compile_file(path, &artifacts).map_err(CliError::from)
}

async fn hand_in(client: &Client, order: &str, file: &Path) -> Result<OrderRow, CliError> {
    let text = read(file, REPORT_BYTES as u64)?;
    client.post_text(&format!("orders/{}/verdict", segment(order)), text).await
}

fn shown(output: &Output, row: &OrderRow) -> Result<Exit, CliError> {
    output.fields(&[&row.id, &row.digest.to_string(), row.state.name()]);
    if !row.reason.is_empty() {
        output.note(&row.reason);
    }
    output.json(row)?;
    Ok(Exit::Passed)
}

/// Reads a text file of at most `limit` bytes.
fn read(path: &Path, limit: u64) -> Result<String, CliError> {
    let wrong = |reason: String| CliError::Input(format!("{}: {reason}", path.display()));
    let mut text = String::new();
    let file = fs::File::open(path).map_err(|error| wrong(error.to_string()))?;
    let read = file.take(limit + 1).read_to_string(&mut text).map_err(|error| wrong(error.to_string()))?;
    if read as u64 > limit { Err(wrong(format!("larger than {limit} bytes"))) } else { Ok(text) }
}

async fn list(client: &Client, output: &Output) -> Result<Exit, CliError> {
    let orders: Vec<OrderRow> = client.get("orders").await?;
    let rows: Vec<_> = orders
        .iter()
        .map(|o| vec![o.id.clone(), marked(o), o.title.clone(), o.digest.short(), output.moment(&o.changed_at)])
        .collect();
    output.table(&["order", "state", "title", "digest", "changed"], &rows);
    output.json(&orders)?;
    Ok(Exit::Passed)
}

/// Its state, and what marks it.
fn marked(order: &OrderRow) -> String {
    let by = order.superseded.iter().map(|by| format!(" by {by}"));
    [order.standing()].into_iter().chain(order.marks()).collect::<Vec<_>>().join(", ") + &by.collect::<String>()
}

pub(super) async fn story(client: &Client, order: &str) -> Result<OrderStory, CliError> {
    client.get(&format!("orders/{}", segment(order))).await
}

async fn show(client: &Client, output: &Output, order: &str) -> Result<Exit, CliError> {
    let story = story(client, order).await?;
    let row = &story.order;
    output.line(format!("{}  {}", row.id, row.title));
    let report = story.report();
    output.line(told(row, report.as_ref().map(|report| report.verdict), &story.runs));
    let mut pairs = vec![
        ("digest", row.digest.to_string()),
        ("state", row.state.to_string()),
        ("since", output.moment(&row.changed_at)),
    ];
    let order = serde_json::from_value::<Order>(story.document.clone()).ok();
    pairs.extend(order.iter().map(|order| ("changes", changes(order))));
    if !row.reason.is_empty() {
        pairs.push(("reason", row.reason.clone()));
    }
    pairs.extend(row.revoked.clone().map(|reason| ("revoked", reason)));
    pairs.extend(row.superseded.clone().map(|by| ("superseded by", by)));
    let replaced = order.iter().flat_map(|order| &order.supersedes).map(|older| ("supersedes", older.to_string()));
    pairs.extend(replaced);
    pairs.push(("verdict", report.map_or_else(|| "none".into(), |report| report.verdict.to_string())));
    let mark = if row.waivers > 0 { " (waived, not passed)" } else { "" };
    pairs.push(("release", story.release.map_or_else(|| "none".into(), |digest: Digest| format!("{digest}{mark}"))));
    pairs.extend(waiver::pairs(output, &story));
    pairs.extend(story.approvals.iter().map(|approval| {
        let (who, most, until) = (&approval.approver, approval.hosts_at_most, output.moment(&approval.not_after));
        ("approval", format!("{who}, at most {most} hosts, until {until}"))
    }));
    let windows = story.deployments.iter().filter(|deployment| deployment.state == DeploymentState::Running);
    pairs.extend(windows.filter_map(|it| Some(("window", span(it.window?)))));
    output.pairs(&pairs);
    run_table(output, &story.runs);
    if !story.preparations.is_empty() {
        preparation_table(output, &story.preparations);
    }
    output.json(&story)?;
    Ok(Exit::Passed)
}

/// What an order is made of, in words.
fn changes(order: &Order) -> String {
    match &order.script {
        None => format!("{} packages", order.install.len()),
        Some(script) => format!("a script, {} files beside it", script.files.len()),
    }
}

/// A window in words.
fn span(window: Window) -> String {
    format!("{} to {}", legible::moment(window.opens), legible::moment(window.closes))
}

pub(super) fn run_table(output: &Output, runs: &[Run]) {
    let rows: Vec<_> = runs
        .iter()
        .map(|run| {
            let state = run.state.map_or("-", |state| state.name()).to_owned();
            let waits = run.state == Some(RunState::WaitingWindow) && !run.stage.is_final();
            let reason = if waits { &run.phase } else { &run.reason };
            vec![
                run.host.clone(),
                run.run.to_string(),
                run.stage.to_string(),
                state,
                run.verified.to_string(),
                reason.clone(),
            ]
        })
        .collect();
    if !rows.is_empty() {
        output.table(&["host", "run", "stage", "state", "signed", "reason"], &rows);
    }
}

impl Approve {
    async fn run(self, client: &Client, output: &Output) -> Result<Exit, CliError> {
        let story = story(client, &self.order).await?;
        let release = story.release.ok_or_else(|| {
            CliError::Refused(format!("not-released: order {} has no release to say yes to", story.order.id))
        })?;
        let key = SigningKey::read(&self.key).map_err(CliError::input)?;
        // What is signed is what was looked at: both documents are read and compared by their digests here.
        let order: Order =
            client.document(&story.order.digest).await?.statement::<Order>().map_err(CliError::failed)?.predicate;
        let proof: Release =
            client.document(&release).await?.statement::<Release>().map_err(CliError::failed)?.predicate;
        if proof.proof.order != story.order.digest {
            return Err(CliError::Refused("not-released: the release is over another order".into()));
        }
        let now = Timestamp::now();
        let not_after = match self.not_after {
            Some(time) => time,
            None => now.checked_add((7 * 24).hours()).map_err(CliError::input)?,
        };
        waiver::pairs(output, &story).iter().for_each(|(name, line)| output.note(format!("{name}: {line}")));
        output.note(format!(
            "{}: {} ({}), for at most {} hosts, until {}",
            order.id,
            order.title,
            changes(&order),
            self.hosts,
            legible::moment(not_after)
        ));
        let approval = Approval {
            approver: self.name,
            order: story.order.digest,
            release,
            hosts_at_most: self.hosts,
            at: now,
            not_after,
        };
        let envelope = Envelope::sign(approval, &key);
        let taken: Taken = client.post(&format!("orders/{}/approval", segment(&order.id)), &envelope).await?;
        output.line(taken.digest.to_string());
        output.json(&taken)?;
        Ok(Exit::Passed)
    }
}

impl Revoke {
    async fn run(self, client: &Client, output: &Output) -> Result<Exit, CliError> {
        let story = story(client, &self.order).await?;
        let activations = story.deployments.iter().map(|deployment| deployment.activation);
        let waivers = story.waivers.iter().map(|waiver| waiver.digest);
        let approvals = story.approvals.iter().map(|approval| approval.digest);
        let of_it: Vec<Digest> = story.release.into_iter().chain(waivers).chain(approvals).chain(activations).collect();
        if let Some(stranger) = self.documents.iter().find(|document| !of_it.contains(document)) {
            let id = &story.order.id;
            return Err(CliError::Input(format!(
                "{stranger} is no release, waiver, approval or activation of {id}: patchlab order show {id} --json - lists them"
            )));
        }
        let documents = if self.documents.is_empty() { vec![story.order.digest] } else { self.documents };
        let key = SigningKey::read(&self.key).map_err(CliError::input)?;
        let (_, list) = revocation::in_force(client).await?;
        let says = next(list.as_ref().map(|list| &list.says), &documents, &self.reason, Timestamp::now())
            .map_err(CliError::input)?;
        revocation::hand_in(client, output, &Envelope::sign(says, &key)).await
    }
}

impl Hosts {
    async fn activate(self, client: &Client, output: &Output, order: &str, action: Action) -> Result<Exit, CliError> {
        let (hosts, window) = (self.hosts.clone(), self.window());
        let request = ActivationRequest { hosts, action, lifetime_s: self.lifetime, window };
        let deployment: Deployment = client.post(&format!("orders/{}/activation", segment(order)), &request).await?;
        self.follow(client, output, deployment).await
    }

    fn window(&self) -> Option<Wanted> {
        self.not_before.map(|not_before| Wanted { not_before, until: self.until })
    }

    /// A rollback on an operator's signature alone.
    async fn roll_back_signed(
        self,
        client: &Client,
        output: &Output,
        order: &str,
        key: &Path,
    ) -> Result<Exit, CliError> {
        let key = SigningKey::read(key).map_err(CliError::input)?;
        let story = story(client, order).await?;
        let mut site = None;
        for name in &self.hosts {
            let host: Host = client.get(&format!("hosts/{}", segment(name))).await?;
            site.get_or_insert(host.enrolled.site);
        }
        let now = Timestamp::now();
        let release = match &story.release {
            Some(release) => client.document(release).await?.statement::<Release>().ok().map(|it| it.predicate),
            None => None,
        };
        let needs = window::measured(Action::Rollback, release.as_ref());
        let lifetime = self.lifetime.map(Duration::from_secs);
        let (not_before, not_after) = window::validity(now, self.window(), lifetime, needs).map_err(CliError::input)?;
        let activation = Activation {
            order: story.order.digest,
            action: Action::Rollback,
            site: site.unwrap_or_default(),
            wave: 1,
            hosts: executor::sequence(&story.order.digest, &self.hosts),
            at: now,
            not_before,
            not_after,
        };
        let envelope = Envelope::sign(activation, &key);
        let path = format!("orders/{}/rollback", segment(&story.order.id));
        let deployment: Deployment = client.post(&path, &envelope).await?;
        self.follow(client, output, deployment).await
    }

    /// Waits, when that was asked for, and says every change of every host.
    async fn follow(self, client: &Client, output: &Output, deployment: Deployment) -> Result<Exit, CliError> {
        if let Some(window) = deployment.window {
            output.note(format!("its window: {}", span(window)));
        }
        if !self.wait {
            output.line(deployment.activation.to_string());
            output.json(&deployment)?;
            return Ok(Exit::Passed);
        }
        let mut said: Vec<String> = Vec::new();
        loop {
            let story: DeploymentStory = client.get(&format!("activations/{}?wait=2", deployment.activation)).await?;
            for run in &story.runs {
                let state = run.state.map_or_else(|| run.stage.to_string(), |state| state.name().to_owned());
                // At the beginning and the end of a run the phase is the state.
                let phase = if run.phase == state { "" } else { &run.phase };
                let line = format!("{}: {state} {phase}", run.host);
                if !said.contains(&line) {
                    output.note(line.trim_end());
                    said.push(line);
                }
            }
            if story.deployment.state == DeploymentState::Running {
                continue;
            }
            run_table(output, &story.runs);
            output.json(&story)?;
            if story.deployment.state == DeploymentState::Done {
                return Ok(Exit::Passed);
            }
            output.note(format!("stopped: {}", story.deployment.reason));
            let hosts: Vec<&str> = story.runs.iter().map(|run| run.host.as_str()).collect();
            machine::hint(client, output, &hosts).await?;
            let refused = story.runs.iter().any(|run| run.refusal.is_some());
            return Ok(if refused { Exit::Refused } else { Exit::Rejected });
        }
    }
}
