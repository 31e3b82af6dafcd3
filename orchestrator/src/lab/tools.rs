//! The tools disk: a small read-only ext4 image with the agent in it, the second disk of every clone. The agent is not baked into
//! a baseline, so a new agent does not invalidate baselines.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Context as _;
use patchlab_check::Digest;
use patchlab_lab::{machine::TOOLS_BYTES, worker::Worker};

use crate::place::Data;

/// Where a guest mounts the tools disk.
pub const MOUNT_POINT: &str = "/run/patchlab/tools";
/// The agent's file name, beside `patchlab` on the host and on the tools disk.
pub const AGENT: &str = "patchlab-agent";
/// What of the tools disk is left for the agent, MiB: its file system takes the rest.
const AGENT_MIB: u64 = (TOOLS_BYTES >> 20) - 8;
/// The tools disk's name in a worker's folder.
const NAME_IN_WORKER: &str = "tools.ext4";

/// The tools disk could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ToolsError {
    /// No agent to put on it.
    #[error(
        "the agent's program {path} is missing: build it with tests/build, which puts it beside patchlab (or set PATCHLAB_AGENT)"
    )]
    NoAgent {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// The agent would not start on a guest with another libc.
    #[error(
        "the agent's program {path} is linked dynamically and a guest's libc may differ: build it with tests/build"
    )]
    NotStatic {
        /// The program.
        path: PathBuf,
    },
    /// The agent does not fit.
    #[error(
        "the agent's program {path} has {mib} MiB, and the tools disk holds {AGENT_MIB}: build it with tests/build, which leaves its symbols out"
    )]
    TooLarge {
        /// The program.
        path: PathBuf,
        /// Its size, MiB.
        mib: u64,
    },
    /// A file could not be read or written.
    #[error("tools disk: {action} {path}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// mke2fs failed.
    #[error("tools disk: mke2fs: {reason} (is e2fsprogs installed? lab/setup-host does that)")]
    Mke2fs {
        /// Its words.
        reason: String,
    },
}

/// The agent's program: `PATCHLAB_AGENT`, or the file beside this program.
pub fn agent_program() -> Result<PathBuf, ToolsError> {
    let path = std::env::var_os("PATCHLAB_AGENT").map(PathBuf::from).or_else(|| {
        let program = std::env::current_exe().ok()?;
        Some(program.parent()?.join(AGENT))
    });
    let path = path.unwrap_or_else(|| PathBuf::from(AGENT));
    if path.is_file() { Ok(path) } else { Err(ToolsError::NoAgent { path }) }
}

/// The tools disk for `agent` in `dir`, made when absent; its name holds the agent's digest.
pub fn disk(agent: &Path, dir: &Path) -> Result<PathBuf, ToolsError> {
    let failed = |action, path: &Path| {
        let path = path.to_owned();
        move |source| ToolsError::Io { action, path, source }
    };
    let program = fs::read(agent).map_err(failed("read", agent))?;
    if is_dynamic(&program) {
        return Err(ToolsError::NotStatic { path: agent.to_owned() });
    }
    let mib = program.len() as u64 >> 20;
    if mib >= AGENT_MIB {
        return Err(ToolsError::TooLarge { path: agent.to_owned(), mib });
    }
    let image = dir.join(format!("{}.ext4", Digest::of(&program)));
    if image.is_file() {
        return Ok(image);
    }
    fs::create_dir_all(dir).map_err(failed("create", dir))?;
    let content = tempfile::tempdir_in(dir).map_err(failed("create a folder in", dir))?;
    let inside = content.path().join(AGENT);
    fs::write(&inside, &program).map_err(failed("write", &inside))?;
    set_mode(&inside, 0o755).map_err(failed("change the mode of", &inside))?;
    set_mode(content.path(), 0o755).map_err(failed("change the mode of", content.path()))?;
    let partial = tempfile::NamedTempFile::new_in(dir).map_err(failed("create a file in", dir))?;
    partial.as_file().set_len(TOOLS_BYTES).map_err(failed("size", partial.path()))?;
    // No journal: the disk is read-only, and a mount must not want to replay one.
    let output = Command::new("mke2fs")
        .args(["-q", "-F", "-t", "ext4", "-O", "^has_journal", "-E", "root_owner=0:0", "-d"])
        .arg(content.path())
        .arg(partial.path())
        .output()
        .map_err(|error| ToolsError::Mke2fs { reason: error.to_string() })?;
    if !output.status.success() {
        return Err(ToolsError::Mke2fs { reason: String::from_utf8_lossy(&output.stderr).trim().to_owned() });
    }
    set_mode(partial.path(), 0o644).map_err(failed("change the mode of", partial.path()))?;
    partial.persist(&image).map_err(|error| failed("rename to", &image)(error.error))?;
    Ok(image)
}

/// The tools disk in a worker's own folder, where the worker finds it by the name that is returned.
pub fn disk_in_worker(data: &Data, worker: &Worker) -> anyhow::Result<String> {
    let image = disk(&agent_program()?, &data.tools())?;
    let copy = worker.folder().join(NAME_IN_WORKER);
    fs::copy(&image, &copy).with_context(|| format!("copy the tools disk to {}", copy.display()))?;
    Ok(NAME_IN_WORKER.to_owned())
}

fn set_mode(path: &Path, mode: u32) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}

/// Whether an x86-64 ELF program asks for an interpreter (program header type 3, PT_INTERP; System V ABI, chapter 5).
fn is_dynamic(program: &[u8]) -> bool {
    let number = |at: usize, bytes: usize| -> Option<u64> {
        let slice = program.get(at..at + bytes)?;
        Some(slice.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte)))
    };
    let headers = || -> Option<bool> {
        let (offset, size, count) = (number(32, 8)? as usize, number(54, 2)? as usize, number(56, 2)? as usize);
        Some((0..count).any(|index| number(offset + index * size, 4) == Some(3)))
    };
    headers().unwrap_or(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dynamic_program_is_told_from_a_static_one() {
        // This very test is linked dynamically.
        assert!(is_dynamic(&fs::read(std::env::current_exe().unwrap()).unwrap()));
        assert!(is_dynamic(b"not a program"), "what cannot be read is not trusted");
        let mut header = vec![0; 64 + 56];
        header[32] = 64;
        header[54] = 56;
        header[56] = 1;
        header[64] = 1;
        assert!(!is_dynamic(&header));
        header[64] = 3;
        assert!(is_dynamic(&header));
    }

    #[test]
    fn an_agent_that_does_not_fit_is_named_before_a_disk_is_made() {
        let dir = tempfile::tempdir().unwrap();
        let agent = dir.path().join("agent");
        // A static program by its headers, and long; a hole takes no room.
        let mut header = vec![0; 64 + 56];
        (header[32], header[54], header[56], header[64]) = (64, 56, 1, 1);
        fs::write(&agent, header).unwrap();
        fs::OpenOptions::new().write(true).open(&agent).unwrap().set_len(AGENT_MIB << 20).unwrap();
        let error = disk(&agent, &dir.path().join("tools")).unwrap_err();
        assert!(matches!(error, ToolsError::TooLarge { mib: AGENT_MIB, .. }), "{error}");
    }
}
