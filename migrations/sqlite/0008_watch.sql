-- What is counted together of tries to sign in: names from one network (host/model/src/block.rs).

-- The network of a password's try by nobody known, or of one that passed; none once it was counted.
alter table sign_in_attempt add column network text;
create index sign_in_attempt_network on sign_in_attempt (network, id) where network is not null;
