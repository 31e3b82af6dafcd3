//! The SNMP manager as the pipeline sees it: read instances, read the next one, write several or none.

use std::{fmt, future::Future, pin::Pin};

/// An object identifier of an instance.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Oid(pub Vec<u32>);

impl Oid {
    /// An instance of a column: entry, column, index.
    pub fn of(entry: &[u32], column: u32, index: &[u32]) -> Self {
        Self(entry.iter().copied().chain([column]).chain(index.iter().copied()).collect())
    }

    /// The index of an instance of this column; `None` when it belongs to another one.
    pub fn index_in(&self, entry: &[u32], column: u32) -> Option<&[u32]> {
        self.0.strip_prefix(entry)?.strip_prefix(&[column])
    }
}

impl fmt::Display for Oid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().enumerate().try_for_each(|(n, arc)| write!(f, "{}{arc}", if n == 0 { "" } else { "." }))
    }
}

/// A value of an instance, as far as PATCHLAB-MIB uses them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// INTEGER.
    Integer(i64),
    /// Unsigned32, TimeTicks, counters.
    Unsigned(u64),
    /// OCTET STRING.
    Octets(Vec<u8>),
}

impl Value {
    /// The number it is.
    pub fn number(&self) -> Option<i64> {
        match self {
            Self::Integer(n) => Some(*n),
            Self::Unsigned(n) => i64::try_from(*n).ok(),
            Self::Octets(_) => None,
        }
    }

    /// The bytes it is.
    pub fn octets(&self) -> Option<&[u8]> {
        match self {
            Self::Octets(bytes) => Some(bytes),
            Self::Integer(_) | Self::Unsigned(_) => None,
        }
    }
}

/// The host, or the way to it, said no or nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ManagerError {
    /// Nothing came back, after all tries.
    #[error("{host}: no answer by SNMP after {tries} tries of {wait_ms} ms")]
    Silent {
        /// The host.
        host: String,
        /// How often it was asked.
        tries: u32,
        /// How long each time.
        wait_ms: u64,
    },
    /// What came back was not for us, or not by the host: keys, engine id, user.
    #[error("{host}: SNMPv3 security: {reason}; compare the host's agent.toml with its enrolment here")]
    Security {
        /// The host.
        host: String,
        /// The library's words.
        reason: String,
    },
    /// The agent refused a request, by error status.
    #[error("{host}: {action}: the agent answered {status} for {oid}")]
    Refused {
        /// The host.
        host: String,
        /// `get`, `set`, `get-next`.
        action: &'static str,
        /// Name of the error status (RFC 3416).
        status: &'static str,
        /// The instance it is about.
        oid: String,
    },
    /// The request would not fit.
    #[error("{host}: the request has {bytes} bytes, more than the {limit} that every path carries", limit = patchlab_protocol::limits::PDU_BYTES)]
    TooLarge {
        /// The host.
        host: String,
        /// Its size.
        bytes: usize,
    },
    /// The socket.
    #[error("{host}: {reason}")]
    Socket {
        /// The host.
        host: String,
        /// Why.
        reason: String,
    },
}

impl ManagerError {
    /// Whether asking again later may help.
    pub fn is_passing(&self) -> bool {
        matches!(self, Self::Silent { .. } | Self::Socket { .. })
    }
}

/// A future that can be stored, so that the trait can be an object.
pub type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T, ManagerError>> + Send + 'a>>;

/// One managed host's SNMP agent. Requests to one host follow one another; each is retried and given up by itself.
pub trait Manager: Send + Sync {
    /// The values of instances, in the order asked; `None` where there is none.
    fn get<'a>(&'a self, oids: &'a [Oid]) -> Answer<'a, Vec<Option<Value>>>;

    /// The instance after `oid`; `None` at the end.
    fn next<'a>(&'a self, oid: &'a Oid) -> Answer<'a, Option<(Oid, Value)>>;

    /// Writes all or nothing. A resent write must do no harm: that is the caller's choice of objects.
    fn set<'a>(&'a self, values: &'a [(Oid, Value)]) -> Answer<'a, ()>;
}
