//! `bulkhead serve`: listen, work, and stop in order.

mod peer;

use std::net::{IpAddr, SocketAddr};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use axum::Router;
use bulkhead_app::App;
use bulkhead_http::{ClientAddress, HttpConfig};
use bulkhead_model::link::Purpose;
use http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

use self::peer::{Moving, PeerPlace, Peers};
use crate::config::Config;
use crate::host::{FirstStart, Host};
use crate::{first_party, telemetry};

/// A request's head arrives within this time, and so does the next one on an idle connection.
const HEADERS_TIME_MAX: Duration = Duration::from_secs(15);
/// Headers of one request.
const HEADERS_MAX: usize = 100;
/// Connections at once, where the file descriptors allow it.
const CONNECTIONS_MAX: usize = 8_192;
/// An answer of which the client takes nothing for this long is given up, and the connection with it.
const STALL_MAX: Duration = Duration::from_secs(30);
/// A port that a process which just died still holds is waited for.
const TAKE_OVER: Duration = Duration::from_secs(3);

/// `bulkhead serve`
pub(crate) async fn run(config: Config) -> Result<ExitCode> {
    telemetry::start_logs(&config.log)?;
    let metrics = telemetry::start_metrics()?;
    let first_party = first_party::digests(config.sandbox.first_party_dir.as_deref())?;
    let host = Host::open(&config, FirstStart::Embedded, first_party).await?;
    let listener = listen(config.server.listen).await?;
    serve(&config, &host, listener, metrics).await?;
    Ok(ExitCode::SUCCESS)
}

pub(crate) async fn listen(address: SocketAddr) -> Result<TcpListener> {
    let began = Instant::now();
    let bound = loop {
        match TcpListener::bind(address).await {
            Err(error) if error.kind() == std::io::ErrorKind::AddrInUse && began.elapsed() < TAKE_OVER => {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            bound => break bound,
        }
    };
    bound.with_context(|| {
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
    let address = listener.local_addr()?;
    host.start_worker(config, address).await?;
    let outbox = crate::anchor::start(host, config)?;
    crate::audit::start_sealer(host, config, outbox);
    crate::audit::start_expiry(host);
    crate::keys::start_telling(host, config);
    let http = HttpConfig {
        cursor_key: host.root_key.derive("cursor v1"),
        metrics,
        public_url: config.public_url(address),
        trusted_proxies: config.server.proxies()?,
        version: env!("CARGO_PKG_VERSION"),
    };
    let router = bulkhead_http::router(host.app.clone(), http);
    if config.counts_nobody_by_address() {
        tracing::warn!(
            "behind a proxy that is not named (server.trusted_proxies) nobody knows where requests come from: guessing is slowed down by \
             name alone"
        );
    }
    offer_set_up(&host.app).await?;
    let stop = stop_on_signal()?;
    tracing::info!(address = %address, database = host.store.database_name(), "serving");
    // Whatever the machine allows, one client leaves half of it to the others.
    let peers = Peers::new(config.server.connections_per_address_max.min(connections_max() / 2));
    accept(listener, router, host, &stop, peers, config.drain()).await;
    host.store.close().await;
    tracing::info!("stopped");
    Ok(())
}

/// While there is nobody, says how to become the first person. Not through the log, which others may read: the link is a credential.
async fn offer_set_up(app: &App) -> Result<()> {
    use std::io::Write as _;
    let Some(token) = app.offer_set_up().await.context("nobody can be offered to set the server up")? else {
        return Ok(());
    };
    let told = writeln!(
        std::io::stdout(),
        "\nNobody has an account yet. Once, within a day, this makes the first one:\n\n  {}\n",
        app.link_url(Purpose::SetUp, &token)
    );
    // Where nothing can be written, the next start says it again.
    drop(told);
    Ok(())
}

/// Accepts connections until `stop`; then no new ones, and requests and jobs under way share the same time to end.
async fn accept(
    listener: TcpListener,
    router: Router,
    host: &Host,
    stop: &CancellationToken,
    peers: Peers,
    patience: Duration,
) {
    let places = Arc::new(Semaphore::new(connections_max()));
    let graceful = GracefulShutdown::new();
    loop {
        let accepted = tokio::select! {
            accepted = accept_one(&listener, &places, &peers) => accepted,
            () = stop.cancelled() => break,
        };
        let (stream, peer, place) = match accepted {
            Ok(Some(accepted)) => accepted,
            Ok(None) => {
                metrics::counter!("bulkhead_connections_refused_total").increment(1);
                continue;
            }
            Err(error) => {
                // Out of file descriptors, say: the next turn may find one.
                tracing::warn!(error = %error, "a connection could not be accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let mut builder = http1::Builder::new();
        builder.timer(TokioTimer::new()).header_read_timeout(HEADERS_TIME_MAX).max_headers(HEADERS_MAX);
        let address = ClientAddress(peer);
        let service = TowerToHyperService::new(router.clone().map_request(move |mut request: Request<Incoming>| {
            request.extensions_mut().insert(address);
            request
        }));
        let connection =
            graceful.watch(builder.serve_connection(TokioIo::new(Moving::new(stream, STALL_MAX)), service));
        host.supervisor.spawn("connection", async move {
            if let Err(error) = connection.await {
                tracing::debug!(error = %error, "a connection ended early");
            }
            drop(place);
        });
    }
    drop(listener);
    tracing::info!("stopping: work under way gets {} s", patience.as_secs());
    let connections = async {
        if tokio::time::timeout(patience, graceful.shutdown()).await.is_err() {
            tracing::warn!("some connections did not end in time");
        }
    };
    tokio::join!(connections, host.app.stop_worker(&host.supervisor, patience));
}

/// The next connection with its places; `None` when its client holds its share already, and it is closed.
async fn accept_one(
    listener: &TcpListener,
    places: &Arc<Semaphore>,
    peers: &Peers,
) -> std::io::Result<Option<(TcpStream, IpAddr, (OwnedSemaphorePermit, PeerPlace))>> {
    let place = Arc::clone(places).acquire_owned().await.map_err(std::io::Error::other)?;
    let (stream, peer) = listener.accept().await?;
    let Some(of_peer) = peers.enter(peer.ip()) else { return Ok(None) };
    stream.set_nodelay(true)?;
    Ok(Some((stream, peer.ip(), (place, of_peer))))
}

/// Half of the file descriptors that this process may open: the database, plugins' requests and files need theirs too.
fn connections_max() -> usize {
    let descriptors = rlimit::Resource::NOFILE.get_soft().unwrap_or(1024);
    usize::try_from(descriptors / 2).unwrap_or(CONNECTIONS_MAX).clamp(32, CONNECTIONS_MAX)
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
