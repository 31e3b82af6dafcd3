//! The machine under test, as steps see it.

use std::time::Duration;

/// The machine under test: run a command, read a file, talk to a socket. Implemented over the guest channel in the lab and
/// locally in the agent.
pub trait Target {
    /// Runs a shell command line (`/bin/sh -c`) in `dir` and waits for its end. Of an output stream with more than [`OUTPUT_LIMIT`] bytes the first
    /// and the last are kept.
    fn run(&self, command: &str, dir: Option<&str>, timeout: Duration) -> Result<Ran, TargetError>;

    /// Reads at most `limit` bytes of a file; `None` when it does not exist.
    fn read(&self, path: &str, limit: u64) -> Result<Option<Vec<u8>>, TargetError>;

    /// Connects to a TCP address *from the machine itself*, sends `request`, closes its side when that is empty, and returns what came back until the
    /// peer closed, `timeout`, or [`OUTPUT_LIMIT`]. `Ok(None)` when the connection was refused or timed out.
    fn connect(&self, host: &str, port: u16, request: &[u8], timeout: Duration)
    -> Result<Option<Vec<u8>>, TargetError>;
}

/// Bytes kept of each output stream: 256 KiB.
pub const OUTPUT_LIMIT: u64 = 256 * 1024;

/// How a command ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ran {
    /// Exit status; `None` when it was killed, by a signal or by the timeout.
    pub exit: Option<i32>,
    /// Standard output, lossily decoded.
    pub stdout: String,
    /// Standard error, lossily decoded.
    pub stderr: String,
    /// Bytes that both streams had, also those that were left out in the middle.
    pub written: u64,
    /// Whether the timeout ended it.
    pub ended: Ended,
}

/// Why a command is no longer running.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// It exited or was killed by a signal of its own making.
    ByItself,
    /// It ran longer than it was allowed.
    ByTimeout,
}

/// The machine or the way to it broke: not a statement about the patch.
#[derive(Debug, thiserror::Error)]
#[error("{action}: {reason}")]
pub struct TargetError {
    /// What was tried, on what.
    pub action: String,
    /// Why it failed.
    pub reason: String,
}
