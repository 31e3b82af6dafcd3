//! Texts that mean something, checked when they are read, so that no step fails late for its own spelling.

use std::{fmt, str::FromStr};

use crate::written::as_text;

/// The text is not of that sort.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected {expected}, found {text:?}{why}")]
pub struct ParseTextError {
    expected: &'static str,
    text: String,
    why: String,
}

impl ParseTextError {
    fn new(expected: &'static str, text: &str) -> Self {
        Self { expected, text: text.chars().take(200).collect(), why: String::new() }
    }
}

/// Most bytes of a compiled pattern.
const PATTERN_BYTES: usize = 1 << 20;
/// What stands where something was redacted.
pub const REDACTED: &str = "[redacted]";

/// A regular expression (syntax of the `regex` crate), compiled; multi-line texts are matched line by line for `^` and `$`.
#[derive(Debug, Clone)]
pub struct Pattern(regex::Regex);

impl Pattern {
    /// Whether it matches somewhere in `text`.
    pub fn is_match(&self, text: &str) -> bool {
        self.0.is_match(text)
    }

    /// What its first group, or without groups the whole, caught first.
    pub fn capture<'t>(&self, text: &'t str) -> Option<&'t str> {
        let captures = self.0.captures(text)?;
        captures.get(1).or_else(|| captures.get(0)).map(|found| found.as_str())
    }

    /// `text` with what it matches, or where it has groups what the first caught, replaced by [`REDACTED`].
    pub fn redact<'t>(&self, text: &'t str) -> std::borrow::Cow<'t, str> {
        self.0.replace_all(text, |found: &regex::Captures<'_>| {
            let whole = found.get(0).map_or("", |whole| whole.as_str());
            match (found.get(0), found.get(1)) {
                (Some(all), Some(group)) => {
                    let (start, end) = (group.start() - all.start(), group.end() - all.start());
                    format!("{}{REDACTED}{}", &whole[..start], &whole[end..])
                }
                _ => REDACTED.to_owned(),
            }
        })
    }

    /// The same of bytes that need be no text.
    pub fn redact_bytes<'b>(&self, bytes: &'b [u8]) -> std::borrow::Cow<'b, [u8]> {
        let same = regex::bytes::RegexBuilder::new(self.as_str()).multi_line(true).size_limit(PATTERN_BYTES).build();
        // What was a pattern for text is one for bytes; nothing is told where that should ever not be so.
        let Ok(same) = same else { return REDACTED.as_bytes().into() };
        same.replace_all(bytes, |found: &regex::bytes::Captures<'_>| {
            let (all, secret) = (found.get_match(), found.get(1).unwrap_or_else(|| found.get_match()));
            let (start, end) = (secret.start() - all.start(), secret.end() - all.start());
            [&all.as_bytes()[..start], REDACTED.as_bytes(), &all.as_bytes()[end..]].concat()
        })
    }

    /// How many groups it has.
    pub fn groups(&self) -> usize {
        self.0.captures_len() - 1
    }

    /// As it was written.
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.as_str() == other.as_str()
    }
}

impl Eq for Pattern {}

impl FromStr for Pattern {
    type Err = ParseTextError;

    fn from_str(text: &str) -> Result<Self, ParseTextError> {
        regex::RegexBuilder::new(text).multi_line(true).size_limit(PATTERN_BYTES).build().map(Self).map_err(|error| {
            let why = error.to_string();
            let why = why.lines().last().unwrap_or_default().trim().trim_start_matches("error: ");
            ParseTextError { why: format!(" ({why})"), ..ParseTextError::new("a regular expression", text) }
        })
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A JSONPath query (RFC 9535), e.g. `$.workers[0].state`. Its text is kept and not what is parsed from it, which is no key of a map.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct JsonQuery(String);

impl JsonQuery {
    /// All that it finds in a document, in the document's order.
    pub fn all<'v>(&self, document: &'v serde_json::Value) -> Vec<&'v serde_json::Value> {
        // It was parsed when it was made.
        serde_json_path::JsonPath::parse(&self.0).map_or_else(|_| Vec::new(), |path| path.query(document).all())
    }

    /// As it was written.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for JsonQuery {
    type Err = ParseTextError;

    fn from_str(text: &str) -> Result<Self, ParseTextError> {
        let expected = "a JSONPath query such as \"$.status\"";
        match serde_json_path::JsonPath::parse(text) {
            Ok(_) => Ok(Self(text.to_owned())),
            Err(error) => {
                let why = format!(" (at character {}: {})", error.position() + 1, error.message());
                Err(ParseTextError { why, ..ParseTextError::new(expected, text) })
            }
        }
    }
}

impl fmt::Display for JsonQuery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Permission bits in octal, e.g. `"0644"` or `"4755"`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileMode {
    text: String,
    bits: u32,
}

impl FileMode {
    /// The bits, at most `0o7777`.
    pub fn bits(&self) -> u32 {
        self.bits
    }
}

impl FromStr for FileMode {
    type Err = ParseTextError;

    fn from_str(text: &str) -> Result<Self, ParseTextError> {
        let octal = (3..=4).contains(&text.len()) && text.chars().all(|c| c.is_digit(8));
        let bits = u32::from_str_radix(text, 8).ok().filter(|_| octal);
        let bits = bits.ok_or_else(|| ParseTextError::new("permission bits in octal such as \"0644\"", text))?;
        Ok(Self { text: text.to_owned(), bits })
    }
}

impl fmt::Display for FileMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// `http://HOST[:PORT][/PATH]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpUrl {
    text: String,
    host: String,
    port: u16,
    path: String,
}

impl HttpUrl {
    /// Host name or address, without brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Port, 80 when not written.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Path and query, at least `/`.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// What goes into the `Host` header.
    pub fn authority(&self) -> String {
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        if self.port == 80 { host } else { format!("{host}:{}", self.port) }
    }
}

impl FromStr for HttpUrl {
    type Err = ParseTextError;

    fn from_str(text: &str) -> Result<Self, ParseTextError> {
        let error = |why: &str| ParseTextError {
            why: why.to_owned(),
            ..ParseTextError::new("an address http://HOST[:PORT]/PATH", text)
        };
        if text.starts_with("https:") {
            return Err(error(" (TLS is not spoken by this step: use run with curl)"));
        }
        let rest = text.strip_prefix("http://").ok_or_else(|| error(""))?;
        if !rest.chars().all(|c| c.is_ascii_graphic()) || rest.contains('#') {
            return Err(error(" (spaces, fragments and other than ASCII must be percent-encoded)"));
        }
        let (authority, path) = rest.find(['/', '?']).map_or((rest, ""), |at| rest.split_at(at));
        let (host, port) = match authority.strip_prefix('[') {
            Some(bracketed) => bracketed.split_once(']').ok_or_else(|| error(" (the bracket is not closed)"))?,
            None => authority.find(':').map_or((authority, ""), |at| authority.split_at(at)),
        };
        let port = match port.strip_prefix(':') {
            None if port.is_empty() => 80,
            None => return Err(error("")),
            Some(number) => number.parse().map_err(|_| error(" (the port is no number from 0 to 65535)"))?,
        };
        if host.is_empty() || host.contains('@') {
            return Err(error(" (no host)"));
        }
        let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
        Ok(Self { text: text.to_owned(), host: host.to_owned(), port, path })
    }
}

impl fmt::Display for HttpUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// A share, e.g. `"20%"`: finite, and not below zero.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Percent(f64);

// A finite number equals itself.
impl Eq for Percent {}

impl Percent {
    /// The share as a factor: `0.2` for 20 %.
    pub fn factor(self) -> f64 {
        self.0 / 100.0
    }
}

impl FromStr for Percent {
    type Err = ParseTextError;

    fn from_str(text: &str) -> Result<Self, ParseTextError> {
        let number = text.strip_suffix('%').and_then(|number| number.trim().parse::<f64>().ok());
        number
            .filter(|number| number.is_finite() && *number >= 0.0)
            .map(Self)
            .ok_or_else(|| ParseTextError::new(r#"a share such as "20%""#, text))
    }
}

impl fmt::Display for Percent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}%", self.0)
    }
}

/// A text with an allowed alphabet, so that it can stand in a command line as it is.
macro_rules! words {
    ($($(#[$doc:meta])* $name:ident $expected:literal like $pattern:literal $valid:expr;)*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(String);

        impl $name {
            /// As it was written.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = ParseTextError;

            fn from_str(text: &str) -> Result<Self, ParseTextError> {
                let valid: fn(&str) -> bool = $valid;
                if valid(text) { Ok(Self(text.to_owned())) } else { Err(ParseTextError::new($expected, text)) }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        as_text!($name $expected like $pattern);
    )*};
}

words! {
    /// A systemd unit's name (systemd.unit(5)), with its suffix.
    UnitName "a unit name with its suffix, such as \"nginx.service\"" like r"^[A-Za-z0-9:_.@][A-Za-z0-9:_.@-]*\.[A-Za-z0-9:_@-]+$" |text| {
        text.len() <= 255
            && text.rsplit_once('.').is_some_and(|(stem, suffix)| !stem.is_empty() && !suffix.is_empty())
            && !text.starts_with('-')
            && text.chars().all(|c| c.is_ascii_alphanumeric() || ":-_.@".contains(c))
    };
    /// A package's name, as dpkg (Debian policy 5.6.1) and rpm write it, optionally with `:ARCH`; of one of several versions beside each
    /// other, as rpm's kernels, with `@VERSION`.
    PackageName "a package name" like "^[A-Za-z0-9][A-Za-z0-9+._:@~^-]*$" |text| {
        (1..=200).contains(&text.len())
            && text.starts_with(|c: char| c.is_ascii_alphanumeric())
            && text.chars().all(|c| c.is_ascii_alphanumeric() || "+-._:@~^".contains(c))
    };
    /// The name of a machine beside the one under test: also a host name there (RFC 1123).
    MachineName "a machine's name: a lower-case letter, then letters, digits and -" like "^[a-z][a-z0-9-]{0,19}$" |text| {
        (1..=20).contains(&text.len())
            && text.starts_with(|c: char| c.is_ascii_lowercase())
            && text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
    };
    /// A path in the scenario's folder: relative, with `/`, and never out of it.
    FolderPath "a path of a file in the scenario's folder" like "^[^/]" |text| {
        (1..=1024).contains(&text.len())
            && !text.chars().any(char::is_control)
            && text.split('/').all(|part| !part.is_empty() && part != "." && part != "..")
    };
    /// An absolute path without control characters.
    AbsolutePath "an absolute path" like "^/" |text| {
        text.starts_with('/') && text.len() <= 4096 && !text.chars().any(char::is_control)
    };
}

as_text!(
    Pattern "a regular expression" like "",
    JsonQuery "a JSONPath query such as \"$.status\"" like r"^\$",
    FileMode "permission bits in octal such as \"0644\"" like "^[0-7]{3,4}$",
    HttpUrl "an address http://HOST[:PORT]/PATH" like "^http://[^/]",
    Percent r#"a share such as "20%""# like r"^[0-9.+eE-]+\s*%$"
);
