-- How often somebody may ask (host/model/src/rate.rs), and from where (host/model/src/allow_list.rs).

-- Buckets, each as the moment at which it is full again, in microseconds since 1970. The key is a digest: it tells neither names nor
-- addresses. Not logged: a crash of the database may forgive what was asked for, and requests wait for no disk.
create unlogged table rate_limit (
    key             bytea not null primary key,
    -- The database's clock when tokens were last taken, and how many.
    at_micros       bigint not null,
    taken           bigint not null,
    full_at_micros  bigint not null
) with (fillfactor = 50);

alter table rate_limit enable row level security;
alter table rate_limit force row level security;
create policy rate_limit_limits on rate_limit using ((select app_scope()) = 'limits') with check ((select app_scope()) = 'limits');

-- The networks from which an organization may be reached, as a JSON list; from everywhere if it is empty.
create table ip_allow_list (
    org_id      uuid not null references organization (id),
    entries     text not null,
    revision    bigint not null,
    updated_at  timestamptz not null,
    primary key (org_id)
);

alter table ip_allow_list enable row level security;
alter table ip_allow_list force row level security;
create policy ip_allow_list_of_org on ip_allow_list using (org_id = (select app_org())) with check (org_id = (select app_org()));

-- Who is shut out for a while (host/model/src/block.rs): networks, …
create table address_block (
    network    text collate "C" not null primary key,
    level      bigint not null,
    placed_at  timestamptz not null,
    ends_at    timestamptz not null
);
create index address_block_ends on address_block (ends_at);

-- … and API keys.
create table key_block (
    org_id      uuid not null references organization (id),
    api_key_id  uuid not null,
    level       bigint not null,
    placed_at   timestamptz not null,
    ends_at     timestamptz not null,
    primary key (org_id, api_key_id),
    foreign key (org_id, api_key_id) references api_key (org_id, id)
);
create index key_block_ends on key_block (ends_at);

alter table address_block enable row level security;
alter table address_block force row level security;
create policy address_block_limits on address_block using ((select app_scope()) in ('limits', 'admin'))
    with check ((select app_scope()) in ('limits', 'admin'));
alter table key_block enable row level security;
alter table key_block force row level security;
create policy key_block_of_org on key_block using (org_id = (select app_org())) with check (org_id = (select app_org()));
-- Each node knows all of them, so that a request waits for no database.
create policy key_block_limits on key_block for select using ((select app_scope()) = 'limits');
