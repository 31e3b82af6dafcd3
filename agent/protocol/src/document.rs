//! The documents: what each says, and nothing about how it is stored or who may sign it (that is
//! [`crate::authorization`]).
//!
//! Each is immutable and named by the digest of its statement. An order names no release; a release names its order; an
//! approval names order and release; an activation names what it activates. A waiver names an order and what was found against it; it travels
//! in the release that rests on it.

mod activation;
mod approval;
mod order;
mod preparation;
mod release;
mod result;
mod revocation;
mod root;
pub mod script;
mod waiver;

pub use activation::{Action, Activation};
pub use approval::Approval;
pub use order::{
    Class, Kind, OnFailure, Order, Origin, PackageFile, ProductionCheck, RebootRule, RebootWhen, Replaced,
    RollbackClass, RollbackFiles, Severity,
};
pub use preparation::Preparation;
pub use release::{BaselineProof, Growth, Proof, Release, Rollback, TestResult};
pub use result::{Cause, Checks, REBOOT_ASKED_PERCENT, RunResult, RunState};
pub use revocation::{Revocation, Revoked};
pub use root::{Root, RootKey, Scheme};
pub use script::{FileName, Script, ShippedFile, Standing};
pub use waiver::{Waived, Waiver};
