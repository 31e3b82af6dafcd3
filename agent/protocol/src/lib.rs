//! What both ends of the wire agree on.
//!
//! Four documents ([`document::Order`], [`document::Release`], [`document::Approval`], [`document::Activation`]) and
//! the [`document::Root`] that says whose signature counts, with [`document::Waiver`]s of what a release lacks; the
//! [`envelope`] they travel in; the [`authorization`] rule
//! that an agent enforces whatever SNMP says, and what may change whom it believes ([`trust`]); the signed
//! [`document::RunResult`] that comes back; the numbers of the [`mib`], with its [`time`]s; and how a host comes to be
//! enrolled: the [`token`] that it is brought, and what it and the server then say ([`admission`]).
//!
//! Used by the agent and by the orchestrator. Everything here is a pure function of its inputs: clocks, ledgers and
//! files are passed in.

pub mod admission;
pub mod authorization;
pub mod description;
pub mod document;
pub mod enrolment;
pub mod envelope;
pub mod inventory;
pub mod item;
pub mod key;
pub mod limits;
pub mod mib;
pub mod rate;
pub mod refusal;
pub mod time;
pub mod token;
pub mod trust;
pub mod usm;

pub use authorization::{Authorized, Ledger};
pub use envelope::Envelope;
pub use item::{Item, ItemState};
pub use key::{Audience, KeyId, PublicKey, Role, SigningKey};
pub use patchlab_check::{Boots, Digest, PackageSystem, package_system};
pub use rate::Rate;
pub use refusal::{Refusal, Refused};
pub use token::EnrolmentToken;
