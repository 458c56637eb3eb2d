//! A server as a child process, on a directory and database of its own, with people who can sign in.

use std::fs::{DirBuilder, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use argon2::{Algorithm, Argon2, Params, Version};
use bulkhead_model::ambient::Ambient;
use bulkhead_model::id::{OrgId, UserId};
use bulkhead_model::password::{Cost, PEPPER_VERSION, StoredPassword};
use bulkhead_model::permission::AccountScope;
use bulkhead_store::account::User;
use bulkhead_store::seal::{RootKey, RootKeys};
use bulkhead_store::{Database, Store, StoreConfig, StoreError};
use bulkhead_test_support::postgres::{Database as OwnDatabase, Server as PostgresServer};
use bulkhead_test_support::{free_port, measure};
use hmac::{Hmac, KeyInit as _, Mac as _};
use serde_json::Value;
use sha2::Sha256;

use crate::client::Client;

pub(crate) const PASSWORD: &str = "violet cement orbit";
const SALT: [u8; 16] = [7; 16];
/// A first start, on a busy machine.
const PATIENCE: Duration = Duration::from_mins(1);
/// What is measured here is not how often somebody may ask. Every request passes the limiter all the same.
const LIMITS: [&str; 10] = [
    "ANONYMOUS_PER_MINUTE",
    "ANONYMOUS_BURST",
    "SIGN_IN_PER_MINUTE",
    "USER_PER_MINUTE",
    "USER_BURST",
    "KEY_PER_MINUTE",
    "KEY_BURST",
    "ORGANIZATION_PER_MINUTE",
    "ORGANIZATION_BURST",
    "STRICT_PER_MINUTE",
];
const PLENTY: &str = "1000000";

/// Which database.
#[derive(Clone, Copy)]
pub(crate) enum Ground {
    Sqlite,
    Postgres(&'static PostgresServer),
}

impl Ground {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Sqlite => "SQLite",
            Self::Postgres(_) => "PostgreSQL",
        }
    }
}

/// The text of the only root key.
fn root_text() -> String {
    "0123456789abcdef".repeat(4)
}

fn root_key() -> Result<RootKey> {
    Ok(RootKeys::parse(&root_text())?.base().clone())
}

/// The server's binary: this program is in the folder `examples` beside it.
fn binary() -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    let folder = own.parent().and_then(Path::parent).context("this program lies in a folder")?;
    let binary = folder.join("bulkhead");
    ensure!(binary.is_file(), "{} is not built: cargo build --release --bins", binary.display());
    Ok(binary)
}

/// Where a server keeps its things.
struct Place {
    binary: PathBuf,
    dir: tempfile::TempDir,
    database: Option<OwnDatabase<'static>>,
}

/// A place with an organization.
pub(crate) struct Site {
    place: Place,
    org: OrgId,
    key: String,
    /// What a password costs here.
    pub(crate) cost: Cost,
}

/// A running server.
pub(crate) struct Server {
    child: Child,
    pub(crate) url: String,
}

impl Place {
    fn new(ground: Ground) -> Result<Self> {
        let dir = tempfile::tempdir_in(std::env::current_dir()?)?;
        let data = dir.path().join("data");
        DirBuilder::new().mode(0o700).create(&data)?;
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(data.join("root.key"))?;
        writeln!(file, "{}", root_text())?;
        let database = match ground {
            Ground::Sqlite => None,
            Ground::Postgres(server) => Some(server.create_database()?),
        };
        Ok(Self { binary: binary()?, dir, database })
    }

    fn data_dir(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.binary);
        command.args(arguments).env("BULKHEAD_SERVER__DATA_DIR", self.data_dir());
        if let Some(database) = &self.database {
            command.env("BULKHEAD_DATABASE__OWNER_URL", database.url());
        }
        command
    }

    fn admin(&self, arguments: &[&str]) -> Result<Value> {
        let output = self.command(arguments).stdin(Stdio::null()).output()?;
        ensure!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).with_context(|| format!("{arguments:?} printed no JSON"))
    }

    fn store_config(&self) -> Result<StoreConfig> {
        let database = match &self.database {
            None => Database::Sqlite { dir: self.data_dir() },
            Some(database) => Database::Postgres {
                url: None,
                owner_url: Some(database.url().to_owned()),
                // As the server derives it.
                app_password: hex::encode(root_key()?.derive("postgresql application role v1")),
            },
        };
        Ok(StoreConfig { database, connections_max: 2 })
    }
}

impl Site {
    /// An organization `acme` with a key that may do everything, and so many people who look around in it.
    pub(crate) fn open(ground: Ground, cost: Cost, people: u32) -> Result<Self> {
        let place = Place::new(ground)?;
        let made = place.admin(&["admin", "create-org", "acme", "--json"])?;
        let id = made["id"].as_str().context("an organization has an id")?;
        let org: OrgId = id.parse().map_err(|error| anyhow::anyhow!("{id:?}: {error}"))?;
        let made = place.admin(&["admin", "create-key", "acme", "--name", "bench", "--json"])?;
        let key = made["key"].as_str().context("a key was made")?.to_owned();
        let site = Self { place, org, key, cost };
        site.add_people(people)?;
        Ok(site)
    }

    /// Starts the server and waits until it is ready.
    pub(crate) fn serve(&self) -> Result<Server> {
        let address = format!("127.0.0.1:{}", free_port());
        let mut command = self.place.command(&["serve"]);
        for limit in LIMITS {
            command.env(format!("BULKHEAD_LIMITS__{limit}"), PLENTY);
        }
        let Cost { memory_kib, passes, lanes } = self.cost;
        command.env("BULKHEAD_ACCOUNTS__HASH_MEMORY_KIB", memory_kib.to_string());
        command.env("BULKHEAD_ACCOUNTS__HASH_PASSES", passes.to_string());
        command.env("BULKHEAD_ACCOUNTS__HASH_LANES", lanes.to_string());
        // Two hundred people are no one address, whose failures would be counted together: each says another one, as behind a proxy.
        command.env("BULKHEAD_SERVER__TRUSTED_PROXIES", "[\"127.0.0.1\"]");
        command.env("BULKHEAD_SERVER__LISTEN", &address).env("BULKHEAD_LOG__LEVEL", "error");
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let mut server =
            Server { child: command.spawn().context("cannot start the server")?, url: format!("http://{address}") };
        let (client, began) = (Client::new(&server.url), Instant::now());
        while client.status("/readyz").ok() != Some(200) {
            let ended = server.child.try_wait()?;
            ensure!(ended.is_none(), "the server ended with {ended:?}: what it said is above");
            ensure!(began.elapsed() < PATIENCE, "the server is not ready after {PATIENCE:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(server)
    }

    /// What the key presents.
    pub(crate) fn bearer(&self) -> String {
        format!("Bearer {}", self.key)
    }

    /// Synced appends that the database's disk does by itself in a second; of the machine's own disk.
    pub(crate) fn disk_rate(&self) -> Result<f64> {
        Ok(measure::disk_rate(self.place.dir.path())?)
    }

    /// What the store keeps of the password, made once for all of them: each by itself would take minutes.
    fn stored_password(&self) -> Result<StoredPassword> {
        let tag = hash(self.cost)?;
        let pepper = root_key()?.derive("password pepper v1");
        let mac = Hmac::<Sha256>::new_from_slice(&pepper).context("HMAC takes keys of every length")?;
        let tag = mac.chain_update(tag).finalize().into_bytes().into();
        Ok(StoredPassword { cost: self.cost, pepper_version: PEPPER_VERSION, salt: SALT, tag })
    }

    /// Past all use cases, while no server runs.
    fn add_people(&self, count: u32) -> Result<()> {
        let (config, password, org) = (self.place.store_config()?, self.stored_password()?, self.org);
        tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
            let store = Store::open(config).await?;
            let args = (Ambient::system(), password);
            let added = store.write(&AccountScope::OWN, args, move |tx, (ambient, password)| {
                Box::pin(async move {
                    tx.enter_org(org).await?;
                    for number in 0..count {
                        let user = User {
                            id: UserId::new(ambient),
                            email: email(number).parse().map_err(|_| StoreError::Misuse("a bad address"))?,
                            name: format!("Person {number}"),
                            password: Some(password.clone()),
                            password_changed_at: Some(ambient.now()),
                            email_verified_at: Some(ambient.now()),
                            is_active: true,
                            is_super_admin: false,
                            epoch: 0,
                            created_at: ambient.now(),
                            updated_at: ambient.now(),
                        };
                        tx.insert_user(&user).await?;
                        tx.insert_member(user.id, "viewer", user.created_at).await?;
                    }
                    Ok::<_, StoreError>(())
                })
            });
            let added = added.await;
            store.close().await;
            added?;
            anyhow::Ok(())
        })
    }
}

/// The address of the person with this number.
pub(crate) fn email(number: u32) -> String {
    format!("person-{number}@bench.test")
}

/// One argon2id of the password, as the server makes it.
pub(crate) fn hash(cost: Cost) -> Result<[u8; 32]> {
    let bad = |error: argon2::Error| anyhow::anyhow!("argon2id: {error}");
    let params = Params::new(cost.memory_kib, cost.passes, cost.lanes, Some(32)).map_err(bad)?;
    let mut output = [0; 32];
    let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
    argon2.hash_password_into(PASSWORD.as_bytes(), &SALT, &mut output).map_err(bad)?;
    Ok(output)
}

impl Server {
    /// Resident memory, in MiB.
    pub(crate) fn resident_mib(&self) -> Result<f64> {
        let path = format!("/proc/{}/status", self.child.id());
        let status = std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
        let line =
            status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("resident memory is not told")?;
        let kib: f64 = line.trim().trim_end_matches("kB").trim().parse()?;
        Ok(kib / 1_024.0)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Where it has ended already there is nothing to kill.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
