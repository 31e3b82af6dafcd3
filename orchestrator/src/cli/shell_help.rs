//! `patchlab completions` and `patchlab man`: what shells and man(1) know of the command line, made from the command
//! line itself.

use std::{fs, io::Write as _, path::PathBuf};

use clap::{Args, Command, CommandFactory as _};
use clap_complete::{Shell, generate};
use serde_json::json;

use super::{Cli, CliError, Exit, Global};

pub(super) const COMPLETIONS_EXAMPLES: &str = "Examples:
  patchlab completions bash > /etc/bash_completion.d/patchlab
  patchlab completions zsh > /usr/share/zsh/site-functions/_patchlab";

pub(super) const MAN_EXAMPLES: &str = "Examples:
  patchlab man /usr/share/man/man1";

/// Completions for a shell.
#[derive(Debug, Args)]
pub struct CompletionsCommand {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

/// Manual pages.
#[derive(Debug, Args)]
pub struct ManCommand {
    /// The folder in which they are written, one a command; made when it is not there
    #[arg(value_name = "DIR")]
    dir: PathBuf,
}

impl CompletionsCommand {
    pub(super) fn run(self) -> Result<Exit, CliError> {
        let mut text = Vec::new();
        generate(self.shell, &mut Cli::command(), "patchlab", &mut text);
        // A closed pipe is the reader's business.
        let _ = std::io::stdout().write_all(&text);
        Ok(Exit::Passed)
    }
}

impl ManCommand {
    pub(super) fn run(self, global: &Global) -> Result<Exit, CliError> {
        let output = global.output();
        let failed =
            |path: &PathBuf, error: std::io::Error| CliError::Failed(format!("write {}: {error}", path.display()));
        fs::create_dir_all(&self.dir).map_err(|error| failed(&self.dir, error))?;
        let mut written = Vec::new();
        for (name, page) in pages().map_err(|error| failed(&self.dir, error))? {
            let path = self.dir.join(format!("{name}.1"));
            fs::write(&path, page).map_err(|error| failed(&path, error))?;
            output.line(path.display().to_string());
            written.push(path);
        }
        output.json(&json!({ "written": written }))?;
        Ok(Exit::Passed)
    }
}

/// Every command's page, by its name (`patchlab-lab-validate`).
fn pages() -> std::io::Result<Vec<(String, Vec<u8>)>> {
    let mut cli = Cli::command();
    cli.build();
    let mut pages = Vec::new();
    add(&cli, &mut pages)?;
    Ok(pages)
}

fn add(command: &Command, pages: &mut Vec<(String, Vec<u8>)>) -> std::io::Result<()> {
    let name = command.get_display_name().unwrap_or_else(|| command.get_name()).to_owned();
    let mut page = Vec::new();
    clap_mangen::Man::new(command.clone()).render(&mut page)?;
    pages.push((name, page));
    let mut shown = command.get_subcommands().filter(|sub| !sub.is_hide_set() && sub.get_name() != "help");
    shown.try_for_each(|sub| add(sub, pages))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_that_is_shown_has_a_page_and_no_hidden_one() {
        let pages = pages().unwrap();
        let names: Vec<&str> = pages.iter().map(|(name, _)| name.as_str()).collect();
        assert!(names.contains(&"patchlab") && names.contains(&"patchlab-scenario-run"), "{names:?}");
        assert!(!names.iter().any(|name| name.contains("worker") || name.contains("help")), "{names:?}");
        let page = pages.iter().find(|(name, _)| name == "patchlab-scenario-run").map(|(_, page)| page.clone());
        assert!(String::from_utf8(page.unwrap()).unwrap().contains("watch"));
    }

    #[test]
    fn completions_know_the_commands() {
        let mut text = Vec::new();
        generate(Shell::Bash, &mut Cli::command(), "patchlab", &mut text);
        assert!(String::from_utf8(text).unwrap().contains("scenario"));
    }
}
