//! A step: one thing to do on a machine and what to expect of it.
//!
//! People write it as TOML, signed orders carry it as JSON; both have one form ([`fields`]), and only a step with exactly one
//! kind and valid patterns, addresses and names comes out of it. [`evaluate`] asks the machine.

mod evaluate;
mod fields;
mod http;
mod kind;
mod text;

use serde::{Deserialize, Serialize};

pub use evaluate::Context;
pub use fields::StepError;
pub use kind::{Expect, File, Http, Installed, Kind, Metric, Package, Port, Protocol, Tcp, Unit};
pub use text::{AbsolutePath, HttpUrl, PackageName, ParseTextError, Pattern, Percent, UnitName};

/// One step of a scenario.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
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
