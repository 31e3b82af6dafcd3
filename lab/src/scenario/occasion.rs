//! One run of a scenario, with all the machines that it asks for: made, joined, given its files, and taken away.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    time::{Duration, Instant},
};

use patchlab_check::{step::MachineName, target::TargetError};

use super::{
    Bench, Benches, Progress, RebootError, SUBJECT, Scenario, ScenarioError, ScenarioRun, Seat, Suspected,
    bench::CloneBench, not_begun, run,
};
use crate::{
    baseline::Baseline,
    machine::{Answer, CloneSpec, GuestError, Lab, LabError, Lan, Machine},
};

/// Where a scenario's folder is in a guest. No manifest covers it, and, unlike `/run`, scripts may be run there.
const GUEST_DIR: &str = "/var/tmp/patchlab-scenarios";

/// One run of a scenario on a machine.
pub struct Occasion<'a> {
    /// Where the machines are.
    pub lab: &'a Lab,
    /// What is run.
    pub scenario: &'a Scenario,
    /// The machine under test.
    pub machine: &'a Machine,
    /// What that is a clone of.
    pub baseline: &'a Baseline,
    /// The baselines of the machines beside it, by the names that scenarios give them.
    pub others: &'a BTreeMap<String, Baseline>,
    /// What tells it from other runs of the same: phase, clone.
    pub name: &'a [&'a str],
    /// Reboots the machine under test, starts again what that ends, and says how long it took.
    pub reboot: &'a dyn Fn(Duration) -> Result<Duration, RebootError>,
    /// By which samples of metrics are taken by turns with the other clone.
    pub seat: Option<Seat<'a>>,
    /// Whether what breaks on the machines may be the patch's doing.
    pub suspected: Suspected,
}

/// A run broke: it says nothing about the patch.
#[derive(Debug, thiserror::Error)]
pub enum OccasionError {
    /// The scenario's folder.
    #[error(transparent)]
    Scenario(#[from] ScenarioError),
    /// A file of it.
    #[error("read {}: {source}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why it cannot be read.
        source: std::io::Error,
    },
    /// A machine, or their network.
    #[error(transparent)]
    Lab(#[from] LabError),
    /// A guest.
    #[error(transparent)]
    Guest(#[from] GuestError),
    /// A machine, in a step.
    #[error(transparent)]
    Target(#[from] TargetError),
    /// A machine's baseline is not there.
    #[error("machine {machine}: there is no baseline {baseline}")]
    NoBaseline {
        /// The machine.
        machine: MachineName,
        /// Its baseline.
        baseline: String,
    },
}

/// A file of the scenario, in memory: it goes to several machines.
struct File {
    relative: String,
    bytes: Vec<u8>,
    mode: u32,
}

impl Occasion<'_> {
    /// Runs it. The machines beside the one under test are fresh, and gone afterwards; the one under test is left as the steps left it.
    ///
    /// # Errors
    /// The lab broke.
    pub fn run(&self, observer: &mut dyn FnMut(Progress<'_>)) -> Result<ScenarioRun, OccasionError> {
        let files = self.files()?;
        let others = self.start_others()?;
        let lan = match self.join(&others) {
            Ok(lan) => lan,
            Err(error) => return self.lost_before(error.into()),
        };
        let dir = format!("{GUEST_DIR}/{}", self.scenario.folder());
        for machine in others.values() {
            put(machine, &dir, &files)?;
        }
        let ran = match put(self.machine, &dir, &files) {
            Ok(()) => self.on(&others, lan.as_ref(), &dir, observer)?,
            Err(error) => self.without_files(error)?,
        };
        match &lan {
            Some(lan) if ran.gone.is_some() => lan.forsake(self.machine),
            Some(lan) => self.leave(lan)?,
            None => {}
        }
        Ok(ran)
    }

    fn leave(&self, lan: &Lan<'_>) -> Result<(), OccasionError> {
        let Err(error) = lan.leave(self.machine) else { return Ok(()) };
        // Whoever asks it next finds that it is lost, and says so.
        if self.suspected == Suspected::Yes && matches!(self.machine.lost(), Ok(Some(_))) {
            lan.forsake(self.machine);
            return Ok(());
        }
        Err(error.into())
    }

    fn on(
        &self,
        others: &BTreeMap<&MachineName, Machine>,
        lan: Option<&Lan<'_>>,
        dir: &str,
        observer: &mut dyn FnMut(Progress<'_>),
    ) -> Result<ScenarioRun, OccasionError> {
        let settled = |machine: &Machine, took: Duration| -> Result<Duration, RebootError> {
            let begun = Instant::now();
            lan.map_or(Ok(()), |lan| lan.settle(machine))?;
            Ok(took + begun.elapsed())
        };
        let reboot = |timeout| settled(self.machine, (self.reboot)(timeout)?);
        let subject = self.bench(self.machine, self.name, &reboot);
        let reboots: BTreeMap<&MachineName, _> = others
            .iter()
            .map(|(name, machine)| (*name, move |timeout| settled(machine, machine.reboot(timeout)?)))
            .collect();
        let names: BTreeMap<&MachineName, Vec<&str>> =
            others.keys().map(|name| (*name, [self.name, &[name.as_str()]].concat())).collect();
        let beside: Vec<(&MachineName, CloneBench<'_>)> =
            others.iter().map(|(name, machine)| (*name, self.bench(machine, &names[name], &reboots[name]))).collect();
        let others = beside.iter().map(|(name, bench)| (*name, bench as &dyn Bench)).collect();
        let subject = subject.by_turns(self.seat.as_ref());
        Ok(run(self.scenario, &Benches { subject: &subject, others }, dir, observer)?)
    }

    fn bench<'b>(
        &'b self,
        machine: &'b Machine,
        occasion: &'b [&'b str],
        reboot: &'b dyn Fn(Duration) -> Result<Duration, RebootError>,
    ) -> CloneBench<'b> {
        CloneBench::new(self.scenario, occasion, machine, self.lab.out(), reboot).suspecting(self.suspected)
    }

    /// Clones of the machines beside the one under test.
    fn start_others(&self) -> Result<BTreeMap<&MachineName, Machine>, OccasionError> {
        let mut started = BTreeMap::new();
        for (name, other) in &self.scenario.machines {
            let baseline = match &other.baseline {
                None => self.baseline,
                Some(wanted) => self
                    .others
                    .get(wanted)
                    .ok_or_else(|| OccasionError::NoBaseline { machine: name.clone(), baseline: wanted.clone() })?,
            };
            let whole = format!("{}-{name}", self.machine.name());
            started
                .insert(name, self.lab.clone_baseline(baseline, &CloneSpec { name: whole, ..CloneSpec::default() })?);
        }
        Ok(started)
    }

    fn join<'m>(&'m self, others: &'m BTreeMap<&MachineName, Machine>) -> Result<Option<Lan<'m>>, LabError> {
        if others.is_empty() {
            return Ok(None);
        }
        let others = others.iter().map(|(name, machine)| (name.as_str(), machine));
        let members: Vec<(&str, &Machine)> = std::iter::once((SUBJECT, self.machine)).chain(others).collect();
        self.lab.join(&members).map(Some)
    }

    fn files(&self) -> Result<Vec<File>, OccasionError> {
        let read = |file: super::ScenarioFile| {
            let bytes = std::fs::read(&file.path);
            let bytes = bytes.map_err(|source| OccasionError::File { path: file.path.clone(), source })?;
            // Whoever may read a file of the folder may run it, if it is meant to be run.
            let mode = if file.mode & 0o111 == 0 { 0o644 } else { 0o755 };
            Ok(File { relative: file.relative, bytes, mode })
        };
        self.scenario.files()?.into_iter().map(read).collect()
    }

    /// That there is no room for the files, or nothing is started any more, is a suspected machine's own word.
    fn without_files(&self, error: GuestError) -> Result<ScenarioRun, OccasionError> {
        match (self.suspected, error.answer) {
            (Suspected::Yes, Answer::Refused) => {
                let reason = format!("its files cannot be put on the machine: {}", error.reason);
                Ok(not_begun(self.scenario, &self.scenario.redacted(reason), None))
            }
            _ => self.lost_before(error.into()),
        }
    }

    /// What broke before the first step: a suspected machine's own word when that is lost.
    fn lost_before(&self, error: OccasionError) -> Result<ScenarioRun, OccasionError> {
        let looked = || self.machine.lost().ok().flatten();
        let loss = (self.suspected == Suspected::Yes).then(looked).flatten().ok_or(error)?;
        let reason = self.scenario.redacted(format!("the machine was lost: {loss}"));
        Ok(not_begun(self.scenario, &reason, Some("its begin")))
    }
}

fn put(machine: &Machine, dir: &str, files: &[File]) -> Result<(), GuestError> {
    files.iter().try_for_each(|file| machine.put_file(&format!("{dir}/{}", file.relative), &file.bytes, file.mode))
}
