//! The application in this process, on a store whose statements, disk or line can be made to fail, with a real plugin that calls a
//! real receiver.

use std::net::ToSocketAddrs as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bulkhead_app::api_key::NewApiKey;
use bulkhead_app::hook::{Delivery, Door};
use bulkhead_app::installation::NewInstallation;
use bulkhead_app::run::RunDetail;
use bulkhead_app::supervise::Supervisor;
use bulkhead_app::worker::{Slots, WorkerConfig};
use bulkhead_app::workflow::SaveWorkflow;
use bulkhead_app::{AccountParts, App, AppError, AppParts, CallConcurrency, HashingLimits, SandboxParts};
use bulkhead_model::ambient::Ambient;
use bulkhead_model::call::Outcome;
use bulkhead_model::grant::{Ceiling, GrantVersion, Grants, Loopback};
use bulkhead_model::id::{InstallationId, OrgId, RunId, WorkflowId};
use bulkhead_model::permission::{Caller, PermissionSet};
use bulkhead_runtime::egress::{EgressConfig, Resolve, ResolveFuture};
use bulkhead_runtime::{CompilerCommand, Runtime, RuntimeConfig, package};
use bulkhead_store::page::PageRequest;
use bulkhead_store::seal::{RootKey, Sealer};
use bulkhead_store::{Database, Store, StoreConfig};
use bulkhead_test_support::http_sink::{Request, Sink};
use bulkhead_test_support::postgres::{Database as TestDatabase, server_or_skip};
use bulkhead_test_support::tcp_proxy::TcpProxy;
use bulkhead_test_support::wait::until_async;
use serde_json::{Map, Value, json};

/// For what has no time of its own: generous, because the machine may be busy.
pub(crate) const PATIENCE: Duration = Duration::from_mins(1);
/// The role of this suite. Not the one that the store makes for itself, whose password other suites may set.
const APP_ROLE: &str = "bulkhead_faults_suite";

/// The receiver of every effect in this process. Requests are told apart by their path.
pub(crate) fn sink() -> &'static Sink {
    static SINK: OnceLock<Sink> = OnceLock::new();
    SINK.get_or_init(Sink::start)
}

fn loopbacks() -> Vec<Loopback> {
    vec![sink().address().to_string().parse().unwrap()]
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
        let mut egress = EgressConfig::new(Arc::new(NoNames));
        egress.allow_loopback = loopbacks();
        let program = env!("CARGO_BIN_EXE_bulkhead").into();
        let config = RuntimeConfig {
            cache_dir: PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("faults-suite"),
            seal_key: [9; 32],
            compiler: CompilerCommand { program, args: vec!["compile-worker".into()] },
            guest_threads: 2,
            prepared_bytes_max: 256 * 1024 * 1024,
            egress,
        };
        Runtime::start(config, Ambient::system()).unwrap()
    };
    RUNTIME.get_or_init(start).clone()
}

/// The web hook action as it is shipped.
fn package_bytes() -> Vec<u8> {
    let binary = Path::new(env!("CARGO_BIN_EXE_bulkhead"));
    let dir = binary.parent().and_then(Path::parent).unwrap().join("plugins");
    let entries = std::fs::read_dir(&dir).unwrap_or_else(|_| panic!("run `cargo xtask build-plugins` first"));
    let mut paths = entries.flatten().map(|entry| entry.path());
    let found = paths.find(|path| path.file_name().unwrap().to_string_lossy().starts_with("bulkhead-webhook-"));
    std::fs::read(found.expect("the package is built")).unwrap()
}

/// Where a bench keeps its data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Sqlite,
    Postgres,
    /// Behind a proxy that can cut the line.
    PostgresByProxy,
}

#[expect(dead_code, reason = "held for what their drop does")]
enum Ground {
    Sqlite(tempfile::TempDir),
    Postgres(TestDatabase<'static>),
}

/// One application with one organization, one installation of the web hook action, and a worker.
pub(crate) struct Bench {
    pub(crate) app: App,
    pub(crate) store: Store,
    pub(crate) ambient: Ambient,
    pub(crate) org: OrgId,
    pub(crate) caller: Caller,
    pub(crate) installation: InstallationId,
    pub(crate) grants: Grants,
    pub(crate) workflow: WorkflowId,
    pub(crate) supervisor: Supervisor,
    pub(crate) proxy: Option<TcpProxy>,
    hook: String,
    _ground: Ground,
}

fn app(store: &Store, ambient: &Ambient) -> App {
    let digest = package::inspect(&package_bytes()).unwrap().digest;
    App::new(AppParts {
        store: store.clone(),
        sealer: Sealer::new(&RootKey::new([7; 32]), ambient.clone()),
        ambient: ambient.clone(),
        accounts: AccountParts::new(
            &RootKey::new([7; 32]),
            HashingLimits::default(),
            "http://bulkhead.test".to_owned(),
        ),
        sandbox: SandboxParts {
            runtime: runtime(),
            ceiling: Ceiling::with_loopbacks(loopbacks()),
            first_party: [digest].into(),
            // One place alone: were it not given back, the next call would wait in vain.
            concurrency: CallConcurrency { per_org: 1, per_installation: 1, wait_ms: 20_000 },
            supervisor: Supervisor::new(),
        },
    })
}

impl Bench {
    /// `None` (said loudly) where PostgreSQL is asked for and not installed.
    pub(crate) async fn new(place: Place, definition: &Value, ambient: Ambient) -> Option<Self> {
        let (database, ground, proxy) = match place {
            Place::Sqlite => {
                let dir = tempfile::tempdir().unwrap();
                (Database::Sqlite { dir: dir.path().to_owned() }, Ground::Sqlite(dir), None)
            }
            Place::Postgres | Place::PostgresByProxy => {
                let database = server_or_skip()?.create_database().unwrap();
                let role = format!(
                    "do $$ begin create role {APP_ROLE} login password 'faults_suite'; \
                     exception when duplicate_object or unique_violation then null; end $$"
                );
                database.execute(&role).unwrap();
                let (_, rest) = database.url().rsplit_once('@').unwrap();
                let (server, name) = rest.split_once('/').unwrap();
                let proxy = (place == Place::PostgresByProxy)
                    .then(|| TcpProxy::start(server.to_socket_addrs().unwrap().next().unwrap()));
                let server = proxy.as_ref().map_or_else(|| server.to_owned(), |proxy| proxy.address().to_string());
                let url = Some(format!("postgres://{APP_ROLE}:faults_suite@{server}/{name}"));
                let owner_url = Some(database.url().to_owned());
                let config = Database::Postgres { url, owner_url, app_password: "unused".into() };
                (config, Ground::Postgres(database), proxy)
            }
        };
        let store = Store::open(StoreConfig { database, connections_max: 6 }).await.unwrap();
        let app = app(&store, &ambient);
        let org = app.create_org("acme".parse().unwrap(), "Acme".into()).await.unwrap().id;
        let key = NewApiKey::new("all", PermissionSet::all(), None);
        let key = app.create_first_api_key(org, key).await.unwrap();
        let caller = app.authenticate(&key.secret_text).await.unwrap().caller;
        let plugin = app.upload_plugin(&caller, org, package_bytes().into()).await.unwrap().plugin;
        let settings = json!({ "url": sink().url("/") });
        let mut asked = plugin.manifest.clone();
        asked.permissions.retain(|ask| serde_json::to_string(&ask.capability).unwrap().contains("from_setting"));
        let grants = Grants::everything_asked(&asked, &settings);
        let new = NewInstallation { plugin: plugin.name, version: plugin.version, settings, grants: grants.clone() };
        let installation = app.install(&caller, org, new).await.unwrap().installation.id;
        let save = SaveWorkflow { definition: definition.to_string(), summary: String::new() };
        let workflow = app.create_workflow(&caller, org, save).await.unwrap().workflow.id;
        app.set_workflow_active(&caller, org, workflow, true).await.unwrap();
        let hook = app.show_workflow(&caller, org, workflow, None).await.unwrap().hooks.remove(0).token;
        let supervisor = Supervisor::new();
        let bench = Self {
            app,
            store,
            ambient,
            org,
            caller,
            installation,
            grants,
            workflow,
            supervisor,
            proxy,
            hook,
            _ground: ground,
        };
        bench.start_worker().await;
        Some(bench)
    }

    async fn start_worker(&self) {
        let started = until_async(PATIENCE, async || {
            let config = WorkerConfig { name: "bench".into(), slots: Slots::default(), heartbeat: None };
            self.app.start_worker(config, &self.supervisor).await.is_ok()
        });
        assert!(started.await, "the worker does not start");
    }

    /// Another application and worker on the same store, as after a restart.
    pub(crate) async fn start_again(&mut self) {
        self.app = app(&self.store, &self.ambient);
        self.supervisor = Supervisor::new();
        self.start_worker().await;
    }

    /// Delivers to the webhook as an honest sender: again, under the same id, until it is accepted.
    pub(crate) async fn begin(&self, label: &str) -> RunId {
        let (mut run, mut last) = (None, None);
        let accepted = until_async(PATIENCE, async || match self.deliver(label).await {
            Ok(accepted) => {
                run = accepted;
                true
            }
            Err(AppError::Store(error)) => {
                last = Some((tokio::time::Instant::now(), error));
                false
            }
            Err(other) => panic!("{other:?}"),
        });
        assert!(accepted.await, "the delivery is not accepted: {last:?}");
        run.expect("the trigger has no conditions")
    }

    /// Delivers once.
    pub(crate) async fn deliver(&self, label: &str) -> Result<Option<RunId>, AppError> {
        let open = match self.app.open_hook(&self.hook, Some(label)).await? {
            Door::Open(open) => open,
            Door::Repeated(run) => return Ok(Some(run)),
        };
        let kept = self.app.keep_room_for_body(&open)?;
        let delivery = Delivery {
            body: json!({ "url": sink().url(&format!("/{label}")) }).to_string().into_bytes(),
            headers: Map::new(),
            query: Map::new(),
            delivery_id: Some(label.to_owned()),
        };
        Ok(self.app.receive_delivery(*open, delivery, kept).await?.run)
    }

    pub(crate) async fn show(&self, run: RunId) -> Option<RunDetail> {
        self.app.show_run(&self.caller, self.org, run).await.ok()
    }

    /// Waits for the run's end.
    pub(crate) async fn ended(&self, run: RunId) -> RunDetail {
        let mut last = None;
        let ended = until_async(PATIENCE, async || {
            // A look may be what fails; then the next one tells.
            last = self.show(run).await;
            last.as_ref().is_some_and(|it| it.run.status.is_final())
        });
        assert!(ended.await, "the run does not end: {:?}", self.show(run).await);
        last.expect("it has ended")
    }

    /// What came to the receiver of the run that was begun with this label.
    pub(crate) fn requests(label: &str) -> Vec<Request> {
        let target = format!("/{label}");
        sink().requests().into_iter().filter(|request| request.target == target).collect()
    }

    /// Waits until a call of the run is with the receiver.
    pub(crate) async fn called(label: &str) {
        assert!(until_async(PATIENCE, async || !Self::requests(label).is_empty()).await, "no call came");
    }

    /// Grants these, whatever was granted before.
    pub(crate) async fn grant(&self, grants: &Grants) {
        let granted = until_async(PATIENCE, async || {
            let Ok(shown) = self.app.show_grants(&self.caller, self.org, self.installation).await else { return false };
            let version: GrantVersion = shown.installation.grant_version;
            let (caller, org) = (&self.caller, self.org);
            self.app.replace_grants(caller, org, self.installation, version, grants.clone()).await.is_ok()
        });
        assert!(granted.await, "the grants are not replaced");
    }

    /// How many jobs there are in each state.
    async fn jobs(&self) -> Vec<String> {
        let page = PageRequest { before: None, limit: 200 };
        let listed = self.app.list_jobs(&self.caller, self.org, None, page).await;
        listed.map_or_else(|_| vec!["?".into()], |jobs| jobs.items.into_iter().map(|job| job.state).collect())
    }

    /// Nothing is left in hand but so many dead letters: no job, no call.
    pub(crate) async fn assert_idle(&self, dead: usize) {
        let idle = until_async(PATIENCE, async || {
            let jobs = self.jobs().await;
            jobs.len() == dead && jobs.iter().all(|state| state == "dead") && self.app.calls_in_flight() == 0
        });
        assert!(idle.await, "left: jobs {:?}, {} calls", self.jobs().await, self.app.calls_in_flight());
    }

    /// Each of these steps had its effect, under one key and with one content; in all there were at most so many requests. What the
    /// platform has on record agrees: one call of each step counts, and the run's log has no gap.
    pub(crate) async fn assert_effects(&self, label: &str, run: RunId, steps: &[&str], requests_max: usize) {
        let requests = Self::requests(label);
        assert!(requests.len() <= requests_max, "{label}: {} requests, at most {requests_max}", requests.len());
        let mut all_keys = std::collections::BTreeSet::new();
        for step in steps {
            let of_step = |request: &&Request| {
                serde_json::from_slice::<Value>(&request.body).is_ok_and(|body| body["step"] == *step)
            };
            let of_step: Vec<&Request> = requests.iter().filter(of_step).collect();
            assert!(!of_step.is_empty(), "{label}: {step} had no effect");
            let key = of_step[0].header("idempotency-key").expect("each effect has a key");
            assert!(all_keys.insert(key), "{label}: two steps have one key");
            for request in &of_step {
                assert_eq!(request.header("idempotency-key"), Some(key), "{label}: {step} was done under another key");
                assert_eq!(request.body, of_step[0].body, "{label}: {step} was done with other content");
            }
        }
        let page = PageRequest { before: None, limit: 200 };
        let calls = self.app.list_calls(&self.caller, self.org, self.installation, Some(Outcome::Returned), page);
        let calls = calls.await.unwrap().items;
        for step in steps {
            let of_step =
                |call: &&bulkhead_app::data::CallSummary| call.run == Some(run) && call.step.as_deref() == Some(*step);
            assert!(calls.iter().filter(of_step).count() <= 1, "{label}: {step} counts twice");
        }
        let log = self.app.list_run_events(&self.caller, self.org, run, 0, 200).await.unwrap();
        let numbers: Vec<i64> = log.iter().map(|event| event.seq).collect();
        assert_eq!(numbers, (1..=i64::try_from(log.len()).unwrap()).collect::<Vec<_>>(), "{label}: the log has gaps");
    }
}
