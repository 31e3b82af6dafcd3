//! Rows: an order as a manager wrote it, and its runs.

use std::collections::BTreeMap;

use jiff::Timestamp;
use patchlab_protocol::{
    Digest, Item, ItemState, Refusal,
    document::{Action, Cause, OnFailure, Preparation, RunState},
    inventory::Transaction,
};
use serde::{Deserialize, Serialize};

use crate::{boot::BootOnce, change::Goal, process::ProcessMark};

/// The first index of a host's own runs, which no manager chooses: `plRunTable` tells the two apart by it.
pub const OWN_RUNS: u32 = 1 << 31;

/// Longest text kept for people, bytes (SnmpAdminString).
pub const TEXT_BYTES: usize = 255;

/// What a manager says of an order row.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Columns {
    /// The order document.
    pub digest: Digest,
    /// The release document.
    pub release: Option<Digest>,
    /// The approval document.
    pub approval: Option<Digest>,
    /// The activation document.
    pub activation: Option<Digest>,
    /// Where documents and files are.
    pub uri: String,
    /// Longest duration of a run, seconds; counted anew when its window opens.
    pub lifetime: u32,
    /// No apply begins before.
    #[serde(default)]
    pub not_before: Option<Timestamp>,
    /// No apply begins after.
    #[serde(default)]
    pub not_after: Option<Timestamp>,
    /// What a run does that is started; `None` for what the activation says.
    #[serde(default)]
    pub preparation: Option<Preparation>,
}

/// One order row.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Order {
    /// What the manager said.
    pub columns: Columns,
    /// The highest run index used.
    pub last_run: u32,
    /// How many runs were started.
    pub attempts: u32,
    /// How many of them by the host's own operator.
    #[serde(default)]
    pub own_runs: u32,
    /// Its runs.
    pub runs: BTreeMap<u32, Run>,
}

impl Order {
    /// The run that is under way, if any.
    pub fn under_way(&self) -> Option<(u32, &Run)> {
        self.runs.iter().find(|(_, run)| !run.state.is_final()).map(|(index, run)| (*index, run))
    }

    /// The newest run.
    pub fn newest(&self) -> Option<&Run> {
        self.runs.values().max_by_key(|run| run.attempt)
    }

    /// The index of the next run that the host's own operator starts.
    pub fn next_own_run(&self) -> u32 {
        OWN_RUNS.saturating_add(self.own_runs)
    }

    /// How many runs can be entered now: those that ended make room, those under way do not.
    pub fn room(&self) -> usize {
        super::RUNS_PER_ORDER.saturating_sub(self.runs.values().filter(|run| !run.state.is_final()).count())
    }

    /// Enters a run; the oldest that ended makes room.
    pub(super) fn enter(&mut self, index: u32, run: Run) {
        self.attempts += 1;
        self.runs.insert(index, Run { attempt: self.attempts, ..run });
        while self.runs.len() > super::RUNS_PER_ORDER {
            let ended = self.runs.iter().filter(|(_, run)| run.state.is_final());
            let oldest = ended.min_by_key(|(_, run)| run.attempt).map(|(index, _)| *index);
            let Some(oldest) = oldest else { break };
            self.runs.remove(&oldest);
        }
    }
}

/// One run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Run {
    /// Where it is.
    pub state: RunState,
    /// 0 to 100.
    pub percent: u8,
    /// What it is doing.
    pub phase: String,
    /// What the activation said; `None` before it was verified.
    pub action: Option<Action>,
    /// What it does without one; it changes nothing.
    #[serde(default)]
    pub preparation: Option<Preparation>,
    /// The user id of the host's own operator, who started it.
    #[serde(default)]
    pub operator: Option<u32>,
    /// Exit status of the package manager.
    pub exit: Option<i32>,
    /// Last error.
    pub error: String,
    /// Counted from 1.
    pub attempt: u32,
    /// Whether the host asks for a reboot.
    pub reboot: Reboot,
    /// Package list before.
    pub before: Option<Digest>,
    /// Package list after.
    pub after: Option<Digest>,
    /// Why it was refused.
    pub refusal: Option<Refusal>,
    /// Start, milliseconds since 1970.
    pub started: i64,
    /// End, milliseconds since 1970.
    pub ended: Option<i64>,
    /// Duration of the package manager's work, milliseconds.
    pub transaction_ms: u64,
    /// The signed statement; empty before the end.
    pub result: String,
    /// Its signature, hexadecimal digits; empty before the end.
    pub signature: String,
    /// The packages.
    pub items: Vec<Item>,
    /// The process of the package manager, or of the order's script, from its start until it was waited for.
    pub process: Option<ProcessMark>,
    /// What there is to reach, from before anybody goes for it to the run's end: so that a later agent can finish it.
    #[serde(default)]
    pub goal: Option<Goal>,
    /// When a manager asked for its abort, milliseconds since 1970.
    #[serde(default)]
    pub abort_asked: Option<i64>,
    /// What the signed order says about a failure; entered when the permission was used up.
    #[serde(default)]
    pub on_failure: OnFailure,
    /// Why the host walks back by itself.
    #[serde(default)]
    pub failure: Option<Failure>,
    /// The reboot that was asked for.
    #[serde(default)]
    pub rebooting: Option<Rebooting>,
    /// What is remembered of a kernel that it brings, until it ended.
    #[serde(default)]
    pub boot: Option<BootOnce>,
    /// Why the host could not come back from a kernel that it boots all the same.
    #[serde(default)]
    pub unprotected: Option<String>,
}

/// A reboot that was asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rebooting {
    /// The boot in which it is asked for.
    pub boot: String,
    /// When shutdown took it, milliseconds since 1970.
    pub asked: Option<i64>,
    /// When the next one must have come, milliseconds since 1970.
    pub by: i64,
}

/// A failure after which the host walks back by itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Failure {
    /// What sort it is.
    pub cause: Cause,
    /// The sentence for people.
    pub reason: String,
}

/// Whether a host asks for a reboot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reboot {
    /// It does.
    Needed,
    /// It does not.
    NotNeeded,
}

impl Run {
    /// A run that was just started.
    pub fn received(attempt: u32, at: i64) -> Self {
        Self {
            state: RunState::Received,
            percent: 0,
            phase: "received".into(),
            action: None,
            preparation: None,
            operator: None,
            exit: None,
            error: String::new(),
            attempt,
            reboot: Reboot::NotNeeded,
            before: None,
            after: None,
            refusal: None,
            started: at,
            ended: None,
            transaction_ms: 0,
            result: String::new(),
            signature: String::new(),
            items: Vec::new(),
            process: None,
            goal: None,
            abort_asked: None,
            on_failure: OnFailure::Leave,
            failure: None,
            rebooting: None,
            boot: None,
            unprotected: None,
        }
    }

    /// Duration so far, or in all, milliseconds.
    pub fn duration(&self, now: i64) -> u64 {
        u64::try_from(self.ended.unwrap_or(now) - self.started).unwrap_or(0)
    }

    /// The first word of the error is the refusal's name where there is one; kept within [`TEXT_BYTES`].
    pub fn set_error(&mut self, text: &str) {
        self.error = cut(text).to_owned();
    }
}

/// The items of a transaction, all pending.
pub fn items(transaction: &Transaction) -> Vec<Item> {
    let text = |version: &Option<String>| version.clone().unwrap_or_default();
    let item = |change: &patchlab_protocol::inventory::Change| Item {
        name: change.id.name.clone(),
        arch: change.id.arch.clone(),
        from: text(&change.from),
        to: text(&change.to),
        state: ItemState::Pending,
    };
    transaction.changes().iter().map(item).collect()
}

/// At most [`TEXT_BYTES`] bytes of a text, one line, whole characters.
pub fn cut(text: &str) -> &str {
    let line = text.trim();
    let end = (0..=line.len().min(TEXT_BYTES)).rev().find(|end| line.is_char_boundary(*end)).unwrap_or(0);
    &line[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_cut_at_whole_characters() {
        assert_eq!(cut(" a\n"), "a");
        assert_eq!(cut(&"ä".repeat(200)).len(), 254);
    }
}
