//! The lab: baselines, machines, scenarios, verdicts. Knows no SNMP and no orders.
//!
//! A [`baseline`] is built from a recipe and frozen while it runs; a [`machine`] is a clone of one, made through libvirt inside a
//! [`worker`] that lives in a network namespace of its own; a [`scenario`] is a folder of steps; a [`verdict`] is what control
//! and patched clone say together, a [`failure`] whose that is; [`runs`] are their records, and [`kept`] clones can be looked into
//! later. How a patch gets onto a machine is the caller's business: [`applier::Applier`].

pub mod accelerator;
pub mod applier;
pub mod apt;
pub mod artifact;
pub mod baseline;
pub mod bisection;
pub mod control;
pub mod diff;
pub mod dnf;
pub mod failure;
pub mod gc;
pub mod host;
pub mod host_memory;
pub mod junit;
pub mod kept;
pub mod ledger;
pub mod machine;
pub mod manifest;
pub mod places;
pub mod recipe;
pub mod relief;
pub mod report;
pub mod room;
pub mod runs;
pub mod scenario;
pub mod snapshot;
pub mod validation;
pub mod verdict;
pub mod worker;

pub use artifact::{ArtifactError, ArtifactStore};
pub use baseline::Baseline;
pub use host::LabHost;
pub use host_memory::HostMemory;
pub use machine::{Guest, Lab, LabError, Machine};
pub use manifest::Manifest;
pub use places::Places;
