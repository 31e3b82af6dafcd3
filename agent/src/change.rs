//! What an order changes on a host, and how: packages, by the host's package manager, or anything else, by the scripts that it ships.
//!
//! An order means a [`Plan`] here. With its files in their places that is a [`Goal`], which is journaled before it is gone for: it can be
//! simulated, reached, and, when whoever worked on it was cut off, finished by the next agent. Runs speak to these two and do not ask
//! which of both it is.

pub mod packages;
pub mod script;

use std::{
    fs, io,
    io::Read as _,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use patchlab_protocol::{
    Audience, Digest, Item, Refusal, Refused,
    document::{self, Action, Order, PackageFile, Release, ShippedFile},
    inventory::{PackageId, Transaction},
};
use serde::{Deserialize, Serialize};

use crate::{
    fetch::{self, Payload},
    packages::{Committed, Installed, PackageError, PackageManager},
    process::ProcessMark,
    state::Reboot,
};
use script::{Found, Here, Past, ScriptError};

/// Is told of every process before it is waited for.
pub type Started<'s> = dyn FnMut(ProcessMark) + 's;

/// What an authorised order means on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Plan {
    /// Packages are installed and removed.
    Packages(packages::Plan),
    /// Its script is run.
    Script(script::Plan),
}

/// A plan with its files in their places.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Goal {
    /// For the package manager.
    Packages(crate::packages::Goal),
    /// For the order's script.
    Script(Box<script::Goal>),
}

/// A change could not be looked at or made.
#[derive(Debug, thiserror::Error)]
pub enum ChangeError {
    /// The package manager.
    #[error(transparent)]
    Packages(#[from] PackageError),
    /// The script.
    #[error(transparent)]
    Script(#[from] ScriptError),
    /// The host is not as the change needs it.
    #[error(transparent)]
    Refused(#[from] Refused),
}

/// A file of an order, and what it must be beside its digest.
#[derive(Debug, Clone)]
pub enum Part {
    /// A package.
    Package(PackageFile),
    /// One of its scripts.
    Program(ShippedFile),
    /// What lies beside them.
    Beside(ShippedFile),
}

/// What an order means on a host that has this installed.
///
/// # Errors
/// A refusal, when the host is not as the order needs it, or takes no scripts.
pub fn plan(order: &Order, action: Action, installed: &Installed, here: Here) -> Result<Plan, Refused> {
    match &order.script {
        None => packages::plan(order, action, installed).map(Plan::Packages),
        Some(script) => script::plan(order, script, action, here).map(Plan::Script),
    }
}

/// What the way back of an order takes.
pub fn parts_of_way_back(order: &Order) -> Vec<Part> {
    let packages = order.replaces.iter().filter_map(|old| old.file.clone()).map(Part::Package);
    packages.chain(order.script.iter().flat_map(script::parts)).collect()
}

/// Everything that an order ships.
pub fn parts(order: &Order) -> Vec<Part> {
    order.install.iter().cloned().map(Part::Package).chain(parts_of_way_back(order)).collect()
}

/// Whether everything that an order changed is as it was before, where what is installed says so, or `goal`, which is its way back.
///
/// # Errors
/// When that cannot be said.
pub fn is_back(
    order: &Order,
    installed: &Installed,
    goal: Option<&Goal>,
    started: &mut Started<'_>,
) -> Result<bool, ChangeError> {
    match goal {
        Some(Goal::Script(goal)) => Ok(goal.is_reached(started)?),
        Some(Goal::Packages(_)) | None => Ok(packages::is_back(order, installed)),
    }
}

impl Part {
    /// Its name, for people.
    pub fn name(&self) -> String {
        match self {
            Self::Package(file) => format!("{} {}", file.name, file.version),
            Self::Program(file) | Self::Beside(file) => file.name.to_string(),
        }
    }

    /// By which it is fetched.
    pub fn payload(&self) -> Payload {
        match self {
            Self::Package(file) => file.into(),
            Self::Program(file) | Self::Beside(file) => file.into(),
        }
    }

    /// The drafter may err: a file must be what the order calls it. With what it takes when it is unpacked, bytes.
    ///
    /// # Errors
    /// What it is instead, for people.
    pub fn identify(&self, path: &Path, packages: &dyn PackageManager) -> Result<u64, String> {
        match self {
            Self::Package(file) => {
                let found = packages.identify(path).map_err(|error| error.to_string())?;
                let same = (found.id.name.as_str(), found.id.arch.as_str(), found.version.as_str())
                    == (&*file.name, &*file.arch, &*file.version);
                let (id, version) = (found.id, found.version);
                let reason =
                    || format!("file {} is {id} {version}, the order calls it {}", file.sha256.short(), file.name);
                if same { Ok(found.unpacked) } else { Err(reason()) }
            }
            Self::Program(file) => match begins_with_interpreter(path) {
                Ok(true) => Ok(file.size),
                Ok(false) => Err(format!("the order's script {} does not begin with #!", file.name)),
                Err(error) => Err(format!("{}: {error}", path.display())),
            },
            Self::Beside(file) => Ok(file.size),
        }
    }
}

fn begins_with_interpreter(path: &Path) -> io::Result<bool> {
    let mut first = Vec::new();
    fs::File::open(path)?.take(document::script::INTERPRETER_BYTES).read_to_end(&mut first)?;
    Ok(document::script::begins_with_interpreter(&first))
}

/// Where the files of a plan are.
#[derive(Debug)]
pub struct Places {
    /// The order's digest.
    pub order: Digest,
    /// One for each of the plan's parts.
    pub files: Vec<PathBuf>,
    /// A folder of the run's own, for what is made of them.
    pub room: PathBuf,
}

impl Plan {
    /// The files that it takes.
    pub fn parts(&self) -> Vec<Part> {
        match self {
            Self::Packages(plan) => plan.files.iter().cloned().map(Part::Package).collect(),
            Self::Script(plan) => script::parts(&plan.script).collect(),
        }
    }

    /// What there is to reach, now that its files are there.
    pub fn goal(&self, places: Places) -> Goal {
        match self {
            Self::Packages(plan) => {
                Goal::Packages(crate::packages::Goal { install: places.files, remove: plan.remove.clone() })
            }
            Self::Script(plan) => Goal::Script(Box::new(plan.goal(places))),
        }
    }

    /// Where the host stands, now that it was gone for.
    pub fn stand(&self, installed: Installed, outcome: &Outcome) -> Stand {
        match (self, &outcome.found) {
            (Self::Script(plan), Some(found)) => Stand::Script(found.clone(), plan.action),
            (Self::Packages(plan), _) => {
                let missed = plan.missed(&installed);
                Stand::Packages(installed, missed)
            }
            // Never: whoever goes for a script's goal finds something.
            (Self::Script(plan), None) => Stand::Script(Found::Neither("nobody looked".into()), plan.action),
        }
    }

    /// The transaction that the order alone describes.
    fn transaction(&self, installed: &Installed) -> Transaction {
        match self {
            Self::Packages(plan) => plan.transaction(installed),
            Self::Script(plan) => Transaction::new(installed.system, [plan.change()]),
        }
    }
}

/// How going for a goal went.
#[derive(Debug)]
pub struct Outcome {
    /// How whoever worked on it ended.
    pub committed: Committed,
    /// What `verify` says then, of a script.
    found: Option<Found>,
}

/// Where the host stands after the work.
#[derive(Debug)]
pub enum Stand {
    /// What is installed, and what should be.
    Packages(Installed, Vec<String>),
    /// What `verify` says, and what it should say.
    Script(Found, Action),
}

impl Stand {
    /// What is not where it should be; nothing when all is.
    pub fn missed(&self) -> Option<String> {
        match self {
            Self::Packages(_, missed) if missed.is_empty() => None,
            Self::Packages(_, missed) => {
                let shown = missed.iter().take(4).cloned().collect::<Vec<_>>().join(", ");
                Some(format!("not where they should be: {shown}"))
            }
            Self::Script(found, action) => (!found.is_after(*action)).then(|| found.to_string()),
        }
    }

    /// The same in every case, for people.
    pub fn told(&self) -> String {
        match self {
            Self::Packages(..) => self.missed().unwrap_or_else(|| "every package is where it should be".into()),
            Self::Script(found, _) => found.to_string(),
        }
    }

    /// Whether one item of the transaction is where it should be.
    pub fn has(&self, item: &Item) -> bool {
        match self {
            Self::Packages(installed, _) => {
                let id = PackageId::new(&item.name, &item.arch);
                installed.settled.version(&id).unwrap_or_default() == item.to
            }
            Self::Script(..) => self.missed().is_none(),
        }
    }
}

/// Whether going for a goal twice is a part of what the lab proves of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Twice {
    /// A host may do so after it was interrupted.
    Proven,
    /// A host never does: a transaction that is cut off is finished in another way.
    Never,
}

impl Goal {
    /// Who works on it, for people.
    pub fn worker(&self) -> &'static str {
        match self {
            Self::Packages(_) => "the package manager",
            Self::Script(goal) => goal.worker(),
        }
    }

    /// What a run is at meanwhile, for people.
    pub fn phase(&self) -> &'static str {
        match self {
            Self::Packages(_) => "package manager",
            Self::Script(_) => "script",
        }
    }

    /// Whether it must be possible to go for it twice.
    pub fn twice(&self) -> Twice {
        match self {
            Self::Packages(_) => Twice::Never,
            Self::Script(_) => Twice::Proven,
        }
    }

    fn files(&self) -> &[PathBuf] {
        match self {
            Self::Packages(goal) => &goal.install,
            Self::Script(goal) => &goal.files,
        }
    }

    /// The first of its files that is not what it was when it was verified.
    pub fn altered(&self) -> Option<&PathBuf> {
        self.files().iter().find(|file| !fetch::is_what_its_name_says(file))
    }

    /// What reaching it would change; changes nothing. Blocks, until `deadline` at the latest.
    ///
    /// # Errors
    /// When that cannot be said, or the goal not be reached.
    pub fn simulate(
        &self,
        packages: &dyn PackageManager,
        deadline: Instant,
        started: &mut Started<'_>,
    ) -> Result<Transaction, ChangeError> {
        match self {
            Self::Packages(goal) if goal.install.is_empty() && goal.remove.is_empty() => {
                Ok(Transaction::new(packages.system(), []))
            }
            Self::Packages(goal) => Ok(packages.simulate(goal, deadline)?),
            Self::Script(goal) => {
                let found = goal.look(started)?;
                Ok(Transaction::new(packages.system(), [script::may(goal, &found)?]))
            }
        }
    }

    /// Goes for it. What fails is finished as far as that is possible, within `settle` after `deadline`.
    ///
    /// # Errors
    /// When nothing could be started; how it ended is in the answer.
    pub fn commit(
        &self,
        packages: &dyn PackageManager,
        deadline: Instant,
        settle: Duration,
        started: &mut Started<'_>,
    ) -> Result<Outcome, ChangeError> {
        use patchlab_check::target::Ended;
        let committed = match self {
            Self::Packages(goal) => packages.commit(goal, deadline, started)?,
            Self::Script(goal) => goal.commit(deadline, started)?,
        };
        // What failed by itself would fail again; what ran out of time or was killed is finished.
        let finished = &committed.finished;
        let past = match finished.ended == Ended::ByTimeout || finished.exit.is_none() {
            true => Past::Interrupted,
            false => Past::Ended,
        };
        let found = match self {
            Self::Packages(_) if finished.succeeded() => None,
            Self::Packages(goal) => {
                let again = (past == Past::Interrupted).then_some(goal);
                if let Err(error) = finish(packages, again, settle, started) {
                    tracing::warn!(%error, "packages were left half-way");
                }
                None
            }
            Self::Script(goal) => Some(goal.settle(past, settle, started)),
        };
        Ok(Outcome { committed, found })
    }

    /// Whether the host asks for a reboot after this.
    pub fn reboot(&self, packages: &dyn PackageManager, done: &Transaction) -> Reboot {
        match self {
            Self::Packages(_) => packages.reboot(done),
            // What a script changed has no names; a host says by itself what its package manager asks for.
            Self::Script(_) => packages.reboot(&Transaction::new(done.system(), [])),
        }
    }
}

/// Finishes what an earlier agent left half-way when it went for `goal`; where the host stands then, where that can be said.
///
/// # Errors
/// When something stays half-way.
pub fn recover(
    packages: &dyn PackageManager,
    goal: Option<&Goal>,
    time: Duration,
    started: &mut Started<'_>,
) -> Result<Option<String>, ChangeError> {
    match goal {
        None => finish(packages, None, time, started).map(|()| None),
        Some(Goal::Packages(goal)) => finish(packages, Some(goal), time, started).map(|()| None),
        Some(Goal::Script(goal)) => Ok(Some(goal.recover(time, started).to_string())),
    }
}

/// Finishes what a package manager left half-way. A package whose files were being replaced cannot be configured: there
/// the transaction is carried on, from the files that were verified for it.
fn finish(
    packages: &dyn PackageManager,
    goal: Option<&crate::packages::Goal>,
    time: Duration,
    started: &mut Started<'_>,
) -> Result<(), ChangeError> {
    let deadline = Instant::now() + time;
    let Err(error) = packages.settle(deadline, started) else { return Ok(()) };
    let Some(goal) = goal.filter(|goal| goal.install.iter().all(|file| fetch::is_what_its_name_says(file))) else {
        return Err(error.into());
    };
    tracing::warn!(%error, "packages are half-way; carrying the transaction on");
    Ok(packages.resume(goal, deadline, started)?)
}

/// Whether a release says what the order changed in the lab. A provisional one does not, and counts in the lab alone.
///
/// # Errors
/// `not-released`.
pub fn proves_transaction(release: &Release, audience: Audience) -> Result<(), Refused> {
    let said = release.proof.baselines.iter().any(|baseline| !baseline.transaction.is_empty());
    if said || audience == Audience::Lab {
        return Ok(());
    }
    let reason = "the release does not say what the order changed in the lab: that is for the lab alone";
    Err(Refused::new(Refusal::NotReleased, reason))
}

/// Compares what would be changed with what was proven.
///
/// For apply, a release's transactions decide; a provisional release has none, and counts in the lab alone, where the agent reports what it
/// did. For rollback the order itself decides: these versions back, those packages gone, its script taken back, nothing else.
///
/// # Errors
/// `transaction-differs`, naming the first line that differs; `not-released`, when the release proves no transaction.
pub fn compare(
    simulated: &Transaction,
    plan: &Plan,
    release: Option<&Release>,
    audience: Audience,
    installed: &Installed,
) -> Result<(), Refused> {
    let found = simulated.lines();
    let proven: Vec<Vec<String>> = match release {
        Some(release) => {
            release.proof.baselines.iter().map(|b| b.transaction.clone()).filter(|t| !t.is_empty()).collect()
        }
        None => vec![plan.transaction(installed).lines()],
    };
    let sorted = proven.into_iter().map(|mut lines| {
        lines.sort();
        lines
    });
    let sorted: Vec<Vec<String>> = sorted.collect();
    let Some(first) = sorted.first() else {
        return release.map_or(Ok(()), |release| proves_transaction(release, audience));
    };
    if sorted.contains(&found) {
        return Ok(());
    }
    let reason = format!("the simulation differs: {}", difference(&found, first));
    Err(Refused::new(Refusal::TransactionDiffers, reason))
}

/// The first line in which what would be done now differs from what was expected, for people.
pub fn difference(found: &[String], expected: &[String]) -> String {
    let extra = found.iter().find(|line| !expected.contains(line)).map(|line| format!("it would {line}"));
    let lacking = expected.iter().find(|line| !found.contains(line)).map(|line| format!("it would not {line}"));
    extra.or(lacking).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use patchlab_protocol::PackageSystem;

    use super::*;

    #[test]
    fn a_rollback_that_would_do_more_is_refused() {
        let before = Installed {
            system: Some(PackageSystem::Dpkg),
            settled: "web all 2\nlib all 1\nuser all 1\n".parse().unwrap(),
            unsettled: "".parse().unwrap(),
            sources: std::collections::BTreeMap::new(),
        };
        let here = Here { rule: script::Rule::Refuse, begun: script::Begun::Never };
        let plan = plan(&packages::tests::order(), Action::Rollback, &before, here).unwrap();
        let exact = before.settled.changes_to(&"user all 1\nweb all 1\n".parse().unwrap(), PackageSystem::Dpkg);
        assert!(compare(&exact, &plan, None, Audience::Production, &before).is_ok());
        let more = before.settled.changes_to(&"web all 1\n".parse().unwrap(), PackageSystem::Dpkg);
        let refused = compare(&more, &plan, None, Audience::Production, &before).unwrap_err();
        assert_eq!(refused.refusal, Refusal::TransactionDiffers);
        assert!(refused.reason.contains("remove user all 1 -> -"), "{refused}");
    }

    #[test]
    fn a_release_that_proves_no_transaction_counts_in_the_lab_alone() {
        let installed = |settled: &str| Installed {
            system: Some(PackageSystem::Dpkg),
            settled: settled.parse().unwrap(),
            unsettled: "".parse().unwrap(),
            sources: std::collections::BTreeMap::new(),
        };
        let before = installed("web all 1\n");
        let here = Here { rule: script::Rule::Refuse, begun: script::Begun::Never };
        let order = packages::tests::order();
        let plan = plan(&order, Action::Apply, &before, here).unwrap();
        let would = before.settled.changes_to(&"web all 2\nlib all 1\n".parse().unwrap(), PackageSystem::Dpkg);
        let class = serde_json::to_value(&order.class).unwrap();
        let asked = |transaction: &[String], audience| {
            let baseline = serde_json::json!({
                "name": "b@1", "digest": Digest::of("b"), "transaction": transaction, "apply_ms": 1, "rollback_ms": 1,
                "reboot_needed": false, "rollback": "proven",
            });
            let release: Release = serde_json::from_value(serde_json::json!({
                "result": "PASSED", "configuration": [], "passedTests": [], "failedTests": [],
                "proof": {
                    "order": Digest::of("o"), "class": class, "at": "2026-01-01T00:00:00Z", "baselines": [baseline],
                },
            }))
            .unwrap();
            compare(&would, &plan, Some(&release), audience, &before).map_err(|refused| refused.refusal)
        };
        assert_eq!(asked(&[], Audience::Lab), Ok(()));
        assert_eq!(asked(&[], Audience::Production), Err(Refusal::NotReleased));
        assert_eq!(asked(&would.lines(), Audience::Production), Ok(()));
    }

    #[test]
    fn a_goal_that_an_older_agent_journaled_is_read() {
        let old = r#"{"install":["/state/files/1-1/x.deb"],"remove":[{"name":"lib","arch":"all"}]}"#;
        let goal: Goal = serde_json::from_str(old).unwrap();
        assert!(matches!(&goal, Goal::Packages(goal) if goal.remove.len() == 1), "{goal:?}");
        assert_eq!(serde_json::to_string(&goal).unwrap(), old, "an older agent reads ours");
        assert!(serde_json::from_str::<Goal>(r#"{"install":[]}"#).is_err());
    }
}
