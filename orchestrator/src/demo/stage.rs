//! The demonstration's stages as people see them: a numbered heading, the commands that a user would type, and how long each
//! stage took.

use std::{
    io::Write as _,
    path::PathBuf,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};

use crate::legible::duration;

/// How many stages there are.
pub const STAGES: usize = 8;

/// A finished stage.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Finished {
    /// Its number, from 1.
    pub number: usize,
    /// What it showed.
    pub title: String,
    /// How long it took, milliseconds.
    pub ms: u64,
    /// What came out of it, one line.
    pub result: String,
}

/// The stages so far, and how to run this program's own commands.
pub struct Stages {
    program: PathBuf,
    data: PathBuf,
    finished: Vec<Finished>,
    started: Instant,
    voice: Voice,
}

/// Who watches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Voice {
    /// Headings, commands and their output.
    Aloud,
    /// Only errors.
    Quiet,
}

impl Stages {
    /// Stages that run `program` on the data folder `data`.
    pub fn new(program: PathBuf, data: PathBuf, voice: Voice) -> Self {
        Self { program, data, finished: Vec::new(), started: Instant::now(), voice }
    }

    /// Runs one stage. Its error names the stage, so that a failure says in which phase it was.
    pub fn run(&mut self, title: &str, stage: impl FnOnce(&mut Self) -> anyhow::Result<String>) -> anyhow::Result<()> {
        let number = self.finished.len() + 1;
        self.say(&format!("\n[{number}/{STAGES}] {title}"));
        let start = Instant::now();
        let result = stage(self).with_context(|| format!("stage {number} of {STAGES}, {title}"))?;
        let took = start.elapsed();
        self.say(&format!("  => {result}  ({})", duration(took)));
        self.finished.push(Finished { number, title: title.to_owned(), ms: took.as_millis() as u64, result });
        Ok(())
    }

    /// Says a line to whoever watches.
    pub fn say(&self, line: &str) {
        if self.voice == Voice::Aloud {
            println!("{line}");
            let _ = std::io::stdout().flush();
        }
    }

    /// Runs `patchlab ARGUMENTS` as a user would, shown with its output, and demands the exit code `expected`.
    pub fn patchlab(&self, arguments: &[&str], expected: i32) -> anyhow::Result<()> {
        let shown: Vec<String> = arguments.iter().map(|argument| quoted(argument)).collect();
        self.say(&format!("  $ patchlab {}", shown.join(" ")));
        let mut command = self.command();
        command.args(arguments).stdin(Stdio::null());
        if self.voice == Voice::Quiet {
            command.stdout(Stdio::null());
        }
        let status = command.status().with_context(|| format!("start {}", self.program.display()))?;
        if status.code() != Some(expected) {
            bail!("`patchlab {}` ended with {status}, expected exit code {expected}", shown.join(" "));
        }
        Ok(())
    }

    /// Runs `patchlab ARGUMENTS --json -` unseen, and reads its answer.
    pub fn ask(&self, arguments: &[&str]) -> anyhow::Result<serde_json::Value> {
        let output = self.command().args(arguments).args(["--json", "-", "--quiet"]).stdin(Stdio::null()).output()?;
        let error = String::from_utf8_lossy(&output.stderr);
        serde_json::from_slice(&output.stdout)
            .with_context(|| format!("`patchlab {}` gave no JSON; it wrote: {}", arguments.join(" "), error.trim()))
    }

    /// This program on the demonstration's data folder.
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("--data").arg(&self.data);
        command
    }

    /// What was shown, and how long it took in all.
    pub fn finish(self) -> (Vec<Finished>, Duration) {
        (self.finished, self.started.elapsed())
    }
}

/// An argument as a shell would want it.
pub(super) fn quoted(argument: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=@,+".contains(c);
    if !argument.is_empty() && argument.chars().all(plain) {
        argument.to_owned()
    } else {
        format!("'{}'", argument.replace('\'', r"'\''"))
    }
}
