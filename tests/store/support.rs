//! Stores to test on, and rows to fill them with.

use std::path::Path;
use std::time::Duration;

use bulkhead_audit::hash::Hash;
use bulkhead_audit::key::KeyId;
use bulkhead_audit::payload::Salt;
use bulkhead_audit::retention::PayloadRetention;
use bulkhead_audit::taxonomy::EventType;
use bulkhead_model::allow_list::AllowList;
use bulkhead_model::ambient::Ambient;
use bulkhead_model::block::Block;
use bulkhead_model::breaker::{Breaker, hold_key};
use bulkhead_model::call::{CallReport, Outcome};
use bulkhead_model::fault::Fault;
use bulkhead_model::grant::{GrantVersion, Grants};
use bulkhead_model::id::{
    ApiKeyId, AuditId, CallId, DeadLetterId, DeadLetterTaskId, DeviceId, HookId, InstallationId, InvitationId, LinkId,
    OrgId, PasskeyId, PluginId, RunId, SecretId, SessionId, SignInAttemptId, SignInStepId, TokenFamilyId, TotpId,
    UserId, WorkerId, WorkflowId,
};
use bulkhead_model::job::{JobPayload, Lane};
use bulkhead_model::letter::Letter;
use bulkhead_model::limits::{ContributionKind, Limits, Usage};
use bulkhead_model::link::Purpose;
use bulkhead_model::mfa::MfaPolicy;
use bulkhead_model::passkey::CeremonyPurpose;
use bulkhead_model::password::{Cost, StoredPassword};
use bulkhead_model::permission::{AccountScope, Actor, OrgScope, PermissionSet, SystemReason, SystemScope};
use bulkhead_model::retention::RetentionPolicy;
use bulkhead_model::run::{RunStatus, StepStatus};
use bulkhead_model::session::{SessionLimits, SessionTimes};
use bulkhead_model::time::Timestamp;
use bulkhead_model::token::SecretHash;
use bulkhead_store::account::User;
use bulkhead_store::advance::CalledStep;
use bulkhead_store::api_key::{ApiKey, KeyUsage};
use bulkhead_store::audit::AuditEvent;
use bulkhead_store::audit_log::{AuditLog, SealedAudit};
use bulkhead_store::breaker::BreakerState;
use bulkhead_store::call::Call;
use bulkhead_store::dead_letter::NewDeadLetter;
use bulkhead_store::dead_letter::task::{DeadLetterAction, DeadLetterTask, TaskState};
use bulkhead_store::hook::Hook;
use bulkhead_store::installation::{Installation, InstallationState};
use bulkhead_store::invitation::Invitation;
use bulkhead_store::job::{ClaimedJob, NewJob, Turn};
use bulkhead_store::link::{Link, RevokeLink};
use bulkhead_store::mfa::{SignInStep, Totp, TotpState};
use bulkhead_store::org::Org;
use bulkhead_store::passkey::{Ceremony, StoredPasskey};
use bulkhead_store::plugin::Plugin;
use bulkhead_store::retention::{History, Pass};
use bulkhead_store::run::{Run, RunEvent, Step};
use bulkhead_store::schedule::ScheduleState;
use bulkhead_store::secret::Secret;
use bulkhead_store::session::{Device, Session};
use bulkhead_store::throttle::SignInAttempt;
use bulkhead_store::token::TokenFamily;
use bulkhead_store::workflow::{Workflow, WorkflowVersion};
use bulkhead_store::{Database, Store, StoreConfig, StoreError};
use bulkhead_test_support::postgres::{Database as TestDatabase, server_or_skip};
use serde_json::json;
use sha2::{Digest as _, Sha256};
use sqlx::Connection as _;

use crate::keys::KeyRows;
use crate::roles::AccessRows;
pub(crate) use crate::tables::{TABLES_OF_PEOPLE, global_tables};

/// Runs one body on both databases, as `name::sqlite` and `name::postgres`.
macro_rules! on_both {
    ($($(#[$doc:meta])* async fn $name:ident($store:ident: TestStore) $body:block)*) => {$(
        $(#[$doc])*
        async fn $name($store: $crate::support::TestStore) $body

        mod $name {
            use $crate::support::TestStore;

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn sqlite() {
                super::$name(TestStore::sqlite().await).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn postgres() {
                let Some(store) = TestStore::postgres().await else { return };
                super::$name(store).await;
            }
        }
    )*};
}

/// One transaction: `tx!(test.store.write, scope, [args], |tx| expression)`, which answers a `Result<_, StoreError>`.
macro_rules! tx {
    ($store:ident.$how:ident, $scope:expr, [$($arg:ident),*], |$tx:ident| $body:expr) => {{
        let result: Result<_, bulkhead_store::StoreError> = $store
            .store
            .$how($scope, ($($arg.clone(),)*), move |$tx, ($($arg,)*)| Box::pin(async move { $body }))
            .await;
        result
    }};
}

/// The role of this suite. Not the one that the store makes for itself, whose password other suites may set.
pub(crate) const APP_ROLE: &str = "bulkhead_store_suite";
const APP_PASSWORD: &str = "store_suite";
/// The moment at which every test begins: 2026-11-21T08:00:00Z.
const START_MICROS: i64 = 1_795_248_000_000_000;

enum Place {
    Sqlite(tempfile::TempDir),
    Postgres(TestDatabase<'static>),
}

/// An empty, migrated store of a test's own.
pub(crate) struct TestStore {
    pub(crate) store: Store,
    pub(crate) ambient: Ambient,
    place: Place,
}

pub(crate) fn sqlite_config(dir: &Path) -> StoreConfig {
    StoreConfig { database: Database::Sqlite { dir: dir.to_owned() }, connections_max: 4 }
}

pub(crate) fn postgres_config(url: Option<String>, owner_url: Option<String>) -> StoreConfig {
    let app_password = "unused".to_owned();
    StoreConfig { database: Database::Postgres { url, owner_url, app_password }, connections_max: 6 }
}

/// The same server and database for another role.
pub(crate) fn with_role(url: &str, role: &str, password: &str) -> String {
    let (_, place) = url.rsplit_once('@').expect("addresses of tests name their role");
    format!("postgres://{role}:{password}@{place}")
}

pub(crate) fn app_url(owner_url: &str) -> String {
    with_role(owner_url, APP_ROLE, APP_PASSWORD)
}

pub(crate) fn ambient() -> Ambient {
    Ambient::manual(Timestamp::from_micros(START_MICROS), 42)
}

/// A migrated database of one's own; `None` (said loudly) where there is no PostgreSQL.
pub(crate) async fn postgres_database() -> Option<TestDatabase<'static>> {
    let server = server_or_skip()?;
    let text = concat!(
        include_str!("../../migrations/postgres/0001_foundation.sql"),
        include_str!("../../migrations/postgres/0002_identity.sql"),
        include_str!("../../migrations/postgres/0003_keys.sql"),
        include_str!("../../migrations/postgres/0004_limits.sql"),
        include_str!("../../migrations/postgres/0005_devices.sql"),
        include_str!("../../migrations/postgres/0006_signatures.sql"),
        include_str!("../../migrations/postgres/0007_retention.sql"),
        include_str!("../../migrations/postgres/0008_watch.sql")
    );
    let key = format!("store_{}", &hex::encode(Sha256::digest(text))[..16]);
    let database = server.create_database_from(&key, async |owner_url: &str| {
        create_role(owner_url).await.map_err(StoreError::from)?;
        Store::migrate(postgres_config(Some(app_url(owner_url)), Some(owner_url.to_owned()))).await
    });
    Some(database.await.expect("a database can be made"))
}

async fn create_role(owner_url: &str) -> Result<(), sqlx::Error> {
    let mut owner = sqlx::PgConnection::connect(owner_url).await?;
    let text = format!(
        "do $$ begin create role {APP_ROLE} login password '{APP_PASSWORD}'; \
         exception when duplicate_object or unique_violation then null; end $$"
    );
    sqlx::raw_sql(sqlx::AssertSqlSafe(text)).execute(&mut owner).await?;
    owner.close().await
}

impl TestStore {
    pub(crate) async fn sqlite() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(sqlite_config(dir.path())).await.unwrap();
        Self { store, ambient: ambient(), place: Place::Sqlite(dir) }
    }

    pub(crate) async fn postgres() -> Option<Self> {
        let database = postgres_database().await?;
        let store = Store::open(postgres_config(Some(app_url(database.url())), None)).await.unwrap();
        Some(Self { store, ambient: ambient(), place: Place::Postgres(database) })
    }

    /// Another store on the same database that only looks.
    pub(crate) async fn look(&self) -> Store {
        let config = match &self.place {
            Place::Sqlite(dir) => sqlite_config(dir.path()),
            Place::Postgres(database) => postgres_config(Some(app_url(database.url())), None),
        };
        Store::look(config).await.unwrap()
    }

    pub(crate) fn database(&self) -> &TestDatabase<'static> {
        match &self.place {
            Place::Postgres(database) => database,
            Place::Sqlite(_) => panic!("asked for PostgreSQL's database on SQLite"),
        }
    }

    pub(crate) fn dir(&self) -> &Path {
        match &self.place {
            Place::Sqlite(dir) => dir.path(),
            Place::Postgres(_) => panic!("asked for SQLite's directory on PostgreSQL"),
        }
    }

    /// A second store on the same PostgreSQL database: another node.
    pub(crate) async fn another_node(&self) -> Store {
        Store::open(postgres_config(Some(app_url(self.database().url())), None)).await.unwrap()
    }

    /// Closes and opens again, as a restart does.
    pub(crate) async fn reopen(&mut self) {
        self.store.close().await;
        let config = match &self.place {
            Place::Sqlite(dir) => sqlite_config(dir.path()),
            Place::Postgres(database) => postgres_config(Some(app_url(database.url())), None),
        };
        self.store = Store::open(config).await.unwrap();
    }

    /// A connection past the store, as the application role.
    pub(crate) async fn raw_postgres(&self) -> sqlx::PgConnection {
        sqlx::PgConnection::connect(&app_url(self.database().url())).await.unwrap()
    }

    pub(crate) async fn raw_sqlite(&self) -> sqlx::SqliteConnection {
        let path = self.dir().join("bulkhead.sqlite");
        sqlx::SqliteConnection::connect(&format!("sqlite://{}", path.display())).await.unwrap()
    }

    /// A new organization; each name once.
    pub(crate) async fn org(&self, slug: &str) -> OrgId {
        let org = Org {
            id: OrgId::new(&self.ambient),
            slug: slug.parse().unwrap(),
            name: slug.to_uppercase(),
            created_at: self.ambient.now(),
        };
        let id = org.id;
        tx!(self.write, &ADMIN, [org], |tx| tx.insert_org(org).await).unwrap();
        id
    }

    /// A registered worker.
    pub(crate) async fn worker(&self) -> WorkerId {
        let (id, now) = (WorkerId::new(&self.ambient), self.ambient.now());
        tx!(self.write, &JOBS, [id, now], |tx| tx.insert_worker(*id, "node", *now, Duration::from_mins(1)).await)
            .unwrap();
        id
    }

    /// An organization with one row at least in each of its tables.
    pub(crate) async fn tenant(&self, slug: &str) -> Tenant {
        let org = self.org(slug).await;
        let tenant = Tenant::new(org, &self.ambient);
        let ambient = &self.ambient;
        tx!(self.write, &tenant.scope(), [tenant, ambient], |tx| tenant.insert(tx, ambient).await).unwrap();
        let within = AccountScope::within(&tenant.scope());
        tx!(self.write, &within, [tenant, ambient], |tx| {
            tenant.person.insert(tx).await?;
            tx.insert_member(tenant.person.user.id, "admin", tenant.person.user.created_at).await?;
            tenant.access.insert(tx, ambient).await
        })
        .unwrap();
        let (list, at) = (AllowList::read(&["192.0.2.0/24"]).unwrap(), self.ambient.now());
        tx!(self.write, &tenant.scope(), [list, at], |tx| tx.save_allow_list(list, 0, *at).await.map(drop)).unwrap();
        let (key, now) = (*org.uuid().as_bytes(), self.ambient.now().as_micros());
        let (block, own) = (Block::next(None, at).unwrap(), tenant.api_key.id);
        tx!(self.write, &LIMITS, [key, now, block], |tx| {
            tx.save_bucket(key, *now, *now + 1).await?;
            tx.save_address_block("192.0.2.1", block).await
        })
        .unwrap();
        tx!(self.write, &tenant.scope(), [own, block], |tx| tx.save_key_block(*own, block).await).unwrap();
        tenant
    }
}

pub(crate) fn spawn<T: Send + 'static>(future: impl Future<Output = T> + Send + 'static) -> tokio::task::JoinHandle<T> {
    #[expect(clippy::disallowed_methods, reason = "a test waits for its tasks itself")]
    tokio::spawn(future)
}

pub(crate) const ADMIN: SystemScope = SystemScope::new(SystemReason::Admin);
pub(crate) const PEOPLE: AccountScope = AccountScope::OWN;
pub(crate) const LIMITS: SystemScope = SystemScope::new(SystemReason::Limits);
pub(crate) const JOBS: SystemScope = SystemScope::new(SystemReason::Jobs);

pub(crate) fn scope(org: OrgId) -> OrgScope {
    SystemScope::new(SystemReason::Worker).for_org(org)
}

/// Rows of one organization.
#[derive(Clone, Debug)]
pub(crate) struct Tenant {
    pub(crate) org: OrgId,
    pub(crate) api_key: ApiKey,
    pub(crate) digest: [u8; 32],
    pub(crate) plugin: Plugin,
    pub(crate) installation: Installation,
    pub(crate) secret: Secret,
    pub(crate) workflow: Workflow,
    pub(crate) version: WorkflowVersion,
    pub(crate) hook: Hook,
    pub(crate) run: Run,
    pub(crate) step: Step,
    pub(crate) run_event: RunEvent,
    pub(crate) call: Call,
    pub(crate) job: NewJob,
    pub(crate) schedule: ScheduleState,
    pub(crate) dead_letter: NewDeadLetter,
    pub(crate) dead_letter_task: DeadLetterTask,
    pub(crate) audit: AuditEvent,
    pub(crate) history: History,
    pub(crate) audit_log: AuditLog,
    /// Its one member.
    pub(crate) person: Box<Person>,
    pub(crate) invitation: Invitation,
    pub(crate) access: AccessRows,
    pub(crate) keys: KeyRows,
}

/// A person with one row at least in each table of people.
#[derive(Clone, Debug)]
pub(crate) struct Person {
    pub(crate) user: User,
    pub(crate) device: Device,
    pub(crate) session: Session,
    pub(crate) link: Link,
    pub(crate) attempt: SignInAttempt,
    pub(crate) family: TokenFamily,
    pub(crate) totp: Totp,
    pub(crate) codes: Vec<StoredPassword>,
    pub(crate) step: SignInStep,
    pub(crate) passkey: StoredPasskey,
    pub(crate) ceremony: Ceremony,
    pub(crate) revoke: RevokeLink,
    seed: u64,
}

impl Person {
    pub(crate) fn new(ambient: &Ambient) -> Self {
        let (id, now) = (UserId::new(ambient), ambient.now());
        let user = User {
            id,
            email: format!("{}@example.com", hex::encode(ambient.random::<8>())).parse().unwrap(),
            name: "Ada".to_owned(),
            password: Some(StoredPassword { cost: Cost::FLOOR, pepper_version: 1, salt: [1; 16], tag: [2; 32] }),
            password_changed_at: Some(now),
            email_verified_at: None,
            is_active: true,
            is_super_admin: false,
            epoch: 0,
            created_at: now,
            updated_at: now,
        };
        let device = Device {
            id: DeviceId::new(ambient),
            user: id,
            token_hash: SecretHash(ambient.random()),
            agent: "browser".to_owned(),
            created_at: now,
            seen_at: now,
            trusted_until: None,
        };
        let session = Session {
            id: SessionId::new(ambient),
            user: id,
            token_hash: SecretHash(ambient.random()),
            device: Some(device.id),
            active_org: None,
            amr: "pwd".to_owned(),
            address: "192.0.2.1".to_owned(),
            agent: "browser".to_owned(),
            times: SessionTimes::begin(SessionLimits::MEMBER, now),
            created_at: now,
        };
        let link = Link {
            id: LinkId::new(ambient),
            purpose: Purpose::ChoosePassword,
            user: Some(id),
            email: None,
            epoch: Some(0),
            created_at: now,
            expires_at: now.plus(Duration::from_hours(1)),
            used_at: None,
        };
        let attempt = SignInAttempt {
            id: SignInAttemptId::new(ambient),
            user: Some(id),
            identifier: ambient.random(),
            method: "pwd".to_owned(),
            passed: false,
            device: None,
            address: String::new(),
            agent: String::new(),
            network: None,
            created_at: now,
            is_told: true,
        };
        let family = TokenFamily {
            id: TokenFamilyId::new(ambient),
            user: id,
            session: session.id,
            epoch: 0,
            amr: "pwd".to_owned(),
            auth_at: now,
            created_at: now,
            expires_at: now.plus(Duration::from_hours(1)),
        };
        let totp = Totp {
            id: TotpId::new(ambient),
            user: id,
            state: TotpState::Verified,
            session: None,
            secret: vec![7; 48],
            key_version: 1,
            last_step: 0,
            failures: 0,
            created_at: now,
            expires_at: Some(now.plus(Duration::from_mins(10))),
        };
        let code = |tag| StoredPassword { cost: Cost::FLOOR, pepper_version: 1, salt: [3; 16], tag: [tag; 32] };
        let step = SignInStep {
            id: SignInStepId::new(ambient),
            user: id,
            token_hash: SecretHash(ambient.random()),
            epoch: 0,
            device: None,
            created_at: now,
            expires_at: now.plus(Duration::from_mins(5)),
        };
        let codes = (0..10).map(code).collect();
        let passkey = StoredPasskey {
            id: PasskeyId::new(ambient),
            user: id,
            handle: uuid::Uuid::from_bytes(ambient.random()),
            credential_id: ambient.random::<32>().to_vec(),
            name: "laptop".to_owned(),
            credential: "{}".to_owned(),
            created_at: now,
            used_at: None,
        };
        let ceremony = Ceremony {
            purpose: CeremonyPurpose::SecondFactor,
            token_hash: step.token_hash,
            user: Some(id),
            handle: None,
            state: "{}".to_owned(),
            created_at: now,
            expires_at: now.plus(Duration::from_mins(5)),
        };
        let revoke = RevokeLink {
            id: LinkId::new(ambient),
            user: id,
            email: user.email.clone(),
            since: now,
            expires_at: now.plus(Duration::from_hours(1)),
        };
        Self {
            user,
            device,
            session,
            link,
            attempt,
            family,
            totp,
            codes,
            step,
            passkey,
            ceremony,
            revoke,
            seed: u64::from_le_bytes(ambient.random()),
        }
    }

    pub(crate) async fn insert(&self, tx: &mut bulkhead_store::Tx) -> Result<(), StoreError> {
        tx.insert_user(&self.user).await?;
        tx.insert_device(&self.device).await?;
        tx.insert_session(&self.session).await?;
        tx.insert_link(&self.link).await?;
        tx.lock_failures(&self.attempt.identifier).await?;
        tx.record_sign_in_attempt(&self.attempt).await?;
        tx.insert_token_family(&self.family).await?;
        tx.insert_refresh_token(&self.session.token_hash, self.family.id, self.family.created_at).await?;
        tx.replace_totp_set_up(&self.totp).await?;
        tx.activate_totp(self.user.id, self.totp.id).await?;
        tx.replace_backup_codes(self.totp.id, &self.codes, self.user.created_at).await?;
        tx.insert_sign_in_step(&self.step).await?;
        tx.replace_email_code(self.step.id, &self.codes[0], self.user.created_at).await?;
        tx.insert_passkey(&self.passkey).await?;
        tx.replace_ceremony(&self.ceremony).await?;
        tx.insert_revoke_link(&self.revoke).await?;
        tx.enqueue_mail(&self.user.email, &Letter::ResetPassword, &Ambient::manual(self.user.created_at, self.seed))
            .await
            .map(drop)
    }
}

impl Tenant {
    pub(crate) fn new(org: OrgId, ambient: &Ambient) -> Self {
        let now = ambient.now();
        let digest = ambient.random();
        let plugin = plugin(ambient, "acme/echo", "1.0.0", digest);
        let installation = installation(ambient, plugin.id);
        let workflow = workflow(ambient, "Greet");
        let person = Box::new(Person::new(ambient));
        let mut run = run(ambient, workflow.id, None);
        // Its letter is recorded with it.
        run.kept.dead_letter = true;
        Self {
            org,
            api_key: api_key(ambient, "ci"),
            digest,
            secret: Secret {
                id: SecretId::new(ambient),
                installation: installation.id,
                name: "bot_token".parse().unwrap(),
                ciphertext: "enc:v1:d1:AQID".to_owned(),
                created_at: now,
                updated_at: now,
            },
            hook: Hook {
                id: HookId::new(ambient),
                workflow: workflow.id,
                trigger: "incoming".to_owned(),
                secret_hash: SecretHash(ambient.random()),
                ciphertext: "enc:v1:d1:CQkJ".to_owned(),
                created_at: now,
                expires_at: None,
            },
            step: step("send", 1, now),
            run_event: RunEvent { seq: 1, kind: "run.started".to_owned(), detail: "{}".to_owned(), created_at: now },
            call: call(ambient, installation.id, plugin.id, Some(run.id)),
            job: job(run.id, now),
            schedule: schedule(workflow.id, now),
            dead_letter: dead_letter(&run, "the channel is archived"),
            dead_letter_task: dead_letter_task(ambient),
            audit: audit(EventType::PluginUploaded, &plugin.id.to_string()),
            audit_log: audit_log(now),
            person: person.clone(),
            invitation: Invitation {
                id: InvitationId::new(ambient),
                email: "new@example.com".parse().unwrap(),
                role: "viewer".to_owned(),
                invited_by: "key_1".to_owned(),
                is_mailed: true,
                valid_until: None,
                created_at: now,
                expires_at: now.plus(Duration::from_hours(1)),
                accepted_at: None,
                revoked_at: None,
            },
            version: version(1, now),
            history: history(now),
            access: AccessRows::new(ambient, person.user.id),
            keys: KeyRows::new(ambient),
            plugin,
            installation,
            workflow,
            run,
        }
    }

    pub(crate) fn scope(&self) -> OrgScope {
        scope(self.org)
    }

    /// An open breaker of its workflow.
    pub(crate) fn breaker(&self, now: Timestamp) -> BreakerState {
        let mut breaker = Breaker::new(now);
        breaker.open(now);
        BreakerState { workflow: self.workflow.id, version: 1, breaker, error: Some("{}".to_owned()) }
    }

    /// Its call with its step and its line in the log.
    pub(crate) fn called(&self) -> CalledStep<'_> {
        CalledStep { call: &self.call, step: &self.step, event: &self.run_event }
    }

    /// Under which runs of its workflow wait.
    pub(crate) fn hold_name(&self) -> String {
        hold_key(self.workflow.id, 1)
    }

    /// Puts every row in, in one transaction.
    pub(crate) async fn insert(&self, tx: &mut bulkhead_store::Tx, ambient: &Ambient) -> Result<(), StoreError> {
        let now = ambient.now();
        tx.insert_api_key(&self.api_key).await?;
        tx.insert_invitation(&self.invitation).await?;
        tx.insert_artifact(&self.digest, b"\0asm", now).await?;
        tx.insert_plugin(&self.plugin).await?;
        tx.insert_installation(&self.installation).await?;
        let actor = Actor::System(SystemReason::Admin);
        tx.record_grants(self.installation.id, GrantVersion(1), &Grants::default(), &actor, now).await?;
        tx.insert_secret(&self.secret).await?;
        tx.insert_workflow(&self.workflow).await?;
        tx.insert_workflow_version(self.workflow.id, &self.version).await?;
        tx.insert_hook(&self.hook).await?;
        tx.save_schedule(&self.schedule).await?;
        tx.begin_breaker(self.workflow.id, 1, now).await?;
        tx.insert_run(&self.run).await?;
        tx.save_step(self.run.id, &self.step).await?;
        tx.record_run_event(self.run.id, &self.run_event).await?;
        tx.record_call(&self.call).await?;
        tx.record_event("run.started", &self.run.id.to_string(), &json!({ "n": 1 }), ambient).await?;
        tx.record_audit(&self.audit, ambient).await?;
        tx.insert_audit_log(&self.audit_log).await?;
        // It has a place already and still waits: for a checkpoint.
        if let Some(waiting) = tx.list_audit_waiting(1).await?.entries.first() {
            tx.insert_audit_entry(&sealed_audit(0, waiting.id)).await?;
        }
        tx.record_audit_checkpoint(1, "checkpoint", now).await?;
        tx.save_audit_retention(&PayloadRetention::default(), 0, now).await?;
        tx.enqueue(&self.job, ambient).await?;
        tx.save_retention(&RetentionPolicy::default(), 0, now).await?;
        tx.save_history(&self.history).await?;
        tx.spend_key(RunId::new(ambient), self.workflow.id, "spent", now, now).await?;
        tx.record_dead_letter(&self.dead_letter, ambient).await?;
        tx.insert_dead_letter_task(&self.dead_letter_task).await?;
        tx.save_mfa_policy(MfaPolicy::All, ambient.now()).await?;
        assert!(tx.take_nonce(self.api_key.id, &[7; 32], now).await?);
        tx.add_key_usage(self.api_key.id, KeyUsage { day: 20_000, requests: 3 }, now).await?;
        self.keys.insert(tx, ambient).await?;
        Ok(())
    }
}

pub(crate) fn api_key(ambient: &Ambient, name: &str) -> ApiKey {
    ApiKey {
        id: ApiKeyId::new(ambient),
        name: name.to_owned(),
        secret_hash: SecretHash(ambient.random()),
        permissions: PermissionSet::all(),
        created_at: ambient.now(),
        expires_at: Some(ambient.now().plus(Duration::from_mins(1))),
        revoked_at: None,
        owner: None,
        made_by: None,
        previous: None,
        signing: None,
        networks: AllowList::default(),
        last_used_at: None,
    }
}

pub(crate) fn plugin(ambient: &Ambient, name: &str, version: &str, digest: [u8; 32]) -> Plugin {
    let manifest = json!({ "name": name, "version": version, "wit": "bulkhead:plugin@0.1", "title": "Echo" });
    Plugin {
        id: PluginId::new(ambient),
        name: name.parse().unwrap(),
        version: version.to_owned(),
        digest,
        manifest: serde_json::from_value(manifest).unwrap(),
        size_bytes: 4,
        created_at: ambient.now(),
        deleted_at: None,
    }
}

pub(crate) fn installation(ambient: &Ambient, plugin: PluginId) -> Installation {
    Installation {
        id: InstallationId::new(ambient),
        plugin,
        state: InstallationState::Enabled,
        settings: json!({ "channel": "#general", "deep": [1, 2.5, null] }),
        grants: Grants::default(),
        grant_version: GrantVersion(1),
        created_at: ambient.now(),
        updated_at: ambient.now(),
    }
}

pub(crate) fn workflow(ambient: &Ambient, name: &str) -> Workflow {
    Workflow {
        id: WorkflowId::new(ambient),
        name: name.to_owned(),
        active: false,
        current_version: 1,
        revision: 1,
        created_at: ambient.now(),
        updated_at: ambient.now(),
    }
}

pub(crate) fn version(version: i64, now: Timestamp) -> WorkflowVersion {
    WorkflowVersion {
        version,
        definition: r#"{"b":1,"a":"\u0000","n":1e400}"#.to_owned(),
        summary: "first".to_owned(),
        author: "key_1".to_owned(),
        created_at: now,
    }
}

pub(crate) fn run(ambient: &Ambient, workflow: WorkflowId, dedupe_key: Option<&str>) -> Run {
    Run {
        id: RunId::new(ambient),
        workflow,
        version: 1,
        status: RunStatus::Queued,
        trigger_kind: "webhook".to_owned(),
        trigger_data: r#"{"x":"\u0000"}"#.to_owned(),
        state: "{}".to_owned(),
        generation: 0,
        output: None,
        error: None,
        dedupe_key: dedupe_key.map(str::to_owned),
        log_seq: 1,
        kept: bulkhead_store::run::Kept::default(),
        waiting_until: None,
        created_at: ambient.now(),
        updated_at: ambient.now(),
        finished_at: None,
    }
}

pub(crate) fn step(name: &str, position: i64, now: Timestamp) -> Step {
    Step {
        step: name.to_owned(),
        iteration: 0,
        position,
        status: StepStatus::Running,
        outcome: None,
        attempts: 1,
        input: Some("{}".to_owned()),
        output: None,
        error: None,
        usage: None,
        call: None,
        started_at: Some(now),
        finished_at: None,
    }
}

pub(crate) fn call(ambient: &Ambient, installation: InstallationId, plugin: PluginId, run: Option<RunId>) -> Call {
    Call {
        id: CallId::new(ambient),
        installation,
        plugin,
        run,
        step: run.map(|_| "send".to_owned()),
        attempt: 1,
        contribution: "echo".to_owned(),
        grant_version: GrantVersion(1),
        input: r#"{"text":"hi"}"#.to_owned(),
        report: CallReport {
            outcome: Outcome::Returned,
            output: Some("1e999".to_owned()),
            error: None,
            usage: Usage { fuel: 12, ..Usage::default() },
            limits: Limits::default_for(ContributionKind::Action),
            log: Vec::new(),
            log_truncated: false,
            egress: Vec::new(),
            refusals: Vec::new(),
        },
        created_at: ambient.now(),
    }
}

pub(crate) fn job(run: RunId, run_at: Timestamp) -> NewJob {
    NewJob {
        payload: JobPayload::AdvanceRun { run },
        priority: 0,
        run_at,
        dedupe_key: Some(run.to_string()),
        attempts_max: 3,
        group: None,
    }
}

pub(crate) fn history(now: Timestamp) -> History {
    History {
        runs: 3,
        bytes: 5_000,
        runs_counted_to: now,
        calls_counted_to: CallId::first_at(now),
        recounted_at: now,
        retried: 0,
        retried_counted: 0,
        looked_at: now,
        full_since: None,
        pass: Some(Pass { runs: 2, bytes: 900, evicted: 1, ..Pass::begun(now) }),
    }
}

/// What stands on the list for a run that failed at its step `send`.
pub(crate) fn dead_letter(run: &Run, message: &str) -> NewDeadLetter {
    let fault = Fault { kind: "run", code: "permanent", step: Some("send"), message };
    NewDeadLetter {
        fingerprint: fault.fingerprint(),
        kind: "run".to_owned(),
        subject: run.id.to_string(),
        workflow: Some(run.workflow),
        run: Some(run.id),
        job: None,
        step: Some("send".to_owned()),
        code: "permanent".to_owned(),
        message: message.to_owned(),
    }
}

pub(crate) fn dead_letter_task(ambient: &Ambient) -> DeadLetterTask {
    let id = DeadLetterTaskId::new(ambient);
    DeadLetterTask {
        id,
        action: DeadLetterAction::Resume,
        request: r#"{"kind":"run"}"#.to_owned(),
        actor: "key_1".to_owned(),
        state: TaskState::Running,
        cursor: DeadLetterId::from_uuid(id.uuid()),
        seen: 0,
        done: 0,
        skipped: 0,
        skipped_why: None,
        created_at: ambient.now(),
        updated_at: ambient.now(),
        finished_at: None,
    }
}

pub(crate) fn schedule(workflow: WorkflowId, now: Timestamp) -> ScheduleState {
    ScheduleState {
        workflow,
        trigger: "nightly".to_owned(),
        rule: "UTC 0 2 * * *".to_owned(),
        next_tick: Some(now.plus(Duration::from_hours(18))),
        last_tick: None,
        last_fired_at: None,
        last_run: None,
        fired_count: 0,
        late_count: 0,
        missed_count: 0,
        unmatched_count: 0,
        updated_at: now,
    }
}

/// Claims up to `limit` jobs of each organization that has ready ones.
pub(crate) async fn claim_any(
    tx: &mut bulkhead_store::Tx,
    worker: WorkerId,
    lane: Lane,
    limit: u32,
    now: Timestamp,
    deadline: Duration,
) -> Result<Vec<ClaimedJob>, StoreError> {
    let orgs = tx.list_ready_orgs(lane, None, 100).await?;
    let turns: Vec<Turn> = orgs.into_iter().map(|(org, _)| Turn { org, quota: limit }).collect();
    Ok(tx.claim_jobs(worker, lane, &turns, now, deadline).await?.jobs)
}

pub(crate) fn audit_log(now: Timestamp) -> AuditLog {
    AuditLog {
        size: 1,
        last: Hash::of(&[b"last"]),
        edge: vec![Hash::of(&[b"last"])],
        verifier_key: "key".to_owned(),
        signing_key: "enc:v1:d1:BwcH".to_owned(),
        checkpoint_size: 1,
        checkpoint_at: now,
    }
}

pub(crate) fn sealed_audit(seq: u64, id: AuditId) -> SealedAudit {
    SealedAudit {
        seq,
        id,
        record: "{}".to_owned(),
        leaf: Hash::of(&[b"leaf", &seq.to_be_bytes()]),
        key_id: KeyId::from_bytes([1, 2, 3, 4]),
        signature: [5; 64],
        endorsement: (seq == 0).then_some([6; 64]),
        completed: vec![Hash::of(&[b"completed"]); usize::from(seq % 2 == 1)],
        salt: Salt::from_bytes([8; 32]),
        disposed_by: None,
    }
}

pub(crate) fn audit(action: EventType, target: &str) -> AuditEvent {
    AuditEvent {
        action,
        target: target.to_owned(),
        actor: Actor::System(SystemReason::Admin),
        detail: json!({ "before": null, "after": { "b": 1, "a": 2 } }),
    }
}
