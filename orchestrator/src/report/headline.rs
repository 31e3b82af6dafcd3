//! Where an order is, in one sentence that a tired person understands. Pure: an order's state and its runs in, words out.

use std::collections::BTreeMap;

use patchlab_lab::verdict::Judgement;
use patchlab_protocol::document::RunState;

use crate::store::{OrderRow, OrderState, Run};

/// The sentence of an order, and whether it is out by somebody's word and not by the lab's.
pub fn told(order: &OrderRow, verdict: Option<Judgement>, runs: &[Run]) -> String {
    let said = headline(order.state, verdict, runs);
    match order.waivers {
        0 => said,
        1 => format!("{said} The lab did not pass it: it is released by a waiver."),
        many => format!("{said} The lab did not pass it: it is released by {many} waivers."),
    }
}

/// The sentence. `verdict` is the lab's newest, `runs` are all of the order's, oldest first.
fn headline(state: OrderState, verdict: Option<Judgement>, runs: &[Run]) -> String {
    let (with, without) = hosts(runs);
    let (with, without) = (list(&with), list(&without));
    match state {
        OrderState::Submitted => match verdict {
            None => "Not shipped: the lab has not tried it yet.".into(),
            Some(Judgement::Inapplicable) => "Not shipped: it cannot be applied to the baseline.".into(),
            Some(Judgement::LabError) => {
                "Not shipped: the lab broke, which says nothing about the patch. Validate it again.".into()
            }
            Some(_) => "Not shipped: nothing that means something was tested.".into(),
        },
        OrderState::Validated => "Not shipped yet: the lab passed it, nobody has released it.".into(),
        OrderState::Rejected => "Will not ship: the lab rejected it.".into(),
        OrderState::Released => "Not shipped yet: released, and waits for a person's approval.".into(),
        OrderState::Approved => "Not shipped yet: approved, and waits for its activation.".into(),
        OrderState::Active => match waiting(runs) {
            waiting if waiting.is_empty() => format!("Being shipped. So far on {with}."),
            waiting => format!("Waits for its window on {}. So far on {with}.", list(&waiting)),
        },
        OrderState::Deployed => format!("Shipped: on {with}."),
        OrderState::Partly => format!("Partly shipped: on {with}; not on {without}."),
        OrderState::RollingBack => format!("Being taken back. Still on {with}."),
        OrderState::RolledBack => format!("Taken back: not on {without} any more."),
        OrderState::RollbackFailed => format!("A way back failed: a person is needed on {without}."),
    }
}

/// The hosts that have the order by their newest run, and those that do not.
fn hosts(runs: &[Run]) -> (Vec<&str>, Vec<&str>) {
    let newest: BTreeMap<&str, &Run> = runs.iter().map(|run| (run.host.as_str(), run)).collect();
    newest.into_iter().fold((Vec::new(), Vec::new()), |(mut with, mut without), (host, run)| {
        if run.state == Some(RunState::Succeeded) { &mut with } else { &mut without }.push(host);
        (with, without)
    })
}

/// The hosts that have everything ready and wait for their window.
fn waiting(runs: &[Run]) -> Vec<&str> {
    let waits = |run: &&Run| run.state == Some(RunState::WaitingWindow) && !run.stage.is_final();
    runs.iter().filter(waits).map(|run| run.host.as_str()).collect()
}

/// `no host`, `web-1`, `web-1 and web-2`, `web-1, web-2 and 7 more`.
fn list(hosts: &[&str]) -> String {
    match hosts {
        [] => "no host".into(),
        [one] => (*one).into(),
        [one, two] => format!("{one} and {two}"),
        [one, two, more @ ..] => format!("{one}, {two} and {} more", more.len()),
    }
}

#[cfg(test)]
mod tests {
    use patchlab_protocol::Digest;

    use super::*;
    use crate::store::{Stage, Verified};

    fn run(host: &str, number: u32, state: RunState) -> Run {
        Run {
            order: Digest::of("order"),
            host: host.into(),
            run: number,
            activation: Digest::of("activation"),
            position: 0,
            stage: Stage::Finished,
            state: Some(state),
            phase: String::new(),
            percent: 100,
            refusal: None,
            reason: String::new(),
            report: None,
            verified: Verified::Yes,
            started_at: String::new(),
            ended_at: None,
        }
    }

    #[test]
    fn only_a_hosts_newest_run_counts() {
        let runs = [
            run("web-2", 1, RunState::Succeeded),
            run("web-1", 1, RunState::Succeeded),
            run("web-1", 2, RunState::RolledBack),
        ];
        assert_eq!(headline(OrderState::Partly, None, &runs), "Partly shipped: on web-2; not on web-1.");
        assert_eq!(headline(OrderState::Deployed, None, &runs[..2]), "Shipped: on web-1 and web-2.");
    }

    #[test]
    fn who_waits_for_the_window_is_named() {
        let waits = Run { stage: Stage::Running, ..run("web-2", 1, RunState::WaitingWindow) };
        let runs = [run("web-1", 1, RunState::Succeeded), waits];
        let said = headline(OrderState::Active, None, &runs);
        assert_eq!(said, "Waits for its window on web-2. So far on web-1.");
    }

    #[test]
    fn an_order_that_is_waived_is_never_told_as_one_that_passed() {
        let row = |waivers| OrderRow {
            digest: Digest::of("order"),
            id: "PO-1".into(),
            title: "t".into(),
            state: OrderState::Deployed,
            reason: String::new(),
            submitted_at: String::new(),
            changed_at: String::new(),
            revoked: None,
            superseded: None,
            waivers,
        };
        let runs = [run("web-1", 1, RunState::Succeeded)];
        assert_eq!((told(&row(0), None, &runs), row(0).marks()), ("Shipped: on web-1.".into(), vec![]));
        let said = told(&row(1), None, &runs);
        assert_eq!(said, "Shipped: on web-1. The lab did not pass it: it is released by a waiver.");
        assert_eq!(row(1).marks(), ["waived"]);
        assert!(told(&row(2), None, &runs).ends_with("released by 2 waivers."));
    }

    #[test]
    fn many_hosts_are_counted() {
        let runs: Vec<Run> = (1..=9).map(|n| run(&format!("web-{n}"), 1, RunState::Succeeded)).collect();
        assert_eq!(headline(OrderState::Deployed, None, &runs), "Shipped: on web-1, web-2 and 7 more.");
    }

    #[test]
    fn every_state_has_a_sentence_of_its_own() {
        let said: std::collections::BTreeSet<String> =
            OrderState::ALL.iter().map(|state| headline(*state, None, &[])).collect();
        assert_eq!(said.len(), OrderState::ALL.len());
    }
}
