//! One demonstration at a time on one machine: its managed hosts have fixed addresses.

use std::{
    fs::{File, OpenOptions},
    io::{Read as _, Write as _},
    path::Path,
};

use anyhow::{Context as _, bail};
use rustix::fs::{FlockOperation, flock};

/// Bytes read of what the holder wrote down.
const HOLDER_BYTES: u64 = 4200;

/// Held while a demonstration runs; the kernel lets go of it when the process ends, however it ends.
#[derive(Debug)]
pub struct DemoLock {
    file: File,
}

impl DemoLock {
    /// Takes the lock at `path` for a demonstration in `data`, or says who has it.
    pub fn take(path: &Path, data: &Path) -> anyhow::Result<Self> {
        let mut file = OpenOptions::new()
            .create(true)
            .read(true)
            .write(true)
            .truncate(false)
            .open(path)
            .with_context(|| format!("open {}", path.display()))?;
        if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            let mut holder = String::new();
            let _ = (&file).take(HOLDER_BYTES).read_to_string(&mut holder);
            bail!("another demonstration is running on this machine ({}): wait for its end", holder.trim());
        }
        file.set_len(0)?;
        write!(file, "process {}, in {}", std::process::id(), data.display())?;
        Ok(Self { file })
    }
}

impl Drop for DemoLock {
    fn drop(&mut self) {
        // Closing alone would not do: a process that another thread is just starting has the file open until its exec.
        let _ = flock(&self.file, FlockOperation::Unlock);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_is_told_about_the_first() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let first = DemoLock::take(&path, dir.path()).unwrap();
        let error = DemoLock::take(&path, dir.path()).unwrap_err().to_string();
        assert!(error.contains(&std::process::id().to_string()), "{error}");
        drop(first);
        DemoLock::take(&path, dir.path()).unwrap();
    }
}
