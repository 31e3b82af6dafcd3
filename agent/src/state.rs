//! What the agent remembers: order and run rows, and the ledger. A fold over [`Event`]s, so that replaying the journal
//! gives the same state; clocks are in the events.

mod notice;
mod row;

use std::collections::{BTreeMap, VecDeque};

use jiff::Timestamp;
use patchlab_protocol::{
    Digest, Envelope, Ledger, Refusal,
    document::{Action, RunState},
};
use serde::{Deserialize, Serialize};

pub use notice::{Notice, What};
pub use row::{Columns, Failure, OWN_RUNS, Order, Reboot, Rebooting, Run, TEXT_BYTES, cut, items};

use crate::{ledger::Kept, trust::InForce};

/// Most order rows at a time.
pub const ORDERS: usize = 64;
/// Most runs remembered in one row; the oldest ended ones are forgotten.
pub const RUNS_PER_ORDER: usize = 32;
/// Most notices kept for a manager that does not answer; the oldest are dropped, and the gap in the numbers tells it to
/// poll.
pub const NOTICES: usize = 64;

/// Everything remembered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub struct State {
    /// Order rows by their index.
    pub orders: BTreeMap<u32, Order>,
    /// Activations used.
    pub consumed: Vec<Digest>,
    /// Orders whose apply was begun.
    pub applied: Vec<Digest>,
    /// Orders whose apply succeeded, and was not rolled back since.
    pub succeeded: Vec<Digest>,
    /// Documents revoked.
    pub revoked: Vec<Digest>,
    /// The newest signed time seen.
    pub time_floor: Option<Timestamp>,
    /// The newest audit head shown to the host.
    pub audit_head: Option<Digest>,
    /// Digest of the newest signed result.
    pub result_head: Option<Digest>,
    /// Sequence number of the newest notification.
    pub sequence: u32,
    /// Counts the changes of what the ledger keeps; 0 before there is a ledger.
    #[serde(default)]
    pub generation: u64,
    /// The roots that followed the pinned one, in order.
    #[serde(default)]
    pub roots: Vec<Envelope>,
    /// The root in force, when it is not the pinned one.
    #[serde(default)]
    pub root: Option<InForce>,
    /// The revocation list in force.
    #[serde(default)]
    pub revocation: Option<InForce>,
    /// Where offered documents are.
    #[serde(default)]
    pub offer_uri: String,
    /// What is offered and not yet decided.
    #[serde(default)]
    pub offer: Option<Offer>,
    /// Why the newest offer was refused, and the sentence for people.
    #[serde(default)]
    pub offer_refused: Option<(Refusal, String)>,
    /// Whether a manager wants what is installed to be read anew.
    #[serde(default)]
    pub inventory_asked: bool,
    /// What the manager has not confirmed yet, oldest first.
    #[serde(default)]
    pub notices: VecDeque<Notice>,
}

/// Documents that are offered to change whom the host believes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Offer {
    /// Where they are.
    pub uri: String,
    /// A root document.
    pub root: Option<Digest>,
    /// A revocation list.
    pub revocation: Option<Digest>,
}

/// Something that happened; one line of the journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Event {
    /// All that was before.
    Snapshot(Box<State>),
    /// The agent started.
    Started,
    /// A manager's SET, whole.
    Set(Change),
    /// The host's own operator has an order rolled back.
    OwnRun {
        /// Order row.
        order: u32,
        /// Run index.
        run: u32,
        /// The operator's user id.
        operator: u32,
        /// When, milliseconds since 1970.
        at: i64,
    },
    /// A run as it is now.
    Run {
        /// Order row.
        order: u32,
        /// Run index.
        run: u32,
        /// The row.
        row: Box<Run>,
    },
    /// A manager asked for the abort of a run.
    AbortAsked {
        /// Order row.
        order: u32,
        /// Run index.
        run: u32,
        /// When, milliseconds since 1970.
        at: i64,
    },
    /// An authorisation is used and its run begins, in one: cut off between the two, an order would be used up and nothing done. Entered
    /// before the package manager starts.
    Begun {
        /// The activation.
        activation: Digest,
        /// The order, for apply.
        applied: Option<Digest>,
        /// The newest signed time in the documents; `None` when it raises no floor.
        floor: Option<Timestamp>,
        /// Order row.
        order: u32,
        /// Run index.
        run: u32,
        /// The row from then on, with what there is to reach.
        row: Box<Run>,
    },
    /// The same as older agents entered it, in an entry of its own.
    Used {
        /// The activation.
        activation: Digest,
        /// The order, for apply.
        applied: Option<Digest>,
        /// The newest signed time in the documents.
        floor: Timestamp,
    },
    /// A newer signed time was seen.
    Seen {
        /// The time.
        at: Timestamp,
    },
    /// A root that follows the one in force.
    Root {
        /// Its version.
        version: u32,
        /// The signed document.
        envelope: Box<Envelope>,
    },
    /// A revocation list that follows the one in force.
    Revoked {
        /// Its version.
        version: u32,
        /// Its digest.
        digest: Digest,
        /// What it revokes.
        documents: Vec<Digest>,
        /// When it was signed; `None` when that raises no floor.
        at: Option<Timestamp>,
    },
    /// An offer is decided.
    Offered {
        /// Which.
        offer: Offer,
        /// Why it was refused; `None` when it was taken.
        refusal: Option<Refusal>,
        /// The sentence for people.
        reason: String,
    },
    /// What is installed was read anew, as a manager asked.
    InventoryRead {
        /// Its digest; `None` when the package manager could not say.
        digest: Option<Digest>,
    },
    /// The manager confirmed a notice.
    Confirmed {
        /// Its sequence number.
        sequence: u32,
    },
    /// From here on there is a ledger.
    LedgerBegun,
    /// The state was turned back; the ledger was not.
    Restored(Box<Kept>),
}

/// What one SET changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub struct Change {
    /// Rows as they are to be; `None` destroys one.
    pub orders: BTreeMap<u32, Option<Columns>>,
    /// Runs to start, as (row, run index).
    pub starts: Vec<(u32, u32)>,
    /// The audit head; `Some(None)` clears it.
    pub audit_head: Option<Option<Digest>>,
    /// Where offered documents are.
    #[serde(default)]
    pub offer_uri: Option<String>,
    /// What is offered.
    #[serde(default)]
    pub offer: Option<Offer>,
    /// Whether what is installed is to be read anew.
    #[serde(default)]
    pub read_inventory: bool,
    /// When, milliseconds since 1970.
    pub at: i64,
}

impl State {
    /// The part of the memory that decides about permission.
    pub fn ledger(&self) -> Ledger {
        Ledger {
            consumed: self.consumed.clone(),
            applied: self.applied.clone(),
            revoked: self.revoked.clone(),
            time_floor: self.time_floor,
        }
    }

    /// A run, by its indices.
    pub fn run(&self, order: u32, run: u32) -> Option<&Run> {
        self.orders.get(&order)?.runs.get(&run)
    }

    /// Every run that is under way, as (row, run index).
    pub fn under_way(&self) -> Vec<(u32, u32)> {
        let runs = self.orders.iter().flat_map(|(order, row)| row.runs.iter().map(|(run, row)| (*order, *run, row)));
        runs.filter(|(_, _, row)| !row.state.is_final()).map(|(order, run, _)| (order, run)).collect()
    }

    /// Takes an event in.
    pub fn apply(&mut self, event: &Event) {
        let before = (self.audit_head, self.result_head);
        self.take(event);
        let kept_elsewhere = match event {
            Event::Snapshot(_)
            | Event::AbortAsked { .. }
            | Event::LedgerBegun
            | Event::Restored(_)
            | Event::Offered { .. }
            | Event::InventoryRead { .. }
            | Event::Confirmed { .. } => false,
            Event::Started
            | Event::Begun { .. }
            | Event::Used { .. }
            | Event::Seen { .. }
            | Event::Root { .. }
            | Event::Revoked { .. } => true,
            Event::Set(_) | Event::OwnRun { .. } | Event::Run { .. } => before != (self.audit_head, self.result_head),
        };
        if self.generation > 0 && kept_elsewhere {
            self.generation += 1;
        }
    }

    fn take(&mut self, event: &Event) {
        match event {
            Event::Snapshot(state) => self.clone_from(state),
            Event::Started => self.notice(What::Started),
            Event::InventoryRead { digest } => {
                self.inventory_asked = false;
                self.notice(What::Inventory { digest: *digest });
            }
            Event::Confirmed { sequence } => self.notices.retain(|notice| notice.sequence != *sequence),
            Event::Set(change) => self.apply_set(change),
            Event::OwnRun { order, run, operator, at } => self.apply_own_run(*order, *run, *operator, *at),
            Event::Run { order, run, row } => self.apply_run(*order, *run, row),
            Event::AbortAsked { order, run, at } => {
                let row = self.orders.get_mut(order).and_then(|order| order.runs.get_mut(run));
                if let Some(row) = row.filter(|row| !row.state.is_final()) {
                    row.abort_asked.get_or_insert(*at);
                }
            }
            Event::Begun { activation, applied, floor, order, run, row } => {
                self.use_up(*activation, *applied, *floor);
                self.apply_run(*order, *run, row);
            }
            Event::Used { activation, applied, floor } => self.use_up(*activation, *applied, Some(*floor)),
            Event::Seen { at } => self.time_floor = self.time_floor.max(Some(*at)),
            Event::Root { version, envelope } => {
                self.root = Some(InForce { version: *version, digest: envelope.digest() });
                self.roots.push((**envelope).clone());
            }
            Event::Revoked { version, digest, documents, at } => {
                self.revocation = Some(InForce { version: *version, digest: *digest });
                documents.iter().for_each(|document| remember(&mut self.revoked, *document));
                self.time_floor = self.time_floor.max(*at);
            }
            Event::Offered { offer, refusal, reason } => {
                // Another offer may have come meanwhile; it stays.
                self.offer.take_if(|open| open == offer);
                self.offer_refused = refusal.map(|refusal| (refusal, cut(reason).to_owned()));
                self.notice(What::Trust {
                    root: self.root.map(|root| root.version),
                    revocation: self.revocation.map_or(0, |list| list.version),
                    refusal: *refusal,
                });
            }
            Event::LedgerBegun => self.generation = 1,
            Event::Restored(kept) => kept.restore(self),
        }
    }

    fn use_up(&mut self, activation: Digest, applied: Option<Digest>, floor: Option<Timestamp>) {
        remember(&mut self.consumed, activation);
        if let Some(order) = applied {
            remember(&mut self.applied, order);
        }
        self.time_floor = self.time_floor.max(floor);
    }

    fn notice(&mut self, what: What) {
        self.sequence = self.sequence.wrapping_add(1);
        self.notices.push_back(Notice { sequence: self.sequence, what });
        while self.notices.len() > NOTICES {
            self.notices.pop_front();
        }
    }

    fn apply_set(&mut self, change: &Change) {
        for (index, columns) in &change.orders {
            match (columns, self.orders.get_mut(index)) {
                (None, _) => drop(self.orders.remove(index)),
                (Some(columns), Some(row)) => row.columns.clone_from(columns),
                (Some(columns), None) => {
                    let row = Order {
                        columns: columns.clone(),
                        last_run: 0,
                        attempts: 0,
                        own_runs: 0,
                        runs: BTreeMap::new(),
                    };
                    self.orders.insert(*index, row);
                }
            }
        }
        for (order, run) in &change.starts {
            if let Some(row) = self.orders.get_mut(order).filter(|row| *run > row.last_run) {
                row.last_run = *run;
                let preparation = row.columns.preparation;
                row.enter(*run, Run { preparation, ..Run::received(0, change.at) });
                let state = RunState::Received;
                self.notice(What::Run { order: *order, run: *run, state, refusal: None, result: None });
            }
        }
        self.inventory_asked |= change.read_inventory;
        if let Some(head) = change.audit_head {
            self.audit_head = head;
        }
        if let Some(uri) = &change.offer_uri {
            self.offer_uri.clone_from(uri);
        }
        if let Some(offer) = &change.offer {
            self.offer = Some(offer.clone());
            self.offer_refused = None;
        }
    }

    fn apply_own_run(&mut self, order: u32, run: u32, operator: u32, at: i64) {
        let Some(row) = self.orders.get_mut(&order).filter(|row| run == row.next_own_run()) else { return };
        row.own_runs += 1;
        let (action, operator) = (Some(Action::Rollback), Some(operator));
        row.enter(run, Run { action, operator, ..Run::received(0, at) });
        self.notice(What::Run { order, run, state: RunState::Received, refusal: None, result: None });
    }

    fn apply_run(&mut self, order: u32, run: u32, row: &Run) {
        let Some(found) = self.orders.get_mut(&order).and_then(|order| order.runs.get_mut(&run)) else { return };
        let moved = found.state != row.state;
        if found.result != row.result {
            self.result_head = Some(Digest::of(&row.result));
        }
        found.clone_from(row);
        if moved {
            let result = (!row.result.is_empty()).then(|| (row.result.clone(), row.signature.clone()));
            self.notice(What::Run { order, run, state: row.state, refusal: row.refusal, result });
        }
        let Some(digest) = self.orders.get(&order).map(|order| order.columns.digest) else { return };
        match row.state {
            // What was only looked at or fetched is not on the host.
            RunState::Succeeded if row.preparation.is_none() => remember(&mut self.succeeded, digest),
            RunState::RollingBack => self.succeeded.retain(|known| *known != digest),
            _ => {}
        }
    }
}

fn remember(list: &mut Vec<Digest>, digest: Digest) {
    if !list.contains(&digest) {
        list.push(digest);
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Those of a row with an order and nothing else.
    pub(crate) fn columns() -> Columns {
        Columns {
            digest: Digest::of("order"),
            release: None,
            approval: None,
            activation: None,
            uri: "http://127.0.0.1/".into(),
            lifetime: 60,
            not_before: None,
            not_after: None,
            preparation: None,
        }
    }

    fn set(starts: &[(u32, u32)]) -> Event {
        Event::Set(Change {
            orders: BTreeMap::from([(7, Some(columns()))]),
            starts: starts.to_vec(),
            ..Change::default()
        })
    }

    #[test]
    fn a_run_index_that_was_used_starts_nothing() {
        let mut state = State::default();
        state.apply(&set(&[(7, 3)]));
        let once = state.clone();
        state.apply(&set(&[(7, 3), (7, 1)]));
        assert_eq!(state, once);
        assert_eq!((state.orders[&7].last_run, state.orders[&7].attempts, state.sequence), (3, 1, 1));
    }

    #[test]
    fn a_hosts_own_run_takes_no_index_of_the_managers() {
        let mut state = State::default();
        state.apply(&set(&[(7, 3)]));
        let own = Event::OwnRun { order: 7, run: OWN_RUNS, operator: 0, at: 5 };
        state.apply(&own);
        let once = state.clone();
        state.apply(&own);
        assert_eq!(state, once, "an index that was used");
        let row = &state.orders[&7];
        assert_eq!((row.last_run, row.next_own_run(), row.newest().unwrap().operator), (3, OWN_RUNS + 1, Some(0)));
        state.apply(&set(&[(7, 4)]));
        assert_eq!(state.orders[&7].newest().unwrap().attempt, 3, "the newest is the one that was started last");
        assert_eq!(state.orders[&7].newest().unwrap().operator, None);
    }

    #[test]
    fn the_oldest_runs_that_ended_are_forgotten_and_their_indices_stay_used() {
        let mut state = State::default();
        let ended = |index| Run { state: RunState::Refused, ..Run::received(index, 0) };
        // The first goes on while the others are refused one after the other.
        state.apply(&set(&[(7, 1)]));
        for index in 2..=RUNS_PER_ORDER as u32 + 5 {
            state.apply(&set(&[(7, index)]));
            state.apply(&Event::Run { order: 7, run: index, row: Box::new(ended(index)) });
        }
        assert_eq!(state.orders[&7].runs.len(), RUNS_PER_ORDER);
        assert!(state.run(7, 1).is_some(), "it is under way");
        assert!(state.run(7, 6).is_none() && state.run(7, 7).is_some());
        state.apply(&set(&[(7, 6)]));
        assert!(state.run(7, 6).is_none());
    }

    #[test]
    fn no_run_under_way_is_forgotten_however_many_there_are() {
        let mut state = State::default();
        for index in 1..=RUNS_PER_ORDER as u32 {
            assert_eq!(state.orders.get(&7).map_or(RUNS_PER_ORDER, Order::room), RUNS_PER_ORDER + 1 - index as usize);
            state.apply(&set(&[(7, index)]));
        }
        assert_eq!(state.orders[&7].room(), 0);
        // As an older agent journaled it.
        state.apply(&set(&[(7, 99)]));
        assert!(state.run(7, 1).is_some() && state.run(7, 99).is_some());
    }

    #[test]
    fn a_run_begins_and_uses_its_permission_up_in_one_entry() {
        let mut state = State { generation: 1, ..State::default() };
        state.apply(&set(&[(7, 1)]));
        let (activation, applied) = (Digest::of("activation"), Some(Digest::of("order")));
        let row = Run { state: RunState::Applying, ..Run::received(1, 0) };
        let begun = Event::Begun { activation, applied, floor: None, order: 7, run: 1, row: Box::new(row.clone()) };
        let begun: Event = serde_json::from_str(&serde_json::to_string(&begun).unwrap()).unwrap();
        state.apply(&begun);
        assert_eq!((state.run(7, 1), state.time_floor), (Some(&row), None));
        assert_eq!((state.consumed.as_slice(), &state.applied), ([activation].as_slice(), &vec![Digest::of("order")]));
        assert_eq!(state.generation, 2, "the ledger keeps it");
    }

    #[test]
    fn what_older_agents_journaled_is_read() {
        let (order, list) = (Digest::of("o"), Digest::of("l"));
        let at: Timestamp = "2026-02-01T00:00:00Z".parse().unwrap();
        let used = format!(r#"{{"used":{{"activation":"{order}","applied":null,"floor":"{at}"}}}}"#);
        let revoked = format!(r#"{{"revoked":{{"version":1,"digest":"{list}","documents":["{order}"],"at":"{at}"}}}}"#);
        for line in [used, revoked] {
            let mut state = State::default();
            state.apply(&serde_json::from_str(&line).unwrap());
            assert_eq!(state.time_floor, Some(at), "{line}");
        }
    }

    #[test]
    fn used_permissions_and_the_time_floor_only_grow() {
        let mut state = State::default();
        let [early, late]: [Timestamp; 2] =
            ["2026-01-01T00:00:00Z", "2026-02-01T00:00:00Z"].map(|t| t.parse().unwrap());
        for floor in [late, early] {
            state.apply(&Event::Used { activation: Digest::of("a"), applied: Some(Digest::of("o")), floor });
        }
        let ledger = state.ledger();
        assert_eq!((ledger.consumed.len(), ledger.applied.len(), ledger.time_floor), (1, 1, Some(late)));
    }

    #[test]
    fn notices_wait_in_order_until_they_are_confirmed_and_the_oldest_make_room() {
        let mut state = State::default();
        for _ in 0..NOTICES + 3 {
            state.apply(&Event::Started);
        }
        let numbers = |state: &State| state.notices.iter().map(|notice| notice.sequence).collect::<Vec<_>>();
        assert_eq!(numbers(&state), (4..=NOTICES as u32 + 3).collect::<Vec<_>>());
        state.apply(&Event::Confirmed { sequence: 4 });
        state.apply(&Event::Confirmed { sequence: 1 });
        assert_eq!((numbers(&state)[0], state.notices.len()), (5, NOTICES - 1));
    }

    #[test]
    fn an_abort_that_was_asked_for_is_remembered_and_changes_nothing_that_ended() {
        let mut state = State::default();
        state.apply(&set(&[(7, 3)]));
        state.apply(&Event::AbortAsked { order: 7, run: 3, at: 5 });
        state.apply(&Event::AbortAsked { order: 7, run: 3, at: 6 });
        state.apply(&Event::AbortAsked { order: 7, run: 4, at: 6 });
        assert_eq!(state.run(7, 3).unwrap().abort_asked, Some(5));
        let ended = Run { state: RunState::Succeeded, ..Run::received(1, 0) };
        state.apply(&Event::Run { order: 7, run: 3, row: Box::new(ended.clone()) });
        state.apply(&Event::AbortAsked { order: 7, run: 3, at: 9 });
        assert_eq!(state.run(7, 3), Some(&ended));
    }
}
