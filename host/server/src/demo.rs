//! `bulkhead demo`: an empty directory becomes a server with an organization, the first-party plugins and a workflow that takes
//! genuine GitHub deliveries, an admin with a second factor, and a day of audit to look at. Started again on the same directory it continues where it was.

mod day;
mod settle;
mod sink;

use std::io::IsTerminal as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use indexmap::IndexMap;
use serde::{Deserialize, Serialize};
use url::Url;

use crate::config::{Config, LogFormat, Secret};
use crate::host::{FirstStart, Host};
use crate::{first_party, serve, telemetry};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Where everything is kept; made if it is not there
    #[arg(long, value_name = "DIR", default_value = "demo-data")]
    data_dir: PathBuf,
    /// Where the server listens
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8080")]
    listen: SocketAddr,
    /// Where Slack messages and web hook calls are sent; without it a small sink of the demo's own shows them in its log
    #[arg(long, value_name = "URL")]
    sink: Option<Url>,
    /// A further loopback address that plugins may reach where their grants say so (repeatable; development only)
    #[arg(long, value_name = "HOST:PORT")]
    allow_egress: Vec<String>,
    /// PostgreSQL instead of SQLite: the database owner's address
    #[arg(long, value_name = "URL")]
    database_url: Option<String>,
    /// Nobody and no day gone by: the first person is made by the link that the server prints
    #[arg(long)]
    bare: bool,
    /// The folder with the first-party packages
    #[arg(long, value_name = "DIR")]
    plugins: Option<PathBuf>,
}

/// What `DIR/demo.json` tells.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct DemoFile {
    pub(crate) url: String,
    pub(crate) org: String,
    pub(crate) api_key: String,
    /// Who administers it; nobody where the demo made no person.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) admin: Option<DemoAdmin>,
    pub(crate) workflows: IndexMap<String, DemoWorkflow>,
    /// Where messages go.
    pub(crate) sink: String,
}

/// What signs the demo's admin in: everything that a real person keeps apart.
#[derive(Serialize, Deserialize)]
pub(crate) struct DemoAdmin {
    pub(crate) email: String,
    pub(crate) password: String,
    /// What the QR code of the authenticator app holds.
    pub(crate) totp_uri: String,
    pub(crate) backup_codes: Vec<String>,
}

impl std::fmt::Debug for DemoAdmin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "DemoAdmin({})", self.email)
    }
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct DemoWorkflow {
    pub(crate) id: String,
    pub(crate) webhook_url: String,
}

fn read_file(path: &Path) -> Result<Option<DemoFile>> {
    match std::fs::read_to_string(path) {
        Ok(text) => {
            let file = serde_json::from_str(&text)
                .with_context(|| format!("{} is damaged: remove it, and the demo makes a new key", path.display()))?;
            Ok(Some(file))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

/// Written beside and moved, so that a power cut leaves the old file or the new one. It holds a key: only the user reads it.
fn write_file(path: &Path, file: &DemoFile) -> Result<()> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    let fresh = path.with_extension("json.new");
    // Into nothing that was left over or put there.
    if let Err(error) = std::fs::remove_file(&fresh)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        return Err(error.into());
    }
    let mut out = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&fresh)?;
    writeln!(out, "{}", serde_json::to_string_pretty(file)?)?;
    out.sync_all()?;
    std::fs::rename(&fresh, path).with_context(|| format!("cannot write {}", path.display()))
}

/// `host:port` of a loopback URL, which the guard then admits; `None` for the rest of the world, which needs no admission.
fn loopback_of(url: &Url) -> Option<String> {
    let is_loopback = match url.host()? {
        url::Host::Domain(name) => name == "localhost",
        url::Host::Ipv4(address) => address.is_loopback(),
        url::Host::Ipv6(address) => address.is_loopback(),
    };
    is_loopback.then(|| format!("{}:{}", url.host_str().unwrap_or_default(), url.port_or_known_default().unwrap_or(0)))
}

pub(crate) async fn run(mut config: Config, args: Args) -> Result<ExitCode> {
    config.log.format = LogFormat::Text;
    if config.log.level == "info" {
        // A newcomer should see messages arrive, not each request.
        config.log.level = "info,bulkhead_http=warn".into();
    }
    telemetry::start_logs(&config.log)?;
    let metrics = telemetry::start_metrics()?;
    config.server.listen = args.listen;
    config.server.data_dir.clone_from(&args.data_dir);
    if let Some(url) = args.database_url {
        config.database.owner_url = Some(Secret::new(url));
        config.database.url = None;
    }
    let path = args.data_dir.join("demo.json");
    let before = read_file(&path)?;

    let listener = serve::listen(args.listen).await?;
    let sink = match args.sink {
        Some(url) if url.scheme() == "http" || url.scheme() == "https" => url,
        Some(url) => bail!("--sink {url} is neither http nor https"),
        None => sink::start(before.as_ref().and_then(|file| file.sink.parse().ok())).await?,
    };
    let mut loopbacks = args.allow_egress;
    loopbacks.extend(loopback_of(&sink));
    loopbacks.sort();
    loopbacks.dedup();
    config.egress.allow_loopback.extend(loopbacks);

    let packages = first_party::packages(args.plugins.as_deref())?;
    let first_party = packages.iter().map(|package| package.digest).collect();
    let host = Host::open(&config, FirstStart::Demo, first_party).await?;
    let url = config.public_url(listener.local_addr()?);
    let lived = if args.bare || before.is_some() {
        None
    } else {
        day::live(&host, &config, &packages, &sink, &url).await.context("the demo's day cannot be lived")?
    };
    let is_new = lived.is_some();
    let file = match lived {
        Some(file) => file,
        None => settle::settle(&host.app, &packages, &sink, &url, before).await.context("the demo cannot be set up")?,
    };
    write_file(&path, &file)?;
    print_welcome(&path, &file, host.store.database_name(), &config.egress.allow_loopback);
    print_people(&path, &file, is_new && std::io::stdout().is_terminal(), args.bare);
    serve::serve(&config, &host, listener, metrics).await?;
    Ok(ExitCode::SUCCESS)
}

/// Who signs in, and what to look at then. What signs somebody in is shown once, to a person in front of it: anything else is a log, which
/// others read.
fn print_people(path: &Path, file: &DemoFile, shows: bool, is_bare: bool) {
    let Some(admin) = &file.admin else {
        if is_bare {
            println!("People need no second factor here (bulkhead admin set-mfa {} admins).\n", file.org);
        } else {
            println!(
                "Somebody is here whose credentials {} does not hold (a first start that was cut off, or a database of another demo): begin \
                 with another --data-dir, or help them with `bulkhead admin reset-password`.\n",
                path.display()
            );
        }
        return;
    };
    if shows {
        println!("An admin with a second factor (later in {}):\n", path.display());
        println!("  address       {}\n  password      {}", admin.email, admin.password);
        println!("  authenticator {}", admin.totp_uri);
        println!("  backup codes  {}\n", admin.backup_codes.join(" "));
    } else {
        println!("The admin {}: password, authenticator and backup codes are in {}.\n", admin.email, path.display());
    }
    println!("A day of audit to look at, and to verify without the server:\n");
    let (url, org, key) = (&file.url, &file.org, path.display());
    println!(
        "  curl -s '{url}/api/v1/orgs/{org}/audit?limit=200' -H \"authorization: Bearer $(jq -r .api_key {key})\""
    );
    println!(
        "  curl -s {url}/api/v1/orgs/{org}/audit/bundles/0 -H \"authorization: Bearer $(jq -r .api_key {key})\" > demo.jsonl && bulkhead audit verify \
         demo.jsonl\n"
    );
}

fn print_welcome(path: &Path, file: &DemoFile, database: &str, loopbacks: &[String]) {
    println!("\nBulkhead demo: {} on {database}", file.url);
    println!("  organization  {}", file.org);
    println!("  API key       in {}", path.display());
    println!("  messages go   to {}", file.sink);
    if !loopbacks.is_empty() {
        println!("  WARNING       plugins may reach {} on this machine: for development only", loopbacks.join(", "));
    }
    for (name, workflow) in &file.workflows {
        println!("\nTry the workflow {name:?}:\n");
        println!(
            "  curl -i {} \\\n    -H 'content-type: application/json' -H 'x-github-event: issues' \\\n    -d '{}'\n",
            workflow.webhook_url,
            settle::SAMPLE_DELIVERY
        );
    }
    println!("Then look at the run:\n");
    println!(
        "  curl -s {}/api/v1/orgs/{}/runs -H \"authorization: Bearer $(jq -r .api_key {})\"\n",
        file.url,
        file.org,
        path.display()
    );
}
