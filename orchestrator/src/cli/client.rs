//! The client of a running server's API, over its unix socket.

use std::time::Duration;

use patchlab_protocol::Envelope;
use reqwest::{Method, RequestBuilder, StatusCode};
use serde::{Serialize, de::DeserializeOwned};

use super::{CliError, Global};
use crate::api::Problem;

/// Longest time for a request: releases wait for the signer, long polls for a host.
const TIMEOUT: Duration = Duration::from_secs(90);
/// Largest answer read, bytes: a report with every verdict.
const ANSWER_BYTES: usize = 256 * 1024 * 1024;

/// A client of the server on a data folder.
#[derive(Debug)]
pub struct Client {
    http: reqwest::Client,
    data: String,
    flag: String,
}

impl Client {
    /// A client for the data folder in force. Sends nothing yet.
    pub fn new(global: &Global) -> Result<Self, CliError> {
        let data = global.data()?;
        let socket = data.socket().map_err(CliError::input)?;
        let http = reqwest::Client::builder().unix_socket(socket).timeout(TIMEOUT).build().map_err(CliError::failed)?;
        let flag = global.data.as_ref().map(|dir| format!(" --data {}", dir.display())).unwrap_or_default();
        Ok(Self { http, data: data.dir().display().to_string(), flag })
    }

    /// Reads something.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, CliError> {
        self.send(self.request(Method::GET, path)).await
    }

    /// Has something done.
    pub async fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T, CliError> {
        self.send(self.request(Method::POST, path).json(body)).await
    }

    /// Hands text in, as it is.
    pub async fn post_text<T: DeserializeOwned>(&self, path: &str, text: String) -> Result<T, CliError> {
        self.send(self.request(Method::POST, path).body(text)).await
    }

    /// Reads a document, which must be the one asked for.
    pub async fn document(&self, digest: &patchlab_protocol::Digest) -> Result<Envelope, CliError> {
        let envelope: Envelope = self.get(&format!("documents/{digest}")).await?;
        if envelope.digest() == *digest {
            Ok(envelope)
        } else {
            Err(CliError::Failed(format!("the server gave another document than {digest}")))
        }
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        // The host part only fills the Host header: the way is the socket.
        self.http.request(method, format!("http://patchlab/api/v1/{path}"))
    }

    async fn send<T: DeserializeOwned>(&self, request: RequestBuilder) -> Result<T, CliError> {
        let mut response = request.send().await.map_err(|error| self.unreachable(&error))?;
        let status = response.status();
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(CliError::failed)? {
            body.extend_from_slice(&chunk);
            if body.len() > ANSWER_BYTES {
                return Err(CliError::Failed("the server's answer has no end".into()));
            }
        }
        if status.is_success() {
            return serde_json::from_slice(&body)
                .map_err(|error| CliError::Failed(format!("the server's answer is not readable: {error}")));
        }
        Err(problem(status, &body))
    }

    fn unreachable(&self, error: &reqwest::Error) -> CliError {
        if error.is_connect() {
            CliError::NoServer { data: self.data.clone(), flag: self.flag.clone(), why: String::new() }
        } else {
            CliError::Failed(format!("the server on {} does not answer: {error}", self.data))
        }
    }
}

fn problem(status: StatusCode, body: &[u8]) -> CliError {
    let Ok(problem) = serde_json::from_slice::<Problem>(body) else {
        let text = String::from_utf8_lossy(&body[..body.len().min(300)]).into_owned();
        return CliError::Failed(format!("the server answered {status}: {text}"));
    };
    match problem.error.as_str() {
        "refused" | "forbidden" => CliError::Refused(problem.message),
        "input" | "not-found" | "conflict" => CliError::Input(problem.message),
        _ => CliError::Failed(problem.message),
    }
}

/// A name as part of a path.
pub fn segment(name: &str) -> String {
    name.bytes()
        .map(|b| match b {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => char::from(b).to_string(),
            other => format!("%{other:02X}"),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn names_stay_one_segment() {
        assert_eq!(super::segment("PO-2026-0001"), "PO-2026-0001");
        assert_eq!(super::segment("../x y?"), "..%2Fx%20y%3F");
    }
}
