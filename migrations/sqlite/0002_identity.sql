-- Identity: who may do what, and who is who.

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
    foreign key (org_id, team_id) references team (org_id, id) on delete cascade
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

