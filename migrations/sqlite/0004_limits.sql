-- How often somebody may ask (host/model/src/rate.rs), and from where (host/model/src/allow_list.rs).

-- Buckets, each as the moment at which it is full again, in microseconds since 1970. The key is a digest: it tells neither names nor
-- addresses. What holds is in memory; this is what a restart begins with.
create table rate_limit (
    key             blob not null primary key,
    at_micros       integer not null,
    taken           integer not null,
    full_at_micros  integer not null
) strict;

-- The networks from which an organization may be reached, as a JSON list; from everywhere if it is empty.
create table ip_allow_list (
    org_id      blob not null references organization (id),
    entries     text not null,
    revision    integer not null,
    updated_at  integer not null,
    primary key (org_id)
) strict;

-- Who is shut out for a while (host/model/src/block.rs): networks, …
create table address_block (
    network    text not null primary key,
    level      integer not null,
    placed_at  integer not null,
    ends_at    integer not null
) strict;
create index address_block_ends on address_block (ends_at);

-- … and API keys.
create table key_block (
    org_id      blob not null references organization (id),
    api_key_id  blob not null,
    level       integer not null,
    placed_at   integer not null,
    ends_at     integer not null,
    primary key (org_id, api_key_id),
    foreign key (org_id, api_key_id) references api_key (org_id, id)
) strict;
create index key_block_ends on key_block (ends_at);
