//! Whom a host believes, by PATCHLAB-MIB's plTrust: read it, offer what comes next, wait until that is decided.
//!
//! Everything here may be repeated: what a host has already it takes again without a change, and the newest offer counts.

use std::time::Duration;

use patchlab_protocol::{
    Digest, Refusal,
    mib::{agent, trust},
};

use super::{
    manager::{Manager, Oid, Value},
    row::{DeployError, digest, string},
};
use crate::trust::authority::{Held, Next, Standing};

/// How long a decision is waited for: a document is fetched and verified meanwhile.
const DECISION: Duration = Duration::from_secs(60);
/// Time between two looks at an offer: short at first, since most are decided at once.
const FIRST_LOOK: Duration = Duration::from_millis(100);
/// Longest time between two looks.
const LAST_LOOK: Duration = Duration::from_secs(2);
/// Most documents offered in one go: every root there may be, and a list.
const OFFERS: usize = patchlab_protocol::limits::ROOT_SUCCESSORS + 2;

/// What a host says of itself and of what it believes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Said {
    /// The name it was enrolled by.
    pub host: String,
    /// Its class.
    pub class: String,
    /// What it believes.
    pub held: Held,
    /// Whether an offer is not decided yet.
    pub open: bool,
    /// Why it refused the newest offer.
    pub refused: Option<(Refusal, String)>,
}

/// How offering ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ended {
    /// The host believes what this server believes.
    Current,
    /// It refused what it was offered.
    Refused(Refusal, String),
    /// It did not decide in time.
    Undecided,
    /// There is nothing that it would take.
    Stuck(String),
}

/// What came of offering.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offered {
    /// What the host said last.
    pub said: Said,
    /// How it ended.
    pub ended: Ended,
}

/// Reads what a host believes.
///
/// # Errors
/// When the host cannot be asked.
pub async fn read(manager: &dyn Manager) -> Result<Said, DeployError> {
    let from_agent = [agent::HOST, agent::CLASS, agent::ROOT_DIGEST].map(|column| Oid::of(agent::GROUP, column, &[0]));
    let from_trust = [
        trust::ROOT_VERSION,
        trust::REVOCATION_VERSION,
        trust::REVOCATION_DIGEST,
        trust::OFFER_ROOT,
        trust::OFFER_REVOCATION,
        trust::OFFER_REFUSAL,
        trust::OFFER_REASON,
    ]
    .map(|column| Oid::of(trust::GROUP, column, &[0]));
    let found = manager.get(&[from_agent.as_slice(), from_trust.as_slice()].concat()).await?;
    let get = |n: usize| found.get(n).and_then(Option::as_ref);
    let number = |n: usize| get(n).and_then(Value::number).and_then(|n| u32::try_from(n).ok()).unwrap_or(0);
    let refusal = get(8).and_then(Value::number).and_then(Refusal::from_number);
    Ok(Said {
        host: string(get(0)),
        class: string(get(1)),
        held: Held {
            root_version: number(3),
            root: digest(get(2)),
            revocation_version: number(4),
            revocation: digest(get(5)),
        },
        open: [6, 7].into_iter().any(|n| digest(get(n)).is_some()),
        refused: refusal.map(|refusal| (refusal, string(get(9)))),
    })
}

/// Offers one document.
async fn offer(manager: &dyn Manager, uri: &str, column: u32, document: &Digest) -> Result<(), DeployError> {
    let at = |column| Oid::of(trust::GROUP, column, &[0]);
    let place = Value::Octets(uri.as_bytes().to_vec());
    Ok(manager.set(&[(at(trust::OFFER_URI), place), (at(column), Value::Octets(document.as_bytes().to_vec()))]).await?)
}

/// Offers a host everything it is owed, one document at a time and in order, from `uri`. For one who asks at a time: that a document
/// was taken is seen by what the host holds after its offer.
///
/// # Errors
/// When the host cannot be asked or told.
pub async fn bring(manager: &dyn Manager, uri: &str, standing: &Standing) -> Result<Offered, DeployError> {
    let mut said = read(manager).await?;
    for _ in 0..OFFERS {
        let (column, document) = match standing.next(&said.held) {
            Next::Nothing => return Ok(Offered { said, ended: Ended::Current }),
            Next::Stuck(reason) => return Ok(Offered { said, ended: Ended::Stuck(reason) }),
            Next::Root(digest) => (trust::OFFER_ROOT, digest),
            Next::Revocation(digest) => (trust::OFFER_REVOCATION, digest),
        };
        offer(manager, uri, column, &document).await?;
        said = decided(manager).await?;
        let has = [said.held.root, said.held.revocation].contains(&Some(document));
        let ended = match (&said.refused, said.open) {
            _ if has => continue,
            (Some((refusal, reason)), false) => Ended::Refused(*refusal, reason.clone()),
            _ => Ended::Undecided,
        };
        return Ok(Offered { said, ended });
    }
    Ok(Offered { said, ended: Ended::Undecided })
}

/// What a host says once its open offer is decided, or when that took too long.
async fn decided(manager: &dyn Manager) -> Result<Said, DeployError> {
    let until = tokio::time::Instant::now() + DECISION;
    let mut pause = FIRST_LOOK;
    loop {
        let said = read(manager).await?;
        if !said.open || tokio::time::Instant::now() >= until {
            return Ok(said);
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LAST_LOOK);
    }
}
