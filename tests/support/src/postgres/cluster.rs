//! A cluster of one's own, which cannot outlive its owner.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use super::binaries::Binaries;
use super::{Unavailable, psql};
use crate::wait::free_port;

/// Waits until its standard input closes, which the kernel sees to when the owner ends in whatever way, `kill -9`
/// included; then stops the server and removes the directory. Without a pid file the server may be just starting, so it
/// looks for a while; a server that appears later still ends itself when it finds its directory gone.
const GUARD: &str = r#"
trap '' INT HUP TERM
read -r nothing
tries=0
while [ ! -f "$2/data/postmaster.pid" ] && [ -f "$2/starting" ] && [ $tries -lt 20 ]; do
  tries=$((tries + 1)); sleep 0.1
done
[ -f "$2/data/postmaster.pid" ] && "$1/pg_ctl" -D "$2/data" -m immediate -w -t 30 stop
rm -rf "$2"
"#;

/// How often another port is tried when someone takes the free one first.
const PORT_ATTEMPTS: u32 = 5;

/// The role that owns databases: may create databases and roles, is no superuser, so that row-level security counts.
const OWNER: &str = "bulkhead_owner";

/// What may differ between clusters.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// Every commit reaches the disk, as in production; for measurements and for tests that crash the server. Off, commits
    /// are only promises, and tests run several times faster.
    pub durable: bool,
}

/// A running PostgreSQL in a temporary directory. Dropping it stops the server and removes the directory; so does the
/// end of the process.
#[derive(Debug)]
pub struct Cluster {
    binaries: Binaries,
    base: PathBuf,
    account: Option<Account>,
    guard: Child,
    url: String,
    superuser_url: String,
}

/// The user that the server runs as when the tests run as root.
#[derive(Debug, Clone, Copy)]
struct Account {
    user_id: u32,
    group_id: u32,
}

impl Cluster {
    /// Starts a cluster for tests: quick, not durable.
    pub fn start() -> Result<Self, Unavailable> {
        Self::start_with(Options::default())
    }

    /// Starts a cluster. Takes about a second or two, most of it `initdb`.
    pub fn start_with(options: Options) -> Result<Self, Unavailable> {
        let binaries = Binaries::find()?;
        let account = if is_root() { Some(unprivileged_account()?) } else { None };
        let base = make_base(account).map_err(|error| failed("making a directory for the cluster", error))?;
        let guard = spawn_guard(&binaries, &base, account).map_err(|error| failed("starting the guard", error))?;
        // From here on the guard removes what is made, also when a later step fails.
        let mut cluster = Self { binaries, base, account, guard, url: String::new(), superuser_url: String::new() };
        let password = || random_hex().map_err(|error| failed("drawing a password", error));
        let (superuser_password, owner_password) = (password()?, password()?);
        cluster.initialize(&superuser_password)?;
        let port = cluster.launch(options)?;
        cluster.superuser_url = format!("postgres://postgres:{superuser_password}@127.0.0.1:{port}/postgres");
        cluster.url = format!("postgres://{OWNER}:{owner_password}@127.0.0.1:{port}/postgres");
        cluster.create_owner(&owner_password)?;
        Ok(cluster)
    }

    /// The owner's address, leading to the database `postgres`; for [`super::URL_VARIABLE`].
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The superuser's address. For tests about what a superuser can see; anything else uses [`Self::url`].
    pub fn superuser_url(&self) -> &str {
        &self.superuser_url
    }

    /// The server's version, such as `15.18`.
    pub fn version(&self) -> &str {
        &self.binaries.version
    }

    /// The temporary directory that holds everything of this cluster.
    pub fn directory(&self) -> &Path {
        &self.base
    }

    /// How many databases were asked for through [`super::Server`], by the server's own log: the proof that tests used it.
    pub fn databases_made(&self) -> usize {
        let log = fs::read_to_string(self.log_path()).unwrap_or_default();
        log.lines().filter(|line| line.contains("statement: create database \"bulkhead_test_")).count()
    }

    /// Kills every server process without a checkpoint and starts the server again, as after a power cut (of the
    /// machine too when [`Options::durable`]). Connections die; the address stays.
    pub fn crash_and_restart(&self) -> Result<(), Unavailable> {
        let mut command = self.command("pg_ctl");
        command
            .arg("-D")
            .arg(self.data())
            .args(["-m", "immediate", "-w", "-t", "60", "-l"])
            .arg(self.log_path())
            .arg("restart");
        run(command).map_err(|detail| Unavailable::Failed { step: "restarting PostgreSQL", detail })
    }

    pub(super) fn psql(&self) -> PathBuf {
        self.binaries.program("psql")
    }

    fn data(&self) -> PathBuf {
        self.base.join("data")
    }

    fn log_path(&self) -> PathBuf {
        self.base.join("log")
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.binaries.program(program));
        become_account(&mut command, self.account);
        command.current_dir(&self.base).env("LC_ALL", "C").stdin(Stdio::null());
        command
    }

    fn initialize(&self, password: &str) -> Result<(), Unavailable> {
        let password_file = self.base.join("password");
        write_private(&password_file, password, self.account)
            .map_err(|error| failed("writing the password file", error))?;
        let initdb = |linguistic: bool| {
            let mut command = self.command("initdb");
            command
                .arg("-D")
                .arg(self.data())
                .args(["-U", "postgres", "--auth=scram-sha-256", "--pwfile"])
                .arg(&password_file);
            command.args(["--no-sync", "--no-instructions", "--encoding=UTF8", "--locale=C"]);
            if linguistic {
                command.args(["--locale-provider=icu", "--icu-locale=en-US"]);
            }
            run(command)
        };
        // A default collation unlike SQLite's order by bytes makes a forgotten `collate "C"` show. Builds without ICU
        // have none that is sure to exist, and do without.
        initdb(true).or_else(|_| initdb(false)).map_err(|detail| Unavailable::Failed { step: "initdb", detail })?;
        fs::remove_file(&password_file).map_err(|error| failed("removing the password file", error))
    }

    /// Starts the server on a free port and answers the port.
    fn launch(&self, options: Options) -> Result<u16, Unavailable> {
        let mut detail = String::new();
        for _ in 0..PORT_ATTEMPTS {
            let port = free_port();
            let own = self.data().join("bulkhead.conf");
            write_private(&own, &settings(port, options), self.account)
                .and_then(|()| include_once(&self.data().join("postgresql.conf")))
                .map_err(|error| failed("writing the configuration", error))?;
            fs::write(self.base.join("starting"), "").map_err(|error| failed("marking the start", error))?;
            let mut command = self.command("pg_ctl");
            command.arg("-D").arg(self.data()).args(["-w", "-t", "60", "-l"]).arg(self.log_path()).arg("start");
            match run(command) {
                Ok(()) => return Ok(port),
                Err(_) => detail = tail(&fs::read_to_string(self.log_path()).unwrap_or_default()),
            }
            if !detail.contains("could not bind") && !detail.contains("could not create any TCP/IP sockets") {
                break;
            }
        }
        Err(Unavailable::Failed { step: "starting PostgreSQL", detail })
    }

    fn create_owner(&self, password: &str) -> Result<(), Unavailable> {
        // Ending the sessions of other roles is what tests of a lost connection do.
        let create = format!("create role {OWNER} login nosuperuser createdb createrole password '{password}'");
        let signal = format!("grant pg_signal_backend to {OWNER}");
        psql::run(&self.psql(), &self.superuser_url, &[&create, &signal])
            .map(drop)
            .map_err(|detail| Unavailable::Failed { step: "creating the owner's role", detail })
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        drop(self.guard.stdin.take());
        // It was spawned by us and ends by itself; an error here means that someone else has waited for it.
        let _ = self.guard.wait();
    }
}

/// Everything that differs from PostgreSQL's defaults.
fn settings(port: u16, options: Options) -> String {
    let durability =
        if options.durable { "" } else { "fsync = off\nfull_page_writes = off\nsynchronous_commit = off\n" };
    // Connections: suites run in parallel, each test with a pool or two. Predicate locks: writes are SERIALIZABLE, and few
    // locks make for false conflicts. `ddl`: see `databases_made`.
    format!(
        "port = {port}\nlisten_addresses = '127.0.0.1'\nunix_socket_directories = ''\nmax_connections = 300\n\
         max_pred_locks_per_transaction = 256\nwal_level = minimal\nmax_wal_senders = 0\njit = off\n\
         log_statement = ddl\nlc_messages = 'C'\ntimezone = 'UTC'\nlog_timezone = 'UTC'\ncluster_name = 'bulkhead test'\n{durability}"
    )
}

/// Makes the server read the file of settings beside its own.
fn include_once(path: &Path) -> std::io::Result<()> {
    let text = fs::read_to_string(path)?;
    let line = "include 'bulkhead.conf'";
    if text.contains(line) { Ok(()) } else { fs::write(path, format!("{text}\n{line}\n")) }
}

fn make_base(account: Option<Account>) -> std::io::Result<PathBuf> {
    let base = tempfile::Builder::new().prefix("bulkhead-postgres-").tempdir()?.keep();
    fs::set_permissions(&base, fs::Permissions::from_mode(0o700))?;
    if let Some(account) = account {
        chown(&base, Some(account.user_id), Some(account.group_id))?;
    }
    Ok(base)
}

fn spawn_guard(binaries: &Binaries, base: &Path, account: Option<Account>) -> std::io::Result<Child> {
    let mut command = Command::new("sh");
    command.args(["-c", GUARD, "bulkhead-postgres-guard"]).arg(&binaries.directory).arg(base);
    become_account(&mut command, account);
    // A group of its own: what the terminal or a test runner sends to the owner's group must not end the guard.
    // No output: a test runner waits for whoever holds a test's output open.
    command.process_group(0).current_dir("/").stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn()
}

fn become_account(command: &mut Command, account: Option<Account>) {
    if let Some(account) = account {
        command.uid(account.user_id).gid(account.group_id);
    }
}

fn is_root() -> bool {
    numeric_id(&["-u"]) == Some(0)
}

/// The first of the users that packages or systems have for this.
fn unprivileged_account() -> Result<Account, Unavailable> {
    ["postgres", "nobody"]
        .iter()
        .find_map(|name| Some(Account { user_id: numeric_id(&["-u", name])?, group_id: numeric_id(&["-g", name])? }))
        .filter(|account| account.user_id != 0)
        .ok_or(Unavailable::NoUnprivilegedUser)
}

fn numeric_id(arguments: &[&str]) -> Option<u32> {
    let output = Command::new("id").args(arguments).output().ok()?;
    String::from_utf8_lossy(&output.stdout).trim().parse().ok()
}

fn write_private(path: &Path, text: &str, account: Option<Account>) -> std::io::Result<()> {
    let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(text.as_bytes())?;
    account.map_or(Ok(()), |account| chown(path, Some(account.user_id), Some(account.group_id)))
}

/// 32 hexadecimal digits from the system's generator: the cluster listens where every user of the machine can knock.
pub(super) fn random_hex() -> std::io::Result<String> {
    let mut bytes = [0; 16];
    fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes.iter().fold(String::new(), |text, byte| format!("{text}{byte:02x}")))
}

/// Runs a program to its end; on failure answers what it said.
fn run(mut command: Command) -> Result<(), String> {
    // `pg_ctl start` leaves a server behind that would hold a pipe open for ever: output goes to a file.
    let mut said = tempfile::tempfile().map_err(|error| error.to_string())?;
    let (out, err) = match (said.try_clone(), said.try_clone()) {
        (Ok(out), Ok(err)) => (out, err),
        (Err(error), _) | (_, Err(error)) => return Err(error.to_string()),
    };
    let program = command.get_program().to_string_lossy().into_owned();
    let status = command.stdout(out).stderr(err).status().map_err(|error| format!("{program}: {error}"))?;
    if status.success() {
        return Ok(());
    }
    let mut text = String::new();
    let read = std::io::Seek::rewind(&mut said).and_then(|()| said.read_to_string(&mut text));
    Err(match read {
        Ok(_) => tail(&text),
        Err(error) => format!("{program} ended with {status}; its output is lost: {error}"),
    })
}

/// The last lines: where programs say what went wrong.
fn tail(text: &str) -> String {
    let lines: Vec<_> = text.trim().lines().collect();
    lines[lines.len().saturating_sub(12)..].join("\n")
}

#[expect(clippy::needless_pass_by_value, reason = "it is handed to `map_err`")]
fn failed(step: &'static str, error: std::io::Error) -> Unavailable {
    Unavailable::Failed { step, detail: error.to_string() }
}
