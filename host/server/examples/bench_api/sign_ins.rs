//! Row 16: what a sign-in takes beside its argon2id, and what two hundred at once do to memory and to everybody else.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use bulkhead_model::password::Cost;
use bulkhead_test_support::measure::{Figure, quantile};

use crate::client::{Client, SignIn};
use crate::load::{self, Asked, Took};
use crate::site::{Ground, Server, Site, hash};

/// Sign-ins one after the other, each of another person.
const SIGN_INS: u32 = 100;
/// Before them: the first ones find cold caches.
const WARM_UP: u32 = 5;
/// People who sign in at once, again and again.
const AT_ONCE: u32 = 200;
/// What others read meanwhile.
const READS_PER_S: u32 = 100;
const ALONE_S: u32 = 10;
const BESIDE_S: u32 = 20;
/// Between two looks at the server's memory.
const LOOK_EVERY: Duration = Duration::from_millis(10);

pub(crate) fn measure(ground: Ground) -> Result<()> {
    one_by_one(ground)?;
    all_at_once(ground)
}

fn one_by_one(ground: Ground) -> Result<()> {
    // The cheapest hash that a server starts with: what is subtracted should be small.
    let site = Site::open(ground, Cost::FLOOR, SIGN_INS + WARM_UP)?;
    let disk = site.disk_rate()?;
    let server = site.serve()?;
    let client = Client::new(&server.url);
    let (mut sign_ins, mut hashes) = (Vec::new(), Vec::new());
    for person in 0..SIGN_INS + WARM_UP {
        let began = Instant::now();
        let SignIn::Open(_) = client.sign_in(person)? else { bail!("there is room for one sign-in") };
        let sign_in_ms = began.elapsed().as_secs_f64() * 1e3;
        let began = Instant::now();
        std::hint::black_box(hash(site.cost)?);
        let hash_ms = began.elapsed().as_secs_f64() * 1e3;
        if person >= WARM_UP {
            sign_ins.push(sign_in_ms);
            hashes.push(hash_ms);
        }
    }
    let (whole, hashing) = (quantile(&mut sign_ins, 0.5), quantile(&mut hashes, 0.5));
    let name = ground.name();
    let conditions = format!(
        "{SIGN_INS} people one after the other over HTTP: p50 {whole:.1} ms, less argon2id's own p50 in this program in turns with them, \
         {hashing:.1} ms"
    );
    Figure::new(16, format!("{name}: a sign-in without its argon2id, p50"), whole - hashing, "ms")
        .target("≤ 5")
        .disk(disk)
        .conditions(conditions)
        .print()?;
    Figure::new(16, format!("{name}: a sign-in with its argon2id, p99"), quantile(&mut sign_ins, 0.99), "ms")
        .beside(quantile(&mut hashes, 0.99))
        .disk(disk)
        .print()?;
    Ok(())
}

/// What came of the people who signed in again and again.
#[derive(Default)]
struct Crowd {
    opened: AtomicU32,
    sent_away: AtomicU32,
    ends: AtomicBool,
}

impl Crowd {
    fn sign_in(&self, url: &str, person: u32) -> Result<()> {
        let client = Client::new(url);
        while !self.ends.load(Ordering::Relaxed) {
            match client.sign_in(person)? {
                SignIn::Open(_) => {
                    self.opened.fetch_add(1, Ordering::Relaxed);
                }
                SignIn::Busy(wait) => {
                    self.sent_away.fetch_add(1, Ordering::Relaxed);
                    self.pause(wait);
                }
            }
        }
        Ok(())
    }

    /// Waits, but no longer than there is anybody to wait for.
    fn pause(&self, wait: Duration) {
        let began = Instant::now();
        while began.elapsed() < wait && !self.ends.load(Ordering::Relaxed) {
            std::thread::sleep(LOOK_EVERY);
        }
    }

    /// The most memory that the server has until the end, in MiB.
    fn watch(&self, server: &Server) -> Result<f64> {
        let mut most = 0.0_f64;
        while !self.ends.load(Ordering::Relaxed) {
            most = most.max(server.resident_mib()?);
            std::thread::sleep(LOOK_EVERY);
        }
        Ok(most)
    }
}

fn all_at_once(ground: Ground) -> Result<()> {
    // As it is shipped: 64 MiB for each hash.
    let site = Site::open(ground, Cost::DEFAULT, AT_ONCE)?;
    let server = site.serve()?;
    let bearer = site.bearer();
    let path = "/api/v1/orgs/acme/members?limit=50";
    let asked = Asked { url: &server.url, path, header: ("authorization", &bearer) };
    let (mut alone, memory_alone, _) = beside(0, &server, || load::ask(&asked, READS_PER_S, ALONE_S))?;
    let began = Instant::now();
    let (mut crowded, memory, crowd) = beside(AT_ONCE, &server, || load::ask(&asked, READS_PER_S, BESIDE_S))?;
    let lasted_s = began.elapsed().as_secs_f64();
    let (opened, sent_away) = (crowd.opened.into_inner(), crowd.sent_away.into_inner());
    let name = ground.name();
    let conditions = format!(
        "{AT_ONCE} people at once, again and again; {READS_PER_S} reads/s beside; {opened} signed in, {sent_away} times somebody was told to \
         come back"
    );
    for (which, share) in [("p50", 0.5), ("p99", 0.99)] {
        Figure::new(
            16,
            format!("{name}: others' reads beside {AT_ONCE} sign-ins at once, {which}"),
            crowded.quantile(share),
            "ms",
        )
        .beside(alone.quantile(share))
        .target("as alone")
        .conditions(conditions.as_str())
        .print()?;
    }
    Figure::new(16, format!("{name}: resident memory at most, {AT_ONCE} sign-ins at once"), memory, "MiB")
        .beside(memory_alone)
        .target("alone + 2 × 64 MiB")
        .conditions(conditions.as_str())
        .print()?;
    let began = Instant::now();
    std::hint::black_box(hash(site.cost)?);
    let of_one_core = 1.0 / began.elapsed().as_secs_f64();
    Figure::new(
        16,
        format!("{name}: sign-ins, {AT_ONCE} at once, two hashed at a time"),
        f64::from(opened) / lasted_s,
        "1/s",
    )
    .beside(of_one_core)
    .conditions(format!("{conditions}; the reference is argon2id alone on one core"))
    .print()?;
    Ok(())
}

/// Measures while so many people sign in: what was measured, the most memory meanwhile, and what came of the people.
fn beside(people: u32, server: &Server, measure: impl FnOnce() -> Result<Took>) -> Result<(Took, f64, Crowd)> {
    let crowd = Crowd::default();
    let (measured, memory, signed_in) = std::thread::scope(|scope| {
        let crowd = &crowd;
        let watcher = scope.spawn(move || crowd.watch(server));
        let tries: Vec<_> = (0..people).map(|person| scope.spawn(move || crowd.sign_in(&server.url, person))).collect();
        let measured = measure();
        crowd.ends.store(true, Ordering::Relaxed);
        let ended: Vec<_> = tries.into_iter().map(std::thread::ScopedJoinHandle::join).collect();
        (measured, watcher.join(), ended)
    });
    for ended in signed_in {
        ended.map_err(|_| anyhow::anyhow!("a person panicked"))?.context("a sign-in failed")?;
    }
    let memory = memory.map_err(|_| anyhow::anyhow!("the watcher panicked"))??;
    Ok((measured?, memory, crowd))
}
