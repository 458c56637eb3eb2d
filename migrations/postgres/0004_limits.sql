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

-- Takes tokens from several buckets at once: of each as many as there are, at least `least` and at most `most`, else none (`taken` is null).
-- The rule is `Share::take` of host/model/src/rate.rs; a test holds them against each other. Asks are [{key, token, full, least, most}], the
-- keys in hexadecimal and each there once. Rows are locked in the order of their keys, so that nodes wait for each other in one direction.
create function take_tokens(asks jsonb) returns table (key bytea, taken bigint, at_micros bigint, full_at_micros bigint)
language plpgsql as $$
#variable_conflict use_column
declare
    ask record;
    now_micros bigint;
begin
    for ask in
        select decode(a.key, 'hex') as bucket, a.token, a."full", a.least, a.most
        from jsonb_to_recordset(asks) as a (key text, token bigint, "full" bigint, least bigint, most bigint)
        order by a.key
    loop
        -- The database's clock is the one that nodes share. It is read before the row is locked: one that waited sees fewer tokens, never more.
        now_micros := cast(extract(epoch from clock_timestamp()) * 1000000 as bigint);
        return query
            insert into rate_limit as held (key, at_micros, taken, full_at_micros)
            values (ask.bucket, now_micros, least(ask.most, ask."full" / ask.token),
                now_micros + ask.token * least(ask.most, ask."full" / ask.token))
            on conflict (key) do update set
                at_micros = now_micros,
                taken = least(ask.most, (now_micros + ask."full"
                    - least(greatest(held.full_at_micros, now_micros), now_micros + ask."full")) / ask.token),
                full_at_micros = least(greatest(held.full_at_micros, now_micros), now_micros + ask."full")
                    + ask.token * least(ask.most, (now_micros + ask."full"
                    - least(greatest(held.full_at_micros, now_micros), now_micros + ask."full")) / ask.token)
            where now_micros + ask."full" - least(greatest(held.full_at_micros, now_micros), now_micros + ask."full")
                >= ask.token * ask.least
            returning held.key, held.taken, held.at_micros, held.full_at_micros;
        if not found then
            -- Too few. A row that says it is full later than an empty one would be was left by another clock or a larger policy.
            return query
                update rate_limit as held set
                    at_micros = now_micros,
                    full_at_micros = least(greatest(held.full_at_micros, now_micros), now_micros + ask."full")
                where held.key = ask.bucket
                returning held.key, cast(null as bigint), held.at_micros, held.full_at_micros;
        end if;
    end loop;
end
$$;

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
