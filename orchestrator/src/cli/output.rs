//! What commands print: tables on a terminal, plain tab-separated lines in a pipe, JSON where it was asked for.

use std::{convert::Infallible, fs, io::IsTerminal as _, io::Write as _, path::PathBuf, str::FromStr};

use comfy_table::{Attribute, Cell, Color, ContentArrangement, Table, presets};
use serde::Serialize;

use super::CliError;

/// Where JSON goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JsonTo {
    /// Standard output: nothing else is printed there.
    Stdout,
    /// A file.
    File(PathBuf),
}

impl FromStr for JsonTo {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(if text == "-" { Self::Stdout } else { Self::File(text.into()) })
    }
}

/// How much is said beside results.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Voice {
    /// Results only.
    Quiet,
    /// Progress and hints too.
    Normal,
}

/// Where results go.
#[derive(Debug, Clone)]
pub struct Output {
    json: Option<JsonTo>,
    voice: Voice,
    terminal: bool,
}

impl Output {
    /// Looks at standard output.
    pub fn new(json: Option<JsonTo>, voice: Voice) -> Self {
        Self { json, voice, terminal: std::io::stdout().is_terminal() }
    }

    /// Whether standard output is for a program.
    pub fn is_machine_read(&self) -> bool {
        self.json == Some(JsonTo::Stdout)
    }

    /// How much is said beside results.
    pub fn voice(&self) -> Voice {
        self.voice
    }

    /// The result as JSON, where it was asked for.
    pub fn json(&self, value: &impl Serialize) -> Result<(), CliError> {
        let Some(to) = &self.json else { return Ok(()) };
        let mut text = serde_json::to_string_pretty(value).map_err(CliError::failed)?;
        text.push('\n');
        match to {
            JsonTo::Stdout => std::io::stdout()
                .write_all(text.as_bytes())
                .map_err(|e| CliError::Failed(format!("standard output: {e}"))),
            JsonTo::File(path) => {
                fs::write(path, text).map_err(|e| CliError::Failed(format!("--json {}: {e}", path.display())))
            }
        }
    }

    /// A line of the result.
    pub fn line(&self, text: impl AsRef<str>) {
        if self.json != Some(JsonTo::Stdout) {
            // A closed pipe is the reader's business.
            let _ = writeln!(std::io::stdout(), "{}", text.as_ref());
        }
    }

    /// Progress and hints, on standard error.
    pub fn note(&self, text: impl AsRef<str>) {
        if self.voice == Voice::Normal {
            eprintln!("{}", text.as_ref());
        }
    }

    /// Rows: a table for people, lines of tab-separated fields for programs.
    pub fn table(&self, header: &[&str], rows: &[Vec<String>]) {
        if !self.terminal {
            rows.iter().for_each(|row| self.line(row.join("\t")));
            return;
        }
        let mut table = Table::new();
        table.load_style(presets::UTF8_HORIZONTAL_ONLY).set_content_arrangement(ContentArrangement::Dynamic);
        table.set_header(header.iter().map(|title| Cell::new(title).add_attribute(Attribute::Bold)));
        for row in rows {
            table.add_row(row.iter().map(|text| colour(text)));
        }
        self.line(table.to_string());
    }
}

/// States are coloured; every one is also written out.
fn colour(text: &str) -> Cell {
    let cell = Cell::new(text);
    match text {
        "succeeded" | "deployed" | "released" | "approved" | "validated" | "passed" | "yes" | "done" => {
            cell.fg(Color::Green)
        }
        "failed" | "rejected" | "refused" | "lost" | "no" | "rollback-failed" | "aborted" | "stopped" => {
            cell.fg(Color::Red)
        }
        "active" | "running" | "pushing" | "partly" | "rolling-back" | "rolled-back" => cell.fg(Color::Yellow),
        _ => cell,
    }
}
