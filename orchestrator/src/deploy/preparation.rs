//! Preparations, carried to hosts: each is told to look at an order or to fetch it, all at once, since nothing is changed by that.
//! Journaled and followed like runs: a server that was killed takes them up again, and only what the host signs counts.

use patchlab_protocol::{Digest, document::RunState};
use serde_json::json;

use super::{
    executor::{ExecuteError, Executor, LIFETIME, said},
    result::{self, Expected, ResultError},
    row::{self, Observer, Progress, Row},
};
use crate::{
    audit::Event,
    store::{PreparationEnd, PreparationRow, StoreError, Verified},
};

impl Executor {
    /// Carries preparations out in the background.
    pub fn prepare(&self, rows: Vec<PreparationRow>) {
        for row in rows {
            let executor = self.clone();
            tokio::spawn(async move {
                if let Err(error) = executor.carry_preparation(&row).await {
                    tracing::error!(%error, host = row.host, "a preparation cannot go on");
                }
                executor.told();
            });
        }
    }

    /// One host. Only the store's own failure is an error: whatever the host does, the preparation has an end.
    async fn carry_preparation(&self, preparation: &PreparationRow) -> Result<(), StoreError> {
        let end = match self.follow_preparation(preparation).await {
            Ok(end) => end,
            Err(ExecuteError::Store(error)) => return Err(error),
            Err(error) => PreparationEnd {
                state: None,
                refusal: None,
                reason: error.to_string(),
                verified: Verified::No,
                heads: None,
            },
        };
        let detail = json!({
            "run": preparation.run, "order": preparation.order, "what": preparation.what, "state": end.state,
            "refusal": end.refusal, "reason": end.reason, "verified": end.verified,
        });
        let event = Event::new("preparation-ended", &preparation.host, detail).by(format!("host:{}", preparation.host));
        self.store.end_preparation(preparation, &end, &event)
    }

    async fn follow_preparation(&self, preparation: &PreparationRow) -> Result<PreparationEnd, ExecuteError> {
        let host = self.store.host(&preparation.host)?;
        let manager = self.offers.manager(&host).await?;
        self.meet(&manager, &host).await?;
        let row = Row {
            index: self.store.order_row(&preparation.host, &preparation.order)?,
            order: preparation.order,
            release: Some(preparation.release),
            approval: None,
            activation: None,
            uri: host.enrolled.payload_uri.clone(),
            lifetime: LIFETIME,
            window: None,
            preparation: Some(preparation.what),
        };
        let mut watcher = Watcher { executor: self, preparation };
        let report = row::push_and_run(&manager, &row, preparation.run, &mut watcher).await?;
        let expected = Expected {
            host: &preparation.host,
            key: &host.enrolled.public_key,
            order: &preparation.order,
            run: preparation.run,
            state: report.state,
        };
        let checked = match result::verify(report.signed.as_ref(), &expected) {
            Ok(result) if result.preparation != Some(preparation.what) => Err(ResultError::AboutElse("action")),
            Ok(result) => self.chain(&host, &manager, &result).await?.map(|()| result),
            Err(error) => Err(error),
        };
        let heads = match (&checked, &report.signed) {
            (Ok(result), Some(signed)) => Some((result::digest(signed), result.audit)),
            _ => None,
        };
        let (verified, reason) = match &checked {
            Ok(_) => (Verified::Yes, said(&report)),
            Err(error) => (Verified::No, error.to_string()),
        };
        Ok(PreparationEnd { state: Some(report.state), refusal: report.refusal, reason, verified, heads })
    }
}

/// Writes down how a preparation goes.
struct Watcher<'a> {
    executor: &'a Executor,
    preparation: &'a PreparationRow,
}

impl Watcher<'_> {
    fn note(&self, state: RunState, phase: &str) {
        // For people; what counts is entered at the end.
        if let Err(error) = self.executor.store.note_preparation(self.preparation, state, phase) {
            tracing::warn!(%error, host = self.preparation.host, "progress not stored");
        }
        self.executor.told();
    }
}

impl Observer for Watcher<'_> {
    fn known(&mut self) -> Option<Digest> {
        self.executor.store.host(&self.preparation.host).ok()?.result_head
    }

    fn moved(&mut self, progress: &Progress) {
        self.note(progress.state, &progress.phase);
    }

    fn hint(&mut self) -> std::pin::Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        let bell = self.executor.offers.bells.of(&self.preparation.host);
        Box::pin(async move { bell.notified().await })
    }
}
