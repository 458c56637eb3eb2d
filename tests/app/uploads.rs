//! Packages: taken, taken again, refused.

use bulkhead_app::AppError;
use bulkhead_app::plugin::Uploaded;
use bulkhead_model::permission::Permission;
use bulkhead_runtime::Digest;
use bulkhead_store::page::PageRequest;
use serde_json::json;

use crate::guests::{acme_echo, asks_for_secret, echo, manifest, package, signs};
use crate::support::{Options, Tenant, TestApp, conflict, problems};

async fn upload(app: &TestApp, tenant: &Tenant, package: Vec<u8>) -> Result<Uploaded, AppError> {
    app.app.upload_plugin(&tenant.caller, tenant.org, package.into()).await
}

async fn plugins(app: &TestApp, tenant: &Tenant) -> usize {
    app.app.list_plugins(&tenant.caller, tenant.org, None, PageRequest::default()).await.unwrap().items.len()
}

on_both! {
    async fn a_package_is_stored_once(app: TestApp) {
        let acme = app.tenant("acme").await;
        let bytes = acme_echo();
        let first = upload(&app, &acme, bytes.clone()).await.unwrap();
        assert!(first.created);
        assert_eq!((first.plugin.name.as_str(), first.plugin.version.as_str()), ("acme/echo", "1.0.0"));
        assert_eq!(Digest(first.plugin.digest), Digest::of(&bytes));
        assert_eq!(first.plugin.size_bytes, i64::try_from(bytes.len()).unwrap());

        let again = upload(&app, &acme, bytes).await.unwrap();
        assert!(!again.created);
        assert_eq!(again.plugin.id, first.plugin.id);

        let entries = app.audit(&acme, "plugin.uploaded").await;
        assert_eq!(entries.len(), 1, "the second upload changed nothing");
        assert_eq!(entries[0].target, first.plugin.id.to_string());
        assert_eq!(entries[0].detail["digest"], json!(Digest(first.plugin.digest)));
        let shown = app.app.get_plugin(&acme.caller, acme.org, first.plugin.id).await.unwrap();
        assert_eq!(shown.manifest, first.plugin.manifest);
    }

    async fn a_version_never_changes(app: TestApp) {
        let acme = app.tenant("acme").await;
        upload(&app, &acme, acme_echo()).await.unwrap();
        let other = package(&echo(), &manifest("acme/echo", "1.0.0", |manifest| manifest["title"] = json!("Other")));
        assert_eq!(conflict(upload(&app, &acme, other).await), "version-exists");
        let raised = package(&echo(), &manifest("acme/echo", "1.0.1", |manifest| manifest["title"] = json!("Other")));
        assert!(upload(&app, &acme, raised).await.unwrap().created);
        assert_eq!(plugins(&app, &acme).await, 2);
        let named = app.app.list_plugins(&acme.caller, acme.org, Some("acme/other".into()), PageRequest::default()).await;
        assert!(named.unwrap().items.is_empty());
    }

    /// The same version may be uploaded twice at the same moment: one wins, nobody fails.
    async fn two_at_once_are_one(app: TestApp) {
        let acme = app.tenant("acme").await;
        let (left, right) = tokio::join!(upload(&app, &acme, acme_echo()), upload(&app, &acme, acme_echo()));
        let (left, right) = (left.unwrap(), right.unwrap());
        assert_eq!(left.plugin.id, right.plugin.id);
        assert_eq!(app.audit(&acme, "plugin.uploaded").await.len(), 1);
    }

    async fn what_is_no_honest_package_is_refused_and_changes_nothing(app: TestApp) {
        let acme = app.tenant("acme").await;
        let place = |path: &str, code: &str| vec![(path.to_owned(), code.to_owned())];
        let refused = async |package: Vec<u8>| problems(upload(&app, &acme, package).await, "invalid-package");

        assert_eq!(refused(b"no component".to_vec()).await, place("", "not-a-component"));
        assert_eq!(refused(echo()).await, place("/manifest", "manifest-missing"));
        let mut cut = acme_echo();
        cut.truncate(cut.len() / 2);
        assert_ne!(refused(cut).await, []);

        // Another organization's name, and the platform's own.
        let forged = package(&echo(), &manifest("globex/echo", "1.0.0", |_| ()));
        assert_eq!(refused(forged).await, place("/manifest/name", "foreign-publisher"));
        let forged = package(&echo(), &manifest("bulkhead/echo", "1.0.0", |_| ()));
        assert_eq!(refused(forged).await, place("/manifest/name", "foreign-publisher"));

        // Promises that the code does not keep, and a capability that the manifest does not ask for.
        let factor = package(&echo(), &manifest("acme/echo", "1.0.0", |manifest| {
            manifest["factors"] = json!([{ "name": "it", "title": "It" }]);
            manifest.as_object_mut().unwrap().remove("actions");
        }));
        assert_eq!(refused(factor).await, place("/manifest", "export-unlisted"));
        let undeclared = package(&signs(), &manifest("acme/signs", "1.0.0", |_| ()));
        assert_eq!(refused(undeclared).await, place("/manifest/permissions", "import-undeclared"));

        let limit = 32 * 1024 * 1024;
        let large = upload(&app, &acme, vec![0; limit + 1]).await;
        assert!(matches!(large, Err(AppError::TooLarge { limit_bytes, .. }) if limit_bytes == limit as u64), "{large:?}");

        assert_eq!(plugins(&app, &acme).await, 0);
        assert_eq!(app.audit(&acme, "plugin.uploaded").await.len(), 0);
    }

    async fn the_platforms_own_name_is_for_what_it_ships(app: TestApp) {
        let (acme, bulkhead) = (app.tenant("acme").await, app.tenant("bulkhead").await);
        let shipped = package(&echo(), &manifest("bulkhead/echo", "1.0.0", |_| ()));
        // An organization of that name has no right to it either.
        assert_eq!(problems(upload(&app, &bulkhead, shipped.clone()).await, "invalid-package").len(), 1);
        let knowing = app.again(Options { first_party: [Digest::of(&shipped)].into(), ..Options::default() });
        assert!(knowing.upload_plugin(&acme.caller, acme.org, shipped.into()).await.unwrap().created);
    }

    async fn each_organization_has_its_own(app: TestApp) {
        let (acme, globex) = (app.tenant("acme").await, app.tenant("globex").await);
        let plugin = upload(&app, &acme, acme_echo()).await.unwrap().plugin;
        let found = app.app.get_plugin(&globex.caller, globex.org, plugin.id).await;
        assert!(matches!(found, Err(AppError::NotFound { .. })), "{found:?}");
        let found = app.app.get_plugin(&globex.caller, acme.org, plugin.id).await;
        assert!(matches!(found, Err(AppError::NotFound { .. })), "{found:?}");
        assert_eq!(plugins(&app, &globex).await, 0);
        let reader = acme.only(&[Permission::PluginsRead]);
        let refused = app.app.upload_plugin(&reader, acme.org, acme_echo().into()).await;
        assert!(matches!(refused, Err(AppError::Forbidden(Permission::PluginsUpload))), "{refused:?}");
    }

    async fn a_manifests_mistake_is_named_with_its_place(app: TestApp) {
        let acme = app.tenant("acme").await;
        let bad = manifest("acme/echo", "1.0.0", |manifest| manifest["actions"][0]["nmae"] = json!("it"));
        // Past the check that honest tools make: the section is written by hand.
        let mut bytes = echo();
        bytes.extend(custom_section("bulkhead:manifest", bad.to_string().as_bytes()));
        let found = problems(upload(&app, &acme, bytes).await, "invalid-package");
        assert_eq!(found[0].1, "invalid-manifest");
        assert!(found[0].0.starts_with("/manifest/actions/0"), "{found:?}");
    }

    async fn a_body_that_takes_too_long_to_compile_is_refused_before_it_is_compiled(app: TestApp) {
        let acme = app.tenant("acme").await;
        let body = "(drop (i32.const 1))".repeat(400_000);
        let bomb = package(&crate::guests::action_of(&body), &manifest("acme/bomb", "1.0.0", asks_for_secret(false)));
        let found = problems(upload(&app, &acme, bomb).await, "invalid-package");
        assert_eq!(found, [(String::new(), "function-too-large".to_owned())]);
    }
}

fn custom_section(name: &str, data: &[u8]) -> Vec<u8> {
    fn leb(mut value: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        loop {
            let low = u8::try_from(value & 0x7f).unwrap();
            value >>= 7;
            bytes.push(if value == 0 { low } else { low | 0x80 });
            if value == 0 {
                return bytes;
            }
        }
    }
    let content = [leb(name.len()), name.as_bytes().to_vec(), data.to_vec()].concat();
    [vec![0], leb(content.len()), content].concat()
}
