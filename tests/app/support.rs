//! An application on each database, with organizations and callers to use it as.

use std::collections::BTreeSet;
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bulkhead_app::api_key::NewApiKey;
use bulkhead_app::installation::{InstallationDetail, NewInstallation};
use bulkhead_app::supervise::Supervisor;
use bulkhead_app::{AccountParts, App, AppError, AppParts, CallConcurrency, HashingLimits, SandboxParts};
use bulkhead_model::ambient::Ambient;
use bulkhead_model::grant::{Ceiling, Grants};
use bulkhead_model::id::OrgId;
use bulkhead_model::password::Cost;
use bulkhead_model::permission::{Caller, Permission, PermissionSet};
use bulkhead_model::time::Timestamp;
use bulkhead_runtime::egress::{EgressConfig, Resolve, ResolveFuture};
use bulkhead_runtime::{CompilerCommand, Digest, Runtime, RuntimeConfig};
use bulkhead_store::audit::{AuditEntry, AuditFilter};
use bulkhead_store::page::PageRequest;
use bulkhead_store::plugin::Plugin;
use bulkhead_store::seal::{RootKey, RootKeys, Sealer};
use bulkhead_store::{Database, Store, StoreConfig};
use bulkhead_test_support::postgres::{Database as TestDatabase, server_or_skip};
use serde_json::{Value, json};

/// Runs one body on both databases, as `name::sqlite` and `name::postgres`.
macro_rules! on_both {
    ($($(#[$doc:meta])* async fn $name:ident($app:ident: TestApp) $body:block)*) => {$(
        $(#[$doc])*
        mod $name {
            use super::*;

            async fn body($app: $crate::support::TestApp) $body

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn sqlite() {
                Box::pin(body($crate::support::TestApp::sqlite().await)).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn postgres() {
                let Some(app) = $crate::support::TestApp::postgres().await else { return };
                Box::pin(body(app)).await;
            }
        }
    )*};
}

/// Patience for what has no time of its own: generous, because the machine may be busy.
pub(crate) const PATIENCE: Duration = Duration::from_mins(1);
/// The moment at which every test begins: 2026-11-21T08:00:00Z.
const START_MICROS: i64 = 1_795_248_000_000_000;
/// The role of this suite. Not the one that the store makes for itself, whose password other suites may set.
const APP_ROLE: &str = "bulkhead_app_suite";

pub(crate) struct TestApp {
    pub(crate) app: App,
    pub(crate) store: Store,
    pub(crate) ambient: Ambient,
    /// The directory or database that ends with the test.
    place: Place,
}

enum Place {
    Sqlite(tempfile::TempDir),
    Postgres(TestDatabase<'static>),
}

/// An organization with its all-powerful key.
#[derive(Clone)]
pub(crate) struct Tenant {
    pub(crate) org: OrgId,
    pub(crate) caller: Caller,
}

struct NoNames;

impl Resolve for NoNames {
    fn resolve<'a>(&'a self, _: &'a str) -> ResolveFuture<'a> {
        Box::pin(std::future::ready(Ok(Vec::new())))
    }
}

/// One sandbox for all tests: engines are large, and what one test compiled the next one finds.
fn runtime() -> Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    let start = || {
        let config = RuntimeConfig {
            cache_dir: PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("app-suite"),
            seal_key: [9; 32],
            compiler: CompilerCommand { program: env!("CARGO_BIN_EXE_app-suite-compile").into(), args: Vec::new() },
            guest_threads: 2,
            prepared_bytes_max: 256 * 1024 * 1024,
            egress: EgressConfig::new(Arc::new(NoNames)),
        };
        Runtime::start(config, ambient()).unwrap()
    };
    RUNTIME.get_or_init(start).clone()
}

fn ambient() -> Ambient {
    Ambient::manual(Timestamp::from_micros(START_MICROS), 42)
}

/// How a test's application differs from the usual one.
#[derive(Default)]
pub(crate) struct Options {
    pub(crate) first_party: BTreeSet<Digest>,
    pub(crate) concurrency: Option<CallConcurrency>,
}

impl TestApp {
    pub(crate) async fn sqlite() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let database = Database::Sqlite { dir: directory.path().to_owned() };
        let store = Store::open(StoreConfig { database, connections_max: 4 }).await.unwrap();
        Self::on(store, Place::Sqlite(directory), Options::default())
    }

    pub(crate) async fn postgres() -> Option<Self> {
        let database = server_or_skip()?.create_database().unwrap();
        let role = format!(
            "do $$ begin create role {APP_ROLE} login password 'app_suite'; \
             exception when duplicate_object or unique_violation then null; end $$"
        );
        database.execute(&role).unwrap();
        let url = Some(as_app_role(database.url()));
        let config =
            Database::Postgres { url, owner_url: Some(database.url().to_owned()), app_password: "unused".into() };
        let store = Store::open(StoreConfig { database: config, connections_max: 6 }).await.unwrap();
        Some(Self::on(store, Place::Postgres(database), Options::default()))
    }

    fn on(store: Store, place: Place, options: Options) -> Self {
        let ambient = ambient();
        let app = app(&store, &ambient, options);
        Self { app, store, ambient, place }
    }

    fn database(&self) -> &TestDatabase<'static> {
        match &self.place {
            Place::Postgres(database) => database,
            Place::Sqlite(_) => panic!("asked for PostgreSQL's database on SQLite"),
        }
    }

    /// How another node opens this PostgreSQL database; `through` names a proxy on the way.
    pub(crate) fn store_config(&self, through: Option<SocketAddr>) -> StoreConfig {
        let url = through.map_or_else(|| as_app_role(self.database().url()), |proxy| self.url_through(proxy));
        let database = Database::Postgres { url: Some(url), owner_url: None, app_password: "unused".into() };
        StoreConfig { database, connections_max: 4 }
    }

    /// How a server opens this database that may bring it up to date.
    pub(crate) fn owner_config(&self) -> StoreConfig {
        let database = match &self.place {
            Place::Sqlite(directory) => Database::Sqlite { dir: directory.path().to_owned() },
            Place::Postgres(database) => {
                let owner_url = Some(database.url().to_owned());
                Database::Postgres { url: None, owner_url, app_password: "unused".into() }
            }
        };
        StoreConfig { database, connections_max: 1 }
    }

    /// Another node on the same PostgreSQL database that was started with these root keys.
    pub(crate) async fn node_with_roots(&self, roots: RootKeys) -> App {
        let store = Store::open(self.store_config(None)).await.unwrap();
        app_with(&store, &self.ambient, Sealer::with_roots(Arc::new(roots), self.ambient.clone()), Options::default())
    }

    /// The database's address with a proxy's in the server's place.
    pub(crate) fn url_through(&self, proxy: SocketAddr) -> String {
        let url = as_app_role(self.database().url());
        let (front, place) = url.rsplit_once('@').unwrap();
        let (_, name) = place.split_once('/').unwrap();
        format!("{front}@{proxy}/{name}")
    }

    pub(crate) fn postgres_address(&self) -> SocketAddr {
        let (_, place) = self.database().url().rsplit_once('@').unwrap();
        let (address, _) = place.split_once('/').unwrap();
        address.to_socket_addrs().unwrap().next().unwrap()
    }

    /// Another database of the same server.
    pub(crate) fn deaf_url(&self) -> String {
        let url = as_app_role(self.database().url());
        let (front, _) = url.rsplit_once('/').unwrap();
        format!("{front}/template1")
    }

    /// Another node on the same PostgreSQL database, with connections and a clock of its own.
    pub(crate) async fn node(&self, ambient: &Ambient) -> App {
        let store = Store::open(self.store_config(None)).await.unwrap();
        app(&store, ambient, Options::default())
    }

    /// The same, with a proxy on the way to the database.
    pub(crate) async fn node_through(&self, ambient: &Ambient, proxy: SocketAddr) -> App {
        let store = Store::open(self.store_config(Some(proxy))).await.unwrap();
        app(&store, ambient, Options::default())
    }

    /// Changes an organization's rows behind the application's back, as the database's administrator can.
    pub(crate) fn tamper(&self, org: OrgId, statement: &str) {
        match &self.place {
            Place::Sqlite(directory) => {
                let connection = rusqlite::Connection::open(directory.path().join("bulkhead.sqlite")).unwrap();
                connection.execute_batch(statement).unwrap();
            }
            Place::Postgres(database) => {
                // The owner is under row-level security as well.
                database.execute(&format!("set app.org_id = '{}'; {statement}", org.uuid())).unwrap();
            }
        }
    }

    /// Whether a transaction of this PostgreSQL database waits for another one's lock.
    pub(crate) fn somebody_waits(&self) -> bool {
        let look = "do $$ begin if not exists (select 1 from pg_locks l join pg_stat_activity a on a.pid = l.pid \
                    where not l.granted and a.datname = current_database()) then raise exception 'nobody waits'; end if; end $$";
        self.database().execute(look).is_ok()
    }

    /// Another application on the same store, as after a restart or on another node.
    pub(crate) fn again(&self, options: Options) -> App {
        app(&self.store, &self.ambient, options)
    }

    /// Another application on the same store, with this clock.
    pub(crate) fn with_clock(&self, ambient: &Ambient) -> App {
        app(&self.store, ambient, Options::default())
    }

    /// A new organization; each name once.
    pub(crate) async fn tenant(&self, slug: &str) -> Tenant {
        let org = self.app.create_org(slug.parse().unwrap(), slug.to_uppercase()).await.unwrap();
        let new = NewApiKey::new("all", PermissionSet::all(), None);
        let created = self.app.create_first_api_key(org.id, new).await.unwrap();
        let identity = self.app.authenticate(&created.secret_text).await.unwrap();
        Tenant { org: org.id, caller: identity.caller }
    }

    pub(crate) async fn upload(&self, tenant: &Tenant, package: Vec<u8>) -> Plugin {
        self.app.upload_plugin(&tenant.caller, tenant.org, package.into()).await.unwrap().plugin
    }

    /// Uploads and installs with everything granted that is asked for.
    pub(crate) async fn install(&self, tenant: &Tenant, package: Vec<u8>, settings: Value) -> InstallationDetail {
        let plugin = self.upload(tenant, package).await;
        let grants = Grants::everything_asked(&plugin.manifest, &settings);
        let new = NewInstallation { plugin: plugin.name, version: plugin.version, settings, grants };
        self.app.install(&tenant.caller, tenant.org, new).await.unwrap()
    }

    /// The organization's audit entries of one action, newest first.
    pub(crate) async fn audit(&self, tenant: &Tenant, action: &str) -> Vec<AuditEntry> {
        let page = PageRequest::default();
        let filter = AuditFilter { action: Some(action.to_owned()), ..AuditFilter::default() };
        self.app.list_audit(&tenant.caller, tenant.org, filter, page).await.unwrap().items
    }
}

fn as_app_role(owner_url: &str) -> String {
    let (_, place) = owner_url.rsplit_once('@').unwrap();
    format!("postgres://{APP_ROLE}:app_suite@{place}")
}

fn app(store: &Store, ambient: &Ambient, options: Options) -> App {
    app_with(store, ambient, Sealer::new(&RootKey::new([7; 32]), ambient.clone()), options)
}

fn app_with(store: &Store, ambient: &Ambient, sealer: Sealer, options: Options) -> App {
    App::new(AppParts {
        store: store.clone(),
        sealer,
        ambient: ambient.clone(),
        accounts: AccountParts::new(
            &RootKey::new([7; 32]),
            HashingLimits { cost: Cost::FLOOR, ..HashingLimits::default() },
            "http://bulkhead.test".to_owned(),
        ),
        sandbox: SandboxParts {
            runtime: runtime(),
            ceiling: Ceiling::default(),
            first_party: options.first_party,
            concurrency: options.concurrency.unwrap_or_default(),
            supervisor: Supervisor::new(),
        },
    })
}

impl Tenant {
    /// The same organization's caller with fewer permissions.
    pub(crate) fn only(&self, permissions: &[Permission]) -> Caller {
        let held = permissions.iter().copied().collect();
        let now = Timestamp::from_micros(START_MICROS);
        Caller::from_verified_key(self.org, self.caller.key().unwrap(), held, None, None, now).unwrap()
    }
}

/// Codes and places of an invalid input's problems.
#[track_caller]
pub(crate) fn problems<T: std::fmt::Debug>(result: Result<T, AppError>, code: &str) -> Vec<(String, String)> {
    match result {
        Err(AppError::Invalid { code: found, problems, .. }) => {
            assert_eq!(found, code, "{problems:?}");
            problems.into_iter().map(|problem| (problem.path, problem.code)).collect()
        }
        other => panic!("expected an invalid input, got {other:?}"),
    }
}

#[track_caller]
pub(crate) fn conflict<T: std::fmt::Debug>(result: Result<T, AppError>) -> &'static str {
    match result {
        Err(AppError::Conflict { code, .. }) => code,
        other => panic!("expected a conflict, got {other:?}"),
    }
}

/// Grants of one secret to sign with.
pub(crate) fn grant_secret(name: &str) -> Grants {
    serde_json::from_value(json!({ "permissions": [{ "kind": "secret", "name": name, "inject": { "origins": [] } }] }))
        .unwrap()
}

pub(crate) async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("it ends by itself")
}
