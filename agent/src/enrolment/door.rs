//! The server's enrolment door, as a host comes to it: TLS 1.3 with the one key that the token pins, and one POST. Nothing is sent before
//! the key's holder has signed the handshake, so the secret reaches nobody else.

use std::{io, net::SocketAddr, sync::Arc};

use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{Method, Request, StatusCode, body::Bytes, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use patchlab_protocol::{
    Digest,
    admission::{Admission, Denial, Denied, PATH},
    limits,
    token::EnrolmentToken,
};
use rustls::{CertificateError, Error, pki_types::ServerName};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::pinned;

/// The server did not let the host in.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// Nobody is there.
    #[error(
        "cannot reach the server at {server}: {source}; is patchlab serve running, with --enrolment on an address that \
         this host reaches?"
    )]
    Unreachable {
        /// Where.
        server: SocketAddr,
        /// Why not.
        source: io::Error,
    },
    /// Another key answers.
    #[error(
        "the key that answers at {server} is not the one in the token: somebody else answers there, or the server's key \
         was made anew; the secret was not sent. Ask who made the token"
    )]
    OtherKey {
        /// Where.
        server: SocketAddr,
    },
    /// What answers does not speak TLS 1.3 with the pinned key to its end.
    #[error("no secure connection with {server}: {reason}")]
    Insecure {
        /// Where.
        server: SocketAddr,
        /// Why not.
        reason: String,
    },
    /// It says nothing, or drips.
    #[error(
        "the server at {server} did not answer within {seconds} s; try again, with the same token",
        seconds = limits::ADMISSION_TIME.as_secs()
    )]
    Silent {
        /// Where.
        server: SocketAddr,
    },
    /// It broke off, or says what no server says.
    #[error("the answer of {server} cannot be read: {reason}; try again, with the same token")]
    Answer {
        /// Where.
        server: SocketAddr,
        /// What is wrong.
        reason: String,
    },
    /// It says no.
    #[error("refused by {server}: {denial}: {}", .denial.advice())]
    Denied {
        /// Where.
        server: SocketAddr,
        /// Why.
        denial: Denial,
    },
}

/// Hands an application in. Everything together takes at most [`limits::ADMISSION_TIME`].
pub(super) async fn ask(token: &EnrolmentToken, application: Vec<u8>) -> Result<Admission, AskError> {
    let server = token.server;
    match tokio::time::timeout(limits::ADMISSION_TIME, Box::pin(exchange(server, token.pin, application))).await {
        Ok(answer) => answer,
        Err(_) => Err(AskError::Silent { server }),
    }
}

async fn exchange(server: SocketAddr, pin: Digest, application: Vec<u8>) -> Result<Admission, AskError> {
    let unreadable = |reason: String| AskError::Answer { server, reason };
    let config = pinned::config(pin).map_err(|error| AskError::Insecure { server, reason: error.to_string() })?;
    let stream = TcpStream::connect(server).await.map_err(|source| AskError::Unreachable { server, source })?;
    let connector = TlsConnector::from(Arc::new(config));
    let stream =
        connector.connect(ServerName::from(server.ip()), stream).await.map_err(|error| turned(server, &error))?;
    let (mut sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(|error| unreadable(error.to_string()))?;
    let request = Request::builder()
        .method(Method::POST)
        .uri(PATH)
        .header(header::HOST, server.to_string())
        .header(header::CONTENT_TYPE, "application/json")
        .body(Full::new(Bytes::from(application)))
        .map_err(|error| unreadable(error.to_string()))?;
    let answer = async {
        let response = sender.send_request(request).await.map_err(|error| unreadable(error.to_string()))?;
        let status = response.status();
        let body = Limited::new(response.into_body(), limits::ADMISSION_BYTES).collect().await;
        Ok((status, body.map_err(|error| unreadable(error.to_string()))?.to_bytes()))
    };
    tokio::pin!(answer, connection);
    let (status, body) = tokio::select! {
        answer = &mut answer => answer?,
        // It ends before the answer is read where the server hangs up: the answer's own error says so.
        _ = &mut connection => answer.await?,
    };
    read(server, status, &body)
}

/// What an answer says.
fn read(server: SocketAddr, status: StatusCode, body: &[u8]) -> Result<Admission, AskError> {
    if status == StatusCode::OK {
        return serde_json::from_slice(body)
            .map_err(|error| AskError::Answer { server, reason: format!("it is no admission: {error}") });
    }
    match serde_json::from_slice::<Denied>(body) {
        Ok(Denied { denied: denial }) => Err(AskError::Denied { server, denial }),
        Err(_) => Err(AskError::Answer { server, reason: format!("it is status {status}, without a reason") }),
    }
}

/// Why a handshake did not come about.
fn turned(server: SocketAddr, error: &io::Error) -> AskError {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) {
        Some(Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure)) => {
            AskError::OtherKey { server }
        }
        Some(error) => AskError::Insecure { server, reason: error.to_string() },
        None => AskError::Answer { server, reason: error.to_string() },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: u16, body: &str) -> AskError {
        read("127.0.0.1:1".parse().unwrap(), StatusCode::from_u16(status).unwrap(), body.as_bytes()).unwrap_err()
    }

    #[test]
    fn a_refusal_is_told_by_its_name_and_anything_else_as_what_it_is() {
        let error = answer(403, r#"{"denied":"token-used"}"#);
        assert!(matches!(error, AskError::Denied { denial: Denial::TokenUsed, .. }), "{error}");
        assert!(error.to_string().contains("token-used: another key was enrolled with this token"), "{error}");
        assert!(matches!(answer(403, "<html>"), AskError::Answer { .. }));
        assert!(matches!(answer(200, r#"{"denied":"token-used"}"#), AskError::Answer { .. }));
        assert!(answer(200, "{}").to_string().contains("no admission"));
    }
}
