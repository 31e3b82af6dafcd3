//! What a SET would change, and why it may not. Pure.
//!
//! Each variable binding is checked by itself and against those before it ([`parse`], [`admit`]), so that the error
//! names the binding; the whole SET is resolved to one change before anything of it is done ([`resolve`]). What only
//! the end of the SET can show (a new row without its digest, a column of a row that nobody makes), since the other
//! bindings may follow in any order, is a `commitFailed`, and nothing is changed then either.

use std::collections::BTreeMap;

use async_snmp::{Oid, SetTestError, Value};
use jiff::Timestamp;
use patchlab_protocol::{Digest, document::Preparation, mib, time};

use crate::{
    state::{Change, Columns, ORDERS, OWN_RUNS, Offer, Order, RUNS_PER_ORDER, State},
    transition,
};

/// Lifetime of a row that names none, seconds.
const LIFETIME: u32 = 3600;

/// One variable binding that could be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Write {
    /// A column of an order row.
    Order(u32, Cell),
    /// Abort of a run: row, run index.
    Abort(u32, u32),
    /// `plRunAbort` or `plAgentReadInventory` written with 0: nothing.
    Nothing,
    /// The audit head.
    AuditHead(Option<Digest>),
    /// What is installed is to be read anew.
    ReadInventory,
    /// A part of an offer.
    Offer(OfferPart),
}

/// A part of an offer to change whom the host believes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OfferPart {
    /// Where the documents are.
    Uri(String),
    /// A root document.
    Root(Digest),
    /// A revocation list.
    Revocation(Digest),
}

/// A column of an order row with its new value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cell {
    /// RowStatus createAndGo.
    Create,
    /// RowStatus active, StorageType nonVolatile, or a start of no run: as it is.
    AsIs,
    /// RowStatus destroy.
    Destroy,
    /// The order document.
    Digest(Digest),
    /// The release document.
    Release(Option<Digest>),
    /// The approval document.
    Approval(Option<Digest>),
    /// The activation document.
    Activation(Option<Digest>),
    /// Where documents and files are.
    Uri(String),
    /// Seconds.
    Lifetime(u32),
    /// A run index.
    Start(u32),
    /// No apply begins before.
    NotBefore(Option<Timestamp>),
    /// No apply begins after.
    NotAfter(Option<Timestamp>),
    /// What a run does that is started.
    Preparation(Option<Preparation>),
}

/// Reads one variable binding: is there such an object, is it writable, is the value of its type and range.
///
/// # Errors
/// The SNMP error for this binding.
pub fn parse(oid: &Oid, value: &Value) -> Result<Write, SetTestError> {
    let arcs = oid.arcs();
    let under = |prefix: &[u32]| arcs.strip_prefix(prefix).map(<[u32]>::to_vec);
    if let Some(rest) = under(mib::agent::GROUP) {
        return match rest[..] {
            [mib::agent::AUDIT_HEAD, 0] => Ok(Write::AuditHead(optional_digest(value)?)),
            [mib::agent::READ_INVENTORY, 0] => match number(value)? {
                0 => Ok(Write::Nothing),
                1 => Ok(Write::ReadInventory),
                _ => Err(SetTestError::WrongValue),
            },
            [mib::agent::AUDIT_HEAD | mib::agent::READ_INVENTORY, ..] => Err(SetTestError::NoCreation),
            _ => Err(SetTestError::NotWritable),
        };
    }
    if let Some(rest) = under(mib::trust::GROUP) {
        return offer_part(&rest, value).map(Write::Offer);
    }
    if let Some(rest) = under(mib::order::ENTRY) {
        let [column, index] = rest[..] else { return Err(SetTestError::NoCreation) };
        let cell = order_cell(column, value)?;
        return if index == 0 { Err(SetTestError::NoCreation) } else { Ok(Write::Order(index, cell)) };
    }
    if let Some(rest) = under(mib::run::ENTRY) {
        return match rest[..] {
            [mib::run::ABORT, order, run] => match number(value)? {
                0 => Ok(Write::Nothing),
                1 => Ok(Write::Abort(order, run)),
                _ => Err(SetTestError::WrongValue),
            },
            [mib::run::ABORT, ..] => Err(SetTestError::NoCreation),
            _ => Err(SetTestError::NotWritable),
        };
    }
    Err(SetTestError::NotWritable)
}

fn offer_part(rest: &[u32], value: &Value) -> Result<OfferPart, SetTestError> {
    use mib::trust;
    let document = |value| optional_digest(value)?.ok_or(SetTestError::WrongLength);
    match rest {
        [trust::OFFER_URI, 0] => uri(value).map(OfferPart::Uri),
        [trust::OFFER_ROOT, 0] => document(value).map(OfferPart::Root),
        [trust::OFFER_REVOCATION, 0] => document(value).map(OfferPart::Revocation),
        [trust::OFFER_URI | trust::OFFER_ROOT | trust::OFFER_REVOCATION, ..] => Err(SetTestError::NoCreation),
        _ => Err(SetTestError::NotWritable),
    }
}

/// A place to fetch from.
fn uri(value: &Value) -> Result<String, SetTestError> {
    let bytes = octets(value)?;
    if !(1..=255).contains(&bytes.len()) {
        return Err(SetTestError::WrongLength);
    }
    let uri = String::from_utf8(bytes.to_vec()).map_err(|_| SetTestError::WrongValue)?;
    // Readers of addresses pass over some of them, and whoever reads the row on a terminal would not.
    if uri.chars().any(char::is_control) {
        return Err(SetTestError::WrongValue);
    }
    crate::fetch::Place::new(&uri).map_err(|_| SetTestError::WrongValue)?;
    Ok(uri)
}

fn order_cell(column: u32, value: &Value) -> Result<Cell, SetTestError> {
    use mib::order;
    Ok(match column {
        order::ROW_STATUS => match integer(value)? {
            1 => Cell::AsIs,
            4 => Cell::Create,
            6 => Cell::Destroy,
            _ => return Err(SetTestError::WrongValue),
        },
        order::STORAGE_TYPE => match integer(value)? {
            3 => Cell::AsIs,
            _ => return Err(SetTestError::WrongValue),
        },
        order::DIGEST => Cell::Digest(optional_digest(value)?.ok_or(SetTestError::WrongLength)?),
        order::RELEASE => Cell::Release(optional_digest(value)?),
        order::APPROVAL => Cell::Approval(optional_digest(value)?),
        order::ACTIVATION => Cell::Activation(optional_digest(value)?),
        order::URI => Cell::Uri(uri(value)?),
        order::LIFETIME => match number(value)? {
            seconds @ 1..=86_400 => Cell::Lifetime(seconds),
            _ => return Err(SetTestError::WrongValue),
        },
        order::NOT_BEFORE => Cell::NotBefore(optional_time(value)?),
        order::NOT_AFTER => Cell::NotAfter(optional_time(value)?),
        order::ACTION => match integer(value)? {
            0 => Cell::Preparation(None),
            number => {
                let preparation = Preparation::from_number(number.into()).ok_or(SetTestError::WrongValue)?;
                Cell::Preparation(Some(preparation))
            }
        },
        order::START => match number(value)? {
            0 => Cell::AsIs,
            run @ 1..OWN_RUNS => Cell::Start(run),
            _ => return Err(SetTestError::WrongValue),
        },
        _ => return Err(SetTestError::NotWritable),
    })
}

fn integer(value: &Value) -> Result<i32, SetTestError> {
    match value {
        Value::Integer(number) => Ok(*number),
        _ => Err(SetTestError::WrongType),
    }
}

fn number(value: &Value) -> Result<u32, SetTestError> {
    match value {
        Value::Gauge32(number) => Ok(*number),
        _ => Err(SetTestError::WrongType),
    }
}

fn octets(value: &Value) -> Result<&[u8], SetTestError> {
    match value {
        Value::OctetString(bytes) => Ok(bytes),
        _ => Err(SetTestError::WrongType),
    }
}

fn optional_digest(value: &Value) -> Result<Option<Digest>, SetTestError> {
    match octets(value)? {
        [] => Ok(None),
        bytes => Digest::from_bytes(bytes).map(Some).ok_or(SetTestError::WrongLength),
    }
}

fn optional_time(value: &Value) -> Result<Option<Timestamp>, SetTestError> {
    match octets(value)? {
        [] => Ok(None),
        bytes if !matches!(bytes.len(), 8 | 11) => Err(SetTestError::WrongLength),
        bytes => time::read(bytes).map(Some).ok_or(SetTestError::WrongValue),
    }
}

/// Whether a binding may join those before it in the same SET.
///
/// # Errors
/// The SNMP error for this binding.
pub fn admit(state: &State, before: &[Write], write: &Write) -> Result<(), SetTestError> {
    match write {
        Write::Nothing | Write::AuditHead(_) | Write::ReadInventory | Write::Offer(_) => Ok(()),
        Write::Abort(order, run) => match state.run(*order, *run) {
            None => Err(SetTestError::NoCreation),
            Some(row) if row.state.is_final() || transition::abortable(row.state) => Ok(()),
            Some(_) => Err(SetTestError::InconsistentValue),
        },
        Write::Order(index, cell) => admit_cell(state, before, *index, cell),
    }
}

fn admit_cell(state: &State, before: &[Write], index: u32, cell: &Cell) -> Result<(), SetTestError> {
    let earlier: Vec<&Cell> = before
        .iter()
        .filter_map(|write| if let Write::Order(i, cell) = write { (*i == index).then_some(cell) } else { None })
        .collect();
    let creating = earlier.contains(&&Cell::Create);
    let Some(row) = state.orders.get(&index) else {
        return match cell {
            Cell::Create => {
                let new = before.iter().filter(|write| matches!(write, Write::Order(_, Cell::Create))).count();
                if state.orders.len() + new >= ORDERS {
                    return Err(SetTestError::ResourceUnavailable);
                }
                Ok(())
            }
            Cell::Destroy if creating => Err(SetTestError::InconsistentValue),
            _ => Ok(()),
        };
    };
    // A repeated createAndGo says nothing new, or is wrong.
    let repeated = |cell: &Cell| build(Some(&row.columns), &[cell]).as_ref() == Some(&row.columns);
    match cell {
        Cell::AsIs => Ok(()),
        // Runs under way are not forgotten for others; a number that was used starts nothing.
        Cell::Start(run) if *run > row.last_run => {
            let started = earlier.iter().filter(|cell| matches!(cell, Cell::Start(_))).count();
            if started < row.room() { Ok(()) } else { Err(SetTestError::ResourceUnavailable) }
        }
        Cell::Start(_) => Ok(()),
        Cell::Create if earlier.iter().all(|cell| repeated(cell)) => Ok(()),
        Cell::Create => Err(SetTestError::InconsistentValue),
        Cell::Destroy if row.under_way().is_some() || creating => Err(SetTestError::InconsistentValue),
        Cell::Destroy => Ok(()),
        _ if repeated(cell) => Ok(()),
        Cell::Digest(_) => Err(SetTestError::InconsistentValue),
        _ if creating || row.under_way().is_some() => Err(SetTestError::InconsistentValue),
        _ => Ok(()),
    }
}

/// The columns after these cells; `None` when a new row lacks its digest or its URI.
fn build(row: Option<&Columns>, cells: &[&Cell]) -> Option<Columns> {
    let mut digest = row.map(|row| row.digest);
    let mut uri = row.map(|row| row.uri.clone());
    let mut optional = row.map_or([None; 3], |row| [row.release, row.approval, row.activation]);
    let mut lifetime = row.map_or(LIFETIME, |row| row.lifetime);
    let [mut not_before, mut not_after] = row.map_or([None; 2], |row| [row.not_before, row.not_after]);
    let mut preparation = row.and_then(|row| row.preparation);
    for cell in cells {
        match cell {
            Cell::Digest(value) => digest = Some(*value),
            Cell::Uri(value) => uri = Some(value.clone()),
            Cell::Release(value) => optional[0] = *value,
            Cell::Approval(value) => optional[1] = *value,
            Cell::Activation(value) => optional[2] = *value,
            Cell::Lifetime(value) => lifetime = *value,
            Cell::NotBefore(value) => not_before = *value,
            Cell::NotAfter(value) => not_after = *value,
            Cell::Preparation(value) => preparation = *value,
            Cell::Create | Cell::AsIs | Cell::Destroy | Cell::Start(_) => {}
        }
    }
    let [release, approval, activation] = optional;
    let (digest, uri) = (digest?, uri?);
    Some(Columns { digest, release, approval, activation, uri, lifetime, not_before, not_after, preparation })
}

/// A SET that cannot be done as a whole.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotWhole {
    /// An order row.
    #[error("order row {0}: the SET makes no whole row")]
    Row(u32),
    /// An offer without a place.
    #[error("documents are offered, and plTrustOfferUri does not say where they are")]
    Offer,
}

/// The change that a whole SET makes, and the runs it aborts. `state` may have moved since the bindings were admitted,
/// so what could have changed meanwhile is looked at again.
///
/// # Errors
/// When a row would not be whole, or a run started meanwhile.
pub fn resolve(state: &State, writes: &[Write], at: i64) -> Result<(Change, Vec<(u32, u32)>), NotWhole> {
    let mut cells: BTreeMap<u32, Vec<&Cell>> = BTreeMap::new();
    let mut change = Change { at, ..Change::default() };
    let mut aborts = Vec::new();
    let (mut root, mut revocation) = (None, None);
    for write in writes {
        match write {
            Write::Order(index, cell) => cells.entry(*index).or_default().push(cell),
            Write::Abort(order, run) => aborts.push((*order, *run)),
            Write::AuditHead(head) => change.audit_head = Some(*head),
            Write::ReadInventory => change.read_inventory = true,
            Write::Offer(OfferPart::Uri(uri)) => change.offer_uri = Some(uri.clone()),
            Write::Offer(OfferPart::Root(digest)) => root = Some(*digest),
            Write::Offer(OfferPart::Revocation(digest)) => revocation = Some(*digest),
            Write::Nothing => {}
        }
    }
    if root.is_some() || revocation.is_some() {
        let uri = change.offer_uri.as_ref().unwrap_or(&state.offer_uri);
        if uri.is_empty() {
            return Err(NotWhole::Offer);
        }
        change.offer = Some(Offer { uri: uri.clone(), root, revocation });
    }
    for (index, cells) in cells {
        let row = state.orders.get(&index);
        if cells.contains(&&Cell::Destroy) {
            if row.is_some_and(|row| row.under_way().is_some()) {
                return Err(NotWhole::Row(index));
            }
            change.orders.insert(index, None);
            continue;
        }
        if row.is_none() && !cells.contains(&&Cell::Create) {
            return Err(NotWhole::Row(index));
        }
        let columns = build(row.map(|row| &row.columns), &cells).ok_or(NotWhole::Row(index))?;
        let changed = row.map(|row| &row.columns) != Some(&columns);
        if changed && row.is_some_and(|row| row.under_way().is_some()) {
            return Err(NotWhole::Row(index));
        }
        if changed {
            change.orders.insert(index, Some(columns));
        }
        let last = row.map_or(0, |row| row.last_run);
        let starts = cells.iter().filter_map(|cell| if let Cell::Start(run) = cell { Some(*run) } else { None });
        let starts: Vec<(u32, u32)> = starts.filter(|run| *run > last).map(|run| (index, run)).collect();
        if starts.len() > row.map_or(RUNS_PER_ORDER, Order::room) {
            return Err(NotWhole::Row(index));
        }
        change.starts.extend(starts);
    }
    Ok((change, aborts))
}

#[cfg(test)]
mod tests;
