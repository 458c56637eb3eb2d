-- Signed requests (host/model/src/signature.rs, docs/decisions/0025): what a key's requests are signed with, where they come from, and
-- how many there were.

-- 'ed25519' or 'hmac-sha256'; null where nothing is signed.
alter table api_key add column signing_algorithm text;
-- 'always' or 'sensitive': which requests have to be signed.
alter table api_key add column signing_required text;
-- The public key, of ed25519.
alter table api_key add column signing_key blob;
-- The shared secret, sealed, of hmac-sha256.
alter table api_key add column signing_secret text;
-- The networks that the key may be used from, as a JSON list; from everywhere if it is null.
alter table api_key add column networks text;
-- To the minute: it is written down together with what was counted.
alter table api_key add column last_used_at integer;
-- What is under one data key is found, and counted, without reading what is under another.
create index api_key_sealed on api_key (org_id, signing_secret) where signing_secret is not null;

-- Nonces of signatures that are still good, as digests: each is taken once, on all nodes together.
create table signature_nonce (
    org_id       blob not null references organization (id),
    api_key_id   blob not null,
    nonce        blob not null,
    good_until   integer not null,
    primary key (org_id, api_key_id, nonce),
    foreign key (org_id, api_key_id) references api_key (org_id, id)
) strict;
create index signature_nonce_good_until on signature_nonce (org_id, good_until);

-- Requests by key, which the key was let in with: a row for each day (UTC, since 1970).
create table api_key_usage (
    org_id       blob not null references organization (id),
    api_key_id   blob not null,
    day          integer not null,
    requests     integer not null check (requests > 0),
    primary key (org_id, api_key_id, day),
    foreign key (org_id, api_key_id) references api_key (org_id, id)
) strict;
