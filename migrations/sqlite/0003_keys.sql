-- Keys: encryption at rest (host/keys, docs/decisions/0015).

-- An organization's own keys, each wrapped under one of the operator's root keys, which the text names.
create table org_key (
    org_id       blob not null references organization (id),
    version      integer not null check (version > 0),
    state        text not null check (state in ('active', 'decrypt_only', 'retired')),
    -- Empty once the key is retired: then nobody has its bytes.
    wrapped      text not null,
    created_at   integer not null,
    -- When another took its place.
    replaced_at  integer,
    retired_at   integer,
    primary key (org_id, version),
    check ((state = 'retired') = (wrapped = ''))
) strict;
create unique index org_key_active on org_key (org_id) where state = 'active';

-- What seals values ('field') and makes entries of blind indexes ('index'), wrapped under an organization key.
create table data_key (
    org_id           blob not null references organization (id),
    version          integer not null check (version > 0),
    purpose          text not null check (purpose in ('field', 'index')),
    state            text not null check (state in ('active', 'decrypt_only', 'retired')),
    org_key_version  integer not null,
    wrapped          text not null,
    -- Values that it sealed.
    uses             integer not null,
    created_at       integer not null,
    replaced_at      integer,
    retired_at       integer,
    primary key (org_id, version),
    foreign key (org_id, org_key_version) references org_key (org_id, version),
    check ((state = 'retired') = (wrapped = ''))
) strict;
create unique index data_key_active on data_key (org_id, purpose) where state = 'active';

-- A key takes another's place, and what the old one wrapped or sealed follows batch by batch.
create table key_rotation (
    org_id       blob not null references organization (id),
    id           blob not null,
    level        text not null check (level in ('root', 'organization', 'data')),
    state        text not null check (state in ('running', 'done')),
    reason       text not null check (reason in ('asked', 'age', 'uses', 'root')),
    actor        text not null,
    to_key       text not null,
    -- What was wrapped or sealed anew so far, and what is left, as last counted.
    done_count   integer not null,
    left_count   integer not null,
    -- Those of them that do not open with the key that they name.
    broken_count integer not null,
    created_at   integer not null,
    updated_at   integer not null,
    finished_at  integer,
    primary key (org_id, id),
    check ((state = 'done') = (finished_at is not null))
) strict;
create unique index key_rotation_running on key_rotation (org_id, level) where state = 'running';

-- Which root key everything comes from that no key wraps (passwords' pepper, links, backups …): one row, kept by the first start, so that
-- another one in its place is refused and not used.
create table root_check (
    id           integer not null primary key check (id = 1),
    root_id      text not null,
    check_value  text not null,
    created_at   integer not null
) strict;
-- What is under one data key is found, and counted, without reading what is under another.
create index hook_sealed on hook (org_id, ciphertext);
