//! The console's first page: orders, hosts, runs and the newest audit rows, rendered here, readable without scripts.

use std::sync::Arc;

use askama::Template;
use axum::{extract::State, response::Html};
use patchlab_lab::verdict::Judgement;

use super::{ApiError, failed};
use crate::{
    audit,
    pipeline::Pipeline,
    report::{filters, style, told},
    store::{Host, OrderRow, Run, StoreError, WaiverRow},
};

const AUDIT_ROWS: u32 = 20;
const RUN_ROWS: u32 = 50;

#[derive(Template)]
#[template(path = "console.html")]
struct Console {
    style: &'static str,
    version: &'static str,
    now: String,
    orders: Vec<(OrderRow, String, Vec<WaiverRow>)>,
    hosts: Vec<(Host, String)>,
    runs: Vec<(Run, String)>,
    audit: Vec<audit::Row>,
}

impl Console {
    fn read(pipeline: &Pipeline) -> Result<Self, StoreError> {
        let store = &pipeline.store;
        let orders = store.orders()?;
        let name = |digest: &patchlab_protocol::Digest| {
            orders.iter().find(|order| order.digest == *digest).map_or_else(|| digest.short(), |order| order.id.clone())
        };
        let hosts = store
            .hosts()?
            .into_iter()
            .map(|host| {
                let current = host.current_order.as_ref().map(&name).unwrap_or_default();
                (host, current)
            })
            .collect();
        let runs = store.runs(RUN_ROWS)?.into_iter().map(|run| {
            let order = name(&run.order);
            (run, order)
        });
        let runs = runs.collect();
        let story = |order: OrderRow| -> Result<_, StoreError> {
            let verdict = store.verdict(&order.digest)?.and_then(|row| Judgement::from_name(&row.verdict));
            let headline = told(&order, verdict, &store.runs_of_order(&order.digest)?);
            let waivers = store.waivers(&order.digest)?;
            Ok((order, headline, waivers))
        };
        let orders = orders.into_iter().map(story).collect::<Result<_, _>>()?;
        let mut audit = store.audit_tail(AUDIT_ROWS)?;
        audit.reverse();
        Ok(Self {
            style: style::SHEET,
            version: env!("CARGO_PKG_VERSION"),
            now: jiff::Timestamp::now().to_string(),
            orders,
            hosts,
            runs,
            audit,
        })
    }
}

pub(super) async fn page(State(pipeline): State<Arc<Pipeline>>) -> Result<Html<String>, ApiError> {
    let page =
        tokio::task::spawn_blocking(move || Console::read(&pipeline)).await.map_err(|error| failed(&error))??;
    Ok(Html(page.render().map_err(|error| failed(&error))?))
}
