//! Results of runs that a host's own operator started: signed and chained like any other, and nobody here waits for them. A visit
//! takes them in.

use patchlab_protocol::{Digest, mib::agent};

use super::{
    manager::{Manager, Oid},
    offers::OfferError,
    result,
    row::{self, digest},
};
use crate::store::{Host, Store};

/// Takes in what the operator of a host did there, when the newest result of the host is of that.
///
/// # Errors
/// When the host cannot be asked, or the store cannot keep it. What does not count is left for whoever runs something there next.
pub async fn take_in(store: &Store, host: &Host, manager: &dyn Manager) -> Result<(), OfferError> {
    let name = &host.enrolled.name;
    let head = manager.get(&[Oid::of(agent::GROUP, agent::RESULT_HEAD, &[0])]).await.map_err(row::DeployError::from)?;
    let head: Option<Digest> = digest(head.first().and_then(Option::as_ref));
    if head.is_none() || head == host.result_head {
        return Ok(());
    }
    let all = row::results(manager).await?;
    let Some(newest) = all.iter().find(|signed| Some(result::digest(signed)) == head) else { return Ok(()) };
    let read = result::read(newest, name, &host.enrolled.public_key);
    // Anything else is a run that somebody follows, or that is noted when the next one ends.
    let Some(own) = read.ok().filter(|result| result.operator.is_some()) else { return Ok(()) };
    match result::bridge(host.result_head, &own, &all, name, &host.enrolled.public_key) {
        Ok(between) => {
            for result in between.iter().chain([&own]) {
                store.foreign_result(name, result)?;
            }
            Ok(store.move_head(name, &result::digest(newest), own.audit)?)
        }
        Err(error) => {
            tracing::warn!(%error, host = name, "a result of the host's own operator does not count");
            Ok(())
        }
    }
}
