//! The real agent over real UDP and HTTP, with Net-SNMP's tools as the manager and a real dpkg or rpm below a root of its own.
//!
//! Needs root, the snmp tools, dpkg and apt, and rpm; without them every test says so and passes over.

// Helpers of tests are outside of test functions, where clippy's exception does not reach.
#![allow(clippy::unwrap_used)]

mod database;
mod host;
mod manager;
mod member;
mod orders;

mod actions;
mod coexistence;
mod conformance;
mod description;
mod files;
mod hooks;
mod hostile;
mod inform;
mod inspection;
mod kernels;
mod keys;
mod kills;
mod preflight;
mod reading;
mod reboot;
mod refusals;
mod restart;
mod rpm;
mod runs;
mod scripts;
mod sources;
mod trust;
mod waiting;
mod way_back;
