//! A server on each database, and requests to it.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use bulkhead_app::api_key::NewApiKey;
use bulkhead_app::mail::Post;
use bulkhead_app::supervise::Supervisor;
use bulkhead_app::worker::{Slots, WorkerConfig};
use bulkhead_app::{
    AccountParts, App, AppParts, BreachedPasswords, CallConcurrency, HashingLimits, SandboxParts, StartLimits,
};
use bulkhead_http::{ClientAddress, HttpConfig, router};
use bulkhead_model::ambient::Ambient;
use bulkhead_model::client_address::TrustedProxies;
use bulkhead_model::grant::Ceiling;
use bulkhead_model::id::{OrgId, RunId};
use bulkhead_model::mfa::MfaPolicy;
use bulkhead_model::passkey::RelyingParty;
use bulkhead_model::password::Cost;
use bulkhead_model::permission::{Permission, PermissionSet, SystemReason, SystemScope};
use bulkhead_model::rate::{Rate, RateLimits};
use bulkhead_model::run::StepStatus;
use bulkhead_model::time::Timestamp;
use bulkhead_runtime::egress::{EgressConfig, Resolve, ResolveFuture};
use bulkhead_runtime::{CompilerCommand, Runtime, RuntimeConfig};
use bulkhead_store::dead_letter::NewDeadLetter;
use bulkhead_store::run::Step;
use bulkhead_store::seal::{RootKey, Sealer};
use bulkhead_store::{Database, Store, StoreConfig};
use bulkhead_test_support::postgres::{Database as TestDatabase, server_or_skip};
use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::BodyExt as _;
use serde_json::{Value, json};
use tower::ServiceExt as _;

use crate::members::PostBox;

/// Runs one body on both databases, as `name::sqlite` and `name::postgres`.
macro_rules! on_both {
    ($($(#[$doc:meta])* async fn $name:ident($server:ident: TestServer) $body:block)*) => {$(
        $(#[$doc])*
        async fn $name($server: $crate::support::TestServer) $body

        mod $name {
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn sqlite() {
                super::$name($crate::support::TestServer::sqlite().await).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn postgres() {
                let Some(server) = $crate::support::TestServer::postgres().await else { return };
                super::$name(server).await;
            }
        }
    )*};
}

/// Patience for what has no time of its own: generous, because the machine may be busy.
pub(crate) const PATIENCE: Duration = Duration::from_mins(1);
/// The moment at which every test begins: 2026-11-21T08:00:00Z.
const START_MICROS: i64 = 1_795_248_000_000_000;
/// The role of this suite. Not the one that the store makes for itself, whose password other suites may set.
const APP_ROLE: &str = "bulkhead_http_suite";
pub(crate) const PUBLIC_URL: &str = "http://bulkhead.test";
/// The proxy in front whose word is taken.
pub(crate) const PROXY: &str = "10.0.0.1";

pub(crate) struct TestServer {
    pub(crate) router: Router,
    pub(crate) app: App,
    pub(crate) store: Store,
    pub(crate) ambient: Ambient,
    pub(crate) post: Arc<PostBox>,
    supervisor: Supervisor,
    /// The directory or database that ends with the test.
    _place: Place,
}

#[expect(dead_code, reason = "held for what their drop does")]
enum Place {
    Sqlite(tempfile::TempDir),
    Postgres(TestDatabase<'static>),
}

/// An organization with a key of every permission.
#[derive(Clone)]
pub(crate) struct Tenant {
    pub(crate) org: String,
    pub(crate) slug: String,
    pub(crate) key: String,
}

impl Tenant {
    /// An address in the organization.
    pub(crate) fn at(&self, rest: &str) -> String {
        format!("/api/v1/orgs/{}/{rest}", self.org)
    }
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
        let directory = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("http-suite-{}", std::process::id()));
        let config = RuntimeConfig {
            cache_dir: directory,
            seal_key: [9; 32],
            compiler: CompilerCommand { program: env!("CARGO_BIN_EXE_http-suite-compile").into(), args: Vec::new() },
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

/// An answer, taken apart.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Answer {
    /// The body as JSON, after checking the status.
    #[track_caller]
    pub(crate) fn json(&self, status: u16) -> Value {
        assert_eq!(self.status.as_u16(), status, "{}", self.text());
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    /// The slug of a problem document, after checking the status and the document's form.
    #[track_caller]
    pub(crate) fn problem(&self, status: u16) -> String {
        let document = self.json(status);
        assert_eq!(self.header("content-type"), "application/problem+json");
        assert_eq!(document["status"], status);
        assert_eq!(document["request_id"], self.header("x-request-id"));
        assert!(document["title"].as_str().is_some_and(|title| !title.is_empty()), "{document}");
        assert!(document["detail"].as_str().is_some_and(|detail| !detail.is_empty()), "{document}");
        let kind = document["type"].as_str().unwrap();
        if let Some(registered) = kind.strip_prefix("https://iana.org/assignments/http-problem-types#") {
            return format!("registered:{registered}");
        }
        kind.strip_prefix("https://bulkhead.dev/problems/").unwrap_or_else(|| panic!("{kind}")).to_owned()
    }

    /// Path and code of a problem's first error.
    #[track_caller]
    pub(crate) fn error(&self, status: u16) -> (String, String) {
        let document = self.json(status);
        let error = &document["errors"][0];
        (error["path"].as_str().unwrap().to_owned(), error["code"].as_str().unwrap().to_owned())
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// A request in the making.
pub(crate) struct Ask {
    method: Method,
    path: String,
    headers: Vec<(String, String)>,
    body: Body,
    /// The address of whoever connects.
    peer: Option<IpAddr>,
}

pub(crate) fn ask(method: &str, path: impl Into<String>) -> Ask {
    Ask { method: method.parse().unwrap(), path: path.into(), headers: Vec::new(), body: Body::empty(), peer: None }
}

impl Ask {
    pub(crate) fn key(self, key: &str) -> Self {
        self.header("authorization", &format!("Bearer {key}"))
    }

    /// Method and path.
    pub(crate) fn line(&self) -> String {
        format!("{} {}", self.method, self.path)
    }

    pub(crate) fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Over a connection from there.
    pub(crate) fn peer(self, address: &str) -> Self {
        Self { peer: Some(address.parse().unwrap()), ..self }
    }

    pub(crate) fn json(self, body: &Value) -> Self {
        self.bytes("application/json", body.to_string())
    }

    pub(crate) fn bytes(self, kind: &str, body: impl Into<Body>) -> Self {
        let mut ask = self.header("content-type", kind);
        ask.body = body.into();
        ask
    }

    pub(crate) async fn send(self, router: &Router) -> Answer {
        let mut request = Request::builder().method(self.method).uri(self.path);
        for (name, value) in self.headers {
            request = request.header(name, value);
        }
        if let Some(peer) = self.peer {
            request = request.extension(ClientAddress(peer));
        }
        let response = router.clone().oneshot(request.body(self.body).unwrap()).await.unwrap();
        let (parts, body) = response.into_parts();
        Answer { status: parts.status, headers: parts.headers, body: body.collect().await.unwrap().to_bytes() }
    }
}

impl TestServer {
    pub(crate) async fn sqlite() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let database = Database::Sqlite { dir: directory.path().to_owned() };
        let store = Store::open(StoreConfig { database, connections_max: 4 }).await.unwrap();
        Self::on(store, Place::Sqlite(directory))
    }

    pub(crate) async fn postgres() -> Option<Self> {
        let database = server_or_skip()?.create_database().unwrap();
        let role = format!(
            "do $$ begin create role {APP_ROLE} login password 'http_suite'; \
             exception when duplicate_object or unique_violation then null; end $$"
        );
        database.execute(&role).unwrap();
        let (_, place) = database.url().rsplit_once('@').unwrap();
        let url = Some(format!("postgres://{APP_ROLE}:http_suite@{place}"));
        let config =
            Database::Postgres { url, owner_url: Some(database.url().to_owned()), app_password: "unused".into() };
        let store = Store::open(StoreConfig { database: config, connections_max: 6 }).await.unwrap();
        Some(Self::on(store, Place::Postgres(database)))
    }

    fn on(store: Store, place: Place) -> Self {
        let limits = HashingLimits { cost: Cost::FLOOR, ..HashingLimits::default() };
        Self::judging(store, place, ambient(), limits, None)
    }

    /// The same with room for so many passwords at once.
    pub(crate) fn with_hashing(self, limits: HashingLimits) -> Self {
        let Self { store, ambient, _place: place, .. } = self;
        Self::judging(store, place, ambient, limits, None)
    }

    /// The same with passwords that were stolen somewhere.
    pub(crate) fn with_breached_passwords(self, breached: BreachedPasswords) -> Self {
        let Self { store, ambient, _place: place, .. } = self;
        let limits = HashingLimits { cost: Cost::FLOOR, ..HashingLimits::default() };
        Self::judging(store, place, ambient, limits, Some(breached))
    }

    fn judging(
        store: Store,
        place: Place,
        ambient: Ambient,
        hashing: HashingLimits,
        breached: Option<BreachedPasswords>,
    ) -> Self {
        let (supervisor, post) = (Supervisor::new(), crate::members::post_box());
        let app = App::new(AppParts {
            store: store.clone(),
            sealer: Sealer::new(&RootKey::new([7; 32]), ambient.clone()),
            ambient: ambient.clone(),
            accounts: AccountParts::new(&RootKey::new([7; 32]), hashing, PUBLIC_URL.to_owned())
                // Browsers make passkeys over TLS alone.
                .with_passkeys(RelyingParty::configured(crate::passkeys::ORIGIN, None, &[]).unwrap())
                .with_breached_passwords(breached)
                .with_post(Some(Arc::clone(&post) as Arc<dyn Post>)),
            sandbox: SandboxParts {
                runtime: runtime(),
                ceiling: Ceiling::default(),
                first_party: std::collections::BTreeSet::new(),
                concurrency: CallConcurrency::default(),
                supervisor: supervisor.clone(),
            },
        })
        .with_rate_limits(RateLimits::all(Rate::per_minute(1_000_000, 1_000_000)));
        let router = router(app.clone(), config());
        Self { router, app, store, ambient, post, supervisor, _place: place }
    }

    /// Bounds what may be started from now on.
    pub(crate) fn limit_starts(&mut self, limits: StartLimits) {
        self.app = self.app.clone().with_start_limits(limits);
        self.router = router(self.app.clone(), config());
    }

    /// Bounds how often somebody may ask from now on.
    pub(crate) fn limit_rates(&mut self, limits: RateLimits) {
        self.app = self.app.clone().with_rate_limits(limits);
        let (app, stop) = (self.app.clone(), self.supervisor.stop_token());
        self.supervisor.spawn("shared limits", async move { app.serve_shared_limits(&stop).await });
        self.router = router(self.app.clone(), config());
    }

    /// Lets jobs be done.
    pub(crate) async fn work(&self) {
        let config = WorkerConfig { name: "http suite".into(), slots: Slots::default(), heartbeat: None };
        self.app.start_worker(config, &self.supervisor).await.unwrap();
    }

    /// Says whom an organization asks for a second factor, without a line in its log.
    pub(crate) async fn ask_for_mfa(&self, org: OrgId, policy: MfaPolicy) {
        let (scope, now) = (SystemScope::new(SystemReason::Admin).for_org(org), self.ambient.now());
        let saved = self.store.write(&scope, (policy, now), |tx, (policy, now)| {
            Box::pin(async move {
                tx.begin_policy_epoch(*now).await?;
                tx.save_mfa_policy(*policy, *now).await
            })
        });
        saved.await.unwrap();
    }

    /// A new organization; each name once. It asks nobody for a second factor.
    pub(crate) async fn tenant(&self, slug: &str) -> Tenant {
        let org = self.app.create_org(slug.parse().unwrap(), slug.to_uppercase()).await.unwrap();
        self.ask_for_mfa(org.id, MfaPolicy::Optional).await;
        let new = NewApiKey::new("all", PermissionSet::all(), None);
        let created = self.app.create_first_api_key(org.id, new).await.unwrap();
        Tenant { org: org.id.to_string(), slug: slug.to_owned(), key: created.secret_text }
    }

    /// A further key of the organization.
    pub(crate) async fn key(&self, tenant: &Tenant, permissions: &[Permission]) -> String {
        let permissions: Vec<&str> = permissions.iter().map(|permission| permission.as_str()).collect();
        let body = json!({ "name": "narrow", "permissions": permissions });
        let created = self.post(tenant, "api-keys", &body).await.json(201);
        created["secret"].as_str().unwrap().to_owned()
    }

    pub(crate) async fn send(&self, ask: Ask) -> Answer {
        tokio::time::timeout(PATIENCE, ask.send(&self.router)).await.expect("an answer comes")
    }

    pub(crate) async fn get(&self, tenant: &Tenant, rest: &str) -> Answer {
        self.send(ask("GET", tenant.at(rest)).key(&tenant.key)).await
    }

    pub(crate) async fn post(&self, tenant: &Tenant, rest: &str, body: &Value) -> Answer {
        self.send(ask("POST", tenant.at(rest)).key(&tenant.key).json(body)).await
    }

    pub(crate) async fn delete(&self, tenant: &Tenant, rest: &str) -> Answer {
        self.send(ask("DELETE", tenant.at(rest)).key(&tenant.key)).await
    }

    /// Uploads a package; the plugin's view.
    pub(crate) async fn upload(&self, tenant: &Tenant, package: Vec<u8>) -> Value {
        let ask = ask("POST", tenant.at("plugins")).key(&tenant.key).bytes("application/wasm", package);
        self.send(ask).await.json(201)
    }

    /// Puts a step's row where no worker did, with this output.
    pub(crate) async fn step(&self, tenant: &Tenant, run: &str, step: &str, output: &str) {
        let scope = SystemScope::new(SystemReason::Worker).for_org(tenant.org.parse().unwrap());
        let row = Step {
            step: step.to_owned(),
            iteration: 0,
            position: 0,
            status: StepStatus::Succeeded,
            outcome: None,
            attempts: 1,
            input: None,
            output: Some(output.to_owned()),
            error: None,
            usage: None,
            call: None,
            started_at: None,
            finished_at: None,
        };
        let args = (run.parse::<RunId>().unwrap(), row);
        let written = self
            .store
            .write_locked(&scope, args, |tx, (run, row)| Box::pin(async move { tx.save_step(*run, row).await }));
        written.await.unwrap();
    }

    /// Puts an entry for a run on the list of dead letters; its id.
    pub(crate) async fn dead_letter(&self, tenant: &Tenant, run: &str) -> String {
        let scope = SystemScope::new(SystemReason::Worker).for_org(tenant.org.parse().unwrap());
        let letter = NewDeadLetter {
            fingerprint: "0123456789abcdef".parse().unwrap(),
            kind: "run".to_owned(),
            subject: run.to_owned(),
            workflow: None,
            run: Some(run.parse().unwrap()),
            job: None,
            step: None,
            code: "permanent".to_owned(),
            message: "Private".to_owned(),
        };
        let recorded = self.store.write_locked(&scope, (letter, self.ambient.clone()), |tx, (letter, ambient)| {
            Box::pin(async move {
                tx.record_dead_letter(letter, ambient).await?;
                tx.load_dead_letter_of("run", &letter.subject).await
            })
        });
        recorded.await.unwrap().unwrap().id.to_string()
    }

    /// Saves a workflow; its view.
    pub(crate) async fn save(&self, tenant: &Tenant, definition: &Value) -> Value {
        self.post(tenant, "workflows", &json!({ "definition": definition })).await.json(201)
    }
}

pub(crate) fn config() -> HttpConfig {
    HttpConfig {
        cursor_key: [5; 32],
        metrics: Arc::new(|| "bulkhead_up 1\n".to_owned()),
        public_url: PUBLIC_URL.to_owned(),
        trusted_proxies: TrustedProxies::parse([PROXY]).unwrap(),
        version: "1.2.3",
    }
}

/// A workflow of one step, started by webhook, by hand or by API.
pub(crate) fn stops_at_once(name: &str) -> Value {
    json!({
        "schema": 1, "name": name,
        "triggers": [
            { "id": "hook", "type": "webhook" }, { "id": "hand", "type": "manual" }, { "id": "api", "type": "api" }
        ],
        "start": "end",
        "steps": { "end": { "type": "stop", "output": "{{ trigger.body }}" } },
    })
}
