//! Keys and who holds them.
//!
//! The root document says whose signature counts for what ([`root`]). Each key lives with its holder: drafters', approvers'
//! and operators' keys stay with people and are used on their command lines only ([`key`]); the release key is held by a process
//! of its own that the server talks to and cannot read ([`signer`]); only the activation key is the server's.

pub mod key;
pub mod root;
pub mod signer;
