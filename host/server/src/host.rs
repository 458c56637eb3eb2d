//! Wiring: from a configuration to an application with its store and its sandbox.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use bulkhead_app::key::{RootMismatch, check_roots, keep_root_check, look_before_opening};
use bulkhead_app::node::Notifications;
use bulkhead_app::permits::CallConcurrency;
use bulkhead_app::sandbox::SandboxParts;
use bulkhead_app::supervise::Supervisor;
use bulkhead_app::worker::{Slots, WorkerConfig};
use bulkhead_app::{AccountParts, App, AppParts};
use bulkhead_model::ambient::Ambient;
use bulkhead_model::grant::{Ceiling, Loopback};
use bulkhead_runtime::egress::{EgressConfig, SystemResolver};
use bulkhead_runtime::{Digest, Runtime, RuntimeConfig};
use bulkhead_store::seal::{RootKey, RootKeys, Sealer};
use bulkhead_store::{Database, Store, StoreConfig};

use crate::config::Config;
use crate::{keys, mail};

/// A database that could not be reached is tried again after this long.
const OPEN_AGAIN: Duration = Duration::from_millis(250);

/// An application that is ready to serve.
pub(crate) struct Host {
    pub(crate) app: App,
    pub(crate) store: Store,
    pub(crate) supervisor: Supervisor,
    pub(crate) root_key: RootKey,
    store_config: StoreConfig,
    ground: Ground,
}

/// What an application stands on, besides a database.
struct Ground {
    roots: Arc<RootKeys>,
    runtime: Runtime,
    loopbacks: Vec<Loopback>,
    first_party: BTreeSet<Digest>,
}

/// Whether a root key may be made where there is none.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum FirstStart {
    /// Only beside an SQLite database that does not exist yet.
    Embedded,
    /// Also for PostgreSQL: the demo.
    Demo,
}

fn root_keys(config: &Config, first: FirstStart, ambient: &Ambient) -> Result<RootKeys> {
    let dir = &config.server.data_dir;
    let fresh =
        if config.database.is_postgres() { first == FirstStart::Demo } else { !dir.join("bulkhead.sqlite").exists() };
    keys::load(config, fresh, ambient).with_context(|| {
        let make = "for a new PostgreSQL installation make one with `mkdir -p -m 700 DIR && (umask 077; head -c 32 /dev/urandom | xxd -p -c \
                    64 > DIR/root.key)`";
        let then = if config.keys.command.is_empty() { "" } else { ", then `bulkhead admin keys wrap-roots`" };
        format!("the root key protects secrets, and there is no default one; {make}{then}")
    })
}

pub(crate) fn store_config(config: &Config, root_key: &RootKey) -> StoreConfig {
    let database = if config.database.is_postgres() {
        Database::Postgres {
            url: config.database.url.as_ref().map(|url| url.reveal().to_owned()),
            owner_url: config.database.owner_url.as_ref().map(|url| url.reveal().to_owned()),
            app_password: hex::encode(root_key.derive("postgresql application role v1")),
        }
    } else {
        Database::Sqlite { dir: config.server.data_dir.clone() }
    };
    StoreConfig { database, connections_max: config.database.connections_max }
}

/// The owner's address with the application role in the owner's place.
fn as_application_role(owner_url: &str, password: &str) -> Option<String> {
    let mut url = url::Url::parse(owner_url).ok()?;
    let database = url.path().trim_start_matches('/');
    let role = bulkhead_store::application_role(if database.is_empty() { url.username() } else { database });
    // Without a database in its path the address means the one named as the user: that must stay so.
    if database.is_empty() {
        let user = url.username().to_owned();
        url.set_path(&user);
    }
    url.set_username(&role).ok()?;
    url.set_password(Some(password)).ok()?;
    Some(url.into())
}

/// Opens the database, if the root keys are those that it needs; one that cannot be reached (a restart, both machines coming up after a
/// power cut) is waited for.
async fn open_store(config: &StoreConfig, sealer: &Sealer, patience: Duration) -> Result<Store> {
    let began = Instant::now();
    let mut told = false;
    loop {
        let opened = match look_before_opening(config, sealer).await {
            Ok(()) => Store::open(config.clone()).await,
            Err(RootMismatch::Store(error)) => Err(error),
            Err(mismatch) => return Err(mismatch.into()),
        };
        match opened {
            Err(error) if error.is_unreachable() && began.elapsed() < patience => {
                if !told {
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        wait_s = patience.as_secs(),
                        "the database cannot be reached yet; trying again"
                    );
                    told = true;
                }
                tokio::time::sleep(OPEN_AGAIN).await;
            }
            Err(error) if error.is_unreachable() => {
                return Err(anyhow::Error::new(error).context(
                    "the database cannot be reached: does it run, and do host and port of database.url or \
                     database.owner_url lead to it?",
                ));
            }
            opened => return opened.context("the database cannot be opened"),
        }
    }
}

fn account_parts(config: &Config, root_key: &RootKey) -> Result<AccountParts> {
    let public_url = config.public_url(config.server.listen);
    let passkeys = config.accounts.passkeys(&public_url)?;
    let breached = config.accounts.breached_passwords()?;
    Ok(AccountParts::new(root_key, config.accounts.hashing(), public_url)
        .with_passkeys(passkeys)
        .with_breached_passwords(breached))
}

fn assemble(
    config: &Config,
    store: &Store,
    supervisor: &Supervisor,
    ground: &Ground,
    accounts: AccountParts,
    ambient: Ambient,
) -> App {
    let app = App::new(AppParts {
        store: store.clone(),
        sealer: Sealer::with_roots(ground.roots.clone(), ambient.clone()),
        ambient,
        accounts,
        sandbox: SandboxParts {
            runtime: ground.runtime.clone(),
            ceiling: Ceiling::with_loopbacks(ground.loopbacks.clone()),
            first_party: ground.first_party.clone(),
            concurrency: CallConcurrency::default(),
            supervisor: supervisor.clone(),
        },
    })
    .with_start_limits(config.starts.limits())
    .with_rate_limits(config.limits.limits())
    .with_audit_retention(config.audit.retention());
    match &config.audit.anchor_dir {
        Some(dir) => app.with_kept_checkpoints(crate::audit::kept_in(dir.clone())),
        None => app,
    }
}

impl Host {
    /// Opens the database (migrating it where it may) and starts the sandbox. `first_party` are the digests that may carry the
    /// platform's own publisher name.
    pub(crate) async fn open(config: &Config, first: FirstStart, first_party: BTreeSet<Digest>) -> Result<Self> {
        let ambient = Ambient::system();
        let roots = Arc::new(root_keys(config, first, &ambient)?);
        let root_key = roots.base().clone();
        let sealer = Sealer::with_roots(roots.clone(), ambient.clone());
        let store_config = store_config(config, &root_key);
        let store = open_store(&store_config, &sealer, Duration::from_secs(config.database.wait_s)).await?;
        check_roots(&store, &sealer).await?;
        keep_root_check(&store, &sealer, &ambient).await.context("the first root key cannot be kept")?;
        // Of two first starts with different keys one was later.
        check_roots(&store, &sealer).await?;
        let supervisor = Supervisor::new();
        let egress = egress(config)?;
        let loopbacks = egress.allow_loopback.clone();
        if !loopbacks.is_empty() {
            tracing::warn!(addresses = ?config.egress.allow_loopback, "plugins may reach these loopback addresses: for development only");
        }
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get);
        let guest_threads = if config.sandbox.guest_threads == 0 { cores } else { config.sandbox.guest_threads };
        let runtime = Runtime::start(
            RuntimeConfig {
                cache_dir: config.server.data_dir.join("compiled"),
                seal_key: root_key.derive("compile cache v1"),
                compiler: crate::compiler()?,
                guest_threads,
                prepared_bytes_max: config.sandbox.prepared_mib_max * 1024 * 1024,
                egress,
            },
            ambient.clone(),
        )
        .context("the sandbox does not start")?;
        let ground = Ground { roots, runtime, loopbacks, first_party };
        let accounts = account_parts(config, &root_key)?.with_post(mail::relay(&config.mail)?);
        let app = assemble(config, &store, &supervisor, &ground, accounts, ambient);
        Ok(Self { app, store, supervisor, root_key, store_config, ground })
    }

    /// An application over the same database and sandbox with another clock. It sends no mail.
    pub(crate) fn app_at(&self, config: &Config, ambient: Ambient) -> Result<App> {
        let accounts = account_parts(config, &self.root_key)?;
        Ok(assemble(config, &self.store, &self.supervisor, &self.ground, accounts, ambient))
    }

    /// Begins to carry out jobs.
    pub(crate) async fn start_worker(&self, config: &Config, address: SocketAddr) -> Result<()> {
        let heartbeat = self.store.is_postgres().then(|| {
            let mut own = self.store_config.clone();
            own.connections_max = 1;
            // The heartbeat neither migrates nor makes roles: it comes as the application role.
            if let Database::Postgres { url, owner_url, app_password } = &mut own.database
                && url.is_none()
            {
                *url = owner_url.as_deref().and_then(|owner| as_application_role(owner, app_password));
                *owner_url = None;
            }
            own
        });
        let slots = Slots {
            system: config.worker.slots_system,
            interactive: config.worker.slots_interactive,
            bulk: config.worker.slots_bulk,
        };
        let url = config.database.listen_url.as_ref().map(|url| url.reveal().to_owned());
        self.app.start_node(Notifications::On { url }).await.context("the node cannot start")?;
        let worker = WorkerConfig { name: node_name(address), slots, heartbeat };
        self.app.start_worker(worker, &self.supervisor).await.context("the worker cannot start")?;
        self.app.start_mail(&self.supervisor);
        self.app.start_limits(&self.supervisor).await.context("rate limits cannot be read")?;
        self.app.start_blocks(&self.supervisor).await.context("blocks cannot be read")?;
        self.app.start_key_usage(&self.supervisor);
        Ok(())
    }
}

/// How requests leave this machine.
pub(crate) fn egress(config: &Config) -> Result<EgressConfig> {
    let parse = |text: &String| text.parse::<Loopback>().context("egress.allow_loopback");
    let allow_loopback = config.egress.allow_loopback.iter().map(parse).collect::<Result<Vec<_>>>()?;
    let resolver = SystemResolver::from_system().context("the resolver does not start")?;
    Ok(EgressConfig { allow_loopback, ..EgressConfig::new(Arc::new(resolver)) })
}

/// What people tell this node by: host, process id and address.
fn node_name(address: SocketAddr) -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_else(|_| "host".to_owned());
    format!("{}/{} on {address}", host.trim(), std::process::id())
}

/// `bulkhead migrate`
pub(crate) async fn migrate(config: Config) -> Result<ExitCode> {
    let ambient = Ambient::system();
    let roots = root_keys(&config, FirstStart::Embedded, &ambient)?;
    let store_config = store_config(&config, roots.base());
    look_before_opening(&store_config, &Sealer::with_roots(Arc::new(roots), ambient)).await?;
    Store::migrate(store_config).await.context("the database cannot be migrated")?;
    println!("the database is at this version's schema");
    Ok(ExitCode::SUCCESS)
}
