//! What every operation that changes something leaves in the audit log: each of the OpenAPI document is driven once, and the entries that it
//! left are compared one by one. An operation that is told nowhere stands in a list, with the reason.

mod account;
mod factors;
mod organization;
mod plugins;
mod roles;
mod workflows;

use std::collections::{BTreeMap, BTreeSet};

use bulkhead_audit::taxonomy::{Action, EventType};
use bulkhead_model::id::OrgId;
use bulkhead_model::permission::{SystemReason, SystemScope};
use bulkhead_store::audit::{AuditEntry, AuditFilter};
use bulkhead_store::page::{PAGE_LIMIT_MAX, PageRequest};
use serde_json::Value;

use crate::openapi::operations;
use crate::people::Browser;
use crate::support::{Answer, Ask, Tenant, TestServer, ask};

/// Operations that leave no entry.
const SILENT: &[(&str, &str)] = &[
    ("begin_passkey_second", "a challenge proves nothing: its answer is told, right or wrong"),
    ("begin_passkey_sign_in", "it names nobody, so there is no organization to tell"),
    ("begin_passkey_step_up", "a challenge proves nothing: its answer is told, right or wrong"),
    ("check_access", "it answers a question and changes nothing"),
    ("evaluate_access", "it answers a question and changes nothing"),
    ("evaluate_accesses", "it answers a question and changes nothing"),
    ("preview_retention", "it answers a question and changes nothing"),
    ("receive_delivery", "a delivery is told by its run, in numbers that no log of people's acts should hold"),
    ("refresh_tokens", "it goes on with what `token.issued` told; a token that is used twice is told"),
    ("validate_workflow", "it answers a question and changes nothing"),
];

/// What an entry's detail has to say.
#[derive(Clone, Copy, Debug)]
enum Said {
    /// Of what is new, something at this pointer.
    Made(&'static str),
    /// What it was and what it is, at these pointers: two different things.
    Changed(&'static str, &'static str),
    /// What is gone, at this pointer.
    Removed(&'static str),
    /// Neither before nor after, for this reason.
    Hidden(&'static str),
}

impl Said {
    fn is_in(self, detail: &Value) -> bool {
        let at = |pointer: &str| detail.pointer(pointer);
        match self {
            Self::Made(pointer) | Self::Removed(pointer) => at(pointer).is_some_and(|found| !found.is_null()),
            Self::Changed(before, after) => at(before).is_some() && at(after).is_some() && at(before) != at(after),
            Self::Hidden(why) => !why.is_empty(),
        }
    }
}

/// An entry as it is expected.
#[derive(Debug)]
struct Told<'a> {
    action: EventType,
    actor: &'a str,
    /// An id, or what an id begins with, up to its `_`.
    target: &'a str,
    said: &'a [Said],
}

fn told<'a>(action: EventType, actor: &'a str, target: &'a str, said: &'a [Said]) -> Told<'a> {
    let says = |wanted: fn(&Said) -> bool| said.iter().any(wanted);
    let is_enough = match action.action() {
        Action::Update => !said.is_empty(),
        Action::Delete | Action::Revoke => says(|said| !matches!(said, Said::Made(_))),
        Action::Create
        | Action::Read
        | Action::Grant
        | Action::Execute
        | Action::SignIn
        | Action::Refuse
        | Action::Detect
        | Action::Attest => true,
    };
    assert!(is_enough, "{action}: say what was changed or removed, or why that is not told");
    Told { action, actor, target, said }
}

impl Told<'_> {
    fn is(&self, entry: &AuditEntry) -> bool {
        let is_target = if self.target.ends_with('_') {
            entry.target.starts_with(self.target)
        } else {
            entry.target == self.target
        };
        entry.action == self.action.as_str() && entry.actor == self.actor && is_target
    }
}

/// The document's operations, driven one after another in one organization.
struct Story<'s> {
    server: &'s TestServer,
    /// Whose log is looked at, once there is one.
    org: Option<OrgId>,
    seen: BTreeSet<String>,
    /// By its id: method and path of each operation that changes something.
    operations: BTreeMap<String, (String, String)>,
    /// The operation whose entries are to be looked at next.
    acting: Option<String>,
    done: BTreeSet<String>,
    hushed: BTreeSet<String>,
    /// What no entry may hold.
    secrets: Vec<String>,
}

impl<'s> Story<'s> {
    fn new(server: &'s TestServer) -> Self {
        let mut changing = BTreeMap::new();
        for (method, path, operation) in operations(&bulkhead_http::openapi()) {
            if !["GET", "HEAD", "OPTIONS"].contains(&method.as_str()) {
                changing.insert(text(&operation["operationId"]), (method, path));
            }
        }
        Self {
            server,
            org: None,
            seen: BTreeSet::new(),
            operations: changing,
            acting: None,
            done: BTreeSet::new(),
            hushed: BTreeSet::new(),
            secrets: Vec::new(),
        }
    }

    fn keep_secret(&mut self, secret: &Value) {
        self.secrets.push(text(secret));
    }

    /// Entries that were not looked at yet.
    async fn fresh(&mut self) -> Vec<AuditEntry> {
        let Some(org) = self.org else { return Vec::new() };
        let scope = SystemScope::new(SystemReason::Admin).for_org(org);
        let (mut fresh, mut before) = (Vec::new(), None);
        loop {
            let page = PageRequest { before, limit: PAGE_LIMIT_MAX };
            let read = self.server.store.read(&scope, page, |tx, page| {
                Box::pin(async move { tx.list_audit(&AuditFilter::default(), *page).await })
            });
            let page = read.await.unwrap();
            fresh.extend(page.items.into_iter().filter(|entry| !self.seen.contains(&entry.id.to_string())));
            before = page.next;
            if before.is_none() {
                break;
            }
        }
        self.seen.extend(fresh.iter().map(|entry| entry.id.to_string()));
        fresh
    }

    /// Sends a request, which has to be the operation's. What others left before it is nobody's business here.
    async fn does(&mut self, id: &str, ask: Ask) -> Answer {
        assert_eq!(self.acting, None, "what it left was not looked at");
        let (method, path) = self.operations.get(id).unwrap_or_else(|| panic!("the document has no operation {id}"));
        let asked = ask.line();
        assert!(is_line_of(&asked, method, path), "{asked} is not {id}: {method} {path}");
        self.acting = Some(id.to_owned());
        self.fresh().await;
        let answer = self.server.send(ask).await;
        assert!(answer.status.is_success(), "{id}: {} {}", answer.status, answer.text());
        answer
    }

    /// Says what exactly the last operation left in the log.
    async fn left(&mut self, expected: &[Told<'_>]) {
        let id = self.acting.take().expect("something was done");
        assert!(!expected.is_empty(), "{id}: say so in SILENT");
        let mut fresh = self.fresh().await;
        for told in expected {
            let at = fresh.iter().position(|entry| told.is(entry));
            let at = at.unwrap_or_else(|| panic!("{id} left no {told:?}, but {fresh:#?}"));
            let entry = fresh.swap_remove(at);
            for said in told.said {
                assert!(said.is_in(&entry.detail), "{id}, {}: no {said:?} in {:#}", entry.action, entry.detail);
            }
            let detail = entry.detail.to_string();
            for secret in &self.secrets {
                assert!(!detail.contains(secret.as_str()), "{id}, {}: {detail}", entry.action);
            }
        }
        assert!(fresh.is_empty(), "{id} left more: {fresh:#?}");
        self.done.insert(id);
    }

    /// Says that the last operation left nothing.
    async fn left_nothing(&mut self) {
        let id = self.acting.take().expect("something was done");
        assert!(SILENT.iter().any(|(silent, _)| *silent == id), "{id} is not in SILENT");
        let fresh = self.fresh().await;
        assert!(fresh.is_empty(), "{id} left {fresh:#?}");
        self.hushed.insert(id);
    }

    fn end(self) {
        assert_eq!(self.acting, None, "what it left was not looked at");
        let silent: BTreeSet<String> = SILENT.iter().map(|(id, _)| (*id).to_owned()).collect();
        assert_eq!(self.hushed, silent, "of SILENT each is an operation that leaves nothing");
        assert!(self.done.is_disjoint(&silent), "an operation is silent or it is not");
        let driven: BTreeSet<&String> = self.done.union(&self.hushed).collect();
        let missing: Vec<&String> = self.operations.keys().filter(|id| !driven.contains(id)).collect();
        assert!(missing.is_empty(), "say in tests/http/deeds.rs what these leave in the audit log: {missing:?}");
    }
}

/// Whether a request's line is one of the operation's.
fn is_line_of(line: &str, method: &str, path: &str) -> bool {
    let (asked_method, asked) = line.split_once(' ').unwrap();
    let asked = asked.split('?').next().unwrap();
    let (mut asked, mut declared) = (asked.split('/'), path.split('/'));
    asked_method == method
        && declared.by_ref().all(|part| asked.next().is_some_and(|found| part.starts_with('{') || part == found))
        && asked.next().is_none()
}

#[test]
fn a_line_is_of_one_operation() {
    let one = |line| is_line_of(line, "PUT", "/teams/{team}/members/{user}");
    assert!(one("PUT /teams/a/members/b?x=1"));
    for other in
        ["POST /teams/a/members/b", "PUT /teams/a/members", "PUT /teams/a/members/b/c", "PUT /roles/a/members/b"]
    {
        assert!(!one(other), "{other}");
    }
}

/// Who acts in the story.
struct Cast {
    acme: Tenant,
    /// The id of Acme's key, which holds everything.
    key: String,
    /// Who set the server up, and administers Acme.
    ada: Browser,
    ada_id: String,
}

impl Cast {
    /// A request by the key.
    fn ask(&self, method: &str, rest: &str) -> Ask {
        ask(method, self.acme.at(rest)).key(&self.acme.key)
    }

    async fn tag(&self, server: &TestServer, rest: &str) -> String {
        server.get(&self.acme, rest).await.header("etag").to_owned()
    }

    async fn member(&self, server: &TestServer, email: &str) -> String {
        let listed = server.get(&self.acme, "members").await.json(200);
        let found = listed["items"].as_array().unwrap().iter().find(|member| member["email"] == email);
        text(&found.unwrap_or_else(|| panic!("{email} in {listed}"))["user"])
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("{value} is no text")).to_owned()
}

/// An end that the key may give: it lives for ninety days.
const SOON: &str = "2026-12-01T00:00:00Z";

on_both! {
    async fn every_operation_that_changes_something_is_in_the_log(server: TestServer) {
        let mut story = Story::new(&server);
        let cast = account::set_up(&mut story).await;
        let mut bo = account::join(&mut story, &cast).await;
        account::sessions(&mut story, &mut bo).await;
        account::mail(&mut story, &cast, &mut bo).await;
        factors::app(&mut story, &mut bo).await;
        factors::passkeys(&mut story, &mut bo).await;
        account::end(&mut story, &cast, &bo).await;
        organization::members(&mut story, &cast).await;
        organization::settings(&mut story, &cast).await;
        organization::api_keys(&mut story, &cast).await;
        organization::questions(&mut story, &cast).await;
        roles::roles(&mut story, &cast).await;
        roles::requests(&mut story, &cast).await;
        roles::teams(&mut story, &cast).await;
        plugins::plugins(&mut story, &cast).await;
        let workflow = workflows::workflows(&mut story, &cast).await;
        workflows::runs(&mut story, &cast, &workflow).await;
        workflows::dead_letters(&mut story, &cast, &workflow).await;
        organization::keys(&mut story, &cast).await;
        organization::log(&mut story, &cast).await;
        story.end();
    }
}
