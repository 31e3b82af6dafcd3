//! `patchlab schema`: JSON Schemas of the files people write.

use std::{fs, path::PathBuf};

use clap::Args;
use serde_json::json;

use super::{CliError, Exit, Global};
use crate::schema::Form;

/// Prints a JSON Schema, or says which there are.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  patchlab schema
  patchlab schema scenario
  patchlab schema --out docs/schemas

An editor with taplo (Even Better TOML) takes a schema from the file's first line:
  #:schema ../../docs/schemas/scenario.json")]
pub struct SchemaCommand {
    /// Which form of file; without one, all are listed.
    #[arg(value_enum, value_name = "NAME")]
    form: Option<Form>,
    /// Writes it, or without NAME all, to this folder as NAME.json.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

impl SchemaCommand {
    /// Prints or writes.
    pub(super) fn run(self, global: &Global) -> Result<Exit, CliError> {
        let output = global.output();
        let forms = self.form.map_or_else(|| Form::ALL.to_vec(), |form| vec![form]);
        let Some(out) = self.out else {
            match self.form {
                Some(form) => output.line(form.text().trim_end()),
                None => forms.iter().for_each(|form| output.fields(&[form.name(), form.files()])),
            }
            let all: serde_json::Map<String, serde_json::Value> =
                forms.iter().map(|form| (form.name().to_owned(), form.schema().to_value())).collect();
            output.json(&json!(all))?;
            return Ok(Exit::Passed);
        };
        let failed = |path: &PathBuf, error| CliError::Failed(format!("{}: {error}", path.display()));
        fs::create_dir_all(&out).map_err(|error| failed(&out, error))?;
        let mut written = Vec::new();
        for form in forms {
            let path = out.join(format!("{}.json", form.name()));
            fs::write(&path, form.text()).map_err(|error| failed(&path, error))?;
            output.line(format!("wrote {}", path.display()));
            written.push(path);
        }
        output.json(&json!({ "written": written }))?;
        Ok(Exit::Passed)
    }
}
