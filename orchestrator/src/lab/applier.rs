//! The lab's applier: tells the agent inside a clone by SNMPv3 what to do, exactly as the deployment tells a managed host.

use std::{
    collections::{HashMap, HashSet},
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, mpsc},
    time::{Duration, Instant},
};

use patchlab_lab::{
    applier::{Applied, Applier, ApplierError, NextBoot, Role},
    machine::{Forward, LabError, Loss, Machine},
};
use patchlab_protocol::{
    Item, ItemState, PackageSystem, Refusal, SigningKey,
    document::{Action, REBOOT_ASKED_PERCENT, RunState},
    enrolment::{EngineId, Enrolment, InformSink, PinnedRoot},
    inventory::{Change, PackageId, Transaction},
};

use super::{
    agent,
    provisional::{Changes, Provisional},
};
use crate::{
    deploy::{
        DeployError, Observer, Patience, Row, RunReport, SnmpManager, push_and_run,
        row::{self, Progress},
        sink::Bells,
    },
    enrol::Material,
};

/// Where a guest finds its worker's loopback (slirp's host address).
const HOST_SEEN_FROM_GUEST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
/// How long an agent may take from its start to its first answer.
const FIRST_ANSWER: Duration = Duration::from_secs(90);
/// Longest duration of an apply, and of a rollback, when nothing else is said: that of a run on a host.
pub const APPLY_WITHIN: Duration = Duration::from_secs(1800);
/// How long an agent may be silent before it is looked for on its machine: longer than three tries that are not answered.
const MISSED: Duration = Duration::from_secs(12);
/// How long an agent may be silent on a machine that runs: longer than the network may be away while it is upgraded.
const SILENCE: Duration = Duration::from_secs(120);
/// The one row of a clone's order table.
const ROW: u32 = 1;

/// A clone's identity, made before the clone.
#[derive(Debug)]
pub struct CloneIdentity {
    /// Which clone.
    pub role: Role,
    /// The name it is enrolled by.
    pub host: String,
    /// Its SNMP engine and users; never those of a sibling.
    pub material: Material,
    /// Its enrolment key; likewise.
    pub key: SigningKey,
    /// The worker's address that reaches its SNMP port.
    pub address: SocketAddrV4,
}

/// Where the clones find the lab.
#[derive(Debug, Clone)]
pub struct LabEndpoints {
    /// Port of the payload server on the worker's loopback.
    pub payload_port: u16,
    /// Port of the inform sink on the worker's loopback.
    pub inform_port: u16,
    /// The engine id informs are localized to.
    pub manager_engine: EngineId,
}

/// Is told how far an agent is.
type Moved = dyn Fn(Action, &Progress) + Send + Sync;

/// Tells agents in clones what to do.
pub struct SnmpApplier {
    runtime: tokio::runtime::Handle,
    documents: Provisional,
    endpoints: LabEndpoints,
    clones: Vec<CloneIdentity>,
    managers: Mutex<HashMap<String, Arc<SnmpManager>>>,
    /// Machines whose apply goes on after their reboot.
    rebooting: Mutex<HashSet<String>>,
    bells: Bells,
    tools: PathBuf,
    moved: Box<Moved>,
    within: Duration,
}

impl CloneIdentity {
    /// A new identity for the clone of `baseline` in `role`.
    pub fn generate(baseline: &str, role: Role) -> anyhow::Result<Self> {
        let host = host_name(baseline, role);
        let (material, key) = (Material::generate(&host)?, SigningKey::generate()?);
        Ok(Self { role, material, key, address: free_address()?, host })
    }
}

/// The name by which a clone of `baseline` is enrolled.
pub fn host_name(baseline: &str, role: Role) -> String {
    let name: String = baseline.chars().map(|c| if c == '@' { '-' } else { c }).take(40).collect();
    format!("{name}-{}", role.name())
}

/// A UDP port that is free now. The worker is alone in its network namespace, so nobody takes it in between.
fn free_address() -> std::io::Result<SocketAddrV4> {
    let port = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
    Ok(SocketAddrV4::new(Ipv4Addr::LOCALHOST, port))
}

impl SnmpApplier {
    /// An applier of one order to `clones`.
    pub fn new(
        runtime: tokio::runtime::Handle,
        documents: Provisional,
        endpoints: LabEndpoints,
        clones: Vec<CloneIdentity>,
        bells: Bells,
        tools: PathBuf,
        moved: impl Fn(Action, &Progress) + Send + Sync + 'static,
    ) -> Self {
        let (managers, rebooting, moved, within) = (Mutex::default(), Mutex::default(), Box::new(moved), APPLY_WITHIN);
        Self { runtime, documents, endpoints, clones, managers, rebooting, bells, tools, moved, within }
    }

    /// With another longest duration of an apply, and of a rollback.
    pub fn within(self, within: Duration) -> Self {
        Self { within, ..self }
    }

    fn clone_of(&self, role: Role) -> Result<&CloneIdentity, ApplierError> {
        self.clones.iter().find(|clone| clone.role == role).ok_or_else(|| ApplierError::Lab {
            action: "prepare",
            reason: format!("no identity was made for the {} clone", role.name()),
        })
    }

    fn enrolment(&self, clone: &CloneIdentity) -> Result<agent::EnrolmentFiles, ApplierError> {
        let failed = |reason: String| ApplierError::Lab { action: "enrol the clone", reason };
        let enrolment = Enrolment {
            host: clone.host.clone(),
            listen: patchlab_protocol::enrolment::DEFAULT_LISTEN,
            state_dir: patchlab_protocol::enrolment::DEFAULT_STATE_DIR.into(),
            ledger_dir: None,
            hooks: None,
            engine_id: Some(clone.material.engine_id.clone()),
            root: PinnedRoot { path: "root.json".into(), digest: self.documents.root.digest() },
            host_key: "host.pem".into(),
            monitor: clone.material.monitor.clone(),
            deployer: clone.material.credentials.deployer.clone(),
            key_administrator: None,
            inform: Some(InformSink {
                address: SocketAddr::from((HOST_SEEN_FROM_GUEST, self.endpoints.inform_port)),
                engine_id: self.endpoints.manager_engine.clone(),
                user: clone.material.credentials.inform.clone(),
            }),
            packages: patchlab_protocol::enrolment::Packages::default(),
            fetch: patchlab_protocol::enrolment::Fetching::default(),
            boot: patchlab_protocol::enrolment::Booting::default(),
            // What an order is, is what is tried.
            scripts: patchlab_protocol::enrolment::Scripts { allow: true },
            tags: patchlab_protocol::description::Tags::default(),
        };
        let host_key = clone.key.to_pem().map_err(|error| failed(error.to_string()))?;
        Ok(agent::EnrolmentFiles {
            config: toml::to_string(&enrolment).map_err(|error| failed(error.to_string()))?,
            root: String::from_utf8_lossy(&self.documents.root.to_bytes()).into_owned(),
            host_key,
        })
    }

    /// Waits until the agent answers as the host that it was enrolled as.
    async fn first_answer(&self, clone: &CloneIdentity) -> Result<(Arc<SnmpManager>, String), String> {
        let patience = Patience { wait: Duration::from_secs(3), tries: 3 };
        let manager = SnmpManager::new(
            &clone.host,
            clone.address.into(),
            &clone.material.engine_id,
            &clone.material.credentials.deployer,
            patience,
        )
        .await
        .map_err(|error| error.to_string())?;
        let start = Instant::now();
        loop {
            match row::scalars(&manager).await {
                Ok(found) if found.host == clone.host && found.root == Some(self.documents.root.digest()) => {
                    let line =
                        format!("SNMP engine {} answers as {} ({})", clone.material.engine_id, found.host, found.class);
                    return Ok((Arc::new(manager), line));
                }
                Ok(found) => return Err(format!("it answers as {:?} under another root document", found.host)),
                Err(_) if start.elapsed() < FIRST_ANSWER => {}
                Err(error) => return Err(error.to_string()),
            }
        }
    }

    fn run(&self, action: Action, machine: &Machine) -> Result<Applied, ApplierError> {
        let lab = |reason: String| ApplierError::Lab { action: name(action), reason };
        let manager = self.managers.lock().unwrap_or_else(PoisonError::into_inner).get(machine.name()).cloned();
        let manager = manager.ok_or_else(|| lab(format!("{} was not prepared", machine.name())))?;
        let class = &self.documents.class;
        let system = class.package_system();
        let system = system.ok_or_else(|| lab(format!("nobody knows how versions of {class} compare")))?;
        let changes = self.documents.changes();
        let row = self.row(action);
        let host = self.clone_of(Role::Patched)?.host.clone();
        let heard = Mutex::new(Heard { last: Instant::now(), doing: "nothing".into() });
        let (waits, waiting) = tokio::sync::oneshot::channel();
        let bell = self.bells.of(&host);
        let mut watch = Watch { action, bell, moved: &*self.moved, heard: &heard, waits: Some(waits) };
        let (start, run) = (Instant::now(), run_index(action));
        let report = self.watched(machine, &heard, name(action), async {
            tokio::select! {
                report = push_and_run(&*manager, &row, run, &mut watch) => report,
                Ok(()) = waiting => row::report(&*manager, ROW, run).await,
            }
        })?;
        if report.state == RunState::Rebooting {
            self.rebooting().insert(machine.name().to_owned());
        }
        read((action, changes), system, report, start.elapsed())
    }

    /// Awaits an agent's word, or what is seen of its machine: whichever is first.
    fn watched(
        &self,
        machine: &Machine,
        heard: &Mutex<Heard>,
        action: &'static str,
        word: impl Future<Output = Result<RunReport, DeployError>>,
    ) -> Result<RunReport, ApplierError> {
        let lab = |reason: String| ApplierError::Lab { action, reason };
        let (stop, over) = mpsc::channel();
        let (tell, told) = tokio::sync::oneshot::channel();
        let followed = std::thread::scope(|scope| {
            let mut others = || silenced(machine, heard);
            scope.spawn(move || tell.send(machine.watch(&over, &mut others)));
            let followed = self.runtime.block_on(async {
                tokio::select! {
                    report = word => Ok(report),
                    Ok(seen) = told => Err(seen),
                }
            });
            drop(stop);
            followed
        });
        match followed {
            Ok(Ok(report)) => Ok(report),
            Ok(Err(error)) => Err(lab(format!("{error}; the agent's journal: {}", agent::journal(machine)))),
            Err(Ok(Some(loss))) => {
                let how = format!("{loss}; its agent said last: {}", lock(heard).doing);
                Err(ApplierError::Lost { action, how })
            }
            Err(Ok(None)) => Err(lab("nobody watched the machine to its end".into())),
            Err(Err(error)) => Err(lab(with_source(&error))),
        }
    }

    fn rebooting(&self) -> std::sync::MutexGuard<'_, HashSet<String>> {
        self.rebooting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Follows an apply that waited for its machine's reboot to its end.
    fn go_on(&self, machine: &Machine, manager: &SnmpManager) -> Result<(), ApplierError> {
        let (action, row) = ("go on after the reboot", self.row(Action::Apply));
        let heard = Mutex::new(Heard { last: Instant::now(), doing: "rebooting".into() });
        let bell = self.bells.of(&self.clone_of(Role::Patched)?.host);
        let mut watch = Watch { action: Action::Apply, bell, moved: &*self.moved, heard: &heard, waits: None };
        let run = run_index(Action::Apply);
        let report = self.watched(machine, &heard, action, push_and_run(manager, &row, run, &mut watch))?;
        match report.state {
            RunState::Succeeded => Ok(()),
            _ => Err(ApplierError::Failed { action, reason: report.error }),
        }
    }

    /// The order's row on a clone.
    fn row(&self, action: Action) -> Row {
        Row {
            index: ROW,
            order: self.documents.order.digest(),
            release: Some(self.documents.release.digest()),
            approval: Some(self.documents.approval.digest()),
            activation: Some(match action {
                Action::Apply => self.documents.apply.digest(),
                Action::Rollback => self.documents.rollback.digest(),
            }),
            uri: format!("http://{HOST_SEEN_FROM_GUEST}:{}", self.endpoints.payload_port),
            lifetime: self.within,
            window: None,
            preparation: None,
        }
    }
}

/// When the agent was heard last, and what it was at.
struct Heard {
    last: Instant,
    doing: String,
}

fn lock(heard: &Mutex<Heard>) -> std::sync::MutexGuard<'_, Heard> {
    heard.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How the agent on a machine that runs was lost, when it has been silent.
fn silenced(machine: &Machine, heard: &Mutex<Heard>) -> Option<Loss> {
    let silent = lock(heard).last.elapsed();
    if silent < MISSED {
        return None;
    }
    let said = |why: String| Loss::Ended(format!("{why}; the agent's journal ends: {}", agent::last_words(machine)));
    if agent::has_ended(machine) {
        return Some(said("the agent on it ended, and does not start again".into()));
    }
    (silent > SILENCE).then(|| said(format!("the agent on it has not answered for {} s", silent.as_secs())))
}

fn with_source(error: &LabError) -> String {
    std::error::Error::source(error).map_or_else(|| error.to_string(), |source| format!("{error}: {source}"))
}

impl Applier for SnmpApplier {
    fn tools(&self) -> Option<&Path> {
        Some(&self.tools)
    }

    fn forwards(&self, role: Role) -> Vec<Forward> {
        self.clones.iter().filter(|clone| clone.role == role).map(|clone| agent::forward(clone.address)).collect()
    }

    fn prepare(&self, role: Role, machine: &Machine) -> Result<Vec<String>, ApplierError> {
        let failed = |reason: String| ApplierError::Lab { action: "start the agent", reason };
        let clone = self.clone_of(role)?;
        agent::start(machine, &self.enrolment(clone)?)
            .map_err(|error| failed(format!("{error}; its journal: {}", agent::journal(machine))))?;
        let (manager, evidence) = self
            .runtime
            .block_on(self.first_answer(clone))
            .map_err(|reason| failed(format!("{reason}; its journal: {}", agent::journal(machine))))?;
        self.managers.lock().unwrap_or_else(PoisonError::into_inner).insert(machine.name().to_owned(), manager);
        Ok(vec![evidence])
    }

    fn resume(&self, role: Role, machine: &Machine) -> Result<(), ApplierError> {
        let failed = |reason: String| ApplierError::Lab { action: "start the agent again", reason };
        let clone = self.clone_of(role)?;
        agent::launch(machine).map_err(|error| failed(error.to_string()))?;
        // Its boots have grown: a manager of before would have to be told.
        let (manager, _) = self.runtime.block_on(self.first_answer(clone)).map_err(failed)?;
        let manager = {
            let mut managers = self.managers.lock().unwrap_or_else(PoisonError::into_inner);
            managers.insert(machine.name().to_owned(), Arc::clone(&manager));
            manager
        };
        let was_waiting = self.rebooting().remove(machine.name());
        if was_waiting { self.go_on(machine, &manager) } else { Ok(()) }
    }

    fn next_boot(&self, machine: &Machine) -> NextBoot {
        if self.rebooting().contains(machine.name()) { NextBoot::KernelOnTrial } else { NextBoot::AsEver }
    }

    fn apply(&self, machine: &Machine) -> Result<Applied, ApplierError> {
        self.run(Action::Apply, machine)
    }

    fn rollback(&self, machine: &Machine) -> Result<Applied, ApplierError> {
        self.run(Action::Rollback, machine)
    }
}

/// Follows a run for whoever watches the validation, and wakes the poller when the agent informs.
struct Watch<'a> {
    action: Action,
    bell: Arc<tokio::sync::Notify>,
    moved: &'a Moved,
    heard: &'a Mutex<Heard>,
    /// Told once when the run goes on only after a reboot.
    waits: Option<tokio::sync::oneshot::Sender<()>>,
}

impl Observer for Watch<'_> {
    fn moved(&mut self, progress: &Progress) {
        lock(self.heard).doing = format!("{} ({})", progress.state.name(), progress.phase);
        (self.moved)(self.action, progress);
        let is_asked = progress.percent >= u32::from(REBOOT_ASKED_PERCENT);
        if progress.state == RunState::Rebooting
            && is_asked
            && let Some(waits) = self.waits.take()
        {
            // Nobody listens when the run ended meanwhile.
            let _ = waits.send(());
        }
    }

    fn heard(&mut self) {
        lock(self.heard).last = Instant::now();
    }

    fn hint(&mut self) -> std::pin::Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(self.bell.notified())
    }
}

fn name(action: Action) -> &'static str {
    match action {
        Action::Apply => "apply",
        Action::Rollback => "rollback",
    }
}

fn run_index(action: Action) -> u32 {
    match action {
        Action::Apply => 1,
        Action::Rollback => 2,
    }
}

/// What a finished run says about the patch. Pure.
fn read(
    (action, changes): (Action, Changes),
    system: PackageSystem,
    report: RunReport,
    duration: Duration,
) -> Result<Applied, ApplierError> {
    // One that goes on after the reboot has changed all that it changes.
    let wanted = match action {
        Action::Apply if report.state == RunState::Rebooting => RunState::Rebooting,
        Action::Apply => RunState::Succeeded,
        Action::Rollback => RunState::RolledBack,
    };
    let error = if report.error.is_empty() { report.reason.clone() } else { report.error.clone() };
    let is_done = report.exit_code == 0 && report.items.iter().all(|item| item.state == ItemState::Done);
    // The package manager did all of it, and a check on the machine failed afterwards.
    let is_on_but_complains = action == Action::Apply && report.state == RunState::Failed && is_done;
    if report.state == wanted || is_on_but_complains {
        let done = report.items.iter().filter(|item| item.state == ItemState::Done);
        let transaction = Transaction::new(system, done.map(change)).lines();
        let complaint = is_on_but_complains.then_some(error);
        let reboot_needed = report.reboot_needed || report.state == RunState::Rebooting;
        return Ok(Applied { transaction, duration, reboot_needed, complaint });
    }
    Err(match (report.state, report.refusal) {
        // The package manager, the class and the versions speak about the order; everything else would be the lab's own mistake.
        (
            RunState::Refused,
            Some(
                refusal @ (Refusal::NotMyClass
                | Refusal::VersionsDiffer
                | Refusal::TransactionDiffers
                | Refusal::Preflight),
            ),
        ) if action == Action::Apply => ApplierError::Inapplicable { reason: format!("{refusal}: {}", report.reason) },
        // It was applied a moment ago, and its own `verify` does not say so any more: it did not last, or `verify` is wrong.
        (RunState::Refused, Some(Refusal::VersionsDiffer)) if changes == Changes::ByScript => {
            ApplierError::Failed { action: name(action), reason: report.reason }
        }
        // The package manager was at it, and did not come to an end.
        (RunState::Aborted, _) if report.transaction_ms > 0 => {
            ApplierError::Endless { action: name(action), reason: error }
        }
        (RunState::Refused | RunState::Aborted, refusal) => ApplierError::Lab {
            action: name(action),
            reason: format!(
                "the agent ended it as {}{}: {error}",
                report.state.name(),
                refusal.map(|refusal| format!(" ({refusal})")).unwrap_or_default()
            ),
        },
        _ => ApplierError::Failed { action: name(action), reason: format!("{}: {error}", report.state.name()) },
    })
}

fn change(item: &Item) -> Change {
    let version = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
    let id = PackageId::new(&item.name, &item.arch);
    Change { id, from: version(&item.from), to: version(&item.to) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(state: RunState, refusal: Option<Refusal>) -> RunReport {
        report_of(state, refusal, 1)
    }

    fn report_of(state: RunState, refusal: Option<Refusal>, transaction_ms: u64) -> RunReport {
        let item = |name: &str, from: &str, to: &str| Item {
            name: name.into(),
            arch: "amd64".into(),
            from: from.into(),
            to: to.into(),
            state: ItemState::Done,
        };
        RunReport {
            state,
            refusal,
            reason: "because".into(),
            error: String::new(),
            exit_code: 0,
            reboot_needed: false,
            duration_ms: 1,
            transaction_ms,
            before: None,
            after: None,
            items: vec![item("nginx", "1.0", "1.1"), item("added", "", "2")],
            signed: None,
        }
    }

    #[test]
    fn a_good_run_tells_its_transaction() {
        let apply = (Action::Apply, Changes::Packages);
        let applied = read(apply, PackageSystem::Dpkg, report(RunState::Succeeded, None), Duration::ZERO).unwrap();
        assert_eq!(applied.transaction, ["install added amd64 - -> 2", "upgrade nginx amd64 1.0 -> 1.1"]);
        assert!(
            read(
                (Action::Rollback, Changes::Packages),
                PackageSystem::Dpkg,
                report(RunState::RolledBack, None),
                Duration::ZERO
            )
            .is_ok()
        );
        let waits = read(apply, PackageSystem::Dpkg, report(RunState::Rebooting, None), Duration::ZERO).unwrap();
        assert_eq!(
            (waits.transaction, waits.reboot_needed),
            (applied.transaction, true),
            "it goes on after its reboot"
        );
    }

    #[test]
    fn what_says_nothing_about_the_patch_is_the_labs_own() {
        let kind_by =
            |action, changes, report| match read((action, changes), PackageSystem::Dpkg, report, Duration::ZERO) {
                Ok(_) => "ok",
                Err(ApplierError::Inapplicable { .. }) => "inapplicable",
                Err(ApplierError::Failed { .. }) => "failed",
                Err(ApplierError::Endless { .. }) => "endless",
                Err(ApplierError::Lost { .. }) => "lost",
                Err(ApplierError::Lab { .. }) => "lab",
            };
        let kind_of = |action, report| kind_by(action, Changes::Packages, report);
        let kind = |action, state, refusal| kind_of(action, report(state, refusal));
        use Refusal::{BadSignature, Expired, NotMyClass, TransactionDiffers, VersionsDiffer};
        for refusal in [NotMyClass, VersionsDiffer, TransactionDiffers] {
            assert_eq!(kind(Action::Apply, RunState::Refused, Some(refusal)), "inapplicable");
        }
        for refusal in [BadSignature, Expired] {
            assert_eq!(kind(Action::Apply, RunState::Refused, Some(refusal)), "lab");
        }
        let aborted = |transaction_ms| kind_of(Action::Apply, report_of(RunState::Aborted, None, transaction_ms));
        assert_eq!(aborted(0), "lab", "nothing was tried on it");
        assert_eq!(aborted(20_000), "endless", "its package manager ran out of time");
        assert_eq!(kind(Action::Apply, RunState::Failed, None), "ok", "the change is on; the scenarios judge");
        assert_eq!(kind(Action::Apply, RunState::RolledBack, None), "failed", "it walked back by itself");
        assert_eq!(kind(Action::Rollback, RunState::RollbackFailed, None), "failed");
        assert_eq!(kind(Action::Rollback, RunState::Refused, Some(VersionsDiffer)), "lab");
        let gone = report(RunState::Refused, Some(VersionsDiffer));
        assert_eq!(kind_by(Action::Rollback, Changes::ByScript, gone), "failed", "the change did not last");
    }
}
