//! The gate: may this order be released, approved, activated? Pure: documents, verdict, root and clock in; yes, or a named
//! refusal, out. It asks the same rule that every agent enforces, so the server refuses early what a host would refuse anyway;
//! and the host refuses whatever a broken server lets through.

mod ground;

use jiff::Timestamp;
use patchlab_protocol::{
    Digest, Envelope, Ledger, Refusal, Refused, Role,
    authorization::{self, Documents, Foreseen, Identity, Released, released, signed},
    document::{Action, Activation, Approval, Class, Order, Root},
};

pub use ground::{Finding, release, to_waive, waive};

/// An order that may be taken in: it is one, and a key that may draft signed it.
pub fn submit(root: &Root, envelope: &Envelope) -> Result<Order, Refused> {
    let order: Order =
        envelope.statement().map_err(|error| Refused::new(Refusal::BadSignature, format!("order: {error}")))?.predicate;
    if signed(root, envelope, Role::Drafter) {
        Ok(order)
    } else {
        Err(Refused::new(
            Refusal::BadSignature,
            format!("order {} is not signed by a key that may draft under this root", order.id),
        ))
    }
}

/// Whether an approval is one of this order and its release, by a key that may approve, and in date.
pub fn approve(
    root: &Root,
    order: &Envelope,
    release: Option<&Envelope>,
    approval: &Envelope,
    revoked: &[Digest],
    now: Timestamp,
) -> Result<Approval, Refused> {
    let release_envelope = release.ok_or_else(|| not_released(order))?;
    let written = submit(root, order)?;
    let released = released(root, release_envelope, &written, order.digest(), revoked, now)?;
    let no = |reason: &str| Refused::new(Refusal::NotApproved, reason);
    let said: Approval = approval.statement().map_err(|error| no(&format!("approval: {error}")))?.predicate;
    if said.order != order.digest() || said.release != release_envelope.digest() {
        return Err(no("the approval is for another order or another release"));
    }
    if !signed(root, approval, Role::Approver) {
        return Err(Refused::new(
            Refusal::BadSignature,
            "the approval is not signed by a key that may approve under this root",
        ));
    }
    if said.hosts_at_most == 0 {
        return Err(no("the approval is for no host at all"));
    }
    released.approved_for(said.hosts_at_most)?;
    if now > said.not_after {
        return Err(Refused::new(Refusal::Expired, format!("the approval was valid until {}", said.not_after)));
    }
    not_ahead("the approval", said.at, now)?;
    Ok(said)
}

/// Whether a document was not signed after now, but for a few minutes: else the signer's clock is ahead, or this one is behind, and a host
/// whose clock is right would hold it against every document after it.
pub fn not_ahead(what: &str, signed: Timestamp, now: Timestamp) -> Result<(), Refused> {
    match authorization::raises_floor(signed, now) {
        Some(_) => Ok(()),
        None => {
            let reason =
                format!("{what} was signed at {signed}, and here it is {now}: set the clocks, and sign it anew");
            Err(Refused::new(Refusal::Expired, reason))
        }
    }
}

/// Whether none of these documents was revoked; the refusal says which of them.
pub fn not_revoked<'n>(
    revoked: &[Digest],
    documents: impl IntoIterator<Item = (&'n str, Option<Digest>)>,
) -> Result<(), Refused> {
    let mut named = documents.into_iter().filter_map(|(what, digest)| Some((what, digest?)));
    match named.find(|(_, digest)| revoked.contains(digest)) {
        Some((what, digest)) => Err(Refused::new(Refusal::Revoked, format!("{what} {} was revoked", digest.short()))),
        None => Ok(()),
    }
}

/// Whether every named host may be told: asks the agent's own rule for each, with nothing used up and `ledger`'s revocations.
/// An activation that counts later is judged by the moment from which on it counts. `class` is what the host last said of itself; a host
/// that has not been heard is taken at the order's word, and decides for itself; so is one that is to go back: its release may have moved on
/// since it took the order.
pub fn activate<'h>(
    root: &Root,
    documents: &Documents<'_>,
    ledger: &Ledger,
    hosts: impl IntoIterator<Item = (&'h str, Option<Class>)>,
    now: Timestamp,
) -> Result<(), Refused> {
    let activation = documents.activation.and_then(|envelope| envelope.statement::<Activation>().ok());
    let activation = activation.map(|statement| statement.predicate);
    if let Some(activation) = &activation {
        not_ahead("the activation", activation.at, now)?;
    }
    let goes_back = activation.is_some_and(|activation| activation.action == Action::Rollback);
    let hosts = hosts.into_iter().map(|(host, class)| (host, class.filter(|_| !goes_back)));
    each(root, documents, hosts, |identity| authorization::foresee(root, identity, documents, ledger, now, None))
}

/// Whether every named host may look at an order and fetch it: asks the agent's own rule for each, as [`activate`] does.
pub fn prepare<'h>(
    root: &Root,
    documents: &Documents<'_>,
    ledger: &Ledger,
    hosts: impl IntoIterator<Item = (&'h str, Option<Class>)>,
    now: Timestamp,
) -> Result<(), Refused> {
    each(root, documents, hosts, |identity| authorization::prepare(root, identity, documents, ledger, now))
}

/// Asks a rule for each host; the first that is refused is named.
fn each<'h>(
    root: &Root,
    documents: &Documents<'_>,
    hosts: impl IntoIterator<Item = (&'h str, Option<Class>)>,
    rule: impl Fn(&Identity<'_>) -> Result<Foreseen, Refused>,
) -> Result<(), Refused> {
    let order = submit(root, documents.order)?;
    for (host, class) in hosts {
        let class = class.unwrap_or_else(|| order.class.clone());
        rule(&Identity { host, class: &class })
            .map_err(|refused| Refused::new(refused.refusal, format!("host {host}: {}", refused.reason)))?;
    }
    Ok(())
}

/// The release and the approval that an apply rests on: what is missing has a name before anything is signed.
pub fn ready_to_apply(
    order: &Envelope,
    release: Option<Digest>,
    approval: Option<Digest>,
) -> Result<(Digest, Digest), Refused> {
    let release = release.ok_or_else(|| not_released(order))?;
    let approval = approval.ok_or_else(|| {
        let reason = format!(
            "order {} is not approved for that many hosts at that time: patchlab order approve --key FILE",
            name(order)
        );
        Refused::new(Refusal::NotApproved, reason)
    })?;
    Ok((release, approval))
}

/// Whether an order is still the one to ship: one that another released order replaces is not, and only its way back stays open. `refusal` is
/// that of what was asked.
///
/// # Errors
/// The refusal, with the order that took its place.
pub fn not_superseded(order: &str, by: Option<&str>, refusal: Refusal) -> Result<(), Refused> {
    match by {
        None => Ok(()),
        Some(by) => {
            let reason = format!(
                "order {order} is superseded by {by}, which is released: take that one; its rollback stays open"
            );
            Err(Refused::new(refusal, reason))
        }
    }
}

/// A class from its written form `family-release-arch`.
pub fn class(text: &str) -> Option<Class> {
    let (family, rest) = text.split_once('-')?;
    let (release, arch) = rest.rsplit_once('-')?;
    Some(Class { family: family.into(), release: release.into(), arch: arch.into() })
}

/// A release, read again after the signer signed it: never trusted unread.
pub fn check_release(
    root: &Root,
    order: &Envelope,
    release: &Envelope,
    revoked: &[Digest],
    now: Timestamp,
) -> Result<Released, Refused> {
    let written = submit(root, order)?;
    released(root, release, &written, order.digest(), revoked, now)
}

/// No release came with an order.
pub fn not_released(order: &Envelope) -> Refused {
    Refused::new(Refusal::NotReleased, format!("order {} has no release: the lab has not passed it", name(order)))
}

fn name(order: &Envelope) -> String {
    order.statement::<Order>().map_or_else(|_| order.digest().short(), |statement| statement.predicate.id)
}

#[cfg(test)]
pub(crate) mod tests;
