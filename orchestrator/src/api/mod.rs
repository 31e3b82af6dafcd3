//! The server's API: JSON under `/api/v1`, and the console's status page at `/`.
//!
//! Two ways in. The unix socket lies in a folder that only its owner enters: whoever reaches it may change things. Loopback TCP
//! shows everything and changes nothing, unless the request carries the bearer token from the data folder's `keys/api.token`.
//! Every body has a limit and every request a time.

mod console;
mod v1;

pub use v1::{AuditCheck, DeploymentStory, MachineStory, RevocationStory, RevokedDocument, Taken};

use std::{net::IpAddr, sync::Arc, time::Duration};

use axum::{
    Extension, Json, Router,
    extract::{DefaultBodyLimit, Request},
    http::{HeaderMap, HeaderValue, Method, StatusCode, header, uri::Authority},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::get,
};
use patchlab_lab::{report::REPORT_BYTES, snapshot::SnapshotError};
use patchlab_protocol::Refusal;
use serde::{Deserialize, Serialize};

use crate::{
    pipeline::{Pipeline, PipelineError},
    store::StoreError,
    trust::{authority::AuthorityError, signer::SignerError},
};

/// Longest time for a request, long polls included.
const REQUEST_TIME: Duration = Duration::from_secs(60);
/// Most time a long poll waits.
pub const WAIT_MOST: Duration = Duration::from_secs(25);

/// How a request came in.
#[derive(Debug, Clone)]
pub enum Door {
    /// The unix socket.
    Socket,
    /// Loopback TCP, with the token that changes need.
    Tcp {
        /// The bearer token.
        token: Arc<str>,
    },
}

/// Who asks, for the audit log.
#[derive(Debug, Clone)]
struct Actor(&'static str);

/// What is wrong, as clients get it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Problem {
    /// `refused`, `not-found`, `conflict`, `input`, `forbidden`, `failed`.
    pub error: String,
    /// The gate's name for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refusal: Option<Refusal>,
    /// For people.
    pub message: String,
}

/// An error on its way to a client.
#[derive(Debug)]
struct ApiError(StatusCode, Problem);

impl ApiError {
    fn new(status: StatusCode, error: &str, message: impl Into<String>) -> Self {
        Self(status, Problem { error: error.to_owned(), refusal: None, message: message.into() })
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        (self.0, Json(self.1)).into_response()
    }
}

impl From<PipelineError> for ApiError {
    fn from(error: PipelineError) -> Self {
        match error {
            PipelineError::Refused(refused) => Self(
                StatusCode::FORBIDDEN,
                Problem { error: "refused".into(), refusal: Some(refused.refusal), message: refused.to_string() },
            ),
            PipelineError::Store(error) => error.into(),
            PipelineError::Authority(AuthorityError::Refused(refused)) => PipelineError::Refused(refused).into(),
            PipelineError::Authority(AuthorityError::Store(error)) => error.into(),
            PipelineError::Authority(error @ AuthorityError::TooManyRoots) => {
                Self::new(StatusCode::BAD_REQUEST, "input", error.to_string())
            }
            error @ PipelineError::TooLate { .. } => Self::new(StatusCode::CONFLICT, "refused", error.to_string()),
            PipelineError::Snapshot(error @ SnapshotError::Unfit { .. }) => {
                Self::new(StatusCode::BAD_REQUEST, "input", error.to_string())
            }
            PipelineError::Window(error) => Self::new(StatusCode::BAD_REQUEST, "input", error.to_string()),
            PipelineError::Terms(error) => Self::new(StatusCode::BAD_REQUEST, "input", error.to_string()),
            PipelineError::Input(message) => Self::new(StatusCode::BAD_REQUEST, "input", message),
            PipelineError::Verdict(error) => Self::new(StatusCode::BAD_REQUEST, "input", error.to_string()),
            PipelineError::Artifact(error) => Self::new(StatusCode::BAD_REQUEST, "input", error.to_string()),
            PipelineError::Signer(error @ SignerError::Absent) => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "failed", error.to_string())
            }
            other => failed(&other),
        }
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        let message = error.to_string();
        match error {
            StoreError::NotFound { .. } => Self::new(StatusCode::NOT_FOUND, "not-found", message),
            StoreError::Conflict { .. } => Self::new(StatusCode::CONFLICT, "conflict", message),
            // The state machine is part of the gate.
            StoreError::Transition { .. } => Self::new(StatusCode::CONFLICT, "refused", message),
            other => failed(&other),
        }
    }
}

fn failed(error: &dyn std::error::Error) -> ApiError {
    tracing::error!(%error, "request failed");
    ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "failed", error.to_string())
}

/// The whole API behind one door.
pub fn router(pipeline: Arc<Pipeline>, door: Door) -> Router {
    Router::new()
        .route("/", get(console::page))
        .nest("/api/v1", v1::router())
        .layer(DefaultBodyLimit::max(REPORT_BYTES))
        .layer(middleware::from_fn(in_time))
        .layer(middleware::from_fn(guard))
        .layer(Extension(door))
        .with_state(pipeline)
}

/// Changes need the socket or the token. Constant-time, so that the token cannot be felt out.
async fn guard(Extension(door): Extension<Door>, mut request: Request, next: Next) -> Response {
    let reads = matches!(*request.method(), Method::GET | Method::HEAD);
    let actor = match &door {
        Door::Socket => Actor("local"),
        Door::Tcp { token } => {
            if !names_this_machine(request.headers()) {
                return ApiError::new(
                    StatusCode::MISDIRECTED_REQUEST,
                    "forbidden",
                    "the console answers under localhost or a loopback address only",
                )
                .into_response();
            }
            let given = request
                .headers()
                .get(header::AUTHORIZATION)
                .and_then(|value| value.to_str().ok())
                .and_then(|value| value.strip_prefix("Bearer "))
                .unwrap_or_default();
            if !reads && !same(given.as_bytes(), token.as_bytes()) {
                return ApiError::new(
                    StatusCode::UNAUTHORIZED,
                    "forbidden",
                    "changes over TCP need the bearer token in the data folder's keys/api.token",
                )
                .into_response();
            }
            Actor("token")
        }
    };
    request.extensions_mut().insert(actor);
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(
        header::CONTENT_SECURITY_POLICY,
        HeaderValue::from_static("default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"),
    );
    response
}

async fn in_time(request: Request, next: Next) -> Response {
    match tokio::time::timeout(REQUEST_TIME, next.run(request)).await {
        Ok(response) => response,
        Err(_) => ApiError::new(
            StatusCode::REQUEST_TIMEOUT,
            "failed",
            format!("the request took longer than {} s", REQUEST_TIME.as_secs()),
        )
        .into_response(),
    }
}

/// Whether the request was addressed to a loopback name. A page from elsewhere can make a browser connect to this machine under
/// its own name (DNS rebinding); it cannot make it send another `Host`.
fn names_this_machine(headers: &HeaderMap) -> bool {
    let named = headers.get(header::HOST).and_then(|value| value.to_str().ok()?.parse::<Authority>().ok());
    named.is_some_and(|authority| {
        let host = authority.host();
        let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
        host.eq_ignore_ascii_case("localhost") || address.is_ok_and(|address| address.is_loopback())
    })
}

/// Compares digests, so that the time taken says nothing about where two differ.
fn same(one: &[u8], other: &[u8]) -> bool {
    patchlab_protocol::Digest::of(one) == patchlab_protocol::Digest::of(other)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("127.0.0.1:8470", true)]
    #[case("[::1]:8470", true)]
    #[case("LocalHost", true)]
    #[case("localhost.example:8470", false)]
    #[case("127.0.0.1.example", false)]
    #[case("192.0.2.1:8470", false)]
    #[case("", false)]
    fn only_loopback_names_are_answered(#[case] host: &str, #[case] answered: bool) {
        let headers = HeaderMap::from_iter([(header::HOST, HeaderValue::from_str(host).unwrap())]);
        assert_eq!(names_this_machine(&headers), answered);
        assert!(!names_this_machine(&HeaderMap::new()));
    }
}
