-- How often somebody may ask (host/model/src/rate.rs).

-- Buckets, each as the moment at which it is full again, in microseconds since 1970. The key is a digest: it tells neither names nor
-- addresses. What holds is in memory; this is what a restart begins with.
create table rate_limit (
    key             blob not null primary key,
    at_micros       integer not null,
    taken           integer not null,
    full_at_micros  integer not null
) strict;
