//! Exit codes: a promise to CI runners.

use std::process::ExitCode;

use crate::order::OrderError;

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// As asked; the patch passed.
    Passed,
    /// The patch is rejected; a check of the audit log found something; a deployment did not end as it should.
    Rejected,
    /// Nothing meaningful ran.
    Missing,
    /// The patch cannot be applied.
    Inapplicable,
    /// The lab, the server or the machine broke.
    Broken,
    /// Refused by gate or policy.
    Refused,
    /// Wrong usage.
    Usage,
    /// Wrong input.
    Input,
    /// Interrupted.
    Interrupted,
    /// What a command in a kept clone ended with.
    Command(u8),
}

impl Exit {
    /// Its number.
    pub fn code(self) -> u8 {
        match self {
            Self::Passed => 0,
            Self::Rejected => 1,
            Self::Missing => 2,
            Self::Inapplicable => 3,
            Self::Broken => 4,
            Self::Refused => 5,
            Self::Usage => 64,
            Self::Input => 65,
            Self::Interrupted => 130,
            Self::Command(code) => code,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
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
