//! The processes that share a database: who they are, what the database's clock says, and whether what one of them carries out
//! was changed or ended on another.

use bulkhead_model::grant::GrantVersion;
use bulkhead_model::id::{InstallationId, OrgId, RunId, WorkerId};
use bulkhead_model::job::Lane;
use bulkhead_model::permission::SystemReason;
use bulkhead_model::time::Timestamp;

use crate::error::StoreError;
use crate::seal::{RootId, RootStanding};
use crate::sql::{binds, sql, sql_postgres};
use crate::tx::Tx;

/// A serving process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    pub id: WorkerId,
    /// For people: host, process id and address.
    pub name: String,
    /// The binary's version …
    pub version: String,
    /// … and the last migration that it knows.
    pub schema_version: i64,
    /// It takes no new work and ends when what is under way has ended.
    pub draining: bool,
    /// How far its machine's own clock is ahead of the database's; negative when it is behind.
    pub clock_ahead_micros: i64,
    pub slots: NodeSlots,
    /// The root keys that it knows, with where each stands; none where it did not say.
    pub roots: Vec<(RootId, RootStanding)>,
    pub started_at: Timestamp,
    pub expires_at: Timestamp,
    /// Its heartbeat is in time.
    pub alive: bool,
}

/// How many jobs of each lane a process carries out at once; 0 where it did not say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NodeSlots {
    pub system: i64,
    pub interactive: i64,
    pub bulk: i64,
}

impl NodeSlots {
    #[must_use]
    pub fn of(self, lane: Lane) -> i64 {
        match lane {
            Lane::System => self.system,
            Lane::Interactive => self.interactive,
            Lane::Bulk => self.bulk,
        }
    }
}

/// What cannot be read is taken for what is not known.
fn read_roots(text: &str) -> Vec<(RootId, RootStanding)> {
    let read = |pair: &str| {
        let (id, standing) = pair.split_once('=')?;
        Some((RootId::parse(id)?, RootStanding::parse(standing)?))
    };
    text.split(' ').filter_map(read).collect()
}

/// Pairs of ids as JSON text, for a statement that takes them all at once.
fn pairs<T: Copy>(keys: &[(OrgId, T)], uuid: impl Fn(T) -> uuid::Uuid) -> String {
    let pairs: Vec<_> = keys.iter().map(|(org, key)| [org.uuid(), uuid(*key)]).collect();
    serde_json::json!(pairs).to_string()
}

impl Tx {
    /// The serving processes, oldest first. Needs the scope of `SystemReason::Nodes`.
    pub async fn list_nodes(&mut self) -> Result<Vec<Node>, StoreError> {
        self.require_reason(SystemReason::Nodes)?;
        let rows = if self.is_postgres() {
            // Whether a heartbeat is in time goes by the database's clock.
            let sql = sql_postgres!(
                "select id, name, version, schema_version, state, clock_ahead_micros, slots_system, slots_interactive,
                     slots_bulk, roots, started_at, expires_at,
                     cast(case when expires_at > clock_timestamp() then 1 else 0 end as bigint) as alive
                 from worker order by started_at, id"
            );
            self.fetch(sql, &[]).await?
        } else {
            let sql = sql!(
                "select id, name, version, schema_version, state, clock_ahead_micros, slots_system, slots_interactive,
                     slots_bulk, roots, started_at, expires_at,
                     cast(1 as bigint) as alive
                 from worker order by started_at, id"
            );
            self.fetch(sql, &[]).await?
        };
        rows.iter()
            .map(|row| {
                let state: String = row.get("state")?;
                let alive: i64 = row.get("alive")?;
                Ok(Node {
                    id: row.get("id")?,
                    name: row.get("name")?,
                    version: row.get("version")?,
                    schema_version: row.get("schema_version")?,
                    draining: state == "draining",
                    clock_ahead_micros: row.get("clock_ahead_micros")?,
                    roots: read_roots(&row.get::<String>("roots")?),
                    slots: NodeSlots {
                        system: row.get("slots_system")?,
                        interactive: row.get("slots_interactive")?,
                        bulk: row.get("slots_bulk")?,
                    },
                    started_at: row.get("started_at")?,
                    expires_at: row.get("expires_at")?,
                    alive: alive == 1,
                })
            })
            .collect()
    }

    /// Says how this process is. Needs the scope of `SystemReason::Nodes`.
    pub async fn update_node(
        &mut self,
        id: WorkerId,
        draining: bool,
        clock_ahead_micros: i64,
    ) -> Result<(), StoreError> {
        self.require_reason(SystemReason::Nodes)?;
        let sql = sql!("update worker set state = $2, clock_ahead_micros = $3 where id = $1");
        let state = if draining { "draining" } else { "serving" };
        self.execute(sql, binds![id, state, clock_ahead_micros]).await.map(drop)
    }

    /// Says which root keys this process knows. Needs the scope of `SystemReason::Jobs`.
    pub async fn update_node_roots(
        &mut self,
        id: WorkerId,
        roots: &[(RootId, RootStanding)],
    ) -> Result<(), StoreError> {
        self.require_reason(SystemReason::Jobs)?;
        let roots: Vec<_> = roots.iter().map(|(root, standing)| format!("{root}={}", standing.as_str())).collect();
        let sql = sql!("update worker set roots = $2 where id = $1");
        self.execute(sql, binds![id, &roots.join(" ")]).await.map(drop)
    }

    /// Says how many jobs of each lane this process carries out at once. Needs the scope of `SystemReason::Jobs`.
    pub async fn update_node_slots(&mut self, id: WorkerId, slots: NodeSlots) -> Result<(), StoreError> {
        self.require_reason(SystemReason::Jobs)?;
        let sql = sql!("update worker set slots_system = $2, slots_interactive = $3, slots_bulk = $4 where id = $1");
        self.execute(sql, binds![id, slots.system, slots.interactive, slots.bulk]).await.map(drop)
    }

    /// The organization that a run is of. Needs the scope of `SystemReason::Nodes`.
    pub async fn find_org_of_run(&mut self, run: RunId) -> Result<Option<OrgId>, StoreError> {
        self.require_reason(SystemReason::Nodes)?;
        // From organization to organization by searches of the primary key, which begins with it.
        let sql = sql!(
            "with recursive found (org_id) as (
                 select (select org_id from run order by org_id limit 1)
                 union all
                 select (select org_id from run where org_id > found.org_id order by org_id limit 1)
                 from found where found.org_id is not null
             )
             select org_id from found
             where org_id is not null and exists (select 1 from run where run.org_id = found.org_id and run.id = $1) limit 1"
        );
        self.fetch_optional(sql, binds![run]).await?.map(|row| row.get("org_id")).transpose()
    }

    /// What the clock says that all nodes share; `None` on SQLite, whose one process has its own. Needs the scope of
    /// `SystemReason::Nodes`.
    pub async fn load_shared_clock(&mut self) -> Result<Option<Timestamp>, StoreError> {
        self.require_reason(SystemReason::Nodes)?;
        if !self.is_postgres() {
            return Ok(None);
        }
        // The database's clock is the one that its nodes share. The parameter makes the answer binary, as `Timestamp` reads it.
        let sql = sql_postgres!("select clock_timestamp() as now where $1 = 1");
        self.fetch_optional(sql, binds![1_i64]).await?.map(|row| row.get("now")).transpose()
    }

    /// The current versions of installations of whatever organizations; those that are gone are left out. Needs the scope of
    /// `SystemReason::Nodes`.
    pub async fn list_grant_versions(
        &mut self,
        keys: &[(OrgId, InstallationId)],
    ) -> Result<Vec<(OrgId, InstallationId, GrantVersion)>, StoreError> {
        self.require_reason(SystemReason::Nodes)?;
        let mut rows = Vec::new();
        if self.is_postgres() {
            // One round trip for all of them; `jsonb` since the common dialect has no list of values, `lateral` with its limit so that
            // each is looked up by its key, however few rows the planner takes the table for.
            let sql = sql_postgres!(
                "select found.* from jsonb_array_elements(cast($1 as jsonb)) pair cross join lateral
                     (select org_id, id, grant_version from installation
                      where org_id = cast(pair->>0 as uuid) and id = cast(pair->>1 as uuid) limit 1) found"
            );
            rows = self.fetch(sql, binds![&pairs(keys, InstallationId::uuid)]).await?;
        } else {
            let sql = sql!("select org_id, id, grant_version from installation where org_id = $1 and id = $2");
            for (org, id) in keys {
                rows.extend(self.fetch(sql, binds![*org, *id]).await?);
            }
        }
        rows.iter()
            .map(|row| Ok((row.get("org_id")?, row.get("id")?, GrantVersion(row.get("grant_version")?))))
            .collect()
    }

    /// Those of the runs that have ended or are gone. Needs the scope of `SystemReason::Nodes`.
    pub async fn list_ended_runs(&mut self, keys: &[(OrgId, RunId)]) -> Result<Vec<RunId>, StoreError> {
        self.require_reason(SystemReason::Nodes)?;
        let mut rows = Vec::new();
        if self.is_postgres() {
            // As above.
            let sql = sql_postgres!(
                "select found.id from jsonb_array_elements(cast($1 as jsonb)) pair cross join lateral
                     (select id from run where org_id = cast(pair->>0 as uuid) and id = cast(pair->>1 as uuid)
                          and status not in ('succeeded', 'failed', 'cancelled') limit 1) found"
            );
            rows = self.fetch(sql, binds![&pairs(keys, RunId::uuid)]).await?;
        } else {
            let sql = sql!(
                "select id from run where org_id = $1 and id = $2 and status not in ('succeeded', 'failed', 'cancelled')"
            );
            for (org, id) in keys {
                rows.extend(self.fetch(sql, binds![*org, *id]).await?);
            }
        }
        let going = rows.iter().map(|row| row.get("id")).collect::<Result<Vec<RunId>, _>>()?;
        Ok(keys.iter().map(|(_, id)| *id).filter(|id| !going.contains(id)).collect())
    }
}
