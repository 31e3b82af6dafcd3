//! The orchestrator: the five stages of a patch's way, the store, the API, the console and the command line.
//!
//! An order comes in by [`pipeline`], which asks [`gate`] before every act and journals it in [`store`], whose log [`audit`]
//! can check. [`window`] says when it counts, [`deploy`] carries it to hosts by SNMP, [`payload`] serves them documents and files,
//! [`api`] is what clients and the console see, [`trust`] holds keys apart, [`report`] tells the story afterwards, and [`cli`] is the one
//! front door.

pub mod api;
pub mod audit;
pub mod cli;
pub mod demo;
pub mod deploy;
pub mod draft;
pub mod enrol;
pub mod gate;
pub mod lab;
pub mod legible;
pub mod order;
pub mod payload;
pub mod pipeline;
pub mod place;
pub mod report;
pub mod schema;
pub mod serve;
pub mod store;
pub mod trust;
pub mod window;
