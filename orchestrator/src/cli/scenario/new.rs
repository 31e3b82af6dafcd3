//! `patchlab scenario new`: a folder to begin with, that lints clean and runs, and whose comments teach the form.

use std::{
    fs, io,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use clap::Args;
use patchlab_check::step::{KINDS, PackageName};
use patchlab_lab::scenario::{FILE, Scenario};
use serde_json::json;

use super::super::{CliError, Exit, Global};
use crate::schema::Form;

pub(super) const EXAMPLES: &str = "Examples:
  patchlab scenario new db-smoke --package postgresql-15
  patchlab scenario new db-smoke --package postgresql-15 --owner qa-db --dir tests/scenarios

Then: patchlab scenario run scenarios/db-smoke --watch";

/// The script that a new scenario runs.
const SCRIPT: &str = "check.sh";

/// A scenario to begin with.
#[derive(Debug, Args)]
pub struct NewCommand {
    /// Its name, and its folder's: lower-case letters, digits and -
    #[arg(value_name = "NAME")]
    name: String,
    /// The package it is about: it then counts as evidence for patches of that package
    #[arg(long, value_name = "PACKAGE", default_value = "openssl")]
    package: String,
    /// Who answers for it
    #[arg(long, value_name = "OWNER", default_value = "qa")]
    owner: String,
    /// The folder in which its folder is made
    #[arg(long, value_name = "DIR", default_value = "scenarios")]
    dir: PathBuf,
}

impl NewCommand {
    pub(super) fn run(self, global: &Global) -> Result<Exit, CliError> {
        let output = global.output();
        let package: PackageName =
            self.package.parse().map_err(|error| CliError::Input(format!("--package: {error}")))?;
        let folder = self.dir.join(&self.name);
        write(&folder, &self.name, package.as_str(), &self.owner)?;
        output.line(folder.display().to_string());
        output.note(format!("next: patchlab scenario run {} --watch", folder.display()));
        output.json(&json!({ "scenario": self.name, "folder": folder }))?;
        Ok(Exit::Passed)
    }
}

/// Writes the folder, or nothing: what cannot be read again as a scenario is not left behind.
fn write(folder: &Path, name: &str, package: &str, owner: &str) -> Result<(), CliError> {
    let valid = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if name.is_empty() || !name.chars().all(valid) {
        return Err(CliError::Input(format!("{name:?} is no scenario's name: use lower-case letters, digits and -")));
    }
    let failed = |error: io::Error| CliError::Failed(format!("{}: {error}", folder.display()));
    if let Some(parent) = folder.parent() {
        fs::create_dir_all(parent).map_err(failed)?;
    }
    fs::create_dir(folder).map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => {
            CliError::Input(format!("{} is there already: nothing is overwritten", folder.display()))
        }
        _ => failed(error),
    })?;
    let text = format!("{}{}", schema_line(folder), scenario(name, package, owner));
    let written = fs::write(folder.join(FILE), text)
        .and_then(|()| executable(&folder.join(SCRIPT), &script(package)))
        .map_err(failed)
        .and_then(|()| Scenario::read(folder).map(drop).map_err(CliError::input));
    if written.is_err() {
        // The error says more than what is left would.
        let _ = fs::remove_dir_all(folder);
    }
    written
}

/// The first line for editors, where a folder above, at most so many, has the project's schemas.
fn schema_line(folder: &Path) -> String {
    const ABOVE: usize = 5;
    let schema = Form::Scenario.path();
    let at = |up: usize| format!("{}{schema}", "../".repeat(up));
    let found = (1..=ABOVE).map(at).find(|relative| folder.join(relative).is_file());
    found.map_or_else(String::new, |relative| format!("#:schema {relative}\n"))
}

fn executable(path: &Path, text: &str) -> io::Result<()> {
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o755).open(path)?;
    io::Write::write_all(&mut file, text.as_bytes())
}

fn scenario(name: &str, package: &str, owner: &str) -> String {
    let (owner, kinds) = (toml::Value::String(owner.to_owned()), KINDS.join(", "));
    format!(
        r#"# What must hold on a machine with {package}, before and after a patch. Every step runs on two clones of a
# baseline, one with the patch and one without: what fails with the patch alone is a regression.
#
#   patchlab scenario lint scenarios/{name}           says what is wrong with this file
#   patchlab scenario run scenarios/{name} --watch    runs it on a fresh clone, again at each save

name = "{name}"                        # the folder's name
owner = {owner}                             # who is asked when a step fails on both clones
summary = "{package} is installed and does its work"
applies = {{ packages = ["{package}"] }}   # machines that have it; its patches need a scenario that says so
timeout = "3min"                         # one budget for all steps
production = ["installed"]               # steps that are repeated on real hosts after the patch

# A step does one thing, named by its key:
# {kinds}.
# This one only looks whether something is there, so it is no evidence that a patch works.
[[step]]
name = "installed"
package = {{ name = "{package}" }}
superficial = true

# A command, in a shell, in this folder's copy in the guest. Exit status 0 is a pass, 77 a skip, any other a failure.
[[step]]
name = "works"
run = "./{SCRIPT}"
expect = {{ exit = 0, stdout_contains = "ok" }}

# More, to be taken over:
#
# [[step]]
# name = "front page"
# http = {{ url = "http://127.0.0.1/", status = 200, body_contains = "Welcome" }}
#
# [[step]]
# name = "service"
# unit = {{ name = "{package}.service", state = "active" }}

# Watched all the time, on both clones.
[[check]]
kind = "failed-units"
level = "fail"
"#
    )
}

fn script(package: &str) -> String {
    format!(
        r#"#!/bin/sh
# Says whether {package} does its work: replace this by what its users do with it. What is printed here is shown when
# the step fails.
set -eu

# Every file that the package brought is as it was packed.
if dpkg-query --show '{package}' >/dev/null 2>&1; then system=dpkg; else system=rpm; fi
if ! changed=$("$system" --verify '{package}'); then
    echo "files of {package} were altered: $changed" >&2
    exit 1
fi
echo ok
"#
    )
}

#[cfg(test)]
mod tests {
    use patchlab_lab::scenario::lint;

    use super::*;

    #[test]
    fn what_is_new_lints_clean_and_is_not_overwritten() {
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join("scenarios/db-smoke");
        write(&folder, "db-smoke", "postgresql-15", "Ann \"QA\"").unwrap();
        assert_eq!(lint(&folder).unwrap(), []);
        let scenario = Scenario::read(&folder).unwrap();
        assert_eq!((scenario.owner.as_str(), scenario.steps.len()), ("Ann \"QA\"", 2));
        assert!(scenario.files().unwrap().iter().any(|file| file.relative == SCRIPT && file.mode & 0o111 != 0));
        fs::write(folder.join(SCRIPT), "mine").unwrap();
        let error = write(&folder, "db-smoke", "nginx", "qa").unwrap_err();
        assert!(matches!(error, CliError::Input(_)) && error.to_string().contains("overwritten"), "{error}");
        assert_eq!(fs::read_to_string(folder.join(SCRIPT)).unwrap(), "mine");
    }

    #[test]
    fn editors_are_told_the_schema_that_lies_above() {
        let parent = tempfile::tempdir().unwrap();
        let schema = parent.path().join(Form::Scenario.path());
        fs::create_dir_all(schema.parent().unwrap()).unwrap();
        fs::write(&schema, "{}").unwrap();
        for (place, line) in [("scenarios", "#:schema ../../docs/"), ("tests/scenarios", "#:schema ../../../docs/")] {
            let folder = parent.path().join(place).join("db");
            write(&folder, "db", "postgresql-15", "qa").unwrap();
            assert!(fs::read_to_string(folder.join(FILE)).unwrap().starts_with(line), "{place}");
        }
    }

    #[test]
    fn a_name_that_is_none_leaves_nothing_behind() {
        let parent = tempfile::tempdir().unwrap();
        for name in ["", "../up", "Db", "a b"] {
            assert!(write(&parent.path().join("x").join(name), name, "nginx", "qa").is_err(), "{name:?}");
        }
        assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 0);
    }
}
