//! A folder that is served over http on the loopback, as a mirror or a site serves files.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
};

use axum::{extract::Path as UrlPath, http::StatusCode, routing};

/// A server of one folder's files; it ends when it is dropped.
#[derive(Debug)]
pub struct Served {
    /// Its address, with a slash at the end.
    pub url: String,
    /// Ends with it.
    _runtime: tokio::runtime::Runtime,
}

impl Served {
    /// Serves `folder`, which may still be filled.
    ///
    /// # Panics
    /// There is no port.
    pub fn folder(folder: PathBuf) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.expect("a runtime");
        let listener = runtime.block_on(tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))).expect("a port");
        let address: SocketAddr = listener.local_addr().expect("an address");
        let serve = |UrlPath(path): UrlPath<String>| async move {
            fs::read(folder.join(path)).map_err(|_| StatusCode::NOT_FOUND)
        };
        let app = axum::Router::new().route("/{*path}", routing::get(serve));
        runtime.spawn(async move { axum::serve(listener, app).await });
        Self { url: format!("http://{address}/"), _runtime: runtime }
    }
}
