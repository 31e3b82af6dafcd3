//! Stage 4, test, as the orchestrator sees it: the order's way into a clone.
//!
//! [`validate`] runs in the parent: it starts as many validations at once as the [`budget`] allows beside what others have taken ([`booking`]), in the order of the [`schedule`],
//! on the hosts of the [`pool`], as they are in good [`standing`], writes down what they say, and turns what comes back into verdicts; [`halt`] ends them all, when a signal says so ([`stop`]). Each is a
//! `pair` of an order and a baseline: it signs the [`provisional`] documents and starts a worker ([`job`]). [`worker`] runs inside: payload
//! server, inform sink and SNMP manager of that validation, and the [`applier`] that the lab calls. [`agent`] starts the agent in a guest, from the [`tools`] disk; [`managed`] is a host of the
//! demonstration; [`shell`] runs commands in a clone that was kept; [`trial`] runs a
//! scenario for who writes it; [`successor`] makes the machine that a baseline's successor is frozen from; [`versions`] only finds out
//! whether libvirt works.

pub mod agent;
pub mod applier;
pub mod bisection;
pub mod booking;
pub mod budget;
pub mod control;
pub mod halt;
pub mod job;
pub mod managed;
mod pair;
pub mod pool;
pub mod provisional;
pub mod schedule;
pub mod shell;
pub mod standing;
pub mod stop;
pub mod successor;
pub mod tools;
pub mod trial;
pub mod validate;
pub mod versions;
pub mod worker;
