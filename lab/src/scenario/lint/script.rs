//! Scripts: what the shells that they are for and shellcheck(1) say of them.

use std::{
    io,
    path::{Path, PathBuf},
    process::Command,
};

use super::{Finding, Weight};

/// What shells and shellcheck(1) find in those of these scripts that shells run. What a shell cannot read, and what shellcheck calls an error,
/// is one; everything else is advice.
pub fn lint_scripts(scripts: &[PathBuf]) -> Vec<Finding> {
    let scripts: Vec<PathBuf> = scripts.iter().filter(|path| is_script(path)).cloned().collect();
    let mut findings: Vec<Finding> = scripts.iter().filter_map(|path| unreadable(path)).collect();
    match shellcheck(&scripts) {
        Checked::By(found) => findings.extend(found.into_iter().map(weighed)),
        Checked::Not(why) => {
            let named = scripts.first().and_then(|path| path.parent()).map(|dir| format!("{}: ", dir.display()));
            let text = format!("{}{} scripts were not checked: {why}", named.unwrap_or_default(), scripts.len());
            findings.push(Finding { weight: Weight::Advice, text });
        }
    }
    findings
}

/// A line of shellcheck's, `FILE:LINE:COL: error: …`; a warning and a note are advice.
fn weighed(text: String) -> Finding {
    let said = text.splitn(4, ':').nth(3).unwrap_or_default().trim_start();
    let weight = if said.starts_with("error:") { Weight::Error } else { Weight::Advice };
    Finding { weight, text }
}

/// What the shell that a script is for says against it. Only shells that are known are asked, by their names here: a file that somebody
/// else wrote does not choose what is run.
fn unreadable(path: &Path) -> Option<Finding> {
    let line = first_line(path);
    let shell = SHELLS.into_iter().find(|shell| is_for(&line, shell))?;
    let said = Command::new(shell).args(["-n", "--"]).arg(path).output().ok()?;
    let why = String::from_utf8_lossy(&said.stderr).lines().next().unwrap_or_default().to_owned();
    (!said.status.success()).then_some(Finding { weight: Weight::Error, text: why })
}

/// Shells that read a script without running it.
pub(super) const SHELLS: [&str; 3] = ["bash", "dash", "sh"];

/// Whether it is a shell script by its name or its first line.
fn is_script(path: &Path) -> bool {
    let line = first_line(path);
    path.extension().is_some_and(|extension| extension == "sh") || SHELLS.iter().any(|shell| is_for(&line, shell))
}

/// Whether a first line names this interpreter: by its path, or by env(1).
fn is_for(line: &str, shell: &str) -> bool {
    let words = line.strip_prefix("#!").unwrap_or_default().split_whitespace();
    let mut names = words.map(|word| word.rsplit('/').next().unwrap_or(word));
    match names.next() {
        Some("env") => names.next() == Some(shell),
        name => name == Some(shell),
    }
}

/// The begin of a file, up to the first line's end.
fn first_line(path: &Path) -> String {
    use std::io::Read as _;
    let mut first = [0; 64];
    let read = std::fs::File::open(path).and_then(|mut file| file.read(&mut first)).unwrap_or(0);
    String::from_utf8_lossy(&first[..read]).lines().next().unwrap_or_default().to_owned()
}

/// Whether scripts were checked.
enum Checked {
    /// With these findings, one a line.
    By(Vec<String>),
    /// They were not; why.
    Not(String),
}

fn shellcheck(scripts: &[PathBuf]) -> Checked {
    if scripts.is_empty() {
        return Checked::By(Vec::new());
    }
    match Command::new("shellcheck").args(["--format=gcc", "--"]).args(scripts).output() {
        Ok(output) => Checked::By(String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Checked::Not("shellcheck is not installed".into()),
        Err(error) => Checked::Not(format!("shellcheck could not be run: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_is_read_by_the_shell_that_it_is_for_and_by_no_program_that_it_names() {
        let dir = tempfile::tempdir().unwrap();
        let found = |text: &str| {
            let path = dir.path().join("apply");
            std::fs::write(&path, text).unwrap();
            unreadable(&path).map(|finding| finding.weight)
        };
        for good in ["#!/bin/sh\ntrue\n", "#!/usr/bin/env bash\nlist=(a b)\n", "#! /bin/bash -eu\nlist=(a)\n"] {
            assert_eq!(found(good), None, "{good}");
        }
        for bad in ["#!/bin/sh\nif true\n", "#!/usr/bin/env bash\ndone\n"] {
            assert_eq!(found(bad), Some(Weight::Error), "{bad}");
        }
        let ran = dir.path().join("ran");
        let evil = dir.path().join("evil");
        std::fs::write(&evil, format!("#!/bin/sh\ntouch {}\n", ran.display())).unwrap();
        std::fs::set_permissions(&evil, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        assert_eq!(found(&format!("#!{}\n", evil.display())), None);
        assert!(!ran.exists());
    }

    #[test]
    fn what_shellcheck_calls_an_error_is_one() {
        let weight = |text: &str| weighed(text.to_owned()).weight;
        assert_eq!(weight("/x/a.sh:2:4: error: Double quote array expansions. [SC2068]"), Weight::Error);
        assert_eq!(weight("/x/a.sh:2:4: warning: x appears unused. [SC2034]"), Weight::Advice);
        assert_eq!(weight("/x/a.sh:2:4: note: Double quote: error: to prevent globbing. [SC2086]"), Weight::Advice);
    }
}
