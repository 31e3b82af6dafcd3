//! The agent: what runs on a managed host, and inside lab clones, alike.
//!
//! ```text
//! snmp      what a manager reads and writes          ─┐
//! run       one execution of an order, start to end   ├─ record: state, journaled before anything is done
//! change    what an order means here, and who does it: │
//! packages  the package manager, behind a trait,      │
//!           or the order's own script                ─┘
//! fetch     documents and files by digest, over HTTP
//! preflight  room and power; updaters, lock: who else changes packages here, and the wait for it
//! hooks     the site's own programs before and after the work
//! boot      the boot loader: a new kernel is booted once, and confirmed
//! reserve   room for what the agent must write to a full disk
//! staged    ways back, on the host before the change is made
//! production  the order's checks, on this host
//! catalog, profile  what is installed, by index and change; how busy the host's week is
//! enrolment  how a host comes to have an identity: by a token, once
//! trust     the root in force and the revocation list, and how they change
//! ```
//!
//! A manager writes an order row and starts a run over SNMP ([`snmp`]); the [`run`] engine fetches the documents, asks
//! [`patchlab_protocol::authorization::authorize`], fetches the files, lets the package manager simulate, and only then
//! acts. Everything that must survive the agent's end goes through [`record`] first, and what must survive the revert
//! of the host's disk through its [`ledger`]. SNMP credentials alone can neither install nor downgrade anything.

pub mod boot;
pub mod catalog;
pub mod change;
pub mod configuration;
pub mod description;
pub mod enrolment;
pub mod fetch;
pub mod hooks;
pub mod host;
pub mod inspection;
pub mod jobs;
pub mod journal;
pub mod ledger;
pub mod lock;
pub mod notify;
pub mod operator;
pub mod packages;
pub mod preflight;
pub mod process;
pub mod production;
pub mod profile;
pub mod record;
pub mod reserve;
pub mod run;
pub mod service;
pub mod snmp;
pub mod staged;
pub mod state;
pub mod target;
pub mod transition;
pub mod trust;
pub mod updaters;
