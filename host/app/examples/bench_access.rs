//! Performance row 12: what permissions cost. One check of a member with ten roles, what authentication pays for a member's right from
//! memory and from the rows, and a batch of a hundred questions about a hundred members.
//!
//! On SQLite; prints one JSON object a line (`bulkhead_test_support::measure`).

use std::collections::BTreeSet;
use std::hint::black_box;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use bulkhead_app::access::{AccessSubject, Question};
use bulkhead_app::api_key::NewApiKey;
use bulkhead_app::assignment::NewAssignment;
use bulkhead_app::role::NewRole;
use bulkhead_app::supervise::Supervisor;
use bulkhead_app::{AccountParts, App, AppParts, CallConcurrency, HashingLimits, SandboxParts, compiler_main};
use bulkhead_model::ambient::Ambient;
use bulkhead_model::grant::Ceiling;
use bulkhead_model::id::{AssignmentId, OrgId, UserId};
use bulkhead_model::permission::{AccountScope, Caller, Permission, PermissionSet};
use bulkhead_model::role::assignment::{Assignment, Standing, Window, Within};
use bulkhead_model::role::{BuiltIn, Gives, RoleRef, Roles};
use bulkhead_runtime::egress::{EgressConfig, SystemResolver};
use bulkhead_runtime::{CompilerCommand, Runtime, RuntimeConfig};
use bulkhead_store::account::User;
use bulkhead_store::seal::{RootKey, Sealer};
use bulkhead_store::{Database, Store, StoreConfig, StoreError};
use bulkhead_test_support::measure::{self, Figure};

/// Members of the organization, and roles of each.
const MEMBERS: usize = 100;
const ROLES_EACH: usize = 10;
const CHECKS: u32 = 2_000_000;
const READS: usize = 2_000;

fn main() -> ExitCode {
    if std::env::args().nth(1).is_some_and(|argument| argument == "compile") {
        return compiler_main();
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    match runtime.map_err(anyhow::Error::from).and_then(|runtime| runtime.block_on(Box::pin(run()))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run() -> Result<()> {
    if !measure::wants_row(12) || !measure::wants_sqlite() {
        return Ok(());
    }
    check()?;
    let dir = tempfile::tempdir_in(std::env::current_dir()?)?;
    let ambient = Ambient::system();
    let database = Database::Sqlite { dir: dir.path().join("data") };
    let store = Store::open(StoreConfig { database, connections_max: 4 }).await?;
    let config = RuntimeConfig {
        cache_dir: dir.path().join("compiled"),
        seal_key: [1; 32],
        compiler: CompilerCommand { program: std::env::current_exe()?, args: vec!["compile".into()] },
        guest_threads: 1,
        prepared_bytes_max: 1024 * 1024,
        egress: EgressConfig::new(Arc::new(SystemResolver::from_system()?)),
    };
    let app = || -> Result<App> {
        Ok(App::new(AppParts {
            store: store.clone(),
            sealer: Sealer::new(&RootKey::new([2; 32]), ambient.clone()),
            ambient: ambient.clone(),
            accounts: AccountParts::new(
                &RootKey::new([2; 32]),
                HashingLimits::default(),
                "http://bulkhead.test".to_owned(),
            ),
            sandbox: SandboxParts {
                runtime: Runtime::start(config.clone(), ambient.clone())?,
                ceiling: Ceiling::default(),
                first_party: BTreeSet::new(),
                concurrency: CallConcurrency::default(),
                supervisor: Supervisor::new(),
            },
        }))
    };
    let first = app()?;
    let (org, caller, members) = fill(&first, &store, &ambient).await?;
    authenticate(&first, org, &members).await?;
    // One whose memory is empty, asked about everybody, and then again.
    let fresh = app()?;
    batch(&fresh, &caller, org, &members, "from the rows", 1).await?;
    batch(&fresh, &caller, org, &members, "from memory", 200).await?;
    store.close().await;
    Ok(())
}

/// The pure check, without a store.
fn check() -> Result<()> {
    let (ambient, now) = (Ambient::system(), Ambient::system().now());
    let user = UserId::new(&ambient);
    let given = (0..ROLES_EACH).map(|n| Assignment {
        id: AssignmentId::new(&ambient),
        user,
        role: RoleRef::BuiltIn(BuiltIn::ALL[1 + n % 4]),
        team: None,
        window: Window { from: Some(now), until: Some(now.plus(Duration::from_hours(1))) },
    });
    let standing = Standing::new(given, &Roles::default());
    let began = Instant::now();
    for _ in 0..CHECKS {
        let held = black_box(&standing).permissions(Within::Organization, black_box(now));
        black_box(held.contains(black_box(Permission::LeadsRead)));
    }
    let ns = began.elapsed().as_secs_f64() * 1e9 / f64::from(CHECKS);
    Figure::new(12, "one permission check, member with ten timed roles", ns, "ns").print()?;
    Ok(())
}

async fn fill(app: &App, store: &Store, ambient: &Ambient) -> Result<(OrgId, Caller, Vec<UserId>)> {
    let org = app.create_org("bench".parse()?, "Bench".to_owned()).await?.id;
    let new = NewApiKey::new("bench", PermissionSet::all(), None);
    let key = app.create_first_api_key(org, new).await?;
    let caller = app.authenticate(&key.secret_text).await?.caller;
    let mut roles = Vec::new();
    for n in 0..ROLES_EACH {
        let inherits = roles.last().copied().filter(|_| n % 4 != 0).into_iter().collect();
        let gives =
            Gives { permissions: [Permission::LeadsRead, Permission::LeadsWrite].into_iter().collect(), inherits };
        let made =
            app.create_role(&caller, org, NewRole { name: format!("Role {n}"), description: String::new(), gives });
        roles.push(RoleRef::Own(made.await?.role.id));
    }
    let members = join(store, org, ambient).await?;
    for user in &members {
        for role in &roles {
            let new =
                NewAssignment { user: *user, role: *role, team: None, window: Window::ALWAYS, reason: String::new() };
            app.assign_role_as_operator(org, new).await?;
        }
    }
    Ok((org, caller, members))
}

/// Members without a way to sign in.
async fn join(store: &Store, org: OrgId, ambient: &Ambient) -> Result<Vec<UserId>> {
    let members = store.write(&AccountScope::OWN, ambient.clone(), move |tx, ambient| {
        Box::pin(async move {
            tx.enter_org(org).await?;
            let mut members = Vec::new();
            for n in 0..MEMBERS {
                let user = User {
                    id: UserId::new(ambient),
                    email: format!("member-{n}@bench.test").parse().map_err(|_| StoreError::Misuse("a bad address"))?,
                    name: format!("Member {n}"),
                    password: None,
                    password_changed_at: None,
                    email_verified_at: None,
                    is_active: true,
                    is_super_admin: false,
                    epoch: 0,
                    created_at: ambient.now(),
                    updated_at: ambient.now(),
                };
                tx.insert_user(&user).await?;
                tx.insert_member(user.id, "viewer", user.created_at).await?;
                members.push(user.id);
            }
            Ok::<_, StoreError>(members)
        })
    });
    Ok(members.await?)
}

async fn authenticate(app: &App, org: OrgId, members: &[UserId]) -> Result<()> {
    let mut micros = Vec::with_capacity(READS);
    for n in 0..READS {
        let began = Instant::now();
        black_box(app.member_caller(org, members[n % members.len()]).await?);
        micros.push(began.elapsed().as_secs_f64() * 1e6);
    }
    let (first, again) = micros.split_at_mut(MEMBERS);
    for (what, micros) in [("from the rows", first), ("from memory, epoch read", again)] {
        let p50 = measure::quantile(micros, 0.5);
        Figure::new(12, format!("a member's right for a request, {what}, p50"), p50, "µs").print()?;
    }
    Ok(())
}

async fn batch(app: &App, caller: &Caller, org: OrgId, members: &[UserId], what: &str, times: u32) -> Result<()> {
    let questions: Vec<Question> = members
        .iter()
        .map(|user| Question {
            subject: AccessSubject::User(*user),
            permission: Permission::LeadsWrite,
            within: Within::Organization,
        })
        .collect();
    let began = Instant::now();
    for _ in 0..times {
        black_box(app.check_access(caller, org, questions.clone()).await?);
    }
    let ms = began.elapsed().as_secs_f64() * 1e3 / f64::from(times);
    Figure::new(12, format!("a batch of 100 questions about 100 members, {what}"), ms, "ms").print()?;
    Ok(())
}
