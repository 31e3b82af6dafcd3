//! A validation's worker: payload server, inform sink and SNMP manager of its own, on the loopback of its own network namespace;
//! and the lab, which calls the applier that uses them. It holds no key: every document was signed before it started.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use anyhow::Context as _;
use patchlab_check::Status;
use patchlab_lab::{
    ArtifactStore, Baseline, Lab,
    applier::Role,
    baseline::Baselines,
    control,
    kept::{Keep, SavedClone},
    report::BaselineReport,
    runs::Scope,
    scenario::{Scenario, discover, today},
    validation::{Against, Event, Reboot, Validated, Validation},
    verdict::{Policy, PreExisting},
    worker::Inside,
};
use serde::{Deserialize, Serialize};

use super::{
    applier::{APPLY_WITHIN, CloneIdentity, LabEndpoints, SnmpApplier},
    control::Control,
    provisional::Provisional,
};
use crate::{
    deploy::sink::{Bells, Sink},
    payload::{self, InMemory},
};

/// The folder of the scenarios, in the worker's own.
pub const SCENARIOS: &str = "scenarios";
/// The folder of clones that are to be kept, in the worker's own.
pub const SAVED: &str = "saved";

/// What a worker is told: validate this order on that baseline.
#[derive(Debug, Serialize, Deserialize)]
pub struct Ask {
    /// The baseline's digest.
    pub baseline: String,
    /// The documents, signed for clones named by [`super::applier::host_name`].
    pub documents: Provisional,
    /// Names of the packages that the order changes.
    pub changed: BTreeSet<String>,
    /// The tools disk's name in the worker's folder.
    pub tools: String,
    /// How.
    pub manner: Manner,
    /// Which of the scenarios' steps.
    pub scope: Scope,
    /// Which control; one that is remembered is in the worker's folder.
    pub control: Control,
    /// Digests of the baselines of machines beside the one under test, by the names that scenarios give them.
    pub others: BTreeMap<String, String>,
}

/// How an order is validated.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Manner {
    /// When clones reboot.
    pub reboot: Reboot,
    /// When clones are kept.
    pub keep: Keep,
    /// Which control the patched clone is compared with.
    #[serde(default)]
    pub control: Control,
    /// Longest duration of the apply, and of the rollback; absent means [`APPLY_WITHIN`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub apply_within: Option<Duration>,
    /// What a failure on both clones means.
    #[serde(default)]
    pub pre_existing: PreExisting,
}

/// What a worker says.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Tell {
    /// A phase begins.
    Phase(String),
    /// A step ended on a clone.
    Step {
        /// The scenario.
        scenario: String,
        /// The step.
        step: String,
        /// The clone.
        role: Role,
        /// How.
        status: Status,
    },
    /// Something people should know.
    Note(String),
    /// What shows that a clone is nobody's twin.
    Evidence(String),
    /// The agent is this far.
    Agent {
        /// Apply or rollback.
        action: patchlab_protocol::document::Action,
        /// State and phase.
        what: String,
    },
    /// The end.
    Done {
        /// What was found.
        report: Box<BaselineReport>,
        /// The clones that were saved, in the worker's folder [`SAVED`].
        saved: Vec<SavedClone>,
        /// Why it decides nothing, and a control must stand beside the patched clone.
        disagreement: Option<String>,
    },
    /// The lab could not even begin.
    Failed(String),
}

/// The worker's side.
pub fn serve(mut inside: Inside) -> anyhow::Result<()> {
    let Some(ask) = inside.receiver.receive::<Ask>()? else { return Ok(()) };
    let told = match validate(&inside, ask) {
        Ok(Validated { report, saved, control, disagreement }) => {
            // What cannot be remembered is found out once more.
            if let Some(Err(error)) = control.map(|record| control::put(&record, &inside.places.work)) {
                tracing::warn!(%error, "what was found out about the control cannot be written down");
            }
            Tell::Done { report: Box::new(report), saved, disagreement }
        }
        Err(error) => Tell::Failed(format!("{error:#}")),
    };
    Ok(inside.sender.send(&told)?)
}

fn validate(inside: &Inside, ask: Ask) -> anyhow::Result<Validated> {
    let baseline = Baselines::open(&inside.places).get(&ask.baseline)?;
    let scenarios = chosen(discover(&[inside.places.work.join(SCENARIOS)])?, &ask.scope);
    let others = opened(inside, &ask.others)?;
    let lab = Lab::open(&inside.places, &inside.driver)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let clones = [Role::Control, Role::Patched]
        .into_iter()
        .map(|role| CloneIdentity::generate(&baseline.full_name(), role))
        .collect::<anyhow::Result<Vec<_>>>()?;
    let bells = Bells::default();
    let (endpoints, _sink) = runtime.block_on(open_endpoints(inside, &ask.documents, &clones, &bells))?;
    let teller = inside.sender.clone();
    let moved = move |action, progress: &crate::deploy::row::Progress| {
        let what = format!("{} {}% {}", progress.state.name(), progress.percent, progress.phase);
        // A parent that is gone ends us by other means.
        let _ = teller.send(&Tell::Agent { action, what });
    };
    let tools: PathBuf = inside.places.work.join(&ask.tools);
    let handle = runtime.handle().clone();
    let applier = SnmpApplier::new(handle, ask.documents, endpoints, clones, bells, tools, moved);
    let applier = applier.within(ask.manner.apply_within.unwrap_or(APPLY_WITHIN));
    let observer = |event: Event<'_>| {
        let told = match event {
            Event::Phase(name) => Tell::Phase(name.to_owned()),
            Event::Step { scenario, step, role, status } => {
                Tell::Step { scenario: scenario.to_owned(), step: step.to_owned(), role, status }
            }
            Event::Note(text) => Tell::Note(text.to_owned()),
            Event::Evidence(text) => Tell::Evidence(text.to_owned()),
        };
        let _ = inside.sender.send(&told);
    };
    let remembered = match ask.control {
        Control::Beside => None,
        Control::Remembered => Some(control::given(&inside.places.work)?),
    };
    let validation = Validation {
        lab: &lab,
        baseline: &baseline,
        scenarios: &scenarios,
        others: &others,
        changed: &ask.changed,
        applier: &applier,
        reboot: ask.manner.reboot,
        keep: (ask.manner.keep, &inside.places.work.join(SAVED)),
        against: remembered.as_ref().map_or(Against::Beside, Against::Remembered),
        policy: Policy { pre_existing: ask.manner.pre_existing },
        until: match &ask.scope {
            Scope::Before(point) => Some(point),
            _ => None,
        },
        today: today(),
        observer: &observer,
    };
    Ok(validation.run())
}

/// Baselines by the names that scenarios give them, from their digests.
pub(super) fn opened(inside: &Inside, others: &BTreeMap<String, String>) -> anyhow::Result<BTreeMap<String, Baseline>> {
    let store = Baselines::open(&inside.places);
    let open = |(name, digest): (&String, &String)| Ok((name.clone(), store.get(digest)?));
    others.iter().map(open).collect()
}

/// The scenarios of a scope. Of one that is tried up to a step, the steps before that one may be what it builds on; those after are not.
fn chosen(mut scenarios: Vec<Scenario>, scope: &Scope) -> Vec<Scenario> {
    match scope {
        // It stops by itself, where it is to.
        Scope::Whole | Scope::Before(_) => {}
        Scope::Scenarios(names) => scenarios.retain(|scenario| names.contains(&scenario.name)),
        Scope::Step { scenario: name, step } => {
            scenarios.retain(|scenario| scenario.name == *name);
            for scenario in &mut scenarios {
                let upto = scenario.steps.iter().position(|other| other.name == *step);
                scenario.steps.truncate(upto.map_or(0, |at| at + 1));
            }
        }
    }
    scenarios
}

/// Opens the payload server and the inform sink, on ports that the kernel chooses.
pub(super) async fn open_endpoints(
    inside: &Inside,
    documents: &Provisional,
    clones: &[CloneIdentity],
    bells: &Bells,
) -> anyhow::Result<(LabEndpoints, Sink)> {
    let artifacts = ArtifactStore::open(&inside.places.artifacts)?;
    let router = payload::router(Arc::new(InMemory::new(documents.documents(), artifacts)));
    let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.context("open the payload server")?;
    let payload_port = listener.local_addr()?.port();
    tokio::spawn(async move { axum::serve(listener, router).await });
    let senders = clones.iter().map(|clone| (clone.host.clone(), clone.material.credentials.inform.clone())).collect();
    let kept = inside.places.work.join("manager-engine.json");
    let sink = Sink::open(&kept, SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), senders, bells.clone()).await?;
    let endpoints =
        LabEndpoints { payload_port, inform_port: sink.address.port(), manager_engine: sink.engine_id.clone() };
    Ok((endpoints, sink))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scope_chooses_scenarios_and_steps() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["one", "two"] {
            let steps: String = (1..=3).map(|n| format!("[[step]]\nname = \"step {n}\"\nrun = \"true\"\n")).collect();
            let text = format!("name = \"{name}\"\nowner = \"qa\"\nsummary = \"s\"\n{steps}");
            std::fs::create_dir(dir.path().join(name)).unwrap();
            std::fs::write(dir.path().join(name).join("scenario.toml"), text).unwrap();
        }
        let all = || discover(&[dir.path().to_owned()]).unwrap();
        let of = |scope: Scope| -> Vec<(String, usize)> {
            chosen(all(), &scope).into_iter().map(|scenario| (scenario.name, scenario.steps.len())).collect()
        };
        assert_eq!(of(Scope::Whole), [("one".to_owned(), 3), ("two".to_owned(), 3)]);
        assert_eq!(of(Scope::Scenarios(vec!["two".into()])), [("two".to_owned(), 3)]);
        let upto = |step: &str| Scope::Step { scenario: "one".into(), step: step.into() };
        assert_eq!(of(upto("step 2")), [("one".to_owned(), 2)]);
        assert_eq!(of(upto("step 9")), [("one".to_owned(), 0)]);
    }
}
