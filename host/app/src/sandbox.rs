//! What plugin use cases share: the runtime, what it may do at most, and what is remembered between calls.
//!
//! Everything remembered is bounded, keyed by something that cannot change under it (a plugin's id, a grant version), and only
//! saves work: leaving it out changes no answer.

use std::collections::BTreeSet;
use std::sync::Arc;

use bulkhead_model::grant::{Ceiling, GrantVersion};
use bulkhead_model::id::{InstallationId, OrgId, PluginId};
use bulkhead_runtime::{Digest, Runtime};
use futures_util::future::BoxFuture;
use tokio::sync::oneshot;

use crate::call::rights::Rights;
use crate::live::LiveCalls;
use crate::permits::{CallConcurrency, Permits};
use crate::plugin::contract::Contract;
use crate::supervise::Supervisor;
use crate::{App, AppError};

/// The publisher of the packages that the platform itself ships. No organization's slug gives a right to it.
pub const FIRST_PARTY_PUBLISHER: &str = "bulkhead";
/// Memory for manifests and compiled schemas, by the estimate of [`contract_bytes`].
const CONTRACTS_BYTES_MAX: u64 = 128 * 1024 * 1024;
/// Memory for the rights of installations, by the estimate of [`rights_bytes`].
const RIGHTS_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// What a manifest takes decoded, with its schemas compiled: a multiple of its text.
fn contract_bytes(contract: &Contract) -> u32 {
    let text = serde_json::to_vec(&contract.plugin.manifest).map_or(usize::MAX, |text| text.len());
    u32::try_from(text.saturating_mul(16).saturating_add(4_096)).unwrap_or(u32::MAX)
}

/// What rights take: an origin, a method or a path is a short text of its own.
fn rights_bytes(rights: &Rights) -> u32 {
    u32::try_from(rights.effective.entries().saturating_mul(128).saturating_add(1_024)).unwrap_or(u32::MAX)
}

/// How plugins are run.
pub struct SandboxParts {
    pub runtime: Runtime,
    /// The operator's layer of every plugin's rights.
    pub ceiling: Ceiling,
    /// Digests of the packages that may carry the platform's own publisher name.
    pub first_party: BTreeSet<Digest>,
    pub concurrency: CallConcurrency,
    /// Carries what must not stop half-way when a client goes away.
    pub supervisor: Supervisor,
}

pub(crate) struct Sandbox {
    pub(crate) runtime: Runtime,
    pub(crate) ceiling: Arc<Ceiling>,
    pub(crate) first_party: BTreeSet<Digest>,
    pub(crate) permits: Permits,
    pub(crate) live: LiveCalls,
    pub(crate) contracts: moka::sync::Cache<(OrgId, PluginId), Arc<Contract>>,
    pub(crate) rights: moka::sync::Cache<(OrgId, InstallationId), (GrantVersion, Arc<Rights>)>,
    pub(crate) supervisor: Supervisor,
}

impl Sandbox {
    pub(crate) fn new(parts: SandboxParts) -> Self {
        Self {
            runtime: parts.runtime,
            ceiling: Arc::new(parts.ceiling),
            first_party: parts.first_party,
            permits: Permits::new(parts.concurrency),
            live: LiveCalls::new(),
            contracts: moka::sync::Cache::builder()
                .max_capacity(CONTRACTS_BYTES_MAX)
                .weigher(|_, contract: &Arc<Contract>| contract_bytes(contract))
                .build(),
            rights: moka::sync::Cache::builder()
                .max_capacity(RIGHTS_BYTES_MAX)
                .weigher(|_, (_, rights): &(GrantVersion, Arc<Rights>)| rights_bytes(rights))
                .build(),
            supervisor: parts.supervisor,
        }
    }
}

/// The task that carried a use case ended without an answer.
#[derive(Debug, thiserror::Error)]
#[error("the task {0} ended early")]
struct EndedEarly(&'static str);

impl App {
    /// Runs `work` to its end even when the caller stops waiting: a commit is always followed by what has to follow it, and a
    /// call that was made is always recorded.
    pub(crate) async fn to_the_end<T>(
        &self,
        name: &'static str,
        work: BoxFuture<'static, Result<T, AppError>>,
    ) -> Result<T, AppError>
    where
        T: Send + 'static,
    {
        let (answer, answered) = oneshot::channel();
        self.sandbox().supervisor.spawn(name, async move {
            // Nobody listening is what this is for.
            let _ = answer.send(work.await);
        });
        answered.await.unwrap_or_else(|_| Err(AppError::Runtime(Box::new(EndedEarly(name)))))
    }

    /// Tells this process and the other nodes, after commit, that an installation is at `version`: calls that began under an
    /// older one are revoked, and what was remembered of it is forgotten.
    pub fn installation_changed(&self, org: OrgId, installation: InstallationId, version: GrantVersion) {
        self.installation_is_at(org, installation, version);
        self.node().tell_installation_changed(org, installation);
    }

    /// The same for this process alone.
    pub(crate) fn installation_is_at(&self, org: OrgId, installation: InstallationId, version: GrantVersion) {
        let sandbox = self.sandbox();
        sandbox.rights.invalidate(&(org, installation));
        let revoked = sandbox.live.changed((org, installation), version);
        if revoked > 0 {
            metrics::counter!("bulkhead_plugin_calls_revoked_total")
                .increment(u64::try_from(revoked).unwrap_or(u64::MAX));
            tracing::info!(%installation, revoked, "ended calls whose installation changed");
        }
    }

    /// Plugin calls that this process runs now.
    #[must_use]
    pub fn calls_in_flight(&self) -> usize {
        self.sandbox().live.count()
    }
}
