//! `patchlab root`: the document that says whose signature counts, and its successors. Documents are made and signed on whatever
//! machine the keys are on; only handing one in needs the server.

mod init;
mod next;

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use jiff::Timestamp;
use patchlab_protocol::{Envelope, Role, SigningKey, document::Root, trust::successor};
use serde_json::json;

use super::{CliError, Client, Exit, Global, Output, revocation};
use crate::trust::{
    authority::TakenIn,
    root::{self, InForce, RootFileError},
    rotation::{self, Signatures, expiry, signatures},
};

const EXAMPLES: &str = "Examples:
  patchlab root show
  patchlab root next --add ann.pem.pub --remove 0123456789abcdef0123456789abcdef --out root.2.json
  patchlab root sign root.2.json --key root.pem        # each holder on his own machine
  patchlab root verify root.2.json
  patchlab root import root.2.json

A root is replaced by its successor only: signed by as many root keys of the root in force as that one asks for, and by as many of
its own. The server then offers it to every host; one that was away gets those that it missed, in order.";

/// The root document.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct RootArguments {
    /// What to do.
    #[command(subcommand)]
    command: RootCommand,
}

#[derive(Debug, Subcommand)]
enum RootCommand {
    /// Make the first root document of this data folder, and the server's activation key with it
    Init(init::Init),
    /// Write the root document that follows the one in force, unsigned
    Next(next::Next),
    /// Add a signature to a root document, on whatever machine the key is
    Sign {
        /// The document; this data folder's first one unless given
        file: Option<PathBuf>,
        /// A root key, of the root in force or of the document itself
        #[arg(long, value_name = "FILE")]
        key: PathBuf,
        /// The root in force; this data folder's unless given
        #[arg(long, value_name = "FILE")]
        root: Option<PathBuf>,
    },
    /// Show a root document: its keys, thresholds, expiry and signatures
    Show {
        /// The document; this data folder's in force unless given
        file: Option<PathBuf>,
    },
    /// Whether a document follows the root in force, as every host would say; exit 5 and the refusal's name when not
    Verify {
        /// The document
        file: PathBuf,
        /// The root in force; this data folder's unless given
        #[arg(long, value_name = "FILE")]
        root: Option<PathBuf>,
    },
    /// Hand a signed successor in: it is verified, comes into force, and is offered to every host
    Import {
        /// The document
        file: PathBuf,
    },
}

impl RootArguments {
    pub(super) async fn run(self, global: &Global) -> Result<Exit, CliError> {
        let output = global.output();
        match self.command {
            RootCommand::Init(init) => init.run(global),
            RootCommand::Next(next) => next.run(global),
            RootCommand::Sign { file, key, root } => sign(global, &output, file, &key, root.as_deref()),
            RootCommand::Show { file } => show(global, &output, file.as_deref()),
            RootCommand::Verify { file, root } => verify(global, &output, &file, root.as_deref()),
            RootCommand::Import { file } => {
                let envelope = root::read_envelope(&file).map_err(CliError::input)?;
                let taken: TakenIn = Client::new(global)?.post("root", &envelope).await?;
                output.fields(&[&format!("root {}", taken.version), &taken.digest.to_string()]);
                revocation::said(&output, &taken);
                output.json(&taken)?;
                Ok(Exit::Passed)
            }
        }
    }
}

/// The root in force: of a file, which must be signed by itself, or of the data folder; `None` where there is none.
fn in_force(global: &Global, given: Option<&Path>) -> Result<Option<InForce>, CliError> {
    if let Some(path) = given {
        return root::read_one(path).map(Some).map_err(CliError::input);
    }
    match root::read(&global.data()?.root_document()) {
        Ok(root) => Ok(Some(root)),
        Err(RootFileError::Absent(_)) => Ok(None),
        Err(error) => Err(CliError::input(error)),
    }
}

/// The root in force where there must be one.
fn must_be_in_force(global: &Global, given: Option<&Path>) -> Result<InForce, CliError> {
    let hint = "there is no root in force in this data folder: name the document with --root FILE";
    in_force(global, given)?.ok_or_else(|| CliError::Input(hint.into()))
}

fn read(path: &Path) -> Result<(Envelope, Root), CliError> {
    let envelope = root::read_envelope(path).map_err(CliError::input)?;
    let root = envelope
        .statement::<Root>()
        .map_err(|error| CliError::Input(format!("{} is no root document: {error}", path.display())))?
        .predicate;
    Ok((envelope, root))
}

/// The root that a document follows, if it is the one in force.
fn before(in_force: Option<InForce>, root: &Root) -> Option<Root> {
    in_force.map(|there| there.root).filter(|there| there.version.saturating_add(1) == root.version)
}

fn sign(
    global: &Global,
    output: &Output,
    file: Option<PathBuf>,
    key: &Path,
    given: Option<&Path>,
) -> Result<Exit, CliError> {
    let path = match file {
        Some(path) => path,
        None => global.data()?.root_document(),
    };
    let (mut envelope, root) = read(&path)?;
    let before = before(in_force(global, given)?, &root);
    let key = SigningKey::read(key).map_err(CliError::input)?;
    let counts = |root: &Root| root.keys(Role::Root).any(|known| *known == key.public());
    if !counts(&root) && !before.as_ref().is_some_and(counts) {
        let (id, version) = (key.public().id(), root.version);
        return Err(CliError::Input(format!(
            "key {id} is a root key neither of root {version} nor of the one before it, as far as that is known here: its signature \
             would count for nothing; name the root in force with --root FILE"
        )));
    }
    envelope.add_signature(&key);
    root::rewrite_envelope(&path, &envelope).map_err(CliError::failed)?;
    let signed = signatures(before.as_ref(), &root, &envelope);
    output.fields(&[&format!("root {}", root.version), &envelope.digest().to_string()]);
    signed.iter().for_each(|signed| output.note(signed.to_string()));
    let enough = signed.iter().all(Signatures::enough);
    output.json(&json!({
        "digest": envelope.digest(), "version": root.version, "path": path, "signatures": signed, "valid": enough,
    }))?;
    Ok(Exit::Passed)
}

fn show(global: &Global, output: &Output, file: Option<&Path>) -> Result<Exit, CliError> {
    let there = in_force(global, None)?;
    let (envelope, root) = match file {
        Some(path) => read(path)?,
        None => must_be_in_force(global, None).map(|there| (there.envelope, there.root))?,
    };
    let signed = signatures(before(there, &root).as_ref(), &root, &envelope);
    let mut pairs = vec![
        ("version", root.version.to_string()),
        ("digest", envelope.digest().to_string()),
        ("expires", output.moment(&root.expires.to_string())),
    ];
    let thresholds = root.thresholds.iter().map(|(role, needed)| format!("{needed} {}", rotation::name(*role)));
    let thresholds: Vec<String> = thresholds.chain(["1 of each other role".into()]).collect();
    pairs.push(("signatures needed", thresholds.join(", ")));
    pairs.extend(signed.iter().map(|signed| ("signatures", signed.to_string())));
    output.pairs(&pairs);
    let rows: Vec<_> = root
        .keys
        .iter()
        .map(|key| {
            let roles = key.roles.iter().copied().map(rotation::name).collect::<Vec<_>>().join(", ");
            vec![key.holder.clone(), roles, key.public.id().to_string()]
        })
        .collect();
    output.table(&["holder", "role", "key"], &rows);
    let warning = expiry(root.expires, Timestamp::now()).warning(root.version);
    warning.iter().for_each(|warning| output.note(warning));
    output.json(&json!({
        "digest": envelope.digest(), "root": root, "signatures": signed, "warning": warning,
    }))?;
    Ok(Exit::Passed)
}

fn verify(global: &Global, output: &Output, file: &Path, given: Option<&Path>) -> Result<Exit, CliError> {
    let there = must_be_in_force(global, given)?;
    let (envelope, root) = read(file)?;
    let signed = signatures(before(Some(there.clone()), &root).as_ref(), &root, &envelope);
    let decided = successor(&there.root, &envelope);
    let refused = decided.as_ref().err();
    output.json(&json!({
        "digest": envelope.digest(), "version": root.version, "signatures": signed, "follows": decided.is_ok(),
        "refusal": refused.map(|no| no.refusal), "reason": refused.map(|no| no.reason.clone()),
    }))?;
    match decided {
        Ok(_) => {
            output.line(format!("root {} follows root {}", root.version, there.root.version));
            Ok(Exit::Passed)
        }
        Err(refused) => {
            signed.iter().for_each(|signed| output.note(signed.to_string()));
            Err(CliError::Refused(refused.to_string()))
        }
    }
}
