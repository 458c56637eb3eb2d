//! `bulkhead admin keys`: what each key wraps, and rotations. An organization's rotation can also be asked for by the API.

use std::collections::BTreeSet;
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use bulkhead_app::key::{KeysDetail, count_root_uses, look_at_keys};
use bulkhead_app::node::list_nodes_as_operator;
use bulkhead_keys::{Level, RootProvider as _};
use bulkhead_model::ambient::Ambient;
use bulkhead_store::key::RootUse;
use bulkhead_store::seal::{RootId, RootKey, RootStanding};
use clap::{Subcommand, ValueEnum};
use serde_json::json;

use crate::config::Config;
use crate::doctor;
use crate::host::{FirstStart, Host};
use crate::keys;

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Show the root keys with what they wrap, or an organization's keys; beside a running server
    #[command(after_help = "Examples:\n  bulkhead admin keys list\n  bulkhead admin keys list acme --json")]
    List {
        /// The organization's short name
        org: Option<String>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Replace an organization's key; what was under the old one follows while the server runs
    #[command(after_help = "Example:\n  bulkhead admin keys rotate acme --level data")]
    Rotate {
        /// The organization's short name
        org: String,
        /// `organization`: data keys are wrapped anew; `data`: every sealed value is sealed anew
        #[arg(long, value_enum, default_value_t = LevelArg::Data)]
        level: LevelArg,
    },
    /// Add a root key to root.key that opens and does not wrap yet; copy the file to every node and restart them
    AddRoot,
    /// Let the added root key wrap from the next start on; organization keys follow while the server runs
    UseRoot,
    /// Take a root key out of root.key that wraps nothing any longer
    RemoveRoot {
        /// As `bulkhead admin keys list` shows it
        id: String,
    },
    /// Have the key service behind keys.command wrap root.key into root.key.wrapped; again, wrap it anew under the service's present key
    WrapRoots,
    /// Write root.key from what the key service opens: the way back from keys.command
    UnwrapRoots,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum LevelArg {
    Organization,
    Data,
}

pub(crate) async fn run(config: &Config, command: Command) -> Result<ExitCode> {
    let file = keys::file_name(config);
    match command {
        Command::List { org: None, json } => list_roots(config, json).await?,
        Command::List { org: Some(org), json } => list(config, &org, json).await?,
        Command::Rotate { org, level } => rotate(config, &org, level).await?,
        Command::AddRoot => {
            let key = RootKey::new(Ambient::system().random());
            let id = key.id();
            keys::change(config, |keys| Ok(keys.with_next(key)?))?;
            println!(
                "added the root key {id}, which wraps nothing yet\nnext: back {file} up, copy it to every node, restart them, and then run \
                 `bulkhead admin keys use-root` on each"
            );
        }
        Command::UseRoot => {
            if let Some(next) = keys::load(config, false, &Ambient::system())?
                .standings()
                .into_iter()
                .find_map(|(id, standing)| (standing == RootStanding::Next).then_some(id))
            {
                // Whatever is wrapped with it is closed to them.
                refuse_if(
                    config,
                    |roots| roots.iter().all(|(id, _)| *id != next),
                    |node| {
                        format!("{node} does not know the root key {next} yet: copy {file} there and restart it first")
                    },
                )
                .await?;
            }
            let changed = keys::change(config, |keys| Ok(keys.with_next_in_use()?))?;
            println!(
                "from the next start on the root key {} wraps\nnext: restart each node; when `bulkhead admin keys list` shows that the old one wraps \
                 nothing, run `bulkhead admin keys remove-root`",
                changed.current()
            );
        }
        Command::RemoveRoot { id } => {
            let id = RootId::parse(&id).with_context(|| format!("{id:?} is not the id of a root key"))?;
            // First whether somebody goes on putting things under it: only then a count of what is there is the last word.
            refuse_if(
                config,
                |roots| roots.contains(&(id, RootStanding::Active)),
                |node| format!("{node} still wraps with the root key {id}: copy {file} there and restart it first"),
            )
            .await?;
            if let Some(RootUse { org_keys, people, .. }) = uses(config).await?.into_iter().find(|of| of.id == id) {
                bail!(
                    "the root key {id} still wraps {org_keys} organization keys and {people} values of people: let the server run with the new \
                     one until none is left"
                );
            }
            keys::change(config, |keys| Ok(keys.without(id)?))?;
            println!("removed the root key {id}; backups from before need it still");
        }
        Command::WrapRoots => println!(
            "{} holds the root keys, wrapped\nnext: copy it to every node and into your backups; move root.key, if it is still there, to where you \
             keep what nobody but you may read, away from these machines",
            keys::wrap_roots(config)?.display()
        ),
        Command::UnwrapRoots => println!(
            "{} holds the root keys as they are\nnext: take keys.command out of the configuration, and move root.key.wrapped away",
            keys::unwrap_roots(config)?.display()
        ),
    }
    Ok(ExitCode::SUCCESS)
}

/// Refuses while a node serves of whose root keys this is true: what it keeps in memory is what it read when it started.
async fn refuse_if(
    config: &Config,
    is_behind: impl Fn(&[(RootId, RootStanding)]) -> bool,
    why: impl Fn(&str) -> String,
) -> Result<()> {
    let store = doctor::look(config).await?;
    let (nodes, is_served) = (list_nodes_as_operator(&store).await, store.is_served());
    store.close().await;
    let nodes = nodes.context("the nodes cannot be listed")?;
    match nodes.iter().find(|node| is_served && node.alive && is_behind(&node.roots)) {
        Some(node) => bail!("{}", why(&node.name)),
        None => Ok(()),
    }
}

async fn uses(config: &Config) -> Result<Vec<RootUse>> {
    let store = doctor::look(config).await?;
    let uses = count_root_uses(&store).await;
    store.close().await;
    uses.context("the organizations' keys cannot be counted")
}

async fn list_roots(config: &Config, as_json: bool) -> Result<()> {
    let (uses, keys) = (uses(config).await?, keys::load(config, false, &Ambient::system())?);
    let known: Vec<_> = keys.standings();
    let lost = uses.iter().filter(|uses| known.iter().all(|(of, _)| *of != uses.id));
    let rows = known.iter().map(|(id, standing)| (*id, standing.as_str())).chain(lost.map(|uses| (uses.id, "missing")));
    for (id, state) in rows {
        let (wraps, people) = uses.iter().find(|of| of.id == id).map_or((0, 0), |of| (of.org_keys, of.people));
        if as_json {
            println!(
                "{}",
                json!({ "root_key": id.to_string(), "state": state, "organization_keys": wraps, "values_of_people": people })
            );
        } else {
            println!("{id}  {state:<12} wraps {wraps} organization keys, {people} values of people");
        }
    }
    Ok(())
}

async fn list(config: &Config, org: &str, as_json: bool) -> Result<()> {
    let slug = super::slug(org)?;
    let store = doctor::look(config).await?;
    let found = look_at_keys(&store, slug).await;
    store.close().await;
    let found = found.context("the keys cannot be looked at")?;
    let KeysDetail { keys, running } = found.with_context(|| format!("there is no organization {org}"))?;
    for key in keys {
        let (id, by) = (key.id.to_string(), key.wrapped_by.map(|by| by.to_string()));
        if as_json {
            println!(
                "{}",
                json!({
                    "key": id, "purpose": key.purpose.as_str(), "state": key.state.as_str(), "wrapped_by": by, "uses": key.uses,
                    "created_at": key.created_at, "replaced_at": key.replaced_at, "retired_at": key.retired_at,
                })
            );
        } else {
            let uses = key.uses.map(|uses| format!("{uses} uses")).unwrap_or_default();
            let by = by.unwrap_or_else(|| "-".to_owned());
            println!("{id:<6} {:<13} {:<13} by {by:<18} {uses}", key.purpose.as_str(), key.state.as_str());
        }
    }
    for rotation in running {
        if as_json {
            let (done, left) = (rotation.done, rotation.left);
            println!(
                "{}",
                json!({ "rotation": rotation.id, "level": rotation.level.as_str(), "done": done, "left": left })
            );
        } else {
            let (level, to) = (rotation.level.as_str(), &rotation.to_key);
            println!("rotating {level} to {to}: {} done, {} left", rotation.done, rotation.left);
        }
    }
    Ok(())
}

async fn rotate(config: &Config, org: &str, level: LevelArg) -> Result<()> {
    let level = match level {
        LevelArg::Organization => Level::Organization,
        LevelArg::Data => Level::Data,
    };
    let host = Host::open(config, FirstStart::Embedded, BTreeSet::new()).await?;
    let done = async {
        let org = super::require_org(&host, org).await?;
        Ok::<_, anyhow::Error>(host.app.rotate_key_as_operator(org.id, level).await?)
    };
    let done = done.await;
    host.store.close().await;
    let rotation = done?;
    println!("{} takes over; {} follow while the server runs ({})", rotation.to_key, rotation.left, rotation.id);
    Ok(())
}
