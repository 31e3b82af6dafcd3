//! The first part of a run: documents and files are fetched and verified. It changes nothing, and is done before the
//! window opens.

use std::{
    fs,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};

use jiff::Timestamp;
use patchlab_protocol::{
    Authorized, Digest, Envelope, Refusal, Refused, Role,
    authorization::{Documents, Foreseen, Identity, authorize, foresee, newest_signed_time, prepare, signed},
    document::{Action, Activation, Class, OnFailure, Order, RunState},
};

use super::attempt::{Attempt, Course, Stop, blocking, unfit};
use crate::{
    change::{
        Goal, Part, Places, Plan, parts_of_way_back, plan,
        script::{Begun, Here},
    },
    fetch::{FetchError, Sources, file_name},
    journal::replace,
    packages::Installed,
    record::RecordError,
    staged::Wanted,
    state::{Event, State},
};

/// The documents of a run, as fetched.
pub struct Fetched {
    /// The order.
    pub order: Envelope,
    release: Option<Envelope>,
    approval: Option<Envelope>,
    activation: Option<Envelope>,
}

impl Fetched {
    fn documents(&self) -> Documents<'_> {
        Documents {
            order: &self.order,
            release: self.release.as_ref(),
            approval: self.approval.as_ref(),
            activation: self.activation.as_ref(),
        }
    }
}

/// What is fetched and verified.
pub struct Ready {
    /// The documents.
    pub fetched: Fetched,
    /// What they will permit, and from when on.
    pub foreseen: Foreseen,
    /// What is to be done.
    pub plan: Plan,
    /// With the files in their places.
    pub goal: Goal,
    /// What the files take when they are unpacked, bytes.
    pub unpacked: u64,
}

/// Documents beside the order, with the roles of which one must have signed them.
const RELEASE: (&str, &[Role]) = ("release", &[Role::Releaser]);
const APPROVAL: (&str, &[Role]) = ("approval", &[Role::Approver]);
const ACTIVATION: (&str, &[Role]) = ("activation", &[Role::Activator, Role::Operator]);

impl Attempt<'_> {
    /// Fetches and verifies.
    ///
    /// # Errors
    /// When the host must refuse.
    pub async fn make_ready(&self) -> Result<Ready, Stop> {
        let installed = self.installed().await.map_err(unfit)?;
        self.change(|run| run.before = Some(installed.settled.digest()))?;
        let mut sources = self.sources()?;
        let columns = self.columns;
        let order = self.order_document(&mut sources).await?;
        let activation = self.optional(&mut sources, ACTIVATION, columns.activation).await?;
        let [release, approval] = match activation.as_ref().and_then(|it| it.statement::<Activation>().ok()) {
            // The way back needs no more, and should not fail for want of it.
            Some(statement) if statement.predicate.action == Action::Rollback => [None, None],
            _ => [
                self.optional(&mut sources, RELEASE, columns.release).await?,
                self.optional(&mut sources, APPROVAL, columns.approval).await?,
            ],
        };
        self.progress(RunState::Verifying, 6, "signatures")?;
        let fetched = Fetched { order, release, approval, activation };
        self.see_time(&fetched)?;
        let foreseen = self.foresee(&fetched)?;
        self.change(|run| run.action = Some(foreseen.action()))?;
        let plan = self.plan_in_peace(foreseen.order(), foreseen.action(), installed).await?;

        self.progress(RunState::Fetching, 10, "files")?;
        let (files, unpacked) = self.files(&mut sources, &plan, &foreseen.digest()).await?;
        if foreseen.action() == Action::Apply && foreseen.order().stages_way_back() {
            self.stage(&mut sources, foreseen.order(), &fetched.order).await?;
        }
        let goal = self.goal(&plan, foreseen.digest(), files)?;
        self.progress(RunState::Verifying, 40, "files")?;
        Ok(Ready { fetched, foreseen, plan, goal, unpacked })
    }

    /// From where documents and files come, and a folder to fetch them into.
    ///
    /// # Errors
    /// When the row names no place, or the disk said no.
    pub fn sources(&self) -> Result<Sources, Stop> {
        self.progress(RunState::Fetching, 2, "documents")?;
        let sources = self.engine.downloads.sources(&self.columns.uri).map_err(unfit)?;
        self.make_folder()?;
        Ok(sources)
    }

    async fn order_document(&self, sources: &mut Sources) -> Result<Envelope, Stop> {
        let digest = &self.columns.digest;
        let order = match self.engine.staged.order(digest) {
            Some(staged) => staged,
            None => {
                let fetched = self.document(sources, digest, &[Role::Drafter]).await;
                fetched.map_err(|error| document_refusal("order", &error))?
            }
        };
        if signed(&self.engine.trust.root(), &order, Role::Drafter)
            && let Ok(statement) = order.statement::<Order>()
        {
            self.name(&statement.predicate);
        }
        Ok(order)
    }

    /// A document that somebody in one of these roles must have signed.
    async fn document(&self, sources: &mut Sources, digest: &Digest, roles: &[Role]) -> Result<Envelope, FetchError> {
        let root = self.engine.trust.root();
        let is_signed = |envelope: &Envelope| roles.iter().any(|role| signed(&root, envelope, *role));
        sources.document_into(self.folder, digest, &is_signed).await
    }

    /// Fetches the order and its release, and asks whether they may be looked at.
    ///
    /// # Errors
    /// When the host must refuse.
    pub async fn proven(&self, sources: &mut Sources) -> Result<(Fetched, Foreseen), Stop> {
        let order = self.order_document(sources).await?;
        let release = self.optional(sources, RELEASE, self.columns.release).await?;
        self.progress(RunState::Verifying, 6, "signatures")?;
        let fetched = Fetched { order, release, approval: None, activation: None };
        self.see_time(&fetched)?;
        let (root, ledger) = (self.engine.trust.root(), self.engine.record.read(State::ledger));
        let class = self.engine.class()?;
        let foreseen = prepare(&root, &self.identity(&class), &fetched.documents(), &ledger, Timestamp::now())?;
        Ok((fetched, foreseen))
    }

    fn identity<'i>(&'i self, class: &'i Class) -> Identity<'i> {
        Identity { host: &self.engine.host, class }
    }

    fn foresee(&self, fetched: &Fetched) -> Result<Foreseen, Refused> {
        let now = Timestamp::now();
        self.not_missed(fetched, now)?;
        let ledger = self.engine.record.read(State::ledger);
        let (root, documents, class) = (self.engine.trust.root(), fetched.documents(), self.engine.class()?);
        let foreseen = foresee(&root, &self.identity(&class), &documents, &ledger, now, self.columns.not_before)?;
        self.in_window(foreseen.action(), now.max(foreseen.opens()))?;
        Ok(foreseen)
    }

    /// Asks for permission now.
    ///
    /// # Errors
    /// The refusal.
    pub fn authorize(&self, fetched: &Fetched, state: &State) -> Result<Authorized, Refused> {
        let now = Timestamp::now();
        self.not_missed(fetched, now)?;
        let (root, documents, class) = (self.engine.trust.root(), fetched.documents(), self.engine.class()?);
        let authorized = authorize(&root, &self.identity(&class), &documents, &state.ledger(), now)?;
        self.in_window(authorized.action(), now)?;
        Ok(authorized)
    }

    /// A window that is over is said before what is over because of it: the activation mostly is, too. What the activation says
    /// of itself is enough to say no.
    fn not_missed(&self, fetched: &Fetched, now: Timestamp) -> Result<(), Refused> {
        let statement = fetched.activation.as_ref().and_then(|envelope| envelope.statement::<Activation>().ok());
        match statement {
            Some(statement) if self.columns.not_after.is_some_and(|closes| now > closes) => {
                self.in_window(statement.predicate.action, now)
            }
            _ => Ok(()),
        }
    }

    /// Whether the row's own window allows an action at this moment. It binds apply only: the way back stays open.
    fn in_window(&self, action: Action, at: Timestamp) -> Result<(), Refused> {
        let [opens, closes] = [self.columns.not_before, self.columns.not_after];
        let early = opens.is_some_and(|opens| at < opens);
        let late = closes.is_some_and(|closes| at > closes);
        if action == Action::Rollback || !(early || late) {
            return Ok(());
        }
        let bound = |time: Option<Timestamp>| time.map_or("any time".to_owned(), |time| time.to_string());
        let reason = format!("the row's window is from {} to {}, this is {at}", bound(opens), bound(closes));
        Err(Refused::new(Refusal::OutsideWindow, reason))
    }

    /// A newer signed time is remembered even when the documents are then refused: the clock can never have been before
    /// it.
    fn see_time(&self, fetched: &Fetched) -> Result<(), RecordError> {
        let (root, documents) = (self.engine.trust.root(), fetched.documents());
        let Some(at) = newest_signed_time(&root, &documents, Timestamp::now()) else { return Ok(()) };
        if self.engine.record.read(|state| state.time_floor < Some(at)) {
            self.engine.record.enter(Event::Seen { at })?;
        }
        Ok(())
    }

    /// What the order means on this host as it is now.
    ///
    /// # Errors
    /// When the host is not as the order needs it.
    pub fn plan(&self, order: &Order, action: Action, installed: &Installed) -> Result<Plan, Stop> {
        if action == Action::Apply {
            let succeeded = self.engine.record.read(|state| state.succeeded.clone());
            if let Some(missing) = order.after.iter().find(|digest| !succeeded.contains(digest)) {
                return Err(unfit(format!("order {} must have succeeded here before", missing.short())));
            }
        }
        if !order.production.is_empty() && self.engine.evaluate.is_none() {
            return Err(unfit("the order has production checks, which this build of the agent cannot carry out"));
        }
        let applied = self.engine.record.read(|state| state.applied.contains(&self.columns.digest));
        let begun = if applied { Begun::Here } else { Begun::Never };
        Ok(plan(order, action, installed, Here { rule: self.engine.scripts, begun })?)
    }

    /// The same once nobody else is at work, where it cannot be planned before: whoever is has packages half-way meanwhile, and other
    /// versions in the end.
    async fn plan_in_peace(&self, order: &Order, action: Action, installed: Installed) -> Result<Plan, Stop> {
        let mut installed = installed;
        loop {
            let refused = match self.plan(order, action, &installed) {
                Err(stop @ Stop::Refused(_)) => stop,
                planned => return planned,
            };
            if self.engine.who_changes_packages().is_some() {
                let waits = |who: &str| match self.course {
                    Course::Waiting => Ok(()),
                    _ => self.progress(RunState::WaitingLock, 8, who),
                };
                drop(self.engine.await_locks(waits).await?);
            }
            let now = self.installed().await.map_err(unfit)?;
            // Whoever was at work may have ended before it was asked for.
            if now.all() == installed.all() && now.settled == installed.settled {
                return Err(refused);
            }
            self.change(|run| run.before = Some(now.settled.digest()))?;
            installed = now;
        }
    }

    /// What there is to reach, now that a plan's files are there.
    ///
    /// # Errors
    /// When the run can have no folder of its own.
    pub fn goal(&self, plan: &Plan, order: Digest, files: Vec<PathBuf>) -> Result<Goal, Stop> {
        self.make_folder()?;
        Ok(plan.goal(Places { order, files, room: self.folder.to_owned() }))
    }

    fn make_folder(&self) -> Result<(), Stop> {
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(self.folder);
        made.map_err(|error| unfit(format!("cannot make {}: {error}", self.folder.display())))
    }

    /// A document that the row names. One that the server does not have is missing, as if the row did not name it.
    async fn optional(
        &self,
        sources: &mut Sources,
        (what, roles): (&str, &[Role]),
        digest: Option<Digest>,
    ) -> Result<Option<Envelope>, Stop> {
        let Some(digest) = digest else { return Ok(None) };
        match self.document(sources, &digest, roles).await {
            Ok(envelope) => Ok(Some(envelope)),
            Err(error) if error.is_absent() => Ok(None),
            Err(error) => Err(document_refusal(what, &error)),
        }
    }

    /// Fetches the plan's files; with what they take when they are unpacked, bytes.
    ///
    /// # Errors
    /// When one cannot be had, or is another one.
    pub async fn files(&self, sources: &mut Sources, plan: &Plan, order: &Digest) -> Result<(Vec<PathBuf>, u64), Stop> {
        let parts = plan.parts();
        let total: u64 = parts.iter().map(|part| part.payload().size).sum();
        self.fit_to_fetch(&parts, self.folder, &[self.folder, &self.engine.staged.folder(order)])?;
        let mut paths = Vec::new();
        let (mut before, mut told, mut unpacked) = (0, 10, 0_u64);
        for part in &parts {
            let (payload, mut percent) = (part.payload(), told);
            let progress =
                |have: u64| percent = 10 + u8::try_from((before + have) * 30 / total.max(1)).unwrap_or(30).min(30);
            let path = match self.engine.staged.file(order, &payload.sha256) {
                Some(staged) => staged,
                None => sources.payload(payload, self.folder, progress).await.map_err(unfit)?,
            };
            if percent > told {
                told = percent;
                self.change(|run| run.percent = percent)?;
            }
            unpacked = unpacked.saturating_add(self.identify(part, &path).await?);
            before += payload.size;
            paths.push(path);
        }
        Ok((paths, unpacked))
    }

    /// Fetches and keeps what the way back takes.
    async fn stage(&self, sources: &mut Sources, order: &Order, envelope: &Envelope) -> Result<(), Stop> {
        let has_every_file = order.replaces.iter().all(|old| old.file.is_some());
        if order.on_failure == OnFailure::RollBack && !has_every_file {
            return Err(unfit("the order is to be rolled back on failure, and does not name a file for every version"));
        }
        self.progress(RunState::Fetching, 40, "files of the way back")?;
        self.keep(sources, envelope, &parts_of_way_back(order)).await
    }

    /// Fetches files of an order and keeps them, with its document.
    ///
    /// # Errors
    /// When one cannot be had or kept, or is another one.
    pub async fn keep(&self, sources: &mut Sources, envelope: &Envelope, parts: &[Part]) -> Result<(), Stop> {
        let digest = envelope.digest();
        let total = parts.iter().map(|part| part.payload().size).sum();
        let wanted = self.engine.record.read(|state| {
            let rows = state.under_way().into_iter().filter_map(|(row, _)| state.orders.get(&row));
            Wanted {
                needed: rows.map(|row| row.columns.digest).collect(),
                applied: state.applied.iter().copied().collect(),
            }
        });
        let folder = self.engine.staged.prepare(&digest, total, &wanted).map_err(unfit)?;
        self.fit_to_fetch(parts, &folder, &[&folder])?;
        for part in parts {
            let path = sources.payload(part.payload(), &folder, |_| ()).await.map_err(unfit)?;
            self.identify(part, &path).await?;
        }
        let path = folder.join(format!("{digest}.json"));
        replace(&path, &envelope.to_bytes()).map_err(|error| unfit(format!("cannot keep {}: {error}", path.display())))
    }

    /// Whether there is room in `folder` for what is in none of `places` yet, and time for it before the run's lifetime ends, at the rate
    /// that this host may fetch with: a run that must fail says so at once.
    fn fit_to_fetch(&self, parts: &[Part], folder: &Path, places: &[&Path]) -> Result<(), Stop> {
        let is_in = |part: &Part, folder: &Path| {
            let payload = part.payload();
            fs::metadata(folder.join(file_name(&payload.sha256))).is_ok_and(|found| found.len() == payload.size)
        };
        let comes = parts.iter().filter(|part| !places.iter().any(|folder| is_in(part, folder)));
        let (mut bytes, mut begun) = (0_u64, 0_u64);
        for payload in comes.map(Part::payload) {
            bytes = bytes.saturating_add(payload.size);
            begun += self.engine.downloads.have(&payload);
        }
        room_for(folder, bytes.saturating_sub(begun))?;
        let left = self.deadline.saturating_duration_since(Instant::now());
        let late = self.engine.downloads.too_slow_for(bytes.saturating_sub(begun), left);
        late.map_or(Ok(()), |reason| Err(unfit(reason)))
    }

    /// The drafter may err: a file must be what the order calls it. With what it takes when it is unpacked, bytes.
    async fn identify(&self, part: &Part, path: &Path) -> Result<u64, Stop> {
        let (packages, path, part) = (Arc::clone(&self.engine.packages), path.to_owned(), part.clone());
        blocking(move || part.identify(&path, &*packages)).await?.map_err(unfit)
    }
}

/// An altered document is a bad signature: what was signed is not what came.
fn document_refusal(what: &str, error: &FetchError) -> Stop {
    let refusal = if error.is_altered() { Refusal::BadSignature } else { Refusal::Preflight };
    Refused::new(refusal, format!("{what}: {error}")).into()
}

/// Whether the files fit, with a tenth to spare.
fn room_for(folder: &Path, bytes: u64) -> Result<(), Stop> {
    let disk = rustix::fs::statvfs(folder).map_err(|error| unfit(format!("{}: {error}", folder.display())))?;
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    if free >= bytes.saturating_add(bytes / 10) {
        return Ok(());
    }
    Err(unfit(format!("{} bytes are needed in {}, {free} are free", bytes, folder.display())))
}
