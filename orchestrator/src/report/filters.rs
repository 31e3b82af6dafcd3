//! How templates write moments: for people, with the exact form behind it for programs and on hover.

use std::fmt::Display;

use askama::{Result, Values, filter_fn};

use crate::legible::moment_of;

/// `2026-11-30 22:58:03 UTC` of an RFC 3339 text.
#[filter_fn]
pub fn moment(at: impl Display, _: &dyn Values) -> Result<String> {
    Ok(moment_of(&at.to_string()))
}
