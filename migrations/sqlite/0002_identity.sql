-- Identity: people, what they prove themselves with, and where they belong. Times are microseconds since the epoch.

-- A person. Of no organization; `member` says where they work.
create table user_account (
    id                   blob not null primary key,
    -- In the one form that a person is found by (host/model/src/account.rs).
    email                text not null unique,
    name                 text not null,
    -- argon2id, keyed with the pepper (host/model/src/password.rs); none until a link was used to choose one.
    password             text,
    password_changed_at  integer,
    email_verified_at    integer,
    state                text not null check (state in ('active', 'disabled')),
    -- Of the platform.
    super_admin          integer not null check (super_admin in (0, 1)),
    -- Rises when everything that was handed out before is to be worth nothing.
    epoch                integer not null,
    -- The first sign-in of all: until then no browser is news.
    signed_in_at         integer,
    created_at           integer not null,
    updated_at           integer not null
) strict;

create table member (
    org_id      blob not null references organization (id),
    user_id     blob not null references user_account (id),
    role        text not null,
    state       text not null check (state in ('active', 'disabled')),
    -- As the person's own: whoever asks for a member's rights cannot look at the person.
    user_state  text not null check (user_state in ('active', 'disabled')),
    created_at  integer not null,
    updated_at  integer not null,
    primary key (org_id, user_id)
) strict;
create index member_user on member (user_id, org_id);

-- A browser that a person signed in with before. Known, not trusted: it counts failures apart and silences alerts.
create table device (
    id          blob not null primary key,
    user_id     blob not null references user_account (id),
    token_hash  blob not null unique,
    agent       text not null,
    created_at  integer not null,
    seen_at     integer not null
) strict;
create index device_user on device (user_id, seen_at);

-- A signed-in browser. A row that is gone is a session that has ended; one that is past its limits is one as well, removed or not.
create table session (
    id          blob not null primary key,
    user_id     blob not null references user_account (id),
    -- SHA-256 of the cookie's token, which changes with every proof of who the person is.
    token_hash  blob not null unique,
    device_id   blob references device (id) on delete set null,
    -- The organization that the person has in front of them.
    active_org  blob,
    -- What was proven, as RFC 8176 names it: 'pwd', 'pwd otp'.
    amr         text not null,
    address     text not null,
    agent       text not null,
    auth_at     integer not null,
    expires_at  integer not null,
    idle_ms     integer not null,
    seen_at     integer not null,
    created_at  integer not null
) strict;
create index session_of_user on session (user_id, id);
create index session_expires on session (expires_at);

-- A link that does one thing once. What is in it besides the id is computed (host/model/src/link.rs).
create table user_link (
    id          blob not null primary key,
    purpose     text not null check (purpose in ('set_up', 'choose_password', 'verify_email')),
    user_id     blob references user_account (id),
    -- The address that it proves.
    email       text,
    -- The person's epoch when it was made: what ended everything else ended it as well.
    epoch       integer,
    created_at  integer not null,
    expires_at  integer not null,
    used_at     integer
) strict;
create index user_link_user on user_link (user_id, purpose);
create index user_link_expires on user_link (expires_at);

-- Failures by whoever and from wherever (host/model/src/throttle.rs). The key is a digest: it tells neither names nor addresses.
create table throttle (
    key       blob not null primary key,
    failures  integer not null,
    last_at   integer not null
) strict;
create index throttle_last on throttle (last_at);

-- Who tried to sign in, and what became of it. Attempts that had to wait are not in it.
create table sign_in_attempt (
    id          blob not null primary key,
    -- Whom it was about, if that is anybody.
    user_id     blob references user_account (id),
    -- As the counter of the name that was given.
    identifier  blob not null,
    method      text not null,
    outcome     text not null check (outcome in ('passed', 'refused')),
    device_id   blob,
    address     text not null,
    agent       text not null,
    created_at  integer not null,
    -- Whether the organizations in which the person works were told of it.
    told        integer not null check (told in (0, 1))
) strict;
create index sign_in_attempt_user on sign_in_attempt (user_id, id);
create index sign_in_attempt_untold on sign_in_attempt (id) where told = 0;

-- Somebody who is to join. What is in the link besides the ids is computed.
create table invitation (
    org_id       blob not null references organization (id),
    id           blob not null,
    email        text not null,
    role         text not null,
    invited_by   text not null,
    -- The link went to the address and to nobody else.
    mailed       integer not null check (mailed in (0, 1)),
    -- Until when the role is given; for ever without one.
    valid_until  integer,
    created_at   integer not null,
    expires_at   integer not null,
    accepted_at  integer,
    revoked_at   integer,
    primary key (org_id, id)
) strict;
create index invitation_email on invitation (org_id, email);

-- Letters that wait to be sent. Their links are made when they are sent.
create table mail (
    id          blob not null primary key,
    recipient   text not null,
    -- JSON (host/model/src/letter.rs).
    letter      text not null,
    state       text not null check (state in ('waiting', 'failed')),
    attempts    integer not null,
    -- When it is tried next, or free again if whoever sends it dies.
    next_at     integer not null,
    error       text,
    created_at  integer not null
) strict;
create index mail_due on mail (next_at, id) where state = 'waiting';

-- Refresh tokens that follow from one another. They end with the session that they came from.
create table token_family (
    id          blob not null primary key,
    user_id     blob not null references user_account (id),
    session_id  blob not null references session (id) on delete cascade,
    -- The person's epoch when it began.
    epoch       integer not null,
    -- What the session had proven then, and when: what it proves later is not the tokens'.
    amr         text not null,
    auth_at     integer not null,
    created_at  integer not null,
    expires_at  integer not null
) strict;
create index token_family_user on token_family (user_id);
create index token_family_session on token_family (session_id);
create index token_family_expires on token_family (expires_at);
-- Every one of them, so that one that is used twice is known.
create table refresh_token (
    token_hash  blob not null primary key,
    family_id   blob not null references token_family (id) on delete cascade,
    created_at  integer not null,
    used_at     integer
) strict;
create index refresh_token_family on refresh_token (family_id);

-- A person's authenticator app: the one that counts, and one that is being set up.
create table totp (
    id           blob not null primary key,
    user_id      blob not null references user_account (id),
    state        text not null check (state in ('shown', 'verified', 'active')),
    -- The session that sets it up, and the only one that can go on; none once it counts.
    session_id   blob,
    -- Sealed (host/store/src/seal.rs).
    secret       blob not null,
    key_version  integer not null,
    -- The last step of time that was used: none at or before it counts.
    last_step    integer not null,
    -- Wrong codes in a row.
    failures     integer not null,
    created_at   integer not null,
    -- When a set-up ends that was not finished.
    expires_at   integer
) strict;
create unique index totp_active on totp (user_id) where state = 'active';
create unique index totp_set_up on totp (user_id) where state <> 'active';

-- One set an authenticator app, which it comes and goes with: codes of a set-up count from when the app does. All of a set has one salt, so
-- that an attempt costs one hash.
create table backup_code (
    totp_id     blob not null references totp (id) on delete cascade,
    position    integer not null,
    hash        text not null,
    created_at  integer not null,
    used_at     integer,
    primary key (totp_id, position)
) strict;

-- Somebody whose password was right, and who has to prove a second factor.
create table sign_in_step (
    id          blob not null primary key,
    user_id     blob not null references user_account (id),
    token_hash  blob not null unique,
    epoch       integer not null,
    device_id   blob,
    created_at  integer not null,
    expires_at  integer not null
) strict;
create index sign_in_step_user on sign_in_step (user_id);
create index sign_in_step_expires on sign_in_step (expires_at);

-- What an organization asks of its members besides a password; without a row, of those who give others rights.
create table sign_in_policy (
    org_id      blob not null references organization (id),
    mfa         text not null check (mfa in ('optional', 'admins', 'all')),
    updated_at  integer not null,
    primary key (org_id)
) strict;

-- Whose key it is; none for those that the operator or another key made. It ends with what its owner was given.
alter table api_key add column user_id blob references user_account (id);
create index api_key_user on api_key (org_id, user_id) where user_id is not null;
-- The key that made it: what is revoked takes along what came of it.
alter table api_key add column made_by blob;
-- While a key's secret is replaced, the one before is good until then.
alter table api_key add column previous_hash blob;
alter table api_key add column previous_until integer;
create index api_key_made_by on api_key (org_id, made_by) where made_by is not null;

-- Roles: who may do what in an organization (host/model/src/role.rs).

-- Rises with each change of roles, assignments and teams: what was worked out under another epoch is worth nothing.
create table policy (
    org_id      blob not null references organization (id),
    epoch       integer not null,
    changed_at  integer not null,
    primary key (org_id)
) strict;

create table team (
    org_id      blob not null references organization (id),
    id          blob not null,
    name        text not null,
    -- What no two teams' names share (letters and digits, in lower case).
    name_key    text not null,
    revision    integer not null,
    created_at  integer not null,
    updated_at  integer not null,
    primary key (org_id, id),
    unique (org_id, name_key)
) strict;

create table team_member (
    org_id      blob not null references organization (id),
    team_id     blob not null,
    user_id     blob not null,
    created_at  integer not null,
    primary key (org_id, team_id, user_id),
    foreign key (org_id, team_id) references team (org_id, id) on delete cascade,
    foreign key (org_id, user_id) references member (org_id, user_id) on delete cascade
) strict;
create index team_member_user on team_member (org_id, user_id, team_id);

-- Roles of the organization's own; the built-in ones are not stored.
create table role (
    org_id       blob not null references organization (id),
    id           blob not null,
    name         text not null,
    name_key     text not null,
    description  text not null,
    -- JSON: names of permissions; names of built-in roles and ids of others.
    permissions  text not null,
    inherits     text not null,
    revision     integer not null,
    created_at   integer not null,
    updated_at   integer not null,
    primary key (org_id, id),
    unique (org_id, name_key)
) strict;

-- A member has a role. One that is over stays until somebody removes it, and counts for nothing.
create table role_assignment (
    org_id       blob not null references organization (id),
    id           blob not null,
    user_id      blob not null,
    built_in     text,
    role_id      blob,
    team_id      blob,
    valid_from   integer,
    valid_until  integer,
    granted_by   text not null,
    reason       text not null,
    created_at   integer not null,
    primary key (org_id, id),
    check ((built_in is null) <> (role_id is null)),
    foreign key (org_id, user_id) references member (org_id, user_id) on delete cascade,
    foreign key (org_id, role_id) references role (org_id, id),
    foreign key (org_id, team_id) references team (org_id, id)
) strict;
create index role_assignment_user on role_assignment (org_id, user_id, id);
create index role_assignment_role on role_assignment (org_id, role_id, id) where role_id is not null;
create index role_assignment_team on role_assignment (org_id, team_id, id) where team_id is not null;
create index role_assignment_built_in on role_assignment (org_id, built_in, user_id) where built_in is not null;

-- Somebody asks for a role for some hours, and somebody else answers.
create table role_request (
    org_id         blob not null references organization (id),
    id             blob not null,
    user_id        blob not null,
    -- The name of a built-in role, or an id.
    role           text not null,
    team_id        blob,
    reason         text not null,
    duration_s     integer not null,
    state          text not null check (state in ('waiting', 'approved', 'refused', 'withdrawn')),
    asked_at       integer not null,
    answered_at    integer,
    answered_by    blob,
    answer         text,
    -- What came of it.
    assignment_id  blob,
    primary key (org_id, id)
) strict;
create index role_request_waiting on role_request (org_id, user_id, asked_at) where state = 'waiting';

