//! `bulkhead admin`: what the operator does on the database itself. With SQLite the server must not be running, except for `queue`, which
//! only looks.

mod keys;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use bulkhead_app::account::{NewUser, ROLE_ADMIN};
use bulkhead_app::api_key::{NewApiKey, NewSigning, NewSigningKey};
use bulkhead_app::queue::{STATES, StateCount, WaitingOrg, WholeQueue, look_at_queue};
use bulkhead_model::ambient::Ambient;
use bulkhead_model::id::{ApiKeyId, UserId};
use bulkhead_model::link::Purpose;
use bulkhead_model::mfa::MfaPolicy;
use bulkhead_model::name::Slug;
use bulkhead_model::network::Network;
use bulkhead_model::permission::{Permission, PermissionSet};
use bulkhead_model::quota::Quota;
use bulkhead_model::signature::Required;
use clap::Subcommand;
use serde_json::json;

use crate::config::Config;
use crate::doctor;
use crate::host::{FirstStart, Host};

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Create an organization
    #[command(after_help = "Example:\n  bulkhead admin create-org acme --name 'Acme Inc.'")]
    CreateOrg {
        /// Short name in addresses: lower-case letters, digits, hyphens
        slug: String,
        /// Display name; the short name if left out
        #[arg(long)]
        name: Option<String>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Set an organization's share of the workers beside others
    #[command(after_help = "Example:\n  bulkhead admin set-share acme --weight 3 --jobs-max 128")]
    SetShare {
        /// The organization's short name
        org: String,
        /// How many jobs it gets for each one of an organization of weight 1, while both have work (1 to 100)
        #[arg(long, default_value_t = 1)]
        weight: u32,
        /// How many of its jobs of a lane are held at once, on all nodes together (1 to 10000)
        #[arg(long, default_value_t = 64)]
        jobs_max: u32,
    },
    /// Set what an organization may hold; without a value, show what it may and does hold
    #[command(after_help = "Examples:\n  bulkhead admin set-quota acme\n  \
        bulkhead admin set-quota acme --quota history_bytes --value 53687091200\n\n\
        Quotas: active_workflows, payload_bytes, history_bytes, log_bytes, plugin_versions, plugin_bytes")]
    SetQuota {
        /// The organization's short name
        org: String,
        /// Which quota
        #[arg(long, requires = "value")]
        quota: Option<String>,
        /// Its value, in bytes or in what is counted
        #[arg(long, requires = "quota")]
        value: Option<u64>,
    },
    /// Show what waits in the queue, for how long, and who holds what; beside a running server
    #[command(after_help = "Examples:\n  bulkhead admin queue\n  bulkhead admin queue --json")]
    Queue {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Make a person, who chooses a password with the link that is printed
    #[command(
        after_help = "Examples:\n  bulkhead admin create-user ada@example.com --name 'Ada Lovelace' --org acme\n  \
        bulkhead admin create-user ops@example.com --name Operations --super-admin"
    )]
    CreateUser {
        email: String,
        #[arg(long)]
        name: String,
        /// Short name of an organization to belong to
        #[arg(long)]
        org: Option<String>,
        /// … and as what: admin, manager, analyst, viewer, api_user
        #[arg(long, default_value = ROLE_ADMIN)]
        role: String,
        /// Administers the whole platform
        #[arg(long)]
        super_admin: bool,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Let somebody who is locked out choose another password with the link that is printed; ends every session of theirs
    #[command(after_help = "Example:\n  bulkhead admin reset-password ada@example.com")]
    ResetPassword {
        email: String,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Take the second factor of somebody away who has lost it; ends every session of theirs
    #[command(after_help = "Example:\n  bulkhead admin reset-mfa ada@example.com")]
    ResetMfa { email: String },
    /// Say whom an organization asks for a second factor
    #[command(after_help = "Examples:\n  bulkhead admin set-mfa acme all\n  bulkhead admin set-mfa acme optional")]
    SetMfa {
        /// The organization's short name
        org: String,
        /// optional, admins, all
        policy: String,
    },
    /// Addresses that are shut out since too many requests of theirs were refused
    #[command(subcommand)]
    Blocks(Blocks),
    /// Let an organization be reached from every address again, when its list shuts everybody out
    #[command(after_help = "Example:\n  bulkhead admin clear-ip-allow-list acme")]
    ClearIpAllowList {
        /// The organization's short name
        org: String,
    },
    /// Shut a person out everywhere; ends their sessions, tokens and keys
    #[command(after_help = "Example:\n  bulkhead admin disable-user eve@example.com")]
    DisableUser { email: String },
    /// Let a person in again who was shut out
    EnableUser { email: String },
    /// Encryption keys: what they wrap, and rotations
    #[command(subcommand)]
    Keys(keys::Command),
    /// Make an API key; its text is shown once
    #[command(after_help = "Examples:\n  bulkhead admin create-key acme --name laptop\n  \
        bulkhead admin create-key acme --name reader --permission runs.read --permission audit.read --days 30\n  \
        bulkhead admin create-key acme --name deploys --public-key public.pem")]
    CreateKey {
        /// The organization's short name
        org: String,
        #[arg(long)]
        name: String,
        /// A permission of the key (repeatable); every one if left out
        #[arg(long = "permission")]
        permissions: Vec<String>,
        /// Days until it ends
        #[arg(long)]
        days: Option<u32>,
        /// An Ed25519 public key (PEM) that every request by it has to be signed with
        #[arg(long, value_name = "FILE")]
        public_key: Option<PathBuf>,
        /// A network or address that it may be used from (repeatable); from everywhere if left out
        #[arg(long = "network")]
        networks: Vec<String>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Revoke an API key
    RevokeKey {
        /// The organization's short name
        org: String,
        /// `key_…`
        key: String,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Blocks {
    /// Show the addresses that are shut out, and until when
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Let an address in again; with IPv6 all of its /64
    #[command(after_help = "Example:\n  bulkhead admin blocks lift 198.51.100.7")]
    Lift { address: std::net::IpAddr },
}

fn slug(text: &str) -> Result<Slug> {
    text.parse().map_err(|error| anyhow::anyhow!("{text:?} is no short name: {error}"))
}

pub(crate) async fn run(config: Config, command: Command) -> Result<ExitCode> {
    if let Command::Queue { json } = command {
        return queue(&config, json).await;
    }
    let command = match command {
        Command::Keys(command) => return keys::run(&config, command).await,
        other => other,
    };
    let host = Host::open(&config, FirstStart::Embedded, BTreeSet::new()).await?;
    let done = act(&host, command).await;
    host.store.close().await;
    done.map(|()| ExitCode::SUCCESS)
}

pub(crate) async fn require_org(host: &Host, org: &str) -> Result<bulkhead_store::org::Org> {
    let found = host.app.find_org(slug(org)?).await?;
    found.with_context(|| format!("there is no organization {org}: make it with `bulkhead admin create-org {org}`"))
}

async fn queue(config: &Config, json: bool) -> Result<ExitCode> {
    let store = doctor::look(config).await?;
    let looked = look_at_queue(&store, &Ambient::system()).await;
    store.close().await;
    let queue = looked.context("the queue cannot be looked at")?;
    if json {
        println!("{}", serde_json::to_string_pretty(&queue_json(&queue))?);
    } else {
        print!("{}", queue_text(&queue));
    }
    Ok(ExitCode::SUCCESS)
}

fn queue_json(queue: &WholeQueue) -> serde_json::Value {
    let states = |states: &[StateCount]| -> serde_json::Map<String, serde_json::Value> {
        let told = |state: &StateCount| json!({ "count": state.count, "more": state.more });
        states.iter().map(|state| (state.state.to_owned(), told(state))).collect()
    };
    let lanes = queue.lanes.iter().map(|lane| {
        json!({
            "lane": lane.lane, "states": states(&lane.states), "slots": lane.slots, "oldest_ready_at": lane.oldest_ready_at,
            "lag_ms": lane.lag.as_millis(), "waiting_organizations": lane.waiting_orgs,
        })
    });
    let nodes = queue.nodes.iter().map(|(node, held)| {
        let held: serde_json::Map<_, _> = held.iter().map(|held| (held.lane.clone(), json!(held.count))).collect();
        json!({ "worker": node.id, "name": node.name, "alive": node.alive, "draining": node.draining, "held": held })
    });
    let waiting = queue.waiting.iter().map(|waiting| {
        json!({
            "org": waiting.org, "slug": waiting.slug, "lane": waiting.lane, "ready": waiting.ready,
            "oldest_ready_at": waiting.oldest_ready_at, "lag_ms": waiting.lag.as_millis(),
        })
    });
    json!({
        "lanes": lanes.collect::<Vec<_>>(), "nodes": nodes.collect::<Vec<_>>(), "waiting": waiting.collect::<Vec<_>>(),
    })
}

fn queue_text(queue: &WholeQueue) -> String {
    use std::fmt::Write as _;
    let mut text = format!("{:<12}", "lane");
    for state in STATES {
        let _ = write!(text, "{state:>9}");
    }
    text.push_str("    slots      lag  organizations waiting\n");
    for lane in &queue.lanes {
        let _ = write!(text, "{:<12}", lane.lane.as_str());
        for state in &lane.states {
            let more = if state.more { "+" } else { "" };
            let _ = write!(text, "{:>9}", format!("{}{more}", state.count));
        }
        let _ = writeln!(text, "{:>9}{:>7.1} s{:>15}", lane.slots, lane.lag.as_secs_f64(), lane.waiting_orgs);
    }
    text.push_str("\nnodes\n");
    for (node, held) in &queue.nodes {
        let state = match (node.alive, node.draining) {
            (false, _) => "dead",
            (true, true) => "draining",
            (true, false) => "serving",
        };
        let held: Vec<String> = held.iter().map(|held| format!("{} {}", held.count, held.lane)).collect();
        let held = if held.is_empty() { "nothing".to_owned() } else { held.join(", ") };
        let _ = writeln!(text, "  {} ({state}) holds {held}", node.name);
    }
    if queue.nodes.is_empty() {
        text.push_str("  none\n");
    }
    if !queue.waiting.is_empty() {
        text.push_str("\nlongest waits\n");
    }
    for waiting in &queue.waiting {
        let WaitingOrg { slug, lane, ready, lag, .. } = waiting;
        let _ =
            writeln!(text, "  {slug}: {ready} ready in {}, the oldest for {:.1} s", lane.as_str(), lag.as_secs_f64());
    }
    text
}

fn print_link(host: &Host, user: Option<UserId>, token: &str, json: bool) {
    let link = host.app.link_url(Purpose::ChoosePassword, token);
    if json {
        println!("{}", json!({ "id": user, "token": token, "link": link }));
        return;
    }
    if let Some(id) = user {
        println!("created {id}");
    }
    println!("once, within an hour, this chooses a password:\n\n  {link}");
}

async fn act(host: &Host, command: Command) -> Result<()> {
    match command {
        // These were carried out before, some of them without a host.
        Command::Queue { .. } | Command::Keys(_) => {}
        Command::CreateOrg { slug: text, name, json } => {
            let org = host.app.create_org(slug(&text)?, name.unwrap_or(text)).await?;
            if json {
                println!("{}", json!({ "id": org.id, "slug": org.slug, "name": org.name }));
            } else {
                println!(
                    "created {} ({})\nnext: bulkhead admin create-key {} --name first",
                    org.slug, org.id, org.slug
                );
            }
        }
        Command::SetShare { org, weight, jobs_max } => {
            let org = require_org(host, &org).await?;
            host.app.set_queue_share(org.id, weight, jobs_max).await?;
            println!("{}: weight {weight}, at most {jobs_max} jobs of a lane at once", org.slug);
        }
        Command::SetQuota { org, quota, value } => {
            let org = require_org(host, &org).await?;
            if let Some((text, value)) = quota.zip(value) {
                let known = || Quota::ALL.iter().map(|quota| quota.as_str()).collect::<Vec<_>>().join(", ");
                let quota =
                    Quota::parse(&text).with_context(|| format!("there is no quota {text}; known are {}", known()))?;
                host.app.set_quota(org.id, quota, value).await?;
            }
            for shown in host.app.show_quotas_as_operator(org.id).await? {
                let used = shown.used.map_or_else(|| "of each run".to_owned(), |used| format!("{used} used"));
                println!("{:<17} {:>16} {:<9} {used}", shown.quota.as_str(), shown.limit, shown.quota.unit());
            }
        }
        Command::CreateUser { email, name, org, role, super_admin, json } => {
            let member_of = match org {
                Some(org) => Some((require_org(host, &org).await?.id, role)),
                None => None,
            };
            let new = NewUser { email, name, is_super_admin: super_admin, member_of };
            let (id, token) = host.app.create_user_as_operator(new).await?;
            print_link(host, Some(id), &token, json);
        }
        Command::ResetPassword { email, json } => {
            let token = host.app.unlock_user_as_operator(&email).await?;
            print_link(host, None, &token, json);
        }
        Command::ResetMfa { email } => {
            host.app.reset_mfa_as_operator(&email).await?;
            println!("{email} signs in with the password alone, until another second factor is set up");
        }
        Command::SetMfa { org, policy } => {
            let org = require_org(host, &org).await?;
            let known = || MfaPolicy::ALL.map(MfaPolicy::as_str).join(", ");
            let policy = MfaPolicy::parse(&policy)
                .with_context(|| format!("there is no policy {policy}; there are {}", known()))?;
            host.app.change_mfa_policy_as_operator(org.id, policy).await?;
            println!("{}: a second factor is asked for: {}", org.slug, policy.as_str());
        }
        Command::Blocks(Blocks::List { json: as_json }) => {
            let blocks = host.app.list_address_blocks_as_operator().await?;
            if as_json {
                let told = blocks.iter().map(|(network, block)| {
                    json!({ "network": network, "level": block.level, "placed_at": block.placed_at, "ends_at": block.ends_at })
                });
                println!("{}", serde_json::Value::from(told.collect::<Vec<_>>()));
            } else {
                for (network, block) in &blocks {
                    println!("{network:<43} until {} (block {})", block.ends_at, block.level + 1);
                }
                println!("{} shut out", blocks.len());
            }
        }
        Command::Blocks(Blocks::Lift { address }) => {
            let network = Network::of(address);
            host.app.lift_address_block_as_operator(network).await?;
            println!("{network} is let in again");
        }
        Command::ClearIpAllowList { org } => {
            let org = require_org(host, &org).await?;
            host.app.clear_allow_list_as_operator(org.id).await?;
            println!("{} is reached from every address", org.slug);
        }
        Command::DisableUser { email } => {
            host.app.set_user_state_as_operator(&email, false).await?;
            println!("disabled {email}");
        }
        Command::EnableUser { email } => {
            host.app.set_user_state_as_operator(&email, true).await?;
            println!("enabled {email}");
        }
        Command::CreateKey { org, name, permissions, days, public_key, networks, json } => {
            let org = require_org(host, &org).await?;
            let permissions: PermissionSet = if permissions.is_empty() {
                PermissionSet::all()
            } else {
                permissions
                    .iter()
                    .map(|text| {
                        text.parse::<Permission>().map_err(|error| {
                            let known: Vec<&str> =
                                Permission::ALL.iter().map(|permission| permission.as_str()).collect();
                            anyhow::anyhow!("{error}; known are {}", known.join(", "))
                        })
                    })
                    .collect::<Result<_>>()?
            };
            let mut new = NewApiKey { networks, ..NewApiKey::new(name, permissions, days) };
            if let Some(file) = public_key {
                let text = std::fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
                new.signing = Some(NewSigning { key: NewSigningKey::Ed25519(text), required: Required::Always });
            }
            let created = host.app.create_first_api_key(org.id, new).await?;
            if json {
                println!(
                    "{}",
                    json!({ "id": created.key.id, "key": created.secret_text, "expires_at": created.key.expires_at })
                );
            } else {
                println!("{}", created.secret_text);
                eprintln!("this is shown once; the key is {}", created.key.id);
            }
        }
        Command::RevokeKey { org, key } => {
            let org = require_org(host, &org).await?;
            let id: ApiKeyId = key.parse().map_err(|error| anyhow::anyhow!("{key:?}: {error}"))?;
            host.app.revoke_api_key_as_operator(org.id, id).await?;
            println!("revoked {id}");
        }
    }
    Ok(())
}
