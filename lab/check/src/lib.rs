//! Steps, expectations and their evaluation over a [`Target`].
//!
//! This is the leaf of the workspace: it knows nobody. The lab evaluates steps over a clone's guest channel, the agent
//! evaluates the same steps locally after a patch, so one meaning serves both. What flows through: a [`Step`] as a person
//! wrote it (TOML) or as a signed order carries it (JSON), and an [`Outcome`] that says what was seen.
//!
//! Beside the steps live the two things every reader of people's files needs: [`written`], which turns a TOML file into a
//! type or into an error with file, line and key, and [`Digest`], the name of content. And [`PackageSystem`], since steps, manifests, hosts and orders
//! must all read a system's packages by the same rules; [`Boots`], because they must say what a system boots in the same words.

pub mod boots;
pub mod digest;
pub mod package_system;
pub mod step;
pub mod target;
pub mod written;

pub use boots::Boots;
pub use digest::Digest;
pub use package_system::PackageSystem;
pub use step::{Outcome, Status, Step};
pub use target::Target;
