use patchlab_protocol::document::RunState;

use super::*;
use crate::state::{Event, Run};

fn oid(prefix: &[u32], rest: &[u32]) -> Oid {
    Oid::new(prefix.iter().chain(rest).copied())
}

fn digest(text: &str) -> Value {
    Value::OctetString(Digest::of(text).as_bytes().to_vec().into())
}

fn uri() -> Value {
    Value::OctetString("http://127.0.0.1:80/".into())
}

/// Takes a whole SET through as the agent does; the error of the first binding that is refused, or the change.
fn set(state: &State, bindings: &[(u32, u32, Value)]) -> Result<Result<Change, NotWhole>, (usize, SetTestError)> {
    let mut writes = Vec::new();
    for (place, (column, index, value)) in bindings.iter().enumerate() {
        let write = parse(&oid(mib::order::ENTRY, &[*column, *index]), value).map_err(|error| (place + 1, error))?;
        admit(state, &writes, &write).map_err(|error| (place + 1, error))?;
        writes.push(write);
    }
    Ok(resolve(state, &writes, 0).map(|(change, _)| change))
}

fn create(index: u32) -> Vec<(u32, u32, Value)> {
    use mib::order;
    vec![
        (order::ROW_STATUS, index, Value::Integer(4)),
        (order::DIGEST, index, digest("order")),
        (order::URI, index, uri()),
    ]
}

fn with_row(index: u32) -> State {
    let mut state = State::default();
    let change = set(&state, &create(index)).unwrap().unwrap();
    state.apply(&Event::Set(change));
    state
}

fn with_run(state: RunState) -> State {
    let mut all = with_row(7);
    all.apply(&Event::Set(Change { starts: vec![(7, 1)], ..Change::default() }));
    let row = Run { state, ..Run::received(1, 0) };
    all.apply(&Event::Run { order: 7, run: 1, row: Box::new(row) });
    all
}

#[test]
fn a_row_is_made_by_one_set_in_any_order_and_may_start_at_once() {
    let mut bindings = create(7);
    bindings.push((mib::order::START, 7, Value::Gauge32(1)));
    for turn in 0..bindings.len() {
        bindings.rotate_left(1);
        let change =
            set(&State::default(), &bindings).unwrap_or_else(|error| panic!("rotation {turn}: {error:?}")).unwrap();
        assert!(change.orders[&7].is_some(), "rotation {turn}");
        assert_eq!(change.starts, [(7, 1)]);
    }
}

#[test]
fn values_are_checked_by_type_length_and_range() {
    use SetTestError::{NotWritable, WrongLength, WrongType, WrongValue};
    use mib::order;
    let cases = [
        (order::ROW_STATUS, Value::Integer(5), WrongValue),
        (order::ROW_STATUS, Value::Gauge32(4), WrongType),
        (order::STORAGE_TYPE, Value::Integer(2), WrongValue),
        (order::DIGEST, Value::OctetString(vec![1; 31].into()), WrongLength),
        (order::DIGEST, Value::OctetString(vec![].into()), WrongLength),
        (order::RELEASE, Value::Integer(1), WrongType),
        (order::URI, Value::OctetString(vec![].into()), WrongLength),
        (order::URI, Value::OctetString("ftp://1.2.3.4/".into()), WrongValue),
        (order::LIFETIME, Value::Gauge32(0), WrongValue),
        (order::NOT_BEFORE, Value::OctetString(vec![7; 9].into()), WrongLength),
        (order::NOT_AFTER, Value::OctetString(vec![13; 8].into()), WrongValue),
        (order::NOT_AFTER, Value::Gauge32(1), WrongType),
        (order::LIFETIME, Value::Gauge32(86_401), WrongValue),
        (order::URI, Value::OctetString("http://1.2.3.4/\u{1b}[2J".into()), WrongValue),
        (order::URI, Value::OctetString("http://1.2.3.4/\n".into()), WrongValue),
        (order::URI, Value::OctetString("http://1.2.3.4/\u{9b}x".into()), WrongValue),
        (order::STATE, Value::Integer(1), NotWritable),
        (order::RUN_INDEX_NEXT, Value::Gauge32(1), NotWritable),
        (99, Value::Integer(1), NotWritable),
    ];
    for (column, value, expected) in cases {
        assert_eq!(set(&State::default(), &[(column, 7, value.clone())]), Err((1, expected)), "{column} {value:?}");
    }
    let elsewhere = [
        (oid(order::ENTRY, &[order::DIGEST]), SetTestError::NoCreation),
        (oid(mib::run::ENTRY, &[mib::run::STATE, 7, 1]), NotWritable),
        (oid(mib::agent::GROUP, &[mib::agent::VERSION, 0]), NotWritable),
        (oid(mib::item::ENTRY, &[mib::item::NAME, 7, 1, 1]), NotWritable),
    ];
    let offered =
        parse(&oid(mib::trust::GROUP, &[mib::trust::OFFER_URI, 0]), &Value::OctetString("http://m/\t".into()));
    assert_eq!(offered, Err(WrongValue));
    for (place, expected) in elsewhere {
        assert_eq!(parse(&place, &digest("x")), Err(expected), "{place}");
    }
}

#[test]
fn a_row_that_would_not_be_whole_is_not_made() {
    use mib::order;
    let no_uri = [(order::DIGEST, 7, digest("order")), (order::ROW_STATUS, 7, Value::Integer(4))];
    assert_eq!(set(&State::default(), &no_uri), Ok(Err(NotWhole::Row(7))));
    for alone in [(order::DIGEST, 7, digest("order")), (order::START, 7, Value::Gauge32(1))] {
        assert_eq!(set(&State::default(), &[alone]), Ok(Err(NotWhole::Row(7))));
    }
}

#[test]
fn a_repeated_set_changes_nothing_and_another_one_is_inconsistent() {
    let state = with_row(7);
    assert_eq!(set(&state, &create(7)).unwrap().unwrap().orders, BTreeMap::new());
    let mut other = create(7);
    other[1].2 = digest("another order");
    assert_eq!(set(&state, &other), Err((2, SetTestError::InconsistentValue)));
    other.rotate_left(1);
    assert_eq!(set(&state, &other), Err((1, SetTestError::InconsistentValue)));
}

#[test]
fn a_row_with_a_run_under_way_keeps_its_columns_and_stays() {
    use mib::order;
    let activation = (order::ACTIVATION, 7, digest("activation"));
    let destroy = (order::ROW_STATUS, 7, Value::Integer(6));
    let busy = with_run(RunState::Applying);
    for binding in [activation.clone(), destroy.clone()] {
        assert_eq!(set(&busy, &[binding]), Err((1, SetTestError::InconsistentValue)));
    }
    let idle = with_run(RunState::Succeeded);
    let new = set(&idle, &[activation, (order::START, 7, Value::Gauge32(2))]).unwrap().unwrap();
    assert_eq!(new.orders[&7].as_ref().unwrap().activation, Some(Digest::of("activation")));
    assert_eq!(new.starts, [(7, 2)]);
    assert_eq!(set(&idle, &[destroy]).unwrap().unwrap().orders[&7], None);
}

#[test]
fn a_used_run_index_starts_nothing_and_is_no_error() {
    let state = with_run(RunState::Succeeded);
    let change = set(&state, &[(mib::order::START, 7, Value::Gauge32(1))]).unwrap().unwrap();
    assert_eq!(change, Change::default());
}

#[test]
fn a_start_of_no_run_leaves_the_cell_as_it_is() {
    let none = (mib::order::START, 7, Value::Gauge32(0));
    for state in [with_row(7), with_run(RunState::Applying)] {
        assert_eq!(set(&state, std::slice::from_ref(&none)).unwrap().unwrap(), Change::default());
    }
    let mut with_default = create(7);
    with_default.push(none.clone());
    let change = set(&State::default(), &with_default).unwrap().unwrap();
    assert!(change.starts.is_empty() && change.orders.len() == 1, "{change:?}");
    assert_eq!(set(&State::default(), &[none]), Ok(Err(NotWhole::Row(7))), "it makes no row");
}

#[test]
fn an_abort_is_possible_until_the_package_manager_starts() {
    let abort = parse(&oid(mib::run::ENTRY, &[mib::run::ABORT, 7, 1]), &Value::Gauge32(1)).unwrap();
    for (state, expected) in [
        (RunState::Received, Ok(())),
        (RunState::Verifying, Ok(())),
        (RunState::Applying, Err(SetTestError::InconsistentValue)),
        (RunState::Validating, Err(SetTestError::InconsistentValue)),
        (RunState::Succeeded, Ok(())),
    ] {
        assert_eq!(admit(&with_run(state), &[], &abort), expected, "{state:?}");
    }
    assert_eq!(admit(&State::default(), &[], &abort), Err(SetTestError::NoCreation));
}

#[test]
fn rows_are_limited() {
    let mut state = State::default();
    for index in 1..=ORDERS as u32 {
        let change = set(&state, &create(index)).unwrap().unwrap();
        state.apply(&Event::Set(change));
    }
    assert_eq!(set(&state, &create(1000)), Err((1, SetTestError::ResourceUnavailable)));
}

#[test]
fn an_offer_needs_a_place_and_keeps_it_for_the_next() {
    let place = (oid(mib::trust::GROUP, &[mib::trust::OFFER_URI, 0]), uri());
    let root = (oid(mib::trust::GROUP, &[mib::trust::OFFER_ROOT, 0]), digest("root"));
    let take = |state: &State, bindings: &[&(Oid, Value)]| {
        let writes: Vec<Write> = bindings.iter().map(|(oid, value)| parse(oid, value).unwrap()).collect();
        resolve(state, &writes, 0).map(|(change, _)| change)
    };
    let mut state = State::default();
    assert_eq!(take(&state, &[&root]), Err(NotWhole::Offer));
    let change = take(&state, &[&root, &place]).unwrap();
    assert_eq!(
        change.offer.as_ref().map(|offer| (offer.root, offer.revocation)),
        Some((Some(Digest::of("root")), None))
    );
    state.apply(&Event::Set(change));
    assert!(take(&state, &[&root]).unwrap().offer.is_some_and(|offer| offer.uri == "http://127.0.0.1:80/"));
    for (column, value, expected) in [
        (mib::trust::OFFER_URI, Value::OctetString("https://127.0.0.1/".into()), SetTestError::WrongValue),
        (mib::trust::OFFER_ROOT, Value::OctetString(vec![].into()), SetTestError::WrongLength),
        (mib::trust::OFFER_REVOCATION, Value::Integer(1), SetTestError::WrongType),
        (mib::trust::ROOT_VERSION, Value::Gauge32(1), SetTestError::NotWritable),
        (mib::trust::TIME_FLOOR, Value::OctetString(vec![].into()), SetTestError::NotWritable),
    ] {
        assert_eq!(parse(&oid(mib::trust::GROUP, &[column, 0]), &value), Err(expected), "{column}");
    }
}

#[test]
fn a_window_is_a_part_of_the_row_and_is_taken_back_by_nothing() {
    let opens: Timestamp = "2026-12-01T02:00:00Z".parse().unwrap();
    let cell = |value: Vec<u8>| (mib::order::NOT_BEFORE, 7, Value::OctetString(value.into()));
    let mut state = with_row(7);
    state.apply(&Event::Set(set(&state, &[cell(time::octets(opens))]).unwrap().unwrap()));
    assert_eq!(state.orders[&7].columns.not_before, Some(opens));
    assert_eq!(state.orders[&7].columns.not_after, None);
    state.apply(&Event::Set(set(&state, &[cell(vec![])]).unwrap().unwrap()));
    assert_eq!(state.orders[&7].columns.not_before, None);
    let waiting = with_run(RunState::WaitingWindow);
    let moved = set(&waiting, &[cell(time::octets(opens))]);
    assert_eq!(moved, Err((1, SetTestError::InconsistentValue)), "the window of a run that waits for it stays");
}

#[test]
fn a_start_for_which_no_run_could_be_forgotten_is_refused() {
    let mut state = with_row(7);
    let start = |run| (mib::order::START, 7, Value::Gauge32(run));
    let most = u32::try_from(RUNS_PER_ORDER).unwrap();
    for run in 1..=most {
        let change = set(&state, &[start(run)]).unwrap().unwrap();
        state.apply(&Event::Set(change));
    }
    assert_eq!(set(&state, &[start(most + 1)]), Err((1, SetTestError::ResourceUnavailable)));
    assert_eq!(set(&state, &[start(most)]).unwrap().unwrap().starts, [], "a number that was used starts nothing");
    // One that ended makes room for one.
    let row = Run { state: RunState::Refused, ..Run::received(3, 0) };
    state.apply(&Event::Run { order: 7, run: 3, row: Box::new(row) });
    assert_eq!(set(&state, &[start(most + 1)]).unwrap().unwrap().starts, [(7, most + 1)]);
    assert_eq!(set(&state, &[start(most + 1), start(most + 2)]), Err((2, SetTestError::ResourceUnavailable)));
}
