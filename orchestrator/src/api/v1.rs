//! `/api/v1`: what clients ask and have done. Each change is one act of [`crate::pipeline`].

use std::{sync::Arc, time::Duration};

use axum::{
    Extension, Json, Router,
    body::Bytes,
    extract::{Path, Query, State},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use jiff::Timestamp;
use patchlab_protocol::{Digest, Envelope};
use serde::{Deserialize, Serialize};

use super::{Actor, ApiError, WAIT_MOST, failed};
use crate::{
    audit,
    pipeline::{
        ActivationRequest, CancelRequest, EnrolmentRequest, EnrolmentTerms, MachineRequest, Pipeline, PipelineError,
        PreparationRequest, TokenMade, TokenRequest,
    },
    report::{Bundle, OrderStory},
    store::{
        Deployment, DeploymentState, Host, HostMachine, OrderRow, PreparationRow, Run, Snapshot, SnapshotState,
        StoreError, Survey, TokenRow,
    },
    trust::authority::TakenIn,
};

type Server = State<Arc<Pipeline>>;
type Answer<T> = Result<Json<T>, ApiError>;

pub(super) fn router() -> Router<Arc<Pipeline>> {
    Router::new()
        .route("/orders", get(orders).post(submit))
        .route("/orders/{name}", get(order))
        .route("/orders/{name}/verdict", post(judge))
        .route("/orders/{name}/release", post(release))
        .route("/orders/{name}/waivers", post(waive))
        .route("/orders/{name}/approval", post(approve))
        .route("/orders/{name}/activation", post(activate))
        .route("/orders/{name}/rollback", post(rollback))
        .route("/orders/{name}/cancel", post(cancel))
        .route("/orders/{name}/preparations", get(preparations).post(prepare))
        .route("/activations/{digest}", get(activation))
        .route("/hosts", get(hosts).post(enrol))
        .route("/hosts/{name}", get(host))
        .route("/hosts/{name}/survey", get(survey))
        .route("/hosts/{name}/inventory", post(inventory))
        .route("/hosts/{name}/keys", post(rotate_keys))
        .route("/hosts/{name}/machine", get(machine).post(set_machine))
        .route("/hosts/{name}/revert", post(revert))
        .route("/hosts/{name}/merge", post(merge))
        .route("/snapshots", get(snapshots))
        .route("/snapshots/{number}", get(snapshot))
        .route("/tokens", get(tokens).post(create_token))
        .route("/tokens/{host}/revocation", post(revoke_token))
        .route("/revocation", get(revocation).post(revoke))
        .route("/root", post(succeed))
        .route("/enrolment", get(terms))
        .route("/documents/{digest}", get(document))
        .route("/audit", get(audit_rows))
        .route("/audit/verify", get(audit_verify))
        .route("/report", get(report))
}

/// Runs an act of the pipeline where it may block.
async fn act<T: Send + 'static>(
    pipeline: Arc<Pipeline>,
    act: impl FnOnce(&Pipeline) -> Result<T, PipelineError> + Send + 'static,
) -> Answer<T> {
    match tokio::task::spawn_blocking(move || act(&pipeline)).await {
        Ok(result) => Ok(Json(result?)),
        Err(error) => Err(failed(&error)),
    }
}

/// The answer to a document that was taken in.
#[derive(Debug, Serialize, Deserialize)]
pub struct Taken {
    /// Its digest.
    pub digest: Digest,
}

fn envelope(body: &Bytes) -> Result<Envelope, ApiError> {
    Envelope::from_bytes(body).map_err(|error| ApiError::new(StatusCode::BAD_REQUEST, "input", error.to_string()))
}

async fn orders(State(server): Server) -> Answer<Vec<OrderRow>> {
    act(server, |p| Ok(p.store.orders()?)).await
}

async fn order(State(server): Server, Path(name): Path<String>) -> Answer<OrderStory> {
    act(server, move |p| Ok(OrderStory::read(&p.store, p.store.order(&name)?)?)).await
}

async fn submit(State(server): Server, Extension(actor): Extension<Actor>, body: Bytes) -> Answer<OrderRow> {
    let envelope = envelope(&body)?;
    act(server, move |p| p.submit(&envelope, actor.0)).await
}

async fn judge(
    State(server): Server,
    Extension(actor): Extension<Actor>,
    Path(name): Path<String>,
    body: String,
) -> Answer<OrderRow> {
    act(server, move |p| p.judge(&name, &body, actor.0)).await
}

async fn release(State(server): Server, Extension(actor): Extension<Actor>, Path(name): Path<String>) -> Answer<Taken> {
    Ok(Json(Taken { digest: server.release(&name, actor.0).await? }))
}

async fn waive(
    State(server): Server,
    Extension(actor): Extension<Actor>,
    Path(name): Path<String>,
    body: Bytes,
) -> Answer<Taken> {
    let envelope = envelope(&body)?;
    act(server, move |p| Ok(Taken { digest: p.waive(&name, &envelope, actor.0)? })).await
}

async fn approve(
    State(server): Server,
    Extension(actor): Extension<Actor>,
    Path(name): Path<String>,
    body: Bytes,
) -> Answer<Taken> {
    let envelope = envelope(&body)?;
    act(server, move |p| Ok(Taken { digest: p.approve(&name, &envelope, actor.0)? })).await
}

async fn activate(
    State(server): Server,
    Extension(actor): Extension<Actor>,
    Path(name): Path<String>,
    Json(request): Json<ActivationRequest>,
) -> Answer<Deployment> {
    let runtime = tokio::runtime::Handle::current();
    act(server, move |p| {
        // The executor's task is spawned from a blocking thread.
        let _inside = runtime.enter();
        p.activate(&name, &request, actor.0)
    })
    .await
}

async fn rollback(
    State(server): Server,
    Extension(actor): Extension<Actor>,
    Path(name): Path<String>,
    body: Bytes,
) -> Answer<Deployment> {
    let envelope = envelope(&body)?;
    let runtime = tokio::runtime::Handle::current();
    act(server, move |p| {
        let _inside = runtime.enter();
        p.rollback(&name, &envelope, actor.0)
    })
    .await
}

async fn cancel(
    State(server): Server,
    Extension(actor): Extension<Actor>,
    Path(name): Path<String>,
    Json(request): Json<CancelRequest>,
) -> Answer<Vec<Run>> {
    act(server, move |p| p.cancel(&name, &request, actor.0)).await
}

async fn prepare(
    State(server): Server,
    Extension(actor): Extension<Actor>,
    Path(name): Path<String>,
    Json(request): Json<PreparationRequest>,
) -> Answer<Vec<PreparationRow>> {
    let runtime = tokio::runtime::Handle::current();
    act(server, move |p| {
        let _inside = runtime.enter();
        p.prepare(&name, &request, actor.0)
    })
    .await
}

async fn preparations(
    State(server): Server,
    Path(name): Path<String>,
    Query(wait): Query<Wait>,
) -> Answer<Vec<PreparationRow>> {
    let until = tokio::time::Instant::now() + Duration::from_secs(wait.wait).min(WAIT_MOST);
    let mut changes = server.executor.changes.subscribe();
    loop {
        let name = name.clone();
        let rows =
            act(Arc::clone(&server), move |p| Ok(p.store.preparations_of(&p.store.order(&name)?.digest)?)).await?;
        let ended = rows.iter().all(|row| row.ended_at.is_some());
        if ended || tokio::time::timeout_at(until, changes.changed()).await.is_err() {
            return Ok(rows);
        }
    }
}

async fn inventory(State(server): Server, Path(name): Path<String>) -> Answer<Survey> {
    Ok(Json(server.inventory(&name).await?))
}

async fn rotate_keys(
    State(server): Server,
    Extension(actor): Extension<Actor>,
    Path(name): Path<String>,
) -> Answer<Host> {
    Ok(Json(server.rotate_keys(&name, actor.0).await?))
}

async fn set_machine(
    State(server): Server,
    Extension(actor): Extension<Actor>,
    Path(name): Path<String>,
    Json(request): Json<MachineRequest>,
) -> Answer<MachineRequest> {
    act(server, move |p| p.set_machine(&name, &request, actor.0).map(|()| request)).await
}

/// The machine that a host is, and its snapshot.
#[derive(Debug, Serialize, Deserialize)]
pub struct MachineStory {
    /// The machine.
    pub machine: Option<HostMachine>,
    /// Its snapshot, while there is one.
    pub snapshot: Option<Snapshot>,
}

async fn machine(State(server): Server, Path(name): Path<String>) -> Answer<MachineStory> {
    act(server, move |p| {
        let host = p.store.host(&name)?.enrolled.name;
        Ok(MachineStory { machine: p.store.machine(&host)?, snapshot: p.store.open_snapshot(&host)? })
    })
    .await
}

async fn revert(
    State(server): Server,
    Extension(actor): Extension<Actor>,
    Path(name): Path<String>,
) -> Answer<Snapshot> {
    act(server, move |p| p.revert(&name, actor.0)).await
}

async fn merge(
    State(server): Server,
    Extension(actor): Extension<Actor>,
    Path(name): Path<String>,
) -> Answer<Snapshot> {
    act(server, move |p| p.merge(&name, actor.0)).await
}

async fn snapshots(State(server): Server) -> Answer<Vec<Snapshot>> {
    act(server, |p| Ok(p.store.snapshots()?)).await
}

async fn snapshot(State(server): Server, Path(number): Path<u64>, Query(wait): Query<Wait>) -> Answer<Snapshot> {
    let until = tokio::time::Instant::now() + Duration::from_secs(wait.wait).min(WAIT_MOST);
    let mut changes = server.executor.changes.subscribe();
    loop {
        changes.borrow_and_update();
        let there = act(Arc::clone(&server), move |p| Ok(p.store.snapshot(number)?)).await?;
        let goes_on = matches!(there.state, SnapshotState::Reverting | SnapshotState::Merging);
        if !goes_on || tokio::time::timeout_at(until, changes.changed()).await.is_err() {
            return Ok(there);
        }
    }
}

/// A deployment with its runs.
#[derive(Debug, Serialize, Deserialize)]
pub struct DeploymentStory {
    /// The deployment.
    pub deployment: Deployment,
    /// One a host, in the order taken.
    pub runs: Vec<Run>,
}

#[derive(Debug, Deserialize)]
struct Wait {
    /// Seconds to wait for its end.
    #[serde(default)]
    wait: u64,
}

async fn activation(
    State(server): Server,
    Path(digest): Path<String>,
    Query(wait): Query<Wait>,
) -> Answer<DeploymentStory> {
    let digest: Digest =
        digest.parse().map_err(|error| ApiError::new(StatusCode::BAD_REQUEST, "input", format!("{error}")))?;
    let until = tokio::time::Instant::now() + Duration::from_secs(wait.wait).min(WAIT_MOST);
    let mut changes = server.executor.changes.subscribe();
    loop {
        let story = act(Arc::clone(&server), move |p| {
            Ok(DeploymentStory { deployment: p.store.deployment(&digest)?, runs: p.store.runs_of(&digest)? })
        })
        .await?;
        let waiting = story.deployment.state == DeploymentState::Running;
        if !waiting || tokio::time::timeout_at(until, changes.changed()).await.is_err() {
            return Ok(story);
        }
    }
}

async fn hosts(State(server): Server) -> Answer<Vec<Host>> {
    act(server, |p| Ok(p.store.hosts()?)).await
}

async fn host(State(server): Server, Path(name): Path<String>) -> Answer<Host> {
    act(server, move |p| Ok(p.store.host(&name)?)).await
}

async fn survey(State(server): Server, Path(name): Path<String>) -> Answer<Survey> {
    act(server, move |p| Ok(p.store.survey(&p.store.host(&name)?.enrolled.name)?)).await
}

async fn enrol(
    State(server): Server,
    Extension(actor): Extension<Actor>,
    Json(request): Json<EnrolmentRequest>,
) -> Answer<Host> {
    act(server, move |p| {
        p.enrol(&request, actor.0)?;
        Ok(p.store.host(&request.host.name)?)
    })
    .await
}

async fn tokens(State(server): Server) -> Answer<Vec<TokenRow>> {
    act(server, |p| Ok(p.store.tokens()?)).await
}

async fn create_token(
    State(server): Server,
    Extension(actor): Extension<Actor>,
    Json(request): Json<TokenRequest>,
) -> Answer<TokenMade> {
    act(server, move |p| p.create_token(&request, actor.0)).await
}

async fn revoke_token(
    State(server): Server,
    Extension(actor): Extension<Actor>,
    Path(host): Path<String>,
) -> Answer<()> {
    act(server, move |p| p.revoke_token(&host, actor.0)).await
}

/// The revocation list in force, and what hosts made of it.
#[derive(Debug, Serialize, Deserialize)]
pub struct RevocationStory {
    /// Its version; 0 when there is none.
    pub version: u32,
    /// Its digest.
    pub digest: Option<Digest>,
    /// When it was signed.
    pub at: Option<Timestamp>,
    /// What it revokes, oldest first.
    pub revoked: Vec<RevokedDocument>,
    /// Every host, with what it believes.
    pub hosts: Vec<Host>,
}

/// A revoked document.
#[derive(Debug, Serialize, Deserialize)]
pub struct RevokedDocument {
    /// Its digest.
    pub document: Digest,
    /// What it is, for people; absent when this server does not have it.
    pub what: Option<String>,
    /// Why.
    pub reason: String,
}

async fn revocation(State(server): Server) -> Answer<RevocationStory> {
    act(server, |p| {
        let standing = p.authority.standing();
        let says = standing.list().map(|list| &list.says);
        let revoked = says.iter().flat_map(|says| &says.revoked).map(|revoked| {
            let what = p.store.what_is(&revoked.document)?;
            Ok(RevokedDocument { document: revoked.document, what, reason: revoked.reason.clone() })
        });
        Ok(RevocationStory {
            version: says.map_or(0, |says| says.version),
            digest: standing.list().map(|list| list.digest),
            at: says.map(|says| says.at),
            revoked: revoked.collect::<Result<_, StoreError>>()?,
            hosts: p.store.hosts()?,
        })
    })
    .await
}

async fn revoke(State(server): Server, Extension(actor): Extension<Actor>, body: Bytes) -> Answer<TakenIn> {
    let envelope = envelope(&body)?;
    act(server, move |p| p.revoke(&envelope, actor.0)).await
}

async fn succeed(State(server): Server, Extension(actor): Extension<Actor>, body: Bytes) -> Answer<TakenIn> {
    let envelope = envelope(&body)?;
    let taken = act(Arc::clone(&server), move |p| p.succeed(&envelope, actor.0)).await?;
    if let Some(signer) = &server.signer {
        signer.renew().await;
    }
    Ok(taken)
}

async fn terms(State(server): Server) -> Json<EnrolmentTerms> {
    Json(server.terms())
}

async fn document(State(server): Server, Path(digest): Path<String>) -> Result<Response, ApiError> {
    let digest: Digest =
        digest.parse().map_err(|error| ApiError::new(StatusCode::BAD_REQUEST, "input", format!("{error}")))?;
    let found = act(server, move |p| Ok(p.store.document(&digest)?)).await?.0;
    match found {
        Some((_, bytes)) => Ok(([("content-type", "application/json")], bytes).into_response()),
        None => Err(ApiError::new(StatusCode::NOT_FOUND, "not-found", format!("no document {digest}"))),
    }
}

#[derive(Debug, Deserialize)]
struct Page {
    #[serde(default)]
    after: u64,
    #[serde(default = "page_rows")]
    limit: u32,
}

fn page_rows() -> u32 {
    1_000
}

async fn audit_rows(State(server): Server, Query(page): Query<Page>) -> Answer<Vec<audit::Row>> {
    act(server, move |p| Ok(p.store.audit(page.after, page.limit.min(10_000))?)).await
}

/// What a check of the audit log found.
#[derive(Debug, Serialize, Deserialize)]
pub struct AuditCheck {
    /// How many rows there are.
    pub rows: u64,
    /// The newest row's digest.
    pub head: Digest,
    /// What is wrong; empty when nothing is.
    pub findings: Vec<audit::Finding>,
}

async fn audit_verify(State(server): Server) -> Answer<AuditCheck> {
    act(server, |p| {
        let (rows, findings) = p.store.audit_verify()?;
        Ok(AuditCheck { rows, head: p.store.audit_head()?, findings })
    })
    .await
}

async fn report(State(server): Server) -> Answer<Bundle> {
    act(server, |p| Ok(Bundle::read(&p.store, &p.authority.standing())?)).await
}
