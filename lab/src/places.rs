//! Where the lab keeps what it keeps.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// The lab's folders. A worker sees the same folders at other paths: its own are given to it by [`crate::worker::enter`].
///
/// ```text
/// DATA/baselines/DIGEST/   a baseline, never changed      (worker: read only)
/// DATA/artifacts/          package files by digest         (worker: read only)
/// DATA/work               a folder for each worker's files              (worker: its own alone)
/// DATA/kept/NAME/          clones kept of a validation     (worker: read only)
/// DATA/runs/ID/            records of validations         (worker: not there)
/// DATA/cache/              index files of repositories     (worker: not there)
/// DATA/lab/cache/          libvirt's capability cache      (worker: shared)
/// DATA/lab/controls/       what controls were found to be (worker: not there)
/// DATA/lab/ledger.jsonl    what was made on this host
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Places {
    /// Stored baselines, and the file of their names.
    pub baselines: PathBuf,
    /// The artifact store.
    pub artifacts: PathBuf,
    /// Workers' folders; in a worker: its own folder.
    pub work: PathBuf,
    /// Clones kept of validations.
    pub kept: PathBuf,
    /// Records of validations.
    pub runs: PathBuf,
    /// What makes the next start faster, and may be lost.
    pub cache: PathBuf,
    /// Index files of repositories, which can be fetched again: a folder for each package system, and in it one for each list of sources.
    pub index: PathBuf,
    /// Ledger and its lock.
    pub lab: PathBuf,
}

impl Places {
    /// The places below a data folder.
    pub fn of_data(data: &Path) -> Self {
        let lab = data.join("lab");
        Self {
            baselines: data.join("baselines"),
            artifacts: data.join("artifacts"),
            work: data.join("work"),
            kept: data.join("kept"),
            runs: data.join("runs"),
            cache: lab.join("cache"),
            index: data.join("cache"),
            lab,
        }
    }

    /// The places as a worker sees them. Short, since the paths of sockets below end at 108 bytes.
    pub(crate) fn of_worker() -> Self {
        let root = Path::new(WORKER_ROOT);
        Self {
            baselines: root.join("baselines"),
            artifacts: root.join("artifacts"),
            work: root.join("work"),
            kept: root.join("kept"),
            runs: root.join("runs"),
            cache: root.join("cache"),
            index: root.join("index"),
            lab: root.join("lab"),
        }
    }
}

/// The worker's root: a file system in memory of the worker's own, gone with it.
pub(crate) const WORKER_ROOT: &str = "/run/patchlab-lab";
