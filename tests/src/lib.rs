//! End-to-end tests, the fleet simulator and benches: what needs the whole workspace at once.

pub mod agent_bench;
pub mod bare_qemu;
mod bootable;
pub mod clone_bench;
pub mod cloud_image;
pub mod daemon;
pub mod isolation;
pub mod killed;
pub mod mount_namespace;
pub mod own_machine;
pub mod package;
pub mod parallel_bench;
pub mod program;
pub mod rpm_system;
pub mod served;
pub mod succession;
pub mod third_opinion;
pub mod trial;
pub mod validate_bench;
