-- Identity: who may do what, and who is who.

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
    foreign key (org_id, team_id) references team (org_id, id) on delete cascade
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
