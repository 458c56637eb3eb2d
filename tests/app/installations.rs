//! Installing, changing, switching off, changing the version, uninstalling.

use bulkhead_app::AppError;
use bulkhead_app::installation::{InstallationDetail, InstallationPatch, NewInstallation};
use bulkhead_app::workflow::SaveWorkflow;
use bulkhead_model::grant::{GrantVersion, Grants, Share};
use bulkhead_model::permission::Permission;
use bulkhead_store::installation::InstallationState;
use bulkhead_store::page::PageRequest;
use serde_json::{Value, json};
use zeroize::Zeroizing;

use crate::guests::{acme_echo, asks_for_secret, echo, manifest, package, signs};
use crate::support::{Tenant, TestApp, grant_secret, problems};

fn new(version: &str, settings: Value, grants: Grants) -> NewInstallation {
    NewInstallation { plugin: "acme/it".parse().unwrap(), version: version.into(), settings, grants }
}

/// `acme/it`, with settings of one required text and an origin taken from another.
fn with_settings(version: &str, change: impl FnOnce(&mut Value)) -> Vec<u8> {
    package(
        &echo(),
        &manifest("acme/it", version, |manifest| {
            manifest["actions"][0]["settings"] = json!({
                "type": "object", "additionalProperties": false, "required": ["team"],
                "properties": { "team": { "type": "string", "maxLength": 5 }, "url": { "type": "string" } },
            });
            manifest["permissions"] = json!([{
                "kind": "http", "reason": "Posts", "required": true, "origins": [{ "from_setting": "url" }],
                "methods": ["POST"], "paths": ["/in"],
            }]);
            change(manifest);
        }),
    )
}

async fn patch(
    app: &TestApp,
    tenant: &Tenant,
    detail: &InstallationDetail,
    patch: InstallationPatch,
) -> Result<InstallationDetail, AppError> {
    let (id, seen) = (detail.installation.id, detail.installation.grant_version);
    app.app.update_installation(&tenant.caller, tenant.org, id, seen, patch).await
}

fn names<'a>(views: impl Iterator<Item = &'a bulkhead_model::grant::AskView>) -> Vec<&'static str> {
    views.map(|view| view.ask.capability.kind()).collect()
}

on_both! {
    async fn what_is_installed_is_on_record(app: TestApp) {
        let acme = app.tenant("acme").await;
        let plugin = app.upload(&acme, with_settings("1.0.0", |_| ())).await;
        let settings = json!({ "team": "ops", "url": "https://hooks.example.com/x" });
        let grants = Grants::everything_asked(&plugin.manifest, &settings);
        let made = app.app.install(&acme.caller, acme.org, new("1.0.0", settings, grants.clone())).await.unwrap();
        assert_eq!((made.installation.state, made.installation.grant_version), (InstallationState::Enabled, GrantVersion(1)));
        assert_eq!(names(made.missing_required()), [""; 0]);
        assert_eq!(made.layers.asks[0].effective, Share::Whole);

        let entry = &app.audit(&acme, "installation.created").await[0];
        assert_eq!(entry.target, made.installation.id.to_string());
        assert_eq!(entry.detail["digest"], json!(bulkhead_runtime::Digest(plugin.digest)));
        assert_eq!(entry.detail["grants"], json!(grants));
        assert!(!entry.detail.to_string().contains("ops"), "settings may hold what only some may read");

        let listed = app.app.list_installations(&acme.caller, acme.org, PageRequest::default()).await.unwrap();
        assert_eq!(listed.items.len(), 1);
        assert_eq!(listed.items[0].plugin.id, plugin.id);
    }

    async fn what_does_not_fit_is_named_with_its_place(app: TestApp) {
        let acme = app.tenant("acme").await;
        app.upload(&acme, with_settings("1.0.0", |_| ())).await;
        let install = async |new: NewInstallation| app.app.install(&acme.caller, acme.org, new).await;
        let place = |path: &str, code: &str| vec![(path.to_owned(), code.to_owned())];

        let found = problems(install(new("1.0.0", json!({ "team": "too long", "more": 1 }), Grants::default())).await, "invalid-installation");
        let mut paths: Vec<_> = found.iter().map(|(path, _)| path.as_str()).collect();
        paths.sort_unstable();
        assert_eq!(paths, ["/settings", "/settings/team"]);
        let found = problems(install(new("1.0.0", json!([]), Grants::default())).await, "invalid-installation");
        assert_eq!(found, place("/settings", "not-an-object"));
        let large = json!({ "team": "x".repeat(70_000) });
        let found = problems(install(new("1.0.0", large, Grants::default())).await, "invalid-installation");
        assert_eq!(found, place("/settings", "too-large"));
        let found = problems(install(new("9.0.0", json!({}), Grants::default())).await, "invalid-installation");
        assert_eq!(found, place("/version", "unknown-plugin"));
        let found = problems(install(new("1.0.0", json!({ "team": "ops" }), grant_secret("token"))).await, "invalid-grants");
        assert_eq!(found, place("/grants/permissions/0/name", "invalid-grant"));

        // A plugin without settings takes none.
        app.upload(&acme, acme_echo()).await;
        let unknown = NewInstallation { plugin: "acme/echo".parse().unwrap(), ..new("1.0.0", json!({ "a": 1 }), Grants::default()) };
        assert_eq!(problems(install(unknown).await, "invalid-installation"), place("/settings", "unknown-field"));

        assert!(app.app.list_installations(&acme.caller, acme.org, PageRequest::default()).await.unwrap().items.is_empty());
        assert!(app.audit(&acme, "installation.created").await.is_empty());
    }

    /// Who may install may not thereby decide what a plugin may do.
    async fn granting_needs_its_own_permission(app: TestApp) {
        let acme = app.tenant("acme").await;
        app.upload(&acme, package(&signs(), &manifest("acme/it", "1.0.0", asks_for_secret(true)))).await;
        let installer = acme.only(&[Permission::PluginsInstall, Permission::PluginsRead]);
        let refused = app.app.install(&installer, acme.org, new("1.0.0", json!({}), grant_secret("signing_key"))).await;
        assert!(matches!(refused, Err(AppError::Forbidden(Permission::PluginsGrant))), "{refused:?}");
        let bare = app.app.install(&installer, acme.org, new("1.0.0", json!({}), Grants::default())).await.unwrap();
        assert_eq!(names(bare.missing_required()), ["secret"]);
        let id = bare.installation.id;
        let refused = app.app.replace_grants(&installer, acme.org, id, GrantVersion(1), grant_secret("signing_key")).await;
        assert!(matches!(refused, Err(AppError::Forbidden(Permission::PluginsGrant))), "{refused:?}");
        let refused = app.app.update_installation(&acme.only(&[Permission::PluginsGrant]), acme.org, id, GrantVersion(1), InstallationPatch::default()).await;
        assert!(matches!(refused, Err(AppError::Forbidden(Permission::PluginsInstall))), "{refused:?}");
    }

    async fn a_change_raises_the_version_and_a_stale_one_is_refused(app: TestApp) {
        let acme = app.tenant("acme").await;
        let made = app.install(&acme, with_settings("1.0.0", |_| ()), json!({ "team": "ops" })).await;
        let settings = Some(json!({ "team": "dev" }));
        let changed = patch(&app, &acme, &made, InstallationPatch { settings, ..Default::default() }).await.unwrap();
        assert_eq!(changed.installation.grant_version, GrantVersion(2));
        assert_eq!(changed.installation.settings["team"], "dev");
        let stale = patch(&app, &acme, &made, InstallationPatch { enabled: Some(false), ..Default::default() }).await;
        assert!(matches!(stale, Err(AppError::StaleVersion)), "{stale:?}");
        let bad = Some(json!({ "team": 1 }));
        let found = problems(patch(&app, &acme, &changed, InstallationPatch { settings: bad, ..Default::default() }).await, "invalid-installation");
        assert_eq!(found[0].0, "/settings/team");
        // Nothing to change is no change.
        let same = patch(&app, &acme, &changed, InstallationPatch { enabled: Some(true), ..Default::default() }).await.unwrap();
        assert_eq!(same.installation.grant_version, GrantVersion(2));
        let entries = app.audit(&acme, "installation.updated").await;
        assert_eq!(entries.len(), 1);
        assert_eq!(entries[0].detail["settings_changed"], true);
        assert!(!entries[0].detail.to_string().contains("dev"), "{:?}", entries[0].detail);
    }

    async fn settings_move_an_origin_but_no_grant_with_it(app: TestApp) {
        let acme = app.tenant("acme").await;
        let settings = json!({ "team": "ops", "url": "https://hooks.example.com/x" });
        let made = app.install(&acme, with_settings("1.0.0", |_| ()), settings).await;
        assert_eq!(made.layers.effective.http_rules().len(), 1);
        let elsewhere = Some(json!({ "team": "ops", "url": "https://evil.example.net/" }));
        let moved = patch(&app, &acme, &made, InstallationPatch { settings: elsewhere, ..Default::default() }).await.unwrap();
        assert!(moved.layers.effective.is_empty(), "only who may grant lets requests go elsewhere");
        assert_eq!(names(moved.missing_required()), ["http"]);
        // Without an address there is nothing to ask for.
        let empty = Some(json!({ "team": "ops" }));
        let none = patch(&app, &acme, &moved, InstallationPatch { settings: empty, ..Default::default() }).await.unwrap();
        assert_eq!(names(none.missing_required()), [""; 0]);
    }

    async fn an_upgrade_carries_grants_over_and_never_widens_them(app: TestApp) {
        let acme = app.tenant("acme").await;
        let asks = |origin: &'static str| move |manifest: &mut Value| {
            manifest["permissions"] = json!([
                { "kind": "http", "reason": "Posts", "required": true, "origins": [origin], "methods": ["POST"], "paths": ["/in"] },
            ]);
        };
        let old = app.upload(&acme, package(&echo(), &manifest("acme/it", "1.0.0", asks("https://a.example.com")))).await;
        let wider = manifest("acme/it", "1.1.0", |manifest| {
            asks("https://*")(manifest);
            manifest["permissions"].as_array_mut().unwrap().push(json!({ "kind": "secret", "name": "token", "reason": "Signs" }));
        });
        app.upload(&acme, package(&echo(), &wider)).await;
        // The admin granted more than the old version asks for; only the intersection counts.
        let broad: Grants = serde_json::from_value(json!({ "permissions": [
            { "kind": "http", "origins": ["https://*"], "methods": ["POST"], "paths": ["/"] },
        ]})).unwrap();
        let made = app.app.install(&acme.caller, acme.org, new("1.0.0", json!({}), broad)).await.unwrap();
        let before = made.layers.effective.clone();
        let version = Some("1.1.0".to_owned());
        let raised = patch(&app, &acme, &made, InstallationPatch { version, ..Default::default() }).await.unwrap();
        assert_ne!(raised.plugin.id, old.id);
        assert_eq!(raised.layers.effective, before, "what the new version asks for beyond it waits for consent");
        assert_eq!(names(raised.needs_consent()), ["http", "secret"]);
        assert_eq!(names(raised.missing_required()), [""; 0], "a part is there");
        let detail = &app.audit(&acme, "installation.updated").await[0].detail;
        assert_eq!(detail["version"], json!({ "before": "1.0.0", "after": "1.1.0" }));
        assert_eq!(detail["grants"]["after"]["permissions"][0]["origins"], json!(["https://a.example.com"]));

        // Consent, and back to the old version: the secret that it does not know is granted no more.
        let id = raised.installation.id;
        let all = Grants::everything_asked(&raised.plugin.manifest, &json!({}));
        let granted = app.app.replace_grants(&acme.caller, acme.org, id, raised.installation.grant_version, all).await.unwrap();
        assert_eq!(names(granted.needs_consent()), [""; 0]);
        let version = Some("1.0.0".to_owned());
        let lowered = patch(&app, &acme, &granted, InstallationPatch { version, ..Default::default() }).await.unwrap();
        assert_eq!(lowered.layers.effective, before);
        assert_eq!(lowered.installation.grants.permissions.len(), 1);

        let other = Some("7.0.0".to_owned());
        let unknown = patch(&app, &acme, &lowered, InstallationPatch { version: other, ..Default::default() }).await;
        assert_eq!(problems(unknown, "invalid-installation")[0].1, "unknown-plugin");
    }

    async fn settings_have_to_fit_the_other_version(app: TestApp) {
        let acme = app.tenant("acme").await;
        let made = app.install(&acme, with_settings("1.0.0", |_| ()), json!({ "team": "ops" })).await;
        app.upload(&acme, with_settings("2.0.0", |manifest| {
            manifest["actions"][0]["settings"]["required"] = json!(["team", "url"]);
        })).await;
        let version = Some("2.0.0".to_owned());
        let refused = patch(&app, &acme, &made, InstallationPatch { version: version.clone(), ..Default::default() }).await;
        assert_eq!(problems(refused, "invalid-installation")[0].0, "/settings");
        let settings = Some(json!({ "team": "ops", "url": "https://a.example.com/" }));
        let raised = patch(&app, &acme, &made, InstallationPatch { version, settings, ..Default::default() }).await.unwrap();
        assert_eq!(raised.plugin.version, "2.0.0");
        assert!(raised.layers.effective.is_empty());
    }

    async fn uninstalling_leaves_the_record_and_nothing_else(app: TestApp) {
        let acme = app.tenant("acme").await;
        let made = app.install(&acme, package(&signs(), &manifest("acme/it", "1.0.0", asks_for_secret(false))), json!({})).await;
        let (id, org) = (made.installation.id, acme.org);
        let name: bulkhead_model::name::SecretName = "signing_key".parse().unwrap();
        app.app.put_secret(&acme.caller, org, id, name.clone(), Zeroizing::new("key".into())).await.unwrap();
        let call = app.app.call_once(&acme.caller, org, id, "it".into(), json!(1)).await.unwrap();
        let stale = app.app.uninstall(&acme.caller, org, id, Some(GrantVersion(1))).await;
        assert!(matches!(stale, Err(AppError::StaleVersion)), "{stale:?}");

        let workflow = app.app.create_workflow(&acme.caller, org, SaveWorkflow { definition: workflow_using("acme/it#it"), summary: String::new() }).await.unwrap();
        app.app.set_workflow_active(&acme.caller, org, workflow.workflow.id, true).await.unwrap();
        let gone = app.app.uninstall(&acme.caller, org, id, Some(GrantVersion(2))).await.unwrap();
        assert_eq!(gone.used_by, ["It runs"]);

        let found = app.app.get_installation(&acme.caller, org, id).await;
        assert!(matches!(found, Err(AppError::NotFound { .. })), "{found:?}");
        let found = app.app.uninstall(&acme.caller, org, id, None).await;
        assert!(matches!(found, Err(AppError::NotFound { .. })), "{found:?}");
        let found = app.app.put_secret(&acme.caller, org, id, name, Zeroizing::new("key".into())).await;
        assert!(matches!(found, Err(AppError::NotFound { .. })), "{found:?}");
        let found = app.app.call_once(&acme.caller, org, id, "it".into(), json!(1)).await;
        assert!(matches!(found, Err(AppError::NotFound { .. })), "{found:?}");
        assert!(app.app.list_installations(&acme.caller, org, PageRequest::default()).await.unwrap().items.is_empty());
        assert_eq!(app.app.get_call(&acme.caller, org, call.id).await.unwrap().id, call.id);
        assert_eq!(app.app.list_calls(&acme.caller, org, id, None, PageRequest::default()).await.unwrap().items.len(), 1);
        let entry = &app.audit(&acme, "installation.uninstalled").await[0];
        assert_eq!(entry.detail["secrets_deleted"], 1);
        let scope = acme.caller.authorize(org, Permission::PluginsRead).unwrap();
        let left = app.store.read(&scope, id, |tx, id| Box::pin(async move { tx.load_installation(*id).await })).await.unwrap().unwrap();
        assert_eq!((left.state, left.settings, left.grants), (InstallationState::Uninstalled, json!({}), Grants::default()));
    }

    async fn another_organizations_installation_is_not_there(app: TestApp) {
        let (acme, globex) = (app.tenant("acme").await, app.tenant("globex").await);
        let made = app.install(&acme, acme_echo(), json!({})).await;
        let (id, seen) = (made.installation.id, made.installation.grant_version);
        let (app, other) = (&app.app, &globex);
        let hidden = |result: Result<(), AppError>| assert!(matches!(result, Err(AppError::NotFound { .. })), "{result:?}");
        for org in [acme.org, globex.org] {
            hidden(app.get_installation(&other.caller, org, id).await.map(drop));
            hidden(app.show_grants(&other.caller, org, id).await.map(drop));
            hidden(app.update_installation(&other.caller, org, id, seen, InstallationPatch { enabled: Some(false), ..Default::default() }).await.map(drop));
            hidden(app.replace_grants(&other.caller, org, id, seen, Grants::default()).await.map(drop));
            hidden(app.uninstall(&other.caller, org, id, None).await.map(drop));
            hidden(app.list_secrets(&other.caller, org, id).await.map(drop));
            hidden(app.put_secret(&other.caller, org, id, "a".parse().unwrap(), Zeroizing::new("b".into())).await.map(drop));
            hidden(app.delete_secret(&other.caller, org, id, "a".parse().unwrap()).await.map(drop));
            hidden(app.call_once(&other.caller, org, id, "it".into(), json!(1)).await.map(drop));
            hidden(app.list_calls(&other.caller, org, id, None, PageRequest::default()).await.map(drop));
        }
        let untouched = app.get_installation(&acme.caller, acme.org, id).await.unwrap();
        assert_eq!(untouched.installation.grant_version, seen);
    }
}

fn workflow_using(contribution: &str) -> String {
    json!({
        "schema": 1,
        "name": "It runs",
        "triggers": [{ "id": "hand", "type": "manual" }],
        "start": "call",
        "steps": { "call": { "type": "action", "use": contribution, "with": {} } },
    })
    .to_string()
}
