//! What a worker's commit reads and writes, in as few round trips as the database allows: on PostgreSQL each statement of a transaction
//! is one, with the run's and the job's rows locked meanwhile. SQLite's statements run in place; there they are simply called.

use std::time::Duration;

use bulkhead_model::ambient::Ambient;
use bulkhead_model::grant::GrantVersion;
use bulkhead_model::id::{EventId, InstallationId, JobId, RunId, WorkerId};
use bulkhead_model::job::Lease;
use bulkhead_model::name::PluginName;
use bulkhead_model::run::RunStatus;
use bulkhead_model::time::Timestamp;

use crate::call::{Call, CallTexts};
use crate::error::StoreError;
use crate::installation::{self, Installation, InstallationState};
use crate::job::{ClaimedJob, NewJob, micros};
use crate::run::{Run, RunEvent, Step};
use crate::sql::{Bind, Row, binds, sql_postgres};
use crate::tx::Tx;

/// Where a run and the installation of its call stand, both rows locked until the transaction ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    pub status: RunStatus,
    /// The number of the run's newest log entry.
    pub log_seq: i64,
    /// As in [`Kept`](crate::run::Kept).
    pub held_bytes: i64,
    pub log_bytes: i64,
    /// `None`: not asked for, or not there.
    pub installation: Option<(GrantVersion, InstallationState)>,
}

/// What came of a run's begin.
#[derive(Clone, Debug)]
pub enum Begun {
    /// Its dedupe key started another before; nothing was saved.
    Before,
    /// Its job waits to be claimed, and the run is `queued`.
    Queued,
    /// The worker holds its job.
    Held(ClaimedJob),
}

/// A finished call with its step's row and its line in the run's log.
#[derive(Clone, Copy, Debug)]
pub struct CalledStep<'a> {
    pub call: &'a Call,
    pub step: &'a Step,
    pub event: &'a RunEvent,
}

/// What the organization hears of (table `event`).
#[derive(Clone, Copy, Debug)]
pub struct Told<'a> {
    /// `run.succeeded`, …
    pub kind: &'a str,
    /// The id of what it is about.
    pub subject: &'a str,
    pub detail: &'a serde_json::Value,
}

fn read_standing(row: &Row) -> Result<Standing, StoreError> {
    let version: Option<i64> = row.get("grant_version")?;
    let state: Option<String> = row.get("state")?;
    let installation = version.zip(state).map(|(version, state)| {
        let known = InstallationState::parse(&state);
        known.map(|state| (GrantVersion(version), state)).ok_or_else(|| StoreError::corrupt("state", "unknown value"))
    });
    Ok(Standing {
        status: row.parsed("status", RunStatus::parse)?,
        log_seq: row.get("log_seq")?,
        held_bytes: row.get("held_bytes")?,
        log_bytes: row.get("log_bytes")?,
        installation: installation.transpose()?,
    })
}

impl Tx {
    /// [`hold_lease`](Self::hold_lease), then [`lock_standing`](Self::lock_standing).
    ///
    /// # Errors
    /// [`StoreError::LostLease`]; [`StoreError::NotFound`] when the run is gone.
    pub async fn hold_standing(
        &mut self,
        lease: &Lease,
        deadline: Duration,
        now: Timestamp,
        run: RunId,
        installation: Option<InstallationId>,
    ) -> Result<Standing, StoreError> {
        if !self.is_postgres() {
            self.hold_lease(lease, deadline, now).await?;
            return self.lock_standing(run, installation).await;
        }
        let org = self.lease_org(lease)?;
        // One round trip for three. The job's row is locked first, since the run's row is read through it; both are read as they are
        // once their locks are there. The deadline goes by the database's clock, never a node's.
        let sql = sql_postgres!(
            "with held as (
                 update job set deadline_at = clock_timestamp() + $5 * interval '1 microsecond', attempt = 1, updated_at = $6
                 where org_id = $1 and id = $2 and worker_id is not distinct from $3 and fence = $4 and state = 'leased' returning id),
             of_call as materialized (
                 select grant_version, state from installation where org_id = $1 and id = $8 and (select count(*) from held) = 1 for share)
             select status, log_seq, held_bytes, log_bytes, (select grant_version from of_call) as grant_version, (select state from of_call) as state
             from run where org_id = $1 and id = $7 and (select count(*) from held) = 1 for update"
        );
        let values = binds![org, lease.job, lease.worker, lease.fence, micros(deadline), now, run, installation];
        match self.fetch_optional(sql, values).await? {
            Some(row) => read_standing(&row),
            // Either the lease or the run is gone.
            None => self.lock_run_place(run).await.and(Err(StoreError::LostLease)),
        }
    }

    /// [`finish_job`](Self::finish_job), then [`lock_standing`](Self::lock_standing).
    ///
    /// # Errors
    /// [`StoreError::LostLease`]; [`StoreError::NotFound`] when the run is gone.
    pub async fn finish_standing(
        &mut self,
        lease: &Lease,
        now: Timestamp,
        run: RunId,
        installation: Option<InstallationId>,
    ) -> Result<Standing, StoreError> {
        if self.is_postgres() {
            let org = self.lease_org(lease)?;
            // One round trip for two, where nobody enqueued the job again and it has no group. The job's row is locked first.
            let sql = sql_postgres!(
                "with ended as (
                     delete from job where org_id = $1 and id = $2 and worker_id is not distinct from $3 and fence = $4 and state = 'leased'
                         and rerun_at is null and group_key is null returning id),
                 of_call as materialized (
                     select grant_version, state from installation where org_id = $1 and id = $6 and (select count(*) from ended) = 1 for share)
                 select status, log_seq, held_bytes, log_bytes, (select grant_version from of_call) as grant_version, (select state from of_call) as state
                 from run where org_id = $1 and id = $5 and (select count(*) from ended) = 1 for update"
            );
            let values = binds![org, lease.job, lease.worker, lease.fence, run, installation];
            if let Some(row) = self.fetch_optional(sql, values).await? {
                return read_standing(&row);
            }
        }
        self.finish_job(lease, now).await?;
        self.lock_standing(run, installation).await
    }

    /// [`lock_run_place`](Self::lock_run_place) and [`lock_installation_version`](Self::lock_installation_version).
    ///
    /// # Errors
    /// [`StoreError::NotFound`] when the run is gone.
    pub async fn lock_standing(
        &mut self,
        run: RunId,
        installation: Option<InstallationId>,
    ) -> Result<Standing, StoreError> {
        if let (true, Some(installation)) = (self.is_postgres(), installation) {
            let org = self.org()?;
            // One round trip for two.
            let sql = sql_postgres!(
                "with of_call as materialized (
                     select grant_version, state from installation where org_id = $1 and id = $3 for share)
                 select status, log_seq, held_bytes, log_bytes, (select grant_version from of_call) as grant_version, (select state from of_call) as state
                 from run where org_id = $1 and id = $2 for update"
            );
            let row = self.fetch_optional(sql, binds![org, run, installation]).await?;
            return read_standing(&row.ok_or(StoreError::NotFound { what: "run" })?);
        }
        let standing = self.lock_run_place(run).await?;
        let installation = match installation {
            Some(installation) => self.lock_installation_version(installation).await?,
            None => None,
        };
        Ok(Standing { installation, ..standing })
    }

    /// Saves a run with the first entry of its log and its job, which `worker` holds from the start where it may:
    /// [`insert_run`](Self::insert_run), [`record_run_event`](Self::record_run_event), [`enqueue_held`](Self::enqueue_held). On PostgreSQL
    /// several of an organization do so at once, in READ COMMITTED transactions: what is counted must be what is committed by then.
    ///
    /// # Errors
    /// As theirs.
    pub async fn begin_run(
        &mut self,
        run: &Run,
        event: &RunEvent,
        job: &NewJob,
        worker: WorkerId,
        deadline: Duration,
        ambient: &Ambient,
    ) -> Result<Begun, StoreError> {
        if !job.may_be_held(ambient.now())? || !self.is_postgres() {
            if !self.insert_run(run).await? {
                return Ok(Begun::Before);
            }
            self.record_run_event(run.id, event).await?;
            return match self.enqueue_held(job, worker, deadline, ambient).await? {
                Some(held) => Ok(Begun::Held(held)),
                None => self.requeue_run(run.id).await.map(|()| Begun::Queued),
            };
        }
        let held = ClaimedJob::held(self.org()?, JobId::new(ambient), worker, job)?;
        let Some(seats) = self.share_turn(held.lease.org, job.payload.lane(), held.lease.job).await? else {
            // Somebody claims at this moment, or as many start already as may at once.
            if !self.insert_run(run).await? {
                return Ok(Begun::Before);
            }
            self.record_run_event(run.id, event).await?;
            return self.queue_begun(run, job, ambient).await;
        };
        // One round trip for three; what comes later asks whether what comes before was done. Worker and deadline go by the database's
        // clock.
        let sql = sql_postgres!(
            "with begun as (
                 insert into run (org_id, id, workflow_id, version, status, trigger_kind, trigger_data, state, generation,
                     dedupe_key, log_seq, created_at, updated_at, held_bytes)
                 select $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14 where not exists (
                     select 1 from spent_key where org_id = $1 and workflow_id = $3 and dedupe_key = $10)
                 on conflict (org_id, workflow_id, dedupe_key) where dedupe_key is not null do nothing returning id),
             logged as (
                 insert into run_event (org_id, run_id, seq, kind, detail, created_at)
                 select $1, $2, $15, $16, $17, $18 from begun),
             free as materialized (
                 select (select jobs_max from organization where organization.id = $1)
                     - (select count(*) from job as other where other.org_id = $1 and other.lane = $21 and other.state = 'leased') as room),
             held as (
                 insert into job (org_id, id, kind, lane, state, payload, priority, run_at, dedupe_key, attempt, attempts_max, fence,
                     worker_id, deadline_at, created_at, updated_at)
                 select $1, $19, $20, $21, 'leased', $22, $23, $24, $25, 1, $26, 1, $27, clock_timestamp() + $28 * interval '1 microsecond',
                     $29, $29
                 from begun cross join free
                 where room >= $30 and exists (select 1 from worker where worker.id = $27 and expires_at > clock_timestamp())
                 on conflict (org_id, kind, dedupe_key) where dedupe_key is not null and state <> 'dead' do nothing returning id)
             select (select count(*) from begun) as begun, (select count(*) from held) as held, (select room from free) as room"
        );
        let values = [
            &[Bind::from(self.org()?)][..],
            &run.begun_values()[..],
            &event.values()[..],
            &job.held_values(&held)[..],
            &[worker.into(), micros(deadline).into(), ambient.now().into(), seats.into()][..],
        ]
        .concat();
        let row = self.fetch_optional(sql, &values).await?.ok_or(StoreError::NotFound { what: "run" })?;
        if row.get::<i64>("begun")? == 0 {
            return Ok(Begun::Before);
        }
        if row.get::<i64>("held")? > 0 {
            return Ok(Begun::Held(held));
        }
        // There is room, but not for all that may start at once: the rest is for one alone, where nobody else starts now.
        if (1..seats).contains(&row.get::<i64>("room")?)
            && self.lock_turn(held.lease.org, job.payload.lane()).await?
            && let Some(held) = self.insert_held(job, worker, deadline, ambient).await?
        {
            return Ok(Begun::Held(held));
        }
        self.queue_begun(run, job, ambient).await
    }

    /// The job of a run that was just saved waits to be claimed, and the run with it.
    async fn queue_begun(&mut self, run: &Run, job: &NewJob, ambient: &Ambient) -> Result<Begun, StoreError> {
        self.enqueue(job, ambient).await?.ok_or(StoreError::Misuse("the job's key is taken"))?;
        self.requeue_run(run.id).await.map(|()| Begun::Queued)
    }

    /// A finished call, its step's row and its line in the run's log: [`record_call`](Self::record_call),
    /// [`save_step`](Self::save_step), [`record_run_event`](Self::record_run_event). What the call takes up is added to what the run
    /// holds, which its caller saves.
    pub async fn record_called_step(&mut self, run: &mut Run, made: CalledStep<'_>) -> Result<(), StoreError> {
        let CalledStep { call, step, event } = made;
        let texts = CallTexts::of(call)?;
        run.kept.add_call(texts.bytes(call));
        self.insert_call(call, &texts).await?;
        self.save_step(run.id, step).await?;
        self.record_run_event(run.id, event).await
    }

    /// What a commit writes after which the run goes on with a call: [`record_called_step`](Self::record_called_step) and
    /// [`update_run`](Self::update_run). Answers the installation of the next call as
    /// [`load_installation_of`](Self::load_installation_of) does; `None` also where its row cannot be read, which is for that call
    /// to say.
    pub async fn save_stride(
        &mut self,
        run: &mut Run,
        made: CalledStep<'_>,
        next: (&PluginName, Option<InstallationId>),
    ) -> Result<Option<Installation>, StoreError> {
        if !self.is_postgres() {
            self.record_called_step(run, made).await?;
            self.update_run(run).await?;
            return match self.load_installation_of(next.0, next.1).await {
                Err(StoreError::Corrupt { .. }) => Ok(None),
                found => found,
            };
        }
        let texts = CallTexts::of(made.call)?;
        run.kept.add_call(texts.bytes(made.call));
        // One round trip for five; the rows do not see each other, and need not. A test holds them to what the single statements leave.
        let sql = sql_postgres!(
            "with called as (
                 insert into call (org_id, id, installation_id, plugin_id, run_id, step_id, attempt, contribution, grant_version, outcome,
                     input, output, error, usage, limits, log, egress, refusals, created_at)
                 values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19)),
             saved as (
                 insert into step (org_id, run_id, step_id, iteration, position, status, outcome, attempts, input, output, error, usage,
                     call_id, started_at, finished_at)
                 values ($1, $20, $21, $22, $23, $24, $25, $26, $27, $28, $29, $30, $31, $32, $33)
                 on conflict (org_id, run_id, step_id, iteration) do update set status = excluded.status,
                     outcome = coalesce(excluded.outcome, step.outcome), attempts = excluded.attempts,
                     input = coalesce(excluded.input, step.input), output = excluded.output, error = excluded.error,
                     usage = coalesce(excluded.usage, step.usage), call_id = coalesce(excluded.call_id, step.call_id),
                     started_at = coalesce(step.started_at, excluded.started_at), finished_at = excluded.finished_at),
             logged as (
                 insert into run_event (org_id, run_id, seq, kind, detail, created_at) values ($1, $20, $34, $35, $36, $37)),
             moved as (
                 update run set status = $38, state = $39, generation = $40, output = $41, error = $42, log_seq = $43, waiting_until = $44,
                     updated_at = $45, finished_at = $46, history_bytes = $47, held_bytes = $48, log_bytes = $49
                 where org_id = $1 and id = $20)
             select i.id, i.plugin_id, i.state, i.settings, i.grants, i.grant_version, i.created_at, i.updated_at
             from plugin p cross join installation i
             where p.org_id = $1 and p.name = $50 and i.org_id = $1 and i.plugin_id = p.id and i.state <> 'uninstalled'
                 and (cast($51 as uuid) is null or i.id = $51)
             limit 2"
        );
        let values = [
            &[Bind::from(self.org()?)][..],
            &texts.values(made.call)[..],
            &[run.id.into()][..],
            &made.step.values()[..],
            &made.event.values()[..],
            &run.moved_values()[..],
            &[next.0.as_str().into(), next.1.into()][..],
        ]
        .concat();
        match self.fetch(sql, &values).await?.as_slice() {
            [only] => Ok(installation::read(only).ok()),
            _ => Ok(None),
        }
    }

    /// What the last commit of a run writes that ends with a call: [`record_called_step`](Self::record_called_step) and
    /// [`save_end`](Self::save_end).
    pub async fn save_last_stride(
        &mut self,
        run: &mut Run,
        made: CalledStep<'_>,
        last: &RunEvent,
        told: Told<'_>,
        ambient: &Ambient,
    ) -> Result<(), StoreError> {
        if !self.is_postgres() {
            self.record_called_step(run, made).await?;
            return self.save_end(run, last, told, ambient).await;
        }
        let texts = CallTexts::of(made.call)?;
        run.kept.add_call(texts.bytes(made.call));
        // One round trip for six, as in `save_stride`. Both lines of the log are new, each with its own number.
        let sql = sql_postgres!(
            "with called as (
                 insert into call (org_id, id, installation_id, plugin_id, run_id, step_id, attempt, contribution, grant_version, outcome,
                     input, output, error, usage, limits, log, egress, refusals, created_at)
                 values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19)),
             saved as (
                 insert into step (org_id, run_id, step_id, iteration, position, status, outcome, attempts, input, output, error, usage,
                     call_id, started_at, finished_at)
                 values ($1, $20, $21, $22, $23, $24, $25, $26, $27, $28, $29, $30, $31, $32, $33)
                 on conflict (org_id, run_id, step_id, iteration) do update set status = excluded.status,
                     outcome = coalesce(excluded.outcome, step.outcome), attempts = excluded.attempts,
                     input = coalesce(excluded.input, step.input), output = excluded.output, error = excluded.error,
                     usage = coalesce(excluded.usage, step.usage), call_id = coalesce(excluded.call_id, step.call_id),
                     started_at = coalesce(step.started_at, excluded.started_at), finished_at = excluded.finished_at),
             logged as (
                 insert into run_event (org_id, run_id, seq, kind, detail, created_at) values ($1, $20, $34, $35, $36, $37)),
             ended as (
                 insert into run_event (org_id, run_id, seq, kind, detail, created_at) values ($1, $20, $50, $51, $52, $53)),
             told as (
                 insert into event (org_id, id, kind, subject, detail, created_at) values ($1, $54, $55, $56, $57, $58))
             update run set status = $38, state = $39, generation = $40, output = $41, error = $42, log_seq = $43, waiting_until = $44,
                 updated_at = $45, finished_at = $46, history_bytes = $47, held_bytes = $48, log_bytes = $49
             where org_id = $1 and id = $20"
        );
        let detail = told.detail.to_string();
        let values = [
            &[Bind::from(self.org()?)][..],
            &texts.values(made.call)[..],
            &[run.id.into()][..],
            &made.step.values()[..],
            &made.event.values()[..],
            &run.moved_values()[..],
            &last.values()[..],
            &binds![EventId::new(ambient), told.kind, told.subject, &detail, ambient.now()][..],
        ]
        .concat();
        self.execute(sql, &values).await.map(drop)
    }

    /// What a run's end writes: the last entry of its log, what the organization hears, and the run itself
    /// ([`record_run_event`](Self::record_run_event), [`record_event`](Self::record_event), [`update_run`](Self::update_run)).
    pub async fn save_end(
        &mut self,
        run: &Run,
        last: &RunEvent,
        told: Told<'_>,
        ambient: &Ambient,
    ) -> Result<(), StoreError> {
        if !self.is_postgres() {
            self.record_run_event(run.id, last).await?;
            self.record_event(told.kind, told.subject, told.detail, ambient).await?;
            return self.update_run(run).await;
        }
        // One round trip for three.
        let sql = sql_postgres!(
            "with logged as (
                 insert into run_event (org_id, run_id, seq, kind, detail, created_at) values ($1, $2, $15, $16, $17, $18)),
             told as (
                 insert into event (org_id, id, kind, subject, detail, created_at) values ($1, $19, $20, $21, $22, $23))
             update run set status = $3, state = $4, generation = $5, output = $6, error = $7, log_seq = $8, waiting_until = $9,
                 updated_at = $10, finished_at = $11, history_bytes = $12, held_bytes = $13, log_bytes = $14
             where org_id = $1 and id = $2"
        );
        let detail = told.detail.to_string();
        let values = [
            &[Bind::from(self.org()?), run.id.into()][..],
            &run.moved_values()[..],
            &last.values()[..],
            &binds![EventId::new(ambient), told.kind, told.subject, &detail, ambient.now()][..],
        ]
        .concat();
        self.execute(sql, &values).await.map(drop)
    }
}
