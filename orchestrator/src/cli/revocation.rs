//! `patchlab revocation`: the list of documents that count no more. `order revoke` makes, signs and hands in the next one in a
//! go; here is the way for keys that are on another machine, or several.

use std::{
    fs,
    path::{Path, PathBuf},
};

use clap::{Args, Subcommand};
use jiff::Timestamp;
use patchlab_protocol::{Digest, Envelope, SigningKey};
use serde_json::json;

use super::{CliError, Client, Exit, Global, Output, host};
use crate::{
    api::RevocationStory,
    trust::{
        authority::TakenIn,
        revocation::{List, next},
        root,
    },
};

const EXAMPLES: &str = "Examples:
  patchlab order revoke PO-2026-0001 --reason 'breaks logins' --key operator.pem   # the next list, in one go
  patchlab revocation show

The same with a key that is on another machine:
  patchlab revocation show --out list.json
  patchlab revocation next DIGEST --list list.json --reason 'breaks logins' --key operator.pem --out next.json
  patchlab revocation import next.json";

/// The revocation list.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Revocation {
    /// What to do.
    #[command(subcommand)]
    command: RevocationCommand,
}

#[derive(Debug, Subcommand)]
enum RevocationCommand {
    /// Show the list in force, and what every host made of it
    Show {
        /// Write the list as it is signed, to make the next one from
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
    /// Write the list that follows another one and revokes more; needs no server
    Next(Next),
    /// Add a signature to a list: a threshold of operators, or the root's keys; needs no server
    Sign {
        /// The list
        file: PathBuf,
        /// An operator's key, or a root key
        #[arg(long, value_name = "FILE")]
        key: PathBuf,
    },
    /// Hand a signed list in: it is verified, and offered to every host
    Import {
        /// The list
        file: PathBuf,
    },
}

/// More documents to revoke.
#[derive(Debug, Args)]
struct Next {
    /// Digests of orders, releases, approvals or activations
    #[arg(required = true, value_name = "DIGEST")]
    documents: Vec<Digest>,
    /// Why, in one line: hosts keep it
    #[arg(long)]
    reason: String,
    /// The list in force, as `revocation show --out` wrote it; absent when there is none yet
    #[arg(long, value_name = "FILE")]
    list: Option<PathBuf>,
    /// An operator's key, or a root key; without it the list is signed later
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
    /// Where to write it; must not exist
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

impl Revocation {
    pub(super) async fn run(self, global: &Global) -> Result<Exit, CliError> {
        let output = global.output();
        match self.command {
            RevocationCommand::Show { out } => show(&Client::new(global)?, &output, out.as_deref()).await,
            RevocationCommand::Next(next) => next.run(&output),
            RevocationCommand::Sign { file, key } => sign(&output, &file, &key),
            RevocationCommand::Import { file } => {
                let envelope = root::read_envelope(&file).map_err(CliError::input)?;
                hand_in(&Client::new(global)?, &output, &envelope).await
            }
        }
    }
}

/// The list in force, as the server has it and as it is signed.
pub(super) async fn in_force(client: &Client) -> Result<(RevocationStory, Option<List>), CliError> {
    let story: RevocationStory = client.get("revocation").await?;
    let list = match &story.digest {
        Some(digest) => Some(List::read(client.document(digest).await?).map_err(CliError::failed)?),
        None => None,
    };
    Ok((story, list))
}

/// Hands a list in and says what became of it.
pub(super) async fn hand_in(client: &Client, output: &Output, envelope: &Envelope) -> Result<Exit, CliError> {
    let taken: TakenIn = client.post("revocation", envelope).await?;
    output.fields(&[&format!("revocation list {}", taken.version), &taken.digest.to_string()]);
    said(output, &taken);
    output.json(&taken)?;
    Ok(Exit::Passed)
}

/// What a document that was taken in means for hosts.
pub(super) fn said(output: &Output, taken: &TakenIn) {
    output.note(format!("offered to {} hosts: patchlab host list shows what becomes of it", taken.waiting));
    taken.warnings.iter().for_each(|warning| output.note(warning));
}

async fn show(client: &Client, output: &Output, out: Option<&Path>) -> Result<Exit, CliError> {
    let (story, list) = in_force(client).await?;
    if let Some(path) = out {
        let list = list.ok_or_else(|| CliError::Input("no document was revoked yet: there is no list".into()))?;
        write(path, &list.envelope)?;
    }
    output.line(match (&story.digest, &story.at) {
        (Some(digest), Some(at)) => {
            format!("revocation list {}, {digest}, signed {}", story.version, output.moment(&at.to_string()))
        }
        _ => "no document was revoked".into(),
    });
    let rows: Vec<_> = story
        .revoked
        .iter()
        .map(|one| {
            let what = one.what.clone().unwrap_or_else(|| "not known here".into());
            vec![what, one.reason.clone(), one.document.to_string()]
        })
        .collect();
    if !rows.is_empty() {
        output.table(&["revoked", "why", "digest"], &rows);
    }
    host::trust_table(output, &story.hosts);
    output.json(&story)?;
    Ok(Exit::Passed)
}

impl Next {
    fn run(self, output: &Output) -> Result<Exit, CliError> {
        let before = match &self.list {
            Some(path) => Some(read(path)?),
            None => None,
        };
        let says = next(before.as_ref().map(|list| &list.says), &self.documents, &self.reason, Timestamp::now())
            .map_err(CliError::input)?;
        let version = says.version;
        let envelope = match &self.key {
            Some(key) => Envelope::sign(says, &SigningKey::read(key).map_err(CliError::input)?),
            None => Envelope::unsigned(says),
        };
        write(&self.out, &envelope)?;
        told(output, version, &envelope, &self.out)
    }
}

fn sign(output: &Output, path: &Path, key: &Path) -> Result<Exit, CliError> {
    let mut list = read(path)?;
    list.envelope.add_signature(&SigningKey::read(key).map_err(CliError::input)?);
    root::rewrite_envelope(path, &list.envelope).map_err(CliError::failed)?;
    told(output, list.says.version, &list.envelope, path)
}

fn told(output: &Output, version: u32, envelope: &Envelope, path: &Path) -> Result<Exit, CliError> {
    let (digest, signers) = (envelope.digest(), envelope.claimed_signers());
    output.fields(&[&format!("revocation list {version}"), &digest.to_string()]);
    output.note(format!("{}, with {} signatures", path.display(), signers.len()));
    output.json(&json!({ "version": version, "digest": digest, "path": path, "signers": signers }))?;
    Ok(Exit::Passed)
}

fn read(path: &Path) -> Result<List, CliError> {
    let envelope = root::read_envelope(path).map_err(CliError::input)?;
    List::read(envelope).map_err(|error| CliError::Input(format!("{}: {error}", path.display())))
}

/// Writes a signed document to a new file.
pub(super) fn write(path: &Path, envelope: &Envelope) -> Result<(), CliError> {
    use std::io::Write as _;
    let failed = |error| CliError::Input(format!("cannot write {}: {error}", path.display()));
    let mut file = fs::OpenOptions::new().write(true).create_new(true).open(path).map_err(failed)?;
    file.write_all(&envelope.to_bytes()).and_then(|()| file.sync_all()).map_err(failed)
}
