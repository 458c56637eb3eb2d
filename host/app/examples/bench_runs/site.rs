//! An application with a worker, on either database, and a count of what it finishes.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::{Result, ensure};
use bulkhead_app::api_key::NewApiKey;
use bulkhead_app::installation::NewInstallation;
use bulkhead_app::run::StartByHand;
use bulkhead_app::supervise::Supervisor;
use bulkhead_app::worker::{Slots, WorkerConfig};
use bulkhead_app::workflow::SaveWorkflow;
use bulkhead_app::{AccountParts, App, AppParts, CallConcurrency, HashingLimits, SandboxParts};
use bulkhead_model::ambient::Ambient;
use bulkhead_model::grant::{Ceiling, Grants};
use bulkhead_model::id::{InstallationId, OrgId, RunId, WorkflowId};
use bulkhead_model::permission::{Caller, PermissionSet};
use bulkhead_runtime::egress::{EgressConfig, SystemResolver};
use bulkhead_runtime::{CompilerCommand, Runtime, RuntimeConfig};
use bulkhead_store::seal::{RootKey, Sealer};
use bulkhead_store::{Database, Store, StoreConfig};
use metrics::{Counter, CounterFn, Gauge, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit};
use serde_json::{Map, json};
use tokio::sync::Notify;

use crate::guests;

/// Password of the application role that the store makes; the cluster lives as long as the measurement.
const APP_PASSWORD: &str = "measured";
/// Connections of the pool on PostgreSQL, and clients of the reference.
pub(crate) const CONNECTIONS: u32 = 32;

/// Counts by the platform's own metrics, so that nothing has to be read again and again.
#[derive(Default)]
pub(crate) struct Counts {
    pub(crate) claimed: AtomicU64,
    pub(crate) succeeded: AtomicU64,
    pub(crate) otherwise: AtomicU64,
    pub(crate) moved: Notify,
}

pub(crate) fn counts() -> &'static Arc<Counts> {
    static COUNTS: OnceLock<Arc<Counts>> = OnceLock::new();
    COUNTS.get_or_init(|| {
        let counts = Arc::new(Counts::default());
        metrics::set_global_recorder(Watch(Arc::clone(&counts))).expect("the first recorder of this process");
        counts
    })
}

struct Watch(Arc<Counts>);

#[derive(Clone, Copy)]
enum Which {
    Claimed,
    Succeeded,
    Otherwise,
}

struct One(Arc<Counts>, Which);

impl CounterFn for One {
    fn increment(&self, value: u64) {
        let counter = match self.1 {
            Which::Claimed => &self.0.claimed,
            Which::Succeeded => &self.0.succeeded,
            Which::Otherwise => &self.0.otherwise,
        };
        counter.fetch_add(value, Ordering::SeqCst);
        self.0.moved.notify_one();
    }

    fn absolute(&self, _: u64) {}
}

impl Recorder for Watch {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        let which = match key.name() {
            "bulkhead_jobs_claimed_total" => Which::Claimed,
            "bulkhead_workflow_runs_total" if key.labels().any(|label| label.value() == "succeeded") => {
                Which::Succeeded
            }
            "bulkhead_workflow_runs_total" => Which::Otherwise,
            _ => return Counter::noop(),
        };
        Counter::from_arc(Arc::new(One(Arc::clone(&self.0), which)))
    }

    fn register_gauge(&self, _: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::noop()
    }

    fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::noop()
    }
}

impl Counts {
    pub(crate) fn ended(&self) -> u64 {
        self.succeeded.load(Ordering::SeqCst) + self.otherwise.load(Ordering::SeqCst)
    }

    /// Waits until so many runs have ended.
    ///
    /// # Errors
    /// When one of all ended otherwise than well.
    pub(crate) async fn wait_ended(&self, runs: u64) -> Result<()> {
        loop {
            let moved = self.moved.notified();
            if self.ended() >= runs {
                let otherwise = self.otherwise.load(Ordering::SeqCst);
                ensure!(otherwise == 0, "{otherwise} runs did not succeed");
                return Ok(());
            }
            // With an end, since many counts may come before one waits.
            drop(tokio::time::timeout(Duration::from_millis(20), moved).await);
        }
    }
}

/// Where data is kept.
#[derive(Clone, Debug)]
pub(crate) struct Ground {
    database: Database,
    connections: u32,
}

impl Ground {
    pub(crate) fn sqlite(dir: &Path) -> Self {
        Self { database: Database::Sqlite { dir: dir.join("data") }, connections: 4 }
    }

    /// Over the owner's address.
    pub(crate) fn postgres(owner_url: &str) -> Self {
        let owner_url = Some(owner_url.to_owned());
        let database = Database::Postgres { url: None, owner_url, app_password: APP_PASSWORD.to_owned() };
        Self { database, connections: CONNECTIONS }
    }

    fn config(&self) -> StoreConfig {
        StoreConfig { database: self.database.clone(), connections_max: self.connections }
    }

    /// What the heartbeat's thread opens: as the application role, on PostgreSQL alone.
    fn heartbeat(&self) -> Option<StoreConfig> {
        let Database::Postgres { owner_url: Some(owner), .. } = &self.database else { return None };
        let (_, place) = owner.rsplit_once('@')?;
        let role = bulkhead_store::application_role(place.rsplit_once('/')?.1);
        let url = Some(format!("postgres://{role}:{APP_PASSWORD}@{place}"));
        let database = Database::Postgres { url, owner_url: None, app_password: APP_PASSWORD.to_owned() };
        Some(StoreConfig { database, connections_max: 1 })
    }
}

/// One process's application.
#[derive(Clone)]
pub(crate) struct Site {
    pub(crate) app: App,
    pub(crate) store: Store,
    pub(crate) supervisor: Supervisor,
    ground: Ground,
}

/// An organization with a workflow.
#[derive(Clone)]
pub(crate) struct Tenant {
    pub(crate) org: OrgId,
    pub(crate) caller: Caller,
    pub(crate) installation: InstallationId,
    pub(crate) workflow: WorkflowId,
}

impl Site {
    pub(crate) async fn open(dir: &Path, ground: Ground) -> Result<Self> {
        counts();
        let ambient = Ambient::system();
        let store = Store::open(ground.config()).await?;
        let runtime = Runtime::start(
            RuntimeConfig {
                cache_dir: dir.join("compiled"),
                seal_key: [1; 32],
                compiler: CompilerCommand { program: std::env::current_exe()?, args: vec!["compile".into()] },
                guest_threads: 2,
                prepared_bytes_max: 256 * 1024 * 1024,
                egress: EgressConfig::new(Arc::new(SystemResolver::from_system()?)),
            },
            ambient.clone(),
        )?;
        let supervisor = Supervisor::new();
        let app = App::new(AppParts {
            store: store.clone(),
            sealer: Sealer::new(&RootKey::new([2; 32]), ambient.clone()),
            ambient,
            accounts: AccountParts::new(
                &RootKey::new([2; 32]),
                HashingLimits::default(),
                "http://bulkhead.test".to_owned(),
            ),
            sandbox: SandboxParts {
                runtime,
                ceiling: Ceiling::default(),
                first_party: BTreeSet::new(),
                concurrency: CallConcurrency { per_org: 256, per_installation: 256, wait_ms: 30_000 },
                supervisor: supervisor.clone(),
            },
        });
        Ok(Self { app, store, supervisor, ground })
    }

    pub(crate) async fn start_worker(&self, slots: Slots) -> Result<()> {
        self.app.start_node(bulkhead_app::node::Notifications::On { url: None }).await?;
        let config = WorkerConfig { name: "bench".into(), slots, heartbeat: self.ground.heartbeat() };
        self.app.start_worker(config, &self.supervisor).await?;
        Ok(())
    }

    /// Lets what runs end and closes the database.
    pub(crate) async fn close(self) {
        self.app.stop_worker(&self.supervisor, Duration::from_secs(10)).await;
        self.store.close().await;
    }

    /// A new organization whose workflow calls this plugin so many times.
    pub(crate) async fn tenant(&self, slug: &str, package: Vec<u8>, calls: usize) -> Result<Tenant> {
        let app = &self.app;
        let org = app.create_org(slug.parse()?, slug.to_owned()).await?.id;
        let new = NewApiKey::new("bench", PermissionSet::all(), None);
        let key = app.create_first_api_key(org, new).await?;
        let caller = app.authenticate(&key.secret_text).await?.caller;
        let plugin = app.upload_plugin(&caller, org, package.into()).await?.plugin;
        let using = format!("{}#it", plugin.name);
        let new = NewInstallation {
            plugin: plugin.name,
            version: plugin.version,
            settings: json!({}),
            grants: Grants::default(),
        };
        let installation = app.install(&caller, org, new).await?.installation.id;
        let steps: Map<_, _> = (0..calls)
            .map(|number| {
                let next = (number + 1 < calls).then(|| format!("s{}", number + 1));
                let step =
                    json!({ "type": "action", "use": using, "with": { "n": "{{ trigger.body.n }}" }, "next": next });
                (format!("s{number}"), step)
            })
            .collect();
        let definition = json!({
            "schema": 1, "name": "steps", "triggers": [{ "id": "by-hand", "type": "api" }], "start": "s0", "steps": steps,
        });
        let save = SaveWorkflow { definition: definition.to_string(), summary: String::new() };
        let workflow = app.create_workflow(&caller, org, save).await?.workflow.id;
        Ok(Tenant { org, caller, installation, workflow })
    }

    /// With an echo whose publisher is called as the organization.
    pub(crate) async fn echo_tenant(&self, slug: &str, calls: usize) -> Result<Tenant> {
        let manifest = guests::manifest(&format!("{slug}/echo"), "1.0.0", |_| ());
        self.tenant(slug, guests::package(&guests::echo(), &manifest), calls).await
    }

    /// With a plugin that waits for so long before it answers.
    pub(crate) async fn slow_tenant(&self, slug: &str, calls: usize, wait_ms: u64) -> Result<Tenant> {
        let manifest = guests::manifest(&format!("{slug}/slow"), "1.0.0", |_| ());
        self.tenant(slug, guests::package(&guests::waits_for(wait_ms), &manifest), calls).await
    }

    pub(crate) async fn start_run(&self, tenant: &Tenant) -> Result<RunId> {
        let start = StartByHand { input: json!({ "n": 1 }), variables: Map::new(), idempotency_key: None };
        Ok(self.app.start_run(&tenant.caller, tenant.org, tenant.workflow, start).await?)
    }

    /// Starts `runs` from `callers` tasks as fast as they are accepted.
    pub(crate) async fn start_runs(&self, tenant: &Tenant, callers: u64, runs: u64) -> Result<()> {
        let starts = (0..callers).map(|caller| async move {
            for _ in 0..(runs + caller) / callers {
                self.start_run(tenant).await?;
            }
            anyhow::Ok(())
        });
        futures_util::future::try_join_all(starts).await?;
        Ok(())
    }
}
