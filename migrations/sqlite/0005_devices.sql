-- What people prove themselves with besides a password: passkeys, and browsers that stand for a second factor.

-- Until when the browser stands for a second factor, where an organization takes it for one.
alter table device add column trusted_until integer;

-- Which second factors an organization takes (host/model/src/mfa.rs), and whether a trusted browser stands for one.
alter table sign_in_policy add column methods text not null default 'app passkey';
alter table sign_in_policy add column trusts_devices integer not null default 0 check (trusts_devices in (0, 1));

-- A link in a letter that tells of something: it ends everything of the account, once. What is in it besides the id is computed.
create table revoke_link (
    id          blob not null primary key,
    user_id     blob not null references user_account (id),
    -- Where the letter went.
    email       text not null,
    -- What was added to the account from then on is taken away.
    since       integer not null,
    expires_at  integer not null
) strict;
create index revoke_link_user on revoke_link (user_id);
create index revoke_link_expires on revoke_link (expires_at);

-- Whether mail chose the password: then a code by mail is no second factor, but the first one again.
alter table user_account add column password_by_mail integer not null default 0 check (password_by_mail in (0, 1));

-- The code that was mailed for a sign-in that waits, and goes with it.
create table email_code (
    step_id     blob not null primary key references sign_in_step (id) on delete cascade,
    -- argon2id, as a backup code's.
    hash        text not null,
    failures    integer not null,
    created_at  integer not null
) strict;

-- A person's passkey. Nothing of it is secret: it proves who answers, and makes no answer.
create table passkey (
    id             blob not null primary key,
    user_id        blob not null references user_account (id),
    -- What authenticators know the person by: random, and the same for all of their passkeys.
    handle         blob not null,
    credential_id  blob not null unique,
    name           text not null,
    -- JSON of the library that judges answers: public key, counter, flags.
    credential     text not null,
    created_at     integer not null,
    used_at        integer
) strict;
create index passkey_user on passkey (user_id, id);

-- A challenge that waits for an answer, which has to come with the cookie of this hash: a session's, or a sign-in's. It goes with the first
-- answer, whatever that is worth.
create table passkey_ceremony (
    token_hash  blob not null,
    purpose     text not null check (purpose in ('register', 'sign_in', 'second_factor', 'step_up')),
    -- Who has to answer; none where the passkey says who it is.
    user_id     blob references user_account (id),
    handle      blob,
    state       text not null,
    created_at  integer not null,
    expires_at  integer not null,
    primary key (token_hash, purpose)
) strict;
create index passkey_ceremony_user on passkey_ceremony (user_id);
create index passkey_ceremony_expires on passkey_ceremony (expires_at);
