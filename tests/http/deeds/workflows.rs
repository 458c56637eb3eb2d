//! What is done to workflows, to runs, and to what became of failed ones. No worker runs: a run waits until somebody ends it.

use bulkhead_audit::taxonomy::EventType;
use bulkhead_model::id::WorkflowId;
use bulkhead_model::permission::{SystemReason, SystemScope};
use serde_json::json;

use super::Said::{Changed, Hidden, Made, Removed};
use super::{Cast, Story, text, told};
use crate::support::{PUBLIC_URL, ask, stops_at_once};

pub(super) async fn workflows(story: &mut Story<'_>, cast: &Cast) -> String {
    let server = story.server;
    let definition = json!({ "definition": stops_at_once("Deeds") });
    story.does("validate_workflow", cast.ask("POST", "workflows/validate").json(&definition)).await;
    story.left_nothing().await;
    let made = story.does("create_workflow", cast.ask("POST", "workflows").json(&definition)).await;
    let view = made.json(201);
    let id = text(&view["id"]);
    let at = format!("workflows/{id}");
    let url = text(&view["hooks"][0]["url"]);
    let hook = url.strip_prefix(PUBLIC_URL).unwrap();
    story.secrets.push(hook.to_owned());
    story.left(&[told(EventType::WorkflowCreated, &cast.key, &id, &[Made("/name"), Made("/digest")])]).await;
    let definition = json!({ "definition": stops_at_once("Deeds again") });
    let update = cast.ask("PUT", &at).header("if-match", made.header("etag")).json(&definition);
    story.does("update_workflow", update).await;
    let change = [Changed("/version/before", "/version/after"), Changed("/name/before", "/name/after")];
    story.left(&[told(EventType::WorkflowUpdated, &cast.key, &id, &change)]).await;
    story.does("activate_workflow", cast.ask("POST", &format!("{at}/activate"))).await;
    let change = [Changed("/active/before", "/active/after")];
    story.left(&[told(EventType::WorkflowActivated, &cast.key, &id, &change)]).await;
    story.does("receive_delivery", ask("POST", hook).json(&json!({ "n": 1 }))).await;
    story.left_nothing().await;
    let rotate = cast.ask("POST", &format!("{at}/hooks/hook/rotate")).json(&json!({}));
    let rotated = story.does("rotate_hook", rotate).await.json(200);
    story.keep_secret(&rotated["url"]);
    let why = Hidden("an address is a credential");
    story.left(&[told(EventType::HookRotated, &cast.key, &id, &[Made("/trigger"), Made("/grace_s"), why])]).await;
    story.does("deactivate_workflow", cast.ask("POST", &format!("{at}/deactivate"))).await;
    story.left(&[told(EventType::WorkflowDeactivated, &cast.key, &id, &change)]).await;

    let org = cast.acme.org.parse().unwrap();
    let args = (id.parse::<WorkflowId>().unwrap(), server.ambient.now());
    let scope = SystemScope::new(SystemReason::Worker).for_org(org);
    let opened = server.store.write_locked(&scope, args, |tx, (workflow, now)| {
        Box::pin(async move {
            let mut state = tx.begin_breaker(*workflow, 2, *now).await?;
            state.breaker.open(*now);
            tx.save_breaker(&state, *now).await
        })
    });
    opened.await.unwrap();
    story.does("close_breaker", cast.ask("POST", &format!("{at}/breaker/close"))).await;
    story.left(&[told(EventType::BreakerClosed, &cast.key, &id, &[Removed("/version"), Removed("/failures")])]).await;
    id
}

pub(super) async fn runs(story: &mut Story<'_>, cast: &Cast, workflow: &str) {
    let start = cast.ask("POST", &format!("workflows/{workflow}/runs")).json(&json!({}));
    let run = text(&story.does("start_run", start).await.json(202)["run"]);
    story.left(&[told(EventType::RunStarted, &cast.key, &run, &[Made("/workflow"), Made("/trigger")])]).await;
    story.does("cancel_run", cast.ask("POST", &format!("runs/{run}/cancel"))).await;
    story.left(&[told(EventType::RunCancelled, &cast.key, &run, &[Made("/status_before")])]).await;
    let retry = cast.ask("POST", &format!("runs/{run}/retry")).json(&json!({ "from_step": "end" }));
    story.does("retry_run", retry).await;
    story.left(&[told(EventType::RunRetried, &cast.key, &run, &[Made("/status_before"), Made("/from_step")])]).await;
}

pub(super) async fn dead_letters(story: &mut Story<'_>, cast: &Cast, workflow: &str) {
    let server = story.server;
    let started = server.post(&cast.acme, &format!("workflows/{workflow}/runs"), &json!({})).await.json(202);
    let run = text(&started["run"]);
    let cancel = || cast.ask("POST", &format!("runs/{run}/cancel"));
    server.send(cancel()).await.json(202);
    let letter = server.dead_letter(&cast.acme, &run).await;
    let resume = cast.ask("POST", &format!("dead-letters/{letter}/resume")).json(&json!({ "from_step": "end" }));
    story.does("resume_dead_letter", resume).await;
    // A run that begins again is told as such, whoever asked for it and how.
    story.left(&[told(EventType::RunRetried, &cast.key, &run, &[Made("/status_before"), Made("/from_step")])]).await;
    server.send(cancel()).await.json(202);
    let letter = server.dead_letter(&cast.acme, &run).await;
    let discard = cast.ask("POST", &format!("dead-letters/{letter}/discard")).json(&json!({ "reason": "not needed" }));
    story.does("discard_dead_letter", discard).await;
    let gone = [Removed("/kind"), Removed("/subject"), Made("/reason")];
    story.left(&[told(EventType::DeadLetterDiscarded, &cast.key, &letter, &gone)]).await;

    let many = cast.ask("POST", "dead-letter-tasks").json(&json!({ "action": "resume", "kind": "none" }));
    let task = text(&story.does("start_dead_letter_task", many).await.json(202)["id"]);
    story.left(&[told(EventType::DeadLetterTaskStarted, &cast.key, &task, &[Made("/selection")])]).await;
    story.does("stop_dead_letter_task", cast.ask("POST", &format!("dead-letter-tasks/{task}/stop"))).await;
    let change = [Changed("/state/before", "/state/after")];
    let expected = [
        told(EventType::DeadLetterTaskEnded, "system:worker", &task, &[Made("/state"), Made("/asked_by")]),
        told(EventType::DeadLetterTaskStopped, &cast.key, &task, &change),
    ];
    story.left(&expected).await;
}
