//! The repositories that a system names in its own files (dnf.conf(5)). Pure.
//!
//! The files come from inside a system that somebody else made, and the host's dnf is to fetch what they name: only repositories over
//! http and https whose packages are signed are taken, all else is passed over and named. What is taken is written anew, with no other
//! option than where it is.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Repositories that are taken from one system.
const REPOSITORIES: usize = 200;

/// A repository of rpm packages.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Repository {
    /// Its id.
    pub id: String,
    /// How it is found: `baseurl`, `metalink` or `mirrorlist`.
    pub by: String,
    /// Where, over http or https, without credentials; variables such as `$releasever` stand in it as written.
    pub url: String,
    /// The file that names it.
    pub file: String,
}

impl Repository {
    /// As one line for people.
    pub fn line(&self) -> String {
        format!("{} {}", self.id, self.url)
    }

    /// As dnf reads it.
    fn section(&self) -> String {
        format!("[{id}]\nname={id}\n{}={}\nenabled=1\n", self.by, self.url, id = self.id)
    }
}

/// What a system's files name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sources {
    /// Repositories that may be fetched from.
    pub repositories: Vec<Repository>,
    /// The others, each with the reason.
    pub passed_over: Vec<String>,
}

impl Sources {
    /// The one file that dnf is given.
    pub fn text(&self) -> String {
        self.repositories.iter().map(Repository::section).collect::<Vec<_>>().join("\n")
    }
}

/// Reads a system's files: paths with their texts.
pub fn read(files: &BTreeMap<String, String>) -> Sources {
    let mut sources = Sources::default();
    for (path, text) in files {
        for (id, options) in sections(text) {
            match repository(path, &id, &options) {
                Some(Ok(_)) if sources.repositories.len() >= REPOSITORIES => {
                    sources.passed_over.push(format!("{id}: more than {REPOSITORIES}"));
                    return sources;
                }
                Some(Ok(repository)) => sources.repositories.push(repository),
                Some(Err(reason)) => sources.passed_over.push(reason),
                None => {}
            }
        }
    }
    sources
}

/// `[id]` and the `key = value` lines below it; a value goes on in lines that are indented.
fn sections(text: &str) -> Vec<(String, BTreeMap<String, String>)> {
    let mut found: Vec<(String, BTreeMap<String, String>)> = Vec::new();
    let mut last = String::new();
    for line in text.lines().filter(|line| !line.trim_start().starts_with(['#', ';'])) {
        if let Some(id) = line.trim().strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            found.push((id.to_owned(), BTreeMap::new()));
        } else if let Some((_, options)) = found.last_mut() {
            match line.split_once('=').filter(|_| !line.starts_with(char::is_whitespace)) {
                Some((key, value)) => {
                    last = key.trim().to_ascii_lowercase();
                    options.insert(last.clone(), value.trim().to_owned());
                }
                None => {
                    if let Some(value) = options.get_mut(&last) {
                        value.push(' ');
                        value.push_str(line.trim());
                    }
                }
            }
        }
    }
    found
}

/// A repository, or why it is passed over; nothing of one that is switched off.
fn repository(path: &str, id: &str, options: &BTreeMap<String, String>) -> Option<Result<Repository, String>> {
    let option = |key: &str| options.get(key).map(|value| value.trim()).filter(|value| !value.is_empty());
    let says_no =
        |key: &str| option(key).is_some_and(|value| matches!(&*value.to_ascii_lowercase(), "0" | "no" | "false"));
    if says_no("enabled") || id == "main" {
        return None;
    }
    let named: String = id.chars().filter(|c| !c.is_control()).take(100).collect();
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | ':');
    if id.is_empty() || id.len() > 100 || !id.chars().all(plain) {
        return Some(Err(format!("{named:?}: no id of a repository")));
    }
    if says_no("gpgcheck") {
        return Some(Err(format!("{named}: gpgcheck turns the check of its packages' signatures off")));
    }
    let (by, value) = ["baseurl", "metalink", "mirrorlist"].into_iter().find_map(|by| Some((by, option(by)?)))?;
    // Several addresses of one repository: the first that can be taken.
    let urls: Vec<&str> = value.split([' ', ',']).filter(|url| !url.is_empty()).collect();
    let mut reasons = urls.iter().map(|url| address(url));
    let good = urls.iter().find(|url| address(url).is_ok());
    Some(match good {
        Some(url) => {
            Ok(Repository { id: id.to_owned(), by: by.to_owned(), url: (*url).to_owned(), file: path.to_owned() })
        }
        None => {
            let reason = reasons.find_map(Result::err).unwrap_or("it names no address");
            Err(format!("{named}: {reason}"))
        }
    })
}

fn address(url: &str) -> Result<(), &'static str> {
    let rest = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://"));
    let Some(rest) = rest else { return Err("only http and https are fetched from") };
    let plain = |c: char| c.is_ascii_graphic() && !matches!(c, '"' | '\'' | '\\' | '`');
    match rest.split('/').next().unwrap_or_default() {
        "" => Err("it names no host"),
        host if host.contains('@') => Err("its address has credentials"),
        _ if !rest.chars().all(plain) || url.len() > 2000 => Err("its address is none"),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_signed_repositories_over_the_network_are_taken_and_the_others_named() {
        let text = "# comment\n[main]\nkeepcache=1\n[base]\nname = Base $releasever\nmetalink = https://mirrors.example.org/metalink?repo=b-$releasever&arch=$basearch\n\
            gpgcheck=1\ngpgkey=file:///etc/pki/rpm-gpg/K\n  file:///etc/pki/rpm-gpg/L\n\n[off]\nenabled=0\nbaseurl=http://h/\n\
            [unsigned]\nbaseurl=http://h/x\ngpgcheck = 0\n[local]\nbaseurl=file:///srv/repo\n[two]\nbaseurl=ftp://h/a\n  http://h/b\n\
            [secret]\nbaseurl=https://me:pass@h/\n[none]\nname=x\n[bad id]\nbaseurl=http://h/\n";
        let sources = read(&[("/etc/yum.repos.d/x.repo".to_owned(), text.to_owned())].into());
        let taken: Vec<_> = sources.repositories.iter().map(|one| (one.id.as_str(), one.by.as_str())).collect();
        assert_eq!(taken, [("base", "metalink"), ("two", "baseurl")]);
        assert_eq!(sources.repositories[1].url, "http://h/b");
        assert_eq!(
            sources.passed_over,
            [
                "unsigned: gpgcheck turns the check of its packages' signatures off",
                "local: only http and https are fetched from",
                "secret: its address has credentials",
                "\"bad id\": no id of a repository",
            ]
        );
        assert!(sources.text().starts_with("[base]\nname=base\nmetalink=https://mirrors.example.org/metalink?"));
    }
}
