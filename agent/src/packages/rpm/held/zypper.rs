//! zypper's locks (zypper(8), "Package Lock Management"): what matches one is neither installed, nor changed, nor removed.

use std::cmp::Ordering;

use patchlab_protocol::{PackageSystem, inventory::Change};

use super::{super::super::pattern::glob, without_release};

/// Where they stand.
pub(super) const LOCKS: &str = "etc/zypp/locks";

/// A lock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Lock {
    name: Name,
    version: Option<(Comparison, String)>,
}

/// The names that a lock is about.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Name {
    /// Those that match a pattern of a shell.
    Glob(String),
    /// Those that contain it.
    Contains(String),
    /// A way to say it that is not known here: it may be about any.
    Unknown(String),
}

/// How a version compares to the lock's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Comparison {
    Equal,
    Other,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

impl Comparison {
    fn of(sign: &str) -> Option<Self> {
        Some(match sign {
            "==" | "=" => Self::Equal,
            "!=" => Self::Other,
            "<" => Self::Less,
            "<=" => Self::LessOrEqual,
            ">" => Self::Greater,
            ">=" => Self::GreaterOrEqual,
            _ => return None,
        })
    }

    fn holds(self, order: Ordering) -> bool {
        match self {
            Self::Equal => order.is_eq(),
            Self::Other => order.is_ne(),
            Self::Less => order.is_lt(),
            Self::LessOrEqual => order.is_le(),
            Self::Greater => order.is_gt(),
            Self::GreaterOrEqual => order.is_ge(),
        }
    }
}

impl Lock {
    /// What it says, when it is about a change.
    pub(super) fn holds(&self, change: &Change) -> Option<String> {
        let (name, arch) = (change.id.base_name(), &change.id.arch);
        let said = match &self.name {
            Name::Glob(pattern) if glob(pattern, name) || glob(pattern, &format!("{name}.{arch}")) => pattern,
            Name::Contains(part) if name.contains(part.as_str()) => part,
            Name::Unknown(said) => {
                return Some(format!("{name} (maybe, by zypper's lock {said:?}, which cannot be read)"));
            }
            Name::Glob(_) | Name::Contains(_) => return None,
        };
        let Some((comparison, locked)) = &self.version else { return Some(format!("{name} (zypper's lock {said:?})")) };
        // What cannot be compared is held.
        let is_it = |version: &String| {
            let order = PackageSystem::Rpm.compare(without_release(version, locked), locked);
            order.is_none_or(|order| comparison.holds(order))
        };
        let held = change.from.iter().chain(&change.to).any(is_it);
        held.then(|| format!("{name} (zypper's lock {said:?}, version {locked})"))
    }
}

/// The locks on packages, one a paragraph of `KEY: VALUE`.
pub(super) fn locks(text: &str) -> Vec<Lock> {
    let mut found = Vec::new();
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.starts_with('#')).collect();
    for paragraph in lines.split(|line| line.is_empty()) {
        let value =
            |key: &str| paragraph.iter().find_map(|line| Some(line.strip_prefix(key)?.strip_prefix(':')?.trim()));
        let Some(name) = value("solvable_name").or_else(|| value("name")) else { continue };
        if value("type").is_some_and(|kind| kind != "package") {
            continue;
        }
        let name = match value("match_type") {
            None | Some("glob" | "exact") => Name::Glob(name.to_owned()),
            Some("substring") => Name::Contains(name.to_owned()),
            Some(other) => Name::Unknown(format!("{other} {name}")),
        };
        let version = value("version").map(|said| {
            let (sign, version) = said.split_once(' ').unwrap_or(("==", said));
            (Comparison::of(sign).unwrap_or(Comparison::Equal), version.trim().to_owned())
        });
        found.push(Lock { name, version });
    }
    found
}

#[cfg(test)]
mod tests {
    use patchlab_protocol::inventory::PackageId;

    use super::*;

    /// As zypper 1.14 writes them.
    const WRITTEN: &str = "\ntype: package\nversion: >= 5\nmatch_type: glob\ncase_sensitive: on\nsolvable_name: bash\n\n\
        \ntype: patch\nmatch_type: glob\ncase_sensitive: on\nsolvable_name: foo\n\n\
        \ntype: package\nversion: == 1.0-1\nmatch_type: glob\ncase_sensitive: on\nsolvable_name: lib\n\n\
        \ntype: package\nmatch_type: glob\ncase_sensitive: on\nsolvable_name: web-*\n";

    fn held(text: &str, name: &str, from: Option<&str>, to: Option<&str>) -> Option<String> {
        let [from, to] = [from, to].map(|version| version.map(str::to_owned));
        let change = Change { id: PackageId::new(name, "x86_64"), from, to };
        locks(text).iter().find_map(|lock| lock.holds(&change))
    }

    #[test]
    fn what_a_lock_is_about_does_not_change_and_everything_else_does() {
        let held = |name, from, to| held(WRITTEN, name, from, to).is_some();
        assert!(held("web-server", Some("1-1"), Some("2-1")) && held("web-server", None, Some("2-1")));
        assert!(held("web-server", Some("1-1"), None) && !held("web", Some("1-1"), Some("2-1")));
        assert!(held("bash", Some("4.4-1"), Some("5.0-3")) && held("bash", Some("5.1-1"), None));
        assert!(!held("bash", Some("4.3-9"), Some("4.4-1")));
        assert!(held("lib", Some("1.0-1"), Some("1.0-2")) && !held("lib", Some("1.0-2"), Some("1.0-3")));
        assert!(!held("foo", Some("1-1"), Some("2-1")), "that lock is on a patch");
    }

    #[test]
    fn a_lock_of_a_kind_that_is_not_known_holds_everything_and_says_so() {
        let text = WRITTEN.replace("glob\ncase_sensitive: on\nsolvable_name: web-*", "regex\nsolvable_name: ^web");
        let said = held(&text, "other", Some("1-1"), Some("2-1")).unwrap();
        assert!(said.contains("regex ^web") && said.contains("cannot be read"), "{said}");
        let text = WRITTEN.replace("glob\ncase_sensitive: on\nsolvable_name: web-*", "substring\nsolvable_name: erv");
        assert!(
            held(&text, "web-server", None, Some("1-1")).is_some() && held(&text, "web", None, Some("1-1")).is_none()
        );
    }
}
