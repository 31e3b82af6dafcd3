//! The one style sheet of console and report: system fonts, light and dark, readable when printed and by people who do not see
//! colours (every state is written out).

/// The sheet.
pub const SHEET: &str = include_str!("style.css");

/// What the page of a run adds to it.
pub const RUN: &str = include_str!("run.css");
