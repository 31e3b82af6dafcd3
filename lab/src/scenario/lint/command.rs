//! Commands of steps: whether the shell can read them, what shellcheck(1) says of them, and whether the files of their folder that they run
//! are there.

use std::{
    collections::BTreeMap,
    io::Write as _,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Command, Stdio},
};

use patchlab_check::{Step, step::Kind};

use super::{Weight, script::SHELLS};

/// Most commands that are shown to shellcheck in one go: each is a process, and takes some hundredths of a second.
const COMMANDS: usize = 256;
/// Most remarks that are told of one command.
const REMARKS: usize = 10;
/// What shellcheck says of a whole script, and is nothing against a command: that it cannot find what is read by `.`, or what sets a variable
/// (both are in the guest), and that `local` and `echo -n` are more than POSIX (every /bin/sh of the systems here has them).
const BESIDE_THE_POINT: &str = "--exclude=SC1090,SC1091,SC2154,SC3037,SC3043";

/// What shellcheck(1) says of commands, each asked once: a matrix has most of them many times.
#[derive(Default)]
pub(super) struct Shellcheck {
    known: BTreeMap<String, Vec<String>>,
}

impl Shellcheck {
    /// Warnings and worse; nothing where shellcheck is not there, or was asked often enough.
    fn remarks(&mut self, command: &str) -> &[String] {
        if self.known.len() < COMMANDS && !self.known.contains_key(command) {
            self.known.insert(command.to_owned(), remarks(command));
        }
        self.known.get(command).map_or(&[], Vec::as_slice)
    }
}

/// Asks shellcheck. It reads what `sh -c` is given: there is no first line that names a shell.
fn remarks(command: &str) -> Vec<String> {
    let ask = || -> std::io::Result<String> {
        let mut child = Command::new("shellcheck")
            .args(["--shell=sh", "--format=gcc", "--severity=warning", BESIDE_THE_POINT, "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        // It reads all of it before it says anything.
        let given = child.stdin.take().map(|mut stdin| stdin.write_all(command.as_bytes()));
        let said = child.wait_with_output()?;
        given.transpose()?;
        Ok(String::from_utf8_lossy(&said.stdout).into_owned())
    };
    let said = ask().unwrap_or_default();
    said.lines().filter_map(|line| remark(line, command)).take(REMARKS).collect()
}

/// A line of shellcheck's, `-:LINE:COL: warning: …`, as what is said of the command; with the line where there are several.
fn remark(line: &str, command: &str) -> Option<String> {
    let mut parts = line.strip_prefix("-:")?.splitn(3, ':');
    let (line, _, said) = (parts.next()?, parts.next()?, parts.next()?.trim());
    let has_lines = command.trim().contains('\n');
    Some(if has_lines { format!("line {line} of the command: {said}") } else { said.to_owned() })
}

/// What is wrong or unwise in the commands of these steps, with the key it is about below `list`; `dir` is the folder that they are run in.
pub(super) fn lint_commands(
    list: &str,
    steps: &[Step],
    dir: &Path,
    shellcheck: &mut Shellcheck,
) -> Vec<(Weight, String, String)> {
    let mut found = Vec::new();
    for (index, step) in steps.iter().enumerate() {
        let Some((key, command)) = command(step) else { continue };
        let key = format!("{list}.{index}.{key}");
        if let Some(why) = unreadable(command) {
            let problem = format!("step {:?}: the shell cannot read this command: {why}", step.name);
            found.push((Weight::Error, key, problem));
            continue;
        }
        let told = shellcheck.remarks(command).iter();
        found.extend(told.map(|said| (Weight::Advice, key.clone(), format!("step {:?}: {said}", step.name))));
        let amiss = runs(command).into_iter().filter_map(|(file, how)| Some((file, amiss(&dir.join(file), how)?)));
        found.extend(
            amiss.map(|(file, what)| (Weight::Advice, key.clone(), format!("step {:?}: {file} {what}", step.name))),
        );
    }
    found
}

/// The command of a step, with its key.
fn command(step: &Step) -> Option<(&'static str, &str)> {
    let (key, kind) = match &step.kind {
        Kind::Wait(wait) => ("wait.until.run", wait.until.kind()),
        kind => ("run", kind),
    };
    let Kind::Run { command, .. } = kind else { return None };
    Some((key, command))
}

/// Why the shell cannot read a command.
fn unreadable(command: &str) -> Option<String> {
    let said = Command::new("/bin/sh").args(["-n", "-c", command]).output().ok()?;
    let why = String::from_utf8_lossy(&said.stderr);
    let why = why.lines().next().unwrap_or_default().trim_start_matches("/bin/sh: ").to_owned();
    (!said.status.success()).then_some(why)
}

/// How a command runs a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum How {
    /// By its name: it must be executable.
    ByName,
    /// A shell reads it.
    ByShell,
}

/// What is amiss with a file that is run; `None` when nothing is.
fn amiss(path: &Path, how: How) -> Option<&'static str> {
    match path.metadata() {
        Err(_) => Some("is run, and is no file of the folder"),
        Ok(file) if how == How::ByName && file.is_file() && file.permissions().mode() & 0o111 == 0 => {
            Some("is run, and is not executable: chmod +x it, or have sh run it")
        }
        Ok(_) => None,
    }
}

/// The files of the folder that a command certainly runs: words `./NAME`, nothing in which is the shell's own, where a command's name
/// stands, or after a shell's. After a `cd` nobody knows which folder it is.
fn runs(command: &str) -> Vec<(&str, How)> {
    /// Words after which another command begins.
    const BEFORE: [&str; 9] = ["if", "then", "elif", "else", "while", "until", "do", "exec", "time"];
    let mut found: Vec<(&str, How)> = Vec::new();
    let mut next = Some(How::ByName);
    for line in command.lines() {
        if line.trim_start().starts_with('#') {
            continue;
        }
        for word in line.split_whitespace() {
            let bare = word.trim_start_matches(['(', '{', '!']).trim_end_matches([';', ')', '&', '|']);
            let is_plain = |c: char| c.is_ascii_alphanumeric() || "./_-".contains(c);
            if matches!(bare, "cd" | "pushd" | "<<") || bare.starts_with("<<") {
                return found;
            }
            if let Some(how) = next.filter(|_| bare.starts_with("./") && bare.chars().all(is_plain)) {
                found.push((bare, how));
            }
            let ends = word.ends_with([';', '&', '|', '(']);
            let is_option = next == Some(How::ByShell) && bare.starts_with('-') && !bare.contains('c');
            let is_shell = next == Some(How::ByName) && (SHELLS.contains(&bare) || bare == ".");
            next = match () {
                () if ends || bare.is_empty() || BEFORE.contains(&bare) => Some(How::ByName),
                () if is_shell || is_option => Some(How::ByShell),
                () => None,
            };
        }
        next = Some(How::ByName);
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_remark_is_placed_in_the_command_and_no_more_is_made_of_other_lines() {
        let line = "-:2:4: warning: foo appears unused. Verify: use. [SC2034]";
        let said = "warning: foo appears unused. Verify: use. [SC2034]";
        assert_eq!(remark(line, "foo=1").as_deref(), Some(said));
        assert_eq!(remark(line, "true\nfoo=1"), Some(format!("line 2 of the command: {said}")));
        assert_eq!((remark("", "a"), remark("shellcheck: no such option", "a")), (None, None));
    }

    #[test]
    fn files_that_a_command_runs_are_those_where_its_name_stands() {
        use How::{ByName, ByShell};
        let table: &[(&str, &[(&str, How)])] = &[
            ("./a.sh --json", &[("./a.sh", ByName)]),
            ("sh ./a.sh && bash -eu ./b.sh", &[("./a.sh", ByShell), ("./b.sh", ByShell)]),
            ("true; ./a.sh || exec ./b", &[("./a.sh", ByName), ("./b", ByName)]),
            ("if ! ./a; then (./b); fi", &[("./a", ByName), ("./b", ByName)]),
            ("true\n./a", &[("./a", ByName)]),
            // Not run, or not by a name that is known here.
            ("curl -o ./page http://x/ && cat ./page", &[]),
            ("cd /tmp && ./a", &[]),
            ("./$name", &[]),
            ("bash -c ./a", &[]),
            ("cat <<END\n./a\nEND", &[]),
            ("# ./a\ntrue", &[]),
        ];
        for (command, expected) in table {
            assert_eq!(runs(command), *expected, "{command}");
        }
    }
}
