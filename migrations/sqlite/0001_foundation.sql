-- Foundation: organizations, keys, plugins, workflows, runs, jobs, audit. Times are microseconds since the epoch.

create table organization (
    id          blob not null primary key,
    slug        text not null unique,
    name        text not null,
    created_at  integer not null,
    -- Its share of the workers beside others with work, and how many of its jobs of a lane may be held at once.
    queue_weight  integer not null default 1 check (queue_weight between 1 and 100),
    jobs_max      integer not null default 64 check (jobs_max between 1 and 10000),
    -- What it may hold at most (host/model/src/quota.rs).
    active_workflows_max  integer not null default 1000,
    payload_bytes_max     integer not null default 1048576,
    history_bytes_max     integer not null default 10737418240,
    log_bytes_max         integer not null default 1048576,
    plugin_versions_max   integer not null default 1000,
    plugin_bytes_max      integer not null default 2147483648
) strict;

create table api_key (
    org_id       blob not null references organization (id),
    id           blob not null,
    name         text not null,
    secret_hash  blob not null,
    permissions  text not null,
    created_at   integer not null,
    expires_at   integer,
    revoked_at   integer,
    primary key (org_id, id)
) strict;

-- The bytes of a package, by their SHA-256.
create table artifact (
    org_id      blob not null references organization (id),
    digest      blob not null,
    package     blob not null,
    created_at  integer not null,
    primary key (org_id, digest)
) strict;

-- A plugin version; immutable.
create table plugin (
    org_id      blob not null references organization (id),
    id          blob not null,
    name        text not null,
    version     text not null,
    digest      blob not null,
    manifest    text not null,
    size_bytes  integer not null,
    created_at  integer not null,
    -- Taken out of use: what is left names it in the history, and keeps its version from meaning other bytes.
    deleted_at  integer,
    primary key (org_id, id),
    unique (org_id, name, version),
    foreign key (org_id, digest) references artifact (org_id, digest)
) strict;

-- grant_version rises with every change of grants, settings, secrets, version or state.
create table installation (
    org_id         blob not null references organization (id),
    id             blob not null,
    plugin_id      blob not null,
    state          text not null check (state in ('enabled', 'disabled', 'uninstalled')),
    settings       text not null,
    grants         text not null,
    grant_version  integer not null,
    created_at     integer not null,
    updated_at     integer not null,
    primary key (org_id, id),
    foreign key (org_id, plugin_id) references plugin (org_id, id)
) strict;
create index installation_present on installation (org_id, plugin_id) where state <> 'uninstalled';

-- Every set of grants that an installation ever had.
create table installation_grant (
    org_id           blob not null references organization (id),
    installation_id  blob not null,
    version          integer not null,
    grants           text not null,
    actor            text not null,
    created_at       integer not null,
    primary key (org_id, installation_id, version),
    foreign key (org_id, installation_id) references installation (org_id, id)
) strict;

-- Sealed (host/keys): bound to this row.
create table secret (
    org_id           blob not null references organization (id),
    id               blob not null,
    installation_id  blob not null,
    name             text not null,
    ciphertext       text not null,
    created_at       integer not null,
    updated_at       integer not null,
    primary key (org_id, id),
    unique (org_id, installation_id, name),
    foreign key (org_id, installation_id) references installation (org_id, id)
) strict;

create table workflow (
    org_id           blob not null references organization (id),
    id               blob not null,
    name             text not null,
    state            text not null check (state in ('inactive', 'active')),
    current_version  integer not null,
    revision         integer not null,
    created_at       integer not null,
    updated_at       integer not null,
    primary key (org_id, id),
    unique (org_id, name)
) strict;
create index workflow_active on workflow (org_id) where state = 'active';

create table workflow_version (
    org_id       blob not null references organization (id),
    workflow_id  blob not null,
    version      integer not null,
    definition   text not null,
    summary      text not null,
    author       text not null,
    created_at   integer not null,
    primary key (org_id, workflow_id, version),
    foreign key (org_id, workflow_id) references workflow (org_id, id)
) strict;

-- Webhook addresses. A rotated one lives on until expires_at.
create table hook (
    org_id       blob not null references organization (id),
    id           blob not null,
    workflow_id  blob not null,
    trigger_id   text not null,
    secret_hash  blob not null,
    -- The whole address, sealed like a secret, so that those who may manage the workflow can read it again.
    ciphertext   text not null,
    created_at   integer not null,
    expires_at   integer,
    primary key (org_id, id),
    foreign key (org_id, workflow_id) references workflow (org_id, id)
) strict;
create index hook_by_workflow on hook (org_id, workflow_id, trigger_id);

-- One row per run: where it stands now.
create table run (
    org_id         blob not null,
    id             blob not null,
    workflow_id    blob not null,
    version        integer not null,
    status         text not null check (status in ('queued', 'running', 'waiting', 'paused', 'succeeded', 'failed', 'cancelled')),
    trigger_kind   text not null,
    trigger_data   text not null,
    state          text not null,
    generation     integer not null,
    output         text,
    error          text,
    dedupe_key     text,
    log_seq        integer not null,
    waiting_until  integer,
    created_at     integer not null,
    updated_at     integer not null,
    finished_at    integer,
    -- What its trigger, its steps, its log and its calls take up, raised with each commit; and the logs of its calls alone.
    held_bytes     integer not null default 0,
    log_bytes      integer not null default 0,
    -- Of a run that ended: what it takes up in all.
    history_bytes  integer not null default 0,
    -- It is on the list of dead letters.
    dead_letter    integer not null default 0 check (dead_letter in (0, 1)),
    -- The job that removes has begun with it.
    removing       integer not null default 0 check (removing in (0, 1)),
    primary key (org_id, id),
    foreign key (org_id, workflow_id, version) references workflow_version (org_id, workflow_id, version)
) strict;
create unique index run_dedupe on run (org_id, workflow_id, dedupe_key) where dedupe_key is not null;
create index run_by_workflow on run (org_id, workflow_id, id);
create index run_by_workflow_status on run (org_id, workflow_id, status, id);
create index run_by_status on run (org_id, status, id);
-- What has ended, oldest first, and what it takes up: read without the rows.
create index run_ended on run (org_id, status, dead_letter, finished_at, id, history_bytes) where finished_at is not null;
-- Of which the job that removes has taken a part: it goes on with these.
create index run_removing on run (org_id, id) where removing = 1;
-- What runs hold that sleep: read without the rows.
create index run_sleeping on run (org_id, held_bytes) where status = 'waiting';

-- What happened in a run, in its own order.
create table run_event (
    org_id      blob not null,
    run_id      blob not null,
    seq         integer not null,
    kind        text not null,
    detail      text not null,
    created_at  integer not null,
    primary key (org_id, run_id, seq),
    foreign key (org_id, run_id) references run (org_id, id)
) strict, without rowid;

create table step (
    org_id       blob not null,
    run_id       blob not null,
    step_id      text not null,
    iteration    integer not null,
    -- The order of first touch in the run.
    position     integer not null,
    status       text not null check (status in ('pending', 'running', 'waiting', 'succeeded', 'failed', 'skipped', 'cancelled')),
    outcome      text,
    attempts     integer not null,
    input        text,
    output       text,
    error        text,
    usage        text,
    call_id      blob,
    started_at   integer,
    finished_at  integer,
    primary key (org_id, run_id, step_id, iteration),
    foreign key (org_id, run_id) references run (org_id, id)
) strict, without rowid;

create table call (
    org_id           blob not null,
    id               blob not null,
    installation_id  blob not null,
    plugin_id        blob not null,
    run_id           blob,
    step_id          text,
    attempt          integer not null,
    contribution     text not null,
    grant_version    integer not null,
    outcome          text not null,
    input            text not null,
    output           text,
    error            text,
    usage            text not null,
    limits           text not null,
    log              text not null,
    egress           text not null,
    refusals         text not null,
    created_at       integer not null,
    primary key (org_id, id),
    foreign key (org_id, installation_id) references installation (org_id, id),
    foreign key (org_id, plugin_id) references plugin (org_id, id)
) strict;
create index call_by_installation on call (org_id, installation_id, id);
create index call_by_outcome on call (org_id, installation_id, outcome, id);
create index call_by_run on call (org_id, run_id, id) where run_id is not null;
create index call_by_hand on call (org_id, id) where run_id is null;

-- Facts that leave a transaction for others to act on.
create table event (
    org_id      blob not null references organization (id),
    id          blob not null,
    kind        text not null,
    subject     text not null,
    detail      text not null,
    created_at  integer not null,
    primary key (org_id, id)
) strict, without rowid;
create index event_by_kind on event (org_id, kind, id);

create table audit (
    org_id      blob not null references organization (id),
    id          blob not null,
    action      text not null,
    target      text not null,
    actor       text not null,
    detail      text not null,
    created_at  integer not null,
    primary key (org_id, id)
) strict;
create index audit_by_action on audit (org_id, action, id);
create index audit_by_target on audit (org_id, target, id);
create index audit_by_target_action on audit (org_id, target, action, id);

-- Serving processes. On PostgreSQL a row whose expires_at has passed belongs to a dead one.
create table worker (
    id                  blob not null primary key,
    name                text not null,
    -- The binary's, and the last migration that it knows.
    version             text not null,
    schema_version      integer not null,
    state               text not null check (state in ('serving', 'draining')),
    -- How far the machine's own clock is ahead of the database's, in microseconds.
    clock_ahead_micros  integer not null,
    -- How many jobs of each lane it carries out at once.
    slots_system        integer not null default 0,
    slots_interactive   integer not null default 0,
    slots_bulk          integer not null default 0,
    -- The root keys that it knows, with where each stands (`id=standing`, one behind another).
    roots               text not null default '',
    started_at          integer not null,
    expires_at          integer not null
) strict;

-- Written by readiness checks: whether writes succeed.
create table probe (
    id          integer not null primary key check (id = 1),
    written_at  integer not null
) strict;

-- The durable queue. Only 'ready' rows are in the claim path, found organization by organization; 'future' ones are promoted when
-- their time comes, 'blocked' ones when a job of their group ends, 'paused' ones when the breaker of their workflow lets them go.
create table job (
    org_id        blob not null references organization (id),
    id            blob not null,
    kind          text not null,
    lane          text not null check (lane in ('system', 'interactive', 'bulk')),
    state         text not null check (state in ('future', 'ready', 'blocked', 'paused', 'leased', 'dead')),
    payload       text not null,
    priority      integer not null,
    run_at        integer not null,
    -- Jobs of one group (a workflow, or one of its keys) of which at most group_limit are held at once.
    group_key     text,
    group_limit   integer,
    -- Whose open breaker it waits for while it is 'paused': a workflow and its version.
    held_for      text,
    dedupe_key    text,
    attempt       integer not null,
    attempts_max  integer not null,
    fence         integer not null,
    worker_id     blob,
    -- When the attempt counts as stuck, by a monotonic clock of the serving process.
    deadline_at   integer,
    -- Enqueued again while a worker held it: it begins anew then.
    rerun_at      integer,
    error         text,
    created_at    integer not null,
    updated_at    integer not null,
    primary key (org_id, id),
    check ((group_key is null) = (group_limit is null)),
    check (state <> 'blocked' or group_key is not null),
    check ((state = 'paused') = (held_for is not null)),
    check ((state = 'leased') = (worker_id is not null and deadline_at is not null))
) strict;
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

-- Where each schedule trigger of a workflow stands. Its job ('fire_schedule') only wakes up; what is due is decided here.
create table schedule (
    org_id           blob not null references organization (id),
    workflow_id      blob not null,
    trigger_id       text not null,
    -- Time zone and cron expression: while they stay the same, a new version goes on from next_tick.
    rule             text not null,
    -- The first tick that is not settled; null while the workflow is inactive.
    next_tick        integer,
    -- The newest tick that was settled, by a run or without: no tick up to it fires again.
    last_tick        integer,
    last_fired_at    integer,
    last_run_id      blob,
    fired_count      integer not null,
    late_count       integer not null,
    missed_count     integer not null,
    unmatched_count  integer not null,
    updated_at       integer not null,
    primary key (org_id, workflow_id, trigger_id),
    foreign key (org_id, workflow_id) references workflow (org_id, id)
) strict;

-- Breakers of workflows' versions: failures in a row, and whether new runs wait because of them. No row: nothing failed.
create table breaker (
    org_id        blob not null references organization (id),
    workflow_id   blob not null,
    version       integer not null,
    state         text not null check (state in ('closed', 'open', 'probing')),
    -- What the failures in a row have in common, how many they are, and when the first of them happened.
    fingerprint   text,
    failures      integer not null,
    since_at      integer not null,
    opened_at     integer,
    -- When a run may be let go to see whether it goes better; while one is under way, when another may.
    until_at      integer,
    probe_run_id  blob,
    probes        integer not null,
    error         text,
    updated_at    integer not null,
    primary key (org_id, workflow_id, version),
    foreign key (org_id, workflow_id, version) references workflow_version (org_id, workflow_id, version),
    check ((state = 'closed') = (opened_at is null and until_at is null)),
    check ((state = 'probing') = (probe_run_id is not null))
) strict;
create index breaker_open on breaker (org_id, workflow_id, version) where state <> 'closed';

-- How long an organization keeps what has ended; without a row as the platform's default says.
create table retention (
    org_id      blob not null references organization (id),
    policy      text not null,
    revision    integer not null,
    updated_at  integer not null,
    primary key (org_id)
) strict;

-- What has ended and is still kept, as the organization's 'prune_history' job last counted it; and what that job removed last. Only
-- the job writes here, so that no run's commit waits for another's; but for `retried`, which each retry raises.
create table history (
    org_id            blob not null references organization (id),
    runs              integer not null,
    bytes             integer not null,
    -- Runs that ended up to here, and calls by hand up to here, are counted.
    runs_counted_to   integer not null,
    calls_counted_to  blob not null,
    recounted_at      integer not null,
    -- Runs that were begun again so far, and how many of them the last count from the beginning knew of.
    retried           integer not null default 0,
    retried_counted   integer not null default 0,
    looked_at         integer not null,
    -- Since when the quota is used up and nothing is left that may go.
    full_since        integer,
    -- The last pass that removed something; not ended: it goes on.
    pass_began_at     integer,
    pass_ended_at     integer,
    pass_runs         integer not null,
    pass_calls        integer not null,
    pass_events       integer not null,
    pass_bytes        integer not null,
    -- … of these runs and calls, those that went before their time, for the quota's sake.
    pass_evicted      integer not null,
    primary key (org_id)
) strict;

-- Keys that made a start safe to repeat, of runs that are removed before the key may be forgotten.
create table spent_key (
    org_id       blob not null references organization (id),
    workflow_id  blob not null,
    dedupe_key   text not null,
    run_id       blob not null,
    created_at   integer not null,
    expires_at   integer not null,
    primary key (org_id, workflow_id, dedupe_key),
    foreign key (org_id, workflow_id) references workflow (org_id, id)
) strict;
create index spent_key_expires on spent_key (org_id, expires_at);

-- What went wrong for good and waits for a person's decision: failed runs, and jobs that were given up or cannot do their work.
create table dead_letter (
    org_id       blob not null references organization (id),
    id           blob not null,
    -- The same for every occurrence of a fault.
    fingerprint  text not null,
    -- 'run', or the kind of a job.
    kind         text not null,
    -- The run's id or the job's key: one entry at a time stands for it.
    subject      text not null,
    workflow_id  blob,
    run_id       blob,
    -- The job that was given up with it.
    job_id       blob,
    step_id      text,
    code         text not null,
    message      text not null,
    -- How often it went wrong since the entry was made, and when last.
    times        integer not null,
    created_at   integer not null,
    updated_at   integer not null,
    primary key (org_id, id),
    foreign key (org_id, run_id) references run (org_id, id) on delete cascade
) strict;
create unique index dead_letter_subject on dead_letter (org_id, kind, subject);
create index dead_letter_fault on dead_letter (org_id, fingerprint, id);
create index dead_letter_fault_workflow on dead_letter (org_id, fingerprint, workflow_id, id);
create index dead_letter_workflow on dead_letter (org_id, workflow_id, id);
create index dead_letter_workflow_kind on dead_letter (org_id, workflow_id, kind, id);
create index dead_letter_kind on dead_letter (org_id, kind, id);
create index dead_letter_run on dead_letter (org_id, run_id) where run_id is not null;

-- Resuming or discarding many of them, batch by batch: how far it has come.
create table dead_letter_task (
    org_id         blob not null references organization (id),
    id             blob not null,
    action         text not null check (action in ('resume', 'discard')),
    -- JSON: which ones, and how.
    request        text not null,
    actor          text not null,
    state          text not null check (state in ('running', 'done', 'stopped')),
    -- Entries from this one on have been looked at, from the newest down.
    cursor_id      blob not null,
    seen_count     integer not null,
    done_count     integer not null,
    -- Entries that stay, and why the newest of them does.
    skipped_count  integer not null,
    skipped_why    text,
    created_at     integer not null,
    updated_at     integer not null,
    finished_at    integer,
    primary key (org_id, id)
) strict;
create index dead_letter_task_running on dead_letter_task (org_id) where state = 'running';
create index dead_letter_task_ended on dead_letter_task (org_id, finished_at) where finished_at is not null;

-- A schedule whose job is gone gets another: whoever recovers jobs looks for it.
create index schedule_due on schedule (next_tick, org_id, workflow_id, trigger_id) where next_tick is not null;

-- The queue is counted organization by organization, and no further than a cap.
create index job_future_of_org on job (org_id, lane, run_at) where state = 'future';
create index job_dead_of_org on job (org_id, lane, id) where state = 'dead';

-- Audit entries that have no place in the chain yet. One that has its place stays until a checkpoint covers it: it says that there is
-- something to do for the organization.
create table audit_waiting (
    org_id  blob not null references organization (id),
    id      blob not null,
    primary key (org_id, id),
    foreign key (org_id, id) references audit (org_id, id)
) strict, without rowid;

-- Where an organization's log ends, and the key that signs it.
create table audit_log (
    org_id           blob not null primary key references organization (id),
    size             integer not null check (size >= 0),
    last_leaf        blob not null,
    -- Roots of the tree's full subtrees, largest first, 32 bytes each.
    edge             blob not null,
    verifier_key     text not null,
    -- The signing key's seed, sealed.
    signing_key      text not null,
    checkpoint_size  integer not null,
    checkpoint_at    integer not null
) strict;

-- Entries at their place. Rows are never changed.
create table audit_entry (
    org_id       blob not null references organization (id),
    seq          integer not null check (seq >= 0),
    id           blob not null,
    -- The canonical bytes that were hashed and signed.
    record       text not null,
    leaf         blob not null,
    key_id       blob not null,
    signature    blob not null,
    endorsement  blob,
    -- Roots of the subtrees that this entry made full, from level 1 up, 32 bytes each.
    completed    blob not null,
    salt         blob not null,
    primary key (org_id, seq),
    unique (org_id, id),
    foreign key (org_id, id) references audit (org_id, id)
) strict;

create table audit_checkpoint (
    org_id      blob not null references organization (id),
    size        integer not null check (size > 0),
    -- A signed note (C2SP tlog-checkpoint).
    note        text not null,
    created_at  integer not null,
    primary key (org_id, size)
) strict;
