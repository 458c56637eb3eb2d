//! Configuration: one typed root, from defaults < file (`--config`, TOML) < environment (`BULKHEAD_SECTION__KEY`) < flags.
//!
//! Embedded defaults need no configuration at all. Unknown keys are refused. `docs/bulkhead.example.toml` is the output of
//! `bulkhead config example` and a test compares them.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use bulkhead_app::{BreachedPasswords, HashingLimits, StartLimits};
use bulkhead_audit::retention::{DAYS_MAX, DAYS_MIN, PayloadRetention};
use bulkhead_model::client_address::TrustedProxies;
use bulkhead_model::passkey::RelyingParty;
use bulkhead_model::password::Cost;
use bulkhead_model::rate::{Policy, Rate, RateLimits};
use figment::Figment;
use figment::providers::{Env, Format as _, Serialized, Toml};
use serde::{Deserialize, Serialize};

/// A value that never prints itself.
#[derive(Clone, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Secret(String);

impl Secret {
    pub(crate) fn reveal(&self) -> &str {
        &self.0
    }

    pub(crate) fn new(text: String) -> Self {
        Self(text)
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("(secret)")
    }
}

/// The whole configuration.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Config {
    pub(crate) server: ServerConfig,
    pub(crate) database: DatabaseConfig,
    pub(crate) sandbox: SandboxConfig,
    pub(crate) egress: EgressSection,
    pub(crate) worker: WorkerSection,
    pub(crate) starts: StartsSection,
    pub(crate) limits: LimitsSection,
    pub(crate) audit: AuditSection,
    pub(crate) accounts: AccountsSection,
    pub(crate) mail: MailSection,
    pub(crate) keys: KeysSection,
    pub(crate) log: LogConfig,
}

/// `[server]`
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct ServerConfig {
    /// Where the API listens.
    pub(crate) listen: SocketAddr,
    /// The address that others reach the server under; shown in webhook addresses. Without it, `http://` and `listen`.
    pub(crate) public_url: Option<String>,
    /// Keys, the compile cache and, with SQLite, the database.
    pub(crate) data_dir: PathBuf,
    /// How long requests and jobs may go on after a request to stop.
    pub(crate) drain_s: u64,
    /// Connections of one address at once (of one /64 with IPv6). A proxy in front is one address.
    pub(crate) connections_per_address_max: usize,
    /// Addresses and networks of proxies whose `Forwarded` or `X-Forwarded-For` says where requests come from.
    pub(crate) trusted_proxies: Vec<String>,
}

impl ServerConfig {
    pub(crate) fn proxies(&self) -> Result<TrustedProxies> {
        TrustedProxies::parse(self.trusted_proxies.iter().map(String::as_str)).context("server.trusted_proxies")
    }
}

impl Default for ServerConfig {
    fn default() -> Self {
        let listen = SocketAddr::from(([127, 0, 0, 1], 8080));
        Self {
            listen,
            public_url: None,
            data_dir: PathBuf::from("bulkhead-data"),
            drain_s: 20,
            connections_per_address_max: 512,
            trusted_proxies: Vec::new(),
        }
    }
}

/// `[database]`: without addresses, SQLite in the data directory.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct DatabaseConfig {
    /// PostgreSQL, as the application role: `postgres://bulkhead_app:…@host/name`.
    pub(crate) url: Option<Secret>,
    /// PostgreSQL, as the owner: for migrations. Alone, the server makes the application role itself.
    pub(crate) owner_url: Option<Secret>,
    /// PostgreSQL: where nodes listen to each other when `url` leads through a pooler in transaction mode; the same database,
    /// past the pooler.
    pub(crate) listen_url: Option<Secret>,
    pub(crate) connections_max: u32,
    /// PostgreSQL: how long a start waits for a database that cannot be reached.
    pub(crate) wait_s: u64,
}

impl Default for DatabaseConfig {
    fn default() -> Self {
        Self { url: None, owner_url: None, listen_url: None, connections_max: 16, wait_s: 30 }
    }
}

impl DatabaseConfig {
    pub(crate) fn is_postgres(&self) -> bool {
        self.url.is_some() || self.owner_url.is_some()
    }
}

/// `[sandbox]`
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct SandboxConfig {
    /// OS threads that run guests; 0 means one per core.
    pub(crate) guest_threads: usize,
    /// Memory for prepared plugins, in MiB.
    pub(crate) prepared_mib_max: u64,
    /// The folder with the packages that the platform ships: only these may be uploaded as `bulkhead/…`. Without it, `plugins`
    /// beside the binary.
    pub(crate) first_party_dir: Option<PathBuf>,
}

impl Default for SandboxConfig {
    fn default() -> Self {
        Self { guest_threads: 0, prepared_mib_max: 512, first_party_dir: None }
    }
}

/// `[egress]`
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct EgressSection {
    /// Loopback addresses, as `host:port`, that plugins may reach where their grants say so. For development only.
    pub(crate) allow_loopback: Vec<String>,
}

/// `[worker]`: how many jobs of each lane run at once.
#[expect(clippy::struct_field_names, reason = "the names are those of the file's keys")]
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct WorkerSection {
    pub(crate) slots_system: usize,
    pub(crate) slots_interactive: usize,
    pub(crate) slots_bulk: usize,
}

impl Default for WorkerSection {
    fn default() -> Self {
        let slots = bulkhead_app::worker::Slots::default();
        Self { slots_system: slots.system, slots_interactive: slots.interactive, slots_bulk: slots.bulk }
    }
}

/// `[starts]`: how many runs may be started; what is beyond is answered 429.
#[expect(clippy::struct_field_names, reason = "the names are those of the file's keys")]
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct StartsSection {
    pub(crate) waiting_max: u32,
    pub(crate) per_minute_max: u32,
    pub(crate) at_once_max: u32,
    pub(crate) wait_ms_max: u64,
    pub(crate) body_mib_max: u64,
}

impl Default for StartsSection {
    fn default() -> Self {
        let StartLimits { waiting_max, per_minute_max, at_once_max, wait_ms_max, body_bytes_max } =
            StartLimits::default();
        Self { waiting_max, per_minute_max, at_once_max, wait_ms_max, body_mib_max: body_bytes_max >> 20 }
    }
}

impl StartsSection {
    pub(crate) fn limits(&self) -> StartLimits {
        let Self { waiting_max, per_minute_max, at_once_max, wait_ms_max, body_mib_max } = *self;
        StartLimits { waiting_max, per_minute_max, at_once_max, wait_ms_max, body_bytes_max: body_mib_max << 20 }
    }

    fn check(&self) -> Result<()> {
        let ranges = [
            ("waiting_max", u64::from(self.waiting_max), 1..=10_000_000),
            ("per_minute_max", u64::from(self.per_minute_max), 1..=100_000_000),
            ("at_once_max", u64::from(self.at_once_max), 1..=4_096),
            ("wait_ms_max", self.wait_ms_max, 1..=10_000),
            ("body_mib_max", self.body_mib_max, 1..=65_536),
        ];
        for (name, value, range) in ranges {
            let (low, high) = (*range.start(), *range.end());
            anyhow::ensure!(range.contains(&value), "starts.{name} is between {low} and {high}");
        }
        Ok(())
    }
}

/// `[limits]`: how often somebody may ask; what is beyond is answered 429.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct LimitsSection {
    pub(crate) anonymous_per_minute: u32,
    pub(crate) anonymous_burst: u32,
    pub(crate) sign_in_per_minute: u32,
    pub(crate) failed_credentials_per_minute: u32,
    pub(crate) user_per_minute: u32,
    pub(crate) user_burst: u32,
    pub(crate) key_per_minute: u32,
    pub(crate) key_burst: u32,
    pub(crate) organization_per_minute: u32,
    pub(crate) organization_burst: u32,
    pub(crate) strict_per_minute: u32,
    pub(crate) exports_per_hour: u32,
}

impl Default for LimitsSection {
    fn default() -> Self {
        let RateLimits { anonymous, sign_in, credentials, user, key, strict, export, organization } =
            RateLimits::default();
        Self {
            anonymous_per_minute: anonymous.quota,
            anonymous_burst: anonymous.burst,
            sign_in_per_minute: sign_in.quota,
            failed_credentials_per_minute: credentials.quota,
            user_per_minute: user.quota,
            user_burst: user.burst,
            key_per_minute: key.quota,
            key_burst: key.burst,
            organization_per_minute: organization.quota,
            organization_burst: organization.burst,
            strict_per_minute: strict.quota,
            exports_per_hour: export.quota,
        }
    }
}

impl LimitsSection {
    pub(crate) fn limits(&self) -> RateLimits {
        RateLimits {
            anonymous: Rate::per_minute(self.anonymous_per_minute, self.anonymous_burst),
            sign_in: Rate::per_minute(self.sign_in_per_minute, self.sign_in_per_minute),
            // Half of them at once.
            credentials: Rate::per_minute(
                self.failed_credentials_per_minute,
                self.failed_credentials_per_minute.div_ceil(2),
            ),
            user: Rate::per_minute(self.user_per_minute, self.user_burst),
            key: Rate::per_minute(self.key_per_minute, self.key_burst),
            strict: Rate::per_minute(self.strict_per_minute, self.strict_per_minute),
            export: Rate::per_hour(self.exports_per_hour, self.exports_per_hour),
            organization: Rate::per_minute(self.organization_per_minute, self.organization_burst),
        }
    }

    fn check(&self) -> Result<()> {
        let limits = self.limits();
        for policy in Policy::ALL {
            anyhow::ensure!(
                limits.rate(*policy).is_allowed(),
                "limits: each figure is between 1 and {} ({} is not); half of that for anonymous, user and key, which some routes double",
                bulkhead_model::rate::QUOTA_MAX,
                policy.as_str()
            );
        }
        Ok(())
    }
}

/// `[audit]`
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct AuditSection {
    /// Where signed checkpoints of the audit logs are kept: best where the database's administrator cannot write.
    pub(crate) anchor_dir: Option<PathBuf>,
    /// For how many days the details of entries are kept, where an organization has not said otherwise …
    pub(crate) retention_days: u32,
    /// … and those of entries about who read what.
    pub(crate) reads_retention_days: u32,
    /// Who is told each signed checkpoint.
    pub(crate) webhook_url: Option<String>,
    /// What signs these requests, in the form of Standard Webhooks: `whsec_` and 24 to 64 random bytes in base64.
    pub(crate) webhook_secret: Option<Secret>,
}

impl Default for AuditSection {
    fn default() -> Self {
        let PayloadRetention { security, data_access, .. } = PayloadRetention::default();
        Self {
            anchor_dir: None,
            retention_days: security,
            reads_retention_days: data_access,
            webhook_url: None,
            webhook_secret: None,
        }
    }
}

impl AuditSection {
    pub(crate) fn retention(&self) -> PayloadRetention {
        PayloadRetention::of(self.retention_days, self.reads_retention_days)
    }

    fn check(&self) -> Result<()> {
        anyhow::ensure!(
            self.retention().out_of_bounds().is_empty(),
            "audit.retention_days and audit.reads_retention_days are between {DAYS_MIN} and {DAYS_MAX}"
        );
        crate::anchor::check(self)
    }
}

/// `[accounts]`: how passwords are hashed.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct AccountsSection {
    pub(crate) hash_memory_kib: u32,
    pub(crate) hash_passes: u32,
    pub(crate) hash_lanes: u32,
    pub(crate) hash_at_once_max: usize,
    pub(crate) hash_waiting_max: usize,
    /// What passkeys are bound to; the public address's domain without it.
    pub(crate) passkey_rp_id: Option<String>,
    /// Whose pages may ask for them; the public address without any.
    pub(crate) passkey_origins: Vec<String>,
    /// Passwords that nobody may choose, because they were stolen somewhere.
    pub(crate) breached_passwords_file: Option<PathBuf>,
}

impl Default for AccountsSection {
    fn default() -> Self {
        let HashingLimits { cost, at_once_max, waiting_max } = HashingLimits::default();
        Self {
            hash_memory_kib: cost.memory_kib,
            hash_passes: cost.passes,
            hash_lanes: cost.lanes,
            hash_at_once_max: at_once_max,
            hash_waiting_max: waiting_max,
            passkey_rp_id: None,
            passkey_origins: Vec::new(),
            breached_passwords_file: None,
        }
    }
}

impl AccountsSection {
    pub(crate) fn hashing(&self) -> HashingLimits {
        let cost = Cost { memory_kib: self.hash_memory_kib, passes: self.hash_passes, lanes: self.hash_lanes };
        HashingLimits { cost, at_once_max: self.hash_at_once_max, waiting_max: self.hash_waiting_max }
    }

    /// The site that passkeys are made for, if there can be any.
    pub(crate) fn passkeys(&self, public_url: &str) -> Result<Option<RelyingParty>> {
        RelyingParty::configured(public_url, self.passkey_rp_id.as_deref(), &self.passkey_origins)
            .context("accounts.passkey_rp_id and accounts.passkey_origins")
    }

    /// Passwords that were stolen somewhere, where there is a file of them.
    pub(crate) fn breached_passwords(&self) -> Result<Option<BreachedPasswords>> {
        let Some(path) = &self.breached_passwords_file else { return Ok(None) };
        let opened = BreachedPasswords::open(path);
        opened.map(Some).with_context(|| format!("accounts.breached_passwords_file = {}", path.display()))
    }

    fn check(&self) -> Result<()> {
        let Cost { memory_kib, passes, .. } = Cost::FLOOR;
        anyhow::ensure!(
            self.hashing().cost.is_allowed(),
            "accounts.hash_memory_kib is at least {memory_kib} (and at most 1048576), hash_passes at least {passes}, hash_lanes 1 to 16: \
             cheaper hashes are guessed"
        );
        anyhow::ensure!((1..=256).contains(&self.hash_at_once_max), "accounts.hash_at_once_max is between 1 and 256");
        anyhow::ensure!(self.hash_waiting_max <= 10_000, "accounts.hash_waiting_max is at most 10000");
        Ok(())
    }
}

/// `[mail]`: without an address, this server sends no letters.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct MailSection {
    /// The relay: `smtps://user:password@host` or `smtp://user:password@host:587?tls=required`.
    pub(crate) url: Option<Secret>,
    /// Who letters come from.
    pub(crate) from: String,
}

impl Default for MailSection {
    fn default() -> Self {
        Self { url: None, from: "Bulkhead <bulkhead@localhost>".into() }
    }
}

/// `[keys]`: where the root keys come from.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct KeysSection {
    /// The text that `root.key` would hold, given by whoever keeps secrets for this machine: then no file is read or made.
    pub(crate) root: Option<Secret>,
    /// A program and its arguments that has a key service wrap the root keys, and open them at each start.
    pub(crate) command: Vec<String>,
    /// How long it may take.
    pub(crate) command_timeout_s: u64,
}

impl Default for KeysSection {
    fn default() -> Self {
        Self { root: None, command: Vec::new(), command_timeout_s: 30 }
    }
}

impl KeysSection {
    fn check(&self) -> Result<()> {
        anyhow::ensure!((1..=300).contains(&self.command_timeout_s), "keys.command_timeout_s is between 1 and 300");
        let Some(program) = self.command.first() else { return Ok(()) };
        anyhow::ensure!(
            self.root.is_none(),
            "keys.root and keys.command exclude each other: the keys are in one place"
        );
        // What is looked for by its name could be another program of that name.
        anyhow::ensure!(Path::new(program).is_absolute(), "keys.command names its program by an absolute path");
        Ok(())
    }
}

/// `[log]`
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct LogConfig {
    /// `error warn info debug trace`, or a filter such as `info,bulkhead_app=debug`.
    pub(crate) level: String,
    pub(crate) format: LogFormat,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum LogFormat {
    Json,
    Text,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self { level: "info".into(), format: LogFormat::Json }
    }
}

/// Variables of the test suite share the prefix but are no configuration.
const NOT_CONFIGURATION: &str = "test_";

/// A file with root keys in it is held to what `root.key` is held to.
fn refuse_readable_by_others(path: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    let mode = std::fs::metadata(path)?.permissions().mode() & 0o777;
    anyhow::ensure!(
        mode.trailing_zeros() >= 6,
        "{} holds keys.root and can be read by others (mode {mode:o}): run `chmod 600 {0}`",
        path.display()
    );
    Ok(())
}

impl Config {
    /// Reads the file (if one is named) and the environment over the defaults.
    pub(crate) fn load(file: Option<&Path>) -> Result<Self> {
        let mut figment = Figment::from(Serialized::defaults(Self::default()));
        if let Some(path) = file {
            anyhow::ensure!(path.is_file(), "there is no configuration file {}", path.display());
            let file = Toml::file_exact(path);
            if Figment::from(&file).contains("keys.root") {
                refuse_readable_by_others(path)?;
            }
            figment = figment.merge(file);
        }
        let environment =
            Env::prefixed("BULKHEAD_").filter(|key| !key.as_str().to_ascii_lowercase().starts_with(NOT_CONFIGURATION));
        let config: Self =
            figment.merge(environment.split("__")).extract().context("the configuration is not valid")?;
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<()> {
        anyhow::ensure!(self.database.connections_max >= 2, "database.connections_max is at least 2");
        anyhow::ensure!(self.database.wait_s <= 3_600, "database.wait_s is at most 3600");
        anyhow::ensure!(self.sandbox.prepared_mib_max >= 16, "sandbox.prepared_mib_max is at least 16");
        anyhow::ensure!(
            self.server.connections_per_address_max >= 1,
            "server.connections_per_address_max is at least 1"
        );
        for (name, slots) in [
            ("system", self.worker.slots_system),
            ("interactive", self.worker.slots_interactive),
            ("bulk", self.worker.slots_bulk),
        ] {
            anyhow::ensure!((1..=10_000).contains(&slots), "worker.slots_{name} is between 1 and 10000");
        }
        self.server.proxies()?;
        self.starts.check()?;
        self.limits.check()?;
        self.audit.check()?;
        self.keys.check()?;
        self.accounts.check()?;
        self.accounts.passkeys(&self.public_url(self.server.listen))?;
        if let Some(url) = &self.server.public_url {
            anyhow::ensure!(
                url.starts_with("http://") || url.starts_with("https://"),
                "server.public_url begins with https:// or http://"
            );
        }
        Ok(())
    }

    /// Whether requests come through a proxy that nobody named: this server speaks no TLS itself.
    pub(crate) fn counts_nobody_by_address(&self) -> bool {
        let is_https = self.server.public_url.as_ref().is_some_and(|url| url.starts_with("https://"));
        is_https && self.server.trusted_proxies.is_empty()
    }

    /// How long work under way may go on after a request to stop.
    pub(crate) fn drain(&self) -> std::time::Duration {
        std::time::Duration::from_secs(self.server.drain_s)
    }

    /// The address under which webhooks are shown.
    pub(crate) fn public_url(&self, bound: SocketAddr) -> String {
        let url = self.server.public_url.clone().unwrap_or_else(|| format!("http://{bound}"));
        url.trim_end_matches('/').to_owned()
    }

    /// The configuration with every default, as a file to begin with.
    pub(crate) fn example() -> &'static str {
        include_str!("../../../docs/bulkhead.example.toml")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_is_the_defaults() {
        let example: Config = Figment::from(Toml::string(Config::example())).extract().unwrap();
        assert_eq!(serde_json::to_value(example).unwrap(), serde_json::to_value(Config::default()).unwrap());
    }

    #[test]
    fn unknown_keys_are_refused() {
        for text in ["[server]\nlisen = \"127.0.0.1:1\"", "[servers]", "x = 1"] {
            assert!(Figment::from(Toml::string(text)).extract::<Config>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_limit_of_nothing_is_refused() {
        let check = |text: &str| Figment::from(Toml::string(text)).extract::<Config>().unwrap().check();
        assert!(check("[limits]\nuser_per_minute = 1200").is_ok());
        for text in
            ["user_per_minute = 0", "key_burst = 0", "anonymous_per_minute = 6000000", "strict_per_minute = 20000000"]
        {
            assert!(check(&format!("[limits]\n{text}")).is_err(), "{text}");
        }
    }

    #[test]
    fn details_of_audit_entries_are_kept_for_a_month_at_least() {
        let read = |text: &str| Figment::from(Toml::string(text)).extract::<Config>().unwrap();
        let section = read("[audit]\nreads_retention_days = 30");
        assert!(section.check().is_ok());
        assert_eq!(section.audit.retention(), PayloadRetention::of(400, 30));
        for text in ["retention_days = 29", "reads_retention_days = 0", "retention_days = 3651"] {
            assert!(read(&format!("[audit]\n{text}")).check().is_err(), "{text}");
        }
    }

    #[test]
    fn a_file_of_breached_passwords_that_is_none_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pwned.txt");
        let section = AccountsSection { breached_passwords_file: Some(path.clone()), ..AccountsSection::default() };
        let refused = || format!("{:#}", section.breached_passwords().unwrap_err());
        assert!(AccountsSection::default().breached_passwords().unwrap().is_none(), "off by default");
        assert!(refused().contains("accounts.breached_passwords_file") && refused().contains("cannot be read"));
        std::fs::write(&path, "<html>").unwrap();
        assert!(refused().contains("byte 0") && refused().contains("SHA1:COUNT"), "{}", refused());
        std::fs::write(&path, "5BAA61E4C9B93F3F0682250B6CF8331B7EE68FD8:3\r\n").unwrap();
        assert!(section.breached_passwords().unwrap().is_some());
    }

    #[test]
    fn proxies_are_named_exactly() {
        let with = |proxies: &str, url: &str| {
            let text = format!("[server]\ntrusted_proxies = {proxies}\npublic_url = \"{url}\"");
            Figment::from(Serialized::defaults(Config::default()))
                .merge(Toml::string(&text))
                .extract::<Config>()
                .unwrap()
        };
        for (proxies, is_allowed) in [
            ("[\"10.0.0.0/8\", \"2001:db8::1\"]", true),
            ("[]", true),
            ("[\"0.0.0.0/0\"]", false),
            ("[\"proxy.example.com\"]", false),
        ] {
            assert_eq!(with(proxies, "https://h.test").check().is_ok(), is_allowed, "{proxies}");
        }
        assert!(with("[]", "https://h.test").counts_nobody_by_address());
        assert!(!with("[]", "http://h.test").counts_nobody_by_address());
        assert!(!with("[\"10.0.0.0/8\"]", "https://h.test").counts_nobody_by_address());
    }

    #[test]
    fn a_file_with_root_keys_is_for_its_owner_alone() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("bulkhead.toml");
        let write = |text: &str, mode| {
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        };
        let keys = format!("[keys]\nroot = \"{}\"\n", "0123456789abcdef".repeat(4));
        write(&keys, 0o644);
        let refused = Config::load(Some(&path)).unwrap_err().to_string();
        assert!(refused.contains("chmod 600") && !refused.contains("0123456789"), "{refused}");
        write(&keys, 0o600);
        assert!(Config::load(Some(&path)).unwrap().keys.root.is_some());
        write("[server]\ndrain_s = 5\n", 0o644);
        assert_eq!(Config::load(Some(&path)).unwrap().server.drain_s, 5);
    }

    #[test]
    fn the_program_that_opens_the_keys_is_named_exactly() {
        let check = |text: &str| Figment::from(Toml::string(text)).extract::<Config>().unwrap().check();
        assert!(check("[keys]\ncommand = [\"/usr/bin/kms\", \"--key\", \"k\"]\ncommand_timeout_s = 5").is_ok());
        let root = "0123456789abcdef".repeat(4);
        for text in [
            "command = [\"kms\"]".to_owned(),
            "command = [\"\"]".to_owned(),
            "command_timeout_s = 0".to_owned(),
            "command_timeout_s = 301".to_owned(),
            format!("command = [\"/usr/bin/kms\"]\nroot = \"{root}\""),
        ] {
            assert!(check(&format!("[keys]\n{text}")).is_err(), "{text}");
        }
    }

    #[test]
    fn secrets_do_not_print() {
        let config =
            DatabaseConfig { url: Some(Secret::new("postgres://u:hunter2@h/d".into())), ..DatabaseConfig::default() };
        assert!(!format!("{config:?}").contains("hunter2"));
    }
}
