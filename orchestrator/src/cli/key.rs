//! `patchlab key`.

use std::path::PathBuf;

use clap::Subcommand;
use patchlab_protocol::{Audience, Role};
use serde_json::json;

use super::{CliError, Exit, Global};
use crate::trust::key;

/// Keys.
#[derive(Debug, Subcommand)]
pub enum KeyCommand {
    /// Make an Ed25519 key: FILE (private, mode 0600) and FILE.pub
    Generate {
        /// What it is for: root, drafter, releaser, approver, activator, operator, keeper
        #[arg(long)]
        role: Role,
        /// The private key's file; never overwritten
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
        /// Where its signature counts: production, or lab
        #[arg(long, default_value = "production", value_parser = audience)]
        audience: Audience,
    },
}

fn audience(text: &str) -> Result<Audience, String> {
    match text {
        "production" => Ok(Audience::Production),
        "lab" => Ok(Audience::Lab),
        other => Err(format!("unknown audience {other:?}: expected production or lab")),
    }
}

impl KeyCommand {
    pub(super) fn run(self, global: &Global) -> Result<Exit, CliError> {
        let Self::Generate { role, out, audience } = self;
        let made = key::generate(role, audience, &out).map_err(CliError::input)?;
        let output = global.output();
        output.line(format!("{}\t{}", made.public.id(), out.display()));
        output.note(format!("public half: {}", key::public_path(&out).display()));
        output.json(&json!({ "key": made.public.id(), "role": role, "private": out, "public": made.public }))?;
        Ok(Exit::Passed)
    }
}
