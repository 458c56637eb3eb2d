-- Keys: encryption at rest (host/keys, docs/decisions/0015).

-- An organization's own keys, each wrapped under one of the operator's root keys, which the text names.
create table org_key (
    org_id       uuid not null references organization (id),
    version      bigint not null check (version > 0),
    state        text collate "C" not null check (state in ('active', 'decrypt_only', 'retired')),
    -- Empty once the key is retired: then nobody has its bytes.
    wrapped      text collate "C" not null,
    created_at   timestamptz not null,
    -- When another took its place.
    replaced_at  timestamptz,
    retired_at   timestamptz,
    primary key (org_id, version),
    check ((state = 'retired') = (wrapped = ''))
);
create unique index org_key_active on org_key (org_id) where state = 'active';

-- What seals values ('field') and makes entries of blind indexes ('index'), wrapped under an organization key.
create table data_key (
    org_id           uuid not null references organization (id),
    version          bigint not null check (version > 0),
    purpose          text collate "C" not null check (purpose in ('field', 'index')),
    state            text collate "C" not null check (state in ('active', 'decrypt_only', 'retired')),
    org_key_version  bigint not null,
    wrapped          text collate "C" not null,
    -- Values that it sealed.
    uses             bigint not null,
    created_at       timestamptz not null,
    replaced_at      timestamptz,
    retired_at       timestamptz,
    primary key (org_id, version),
    foreign key (org_id, org_key_version) references org_key (org_id, version),
    check ((state = 'retired') = (wrapped = ''))
);
create unique index data_key_active on data_key (org_id, purpose) where state = 'active';

-- A key takes another's place, and what the old one wrapped or sealed follows batch by batch.
create table key_rotation (
    org_id       uuid not null references organization (id),
    id           uuid not null,
    level        text collate "C" not null check (level in ('root', 'organization', 'data')),
    state        text collate "C" not null check (state in ('running', 'done')),
    reason       text collate "C" not null check (reason in ('asked', 'age', 'uses', 'root')),
    actor        text collate "C" not null,
    to_key       text collate "C" not null,
    -- What was wrapped or sealed anew so far, and what is left, as last counted.
    done_count   bigint not null,
    left_count   bigint not null,
    -- Those of them that do not open with the key that they name.
    broken_count bigint not null,
    created_at   timestamptz not null,
    updated_at   timestamptz not null,
    finished_at  timestamptz,
    primary key (org_id, id),
    check ((state = 'done') = (finished_at is not null))
);
create unique index key_rotation_running on key_rotation (org_id, level) where state = 'running';

alter table org_key enable row level security;
alter table org_key force row level security;
create policy org_key_of_org on org_key using (org_id = (select app_org())) with check (org_id = (select app_org()));
alter table data_key enable row level security;
alter table data_key force row level security;
create policy data_key_of_org on data_key using (org_id = (select app_org())) with check (org_id = (select app_org()));
alter table key_rotation enable row level security;
alter table key_rotation force row level security;
create policy key_rotation_of_org on key_rotation using (org_id = (select app_org())) with check (org_id = (select app_org()));
-- Whose keys have something to be done, and which root keys are still needed. Wrapped keys are worth nothing without the root keys.
create policy org_key_jobs on org_key for select using ((select app_scope()) = 'jobs');
create policy data_key_jobs on data_key for select using ((select app_scope()) = 'jobs');
create policy org_key_admin on org_key for select using ((select app_scope()) = 'admin');

-- Which root key everything comes from that no key wraps (passwords' pepper, links, backups …): one row, kept by the first start, so that
-- another one in its place is refused and not used.
create table root_check (
    id           bigint not null primary key check (id = 1),
    root_id      text collate "C" not null,
    check_value  text collate "C" not null,
    created_at   timestamptz not null
);
alter table root_check enable row level security;
alter table root_check force row level security;
create policy root_check_admin on root_check using ((select app_scope()) = 'admin') with check ((select app_scope()) = 'admin');
-- What is under one data key is found, and counted, without reading what is under another.
create index hook_sealed on hook (org_id, ciphertext);
