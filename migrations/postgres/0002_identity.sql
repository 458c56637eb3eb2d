-- Identity: people, what they prove themselves with, and where they belong.

-- A person. Of no organization; `member` says where they work.
create table user_account (
    id                   uuid not null primary key,
    -- In the one form that a person is found by (host/model/src/account.rs).
    email                text collate "C" not null unique,
    name                 text not null,
    -- argon2id, keyed with the pepper (host/model/src/password.rs); none until a link was used to choose one.
    password             text,
    password_changed_at  timestamptz,
    email_verified_at    timestamptz,
    state                text collate "C" not null check (state in ('active', 'disabled')),
    -- Of the platform.
    super_admin          bigint not null check (super_admin in (0, 1)),
    -- Rises when everything that was handed out before is to be worth nothing.
    epoch                bigint not null,
    -- The first sign-in of all: until then no browser is news.
    signed_in_at         timestamptz,
    created_at           timestamptz not null,
    updated_at           timestamptz not null
);

create table member (
    org_id      uuid not null references organization (id),
    user_id     uuid not null references user_account (id),
    role        text collate "C" not null,
    state       text collate "C" not null check (state in ('active', 'disabled')),
    -- As the person's own: whoever asks for a member's rights cannot look at the person.
    user_state  text collate "C" not null check (user_state in ('active', 'disabled')),
    created_at  timestamptz not null,
    updated_at  timestamptz not null,
    primary key (org_id, user_id)
);
create index member_user on member (user_id, org_id);

-- A browser that a person signed in with before. Known, not trusted: it counts failures apart and silences alerts.
create table device (
    id          uuid not null primary key,
    user_id     uuid not null references user_account (id),
    token_hash  bytea not null unique,
    agent       text not null,
    created_at  timestamptz not null,
    seen_at     timestamptz not null
);
create index device_user on device (user_id, seen_at);

-- A signed-in browser. A row that is gone is a session that has ended; one that is past its limits is one as well, removed or not.
create table session (
    id          uuid not null primary key,
    user_id     uuid not null references user_account (id),
    -- SHA-256 of the cookie's token, which changes with every proof of who the person is.
    token_hash  bytea not null unique,
    device_id   uuid references device (id) on delete set null,
    -- The organization that the person has in front of them.
    active_org  uuid,
    -- What was proven, as RFC 8176 names it: 'pwd', 'pwd otp'.
    amr         text not null,
    address     text not null,
    agent       text not null,
    auth_at     timestamptz not null,
    expires_at  timestamptz not null,
    idle_ms     bigint not null,
    seen_at     timestamptz not null,
    created_at  timestamptz not null
);
create index session_of_user on session (user_id, id);
create index session_expires on session (expires_at);

-- A link that does one thing once. What is in it besides the id is computed (host/model/src/link.rs).
create table user_link (
    id          uuid not null primary key,
    purpose     text collate "C" not null check (purpose in ('set_up', 'choose_password', 'verify_email')),
    user_id     uuid references user_account (id),
    -- The address that it proves.
    email       text collate "C",
    -- The person's epoch when it was made: what ended everything else ended it as well.
    epoch       bigint,
    created_at  timestamptz not null,
    expires_at  timestamptz not null,
    used_at     timestamptz
);
create index user_link_user on user_link (user_id, purpose);
create index user_link_expires on user_link (expires_at);

-- Failures by whoever and from wherever (host/model/src/throttle.rs). The key is a digest: it tells neither names nor addresses.
create table throttle (
    key       bytea not null primary key,
    failures  bigint not null,
    last_at   timestamptz not null
);
create index throttle_last on throttle (last_at);

-- Who tried to sign in, and what became of it. Attempts that had to wait are not in it.
create table sign_in_attempt (
    id          uuid not null primary key,
    -- Whom it was about, if that is anybody.
    user_id     uuid references user_account (id),
    -- As the counter of the name that was given.
    identifier  bytea not null,
    method      text collate "C" not null,
    outcome     text collate "C" not null check (outcome in ('passed', 'refused')),
    device_id   uuid,
    address     text not null,
    agent       text not null,
    created_at  timestamptz not null,
    -- Whether the organizations in which the person works were told of it.
    told        bigint not null check (told in (0, 1))
);
create index sign_in_attempt_user on sign_in_attempt (user_id, id);
create index sign_in_attempt_untold on sign_in_attempt (id) where told = 0;

-- Somebody who is to join. What is in the link besides the ids is computed.
create table invitation (
    org_id       uuid not null references organization (id),
    id           uuid not null,
    email        text collate "C" not null,
    role         text collate "C" not null,
    invited_by   text not null,
    -- The link went to the address and to nobody else.
    mailed       bigint not null check (mailed in (0, 1)),
    -- Until when the role is given; for ever without one.
    valid_until  timestamptz,
    created_at   timestamptz not null,
    expires_at   timestamptz not null,
    accepted_at  timestamptz,
    revoked_at   timestamptz,
    primary key (org_id, id)
);
create index invitation_email on invitation (org_id, email);

-- Letters that wait to be sent. Their links are made when they are sent.
create table mail (
    id          uuid not null primary key,
    recipient   text not null,
    -- JSON (host/model/src/letter.rs).
    letter      text not null,
    state       text collate "C" not null check (state in ('waiting', 'failed')),
    attempts    bigint not null,
    -- When it is tried next, or free again if whoever sends it dies.
    next_at     timestamptz not null,
    error       text,
    created_at  timestamptz not null
);
create index mail_due on mail (next_at, id) where state = 'waiting';

-- Refresh tokens that follow from one another. They end with the session that they came from.
create table token_family (
    id          uuid not null primary key,
    user_id     uuid not null references user_account (id),
    session_id  uuid not null references session (id) on delete cascade,
    -- The person's epoch when it began.
    epoch       bigint not null,
    -- What the session had proven then, and when: what it proves later is not the tokens'.
    amr         text not null,
    auth_at     timestamptz not null,
    created_at  timestamptz not null,
    expires_at  timestamptz not null
);
create index token_family_user on token_family (user_id);
create index token_family_session on token_family (session_id);
create index token_family_expires on token_family (expires_at);
-- Every one of them, so that one that is used twice is known.
create table refresh_token (
    token_hash  bytea not null primary key,
    family_id   uuid not null references token_family (id) on delete cascade,
    created_at  timestamptz not null,
    used_at     timestamptz
);
create index refresh_token_family on refresh_token (family_id);

-- A person's authenticator app: the one that counts, and one that is being set up.
create table totp (
    id           uuid not null primary key,
    user_id      uuid not null references user_account (id),
    state        text collate "C" not null check (state in ('shown', 'verified', 'active')),
    -- The session that sets it up, and the only one that can go on; none once it counts.
    session_id   uuid,
    -- Sealed (host/store/src/seal.rs).
    secret       bytea not null,
    key_version  bigint not null,
    -- The last step of time that was used: none at or before it counts.
    last_step    bigint not null,
    -- Wrong codes in a row.
    failures     bigint not null,
    created_at   timestamptz not null,
    -- When a set-up ends that was not finished.
    expires_at   timestamptz
);
create unique index totp_active on totp (user_id) where state = 'active';
create unique index totp_set_up on totp (user_id) where state <> 'active';

-- One set an authenticator app, which it comes and goes with: codes of a set-up count from when the app does. All of a set has one salt, so
-- that an attempt costs one hash.
create table backup_code (
    totp_id     uuid not null references totp (id) on delete cascade,
    position    bigint not null,
    hash        text not null,
    created_at  timestamptz not null,
    used_at     timestamptz,
    primary key (totp_id, position)
);

-- Somebody whose password was right, and who has to prove a second factor.
create table sign_in_step (
    id          uuid not null primary key,
    user_id     uuid not null references user_account (id),
    token_hash  bytea not null unique,
    epoch       bigint not null,
    device_id   uuid,
    created_at  timestamptz not null,
    expires_at  timestamptz not null
);
create index sign_in_step_user on sign_in_step (user_id);
create index sign_in_step_expires on sign_in_step (expires_at);

-- What an organization asks of its members besides a password; without a row, of those who give others rights.
create table sign_in_policy (
    org_id      uuid not null references organization (id),
    mfa         text collate "C" not null check (mfa in ('optional', 'admins', 'all')),
    updated_at  timestamptz not null,
    primary key (org_id)
);

-- Whose key it is; none for those that the operator or another key made. It ends with what its owner was given.
alter table api_key add column user_id uuid references user_account (id);
create index api_key_user on api_key (org_id, user_id) where user_id is not null;
-- The key that made it: what is revoked takes along what came of it.
alter table api_key add column made_by uuid;
-- While a key's secret is replaced, the one before is good until then.
alter table api_key add column previous_hash bytea;
alter table api_key add column previous_until timestamptz;
create index api_key_made_by on api_key (org_id, made_by) where made_by is not null;

alter table user_account enable row level security;
alter table user_account force row level security;
create policy user_account_people on user_account using ((select app_scope()) in ('accounts', 'admin'))
    with check ((select app_scope()) in ('accounts', 'admin'));
alter table device enable row level security;
alter table device force row level security;
create policy device_people on device using ((select app_scope()) in ('accounts', 'admin'))
    with check ((select app_scope()) in ('accounts', 'admin'));
alter table session enable row level security;
alter table session force row level security;
create policy session_people on session using ((select app_scope()) in ('accounts', 'admin'))
    with check ((select app_scope()) in ('accounts', 'admin'));
alter table user_link enable row level security;
alter table user_link force row level security;
create policy user_link_people on user_link using ((select app_scope()) in ('accounts', 'admin'))
    with check ((select app_scope()) in ('accounts', 'admin'));
alter table throttle enable row level security;
alter table throttle force row level security;
create policy throttle_people on throttle using ((select app_scope()) in ('accounts', 'admin'))
    with check ((select app_scope()) in ('accounts', 'admin'));
alter table sign_in_attempt enable row level security;
alter table sign_in_attempt force row level security;
create policy sign_in_attempt_people on sign_in_attempt using ((select app_scope()) in ('accounts', 'admin'))
    with check ((select app_scope()) in ('accounts', 'admin'));
alter table mail enable row level security;
alter table mail force row level security;
create policy mail_people on mail using ((select app_scope()) in ('accounts', 'admin'))
    with check ((select app_scope()) in ('accounts', 'admin'));
alter table token_family enable row level security;
alter table token_family force row level security;
create policy token_family_people on token_family using ((select app_scope()) in ('accounts', 'admin'))
    with check ((select app_scope()) in ('accounts', 'admin'));
alter table refresh_token enable row level security;
alter table refresh_token force row level security;
create policy refresh_token_people on refresh_token using ((select app_scope()) in ('accounts', 'admin'))
    with check ((select app_scope()) in ('accounts', 'admin'));
alter table totp enable row level security;
alter table totp force row level security;
create policy totp_people on totp using ((select app_scope()) in ('accounts', 'admin'))
    with check ((select app_scope()) in ('accounts', 'admin'));
alter table backup_code enable row level security;
alter table backup_code force row level security;
create policy backup_code_people on backup_code using ((select app_scope()) in ('accounts', 'admin'))
    with check ((select app_scope()) in ('accounts', 'admin'));
alter table sign_in_step enable row level security;
alter table sign_in_step force row level security;
create policy sign_in_step_people on sign_in_step using ((select app_scope()) in ('accounts', 'admin'))
    with check ((select app_scope()) in ('accounts', 'admin'));
alter table sign_in_policy enable row level security;
alter table sign_in_policy force row level security;
create policy sign_in_policy_of_org on sign_in_policy using (org_id = (select app_org())) with check (org_id = (select app_org()));
alter table invitation enable row level security;
alter table invitation force row level security;
create policy invitation_of_org on invitation using (org_id = (select app_org())) with check (org_id = (select app_org()));
alter table member enable row level security;
alter table member force row level security;
create policy member_of_org on member using (org_id = (select app_org())) with check (org_id = (select app_org()));
-- Where a person works: looked at when they sign in and at each of their requests.
create policy member_accounts on member for select using ((select app_scope()) = 'accounts');
create policy organization_accounts on organization for select using ((select app_scope()) = 'accounts');

-- Roles: who may do what in an organization (host/model/src/role.rs).

-- Rises with each change of roles, assignments and teams: what was worked out under another epoch is worth nothing.
create table policy (
    org_id      uuid not null references organization (id),
    epoch       bigint not null,
    changed_at  timestamptz not null,
    primary key (org_id)
);

create table team (
    org_id      uuid not null references organization (id),
    id          uuid not null,
    name        text not null,
    -- What no two teams' names share (letters and digits, in lower case).
    name_key    text collate "C" not null,
    revision    bigint not null,
    created_at  timestamptz not null,
    updated_at  timestamptz not null,
    primary key (org_id, id),
    unique (org_id, name_key)
);

create table team_member (
    org_id      uuid not null references organization (id),
    team_id     uuid not null,
    user_id     uuid not null,
    created_at  timestamptz not null,
    primary key (org_id, team_id, user_id),
    foreign key (org_id, team_id) references team (org_id, id) on delete cascade,
    foreign key (org_id, user_id) references member (org_id, user_id) on delete cascade
);
create index team_member_user on team_member (org_id, user_id, team_id);

-- Roles of the organization's own; the built-in ones are not stored.
create table role (
    org_id       uuid not null references organization (id),
    id           uuid not null,
    name         text not null,
    name_key     text collate "C" not null,
    description  text not null,
    -- JSON: names of permissions; names of built-in roles and ids of others.
    permissions  text not null,
    inherits     text not null,
    revision     bigint not null,
    created_at   timestamptz not null,
    updated_at   timestamptz not null,
    primary key (org_id, id),
    unique (org_id, name_key)
);

-- A member has a role. One that is over stays until somebody removes it, and counts for nothing.
create table role_assignment (
    org_id       uuid not null references organization (id),
    id           uuid not null,
    user_id      uuid not null,
    built_in     text collate "C",
    role_id      uuid,
    team_id      uuid,
    valid_from   timestamptz,
    valid_until  timestamptz,
    granted_by   text collate "C" not null,
    reason       text not null,
    created_at   timestamptz not null,
    primary key (org_id, id),
    check ((built_in is null) <> (role_id is null)),
    foreign key (org_id, user_id) references member (org_id, user_id) on delete cascade,
    foreign key (org_id, role_id) references role (org_id, id),
    foreign key (org_id, team_id) references team (org_id, id)
);
create index role_assignment_user on role_assignment (org_id, user_id, id);
create index role_assignment_role on role_assignment (org_id, role_id, id) where role_id is not null;
create index role_assignment_team on role_assignment (org_id, team_id, id) where team_id is not null;
create index role_assignment_built_in on role_assignment (org_id, built_in, user_id) where built_in is not null;

-- Somebody asks for a role for some hours, and somebody else answers.
create table role_request (
    org_id         uuid not null references organization (id),
    id             uuid not null,
    user_id        uuid not null,
    -- The name of a built-in role, or an id.
    role           text collate "C" not null,
    team_id        uuid,
    reason         text not null,
    duration_s     bigint not null,
    state          text collate "C" not null check (state in ('waiting', 'approved', 'refused', 'withdrawn')),
    asked_at       timestamptz not null,
    answered_at    timestamptz,
    answered_by    uuid,
    answer         text,
    -- What came of it.
    assignment_id  uuid,
    primary key (org_id, id)
);
create index role_request_waiting on role_request (org_id, user_id, asked_at) where state = 'waiting';

alter table policy enable row level security;
alter table policy force row level security;
create policy policy_of_org on policy using (org_id = (select app_org())) with check (org_id = (select app_org()));
alter table team enable row level security;
alter table team force row level security;
create policy team_of_org on team using (org_id = (select app_org())) with check (org_id = (select app_org()));
alter table team_member enable row level security;
alter table team_member force row level security;
create policy team_member_of_org on team_member using (org_id = (select app_org())) with check (org_id = (select app_org()));
alter table role enable row level security;
alter table role force row level security;
create policy role_of_org on role using (org_id = (select app_org())) with check (org_id = (select app_org()));
alter table role_assignment enable row level security;
alter table role_assignment force row level security;
create policy role_assignment_of_org on role_assignment using (org_id = (select app_org())) with check (org_id = (select app_org()));
alter table role_request enable row level security;
alter table role_request force row level security;
create policy role_request_of_org on role_request using (org_id = (select app_org())) with check (org_id = (select app_org()));
