//! Stage 5, deploy: an order carried to its hosts by SNMP, and what the hosts say came of it.
//!
//! [`manager`] is one host's agent as the pipeline sees it, [`snmp`] speaks to it, [`row`] is the order's way over the MIB
//! (push, start, follow, report), [`result`] decides what counts, [`sink`] hears informs, [`executor`] takes the hosts of an
//! activation, `room` keeps their order tables from being full, and [`preparation`] has them look at an order ahead of one. Between orders every host is visited ([`visits`]): what it is
//! to believe is offered by [`trust`] and noted by [`offers`], [`survey`] reads what changed there, and [`own`] what its own operator
//! did. [`rotation`] gives its users new keys, and [`snapshots`] bring hosts back that are machines themselves. The lab's worker uses [`row::push_and_run`] over the same manager for its clones, so that what is proven is the path that is
//! used.

pub mod credentials;
pub mod executor;
pub mod manager;
pub mod offers;
pub mod own;
pub mod preparation;
pub mod result;
mod room;
pub mod rotation;
pub mod row;
pub mod sink;
pub mod snapshots;
pub mod snmp;
pub mod survey;
pub mod trust;
pub mod visits;

pub use credentials::Credentials;
pub use manager::{Manager, ManagerError};
pub use row::{DeployError, Observer, Row, RunReport, push_and_run};
pub use snmp::{Patience, SnmpManager};
