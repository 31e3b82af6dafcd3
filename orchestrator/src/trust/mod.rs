//! Keys and who holds them.
//!
//! The root document says whose signature counts for what ([`root`]). Each key lives with its holder: drafters', approvers'
//! and operators' keys stay with people and are used on their command lines only ([`key`]); the release key is held by a process
//! of its own that the server talks to and cannot read ([`signer`]); only the activation key is the server's. What the signer
//! signs is a pure function of the lab's verdict ([`release`]). Between labs keepers vouch for baselines ([`baseline`]), and only a released
//! order makes a baseline's successor ([`succession`]).

pub mod baseline;
pub mod key;
pub mod release;
pub mod root;
pub mod signer;
pub mod succession;
