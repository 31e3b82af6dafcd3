//! Which baselines stay: the newest of each name, what those were made from, and what is in use; within a budget, the youngest.
//!
//! The decision is a pure function of what there is; taking away asks once more, since somebody may have begun to use one meanwhile.

use std::{fmt, fs, io, os::unix::fs::MetadataExt as _, path::PathBuf};

use jiff::Timestamp;
use patchlab_check::Digest;
use serde::{Serialize, Serializer};

use super::{
    Baseline, Baselines, StoreError,
    names::NamesFile,
    store::{failed, is_used},
};
use crate::{gc::Mode, kept::KeptClones, room::Bytes};

/// Which baselines stay. The newest of each name stays whatever it takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// How many of each name; at least one stays.
    pub keep: usize,
    /// What all of them may take on the disk; no limit unless given. Package files are not counted: orders may need them.
    pub budget: Option<Bytes>,
}

/// What is known of a baseline when it is asked whether it stays.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Its name without number.
    pub name: String,
    /// Its number.
    pub number: u32,
    /// Its digest.
    pub digest: Digest,
    /// The one that it was made from.
    pub parent: Option<Digest>,
    /// When it was frozen.
    pub frozen: Timestamp,
    /// Bytes on the disk.
    pub size: u64,
    /// Who uses it now, for people.
    pub used_by: Option<String>,
}

impl Candidate {
    fn full_name(&self) -> String {
        format!("{}@{}", self.name, self.number)
    }
}

/// Whether a baseline stays, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fate {
    /// It stays: it is the newest of its name.
    Newest,
    /// It stays: it is among as many of its name as are kept.
    Recent,
    /// It stays: somebody uses it.
    Used(String),
    /// It stays: one that stays was made from it.
    ParentOf(String),
    /// It goes: there are as many newer ones as are kept.
    TooMany,
    /// It goes: it is the oldest that can, and there is more than the budget allows.
    OverBudget,
}

impl Fate {
    /// Whether it stays.
    pub fn stays(&self) -> bool {
        !matches!(self, Self::TooMany | Self::OverBudget)
    }
}

impl fmt::Display for Fate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Newest => f.write_str("the newest of its name"),
            Self::Recent => f.write_str("among the newest of its name"),
            Self::Used(by) => write!(f, "used by {by}"),
            Self::ParentOf(child) => write!(f, "{child} was made from it"),
            Self::TooMany => f.write_str("there are enough newer ones"),
            Self::OverBudget => f.write_str("the oldest that can go, and all together are over the budget"),
        }
    }
}

impl Serialize for Fate {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// The fate of each of `all`, in their order. Pure.
pub fn decide(all: &[Candidate], policy: Policy) -> Vec<Fate> {
    let newer = |one: &Candidate| all.iter().filter(|o| o.name == one.name && o.number > one.number).count();
    let rank: Vec<usize> = all.iter().map(newer).collect();
    let mut fates: Vec<Option<Fate>> = vec![None; all.len()];
    loop {
        let stays = |place: usize| fates[place].is_none();
        // One that goes no longer holds its parent, and one that is only held holds none: or a line of successors would grow for ever.
        let is_wanted =
            |place: usize| stays(place) && (rank[place] < policy.keep.max(1) || all[place].used_by.is_some());
        let child = |place: usize| {
            let mut wanted = all.iter().enumerate().filter(|(other, _)| is_wanted(*other));
            wanted.find(|(_, other)| other.parent == Some(all[place].digest)).map(|(_, other)| other)
        };
        let is_held = |place: usize| rank[place] == 0 || all[place].used_by.is_some() || child(place).is_some();
        let is_spare = |place: &usize| stays(*place) && !is_held(*place);
        let too_many = (0..all.len()).filter(is_spare).find(|place| rank[*place] >= policy.keep.max(1));
        let size: u64 = (0..all.len()).filter(|place| stays(*place)).map(|place| all[place].size).sum();
        let is_over = policy.budget.is_some_and(|budget| size > budget.0);
        let oldest = || (0..all.len()).filter(is_spare).min_by_key(|place| (all[*place].frozen, all[*place].number));
        match (too_many, is_over) {
            (Some(place), _) => fates[place] = Some(Fate::TooMany),
            (None, true) if let Some(place) = oldest() => fates[place] = Some(Fate::OverBudget),
            (None, _) => {
                let why = |place: usize| match (rank[place], &all[place].used_by, child(place)) {
                    (0, _, _) => Fate::Newest,
                    (_, Some(by), _) => Fate::Used(by.clone()),
                    (rank, None, _) if rank < policy.keep => Fate::Recent,
                    (_, None, Some(child)) => Fate::ParentOf(child.full_name()),
                    (_, None, None) => Fate::Recent,
                };
                return (0..all.len()).map(|place| fates[place].clone().unwrap_or_else(|| why(place))).collect();
            }
        }
    }
}

/// What became of one baseline.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Pruned {
    /// Its full name.
    pub baseline: String,
    /// Its digest.
    pub digest: Digest,
    /// Bytes on the disk.
    pub bytes: u64,
    /// Whether it stays.
    pub stays: bool,
    /// Why.
    pub why: Fate,
}

/// What a pruning did, or would do.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Pruning {
    /// Each baseline that can be read, by name and number.
    pub baselines: Vec<Pruned>,
    /// Full names of those that cannot be read, with what is wrong: they are left to people.
    pub unreadable: Vec<String>,
    /// Folders that no name means, left by a process that died; they go.
    pub nameless: Vec<PathBuf>,
}

impl Pruning {
    /// Bytes of those that stay.
    pub fn kept_bytes(&self) -> u64 {
        self.baselines.iter().filter(|one| one.stays).map(|one| one.bytes).sum()
    }
}

impl Baselines {
    /// Takes away the baselines that a policy does not keep, or only says which.
    ///
    /// # Errors
    /// The store cannot be read, or one cannot be taken away.
    pub fn prune(&self, policy: Policy, mode: Mode) -> Result<Pruning, StoreError> {
        let mut pruning = Pruning::default();
        let mut candidates = Vec::new();
        for (name, loaded) in self.each()? {
            match loaded {
                Ok(baseline) => candidates.push(self.candidate(&baseline)?),
                Err(error) => pruning.unreadable.push(format!("{name}: {error}")),
            }
        }
        for (candidate, mut why) in candidates.iter().zip(decide(&candidates, policy)) {
            let baseline = candidate.full_name();
            if mode == Mode::Collect && !why.stays() {
                why = match self.remove(&candidate.digest.to_string()) {
                    Ok(_) => why,
                    Err(StoreError::Needed { kept, .. }) => Fate::Used(format!("kept clones {}", kept.join(", "))),
                    Err(StoreError::InUse { .. }) => Fate::Used(RUNNING.into()),
                    Err(error) => return Err(error),
                };
            }
            let (digest, bytes, stays) = (candidate.digest, candidate.size, why.stays());
            pruning.baselines.push(Pruned { baseline, digest, bytes, stays, why });
        }
        pruning.nameless = self.nameless(mode)?;
        Ok(pruning)
    }

    fn candidate(&self, baseline: &Baseline) -> Result<Candidate, StoreError> {
        let kept = KeptClones::open(&self.places).needing(&baseline.digest)?;
        let kept: Vec<_> = kept.into_iter().map(|kept| kept.record.name).collect();
        let used_by = match kept.as_slice() {
            [] => is_used(&baseline.folder)?.then(|| RUNNING.to_owned()),
            kept => Some(format!("kept clones {}", kept.join(", "))),
        };
        let record = &baseline.record;
        let on_disk = |file: &String| fs::metadata(baseline.file(file)).map_or(0, |found| found.blocks() * 512);
        Ok(Candidate {
            name: record.name.clone(),
            number: record.number,
            digest: baseline.digest,
            parent: record.parent,
            frozen: record.frozen.at,
            size: record.files.keys().map(on_disk).sum(),
            used_by,
        })
    }

    /// Folders of baselines that no name means. Nobody is about to give them one while the names are locked.
    fn nameless(&self, mode: Mode) -> Result<Vec<PathBuf>, StoreError> {
        let folder = &self.places.baselines;
        let locked = NamesFile::of(folder).lock()?;
        let mut found = Vec::new();
        for entry in fs::read_dir(folder).map_err(failed("read", folder))? {
            let path = entry.map_err(failed("read", folder))?.path();
            let digest = path.file_name().and_then(|name| name.to_str()?.parse::<Digest>().ok());
            if digest.is_some_and(|digest| !locked.names.values().any(|known| *known == digest)) {
                found.push(path);
            }
        }
        if mode == Mode::Collect {
            for path in &found {
                match fs::remove_dir_all(path) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed("remove", path)(error)),
                    _ => {}
                }
            }
        }
        Ok(found)
    }
}

/// Who uses a baseline whose record is locked.
const RUNNING: &str = "a machine that runs";

#[cfg(test)]
mod tests {
    use super::*;

    /// `name@number`, its parent's number (0: none), when it was frozen (seconds), size.
    fn one(name: &str, number: u32, parent: u32, frozen: i64, size: u64) -> Candidate {
        let digest = |number: u32| Digest::of(format!("{name}@{number}"));
        Candidate {
            name: name.into(),
            number,
            digest: digest(number),
            parent: (parent > 0).then(|| digest(parent)),
            frozen: Timestamp::from_second(frozen).unwrap(),
            size,
            used_by: None,
        }
    }

    fn used(candidate: Candidate) -> Candidate {
        Candidate { used_by: Some("a run".into()), ..candidate }
    }

    /// Full names of those that go, with a `!` for those that the budget takes.
    fn gone(all: &[Candidate], keep: usize, budget: Option<u64>) -> Vec<String> {
        let fates = decide(all, Policy { keep, budget: budget.map(Bytes) });
        let going = all.iter().zip(fates).filter(|(_, fate)| !fate.stays());
        going.map(|(one, fate)| one.full_name() + if fate == Fate::OverBudget { "!" } else { "" }).collect()
    }

    #[test]
    fn the_newest_of_each_name_stay() {
        let all = [one("web", 1, 0, 1, 10), one("web", 2, 0, 2, 10), one("web", 3, 0, 3, 10), one("db", 1, 0, 0, 10)];
        assert_eq!(gone(&all, 3, None), Vec::<String>::new());
        assert_eq!(gone(&all, 2, None), ["web@1"]);
        assert_eq!(gone(&all, 1, None), ["web@1", "web@2"]);
        assert_eq!(gone(&all, 0, None), ["web@1", "web@2"], "one of each stays in any case");
        assert_eq!(gone(&[], 1, Some(0)), Vec::<String>::new());
    }

    #[test]
    fn what_is_used_stays_and_so_does_what_one_that_stays_was_made_from() {
        let chain = [one("web", 1, 0, 1, 10), one("web", 2, 1, 2, 10), one("web", 3, 2, 3, 10)];
        // The newest holds its parent, and that one, which stays for nothing else, none.
        assert_eq!(gone(&chain, 1, None), ["web@1"]);
        assert_eq!(gone(&chain, 2, None), Vec::<String>::new());
        let fates = decide(&chain, Policy { keep: 1, budget: None });
        assert_eq!(fates[2], Fate::Newest);
        assert_eq!(fates[1], Fate::ParentOf("web@3".into()));
        let fork = [one("web", 1, 0, 1, 10), one("web", 2, 0, 2, 10), one("web", 3, 1, 3, 10)];
        assert_eq!(gone(&fork, 1, None), ["web@2"]);
        let busy = [used(one("web", 1, 0, 1, 10)), one("web", 2, 0, 2, 10), one("web", 3, 0, 3, 10)];
        assert_eq!(gone(&busy, 1, Some(0)), ["web@2"]);
    }

    #[test]
    fn one_that_goes_no_longer_holds_what_it_was_made_from() {
        let all = [one("web", 1, 0, 1, 10), one("web", 2, 1, 2, 10), one("web", 3, 0, 3, 10)];
        assert_eq!(gone(&all, 1, None), ["web@1", "web@2"]);
        assert_eq!(gone(&all, 2, None), Vec::<String>::new(), "web@2 stays and was made from web@1");
    }

    #[test]
    fn a_budget_takes_the_oldest_of_all_names_and_no_more_than_it_must() {
        let all = [one("web", 1, 0, 5, 10), one("web", 2, 0, 6, 10), one("db", 1, 0, 1, 10), one("db", 2, 0, 7, 10)];
        assert_eq!(gone(&all, 9, Some(40)), Vec::<String>::new());
        assert_eq!(gone(&all, 9, Some(39)), ["db@1!"]);
        assert_eq!(gone(&all, 9, Some(25)), ["web@1!", "db@1!"]);
        assert_eq!(gone(&all, 9, Some(0)), ["web@1!", "db@1!"], "the newest of a name is never taken");
        // What the number takes counts first.
        assert_eq!(gone(&all, 1, Some(20)), ["web@1", "db@1"]);
    }
}
