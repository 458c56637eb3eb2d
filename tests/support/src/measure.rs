//! What measurements share: figures as `cargo xtask bench` reads them, the disk's own rate, processor time.
//!
//! A measurement is told what to measure by its environment ([`ROWS_VARIABLE`], [`DATABASE_VARIABLE`]); told nothing, it measures
//! everything.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::postgres::{Database, Server, Unavailable};

/// Rows of the table of targets to measure, such as `6,7`.
pub const ROWS_VARIABLE: &str = "BENCH_ROWS";
/// `sqlite`, `postgres` or `both`.
pub const DATABASE_VARIABLE: &str = "BENCH_DATABASE";

/// How long the disk alone is measured.
const DISK_FOR: Duration = Duration::from_secs(2);

#[expect(
    clippy::disallowed_methods,
    reason = "measurements have no configuration file; the runner speaks by environment"
)]
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// Whether the row is to be measured.
pub fn wants_row(row: u32) -> bool {
    variable(ROWS_VARIABLE).is_none_or(|rows| rows.split(',').any(|wanted| wanted.trim() == row.to_string()))
}

/// Whether it is to be measured on SQLite.
pub fn wants_sqlite() -> bool {
    variable(DATABASE_VARIABLE).is_none_or(|database| database != "postgres")
}

/// The server to measure on, which should be durable; `None` when it is not asked for or (said loudly) not there.
pub fn wanted_postgres() -> Option<&'static Server> {
    if variable(DATABASE_VARIABLE).is_some_and(|database| database == "sqlite") {
        return None;
    }
    crate::postgres::server_or_skip()
}

/// A figure: a line of JSON.
pub struct Figure {
    fields: serde_json::Map<String, Value>,
}

impl Figure {
    pub fn new(row: u32, what: impl Into<String>, ours: f64, unit: &str) -> Self {
        let mut fields = serde_json::Map::new();
        fields.insert("row".into(), json!(row));
        fields.insert("what".into(), json!(what.into()));
        fields.insert("ours".into(), json!(ours));
        fields.insert("unit".into(), json!(unit));
        Self { fields }
    }

    fn with(mut self, name: &str, value: Value) -> Self {
        self.fields.insert(name.to_owned(), value);
        self
    }

    /// What it is held against, measured in the same run.
    #[must_use]
    pub fn beside(self, reference: f64) -> Self {
        let ours = self.fields["ours"].as_f64().unwrap_or(f64::NAN);
        self.with("reference", json!(reference)).with("ratio", json!(ours / reference))
    }

    #[must_use]
    pub fn target(self, target: &str) -> Self {
        self.with("target", json!(target))
    }

    /// Synced appends a second that the disk does by itself.
    #[must_use]
    pub fn disk(self, per_s: f64) -> Self {
        self.with("fdatasync_per_s", json!(per_s))
    }

    /// Processor seconds of one unit of work, the database's own included.
    #[must_use]
    pub fn cpu_s(self, seconds: f64) -> Self {
        self.with("cpu_s", json!(seconds))
    }

    #[must_use]
    pub fn conditions(self, conditions: impl Into<String>) -> Self {
        self.with("conditions", json!(conditions.into()))
    }

    /// Prints it. A figure that nobody hears of was measured for nothing, so a closed pipe is an error.
    pub fn print(self) -> io::Result<()> {
        let mut out = io::stdout().lock();
        writeln!(out, "{}", Value::Object(self.fields))?;
        out.flush()
    }
}

/// Synced appends of 4 KiB a second, one after the other, in this folder.
pub fn disk_rate(dir: &Path) -> io::Result<f64> {
    let path = dir.join("disk-rate");
    let mut file = File::create(&path)?;
    let (block, began) = ([7_u8; 4096], Instant::now());
    let mut count = 0_u32;
    while began.elapsed() < DISK_FOR {
        file.write_all(&block)?;
        file.sync_data()?;
        count += 1;
    }
    let rate = f64::from(count) / began.elapsed().as_secs_f64();
    fs::remove_file(path)?;
    Ok(rate)
}

/// The value below which `share` of the values lie; the values get sorted. Zero when there are none.
pub fn quantile(values: &mut [f64], share: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "a place in a list"
    )]
    let at = (share * values.len() as f64) as usize;
    values.get(at.min(values.len().saturating_sub(1))).copied().unwrap_or(0.0)
}

/// Whose processor time is counted: this process, and the processes of a PostgreSQL server of this machine.
pub struct Processors {
    postmaster: Option<u32>,
}

impl Processors {
    /// Of this process alone.
    pub fn own() -> Self {
        Self { postmaster: None }
    }

    /// With the database's server, where it runs on this machine and may be looked at.
    pub fn with_server(database: &Database<'_>) -> Self {
        let backend = database.execute("select pid from pg_stat_activity where backend_type = 'checkpointer'");
        let pid = backend.ok().and_then(|pid| pid.trim().parse::<u32>().ok());
        Self { postmaster: pid.and_then(|pid| stat(pid)?.get(1)?.parse().ok()) }
    }

    /// Processor time so far: `utime` and `stime` of Linux's `/proc/*/stat`, in ticks of 10 ms, with those of ended children. Zero on
    /// other systems.
    pub fn used(&self) -> Duration {
        let mut ticks = stat(std::process::id()).map_or(0, |fields| own_ticks(&fields));
        if let Some(postmaster) = self.postmaster {
            let of_server =
                |fields: &Vec<String>| fields.get(1).is_some_and(|parent| *parent == postmaster.to_string());
            let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
            let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
            ticks += pids.filter_map(stat).filter(of_server).map(|fields| own_ticks(&fields)).sum::<u64>();
            ticks += stat(postmaster).map_or(0, |fields| all_ticks(&fields));
        }
        Duration::from_millis(ticks * 10)
    }
}

/// The fields of `/proc/PID/stat` after the name: state, parent, …
fn stat(pid: u32) -> Option<Vec<String>> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, fields) = text.rsplit_once(')')?;
    Some(fields.split_whitespace().map(str::to_owned).collect())
}

fn sum(fields: &[String], places: std::ops::Range<usize>) -> u64 {
    fields.get(places).into_iter().flatten().filter_map(|field| field.parse::<u64>().ok()).sum()
}

/// `utime` and `stime`.
fn own_ticks(fields: &[String]) -> u64 {
    sum(fields, 11..13)
}

/// Those and the ended children's.
fn all_ticks(fields: &[String]) -> u64 {
    sum(fields, 11..15)
}

/// `pgbench` beside `psql`.
fn pgbench() -> Result<PathBuf, Unavailable> {
    crate::postgres::installed_program("pgbench")
}

/// Transactions of a script a second, by `pgbench` with prepared statements: what the server does when nobody thinks. `settings` are those
/// of each session, as in `PGOPTIONS`.
///
/// # Errors
/// What `pgbench` says; [`io::ErrorKind::NotFound`] when it is not installed.
pub fn pgbench_rate(
    database: &Database<'_>,
    settings: &str,
    script: &str,
    clients: u32,
    seconds: u32,
) -> io::Result<f64> {
    let program = pgbench().map_err(|missing| io::Error::new(io::ErrorKind::NotFound, missing.to_string()))?;
    let path = std::env::temp_dir().join(format!("bulkhead-pgbench-{}.sql", std::process::id()));
    fs::write(&path, script)?;
    let mut command = Command::new(program);
    command.args(["--no-vacuum", "--protocol", "prepared", "--jobs", "2", "--client", &clients.to_string()]);
    command.env("PGOPTIONS", settings);
    command.args(["--time", &seconds.to_string(), "--file"]).arg(&path).arg(database.url());
    let output = command.stdin(Stdio::null()).output()?;
    fs::remove_file(&path)?;
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().find_map(|line| line.strip_prefix("tps = "));
    let rate = line.and_then(|line| line.split_whitespace().next()).and_then(|rate| rate.parse().ok());
    rate.ok_or_else(|| io::Error::other(format!("pgbench: {text}{}", String::from_utf8_lossy(&output.stderr))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quantile_is_a_value_of_the_list() {
        assert!(quantile(&mut [], 0.5) < f64::EPSILON);
        let mut values: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        assert!((quantile(&mut values, 0.95) - 96.0).abs() < f64::EPSILON);
        assert!((quantile(&mut values, 1.0) - 100.0).abs() < f64::EPSILON);
    }

    #[test]
    fn a_figure_knows_its_ratio() {
        let figure = Figure::new(7, "runs", 50.0, "1/s").beside(100.0).target(">= 70 %").disk(5_000.0).cpu_s(0.001);
        assert_eq!(figure.fields["ratio"], json!(0.5));
        assert_eq!(figure.fields["row"], json!(7));
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn work_takes_processor_time() {
        let processors = Processors::own();
        let before = processors.used();
        let worked = crate::wait_until(Duration::from_mins(1), || {
            std::hint::black_box((0..2_000_000_u64).fold(1, u64::wrapping_mul));
            processors.used() > before
        });
        assert!(worked);
    }
}
