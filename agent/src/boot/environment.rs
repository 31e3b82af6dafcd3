//! GRUB's environment block: 1024 bytes in which the loader and the system leave each other words (GRUB manual, "The GRUB
//! environment block").
//!
//! It is written as GRUB writes it, in place and whole, and synced: killed at any moment, the agent leaves the block of before or
//! the new one, and its file stays where the loader finds it.

use std::{
    fs::{self, OpenOptions},
    io::{self, Read as _},
    os::unix::fs::FileExt as _,
    path::Path,
};

use super::BootError;

/// Size of a block, bytes.
const BYTES: usize = 1024;
/// What a block begins with.
const SIGNATURE: &str = "# GRUB Environment Block\n";
/// The entry that is booted once.
pub(super) const NEXT: &str = "next_entry";
/// The entry that is booted otherwise.
pub(super) const SAVED: &str = "saved_entry";
/// The entry to go back to that grub-reboot of before GRUB 2.02 left.
pub(super) const PREVIOUS: &str = "prev_saved_entry";

/// Its variables, in their order, after what its makers wrote for people.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Environment {
    comments: String,
    variables: Vec<(String, String)>,
}

impl Environment {
    /// Reads a block.
    pub(super) fn read(path: &Path) -> Result<Self, BootError> {
        let mut text = Vec::new();
        fs::File::open(path)
            .and_then(|file| file.take(BYTES as u64 + 1).read_to_end(&mut text))
            .map_err(|source| BootError::File { action: "read", path: path.to_owned(), source })?;
        let wrong = |reason: String| BootError::Environment { path: path.to_owned(), reason };
        let text = String::from_utf8(text).map_err(|error| wrong(error.to_string()))?;
        Self::parse(&text).map_err(wrong)
    }

    /// Writes it over the block that is there.
    pub(super) fn write(&self, path: &Path) -> Result<(), BootError> {
        let block = self.block().map_err(|reason| BootError::Environment { path: path.to_owned(), reason })?;
        let write = || -> io::Result<()> {
            let file = OpenOptions::new().write(true).open(path)?;
            file.write_all_at(block.as_bytes(), 0)?;
            file.sync_all()
        };
        write().map_err(|source| BootError::File { action: "write", path: path.to_owned(), source })
    }

    /// What a variable says; nothing where it is empty, as GRUB leaves one that it took.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        let found = self.variables.iter().find(|(found, _)| found == name);
        found.map(|(_, value)| value.as_str()).filter(|value| !value.is_empty())
    }

    /// Sets a variable, or takes it away.
    pub(super) fn set(&mut self, name: &str, value: Option<&str>) {
        let at = self.variables.iter().position(|(found, _)| found == name);
        match (at, value) {
            (Some(at), Some(value)) => value.clone_into(&mut self.variables[at].1),
            (Some(at), None) => drop(self.variables.remove(at)),
            (None, Some(value)) => self.variables.push((name.to_owned(), value.to_owned())),
            (None, None) => {}
        }
    }

    fn parse(text: &str) -> Result<Self, String> {
        if text.len() != BYTES {
            return Err(format!("it does not have {BYTES} bytes"));
        }
        let body = text.strip_prefix(SIGNATURE).ok_or("it does not begin as one")?;
        let comments = body.split_inclusive('\n').take_while(|line| line.starts_with('#') && line.ends_with('\n'));
        let comments: String = comments.collect();
        let mut variables = Vec::new();
        for line in logical_lines(body.trim_end_matches('#')) {
            if let Some((name, value)) = line.split_once('=').filter(|_| !line.starts_with('#')) {
                variables.push((name.to_owned(), value.to_owned()));
            }
        }
        Ok(Self { comments, variables })
    }

    fn block(&self) -> Result<String, String> {
        let mut block = format!("{SIGNATURE}{}", self.comments);
        for (name, value) in &self.variables {
            let value = value.replace('\\', r"\\").replace('\n', "\\\n");
            block.push_str(&format!("{name}={value}\n"));
        }
        if block.len() > BYTES {
            return Err(format!("{} bytes do not fit into it", block.len()));
        }
        block.extend(std::iter::repeat_n('#', BYTES - block.len()));
        Ok(block)
    }
}

/// Lines, in which a backslash keeps what follows it as it is, also the end of a line.
fn logical_lines(text: &str) -> Vec<String> {
    let (mut lines, mut line) = (Vec::new(), String::new());
    let mut characters = text.chars();
    while let Some(c) = characters.next() {
        match c {
            '\\' => line.extend(characters.next()),
            '\n' => lines.push(std::mem::take(&mut line)),
            c => line.push(c),
        }
    }
    lines.push(line);
    lines
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn grubs_own_editor_reads_what_is_written_and_the_other_way_round() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("grubenv");
        let edit = |arguments: &[&str]| {
            let output = Command::new("grub-editenv").arg(&path).args(arguments).output().ok()?;
            assert!(output.status.success(), "{output:?}");
            Some(String::from_utf8(output.stdout).unwrap())
        };
        if edit(&["create"]).is_none() {
            eprintln!("SKIP grubs_own_editor_reads_what_is_written_and_the_other_way_round: no grub-editenv");
            return;
        }
        let made = fs::read(&path).unwrap();
        let mut environment = Environment::read(&path).unwrap();
        assert_eq!(environment.variables, []);
        let entry = r"gnulinux-advanced-/dev/vda1>gnulinux-6.1 a\b";
        environment.set(NEXT, Some(entry));
        environment.set(SAVED, Some("old"));
        environment.write(&path).unwrap();
        assert_eq!(edit(&["list"]).unwrap(), format!("{NEXT}={entry}\n{SAVED}=old\n"));
        edit(&["set", "next_entry=", "kernelopts=root=/dev/x ro"]).unwrap();
        let mut environment = Environment::read(&path).unwrap();
        assert_eq!((environment.get(NEXT), environment.get("kernelopts")), (None, Some("root=/dev/x ro")));
        for name in [NEXT, SAVED, "kernelopts"] {
            environment.set(name, None);
        }
        environment.write(&path).unwrap();
        assert_eq!(fs::read(&path).unwrap(), made, "what was told and taken back leaves no trace");
    }

    #[test]
    fn what_is_no_block_is_neither_read_nor_overrun() {
        assert!(Environment::parse("").is_err() && Environment::parse(&"#".repeat(BYTES)).is_err());
        let mut environment = Environment::default();
        environment.set(SAVED, Some(&"x".repeat(BYTES)));
        assert!(environment.block().is_err());
    }
}
