//! What each noun's methods promise.

use std::time::Duration;

use bulkhead_audit::taxonomy::{Category, EventType, Severity};
use bulkhead_model::allow_list::AllowList;
use bulkhead_model::call::{CallError, EgressRecord, LogLine, Outcome, Refusal};
use bulkhead_model::grant::{GrantVersion, Grants};
use bulkhead_model::id::{ApiKeyId, InstallationId, OrgId, PluginId, RunId, WorkflowId};
use bulkhead_model::job::Lane;
use bulkhead_model::name::PluginName;
use bulkhead_model::permission::{Actor, Permission, SystemReason};
use bulkhead_model::run::{RunStatus, StepStatus};
use bulkhead_model::signature::{PublicKey, Required};
use bulkhead_model::time::Timestamp;
use bulkhead_model::token::SecretHash;
use bulkhead_store::StoreError;
use bulkhead_store::api_key::{ApiKey, KeyUsage, Signing, SigningKey};
use bulkhead_store::audit::AuditFilter;
use bulkhead_store::installation::InstallationState;
use bulkhead_store::org::Org;
use bulkhead_store::page::{PAGE_LIMIT_MAX, Page, PageRequest};
use bulkhead_store::run::{RunEvent, Step};
use serde_json::json;
use uuid::Uuid;

use crate::support::{ADMIN, JOBS, api_key, audit, call, installation, plugin, run, scope, step, version, workflow};

/// The nouns have no equality of their own; what they print shows every field.
#[track_caller]
fn assert_same<T: std::fmt::Debug>(found: &T, expected: &T) {
    assert_eq!(format!("{found:?}"), format!("{expected:?}"));
}

fn page(limit: u32, before: Option<Uuid>) -> PageRequest {
    PageRequest { before, limit }
}

/// Walks all pages of two and answers the ids in the order of the list.
macro_rules! walk {
    ($test:ident, $scope:expr, |$tx:ident, $page:ident| $list:expr, |$item:ident| $id:expr) => {{
        let mut ids = Vec::new();
        let mut before = None;
        loop {
            let $page = page(2, before);
            let found: Page<_> = tx!($test.read, &$scope, [$page], |$tx| $list).unwrap();
            assert!(found.items.len() <= 2);
            ids.extend(found.items.iter().map(|$item| $id));
            before = found.next;
            if before.is_none() {
                break;
            }
        }
        ids
    }};
}

#[track_caller]
fn assert_conflict<T: std::fmt::Debug>(result: Result<T, StoreError>) {
    let error = result.expect_err("a conflict");
    assert!(matches!(error, StoreError::Conflict { .. }), "{error:?}");
}

fn descending<T: Ord>(mut ids: Vec<T>) -> Vec<T> {
    ids.sort_by(|a, b| b.cmp(a));
    ids
}

/// Steps of a run without the sizes of their payloads.
async fn list_whole(tx: &mut bulkhead_store::Tx, run: RunId) -> Result<Vec<Step>, StoreError> {
    Ok(tx.list_steps(run).await?.into_iter().map(|(step, _)| step).collect())
}

on_both! {
    async fn an_organization_is_found_by_its_own_scope_and_by_its_short_name(test: TestStore) {
        let org = Org {
            id: OrgId::new(&test.ambient),
            slug: "acme".parse().unwrap(),
            name: "Acme ☃".to_owned(),
            created_at: test.ambient.now(),
        };
        let slug = org.slug.clone();
        tx!(test.write, &ADMIN, [org], |tx| tx.insert_org(org).await).unwrap();
        assert_same(&tx!(test.read, &scope(org.id), [], |tx| tx.require_org().await).unwrap(), &org);
        assert_same(&tx!(test.read, &ADMIN, [slug], |tx| tx.load_org_by_slug(slug).await).unwrap(), &Some(org.clone()));
        let unknown: bulkhead_model::name::Slug = "other".parse().unwrap();
        assert!(tx!(test.read, &ADMIN, [unknown], |tx| tx.load_org_by_slug(unknown).await).unwrap().is_none());
        let nobody = OrgId::new(&test.ambient);
        let missing = tx!(test.read, &scope(nobody), [], |tx| tx.require_org().await);
        assert!(matches!(missing, Err(StoreError::NotFound { what: "organization" })), "{missing:?}");

        let twin = Org { id: nobody, ..org.clone() };
        assert_conflict(tx!(test.write, &ADMIN, [twin], |tx| tx.insert_org(twin).await));
        // Only the operator's scope makes organizations, on both databases.
        let third = Org { slug: "third".parse().unwrap(), ..twin };
        let refused = tx!(test.write, &scope(org.id), [third], |tx| tx.insert_org(third).await);
        assert!(matches!(refused, Err(StoreError::Misuse(_))), "{refused:?}");
    }

    async fn how_a_keys_requests_are_signed_comes_back(test: TestStore) {
        let org = test.org("acme").await;
        // The public key of RFC 9421, appendix B.1.4.
        let public_key = PublicKey::parse("JrQLj5P/89iXES9+vFgrIy29clF9CC/oPPsw3c5D0bs=").unwrap();
        let with = [
            None,
            Some(Signing { key: SigningKey::Ed25519(public_key), required: Required::Always }),
            Some(Signing { key: SigningKey::HmacSha256("enc:v1:d1:CQkJ".to_owned()), required: Required::Sensitive }),
        ];
        let keys = with.map(|signing| ApiKey { signing, ..api_key(&test.ambient, "signs") }).to_vec();
        let back = tx!(test.write, &scope(org), [keys], |tx| {
            let mut back = Vec::new();
            for key in keys {
                tx.insert_api_key(key).await?;
                back.extend(tx.load_api_key(key.id).await?);
            }
            Ok(back)
        });
        assert_same(&back.unwrap(), &keys);
    }

    async fn where_a_key_may_be_used_comes_back_and_nothing_opens_it(test: TestStore) {
        let org = test.org("acme").await;
        let networks = AllowList::read(&["192.0.2.0/24", "2001:db8::/32"]).unwrap();
        let key = ApiKey { networks, ..api_key(&test.ambient, "office") };
        let id = key.id;
        tx!(test.write, &scope(org), [key], |tx| tx.insert_api_key(key).await).unwrap();
        let found = tx!(test.read, &scope(org), [id], |tx| tx.load_api_key(*id).await).unwrap().unwrap();
        assert_same(&found, &key);
        for broken in ["[]", "[\"anywhere\"]", "nothing"] {
            crate::keys::raw(&test, org, &format!("update api_key set networks = '{broken}' where networks is not null")).await;
            let found = tx!(test.read, &scope(org), [id], |tx| tx.load_api_key(*id).await);
            assert!(matches!(found, Err(StoreError::Corrupt { .. })), "{broken}: {found:?}");
        }
    }

    async fn usage_adds_up_by_day_and_the_last_use_never_goes_back(test: TestStore) {
        let org = test.org("acme").await;
        let (key, now) = (api_key(&test.ambient, "used"), test.ambient.now());
        let (id, earlier) = (key.id, now.minus(Duration::from_hours(2)));
        let shown = tx!(test.write, &scope(org), [key, id, now, earlier], |tx| {
            tx.insert_api_key(key).await?;
            for (day, requests, at) in [(20_000, 3, *earlier), (20_001, 4, *now), (20_001, 5, *earlier)] {
                tx.add_key_usage(*id, KeyUsage { day, requests }, at).await?;
            }
            let all = tx.list_key_usage(*id, 9).await?;
            let newest = tx.list_key_usage(*id, 1).await?;
            assert_eq!(tx.remove_key_usage(*id, 20_001).await?, 1);
            let left = tx.list_key_usage(*id, 9).await?;
            Ok((all, newest, left, tx.load_api_key(*id).await?.and_then(|key| key.last_used_at)))
        });
        let (day, of_before) = (KeyUsage { day: 20_001, requests: 9 }, KeyUsage { day: 20_000, requests: 3 });
        assert_eq!(shown.unwrap(), (vec![day, of_before], vec![day], vec![day], Some(now)));
    }

    /// What is not as it was written is no key that signs nothing.
    async fn half_of_how_a_key_signs_is_an_error(test: TestStore) {
        let org = test.org("acme").await;
        for column in ["signing_algorithm = 'ed25519'", "signing_required = 'always'", "signing_algorithm = 'none', signing_required = 'always'"] {
            let key = api_key(&test.ambient, "signs");
            tx!(test.write, &scope(org), [key], |tx| tx.insert_api_key(key).await).unwrap();
            crate::keys::raw(&test, org, &format!("update api_key set {column} where signing_required is null")).await;
            let id = key.id;
            let found = tx!(test.read, &scope(org), [id], |tx| tx.load_api_key(*id).await);
            assert!(matches!(found, Err(StoreError::Corrupt { .. })), "{column}: {found:?}");
            let whole = "update api_key set signing_algorithm = null, signing_required = null where 1 = 1";
            crate::keys::raw(&test, org, whole).await;
        }
    }

    async fn a_nonce_is_taken_once_by_each_key_until_nothing_is_good_with_it(test: TestStore) {
        let org = test.org("acme").await;
        let (one, two) = (api_key(&test.ambient, "one"), api_key(&test.ambient, "two"));
        let until = test.ambient.now().plus(Duration::from_mins(6));
        tx!(test.write, &scope(org), [one, two], |tx| {
            tx.insert_api_key(one).await?;
            tx.insert_api_key(two).await
        })
        .unwrap();
        let take = async |key: ApiKeyId, nonce: u8| {
            tx!(test.write, &scope(org), [key, nonce, until], |tx| tx.take_nonce(*key, &[*nonce; 32], *until).await).unwrap()
        };
        assert_eq!((take(one.id, 1).await, take(one.id, 1).await, take(one.id, 2).await), (true, false, true));
        assert!(take(two.id, 1).await, "another key's own");
        let sweep = async |before: Timestamp| {
            tx!(test.write, &scope(org), [before], |tx| tx.remove_nonces(*before).await).unwrap()
        };
        assert_eq!(sweep(until).await, 0);
        assert!(!take(one.id, 1).await);
        assert_eq!(sweep(until.plus(Duration::from_micros(1))).await, 3);
        assert!(take(one.id, 1).await);
    }

    async fn a_key_is_revoked_with_all_that_came_of_it(test: TestStore) {
        let (org, other) = (test.org("acme").await, test.org("other").await);
        let named = |name: &str, made_by| ApiKey { made_by, ..api_key(&test.ambient, name) };
        let (first, beside) = (named("first", None), named("beside", None));
        let second = named("second", Some(first.id));
        let (third, sibling) = (named("third", Some(second.id)), named("sibling", Some(first.id)));
        let keys = [&first, &beside, &second, &third, &sibling].map(Clone::clone).to_vec();
        for org in [org, other] {
            tx!(test.write, &scope(org), [keys], |tx| {
                for key in keys {
                    tx.insert_api_key(key).await?;
                }
                Ok(())
            })
            .unwrap();
        }
        let revoke = async |id: ApiKeyId| {
            let now = test.ambient.now();
            tx!(test.write, &scope(org), [id, now], |tx| tx.revoke_api_key(*id, *now).await).unwrap()
        };
        assert_eq!(revoke(third.id).await, [third.id]);
        // Through one that is revoked already, too.
        let mut both = vec![first.id, sibling.id, second.id];
        both.sort_unstable();
        assert_eq!(revoke(first.id).await, both);
        let valid = async |org: OrgId| {
            let listed = tx!(test.read, &scope(org), [], |tx| tx.list_api_keys(PageRequest::default()).await).unwrap();
            listed.items.iter().filter(|key| key.revoked_at.is_none()).count()
        };
        assert_eq!((valid(org).await, valid(other).await), (1, 5), "and nobody else's");
        let (now, later) = (test.ambient.now(), test.ambient.now().plus(Duration::from_hours(1)));
        let count = async |now: Timestamp, limit: u32| {
            tx!(test.read, &scope(other), [now, limit], |tx| tx.count_valid_api_keys(*now, *limit).await).unwrap()
        };
        assert_eq!((count(now, 9).await, count(now, 3).await, count(later, 9).await), (5, 3, 0));
        let (id, revoked) = (beside.id, first.id);
        let hash = SecretHash([9; 32]);
        let replaced = tx!(test.write, &scope(org), [id, revoked, hash, later], |tx| {
            assert!(!tx.replace_api_key_secret(*revoked, hash, *later).await?);
            assert!(tx.replace_api_key_secret(*id, hash, *later).await?);
            tx.load_api_key(*id).await
        });
        let replaced = replaced.unwrap().unwrap();
        assert_eq!((replaced.secret_hash, replaced.previous), (hash, Some((beside.secret_hash, later))));
    }

    async fn api_keys_round_trip_page_and_are_revoked_once(test: TestStore) {
        let org = test.org("acme").await;
        let scope = scope(org);
        let mut ids = Vec::new();
        for n in 0..5 {
            let mut key = api_key(&test.ambient, &format!("key {n}"));
            key.permissions = [Permission::RunsRead, Permission::OrgRead].into_iter().collect();
            key.expires_at = (n == 0).then_some(test.ambient.now());
            tx!(test.write, &scope, [key], |tx| tx.insert_api_key(key).await).unwrap();
            let id = key.id;
            let loaded = tx!(test.read, &scope, [id], |tx| tx.load_api_key(*id).await).unwrap().unwrap();
            assert_same(&loaded, &key);
            assert_eq!(loaded.secret_hash, key.secret_hash);
            ids.push(key.id);
            test.ambient.advance(Duration::from_millis(1));
        }
        assert_eq!(walk!(test, scope, |tx, page| tx.list_api_keys(*page).await, |key| key.id), descending(ids.clone()));

        let (id, now) = (ids[2], test.ambient.now());
        assert_eq!(tx!(test.write, &scope, [id, now], |tx| tx.revoke_api_key(*id, *now).await).unwrap(), [id]);
        assert_eq!(tx!(test.write, &scope, [id, now], |tx| tx.revoke_api_key(*id, *now).await).unwrap(), []);
        let revoked = tx!(test.read, &scope, [id], |tx| tx.load_api_key(*id).await).unwrap().unwrap();
        assert_eq!(revoked.revoked_at, Some(now));
        let unknown = ApiKeyId::new(&test.ambient);
        assert_eq!(tx!(test.write, &scope, [unknown, now], |tx| tx.revoke_api_key(*unknown, *now).await).unwrap(), []);
        assert!(tx!(test.read, &scope, [unknown], |tx| tx.load_api_key(*unknown).await).unwrap().is_none());
    }

    async fn a_page_holds_at_most_its_maximum(test: TestStore) {
        let scope = scope(test.org("acme").await);
        let keys: Vec<_> = (0..=PAGE_LIMIT_MAX).map(|n| api_key(&test.ambient, &n.to_string())).collect();
        tx!(test.write, &scope, [keys], |tx| {
            for key in keys {
                tx.insert_api_key(key).await?;
            }
            Ok(())
        }).unwrap();
        let greedy = page(u32::MAX, None);
        let found = tx!(test.read, &scope, [greedy], |tx| tx.list_api_keys(*greedy).await).unwrap();
        assert_eq!(found.items.len(), PAGE_LIMIT_MAX as usize);
        assert_eq!(found.next, found.items.last().map(|key| key.id.uuid()));
        let rest = page(0, found.next);
        let found = tx!(test.read, &scope, [rest], |tx| tx.list_api_keys(*rest).await).unwrap();
        assert_eq!((found.items.len(), found.next), (1, None));
    }

    async fn plugins_are_versions_of_stored_bytes(test: TestStore) {
        let scope = scope(test.org("acme").await);
        let (digest, now) = ([7; 32], test.ambient.now());
        let bytes: Vec<u8> = (0..=255).collect();
        let orphan = plugin(&test.ambient, "acme/echo", "1.0.0", digest);
        assert_conflict(tx!(test.write, &scope, [orphan], |tx| tx.insert_plugin(orphan).await));
        for _ in 0..2 {
            tx!(test.write, &scope, [digest, bytes, now], |tx| tx.insert_artifact(digest, bytes, *now).await).unwrap();
        }
        assert_eq!(tx!(test.read, &scope, [digest], |tx| tx.load_artifact(digest).await).unwrap(), Some(bytes.clone()));
        let other = [8; 32];
        assert_eq!(tx!(test.read, &scope, [other], |tx| tx.load_artifact(other).await).unwrap(), None);

        let mut ids = Vec::new();
        for (name, version) in [("acme/echo", "1.0.0"), ("acme/echo", "1.1.0"), ("acme/noise", "1.0.0")] {
            let new = plugin(&test.ambient, name, version, digest);
            assert!(tx!(test.write, &scope, [new], |tx| tx.insert_plugin(new).await).unwrap());
            let again = plugin(&test.ambient, name, version, digest);
            assert!(!tx!(test.write, &scope, [again], |tx| tx.insert_plugin(again).await).unwrap());
            let id = new.id;
            assert_same(&tx!(test.read, &scope, [id], |tx| tx.load_plugin(*id).await).unwrap(), &Some(new.clone()));
            let found = tx!(test.read, &scope, [name, version], |tx| tx.load_plugin_version(name, version).await).unwrap();
            assert_same(&found, &Some(new));
            ids.push(id);
            test.ambient.advance(Duration::from_millis(1));
        }
        assert_eq!(walk!(test, scope, |tx, page| tx.list_plugins(None, *page).await, |p| p.id), descending(ids.clone()));
        let echo = walk!(test, scope, |tx, page| tx.list_plugins(Some("acme/echo"), *page).await, |p| p.id);
        assert_eq!(echo, [ids[1], ids[0]]);
        let missing = tx!(test.read, &scope, [], |tx| tx.load_plugin_version("acme/echo", "9.0.0").await).unwrap();
        assert!(missing.is_none());

        // What stays of a deleted one counts: its manifest, which the history reads.
        let (gone, count) = (ids[0], async || tx!(test.read, &scope, [], |tx| tx.count_plugins().await).unwrap());
        let before = count().await;
        let deleted = tx!(test.write, &scope, [gone, now], |tx| {
            assert!(tx.delete_plugin(*gone, *now).await?);
            Ok(tx.load_plugin(*gone).await?.expect("its name stays"))
        });
        let deleted = deleted.unwrap();
        let manifest_bytes = serde_json::to_string(&deleted.manifest).unwrap().len() as u64;
        let size_bytes = u64::try_from(deleted.size_bytes).unwrap();
        let after = count().await;
        assert_eq!((before.versions, before.deleted, after.versions, after.deleted), (3, 0, 2, 1));
        assert_eq!(after.bytes, before.bytes - size_bytes + manifest_bytes);
    }

    async fn an_installation_changes_only_from_the_version_that_was_seen(test: TestStore) {
        let tenant = test.tenant("acme").await;
        let scope = tenant.scope();
        let id = tenant.installation.id;
        let loaded = tx!(test.read, &scope, [id], |tx| tx.load_installation(*id).await).unwrap();
        assert_same(&loaded, &Some(tenant.installation.clone()));
        let locked = tx!(test.write, &scope, [id], |tx| tx.lock_installation_version(*id).await).unwrap();
        assert_eq!(locked, Some((GrantVersion(1), InstallationState::Enabled)));

        let mut next = tenant.installation.clone();
        next.state = InstallationState::Disabled;
        next.settings = json!({ "z": 1, "a": 2 });
        next.updated_at = test.ambient.now().plus(Duration::from_secs(1));
        for (seen, expected) in [(2, false), (1, true), (1, false)] {
            let seen = GrantVersion(seen);
            let saved = tx!(test.write, &scope, [next, seen], |tx| tx.update_installation(next, *seen).await).unwrap();
            assert_eq!(saved, expected, "{seen:?}");
        }
        next.grant_version = GrantVersion(2);
        assert_same(&tx!(test.read, &scope, [id], |tx| tx.require_installation(*id).await).unwrap(), &next);

        next.state = InstallationState::Uninstalled;
        assert!(tx!(test.write, &scope, [next], |tx| tx.update_installation(next, next.grant_version).await).unwrap());
        let gone = tx!(test.read, &scope, [id], |tx| tx.require_installation(*id).await);
        assert!(matches!(gone, Err(StoreError::NotFound { what: "installation" })), "{gone:?}");
        assert!(tx!(test.read, &scope, [id], |tx| tx.load_installation(*id).await).unwrap().is_some());
        let unknown = InstallationId::new(&test.ambient);
        assert!(tx!(test.write, &scope, [unknown], |tx| tx.lock_installation_version(*unknown).await).unwrap().is_none());

        let orphan = installation(&test.ambient, PluginId::new(&test.ambient));
        assert_conflict(tx!(test.write, &scope, [orphan], |tx| tx.insert_installation(orphan).await));
        let mut ids = Vec::new();
        for _ in 0..3 {
            test.ambient.advance(Duration::from_millis(1));
            let new = installation(&test.ambient, tenant.plugin.id);
            ids.push(new.id);
            tx!(test.write, &scope, [new], |tx| tx.insert_installation(new).await).unwrap();
        }
        // The uninstalled one is history.
        assert_eq!(walk!(test, scope, |tx, page| tx.list_installations(*page).await, |i| i.id), descending(ids));
    }

    async fn a_step_finds_the_installation_that_it_means(test: TestStore) {
        let tenant = test.tenant("acme").await;
        let scope = tenant.scope();
        let (echo, noise): (PluginName, PluginName) = ("acme/echo".parse().unwrap(), "acme/noise".parse().unwrap());
        let only = tenant.installation.id;
        let find = async |plugin: &PluginName, named: Option<InstallationId>| {
            let found = tx!(test.read, &scope, [plugin, named], |tx| tx.load_installation_for(plugin, *named).await);
            found.unwrap().map(|(installation, plugin)| (installation.id, plugin.id))
        };
        let expected = Some((only, tenant.plugin.id));
        assert_eq!(find(&echo, None).await, expected);
        assert_eq!(find(&echo, Some(only)).await, expected);
        assert_eq!(find(&noise, None).await, None);
        assert_eq!(find(&noise, Some(only)).await, None);
        assert_eq!(find(&echo, Some(InstallationId::new(&test.ambient))).await, None);

        let second = installation(&test.ambient, tenant.plugin.id);
        tx!(test.write, &scope, [second], |tx| tx.insert_installation(second).await).unwrap();
        assert_eq!(find(&echo, None).await, None, "two to choose from");
        assert_eq!(find(&echo, Some(only)).await, expected);

        let mut gone = second.clone();
        gone.state = InstallationState::Uninstalled;
        assert!(tx!(test.write, &scope, [gone], |tx| tx.update_installation(gone, gone.grant_version).await).unwrap());
        assert_eq!(find(&echo, None).await, expected);
        assert_eq!(find(&echo, Some(second.id)).await, None);
    }

    async fn each_set_of_grants_is_kept_once(test: TestStore) {
        let tenant = test.tenant("acme").await;
        let (id, now) = (tenant.installation.id, test.ambient.now());
        let record = async |id: InstallationId, version: i64| {
            let version = GrantVersion(version);
            let actor = Actor::System(SystemReason::Admin);
            tx!(test.write, &tenant.scope(), [id, version, actor, now], |tx| {
                tx.record_grants(*id, *version, &Grants::default(), actor, *now).await
            })
        };
        record(id, 2).await.unwrap();
        assert_conflict(record(id, 2).await);
        assert_conflict(record(InstallationId::new(&test.ambient), 1).await);
    }

    async fn secrets_belong_to_their_installation_and_keep_their_row(test: TestStore) {
        let tenant = test.tenant("acme").await;
        let (scope, id) = (tenant.scope(), tenant.installation.id);
        let mut secret = tenant.secret.clone();
        let name = secret.name.clone();
        let load = async || tx!(test.read, &scope, [id, name], |tx| tx.load_secret(*id, name).await).unwrap();
        assert_same(&load().await, &Some(secret.clone()));
        assert_eq!(load().await.unwrap().ciphertext, secret.ciphertext);

        let mut twin = secret.clone();
        twin.id = bulkhead_model::id::SecretId::new(&test.ambient);
        assert_conflict(tx!(test.write, &scope, [twin], |tx| tx.insert_secret(twin).await));
        twin.name = "a_first".parse().unwrap();
        tx!(test.write, &scope, [twin], |tx| tx.insert_secret(twin).await).unwrap();
        let mut orphan = twin.clone();
        orphan.id = bulkhead_model::id::SecretId::new(&test.ambient);
        orphan.installation = InstallationId::new(&test.ambient);
        assert_conflict(tx!(test.write, &scope, [orphan], |tx| tx.insert_secret(orphan).await));

        "enc:v1:d2:AP8A".clone_into(&mut secret.ciphertext);
        secret.updated_at = test.ambient.now().plus(Duration::from_secs(5));
        tx!(test.write, &scope, [secret], |tx| tx.update_secret(secret).await).unwrap();
        assert_same(&load().await, &Some(secret.clone()));
        let listed = tx!(test.read, &scope, [id], |tx| tx.list_secrets(*id).await).unwrap();
        assert_eq!(listed.iter().map(|s| s.name.as_str()).collect::<Vec<_>>(), ["a_first", "bot_token"]);

        assert!(tx!(test.write, &scope, [id, name], |tx| tx.delete_secret(*id, name).await).unwrap());
        assert!(!tx!(test.write, &scope, [id, name], |tx| tx.delete_secret(*id, name).await).unwrap());
        assert!(load().await.is_none());
        assert_eq!(tx!(test.write, &scope, [id], |tx| tx.delete_secrets(*id).await).unwrap(), 1);
        assert!(tx!(test.read, &scope, [id], |tx| tx.list_secrets(*id).await).unwrap().is_empty());
    }

    async fn a_workflow_has_one_name_one_revision_and_all_its_versions(test: TestStore) {
        let tenant = test.tenant("acme").await;
        let (scope, id) = (tenant.scope(), tenant.workflow.id);
        assert_same(&tx!(test.read, &scope, [id], |tx| tx.require_workflow(*id).await).unwrap(), &tenant.workflow);
        let by_name = tx!(test.read, &scope, [], |tx| tx.load_workflow_by_name("Greet").await).unwrap();
        assert_same(&by_name, &Some(tenant.workflow.clone()));
        let other_case = tx!(test.read, &scope, [], |tx| tx.load_workflow_by_name("greet").await).unwrap();
        assert!(other_case.is_none(), "names differ by case on both databases");
        let twin = workflow(&test.ambient, "Greet");
        assert!(!tx!(test.write, &scope, [twin], |tx| tx.insert_workflow(twin).await).unwrap());

        let loaded = tx!(test.read, &scope, [id], |tx| tx.load_workflow_version(*id, 1).await).unwrap();
        assert_same(&loaded, &Some(tenant.version.clone()));
        let now = test.ambient.now();
        for n in 2..=4 {
            let next = version(n, now);
            tx!(test.write, &scope, [id, next], |tx| tx.insert_workflow_version(*id, next).await).unwrap();
            assert_conflict(tx!(test.write, &scope, [id, next], |tx| tx.insert_workflow_version(*id, next).await));
        }
        let listed = tx!(test.read, &scope, [id], |tx| tx.list_workflow_versions(*id, None, 3).await).unwrap();
        assert_eq!(listed.iter().map(|v| v.version).collect::<Vec<_>>(), [4, 3, 2]);
        let listed = tx!(test.read, &scope, [id], |tx| tx.list_workflow_versions(*id, Some(2), 3).await).unwrap();
        assert_eq!(listed.iter().map(|v| v.version).collect::<Vec<_>>(), [1]);
        let unknown = WorkflowId::new(&test.ambient);
        let orphan = version(1, now);
        assert_conflict(tx!(test.write, &scope, [unknown, orphan], |tx| tx.insert_workflow_version(*unknown, orphan).await));
        let missing = tx!(test.read, &scope, [unknown], |tx| tx.require_workflow(*unknown).await);
        assert!(matches!(missing, Err(StoreError::NotFound { what: "workflow" })), "{missing:?}");

        let mut next = tenant.workflow.clone();
        (next.name, next.active, next.current_version) = ("Welcome".to_owned(), true, 4);
        for (seen, expected) in [(7, false), (1, true), (1, false)] {
            let saved = tx!(test.write, &scope, [next, seen], |tx| tx.update_workflow(next, *seen).await).unwrap();
            assert_eq!(saved, expected, "{seen}");
        }
        next.revision = 2;
        assert_same(&tx!(test.read, &scope, [id], |tx| tx.load_workflow(*id).await).unwrap(), &Some(next.clone()));

        test.ambient.advance(Duration::from_millis(1));
        let second = workflow(&test.ambient, "Second");
        assert!(tx!(test.write, &scope, [second], |tx| tx.insert_workflow(second).await).unwrap());
        let mut taken = next.clone();
        taken.name.clone_from(&second.name);
        assert_conflict(tx!(test.write, &scope, [taken], |tx| tx.update_workflow(taken, 2).await));
        assert_eq!(walk!(test, scope, |tx, page| tx.list_workflows(*page).await, |w| w.id), [second.id, id]);
    }

    async fn a_hook_lives_until_it_is_rotated_out(test: TestStore) {
        let tenant = test.tenant("acme").await;
        let (scope, hook, workflow) = (tenant.scope(), tenant.hook.clone(), tenant.workflow.id);
        let id = hook.id;
        let loaded = tx!(test.read, &scope, [id], |tx| tx.load_hook(*id).await).unwrap();
        assert_same(&loaded, &Some(hook.clone()));
        assert_eq!(loaded.unwrap().secret_hash, hook.secret_hash);
        let mut other = hook.clone();
        (other.id, other.trigger) = (bulkhead_model::id::HookId::new(&test.ambient), "another".to_owned());
        tx!(test.write, &scope, [other], |tx| tx.insert_hook(other).await).unwrap();
        let list = async || {
            let hooks = tx!(test.read, &scope, [workflow], |tx| tx.list_hooks(*workflow).await).unwrap();
            hooks.into_iter().map(|hook| hook.trigger).collect::<Vec<_>>()
        };
        assert_eq!(list().await, ["another", "incoming"]);

        let end = test.ambient.now().plus(Duration::from_hours(1));
        let expired = tx!(test.write, &scope, [workflow, end], |tx| tx.expire_hooks(*workflow, "incoming", *end).await);
        assert_eq!(expired.unwrap(), 1);
        assert_eq!(list().await, ["another"]);
        let loaded = tx!(test.read, &scope, [id], |tx| tx.load_hook(*id).await).unwrap().unwrap();
        assert_eq!(loaded.expires_at, Some(end));
        let again = tx!(test.write, &scope, [workflow, end], |tx| tx.expire_hooks(*workflow, "incoming", *end).await);
        assert_eq!(again.unwrap(), 0);
        let remove = async |now: Timestamp| tx!(test.write, &scope, [workflow, now], |tx| tx.remove_expired_hooks(*workflow, *now).await).unwrap();
        assert_eq!(remove(test.ambient.now()).await, 0, "it lives until then");
        assert_eq!((remove(end).await, remove(end).await), (1, 0));
        assert_eq!(list().await, ["another"]);
        let mut orphan = hook.clone();
        (orphan.id, orphan.workflow) = (bulkhead_model::id::HookId::new(&test.ambient), WorkflowId::new(&test.ambient));
        assert_conflict(tx!(test.write, &scope, [orphan], |tx| tx.insert_hook(orphan).await));
    }

    async fn a_dedupe_key_starts_one_run_of_a_workflow(test: TestStore) {
        let tenant = test.tenant("acme").await;
        let (scope, id) = (tenant.scope(), tenant.workflow.id);
        let first = run(&test.ambient, id, Some("delivery-1"));
        let again = run(&test.ambient, id, Some("delivery-1"));
        assert!(tx!(test.write, &scope, [first], |tx| tx.insert_run(first).await).unwrap());
        assert!(!tx!(test.write, &scope, [again], |tx| tx.insert_run(again).await).unwrap());
        let found = tx!(test.read, &scope, [id], |tx| tx.load_run_by_dedupe_key(*id, "delivery-1").await).unwrap();
        assert_eq!(found, Some(first.id));
        let missing = tx!(test.read, &scope, [id], |tx| tx.load_run_by_dedupe_key(*id, "delivery-2").await).unwrap();
        assert_eq!(missing, None);
        // Without a key each is its own; another workflow's key is another key.
        for _ in 0..2 {
            let keyless = run(&test.ambient, id, None);
            assert!(tx!(test.write, &scope, [keyless], |tx| tx.insert_run(keyless).await).unwrap());
        }
        let (other, first_version) = (workflow(&test.ambient, "Other"), version(1, test.ambient.now()));
        let there = run(&test.ambient, other.id, Some("delivery-1"));
        let inserted = tx!(test.write, &scope, [other, first_version, there], |tx| {
            tx.insert_workflow(other).await?;
            tx.insert_workflow_version(other.id, first_version).await?;
            tx.insert_run(there).await
        });
        assert!(inserted.unwrap());
        let mut orphan = run(&test.ambient, id, None);
        orphan.version = 9;
        assert_conflict(tx!(test.write, &scope, [orphan], |tx| tx.insert_run(orphan).await));
    }

    async fn runs_change_and_are_listed_by_what_narrows_them(test: TestStore) {
        let tenant = test.tenant("acme").await;
        let (scope, workflow_id) = (tenant.scope(), tenant.workflow.id);
        let id = tenant.run.id;
        assert_same(&tx!(test.read, &scope, [id], |tx| tx.require_run(*id).await).unwrap(), &tenant.run);
        let mut next = tx!(test.write, &scope, [id], |tx| tx.lock_run(*id).await).unwrap();
        (next.status, next.state, next.generation) = (RunStatus::Waiting, r#"{"at":2}"#.to_owned(), 7);
        (next.output, next.error, next.log_seq) = (Some("null".to_owned()), Some("boom".to_owned()), 9);
        next.waiting_until = Some(Timestamp::from_micros(i64::MAX));
        next.finished_at = Some(Timestamp::from_micros(-1));
        tx!(test.write, &scope, [next], |tx| tx.update_run(next).await).unwrap();
        assert_same(&tx!(test.read, &scope, [id], |tx| tx.load_run(*id).await).unwrap(), &Some(next.clone()));
        let unknown = RunId::new(&test.ambient);
        let missing = tx!(test.write, &scope, [unknown], |tx| tx.lock_run(*unknown).await);
        assert!(matches!(missing, Err(StoreError::NotFound { what: "run" })), "{missing:?}");
        let missing = tx!(test.read, &scope, [unknown], |tx| tx.require_run(*unknown).await);
        assert!(matches!(missing, Err(StoreError::NotFound { what: "run" })), "{missing:?}");

        let mut ids = vec![id];
        for _ in 0..3 {
            test.ambient.advance(Duration::from_millis(1));
            let new = run(&test.ambient, workflow_id, None);
            ids.push(new.id);
            tx!(test.write, &scope, [new], |tx| tx.insert_run(new).await).unwrap();
        }
        let newest_first = descending(ids);
        let (queued, other) = (&newest_first[..3], WorkflowId::new(&test.ambient));
        let list = async |status, workflow| {
            walk!(test, scope, |tx, page| tx.list_runs(status, workflow, *page).await, |run| run.id)
        };
        assert_eq!(list(None, None).await, newest_first);
        assert_eq!(list(None, Some(workflow_id)).await, newest_first);
        assert_eq!(list(Some(RunStatus::Queued), None).await, queued);
        assert_eq!(list(Some(RunStatus::Queued), Some(workflow_id)).await, queued);
        assert_eq!(list(Some(RunStatus::Failed), None).await, []);
        assert_eq!(list(None, Some(other)).await, []);
        let everything = PageRequest::default();
        let all = tx!(test.read, &scope, [everything], |tx| tx.list_runs(None, None, *everything).await).unwrap();
        let last = all.items.last().unwrap();
        assert_eq!((last.id, last.status, last.waiting_until), (id, RunStatus::Waiting, next.waiting_until));

        // A worker holds the job of the run that waits: it is under way, and told so under every filter.
        let (worker, now, minute) = (test.worker().await, test.ambient.now(), Duration::from_mins(1));
        let claimed = tx!(test.write_locked, &JOBS, [worker, now, minute], |tx| {
            crate::support::claim_any(tx, *worker, Lane::Interactive, 9, *now, *minute).await
        });
        assert_eq!(claimed.unwrap().len(), 1);
        for workflow in [None, Some(workflow_id)] {
            assert_eq!(list(None, workflow).await, newest_first);
            assert_eq!(list(Some(RunStatus::Running), workflow).await, [id]);
            assert_eq!(list(Some(RunStatus::Waiting), workflow).await, []);
            assert_eq!(list(Some(RunStatus::Queued), workflow).await, queued);
        }
        assert_eq!(list(Some(RunStatus::Running), Some(other)).await, []);
        let all = tx!(test.read, &scope, [everything], |tx| tx.list_runs(None, None, *everything).await).unwrap();
        let last = all.items.last().unwrap();
        assert_eq!((last.id, last.status, last.waiting_until), (id, RunStatus::Running, None));
    }

    async fn a_step_keeps_its_place_and_its_first_start(test: TestStore) {
        let tenant = test.tenant("acme").await;
        let (scope, run) = (tenant.scope(), tenant.run.id);
        let mut send = tenant.step.clone();
        let before = step("check", 0, test.ambient.now());
        tx!(test.write, &scope, [run, before], |tx| tx.save_step(*run, before).await).unwrap();
        test.ambient.advance(Duration::from_secs(1));
        (send.status, send.outcome, send.attempts) = (StepStatus::Succeeded, Some("returned".to_owned()), 2);
        (send.output, send.usage, send.call) = (Some("{}".to_owned()), Some("{}".to_owned()), Some(tenant.call.id));
        send.finished_at = Some(test.ambient.now());
        let mut later = send.clone();
        (later.position, later.started_at) = (99, Some(test.ambient.now()));
        tx!(test.write, &scope, [run, later], |tx| tx.save_step(*run, later).await).unwrap();
        let steps = tx!(test.read, &scope, [run], |tx| list_whole(tx, *run).await).unwrap();
        assert_same(&steps, &vec![before.clone(), send.clone()]);
        // A change without a call keeps what is known of the last one.
        let mut cancelled = send.clone();
        (cancelled.status, cancelled.outcome, cancelled.input) = (StepStatus::Cancelled, None, None);
        (cancelled.output, cancelled.usage, cancelled.call) = (None, None, None);
        let (outcome, input, usage, call) = (send.outcome.clone(), send.input.clone(), send.usage.clone(), send.call);
        assert!(input.is_some());
        tx!(test.write, &scope, [run, cancelled], |tx| tx.save_step(*run, cancelled).await).unwrap();
        let steps = tx!(test.read, &scope, [run], |tx| list_whole(tx, *run).await).unwrap();
        let expected = Step { outcome, input, usage, call, ..cancelled };
        assert_same(&steps, &vec![before.clone(), expected]);
        // From a place on they are forgotten.
        let place = before.position + 1;
        tx!(test.write, &scope, [run, place], |tx| tx.delete_steps(*run, *place).await).unwrap();
        let steps = tx!(test.read, &scope, [run], |tx| list_whole(tx, *run).await).unwrap();
        assert_same(&steps, &vec![before.clone()]);
        // What is large is left out of the list, and is there when the step is asked for.
        let mut large = before.clone();
        (large.input, large.output) = (Some("i".repeat(4 * 1024 + 1)), Some("ö".repeat(32 * 1024)));
        tx!(test.write, &scope, [run, large], |tx| tx.save_step(*run, large).await).unwrap();
        let (listed, sizes) = tx!(test.read, &scope, [run], |tx| tx.list_steps(*run).await).unwrap().remove(0);
        assert_eq!((listed.input, &listed.output), (None, &large.output));
        assert_eq!((sizes.input_bytes, sizes.output_bytes), (Some(4 * 1024 + 1), Some(64 * 1024)));
        let shown = tx!(test.read, &scope, [run], |tx| tx.load_step(*run, "check").await).unwrap();
        assert_same(&shown, &Some(large.clone()));
        assert!(tx!(test.read, &scope, [run], |tx| tx.load_step(*run, "nowhere").await).unwrap().is_none());
        let (unknown, orphan) = (RunId::new(&test.ambient), later.clone());
        assert_conflict(tx!(test.write, &scope, [unknown, orphan], |tx| tx.save_step(*unknown, orphan).await));
    }

    async fn a_run_has_a_log_with_its_own_sequence(test: TestStore) {
        let tenant = test.tenant("acme").await;
        let (scope, run, now) = (tenant.scope(), tenant.run.id, test.ambient.now());
        let entry = |seq| RunEvent { seq, kind: "step.succeeded".to_owned(), detail: "{\"n\":1}".to_owned(), created_at: now };
        for seq in 2..=4 {
            let event = entry(seq);
            tx!(test.write, &scope, [run, event], |tx| tx.record_run_event(*run, event).await).unwrap();
        }
        let twice = entry(4);
        assert_conflict(tx!(test.write, &scope, [run, twice], |tx| tx.record_run_event(*run, twice).await));
        let log = tx!(test.read, &scope, [run], |tx| tx.list_run_events(*run, 1, 2).await).unwrap();
        assert_same(&log, &vec![entry(2), entry(3)]);
        let log = tx!(test.read, &scope, [run], |tx| tx.list_run_events(*run, 0, 100).await).unwrap();
        assert_eq!(log.iter().map(|e| e.seq).collect::<Vec<_>>(), [1, 2, 3, 4]);
        let (unknown, orphan) = (RunId::new(&test.ambient), entry(1));
        assert_conflict(tx!(test.write, &scope, [unknown, orphan], |tx| tx.record_run_event(*unknown, orphan).await));
    }

    async fn a_call_keeps_all_that_is_known_of_it(test: TestStore) {
        let tenant = test.tenant("acme").await;
        let (scope, inst) = (tenant.scope(), tenant.installation.id);
        let mut full = call(&test.ambient, inst, tenant.plugin.id, None);
        full.report.outcome = Outcome::PluginError;
        full.report.error = Some(CallError {
            code: "transient".to_owned(),
            message: "later".to_owned(),
            retryable: true,
            retry_after_ms: Some(5),
            limit: Some("requests".to_owned()),
        });
        full.report.log = vec![LogLine { level: "info".to_owned(), message: "a\u{1f980}".to_owned() }];
        full.report.log_truncated = true;
        full.report.egress = vec![EgressRecord {
            method: "GET".to_owned(),
            origin: "https://example.com:443".to_owned(),
            path: "/".to_owned(),
            status: Some(200),
            request_bytes: 1,
            response_bytes: u64::from(u32::MAX) * 4,
            duration_ms: 3,
            error: None,
        }];
        full.report.refusals =
            vec![Refusal { kind: "http".to_owned(), target: "x".to_owned(), reason: "not granted".to_owned() }];
        test.ambient.advance(Duration::from_millis(1));
        full.id = bulkhead_model::id::CallId::new(&test.ambient);
        let id = full.id;
        tx!(test.write, &scope, [full], |tx| tx.record_call(full).await).unwrap();
        assert_same(&tx!(test.read, &scope, [id], |tx| tx.load_call(*id).await).unwrap(), &Some(full.clone()));
        let first = tenant.call.id;
        let loaded = tx!(test.read, &scope, [first], |tx| tx.load_call(*first).await).unwrap();
        assert_same(&loaded, &Some(tenant.call.clone()));

        let list = async |inst: InstallationId, outcome| {
            walk!(test, scope, |tx, page| tx.list_calls(inst, outcome, *page).await, |call| call.id)
        };
        assert_eq!(list(inst, None).await, [id, first]);
        assert_eq!(list(inst, Some(Outcome::PluginError)).await, [id]);
        assert_eq!(list(InstallationId::new(&test.ambient), None).await, []);
        let orphan = call(&test.ambient, InstallationId::new(&test.ambient), tenant.plugin.id, None);
        assert_conflict(tx!(test.write, &scope, [orphan], |tx| tx.record_call(orphan).await));
    }

    async fn audit_is_read_by_the_request_that_it_was_written_in(test: TestStore) {
        let (tenant, other) = (test.tenant("acme").await, test.tenant("other").await);
        let (scope, ambient) = (tenant.scope(), test.ambient.clone());
        for (request, action, target) in [
            ("req-1", EventType::GrantsChanged, "inst_1"), ("req-1", EventType::GrantsChanged, "inst_2"),
            ("req-1", EventType::ApiKeyCreated, "inst_1"), ("req-2", EventType::GrantsChanged, "inst_1"),
        ] {
            ambient.advance(Duration::from_millis(1));
            let entry = audit(action, target);
            let writing = async { tx!(test.write, &scope, [entry, ambient], |tx| tx.record_audit(entry, ambient).await) };
            bulkhead_store::correlated(request, writing).await.unwrap();
        }
        let of = |request: &str| AuditFilter { correlation: Some(request.to_owned()), ..AuditFilter::default() };
        let narrowed = async |filter: AuditFilter| {
            let filter: &'static AuditFilter = Box::leak(Box::new(filter));
            walk!(test, scope, |tx, page| tx.list_audit(filter, *page).await, |e| {
                assert_eq!(e.correlation, filter.correlation);
                format!("{} {}", e.action, e.target)
            })
        };
        let all = ["api_key.created inst_1", "grants.changed inst_2", "grants.changed inst_1"];
        assert_eq!(narrowed(of("req-1")).await, all);
        assert_eq!(narrowed(of("req-2")).await, ["grants.changed inst_1"]);
        assert_eq!(narrowed(of("req-3")).await, Vec::<String>::new());
        let (action, target) = (Some("grants.changed".to_owned()), Some("inst_1".to_owned()));
        assert_eq!(narrowed(AuditFilter { action, ..of("req-1") }).await, all[1..]);
        assert_eq!(narrowed(AuditFilter { target, ..of("req-1") }).await, [all[0], all[2]]);
        assert_eq!(narrowed(AuditFilter { category: Some(Category::Api), ..of("req-1") }).await, all[..1]);
        assert_eq!(narrowed(AuditFilter { actor: Some("system:worker".to_owned()), ..of("req-1") }).await, Vec::<String>::new());
        let last = ambient.now().minus(Duration::from_millis(1));
        assert_eq!(narrowed(AuditFilter { from: Some(last), ..of("req-1") }).await, all[..1]);
        // What the host does by itself is no request's, and another organization sees none of it.
        let by_itself = tx!(test.read, &scope, [], |tx| tx.list_audit(&AuditFilter::default(), page(9, None)).await).unwrap();
        assert!(by_itself.items.iter().any(|entry| entry.correlation.is_none()));
        let (scope, filter) = (other.scope(), of("req-1"));
        assert!(tx!(test.read, &scope, [filter], |tx| tx.list_audit(filter, page(9, None)).await).unwrap().items.is_empty());
    }

    async fn audit_and_events_are_read_by_what_narrows_them(test: TestStore) {
        let tenant = test.tenant("acme").await;
        let (scope, ambient) = (tenant.scope(), test.ambient.clone());
        for (action, target) in [(EventType::GrantsChanged, "inst_1"), (EventType::GrantsChanged, "inst_2"), (EventType::ApiKeyCreated, "inst_1")] {
            ambient.advance(Duration::from_millis(1));
            let entry = audit(action, target);
            tx!(test.write, &scope, [entry, ambient], |tx| {
                tx.record_audit(entry, ambient).await?;
                tx.record_event(entry.action.as_str(), &entry.target, &json!({ "z": 1, "a": "\u{0}" }), ambient).await
            }).unwrap();
        }
        let narrowed = async |filter: AuditFilter| {
            // Closures travel to the connection's thread.
            let filter: &'static AuditFilter = Box::leak(Box::new(filter));
            walk!(test, scope, |tx, page| tx.list_audit(filter, *page).await, |e| format!("{} {}", e.action, e.target))
        };
        let found = async |action: Option<&'static str>, target: Option<&'static str>| {
            let (action, target) = (action.map(str::to_owned), target.map(str::to_owned));
            narrowed(AuditFilter { action, target, ..AuditFilter::default() }).await
        };
        assert_eq!(found(Some("grants.changed"), None).await, ["grants.changed inst_2", "grants.changed inst_1"]);
        assert_eq!(found(None, Some("inst_1")).await, ["api_key.created inst_1", "grants.changed inst_1"]);
        assert_eq!(found(Some("api_key.created"), Some("inst_2")).await, Vec::<String>::new());
        assert_eq!(found(None, None).await.len(), 4);
        // What follows from the action, who did it, and when.
        let of = |category, severity| AuditFilter { category, severity, ..AuditFilter::default() };
        let granted = ["grants.changed inst_2", "grants.changed inst_1"];
        assert_eq!(narrowed(of(Some(Category::Api), None)).await, ["api_key.created inst_1"]);
        assert_eq!(narrowed(of(None, Some(Severity::Warning))).await, granted);
        assert_eq!(narrowed(of(Some(Category::Configuration), Some(Severity::Warning))).await, granted);
        assert_eq!(narrowed(of(Some(Category::Configuration), None)).await.len(), 3, "the tenant's own upload as well, page by page");
        assert_eq!(narrowed(AuditFilter { action: Some("api_key.created".to_owned()), ..of(Some(Category::Security), None) }).await.len(), 0);
        let target = Some("inst_1".to_owned());
        assert_eq!(narrowed(AuditFilter { target, ..of(Some(Category::Configuration), None) }).await, ["grants.changed inst_1"]);
        let admin = Actor::System(SystemReason::Admin).to_string();
        for (actor, count) in [(admin.as_str(), 4), ("system:worker", 0)] {
            let by = AuditFilter { actor: Some(actor.to_owned()), ..AuditFilter::default() };
            assert_eq!(narrowed(by.clone()).await.len(), count, "{actor}");
            assert_eq!(narrowed(AuditFilter { category: Some(Category::Api), ..by }).await.len(), count / 4, "{actor}");
        }
        let last = ambient.now();
        let during = |from, to| AuditFilter { from, to, ..AuditFilter::default() };
        assert_eq!(narrowed(during(Some(last), None)).await, ["api_key.created inst_1"]);
        assert_eq!(narrowed(during(None, Some(last))).await.len(), 3);
        assert_eq!(narrowed(during(Some(last.minus(Duration::from_millis(1))), Some(last))).await, ["grants.changed inst_2"]);
        let kinds = walk!(test, scope, |tx, page| tx.list_events(Some("grants.changed"), *page).await, |e| e.subject.clone());
        assert_eq!(kinds, ["inst_2", "inst_1"]);
        let all = walk!(test, scope, |tx, page| tx.list_events(None, *page).await, |e| e.detail.clone());
        assert_eq!(all.len(), 4);
        assert_eq!(all[0].to_string(), r#"{"z":1,"a":"\u0000"}"#, "keys keep their order, escapes survive");
    }

    async fn text_with_a_nul_is_refused_alike(test: TestStore) {
        let scope = scope(test.org("acme").await);
        let key = api_key(&test.ambient, "a\0b");
        assert_conflict(tx!(test.write, &scope, [key], |tx| tx.insert_api_key(key).await));
    }

    async fn each_iteration_of_a_step_has_its_own_row(test: TestStore) {
        let tenant = test.tenant("acme").await;
        let mut step = tenant.step.clone();
        step.iteration = 1;
        let (run, scope) = (tenant.run.id, tenant.scope());
        tx!(test.write, &scope, [run, step], |tx| tx.save_step(*run, step).await).unwrap();
        let steps = tx!(test.read, &scope, [run], |tx| list_whole(tx, *run).await).unwrap();
        assert_eq!(steps.iter().map(|step| step.iteration).collect::<Vec<_>>(), [0, 1]);
    }
}
