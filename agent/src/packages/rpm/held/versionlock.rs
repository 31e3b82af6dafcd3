//! Version locks of dnf 5, dnf5-versionlock(8): of a package that an entry names, only versions that meet all conditions of one entry are
//! installed.

use std::{cmp::Ordering, path::Path};

use patchlab_check::written;
use patchlab_protocol::{PackageSystem, inventory::Change};
use serde::Deserialize;

use super::{super::super::pattern::glob, without_release};

/// Where they stand.
pub(super) const LOCKS: &str = "etc/dnf/versionlock.toml";
/// The only version of the file that there is; dnf 5 heeds no other.
const VERSION: &str = "1.0";

#[derive(Debug, Deserialize)]
struct File {
    version: Option<String>,
    #[serde(default)]
    packages: Vec<Entry>,
}

/// An entry.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(super) struct Entry {
    /// A pattern of a shell.
    name: String,
    #[serde(default)]
    conditions: Vec<Condition>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct Condition {
    key: String,
    comparator: String,
    value: String,
}

/// The entries of the file.
pub(super) fn entries(text: &str) -> Result<Vec<Entry>, written::WrittenError> {
    if text.trim().is_empty() {
        return Ok(Vec::new());
    }
    let file: File = written::parse(text, Path::new(LOCKS))?;
    if file.version.as_deref() != Some(VERSION) {
        tracing::warn!(version = file.version, "versionlock.toml has a version that dnf 5 does not know, nor heed");
        return Ok(Vec::new());
    }
    Ok(file.packages)
}

/// What they say, when they are about a change and do not allow it. Who locks a version wants the package, so that it does not go either.
pub(super) fn holds(entries: &[Entry], change: &Change) -> Option<String> {
    let name = change.id.base_name();
    let about: Vec<&Entry> = entries.iter().filter(|entry| glob(&entry.name, name)).collect();
    let first = about.first()?;
    let allows = |to: &str| about.iter().any(|entry| entry.conditions.iter().all(|wanted| wanted.is_met(change, to)));
    if change.to.as_deref().is_some_and(allows) {
        return None;
    }
    let conditions: Vec<String> = first
        .conditions
        .iter()
        .map(|wanted| format!("{} {} {}", wanted.key, wanted.comparator, wanted.value))
        .collect();
    Some(format!("{name} (locked by dnf 5: {})", conditions.join(", ")))
}

impl Condition {
    /// Whether a version meets it; one that is not understood is met by none.
    fn is_met(&self, change: &Change, version: &str) -> bool {
        let order = match self.key.as_str() {
            "arch" => change.id.arch.as_str().partial_cmp(self.value.as_str()),
            "evr" => PackageSystem::Rpm.compare(without_release(version, &self.value), &self.value),
            "epoch" => {
                let epoch = version.split_once(':').map_or("0", |(epoch, _)| epoch);
                epoch.parse::<u64>().ok().zip(self.value.parse().ok()).map(|(one, other)| one.cmp(&other))
            }
            _ => None,
        };
        order.is_some_and(|order| match self.comparator.as_str() {
            "=" | "==" => order == Ordering::Equal,
            "!=" => order != Ordering::Equal,
            "<" => order == Ordering::Less,
            "<=" => order != Ordering::Greater,
            ">" => order == Ordering::Greater,
            ">=" => order != Ordering::Less,
            _ => false,
        })
    }
}

#[cfg(test)]
mod tests {
    use patchlab_protocol::inventory::PackageId;

    use super::*;

    /// As dnf 5 writes them.
    fn file(entries: &[(&str, &[[&str; 3]])]) -> String {
        let mut text = "version = \"1.0\"\n".to_owned();
        for (name, conditions) in entries {
            text.push_str(&format!("\n[[packages]]\nname = \"{name}\"\ncomment = \"Added\"\n"));
            for [key, comparator, value] in *conditions {
                let condition = format!("key = \"{key}\"\ncomparator = \"{comparator}\"\nvalue = \"{value}\"\n");
                text.push_str(&format!("[[packages.conditions]]\n{condition}"));
            }
        }
        text
    }

    fn held(text: &str, from: Option<&str>, to: Option<&str>) -> bool {
        let [from, to] = [from, to].map(|version| version.map(str::to_owned));
        let change = Change { id: PackageId::new("web-server", "x86_64"), from, to };
        holds(&entries(text).unwrap(), &change).is_some()
    }

    #[test]
    fn only_a_version_that_meets_all_conditions_of_an_entry_is_installed() {
        let exact = file(&[("bash", &[["evr", "=", "9-9"]]), ("web-server", &[["evr", "=", "0:1.0-2"]])]);
        assert!(!held(&exact, Some("1.0-1"), Some("1.0-2")) && held(&exact, Some("1.0-2"), Some("1.0-3")));
        assert!(held(&exact, Some("1.0-2"), None), "it does not go");
        let excluded = file(&[("web-*", &[["evr", "!=", "1.0-3"]])]);
        assert!(held(&excluded, Some("1.0-2"), Some("1.0-3")) && !held(&excluded, Some("1.0-2"), Some("1.0-4")));
        let branch = file(&[("web-server", &[["evr", ">=", "3:570"], ["evr", "<", "3:571"]])]);
        assert!(!held(&branch, None, Some("3:570.2-1")) && held(&branch, None, Some("3:571.0-1")));
        assert!(held(&branch, None, Some("570.2-1")), "another epoch");
        let two = file(&[("web-server", &[["evr", "=", "1-1"]]), ("web-server", &[["evr", "=", "2-1"]])]);
        assert!(!held(&two, Some("1-1"), Some("2-1")) && held(&two, Some("1-1"), Some("3-1")));
        let arch = file(&[("web-server", &[["arch", "=", "aarch64"]])]);
        assert!(held(&arch, Some("1-1"), Some("2-1")));
        assert!(!held(&file(&[("other", &[["evr", "=", "1-1"]])]), Some("1-1"), Some("2-1")));
    }

    #[test]
    fn what_is_not_understood_holds_and_a_file_that_dnf_does_not_heed_does_not() {
        assert!(held(&file(&[("web-server", &[["vendor", "=", "x"]])]), Some("1-1"), Some("2-1")));
        assert!(held(&file(&[("web-server", &[["evr", "~", "2-1"]])]), Some("1-1"), Some("2-1")));
        let locked = file(&[("web-server", &[["evr", "=", "1-1"]])]);
        assert!(held(&locked, Some("1-1"), Some("2-1")));
        assert!(!held(&locked.replace("version = \"1.0\"", "version = \"2.0\""), Some("1-1"), Some("2-1")));
        assert!(!held("\n", Some("1-1"), Some("2-1")));
        assert!(entries("version = \"1.0\"\n[[packages]]\n").is_err());
    }
}
