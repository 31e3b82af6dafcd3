//! What every object reads as, from the state. Pure.

use async_snmp::{Oid, OidTable, Value};
use patchlab_protocol::{
    Digest, Item, Refusal,
    document::{Action, RunState},
    mib, time,
};

use crate::{
    catalog::Catalog,
    profile::{Hour, Week},
    state::{Order, Reboot, Run, State, cut},
    trust::InForce,
};

/// `system` of SNMPv2-MIB, as far as a manager expects it of any agent.
pub const SYSTEM: &[u32] = &[1, 3, 6, 1, 2, 1, 1];

/// `snmp` of SNMPv2-MIB (RFC 3418): what could not be read, and what could not be answered. What was refused is counted
/// where RFC 3412 and RFC 3414 put it, by the engine itself.
pub const SNMP: &[u32] = &[1, 3, 6, 1, 2, 1, 11];

/// What is not in the state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// The agent's version.
    pub version: &'static str,
    /// The host's enrolled name.
    pub host: String,
    /// Its class, as text.
    pub class: String,
    /// The pinned root.
    pub root: InForce,
    /// Digest of the package list.
    pub inventory: Option<Digest>,
    /// Hundredths of seconds since the agent started.
    pub uptime: u32,
    /// `uptime` at the last change, 0 for none.
    pub last_change: u32,
    /// Milliseconds since 1970.
    pub now: i64,
    /// `snmpInASNParseErrs`.
    pub parse_errors: u32,
    /// `snmpInBadVersions`.
    pub bad_versions: u32,
    /// `snmpSilentDrops`.
    pub silent_drops: u32,
}

/// Every object that changes with the state or the time, with its value, in order.
pub fn objects(state: &State, facts: &Facts, week: &Week) -> OidTable<Value> {
    let mut values = Vec::new();
    system(&mut values, facts);
    agent(&mut values, state, facts);
    trust(&mut values, state, facts);
    for (index, order) in &state.orders {
        order_row(&mut values, *index, order);
        for (run, row) in &order.runs {
            run_row(&mut values, [*index, *run], row, facts.now);
            for (number, item) in (1..).zip(&row.items) {
                item_row(&mut values, [*index, *run, number], item);
            }
        }
    }
    for (number, hour) in (1..).zip(&week.hours).filter(|(_, hour)| hour.weeks > 0) {
        hour_row(&mut values, number, hour);
    }
    values.into_iter().collect()
}

fn hour_row(values: &mut Values, number: u32, hour: &Hour) {
    use mib::workload as column;
    // A load is never negative, and 2^32 connections are none.
    let whole = |value: f64| Value::Gauge32(value.round() as u32);
    let mut cell = |number_of_column, value| put(values, column::ENTRY, number_of_column, &[number], value);
    cell(column::CPU, whole(hour.load.cpu * 1000.0));
    cell(column::MEMORY, whole(hour.load.memory * 1000.0));
    cell(column::DISK, whole(hour.load.disk * 1000.0));
    cell(column::SESSIONS, whole(hour.load.sessions));
    cell(column::WEEKS, Value::Gauge32(hour.weeks));
}

/// The package table, which is large and changes seldom: it is made anew only when the catalogue changed.
pub fn packages(catalog: &Catalog) -> OidTable<Value> {
    use mib::package as column;
    let mut values = Vec::with_capacity(2 + catalog.entries.len() * 5);
    put(&mut values, column::GROUP, column::LAST_CHANGE, &[0], Value::Gauge32(catalog.change));
    put(&mut values, column::GROUP, column::FORGOTTEN, &[0], Value::Gauge32(catalog.forgotten));
    for (index, entry) in &catalog.entries {
        let mut cell = |number, value| put(&mut values, column::ENTRY, number, &[entry.change, *index], text(value));
        cell(column::NAME, &entry.name);
        cell(column::ARCH, &entry.arch);
        cell(column::VERSION, &entry.version);
        let source = entry.source.as_ref().map_or(["", ""], |source| [&*source.name, &*source.version]);
        cell(column::SOURCE, source[0]);
        cell(column::SOURCE_VERSION, source[1]);
    }
    values.into_iter().collect()
}

type Values = Vec<(Oid, Value)>;

fn text(value: &str) -> Value {
    Value::OctetString(cut(value).to_owned().into())
}

fn digest(value: Option<&Digest>) -> Value {
    Value::OctetString(value.map(|digest| digest.as_bytes().to_vec()).unwrap_or_default().into())
}

fn refusal(value: Option<Refusal>) -> Value {
    Value::Integer(value.map_or(0, |refusal| refusal as i32))
}

fn state_number(value: Option<RunState>) -> Value {
    Value::Integer(value.map_or(0, |state| state as i32))
}

fn put(values: &mut Values, prefix: &[u32], column: u32, index: &[u32], value: Value) {
    values.push((Oid::new(prefix.iter().copied().chain([column]).chain(index.iter().copied())), value));
}

fn system(values: &mut Values, facts: &Facts) {
    let describe = format!("patchlab-agent {} on {}", facts.version, facts.class);
    let mut scalar = |column, value| put(values, SYSTEM, column, &[0], value);
    scalar(1, text(&describe));
    scalar(2, Value::ObjectIdentifier(Oid::from_slice(mib::MIB)));
    scalar(3, Value::TimeTicks(facts.uptime));
    scalar(5, text(&facts.host));
    let mut counter = |number, value| put(values, SNMP, number, &[0], Value::Counter32(value));
    counter(3, facts.bad_versions);
    counter(6, facts.parse_errors);
    counter(31, facts.silent_drops);
}

fn agent(values: &mut Values, state: &State, facts: &Facts) {
    use mib::agent as column;
    let mut scalar = |number, value| put(values, column::GROUP, number, &[0], value);
    scalar(column::VERSION, text(facts.version));
    scalar(column::HOST, text(&facts.host));
    scalar(column::CLASS, text(&facts.class));
    scalar(column::INVENTORY_DIGEST, digest(facts.inventory.as_ref()));
    scalar(column::ROOT_DIGEST, digest(Some(&state.root.unwrap_or(facts.root).digest)));
    scalar(column::LAST_CHANGE, Value::TimeTicks(facts.last_change));
    scalar(column::AUDIT_HEAD, digest(state.audit_head.as_ref()));
    scalar(column::NOTIFICATION_SEQUENCE, Value::Gauge32(state.sequence));
    scalar(column::RESULT_HEAD, digest(state.result_head.as_ref()));
    scalar(column::READ_INVENTORY, Value::Gauge32(state.inventory_asked.into()));
}

fn trust(values: &mut Values, state: &State, facts: &Facts) {
    use mib::trust as column;
    let mut scalar = |number, value| put(values, column::GROUP, number, &[0], value);
    scalar(column::ROOT_VERSION, Value::Gauge32(state.root.unwrap_or(facts.root).version));
    scalar(column::REVOCATION_VERSION, Value::Gauge32(state.revocation.map_or(0, |list| list.version)));
    scalar(column::REVOCATION_DIGEST, digest(state.revocation.map(|list| list.digest).as_ref()));
    if let Some(floor) = state.time_floor {
        scalar(column::TIME_FLOOR, Value::OctetString(time::octets(floor).into()));
    }
    let offer = state.offer.as_ref();
    scalar(column::OFFER_URI, text(&state.offer_uri));
    scalar(column::OFFER_ROOT, digest(offer.and_then(|offer| offer.root).as_ref()));
    scalar(column::OFFER_REVOCATION, digest(offer.and_then(|offer| offer.revocation).as_ref()));
    let refused = state.offer_refused.as_ref();
    scalar(column::OFFER_REFUSAL, refusal(refused.map(|(refusal, _)| *refusal)));
    scalar(column::OFFER_REASON, text(refused.map_or("", |(_, reason)| reason)));
}

fn order_row(values: &mut Values, index: u32, order: &Order) {
    use mib::order as column;
    let mut cell = |number, value| put(values, column::ENTRY, number, &[index], value);
    let newest = order.newest();
    cell(column::ROW_STATUS, Value::Integer(1));
    cell(column::STORAGE_TYPE, Value::Integer(3));
    cell(column::DIGEST, digest(Some(&order.columns.digest)));
    cell(column::RELEASE, digest(order.columns.release.as_ref()));
    cell(column::APPROVAL, digest(order.columns.approval.as_ref()));
    cell(column::ACTIVATION, digest(order.columns.activation.as_ref()));
    cell(column::URI, text(&order.columns.uri));
    cell(column::LIFETIME, Value::Gauge32(order.columns.lifetime));
    cell(column::STATE, state_number(newest.map(|run| run.state)));
    cell(column::REFUSAL, refusal(newest.and_then(|run| run.refusal)));
    let reason = newest.filter(|run| run.refusal.is_some()).map_or("", |run| &run.error);
    cell(column::REFUSAL_REASON, text(reason));
    cell(column::RUN_INDEX_NEXT, Value::Gauge32(order.last_run.saturating_add(1)));
    cell(column::START, Value::Gauge32(0));
    cell(column::NOT_BEFORE, Value::OctetString(time::optional(order.columns.not_before).into()));
    cell(column::NOT_AFTER, Value::OctetString(time::optional(order.columns.not_after).into()));
    cell(column::ACTION, Value::Integer(order.columns.preparation.map_or(0, |preparation| preparation as i32)));
}

fn run_row(values: &mut Values, index: [u32; 2], run: &Run, now: i64) {
    use mib::run as column;
    let mut cell = |number, value| put(values, column::ENTRY, number, &index, value);
    let milliseconds = |value: u64| Value::Gauge32(u32::try_from(value).unwrap_or(u32::MAX));
    cell(column::STATE, state_number(Some(run.state)));
    cell(column::PERCENT, Value::Gauge32(run.percent.into()));
    cell(column::PHASE, text(&run.phase));
    cell(column::EXIT_CODE, Value::Integer(run.exit.unwrap_or(-1)));
    cell(column::ERROR, text(&run.error));
    cell(column::ATTEMPT, Value::Gauge32(run.attempt));
    cell(column::REBOOT_NEEDED, Value::Integer(if run.reboot == Reboot::Needed { 1 } else { 2 }));
    cell(column::DIGEST_BEFORE, digest(run.before.as_ref()));
    cell(column::DIGEST_AFTER, digest(run.after.as_ref()));
    cell(column::ABORT, Value::Gauge32(0));
    cell(column::REFUSAL, refusal(run.refusal));
    cell(column::DURATION, milliseconds(run.duration(now)));
    cell(column::RESULT, Value::OctetString(run.result.clone().into()));
    cell(column::RESULT_SIGNATURE, Value::OctetString(hex::decode(&run.signature).unwrap_or_default().into()));
    cell(column::TRANSACTION_DURATION, milliseconds(run.transaction_ms));
    cell(column::ACTION, Value::Integer(action_number(run)));
    cell(column::ORIGIN, text(&run.operator.map(|uid| format!("operator {uid}")).unwrap_or_default()));
}

/// `PatchlabAction` of a run.
fn action_number(run: &Run) -> i32 {
    match (run.preparation, run.action) {
        (Some(preparation), _) => preparation as i32,
        (None, Some(Action::Apply)) => 1,
        (None, Some(Action::Rollback)) => 2,
        (None, None) => 0,
    }
}

fn item_row(values: &mut Values, index: [u32; 3], item: &Item) {
    use mib::item as column;
    let mut cell = |number, value| put(values, column::ENTRY, number, &index, value);
    cell(column::NAME, text(&item.name));
    cell(column::ARCH, text(&item.arch));
    cell(column::FROM, text(&item.from));
    cell(column::TO, text(&item.to));
    cell(column::STATE, Value::Integer(item.state as i32));
}
