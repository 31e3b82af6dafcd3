//! `patchlab lab kept`, `shell`, `screenshot` and `rm`: the clones of a validation, kept to be looked into. Need no server.

use std::{
    io::{BufRead as _, IsTerminal as _, Read as _, Write as _},
    path::PathBuf,
    time::Duration,
};

use clap::{Args, ValueEnum};
use patchlab_check::target::OUTPUT_LIMIT;
use patchlab_lab::{
    applier::Role,
    kept::{Keep, Kept, KeptClones, KeptError},
    machine::SavedFile,
    runs::Runs,
};
use serde_json::{Value, json};

use super::{CliError, Exit, Global, Output, point, runs::legible_line, tty};
use crate::{
    lab::shell::{Ended, Left, Ran, Shell},
    place::Data,
};

/// Bytes of a console that are printed, from its beginning: 16 MiB.
const CONSOLE_LIMIT: u64 = 16 << 20;

/// When the clones of a validation are kept.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum KeepWhen {
    /// They are not
    Never,
    /// When the verdict is not `passed`
    OnFailure,
    /// Whatever the verdict is
    Always,
}

impl From<KeepWhen> for Keep {
    fn from(when: KeepWhen) -> Self {
        match when {
            KeepWhen::Never => Self::Never,
            KeepWhen::OnFailure => Self::OnFailure,
            KeepWhen::Always => Self::Always,
        }
    }
}

/// One of the two clones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Which {
    /// The one without the patch
    Control,
    /// The one with the patch
    Patched,
}

impl From<Which> for Role {
    fn from(which: Which) -> Self {
        match which {
            Which::Control => Self::Control,
            Which::Patched => Self::Patched,
        }
    }
}

pub(super) const KEPT_EXAMPLES: &str = "Examples:
  patchlab lab validate --order order.toml --keep on-failure
  patchlab lab kept
  patchlab lab kept --json -";

pub(super) const SHELL_EXAMPLES: &str = "Examples:
  patchlab lab shell PO-2026-0002 -- systemctl status nginx
  patchlab lab shell PO-2026-0002 --clone control -- sh -c 'nginx -t && journalctl -u nginx | tail'
  patchlab lab shell PO-2026-0002 < commands.txt
  patchlab lab shell last                                    # right before the step that failed

Of a RUN, its clones that were kept; else fresh ones, on which everything is done again, up to the step that failed first and not that one.
They are kept for 3 days, under the name that is said.

With COMMAND, its output and exit code are passed on. Without, on a terminal, a shell has it until `exit` (or Ctrl-], which leaves one that
hangs); elsewhere every line of standard input is run in a shell of its own. The last exit code is passed on. Every call goes on from the
moment in which the clone was saved: what one changes, the next does not see.
255 stands for a command that a signal ended, 124 for one that took too long, 4 (with a message) for a lab that broke.";

pub(super) const RM_EXAMPLES: &str = "Examples:
  patchlab lab rm PO-2026-0002-debian-12-web@1-1231-120000

Kept clones whose time is over go with `patchlab lab gc`, and before every validation.";

pub(super) const CONSOLE_EXAMPLES: &str = "Examples:
  patchlab lab console PO-2026-0002
  patchlab lab console PO-2026-0002 --clone control";

/// What a kept clone's console said.
#[derive(Debug, Args)]
pub struct ConsoleCommand {
    /// Name of the kept clones, or how only one of them begins
    name: String,
    /// Which of the two
    #[arg(long = "clone", value_enum, default_value_t = Which::Patched)]
    which: Which,
}

impl ConsoleCommand {
    pub(super) fn run(self, global: &Global) -> Result<Exit, CliError> {
        let kept = kept_alone(&global.data()?, &self.name)?;
        let role = Role::from(self.which);
        let name = &kept.record.name;
        let clone =
            kept.clone_of(role).ok_or_else(|| CliError::Input(format!("{name} has no {} clone", role.name())))?;
        let path = clone.saved.file(&kept.folder, SavedFile::Console);
        let broken = |error: std::io::Error| CliError::Failed(format!("{}: {error}", path.display()));
        let mut text = Vec::new();
        std::fs::File::open(&path).map_err(broken)?.take(CONSOLE_LIMIT).read_to_end(&mut text).map_err(broken)?;
        let text = String::from_utf8_lossy(&text);
        let output = global.output();
        text.lines().for_each(|line| output.line(legible_line(line)));
        output.json(&json!({ "kept": name, "clone": role.name(), "text": text }))?;
        Ok(Exit::Passed)
    }
}

pub(super) const SCREENSHOT_EXAMPLES: &str = "Examples:
  patchlab lab screenshot PO-2026-0002 --out screen.png
  patchlab lab screenshot PO-2026-0002 --clone control --out control.png

Of baselines whose recipe says screen = \"vga\".";

/// A picture of a kept clone's screen.
#[derive(Debug, Args)]
pub struct ScreenshotCommand {
    /// Name of the kept clones, or how only one of them begins
    name: String,
    /// Which of the two
    #[arg(long = "clone", value_enum, default_value_t = Which::Patched)]
    which: Which,
    /// The PNG file to write
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

impl ScreenshotCommand {
    pub(super) fn run(self, global: &Global) -> Result<Exit, CliError> {
        let data = global.data()?;
        let kept = kept_alone(&data, &self.name)?;
        let broken = |error: anyhow::Error| CliError::Failed(format!("{}: {error:#}", kept.record.name));
        let role = Role::from(self.which);
        let mut shell = Shell::open(&data, &kept, role).map_err(broken)?;
        shell.look(&self.out).map_err(broken)?;
        shell.end().map_err(broken)?;
        let output = global.output();
        output.line(format!("{}\twritten", self.out.display()));
        output.json(&json!({ "kept": kept.record.name, "clone": role.name(), "out": self.out }))?;
        Ok(Exit::Passed)
    }
}

/// A shell in a kept clone.
#[derive(Debug, Args)]
pub struct ShellCommand {
    /// Name of the kept clones, or how only one of them begins; or a run, by its id or as `last`
    #[arg(value_name = "NAME|RUN")]
    name: String,
    /// Of a run, on which baseline; the only one, or the first that did not pass, unless given
    #[arg(long, value_name = "NAME")]
    baseline: Option<String>,
    /// Which of the two
    #[arg(long = "clone", value_enum, default_value_t = Which::Patched)]
    which: Which,
    /// How long one command may take, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    timeout: u64,
    /// A program and its arguments, as they are; without, lines of standard input
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<String>,
}

/// Lists what is kept.
pub(super) fn list(global: &Global) -> Result<Exit, CliError> {
    let all = KeptClones::open(&global.data()?.lab()).list().map_err(classify)?;
    let output = global.output();
    let now = jiff::Timestamp::now();
    let rows: Vec<_> = all
        .iter()
        .map(|kept| {
            let record = &kept.record;
            vec![
                record.name.clone(),
                record.verdict.to_string(),
                hours(now.duration_since(record.created)),
                if kept.is_expired(now) { "expired".into() } else { hours(record.expires.duration_since(now)) },
                format!("{} MiB", kept.size >> 20),
                record.reason.clone(),
            ]
        })
        .collect();
    output.table(&["name", "verdict", "age", "expires in", "size", "reason"], &rows);
    if all.is_empty() {
        output.note(
            "none are kept: `patchlab lab validate --keep on-failure` keeps the clones of a validation that fails",
        );
    }
    output.json(&all.iter().map(shown).collect::<Vec<_>>())?;
    Ok(Exit::Passed)
}

/// Takes kept clones away.
pub(super) fn remove(global: &Global, names: &[String]) -> Result<Exit, CliError> {
    let kept = KeptClones::open(&global.data()?.lab());
    let output = global.output();
    let mut removed = Vec::new();
    for name in names {
        let name = kept.remove(name).map_err(classify)?;
        output.line(format!("{name}\tremoved"));
        removed.push(name);
    }
    output.json(&json!({ "removed": removed }))?;
    Ok(Exit::Passed)
}

impl ShellCommand {
    pub(super) fn run(self, global: &Global) -> Result<Exit, CliError> {
        let data = global.data()?;
        let output = global.output();
        let kept = match (KeptClones::open(&data.lab()).get(&self.name), Runs::open(&data.lab()).get(&self.name)) {
            (Err(KeptError::Unknown { .. }), Ok(run)) => point::clones(&output, &data, &run, self.baseline.as_deref())?,
            (kept, _) => kept.map_err(classify)?,
        };
        let broken = |error: anyhow::Error| CliError::Failed(format!("{}: {error:#}", kept.record.name));
        let mut shell = Shell::open(&data, &kept, self.which.into()).map_err(broken)?;
        if let Some(reason) = &shell.report.fallback {
            output.note(format!("booted from its disk, what was only in its memory is lost: {reason}"));
        }
        let timeout = Duration::from_secs(self.timeout);
        let mut session = Session { output: &output, commands: Vec::new() };
        let role = Role::from(self.which).name();
        let tty = tty::here().filter(|_| self.command.is_empty() && !output.is_machine_read());
        let left = match tty {
            Some(tty) => {
                output.note(format!(
                    "the {role} clone of {}; `exit` ends it, Ctrl-] leaves it at once, and what is changed there is gone then",
                    kept.record.name
                ));
                Some(shell.sit(tty, tty::carry).map_err(broken)?)
            }
            None => None,
        };
        let exit = match left {
            Some(Left::Exit(code)) => Exit::Command(u8::try_from(code).unwrap_or(u8::MAX)),
            Some(Left::Abandoned) => Exit::Interrupted,
            Some(Left::NoTerminal) | None => {
                if self.command.is_empty() {
                    session.lines(&mut shell, &prompt(&kept, self.which), timeout).map_err(broken)?;
                } else {
                    session.show(shell.run(&quoted(&self.command), timeout).map_err(broken)?).map_err(broken)?;
                }
                session.commands.last().map_or(Exit::Passed, exit)
            }
        };
        let (rung, ready_ms) = (shell.report.rung, shell.report.ready_ms);
        shell.end().map_err(broken)?;
        output.json(&json!({
            "kept": kept.record.name, "clone": role, "rung": rung, "ready_ms": ready_ms, "commands": session.commands,
        }))?;
        Ok(exit)
    }
}

/// The commands of one call, and where their output goes.
struct Session<'a> {
    output: &'a Output,
    commands: Vec<Ran>,
}

impl Session<'_> {
    /// Runs lines of standard input until its end; on a terminal, whose guest can make none, with a prompt.
    fn lines(&mut self, shell: &mut Shell, prompt: &str, timeout: Duration) -> anyhow::Result<()> {
        let is_terminal = std::io::stdin().is_terminal();
        let ask = || {
            if is_terminal {
                eprint!("{prompt}");
            }
        };
        ask();
        for line in std::io::stdin().lock().lines() {
            let line = line?;
            if !line.trim().is_empty() {
                self.show(shell.run(&line, timeout)?)?;
            }
            ask();
        }
        if is_terminal {
            eprintln!();
        }
        Ok(())
    }

    /// Passes on what a command wrote, unless standard output is for a program.
    fn show(&mut self, ran: Ran) -> anyhow::Result<()> {
        if !self.output.is_machine_read() {
            let mut out = std::io::stdout().lock();
            out.write_all(ran.stdout.as_bytes())?;
            out.flush()?;
            std::io::stderr().write_all(ran.stderr.as_bytes())?;
        }
        for (stream, text) in [("output", &ran.stdout), ("errors", &ran.stderr)] {
            if text.len() as u64 >= OUTPUT_LIMIT {
                self.output.note(format!("its {stream} were cut at {OUTPUT_LIMIT} bytes"));
            }
        }
        match (ran.exit, ran.ended) {
            (Some(_), _) => {}
            (None, Ended::ByTimeout) => self.output.note("it took too long and was ended (--timeout)"),
            (None, Ended::ByItself) => self.output.note("a signal ended it"),
        }
        self.commands.push(ran);
        Ok(())
    }
}

fn exit(ran: &Ran) -> Exit {
    match (ran.exit, ran.ended) {
        (Some(code), _) => Exit::Command(u8::try_from(code).unwrap_or(u8::MAX)),
        (None, Ended::ByTimeout) => Exit::Command(124),
        (None, Ended::ByItself) => Exit::Command(255),
    }
}

fn prompt(kept: &Kept, which: Which) -> String {
    format!("{} of {}> ", Role::from(which).name(), kept.record.name)
}

/// A program and its arguments as a command line that means just them.
fn quoted(argv: &[String]) -> String {
    let words = argv.iter().map(|word| format!("'{}'", word.replace('\'', r"'\''")));
    words.collect::<Vec<_>>().join(" ")
}

fn hours(time: jiff::SignedDuration) -> String {
    match (time.as_hours(), time.as_mins()) {
        (0, minutes) => format!("{minutes} min"),
        (hours @ ..48, _) => format!("{hours} h"),
        (hours, _) => format!("{} d {} h", hours / 24, hours % 24),
    }
}

fn shown(kept: &Kept) -> Value {
    let record = &kept.record;
    json!({
        "name": record.name,
        "order": record.order,
        "order_digest": record.order_digest,
        "baseline": record.baseline,
        "baseline_digest": record.baseline_digest,
        "verdict": record.verdict,
        "reason": record.reason,
        "created": record.created,
        "expires": record.expires,
        "clones": record.clones.iter().map(|clone| clone.role).collect::<Vec<_>>(),
        "bytes": kept.size,
        "folder": kept.folder,
    })
}

/// Kept clones by their name, where a run's would not do.
fn kept_alone(data: &Data, name: &str) -> Result<Kept, CliError> {
    KeptClones::open(&data.lab()).get(name).map_err(|error| {
        let run = Runs::open(&data.lab()).get(name).ok();
        not_kept(error, run.as_ref().map(|run| run.record.id.as_str()))
    })
}

/// Why there are none; what is asked for may be a run.
fn not_kept(error: KeptError, run: Option<&str>) -> CliError {
    match (error, run) {
        (KeptError::Unknown { .. }, Some(run)) => CliError::Input(format!(
            "{run} is a run, and not the name of kept clones: `patchlab lab log {run} --console` prints what its machines said; \
             `patchlab lab kept` lists what is kept"
        )),
        (other, _) => classify(other),
    }
}

fn classify(error: KeptError) -> CliError {
    match error {
        KeptError::Unknown { .. } | KeptError::Ambiguous { .. } => CliError::Input(error.to_string()),
        KeptError::InUse { .. } => CliError::Refused(error.to_string()),
        other => CliError::Failed(super::baseline::chain(&other)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_reach_the_guest_as_they_are() {
        let argv = ["sh", "-c", "echo 'it''s' $HOME", ""].map(str::to_owned);
        let output = std::process::Command::new("sh").args(["-c", &format!("printf '%s|' {}", quoted(&argv))]).output();
        assert_eq!(String::from_utf8_lossy(&output.unwrap().stdout), "sh|-c|echo 'it''s' $HOME||");
    }

    #[test]
    fn who_names_a_run_is_told_where_its_consoles_are() {
        let unknown = || KeptError::Unknown { wanted: "last".into(), known: Vec::new() };
        let said = |error: CliError| {
            assert!(matches!(error, CliError::Input(_)), "{error}");
            error.to_string()
        };
        let run = said(not_kept(unknown(), Some("261124-094102")));
        assert!(run.contains("`patchlab lab log 261124-094102 --console`"), "{run}");
        assert!(said(not_kept(unknown(), None)).contains("no kept clones \"last\""));
        let alike = vec!["A-1".to_owned(), "A-2".to_owned()];
        let several = said(not_kept(KeptError::Ambiguous { wanted: "A".into(), alike }, Some("A")));
        assert!(several.contains("A-1, A-2; say one of them whole"), "{several}");
    }

    #[test]
    fn a_commands_end_becomes_the_programs() {
        let ran =
            |exit, ended| Ran { command: String::new(), exit, stdout: String::new(), stderr: String::new(), ended };
        let codes =
            [(Some(0), Ended::ByItself), (Some(3), Ended::ByItself), (None, Ended::ByTimeout), (None, Ended::ByItself)]
                .map(|(code, ended)| exit(&ran(code, ended)));
        assert_eq!(codes, [0, 3, 124, 255].map(Exit::Command));
    }

    #[test]
    fn ages_are_short() {
        let age = |hours: i32| super::hours(jiff::SignedDuration::from_mins(i64::from(hours) * 60 + 5));
        assert_eq!([0, 1, 47, 71].map(age), ["5 min", "1 h", "47 h", "2 d 23 h"]);
    }
}
