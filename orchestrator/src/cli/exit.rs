//! Exit codes: a promise to CI runners.

use std::process::ExitCode;

use crate::order::OrderError;

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// As asked; the patch passed.
    Passed = 0,
    /// The patch is rejected; a check of the audit log found something; a deployment did not end as it should.
    Rejected = 1,
    /// Nothing meaningful ran.
    Missing = 2,
    /// The patch cannot be applied.
    Inapplicable = 3,
    /// The lab, the server or the machine broke.
    Broken = 4,
    /// Refused by gate or policy.
    Refused = 5,
    /// Wrong usage.
    Usage = 64,
    /// Wrong input.
    Input = 65,
    /// Interrupted.
    Interrupted = 130,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Why a command did not do it, one line for people.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// What was given cannot be used.
    #[error("{0}")]
    Input(String),
    /// The gate said no.
    #[error("refused: {0}")]
    Refused(String),
    /// There is no server.
    #[error("no server on this data folder ({data}): start one with `patchlab serve{flag}`{why}")]
    NoServer {
        /// The data folder.
        data: String,
        /// `--data DIR` when it was given.
        flag: String,
        /// What is known beyond.
        why: String,
    },
    /// Something broke.
    #[error("{0}")]
    Failed(String),
}

impl CliError {
    /// Its exit code.
    pub fn exit(&self) -> Exit {
        match self {
            Self::Input(_) => Exit::Input,
            Self::Refused(_) => Exit::Refused,
            Self::NoServer { .. } | Self::Failed(_) => Exit::Broken,
        }
    }

    /// An input error from whatever explains itself.
    pub fn input(error: impl std::fmt::Display) -> Self {
        Self::Input(error.to_string())
    }

    /// A failure from whatever explains itself.
    pub fn failed(error: impl std::fmt::Display) -> Self {
        Self::Failed(error.to_string())
    }
}

impl From<OrderError> for CliError {
    fn from(error: OrderError) -> Self {
        if error.is_machines() { Self::Failed(error.to_string()) } else { Self::Input(error.to_string()) }
    }
}
