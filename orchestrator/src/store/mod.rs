//! The store: one SQLite file with what the server must not forget. Documents and verdicts as they came, the state of every
//! order, deployment and run, the hosts, and the audit log.
//!
//! Only `serve` opens it, one process a data folder. Every change is one transaction that also appends to the audit log,
//! and is committed *before* the act it speaks of: a killed server finds here what it was about to do. Calls block for
//! a disk write at most; asynchronous callers go through a blocking thread.

mod deployment;
mod document;
mod host;
mod order;
mod preparation;
mod run;
mod snapshot;
mod survey;
mod token;
mod trust;
mod waiver;

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    str::FromStr,
    sync::{Mutex, MutexGuard, PoisonError},
};

use patchlab_protocol::Digest;
use rusqlite::{Connection, OptionalExtension as _, Row as SqlRow, Transaction, TransactionBehavior, params};
use rusqlite_migration::{M, Migrations};
use serde::de::DeserializeOwned;

pub use deployment::{Deployment, DeploymentState, action_name};
pub use document::DocumentKind;
pub use host::{Host, NewHost};
pub use order::{ApprovalRow, OrderRow, OrderState, Ties, VerdictRow};
pub use preparation::{PreparationEnd, PreparationRow};
pub use run::{Run, RunEnd, RunProgress, Stage, Verified};
pub use snapshot::{HostMachine, NewSnapshot, Snapshot, SnapshotMove, SnapshotState};
pub use survey::Survey;
pub use token::{NewToken, TokenRow, TokenState};
pub use trust::{HostTrust, OfferState};
pub use waiver::WaiverRow;

use crate::audit::{self, Event};

/// The schema, one entry a version; never edited once shipped, only appended to.
const MIGRATIONS: &[M<'static>] = &[
    M::up(include_str!("schema.sql")),
    M::up(include_str!("schema-2-trust.sql")),
    M::up(include_str!("schema-3-survey.sql")),
    M::up(include_str!("schema-4-preparation.sql")),
    M::up(include_str!("schema-5-description.sql")),
    M::up(include_str!("schema-6-token.sql")),
    M::up(include_str!("schema-7-snapshot.sql")),
    M::up(include_str!("schema-8-source.sql")),
    M::up(include_str!("schema-9-waiver.sql")),
    M::up(include_str!("schema-10-superseded.sql")),
];

/// The open store.
#[derive(Debug)]
pub struct Store {
    connection: Mutex<Connection>,
}

/// The store could not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The file could not be opened.
    #[error("store {path}: cannot be opened: {source}", path = path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        source: rusqlite::Error,
    },
    /// The schema could not be brought up to date.
    #[error("store {path}: its schema cannot be brought up to date; a newer patchlab may have written it: {source}", path = path.display())]
    Migrate {
        /// The file.
        path: PathBuf,
        /// Why.
        source: rusqlite_migration::Error,
    },
    /// A statement failed.
    #[error("store: cannot {action}: {source}")]
    Query {
        /// What was tried.
        action: &'static str,
        /// Why it failed; a full disk shows here.
        source: rusqlite::Error,
    },
    /// No such thing.
    #[error("no {what} {name:?}")]
    NotFound {
        /// Order, host, document.
        what: &'static str,
        /// The name asked for.
        name: String,
    },
    /// There is another one by that name.
    #[error("{what} {name:?} is there already, with another content; {next}")]
    Conflict {
        /// Order, host.
        what: &'static str,
        /// The name.
        name: String,
        /// What to do.
        next: &'static str,
    },
    /// The state machine does not allow it.
    #[error("{what} {name} is {from}, and cannot become {to}")]
    Transition {
        /// Order, run, deployment.
        what: &'static str,
        /// The name.
        name: String,
        /// The state it is in.
        from: &'static str,
        /// The state asked for.
        to: &'static str,
    },
    /// A stored value cannot be read.
    #[error("store: {what} is not readable ({value:?}): the file was changed by something else")]
    Corrupt {
        /// Which value.
        what: &'static str,
        /// What stands there.
        value: String,
    },
}

pub(crate) fn failed(action: &'static str) -> impl FnOnce(rusqlite::Error) -> StoreError {
    move |source| StoreError::Query { action, source }
}

impl Store {
    /// Opens the store, made when absent, and brings its schema up to date.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let open = |source| StoreError::Open { path: path.to_owned(), source };
        let mut connection = Connection::open(path).map_err(open)?;
        connection.pragma_update(None, "journal_mode", "wal").map_err(open)?;
        // The journal promises that what was committed survives a power cut.
        connection.pragma_update(None, "synchronous", "full").map_err(open)?;
        connection.pragma_update(None, "foreign_keys", true).map_err(open)?;
        connection.busy_timeout(std::time::Duration::from_secs(5)).map_err(open)?;
        Migrations::from_slice(MIGRATIONS)
            .to_latest(&mut connection)
            .map_err(|source| StoreError::Migrate { path: path.to_owned(), source })?;
        Ok(Self { connection: Mutex::new(connection) })
    }

    /// A panic in another thread leaves at most a transaction behind that was rolled back.
    pub(crate) fn read(&self) -> MutexGuard<'_, Connection> {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One change and its row in the audit log, together or not at all.
    pub(crate) fn change<T>(
        &self,
        action: &'static str,
        event: &Event,
        body: impl FnOnce(&Transaction<'_>) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let mut connection = self.read();
        let transaction =
            connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(failed(action))?;
        let value = body(&transaction)?;
        append(&transaction, event)?;
        transaction.commit().map_err(failed(action))?;
        Ok(value)
    }

    /// Appends an event that changes nothing else.
    pub fn record(&self, event: &Event) -> Result<(), StoreError> {
        self.change("append to the audit log", event, |_| Ok(()))
    }

    /// The audit log in order, at most `limit` rows after row `after`.
    pub fn audit(&self, after: u64, limit: u32) -> Result<Vec<audit::Row>, StoreError> {
        self.rows(
            "read the audit log",
            "SELECT * FROM audit WHERE seq > ?1 ORDER BY seq LIMIT ?2",
            params![to_i64(after), limit],
            audit_row,
        )
    }

    /// The newest rows, oldest first.
    pub fn audit_tail(&self, rows: u32) -> Result<Vec<audit::Row>, StoreError> {
        self.rows(
            "read the audit log",
            "SELECT * FROM (SELECT * FROM audit ORDER BY seq DESC LIMIT ?1) ORDER BY seq",
            params![rows],
            audit_row,
        )
    }

    /// The digest of the newest row.
    pub fn audit_head(&self) -> Result<Digest, StoreError> {
        Ok(newest(&self.read())?.map_or_else(audit::genesis, |row| row.digest))
    }

    /// Checks the whole log, against itself and against the heads that hosts have signed.
    pub fn audit_verify(&self) -> Result<(u64, Vec<audit::Finding>), StoreError> {
        let rows = self.audit(0, u32::MAX)?;
        // What a host saw last, and what it signed in every result before: a log that was rewritten may have shown it a newer head since.
        let last = self.hosts()?.into_iter().filter_map(|host| Some((host.enrolled.name, host.audit_head?)));
        let seen: BTreeSet<(String, Digest)> = last.chain(self.signed_heads()?).collect();
        let witnesses: Vec<_> = seen.into_iter().map(|(host, head)| audit::Witness { host, head }).collect();
        Ok((rows.len() as u64, audit::verify(&rows, &witnesses)))
    }

    /// All rows of a query.
    pub(crate) fn rows<T>(
        &self,
        action: &'static str,
        sql: &str,
        parameters: impl rusqlite::Params,
        map: fn(&SqlRow<'_>) -> Result<T, StoreError>,
    ) -> Result<Vec<T>, StoreError> {
        let connection = self.read();
        let mut statement = connection.prepare_cached(sql).map_err(failed(action))?;
        let mut rows = statement.query(parameters).map_err(failed(action))?;
        let mut all = Vec::new();
        while let Some(row) = rows.next().map_err(failed(action))? {
            all.push(map(row)?);
        }
        Ok(all)
    }
}

/// Appends a row inside a transaction.
fn append(connection: &Connection, event: &Event) -> Result<(), StoreError> {
    let row = audit::Row::after(newest(connection)?.as_ref(), event);
    connection
        .execute(
            "INSERT INTO audit VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
            params![
                to_i64(row.seq),
                row.at,
                row.actor,
                row.event,
                row.subject,
                row.detail,
                row.previous.to_string(),
                row.digest.to_string()
            ],
        )
        .map_err(failed("append to the audit log"))?;
    Ok(())
}

fn newest(connection: &Connection) -> Result<Option<audit::Row>, StoreError> {
    first(connection, "read the audit log", "SELECT * FROM audit ORDER BY seq DESC LIMIT 1", [], audit_row)
}

/// The first row of a query, if there is one.
pub(crate) fn first<T>(
    connection: &Connection,
    action: &'static str,
    sql: &str,
    parameters: impl rusqlite::Params,
    map: fn(&SqlRow<'_>) -> Result<T, StoreError>,
) -> Result<Option<T>, StoreError> {
    connection.query_row(sql, parameters, |row| Ok(map(row))).optional().map_err(failed(action))?.transpose()
}

fn audit_row(row: &SqlRow<'_>) -> Result<audit::Row, StoreError> {
    Ok(audit::Row {
        seq: number(row, "seq")?,
        at: text(row, "at")?,
        actor: text(row, "actor")?,
        event: text(row, "event")?,
        subject: text(row, "subject")?,
        detail: text(row, "detail")?,
        previous: parsed(row, "previous")?,
        digest: parsed(row, "digest")?,
    })
}

/// A text column.
pub(crate) fn text(row: &SqlRow<'_>, column: &'static str) -> Result<String, StoreError> {
    row.get(column).map_err(failed(column))
}

/// A text column that may be null.
pub(crate) fn optional_text(row: &SqlRow<'_>, column: &'static str) -> Result<Option<String>, StoreError> {
    row.get(column).map_err(failed(column))
}

/// A column of a number that is never negative.
pub(crate) fn number(row: &SqlRow<'_>, column: &'static str) -> Result<u64, StoreError> {
    let value: i64 = row.get(column).map_err(failed(column))?;
    u64::try_from(value).map_err(|_| StoreError::Corrupt { what: column, value: value.to_string() })
}

/// A text column that is the written form of something.
pub(crate) fn parsed<T: FromStr>(row: &SqlRow<'_>, column: &'static str) -> Result<T, StoreError> {
    parse(column, text(row, column)?)
}

/// The same, or null.
pub(crate) fn optional_parsed<T: FromStr>(row: &SqlRow<'_>, column: &'static str) -> Result<Option<T>, StoreError> {
    optional_text(row, column)?.map(|value| parse(column, value)).transpose()
}

pub(crate) fn parse<T: FromStr>(what: &'static str, value: String) -> Result<T, StoreError> {
    value.parse().map_err(|_| StoreError::Corrupt { what, value })
}

/// A text column that holds JSON.
pub(crate) fn from_json<T: DeserializeOwned>(row: &SqlRow<'_>, column: &'static str) -> Result<T, StoreError> {
    let value = text(row, column)?;
    serde_json::from_str(&value).map_err(|_| StoreError::Corrupt { what: column, value })
}

/// SQLite's integers are signed; counters here never come near the difference.
pub(crate) fn to_i64(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// Declares an enum that is stored and shown by name.
macro_rules! named {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $text:literal),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
        #[serde(rename_all = "kebab-case")]
        pub enum $name { $($(#[$variant_doc])* $variant),* }

        impl $name {
            /// Every one.
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// Its name, as stored and shown.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $text),* }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(self.name())
            }
        }

        impl std::str::FromStr for $name {
            type Err = ();
            fn from_str(text: &str) -> Result<Self, ()> {
                Self::ALL.iter().copied().find(|one| one.name() == text).ok_or(())
            }
        }
    };
}
pub(crate) use named;

#[cfg(test)]
mod tests;
