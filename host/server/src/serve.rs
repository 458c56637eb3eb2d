//! `bulkhead serve`: listen, work, and stop in order.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use bulkhead_http::HttpConfig;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::host::{FirstStart, Host};
use crate::telemetry;

/// `bulkhead serve`
pub(crate) async fn run(config: Config) -> Result<ExitCode> {
    telemetry::start_logs(&config.log)?;
    let metrics = telemetry::start_metrics()?;
    let host = Host::open(&config, FirstStart::Embedded, BTreeSet::new()).await?;
    let listener = listen(config.server.listen).await?;
    serve(&config, &host, listener, metrics).await?;
    Ok(ExitCode::SUCCESS)
}

pub(crate) async fn listen(address: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| {
        format!("cannot listen on {address}: is another server running? choose another with --listen or server.listen")
    })
}

/// Serves until a signal, then drains: new requests are refused, those under way and the jobs get their time.
pub(crate) async fn serve(
    config: &Config,
    host: &Host,
    listener: TcpListener,
    metrics: Arc<dyn Fn() -> String + Send + Sync>,
) -> Result<()> {
    host.start_worker(config).await?;
    let address = listener.local_addr()?;
    let http = HttpConfig {
        cursor_key: host.root_key.derive("cursor v1"),
        metrics,
        public_url: config.public_url(address),
        version: env!("CARGO_PKG_VERSION"),
    };
    let router = bulkhead_http::router(host.app.clone(), http);
    let stop = stop_on_signal()?;
    tracing::info!(address = %address, database = host.store.database_name(), "serving");
    let stopping = stop.clone();
    let server = axum::serve(listener, router).with_graceful_shutdown(async move { stopping.cancelled().await });
    let patience = Duration::from_secs(config.server.drain_s);
    let drained = async {
        stop.cancelled().await;
        tracing::info!("stopping: no new requests; work under way gets {} s", patience.as_secs());
        tokio::time::sleep(patience).await;
    };
    tokio::select! {
        served = server.into_future() => served.context("the server failed")?,
        () = drained => tracing::warn!("some connections did not end in time"),
    }
    host.app.stop_worker(&host.supervisor, patience).await;
    host.store.close().await;
    tracing::info!("stopped");
    Ok(())
}

/// Fires at the first SIGINT or SIGTERM; the second ends the process.
#[expect(
    clippy::disallowed_methods,
    reason = "the signal listener lives as long as the process, before any supervisor"
)]
fn stop_on_signal() -> Result<CancellationToken> {
    let stop = CancellationToken::new();
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let fired = stop.clone();
    tokio::spawn(async move {
        let mut next = async || {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
        };
        next().await;
        fired.cancel();
        next().await;
        tracing::warn!("stopped at once, as asked a second time");
        std::process::exit(130);
    });
    Ok(stop)
}
