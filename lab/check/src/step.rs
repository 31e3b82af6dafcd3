//! A step: one thing to do on a machine and what to expect of it.
//!
//! People write it as TOML, signed orders carry it as JSON; both have one form ([`fields`]), and only a step with exactly one
//! kind and valid patterns, addresses and names comes out of it. [`evaluate`] asks the machine.

mod errand;
mod evaluate;
mod expect;
mod fields;
mod http;
mod kind;
mod look;
mod metric;
mod text;
mod wait;

use serde::{Deserialize, Serialize};

pub use errand::{COPY_OUT_BYTES, CopyIn, CopyOut, Errand, LONGEST_SLEEP, Sleep};
pub use evaluate::Context;
pub use expect::Expect;
pub use fields::{KINDS, KindError, StepError};
pub use kind::{File, Http, Installed, Kind, Listening, Package, Port, Presence, Protocol, Tcp, Unit};
pub use metric::{Better, Metric, Sample};
pub use text::{
    AbsolutePath, FileMode, FolderPath, HttpUrl, JsonQuery, MachineName, PackageName, ParseTextError, Pattern, Percent,
    REDACTED, UnitName,
};
pub use wait::{Condition, Wait};

/// One step of a scenario.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(try_from = "fields::Fields", into = "fields::Fields")]
pub struct Step {
    /// Name, unique in its scenario.
    pub name: String,
    /// What to do and what to expect.
    pub kind: Kind,
    /// Whether the step says something about how the machine works, or only that it is there.
    pub depth: Depth,
    /// How long the step may take; the scenario's budget limits it in any case.
    pub timeout: Option<crate::written::Span>,
    /// How often it is done; every time must pass. Absent means once, and [`Metric::REPEAT`] times with a metric.
    pub repeat: Repeat,
    /// What is taken out of its output before anything is stored or shown.
    pub redact: Vec<Pattern>,
    /// On which machine beside the one under test it is done; absent means on that one.
    pub machine: Option<MachineName>,
    /// The barrier, a later step by its name, at which its end is waited for: the steps between are done beside it. Absent means that it
    /// ends before the next one begins.
    pub until: Option<String>,
}

impl Step {
    /// Whether its passing says that the machine works: it does more than look whether something is there, and looks at all.
    pub fn is_evidence(&self) -> bool {
        self.depth == Depth::Meaningful && !matches!(self.kind, Kind::Errand(_))
    }
}

/// How often something is done, from 1 to [`Repeat::MOST`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(try_from = "u32", into = "u32")]
#[schemars(extend("minimum" = 1, "maximum" = Self::MOST))]
pub struct Repeat(u32);

impl Repeat {
    /// The highest number.
    pub const MOST: u32 = 1000;

    /// The number.
    pub fn times(self) -> u32 {
        self.0
    }
}

impl Default for Repeat {
    fn default() -> Self {
        Self(1)
    }
}

impl TryFrom<u32> for Repeat {
    type Error = String;

    fn try_from(times: u32) -> Result<Self, String> {
        match (1..=Self::MOST).contains(&times) {
            true => Ok(Self(times)),
            false => Err(format!("expected a number of times from 1 to {}, found {times}", Self::MOST)),
        }
    }
}

impl From<Repeat> for u32 {
    fn from(repeat: Repeat) -> Self {
        repeat.0
    }
}

/// Whether a step is evidence that a patch works.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// It is.
    Meaningful,
    /// It is not, taken alone (`superficial = true`).
    Superficial,
}

/// How one step ended on one machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// Pass, fail or skip.
    pub status: Status,
    /// Exit status, for `run`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit: Option<i32>,
    /// Duration, milliseconds.
    pub ms: u64,
    /// What was seen: output of the command, status line of the answer, state of the unit.
    pub output: String,
    /// Why it failed or was skipped; empty on a pass.
    pub reason: String,
    /// The numbers that its metric found, one a time that it passed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub samples: Vec<Sample>,
}

/// Pass, fail or skip.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Status {
    /// Every expectation held.
    Pass,
    /// An expectation did not hold.
    Fail,
    /// The step said that it does not apply here (exit 77).
    Skip,
}

impl std::fmt::Display for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Pass => "pass",
            Self::Fail => "fail",
            Self::Skip => "skip",
        })
    }
}

#[cfg(test)]
mod tests;
