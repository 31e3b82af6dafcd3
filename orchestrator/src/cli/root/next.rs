//! `patchlab root next`: what the next root document changes.

use std::path::{Path, PathBuf};

use clap::Args;
use jiff::{Timestamp, ToSpan as _};
use patchlab_protocol::{Envelope, KeyId, Role, document::Root};
use serde_json::json;

use super::{init::holder, must_be_in_force};
use crate::{
    cli::{CliError, Exit, Global, revocation},
    legible,
    trust::{
        key,
        rotation::{Changes, NextRootError, next},
    },
};

/// What changes. Whatever is not named stays as it is; the expiry is always set anew.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  patchlab root next --days 365 --out root.2.json                      # only renewed
  patchlab root next --add ann.pem.pub --remove old.pem.pub --out root.2.json
  patchlab root next --add second-root.pem.pub --threshold root=2 --out root.2.json")]
pub struct Next {
    /// A key to list, by its public half; its role is the one it was made for; may be given several times
    #[arg(long, value_name = "FILE.pub")]
    add: Vec<PathBuf>,
    /// A key to list no more, by its id or its public half; may be given several times
    #[arg(long, value_name = "KEY|FILE.pub")]
    remove: Vec<String>,
    /// How many signatures a role needs; may be given several times
    #[arg(long, value_name = "ROLE=N", value_parser = threshold)]
    threshold: Vec<(Role, u32)>,
    /// Days until no apply is allowed any more under it
    #[arg(long, default_value_t = 365, value_parser = clap::value_parser!(i64).range(1..=3650))]
    days: i64,
    /// The root in force; this data folder's unless given
    #[arg(long, value_name = "FILE")]
    root: Option<PathBuf>,
    /// Where to write it; must not exist
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

fn threshold(text: &str) -> Result<(Role, u32), String> {
    let (role, needed) = text.split_once('=').ok_or("expected ROLE=N, e.g. root=2")?;
    let needed: u32 = needed.parse().map_err(|error| format!("{needed:?}: {error}"))?;
    match needed {
        0 => Err("a role needs at least one signature".into()),
        _ => Ok((role.parse().map_err(|error| format!("{error}"))?, needed)),
    }
}

impl Next {
    pub(super) fn run(self, global: &Global) -> Result<Exit, CliError> {
        let there = must_be_in_force(global, self.root.as_deref())?.root;
        let mut add = Vec::new();
        for file in &self.add {
            add.push((holder(file), key::read_public(file).map_err(CliError::input)?));
        }
        let remove = self.remove.iter().map(|text| named(&there, text)).collect::<Result<_, _>>()?;
        let expires = Timestamp::now().checked_add((self.days * 24).hours()).map_err(CliError::input)?;
        let changes = Changes { add, remove, thresholds: self.threshold, expires };
        let root = next(&there, &changes).map_err(CliError::input)?;
        let (version, envelope) = (root.version, Envelope::unsigned(root));
        revocation::write(&self.out, &envelope)?;
        let output = global.output();
        let digest = envelope.digest();
        output.fields(&[&format!("root {version}"), &digest.to_string()]);
        output.note(format!("{}, valid until {}: not signed yet", self.out.display(), legible::moment(expires)));
        output.json(&json!({ "digest": digest, "version": version, "path": self.out, "expires": expires }))?;
        Ok(Exit::Passed)
    }
}

/// The key that is meant: by the id of one that is listed, or by a file.
fn named(root: &Root, text: &str) -> Result<KeyId, CliError> {
    let ids = || root.keys.iter().map(|key| key.public.id());
    if let Some(id) = ids().find(|id| id.to_string() == text) {
        return Ok(id);
    }
    if Path::new(text).exists() {
        return Ok(key::read_public(Path::new(text)).map_err(CliError::input)?.public.id());
    }
    let (key, version, there) = (text.to_owned(), root.version, ids().collect());
    Err(CliError::input(NextRootError::NotListed { key, version, there }))
}
