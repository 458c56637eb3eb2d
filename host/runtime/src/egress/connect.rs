//! From a URL to a connection: resolve once, keep public addresses only, connect to one of exactly those, and for https speak
//! TLS with the URL's host as server name.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bulkhead_model::grant::address::{NonPublic, non_public};
use futures_util::future::BoxFuture;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use url::{Host, Url};

use super::{EgressConfig, EgressError, EgressSetupError};

/// Addresses of one host that are tried one after the other.
const ADDRESSES_TRIED_MAX: usize = 4;

/// Bytes both ways.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// A connection that is being opened.
pub type DialFuture = BoxFuture<'static, std::io::Result<TcpStream>>;

/// Opens connections. It gets addresses that were checked, never names.
pub trait Dial: Send + Sync {
    fn dial(&self, address: SocketAddr) -> DialFuture;
}

/// Plain TCP from this machine.
#[derive(Clone, Copy, Debug, Default)]
pub struct TcpDial;

impl Dial for TcpDial {
    fn dial(&self, address: SocketAddr) -> DialFuture {
        Box::pin(async move {
            let stream = TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            Ok(stream)
        })
    }
}

/// Makes connections for checked URLs.
pub(super) struct Connector {
    tls: TlsConnector,
}

impl Connector {
    pub(super) fn new(config: &EgressConfig) -> Result<Self, EgressSetupError> {
        let mut roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
        for root in &config.extra_roots {
            roots.add(root.clone()).map_err(EgressSetupError::Root)?;
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut tls = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(EgressSetupError::Tls)?
            .with_root_certificates(roots)
            .with_no_client_auth();
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        // A resumed session would tie one organization's requests to another's.
        tls.resumption = rustls::client::Resumption::disabled();
        Ok(Self { tls: TlsConnector::from(Arc::new(tls)) })
    }

    /// A connection to the host of `url`, within `connect` and before `end`.
    pub(super) async fn connect(
        &self,
        config: &EgressConfig,
        url: &Url,
        connect: Duration,
        end: Instant,
    ) -> Result<Box<dyn Stream>, EgressError> {
        let connect_end = end.min(Instant::now() + connect);
        let work = async {
            let addresses = addresses(config, url).await?;
            let stream = dial_any(config, &addresses, connect_end).await?;
            if url.scheme() != "https" {
                return Ok(Box::new(stream) as Box<dyn Stream>);
            }
            let name = server_name(url).ok_or(EgressError::BadUrl { why: "its host is no server name" })?;
            let stream = self.tls.connect(name, stream).await.map_err(EgressError::Tls)?;
            Ok(Box::new(stream) as Box<dyn Stream>)
        };
        tokio::time::timeout_at(connect_end.into(), work).await.map_err(|_| EgressError::ConnectTimeout)?
    }
}

fn server_name(url: &Url) -> Option<ServerName<'static>> {
    match url.host()? {
        Host::Domain(name) => ServerName::try_from(name.to_owned()).ok(),
        Host::Ipv4(address) => Some(ServerName::IpAddress(IpAddr::V4(address).into())),
        Host::Ipv6(address) => Some(ServerName::IpAddress(IpAddr::V6(address).into())),
    }
}

/// The addresses of the URL's host that may be reached.
async fn addresses(config: &EgressConfig, url: &Url) -> Result<Vec<SocketAddr>, EgressError> {
    let port = url.port_or_known_default().ok_or(EgressError::BadUrl { why: "it has no port" })?;
    let host = url.host_str().ok_or(EgressError::BadUrl { why: "it has no host" })?;
    let loopback_allowed = config.allow_loopback.iter().any(|pair| pair.matches(host, port));
    let found = match url.host() {
        Some(Host::Ipv4(address)) => vec![IpAddr::V4(address)],
        Some(Host::Ipv6(address)) => vec![IpAddr::V6(address)],
        // Name servers need not know the name, and must not be asked for it.
        Some(Host::Domain("localhost")) => vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()],
        Some(Host::Domain(name)) => config.resolver.resolve(name).await.map_err(EgressError::Resolve)?,
        None => Vec::new(),
    };
    let why_not =
        |address: &IpAddr| non_public(*address).filter(|class| !(loopback_allowed && *class == NonPublic::Loopback));
    let Some(first) = found.first() else { return Err(EgressError::NoAddress) };
    let kept: Vec<SocketAddr> = found
        .iter()
        .filter(|address| why_not(address).is_none())
        .take(ADDRESSES_TRIED_MAX)
        .map(|address| SocketAddr::new(*address, port))
        .collect();
    match why_not(first).or_else(|| found.iter().find_map(why_not)) {
        Some(class) if kept.is_empty() => Err(EgressError::NonPublic(class)),
        _ => Ok(kept),
    }
}

/// Tries the addresses in order, each within an equal part of the time that is left.
async fn dial_any(config: &EgressConfig, addresses: &[SocketAddr], end: Instant) -> Result<TcpStream, EgressError> {
    let mut failure = EgressError::NoAddress;
    for (at, address) in addresses.iter().enumerate() {
        let untried = u32::try_from(addresses.len() - at).unwrap_or(u32::MAX);
        let share = end.saturating_duration_since(Instant::now()) / untried;
        match tokio::time::timeout(share, config.dial.dial(*address)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => failure = EgressError::Connect(error),
            Err(_) => failure = EgressError::ConnectTimeout,
        }
    }
    Err(failure)
}
