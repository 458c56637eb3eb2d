//! `bulkhead:plugin/secrets`: placeholders and signatures. A value is loaded when a guest first uses the secret, and stays in the call's vault.

use std::sync::Arc;

use wasmtime::component::{HasSelf, Linker};

use crate::bindings::bulkhead::plugin::secrets::{self, SecretError};
use crate::guest::Guest;
use crate::scope::{Ended, Scope};

/// Bytes that one signature may cover.
const SIGNED_BYTES_MAX: usize = 1024 * 1024;
/// Bytes of a name that is repeated in a refusal.
const NAME_BYTES_MAX: usize = 64;

pub(crate) fn link(linker: &mut Linker<Guest>) -> wasmtime::Result<()> {
    secrets::add_to_linker::<Guest, HasSelf<Guest>>(linker, |guest| guest)
}

/// The placeholder of a granted secret whose value the vault now holds.
async fn hold(scope: &Arc<Scope>, name: &str) -> Result<Result<String, SecretError>, Ended> {
    let Some(rule) = scope.live_grants().and_then(|grants| grants.secret(name)) else {
        let shown: String = name.chars().take(NAME_BYTES_MAX).collect();
        scope.refuse("secret", &shown, "no grant covers this secret");
        return Ok(Err(SecretError::NotGranted(shown)));
    };
    if let Some(placeholder) = scope.vault.placeholder(name) {
        return Ok(Ok(placeholder));
    }
    let load = scope.secrets.load(rule.name.clone());
    let loaded = scope.outside(load).await.map_err(Ended::HostFault)?;
    let value = loaded.map_err(|error| Ended::HostFault(format!("the secret {name}: {error}")))?;
    // While it was loaded the grant may have been taken away.
    scope.host_call(0)?;
    if value.as_ref().is_some_and(|value| !scope.vault.has_room_for(value.len())) {
        return Err(Ended::Limit("secrets_per_call"));
    }
    Ok(value.map(|value| scope.vault.hold(&rule.name, value)).ok_or_else(|| SecretError::NotSet(name.to_owned())))
}

impl secrets::Host for Guest {
    async fn placeholder(&mut self, name: String) -> wasmtime::Result<Result<String, SecretError>> {
        self.scope.host_call(name.len())?;
        Ok(hold(&self.scope, &name).await?)
    }

    async fn hmac_sha256(&mut self, name: String, data: Vec<u8>) -> wasmtime::Result<Result<Vec<u8>, SecretError>> {
        self.scope.host_call(name.len() + data.len())?;
        if let Err(error) = hold(&self.scope, &name).await? {
            return Ok(Err(error));
        }
        if data.len() > SIGNED_BYTES_MAX {
            return Ok(Err(SecretError::TooLarge));
        }
        let signature = self.scope.vault.hmac_sha256(&name, &data);
        Ok(signature.map(Vec::from).ok_or(SecretError::NotSet(name)))
    }
}
