//! Orders as people write them, and their meaning.
//!
//! `order.toml` ([`Written`]) is drafted by [`crate::draft`] or written by hand, kept in version control and reviewed. It is
//! compiled ([`compile()`], pure) into the [`Order`](patchlab_protocol::document::Order) that is signed, validated and shipped:
//! the same file gives the same bytes, so the lab and production speak of one digest.

mod compile;
pub mod parts;
mod script;
mod written;

pub use compile::{OrderError, Place, compile, compile_file, named_after};
pub(crate) use script::{begins_with_interpreter, name as script_name};
pub use written::{Change, File, On, ReplacedFile, Replaces, Script, Shipped, ShippedFile, Upgrade, Written, schema};

#[cfg(test)]
mod tests;
