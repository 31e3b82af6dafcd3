//! Runs: one execution of an order on a host, journaled before every act.

use patchlab_protocol::{
    Digest, Refusal,
    document::{RunResult, RunState},
};
use rusqlite::{Connection, Row as SqlRow, params};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{Store, StoreError, failed, first, named, number, optional_text, order, parsed, text};
use crate::audit::Event;

named! {
    /// Where a run is, on the manager's side.
    Stage {
        /// Nothing was sent.
        Planned = "planned",
        /// The order row is about to be, or is being, sent.
        Pushing = "pushing",
        /// The host was told to start.
        Running = "running",
        /// Somebody wants it to end before it changes its host; the host is told that as soon as it answers.
        Cancelling = "cancelling",
        /// The host said how it ended.
        Finished = "finished",
        /// Silence until its lifetime and more had passed; counts as failure.
        Lost = "lost",
        /// Never begun: a host before it failed.
        Skipped = "skipped",
    }
}

impl Stage {
    /// Whether `next` may follow. Pushing and running may be entered again: a restarted server repeats them, and both are
    /// idempotent on the host.
    pub fn allows(self, next: Self) -> bool {
        use Stage::{Cancelling, Finished, Lost, Planned, Pushing, Running, Skipped};
        match self {
            Planned => matches!(next, Pushing | Cancelling | Skipped),
            Pushing | Running => matches!(next, Pushing | Running | Cancelling | Finished | Lost),
            // Until it is never begun, or the host said how it ended; what is done with it meanwhile does not change that.
            Cancelling => matches!(next, Cancelling | Finished | Lost | Skipped),
            // A host that was silent may still be heard.
            Lost => matches!(next, Finished),
            Finished | Skipped => false,
        }
    }

    /// Where a run is that was here and is to be in `next`: one that is being cancelled stays so until it has ended.
    fn moved(self, next: Self) -> Self {
        match (self, next) {
            (Self::Cancelling, Self::Pushing | Self::Running) => Self::Cancelling,
            _ => next,
        }
    }

    /// Whether nothing follows without somebody's doing.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Finished | Self::Lost | Self::Skipped)
    }
}

named! {
    /// What the host's signature says of a result.
    Verified {
        /// No result yet.
        Pending = "pending",
        /// Signed by the host's enrolment key, about this run, in its place in the host's chain.
        Yes = "yes",
        /// Not so: it does not count.
        No = "no",
    }
}

/// A run as stored.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Run {
    /// The order.
    pub order: Digest,
    /// The host.
    pub host: String,
    /// The run index.
    pub run: u32,
    /// The activation it carries out.
    pub activation: Digest,
    /// Its place among the activation's hosts.
    pub position: u64,
    /// Where it is here.
    pub stage: Stage,
    /// Where it is on the host.
    pub state: Option<RunState>,
    /// What the host is doing.
    pub phase: String,
    /// 0 to 100.
    pub percent: u64,
    /// Why the host said no.
    pub refusal: Option<Refusal>,
    /// For people.
    pub reason: String,
    /// The whole report, JSON.
    pub report: Option<String>,
    /// Whether its result counts.
    pub verified: Verified,
    /// RFC 3339.
    pub started_at: String,
    /// RFC 3339.
    pub ended_at: Option<String>,
}

/// What is new about a run.
#[derive(Debug, Clone)]
pub struct RunProgress {
    /// Where it is here.
    pub stage: Stage,
    /// Where it is on the host.
    pub state: Option<RunState>,
    /// What the host is doing.
    pub phase: String,
    /// 0 to 100.
    pub percent: u32,
    /// Why the host said no.
    pub refusal: Option<Refusal>,
    /// For people.
    pub reason: String,
}

/// A verified end of a run: what changes with it, in one transaction.
#[derive(Debug, Clone)]
pub struct RunEnd {
    /// How it ended.
    pub progress: RunProgress,
    /// The whole report, JSON.
    pub report: String,
    /// Statement and signature, as they came.
    pub signed: Option<(Vec<u8>, Vec<u8>)>,
    /// Whether it counts.
    pub verified: Verified,
    /// The host's new result head and the audit head it signed.
    pub heads: Option<(Digest, Option<Digest>)>,
    /// The order the host has from now on; outer `None` leaves that as it was.
    pub current_order: Option<Option<Digest>>,
}

impl Store {
    /// The runs of a deployment, in the order in which hosts are taken.
    pub fn runs_of(&self, activation: &Digest) -> Result<Vec<Run>, StoreError> {
        self.rows(
            "list runs",
            "SELECT * FROM run WHERE activation = ?1 ORDER BY position",
            [activation.to_string()],
            run_row,
        )
    }

    /// Every run, newest first.
    pub fn runs(&self, limit: u32) -> Result<Vec<Run>, StoreError> {
        self.rows("list runs", "SELECT * FROM run ORDER BY rowid DESC LIMIT ?1", [limit], run_row)
    }

    /// The runs of an order, oldest first.
    pub fn runs_of_order(&self, order: &Digest) -> Result<Vec<Run>, StoreError> {
        self.rows("list runs", "SELECT * FROM run WHERE patch_order = ?1 ORDER BY rowid", [order.to_string()], run_row)
    }

    /// One run.
    pub fn run(&self, order: &Digest, host: &str, run: u32) -> Result<Run, StoreError> {
        find(&self.read(), order, host, run)
    }

    /// Journals what is about to be done with a run, before it is done. A run that ends the bounded way is [`Store::end_run`]'s.
    pub fn journal_run(&self, run: &Run, progress: &RunProgress, event: &Event) -> Result<(), StoreError> {
        self.change("journal a run", event, |transaction| update(transaction, run, progress))
    }

    /// Asks for the end of a run, before anybody is told; one that has ended is left as it is.
    pub fn cancel_run(&self, run: &Run, reason: &str, event: &Event) -> Result<Run, StoreError> {
        self.change("cancel a run", event, |transaction| {
            let there = find(transaction, &run.order, &run.host, run.run)?;
            if there.stage.is_final() {
                return Ok(there);
            }
            let progress = RunProgress {
                stage: Stage::Cancelling,
                state: there.state,
                phase: there.phase,
                percent: u32::try_from(there.percent).unwrap_or(0),
                refusal: there.refusal,
                reason: reason.to_owned(),
            };
            update(transaction, run, &progress)?;
            find(transaction, &run.order, &run.host, run.run)
        })
    }

    /// Notes how far a run is. The agent's tables are the truth, so this needs no audit row.
    pub fn note_run(&self, run: &Run, progress: &RunProgress) -> Result<(), StoreError> {
        update(&self.read(), run, progress)
    }

    /// Takes note of a signed result that this server had no part in: somebody pushed an order past it, or the host's own operator
    /// rolled one back. What the host has, and where the order is, follow the latter.
    pub fn foreign_result(&self, host: &str, result: &RunResult) -> Result<(), StoreError> {
        let name = if result.operator.is_some() { "operator-rollback" } else { "foreign-result" };
        let detail = json!({
            "run": result.run, "order": result.order, "state": result.state, "refusal": result.refusal,
            "operator": result.operator,
        });
        let event = Event::new(name, host, detail).by(format!("host:{host}"));
        self.change("note a result", &event, |transaction| {
            let (Some(uid), RunState::RolledBack) = (result.operator, result.state) else { return Ok(()) };
            let order = result.order.to_string();
            transaction
                .execute(
                    "UPDATE host SET current_order = NULL WHERE name = ?1 AND current_order = ?2",
                    params![host, order],
                )
                .map_err(failed("note the order a host has"))?;
            let reason = format!("rolled back on {host} by its own operator, uid {uid}");
            order::taken_back(transaction, &result.order, &reason, event.at)
        })
    }

    /// Moves a host's heads to a result that was taken note of, and to the audit head that it signed.
    pub fn move_head(&self, host: &str, result: &Digest, audit: Option<Digest>) -> Result<(), StoreError> {
        move_heads(&self.read(), host, Some((*result, audit)))
    }

    /// The audit heads that hosts signed into the results that are kept, and verified.
    pub(super) fn signed_heads(&self) -> Result<Vec<(String, Digest)>, StoreError> {
        let sql = "SELECT host, statement FROM run WHERE statement IS NOT NULL AND verified = ?1";
        let heads = self.rows("read what hosts signed", sql, [Verified::Yes.name()], |row| {
            let host: String = row.get("host").map_err(failed("read what hosts signed"))?;
            let statement: Vec<u8> = row.get("statement").map_err(failed("read what hosts signed"))?;
            let result: RunResult = serde_json::from_slice(&statement)
                .map_err(|error| StoreError::Corrupt { what: "statement", value: format!("{host}: {error}") })?;
            Ok(result.audit.map(|head| (host, head)))
        })?;
        Ok(heads.into_iter().flatten().collect())
    }

    /// Ends a run: its report, the host's heads and the order it has, together.
    pub fn end_run(&self, run: &Run, end: &RunEnd, event: &Event) -> Result<(), StoreError> {
        self.change("end a run", event, |transaction| {
            update(transaction, run, &end.progress)?;
            let (statement, signature) = end.signed.clone().unzip();
            transaction
                .execute(
                    "UPDATE run SET report = ?4, statement = ?5, signature = ?6, verified = ?7, ended_at = ?8
                     WHERE patch_order = ?1 AND host = ?2 AND run = ?3",
                    params![
                        run.order.to_string(),
                        run.host,
                        run.run,
                        end.report,
                        statement,
                        signature,
                        end.verified.name(),
                        event.at.to_string()
                    ],
                )
                .map_err(failed("end a run"))?;
            move_heads(transaction, &run.host, end.heads)?;
            if let Some(order) = end.current_order {
                transaction
                    .execute(
                        "UPDATE host SET current_order = ?2 WHERE name = ?1",
                        params![run.host, order.map(|order| order.to_string())],
                    )
                    .map_err(failed("note the order a host has"))?;
            }
            Ok(())
        })
    }
}

/// Moves a host's heads to its newest result, and to the audit head that it signed.
pub(super) fn move_heads(
    connection: &Connection,
    host: &str,
    heads: Option<(Digest, Option<Digest>)>,
) -> Result<(), StoreError> {
    let Some((result, audit)) = heads else { return Ok(()) };
    connection
        .execute(
            "UPDATE host SET result_head = ?2, audit_head = coalesce(?3, audit_head) WHERE name = ?1",
            params![host, result.to_string(), audit.map(|head| head.to_string())],
        )
        .map_err(failed("move a host's heads"))?;
    Ok(())
}

/// The run index that follows every one of this order on this host: it is the manager's, so a resent start starts nothing twice.
pub(super) fn next_index(connection: &Connection, order: &Digest, host: &str) -> Result<u32, StoreError> {
    connection
        .query_row(
            "SELECT coalesce(max(run), 0) + 1 FROM (
                 SELECT run FROM run WHERE patch_order = ?1 AND host = ?2
                 UNION ALL SELECT run FROM preparation WHERE patch_order = ?1 AND host = ?2)",
            params![order.to_string(), host],
            |row| row.get(0),
        )
        .map_err(failed("choose a run index"))
}

fn find(connection: &Connection, order: &Digest, host: &str, run: u32) -> Result<Run, StoreError> {
    let sql = "SELECT * FROM run WHERE patch_order = ?1 AND host = ?2 AND run = ?3";
    first(connection, "find a run", sql, params![order.to_string(), host, run], run_row)?
        .ok_or_else(|| StoreError::NotFound { what: "run", name: format!("{} on {host}, {run}", order.short()) })
}

fn update(connection: &Connection, run: &Run, progress: &RunProgress) -> Result<(), StoreError> {
    let there = find(connection, &run.order, &run.host, run.run)?;
    let stage = there.stage.moved(progress.stage);
    if !there.stage.allows(stage) {
        return Err(StoreError::Transition {
            what: "run",
            name: format!("{} on {}", run.run, run.host),
            from: there.stage.name(),
            to: stage.name(),
        });
    }
    connection
        .execute(
            "UPDATE run SET stage = ?4, state = ?5, phase = ?6, percent = ?7, refusal = ?8, reason = ?9
             WHERE patch_order = ?1 AND host = ?2 AND run = ?3",
            params![
                run.order.to_string(),
                run.host,
                run.run,
                stage.name(),
                progress.state.map(RunState::name),
                progress.phase,
                progress.percent,
                progress.refusal.map(Refusal::name),
                progress.reason
            ],
        )
        .map_err(failed("journal a run"))?;
    Ok(())
}

fn run_row(row: &SqlRow<'_>) -> Result<Run, StoreError> {
    let named = |column: &'static str| -> Result<Option<serde_json::Value>, StoreError> {
        Ok(optional_text(row, column)?.map(serde_json::Value::String))
    };
    let corrupt =
        |what: &'static str| move |error: serde_json::Error| StoreError::Corrupt { what, value: error.to_string() };
    Ok(Run {
        order: parsed(row, "patch_order")?,
        host: text(row, "host")?,
        run: u32::try_from(number(row, "run")?).unwrap_or(u32::MAX),
        activation: parsed(row, "activation")?,
        position: number(row, "position")?,
        stage: parsed(row, "stage")?,
        state: named("state")?.map(serde_json::from_value).transpose().map_err(corrupt("state"))?,
        phase: text(row, "phase")?,
        percent: number(row, "percent")?,
        refusal: named("refusal")?.map(serde_json::from_value).transpose().map_err(corrupt("refusal"))?,
        reason: text(row, "reason")?,
        report: optional_text(row, "report")?,
        verified: parsed(row, "verified")?,
        started_at: text(row, "started_at")?,
        ended_at: optional_text(row, "ended_at")?,
    })
}
