//! The enrolment door: where a host that has a token asks to be let in. TLS 1.3, one request a connection.
//!
//! Anybody can knock, so whoever does gets little: a few seconds, a few kilobytes, and a few connections at once from one address.
//! Whether a token counts is the pipeline's to say ([`Pipeline::admit`]).

use std::{
    collections::HashMap,
    convert::Infallible,
    io,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header,
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use patchlab_protocol::{
    admission::{Application, Denial, Denied, PATH},
    limits,
};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use super::identity::Identity;
use crate::pipeline::Pipeline;

/// Most connections at once.
const GUESTS: usize = 256;
/// Most connections at once from one address (of IPv6, from one network of 64 bits): a site's hosts may be behind one.
const GUESTS_PER_ADDRESS: usize = 32;
/// Most bytes of a request's head.
const HEAD_BYTES: usize = 8 * 1024;
/// How often strangers are told of at most.
const STRANGERS_TOLD: Duration = Duration::from_secs(60);
/// How long nothing is accepted after an error (no more files, say).
const PAUSE: Duration = Duration::from_secs(1);

/// Answers for ever.
pub async fn serve(listener: TcpListener, identity: Identity, pipeline: Arc<Pipeline>) -> io::Result<()> {
    let acceptor = TlsAcceptor::from(identity.config);
    let (guests, strangers) = (Arc::new(Guests::default()), Arc::new(Strangers::default()));
    loop {
        let (stream, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "the enrolment door");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let Some(guest) = guests.enter(from.ip()) else {
            strangers.note(from, "too many connections at once");
            continue;
        };
        let (acceptor, pipeline, strangers) = (acceptor.clone(), Arc::clone(&pipeline), Arc::clone(&strangers));
        tokio::spawn(async move {
            let attended = attend(stream, from, &acceptor, &pipeline, &strangers);
            match tokio::time::timeout(limits::ADMISSION_TIME, Box::pin(attended)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::debug!(%from, %error, "the enrolment door"),
                Err(_) => strangers.note(from, "too slow"),
            }
            drop(guest);
        });
    }
}

/// One connection, from the handshake to the end.
async fn attend(
    stream: TcpStream,
    from: SocketAddr,
    acceptor: &TlsAcceptor,
    pipeline: &Arc<Pipeline>,
    strangers: &Strangers,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let stream = acceptor.accept(stream).await?;
    let service = service_fn(|request| async move {
        let (status, body) = answer(request, from, pipeline, strangers).await;
        let mut response = Response::new(Full::new(Bytes::from(body)));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
        headers.insert(header::CACHE_CONTROL, header::HeaderValue::from_static("no-store"));
        Ok::<_, Infallible>(response)
    });
    let mut http = http1::Builder::new();
    http.keep_alive(false).max_buf_size(HEAD_BYTES).max_headers(32);
    Ok(http.serve_connection(TokioIo::new(stream), service).await?)
}

async fn answer(
    request: Request<Incoming>,
    from: SocketAddr,
    pipeline: &Arc<Pipeline>,
    strangers: &Strangers,
) -> (StatusCode, Vec<u8>) {
    if (request.method(), request.uri().path()) != (&Method::POST, PATH) {
        return (StatusCode::NOT_FOUND, Vec::new());
    }
    let body = match Limited::new(request.into_body(), limits::APPLICATION_BYTES).collect().await {
        Ok(body) => body.to_bytes(),
        Err(error) => {
            let large = error.downcast_ref::<LengthLimitError>().is_some();
            let status = if large { StatusCode::PAYLOAD_TOO_LARGE } else { StatusCode::BAD_REQUEST };
            strangers.note(from, "a body that is no application");
            return (status, denied(Denial::BadApplication));
        }
    };
    let application = match Application::read(&body) {
        Ok(application) => application,
        Err(error) => {
            tracing::debug!(%from, %error, "no application for enrolment");
            strangers.note(from, "no application for enrolment");
            return (StatusCode::BAD_REQUEST, denied(Denial::BadApplication));
        }
    };
    let pipeline = Arc::clone(pipeline);
    let admitted = tokio::task::spawn_blocking(move || pipeline.admit(&application, from.ip())).await;
    match admitted.unwrap_or(Err(Denial::ServerFailed)) {
        Ok(admission) => (StatusCode::OK, serde_json::to_vec(&admission).unwrap_or_default()),
        Err(Denial::ServerFailed) => (StatusCode::INTERNAL_SERVER_ERROR, denied(Denial::ServerFailed)),
        Err(denial) => {
            if denial == Denial::TokenUnknown {
                strangers.note(from, "a token that this server does not know");
            }
            (StatusCode::FORBIDDEN, denied(denial))
        }
    }
}

fn denied(denied: Denial) -> Vec<u8> {
    serde_json::to_vec(&Denied { denied }).unwrap_or_default()
}

/// Who is inside, by address.
#[derive(Debug, Default)]
struct Guests(Mutex<HashMap<IpAddr, usize>>);

impl Guests {
    /// Lets one in; `None` when too many are.
    fn enter(self: &Arc<Self>, from: IpAddr) -> Option<Guest> {
        let from = network(from);
        let mut inside = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let all: usize = inside.values().sum();
        let there = inside.get(&from).copied().unwrap_or_default();
        if all >= GUESTS || there >= GUESTS_PER_ADDRESS {
            return None;
        }
        inside.insert(from, there + 1);
        Some(Guest { from, guests: Arc::clone(self) })
    }
}

/// What one party has of addresses: all of a network of 64 bits.
fn network(from: IpAddr) -> IpAddr {
    match from.to_canonical() {
        IpAddr::V6(ip) => IpAddr::V6(Ipv6Addr::from_bits(ip.to_bits() >> 64 << 64)),
        v4 => v4,
    }
}

/// One that is inside, until this is dropped.
#[derive(Debug)]
struct Guest {
    from: IpAddr,
    guests: Arc<Guests>,
}

impl Drop for Guest {
    fn drop(&mut self) {
        let mut inside = self.guests.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(there) = inside.get_mut(&self.from) {
            *there -= 1;
            if *there == 0 {
                inside.remove(&self.from);
            }
        }
    }
}

/// Those who have no business here: told of once in a while, so that they fill no log.
#[derive(Debug, Default)]
struct Strangers(Mutex<Untold>);

#[derive(Debug, Default)]
struct Untold {
    count: u64,
    told: Option<Instant>,
}

impl Strangers {
    fn note(&self, from: SocketAddr, what: &'static str) {
        let mut untold = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        untold.count += 1;
        if untold.told.is_none_or(|told| told.elapsed() >= STRANGERS_TOLD) {
            tracing::warn!(%from, what, turned_away = untold.count, "the enrolment door turned somebody away");
            *untold = Untold { count: 0, told: Some(Instant::now()) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_takes_a_part_of_the_places_and_gives_them_back() {
        let guests = Arc::new(Guests::default());
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let mut many: Vec<_> = (0..GUESTS_PER_ADDRESS).map(|_| guests.enter(ip("192.0.2.1")).unwrap()).collect();
        assert!(guests.enter(ip("192.0.2.1")).is_none());
        assert!(guests.enter(ip("::ffff:192.0.2.1")).is_none(), "it is the same");
        assert!(guests.enter(ip("192.0.2.2")).is_some());
        many.pop();
        assert!(guests.enter(ip("192.0.2.1")).is_some());
        // One network of IPv6 is one party.
        many.extend((0..GUESTS_PER_ADDRESS).map(|n| guests.enter(ip(&format!("2001:db8::{n:x}"))).unwrap()));
        assert!(guests.enter(ip("2001:db8::ffff:1")).is_none());
        drop(many);
        assert!(guests.0.lock().unwrap().is_empty());
    }

    #[test]
    fn there_is_an_end_for_all_together() {
        let guests = Arc::new(Guests::default());
        let each = |n: usize| IpAddr::from([192, 0, 2, u8::try_from(n / GUESTS_PER_ADDRESS).unwrap()]);
        let all: Vec<_> = (0..GUESTS).map(|n| guests.enter(each(n)).unwrap()).collect();
        assert!(guests.enter(IpAddr::from([198, 51, 100, 1])).is_none());
        drop(all);
        assert!(guests.enter(IpAddr::from([198, 51, 100, 1])).is_some());
    }
}
