//! One package of a run, as `plItemTable` carries it: written by the agent, read back by the manager.

use serde::{Deserialize, Serialize};

/// One package of a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Item {
    /// Package name.
    pub name: String,
    /// Package architecture.
    pub arch: String,
    /// Version before; empty for none.
    pub from: String,
    /// Version to reach; empty for removal.
    pub to: String,
    /// Where it stands.
    pub state: ItemState,
}

/// Where one package stands; the number is its value in the MIB.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ItemState {
    /// To be done.
    Pending = 1,
    /// At its version.
    Done = 2,
    /// Not at its version, and nothing follows.
    Failed = 3,
}

impl ItemState {
    /// Every state, in order of its number.
    pub const ALL: [Self; 3] = [Self::Pending, Self::Done, Self::Failed];

    /// The state of a number in the MIB.
    pub fn from_number(number: i64) -> Option<Self> {
        Self::ALL.into_iter().find(|state| *state as i64 == number)
    }

    /// Its name, as in the MIB.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Done => "done",
            Self::Failed => "failed",
        }
    }
}
