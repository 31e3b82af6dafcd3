//! Enrolment tokens: what was decided about a host that is still to come, until when, and which key came with the secret.

use std::collections::BTreeMap;

use jiff::Timestamp;
use patchlab_protocol::{Digest, PublicKey, admission::Denial};
use rusqlite::{Row as SqlRow, Transaction, params};
use serde::{Deserialize, Serialize};

use super::{
    NewHost, Store, StoreError, append, failed, first, from_json, host, named, number, optional_parsed, parsed, text,
    to_i64,
};
use crate::{audit::Event, enrol::HostTerms};

named! {
    /// Where a token is.
    TokenState {
        /// Nobody has used it.
        Open = "open",
        /// A host was enrolled with it.
        Used = "used",
        /// It was taken back, or its time was over when another took its place.
        Revoked = "revoked",
    }
}

/// A token to be kept.
#[derive(Debug)]
pub struct NewToken<'a> {
    /// The host's name.
    pub host: &'a str,
    /// Digest of its secret.
    pub secret: Digest,
    /// Digest of the root document that the token names.
    pub root: Digest,
    /// What was decided about the host.
    pub terms: &'a HostTerms,
    /// Who made it.
    pub made_by: &'a str,
    /// Its last moment.
    pub not_after: Timestamp,
}

/// A token as kept, without its secret's digest, which is nobody's business.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenRow {
    /// Its number, from 1.
    pub number: u64,
    /// The host's name.
    pub host: String,
    /// Digest of the root document that the token names.
    pub root: Digest,
    /// What was decided about the host.
    pub terms: HostTerms,
    /// Who made it.
    pub made_by: String,
    /// When, RFC 3339.
    pub made_at: String,
    /// Its last moment.
    pub not_after: Timestamp,
    /// Where it is; an open one may be past its time.
    pub state: TokenState,
    /// The key that was enrolled with it.
    pub public_key: Option<PublicKey>,
    /// How many were turned away with its secret, by why.
    pub refusals: BTreeMap<Denial, u64>,
}

impl Store {
    /// Keeps a token. There is at most one a host that can still be used.
    ///
    /// # Errors
    /// When the host is enrolled, or has a token that can still be used.
    pub fn keep_token(&self, token: &NewToken<'_>, event: &Event) -> Result<(), StoreError> {
        let conflict = |what, next| StoreError::Conflict { what, name: token.host.to_owned(), next };
        let sql = |error| StoreError::Query { action: "keep an enrolment token", source: error };
        let terms = written(token.terms)?;
        self.change("keep an enrolment token", event, |transaction| {
            let hosts: i64 = transaction
                .query_row("SELECT count(*) FROM host WHERE name = ?1", [token.host], |row| row.get(0))
                .map_err(sql)?;
            if hosts > 0 {
                return Err(conflict("host", "it is enrolled: choose another name"));
            }
            let open = first(
                transaction,
                "find an enrolment token",
                "SELECT * FROM enrolment_token WHERE host = ?1 AND state = 'open'",
                [token.host],
                token_row,
            )?;
            match open {
                Some(open) if open.not_after >= event.at => {
                    return Err(conflict("open token of host", "take it back first: patchlab host token revoke"));
                }
                Some(open) => move_to(transaction, open.number, TokenState::Revoked)?,
                None => {}
            }
            transaction
                .execute(
                    "INSERT INTO enrolment_token (host, secret, root, terms, made_by, made_at, not_after, state, refusals)
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, 'open', '{}')",
                    params![
                        token.host,
                        token.secret.to_string(),
                        token.root.to_string(),
                        terms,
                        token.made_by,
                        event.at.to_string(),
                        token.not_after.to_string()
                    ],
                )
                .map_err(sql)?;
            Ok(())
        })
    }

    /// Every token, oldest first.
    pub fn tokens(&self) -> Result<Vec<TokenRow>, StoreError> {
        self.rows("list enrolment tokens", "SELECT * FROM enrolment_token ORDER BY number", [], token_row)
    }

    /// The token of a secret.
    pub fn token(&self, secret: &Digest) -> Result<Option<TokenRow>, StoreError> {
        let sql = "SELECT * FROM enrolment_token WHERE secret = ?1";
        Ok(self.rows("find an enrolment token", sql, [secret.to_string()], token_row)?.pop())
    }

    /// Takes the open token of a host back.
    ///
    /// # Errors
    /// When there is none.
    pub fn revoke_token(&self, host: &str, event: &Event) -> Result<(), StoreError> {
        self.change("take an enrolment token back", event, |transaction| {
            let sql = "UPDATE enrolment_token SET state = 'revoked' WHERE host = ?1 AND state = 'open'";
            let changed = transaction.execute(sql, [host]).map_err(failed("take an enrolment token back"))?;
            if changed == 1 {
                Ok(())
            } else {
                Err(StoreError::NotFound { what: "open token of host", name: host.into() })
            }
        })
    }

    /// Enrols a host with an open token, and binds the token to its key: together or not at all.
    ///
    /// # Errors
    /// When the token is not open any more, or the host is there.
    pub fn admit(&self, token: u64, host: &NewHost, used: &Event, enrolled: &Event) -> Result<(), StoreError> {
        self.change("enrol a host by its token", enrolled, |transaction| {
            let sql = "UPDATE enrolment_token SET state = 'used', public_key = ?2 WHERE number = ?1 AND state = 'open'";
            let bound = transaction
                .execute(sql, params![to_i64(token), host.public_key.to_string()])
                .map_err(failed("use an enrolment token"))?;
            if bound != 1 {
                return Err(StoreError::NotFound { what: "open token of host", name: host.name.clone() });
            }
            host::insert(transaction, host, used.at)?;
            append(transaction, used)
        })
    }

    /// Counts one who was turned away with a token's secret, and says how many were for that reason. The first is an event; who asks
    /// over and over fills no log.
    pub fn token_refused(&self, token: u64, why: Denial, event: &Event) -> Result<u64, StoreError> {
        let action = "count a refusal";
        let mut connection = self.read();
        let transaction = connection.transaction().map_err(failed(action))?;
        let sql = "SELECT * FROM enrolment_token WHERE number = ?1";
        let Some(row) = first(&transaction, action, sql, [to_i64(token)], token_row)? else { return Ok(0) };
        let mut refusals = row.refusals;
        let count = refusals.entry(why).or_default();
        *count += 1;
        let count = *count;
        if count == 1 {
            append(&transaction, event)?;
        }
        let sql = "UPDATE enrolment_token SET refusals = ?2 WHERE number = ?1";
        transaction.execute(sql, params![to_i64(token), written(&refusals)?]).map_err(failed(action))?;
        transaction.commit().map_err(failed(action))?;
        Ok(count)
    }
}

fn move_to(transaction: &Transaction<'_>, number: u64, state: TokenState) -> Result<(), StoreError> {
    let sql = "UPDATE enrolment_token SET state = ?2 WHERE number = ?1";
    transaction.execute(sql, params![to_i64(number), state.name()]).map_err(failed("end an enrolment token"))?;
    Ok(())
}

fn written(value: &impl Serialize) -> Result<String, StoreError> {
    serde_json::to_string(value)
        .map_err(|error| StoreError::Corrupt { what: "an enrolment token", value: error.to_string() })
}

fn token_row(row: &SqlRow<'_>) -> Result<TokenRow, StoreError> {
    Ok(TokenRow {
        number: number(row, "number")?,
        host: text(row, "host")?,
        root: parsed(row, "root")?,
        terms: from_json(row, "terms")?,
        made_by: text(row, "made_by")?,
        made_at: text(row, "made_at")?,
        not_after: parsed(row, "not_after")?,
        state: parsed(row, "state")?,
        public_key: optional_parsed(row, "public_key")?,
        refusals: from_json(row, "refusals")?,
    })
}
