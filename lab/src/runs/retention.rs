//! Which records are kept: the newest, up to a number and a size.

use std::{fs, os::unix::fs::MetadataExt as _, path::Path};

use super::{Run, Runs, RunsError, State, failed};
use crate::{gc::Mode, room::Bytes};

/// How many records are kept. What is running is never taken away, and neither is the newest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// How many.
    pub count: usize,
    /// How much they may take on the disk together.
    pub bytes: Bytes,
}

impl Default for Limits {
    /// 200 runs in 2 GiB: a run of one baseline takes about 1 MiB, mostly consoles.
    fn default() -> Self {
        Self { count: 200, bytes: Bytes(2 << 30) }
    }
}

/// What is known of a run when it is asked whether it stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Spare<'a> {
    /// Its id.
    pub id: &'a str,
    /// Where it is.
    pub state: State,
    /// Bytes on the disk.
    pub size: u64,
}

/// The ids of those that are too many, of `runs` from newest to oldest.
pub fn surplus<'a>(runs: &[Spare<'a>], limits: Limits) -> Vec<&'a str> {
    let mut bytes = 0_u64;
    let mut too_many = Vec::new();
    for (number, run) in runs.iter().enumerate() {
        let with_it = bytes.saturating_add(run.size);
        let is_over = number >= limits.count || with_it > limits.bytes.0;
        if is_over && number > 0 && run.state != State::Running {
            too_many.push(run.id);
        } else {
            bytes = with_it;
        }
    }
    too_many
}

impl Runs {
    /// Takes away the records that are too many, or only says which.
    pub fn retain(&self, limits: Limits, mode: Mode) -> Result<Vec<Run>, RunsError> {
        // What cannot be read is left to people: it may be somebody's only evidence.
        let (runs, _) = self.list()?;
        let known: Vec<_> =
            runs.iter().map(|run| Spare { id: &run.record.id, state: run.state(), size: run.size }).collect();
        let too_many = surplus(&known, limits);
        let gone: Vec<Run> = runs.iter().filter(|run| too_many.contains(&run.record.id.as_str())).cloned().collect();
        if mode == Mode::Collect {
            gone.iter().try_for_each(|run| self.take_away(run))?;
        }
        Ok(gone)
    }

    /// Takes a record away.
    ///
    /// # Errors
    /// There is none of that id, or it cannot be removed.
    pub fn remove(&self, id: &str) -> Result<(), RunsError> {
        self.take_away(&self.get(id)?)
    }

    fn take_away(&self, run: &Run) -> Result<(), RunsError> {
        // Out of the list first: half of it must not look like all of it. A partial one goes with `lab gc`.
        let partial = self.places.runs.join(format!(".{}", run.record.id));
        fs::rename(&run.folder, &partial).map_err(failed("remove", &run.folder))?;
        fs::remove_dir_all(&partial).map_err(failed("remove", &partial))
    }
}

/// Bytes that a folder takes on the disk with all that is in it; links are not followed.
pub(crate) fn size(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .map(|entry| match entry.metadata() {
            Ok(found) if found.is_dir() => size(&entry.path()),
            Ok(found) => found.blocks() * 512,
            Err(_) => 0,
        })
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verdict::Judgement;

    fn spare(id: &str, size: u64) -> Spare<'_> {
        Spare { id, state: State::Judged(Judgement::Passed), size }
    }

    #[test]
    fn the_newest_stay_up_to_a_number_and_a_size() {
        let runs = [spare("4", 10), spare("3", 10), spare("2", 50), spare("1", 10)];
        let gone = |count, bytes| surplus(&runs, Limits { count, bytes: Bytes(bytes) });
        assert_eq!(gone(4, 1000), Vec::<&str>::new());
        assert_eq!(gone(2, 1000), ["2", "1"]);
        // A large one goes; those that fit beside it are not its victims.
        assert_eq!(gone(4, 35), ["2"]);
        assert_eq!(gone(0, 0), ["3", "2", "1"], "the newest stays whatever it takes");
    }

    #[test]
    fn what_runs_is_never_taken_away_and_takes_its_room() {
        let running = Spare { state: State::Running, ..spare("1", 10) };
        let runs = [spare("3", 10), spare("2", 10), running];
        assert_eq!(surplus(&runs, Limits { count: 1, bytes: Bytes(1000) }), ["2"]);
        let interrupted = Spare { state: State::Interrupted, ..running };
        assert_eq!(surplus(&[runs[0], interrupted], Limits { count: 1, bytes: Bytes(1000) }), ["1"]);
    }
}
