//! The site's own programs around the package manager's work: `before.d` may refuse a run before anything is changed,
//! `after.d` is run once it worked, however it ended. In order of their names. A program that is silently not run is worse than a run that
//! is refused, so whatever lies there is one, or is refused, unless its name says that it is none.

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use patchlab_check::target::Ended;
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
    /// What the programs before the work did until then.
    pub site: Site,
}

/// Whether the site's programs before the work have done something that is to be put back by those after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Site {
    /// None ran, or the first said no by itself.
    Untouched,
    /// One ran well, or was ended before it could say.
    Prepared,
}

/// Names of what is no program: notes, what was switched off, and what editors and package managers leave beside a file.
fn is_passed_over(name: &str) -> bool {
    let begins = [".", "README"].iter().any(|begin| name.starts_with(begin));
    let ends = ["~", ".disabled", ".bak", ".orig"].iter().any(|end| name.ends_with(end));
    begins || ends || [".dpkg-", ".ucf-", ".rpmnew", ".rpmsave", ".rpmorig"].iter().any(|part| name.contains(part))
}

/// Whether nobody but the agent's own user can change what is at a path.
fn is_safe(found: &fs::Metadata) -> bool {
    found.uid() == rustix::process::geteuid().as_raw() && found.mode() & 0o022 == 0
}

/// Why what was found there is not taken.
const UNSAFE: &str = "can be changed by others: chown root and chmod go-w";

/// The programs of a moment in `folder`, in order.
fn programs(folder: &Path, moment: Moment) -> Result<Vec<PathBuf>, HookError> {
    let failed = |path: &Path, reason: &str| HookError {
        path: path.to_owned(),
        reason: reason.to_owned(),
        site: Site::Untouched,
    };
    let safe = |path: &Path| match fs::metadata(path) {
        Ok(found) if is_safe(&found) => Ok(()),
        Ok(_) => Err(failed(path, UNSAFE)),
        Err(error) => Err(failed(path, &error.to_string())),
    };
    if !folder.exists() {
        return Err(failed(folder, "is not there: make it, or take `hooks` out of agent.toml"));
    }
    safe(folder)?;
    let folder = folder.join(moment.folder());
    let entries = match fs::read_dir(&folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(&folder, &error.to_string())),
    };
    safe(&folder)?;
    let mut programs = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|error| failed(&folder, &error.to_string()))?;
        if !is_passed_over(&entry.file_name().to_string_lossy()) {
            programs.push(entry.path());
        }
    }
    programs.sort();
    Ok(programs)
}

/// Whether a program can be run, and only the agent's own user decides what it does.
fn fit(path: &Path) -> Result<(), String> {
    let found = fs::metadata(path).map_err(|error| error.to_string())?;
    if !found.is_file() {
        return Err("is no file: take it out of the folder".into());
    }
    if !is_safe(&found) {
        return Err(UNSAFE.into());
    }
    if found.mode() & 0o111 == 0 {
        return Err("is not executable: chmod +x, or call it NAME.disabled".into());
    }
    Ok(())
}

/// Runs every program of the moment in `folder`. Before the work, all of both moments are looked at first: one that cannot be run is told
/// while nothing is prepared. `started` is told each before it is waited for.
///
/// # Errors
/// The first that failed, took too long, cannot be run, or could be changed by others than root.
pub fn run(
    folder: &Path,
    moment: Moment,
    told: &Told,
    deadline: Instant,
    started: &mut dyn FnMut(ProcessMark),
) -> Result<(), HookError> {
    let programs = programs(folder, moment)?;
    let mut one = |path: &Path| one(path, told, deadline, started);
    match moment {
        // One that refuses keeps the later ones from preparing what is not going to happen.
        Moment::Before => {
            for path in programs.iter().chain(&self::programs(folder, Moment::After)?) {
                let unfit = |reason| HookError { path: path.clone(), reason, site: Site::Untouched };
                fit(path).map_err(unfit)?;
            }
            for (place, path) in programs.iter().enumerate() {
                one(path).map_err(|failure| HookError {
                    path: path.clone(),
                    site: match failure {
                        Failure::SaidNo(_) if place == 0 => Site::Untouched,
                        _ => Site::Prepared,
                    },
                    reason: failure.to_string(),
                })?;
            }
            Ok(())
        }
        // Each has something to put back, whatever the others do.
        Moment::After => {
            let mut first = None;
            for path in &programs {
                let ended = fit(path).map_err(Failure::SaidNo).and_then(|()| one(path));
                if let Err(failure) = ended {
                    let (path, site) = (path.clone(), Site::Prepared);
                    first.get_or_insert(HookError { path, reason: failure.to_string(), site });
                }
            }
            first.map_or(Ok(()), Err)
        }
    }
}

/// How a program did not end well.
#[derive(Debug, thiserror::Error)]
enum Failure {
    /// By itself, or it was never begun.
    #[error("{0}")]
    SaidNo(String),
    /// From outside: what it did until then, nobody knows.
    #[error("it took too long, or was killed")]
    Ended,
}

fn one(path: &Path, told: &Told, deadline: Instant, started: &mut dyn FnMut(ProcessMark)) -> Result<(), Failure> {
    let mut command = Command::new(path);
    command.env("LC_ALL", "C").env("PATCHLAB_ORDER", told.order.to_string()).current_dir("/");
    if let Some(action) = told.action {
        command.env("PATCHLAB_ACTION", if action == Action::Apply { "apply" } else { "rollback" });
    }
    let deadline = deadline.min(Instant::now() + LONGEST);
    let finished = process::run(&mut command, deadline, OUTPUT_BYTES, started);
    let finished = finished.map_err(|error| Failure::SaidNo(error.to_string()))?;
    match (finished.ended, finished.exit) {
        (Ended::ByTimeout, _) | (_, None) => Err(Failure::Ended),
        (_, Some(0)) => Ok(()),
        (_, Some(exit)) => Err(Failure::SaidNo(format!("exit {exit}: {}", finished.last_words()))),
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
        hook(folder.path(), Moment::Before, "20-b.sh", &say("b"));
        hook(folder.path(), Moment::Before, "10-a", &say("a"));
        for no_program in ["30-c.dpkg-old", "README.md", ".placeholder", "10-a~", "20-b.sh.disabled", "20-b.rpmnew"] {
            hook(folder.path(), Moment::Before, no_program, &say("not a name"));
        }
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
    fn what_cannot_be_run_is_told_before_anything_is_prepared() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("out");
        hook(folder.path(), Moment::Before, "10-drain", &format!(": > {}", out.display()));
        let told = Told { order: Digest::of("order"), action: Some(Action::Apply) };
        let before = |folder: &Path| run(folder, Moment::Before, &told, Instant::now() + LONGEST, &mut |_| {});
        let plain = folder.path().join("after.d/20-undrain");
        hook(folder.path(), Moment::After, "20-undrain", ":");
        fs::set_permissions(&plain, fs::Permissions::from_mode(0o644)).unwrap();
        let said = before(folder.path()).unwrap_err();
        assert!(said.to_string().contains("20-undrain: is not executable"), "{said}");
        assert_eq!(said.site, Site::Untouched);
        fs::remove_file(&plain).unwrap();
        fs::create_dir(&plain).unwrap();
        let said = before(folder.path()).unwrap_err().to_string();
        assert!(said.contains("is no file"), "{said}");
        fs::remove_dir(&plain).unwrap();
        fs::set_permissions(folder.path().join("before.d"), fs::Permissions::from_mode(0o777)).unwrap();
        let said = before(folder.path()).unwrap_err().to_string();
        assert!(said.contains("before.d: can be changed by others"), "{said}");
        assert!(!out.exists());
        let said = before(&folder.path().join("hoks")).unwrap_err().to_string();
        assert!(said.contains("hoks: is not there"), "{said}");
    }

    #[test]
    fn what_was_prepared_before_one_said_no_is_known() {
        let told = Told { order: Digest::of("order"), action: Some(Action::Apply) };
        let prepared = |scripts: &[&str], timeout: Duration| {
            let folder = tempfile::tempdir().unwrap();
            for (place, script) in scripts.iter().enumerate() {
                hook(folder.path(), Moment::Before, &place.to_string(), script);
            }
            let ran = run(folder.path(), Moment::Before, &told, Instant::now() + timeout, &mut |_| {});
            ran.unwrap_err().site
        };
        assert_eq!(prepared(&["exit 1", ":"], LONGEST), Site::Untouched);
        assert_eq!(prepared(&[":", "exit 1"], LONGEST), Site::Prepared);
        assert_eq!(prepared(&["sleep 60"], Duration::from_millis(200)), Site::Prepared);
        // Ended from outside, whatever it says then.
        let traps = "trap 'exit 1' TERM; sleep 60 & wait";
        assert_eq!(prepared(&[traps], Duration::from_millis(200)), Site::Prepared);
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
