//! Claiming, fair between organizations; promotion of what is due; recovery of what dead or stuck workers held.
//!
//! A claim names organizations and how many jobs each may get: whose turn it is, the worker decides. Slots are counted from live
//! leases, in the transaction that takes more, so they cannot leak. Jobs of a group that is full leave the claim path until one of
//! the group ends, so that they are not looked at again and again.

use std::time::Duration;

use bulkhead_model::id::{JobId, OrgId, WorkerId};
use bulkhead_model::job::{Lane, Lease};
use bulkhead_model::permission::SystemReason;
use bulkhead_model::time::Timestamp;

use super::{ClaimedJob, NewJob, micros};
use crate::error::StoreError;
use crate::sql::{Bind, Row, binds, sql, sql_postgres};
use crate::tx::Tx;

/// How often a claim looks again after it put jobs of full groups aside.
const ROUNDS_MAX: u32 = 4;
/// Groups looked at in one sweep.
const GROUPS_MAX: u32 = 200;
/// First key of PostgreSQL's advisory locks that order claims for one organization: with the lane's number behind it (any fixed numbers).
const TURN_LOCK: i64 = 0x6a6f_6273;
/// … and of those that are the seats of its starts; as many numbers from here on are theirs as there are seats.
const SEATS_LOCK: i64 = 0x7365_6174;
/// Starts of one organization that are saved at once, on all nodes together: about as many as a database with some cores serves.
const SEATS_MAX: i64 = 32;
/// … and no more than this part of the jobs that it may hold, since each of them leaves room for all others.
const SEATS_PART: i64 = 4;

/// Each lane has its own: what is held is counted by lane, and starts, which may overlap without a gap, keep no claim of another lane away.
const fn turn_lock(lane: Lane) -> i64 {
    TURN_LOCK
        + match lane {
            Lane::Interactive => 0,
            Lane::System => 1,
            Lane::Bulk => 2,
        }
}

/// An organization's turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Turn {
    pub org: OrgId,
    /// Jobs that it may get now.
    pub quota: u32,
}

/// How a turn ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TurnEnd {
    /// It got its quota; there may be more.
    More,
    /// Nothing is ready any more.
    Drained,
    /// It holds as many jobs of the lane as it may.
    Full,
    /// Another node claims for it at this moment, or a start of its is being saved.
    Elsewhere,
}

/// What a claim took.
#[derive(Clone, Debug, Default)]
pub struct Claim {
    /// In the order of the turns; within one by priority and age.
    pub jobs: Vec<ClaimedJob>,
    pub turns: Vec<(OrgId, TurnEnd)>,
}

/// An organization's share of the queue.
struct Share {
    jobs_max: i64,
    held: i64,
}

/// A row of a claim.
struct Taken {
    order: (i64, Timestamp, JobId),
    /// `None`: its group is full, it was put aside.
    job: Option<ClaimedJob>,
}

fn read_taken(row: &Row, org: OrgId, worker: WorkerId) -> Result<Taken, StoreError> {
    let state: String = row.get("state")?;
    let id: JobId = row.get("id")?;
    let order = (row.get("priority")?, row.get("run_at")?, id);
    if state != "leased" {
        return Ok(Taken { order, job: None });
    }
    let lease = Lease { org, job: id, worker, fence: row.get("fence")?, attempt: row.get("attempt")? };
    let job = ClaimedJob {
        lease,
        payload: row.get("payload")?,
        kind: row.get("kind")?,
        attempts_max: row.get("attempts_max")?,
    };
    Ok(Taken { order, job: Some(job) })
}

impl NewJob {
    /// Whether it is due: it was when its caller made it, but the clock may have been set back since.
    ///
    /// # Errors
    /// [`StoreError::Misuse`] for a job of a group.
    pub(crate) fn may_be_held(&self, now: Timestamp) -> Result<bool, StoreError> {
        if self.group.is_some() {
            return Err(StoreError::Misuse("a job of a group cannot be held from the start"));
        }
        Ok(self.run_at <= now)
    }

    /// What the row of a job that is held from the start has beside its organization and its holder, in the order in which it is
    /// inserted.
    pub(crate) fn held_values<'a>(&'a self, held: &'a ClaimedJob) -> [Bind<'a>; 8] {
        [
            held.lease.job.into(),
            self.payload.kind().into(),
            self.payload.lane().as_str().into(),
            (&held.payload).into(),
            self.priority.into(),
            self.run_at.into(),
            (&self.dedupe_key).into(),
            self.attempts_max.into(),
        ]
    }
}

impl ClaimedJob {
    /// A job that its worker holds from the start, on its first attempt.
    pub(crate) fn held(org: OrgId, job: JobId, worker: WorkerId, new: &NewJob) -> Result<Self, StoreError> {
        Ok(Self {
            lease: Lease { org, job, worker, fence: 1, attempt: 1 },
            payload: serde_json::to_string(&new.payload).map_err(|error| StoreError::corrupt("payload", error))?,
            kind: new.payload.kind().to_owned(),
            attempts_max: new.attempts_max,
        })
    }
}

impl Tx {
    /// The organizations after `after` that have ready jobs in the lane, by id, with what weight each has beside others. Costs one look
    /// at the index for each, however many jobs they have. Needs the scope of `SystemReason::Jobs`.
    pub async fn list_ready_orgs(
        &mut self,
        lane: Lane,
        after: Option<OrgId>,
        limit: u32,
    ) -> Result<Vec<(OrgId, u32)>, StoreError> {
        self.require_reason(SystemReason::Jobs)?;
        // The recursive part finds the next organization by a search of the index, not by reading past the jobs of the last one.
        let sql = sql!(
            "with recursive found (org_id) as (
                 select (select org_id from job where state = 'ready' and lane = $1 and org_id > $2 order by org_id limit 1)
                 union all
                 select (select org_id from job where state = 'ready' and lane = $1 and org_id > found.org_id order by org_id limit 1)
                 from found where found.org_id is not null
             )
             select org_id, (select queue_weight from organization where organization.id = found.org_id) as queue_weight
             from found where org_id is not null limit $3"
        );
        let after = after.unwrap_or_else(|| OrgId::from_uuid(uuid::Uuid::nil()));
        let rows = self.fetch(sql, binds![lane.as_str(), after, i64::from(limit)]).await?;
        rows.iter().map(|row| Ok((row.get("org_id")?, row.get("queue_weight")?))).collect()
    }

    /// Claims ready jobs of a lane for `worker`, which must be registered and alive: of each organization at most its quota and at
    /// most what its limits leave. Each job is to be done within `deadline`. Needs the scope of `SystemReason::Jobs`.
    pub async fn claim_jobs(
        &mut self,
        worker: WorkerId,
        lane: Lane,
        turns: &[Turn],
        now: Timestamp,
        deadline: Duration,
    ) -> Result<Claim, StoreError> {
        self.require_reason(SystemReason::Jobs)?;
        let mut claim = Claim::default();
        for turn in turns {
            let Some(share) = self.open_turn(turn.org, lane).await? else {
                claim.turns.push((turn.org, TurnEnd::Elsewhere));
                continue;
            };
            let free = u32::try_from(share.jobs_max.saturating_sub(share.held)).unwrap_or(0);
            let room = turn.quota.min(free);
            let (mut taken, mut drained) = (0, false);
            for _ in 0..ROUNDS_MAX {
                if taken == room {
                    break;
                }
                let wanted = room - taken;
                let rows = self.take(worker, lane, turn.org, wanted, now, deadline).await?;
                drained = rows.len() < wanted as usize;
                for job in rows.into_iter().filter_map(|row| row.job) {
                    taken += 1;
                    claim.jobs.push(job);
                }
                if drained {
                    break;
                }
            }
            let end = match (drained, room < turn.quota) {
                (true, _) => TurnEnd::Drained,
                (false, true) => TurnEnd::Full,
                (false, false) => TurnEnd::More,
            };
            claim.turns.push((turn.org, end));
        }
        Ok(claim)
    }

    /// From here on nobody else claims for the organization in that lane, and none of its starts takes up a job there, until the
    /// transaction ends; `false` when somebody does now. On SQLite there is one writer.
    pub(crate) async fn lock_turn(&mut self, org: OrgId, lane: Lane) -> Result<bool, StoreError> {
        if !self.is_postgres() {
            return Ok(true);
        }
        // A statement of its own: the count that follows must see what the holder before committed.
        let sql = sql_postgres!(
            "select case when pg_try_advisory_xact_lock(cast($1 as integer), hashtext(cast($2 as text))) then cast(1 as bigint) else 0 end as free"
        );
        let answer = self.fetch_optional(sql, binds![turn_lock(lane), org]).await?;
        Ok(answer.map(|row| row.get::<i64>("free")).transpose()? == Some(1))
    }

    /// As [`lock_turn`](Self::lock_turn), together with others who start, each on a seat of its own until its transaction ends. Answers
    /// how many seats there are: whoever holds one takes up a job only where there is room for that many, since those on the other
    /// seats count what is committed, as it does itself. `None` while somebody claims, or no seat is free. PostgreSQL alone.
    pub(crate) async fn share_turn(&mut self, org: OrgId, lane: Lane, job: JobId) -> Result<Option<i64>, StoreError> {
        // Where the search begins; that of another one elsewhere, so that few meet. An id ends with what was drawn by lot.
        let first = i64::from(job.uuid().as_bytes()[15]);
        // PostgreSQL's advisory locks, in a statement of its own as in `lock_turn`: the count that follows must see what those
        // committed who had the turn, or this seat, before. `limit 1` ends the search; a seat too many would only be kept from others.
        let sql = sql_postgres!(
            "with share as materialized (
                 select least(greatest(jobs_max / $5, 1), $6) as seats from organization
                 where id = $2 and pg_try_advisory_xact_lock_shared(cast($1 as integer), hashtext(cast($2 as text))))
             select seats from share cross join generate_series(cast(0 as bigint), seats - 1) as place
             where pg_try_advisory_xact_lock(cast($3 + ($4 + place) % seats as integer), hashtext(cast($2 as text)))
             limit 1"
        );
        let values = binds![turn_lock(lane), org, SEATS_LOCK, first, SEATS_PART, SEATS_MAX];
        self.fetch_optional(sql, values).await?.map(|row| row.get("seats")).transpose()
    }

    /// Counts what the organization holds. On PostgreSQL nobody else claims for it until the transaction ends; `None` when
    /// somebody does now.
    async fn open_turn(&mut self, org: OrgId, lane: Lane) -> Result<Option<Share>, StoreError> {
        if !self.lock_turn(org, lane).await? {
            return Ok(None);
        }
        let sql = sql!(
            "select jobs_max, (select count(*) from job where job.org_id = $1 and job.lane = $2 and job.state = 'leased') as held
             from organization where id = $1"
        );
        let row = self.fetch_optional(sql, binds![org, lane.as_str()]).await?;
        row.map(|row| Ok(Share { jobs_max: row.get("jobs_max")?, held: row.get("held")? })).transpose()
    }

    /// Takes the first `wanted` ready jobs of one organization, or puts them aside where their group is full.
    async fn take(
        &mut self,
        worker: WorkerId,
        lane: Lane,
        org: OrgId,
        wanted: u32,
        now: Timestamp,
        deadline: Duration,
    ) -> Result<Vec<Taken>, StoreError> {
        let wanted = i64::from(wanted);
        let rows = if self.is_postgres() {
            // `for update skip locked`: a job that somebody changes at this moment is not waited for. Worker and deadline go by the
            // database's clock.
            let sql = sql_postgres!(
                "with ready as materialized (
                     select id as ready_id, group_key as in_group, group_limit as most, priority as first, run_at as since from job
                     where org_id = $1 and lane = $2 and state = 'ready'
                         and exists (select 1 from worker where id = $4 and expires_at > clock_timestamp())
                     order by priority, run_at, id limit $3 for update skip locked),
                 placed as (
                     select ready_id, in_group, most, row_number() over (partition by in_group order by first, since, ready_id) as place
                     from ready),
                 picked as materialized (
                     select ready_id, in_group is null or place + (select count(*) from job as held
                         where held.org_id = $1 and held.group_key = in_group and held.state = 'leased') <= most as fits
                     from placed)
                 update job set state = case when fits then 'leased' else 'blocked' end,
                     worker_id = case when fits then $4 else worker_id end,
                     fence = case when fits then fence + 1 else fence end, attempt = case when fits then attempt + 1 else attempt end,
                     deadline_at = case when fits then clock_timestamp() + $5 * interval '1 microsecond' end, updated_at = $6
                 from picked where org_id = $1 and id = ready_id
                 returning id, state, kind, payload, fence, attempt, attempts_max, priority, run_at"
            );
            let values = binds![org, lane.as_str(), wanted, worker, micros(deadline), now];
            self.fetch(sql, values).await?
        } else {
            let sql = sql!(
                "with placed as (
                     select id as ready_id, group_key as in_group, group_limit as most,
                         row_number() over (partition by group_key order by priority, run_at, id) as place
                     from (select id, group_key, group_limit, priority, run_at from job
                         where org_id = $1 and lane = $2 and state = 'ready' and exists (select 1 from worker where id = $4)
                         order by priority, run_at, id limit $3) as ready),
                 picked as materialized (
                     select ready_id, in_group is null or place + (select count(*) from job as held
                         where held.org_id = $1 and held.group_key = in_group and held.state = 'leased') <= most as fits
                     from placed)
                 update job set state = case when fits then 'leased' else 'blocked' end,
                     worker_id = case when fits then $4 else worker_id end,
                     fence = case when fits then fence + 1 else fence end, attempt = case when fits then attempt + 1 else attempt end,
                     deadline_at = case when fits then $5 else deadline_at end, updated_at = $6
                 from picked where org_id = $1 and id = ready_id
                 returning id, state, kind, payload, fence, attempt, attempts_max, priority, run_at"
            );
            let deadline_at = self.monotonic_after(deadline);
            self.fetch(sql, binds![org, lane.as_str(), wanted, worker, deadline_at, now]).await?
        };
        // `returning` has no order of its own.
        let mut taken = rows.iter().map(|row| read_taken(row, org, worker)).collect::<Result<Vec<_>, _>>()?;
        taken.sort_by_key(|row| row.order);
        Ok(taken)
    }

    /// Enqueues a job that `worker` holds from the start, so that no claim is needed: only where nobody waits for the lane, which
    /// the caller knows. `None` when the organization holds as many jobs as it may, or another node claims for it, or starts something,
    /// at this moment: the job is ready then, for a later claim.
    ///
    /// # Errors
    /// [`StoreError::Misuse`] for a job that has a group or whose key a job has already.
    pub async fn enqueue_held(
        &mut self,
        job: &NewJob,
        worker: WorkerId,
        deadline: Duration,
        ambient: &bulkhead_model::ambient::Ambient,
    ) -> Result<Option<ClaimedJob>, StoreError> {
        let org = self.org()?;
        let may_be_held = job.may_be_held(ambient.now())?;
        let held = if may_be_held && self.lock_turn(org, job.payload.lane()).await? {
            self.insert_held(job, worker, deadline, ambient).await?
        } else {
            None
        };
        if held.is_none() {
            self.enqueue(job, ambient).await?.ok_or(StoreError::Misuse("the job's key is taken"))?;
        }
        Ok(held)
    }

    /// `None` when the organization holds as many as it may, the worker is not alive, or the job's key is taken. The turn is locked.
    pub(crate) async fn insert_held(
        &mut self,
        job: &NewJob,
        worker: WorkerId,
        deadline: Duration,
        ambient: &bulkhead_model::ambient::Ambient,
    ) -> Result<Option<ClaimedJob>, StoreError> {
        let (org, now) = (self.org()?, ambient.now());
        let held = ClaimedJob::held(org, JobId::new(ambient), worker, job)?;
        // The deadline is a length of time on PostgreSQL, where the database's clock rules, and a moment on SQLite.
        let (sql, deadline) = if self.is_postgres() {
            let sql = sql_postgres!(
                "insert into job (org_id, id, kind, lane, state, payload, priority, run_at, dedupe_key, attempt, attempts_max, fence,
                     worker_id, deadline_at, created_at, updated_at)
                 select $1, $2, $3, $4, 'leased', $5, $6, $7, $8, 1, $9, 1, $10, clock_timestamp() + $11 * interval '1 microsecond', $12, $12
                 where exists (select 1 from worker where id = $10 and expires_at > clock_timestamp())
                     and (select count(*) from job as held where held.org_id = $1 and held.lane = $4 and held.state = 'leased')
                         < (select jobs_max from organization where organization.id = $1)
                 on conflict (org_id, kind, dedupe_key) where dedupe_key is not null and state <> 'dead' do nothing"
            );
            (sql, Bind::from(micros(deadline)))
        } else {
            let sql = sql!(
                "insert into job (org_id, id, kind, lane, state, payload, priority, run_at, dedupe_key, attempt, attempts_max, fence,
                     worker_id, deadline_at, created_at, updated_at)
                 select $1, $2, $3, $4, 'leased', $5, $6, $7, $8, 1, $9, 1, $10, $11, $12, $12
                 where exists (select 1 from worker where worker.id = $10)
                     and (select count(*) from job as held where held.org_id = $1 and held.lane = $4 and held.state = 'leased')
                         < (select jobs_max from organization where organization.id = $1)
                 on conflict (org_id, kind, dedupe_key) where dedupe_key is not null and state <> 'dead' do nothing"
            );
            (sql, Bind::from(self.monotonic_after(deadline)))
        };
        let values =
            [&[Bind::from(org)][..], &job.held_values(&held)[..], &[worker.into(), deadline, now.into()][..]].concat();
        let inserted = self.execute(sql, &values).await?;
        Ok((inserted > 0).then_some(held))
    }

    /// After a job of a group ended: the next one of the group comes back into the claim path.
    pub(super) async fn admit_next(
        &mut self,
        org: OrgId,
        group: Option<String>,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let Some(group) = group else { return Ok(()) };
        self.admit(org, &group, 1, now).await.map(drop)
    }

    /// Its time stays, which is its place in the line; since when it is ready is told by `updated_at`.
    async fn admit(&mut self, org: OrgId, group: &str, jobs: u32, now: Timestamp) -> Result<u64, StoreError> {
        let values = binds![org, group, i64::from(jobs), now];
        if self.is_postgres() {
            // `for update skip locked`: two jobs of the group that end together admit two. Materialized, since a plan that chose
            // for each row anew would admit more than asked. `coalesce` keeps it from reading all jobs of the organization: the group
            // is in an index of its own, in order.
            let sql = sql_postgres!(
                "with picked as materialized (select id as blocked_id from job
                     where coalesce(org_id, org_id) = $1 and group_key = $2 and state = 'blocked' order by priority, run_at, id limit $3
                     for update skip locked)
                 update job set state = 'ready', updated_at = $4 from picked where org_id = $1 and id = blocked_id"
            );
            self.execute(sql, values).await
        } else {
            let sql = sql!(
                "update job set state = 'ready', updated_at = $4 where org_id = $1 and id in (select id from job
                     where coalesce(org_id, org_id) = $1 and group_key = $2 and state = 'blocked' order by priority, run_at, id limit $3)"
            );
            self.execute(sql, values).await
        }
    }

    /// Brings blocked jobs back whose group has room although none of it ended here (its holder died, its limit was raised); looks
    /// at the groups after `after` and answers the last one looked at, `None` at the end. Needs the scope of `SystemReason::Jobs`.
    pub async fn admit_blocked_jobs(
        &mut self,
        after: Option<&str>,
        now: Timestamp,
    ) -> Result<Option<String>, StoreError> {
        self.require_reason(SystemReason::Jobs)?;
        let sql = sql!(
            "with recursive found (group_key) as (
                 select (select group_key from job where state = 'blocked' and group_key > $1 order by group_key limit 1)
                 union all
                 select (select group_key from job where state = 'blocked' and group_key > found.group_key order by group_key limit 1)
                 from found where found.group_key is not null
             )
             select group_key from found where group_key is not null limit $2"
        );
        let rows = self.fetch(sql, binds![after.unwrap_or_default(), GROUPS_MAX]).await?;
        let groups = rows.iter().map(|row| row.get::<String>("group_key")).collect::<Result<Vec<_>, _>>()?;
        for group in &groups {
            let sql = sql!(
                "select org_id, group_limit
                     - (select count(*) from job as held where held.org_id = job.org_id and held.group_key = $1 and held.state = 'leased')
                     - (select count(*) from job as next where next.org_id = job.org_id and next.group_key = $1 and next.state = 'ready') as room
                 from job where group_key = $1 and state = 'blocked' order by priority, run_at, id limit 1"
            );
            let Some(row) = self.fetch_optional(sql, binds![group]).await? else { continue };
            if let Ok(room @ 1..) = u32::try_from(row.get::<i64>("room")?) {
                self.admit(row.get("org_id")?, group, room, now).await?;
            }
        }
        Ok(if groups.len() < GROUPS_MAX as usize { None } else { groups.last().cloned() })
    }

    /// Moves jobs whose time has come into the claim path; answers how many. Needs the scope of `SystemReason::Jobs`.
    pub async fn promote_jobs(&mut self, now: Timestamp, limit: u32) -> Result<u64, StoreError> {
        self.require_reason(SystemReason::Jobs)?;
        let values = binds![now, i64::from(limit)];
        if self.is_postgres() {
            // `for update skip locked`: another node may promote the same rows.
            let sql = sql_postgres!(
                "update job set state = 'ready', updated_at = $1 where (org_id, id) in
                     (select org_id, id from job where state = 'future' and run_at <= $1 order by run_at limit $2
                      for update skip locked)"
            );
            self.execute(sql, values).await
        } else {
            let sql = sql!(
                "update job set state = 'ready', updated_at = $1 where (org_id, id) in
                     (select org_id, id from job where state = 'future' and run_at <= $1 order by run_at limit $2)"
            );
            self.execute(sql, values).await
        }
    }

    /// When the next future job is due. Needs the scope of `SystemReason::Jobs`.
    pub async fn next_job_at(&mut self) -> Result<Option<Timestamp>, StoreError> {
        self.require_reason(SystemReason::Jobs)?;
        let sql = sql!("select run_at from job where state = 'future' order by run_at limit 1");
        self.fetch_optional(sql, &[]).await?.map(|row| row.get("run_at")).transpose()
    }

    /// What the worker holds. Needs the scope of `SystemReason::Jobs`.
    pub async fn list_held_jobs(&mut self, worker: WorkerId) -> Result<Vec<Lease>, StoreError> {
        self.require_reason(SystemReason::Jobs)?;
        let sql = sql!("select org_id, id, fence, attempt from job where worker_id = $1 and state = 'leased'");
        let rows = self.fetch(sql, binds![worker]).await?;
        let read = |row: &Row| {
            Ok(Lease {
                org: row.get("org_id")?,
                job: row.get("id")?,
                worker,
                fence: row.get("fence")?,
                attempt: row.get("attempt")?,
            })
        };
        rows.iter().map(read).collect()
    }

    /// Takes the jobs of dead workers back into the claim path; answers how many. On SQLite every worker but `me` is dead; on
    /// PostgreSQL those whose heartbeat expired. One that used up its attempts comes back as well: whoever claims it gives it up,
    /// together with what it was for.
    pub async fn recover_jobs(&mut self, me: WorkerId, now: Timestamp) -> Result<u64, StoreError> {
        self.require_reason(SystemReason::Jobs)?;
        if self.is_postgres() {
            // Only expired heartbeats (by the database's clock) are dead: other nodes live beside this one.
            // `skip locked`: another node may be at it, or have stopped in the midst of it.
            let sql = sql_postgres!(
                "delete from worker where id in (select id from worker where expires_at <= clock_timestamp() and id <> $1
                     for update skip locked)"
            );
            self.execute(sql, binds![me]).await?;
        } else {
            let sql = sql!("delete from worker where id <> $1");
            self.execute(sql, binds![me]).await?;
        }
        if self.is_postgres() {
            // `for update skip locked`: a stopped node's open transaction may hold some of its jobs' rows until the database ends
            // it; the others must not wait for that. The next look takes what was left.
            let sql = sql_postgres!(
                "update job set state = 'ready', error = coalesce(error, 'its worker died'), worker_id = null, deadline_at = null,
                     updated_at = $1
                 where (org_id, id) in (select org_id, id from job
                     where state = 'leased' and worker_id not in (select id from worker) for update skip locked)"
            );
            self.execute(sql, binds![now]).await
        } else {
            let sql = sql!(
                "update job set state = 'ready', error = coalesce(error, 'its worker died'), worker_id = null, deadline_at = null,
                     updated_at = $1
                 where state = 'leased' and worker_id not in (select id from worker)"
            );
            self.execute(sql, binds![now]).await
        }
    }

    /// How long it is until the next heartbeat of another worker ends, if nobody renews it; zero when one has. `None` without
    /// others, and always on SQLite, which has one process. Needs the scope of `SystemReason::Jobs`.
    pub async fn next_heartbeat_end(&mut self, me: WorkerId) -> Result<Option<Duration>, StoreError> {
        self.require_reason(SystemReason::Jobs)?;
        if !self.is_postgres() {
            return Ok(None);
        }
        // By the database's clock, never a node's.
        let sql = sql_postgres!(
            "select cast(extract(epoch from expires_at - clock_timestamp()) * 1000000 as bigint) as left_micros from worker
             where id <> $1 order by expires_at limit 1"
        );
        let row = self.fetch_optional(sql, binds![me]).await?;
        let left = row.map(|row| row.get::<i64>("left_micros")).transpose()?;
        Ok(left.map(|micros| Duration::from_micros(u64::try_from(micros).unwrap_or(0))))
    }

    /// Frees jobs that are live but stuck: their deadline is over. Needs the scope of `SystemReason::Jobs`.
    pub async fn free_stuck_jobs(&mut self, now: Timestamp) -> Result<u64, StoreError> {
        self.require_reason(SystemReason::Jobs)?;
        if self.is_postgres() {
            // The deadline goes by the database's clock, never a node's. `for update skip locked`: as in `recover_jobs`.
            let sql = sql_postgres!(
                "update job set state = 'ready', error = 'the attempt passed its deadline', worker_id = null, deadline_at = null,
                     updated_at = $1
                 where (org_id, id) in (select org_id, id from job
                     where state = 'leased' and deadline_at < clock_timestamp() for update skip locked)"
            );
            self.execute(sql, binds![now]).await
        } else {
            let sql = sql!(
                "update job set state = 'ready', error = 'the attempt passed its deadline', worker_id = null, deadline_at = null,
                     updated_at = $1
                 where state = 'leased' and deadline_at < $2"
            );
            let moment = self.monotonic_after(Duration::ZERO);
            self.execute(sql, binds![now, moment]).await
        }
    }
}
