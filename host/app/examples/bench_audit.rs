//! Performance row 13: entries of the audit log, chained and signed beside Ed25519 signing alone, and verified: in this process, and end to
//! end on both databases.
//!
//! Prints one JSON object a line (`bulkhead_test_support::measure`).

use std::collections::BTreeSet;
use std::hint::black_box;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use bulkhead_app::supervise::Supervisor;
use bulkhead_app::{AccountParts, App, AppParts, CallConcurrency, HashingLimits, SandboxParts, compiler_main};
use bulkhead_audit::bundle::{self, Coverage, EntryLine, Header, Line, Payload, Writer};
use bulkhead_audit::chain::{Chain, Entry, origin, signed_bytes};
use bulkhead_audit::hash::Hash;
use bulkhead_audit::key::SignerKey;
use bulkhead_audit::payload::{Salt, bounded_text, commitment};
use bulkhead_audit::record::{Actor, Draft, Target, Token, genesis};
use bulkhead_audit::taxonomy::{ActorKind, EventType};
use bulkhead_audit::verify::{Expectation, Verifier};
use bulkhead_model::ambient::Ambient;
use bulkhead_model::grant::Ceiling;
use bulkhead_model::id::OrgId;
use bulkhead_model::permission::{Actor as ModelActor, SystemReason, SystemScope};
use bulkhead_runtime::egress::{EgressConfig, SystemResolver};
use bulkhead_runtime::{CompilerCommand, Runtime, RuntimeConfig};
use bulkhead_store::audit::AuditEvent;
use bulkhead_store::seal::{RootKey, Sealer};
use bulkhead_store::{Database, Store, StoreConfig, StoreError};
use bulkhead_test_support::measure::{self, Figure};
use serde_json::json;

/// Entries of the log that never sees a database.
const ENTRIES: u32 = 20_000;
/// Each figure of it is the median of so many rounds, ours and the reference in turns.
const ROUNDS: usize = 3;
/// Entries that wait in a database.
const WAITING: u32 = 10_000;
/// … of which so many are written in one transaction.
const WRITTEN_AT_ONCE: u32 = 1_000;
/// Looks of the sealer after which something is wrong: each takes on some thousands.
const LOOKS_MAX: usize = 100;

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
    if !measure::wants_row(13) {
        return Ok(());
    }
    let signs_per_s = in_process()?;
    let dir = tempfile::tempdir_in(std::env::current_dir()?)?;
    if measure::wants_sqlite() {
        let disk = measure::disk_rate(dir.path())?;
        let database = Database::Sqlite { dir: dir.path().join("data") };
        end_to_end("SQLite", database, dir.path(), (signs_per_s, Some(disk))).await?;
    }
    if let Some(server) = measure::wanted_postgres() {
        let made = server.create_database()?;
        let database = Database::Postgres {
            url: None,
            owner_url: Some(made.url().to_owned()),
            app_password: "bench_audit".to_owned(),
        };
        end_to_end("PostgreSQL", database, dir.path(), (signs_per_s, None)).await?;
    }
    Ok(())
}

fn per_s(count: u32, took: Duration) -> f64 {
    f64::from(count) / took.as_secs_f64()
}

/// A log that never sees a database, with what its payloads were committed to with.
struct Log {
    org: Token,
    key: SignerKey,
    chain: Chain,
    entries: Vec<(Entry, Salt, String)>,
}

impl Log {
    fn new() -> Result<Self> {
        let org: Token = "org_01jd0000000000000000000001".parse()?;
        let key = SignerKey::from_seed(&origin(&org), &[1; 32])?;
        Ok(Self { chain: Chain::new(org.clone()), org, key, entries: Vec::new() })
    }

    /// All that one entry costs: its payload's canonical bytes and commitment, its record's, the link, the tree, the signature.
    fn append(&mut self, at: u32) -> Result<()> {
        let event = if at == 0 { EventType::LogOpened } else { EventType::GrantsChanged };
        let salt = Salt::from_bytes(*Hash::of(&[b"salt", &at.to_be_bytes()]).as_bytes());
        let payload = bounded_text(json!({
            "ip": format!("192.0.2.{}", at % 250), "before": { "n": at }, "after": { "n": at + 1 },
        }))?;
        let (hour, minute, second) = (8 + at / 3_600, at / 60 % 60, at % 60);
        let draft = Draft {
            id: format!("aud_{at:026}").parse()?,
            ts: format!("2026-11-21T{hour:02}:{minute:02}:{second:02}.000000Z").parse()?,
            event: event.into(),
            severity: event.severity(),
            actor: Actor { kind: ActorKind::Key, id: "key_1".parse()?, via: None, impersonator: None },
            target: Target { kind: "installation".parse()?, id: "inst_1".parse()? },
            outcome: event.outcome(),
            reason: None,
            session: None,
            correlation: Some(format!("req_{at}").parse()?),
            causation: None,
            payload_commit: commitment(&salt, &payload),
            key: (at == 0).then(|| self.key.verifier().to_string()),
            disposal: None,
        };
        let entry = self.chain.append(draft, &self.key, None)?;
        self.entries.push((entry, salt, payload));
        Ok(())
    }

    /// The bundle of all entries, as it would be exported.
    fn bundle(&self) -> Result<String> {
        let (mut writer, mut text) = Writer::begin(Header {
            v: bundle::VERSION,
            org: self.org.clone(),
            origin: origin(&self.org),
            coverage: Coverage::Range,
            first: 0,
            prev: genesis(&self.org),
            edge: Vec::new(),
            keys: Vec::new(),
        });
        for (entry, salt, payload) in &self.entries {
            let line = EntryLine::of(entry, Payload::shown(salt.clone(), payload)?)?;
            text.push_str(&writer.line(&Line::Entry(line)));
        }
        let note = self.chain.checkpoint().sign_after(None, &[], &self.key)?.to_string();
        text.push_str(&writer.line(&Line::Checkpoint(note)));
        text.push_str(&writer.end(&self.key)?);
        Ok(text)
    }

    fn verify(&self, bundle: &str) -> Result<()> {
        let expectation = Expectation { keys: vec![self.key.verifier()], end: true, ..Expectation::default() };
        let mut verifier = Verifier::new(expectation);
        bundle.lines().for_each(|line| verifier.line(line));
        let report = verifier.finish();
        let whole = report.is_sound() && report.entries == self.entries.len() as u64;
        ensure!(whole, "the bundle is not sound: {:?}", report.faults);
        Ok(())
    }
}

/// Prints what an entry costs without a database, and answers how many signatures this machine makes in a second.
fn in_process() -> Result<f64> {
    let (mut appends, mut signs) = (Vec::new(), Vec::new());
    let (mut verifies, mut checks) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let mut log = Log::new()?;
        let began = Instant::now();
        for at in 0..ENTRIES {
            log.append(at)?;
        }
        appends.push(per_s(ENTRIES, began.elapsed()));
        let messages: Vec<Vec<u8>> = log.entries.iter().map(|(entry, _, _)| signed_bytes(entry.leaf)).collect();
        let began = Instant::now();
        for message in &messages {
            black_box(log.key.sign(black_box(message)));
        }
        signs.push(per_s(ENTRIES, began.elapsed()));
        let bundle = log.bundle()?;
        let began = Instant::now();
        log.verify(&bundle)?;
        verifies.push(per_s(ENTRIES, began.elapsed()));
        let verifier = log.key.verifier();
        let began = Instant::now();
        for ((entry, _, _), message) in log.entries.iter().zip(&messages) {
            ensure!(black_box(verifier.verifies(message, &entry.signature)), "a signature of its own does not hold");
        }
        checks.push(per_s(ENTRIES, began.elapsed()));
    }
    let median = |values: &mut Vec<f64>| measure::quantile(values, 0.5);
    let (signs, checks) = (median(&mut signs), median(&mut checks));
    let conditions =
        format!("{ENTRIES} entries, one core, no database; the reference makes or checks as many Ed25519 signatures");
    Figure::new(13, "audit entries committed to, chained and signed, in memory", median(&mut appends), "1/s")
        .beside(signs)
        .target("≥ 50 %")
        .conditions(conditions.as_str())
        .print()?;
    Figure::new(13, "audit entries verified from a bundle, in memory", median(&mut verifies), "1/s")
        .beside(checks)
        .target("≥ 200,000")
        .conditions(conditions)
        .print()?;
    Ok(signs)
}

fn app(store: &Store, dir: &Path, ambient: &Ambient) -> Result<App> {
    let config = RuntimeConfig {
        cache_dir: dir.join("compiled"),
        seal_key: [1; 32],
        compiler: CompilerCommand { program: std::env::current_exe()?, args: vec!["compile".into()] },
        guest_threads: 1,
        prepared_bytes_max: 1024 * 1024,
        egress: EgressConfig::new(Arc::new(SystemResolver::from_system()?)),
    };
    let root = RootKey::new([2; 32]);
    Ok(App::new(AppParts {
        store: store.clone(),
        sealer: Sealer::new(&root, ambient.clone()),
        ambient: ambient.clone(),
        accounts: AccountParts::new(&root, HashingLimits::default(), "http://bulkhead.test".to_owned()),
        sandbox: SandboxParts {
            runtime: Runtime::start(config, ambient.clone())?,
            ceiling: Ceiling::default(),
            first_party: BTreeSet::new(),
            concurrency: CallConcurrency::default(),
            supervisor: Supervisor::new(),
        },
    }))
}

/// Writes entries that wait, as acts do, without the acts.
async fn write_waiting(store: &Store, org: OrgId, ambient: &Ambient) -> Result<()> {
    let scope = SystemScope::new(SystemReason::Worker).for_org(org);
    for _ in 0..WAITING / WRITTEN_AT_ONCE {
        let written = store.write(&scope, ambient.clone(), |tx, ambient| {
            Box::pin(async move {
                for at in 0..WRITTEN_AT_ONCE {
                    let event = AuditEvent {
                        action: EventType::SecretStored,
                        target: "secret_1".to_owned(),
                        actor: ModelActor::System(SystemReason::Worker),
                        detail: json!({ "ip": "192.0.2.1", "before": { "n": at }, "after": { "n": at + 1 } }),
                    };
                    tx.record_audit(&event, ambient).await?;
                }
                Ok::<_, StoreError>(())
            })
        });
        written.await?;
    }
    Ok(())
}

async fn end_to_end(name: &str, database: Database, dir: &Path, (signs_per_s, disk): (f64, Option<f64>)) -> Result<()> {
    let ambient = Ambient::system();
    let store = Store::open(StoreConfig { database, connections_max: 4 }).await?;
    let app = app(&store, dir, &ambient)?;
    let org = app.create_org("bench".parse()?, "Bench".to_owned()).await?.id;
    let print = |what: &str, rate: f64, beside: Option<(f64, &str)>| {
        let mut figure = Figure::new(13, format!("{name}: {what}"), rate, "1/s");
        if let Some((reference, target)) = beside {
            figure = figure.beside(reference).target(target);
        }
        if let Some(disk) = disk {
            figure = figure.disk(disk);
        }
        figure.conditions(format!("{WAITING} entries of one organization, nobody else at work")).print()
    };

    let began = Instant::now();
    write_waiting(&store, org, &ambient).await?;
    let rate = per_s(WAITING, began.elapsed());
    print(&format!("audit entries written beside acts, {WRITTEN_AT_ONCE} a transaction"), rate, None)?;

    let began = Instant::now();
    let mut size = 0;
    for _ in 0..LOOKS_MAX {
        let signed = app.seal_audit_log(org, true).await?;
        size = signed.last().map_or(size, |checkpoint| checkpoint.size);
        if size >= u64::from(WAITING) {
            break;
        }
    }
    let took = began.elapsed();
    ensure!(size >= u64::from(WAITING), "after {LOOKS_MAX} looks {size} of {WAITING} entries are under a checkpoint");
    let all = u32::try_from(size).context("a log of some thousand entries")?;
    let beside = Some((signs_per_s, "≥ 50 %"));
    print("audit entries sealed (placed, chained, signed, stored)", per_s(all, took), beside)?;

    let began = Instant::now();
    let report = app.verify_audit_as_operator(org, Vec::new(), Vec::new()).await?;
    let took = began.elapsed();
    ensure!(report.is_sound() && report.entries >= size, "the log is not sound: {:?}", report.faults);
    let verified = u32::try_from(report.entries).context("a log of some thousand entries")?;
    print("audit entries verified from their rows", per_s(verified, took), None)?;
    store.close().await;
    Ok(())
}
