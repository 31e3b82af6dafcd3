//! Room in a host's order table, which holds 64 rows: when it is full, rows that are settled go. What is known of them is in the store by
//! then, and an order whose row went is told anew when somebody wants it rolled back.

use std::collections::{BTreeMap, BTreeSet};

use patchlab_protocol::{
    Digest,
    document::{RunResult, RunState},
    mib::{agent, run},
};

use super::{
    manager::{Manager, ManagerError, Oid, Value},
    result,
    row::{DeployError, destroy, digest, signed},
};

/// Most runs that are looked at: what a full table holds.
const RUNS: usize = 64 * 32;
/// `plRunAction`: apply and rollback; everything above changes nothing.
const APPLY: i64 = 1;
const ROLLBACK: i64 = 2;

/// A run as a host's table has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Seen {
    /// In which order they were started.
    attempt: i64,
    state: RunState,
    action: i64,
    /// Its result, and the one before that in the host's chain.
    result: Option<(Digest, Option<Digest>)>,
}

/// Takes rows away that are settled, so that another can be made; how many went. `known` is the newest result that the server has: rows with
/// newer ones stay, and so does `but`.
pub(super) async fn make(manager: &dyn Manager, but: u32, known: Option<Digest>) -> Result<usize, DeployError> {
    let head = manager.get(&[Oid::of(agent::GROUP, agent::RESULT_HEAD, &[0])]).await?;
    let head = digest(head.first().and_then(Option::as_ref));
    let rows = look(manager).await?;
    let mut gone = 0;
    for index in surplus(&rows, but, head, known) {
        match destroy(manager, index).await {
            Ok(()) => gone += 1,
            // Somebody started a run there meanwhile.
            Err(DeployError::Manager(ManagerError::Refused { .. })) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(gone)
}

/// Every run, by rows.
async fn look(manager: &dyn Manager) -> Result<BTreeMap<u32, Vec<Seen>>, DeployError> {
    let mut rows: BTreeMap<u32, Vec<Seen>> = BTreeMap::new();
    let mut at = Oid(run::ENTRY.iter().copied().chain([run::STATE]).collect());
    let mut looked = 0;
    while let Some((oid, state)) = manager.next(&at).await? {
        let Some(&[row, index]) = oid.index_in(run::ENTRY, run::STATE) else { break };
        // An agent that does not move forward would keep us here for ever.
        if oid <= at || looked >= RUNS {
            break;
        }
        looked += 1;
        let found = state.number().unwrap_or(0);
        let state = RunState::from_number(found)
            .ok_or(DeployError::Nonsense { what: "plRunState", found: found.to_string() })?;
        let columns = [run::ACTION, run::ATTEMPT].map(|column| Oid::of(run::ENTRY, column, &[row, index]));
        let numbers = manager.get(&columns).await?;
        let number = |n: usize| numbers.get(n).and_then(Option::as_ref).and_then(Value::number).unwrap_or(0);
        let signed = signed(manager, row, index).await?;
        let read = |signed: &super::row::Signed| serde_json::from_slice::<RunResult>(&signed.statement).ok();
        let result = signed.and_then(|signed| Some((result::digest(&signed), read(&signed)?.previous)));
        rows.entry(row).or_default().push(Seen { attempt: number(1), state, action: number(0), result });
        at = oid;
    }
    Ok(rows)
}

/// The rows that go: all that are settled and have no way back open; where there is none, the lowest of the others, which was told
/// first. Its way back is the server's alone then.
fn surplus(rows: &BTreeMap<u32, Vec<Seen>>, but: u32, head: Option<Digest>, known: Option<Digest>) -> Vec<u32> {
    let newer = newer(rows, head, known);
    let is_in = |run: &Seen| run.state.is_final() && run.result.is_none_or(|(digest, _)| !newer.contains(&digest));
    let settled: Vec<(u32, &Vec<Seen>)> = rows
        .iter()
        .filter(|(index, runs)| **index != but && runs.iter().all(is_in))
        .map(|(index, runs)| (*index, runs))
        .collect();
    let closed: Vec<u32> = settled.iter().filter(|(_, runs)| !is_open(runs)).map(|(index, _)| *index).collect();
    if closed.is_empty() { settled.first().map(|(index, _)| *index).into_iter().collect() } else { closed }
}

/// The results that the server has not seen: from the newest back to the one that it knows.
fn newer(rows: &BTreeMap<u32, Vec<Seen>>, head: Option<Digest>, known: Option<Digest>) -> BTreeSet<Digest> {
    let before: BTreeMap<Digest, Option<Digest>> = rows.values().flatten().filter_map(|run| run.result).collect();
    let mut newer = BTreeSet::new();
    let mut at = head;
    while let Some(digest) = at.filter(|at| Some(*at) != known) {
        // A chain that runs in a circle ends here.
        if !newer.insert(digest) {
            break;
        }
        at = before.get(&digest).copied().flatten();
    }
    newer
}

/// Whether something of the order is on the host, as far as its runs say.
fn is_open(runs: &[Seen]) -> bool {
    let changed =
        runs.iter().filter(|run| matches!(run.action, APPLY | ROLLBACK) && !matches!(run.state, RunState::Refused));
    changed.max_by_key(|run| run.attempt).is_some_and(|run| run.state != RunState::RolledBack)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(attempt: i64, action: i64, state: RunState) -> Seen {
        Seen { attempt, state, action, result: None }
    }

    fn chained(name: &str, previous: Option<&str>) -> Option<(Digest, Option<Digest>)> {
        Some((Digest::of(name), previous.map(Digest::of)))
    }

    #[test]
    fn what_is_settled_goes_and_an_open_way_back_only_when_nothing_else_can() {
        use RunState::{Aborted, Applying, Failed, Refused, RolledBack, Succeeded};
        let rows = BTreeMap::from([
            (1, vec![seen(1, APPLY, Succeeded)]),
            (2, vec![seen(1, APPLY, Succeeded), seen(2, ROLLBACK, RolledBack)]),
            (3, vec![seen(1, 3, Succeeded)]),
            (4, vec![seen(1, APPLY, Refused)]),
            (5, vec![seen(1, APPLY, Applying)]),
            (6, vec![seen(1, APPLY, Failed)]),
            (7, vec![seen(1, APPLY, Aborted), seen(2, ROLLBACK, Refused)]),
            (8, vec![seen(1, APPLY, Refused)]),
        ]);
        assert_eq!(surplus(&rows, 8, None, None), [2, 3, 4]);
        let open = rows.into_iter().filter(|(index, _)| [1, 5, 6, 7].contains(index)).collect();
        assert_eq!(surplus(&open, 8, None, None), [1]);
        assert_eq!(surplus(&BTreeMap::from([(5, vec![seen(1, APPLY, Applying)])]), 8, None, None), [0_u32; 0]);
    }

    #[test]
    fn a_row_whose_result_the_server_has_not_seen_stays() {
        let row = |result| vec![Seen { result, ..seen(1, APPLY, RunState::Refused) }];
        let rows = BTreeMap::from([
            (1, row(chained("a", None))),
            (2, row(chained("b", Some("a")))),
            (3, row(chained("c", Some("b")))),
        ]);
        let going = |known: Option<&str>| surplus(&rows, 9, Some(Digest::of("c")), known.map(Digest::of));
        assert_eq!(going(Some("c")), [1, 2, 3]);
        assert_eq!(going(Some("b")), [1, 2]);
        assert_eq!(going(None), [0_u32; 0]);
    }
}
