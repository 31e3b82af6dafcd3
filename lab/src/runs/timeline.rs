//! What happened in a run and when, and the phases that follow from it.

use patchlab_check::Status;
use serde::{Deserialize, Serialize};

use crate::{applier::Role, verdict::Judgement};

/// Something that happened (a line of `events.jsonl`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// When, milliseconds after the run began.
    pub ms: u64,
    /// On which baseline, by its full name.
    pub baseline: String,
    /// What.
    #[serde(flatten)]
    pub what: Happening,
}

/// What can happen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Happening {
    /// It begins, on one of several hosts that lend machines.
    Started {
        /// The host's name.
        host: String,
    },
    /// That host lends nothing any more: it waits for another.
    HostGone {
        /// The host's name.
        host: String,
        /// Why.
        reason: String,
    },
    /// A phase begins, and the one before it ends.
    Phase {
        /// Its name.
        name: String,
    },
    /// A step ended on a clone.
    Step {
        /// The scenario.
        scenario: String,
        /// The step.
        step: String,
        /// The clone.
        role: Role,
        /// How.
        status: Status,
    },
    /// Something people should know.
    Note {
        /// It.
        text: String,
    },
    /// The validation on this baseline has ended.
    Ended {
        /// Its verdict.
        verdict: Judgement,
        /// One line for people.
        reason: String,
    },
    /// It was ended before it had a verdict.
    Interrupted,
}

/// A phase, and how long it took.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PhaseTime {
    /// Its name.
    pub name: String,
    /// When it began, milliseconds after the run began.
    pub begun_ms: u64,
    /// How long it took, milliseconds.
    pub ms: u64,
}

/// The phases on a baseline. The last one ends with the last thing that is known of that baseline.
pub fn phases(events: &[Event], baseline: &str) -> Vec<PhaseTime> {
    let mut phases: Vec<PhaseTime> = Vec::new();
    for event in events.iter().filter(|event| event.baseline == baseline) {
        if let Some(last) = phases.last_mut() {
            last.ms = event.ms.saturating_sub(last.begun_ms);
        }
        if let Happening::Phase { name } = &event.what {
            phases.push(PhaseTime { name: name.clone(), begun_ms: event.ms, ms: 0 });
        }
    }
    phases
}

/// The steps that failed on a baseline, by the clone, as a sentence; empty when none did. A step that fails on the patched clone alone
/// is run again, and said once.
pub(super) fn failed(events: &[Event], baseline: &str) -> String {
    let on = |wanted: Role| {
        let mut failed: Vec<String> = Vec::new();
        for event in events.iter().filter(|event| event.baseline == baseline) {
            if let Happening::Step { scenario, step, role, status: Status::Fail } = &event.what {
                let step = format!("{scenario}/{step}");
                if *role == wanted && !failed.contains(&step) {
                    failed.push(step);
                }
            }
        }
        (!failed.is_empty()).then(|| format!("{} had failed on the {} clone", failed.join(", "), wanted.name()))
    };
    [Role::Control, Role::Patched].into_iter().filter_map(on).collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(ms: u64, baseline: &str, what: Happening) -> Event {
        Event { ms, baseline: baseline.into(), what }
    }

    fn phase(name: &str) -> Happening {
        Happening::Phase { name: name.into() }
    }

    #[test]
    fn a_phase_ends_where_the_next_begins_and_others_baselines_do_not_count() {
        let ended = Happening::Ended { verdict: Judgement::Passed, reason: String::new() };
        let events = [
            event(10, "a", phase("clone")),
            event(11, "b", phase("clone")),
            event(40, "a", phase("apply")),
            event(45, "a", Happening::Note { text: "slow".into() }),
            event(70, "b", ended.clone()),
            event(90, "a", ended),
        ];
        let of = |baseline| -> Vec<_> {
            phases(&events, baseline).into_iter().map(|phase| (phase.name, phase.begun_ms, phase.ms)).collect()
        };
        assert_eq!(of("a"), [("clone".to_owned(), 10, 30), ("apply".to_owned(), 40, 50)]);
        assert_eq!(of("b"), [("clone".to_owned(), 11, 59)]);
        assert_eq!(of("c"), []);
        assert_eq!(phases(&events[..4], "a")[1].ms, 5, "an interrupted one ends with its last word");
    }

    #[test]
    fn an_event_is_one_flat_object() {
        let line = serde_json::to_string(&event(7, "a@1", phase("clone"))).unwrap();
        assert_eq!(line, r#"{"ms":7,"baseline":"a@1","event":"phase","name":"clone"}"#);
        assert_eq!(serde_json::from_str::<Event>(&line).unwrap(), event(7, "a@1", phase("clone")));
    }
}
