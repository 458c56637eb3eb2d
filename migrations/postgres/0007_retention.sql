-- What audit entries say that may have to be forgotten, and for how long it is kept.

-- An entry whose payload and salt were disposed of: the number of the entry that says under what.
alter table audit_entry add column disposed_by bigint check (disposed_by > seq);
-- Payloads that are kept, by what they are about: those whose time is over are found without reading the others.
create index audit_kept on audit (org_id, action, id) where detail <> 'null';
create index audit_kept_by_target on audit (org_id, target, id) where detail <> 'null';
create index audit_kept_by_actor on audit (org_id, actor, id) where detail <> 'null';
create index audit_by_actor on audit (org_id, actor, id);

-- The application may forget a payload with its salt once an entry says why, and write nothing in its place. The owner is left alone.
create policy audit_entry_forgets on audit_entry as restrictive for update
    using (disposed_by is null or (select has_table_privilege('audit_entry', 'truncate')))
    with check ((length(salt) = 0 and disposed_by is not null) or (select has_table_privilege('audit_entry', 'truncate')));
create policy audit_forgets on audit as restrictive for update
    using (exists (select 1 from audit_entry e where e.org_id = audit.org_id and e.id = audit.id and e.disposed_by is not null)
        or (select has_table_privilege('audit', 'truncate')))
    with check (detail = 'null' or (select has_table_privilege('audit', 'truncate')));

-- For how long an organization keeps payloads, by category; without a row as the operator says.
create table audit_retention (
    org_id      uuid not null references organization (id),
    policy      text collate "C" not null,
    revision    bigint not null,
    updated_at  timestamptz not null,
    primary key (org_id)
);
alter table audit_retention enable row level security;
alter table audit_retention force row level security;
create policy audit_retention_of_org on audit_retention
    using (org_id = (select app_org())) with check (org_id = (select app_org()));
