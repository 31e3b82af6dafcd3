//! Keys and who holds them.
//!
//! The root document says whose signature counts for what ([`root`]). Each key lives with its holder: drafters', approvers'
//! and operators' keys stay with people and are used on their command lines only ([`key`]); the release key is held by a process
//! of its own that the server talks to and cannot read ([`signer`]); only the activation key is the server's. What the signer
//! signs is a pure function of the lab's verdict ([`release`]). What the server and its hosts believe changes by a rotation of the
//! root ([`rotation`]) and by lists of what was revoked ([`revocation`]); [`authority`] keeps what is in force. Between labs
//! keepers vouch for baselines ([`baseline`]), and only a released order makes a baseline's successor ([`succession`]).

pub mod authority;
pub mod baseline;
pub mod key;
pub mod release;
pub mod revocation;
pub mod root;
pub mod rotation;
pub mod signer;
pub mod succession;
