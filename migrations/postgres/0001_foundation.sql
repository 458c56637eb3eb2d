-- Foundation: organizations, keys, plugins, workflows, runs, jobs, audit.

create table organization (
    id          uuid not null primary key,
    slug        text collate "C" not null unique,
    name        text not null,
    created_at  timestamptz not null,
    -- Its share of the workers beside others with work, and how many of its jobs of a lane may be held at once.
    queue_weight  bigint not null default 1 check (queue_weight between 1 and 100),
    jobs_max      bigint not null default 64 check (jobs_max between 1 and 10000),
    -- What it may hold at most (host/model/src/quota.rs).
    active_workflows_max  bigint not null default 1000,
    payload_bytes_max     bigint not null default 1048576,
    history_bytes_max     bigint not null default 10737418240,
    log_bytes_max         bigint not null default 1048576,
    plugin_versions_max   bigint not null default 1000,
    plugin_bytes_max      bigint not null default 2147483648
);

create table api_key (
    org_id       uuid not null references organization (id),
    id           uuid not null,
    name         text not null,
    secret_hash  bytea not null,
    permissions  text not null,
    created_at   timestamptz not null,
    expires_at   timestamptz,
    revoked_at   timestamptz,
    primary key (org_id, id)
);

-- The bytes of a package, by their SHA-256.
create table artifact (
    org_id      uuid not null references organization (id),
    digest      bytea not null,
    package     bytea not null,
    created_at  timestamptz not null,
    primary key (org_id, digest)
);

-- A plugin version; immutable.
create table plugin (
    org_id      uuid not null references organization (id),
    id          uuid not null,
    name        text collate "C" not null,
    version     text collate "C" not null,
    digest      bytea not null,
    manifest    text not null,
    size_bytes  bigint not null,
    created_at  timestamptz not null,
    -- Taken out of use: what is left names it in the history, and keeps its version from meaning other bytes.
    deleted_at  timestamptz,
    primary key (org_id, id),
    unique (org_id, name, version),
    foreign key (org_id, digest) references artifact (org_id, digest)
);

-- grant_version rises with every change of grants, settings, secrets, version or state.
create table installation (
    org_id         uuid not null references organization (id),
    id             uuid not null,
    plugin_id      uuid not null,
    state          text not null check (state in ('enabled', 'disabled', 'uninstalled')),
    settings       text not null,
    grants         text not null,
    grant_version  bigint not null,
    created_at     timestamptz not null,
    updated_at     timestamptz not null,
    primary key (org_id, id),
    foreign key (org_id, plugin_id) references plugin (org_id, id)
);
create index installation_present on installation (org_id, plugin_id) where state <> 'uninstalled';

-- Every set of grants that an installation ever had.
create table installation_grant (
    org_id           uuid not null references organization (id),
    installation_id  uuid not null,
    version          bigint not null,
    grants           text not null,
    actor            text not null,
    created_at       timestamptz not null,
    primary key (org_id, installation_id, version),
    foreign key (org_id, installation_id) references installation (org_id, id)
);

-- Sealed (host/keys): bound to this row.
create table secret (
    org_id           uuid not null references organization (id),
    id               uuid not null,
    installation_id  uuid not null,
    name             text collate "C" not null,
    ciphertext       text collate "C" not null,
    created_at       timestamptz not null,
    updated_at       timestamptz not null,
    primary key (org_id, id),
    unique (org_id, installation_id, name),
    foreign key (org_id, installation_id) references installation (org_id, id)
);

create table workflow (
    org_id           uuid not null references organization (id),
    id               uuid not null,
    name             text collate "C" not null,
    state            text not null check (state in ('inactive', 'active')),
    current_version  bigint not null,
    revision         bigint not null,
    created_at       timestamptz not null,
    updated_at       timestamptz not null,
    primary key (org_id, id),
    unique (org_id, name)
);
create index workflow_active on workflow (org_id) where state = 'active';

create table workflow_version (
    org_id       uuid not null references organization (id),
    workflow_id  uuid not null,
    version      bigint not null,
    definition   text not null,
    summary      text not null,
    author       text not null,
    created_at   timestamptz not null,
    primary key (org_id, workflow_id, version),
    foreign key (org_id, workflow_id) references workflow (org_id, id)
);

-- Webhook addresses. A rotated one lives on until expires_at.
create table hook (
    org_id       uuid not null references organization (id),
    id           uuid not null,
    workflow_id  uuid not null,
    trigger_id   text collate "C" not null,
    secret_hash  bytea not null,
    -- The whole address, sealed like a secret, so that those who may manage the workflow can read it again.
    ciphertext   text collate "C" not null,
    created_at   timestamptz not null,
    expires_at   timestamptz,
    primary key (org_id, id),
    foreign key (org_id, workflow_id) references workflow (org_id, id)
);
create index hook_by_workflow on hook (org_id, workflow_id, trigger_id);

-- One row per run: where it stands now.
create table run (
    org_id         uuid not null,
    id             uuid not null,
    workflow_id    uuid not null,
    version        bigint not null,
    status         text not null check (status in ('queued', 'running', 'waiting', 'paused', 'succeeded', 'failed', 'cancelled')),
    trigger_kind   text not null,
    trigger_data   text not null,
    state          text not null,
    generation     bigint not null,
    output         text,
    error          text,
    dedupe_key     text collate "C",
    log_seq        bigint not null,
    waiting_until  timestamptz,
    created_at     timestamptz not null,
    updated_at     timestamptz not null,
    finished_at    timestamptz,
    -- What its trigger, its steps, its log and its calls take up, raised with each commit; and the logs of its calls alone.
    held_bytes     bigint not null default 0,
    log_bytes      bigint not null default 0,
    -- Of a run that ended: what it takes up in all.
    history_bytes  bigint not null default 0,
    -- It is on the list of dead letters.
    dead_letter    bigint not null default 0 check (dead_letter in (0, 1)),
    -- The job that removes has begun with it.
    removing       bigint not null default 0 check (removing in (0, 1)),
    primary key (org_id, id),
    foreign key (org_id, workflow_id, version) references workflow_version (org_id, workflow_id, version)
);
create unique index run_dedupe on run (org_id, workflow_id, dedupe_key) where dedupe_key is not null;
create index run_by_workflow on run (org_id, workflow_id, id);
create index run_by_workflow_status on run (org_id, workflow_id, status, id);
create index run_by_status on run (org_id, status, id);
-- What has ended, oldest first, and what it takes up: read without the rows.
create index run_ended on run (org_id, status, dead_letter, finished_at, id, history_bytes) where finished_at is not null;
-- Of which the job that removes has taken a part: it goes on with these.
create index run_removing on run (org_id, id) where removing = 1;

-- What happened in a run, in its own order.
create table run_event (
    org_id      uuid not null,
    run_id      uuid not null,
    seq         bigint not null,
    kind        text not null,
    detail      text not null,
    created_at  timestamptz not null,
    primary key (org_id, run_id, seq),
    foreign key (org_id, run_id) references run (org_id, id)
);

create table step (
    org_id       uuid not null,
    run_id       uuid not null,
    step_id      text collate "C" not null,
    iteration    bigint not null,
    -- The order of first touch in the run.
    position     bigint not null,
    status       text not null check (status in ('pending', 'running', 'waiting', 'succeeded', 'failed', 'skipped', 'cancelled')),
    outcome      text,
    attempts     bigint not null,
    input        text,
    output       text,
    error        text,
    usage        text,
    call_id      uuid,
    started_at   timestamptz,
    finished_at  timestamptz,
    primary key (org_id, run_id, step_id, iteration),
    foreign key (org_id, run_id) references run (org_id, id)
);

create table call (
    org_id           uuid not null,
    id               uuid not null,
    installation_id  uuid not null,
    plugin_id        uuid not null,
    run_id           uuid,
    step_id          text collate "C",
    attempt          bigint not null,
    contribution     text collate "C" not null,
    grant_version    bigint not null,
    outcome          text collate "C" not null,
    input            text not null,
    output           text,
    error            text,
    usage            text not null,
    limits           text not null,
    log              text not null,
    egress           text not null,
    refusals         text not null,
    created_at       timestamptz not null,
    primary key (org_id, id),
    foreign key (org_id, installation_id) references installation (org_id, id),
    foreign key (org_id, plugin_id) references plugin (org_id, id)
);
create index call_by_installation on call (org_id, installation_id, id);
create index call_by_outcome on call (org_id, installation_id, outcome, id);
create index call_by_run on call (org_id, run_id, id) where run_id is not null;
create index call_by_hand on call (org_id, id) where run_id is null;

-- Facts that leave a transaction for others to act on.
create table event (
    org_id      uuid not null references organization (id),
    id          uuid not null,
    kind        text collate "C" not null,
    subject     text collate "C" not null,
    detail      text not null,
    created_at  timestamptz not null,
    primary key (org_id, id)
);
create index event_by_kind on event (org_id, kind, id);

create table audit (
    org_id      uuid not null references organization (id),
    id          uuid not null,
    action      text collate "C" not null,
    target      text collate "C" not null,
    actor       text collate "C" not null,
    detail      text not null,
    created_at  timestamptz not null,
    primary key (org_id, id)
);
create index audit_by_action on audit (org_id, action, id);
create index audit_by_target on audit (org_id, target, id);
create index audit_by_target_action on audit (org_id, target, action, id);

-- Serving processes. On PostgreSQL a row whose expires_at has passed belongs to a dead one.
create table worker (
    id                  uuid not null primary key,
    name                text not null,
    -- The binary's, and the last migration that it knows.
    version             text not null,
    schema_version      bigint not null,
    state               text not null check (state in ('serving', 'draining')),
    -- How far the machine's own clock is ahead of the database's, in microseconds.
    clock_ahead_micros  bigint not null,
    -- How many jobs of each lane it carries out at once.
    slots_system        bigint not null default 0,
    slots_interactive   bigint not null default 0,
    slots_bulk          bigint not null default 0,
    -- The root keys that it knows, with where each stands (`id=standing`, one behind another).
    roots               text not null default '',
    started_at          timestamptz not null,
    expires_at          timestamptz not null
);

-- Written by readiness checks: whether writes succeed.
create table probe (
    id          bigint not null primary key check (id = 1),
    written_at  timestamptz not null
);

-- The durable queue. Only 'ready' rows are in the claim path, found organization by organization; 'future' ones are promoted when
-- their time comes, 'blocked' ones when a job of their group ends, 'paused' ones when the breaker of their workflow lets them go.
create table job (
    org_id        uuid not null references organization (id),
    id            uuid not null,
    kind          text collate "C" not null,
    lane          text collate "C" not null check (lane in ('system', 'interactive', 'bulk')),
    state         text collate "C" not null check (state in ('future', 'ready', 'blocked', 'paused', 'leased', 'dead')),
    payload       text not null,
    priority      bigint not null,
    run_at        timestamptz not null,
    -- Jobs of one group (a workflow, or one of its keys) of which at most group_limit are held at once.
    group_key     text collate "C",
    group_limit   bigint,
    -- Whose open breaker it waits for while it is 'paused': a workflow and its version.
    held_for      text collate "C",
    dedupe_key    text collate "C",
    attempt       bigint not null,
    attempts_max  bigint not null,
    fence         bigint not null,
    worker_id     uuid,
    -- When the attempt counts as stuck, by the database's clock.
    deadline_at   timestamptz,
    -- Enqueued again while a worker held it: it begins anew then.
    rerun_at      timestamptz,
    error         text,
    created_at    timestamptz not null,
    updated_at    timestamptz not null,
    primary key (org_id, id),
    check ((group_key is null) = (group_limit is null)),
    check (state <> 'blocked' or group_key is not null),
    check ((state = 'paused') = (held_for is not null)),
    check ((state = 'leased') = (worker_id is not null and deadline_at is not null))
);
create unique index job_dedupe on job (org_id, kind, dedupe_key) where dedupe_key is not null and state <> 'dead';
create index job_ready on job (lane, org_id, priority, run_at, id) where state = 'ready';
create index job_blocked on job (group_key, priority, run_at, id) where state = 'blocked';
create index job_blocked_of_org on job (org_id, group_key) where state = 'blocked';
create index job_paused on job (held_for, priority, run_at, id) where state = 'paused';
create index job_paused_of_org on job (org_id) where state = 'paused';
create index job_held on job (org_id, lane) where state = 'leased';
create index job_group_held on job (org_id, group_key) where state = 'leased' and group_key is not null;
create index job_group_ready on job (org_id, group_key) where state = 'ready' and group_key is not null;
create index job_future on job (run_at) where state = 'future';
create index job_leased on job (worker_id) where state = 'leased';
create index job_dead on job (org_id, kind, dedupe_key) where state = 'dead';

-- Row-level security: a transaction sees the rows of the organization that it named, and nothing without one. The
-- sub-selects let the context be read once for a statement instead of once for a row.
create function app_org() returns uuid language sql stable
    return nullif(current_setting('app.org_id', true), '')::uuid;
create function app_scope() returns text language sql stable
    return coalesce(current_setting('app.scope', true), '');

alter table organization enable row level security;
alter table organization force row level security;
create policy organization_of_org on organization using (id = (select app_org())) with check (id = (select app_org()));
alter table api_key enable row level security;
alter table api_key force row level security;
create policy api_key_of_org on api_key using (org_id = (select app_org())) with check (org_id = (select app_org()));
alter table artifact enable row level security;
alter table artifact force row level security;
create policy artifact_of_org on artifact using (org_id = (select app_org())) with check (org_id = (select app_org()));
alter table plugin enable row level security;
alter table plugin force row level security;
create policy plugin_of_org on plugin using (org_id = (select app_org())) with check (org_id = (select app_org()));
alter table installation enable row level security;
alter table installation force row level security;
create policy installation_of_org on installation using (org_id = (select app_org())) with check (org_id = (select app_org()));
alter table installation_grant enable row level security;
alter table installation_grant force row level security;
create policy installation_grant_of_org on installation_grant using (org_id = (select app_org())) with check (org_id = (select app_org()));
alter table secret enable row level security;
alter table secret force row level security;
create policy secret_of_org on secret using (org_id = (select app_org())) with check (org_id = (select app_org()));
alter table workflow enable row level security;
alter table workflow force row level security;
create policy workflow_of_org on workflow using (org_id = (select app_org())) with check (org_id = (select app_org()));
alter table workflow_version enable row level security;
alter table workflow_version force row level security;
create policy workflow_version_of_org on workflow_version using (org_id = (select app_org())) with check (org_id = (select app_org()));
alter table hook enable row level security;
alter table hook force row level security;
create policy hook_of_org on hook using (org_id = (select app_org())) with check (org_id = (select app_org()));
alter table run enable row level security;
alter table run force row level security;
create policy run_of_org on run using (org_id = (select app_org())) with check (org_id = (select app_org()));
alter table run_event enable row level security;
alter table run_event force row level security;
create policy run_event_of_org on run_event using (org_id = (select app_org())) with check (org_id = (select app_org()));
alter table step enable row level security;
alter table step force row level security;
create policy step_of_org on step using (org_id = (select app_org())) with check (org_id = (select app_org()));
alter table call enable row level security;
alter table call force row level security;
create policy call_of_org on call using (org_id = (select app_org())) with check (org_id = (select app_org()));
alter table event enable row level security;
alter table event force row level security;
create policy event_of_org on event using (org_id = (select app_org())) with check (org_id = (select app_org()));
alter table audit enable row level security;
alter table audit force row level security;
create policy audit_of_org on audit using (org_id = (select app_org())) with check (org_id = (select app_org()));
alter table job enable row level security;
alter table job force row level security;
create policy job_of_org on job using (org_id = (select app_org())) with check (org_id = (select app_org()));

-- The host's own work, each reason on the tables that it needs and no other.
create policy organization_admin on organization using ((select app_scope()) = 'admin') with check ((select app_scope()) = 'admin');
alter table probe enable row level security;
alter table probe force row level security;
create policy probe_jobs on probe using ((select app_scope()) = 'jobs') with check ((select app_scope()) = 'jobs');
create policy job_jobs on job using ((select app_scope()) = 'jobs') with check ((select app_scope()) = 'jobs');
create policy organization_jobs on organization for select using ((select app_scope()) = 'jobs');

-- Where each schedule trigger of a workflow stands. Its job ('fire_schedule') only wakes up; what is due is decided here.
create table schedule (
    org_id           uuid not null references organization (id),
    workflow_id      uuid not null,
    trigger_id       text collate "C" not null,
    -- Time zone and cron expression: while they stay the same, a new version goes on from next_tick.
    rule             text not null,
    -- The first tick that is not settled; null while the workflow is inactive.
    next_tick        timestamptz,
    -- The newest tick that was settled, by a run or without: no tick up to it fires again.
    last_tick        timestamptz,
    last_fired_at    timestamptz,
    last_run_id      uuid,
    fired_count      bigint not null,
    late_count       bigint not null,
    missed_count     bigint not null,
    unmatched_count  bigint not null,
    updated_at       timestamptz not null,
    primary key (org_id, workflow_id, trigger_id),
    foreign key (org_id, workflow_id) references workflow (org_id, id)
);
alter table schedule enable row level security;
alter table schedule force row level security;
create policy schedule_of_org on schedule using (org_id = (select app_org())) with check (org_id = (select app_org()));

-- A node looks, for what it carries out itself, whether it was changed or ended on another node. It changes nothing.
create policy installation_nodes on installation for select using ((select app_scope()) = 'nodes');
create policy run_nodes on run for select using ((select app_scope()) = 'nodes');

-- Breakers of workflows' versions: failures in a row, and whether new runs wait because of them. No row: nothing failed.
create table breaker (
    org_id        uuid not null references organization (id),
    workflow_id   uuid not null,
    version       bigint not null,
    state         text collate "C" not null check (state in ('closed', 'open', 'probing')),
    -- What the failures in a row have in common, how many they are, and when the first of them happened.
    fingerprint   text collate "C",
    failures      bigint not null,
    since_at      timestamptz not null,
    opened_at     timestamptz,
    -- When a run may be let go to see whether it goes better; while one is under way, when another may.
    until_at      timestamptz,
    probe_run_id  uuid,
    probes        bigint not null,
    error         text,
    updated_at    timestamptz not null,
    primary key (org_id, workflow_id, version),
    foreign key (org_id, workflow_id, version) references workflow_version (org_id, workflow_id, version),
    check ((state = 'closed') = (opened_at is null and until_at is null)),
    check ((state = 'probing') = (probe_run_id is not null))
);
create index breaker_open on breaker (org_id, workflow_id, version) where state <> 'closed';
alter table breaker enable row level security;
alter table breaker force row level security;
create policy breaker_of_org on breaker using (org_id = (select app_org())) with check (org_id = (select app_org()));
create policy breaker_jobs on breaker for select using ((select app_scope()) = 'jobs');

-- How long an organization keeps what has ended; without a row as the platform's default says.
create table retention (
    org_id      uuid not null references organization (id),
    policy      text not null,
    revision    bigint not null,
    updated_at  timestamptz not null,
    primary key (org_id)
);

-- What has ended and is still kept, as the organization's 'prune_history' job last counted it; and what that job removed last. Only
-- the job writes here, so that no run's commit waits for another's; but for `retried`, which each retry raises.
create table history (
    org_id            uuid not null references organization (id),
    runs              bigint not null,
    bytes             bigint not null,
    -- Runs that ended up to here, and calls by hand up to here, are counted.
    runs_counted_to   timestamptz not null,
    calls_counted_to  uuid not null,
    recounted_at      timestamptz not null,
    -- Runs that were begun again so far, and how many of them the last count from the beginning knew of.
    retried           bigint not null default 0,
    retried_counted   bigint not null default 0,
    looked_at         timestamptz not null,
    -- Since when the quota is used up and nothing is left that may go.
    full_since        timestamptz,
    -- The last pass that removed something; not ended: it goes on.
    pass_began_at     timestamptz,
    pass_ended_at     timestamptz,
    pass_runs         bigint not null,
    pass_calls        bigint not null,
    pass_events       bigint not null,
    pass_bytes        bigint not null,
    -- … of these runs and calls, those that went before their time, for the quota's sake.
    pass_evicted      bigint not null,
    primary key (org_id)
);

-- Keys that made a start safe to repeat, of runs that are removed before the key may be forgotten.
create table spent_key (
    org_id       uuid not null references organization (id),
    workflow_id  uuid not null,
    dedupe_key   text collate "C" not null,
    run_id       uuid not null,
    created_at   timestamptz not null,
    expires_at   timestamptz not null,
    primary key (org_id, workflow_id, dedupe_key),
    foreign key (org_id, workflow_id) references workflow (org_id, id)
);
create index spent_key_expires on spent_key (org_id, expires_at);
alter table retention enable row level security;
alter table retention force row level security;
create policy retention_of_org on retention using (org_id = (select app_org())) with check (org_id = (select app_org()));
alter table history enable row level security;
alter table history force row level security;
create policy history_of_org on history using (org_id = (select app_org())) with check (org_id = (select app_org()));
alter table spent_key enable row level security;
alter table spent_key force row level security;
create policy spent_key_of_org on spent_key using (org_id = (select app_org())) with check (org_id = (select app_org()));

-- What went wrong for good and waits for a person's decision: failed runs, and jobs that were given up or cannot do their work.
create table dead_letter (
    org_id       uuid not null references organization (id),
    id           uuid not null,
    -- The same for every occurrence of a fault.
    fingerprint  text collate "C" not null,
    -- 'run', or the kind of a job.
    kind         text collate "C" not null,
    -- The run's id or the job's key: one entry at a time stands for it.
    subject      text collate "C" not null,
    workflow_id  uuid,
    run_id       uuid,
    -- The job that was given up with it.
    job_id       uuid,
    step_id      text collate "C",
    code         text collate "C" not null,
    message      text not null,
    -- How often it went wrong since the entry was made, and when last.
    times        bigint not null,
    created_at   timestamptz not null,
    updated_at   timestamptz not null,
    primary key (org_id, id),
    foreign key (org_id, run_id) references run (org_id, id) on delete cascade
);
create unique index dead_letter_subject on dead_letter (org_id, kind, subject);
create index dead_letter_fault on dead_letter (org_id, fingerprint, id);
create index dead_letter_fault_workflow on dead_letter (org_id, fingerprint, workflow_id, id);
create index dead_letter_workflow on dead_letter (org_id, workflow_id, id);
create index dead_letter_workflow_kind on dead_letter (org_id, workflow_id, kind, id);
create index dead_letter_kind on dead_letter (org_id, kind, id);
create index dead_letter_run on dead_letter (org_id, run_id) where run_id is not null;

-- Resuming or discarding many of them, batch by batch: how far it has come.
create table dead_letter_task (
    org_id         uuid not null references organization (id),
    id             uuid not null,
    action         text collate "C" not null check (action in ('resume', 'discard')),
    -- JSON: which ones, and how.
    request        text not null,
    actor          text collate "C" not null,
    state          text collate "C" not null check (state in ('running', 'done', 'stopped')),
    -- Entries from this one on have been looked at, from the newest down.
    cursor_id      uuid not null,
    seen_count     bigint not null,
    done_count     bigint not null,
    -- Entries that stay, and why the newest of them does.
    skipped_count  bigint not null,
    skipped_why    text,
    created_at     timestamptz not null,
    updated_at     timestamptz not null,
    finished_at    timestamptz,
    primary key (org_id, id)
);
create index dead_letter_task_running on dead_letter_task (org_id) where state = 'running';
create index dead_letter_task_ended on dead_letter_task (org_id, finished_at) where finished_at is not null;
alter table dead_letter enable row level security;
alter table dead_letter force row level security;
create policy dead_letter_of_org on dead_letter using (org_id = (select app_org())) with check (org_id = (select app_org()));
alter table dead_letter_task enable row level security;
alter table dead_letter_task force row level security;
create policy dead_letter_task_of_org on dead_letter_task using (org_id = (select app_org())) with check (org_id = (select app_org()));

-- A schedule whose job is gone gets another: whoever recovers jobs looks for it.
create index schedule_due on schedule (next_tick, org_id, workflow_id, trigger_id) where next_tick is not null;
create policy schedule_jobs on schedule for select using ((select app_scope()) = 'jobs');

-- The queue is counted organization by organization, and no further than a cap.
create index job_future_of_org on job (org_id, lane, run_at) where state = 'future';
create index job_dead_of_org on job (org_id, lane, id) where state = 'dead';

-- Audit entries that have no place in the chain yet. One that has its place stays until a checkpoint covers it: it says that there is
-- something to do for the organization.
create table audit_waiting (
    org_id  uuid not null references organization (id),
    id      uuid not null,
    primary key (org_id, id),
    foreign key (org_id, id) references audit (org_id, id)
);

-- Where an organization's log ends, and the key that signs it.
create table audit_log (
    org_id           uuid not null primary key references organization (id),
    size             bigint not null check (size >= 0),
    last_leaf        bytea not null,
    -- Roots of the tree's full subtrees, largest first, 32 bytes each.
    edge             bytea not null,
    verifier_key     text not null,
    -- The signing key's seed, sealed.
    signing_key      text collate "C" not null,
    checkpoint_size  bigint not null,
    checkpoint_at    timestamptz not null
);

-- Entries at their place. Rows are never changed.
create table audit_entry (
    org_id       uuid not null references organization (id),
    seq          bigint not null check (seq >= 0),
    id           uuid not null,
    -- The canonical bytes that were hashed and signed.
    record       text collate "C" not null,
    leaf         bytea not null,
    key_id       bytea not null,
    signature    bytea not null,
    endorsement  bytea,
    -- Roots of the subtrees that this entry made full, from level 1 up, 32 bytes each.
    completed    bytea not null,
    salt         bytea not null,
    primary key (org_id, seq),
    unique (org_id, id),
    foreign key (org_id, id) references audit (org_id, id)
);

create table audit_checkpoint (
    org_id      uuid not null references organization (id),
    size        bigint not null check (size > 0),
    -- A signed note (C2SP tlog-checkpoint).
    note        text not null,
    created_at  timestamptz not null,
    primary key (org_id, size)
);
alter table audit_waiting enable row level security;
alter table audit_waiting force row level security;
create policy audit_waiting_of_org on audit_waiting using (org_id = (select app_org())) with check (org_id = (select app_org()));
alter table audit_log enable row level security;
alter table audit_log force row level security;
create policy audit_log_of_org on audit_log using (org_id = (select app_org())) with check (org_id = (select app_org()));
alter table audit_entry enable row level security;
alter table audit_entry force row level security;
create policy audit_entry_of_org on audit_entry using (org_id = (select app_org())) with check (org_id = (select app_org()));
alter table audit_checkpoint enable row level security;
alter table audit_checkpoint force row level security;
create policy audit_checkpoint_of_org on audit_checkpoint using (org_id = (select app_org())) with check (org_id = (select app_org()));
-- Whose log there is something to do in. Nothing of an entry is in it.
create policy audit_waiting_jobs on audit_waiting for select using ((select app_scope()) = 'jobs');
