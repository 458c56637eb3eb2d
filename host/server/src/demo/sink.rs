//! The demo's own receiver: shows in the log what plugins send.

use anyhow::{Context as _, Result};
use axum::Router;
use axum::body::Bytes;
use axum::http::{Method, Uri};
use tokio::net::TcpListener;
use url::Url;

/// Bytes of a message that the log shows.
const SHOWN_BYTES_MAX: usize = 2_000;

/// Listens where it listened before, if that is free, or else on any port; answers its address.
#[expect(clippy::disallowed_methods, reason = "the demo's receiver lives as long as the process")]
pub(super) async fn start(before: Option<Url>) -> Result<Url> {
    let port = before.filter(|url| url.host_str() == Some("127.0.0.1")).and_then(|url| url.port()).unwrap_or(0);
    let listener = match TcpListener::bind(("127.0.0.1", port)).await {
        Ok(listener) => listener,
        Err(_) => TcpListener::bind(("127.0.0.1", 0)).await.context("the demo's sink cannot listen")?,
    };
    let url = Url::parse(&format!("http://{}/", listener.local_addr()?))?;
    let router = Router::new().fallback(receive);
    tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, router).await {
            tracing::error!(error = %error, "the demo's sink ended");
        }
    });
    Ok(url)
}

async fn receive(method: Method, uri: Uri, body: Bytes) -> &'static str {
    let text = String::from_utf8_lossy(&body[..body.len().min(SHOWN_BYTES_MAX)]);
    tracing::info!("message arrived: {method} {} {text}", uri.path());
    "ok"
}
