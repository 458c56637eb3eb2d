//! Row 10: `kill -9` of a node with a thousand runs in mid-call: how soon all of them go on, on the node that is started again
//! (SQLite) and on another one (PostgreSQL), and that none is lost and no step counts twice.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use bulkhead_app::worker::Slots;
use bulkhead_model::call::Outcome;
use bulkhead_model::run::RunStatus;
use bulkhead_store::page::PageRequest;
use bulkhead_test_support::measure::{Figure, disk_rate, wants_sqlite};
use bulkhead_test_support::postgres::Server;

use crate::site::{Ground, Site, Tenant, counts};

/// Tenants, and runs of each: as many as the pool has places.
const TENANTS: usize = 10;
const RUNS_EACH: u64 = 100;
const RUNS: u64 = TENANTS as u64 * RUNS_EACH;
const CALLS: usize = 3;
/// How long each call takes.
const CALL_MS: u64 = 2_000;
/// The kill falls into the calls.
const KILL_AFTER: Duration = Duration::from_millis(700);
/// Nothing here takes longer.
const PATIENCE: Duration = Duration::from_mins(3);

/// What a node of this measurement says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Said {
    Ready,
    Claimed(u64),
    Ended(u64),
}

/// `node DIRECTORY sqlite|URL`: works until it is killed, and tells what it does, a line for each change.
pub(crate) async fn node(arguments: &[String]) -> Result<()> {
    let [dir, database] = arguments else { bail!("node DIRECTORY sqlite|URL") };
    let dir = Path::new(dir);
    let ground = if database == "sqlite" { Ground::sqlite(dir) } else { Ground::postgres(database) };
    let site = Site::open(dir, ground).await?;
    site.start_worker(Slots { interactive: 1_200, ..Slots::default() }).await?;
    let say = |word: &str, count: u64| {
        let mut out = std::io::stdout().lock();
        writeln!(out, "{word} {count}").and_then(|()| out.flush())
    };
    say("ready", 0)?;
    let (mut claimed, mut ended) = (0, 0);
    loop {
        let (claimed_now, ended_now) = (counts().claimed.load(Ordering::SeqCst), counts().ended());
        if claimed_now != claimed {
            claimed = claimed_now;
            say("claimed", claimed)?;
        }
        if ended_now != ended {
            ended = ended_now;
            say("ended", ended)?;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

struct Node {
    child: Child,
    said: Receiver<(Instant, Said)>,
}

impl Node {
    fn start(dir: &Path, database: &str) -> Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("node").arg(dir).arg(database).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.spawn()?;
        let out = BufReader::new(child.stdout.take().context("its output is piped")?);
        let (sender, said) = channel();
        std::thread::spawn(move || {
            for line in out.lines().map_while(std::result::Result::ok) {
                let Some((word, count)) = line.split_once(' ') else { continue };
                let Ok(count) = count.parse() else { continue };
                let said = match word {
                    "ready" => Said::Ready,
                    "claimed" => Said::Claimed(count),
                    "ended" => Said::Ended(count),
                    _ => continue,
                };
                if sender.send((Instant::now(), said)).is_err() {
                    return;
                }
            }
        });
        Ok(Self { child, said })
    }

    /// When it first said so.
    fn wait(&self, said: impl Fn(Said) -> bool) -> Result<Instant> {
        loop {
            let (at, heard) = self.said.recv_timeout(PATIENCE).context("the node says nothing more")?;
            if said(heard) {
                return Ok(at);
            }
        }
    }

    fn wait_claimed(&self) -> Result<Instant> {
        self.wait(|said| matches!(said, Said::Claimed(RUNS..)))
    }

    /// `kill -9`; answers when.
    fn kill(&mut self) -> Result<Instant> {
        let at = Instant::now();
        self.child.kill()?;
        self.child.wait()?;
        Ok(at)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // It may have ended already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

pub(crate) async fn measure(server: Option<&'static Server>) -> Result<()> {
    let dir = tempfile::tempdir_in(std::env::current_dir()?)?;
    let disk = disk_rate(dir.path())?;
    let conditions = format!("{TENANTS} tenants, {RUNS} runs in mid-call, {CALLS} calls of {CALL_MS} ms each");
    if wants_sqlite() {
        let ground = Ground::sqlite(dir.path());
        let tenants = fill(dir.path(), ground.clone()).await?;
        let mut first = Node::start(dir.path(), "sqlite")?;
        first.wait_claimed()?;
        std::thread::sleep(KILL_AFTER);
        let killed = first.kill()?;
        let second = Node::start(dir.path(), "sqlite")?;
        let ready = second.wait(|said| said == Said::Ready)?;
        let resumed = second.wait_claimed()?;
        second.wait(|said| matches!(said, Said::Ended(RUNS..)))?;
        drop(second);
        check(dir.path(), ground, &tenants).await?;
        Figure::new(
            10,
            "all runs resumed after kill -9, SQLite, since it is ready again",
            (resumed.saturating_duration_since(ready)).as_secs_f64(),
            "s",
        )
        .target("<= 1 s")
        .disk(disk)
        .conditions(format!(
            "{conditions}; ready {:.2} s after the kill, with the process's start; 0 lost, 0 duplicated",
            ready.duration_since(killed).as_secs_f64()
        ))
        .print()?;
    }
    if let Some(server) = server {
        let database = server.create_database()?;
        let ground = Ground::postgres(database.url());
        let tenants = fill(dir.path(), ground.clone()).await?;
        let mut first = Node::start(dir.path(), database.url())?;
        first.wait_claimed()?;
        let second = Node::start(dir.path(), database.url())?;
        second.wait(|said| said == Said::Ready)?;
        std::thread::sleep(KILL_AFTER);
        let killed = first.kill()?;
        let resumed = second.wait_claimed()?;
        second.wait(|said| matches!(said, Said::Ended(RUNS..)))?;
        drop(second);
        check(dir.path(), ground, &tenants).await?;
        Figure::new(
            10,
            "all runs resumed by another node after kill -9, PostgreSQL",
            (resumed - killed).as_secs_f64(),
            "s",
        )
        .target("<= 5 s")
        .disk(disk)
        .conditions(format!("{conditions}; 0 lost, 0 duplicated"))
        .print()?;
    }
    Ok(())
}

/// Queues the runs without a worker.
async fn fill(dir: &Path, ground: Ground) -> Result<Vec<Tenant>> {
    let site = Site::open(dir, ground).await?;
    let mut tenants = Vec::new();
    for number in 0..TENANTS {
        let tenant = site.slow_tenant(&format!("acme-{number}"), CALLS, CALL_MS).await?;
        site.app.set_queue_share(tenant.org, 1, 1_000).await?;
        site.start_runs(&tenant, 8, RUNS_EACH).await?;
        tenants.push(tenant);
    }
    site.store.close().await;
    Ok(tenants)
}

/// Every run succeeded, and of each step one call counts.
async fn check(dir: &Path, ground: Ground, tenants: &[Tenant]) -> Result<()> {
    let site = Site::open(dir, ground).await?;
    let (mut runs, mut calls) = (0, 0);
    for tenant in tenants {
        let mut page = PageRequest { before: None, limit: 200 };
        loop {
            let found = site.app.list_runs(&tenant.caller, tenant.org, Some(RunStatus::Succeeded), None, page).await?;
            runs += found.items.len();
            page.before = found.next;
            if page.before.is_none() {
                break;
            }
        }
        loop {
            let outcome = Some(Outcome::Returned);
            let found = site.app.list_calls(&tenant.caller, tenant.org, tenant.installation, outcome, page).await?;
            calls += found.items.len();
            page.before = found.next;
            if page.before.is_none() {
                break;
            }
        }
    }
    site.store.close().await;
    let expected = usize::try_from(RUNS)?;
    ensure!(runs == expected, "{runs} of {expected} runs succeeded");
    ensure!(calls == expected * CALLS, "{calls} calls count instead of {}", expected * CALLS);
    Ok(())
}
