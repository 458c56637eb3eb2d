//! Keys are replaced while everything goes on: by whoever may, by age, and when the operator's root key is another one.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bulkhead_app::data::{KeyRotation, StoredKey};
use bulkhead_app::key::{RootAct, RootDeed, RootMismatch, check_roots, keep_root_check, look_before_opening};
use bulkhead_app::supervise::Supervisor;
use bulkhead_app::worker::{Slots, WorkerConfig};
use bulkhead_app::workflow::SaveWorkflow;
use bulkhead_app::{App, AppError};
use bulkhead_keys::{KeyId, KeyState, Level};
use bulkhead_model::id::InstallationId;
use bulkhead_model::permission::{Permission, SystemReason, SystemScope};
use bulkhead_store::key::TendFrom;
use bulkhead_store::page::PageRequest;
use bulkhead_store::seal::{KeyPurpose, RootKey, RootKeys, Sealer};
use bulkhead_store::{Database, StoreConfig};
use bulkhead_test_support::wait::until_async;
use serde_json::json;
use zeroize::Zeroizing;

use crate::guests::{asks_for_secret, manifest, package, signs};
use crate::support::{PATIENCE, Tenant, TestApp, conflict, problems};

async fn work(app: &App) -> Supervisor {
    let supervisor = Supervisor::new();
    let config = WorkerConfig { name: "test".into(), slots: Slots::default(), heartbeat: None };
    app.start_worker(config, &supervisor).await.unwrap();
    supervisor
}

async fn keys(app: &TestApp, tenant: &Tenant) -> Vec<StoredKey> {
    app.app.show_keys(&tenant.caller, tenant.org).await.unwrap().keys
}

fn of(keys: &[StoredKey], purpose: KeyPurpose) -> Vec<(String, KeyState)> {
    keys.iter().filter(|key| key.purpose == purpose).map(|key| (key.id.to_string(), key.state)).collect()
}

async fn ended(app: &TestApp, tenant: &Tenant, rotation: &KeyRotation) -> KeyRotation {
    let shown = async || app.app.show_key_rotation(&tenant.caller, tenant.org, rotation.id).await.unwrap();
    let done = until_async(PATIENCE, async || shown().await.finished_at.is_some()).await;
    assert!(done, "{:?}", shown().await);
    shown().await
}

/// An installation that signs with a secret, and a workflow with webhook addresses.
async fn sealed_things(app: &TestApp, tenant: &Tenant) -> (InstallationId, Vec<String>) {
    let made =
        app.install(tenant, package(&signs(), &manifest("acme/it", "1.0.0", asks_for_secret(true))), json!({})).await;
    let (id, value) = (made.installation.id, Zeroizing::new("key".to_owned()));
    app.app.put_secret(&tenant.caller, tenant.org, id, "signing_key".parse().unwrap(), value).await.unwrap();
    let triggers: Vec<_> = (0..18).map(|number| json!({ "id": format!("hook-{number}"), "type": "webhook" })).collect();
    let definition = json!({
        "schema": 1, "name": "it", "triggers": triggers, "start": "end", "steps": { "end": { "type": "stop" } },
    });
    let save = SaveWorkflow { definition: definition.to_string(), summary: String::new() };
    let made = app.app.create_workflow(&tenant.caller, tenant.org, save).await.unwrap();
    (id, made.hooks.into_iter().map(|hook| hook.token).collect())
}

async fn tokens(app: &TestApp, tenant: &Tenant) -> Vec<String> {
    let workflows = app.app.list_workflows(&tenant.caller, tenant.org, PageRequest::default()).await.unwrap();
    let shown = app.app.show_workflow(&tenant.caller, tenant.org, workflows.items[0].id, None).await.unwrap();
    shown.hooks.into_iter().map(|hook| hook.token).collect()
}

fn spawn(future: impl Future<Output = ()> + Send + 'static) -> tokio::task::JoinHandle<()> {
    #[expect(clippy::disallowed_methods, reason = "a test waits for its tasks itself")]
    tokio::spawn(future)
}

fn sorted(mut tokens: Vec<String>) -> Vec<String> {
    tokens.sort_unstable();
    tokens
}

on_both! {
    async fn a_key_is_rotated_and_everything_opens_before_and_after(app: TestApp) {
        let acme = app.tenant("acme").await;
        let (id, addresses) = sealed_things(&app, &acme).await;
        let signed = async || {
            let call = app.app.call_once(&acme.caller, acme.org, id, "it".into(), json!("data")).await.unwrap();
            call.report.output.unwrap()
        };
        let signature = signed().await;
        app.app.seal_audit_log(acme.org, true).await.unwrap();
        let data = app.app.rotate_key(&acme.caller, acme.org, Level::Data).await.unwrap();
        assert_eq!((data.to_key.as_str(), data.left, data.done), ("d2", 20, 0));
        // Nobody works on it yet: all opens, and one of a level goes on at a time.
        assert_eq!(conflict(app.app.rotate_key(&acme.caller, acme.org, Level::Data).await), "key-rotation-running");
        let org = app.app.rotate_key(&acme.caller, acme.org, Level::Organization).await.unwrap();
        assert_eq!((signed().await, sorted(tokens(&app, &acme).await)), (signature.clone(), sorted(addresses.clone())));

        let supervisor = work(&app.app).await;
        let (data, org) = (ended(&app, &acme, &data).await, ended(&app, &acme, &org).await);
        assert_eq!(((data.done, data.left), (org.done, org.left)), ((20, 0), (2, 0)));
        let retired = async || keys(&app, &acme).await.iter().filter(|key| key.state == KeyState::Retired).count() == 2;
        assert!(until_async(PATIENCE, retired).await);
        let now = keys(&app, &acme).await;
        let expected = |new: &str, old: &str| [(new.to_owned(), KeyState::Active), (old.to_owned(), KeyState::Retired)];
        assert_eq!(of(&now, KeyPurpose::Organization), expected("o2", "o1"));
        assert_eq!(of(&now, KeyPurpose::Field), expected("d2", "d1"));
        assert_eq!((signed().await, sorted(tokens(&app, &acme).await)), (signature, sorted(addresses)));
        app.app.export_audit(&acme.caller, acme.org, 0, None).await.unwrap();

        let told: Vec<_> = app.audit(&acme, "key.rotated").await.iter().map(|entry| entry.detail["level"].clone()).collect();
        assert_eq!(told, ["organization", "data"]);
        assert_eq!(app.audit(&acme, "key.rotated").await[0].actor, acme.caller.actor().to_string());
        assert_eq!(app.audit(&acme, "key.retired").await.len(), 2);
        let listed = app.app.list_key_rotations(&acme.caller, acme.org, PageRequest::default()).await.unwrap();
        assert_eq!(listed.items, [org, data]);
        assert!(supervisor.shut_down(PATIENCE).await);
    }

    async fn what_is_done_to_root_keys_is_told_to_each_organization_once(app: TestApp) {
        let tenants = [app.tenant("acme").await, app.tenant("other").await];
        let root = RootKey::new([3; 32]).id().to_string();
        let act = |id: &str, what| RootAct {
            id: id.to_owned(),
            what,
            root: root.clone(),
            was: Some("next".to_owned()),
            is: Some("active".to_owned()),
            instead_of: Some(RootKey::new([7; 32]).id().to_string()),
            at: app.app.ambient().now(),
        };
        // A server that stopped half-way tells it again.
        for told in [2, 0] {
            assert_eq!(app.app.tell_root_act(&act("0011223344556677", RootDeed::Used)).await.unwrap(), told);
        }
        assert_eq!(app.app.tell_root_act(&act("0011223344556678", RootDeed::Used)).await.unwrap(), 2, "another act");
        app.app.tell_root_act(&act("0011223344556679", RootDeed::Removed)).await.unwrap();
        for tenant in &tenants {
            let told = app.audit(tenant, "root_key.used").await;
            assert_eq!((told.len(), &told[0].target, told[0].actor.as_str()), (2, &root, "system:admin"));
            assert_eq!(told[0].detail["state"], json!({ "before": "next", "after": "active" }));
            assert_eq!(told[0].detail["instead_of"], json!(RootKey::new([7; 32]).id().to_string()));
            assert_eq!(app.audit(tenant, "root_key.removed").await.len(), 1);
        }
    }

    async fn whoever_may_not_sees_and_rotates_nothing(app: TestApp) {
        let (acme, other) = (app.tenant("acme").await, app.tenant("other").await);
        let rotation = app.app.rotate_key(&acme.caller, acme.org, Level::Data).await.unwrap();
        let reader = acme.only(&[Permission::EncryptionRead]);
        assert!(app.app.show_key_rotation(&reader, acme.org, rotation.id).await.is_ok());
        let refused = app.app.rotate_key(&reader, acme.org, Level::Organization).await;
        assert!(matches!(refused, Err(AppError::Forbidden(Permission::EncryptionRotate))), "{refused:?}");
        let rotator = acme.only(&[Permission::EncryptionRotate, Permission::SecretsWrite]);
        let refused = app.app.show_keys(&rotator, acme.org).await;
        assert!(matches!(refused, Err(AppError::Forbidden(Permission::EncryptionRead))), "{refused:?}");
        let hidden = app.app.show_keys(&other.caller, acme.org).await;
        assert!(matches!(hidden, Err(AppError::NotFound { .. })), "{hidden:?}");
        let hidden = app.app.show_key_rotation(&other.caller, other.org, rotation.id).await;
        assert!(matches!(hidden, Err(AppError::NotFound { .. })), "{hidden:?}");
        // The root key is the operator's.
        assert_eq!(problems(app.app.rotate_key(&acme.caller, acme.org, Level::Root).await, "invalid-level")[0].0, "/level");
    }

    /// What is due is found by the job itself: here both keys by their age, and nobody asked for one of them.
    async fn keys_that_are_old_are_replaced_by_themselves(app: TestApp) {
        let acme = app.tenant("acme").await;
        let (_, addresses) = sealed_things(&app, &acme).await;
        app.ambient.advance(Duration::from_hours(24 * 366));
        let asked = app.app.rotate_key(&acme.caller, acme.org, Level::Data).await.unwrap();
        let supervisor = work(&app.app).await;
        ended(&app, &acme, &asked).await;
        let aged = async || {
            let listed = app.app.list_key_rotations(&acme.caller, acme.org, PageRequest::default()).await.unwrap();
            listed.items.iter().any(|rotation| rotation.level == Level::Organization && rotation.finished_at.is_some())
        };
        assert!(until_async(PATIENCE, aged).await);
        let by_age = app.audit(&acme, "key.rotated").await.into_iter().find(|entry| entry.detail["level"] == "organization");
        let by_age = by_age.unwrap();
        assert_eq!((by_age.detail["reason"].as_str(), by_age.actor.as_str()), (Some("age"), "system:worker"));
        assert_eq!(sorted(tokens(&app, &acme).await), sorted(addresses));
        assert!(supervisor.shut_down(PATIENCE).await);
    }

    async fn root_keys_that_lack_one_which_is_needed_are_refused(app: TestApp) {
        let acme = app.tenant("acme").await;
        sealed_things(&app, &acme).await;
        let sealer = |byte| Sealer::new(&RootKey::new([byte; 32]), app.ambient.clone());
        check_roots(&app.store, &sealer(7)).await.unwrap();
        let refused = check_roots(&app.store, &sealer(8)).await.unwrap_err();
        assert!(matches!(&refused, RootMismatch::Missing { keys: 1, people: 0, .. }), "{refused:?}");
        let text = refused.to_string();
        assert!(text.contains(&RootKey::new([7; 32]).id().to_string()) && text.contains("Nothing was changed"), "{text}");
    }

    /// Before the schema is brought up to date: whoever has the wrong keys leaves the database as it was for whoever has the right ones.
    async fn root_keys_are_compared_before_anything_is_changed(app: TestApp) {
        let acme = app.tenant("acme").await;
        sealed_things(&app, &acme).await;
        let sealer = |byte| Sealer::new(&RootKey::new([byte; 32]), app.ambient.clone());
        keep_root_check(&app.store, &sealer(7), &app.ambient).await.unwrap();
        // As an older version left it.
        app.tamper(acme.org, "delete from _sqlx_migrations where version = (select max(version) from _sqlx_migrations)");
        let config = app.owner_config();
        look_before_opening(&config, &sealer(7)).await.unwrap();
        let refused = look_before_opening(&config, &sealer(8)).await.unwrap_err();
        assert!(matches!(&refused, RootMismatch::Missing { .. } | RootMismatch::First { .. }), "{refused:?}");
        // Where there is nothing yet there is nothing to compare.
        let empty = tempfile::tempdir().unwrap();
        let database = Database::Sqlite { dir: empty.path().join("none") };
        look_before_opening(&StoreConfig { database, connections_max: 1 }, &sealer(8)).await.unwrap();
        assert!(!empty.path().join("none").exists(), "looking makes nothing");
    }

    /// Also one that wraps nothing any longer is needed: what is not wrapped comes from the first one.
    async fn another_first_root_key_is_refused(app: TestApp) {
        let roots = |keys: &[u8]| {
            let mut keys = keys.iter().map(|byte| RootKey::new([*byte; 32]));
            let first = RootKeys::single(keys.next().unwrap());
            let used = |roots: RootKeys, key| roots.with_next(key).unwrap().with_next_in_use().unwrap();
            Sealer::with_roots(Arc::new(keys.fold(first, used)), app.ambient.clone())
        };
        let first_refused = async |keys: &[u8]| {
            let refused = check_roots(&app.store, &roots(keys)).await.unwrap_err();
            let text = refused.to_string();
            assert!(matches!(refused, RootMismatch::First { .. }), "{text}");
            assert!(text.contains(&RootKey::new([7; 32]).id().to_string()) && text.contains("Nothing was changed"), "{text}");
        };
        // Before anybody has a key, and before the first start.
        check_roots(&app.store, &roots(&[8])).await.unwrap();
        keep_root_check(&app.store, &roots(&[7]), &app.ambient).await.unwrap();
        keep_root_check(&app.store, &roots(&[8]), &app.ambient).await.unwrap();
        first_refused(&[8]).await;
        let acme = app.tenant("acme").await;
        sealed_things(&app, &acme).await;
        let both = roots(&[7, 8]);
        let scope = SystemScope::new(SystemReason::Worker).for_org(acme.org);
        let tended = app.store.write_locked(&scope, both.clone(), |tx, both| {
            Box::pin(async move { tx.tend_keys(both, TendFrom::START, 9).await })
        });
        assert_eq!(tended.await.unwrap().org_keys, 1);
        check_roots(&app.store, &both).await.unwrap();
        first_refused(&[8]).await;
        first_refused(&[8, 7]).await;
        let missing = check_roots(&app.store, &roots(&[7])).await.unwrap_err();
        assert!(matches!(missing, RootMismatch::Missing { .. }), "{missing:?}");
    }

    /// One value that is damaged, by whomever, keeps the key that it names; it holds up neither this rotation nor the next one.
    async fn a_value_that_does_not_open_holds_up_no_rotation(app: TestApp) {
        let acme = app.tenant("acme").await;
        sealed_things(&app, &acme).await;
        let damage = "update hook set ciphertext = substr(ciphertext, 1, 40) || 'AAAA' || substr(ciphertext, 45) where trigger_id = 'hook-3'";
        app.tamper(acme.org, damage);
        let first = app.app.rotate_key(&acme.caller, acme.org, Level::Data).await.unwrap();
        let supervisor = work(&app.app).await;
        let first = ended(&app, &acme, &first).await;
        assert_eq!((first.left, first.broken), (1, 1));
        assert_eq!(tokens(&app, &acme).await.len(), 17, "the others are shown");
        let told = app.audit(&acme, "key.rotation_incomplete").await;
        assert_eq!((told.len(), &told[0].detail["broken"]), (1, &json!(1)));
        let second = app.app.rotate_key(&acme.caller, acme.org, Level::Data).await.unwrap();
        let second = ended(&app, &acme, &second).await;
        assert_eq!((second.to_key.as_str(), second.left, second.broken), ("d3", 1, 1));
        let d2_is_gone = async || keys(&app, &acme).await.iter().any(|key| key.id == KeyId::Data(2) && key.state == KeyState::Retired);
        assert!(until_async(PATIENCE, d2_is_gone).await);
        let expected = [
            ("d3".to_owned(), KeyState::Active), ("d2".to_owned(), KeyState::Retired), ("d1".to_owned(), KeyState::DecryptOnly),
        ];
        assert_eq!(of(&keys(&app, &acme).await, KeyPurpose::Field), expected);
        // The organization's own key is replaced as before, and looks for no further rotation of data keys.
        let org = app.app.rotate_key(&acme.caller, acme.org, Level::Organization).await.unwrap();
        ended(&app, &acme, &org).await;
        let listed = app.app.list_key_rotations(&acme.caller, acme.org, PageRequest::default()).await.unwrap();
        assert_eq!(listed.items.len(), 3, "{:?}", listed.items);
        assert!(supervisor.shut_down(PATIENCE).await);
    }

    /// Addresses are read and opened, while their key is replaced and destroyed again and again.
    async fn addresses_are_shown_while_their_key_is_replaced(app: TestApp) {
        let acme = app.tenant("acme").await;
        let (_, addresses) = sealed_things(&app, &acme).await;
        let workflows = app.app.list_workflows(&acme.caller, acme.org, PageRequest::default()).await.unwrap();
        let (id, stop, reads) = (workflows.items[0].id, Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let readers: Vec<_> = (0..2).map(|_| {
            let (app, acme, stop, reads) = (app.app.clone(), acme.clone(), Arc::clone(&stop), Arc::clone(&reads));
            spawn(async move {
                while !stop.load(Ordering::SeqCst) {
                    let shown = app.show_workflow(&acme.caller, acme.org, id, None).await.unwrap();
                    assert_eq!(shown.hooks.len(), 18);
                    reads.fetch_add(1, Ordering::SeqCst);
                }
            })
        }).collect();
        let sealer = Sealer::new(&RootKey::new([7; 32]), app.ambient.clone());
        let scope = SystemScope::new(SystemReason::Worker).for_org(acme.org);
        for round in 1..=40_u64 {
            let replaced = app.store.write_locked(&scope, sealer.clone(), |tx, sealer| {
                Box::pin(async move { tx.replace_data_key(sealer).await.map(drop) })
            });
            replaced.await.unwrap();
            let tended = app.store.write_locked(&scope, sealer.clone(), |tx, sealer| {
                Box::pin(async move { tx.tend_keys(sealer, TendFrom::START, 100).await })
            });
            assert_eq!(tended.await.unwrap().retired.len(), 1);
            let going = async || readers.iter().any(tokio::task::JoinHandle::is_finished) || reads.load(Ordering::SeqCst) >= round;
            assert!(until_async(PATIENCE, going).await);
            assert!(!readers.iter().any(tokio::task::JoinHandle::is_finished), "a reader failed");
        }
        stop.store(true, Ordering::SeqCst);
        for reader in readers {
            reader.await.unwrap();
        }
        assert_eq!(sorted(tokens(&app, &acme).await), sorted(addresses));
    }
}
