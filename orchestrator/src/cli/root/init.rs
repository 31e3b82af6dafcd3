//! `patchlab root init`: the first root document of a data folder.

use std::{
    fs,
    path::{Path, PathBuf},
};

use clap::Args;
use jiff::{Timestamp, ToSpan as _};
use patchlab_protocol::{Audience, Role, SigningKey};
use serde_json::json;

use crate::{
    cli::{CliError, Exit, Global},
    legible,
    place::private_folder,
    trust::{key, root},
};

/// Who holds which key. Public halves (FILE.pub) are enough, except for the root key itself.
#[derive(Debug, Args)]
pub struct Init {
    /// The root key (private): signs the document, and is then best kept offline
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// Keys that may sign orders
    #[arg(long, value_name = "FILE", required = true)]
    drafter_key: Vec<PathBuf>,
    /// Keys that may sign releases
    #[arg(long, value_name = "FILE", required = true)]
    release_key: Vec<PathBuf>,
    /// Keys that may sign approvals
    #[arg(long, value_name = "FILE", required = true)]
    approver_key: Vec<PathBuf>,
    /// Keys that may sign rollbacks alone
    #[arg(long, value_name = "FILE")]
    operator_key: Vec<PathBuf>,
    /// Days until no apply is allowed any more under this document
    #[arg(long, default_value_t = 365, value_parser = clap::value_parser!(i64).range(1..=3650))]
    days: i64,
    /// Write a copy
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

impl Init {
    pub(super) fn run(self, global: &Global) -> Result<Exit, CliError> {
        let data = global.data()?;
        let path = data.root_document();
        if path.exists() {
            return Err(CliError::Input(format!(
                "{} is there already: hosts pin it, so it is never overwritten; use another --data DIR",
                path.display()
            )));
        }
        let root_key = SigningKey::read(&self.key).map_err(CliError::input)?;
        let mut holders = Vec::new();
        let roles = [
            (Role::Drafter, &self.drafter_key),
            (Role::Releaser, &self.release_key),
            (Role::Approver, &self.approver_key),
            (Role::Operator, &self.operator_key),
        ];
        for (role, files) in roles {
            for file in files {
                let public = key::public_half(file, role).map_err(CliError::input)?;
                if public.audience != Audience::Production {
                    return Err(CliError::Input(format!(
                        "{} is a lab key: a production root lists none",
                        file.display()
                    )));
                }
                holders.push((holder(file), public));
            }
        }
        let activator = data.activator_key();
        if !activator.exists() {
            private_folder(activator.parent().unwrap_or(data.dir())).map_err(CliError::failed)?;
            key::generate(Role::Activator, Audience::Production, &activator).map_err(CliError::failed)?;
        }
        let public = key::public_half(&activator, Role::Activator).map_err(CliError::input)?;
        holders.push(("server".into(), public));

        let expires = Timestamp::now().checked_add((self.days * 24).hours()).map_err(CliError::input)?;
        let envelope = root::compose(&root_key, &holders, expires);
        let digest = envelope.digest();
        for path in [Some(&path), self.out.as_ref()].into_iter().flatten() {
            fs::write(path, envelope.to_bytes())
                .map_err(|error| CliError::Failed(format!("cannot write {}: {error}", path.display())))?;
        }
        let output = global.output();
        output.line(digest.to_string());
        output.note(format!("root document: {}, valid until {}", path.display(), legible::moment(expires)));
        output.json(&json!({ "digest": digest, "path": path, "expires": expires }))?;
        Ok(Exit::Passed)
    }
}

/// A holder's name, for people: the file's.
pub(super) fn holder(file: &Path) -> String {
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    name.trim_end_matches(".pub").trim_end_matches(".pem").to_owned()
}
