-- Signed requests (host/model/src/signature.rs, docs/decisions/0025): what a key's requests are signed with, where they come from, and
-- how many there were.

-- 'ed25519' or 'hmac-sha256'; null where nothing is signed.
alter table api_key add column signing_algorithm text collate "C";
-- 'always' or 'sensitive': which requests have to be signed.
alter table api_key add column signing_required text collate "C";
-- The public key, of ed25519.
alter table api_key add column signing_key bytea;
-- The shared secret, sealed, of hmac-sha256.
alter table api_key add column signing_secret text collate "C";
-- The networks that the key may be used from, as a JSON list; from everywhere if it is null.
alter table api_key add column networks text;
-- To the minute: it is written down together with what was counted.
alter table api_key add column last_used_at timestamptz;
-- What is under one data key is found, and counted, without reading what is under another.
create index api_key_sealed on api_key (org_id, signing_secret) where signing_secret is not null;

-- Nonces of signatures that are still good, as digests: each is taken once, on all nodes together.
create table signature_nonce (
    org_id       uuid not null references organization (id),
    api_key_id   uuid not null,
    nonce        bytea not null,
    good_until   timestamptz not null,
    primary key (org_id, api_key_id, nonce),
    foreign key (org_id, api_key_id) references api_key (org_id, id)
);
create index signature_nonce_good_until on signature_nonce (org_id, good_until);

alter table signature_nonce enable row level security;
alter table signature_nonce force row level security;
create policy signature_nonce_of_org on signature_nonce using (org_id = (select app_org())) with check (org_id = (select app_org()));

-- Requests by key, which the key was let in with: a row for each day (UTC, since 1970).
create table api_key_usage (
    org_id       uuid not null references organization (id),
    api_key_id   uuid not null,
    day          bigint not null,
    requests     bigint not null check (requests > 0),
    primary key (org_id, api_key_id, day),
    foreign key (org_id, api_key_id) references api_key (org_id, id)
);
alter table api_key_usage enable row level security;
alter table api_key_usage force row level security;
create policy api_key_usage_of_org on api_key_usage using (org_id = (select app_org())) with check (org_id = (select app_org()));
