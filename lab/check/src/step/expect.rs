//! Expectations on what a command gave or a server answered. Pure: text in, the first that does not hold out.

use std::{borrow::Cow, collections::BTreeMap};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    evaluate::redacted,
    text::{JsonQuery, Pattern, REDACTED},
};
use crate::target::{Ended, Ran};

/// Expectations on a command's end and output; all given ones must hold.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Default, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Expect {
    /// Exit status; absent means 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exit: Option<i32>,
    /// All of standard output; line breaks at its end do not count.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stdout: Option<String>,
    /// Text that standard output must contain.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stdout_contains: Option<String>,
    /// Regular expression that must match somewhere in standard output.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stdout_matches: Option<Pattern>,
    /// Values in standard output, which must be one JSON document, by query.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub stdout_json: BTreeMap<JsonQuery, Value>,
    /// All of standard error; line breaks at its end do not count.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stderr: Option<String>,
    /// Text that standard error must contain.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stderr_contains: Option<String>,
    /// Regular expression that must match somewhere in standard error.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stderr_matches: Option<Pattern>,
    /// Values in standard error, which must be one JSON document, by query.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub stderr_json: BTreeMap<JsonQuery, Value>,
}

impl Expect {
    /// The first expectation that a command did not meet.
    pub(super) fn unmet(&self, ran: &Ran, timeout: std::time::Duration, redact: &[Pattern]) -> Option<String> {
        if ran.ended == Ended::ByTimeout {
            return Some(format!("it ran longer than {} s", timeout.as_secs_f32()));
        }
        let wanted = self.exit.unwrap_or(0);
        match ran.exit {
            None => return Some(format!("it was killed by a signal, expected exit {wanted}")),
            Some(exit) if exit != wanted => return Some(format!("exit {exit}, expected {wanted}")),
            Some(_) => {}
        }
        let stdout = Wanted {
            exactly: self.stdout.as_deref(),
            contains: self.stdout_contains.as_deref(),
            matches: self.stdout_matches.as_ref(),
            json: &self.stdout_json,
            redact,
        };
        let stderr = Wanted {
            exactly: self.stderr.as_deref(),
            contains: self.stderr_contains.as_deref(),
            matches: self.stderr_matches.as_ref(),
            json: &self.stderr_json,
            redact,
        };
        stdout.unmet("stdout", &ran.stdout).or_else(|| stderr.unmet("stderr", &ran.stderr))
    }
}

/// What a text must be, whatever it came from.
pub(super) struct Wanted<'a> {
    pub exactly: Option<&'a str>,
    pub contains: Option<&'a str>,
    pub matches: Option<&'a Pattern>,
    pub json: &'a BTreeMap<JsonQuery, Value>,
    /// What is not quoted of it.
    pub redact: &'a [Pattern],
}

impl Wanted<'_> {
    /// The first that does not hold, as a sentence about `what`.
    pub(super) fn unmet(&self, what: &str, text: &str) -> Option<String> {
        let bare = |text: &'_ str| text.trim_end_matches(['\n', '\r']).to_owned();
        self.exactly
            .filter(|wanted| bare(wanted) != bare(text))
            .map(|wanted| format!("{what} is {}, expected {wanted:?}", excerpt(&bare(&self.shown(text)))))
            .or_else(|| {
                let wanted = self.contains.filter(|wanted| !text.contains(wanted))?;
                Some(format!("{what} does not contain {wanted:?}"))
            })
            .or_else(|| {
                let pattern = self.matches.filter(|pattern| !pattern.is_match(text))?;
                Some(format!("{what} does not match {:?}", pattern.as_str()))
            })
            .or_else(|| self.json_unmet(what, text))
    }

    fn shown<'t>(&self, text: &'t str) -> Cow<'t, str> {
        if self.redact.is_empty() { text.into() } else { redacted(self.redact, text.to_owned()).into() }
    }

    fn json_unmet(&self, what: &str, text: &str) -> Option<String> {
        if self.json.is_empty() {
            return None;
        }
        // A secret is told by what stands around it, so a value is quoted from the document without secrets, as far as it still is one.
        let shown = self.shown(text);
        let legible: Option<Value> = (shown != text).then(|| serde_json::from_str(&shown).unwrap_or_default());
        let document: Value = match serde_json::from_str(text) {
            Ok(document) => document,
            Err(error) => return Some(format!("{what} is not JSON: {error}")),
        };
        self.json.iter().find_map(|(query, wanted)| {
            let found = query.all(&document);
            let holds = match (found.as_slice(), wanted) {
                ([one], wanted) if same(one, wanted) => true,
                (found, Value::Array(wanted)) => {
                    found.len() == wanted.len() && found.iter().zip(wanted).all(|(a, b)| same(a, b))
                }
                _ => false,
            };
            let shown = match found.as_slice() {
                [] => Cow::Borrowed("nothing"),
                [one] => match &legible {
                    None => excerpt(&one.to_string()).into(),
                    Some(legible) => match query.all(legible).as_slice() {
                        [one] => excerpt(&one.to_string()).into(),
                        _ => Cow::Borrowed(REDACTED),
                    },
                },
                many => format!("{} values", many.len()).into(),
            };
            (!holds).then(|| format!("{query} in {what} is {shown}, expected {wanted}"))
        })
    }
}

/// Equal as people mean it: `1` and `1.0` are one number.
fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => a == b || a.as_f64() == b.as_f64(),
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b)),
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len() && a.iter().all(|(key, a)| b.get(key).is_some_and(|b| same(a, b)))
        }
        (a, b) => a == b,
    }
}

/// The first characters of a text, quoted.
fn excerpt(text: &str) -> String {
    const SHOWN: usize = 120;
    match text.char_indices().nth(SHOWN) {
        None => format!("{text:?}"),
        Some((at, _)) => format!("{:?}…", &text[..at]),
    }
}
