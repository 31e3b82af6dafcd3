//! What an order ships for a change that no package manager makes: three scripts, and files that lie beside them when they run.

use std::{collections::BTreeSet, fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use super::Action;
use crate::{
    Digest,
    inventory::{Change, PackageId},
    limits,
};

/// What stands for an architecture where a script is named as packages are: in transactions, items and results.
pub const ARCH: &str = "script";
/// What stands for a version there when a script is applied; where it is not, there is none.
const APPLIED: &str = "applied";
/// Longest name of a shipped file, bytes.
const NAME_BYTES: usize = 128;

/// A change by scripts, all of which may be run again: the host does so after it was interrupted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Script {
    /// Makes the change.
    pub apply: ShippedFile,
    /// Takes it back.
    pub rollback: ShippedFile,
    /// Says whether it is made, by its exit status ([`Standing`]), and changes nothing.
    pub verify: ShippedFile,
    /// What lies beside them.
    pub files: Vec<ShippedFile>,
}

/// A file that an order ships, by its digest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShippedFile {
    /// By which name it lies there.
    pub name: FileName,
    /// Bytes.
    pub size: u64,
    /// Digest of the file.
    pub sha256: Digest,
}

/// The name of a file in one folder, and no way out of it: 1 to 128 letters, digits, `.`, `_`, `+`, `@` and `-`, not beginning with a
/// dot or a dash.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct FileName(String);

/// No name of a file that an order may ship.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no plain file name: expected 1 to 128 letters, digits, . _ + @ and -, not beginning with . or -")]
pub struct BadFileName(String);

impl FileName {
    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for FileName {
    type Err = BadFileName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._+@-".contains(&byte);
        let fits = (1..=NAME_BYTES).contains(&text.len()) && text.bytes().all(is_plain);
        if fits && !text.starts_with(['.', '-']) {
            return Ok(Self(text.to_owned()));
        }
        Err(BadFileName(text.chars().take(NAME_BYTES).collect()))
    }
}

impl TryFrom<String> for FileName {
    type Error = BadFileName;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<FileName> for String {
    fn from(name: FileName) -> Self {
        name.0
    }
}

impl fmt::Display for FileName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A script that no host takes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadScript {
    /// Two files would lie at one place.
    #[error("two of its files are called {0}: rename one")]
    Collision(FileName),
    /// An empty file is a mistake.
    #[error("{0} is empty")]
    Empty(FileName),
    /// Too many of them.
    #[error("{0} files beside its scripts, more than {max}: ship them as one archive", max = limits::SCRIPT_FILES)]
    TooMany(usize),
    /// Too large together.
    #[error("its files have {0} bytes, more than {max}: what is larger belongs into a package", max = limits::SCRIPT_BYTES)]
    TooLarge(u64),
}

impl Script {
    /// Every file of it, the three scripts first.
    pub fn shipped(&self) -> impl Iterator<Item = &ShippedFile> {
        self.programs().into_iter().chain(&self.files)
    }

    /// The three scripts.
    pub fn programs(&self) -> [&ShippedFile; 3] {
        [&self.apply, &self.rollback, &self.verify]
    }

    /// Whether a host could lay it out and would.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn check(&self) -> Result<(), BadScript> {
        if self.files.len() > limits::SCRIPT_FILES {
            return Err(BadScript::TooMany(self.files.len()));
        }
        let mut names = BTreeSet::new();
        let mut bytes = 0_u64;
        for file in self.shipped() {
            if !names.insert(&file.name) {
                return Err(BadScript::Collision(file.name.clone()));
            }
            if file.size == 0 {
                return Err(BadScript::Empty(file.name.clone()));
            }
            bytes = bytes.saturating_add(file.size);
        }
        if bytes > limits::SCRIPT_BYTES { Err(BadScript::TooLarge(bytes)) } else { Ok(()) }
    }
}

/// What a script's `verify` says of a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Exit status 0.
    Applied,
    /// Exit status 10.
    NotApplied,
}

impl Standing {
    /// What an exit status says; `None` for every other one: it is neither.
    pub fn of_exit(status: i32) -> Option<Self> {
        match status {
            0 => Some(Self::Applied),
            10 => Some(Self::NotApplied),
            _ => None,
        }
    }

    /// Where an action leads.
    pub fn after(action: Action) -> Self {
        match action {
            Action::Apply => Self::Applied,
            Action::Rollback => Self::NotApplied,
        }
    }
}

/// Bytes of a file by which [`begins_with_interpreter`] tells.
pub const INTERPRETER_BYTES: u64 = 3;

/// Whether a file that begins like this can be run: `#!`, and something behind it.
pub fn begins_with_interpreter(first: &[u8]) -> bool {
    first.strip_prefix(b"#!").is_some_and(|rest| rest.first().is_some_and(|byte| *byte != b'\n'))
}

/// How the script of an order is named as packages are.
pub fn id(order: &str) -> PackageId {
    PackageId::new(order, ARCH)
}

/// What an action of the script of an order changes, as a transaction says it.
pub fn change(order: &str, action: Action) -> Change {
    let applied = || Some(APPLIED.to_owned());
    let (from, to) = match action {
        Action::Apply => (None, applied()),
        Action::Rollback => (applied(), None),
    };
    Change { id: id(order), from, to }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::PackageSystem;

    fn file(name: &str, size: u64) -> ShippedFile {
        ShippedFile { name: name.parse().unwrap(), size, sha256: Digest::of(name) }
    }

    fn script(files: Vec<ShippedFile>) -> Script {
        Script { apply: file("apply", 1), rollback: file("rollback", 1), verify: file("verify", 1), files }
    }

    #[test]
    fn a_name_leads_nowhere_else() {
        for good in ["apply", "sshd_config.snippet", "a-b_c+d@e.1", &"x".repeat(128)] {
            assert_eq!(good.parse::<FileName>().unwrap().as_str(), good);
        }
        for bad in
            ["", ".", "..", ".profile", "-rf", "a/b", "../apply", "/etc/passwd", "a b", "a\n", "ä", &"x".repeat(129)]
        {
            assert!(bad.parse::<FileName>().is_err(), "{bad}");
            assert!(serde_json::from_value::<FileName>(serde_json::json!(bad)).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_script_has_its_limits() {
        assert_eq!(script(vec![file("snippet", 5)]).check(), Ok(()));
        assert_eq!(script(vec![file("verify", 5)]).check(), Err(BadScript::Collision("verify".parse().unwrap())));
        assert_eq!(script(vec![file("x", 0)]).check(), Err(BadScript::Empty("x".parse().unwrap())));
        assert_eq!(
            script(vec![file("x", limits::SCRIPT_BYTES)]).check(),
            Err(BadScript::TooLarge(limits::SCRIPT_BYTES + 3))
        );
        assert_eq!(script(vec![file("x", u64::MAX)]).check(), Err(BadScript::TooLarge(u64::MAX)));
        let many = (0..=limits::SCRIPT_FILES).map(|number| file(&format!("f{number}"), 1)).collect();
        assert_eq!(script(many).check(), Err(BadScript::TooMany(limits::SCRIPT_FILES + 1)));
    }

    #[test]
    fn a_script_names_what_runs_it() {
        assert!(begins_with_interpreter(b"#!/") && begins_with_interpreter(b"#! /bin/sh\n"));
        assert!([&b""[..], b"#!", b"#!\n", b"\x7fEL", b" #!"].into_iter().all(|first| !begins_with_interpreter(first)));
    }

    #[test]
    fn only_two_exit_statuses_say_something() {
        assert_eq!(Standing::of_exit(0), Some(Standing::Applied));
        assert_eq!(Standing::of_exit(10), Some(Standing::NotApplied));
        assert!([1, 2, 9, 11, 126, 127, 255].into_iter().all(|status| Standing::of_exit(status).is_none()));
    }

    #[test]
    fn a_transaction_names_it_by_its_order() {
        let line = |action| change("PO-1", action).line(PackageSystem::Dpkg);
        assert_eq!(line(Action::Apply), "install PO-1 script - -> applied");
        assert_eq!(line(Action::Rollback), "remove PO-1 script applied -> -");
    }
}
