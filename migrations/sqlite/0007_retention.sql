-- What audit entries say that may have to be forgotten, and for how long it is kept.

-- An entry whose payload and salt were disposed of: the number of the entry that says under what.
alter table audit_entry add column disposed_by integer check (disposed_by > seq);
-- Payloads that are kept, by what they are about: those whose time is over are found without reading the others.
create index audit_kept on audit (org_id, action, id) where detail <> 'null';
create index audit_kept_by_target on audit (org_id, target, id) where detail <> 'null';
create index audit_kept_by_actor on audit (org_id, actor, id) where detail <> 'null';
create index audit_by_actor on audit (org_id, actor, id);

-- For how long an organization keeps payloads, by category; without a row as the operator says.
create table audit_retention (
    org_id      blob not null references organization (id),
    policy      text not null,
    revision    integer not null,
    updated_at  integer not null,
    primary key (org_id)
) strict;
