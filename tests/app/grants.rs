//! Grants: shown in layers, replaced as a whole, in force at once.

use bulkhead_app::AppError;
use bulkhead_model::call::Outcome;
use bulkhead_model::grant::{GrantVersion, Grants, Risk, Share};
use bulkhead_model::permission::Permission;
use serde_json::json;
use std::time::Duration;

use crate::guests::{asks_for_secret, echo, manifest, package, signs};
use crate::support::{grant_secret, problems};

on_both! {
    async fn a_grant_narrower_than_its_ask_is_what_counts(app: TestApp) {
        let acme = app.tenant("acme").await;
        let asked = manifest("acme/it", "1.0.0", |manifest| {
            manifest["permissions"] = json!([{
                "kind": "http", "reason": "Posts", "required": true,
                "origins": ["https://*"], "methods": ["POST", "PUT"], "paths": ["/"],
            }]);
        });
        let made = app.install(&acme, package(&echo(), &asked), json!({})).await;
        let (id, org) = (made.installation.id, acme.org);
        assert_eq!((made.layers.asks[0].consent.risk, made.layers.asks[0].effective), (Risk::High, Share::Whole));

        let narrow: Grants = serde_json::from_value(json!({ "permissions": [
            { "kind": "http", "origins": ["https://a.example.com"], "methods": ["POST", "DELETE"], "paths": ["/in"] },
        ]})).unwrap();
        let replaced = app.app.replace_grants(&acme.caller, org, id, GrantVersion(1), narrow.clone()).await.unwrap();
        assert_eq!(replaced.installation.grant_version, GrantVersion(2));
        let shown = app.app.show_grants(&acme.caller, org, id).await.unwrap();
        assert_eq!(shown.layers.grants, narrow);
        assert_eq!(shown.layers.asks[0].effective, Share::Part);
        let url = |text: &str| text.parse().unwrap();
        let effective = &shown.layers.effective;
        assert!(effective.http("POST", &url("https://a.example.com/in/x")).is_ok());
        assert!(effective.http("DELETE", &url("https://a.example.com/in/x")).is_err(), "never asked for");
        assert!(effective.http("PUT", &url("https://a.example.com/in/x")).is_err(), "not granted");
        assert!(effective.http("POST", &url("https://b.example.com/in")).is_err());
        // A part of a required permission is enough to run.
        let call = app.app.call_once(&acme.caller, org, id, "it".into(), json!(1)).await.unwrap();
        assert_eq!(call.report.outcome, Outcome::Returned);

        let entry = &app.audit(&acme, "grants.changed").await[0];
        assert_eq!(entry.detail["grants"], json!({ "before": made.installation.grants, "after": narrow }));
        assert_eq!(entry.detail["grant_version"], json!({ "before": 1, "after": 2 }));
    }

    async fn a_stale_or_foreign_grant_changes_nothing(app: TestApp) {
        let acme = app.tenant("acme").await;
        let made = app.install(&acme, package(&signs(), &manifest("acme/it", "1.0.0", asks_for_secret(true))), json!({})).await;
        let (id, org) = (made.installation.id, acme.org);
        let replace = async |seen: i64, grants: Grants| app.app.replace_grants(&acme.caller, org, id, GrantVersion(seen), grants).await;
        assert!(matches!(replace(7, Grants::default()).await, Err(AppError::StaleVersion)));
        assert_eq!(problems(replace(1, grant_secret("other")).await, "invalid-grants")[0].0, "/grants/permissions/0/name");
        // The same grants once more are no change: nobody is interrupted for them.
        let same = replace(1, made.installation.grants.clone()).await.unwrap();
        assert_eq!(same.installation.grant_version, GrantVersion(1));
        assert!(app.audit(&acme, "grants.changed").await.is_empty());
        let (first, second) = tokio::join!(replace(1, Grants::default()), replace(1, Grants::default()));
        assert_eq!([&first, &second].iter().filter(|result| result.is_ok()).count(), 1, "{first:?} {second:?}");
        assert!([first, second].into_iter().any(|result| matches!(result, Err(AppError::StaleVersion))));
    }

    async fn without_a_required_grant_no_guest_code_runs(app: TestApp) {
        let acme = app.tenant("acme").await;
        let made = app.install(&acme, package(&signs(), &manifest("acme/it", "1.0.0", asks_for_secret(true))), json!({})).await;
        let (id, org) = (made.installation.id, acme.org);
        app.app.replace_grants(&acme.caller, org, id, GrantVersion(1), Grants::default()).await.unwrap();
        let call = app.app.call_once(&acme.caller, org, id, "it".into(), json!("x")).await.unwrap();
        assert_eq!((call.report.outcome, call.report.usage.fuel), (Outcome::Refused, 0));
        assert_eq!(call.report.refusals[0].target, "signing_key");
        assert_eq!(call.grant_version, GrantVersion(2));
        let shown = app.app.get_call(&acme.caller, org, call.id).await.unwrap();
        assert_eq!(shown.report, call.report);
    }

    async fn without_an_optional_grant_the_guest_gives_up_as_refused(app: TestApp) {
        let acme = app.tenant("acme").await;
        let made = app.install(&acme, package(&signs(), &manifest("acme/it", "1.0.0", asks_for_secret(false))), json!({})).await;
        let (id, org) = (made.installation.id, acme.org);
        app.app.replace_grants(&acme.caller, org, id, GrantVersion(1), Grants::default()).await.unwrap();
        let call = app.app.call_once(&acme.caller, org, id, "it".into(), json!("x")).await.unwrap();
        assert_eq!(call.report.outcome, Outcome::Refused, "{:?}", call.report);
        assert!(call.report.usage.fuel > 0, "the guest decided");
        assert_eq!(call.report.refusals.len(), 1, "and why is on record: {:?}", call.report);
    }

    async fn a_grant_that_has_ended_counts_as_absent(app: TestApp) {
        let acme = app.tenant("acme").await;
        let made = app.install(&acme, package(&signs(), &manifest("acme/it", "1.0.0", asks_for_secret(true))), json!({})).await;
        let (id, org) = (made.installation.id, acme.org);
        let mut grants = made.installation.grants.clone();
        grants.permissions[0].expires_at = Some(app.ambient.now().plus(Duration::from_hours(1)));
        app.app.replace_grants(&acme.caller, org, id, GrantVersion(1), grants).await.unwrap();
        let call = async || app.app.call_once(&acme.caller, org, id, "it".into(), json!("x")).await.unwrap().report.outcome;
        assert_eq!(call().await, Outcome::Returned);
        app.ambient.advance(Duration::from_hours(1));
        assert_eq!(call().await, Outcome::Refused);
        let shown = app.app.show_grants(&acme.only(&[Permission::PluginsRead]), org, id).await.unwrap();
        assert!(shown.layers.effective.is_empty());
    }
}
