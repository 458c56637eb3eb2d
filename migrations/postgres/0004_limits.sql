-- How often somebody may ask (host/model/src/rate.rs).

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
