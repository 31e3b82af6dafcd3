//! What of a release that the lab did not pass is waived, and whether the waivers count: the one rule of agents and of the server's gate.
//!
//! A release that is `WARNED` names each test that failed, and carries the waivers. Every failed test, and a way back that is not proven,
//! must be covered by a waiver for this very order, baseline and matter, of this class, signed by an approver, in date and not revoked. One
//! that covers nothing does no harm.

use std::fmt;

use jiff::Timestamp;

use super::{read, signed};
use crate::{
    Digest, Envelope, Refusal, Refused, Role,
    document::{BaselineProof, Order, Release, Rollback, RollbackClass, Root, TestResult, Waived, Waiver},
};

/// The phase of tests after the rollback, as names of tests have it: what fails then is the way back's.
const ROLLED_BACK: &str = "rolled-back";

/// A waiver that covers something, and counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Counted {
    /// As it travels.
    pub envelope: Envelope,
    /// Its digest.
    pub digest: Digest,
    /// What it says.
    pub waiver: Waiver,
}

impl fmt::Display for Counted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "waiver {} ({})", self.digest.short(), self.waiver)
    }
}

/// A release that counts, and what it rests on beside the lab's word.
#[derive(Debug, Clone, PartialEq)]
pub struct Released {
    /// The release.
    pub release: Release,
    /// Its waivers that cover something; none where the lab passed the order.
    pub waivers: Vec<Counted>,
}

impl Released {
    /// Whether an approval for that many hosts is for no more than the waivers are.
    ///
    /// # Errors
    /// `not-approved`, with the waiver that is for fewer.
    pub fn approved_for(&self, hosts: u32) -> Result<(), Refused> {
        match self.waivers.iter().find(|counted| hosts > counted.waiver.hosts_at_most) {
            None => Ok(()),
            Some(counted) => {
                let most = counted.waiver.hosts_at_most;
                let reason = format!("approved for {hosts} hosts, and {counted} is for {most}");
                Err(Refused::new(Refusal::NotApproved, reason))
            }
        }
    }

    /// The newest moment at which something of it was signed.
    pub fn newest(&self) -> Timestamp {
        let waivers = self.waivers.iter().map(|counted| counted.waiver.at);
        waivers.fold(self.release.proof.at, Timestamp::max)
    }
}

/// Something that must be waived.
struct Need<'r> {
    baseline: &'r BaselineProof,
    matter: Matter<'r>,
}

enum Matter<'r> {
    /// A test that failed before the rollback, with its name below the baseline's: `phase/scenario/step`.
    Test { phase: &'r str, below: &'r str },
    /// One that failed after it.
    After { below: &'r str },
    /// The lab did not prove the way back, or the order says that there is none.
    WayBack,
}

impl Need<'_> {
    /// Whether a waiver speaks of this, whoever signed it.
    fn is_meant_by(&self, order: Digest, waiver: &Waiver) -> bool {
        let matter = match (&self.matter, &waiver.waived) {
            // A scenario's name may have a slash in it, where its matrix has.
            (Matter::Test { below, .. }, Waived::Scenario(name)) => {
                below.strip_prefix(name.as_str()).is_some_and(|step| step.starts_with('/'))
            }
            (Matter::After { .. } | Matter::WayBack, Waived::WayBack) => true,
            _ => false,
        };
        let baseline = waiver.baseline == self.baseline.name && waiver.baseline_digest == self.baseline.digest;
        matter && baseline && waiver.order == order
    }
}

impl fmt::Display for Need<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = &self.baseline.name;
        match self.matter {
            Matter::Test { phase, below } => write!(f, "{below} failed on {name} ({phase})"),
            Matter::After { below } => write!(f, "{below} failed on {name} after the rollback: its way back"),
            Matter::WayBack => write!(f, "the way back is not proven on {name}"),
        }
    }
}

/// What must be waived before this release may count.
fn needs<'r>(release: &'r Release, order: &Order) -> Result<Vec<Need<'r>>, Refused> {
    let baselines = &release.proof.baselines;
    let of_test = |test: &'r String| {
        let (baseline, rest) = test.split_once('/')?;
        let baseline = baselines.iter().find(|proof| proof.name == baseline)?;
        let matter = match rest.split_once('/')? {
            (ROLLED_BACK, below) => Matter::After { below },
            (phase, below) => Matter::Test { phase, below },
        };
        Some(Need { baseline, matter })
    };
    let mut needs = Vec::new();
    for test in &release.failed_tests {
        needs.push(of_test(test).ok_or_else(|| {
            let reason = format!("the failed test {test:?} is on no baseline of the release: nobody can waive it");
            Refused::new(Refusal::NotReleased, reason)
        })?);
    }
    let never = matches!(order.rollback, RollbackClass::SnapshotOnly | RollbackClass::Impossible);
    let unproven = baselines.iter().filter(|baseline| never || baseline.rollback != Rollback::Proven);
    needs.extend(unproven.map(|baseline| Need { baseline, matter: Matter::WayBack }));
    Ok(needs)
}

/// Whether a release counts by its result, whoever signed it: the lab passed the order, or everything that it found against it is waived.
///
/// # Errors
/// `not-released`, with what no waiver covers; of a waiver that does not count, why, as [`holds`] says.
pub fn counts(
    root: &Root,
    release: Release,
    order: &Order,
    order_digest: Digest,
    revoked: &[Digest],
    at: Timestamp,
) -> Result<Released, Refused> {
    let no = |reason: String| Err(Refused::new(Refusal::NotReleased, reason));
    match release.result {
        TestResult::Passed => return Ok(Released { release, waivers: Vec::new() }),
        TestResult::Failed => return no("the lab did not pass this order".into()),
        TestResult::Warned => {}
    }
    let mut offered = Vec::new();
    for envelope in &release.proof.waivers {
        let waiver: Waiver = read(envelope, "a waiver", Refusal::NotReleased)?.predicate;
        offered.push(Counted { envelope: envelope.clone(), digest: envelope.digest(), waiver });
    }
    let mut waivers: Vec<Counted> = Vec::new();
    let needs = needs(&release, order)?;
    if needs.is_empty() {
        return no("the release says that something is waived, and not what".into());
    }
    for need in needs {
        let meant: Vec<&Counted> =
            offered.iter().filter(|counted| need.is_meant_by(order_digest, &counted.waiver)).collect();
        let asked: Vec<_> = meant.iter().map(|counted| holds(root, counted, order, revoked, at)).collect();
        match (asked.iter().position(Result::is_ok), asked.into_iter().find_map(Result::err)) {
            (Some(at), _) if waivers.contains(meant[at]) => {}
            (Some(at), _) => waivers.push(meant[at].clone()),
            (None, Some(refused)) => return Err(refused),
            (None, None) => return no(format!("{need}, and no waiver covers that{}", others(order_digest, &offered))),
        }
    }
    Ok(Released { release, waivers })
}

/// Whether a waiver counts here and at that moment.
///
/// # Errors
/// By name: `bad-signature`, `not-my-class`, `revoked`, `expired`.
pub fn holds(root: &Root, counted: &Counted, order: &Order, revoked: &[Digest], at: Timestamp) -> Result<(), Refused> {
    let waiver = &counted.waiver;
    let no = |refusal, why: String| Err(Refused::new(refusal, format!("{counted} {why}")));
    if !signed(root, &counted.envelope, Role::Approver) {
        return no(Refusal::BadSignature, "is not signed by a key that may approve here".into());
    }
    if waiver.class != order.class {
        return no(Refusal::NotMyClass, format!("is for hosts of {}, the order for {}", waiver.class, order.class));
    }
    if revoked.contains(&counted.digest) {
        return no(Refusal::Revoked, "was revoked".into());
    }
    if at > waiver.not_after {
        return no(Refusal::Expired, format!("was valid until {}", waiver.not_after));
    }
    Ok(())
}

/// The waivers that there are, for whoever wonders why none of them counts.
fn others(order: Digest, offered: &[Counted]) -> String {
    let named = offered.iter().map(|counted| match counted.waiver.order == order {
        true => counted.to_string(),
        false => format!("{counted} for order {}", counted.waiver.order.short()),
    });
    match offered {
        [] => String::new(),
        _ => format!("; there is {}", named.collect::<Vec<_>>().join(", ")),
    }
}
