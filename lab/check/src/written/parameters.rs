//! Parameters of a file that people write: `${name}` in its texts, and one reading of the file for every combination of a matrix.
//!
//! Names are lower-case, so that a shell's `${HOME}` is left alone; `$${name}` stands for `${name}` itself. A text that is nothing
//! but `${name}` becomes the value with its type: `number = "${port}"` is a number.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    fmt,
    ops::Range,
    path::Path,
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use toml::{
    Spanned,
    de::{DeArray, DeTable, DeValue},
};

use super::{
    WrittenError, invalid, position,
    problem::{Place, path_at, place},
};

/// Most things wrong that are told of one file.
const WRONG: usize = 100;
/// Most combinations of a matrix.
pub const COMBINATIONS: usize = 32;
/// Longest text of a value in a matrix, in characters: it becomes part of a name.
const SHOWN: usize = 40;
/// The tables that say parameters, whose own texts are left as they are.
const TABLES: [&str; 2] = ["parameters", "matrix"];

/// A parameter's value.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(untagged)]
pub enum Scalar {
    /// A whole number.
    Number(i64),
    /// A yes or no.
    Truth(bool),
    /// A text.
    Text(String),
}

impl fmt::Display for Scalar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => number.fmt(f),
            Self::Truth(truth) => truth.fmt(f),
            Self::Text(text) => f.write_str(text),
        }
    }
}

impl schemars::JsonSchema for Scalar {
    fn schema_name() -> Cow<'static, str> {
        "Scalar".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "type": ["string", "integer", "boolean"] })
    }
}

impl<'de> Deserialize<'de> for Scalar {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;
        impl serde::de::Visitor<'_> for Any {
            type Value = Scalar;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text, a whole number, true or false")
            }
            fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<Scalar, E> {
                Ok(Scalar::Number(number))
            }
            fn visit_bool<E: serde::de::Error>(self, truth: bool) -> Result<Scalar, E> {
                Ok(Scalar::Truth(truth))
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Scalar, E> {
                Ok(Scalar::Text(text.to_owned()))
            }
        }
        deserializer.deserialize_any(Any)
    }
}

/// The values that one reading of a file has for its parameters.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Combination {
    values: BTreeMap<String, Scalar>,
    chosen: BTreeSet<String>,
}

impl Combination {
    /// Every parameter with its value.
    pub fn values(&self) -> &BTreeMap<String, Scalar> {
        &self.values
    }
}

/// What the matrix chose, e.g. `[port=443,tls=true]`; nothing without a matrix.
impl fmt::Display for Combination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let chosen: Vec<String> = self
            .values
            .iter()
            .filter(|(name, _)| self.chosen.contains(*name))
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        if chosen.is_empty() { Ok(()) } else { write!(f, "[{}]", chosen.join(",")) }
    }
}

/// The two tables.
#[derive(Deserialize, Default)]
#[serde(default)]
struct Tables {
    parameters: BTreeMap<String, Scalar>,
    matrix: BTreeMap<String, Vec<Scalar>>,
}

/// Every combination of the file's `[matrix]`, in the order of its values, each with the file's `[parameters]`. A file without a
/// matrix has one. Where both say a name, the matrix does.
///
/// # Errors
/// The text is not TOML, a name or value cannot be one, or there are more than [`COMBINATIONS`].
pub fn combinations(text: &str, path: &Path) -> Result<Vec<Combination>, WrittenError> {
    let tables: Tables = super::parse(text, path)?;
    let wrong = |key: &str, problem: String| Err(WrittenError::at_key(path, text, key, problem));
    let named = |table: &'static str| move |name: &String| (table, name.clone());
    let names = tables.parameters.keys().map(named("parameters")).chain(tables.matrix.keys().map(named("matrix")));
    for (table, name) in names {
        if !is_name(&name) {
            let problem = format!("key {table:?}: {name:?} is no parameter: lower-case letters, digits, - and _");
            return wrong(&format!("{table}.{name}"), problem);
        }
    }
    let mut all = vec![Combination { values: tables.parameters, chosen: BTreeSet::new() }];
    for (name, values) in &tables.matrix {
        let key = &format!("matrix.{name}");
        let distinct: BTreeSet<String> = values.iter().map(ToString::to_string).collect();
        let unfit = |value: &&Scalar| {
            let text = value.to_string();
            text.is_empty()
                || text.chars().count() > SHOWN
                || text.chars().any(|c| c.is_control() || "[],=/".contains(c))
        };
        if values.is_empty() {
            return wrong(key, format!("key {key:?}: no values: nothing would run"));
        } else if distinct.len() < values.len() {
            return wrong(key, format!("key {key:?}: a value is there twice"));
        } else if let Some(value) = values.iter().find(unfit) {
            let problem = format!(
                "key {key:?}: {:?} cannot stand in a name: 1 to {SHOWN} characters without [ ] , = /",
                value.to_string()
            );
            return wrong(key, problem);
        } else if all.len() * values.len() > COMBINATIONS {
            let problem =
                format!("key \"matrix\": more than {COMBINATIONS} combinations: each is a whole run on two machines");
            return wrong("matrix", problem);
        }
        let with = |combination: &Combination, value: &Scalar| {
            let mut combination = combination.clone();
            combination.values.insert(name.clone(), value.clone());
            combination.chosen.insert(name.clone());
            combination
        };
        all = all.iter().flat_map(|combination| values.iter().map(move |value| with(combination, value))).collect();
    }
    Ok(all)
}

/// Reads the text as [`super::parse`] does, with the combination's values in the place of parameters. Also gives the names that
/// were used.
///
/// # Errors
/// A parameter that is not there, besides all that [`super::parse`] refuses.
pub fn parse_with<T: DeserializeOwned>(
    text: &str,
    path: &Path,
    combination: &Combination,
) -> Result<(T, BTreeSet<String>), WrittenError> {
    read(text, path, combination, &Omitted::default()).map_err(|refused| refused.told(text, path))
}

/// Why a text is not taken.
enum Refused {
    /// By the parser.
    Parser(toml::de::Error),
    /// For a parameter, at this byte.
    Parameter(usize, WrittenError),
}

impl Refused {
    fn told(self, text: &str, path: &Path) -> WrittenError {
        match self {
            Self::Parser(error) => invalid(text, path, &error),
            Self::Parameter(_, error) => error,
        }
    }
}

/// What is read over: keys and elements of arrays, by their paths in the text.
#[derive(Default)]
struct Omitted {
    keys: Vec<Vec<String>>,
    elements: Vec<Vec<String>>,
}

impl Omitted {
    fn len(&self) -> usize {
        self.keys.len() + self.elements.len()
    }

    /// Reads over one part more; `false` when it was read over before, or enough is.
    fn add(&mut self, part: Part) -> bool {
        let is_full = self.len() >= WRONG;
        let (list, path) = match part {
            Part::Key(path) => (&mut self.keys, path),
            Part::Element(path) => (&mut self.elements, path),
        };
        if is_full || list.contains(&path) {
            return false;
        }
        list.push(path);
        true
    }

    /// Whether something is missing in what has this path.
    fn is_of(&self, table: &[String]) -> bool {
        self.keys.iter().chain(&self.elements).any(|key| is_within(key, table))
    }

    fn apply(&self, document: &mut DeTable<'_>) {
        self.keys.iter().for_each(|key| leave_out(document, key));
        // From the back, so that the numbers of those before stay as they are.
        let mut elements: Vec<&Vec<String>> = self.elements.iter().collect();
        elements.sort_by_key(|path| std::cmp::Reverse(path.last().and_then(|index| index.parse::<usize>().ok())));
        elements.into_iter().for_each(|element| leave_out(document, element));
    }
}

/// A part of a text that can be read over.
enum Part {
    /// A key, with its value.
    Key(Vec<String>),
    /// An element of an array.
    Element(Vec<String>),
}

impl Part {
    /// The part around the value that has this path: of an array its element, and the value itself elsewhere. The whole cannot be read over.
    fn around(text: &str, path: Vec<String>) -> Option<Self> {
        let document = DeTable::parse(text).ok()?;
        let mut value = document.get_ref().get(path.first()?.as_str())?.get_ref();
        for (at, key) in path.iter().enumerate().skip(1) {
            match value {
                DeValue::Array(_) => return Some(Self::Element(path[..=at].to_vec())),
                DeValue::Table(table) => value = table.get(key.as_str())?.get_ref(),
                _ => return None,
            }
        }
        Some(Self::Key(path))
    }
}

/// Reads the text as if these parts were not there.
fn read<T: DeserializeOwned>(
    text: &str,
    path: &Path,
    combination: &Combination,
    without: &Omitted,
) -> Result<(T, BTreeSet<String>), Refused> {
    // The values live as long as the document that borrows them.
    let values = combination.values.iter().map(|(name, value)| (name.as_str(), (value, value.to_string()))).collect();
    let mut document = DeTable::parse(text).map_err(Refused::Parser)?;
    without.apply(document.get_mut());
    let mut filling = Filling { values: &values, used: BTreeSet::new() };
    for (key, value) in document.get_mut().iter_mut() {
        if TABLES.contains(&key.get_ref().as_ref()) {
            continue;
        }
        filling.fill(value).map_err(|(place, problem)| {
            let (line, column) = position(text, place.start);
            let error = WrittenError::Invalid { path: path.to_owned(), line, column, problem };
            Refused::Parameter(place.start, error)
        })?;
    }
    let value = T::deserialize(toml::Deserializer::from(document)).map_err(Refused::Parser)?;
    Ok((value, filling.used))
}

/// Takes what has this path out of a table.
fn leave_out(table: &mut DeTable<'_>, key: &[String]) {
    match key {
        [] => {}
        [last] => drop(table.remove(last.as_str())),
        [first, rest @ ..] => {
            if let Some(value) = table.get_mut(first.as_str()) {
                leave_out_below(value.get_mut(), rest);
            }
        }
    }
}

/// The same below a value, of an array by the number of its element.
fn leave_out_below(value: &mut DeValue<'_>, key: &[String]) {
    match (value, key) {
        (DeValue::Table(table), key) => leave_out(table, key),
        (DeValue::Array(array), [last]) => {
            let mut left = DeArray::new();
            let others = array.iter().enumerate().filter(|(at, _)| at.to_string() != *last);
            others.for_each(|(_, element)| left.push(element.clone()));
            *array = left;
        }
        (DeValue::Array(array), [index, rest @ ..]) => {
            let element = index.parse().ok().and_then(|index: usize| array.get_mut(index));
            element.into_iter().for_each(|element| leave_out_below(element.get_mut(), rest));
        }
        _ => {}
    }
}

/// What [`parse_all`] found.
#[derive(Debug)]
pub struct Findings<T> {
    /// What the text says, unknown keys aside, and the names of the parameters that were used; `None` when it cannot be taken.
    pub read: Option<(T, BTreeSet<String>)>,
    /// All that is wrong, as far as one thing does not follow from another, by lines.
    pub errors: Vec<WrittenError>,
}

/// Reads the text as [`parse_with`] does, for who wants to know of all that is wrong at once. What is wrong is told and read over: an element
/// of an array as a whole, a key with its value. What may be wrong only because something was read over (a key of the same table that is
/// missing, say) is not told.
pub fn parse_all<T: DeserializeOwned>(text: &str, path: &Path, combination: &Combination) -> Findings<T> {
    let mut omitted = Omitted::default();
    let mut errors = Vec::new();
    let mut is_taken = true;
    let read = loop {
        let refused = match read(text, path, combination, &omitted) {
            Ok(read) => break Some(read).filter(|_| is_taken),
            Err(refused) => refused,
        };
        let place = match &refused {
            Refused::Parser(error) => place(text, error),
            Refused::Parameter(at, _) => Place::Table(path_at(text, *at)),
        };
        let part = match place {
            Place::UnknownKey(key) => {
                errors.push(refused.told(text, path));
                Some(Part::Key(key))
            }
            Place::Table(table) => {
                is_taken = false;
                if !omitted.is_of(&table) {
                    errors.push(refused.told(text, path));
                }
                Part::around(text, table)
            }
        };
        if !part.is_some_and(|part| omitted.add(part)) {
            break None;
        }
    };
    errors.sort_by_key(WrittenError::line);
    Findings { read, errors }
}

/// Whether a key stands in a table, or in one of its tables; the whole file has keys of its own only.
fn is_within(key: &[String], table: &[String]) -> bool {
    let parent = &key[..key.len().saturating_sub(1)];
    if table.is_empty() { parent.is_empty() } else { parent.starts_with(table) }
}

/// Puts values in the place of parameters.
struct Filling<'d> {
    values: &'d BTreeMap<&'d str, (&'d Scalar, String)>,
    used: BTreeSet<String>,
}

type Unknown = (Range<usize>, String);

impl<'d> Filling<'d> {
    fn fill(&mut self, value: &mut Spanned<DeValue<'d>>) -> Result<(), Unknown> {
        let place = value.span();
        match value.get_mut() {
            DeValue::Table(table) => {
                for (_, value) in table.iter_mut() {
                    self.fill(value)?;
                }
            }
            DeValue::Array(array) => {
                for value in array.iter_mut() {
                    self.fill(value)?;
                }
            }
            DeValue::String(text) => {
                let filled = self.text(text).map_err(|problem| (place, problem))?;
                if let Some(filled) = filled {
                    *value.get_mut() = filled;
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// What a text becomes; `None` when it stays as it is.
    fn text(&mut self, text: &str) -> Result<Option<DeValue<'d>>, String> {
        let Some(first) = text.find("${") else { return Ok(None) };
        if let Some(name) = text.strip_prefix("${").and_then(|rest| rest.strip_suffix('}'))
            && is_name(name)
        {
            let (value, text) = self.value(name)?;
            return Ok(Some(typed(value, text)));
        }
        let (mut filled, mut rest) = (text[..first].to_owned(), &text[first..]);
        loop {
            // `rest` begins with `${`.
            let name = rest[2..].split_once('}').map(|(name, _)| name).filter(|name| is_name(name));
            match name {
                Some(name) if filled.ends_with('$') => {
                    filled += &rest[1..name.len() + 3];
                    rest = &rest[name.len() + 3..];
                }
                Some(name) => {
                    filled += &self.value(name)?.1;
                    rest = &rest[name.len() + 3..];
                }
                None => {
                    filled += "${";
                    rest = &rest[2..];
                }
            }
            match rest.find("${") {
                Some(next) => {
                    filled += &rest[..next];
                    rest = &rest[next..];
                }
                None => return Ok(Some(DeValue::String(Cow::Owned(filled + rest)))),
            }
        }
    }

    fn value(&mut self, name: &str) -> Result<&'d (&'d Scalar, String), String> {
        self.used.insert(name.to_owned());
        self.values.get(name).ok_or_else(|| {
            let known: Vec<String> = self.values.keys().map(|name| format!("{name:?}")).collect();
            let known = if known.is_empty() { "none is said".to_owned() } else { format!("known are {}", known.join(", ")) };
            format!("unknown parameter {name:?}, {known}: say it under [parameters], or write $${{{name}}} for the shell's own")
        })
    }
}

fn typed<'d>(value: &Scalar, text: &'d str) -> DeValue<'d> {
    match value {
        Scalar::Truth(truth) => DeValue::Boolean(*truth),
        // What was a number can be read as one.
        Scalar::Number(_) => DeValue::parse(text).map_or(DeValue::String(Cow::Borrowed(text)), Spanned::into_inner),
        Scalar::Text(_) => DeValue::String(Cow::Borrowed(text)),
    }
}

fn is_name(name: &str) -> bool {
    name.len() <= SHOWN
        && name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "_-".contains(c))
}
