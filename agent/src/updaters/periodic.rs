//! What apt's daily job is told to do: `APT::Periodic` in apt's configuration, apt.conf(5).

use std::{fs, io::Read as _, path::Path};

/// Most of one file that is read, bytes.
const FILE_BYTES: u64 = 64 * 1024;

/// A value below `APT::Periodic`, as apt finds it below `root`: `apt.conf.d` by names, then `apt.conf`; the last word counts.
pub fn value(root: &Path, name: &str) -> Option<String> {
    let folder = root.join("etc/apt/apt.conf.d");
    let entries = fs::read_dir(&folder).into_iter().flatten().filter_map(|entry| entry.ok().map(|entry| entry.path()));
    let mut files: Vec<_> =
        entries.filter(|path| path.file_name().and_then(|name| name.to_str()).is_some_and(counts)).collect();
    files.sort();
    files.push(root.join("etc/apt/apt.conf"));
    let wanted = format!("apt::periodic::{}", name.to_ascii_lowercase());
    let said = files.iter().filter_map(|path| {
        let mut text = String::new();
        fs::File::open(path).ok()?.take(FILE_BYTES).read_to_string(&mut text).ok()?;
        Some(settings(&text))
    });
    said.flatten().rfind(|(key, _)| *key == wanted).map(|(_, value)| value)
}

/// Whether apt reads a file of this name: letters, digits, `-` and `_`, with no ending or `.conf`.
fn counts(name: &str) -> bool {
    let stem = name.strip_suffix(".conf").unwrap_or(name);
    !stem.is_empty() && stem.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
}

/// `0` in any unit, or nothing, is never; so apt's daily job reads it.
pub fn is_on(value: &str) -> bool {
    let number = value.trim().trim_end_matches(|unit: char| unit.is_ascii_alphabetic());
    value.trim() == "always" || number.parse::<u64>().is_ok_and(|number| number > 0)
}

#[derive(Debug, PartialEq, Eq)]
enum Token {
    Word(String),
    Open,
    Close,
    End,
}

/// Settings in the order in which they are said, their names in small letters: `A::B "x";` and `A { B "x"; };` are the same.
fn settings(text: &str) -> Vec<(String, String)> {
    let (mut found, mut scopes, mut words) = (Vec::new(), Vec::new(), Vec::<String>::new());
    let within = |scopes: &[String], name: &str| {
        let parts = scopes.iter().map(String::as_str).chain([name]).filter(|part| !part.is_empty());
        parts.collect::<Vec<_>>().join("::").to_ascii_lowercase()
    };
    for token in tokens(text) {
        match token {
            Token::Word(word) => words.push(word),
            Token::Open => {
                scopes.push(words.first().cloned().unwrap_or_default());
                words.clear();
            }
            Token::Close => {
                scopes.pop();
                words.clear();
            }
            Token::End => {
                if let [name, value] = &words[..] {
                    found.push((within(&scopes, name), value.clone()));
                }
                words.clear();
            }
        }
    }
    found
}

fn tokens(text: &str) -> Vec<Token> {
    let mut tokens = Vec::new();
    let mut rest = text.trim_start();
    while let Some(first) = rest.chars().next() {
        let after = &rest[first.len_utf8()..];
        rest = if rest.starts_with("//") || first == '#' {
            rest.split_once('\n').map_or("", |(_, after)| after)
        } else if rest.starts_with("/*") {
            rest.split_once("*/").map_or("", |(_, after)| after)
        } else if first == '"' {
            let (word, after) = after.split_once('"').unwrap_or((after, ""));
            tokens.push(Token::Word(word.to_owned()));
            after
        } else if let Some(token) = [('{', Token::Open), ('}', Token::Close), (';', Token::End)]
            .into_iter()
            .find_map(|(sign, token)| (sign == first).then_some(token))
        {
            tokens.push(token);
            after
        } else {
            let end = rest.find(|sign: char| sign.is_whitespace() || "{};\"".contains(sign)).unwrap_or(rest.len());
            tokens.push(Token::Word(rest[..end].to_owned()));
            &rest[end..]
        }
        .trim_start();
    }
    tokens
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_read_in_every_form_in_which_they_are_written() {
        let text = "// a comment \"1\";\n# another\nAPT::Periodic::Enable \"1\";\n/* APT::Periodic::Enable \"0\"; */\n\
                    APT { Periodic { Unattended-Upgrade \"0\"; }; };\nAPT::Periodic {Verbose 2;};\nDPkg::Options { \"--x\"; };";
        let found = settings(text);
        let found: Vec<(&str, &str)> = found.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        assert_eq!(
            found,
            [
                ("apt::periodic::enable", "1"),
                ("apt::periodic::unattended-upgrade", "0"),
                ("apt::periodic::verbose", "2")
            ]
        );
        assert!(settings("APT::Periodic::Enable \"1").is_empty() && settings("}}};{").is_empty());
    }

    #[test]
    fn the_last_word_counts_and_names_that_apt_passes_over_say_nothing() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("etc/apt/apt.conf.d");
        fs::create_dir_all(&folder).unwrap();
        let say = |name: &str, value: &str| {
            fs::write(folder.join(name), format!("APT::Periodic::Unattended-Upgrade \"{value}\";\n")).unwrap();
        };
        let found = || value(root.path(), "Unattended-Upgrade");
        assert_eq!(found(), None);
        say("20auto-upgrades", "1");
        say("99site.dpkg-old", "7");
        assert_eq!(found().as_deref(), Some("1"));
        say("52site.conf", "0");
        assert_eq!(found().as_deref(), Some("0"));
        fs::write(root.path().join("etc/apt/apt.conf"), "apt::periodic::unattended-upgrade \"always\";").unwrap();
        assert_eq!(found().as_deref(), Some("always"));
        for (value, on) in [("0", false), ("", false), ("0d", false), ("1", true), ("always", true), ("12h", true)] {
            assert_eq!(is_on(value), on, "{value:?}");
        }
    }
}
