//! Stage 4, test, as the orchestrator sees it: the order's way into a clone.
//!
//! [`validate`] runs in the parent: it signs the [`provisional`] documents, starts one worker a baseline ([`job`]) and turns what
//! comes back into a verdict. [`worker`] runs inside: payload server, inform sink and SNMP manager of that validation, and the
//! [`applier`] that the lab calls. [`agent`] starts the agent in a guest, from the [`tools`] disk; [`managed`] is a host of the
//! demonstration; [`shell`] runs commands in a clone that was kept; [`trial`] runs a
//! scenario for who writes it; [`versions`] only finds out whether libvirt works.

pub mod agent;
pub mod applier;
pub mod job;
pub mod managed;
pub mod provisional;
pub mod shell;
pub mod tools;
pub mod trial;
pub mod validate;
pub mod versions;
pub mod worker;
