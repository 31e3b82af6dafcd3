//! The rule that an agent enforces whatever SNMP says, and that the server's gate asks too: which documents, signed by
//! whom, for which host, allow which action now. Pure: the clock and the ledger are passed in.
//!
//! *Apply* needs all four documents. *Rollback* needs the order and an activation for rollback; one operator's
//! signature is enough for that, and neither the order's nor the root's expiry forbids it. *Probe* and *prefetch* change
//! nothing, but run the order's checks and keep its files: they need the order and its release. Stopping needs nothing.

mod waivers;

use jiff::Timestamp;

pub use waivers::{Counted, Released, counts, holds};

use crate::{
    Digest, Envelope, PublicKey, Refusal, Refused, Role,
    document::{Action, Activation, Approval, Class, OnFailure, Order, Release, Root},
    envelope::{Predicate, Statement},
    limits,
};

/// The host that asks, as its enrolment says.
#[derive(Debug, Clone)]
pub struct Identity<'a> {
    /// Enrolled name.
    pub host: &'a str,
    /// Class, as found on the machine.
    pub class: &'a Class,
}

/// What the host remembers, outside any disk that may be reverted.
#[derive(Debug, Clone, Default)]
pub struct Ledger {
    /// Activations that were used.
    pub consumed: Vec<Digest>,
    /// Orders that were applied and since rolled back, or are applied now: neither starts again by apply.
    pub applied: Vec<Digest>,
    /// Documents that were revoked.
    pub revoked: Vec<Digest>,
    /// The newest signed time ever seen; a clock before it is wrong.
    pub time_floor: Option<Timestamp>,
}

/// The documents that came with an order row, as fetched; absent where none was named.
#[derive(Debug, Clone)]
pub struct Documents<'a> {
    /// The order.
    pub order: &'a Envelope,
    /// The release.
    pub release: Option<&'a Envelope>,
    /// The approval.
    pub approval: Option<&'a Envelope>,
    /// The activation.
    pub activation: Option<&'a Envelope>,
}

/// Permission, with what was verified. Only [`authorize`] makes one.
#[derive(Debug, Clone)]
pub struct Authorized {
    order: Order,
    digest: Digest,
    action: Action,
    activation: Digest,
    release: Option<Release>,
    newest: Option<Timestamp>,
    valid_from: Timestamp,
}

impl Authorized {
    /// The order.
    pub fn order(&self) -> &Order {
        &self.order
    }
    /// Its digest.
    pub fn digest(&self) -> Digest {
        self.digest
    }
    /// What is allowed.
    pub fn action(&self) -> Action {
        self.action
    }
    /// Digest of the activation, to be entered as consumed before anything is done.
    pub fn activation(&self) -> Digest {
        self.activation
    }
    /// The release, for apply: its proof names the transaction that must match.
    pub fn release(&self) -> Option<&Release> {
        self.release.as_ref()
    }
    /// What the host may do by itself when the action fails. That it may walk back is permitted by the activation for apply
    /// of an order that says so, which was released and approved with those words in it; by nothing else.
    pub fn on_failure(&self) -> OnFailure {
        match self.action {
            Action::Apply => self.order.on_failure,
            Action::Rollback => OnFailure::Leave,
        }
    }
    /// The newest signed time in the documents: the new time floor; `None` when it raises none ([`raises_floor`]).
    pub fn newest_time(&self) -> Option<Timestamp> {
        self.newest
    }
}

/// What will be permitted when its window opens, if nothing changes until then: enough to fetch and to verify, never to
/// act. Only [`foresee`] and [`prepare`] make one.
#[derive(Debug, Clone)]
pub struct Foreseen {
    order: Order,
    digest: Digest,
    action: Action,
    release: Option<Release>,
    opens: Timestamp,
}

impl Foreseen {
    /// The order.
    pub fn order(&self) -> &Order {
        &self.order
    }
    /// Its digest.
    pub fn digest(&self) -> Digest {
        self.digest
    }
    /// What will be allowed.
    pub fn action(&self) -> Action {
        self.action
    }
    /// The release, for apply.
    pub fn release(&self) -> Option<&Release> {
        self.release.as_ref()
    }
    /// The moment from which on [`authorize`] may say yes.
    pub fn opens(&self) -> Timestamp {
        self.opens
    }
}

/// Decides. `root` must already be the pinned one.
pub fn authorize(
    root: &Root,
    identity: &Identity<'_>,
    documents: &Documents<'_>,
    ledger: &Ledger,
    now: Timestamp,
) -> Result<Authorized, Refused> {
    decide(root, identity, documents, ledger, now, |_| now)
}

/// Decides what [`authorize`] would say at the moment at which the activation begins to count, or at `not_before` if
/// that is later; it binds apply only. What the clock says is still judged by `now`.
///
/// # Errors
/// As [`authorize`] would refuse at that moment.
pub fn foresee(
    root: &Root,
    identity: &Identity<'_>,
    documents: &Documents<'_>,
    ledger: &Ledger,
    now: Timestamp,
    not_before: Option<Timestamp>,
) -> Result<Foreseen, Refused> {
    let opens = |action: Action, activated: Timestamp| match action {
        Action::Apply => not_before.map_or(activated, |row| row.max(activated)),
        Action::Rollback => activated,
    };
    let at = |activation: &Activation| now.max(opens(activation.action, activation.not_before));
    let Authorized { order, digest, action, release, valid_from, .. } =
        decide(root, identity, documents, ledger, now, at)?;
    Ok(Foreseen { order, digest, action, release, opens: opens(action, valid_from) })
}

/// Decides whether a host may look at an order and fetch it without an activation, as for an apply now: what that would be refused
/// for by order and release, this is, too. Nothing is changed by it; but the order's checks are run there and its files kept, so the
/// lab must have passed it.
///
/// # Errors
/// The refusal.
pub fn prepare(
    root: &Root,
    identity: &Identity<'_>,
    documents: &Documents<'_>,
    ledger: &Ledger,
    now: Timestamp,
) -> Result<Foreseen, Refused> {
    let digest = documents.order.digest();
    let order: Order = read(documents.order, "order", Refusal::BadSignature)?.predicate;
    drafted(root, documents.order, &order)?;
    not_revoked(documents, ledger, Action::Apply)?;
    of_class(identity, &order)?;
    after_floor(ledger, now)?;
    let (released, _) = proven(root, documents, &order, digest, ledger, now)?;
    unused(&order, digest, ledger, now)?;
    signed_before(now, released.newest())?;
    Ok(Foreseen { order, digest, action: Action::Apply, release: Some(released.release), opens: now })
}

/// What an order alone says, unless an apply now would be refused for that alone: its signature, its class, its revocation, its time, its
/// use on the host. No permission is looked at, so none is given.
///
/// # Errors
/// The refusal.
pub fn fit(
    root: &Root,
    identity: &Identity<'_>,
    envelope: &Envelope,
    ledger: &Ledger,
    now: Timestamp,
) -> Result<Order, Refused> {
    let order: Order = read(envelope, "order", Refusal::BadSignature)?.predicate;
    drafted(root, envelope, &order)?;
    let alone = Documents { order: envelope, release: None, approval: None, activation: None };
    not_revoked(&alone, ledger, Action::Apply)?;
    of_class(identity, &order)?;
    after_floor(ledger, now)?;
    unused(&order, envelope.digest(), ledger, now)?;
    Ok(order)
}

/// Decides about the moment that `at` names; whether the clock is right is judged by `now`.
fn decide(
    root: &Root,
    identity: &Identity<'_>,
    documents: &Documents<'_>,
    ledger: &Ledger,
    now: Timestamp,
    at: impl Fn(&Activation) -> Timestamp,
) -> Result<Authorized, Refused> {
    let order_digest = documents.order.digest();
    let order: Order = read(documents.order, "order", Refusal::BadSignature)?.predicate;
    let envelope = documents
        .activation
        .ok_or_else(|| Refused::new(Refusal::NotActive, format!("no activation came with order {}", order.id)))?;
    let activation: Activation = read(envelope, "activation", Refusal::NotActive)?.predicate;
    let activation_digest = envelope.digest();

    // An activation over anything else is none at all, whoever signed it.
    if activation.order != order_digest {
        return Err(Refused::new(
            Refusal::NotActive,
            format!("the activation is for order {}, not {}", activation.order.short(), order_digest.short()),
        ));
    }
    authentic(root, documents, envelope, &activation, &order)?;
    not_revoked(documents, ledger, activation.action)?;
    addressed(identity, &activation, &order, ledger)?;
    let at = at(&activation);
    in_time(ledger, &activation, activation_digest, now, at)?;
    let mut newest = activation.at;
    let release = match activation.action {
        Action::Rollback => None,
        Action::Apply => {
            let (release, signed_at) = authorize_apply(root, documents, &order, order_digest, &activation, ledger, at)?;
            newest = newest.max(signed_at);
            signed_before(now, newest)?;
            Some(release)
        }
    };
    Ok(Authorized {
        order,
        digest: order_digest,
        action: activation.action,
        activation: activation_digest,
        release,
        newest: raises_floor(newest, now),
        valid_from: activation.not_before,
    })
}

/// Both the activation and the order are signed by keys that may.
fn authentic(
    root: &Root,
    documents: &Documents<'_>,
    envelope: &Envelope,
    activation: &Activation,
    order: &Order,
) -> Result<(), Refused> {
    let signed_by = |role| signed(root, envelope, role);
    let activated = match activation.action {
        Action::Apply => signed_by(Role::Activator),
        Action::Rollback => signed_by(Role::Activator) || signed_by(Role::Operator),
    };
    if !activated {
        return Err(Refused::new(
            Refusal::BadSignature,
            "the activation is not signed by a key that may activate here",
        ));
    }
    drafted(root, documents.order, order)
}

/// The order is signed by a key that may draft.
fn drafted(root: &Root, envelope: &Envelope, order: &Order) -> Result<(), Refused> {
    if signed(root, envelope, Role::Drafter) {
        return Ok(());
    }
    let reason = format!("order {} is not signed by a key that may draft here", order.id);
    Err(Refused::new(Refusal::BadSignature, reason))
}

/// A signed time as the floor that no clock can be before. One that is ahead of the clock raises none, whoever signed it: a signer whose clock
/// is a year ahead would have every apply refused for a year.
pub fn raises_floor(signed: Timestamp, now: Timestamp) -> Option<Timestamp> {
    Some(signed).filter(|signed| *signed <= now.saturating_add(limits::CLOCK_SKEW).unwrap_or(Timestamp::MAX))
}

/// Nothing was signed after now: else the clock was turned back, or the signer's is ahead. Either way now is not known.
fn signed_before(now: Timestamp, newest: Timestamp) -> Result<(), Refused> {
    if raises_floor(newest, now).is_some() {
        return Ok(());
    }
    let reason = format!("the clock says {now}, a document was signed at {newest}: set the clock");
    Err(Refused::new(Refusal::Expired, reason))
}

/// The floor is a signed time; a clock before it is wrong, unless it is no more than the signer's that is ahead: a host that is told at once
/// what was signed just now is not to be refused for a second between two clocks.
fn after_floor(ledger: &Ledger, now: Timestamp) -> Result<(), Refused> {
    let latest = now.saturating_add(limits::CLOCK_SKEW).unwrap_or(Timestamp::MAX);
    if let Some(floor) = ledger.time_floor.filter(|floor| latest < *floor) {
        let reason = format!("the clock says {now}, and {floor} was seen signed before: set the clock");
        return Err(Refused::new(Refusal::Expired, reason));
    }
    Ok(())
}

/// For apply, no document that came was revoked, needed or not. For rollback the activation was not: an order is
/// revoked because it must not stay, and then the way back must be open.
fn not_revoked(documents: &Documents<'_>, ledger: &Ledger, action: Action) -> Result<(), Refused> {
    let for_apply = [Some(documents.order), documents.release, documents.approval];
    let others = if action == Action::Apply { for_apply } else { [None; 3] };
    let mut digests = others.into_iter().chain([documents.activation]).flatten().map(Envelope::digest);
    match digests.find(|digest| ledger.revoked.contains(digest)) {
        Some(digest) => Err(Refused::new(Refusal::Revoked, format!("document {} was revoked", digest.short()))),
        None => Ok(()),
    }
}

/// The order is for this host's class, and the activation names the host. The class of a host changes with its release (12 to 12.1), also by
/// the order itself: from where an order was applied, the way back stays open.
fn addressed(identity: &Identity<'_>, activation: &Activation, order: &Order, ledger: &Ledger) -> Result<(), Refused> {
    if activation.action == Action::Apply || !ledger.applied.contains(&activation.order) {
        of_class(identity, order)?;
    }
    if activation.hosts.len() > limits::HOSTS_PER_ACTIVATION || !activation.hosts.iter().any(|h| h == identity.host) {
        return Err(Refused::new(Refusal::NotActive, format!("the activation does not name host {}", identity.host)));
    }
    Ok(())
}

fn of_class(identity: &Identity<'_>, order: &Order) -> Result<(), Refused> {
    if order.class == *identity.class {
        return Ok(());
    }
    let reason = format!("order {} is for {}, this host is {}", order.id, order.class, identity.class);
    Err(Refused::new(Refusal::NotMyClass, reason))
}

/// The activation is unused, and valid at the moment it is asked for.
fn in_time(
    ledger: &Ledger,
    activation: &Activation,
    digest: Digest,
    now: Timestamp,
    at: Timestamp,
) -> Result<(), Refused> {
    if ledger.consumed.contains(&digest) {
        return Err(Refused::new(Refusal::Consumed, format!("activation {} was used before", digest.short())));
    }
    if activation.not_before.duration_until(activation.not_after) > limits::ACTIVATION_VALID {
        let (from, to, most) = (activation.not_before, activation.not_after, limits::ACTIVATION_VALID.as_hours() / 24);
        let reason = format!("an activation from {from} to {to} is none: it is valid for {most} days at most");
        return Err(Refused::new(Refusal::NotActive, reason));
    }
    // Rollback must work on a host with a dead clock battery.
    if activation.action == Action::Apply {
        after_floor(ledger, now)?;
    }
    if at < activation.not_before || at > activation.not_after {
        let when = if at == now { format!("now is {now}") } else { format!("the window opens at {at}") };
        return Err(Refused::new(
            Refusal::Expired,
            format!("the activation is valid from {} to {}, {when}", activation.not_before, activation.not_after),
        ));
    }
    Ok(())
}

/// What apply needs beyond an activation: root in date, release, approval, order in date and not yet used.
fn authorize_apply(
    root: &Root,
    documents: &Documents<'_>,
    order: &Order,
    order_digest: Digest,
    activation: &Activation,
    ledger: &Ledger,
    at: Timestamp,
) -> Result<(Release, Timestamp), Refused> {
    let (released, release_digest) = proven(root, documents, order, order_digest, ledger, at)?;
    let approval_envelope = documents
        .approval
        .ok_or_else(|| Refused::new(Refusal::NotApproved, format!("no approval came with order {}", order.id)))?;
    let approval: Approval = read(approval_envelope, "approval", Refusal::NotApproved)?.predicate;
    if approval.order != order_digest || approval.release != release_digest {
        return Err(Refused::new(Refusal::NotApproved, "the approval is for another order or another release"));
    }
    if !signed(root, approval_envelope, Role::Approver) {
        return Err(Refused::new(Refusal::BadSignature, "the approval is not signed by a key that may approve here"));
    }
    if at > approval.not_after {
        return Err(Refused::new(Refusal::Expired, format!("the approval was valid until {}", approval.not_after)));
    }
    if activation.hosts.len() as u64 > u64::from(approval.hosts_at_most) {
        return Err(Refused::new(
            Refusal::NotApproved,
            format!("approved for {} hosts, activated for {}", approval.hosts_at_most, activation.hosts.len()),
        ));
    }
    released.approved_for(approval.hosts_at_most)?;
    unused(order, order_digest, ledger, at)?;
    let newest = approval.at.max(released.newest());
    Ok((released.release, newest))
}

/// The root is in date, and the lab's proof came with the order, or waivers of what it lacks; with the digest of the release.
fn proven(
    root: &Root,
    documents: &Documents<'_>,
    order: &Order,
    order_digest: Digest,
    ledger: &Ledger,
    at: Timestamp,
) -> Result<(Released, Digest), Refused> {
    if at > root.expires {
        return Err(Refused::new(Refusal::Expired, format!("the root document expired at {}", root.expires)));
    }
    let envelope = documents
        .release
        .ok_or_else(|| Refused::new(Refusal::NotReleased, format!("no release came with order {}", order.id)))?;
    Ok((released(root, envelope, order, order_digest, &ledger.revoked, at)?, envelope.digest()))
}

/// The order is in date, and was not applied on the host before.
fn unused(order: &Order, digest: Digest, ledger: &Ledger, at: Timestamp) -> Result<(), Refused> {
    if order.not_after.is_some_and(|end| at > end) {
        return Err(Refused::new(Refusal::Expired, format!("order {} is past its time", order.id)));
    }
    if ledger.applied.contains(&digest) {
        return Err(Refused::new(Refusal::Consumed, format!("order {} was applied on this host before", order.id)));
    }
    Ok(())
}

/// The newest time in those of the documents that were signed by a key that may, of those that raise the floor at `now`: no clock can be
/// before it, whatever is then decided.
pub fn newest_signed_time(root: &Root, documents: &Documents<'_>, now: Timestamp) -> Option<Timestamp> {
    let by = |envelope: &Option<&Envelope>, roles: &[Role]| {
        envelope.filter(|envelope| roles.iter().any(|role| signed(root, envelope, *role))).cloned()
    };
    let activation = by(&documents.activation, &[Role::Activator, Role::Operator])
        .and_then(|envelope| envelope.statement::<Activation>().ok())
        .map(|statement| statement.predicate.at);
    let approval = by(&documents.approval, &[Role::Approver])
        .and_then(|envelope| envelope.statement::<Approval>().ok())
        .map(|statement| statement.predicate.at);
    let release = by(&documents.release, &[Role::Releaser])
        .and_then(|envelope| envelope.statement::<Release>().ok())
        .map(|statement| statement.predicate.proof.at);
    [activation, approval, release].into_iter().flatten().filter_map(|at| raises_floor(at, now)).max()
}

/// Whether `envelope` is a release of this order, in date and signed by a key that may release under `root`, on a proof that passed or with
/// waivers of all that did not.
///
/// # Errors
/// The refusal.
pub fn released(
    root: &Root,
    envelope: &Envelope,
    order: &Order,
    order_digest: Digest,
    revoked: &[Digest],
    now: Timestamp,
) -> Result<Released, Refused> {
    let statement: Statement<Release> = read(envelope, "release", Refusal::NotReleased)?;
    let release = statement.predicate;
    let names_order = statement.subject.iter().any(|subject| subject.digest.sha256 == order_digest);
    if !names_order || release.proof.order != order_digest || release.proof.class != order.class {
        return Err(Refused::new(Refusal::NotReleased, "the release is over another order"));
    }
    if !signed(root, envelope, Role::Releaser) {
        return Err(Refused::new(Refusal::BadSignature, "the release is not signed by a key that may release here"));
    }
    if release.proof.not_after.is_some_and(|end| now > end) {
        return Err(Refused::new(Refusal::Expired, "the release is past its time"));
    }
    counts(root, release, order, order_digest, revoked, now)
}

/// Whether enough keys that count for `role` signed. A document carries its meaning only by this.
pub fn signed(root: &Root, envelope: &Envelope, role: Role) -> bool {
    let keys: Vec<&PublicKey> = root.keys(role).collect();
    envelope.signers(keys).len() >= root.threshold(role)
}

fn read<P: Predicate>(envelope: &Envelope, what: &str, refusal: Refusal) -> Result<Statement<P>, Refused> {
    envelope.statement().map_err(|error| Refused::new(refusal, format!("{what}: {error}")))
}
