//! Secrets: stored sealed, used by calls, shown to nobody.

use bulkhead_app::AppError;
use bulkhead_app::secret::SECRET_BYTES_MAX;
use bulkhead_model::call::Outcome;
use bulkhead_model::grant::GrantVersion;
use bulkhead_model::name::SecretName;
use bulkhead_model::permission::Permission;
use hmac::{Hmac, KeyInit as _, Mac as _};
use serde_json::json;
use sha2::Sha256;
use zeroize::Zeroizing;

use crate::guests::{asks_for_secret, manifest, package, signs};
use crate::support::problems;

fn signature(key: &str, data: &str) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(key.as_bytes()).unwrap();
    mac.update(data.as_bytes());
    hex::encode(mac.finalize().into_bytes())
}

fn name(text: &str) -> SecretName {
    text.parse().unwrap()
}

fn value(text: &str) -> Zeroizing<String> {
    Zeroizing::new(text.to_owned())
}

on_both! {
    async fn a_call_uses_the_value_and_nobody_reads_it(app: TestApp) {
        let acme = app.tenant("acme").await;
        let made = app.install(&acme, package(&signs(), &manifest("acme/it", "1.0.0", asks_for_secret(true))), json!({})).await;
        let (id, org) = (made.installation.id, acme.org);
        let call = async || app.app.call_once(&acme.caller, org, id, "it".into(), json!("data")).await.unwrap();
        assert_eq!(call().await.report.output.as_deref(), Some("\"not set\""));

        let put = async |text: &str| app.app.put_secret(&acme.caller, org, id, name("signing_key"), value(text)).await.unwrap();
        let first = put("first-value").await;
        assert!(first.created);
        assert_eq!(first.grant_version, GrantVersion(2));
        assert_eq!(call().await.report.output, Some(format!("\"{}\"", signature("first-value", "\"data\""))));
        let second = put("second-value").await;
        assert!(!second.created);
        let used = call().await;
        assert_eq!(used.report.output, Some(format!("\"{}\"", signature("second-value", "\"data\""))));
        assert_eq!(used.grant_version, GrantVersion(3));

        let entries = app.app.list_secrets(&acme.only(&[Permission::PluginsRead]), org, id).await.unwrap();
        assert_eq!(entries.len(), 1);
        assert!(entries[0].asked && entries[0].stored_at.is_some());
        for entry in app.audit(&acme, "secret.stored").await {
            assert!(!entry.detail.to_string().contains("value"), "{:?}", entry.detail);
        }
        let scope = acme.caller.authorize(org, Permission::PluginsRead).unwrap();
        let rows = app.store.read(&scope, id, |tx, id| Box::pin(async move { tx.list_secrets(*id).await })).await.unwrap();
        assert!(rows[0].ciphertext.starts_with("enc:v1:d1:") && !rows[0].ciphertext.contains("value"), "{rows:?}");

        app.app.delete_secret(&acme.caller, org, id, name("signing_key")).await.unwrap();
        assert_eq!(call().await.report.output.as_deref(), Some("\"not set\""));
        let again = app.app.delete_secret(&acme.caller, org, id, name("signing_key")).await;
        assert!(matches!(again, Err(AppError::NotFound { what: "secret" })), "{again:?}");
        assert_eq!(app.audit(&acme, "secret.deleted").await.len(), 1);
    }

    async fn what_is_not_asked_for_or_out_of_bounds_is_not_stored(app: TestApp) {
        let acme = app.tenant("acme").await;
        let asked = manifest("acme/it", "1.0.0", |manifest| {
            manifest["permissions"] = json!([
                { "kind": "http", "reason": "Posts", "origins": ["https://a.example.com"], "methods": ["POST"], "paths": ["/"] },
                { "kind": "secret", "name": "token", "reason": "Signs in",
                  "inject": { "headers": ["authorization"], "origins": ["https://a.example.com"] } },
            ]);
        });
        let made = app.install(&acme, package(&crate::guests::echo(), &asked), json!({})).await;
        let (id, org) = (made.installation.id, acme.org);
        let put = async |secret: &str, text: &str| app.app.put_secret(&acme.caller, org, id, name(secret), value(text)).await;
        assert_eq!(problems(put("other", "x").await, "unknown-secret")[0].0, "/name");
        assert_eq!(problems(put("token", "").await, "invalid-secret")[0].0, "/value");
        assert_eq!(problems(put("token", &"x".repeat(SECRET_BYTES_MAX + 1)).await, "invalid-secret")[0].0, "/value");
        assert_eq!(problems(put("token", "xoxb-1\n").await, "invalid-secret")[0].0, "/value");
        put("token", &"x".repeat(SECRET_BYTES_MAX)).await.unwrap();
        let refused = app.app.put_secret(&acme.only(&[Permission::PluginsInstall]), org, id, name("token"), value("x")).await;
        assert!(matches!(refused, Err(AppError::Forbidden(Permission::SecretsWrite))), "{refused:?}");
    }

    /// A row that somebody moved to another installation in the database does not open there.
    async fn a_ciphertext_opens_only_in_its_place(app: TestApp) {
        let acme = app.tenant("acme").await;
        let made = app.install(&acme, package(&signs(), &manifest("acme/it", "1.0.0", asks_for_secret(true))), json!({})).await;
        let (id, org) = (made.installation.id, acme.org);
        app.app.put_secret(&acme.caller, org, id, name("signing_key"), value("key")).await.unwrap();
        let scope = acme.caller.authorize(org, Permission::SecretsWrite).unwrap();
        app.store.write(&scope, id, |tx, id| Box::pin(async move {
            let mut secret = tx.load_secret(*id, &name("signing_key")).await?.unwrap();
            let last = secret.ciphertext.pop().unwrap();
            secret.ciphertext.push(if last == 'A' { 'Q' } else { 'A' });
            tx.update_secret(&secret).await
        })).await.unwrap();
        let call = app.app.call_once(&acme.caller, org, id, "it".into(), json!("data")).await.unwrap();
        assert_eq!(call.report.outcome, Outcome::HostFault, "{:?}", call.report);
    }
}
