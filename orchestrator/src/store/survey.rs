//! What hosts have installed, and how busy their week is, as they last said. What was seen needs no row in the audit log.

use jiff::Timestamp;
use patchlab_protocol::inventory::Source;
use rusqlite::{Row as SqlRow, Transaction, TransactionBehavior, params};
use serde::{Deserialize, Serialize};

use super::{Store, StoreError, failed, first, number, optional_parsed, optional_text, parse, text};
use crate::deploy::survey::{Described, Hour, Package, Packages};

/// What is known of a host beyond its enrolment.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Survey {
    /// What is installed there.
    #[serde(flatten)]
    pub packages: Packages,
    /// When that was last read, RFC 3339.
    pub packages_at: Option<String>,
    /// Its week, as far as it saw it.
    pub week: Vec<Hour>,
    /// When that was last read, RFC 3339.
    pub week_at: Option<String>,
    /// What it is and does; `None` before it was read.
    #[serde(default)]
    pub description: Option<Described>,
    /// When that was last read, RFC 3339.
    #[serde(default)]
    pub description_at: Option<String>,
}

impl Store {
    /// What is known of a host; nothing before it was ever asked.
    pub fn survey(&self, host: &str) -> Result<Survey, StoreError> {
        let head = first(&self.read(), "read a survey", "SELECT * FROM survey WHERE host = ?1", [host], survey_row)?;
        let mut survey = head.unwrap_or_default();
        let sql = "SELECT * FROM host_description WHERE host = ?1";
        let described = first(&self.read(), "read what a host does", sql, [host], description_row)?;
        (survey.description, survey.description_at) = described.unzip();
        survey.packages.packages = self.rows(
            "read a host's packages",
            "SELECT * FROM host_package WHERE host = ?1 ORDER BY number",
            [host],
            package_row,
        )?;
        Ok(survey)
    }

    /// When a host's week was last read, RFC 3339.
    pub fn week_read_at(&self, host: &str) -> Result<Option<String>, StoreError> {
        let sql = "SELECT week_at FROM survey WHERE host = ?1";
        Ok(first(&self.read(), "read a survey", sql, [host], |row| optional_text(row, "week_at"))?.flatten())
    }

    /// Keeps what is installed on a host.
    pub fn keep_packages(&self, host: &str, packages: &Packages, at: Timestamp) -> Result<(), StoreError> {
        self.keep("keep a host's packages", |transaction| {
            transaction.execute(
                "INSERT INTO survey VALUES (?1, ?2, ?3, ?4, '[]', NULL)
                 ON CONFLICT (host) DO UPDATE SET inventory = ?2, change = ?3, packages_at = ?4",
                params![host, packages.inventory.map(|digest| digest.to_string()), packages.change, at.to_string()],
            )?;
            transaction.execute("DELETE FROM host_package WHERE host = ?1", [host])?;
            let mut insert =
                transaction.prepare_cached("INSERT INTO host_package VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)")?;
            for Package { index, change, name, arch, version, source } in &packages.packages {
                let source = source.as_ref().map(|source| [&*source.name, &*source.version]).unwrap_or_default();
                insert.execute(params![host, index, change, name, arch, version, source[0], source[1]])?;
            }
            Ok(())
        })
    }

    /// Keeps what a host is and does.
    pub fn keep_description(&self, host: &str, described: &Described, at: Timestamp) -> Result<(), StoreError> {
        // Texts and numbers: serialisation cannot fail.
        let text = serde_json::to_string(&described.description).unwrap_or_else(|_| "{}".into());
        self.keep("keep what a host does", |transaction| {
            transaction.execute(
                "INSERT INTO host_description VALUES (?1, ?2, ?3, ?4)
                 ON CONFLICT (host) DO UPDATE SET digest = ?2, description = ?3, read_at = ?4",
                params![host, described.digest.to_string(), text, at.to_string()],
            )?;
            Ok(())
        })
    }

    /// Keeps a host's week.
    pub fn keep_week(&self, host: &str, week: &[Hour], at: Timestamp) -> Result<(), StoreError> {
        // Numbers: serialisation cannot fail.
        let text = serde_json::to_string(week).unwrap_or_else(|_| "[]".into());
        self.keep("keep a host's week", |transaction| {
            transaction.execute(
                "INSERT INTO survey VALUES (?1, NULL, 0, NULL, ?2, ?3)
                 ON CONFLICT (host) DO UPDATE SET week = ?2, week_at = ?3",
                params![host, text, at.to_string()],
            )?;
            Ok(())
        })
    }

    fn keep(
        &self,
        action: &'static str,
        body: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<()>,
    ) -> Result<(), StoreError> {
        let mut connection = self.read();
        let transaction =
            connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(failed(action))?;
        body(&transaction).and_then(|()| transaction.commit()).map_err(failed(action))
    }
}

fn survey_row(row: &SqlRow<'_>) -> Result<Survey, StoreError> {
    let week = text(row, "week")?;
    let read = serde_json::from_str(&week).map_err(|_| StoreError::Corrupt { what: "a host's week", value: week });
    Ok(Survey {
        packages: Packages {
            inventory: optional_parsed(row, "inventory")?,
            change: small(row, "change")?,
            packages: Vec::new(),
        },
        packages_at: optional_text(row, "packages_at")?,
        week: read?,
        week_at: optional_text(row, "week_at")?,
        description: None,
        description_at: None,
    })
}

fn description_row(row: &SqlRow<'_>) -> Result<(Described, String), StoreError> {
    let said = text(row, "description")?;
    let read = serde_json::from_str(&said);
    let description = read.map_err(|_| StoreError::Corrupt { what: "what a host does", value: said })?;
    Ok((Described { digest: parse("digest", text(row, "digest")?)?, description }, text(row, "read_at")?))
}

fn package_row(row: &SqlRow<'_>) -> Result<Package, StoreError> {
    Ok(Package {
        index: small(row, "number")?,
        change: small(row, "change")?,
        name: text(row, "name")?,
        arch: text(row, "arch")?,
        version: text(row, "version")?,
        source: Source::new(&text(row, "source")?, &text(row, "source_version")?),
    })
}

fn small(row: &SqlRow<'_>, column: &'static str) -> Result<u32, StoreError> {
    let value = number(row, column)?;
    u32::try_from(value).map_err(|_| StoreError::Corrupt { what: column, value: value.to_string() })
}
