//! Extended attributes of files and folders (xattr(7)): file capabilities, access lists, and whatever else somebody set. Each is named with
//! its value; the labels of a security policy are left out.

use std::collections::{BTreeMap, BTreeSet};

use patchlab_check::Digest;

/// By path, then by name; values in hexadecimal, those of more than [`VALUE_DIGITS`] digits by their digest.
pub type Attributes = BTreeMap<String, BTreeMap<String, String>>;

/// Digits of a value that are kept as they are. Capabilities have 40, an access list of ten entries 168.
const VALUE_DIGITS: usize = 512;

/// Prints the attributes of the paths in lists; it says itself how it is called.
const PROGRAM: &str = include_str!("attributes.pl");

/// A shell function `attributes`: [`PROGRAM`].
pub(crate) fn shell() -> String {
    format!("attributes() {{ perl -e '{PROGRAM}' \"$@\"; }}\n")
}

/// What of them is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reading<'m> {
    /// Those of every path.
    Whole,
    /// Those of paths that changed since; the others' are these.
    Changed(&'m Attributes),
    /// None: a baseline of an older lab has none to compare them with.
    Nothing,
}

impl Reading<'_> {
    /// The word for the program; empty where it is not to run.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Whole => "some",
            Self::Changed(_) => "all",
            Self::Nothing => "",
        }
    }
}

/// From what was printed; of paths that were not read again, those that are there still.
pub(super) fn parse(text: &str, reading: Reading<'_>, exists: impl Fn(&str) -> bool) -> Option<Attributes> {
    let mut read: BTreeSet<&str> = BTreeSet::new();
    let mut found = Attributes::new();
    let mut path = "";
    for record in text.split('\0') {
        if let Some(next) = record.strip_prefix('p') {
            path = next;
            read.insert(path);
        } else if let Some((name, value)) = record.strip_prefix('a').and_then(|record| record.rsplit_once('=')) {
            let value =
                if value.len() > VALUE_DIGITS { format!("sha256:{}", Digest::of(value)) } else { value.to_owned() };
            found.entry(path.to_owned()).or_default().insert(name.to_owned(), value);
        }
    }
    match reading {
        Reading::Nothing => return None,
        Reading::Whole => {}
        Reading::Changed(known) => {
            let still = known.iter().filter(|(path, _)| !read.contains(path.as_str()) && exists(path));
            found.extend(still.map(|(path, attributes)| (path.clone(), attributes.clone())));
        }
    }
    Some(found)
}

/// What of two sets differs, by the names that people know.
pub(crate) fn differing(
    one: Option<&BTreeMap<String, String>>,
    other: Option<&BTreeMap<String, String>>,
) -> BTreeSet<String> {
    let value = |of: Option<&BTreeMap<String, String>>, name: &String| of.and_then(|of| of.get(name).cloned());
    let names = one.into_iter().chain(other).flat_map(BTreeMap::keys);
    let differ = names.filter(|name| value(one, name) != value(other, name));
    let told = |name: &String| match name.as_str() {
        "security.capability" => "capabilities".to_owned(),
        "system.posix_acl_access" | "system.posix_acl_default" => "access list".to_owned(),
        other => format!("attribute {other}"),
    };
    differ.map(told).collect()
}

#[cfg(test)]
mod tests {
    use std::{fs, process::Command};

    use super::*;

    #[test]
    fn a_program_between_apostrophes_has_none() {
        assert!(!PROGRAM.contains('\''));
    }

    #[test]
    fn what_was_not_read_again_stays_and_what_is_gone_goes() {
        let first =
            parse("p/a\0asecurity.capability=0100\0p/b\0auser.x=00\0p/c\0auser.y=11\0", Reading::Whole, |_| true);
        let first = first.unwrap();
        assert_eq!((first.len(), first["/a"]["security.capability"].as_str()), (3, "0100"));
        let second = parse("p/a\0p/d\0auser.z=2=2\0", Reading::Changed(&first), |path| path != "/c").unwrap();
        assert_eq!(second.keys().collect::<Vec<_>>(), ["/b", "/d"]);
        assert_eq!(second["/d"].keys().collect::<Vec<_>>(), ["user.z=2"]);
        assert_eq!(parse("p/a\0auser.x=00\0", Reading::Nothing, |_| true), None);
        let long = format!("p/a\0auser.x={}\0", "0".repeat(VALUE_DIGITS + 1));
        assert!(parse(&long, Reading::Whole, |_| true).unwrap()["/a"]["user.x"].starts_with("sha256:"));
        assert_eq!(differing(first.get("/a"), None), ["capabilities".to_owned()].into());
        assert_eq!(differing(first.get("/b"), first.get("/b")), [].into());
        assert_eq!(differing(first.get("/b"), first.get("/c")).len(), 2);
    }

    /// Set and read by the kernel itself.
    #[test]
    fn attributes_of_real_files_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let (with, without) = (dir.path().join("with = 1"), dir.path().join("without"));
        fs::write(&with, "").unwrap();
        fs::write(&without, "").unwrap();
        let flags = rustix::fs::XattrFlags::empty();
        if let Err(error) = rustix::fs::setxattr(&with, "user.patchlab", b"\x01\xff", flags) {
            eprintln!("SKIP attributes_of_real_files_are_read: no attributes in {}: {error}", dir.path().display());
            return;
        }
        let list = dir.path().join("list");
        fs::write(&list, format!("{}\0{}\0", with.display(), without.display())).unwrap();
        let run = |word: &str| {
            let script = format!("{}attributes \"$@\"", shell());
            let out = Command::new("sh").args(["-c", &script, "sh", word]).arg(&list).output().unwrap();
            assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
            String::from_utf8(out.stdout).unwrap()
        };
        let found = parse(&run("some"), Reading::Whole, |_| true).unwrap();
        let expected = BTreeMap::from([("user.patchlab".to_owned(), "01ff".to_owned())]);
        assert_eq!(found, BTreeMap::from([(with.display().to_string(), expected)]));
        let before =
            BTreeMap::from([(without.display().to_string(), BTreeMap::from([("user.x".into(), "00".into())]))]);
        assert_eq!(parse(&run("all"), Reading::Changed(&before), |_| true).unwrap(), found);
    }
}
