//! The site's own programs around the package manager's work: `before.d` may refuse a run before anything is changed,
//! `after.d` is run once it worked, however it ended. In order of their names, as run-parts(8) takes them.

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use patchlab_protocol::{Digest, document::Action};

use crate::process::{self, ProcessMark};

/// Longest time of one program, within its run's own.
const LONGEST: Duration = Duration::from_secs(300);
/// What is kept of what it says, bytes.
const OUTPUT_BYTES: u64 = 64 * 1024;

/// On which side of the package manager's work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// Nothing was changed yet.
    Before,
    /// The package manager has ended.
    After,
}

impl Moment {
    fn folder(self) -> &'static str {
        match self {
            Self::Before => "before.d",
            Self::After => "after.d",
        }
    }
}

/// What a program is told, in its environment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Told {
    /// `PATCHLAB_ORDER`.
    pub order: Digest,
    /// `PATCHLAB_ACTION`: `apply` or `rollback`; absent when an earlier agent ended before it was known.
    pub action: Option<Action>,
}

/// A program is not content, or cannot be run.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("hook {path}: {reason}")]
pub struct HookError {
    path: PathBuf,
    reason: String,
}

/// Whether run-parts would take a file of this name.
fn is_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte))
}

/// Runs every program of the moment in `folder`, all of them also when one fails; a folder that is not there has none. `started` is told each
/// before it is waited for.
///
/// # Errors
/// The first that failed, took too long, or could be changed by others than root.
pub fn run(
    folder: &Path,
    moment: Moment,
    told: &Told,
    deadline: Instant,
    started: &mut dyn FnMut(ProcessMark),
) -> Result<(), HookError> {
    let folder = folder.join(moment.folder());
    let failed = |path: &Path, reason: String| HookError { path: path.to_owned(), reason };
    let entries = match fs::read_dir(&folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(&folder, error.to_string())),
    };
    let mut programs: Vec<PathBuf> = entries.filter_map(|entry| entry.ok().map(|entry| entry.path())).collect();
    programs.retain(|path| path.file_name().and_then(|name| name.to_str()).is_some_and(is_name));
    programs.sort();
    let results = programs.iter().map(|path| one(path, told, deadline, started).map_err(|reason| failed(path, reason)));
    // One that refuses keeps the later ones from preparing what is not going to happen; after the work, each has
    // something to put back.
    match moment {
        Moment::Before => results.collect(),
        Moment::After => results.collect::<Vec<_>>().into_iter().collect(),
    }
}

fn one(path: &Path, told: &Told, deadline: Instant, started: &mut dyn FnMut(ProcessMark)) -> Result<(), String> {
    let file = fs::metadata(path).map_err(|error| error.to_string())?;
    if file.uid() != rustix::process::geteuid().as_raw() || file.mode() & 0o022 != 0 {
        return Err("can be changed by others: chown root and chmod go-w".into());
    }
    let mut command = Command::new(path);
    command.env("LC_ALL", "C").env("PATCHLAB_ORDER", told.order.to_string()).current_dir("/");
    if let Some(action) = told.action {
        command.env("PATCHLAB_ACTION", if action == Action::Apply { "apply" } else { "rollback" });
    }
    let deadline = deadline.min(Instant::now() + LONGEST);
    let finished = process::run(&mut command, deadline, OUTPUT_BYTES, started).map_err(|error| error.to_string())?;
    match finished.exit {
        Some(0) => Ok(()),
        Some(exit) => Err(format!("exit {exit}: {}", finished.last_words())),
        None => Err("it took too long, or was killed".into()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn hook(folder: &Path, moment: Moment, name: &str, script: &str) {
        let path = folder.join(moment.folder()).join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn ask(folder: &Path, moment: Moment, timeout: Duration) -> Result<(), String> {
        let told = Told { order: Digest::of("order"), action: Some(Action::Rollback) };
        run(folder, moment, &told, Instant::now() + timeout, &mut |_| {}).map_err(|hook| hook.to_string())
    }

    #[test]
    fn programs_run_in_order_and_are_told_what_is_done() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("out");
        assert_eq!(ask(folder.path(), Moment::Before, LONGEST), Ok(()));
        let say = |word: &str| format!("echo {word} $PATCHLAB_ACTION $PATCHLAB_ORDER >> {}", out.display());
        hook(folder.path(), Moment::Before, "20-b", &say("b"));
        hook(folder.path(), Moment::Before, "10-a", &say("a"));
        hook(folder.path(), Moment::Before, "30-c.dpkg-old", &say("not a name"));
        assert_eq!(ask(folder.path(), Moment::Before, LONGEST), Ok(()));
        let order = Digest::of("order");
        assert_eq!(fs::read_to_string(&out).unwrap(), format!("a rollback {order}\nb rollback {order}\n"));
    }

    #[test]
    fn one_that_fails_stops_what_comes_before_the_work_and_not_what_comes_after() {
        for (moment, expected) in [(Moment::Before, false), (Moment::After, true)] {
            let folder = tempfile::tempdir().unwrap();
            let out = folder.path().join("out");
            hook(folder.path(), moment, "1", "echo 'the queue is not empty' >&2; exit 3");
            hook(folder.path(), moment, "2", &format!(": > {}", out.display()));
            let said = ask(folder.path(), moment, LONGEST).unwrap_err();
            assert!(said.contains("exit 3: the queue is not empty"), "{said}");
            assert_eq!(out.exists(), expected, "{moment:?}");
        }
    }

    #[test]
    fn one_that_hangs_and_one_that_others_can_change_are_not_content() {
        let folder = tempfile::tempdir().unwrap();
        hook(folder.path(), Moment::Before, "hangs", "sleep 60");
        let said = ask(folder.path(), Moment::Before, Duration::from_millis(200)).unwrap_err();
        assert!(said.contains("too long"), "{said}");
        hook(folder.path(), Moment::After, "open", ":");
        let path = folder.path().join("after.d/open");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o775)).unwrap();
        let said = ask(folder.path(), Moment::After, LONGEST).unwrap_err();
        assert!(said.contains("can be changed by others"), "{said}");
    }
}
