//! How templates write moments and particulars: for people; the exact form stands beside it in attributes or in the JSON.

use std::{borrow::Borrow, fmt::Display};

use askama::{Result, Values, filter_fn};

use crate::legible::{self, moment_of};

/// `2026-11-30 22:58:03 UTC` of an RFC 3339 text.
#[filter_fn]
pub fn moment(at: impl Display, _: &dyn Values) -> Result<String> {
    Ok(moment_of(&at.to_string()))
}

/// `action apply, run 1` of a JSON object; report.json has the exact form.
#[filter_fn]
pub fn particulars(json: impl Display, _: &dyn Values) -> Result<String> {
    Ok(legible::particulars(&json.to_string()))
}

/// `4.2 s` of milliseconds.
#[filter_fn]
pub fn took(ms: impl Borrow<u64>, _: &dyn Values) -> Result<String> {
    Ok(legible::millis(*ms.borrow()))
}
