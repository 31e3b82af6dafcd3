//! One order on one baseline: a worker, what it says, and what is taken from it before it goes.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    sync::mpsc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use patchlab_check::Digest;
use patchlab_lab::{
    Baseline, LabHost,
    applier::Role,
    control::{Adopted, ControlRecord, Controls},
    kept::{KeptClones, SavedClone},
    ledger::Process,
    report::BaselineReport,
    runs::{Recording, Scope},
    scenario::Scenario,
    validation::Reboot,
    verdict::{Judgement, LAB_ERROR_REQUEUES},
    worker::{ChannelError, Network, Worker, WorkerError},
};
use patchlab_protocol::{
    document::{Order, RebootRule, RebootWhen},
    envelope::digest_of,
};

use super::{
    applier::host_name,
    control::Control,
    halt::{self, Halt},
    job::{Job, launcher},
    pool,
    provisional::Provisional,
    tools,
    worker::{Ask, Manner, SAVED, SCENARIOS, Tell},
};
use crate::place::Data;

/// One order on one baseline.
pub(super) struct Pair<'a> {
    pub(super) data: &'a Data,
    pub(super) order: &'a Order,
    pub(super) baseline: &'a Baseline,
    pub(super) name: &'a str,
    pub(super) scenarios: &'a [Scenario],
    pub(super) others: &'a BTreeMap<String, Baseline>,
    pub(super) scope: &'a Scope,
    pub(super) manner: Manner,
    /// Under which name its control's results are remembered, where they may be.
    pub(super) key: Option<Digest>,
    pub(super) recording: &'a Recording,
    pub(super) halt: &'a Halt,
}

/// What came of it on a host.
pub(super) enum Came {
    /// What was found.
    Found(Box<BaselineReport>),
    /// Nothing: the host lends no machines any more, and why.
    HostGone(String),
    /// Nothing: what is remembered of the control does not do, and why.
    Disagrees(String),
}

/// How a worker ended.
enum Ended {
    /// It said what it found.
    Told(Box<BaselineReport>),
    /// It said why a control must stand beside the patched clone.
    Disagreed(String),
    /// It was gone before it could; why, as far as that is known, and in which phase.
    Died { reason: String, phase: String },
}

/// Time between two looks at the host on which a worker is at work.
const LOOK_AT_HOST: Duration = Duration::from_secs(20);

/// What follows when a worker has ended.
enum Follows {
    /// This came of it.
    Came(anyhow::Result<Came>),
    /// It is done once more, in a fresh worker; why.
    Again(String),
    /// The lab broke it; how.
    Broken(String),
}

/// What follows after so many workers, this one counted.
fn after(ended: anyhow::Result<Ended>, workers: usize, halt: &Halt) -> Follows {
    let reason = match ended {
        Ok(Ended::Told(report)) => return Follows::Came(Ok(Came::Found(report))),
        Ok(Ended::Disagreed(reason)) => return Follows::Came(Ok(Came::Disagrees(reason))),
        Ok(Ended::Died { phase, .. }) if halt.is_called() => {
            return Follows::Broken(format!("interrupted in the phase {phase}"));
        }
        Err(_) if halt.is_called() => return Follows::Broken("interrupted before it began".to_owned()),
        Err(error) if lasts(&error) => return Follows::Came(Err(error)),
        Err(error) => format!("{error:#}"),
        Ok(Ended::Died { reason, .. }) => reason,
    };
    if workers <= LAB_ERROR_REQUEUES { Follows::Again(reason) } else { Follows::Broken(reason) }
}

/// Whether another worker would say the same.
fn lasts(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(WorkerError::NotRoot | WorkerError::NoUser))
}

impl Pair<'_> {
    /// Runs it in a worker on a host; one that dies, or does not come about, is replaced a bounded number of times, and its death never
    /// blames the patch. When the lab breaks, the host is looked at: one that is gone broke it.
    pub(super) fn run(&self, host: &LabHost, control: Control, told: &mut dyn FnMut(Tell)) -> anyhow::Result<Came> {
        let begun = Instant::now();
        let mut tries = 0;
        let reason = loop {
            let ended = self.in_worker(host, control, told);
            let is_broken = match &ended {
                Ok(Ended::Told(report)) => report.verdict == Judgement::LabError,
                Ok(Ended::Disagreed(_)) => false,
                Ok(Ended::Died { .. }) | Err(_) => true,
            };
            if is_broken
                && !self.halt.is_called()
                && let Err(reason) = pool::look(host, &self.data.lab())
            {
                return Ok(Came::HostGone(reason));
            }
            tries += 1;
            match after(ended, tries, self.halt) {
                Follows::Came(came) => return came,
                Follows::Again(reason) => told(Tell::Note(format!("{reason}: once more, in a fresh worker"))),
                Follows::Broken(reason) => break reason,
            }
        };
        let total_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        let broken = BaselineReport::begun(self.name.to_owned(), self.baseline.digest);
        Ok(Came::Found(Box::new(BaselineReport { reason, total_ms, ..broken })))
    }

    fn in_worker(&self, host: &LabHost, control: Control, told: &mut dyn FnMut(Tell)) -> anyhow::Result<Ended> {
        let (places, launcher) = (self.data.lab(), launcher(Job::Validate)?);
        let mut worker = patchlab_lab::worker::spawn(host, &places, &launcher, &Network::Isolated)?;
        self.halt.enter(worker.process());
        let process = worker.process().clone();
        let ended = std::thread::scope(|scope| {
            let (_goes_on, over) = mpsc::channel();
            scope.spawn(move || watch(host, &process, &over));
            self.follow(&mut worker, control, told)
        });
        // Whatever the end is: what the machines said is worth most when it is a bad one.
        if let Err(error) = self.recording.take(self.name, worker.folder()) {
            told(Tell::Note(format!("what the machines said is not kept: {error}")));
        }
        self.halt.leave(worker.process());
        // What was found is found, whatever is still there of its worker.
        if let Err(error) = worker.end().map_err(anyhow::Error::from) {
            told(Tell::Note(format!("something of its worker is left for `patchlab lab gc`: {error:#}")));
        }
        ended
    }

    /// Tells the worker what to do, and listens until it has done it or is gone.
    fn follow(&self, worker: &mut Worker, control: Control, told: &mut dyn FnMut(Tell)) -> anyhow::Result<Ended> {
        let mut phase = String::from("start");
        let mut receiver = worker.take_receiver().context("the worker's channel was taken")?;
        put_scenarios(worker, self.scenarios)?;
        if control == Control::Remembered {
            let record = match self.remembered() {
                Ok(Some(record)) => record,
                Ok(None) => return Ok(Ended::Disagreed("what was remembered of the control is gone".into())),
                Err(error) => return Ok(Ended::Disagreed(format!("{error:#}"))),
            };
            patchlab_lab::control::put(&record, worker.folder()).context("give the worker what is remembered")?;
        }
        if let Err(ChannelError::Io(_)) = worker.sender().send(&self.ask(worker, control)?) {
            return Ok(died(worker, phase));
        }
        loop {
            let tell = match receiver.receive::<Tell>() {
                // Its end of the socket went with something unread.
                Err(ChannelError::Io(_)) => None,
                other => other?,
            };
            match tell {
                Some(Tell::Done { disagreement: Some(reason), .. }) => return Ok(Ended::Disagreed(reason)),
                Some(Tell::Done { mut report, saved, disagreement: None }) => {
                    self.remember(worker, (control, &report), told);
                    if !saved.is_empty() {
                        report.kept = self.keep(worker, &report, saved, told);
                    }
                    return Ok(Ended::Told(report));
                }
                Some(Tell::Failed(reason)) => bail!("{reason}"),
                Some(tell) => {
                    if let Tell::Phase(name) = &tell {
                        phase.clone_from(name);
                    }
                    told(tell);
                }
                None => return Ok(died(worker, phase)),
            }
        }
    }

    /// What is remembered of its control.
    fn remembered(&self) -> anyhow::Result<Option<ControlRecord>> {
        let Some(key) = &self.key else { return Ok(None) };
        Controls::open(&self.data.lab()).get(key).context("read what is remembered of the control")
    }

    /// Keeps what was found out about a control that stood beside a patched clone that passed. That it cannot be kept is told.
    fn remember(&self, worker: &Worker, (control, report): (Control, &BaselineReport), told: &mut dyn FnMut(Tell)) {
        let (Some(key), Control::Beside, Judgement::Passed) = (&self.key, control, report.verdict) else { return };
        let why = match Controls::open(&self.data.lab()).adopt(key, worker.folder(), self.recording.id()) {
            Ok(Adopted::Yes) => return,
            Ok(Adopted::No) => "something failed on it, or was measured".to_owned(),
            Err(error) => error.to_string(),
        };
        told(Tell::Note(format!("this control is not remembered for other validations: {why}")));
    }

    fn ask(&self, worker: &Worker, control: Control) -> anyhow::Result<Ask> {
        let hosts = [Role::Control, Role::Patched].map(|role| host_name(self.name, role));
        Ok(Ask {
            baseline: self.baseline.digest.to_string(),
            documents: Provisional::sign(self.order, &hosts, jiff::Timestamp::now())?,
            changed: changed(self.order, self.baseline)?,
            tools: tools::disk_in_worker(self.data, worker)?,
            manner: Manner { reboot: reboots(self.order, self.manner.reboot), ..self.manner },
            scope: self.scope.clone(),
            control,
            others: digests(self.others),
        })
    }

    /// Takes over the clones that the worker saved. That they cannot be kept is told, and changes no verdict.
    fn keep(
        &self,
        worker: &Worker,
        report: &BaselineReport,
        saved: Vec<SavedClone>,
        told: &mut dyn FnMut(Tell),
    ) -> Option<String> {
        let order = (self.order.id.as_str(), digest_of(self.order.clone()));
        let record = patchlab_lab::kept::Record::new(order, report, saved, jiff::Timestamp::now());
        match KeptClones::open(&self.data.lab()).adopt(&worker.folder().join(SAVED), record) {
            Ok(kept) => Some(kept.record.name),
            Err(error) => {
                told(Tell::Note(format!("the clones are not kept: {error}")));
                None
            }
        }
    }
}

/// Ends a worker whose libvirt keeps everybody waiting, until `over` is dropped: the worker waits for it, too, and without a limit. Two
/// questions without an answer are believed.
fn watch(host: &LabHost, worker: &Process, over: &mpsc::Receiver<()>) {
    let mut silent = 0;
    while over.recv_timeout(LOOK_AT_HOST) == Err(mpsc::RecvTimeoutError::Timeout) {
        silent = if host.is_silent() { silent + 1 } else { 0 };
        if silent == 2 {
            halt::end(worker);
            return;
        }
    }
}

/// How a worker is told of baselines.
pub(super) fn digests(others: &BTreeMap<String, Baseline>) -> BTreeMap<String, String> {
    others.iter().map(|(name, baseline)| (name.clone(), baseline.digest.to_string())).collect()
}

/// Names of the packages that an order changes on a baseline. Nothing says what a script changes: it may be anything, so every scenario
/// that speaks about a package of the baseline is evidence.
fn changed(order: &Order, baseline: &Baseline) -> anyhow::Result<BTreeSet<String>> {
    match order.script {
        None => Ok(order.install.iter().map(|file| file.name.clone()).collect()),
        Some(_) => {
            let manifest = baseline.manifest().context("read the baseline's manifest")?;
            Ok(manifest.packages.into_values().map(|package| package.name).collect())
        }
    }
}

/// When clones reboot: what hosts will do in any case is what is tried.
fn reboots(order: &Order, wanted: Reboot) -> Reboot {
    match order.reboot {
        Some(RebootRule { when: RebootWhen::Always, .. }) => Reboot::Always,
        _ => wanted,
    }
}

/// Whether a part of an order that was tried stands for all of it: it never does.
pub(super) fn limited(verdict: Judgement, scope: &Scope) -> Option<String> {
    (verdict == Judgement::Passed && *scope != Scope::Whole).then(|| {
        format!("only {} was tried, and holds on both clones: validate the order whole for a verdict", scope.describe())
    })
}

/// Why a worker is gone: its last word, since its log goes with it.
fn died(worker: &Worker, phase: String) -> Ended {
    let last = worker.last_words();
    let last = if last.is_empty() { last } else { format!(" (it wrote: {last})") };
    Ended::Died { reason: format!("the worker {} died in the phase {phase}{last}", worker.id()), phase }
}

/// Copies the scenarios' folders to where the worker, who may not read people's folders, finds them.
pub(super) fn put_scenarios(worker: &Worker, scenarios: &[Scenario]) -> anyhow::Result<()> {
    let root = worker.folder().join(SCENARIOS);
    make(&root)?;
    for scenario in scenarios {
        let dir = root.join(scenario.folder());
        make(&dir)?;
        for file in scenario.files()? {
            let copy = dir.join(&file.relative);
            if let Some(parent) = copy.parent() {
                make(parent)?;
            }
            fs::copy(&file.path, &copy).with_context(|| format!("copy {}", file.path.display()))?;
            mode(&copy, if file.mode & 0o111 == 0 { 0o644 } else { 0o755 })?;
        }
    }
    Ok(())
}

fn make(dir: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
    mode(dir, 0o755)
}

fn mode(path: &Path, mode: u32) -> anyhow::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
        .with_context(|| format!("change the mode of {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_did_not_come_about_is_tried_again_unless_it_cannot_change() {
        let (halt, broke) = (Halt::default(), || Err(anyhow::anyhow!("libvirt: cannot open qemu:///system: busy")));
        let died = || Ok(Ended::Died { reason: "the worker died".into(), phase: "clone".into() });
        for ended in [broke, died] {
            assert!(matches!(after(ended(), LAB_ERROR_REQUEUES, &halt), Follows::Again(_)));
            assert!(matches!(after(ended(), LAB_ERROR_REQUEUES + 1, &halt), Follows::Broken(_)));
        }
        for lasting in [WorkerError::NotRoot, WorkerError::NoUser] {
            assert!(matches!(after(Err(lasting.into()), 1, &halt), Follows::Came(Err(_))));
        }
        let not_up = WorkerError::NotUp { reason: "it ended".into(), log: "/".into() };
        assert!(matches!(after(Err(not_up.into()), 1, &halt), Follows::Again(_)));
        halt.call();
        for (ended, why) in [(broke(), "before it began"), (died(), "in the phase clone")] {
            let Follows::Broken(reason) = after(ended, 1, &halt) else { panic!("it is interrupted") };
            assert!(reason.contains(why), "{reason}");
        }
    }

    #[test]
    fn a_part_never_passes_an_order() {
        let step = Scope::Step { scenario: "web-smoke".into(), step: "config".into() };
        let said = limited(Judgement::Passed, &step).unwrap();
        assert!(said.starts_with("only web-smoke up to config was tried"), "{said}");
        assert_eq!(limited(Judgement::Passed, &Scope::Whole), None);
        assert_eq!(limited(Judgement::Rejected, &step), None, "what breaks a part breaks the whole");
    }

    #[test]
    fn an_order_that_reboots_hosts_in_any_case_reboots_clones() {
        let with = |when: Option<RebootWhen>| Order {
            reboot: when.map(|when| RebootRule { when, grace_minutes: 1 }),
            ..crate::gate::tests::order()
        };
        let tried = |when| reboots(&with(when), Reboot::WhenAsked);
        assert_eq!(tried(Some(RebootWhen::Always)), Reboot::Always);
        assert_eq!([tried(None), tried(Some(RebootWhen::IfNeeded))], [Reboot::WhenAsked; 2]);
        assert_eq!(reboots(&with(None), Reboot::Always), Reboot::Always);
    }
}
