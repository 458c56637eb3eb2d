//! Single calls: made, recorded, ended by a change, refused for lack of room.

use std::time::Duration;

use bulkhead_app::installation::InstallationPatch;
use bulkhead_app::{AppError, CallConcurrency};
use bulkhead_model::call::Outcome;
use bulkhead_model::grant::{GrantVersion, Grants};
use bulkhead_model::permission::Permission;
use bulkhead_store::page::PageRequest;
use bulkhead_test_support::wait::until_async;
use serde_json::{Value, json};

use crate::guests::{acme_echo, asks_for_secret, computes, echo, manifest, package, waits, waits_for};
use crate::support::{Options, PATIENCE, conflict, problems, within};

/// A guest that would go on for a minute.
fn patient(guest: &[u8]) -> Vec<u8> {
    let change = |manifest: &mut Value| {
        asks_for_secret(false)(manifest);
        manifest["limits"] = json!({ "wall_ms": 60_000, "fuel": 5_000_000_000_u64 });
    };
    package(guest, &manifest("acme/patient", "1.0.0", change))
}

on_both! {
    async fn a_call_is_made_and_recorded(app: TestApp) {
        let acme = app.tenant("acme").await;
        let made = app.install(&acme, acme_echo(), json!({})).await;
        let (id, org) = (made.installation.id, acme.org);
        let call = app.app.call_once(&acme.caller, org, id, "it".into(), json!({ "a": [1, "ü"] })).await.unwrap();
        assert_eq!(call.report.outcome, Outcome::Returned, "{:?}", call.report);
        assert_eq!(call.report.output.as_deref(), Some(r#"{"a":[1,"ü"]}"#));
        assert!(call.report.usage.fuel > 0 && call.report.usage.fuel < call.report.limits.fuel);
        let stored = app.app.get_call(&acme.only(&[Permission::CallsRead]), org, call.id).await.unwrap();
        assert_eq!((stored.report, stored.input), (call.report, call.input));
        assert_eq!((stored.plugin, stored.attempt, stored.run), (made.plugin.id, 1, None));
        let listed = app.app.list_calls(&acme.caller, org, id, Some(Outcome::Returned), PageRequest::default()).await.unwrap();
        assert_eq!(listed.items.iter().map(|call| call.id).collect::<Vec<_>>(), [call.id]);
        let trapped = app.app.list_calls(&acme.caller, org, id, Some(Outcome::Trapped), PageRequest::default()).await.unwrap();
        assert!(trapped.items.is_empty());
        let entry = &app.audit(&acme, "plugin.called").await[0];
        assert_eq!(entry.detail["call"], json!(call.id));
        assert_eq!(entry.detail["outcome"], "returned");
        assert_eq!(app.app.calls_in_flight(), 0);
    }

    async fn input_and_result_have_to_fit_their_schemas(app: TestApp) {
        let acme = app.tenant("acme").await;
        let shaped = manifest("acme/shaped", "1.0.0", |manifest| {
            manifest["actions"][0]["input"] = json!({
                "type": "object", "required": ["n"], "properties": { "n": { "$ref": "#/$defs/n" } }, "$defs": { "n": { "type": "integer" } },
            });
            manifest["actions"][0]["output"] = json!({ "properties": { "n": { "maximum": 10 } } });
        });
        let made = app.install(&acme, package(&echo(), &shaped), json!({})).await;
        let (id, org) = (made.installation.id, acme.org);
        let call = async |input: Value| app.app.call_once(&acme.caller, org, id, "it".into(), input).await;
        assert_eq!(call(json!({ "n": 10 })).await.unwrap().report.outcome, Outcome::Returned);
        assert_eq!(problems(call(json!({ "n": "x" })).await, "invalid-call"), [("/input/n".to_owned(), "schema".to_owned())]);
        // Large enough for the other thread.
        let large = json!({ "n": 1.5, "rest": "x".repeat(5_000) });
        assert_eq!(problems(call(large).await, "invalid-call")[0].0, "/input/n");
        let over = call(json!({ "n": 11 })).await.unwrap();
        assert_eq!((over.report.outcome, over.report.output), (Outcome::InvalidOutput, None));
        assert!(over.report.error.unwrap().message.contains("/n"));
        let other = app.app.call_once(&acme.caller, org, id, "other".into(), json!({})).await;
        assert_eq!(problems(other, "invalid-call")[0], ("/contribution".to_owned(), "unknown-contribution".to_owned()));
        let refused = app.app.call_once(&acme.only(&[Permission::PluginsRead]), org, id, "it".into(), json!({})).await;
        assert!(matches!(refused, Err(AppError::Forbidden(Permission::PluginsCall))), "{refused:?}");
        assert_eq!(app.app.list_calls(&acme.caller, org, id, None, PageRequest::default()).await.unwrap().items.len(), 2);
    }

    async fn an_input_over_its_limit_is_an_outcome(app: TestApp) {
        let acme = app.tenant("acme").await;
        let made = app.install(&acme, acme_echo(), json!({})).await;
        let input = json!("x".repeat(1024 * 1024));
        let call = app.app.call_once(&acme.caller, acme.org, made.installation.id, "it".into(), input).await.unwrap();
        assert_eq!(call.report.outcome, Outcome::LimitExceeded);
        assert_eq!(call.report.error.unwrap().limit.as_deref(), Some("input_bytes"));
    }

    async fn a_disabled_installation_is_not_called(app: TestApp) {
        let acme = app.tenant("acme").await;
        let made = app.install(&acme, acme_echo(), json!({})).await;
        let (id, org) = (made.installation.id, acme.org);
        let switch = async |seen: i64, enabled: bool| {
            let patch = InstallationPatch { enabled: Some(enabled), ..Default::default() };
            // Entries of one millisecond have no order.
            app.ambient.advance(Duration::from_millis(1));
            app.app.update_installation(&acme.caller, org, id, GrantVersion(seen), patch).await.unwrap()
        };
        switch(1, false).await;
        assert_eq!(conflict(app.app.call_once(&acme.caller, org, id, "it".into(), json!(1)).await), "installation-disabled");
        switch(2, true).await;
        let call = app.app.call_once(&acme.caller, org, id, "it".into(), json!(1)).await.unwrap();
        assert_eq!(call.report.outcome, Outcome::Returned);
        let states: Vec<_> = app.audit(&acme, "installation.updated").await.into_iter().map(|entry| entry.detail["state"].clone()).collect();
        assert_eq!(states, [json!({ "before": "disabled", "after": "enabled" }), json!({ "before": "enabled", "after": "disabled" })]);
    }

    /// Waiting or computing, a call ends when its installation's grants change.
    async fn a_revoked_call_ends_and_commits_nothing(app: TestApp) {
        let acme = app.tenant("acme").await;
        for (name, guest) in [("acme/waits", waits()), ("acme/computes", computes())] {
            let change = |manifest: &mut Value| {
                asks_for_secret(false)(manifest);
                manifest["limits"] = json!({ "wall_ms": 60_000, "fuel": 5_000_000_000_u64 });
            };
            let made = app.install(&acme, package(&guest, &manifest(name, "1.0.0", change)), json!({})).await;
            let (id, org) = (made.installation.id, acme.org);
            let call = app.app.call_once(&acme.caller, org, id, "it".into(), json!(1));
            let revoke = async {
                assert!(until_async(PATIENCE, async || app.app.calls_in_flight() == 1).await);
                app.app.replace_grants(&acme.caller, org, id, GrantVersion(1), Grants::default()).await.unwrap();
            };
            let (call, ()) = within(Box::pin(async { tokio::join!(call, revoke) })).await;
            let call = call.unwrap();
            assert_eq!((call.report.outcome, &call.report.output), (Outcome::Revoked, &None), "{name}: {:?}", call.report);
            assert_eq!(call.grant_version, GrantVersion(1));
            assert_eq!(app.app.get_call(&acme.caller, org, call.id).await.unwrap().report.outcome, Outcome::Revoked);
        }
        assert_eq!(app.app.calls_in_flight(), 0);
    }

    /// Another node changes the grants: nobody tells this process, but its commit notices.
    async fn a_change_that_this_process_did_not_hear_of_is_noticed_at_commit(app: TestApp) {
        let acme = app.tenant("acme").await;
        let change = |manifest: &mut Value| {
            asks_for_secret(false)(manifest);
            manifest["limits"] = json!({ "wall_ms": 60_000, "fuel": 5_000_000_000_u64 });
        };
        // Long enough for a busy machine to change the grants meanwhile; then it returns as if nothing had happened.
        let wait_ms = 5_000;
        let made = app.install(&acme, package(&waits_for(wait_ms), &manifest("acme/slow", "1.0.0", change)), json!({})).await;
        let (id, org) = (made.installation.id, acme.org);
        let other_node = app.again(Options::default());
        let call = app.app.call_once(&acme.caller, org, id, "it".into(), json!(1));
        let revoke = async {
            assert!(until_async(PATIENCE, async || app.app.calls_in_flight() == 1).await);
            other_node.replace_grants(&acme.caller, org, id, GrantVersion(1), Grants::default()).await.unwrap();
        };
        let (call, ()) = within(Box::pin(async { tokio::join!(call, revoke) })).await;
        let report = call.unwrap().report;
        assert_eq!((report.outcome, report.output), (Outcome::Revoked, None));
        assert!(report.usage.wall_ms >= wait_ms, "it ran to its end: {:?}", report.usage);
    }

    async fn a_grant_that_ends_in_mid_call_ends_the_call(app: TestApp) {
        let acme = app.tenant("acme").await;
        let made = app.install(&acme, patient(&waits()), json!({})).await;
        let (id, org) = (made.installation.id, acme.org);
        let mut grants = made.installation.grants.clone();
        grants.permissions[0].expires_at = Some(app.ambient.now().plus(Duration::from_millis(300)));
        app.app.replace_grants(&acme.caller, org, id, GrantVersion(1), grants).await.unwrap();
        let call = within(app.app.call_once(&acme.caller, org, id, "it".into(), json!(1))).await.unwrap();
        assert_eq!(call.report.outcome, Outcome::Revoked);
        assert!(call.report.usage.wall_ms < 30_000, "{:?}", call.report.usage);
    }

    async fn a_caller_who_goes_away_does_not_undo_the_record(app: TestApp) {
        let acme = app.tenant("acme").await;
        let made = app.install(&acme, acme_echo(), json!({})).await;
        let (id, org) = (made.installation.id, acme.org);
        {
            let mut call = std::pin::pin!(app.app.call_once(&acme.caller, org, id, "it".into(), json!(1)));
            assert!(futures_util::poll!(call.as_mut()).is_pending());
        }
        let recorded = async || !app.app.list_calls(&acme.caller, org, id, None, PageRequest::default()).await.unwrap().items.is_empty();
        assert!(until_async(PATIENCE, recorded).await);
    }

    async fn one_call_too_many_is_sent_back(app: TestApp) {
        let acme = app.tenant("acme").await;
        let made = app.install(&acme, patient(&waits()), json!({})).await;
        let (id, org) = (made.installation.id, acme.org);
        let narrow = CallConcurrency { per_org: 4, per_installation: 1, wait_ms: 0 };
        let narrow = app.again(Options { concurrency: Some(narrow), ..Options::default() });
        let first = narrow.call_once(&acme.caller, org, id, "it".into(), json!(1));
        let second = async {
            assert!(until_async(PATIENCE, async || narrow.calls_in_flight() == 1).await);
            let second = narrow.call_once(&acme.caller, org, id, "it".into(), json!(1)).await;
            let patch = InstallationPatch { enabled: Some(false), ..Default::default() };
            narrow.update_installation(&acme.caller, org, id, GrantVersion(1), patch).await.unwrap();
            second
        };
        let (first, second) = within(Box::pin(async { tokio::join!(first, second) })).await;
        assert!(matches!(second, Err(AppError::Busy { what: "the installation", .. })), "{second:?}");
        assert_eq!(first.unwrap().report.outcome, Outcome::Revoked, "switching off ends what runs");
    }
}
