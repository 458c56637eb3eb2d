//! The real runtime, for one command: nothing is kept afterwards.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use bulkhead_model::ambient::Ambient;
use bulkhead_model::call::CallReport;
use bulkhead_model::grant::{EffectiveGrants, Loopback};
use bulkhead_model::id::{CallId, InstallationId, OrgId};
use bulkhead_model::limits::{ContributionKind, Limits};
use bulkhead_model::manifest::Manifest;
use bulkhead_model::name::SecretName;
use bulkhead_runtime::egress::{EgressConfig, Resolve, ResolveError, ResolveFuture, SystemResolver};
use bulkhead_runtime::{
    CallContext, CallControl, CallRequest, CompilerCommand, PackageInfo, Prepared, Runtime, RuntimeConfig, SecretError,
    SecretSource, package,
};
use futures_util::future::BoxFuture;
use zeroize::Zeroizing;

/// Bytes of native code that stay in memory: one package at a time.
const PREPARED_BYTES_MAX: u64 = 512 * 1024 * 1024;

pub(super) struct Local {
    ambient: Ambient,
    executor: tokio::runtime::Runtime,
    runtime: Runtime,
    /// Sealed artifacts with a key that nobody keeps.
    _cache: tempfile::TempDir,
}

/// A package that can be called.
pub(super) struct Loaded {
    pub(super) info: PackageInfo,
    prepared: Arc<Prepared>,
    pub(super) compile_time: Duration,
}

/// What differs between the calls of one command.
pub(super) struct Call<'a> {
    pub(super) kind: ContributionKind,
    pub(super) contribution: &'a str,
    pub(super) settings: String,
    pub(super) input: String,
    pub(super) grants: Arc<EffectiveGrants>,
    pub(super) secrets: Arc<dyn SecretSource>,
    pub(super) idempotency_key: Option<String>,
}

impl Local {
    /// Starts the runtime. `loopbacks` are the only addresses of this machine that a guest may reach.
    pub(super) fn start(compiler: CompilerCommand, loopbacks: &[Loopback]) -> anyhow::Result<Self> {
        let ambient = Ambient::system();
        let cache = tempfile::tempdir().context("no folder for the compile cache")?;
        let executor = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let config = RuntimeConfig {
            cache_dir: cache.path().to_owned(),
            seal_key: ambient.random(),
            compiler,
            guest_threads: 1,
            prepared_bytes_max: PREPARED_BYTES_MAX,
            egress: egress(loopbacks),
        };
        let runtime = {
            let _entered = executor.enter();
            Runtime::start(config, ambient.clone()).context("the sandbox does not start")?
        };
        Ok(Self { ambient, executor, runtime, _cache: cache })
    }

    pub(super) fn ambient(&self) -> &Ambient {
        &self.ambient
    }

    /// Inspects and compiles a package.
    pub(super) fn load(&self, file: &Path) -> anyhow::Result<Loaded> {
        let bytes = std::fs::read(file).with_context(|| format!("{} cannot be read", file.display()))?;
        let info = package::inspect(&bytes).with_context(|| format!("{} is refused", file.display()))?;
        let begun = Instant::now();
        let prepared = self
            .executor
            .block_on(self.runtime.prepare(info.digest, async { Ok(bytes) }))
            .map_err(anyhow::Error::from)
            .with_context(|| format!("{} cannot be prepared", file.display()))?;
        Ok(Loaded { info, prepared, compile_time: begun.elapsed() })
    }

    pub(super) fn call(&self, loaded: &Loaded, call: Call<'_>) -> CallReport {
        let request = CallRequest {
            kind: call.kind,
            contribution: call.contribution.to_owned(),
            context: self.context(call.idempotency_key),
            settings: call.settings,
            input: call.input,
            grants: call.grants,
            secrets: call.secrets,
            limits: Limits::resolve(call.kind, &loaded.info.manifest.limits),
            control: CallControl::new(),
        };
        self.executor.block_on(self.runtime.call(&loaded.prepared, request))
    }

    /// Ids like those of the platform; what they name does not exist.
    fn context(&self, idempotency_key: Option<String>) -> CallContext {
        let call = CallId::new(&self.ambient).to_string();
        CallContext {
            org: OrgId::new(&self.ambient).to_string(),
            installation: InstallationId::new(&self.ambient).to_string(),
            idempotency_key: idempotency_key.unwrap_or_else(|| call.clone()),
            call,
            run: None,
            step: None,
            attempt: 1,
            locale: None,
        }
    }
}

/// The platform's guard, with the machine's name servers. A machine without any can still check packages.
fn egress(loopbacks: &[Loopback]) -> EgressConfig {
    let resolver: Arc<dyn Resolve> = match SystemResolver::from_system() {
        Ok(resolver) => Arc::new(resolver),
        Err(error) => Arc::new(NoResolver(error.to_string())),
    };
    let mut config = EgressConfig::new(resolver);
    config.allow_loopback = loopbacks.to_vec();
    config
}

/// Answers every lookup with the reason why there are no name servers.
struct NoResolver(String);

impl Resolve for NoResolver {
    fn resolve<'a>(&'a self, _host: &'a str) -> ResolveFuture<'a> {
        Box::pin(std::future::ready(Err(ResolveError(self.0.clone().into()))))
    }
}

/// Secrets given on the command line.
pub(super) struct GivenSecrets(pub(super) BTreeMap<String, Zeroizing<String>>);

impl SecretSource for GivenSecrets {
    fn load(&self, name: SecretName) -> BoxFuture<'static, Result<Option<Zeroizing<String>>, SecretError>> {
        let value = self.0.get(name.as_str()).cloned();
        Box::pin(std::future::ready(Ok(value)))
    }
}

/// The contribution, or an error that names those there are.
pub(super) fn contribution<'m>(
    manifest: &'m Manifest,
    name: &str,
) -> anyhow::Result<(ContributionKind, &'m bulkhead_model::manifest::Contribution)> {
    manifest.contribution(name).with_context(|| {
        let names: Vec<&str> = manifest.contributions().map(|(_, contribution)| contribution.name.as_str()).collect();
        format!("{} has no contribution {name}; it has {}", manifest.name, names.join(", "))
    })
}
