//! What commands print: tables on a terminal, plain tab-separated lines in a pipe, JSON where it was asked for.

use std::{convert::Infallible, fs, io::IsTerminal as _, io::Write as _, path::PathBuf, str::FromStr};

use comfy_table::{Attribute, Cell, Color, ContentArrangement, LineStyle, Table, TableStyle};
use serde::Serialize;

use super::CliError;
use crate::legible;

/// A line under the header, and nothing else that is not content.
const LINES: TableStyle = TableStyle::new().header_separator(LineStyle::none().fill('─').junction('─'));

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

    /// Whether a person reads standard output.
    pub fn is_for_people(&self) -> bool {
        self.terminal && !self.is_machine_read()
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

    /// A moment (RFC 3339): as people read it on a terminal, as it is for programs.
    pub fn moment(&self, at: &str) -> String {
        if self.terminal { legible::moment_of(at) } else { at.to_owned() }
    }

    /// Particulars (JSON): likewise.
    pub fn particulars(&self, json: &str) -> String {
        if self.terminal { legible::particulars(json) } else { json.to_owned() }
    }

    /// The fields of a single result: for people with states in colour, for programs tab-separated.
    pub fn fields(&self, fields: &[&str]) {
        self.line(match (self.terminal, is_plain()) {
            (false, _) => fields.join("\t"),
            (true, true) => fields.join("  "),
            (true, false) => fields.iter().map(|field| coloured(field)).collect::<Vec<_>>().join("  "),
        });
    }

    /// Names and values, one a line: aligned for people, tab-separated for programs.
    pub fn pairs(&self, pairs: &[(&str, String)]) {
        let width = pairs.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
        for (name, value) in pairs {
            self.line(if self.terminal { format!("{name:<width$}  {value}") } else { format!("{name}\t{value}") });
        }
    }

    /// Rows: a table for people, lines of tab-separated fields for programs.
    pub fn table(&self, header: &[&str], rows: &[Vec<String>]) {
        if !self.terminal {
            rows.iter().for_each(|row| self.line(row.join("\t")));
            return;
        }
        let mut table = table(header, rows);
        table.set_content_arrangement(ContentArrangement::Dynamic);
        self.line(table.to_string());
    }

    /// The same for rows with a long particular each: for people it stands on a line of its own under its row, for programs it is
    /// the last field.
    pub fn annotated(&self, header: &[&str], rows: &[(Vec<String>, String)]) {
        if !self.terminal {
            rows.iter().for_each(|(row, particular)| self.line(format!("{}\t{particular}", row.join("\t"))));
            return;
        }
        let fields: Vec<_> = rows.iter().map(|(row, _)| row.clone()).collect();
        let mut particulars = rows.iter().map(|(_, particular)| particular.as_str());
        for (number, line) in table(header, &fields).lines().enumerate() {
            self.line(line);
            // The header and the line under it come first; without an arrangement every row is one line.
            let particular = if number < 2 { None } else { particulars.next() };
            if let Some(particular) = particular.filter(|text| !text.is_empty()) {
                self.line(format!("       {particular}"));
            }
        }
    }
}

/// A table without an arrangement: every row is one line.
fn table(header: &[&str], rows: &[Vec<String>]) -> Table {
    let mut table = Table::new();
    table.load_style(LINES);
    table.set_header(header.iter().map(|title| Cell::new(title).add_attribute(Attribute::Bold)));
    for row in rows {
        table.add_row(row.iter().map(|text| cell(text)));
    }
    table
}

/// What a state means to who looks for trouble.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tone {
    /// As it should be.
    Good,
    /// Somebody should look.
    Bad,
    /// On its way, or neither.
    Busy,
}

fn tone(state: &str) -> Option<Tone> {
    Some(match state {
        "succeeded" | "deployed" | "released" | "approved" | "validated" | "passed" | "pass" | "fixed" | "yes"
        | "done" | "current" => Tone::Good,
        "failed" | "rejected" | "fail" | "regression" | "refused" | "lost" | "no" | "rollback-failed" | "aborted"
        | "stopped" | "revoked" | "stuck" => Tone::Bad,
        "active" | "running" | "pushing" | "partly" | "rolling-back" | "rolled-back" | "flaky" | "pre-existing"
        | "interrupted" | "silent" | "waiting" | "lab-error" | "missing" | "inapplicable" | "slow" => Tone::Busy,
        _ => return None,
    })
}

/// States are coloured; every one is also written out.
fn cell(text: &str) -> Cell {
    let cell = Cell::new(text);
    match tone(text) {
        Some(Tone::Good) => cell.fg(Color::Green),
        Some(Tone::Bad) => cell.fg(Color::Red),
        Some(Tone::Busy) => cell.fg(Color::Yellow),
        None => cell,
    }
}

/// Whether a terminal's user wants no colours (https://no-color.org: set and not empty).
pub(super) fn is_plain() -> bool {
    std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
}

/// The same outside of tables (ECMA-48 colours, as every terminal since knows them).
pub(super) fn coloured(text: &str) -> String {
    match tone(text) {
        Some(Tone::Good) => format!("\x1b[32m{text}\x1b[39m"),
        Some(Tone::Bad) => format!("\x1b[31m{text}\x1b[39m"),
        Some(Tone::Busy) => format!("\x1b[33m{text}\x1b[39m"),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_is_written_out_whatever_its_colour() {
        for state in ["passed", "rejected", "partly", "nginx"] {
            assert!(coloured(state).contains(state));
        }
        assert_ne!(coloured("passed"), coloured("rejected").replace("rejected", "passed"));
        assert_eq!(coloured("nginx"), "nginx");
    }

    #[test]
    fn every_row_of_a_table_is_one_line_after_two_for_the_header() {
        let row = |name: &str| vec![name.to_owned(), "a long text that would be wrapped on a narrow screen ".repeat(9)];
        let lines = table(&["name", "text"], &[row("first"), row("second")]).lines().count();
        assert_eq!(lines, 4);
    }
}
