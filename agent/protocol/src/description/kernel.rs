//! The kernels of a host: the one that runs it, and those on its disk.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use super::NotThis;

/// Most kernels told of a host.
pub const KERNELS: usize = 32;
/// Longest release that is told, bytes; the kernel itself has 64 for it.
pub const RELEASE_BYTES: usize = 128;

/// A kernel.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kernel {
    /// Its release, e.g. `6.1.0-28-amd64`.
    pub release: String,
    /// Where it is.
    pub state: KernelState,
}

/// Where a kernel is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum KernelState {
    /// It runs, and its image is on the disk.
    Running,
    /// It runs, and its image is not on the disk: it was removed, or somebody else boots this host, as that of a container.
    RunningOnly,
    /// On the disk.
    Installed,
}

impl KernelState {
    const ALL: [Self; 3] = [Self::Running, Self::RunningOnly, Self::Installed];

    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::RunningOnly => "running-only",
            Self::Installed => "installed",
        }
    }
}

impl Kernel {
    /// Kernels by the release that runs and those on the disk, the newest last as they are given; at most [`KERNELS`], of which the one that
    /// runs is none too many. A release that is not one word, or too long, is not told.
    pub fn all(running: Option<&str>, installed: &[String]) -> Vec<Self> {
        let is_word = |release: &&str| {
            !release.is_empty()
                && release.len() <= RELEASE_BYTES
                && !release.contains(|c: char| c.is_whitespace() || c.is_control())
        };
        let running = running.filter(is_word);
        let others = installed.iter().map(String::as_str).filter(is_word).filter(|release| Some(*release) != running);
        let others: Vec<&str> = others.collect();
        let newest = &others[others.len().saturating_sub(KERNELS - 1)..];
        let state = |release: &str| {
            if installed.iter().any(|found| found == release) { KernelState::Running } else { KernelState::RunningOnly }
        };
        let kernel = |release: &str, state| Self { release: release.to_owned(), state };
        let runs = running.map(|release| kernel(release, state(release)));
        runs.into_iter().chain(newest.iter().map(|release| kernel(release, KernelState::Installed))).collect()
    }
}

impl fmt::Display for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "kernel {} {}", self.release, self.state.name())
    }
}

impl FromStr for Kernel {
    type Err = NotThis;

    fn from_str(line: &str) -> Result<Self, NotThis> {
        let ["kernel", release, state] = line.split_whitespace().collect::<Vec<_>>()[..] else { return Err(NotThis) };
        let state = KernelState::ALL.into_iter().find(|known| known.name() == state).ok_or(NotThis)?;
        Ok(Self { release: release.into(), state })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_one_that_runs_comes_first_and_many_are_cut_to_the_newest() {
        let told = |running: Option<&str>, installed: &[String]| -> Vec<String> {
            Kernel::all(running, installed).iter().map(ToString::to_string).collect()
        };
        let here = ["6.1.0-28", "6.1.0-29"].map(str::to_owned);
        assert_eq!(told(Some("6.1.0-28"), &here), ["kernel 6.1.0-28 running", "kernel 6.1.0-29 installed"]);
        assert_eq!(told(Some("6.8.0"), &here[..1]), ["kernel 6.8.0 running-only", "kernel 6.1.0-28 installed"]);
        assert!(told(None, &["a b".to_owned(), "x".repeat(200)]).is_empty());
        let many: Vec<String> = (0..100).map(|n| format!("6.{n}")).collect();
        let cut = told(Some("6.0"), &many);
        assert_eq!((cut.len(), &*cut[0], &*cut[KERNELS - 1]), (KERNELS, "kernel 6.0 running", "kernel 6.99 installed"));
        for line in [&*cut[0], &*cut[1], "kernel 6.8.0 running-only"] {
            assert_eq!(line.parse::<Kernel>().unwrap().to_string(), line);
        }
        assert!("kernel 6.1 asleep".parse::<Kernel>().is_err());
    }
}
