//! The pipeline's acts, each a gate and a journaled change: submit, judge, release, approve, activate, roll back, enrol.
//!
//! The API calls these; nothing else changes the store. Calls block (disk, hashing of package files) except where they say so.

mod admission;
mod enrolment;
mod machine;
mod release;

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError, RwLock},
    time::Duration,
};

use jiff::Timestamp;
use patchlab_lab::{
    ArtifactError, ArtifactStore,
    report::{Report, ReportError},
    snapshot::SnapshotError,
    verdict::Judgement,
};
use patchlab_protocol::{
    Digest, Envelope, PublicKey, Refusal, Refused, Role, SigningKey,
    authorization::Documents,
    document::{Action, Activation, Class, Order, Preparation, Release, Root, RunState, Script},
    key::KeyError,
    limits,
    trust::successor,
};
use serde::{Deserialize, Serialize};
use serde_json::json;

pub use admission::{TokenMade, TokenRequest};
pub use enrolment::{EnrolmentRequest, EnrolmentTerms};
pub use machine::MachineRequest;

use crate::{
    audit::Event,
    deploy::{
        DeployError,
        credentials::{Credentials, CredentialsError},
        executor::{self, Executor},
        offers::OfferError,
        rotation::{self, RotationError},
        sink::Sink,
        survey::{self, Looked},
    },
    enrol::TermsError,
    gate,
    place::{Data, PlaceError},
    store::{Deployment, Host, OrderRow, OrderState, PreparationRow, Run, Store, StoreError, Survey, action_name},
    trust::{
        authority::{Authority, AuthorityError, TakenIn},
        signer::{Signer, SignerError},
    },
    window::{self, Wanted, WindowError},
};

/// The running pipeline.
#[derive(Debug)]
pub struct Pipeline {
    /// What is remembered.
    pub store: Arc<Store>,
    /// Where files lie.
    pub data: Data,
    /// Package files.
    pub artifacts: ArtifactStore,
    /// Whose signature counts, and what was revoked.
    pub authority: Arc<Authority>,
    /// Carries activations out.
    pub executor: Executor,
    /// Hears informs.
    pub sink: Sink,
    /// Where agents fetch documents and files.
    pub payload: SocketAddr,
    /// Where hosts with a token come, as bound.
    pub enrolment: SocketAddr,
    /// Whom they believe there: SHA-256 of the door's SubjectPublicKeyInfo.
    pub pin: Digest,
    /// Held while one is considered.
    pub admitting: Mutex<()>,
    /// Signs activations.
    pub activator: RwLock<Arc<SigningKey>>,
    /// Signs releases, elsewhere.
    pub signer: Option<Signer>,
}

/// An act was not done.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PipelineError {
    /// The gate's no, by name.
    #[error("{0}")]
    Refused(#[from] Refused),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A package file.
    #[error(transparent)]
    Artifact(#[from] ArtifactError),
    /// The verdict.
    #[error(transparent)]
    Verdict(#[from] ReportError),
    /// The signer.
    #[error(transparent)]
    Signer(#[from] SignerError),
    /// A host's credentials.
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    /// A host's keys.
    #[error(transparent)]
    Rotation(#[from] RotationError),
    /// A host's machine.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// A root or a revocation list.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    /// A host could not be enrolled on these terms.
    #[error(transparent)]
    Terms(#[from] TermsError),
    /// Fresh secrets.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// A folder or file.
    #[error(transparent)]
    Place(#[from] PlaceError),
    /// What a host is told, or was told, has no readable form.
    #[error("a host's configuration cannot be written or read: {0}")]
    Unwritable(String),
    /// What was asked makes no sense.
    #[error("{0}")]
    Input(String),
    /// A host could not be asked.
    #[error(transparent)]
    Host(#[from] DeployError),
    /// No host could keep the window that was asked for.
    #[error(transparent)]
    Window(#[from] WindowError),
    /// A run that changes its host already is not cancelled.
    #[error("{host} is {}: what has begun is never interrupted; when it has ended, patchlab order rollback takes it back", .state.name())]
    TooLate {
        /// The host.
        host: String,
        /// Where it is.
        state: RunState,
    },
}

/// What is to be activated.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ActivationRequest {
    /// The hosts, by name.
    pub hosts: Vec<String>,
    /// Apply or rollback.
    pub action: Action,
    /// Seconds it is valid; absent means [`window::LIFETIME`].
    #[serde(default)]
    pub lifetime_s: Option<u64>,
    /// When it counts; absent means at once.
    #[serde(default)]
    pub window: Option<Wanted>,
}

/// What hosts are to do with an order ahead of an activation.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PreparationRequest {
    /// The hosts, by name.
    pub hosts: Vec<String>,
    /// Look at it, or fetch it.
    pub what: Preparation,
}

/// Which runs of an order are to be cancelled.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CancelRequest {
    /// The hosts, by name; empty means all.
    pub hosts: Vec<String>,
}

impl From<OfferError> for PipelineError {
    fn from(error: OfferError) -> Self {
        match error {
            OfferError::Store(error) => Self::Store(error),
            OfferError::Deploy(error) => Self::Host(error),
            OfferError::Credentials(error) => Self::Credentials(error),
        }
    }
}

impl Pipeline {
    /// Takes an order in: signed by a drafter, every file there and unaltered.
    pub fn submit(&self, envelope: &Envelope, actor: &str) -> Result<OrderRow, PipelineError> {
        let order = gate::submit(&self.authority.standing().root().root, envelope)?;
        if order.install.len() + order.replaces.len() > limits::FILES_PER_ORDER {
            return Err(PipelineError::Input(format!(
                "order {} names more than {} files",
                order.id,
                limits::FILES_PER_ORDER
            )));
        }
        for digest in files(&order) {
            self.artifacts.verify(&digest)?;
        }
        let detail = json!({ "digest": envelope.digest(), "title": order.title });
        let row = self.store.submit(envelope, &order, &Event::new("order-submitted", &order.id, detail).by(actor))?;
        // The same order by another drafter: after a rotation of keys it counts by his signature.
        let there = self.store.envelope(&row.digest)?;
        let mut signed = there.clone();
        signed.absorb(envelope, self.authority.standing().root().root.keys(Role::Drafter));
        if signed != there {
            let detail = json!({ "digest": row.digest, "signers": signed.claimed_signers() });
            self.store.sign_again(&signed, &Event::new("order-signed", &order.id, detail).by(actor))?;
        }
        Ok(row)
    }

    /// Takes the lab's verdict in.
    pub fn judge(&self, name: &str, json: &str, actor: &str) -> Result<OrderRow, PipelineError> {
        let order = self.store.order(name)?;
        let verdict = Report::from_json(json.as_bytes())?;
        if verdict.order != order.digest {
            return Err(PipelineError::Input(format!(
                "the verdict is over order {}, {} is {}",
                verdict.order.short(),
                order.id,
                order.digest.short()
            )));
        }
        let next = match verdict.verdict {
            Judgement::Passed => Some(OrderState::Validated),
            Judgement::Rejected => Some(OrderState::Rejected),
            // Says nothing about the patch, or not enough: another validation may.
            Judgement::Inapplicable | Judgement::LabError | Judgement::Missing => None,
        };
        let detail = json!({ "verdict": verdict.verdict, "reason": verdict.reason, "json": Digest::of(json) });
        let event = Event::new("verdict-received", &order.id, detail).by(actor);
        self.store.judge(&order.digest, &verdict, json, next, &event)?;
        Ok(self.store.order(name)?)
    }

    /// Takes an approval in, signed elsewhere.
    pub fn approve(&self, name: &str, envelope: &Envelope, actor: &str) -> Result<Digest, PipelineError> {
        let order = self.store.order(name)?;
        let written = self.store.envelope(&order.digest)?;
        let release = self.store.newest_release(&order.digest)?.map(|d| self.store.envelope(&d)).transpose()?;
        let standing = self.authority.standing();
        let documents = [
            ("order", Some(order.digest)),
            ("release", release.as_ref().map(Envelope::digest)),
            ("approval", Some(envelope.digest())),
        ];
        let by = order.superseded.as_deref();
        let current = || gate::not_superseded(&order.id, by, Refusal::NotApproved);
        let asked = gate::not_revoked(&standing.revoked(), documents).and_then(|()| current()).and_then(|()| {
            let (root, revoked) = (&standing.root().root, standing.revoked());
            gate::approve(root, &written, release.as_ref(), envelope, &revoked, Timestamp::now())
        });
        let approval = self.note_refusal("approval-refused", &order.id, actor, asked)?;
        let detail = json!({
            "approval": envelope.digest(), "approver": approval.approver, "hosts_at_most": approval.hosts_at_most,
            "not_after": approval.not_after,
        });
        Ok(self.store.approve(envelope, &approval, &Event::new("order-approved", &order.id, detail).by(actor))?)
    }

    /// Signs an activation and has it carried out.
    pub fn activate(&self, name: &str, request: &ActivationRequest, actor: &str) -> Result<Deployment, PipelineError> {
        let order = self.store.order(name)?;
        let envelope = self.store.envelope(&order.digest)?;
        let hosts = executor::sequence(&order.digest, &request.hosts);
        let site = self.site(&hosts)?;
        let now = Timestamp::now();
        let release =
            self.store.newest_release(&order.digest)?.map(|digest| self.store.envelope(&digest)).transpose()?;
        let release = release.and_then(|release| release.statement::<Release>().ok()).map(|release| release.predicate);
        let needs = window::measured(request.action, release.as_ref());
        let lifetime = request.lifetime_s.map(Duration::from_secs);
        let (not_before, not_after) = window::validity(now, request.window, lifetime, needs)?;
        let rests_on = match request.action {
            Action::Rollback => None,
            Action::Apply => {
                let current = gate::not_superseded(&order.id, order.superseded.as_deref(), Refusal::NotActive);
                let found = self.rests_on(&order.digest, &envelope, &hosts, now.max(not_before))?;
                Some(self.note_refusal("activation-refused", &order.id, actor, current.and(found))?)
            }
        };
        let activation = Activation {
            order: order.digest,
            action: request.action,
            site,
            wave: 1,
            hosts: hosts.clone(),
            at: now,
            not_before,
            not_after,
        };
        let signed = Envelope::sign(activation, &self.activator.read().unwrap_or_else(PoisonError::into_inner));
        self.begin(name, &signed, rests_on, actor)
    }

    /// Has a rollback carried out that an operator signed.
    pub fn rollback(&self, name: &str, envelope: &Envelope, actor: &str) -> Result<Deployment, PipelineError> {
        self.begin(name, envelope, None, actor)
    }

    /// The last look before anything is told to a host: the agent's own rule, for every host.
    fn begin(
        &self,
        name: &str,
        envelope: &Envelope,
        rests_on: Option<(Digest, Digest)>,
        actor: &str,
    ) -> Result<Deployment, PipelineError> {
        let order = self.store.order(name)?;
        let written = self.store.envelope(&order.digest)?;
        let activation: Activation = envelope
            .statement()
            .map_err(|error| Refused::new(Refusal::NotActive, format!("activation: {error}")))?
            .predicate;
        let (release, approval) = match rests_on {
            Some((release, approval)) => (Some(self.store.envelope(&release)?), Some(self.store.envelope(&approval)?)),
            None => (None, None),
        };
        let documents = Documents {
            order: &written,
            release: release.as_ref(),
            approval: approval.as_ref(),
            activation: Some(envelope),
        };
        let hosts = executor::sequence(&order.digest, &activation.hosts);
        let known = hosts.iter().map(|host| self.store.host(host)).collect::<Result<Vec<_>, _>>()?;
        let classes = known.iter().map(|host| {
            let class: Option<Class> = host.class.as_deref().and_then(gate::class);
            (host.enrolled.name.as_str(), class)
        });
        let standing = self.authority.standing();
        let asked = gate::activate(&standing.root().root, &documents, &standing.ledger(), classes, Timestamp::now());
        self.note_refusal("activation-refused", &order.id, actor, asked)?;
        let action = action_name(activation.action);
        let detail = json!({
            "activation": envelope.digest(), "action": action, "hosts": hosts, "not_before": activation.not_before,
            "not_after": activation.not_after,
        });
        let event = Event::new("order-activated", &order.id, detail).by(actor);
        let deployment = self.store.activate(envelope, &activation, rests_on, &hosts, &event)?;
        self.executor.spawn(deployment.clone());
        Ok(deployment)
    }

    /// Has runs of an order end that have not begun to change their hosts: at once here, and at the host as soon as it can be told.
    pub fn cancel(&self, name: &str, request: &CancelRequest, actor: &str) -> Result<Vec<Run>, PipelineError> {
        let order = self.store.order(name)?;
        let mut open = self.store.runs_of_order(&order.digest)?;
        open.retain(|run| !run.stage.is_final());
        if let Some(idle) = request.hosts.iter().find(|host| open.iter().all(|run| run.host != **host)) {
            return Err(PipelineError::Input(format!("no run of {} is under way on {idle}", order.id)));
        }
        open.retain(|run| request.hosts.is_empty() || request.hosts.contains(&run.host));
        if open.is_empty() {
            return Err(PipelineError::Input(format!("no run of {} is under way", order.id)));
        }
        let begun = open.iter().find_map(|run| Some((run, run.state.filter(|state| executor::has_begun(*state))?)));
        if let Some((run, state)) = begun {
            return Err(PipelineError::TooLate { host: run.host.clone(), state });
        }
        open.iter().map(|run| Ok(self.executor.cancel(run, "cancelled", actor)?)).collect()
    }

    /// Has hosts look at an order, or fetch it, ahead of an activation. The gate asks the agent's own rule first.
    pub fn prepare(
        &self,
        name: &str,
        request: &PreparationRequest,
        actor: &str,
    ) -> Result<Vec<PreparationRow>, PipelineError> {
        let order = self.store.order(name)?;
        let written = self.store.envelope(&order.digest)?;
        let hosts = executor::sequence(&order.digest, &request.hosts);
        self.site(&hosts)?;
        let release = self.store.newest_release(&order.digest)?;
        let proof = release.map(|digest| self.store.envelope(&digest)).transpose()?;
        let known = hosts.iter().map(|host| self.store.host(host)).collect::<Result<Vec<_>, _>>()?;
        let classes = known.iter().map(|host| {
            let class: Option<Class> = host.class.as_deref().and_then(gate::class);
            (host.enrolled.name.as_str(), class)
        });
        let standing = self.authority.standing();
        let documents = Documents { order: &written, release: proof.as_ref(), approval: None, activation: None };
        let current = gate::not_superseded(&order.id, order.superseded.as_deref(), Refusal::NotReleased);
        let asked = gate::prepare(&standing.root().root, &documents, &standing.ledger(), classes, Timestamp::now());
        let asked = current.and(asked);
        let asked = asked.and_then(|()| release.ok_or_else(|| gate::not_released(&written)));
        let release = self.note_refusal("preparation-refused", &order.id, actor, asked)?;
        let detail = json!({ "what": request.what, "hosts": hosts, "release": release });
        let event = Event::new("order-prepared", &order.id, detail).by(actor);
        let rows = self.store.prepare(&order.digest, &release, request.what, &hosts, &event)?;
        self.executor.prepare(rows.clone());
        Ok(rows)
    }

    /// Has a host read anew what is installed there, and reads that.
    pub async fn inventory(&self, name: &str) -> Result<Survey, PipelineError> {
        let host = self.store.host(name)?;
        let manager = self.executor.offers.manager(&host).await?;
        self.executor.offers.meet(&host, &manager).await?;
        survey::read_anew(&manager).await?;
        let Survey { packages: known, description, .. } = self.store.survey(name)?;
        match survey::packages(&manager, &known).await? {
            Looked::Same => self.store.keep_packages(name, &known, Timestamp::now())?,
            Looked::Changed { packages, .. } => self.store.keep_packages(name, &packages, Timestamp::now())?,
            Looked::Moved => {
                return Err(PipelineError::Input(format!("{name}: its packages change just now: ask again")));
            }
        }
        if let Some(described) = survey::described(&manager, description.map(|known| known.digest)).await? {
            self.store.keep_description(name, &described, Timestamp::now())?;
        }
        Ok(self.store.survey(name)?)
    }

    /// Gives the SNMP users of a host new keys.
    pub async fn rotate_keys(&self, name: &str, actor: &str) -> Result<Host, PipelineError> {
        let host = self.store.host(name)?;
        self.forget_admission(name)?;
        rotation::rotate(&self.executor.offers, &host).await?;
        let detail = json!({ "users": ["deployer", "key administrator"] });
        self.store.record(&Event::new("keys-rotated", name, detail).by(actor))?;
        Ok(host)
    }

    /// The release and the approval that an apply on these hosts rests on, at the moment from which on it counts.
    fn rests_on(
        &self,
        order: &Digest,
        envelope: &Envelope,
        hosts: &[String],
        at: Timestamp,
    ) -> Result<Result<(Digest, Digest), Refused>, StoreError> {
        let release = self.store.newest_release(order)?;
        let revoked = self.authority.standing().revoked();
        if let Err(refused) = gate::not_revoked(&revoked, [("order", Some(*order)), ("release", release)]) {
            return Ok(Err(refused));
        }
        if let Err(refused) = self.within_waivers(order, release, hosts)? {
            return Ok(Err(refused));
        }
        let (mut fitting, mut withdrawn) = (None, Ok(()));
        for approval in self.store.approvals(order)? {
            let in_date = approval.not_after.parse::<Timestamp>().is_ok_and(|end| at <= end);
            let mut all = self.store.hosts_under(&approval.digest)?;
            all.extend(hosts.iter().cloned());
            all.sort();
            all.dedup();
            if !in_date || Some(approval.release) != release || all.len() as u64 > approval.hosts_at_most {
                continue;
            }
            withdrawn = gate::not_revoked(&revoked, [("approval", Some(approval.digest))]);
            if withdrawn.is_ok() {
                fitting = Some(approval.digest);
                break;
            }
        }
        Ok(withdrawn.and_then(|()| gate::ready_to_apply(envelope, release, fitting)))
    }

    /// The one site of all these hosts.
    fn site(&self, hosts: &[String]) -> Result<String, PipelineError> {
        let mut sites = hosts
            .iter()
            .map(|host| Ok(self.store.host(host)?.enrolled.site))
            .collect::<Result<Vec<_>, StoreError>>()?;
        sites.sort();
        sites.dedup();
        match sites.as_slice() {
            [site] => Ok(site.clone()),
            [] => Err(PipelineError::Input("no host is named: give --host NAME".into())),
            many => Err(PipelineError::Input(format!(
                "the hosts are at {} sites ({}): activate them site by site",
                many.len(),
                many.join(", ")
            ))),
        }
    }

    /// Takes a revocation list in, signed elsewhere, and owes it to every host.
    pub fn revoke(&self, envelope: &Envelope, actor: &str) -> Result<TakenIn, PipelineError> {
        self.note_untaken("revocation-refused", actor, self.authority.revoke(envelope, actor))
    }

    /// Takes the successor of the root in force in, signed elsewhere, and owes it to every host. The server's own activation key must
    /// be in it: the one it works with, or the one that was put in its place.
    pub fn succeed(&self, envelope: &Envelope, actor: &str) -> Result<TakenIn, PipelineError> {
        let standing = self.authority.standing();
        let mut activator = None;
        if !standing.roots().any(|root| root.digest == envelope.digest()) {
            let asked = successor(&standing.root().root, envelope);
            activator = self.activator_under(&self.note_refusal("root-refused", "trust", actor, asked)?)?;
        }
        let taken = self.authority.succeed(envelope, actor);
        let mut taken = self.note_untaken("root-refused", actor, taken)?;
        if let Some(key) = activator {
            *self.activator.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(key);
        }
        let standing = self.authority.standing();
        let releases =
            |signer: &Signer| standing.root().root.keys(Role::Releaser).any(|key| key.id().to_string() == signer.key());
        if let Some(signer) = self.signer.as_ref().filter(|signer| !releases(signer)) {
            taken.warnings.push(format!(
                "the release key of this server ({}) is not in root {}: start it again with --release-key FILE",
                signer.key(),
                standing.root().root.version
            ));
        }
        Ok(taken)
    }

    /// The activation key to change to under a root; `None` when the one in use stays.
    fn activator_under(&self, root: &Root) -> Result<Option<SigningKey>, PipelineError> {
        let listed = |public: PublicKey| root.keys(Role::Activator).any(|key| *key == public);
        if listed(self.activator.read().unwrap_or_else(PoisonError::into_inner).public()) {
            return Ok(None);
        }
        let path = self.data.activator_key();
        match SigningKey::read(&path) {
            Ok(key) if listed(key.public()) => Ok(Some(key)),
            _ => Err(PipelineError::Input(format!(
                "root {} does not list this server's activation key: put one that it lists at {} first",
                root.version,
                path.display()
            ))),
        }
    }

    /// A refusal of a root or a list is an event too.
    fn note_untaken(
        &self,
        event: &'static str,
        actor: &str,
        asked: Result<TakenIn, AuthorityError>,
    ) -> Result<TakenIn, PipelineError> {
        match asked {
            Err(AuthorityError::Refused(refused)) => self.note_refusal(event, "trust", actor, Err(refused)),
            other => Ok(other?),
        }
    }

    /// A refusal is an event too: somebody tried.
    fn note_refusal<T>(
        &self,
        event: &'static str,
        subject: &str,
        actor: &str,
        asked: Result<T, Refused>,
    ) -> Result<T, PipelineError> {
        if let Err(refused) = &asked {
            let detail = json!({ "refusal": refused.refusal, "reason": refused.reason });
            self.store.record(&Event::new(event, subject, detail).by(actor))?;
        }
        Ok(asked?)
    }
}

/// Who may send informs: every enrolled host with its own user.
pub fn senders(store: &Store, data: &Data) -> Result<crate::deploy::sink::Senders, PipelineError> {
    store
        .hosts()?
        .into_iter()
        .map(|host| {
            let name = host.enrolled.name;
            let inform = Credentials::read(&data.credentials(&name))?.inform;
            Ok((name, inform))
        })
        .collect()
}

/// Every file an order names: those it installs, those that bring the old versions back, and those of its script.
pub fn files(order: &Order) -> Vec<Digest> {
    let replaced = order.replaces.iter().filter_map(|replaced| replaced.file.as_ref());
    let packages = order.install.iter().chain(replaced).map(|file| file.sha256);
    packages.chain(order.script.iter().flat_map(Script::shipped).map(|file| file.sha256)).collect()
}
