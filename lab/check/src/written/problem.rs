//! From the parser's error to a sentence for the person who wrote the file.

use std::ops::Range;

use toml::de::{DeTable, DeValue};

/// One key of the document, as a path from its root, with the places of its name and of its value.
struct Entry {
    path: Vec<String>,
    key: Range<usize>,
    value: Range<usize>,
}

impl Entry {
    /// The name people read: `step.http.url`, without the numbers of array elements (the line says which).
    fn shown(&self) -> String {
        shown(&self.path)
    }

    fn name(&self) -> Option<&str> {
        self.path.last().map(String::as_str)
    }

    /// The length of the tighter of its two places that contains `offset`.
    fn contains(&self, offset: usize) -> Option<usize> {
        [&self.key, &self.value].into_iter().filter(|range| range.contains(&offset)).map(|range| range.len()).min()
    }
}

fn shown(path: &[String]) -> String {
    let names: Vec<&str> = path.iter().map(String::as_str).filter(|name| name.parse::<usize>().is_err()).collect();
    names.join(".")
}

/// Every key of the document; none when it is not TOML at all.
fn entries(text: &str) -> Vec<Entry> {
    let mut found = Vec::new();
    if let Ok(document) = DeTable::parse(text) {
        collect_table(document.get_ref(), &[], &mut found);
    }
    found
}

fn collect_table(table: &DeTable<'_>, parent: &[String], found: &mut Vec<Entry>) {
    for (key, value) in table {
        let mut path = parent.to_vec();
        path.push(key.get_ref().to_string());
        found.push(Entry { path: path.clone(), key: key.span(), value: value.span() });
        collect_value(value.get_ref(), &path, found);
    }
}

fn collect_value(value: &DeValue<'_>, path: &[String], found: &mut Vec<Entry>) {
    match value {
        DeValue::Table(table) => collect_table(table, path, found),
        DeValue::Array(array) => {
            for (index, element) in array.iter().enumerate() {
                let mut path = path.to_vec();
                path.push(index.to_string());
                found.push(Entry { path: path.clone(), key: element.span(), value: element.span() });
                collect_value(element.get_ref(), &path, found);
            }
        }
        _ => {}
    }
}

/// Where the dotted `key` is, or the nearest enclosing one that exists.
pub(super) fn offset_of(text: &str, key: &str) -> usize {
    let wanted: Vec<&str> = key.split('.').collect();
    entries(text)
        .into_iter()
        .filter(|entry| {
            entry.path.len() <= wanted.len() && entry.path.iter().zip(&wanted).all(|(have, want)| have == want)
        })
        .max_by_key(|entry| entry.path.len())
        .map_or(0, |entry| entry.key.start)
}

/// What an error of the parser is about.
pub(super) enum Place {
    /// A key that nobody knows.
    UnknownKey(Vec<String>),
    /// What has this path, which is empty for the whole file.
    Table(Vec<String>),
}

/// What an error is about, by its path in the document.
pub(super) fn place(text: &str, error: &toml::de::Error) -> Place {
    let (entries, message) = (entries(text), error.message().trim());
    let entry = entry_of(text, error, &entries);
    let unknown = message.starts_with("unknown field ").then(|| {
        let name = quoted(message).into_iter().next().unwrap_or_default();
        find_unknown(name, offset(error), entry, &entries).0
    });
    match unknown.flatten() {
        Some(found) => Place::UnknownKey(found.path.clone()),
        None => Place::Table(entry.map(|entry| entry.path.clone()).unwrap_or_default()),
    }
}

/// The path of the tightest key around a byte; empty where there is none.
pub(super) fn path_at(text: &str, offset: usize) -> Vec<String> {
    tightest(offset, &entries(text)).map(|entry| entry.path.clone()).unwrap_or_default()
}

fn offset(error: &toml::de::Error) -> usize {
    error.span().map_or(0, |span| span.start)
}

/// The tightest key around an error's place; `None` when it is about the whole document.
fn entry_of<'e>(text: &str, error: &toml::de::Error, entries: &'e [Entry]) -> Option<&'e Entry> {
    let offset = offset(error);
    // An error about the root has the whole document for its place, or nothing; no key has.
    let about_root = |span: Range<usize>| span.is_empty() || (span.start == 0 && span.end >= text.trim_end().len());
    let about_root = error.span().is_none_or(about_root);
    tightest(offset, entries).filter(|_| !about_root)
}

/// The tightest key around a byte.
fn tightest(offset: usize, entries: &[Entry]) -> Option<&Entry> {
    entries
        .iter()
        .filter_map(|entry| entry.contains(offset).map(|length| (length, std::cmp::Reverse(entry.path.len()), entry)))
        .min_by_key(|(length, depth, _)| (*length, *depth))
        .map(|(_, _, entry)| entry)
}

/// The byte offset of the problem and the sentence about it.
pub(super) fn explain(text: &str, error: &toml::de::Error) -> (usize, String) {
    let entries = entries(text);
    let offset = offset(error);
    let message = error.message().trim();
    if entries.is_empty() && DeTable::parse(text).is_err() {
        return (offset, format!("not valid TOML: {message}"));
    }
    let entry = entry_of(text, error, &entries);
    if message.starts_with("unknown field ") {
        return unknown_key(message, offset, entry, &entries);
    }
    if message.starts_with("missing field ") {
        let name = quoted(message).into_iter().next().unwrap_or_default();
        let place = entry.map(Entry::shown).filter(|place| !place.is_empty());
        let place = place.map_or(String::new(), |place| format!(" in {place:?}"));
        return (offset, format!("missing key {name:?}{place}"));
    }
    let sentence = if message.starts_with("unknown variant ") { unknown_word(message) } else { wrong_type(message) };
    match entry.map(Entry::shown).filter(|place| !place.is_empty()) {
        Some(key) => (offset, format!("key {key:?}: {sentence}")),
        None => (offset, sentence),
    }
}

/// `unknown field` names a key of the table the error is in. Where serde had to buffer (tagged enums), only that table's place is
/// known, and the key is looked up in it. Also gives the path of that table.
fn find_unknown<'e>(
    name: &str,
    offset: usize,
    entry: Option<&'e Entry>,
    entries: &'e [Entry],
) -> (Option<&'e Entry>, &'e [String]) {
    let prefix: &[String] = match entry {
        Some(entry) if entry.name() == Some(name) && entry.key.contains(&offset) => &entry.path[..entry.path.len() - 1],
        Some(entry) => &entry.path,
        None => &[],
    };
    let found = entries
        .iter()
        .filter(|other| other.name() == Some(name) && other.path.starts_with(prefix))
        .min_by_key(|other| (other.key.start != offset, other.path.len()));
    (found, found.map_or(prefix, |found| &found.path[..found.path.len() - 1]))
}

fn unknown_key(message: &str, offset: usize, entry: Option<&Entry>, entries: &[Entry]) -> (usize, String) {
    let mut names = quoted(message).into_iter();
    let name = names.next().unwrap_or_default();
    let known: Vec<&str> = names.collect();
    let (found, table) = find_unknown(name, offset, entry, entries);
    let offset = found.map_or(offset, |found| found.key.start);
    let table = shown(table);
    let place = if table.is_empty() { String::new() } else { format!(" in {table:?}") };
    (offset, format!("unknown key {name:?}{place}: {}", suggestion(name, known, "key")))
}

fn unknown_word(message: &str) -> String {
    let mut words = quoted(message).into_iter();
    let word = words.next().unwrap_or_default();
    format!("unknown value {word:?}: {}", suggestion(word, words.collect(), "value"))
}

/// `did you mean "packages"?`, or all that is known, nearest first, when nothing is near.
fn suggestion(word: &str, mut known: Vec<&str>, what: &str) -> String {
    let distance = |candidate: &str| strsim::damerau_levenshtein(&word.to_lowercase(), &candidate.to_lowercase());
    known.sort_by_key(|candidate| distance(candidate));
    match known.first() {
        None => format!("no {what} is known here"),
        Some(nearest) if distance(nearest) <= (word.chars().count() / 3).max(1) => format!("did you mean {nearest:?}?"),
        Some(_) => {
            let list: Vec<String> = known.iter().map(|known| format!("{known:?}")).collect();
            format!("known {what}s, nearest first: {}", list.join(", "))
        }
    }
}

/// `invalid type: integer `5`, expected a string` the other way round; other messages as they are.
fn wrong_type(message: &str) -> String {
    let rest = ["invalid type: ", "invalid value: ", "invalid length "]
        .iter()
        .find_map(|prefix| message.strip_prefix(prefix))
        .and_then(|rest| rest.split_once(", expected "));
    match rest {
        Some((found, expected)) => format!("expected {expected}, found {}", found.replace('`', "")),
        None => message.to_owned(),
    }
}

/// The words that serde puts between back quotes.
fn quoted(message: &str) -> Vec<&str> {
    message.split('`').skip(1).step_by(2).collect()
}
