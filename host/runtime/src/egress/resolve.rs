//! From names to addresses. Whatever a resolver answers is checked afterwards, so a resolver need not be trusted.

use std::net::IpAddr;

use futures_util::future::BoxFuture;
use hickory_resolver::TokioResolver;
use hickory_resolver::config::LookupIpStrategy;

/// A name could not be resolved.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct ResolveError(pub Box<dyn std::error::Error + Send + Sync>);

/// The addresses of a name, or why there are none.
pub type ResolveFuture<'a> = BoxFuture<'a, Result<Vec<IpAddr>, ResolveError>>;

/// Looks names up.
pub trait Resolve: Send + Sync {
    /// All addresses of `host`, a name as the URL parser writes it (never an address).
    fn resolve<'a>(&'a self, host: &'a str) -> ResolveFuture<'a>;
}

/// The name servers of this machine's configuration.
pub struct SystemResolver {
    resolver: TokioResolver,
}

impl SystemResolver {
    /// Reads the system's configuration.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn from_system() -> Result<Self, ResolveError> {
        let mut builder = TokioResolver::builder_tokio().map_err(|error| ResolveError(error.into()))?;
        // IPv4 first: many machines have no route for IPv6.
        builder.options_mut().ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
        let resolver = builder.build().map_err(|error| ResolveError(error.into()))?;
        Ok(Self { resolver })
    }
}

impl Resolve for SystemResolver {
    fn resolve<'a>(&'a self, host: &'a str) -> ResolveFuture<'a> {
        Box::pin(async move {
            // A final dot keeps the search list of the machine's own network out of it.
            let name = if host.ends_with('.') { host.to_owned() } else { format!("{host}.") };
            let found = self.resolver.lookup_ip(name).await.map_err(|error| ResolveError(error.into()))?;
            Ok(found.iter().collect())
        })
    }
}
