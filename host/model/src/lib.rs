//! The pure heart of Bulkhead: ids, names, limits, manifests, grants, the permission rule, the condition language,
//! templates, workflow definitions and the rules that advance a run.
//!
//! **Forbidden here:** input, output, async, the ambient clock and ambient randomness (both are passed in; the only
//! file that touches them is [`ambient`]). Everything in this crate can be tested with values alone.
//!
//! | question | file |
//! | --- | --- |
//! | who may do it? | [`permission`], and [`role`] for where that comes from |
//! | who is it, and how do they prove it? | [`account`], [`password`], [`session`], [`access_token`], [`link`], [`throttle`], [`mfa`], [`totp`], [`backup_code`], [`passkey`] |
//! | from where may an organization be reached? | [`allow_list`] |
//! | how often may somebody ask? | [`rate`], by [`network`], person, key and organization; [`block`] |
//! | what does a plugin ask for, and what is it granted? | [`manifest`], [`grant`] |
//! | how much may it use, and how did it end? | [`limits`], [`call`] |
//! | is a request what the owner of a key signed? | [`signature`] |
//! | when does a schedule fire? | [`schedule`] |
//! | are two failures the same fault? | [`fault`] |
//! | how long is what has ended kept, and how much of it? | [`retention`], [`quota`] |
//! | what is a workflow, and what happens next in a run? | [`workflow`], [`run`], [`condition`], [`template`] |

pub mod access_token;
pub mod account;
pub mod allow_list;
pub mod ambient;
pub mod backup_code;
pub mod block;
pub mod breaker;
pub mod call;
pub mod client_address;
pub mod condition;
pub mod fault;
pub mod grant;
pub mod id;
pub mod job;
pub mod letter;
pub mod limits;
pub mod link;
pub mod manifest;
pub mod mfa;
pub mod name;
pub mod network;
pub mod passkey;
pub mod password;
pub mod permission;
pub mod quota;
pub mod rate;
pub mod retention;
pub mod role;
pub mod run;
pub mod schedule;
pub mod session;
pub mod signature;
pub mod stuck;
pub mod template;
pub mod throttle;
pub mod time;
pub mod token;
pub mod totp;
pub mod workflow;
