-- What belongs together: tries to sign in with many names from one network (host/model/src/block.rs), and what one request did.

-- The network of a password's try by nobody known, or of one that passed; none once it was counted.
alter table sign_in_attempt add column network text collate "C";
create index sign_in_attempt_network on sign_in_attempt (network, id) where network is not null;

-- The request that an entry was written in: by the id that its answer has, and its lines in the server's log.
alter table audit add column correlation text collate "C";
create index audit_by_correlation on audit (org_id, correlation, id) where correlation is not null;
