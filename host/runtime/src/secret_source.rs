//! Where the values of an installation's secrets come from. The application decrypts; the runtime only asks for what a guest uses.

use bulkhead_model::name::SecretName;
use futures_util::future::BoxFuture;
use zeroize::Zeroizing;

/// A secret's value could not be loaded: a fault of the host, not of the plugin.
#[derive(Debug, thiserror::Error)]
#[error("a secret cannot be loaded")]
pub struct SecretError(#[source] pub Box<dyn std::error::Error + Send + Sync>);

/// The secrets of one installation. Grants are checked before it is asked.
pub trait SecretSource: Send + Sync {
    /// The value of one secret, `None` when nothing is stored under the name. The future runs on the caller's executor,
    /// not on a guest's thread.
    fn load(&self, name: SecretName) -> BoxFuture<'static, Result<Option<Zeroizing<String>>, SecretError>>;
}

/// An installation without secrets.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoSecrets;

impl SecretSource for NoSecrets {
    fn load(&self, _: SecretName) -> BoxFuture<'static, Result<Option<Zeroizing<String>>, SecretError>> {
        Box::pin(std::future::ready(Ok(None)))
    }
}
