//! Keys at rest: what is sealed opens in its place and nowhere else, and goes on opening while keys change under it.

use std::collections::BTreeSet;
use std::io::Cursor;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use bulkhead_keys::life::{DATA_KEY_AGE_MAX, USES_MAX, USES_WARN};
use bulkhead_keys::record::{self, Random};
use bulkhead_keys::{Context, Key, KeyError, KeyId, KeyState, Level, Purpose, RootProvider as _};
use bulkhead_model::ambient::Ambient;
use bulkhead_model::id::{HookId, KeyRotationId, OrgId, SecretId};
use bulkhead_model::token::SecretHash;
use bulkhead_store::api_key::SigningKey;
use bulkhead_store::backup;
use bulkhead_store::hook::Hook;
use bulkhead_store::key::rotation::{KeyRotation, KeyWork, RotationReason};
use bulkhead_store::key::{SEALED, StoredKey, TendFrom, Tended};
use bulkhead_store::page::PageRequest;
use bulkhead_store::seal::{KeyPurpose, Place, RootKey, RootKeys, Sealer};
use bulkhead_store::secret::Secret;
use bulkhead_store::{StoreError, Tx};
use sqlx::AssertSqlSafe;

use crate::support::{ADMIN, JOBS, Tenant, TestStore, scope, spawn};

fn root_bytes(byte: u8) -> [u8; 32] {
    let mut bytes = [0xa7; 32];
    bytes[0] = byte;
    bytes
}

pub(crate) fn root(byte: u8) -> RootKey {
    RootKey::new(root_bytes(byte))
}

pub(crate) fn sealer(ambient: &Ambient) -> Sealer {
    Sealer::new(&root(1), ambient.clone())
}

/// What a tenant has in the tables of keys.
#[derive(Clone, Debug)]
pub(crate) struct KeyRows {
    pub(crate) rotation: KeyRotation,
}

impl KeyRows {
    pub(crate) fn new(ambient: &Ambient) -> Self {
        let now = ambient.now();
        let rotation = KeyRotation {
            id: KeyRotationId::new(ambient),
            level: Level::Data,
            reason: RotationReason::Asked,
            actor: "key_1".to_owned(),
            to_key: "d1".to_owned(),
            done: 3,
            left: 4,
            broken: 1,
            created_at: now,
            updated_at: now,
            finished_at: None,
        };
        Self { rotation }
    }

    pub(crate) async fn insert(&self, tx: &mut Tx, ambient: &Ambient) -> Result<(), StoreError> {
        tx.seal(&sealer(ambient), &elsewhere(tx.org()?), b"x").await?;
        assert!(tx.insert_key_rotation(&self.rotation).await?);
        Ok(())
    }

    /// What the organization's keys look like from inside.
    pub(crate) async fn picture(tx: &mut Tx) -> Result<String, StoreError> {
        Ok(format!("{:?}\n{:?}", tx.list_keys().await?, tx.list_key_rotations(PageRequest::default()).await?))
    }
}

/// A place that no row has.
pub(crate) fn elsewhere(org: OrgId) -> Place<'static> {
    Place { table: "secret", column: "ciphertext", org, row: uuid::Uuid::nil() }
}

pub(crate) fn secret_place(org: OrgId, id: SecretId) -> Place<'static> {
    Place { table: "secret", column: "ciphertext", org, row: id.uuid() }
}

/// Where the secret lies that the tenant's API key shares with its owner.
fn shared_place(tenant: &Tenant) -> Place<'static> {
    Place { table: "api_key", column: "signing_secret", org: tenant.org, row: tenant.api_key.id.uuid() }
}

/// A text as data key 1 of an organization would seal it, under a key that nobody has.
pub(crate) fn foreign_text(org: OrgId) -> String {
    let (organization, place) = (org.uuid(), elsewhere(org));
    let context = Context {
        organization: organization.as_bytes(),
        table: place.table,
        column: place.column,
        row: place.row.as_bytes(),
        purpose: Purpose::Field,
    };
    record::seal(&Key::new([9; 32]), KeyId::Data(1), &context, Random { salt: [1; 16], nonce: [2; 12] }, b"x").unwrap()
}

/// Past the store, in the organization's context.
pub(crate) async fn raw(test: &TestStore, org: OrgId, sql: &str) {
    if test.store.is_postgres() {
        let mut conn = test.raw_postgres().await;
        let set = "select set_config('app.org_id', $1, false)";
        sqlx::query(set).bind(org.uuid().to_string()).execute(&mut conn).await.unwrap();
        assert!(sqlx::query(AssertSqlSafe(sql.to_owned())).execute(&mut conn).await.unwrap().rows_affected() > 0);
    } else {
        let mut conn = test.raw_sqlite().await;
        let hex = hex::encode(org.uuid().as_bytes());
        let sql = format!("{sql} and org_id = x'{hex}'");
        assert!(sqlx::query(AssertSqlSafe(sql)).execute(&mut conn).await.unwrap().rows_affected() > 0);
    }
}

/// Every value of a column, past the store.
async fn raw_texts(test: &TestStore, org: OrgId, table: &str, column: &str) -> Vec<String> {
    if test.store.is_postgres() {
        let mut conn = test.raw_postgres().await;
        let set = "select set_config('app.org_id', $1, false)";
        sqlx::query(set).bind(org.uuid().to_string()).execute(&mut conn).await.unwrap();
        let sql = format!("select \"{column}\"::text from \"{table}\" where \"{column}\" is not null");
        sqlx::query_scalar(AssertSqlSafe(sql)).fetch_all(&mut conn).await.unwrap()
    } else {
        let mut conn = test.raw_sqlite().await;
        let sql = format!("select \"{column}\" from \"{table}\" where typeof(\"{column}\") = 'text'");
        sqlx::query_scalar(AssertSqlSafe(sql)).fetch_all(&mut conn).await.unwrap()
    }
}

async fn seal(
    test: &TestStore,
    sealer: &Sealer,
    place: Place<'static>,
    plain: &'static [u8],
) -> Result<String, StoreError> {
    let scope = scope(place.org);
    tx!(test.write, &scope, [sealer, place], |tx| tx.seal(sealer, place, plain).await)
}

async fn open(test: &TestStore, sealer: &Sealer, place: Place<'static>, text: &str) -> Result<Vec<u8>, StoreError> {
    let (scope, text) = (scope(place.org), text.to_owned());
    let opened = tx!(test.read, &scope, [sealer, place, text], |tx| tx.open_sealed(sealer, place, text).await);
    opened.map(|plain| plain.to_vec())
}

pub(crate) async fn keys(test: &TestStore, org: OrgId) -> Vec<StoredKey> {
    tx!(test.read, &scope(org), [], |tx| tx.list_keys().await).unwrap()
}

/// Ids and states of the keys of one purpose, newest first.
async fn states(test: &TestStore, org: OrgId, purpose: KeyPurpose) -> Vec<(String, KeyState)> {
    let keys = keys(test, org).await;
    keys.iter().filter(|key| key.purpose == purpose).map(|key| (key.id.to_string(), key.state)).collect()
}

async fn tend(test: &TestStore, sealer: &Sealer, org: OrgId, from: TendFrom, batch: u32) -> Result<Tended, StoreError> {
    tx!(test.write_locked, &scope(org), [sealer, from, batch], |tx| tx.tend_keys(sealer, *from, *batch).await)
}

/// A pass from the beginning to its end, in small batches; answers what it came to in all.
pub(crate) async fn whole_pass(test: &TestStore, sealer: &Sealer, org: OrgId) -> Tended {
    let (mut all, mut from) = (Tended::default(), TendFrom::START);
    loop {
        let tended = tend(test, sealer, org, from, 2).await.unwrap();
        all.org_keys += tended.org_keys;
        all.data_keys += tended.data_keys;
        all.values += tended.values;
        all.broken += tended.broken;
        // Keys are looked at in each batch.
        all.broken_org_keys = tended.broken_org_keys;
        all.broken_data_keys = tended.broken_data_keys;
        all.retired.extend(tended.retired);
        match tended.next {
            Some(next) => from = next,
            None => return all,
        }
    }
}

pub(crate) async fn work(test: &TestStore, sealer: &Sealer, org: OrgId) -> KeyWork {
    tx!(test.read, &scope(org), [sealer], |tx| tx.count_key_work(sealer).await).unwrap()
}

/// A tenant whose sealed columns hold real values: secrets, hooks, and the key of the audit log.
pub(crate) struct Filled {
    pub(crate) tenant: Tenant,
    secrets: Vec<Secret>,
    hooks: Vec<Hook>,
}

fn plain_of(number: usize) -> String {
    format!("value {number}")
}

pub(crate) async fn filled(test: &TestStore, slug: &str, count: usize, sealer: &Sealer) -> Filled {
    let (tenant, ambient) = (test.tenant(slug).await, test.ambient.clone());
    let sample = Secret { ciphertext: String::new(), ..tenant.secret.clone() };
    let mut secrets = vec![sample.clone()];
    secrets.extend((1..count).map(|number| Secret {
        id: SecretId::new(&ambient),
        name: format!("secret_{number}").parse().unwrap(),
        ..sample.clone()
    }));
    let mut hooks = vec![tenant.hook.clone()];
    hooks.extend((1..count).map(|number| Hook {
        id: HookId::new(&ambient),
        trigger: format!("hook_{number}"),
        secret_hash: SecretHash([1; 32]),
        ..tenant.hook.clone()
    }));
    let (secrets, hooks) = tx!(test.write, &tenant.scope(), [tenant, secrets, hooks, sealer], |tx| {
        let org = tx.org()?;
        // The rows that the tenant came with hold no real values.
        tx.delete_secrets(tenant.installation.id).await?;
        let (mut secrets, mut hooks) = (secrets.clone(), hooks.clone());
        for (number, secret) in secrets.iter_mut().enumerate() {
            let plain = plain_of(number);
            secret.ciphertext = tx.seal(sealer, &secret_place(org, secret.id), plain.as_bytes()).await?;
            tx.insert_secret(secret).await?;
        }
        for (number, hook) in hooks.iter_mut().enumerate() {
            let place = Place { table: "hook", column: "ciphertext", org, row: hook.id.uuid() };
            hook.ciphertext = tx.seal(sealer, &place, plain_of(number).as_bytes()).await?;
            if number > 0 {
                tx.insert_hook(hook).await?;
            }
        }
        Ok((secrets, hooks))
    })
    .unwrap();
    let shared = seal(test, sealer, shared_place(&tenant), b"shared").await.unwrap();
    let signs = format!("signing_algorithm = 'hmac-sha256', signing_required = 'always', signing_secret = '{shared}'");
    raw(test, tenant.org, &format!("update api_key set {signs} where signing_secret is null")).await;
    let log = Place { table: "audit_log", column: "signing_key", org: tenant.org, row: tenant.org.uuid() };
    let seed = seal(test, sealer, log, b"seed").await.unwrap();
    raw(test, tenant.org, &format!("update audit_log set signing_key = '{seed}' where 1 = 1")).await;
    let first = &hooks[0].ciphertext;
    raw(test, tenant.org, &format!("update hook set ciphertext = '{first}' where ciphertext = 'enc:v1:d1:CQkJ'")).await;
    Filled { tenant, secrets, hooks }
}

impl Filled {
    /// Opens every value as it is stored now.
    pub(crate) async fn all_open(&self, test: &TestStore, sealer: &Sealer) {
        let (org, count) = (self.tenant.org, self.secrets.len());
        let (installation, workflow) = (self.tenant.installation.id, self.tenant.workflow.id);
        let key = self.tenant.api_key.id;
        let (secrets, hooks, log, key) = tx!(test.read, &self.tenant.scope(), [installation, workflow, key], |tx| {
            let log = tx.load_audit_log().await?;
            Ok((
                tx.list_secrets(*installation).await?,
                tx.list_hooks(*workflow).await?,
                log,
                tx.load_api_key(*key).await?,
            ))
        })
        .unwrap();
        assert_eq!((secrets.len(), hooks.len()), (count, count));
        for (number, known) in self.secrets.iter().enumerate() {
            let stored = secrets.iter().find(|secret| secret.id == known.id).unwrap();
            let opened = open(test, sealer, secret_place(org, known.id), &stored.ciphertext).await;
            assert_eq!(opened.unwrap(), plain_of(number).as_bytes());
        }
        for (number, known) in self.hooks.iter().enumerate() {
            let stored = hooks.iter().find(|hook| hook.id == known.id).unwrap();
            let place = Place { table: "hook", column: "ciphertext", org, row: known.id.uuid() };
            assert_eq!(open(test, sealer, place, &stored.ciphertext).await.unwrap(), plain_of(number).as_bytes());
        }
        let Some(SigningKey::HmacSha256(shared)) = key.unwrap().signing.map(|signing| signing.key) else { panic!() };
        assert_eq!(open(test, sealer, shared_place(&self.tenant), &shared).await.unwrap(), b"shared");
        let place = Place { table: "audit_log", column: "signing_key", org, row: org.uuid() };
        assert_eq!(open(test, sealer, place, &log.unwrap().signing_key).await.unwrap(), b"seed");
    }
}

on_both! {
    async fn a_value_moved_to_another_row_column_table_or_organization_does_not_open(test: TestStore) {
        let (a, b, sealer) = (test.org("a").await, test.org("b").await, sealer(&test.ambient));
        let row = SecretId::new(&test.ambient);
        let here = secret_place(a, row);
        let text = seal(&test, &sealer, here, b"xoxb-1").await.unwrap();
        assert!(text.starts_with("enc:v1:d1:"), "{text}");
        assert_eq!(open(&test, &sealer, here, &text).await.unwrap(), b"xoxb-1");
        let moved = |error: Result<Vec<u8>, StoreError>| assert!(matches!(error, Err(StoreError::Keys(KeyError::DoesNotOpen))), "{error:?}");
        moved(open(&test, &sealer, Place { row: SecretId::new(&test.ambient).uuid(), ..here }, &text).await);
        moved(open(&test, &sealer, Place { column: "name", ..here }, &text).await);
        moved(open(&test, &sealer, Place { table: "hook", ..here }, &text).await);
        // The other organization has no keys yet, and then keys of its own with the same numbers.
        let there = Place { org: b, ..here };
        let missing = open(&test, &sealer, there, &text).await;
        assert!(matches!(missing, Err(StoreError::Keys(KeyError::Missing(KeyId::Data(1))))), "{missing:?}");
        seal(&test, &sealer, there, b"theirs").await.unwrap();
        moved(open(&test, &sealer, there, &text).await);
        // A place of another organization than the transaction's is refused before anything is looked at.
        let strange = tx!(test.read, &scope(b), [sealer, here, text], |tx| tx.open_sealed(sealer, here, text).await.map(drop));
        assert!(matches!(strange, Err(StoreError::Misuse(_))), "{strange:?}");
        for clear in ["xoxb-1", "", "enc:v2:d1:AAAA"] {
            assert!(matches!(open(&test, &sealer, here, clear).await, Err(StoreError::Keys(_))), "{clear}");
        }
    }

    /// Whoever can write to the database can move wrapped keys as well as values: neither opens elsewhere.
    async fn a_key_moved_to_another_organization_does_not_open(test: TestStore) {
        let (a, b, sealer) = (test.org("a").await, test.org("b").await, sealer(&test.ambient));
        let row = SecretId::new(&test.ambient);
        let text = seal(&test, &sealer, secret_place(a, row), b"xoxb-1").await.unwrap();
        seal(&test, &sealer, secret_place(b, row), b"theirs").await.unwrap();
        for table in ["data_key", "org_key"] {
            let wrapped = raw_texts(&test, a, table, "wrapped").await;
            let of_a = wrapped.iter().find(|wrapped| !wrapped.is_empty()).unwrap();
            raw(&test, b, &format!("update {table} set wrapped = '{of_a}' where version = 1")).await;
            let opened = open(&test, &sealer, secret_place(b, row), &text).await;
            assert!(matches!(opened, Err(StoreError::Keys(KeyError::DoesNotOpen))), "{table}: {opened:?}");
        }
        assert_eq!(open(&test, &sealer, secret_place(a, row), &text).await.unwrap(), b"xoxb-1");
    }

    async fn uses_are_counted_and_a_key_that_is_used_up_seals_nothing_more(test: TestStore) {
        let (org, sealer) = (test.org("a").await, sealer(&test.ambient));
        let place = elsewhere(org);
        let first = seal(&test, &sealer, place, b"1").await.unwrap();
        seal(&test, &sealer, place, b"2").await.unwrap();
        assert_eq!(keys(&test, org).await.iter().find_map(|key| key.uses), Some(2));
        raw(&test, org, &format!("update data_key set uses = {} where version = 1", USES_MAX - 1)).await;
        let last = seal(&test, &sealer, place, b"3").await.unwrap();
        let next = seal(&test, &sealer, place, b"4").await.unwrap();
        assert!(last.starts_with("enc:v1:d1:") && next.starts_with("enc:v1:d2:"), "{last} {next}");
        let expected = [("d2".to_owned(), KeyState::Active), ("d1".to_owned(), KeyState::DecryptOnly)];
        assert_eq!(states(&test, org, KeyPurpose::Field).await, expected);
        let uses: Vec<_> = keys(&test, org).await.iter().filter_map(|key| key.uses).collect();
        assert_eq!(uses, [1, USES_MAX]);
        for (text, plain) in [(first, b"1"), (last, b"3"), (next, b"4")] {
            assert_eq!(open(&test, &sealer, place, &text).await.unwrap(), plain);
        }
    }

    async fn of_many_first_seals_one_makes_the_keys(test: TestStore) {
        let (org, sealer) = (test.org("a").await, sealer(&test.ambient));
        let seals: Vec<_> = (0..12).map(|_| {
            let (store, sealer) = (test.store.clone(), sealer.clone());
            spawn(async move {
                let sealed: Result<String, StoreError> = store
                    .write_locked(&scope(org), (sealer, org), |tx, (sealer, org)| {
                        Box::pin(async move { tx.seal(sealer, &elsewhere(*org), b"x").await })
                    })
                    .await;
                sealed.unwrap()
            })
        }).collect();
        for sealed in seals {
            assert_eq!(open(&test, &sealer, elsewhere(org), &sealed.await.unwrap()).await.unwrap(), b"x");
        }
        let keys = keys(&test, org).await;
        assert_eq!(keys.iter().map(|key| key.id).collect::<Vec<_>>(), [KeyId::Organization(1), KeyId::Data(1)]);
        assert_eq!(keys[1].uses, Some(12));
    }

    async fn a_data_key_is_replaced_and_retired_when_nothing_refers_to_it(test: TestStore) {
        let sealer = sealer(&test.ambient);
        let filled = filled(&test, "a", 5, &sealer).await;
        let org = filled.tenant.org;
        let before = filled.secrets[0].ciphertext.clone();
        let to = tx!(test.write, &scope(org), [sealer], |tx| tx.replace_data_key(sealer).await).unwrap();
        assert_eq!(to, KeyId::Data(2));
        filled.all_open(&test, &sealer).await;
        assert_eq!(work(&test, &sealer, org).await, KeyWork { org_keys: 0, data_keys: 0, values: 12 });
        let pass = whole_pass(&test, &sealer, org).await;
        assert_eq!((pass.values, pass.broken, pass.retired), (12, 0, vec![KeyId::Data(1)]));
        assert_eq!(work(&test, &sealer, org).await, KeyWork::default());
        filled.all_open(&test, &sealer).await;
        for (table, column) in SEALED {
            let texts = raw_texts(&test, org, table, column).await;
            assert!(!texts.is_empty() && texts.iter().all(|text| text.starts_with("enc:v1:d2:")), "{table}: {texts:?}");
        }
        // Nobody has its bytes any more: what was sealed under it, in a copy say, is gone.
        assert!(raw_texts(&test, org, "data_key", "wrapped").await.contains(&String::new()));
        let gone = open(&test, &sealer, secret_place(org, filled.secrets[0].id), &before).await;
        assert!(matches!(gone, Err(StoreError::Keys(KeyError::Retired(KeyId::Data(1))))), "{gone:?}");
        assert_eq!(whole_pass(&test, &sealer, org).await, Tended::default(), "nothing is left to do");
    }

    /// Rauthy's guide warns that removing an old key before everything is moved breaks data. Here a count stands before it.
    async fn a_key_that_a_value_still_needs_is_not_retired(test: TestStore) {
        let sealer = sealer(&test.ambient);
        let filled = filled(&test, "a", 3, &sealer).await;
        let (org, id) = (filled.tenant.org, filled.secrets[1].id);
        // One value is damaged, so that it cannot be sealed anew.
        let mut damaged = filled.secrets[1].ciphertext.clone();
        let last = damaged.pop().unwrap();
        damaged.push(if last == 'A' { 'Q' } else { 'A' });
        let whole = &filled.secrets[1].ciphertext;
        raw(&test, org, &format!("update secret set ciphertext = '{damaged}' where ciphertext = '{whole}'")).await;
        tx!(test.write, &scope(org), [sealer], |tx| tx.replace_data_key(sealer).await).unwrap();
        let pass = whole_pass(&test, &sealer, org).await;
        assert_eq!((pass.values, pass.broken, pass.retired), (7, 1, Vec::new()));
        assert_eq!(work(&test, &sealer, org).await.values, 1);
        let expected = [("d2".to_owned(), KeyState::Active), ("d1".to_owned(), KeyState::DecryptOnly)];
        assert_eq!(states(&test, org, KeyPurpose::Field).await, expected);
        // What was damaged comes back from a backup, and opens: nothing was written over it.
        raw(&test, org, &format!("update secret set ciphertext = '{whole}' where ciphertext = '{damaged}'")).await;
        assert_eq!(open(&test, &sealer, secret_place(org, id), whole).await.unwrap(), plain_of(1).as_bytes());
        assert_eq!(whole_pass(&test, &sealer, org).await.retired, [KeyId::Data(1)]);
        filled.all_open(&test, &sealer).await;
    }

    async fn an_organization_key_is_replaced_and_data_keys_follow(test: TestStore) {
        let sealer = sealer(&test.ambient);
        let filled = filled(&test, "a", 2, &sealer).await;
        let org = filled.tenant.org;
        let index = tx!(test.write, &scope(org), [sealer], |tx| tx.blind_index(sealer, "contact", "email").await).unwrap();
        let to = tx!(test.write, &scope(org), [sealer], |tx| tx.replace_org_key(sealer).await).unwrap();
        assert_eq!(to, KeyId::Organization(2));
        assert_eq!(work(&test, &sealer, org).await, KeyWork { org_keys: 0, data_keys: 2, values: 0 });
        filled.all_open(&test, &sealer).await;
        let pass = whole_pass(&test, &sealer, org).await;
        assert_eq!((pass.data_keys, pass.values, pass.retired), (2, 0, vec![KeyId::Organization(1)]));
        filled.all_open(&test, &sealer).await;
        let keys = keys(&test, org).await;
        let wrapped_by = |purpose| keys.iter().find(|key| key.purpose == purpose && key.state == KeyState::Active).unwrap().wrapped_by;
        assert_eq!((wrapped_by(KeyPurpose::Field), wrapped_by(KeyPurpose::Index)), (Some(to), Some(to)));
        // An index is the same after the rotation, and found without writing.
        let again = tx!(test.read, &scope(org), [sealer], |tx| tx.blind_index(sealer, "contact", "email").await).unwrap();
        assert_eq!(again.entry("ada@example.com"), index.entry("ada@example.com"));
        let other = test.org("b").await;
        let theirs = tx!(test.write, &scope(other), [sealer], |tx| tx.blind_index(sealer, "contact", "email").await).unwrap();
        assert_ne!(theirs.entry("ada@example.com"), index.entry("ada@example.com"));
    }

    async fn a_root_key_is_replaced_and_organization_keys_follow(test: TestStore) {
        let ambient = &test.ambient;
        let old = Sealer::with_roots(Arc::new(RootKeys::single(root(1))), ambient.clone());
        let filled = filled(&test, "a", 2, &old).await;
        let org = filled.tenant.org;
        let both = RootKeys::single(root(1)).with_next(root(2)).unwrap();
        let next = Sealer::with_roots(Arc::new(both.clone()), ambient.clone());
        assert_eq!(whole_pass(&test, &next, org).await, Tended::default(), "one that waits changes nothing");
        let used = both.with_next_in_use().unwrap();
        let new = Sealer::with_roots(Arc::new(used.clone()), ambient.clone());
        let uses = async || {
            let uses = tx!(test.read, &ADMIN, [], |tx| tx.count_root_uses().await).unwrap();
            uses.into_iter().map(|uses| (uses.id, uses.org_keys)).collect::<Vec<_>>()
        };
        assert_eq!(uses().await, [(root(1).id(), 1)]);
        for refused in [
            tx!(test.read, &scope(org), [], |tx| tx.count_root_uses().await.map(drop)),
            tx!(test.read, &JOBS, [], |tx| tx.count_root_uses().await.map(drop)),
        ] {
            assert!(matches!(refused, Err(StoreError::Misuse(_))), "{refused:?}");
        }
        filled.all_open(&test, &new).await;
        assert_eq!(work(&test, &new, org).await.org_keys, 1);
        assert_eq!(whole_pass(&test, &new, org).await, Tended { org_keys: 1, ..Tended::default() });
        assert_eq!(uses().await, [(root(2).id(), 1)], "now the old one may go");
        filled.all_open(&test, &new).await;
        // A node that was told of the new key, but does not use it yet, still works, and takes nothing back.
        filled.all_open(&test, &next).await;
        let (waits, now) = (next.clone(), ambient.now());
        let due = tx!(test.read, &JOBS, [waits, now], |tx| tx.list_orgs_with_key_work(waits, *now, None, 9).await);
        assert_eq!(due.unwrap(), []);
        assert_eq!(work(&test, &next, org).await, KeyWork::default());
        assert_eq!(whole_pass(&test, &next, org).await, Tended::default());
        assert_eq!(uses().await, [(root(2).id(), 1)]);
        assert!(!used.standings().is_empty() && used.knows(root(1).id()));
    }

    async fn a_lost_root_key_is_said_and_nothing_is_written_over(test: TestStore) {
        let (right, wrong) = (sealer(&test.ambient), Sealer::new(&root(2), test.ambient.clone()));
        let filled = filled(&test, "a", 2, &right).await;
        let (org, lost) = (filled.tenant.org, root(1).id());
        let rows = async || {
            let mut rows = Vec::new();
            for (table, column) in [("org_key", "wrapped"), ("data_key", "wrapped"), ("secret", "ciphertext")] {
                rows.extend(raw_texts(&test, org, table, column).await);
            }
            rows
        };
        let before = rows().await;
        let is_lost = |error: &StoreError| matches!(error, StoreError::Keys(KeyError::UnknownRoot(id)) if *id == lost);
        let secret = &filled.secrets[0];
        let opened = open(&test, &wrong, secret_place(org, secret.id), &secret.ciphertext).await.unwrap_err();
        assert!(is_lost(&opened) && opened.to_string().contains("restore it from your backup of the keys"), "{opened}");
        assert!(is_lost(&seal(&test, &wrong, elsewhere(org), b"x").await.unwrap_err()));
        assert!(is_lost(&tend(&test, &wrong, org, TendFrom::START, 9).await.unwrap_err()));
        let replaced = tx!(test.write, &scope(org), [wrong], |tx| tx.replace_org_key(wrong).await);
        assert!(is_lost(&replaced.unwrap_err()));
        let replaced = tx!(test.write, &scope(org), [wrong], |tx| tx.replace_data_key(wrong).await);
        assert!(is_lost(&replaced.unwrap_err()));
        assert_eq!(rows().await, before);
        filled.all_open(&test, &right).await;
    }

    /// A statement of a pass fails, whichever it is: everything opens, and the next try goes on.
    async fn a_rotation_that_fails_anywhere_goes_on(test: TestStore) {
        let sealer = sealer(&test.ambient);
        let filled = filled(&test, "a", 4, &sealer).await;
        let org = filled.tenant.org;
        tx!(test.write, &scope(org), [sealer], |tx| {
            tx.replace_org_key(sealer).await?;
            tx.replace_data_key(sealer).await
        })
        .unwrap();
        let (mut from, mut statement, mut faults) = (TendFrom::START, 1, 0);
        let end = loop {
            test.store.fault_hook().arm(statement);
            let tended = tend(&test, &sealer, org, from, 3).await;
            let spent = test.store.fault_hook().is_spent();
            test.store.fault_hook().arm(0);
            match tended {
                Err(error) => {
                    assert!(spent, "{error:?}");
                    (statement, faults) = (statement + 1, faults + 1);
                    // Whoever goes on knows nothing of the pass before.
                    from = TendFrom::START;
                    filled.all_open(&test, &sealer).await;
                }
                Ok(tended) => {
                    statement = 1;
                    match tended.next {
                        Some(next) => from = next,
                        None => break tended,
                    }
                }
            }
            assert!(faults < 900, "it comes to an end");
        };
        assert!(faults > 40, "{faults}");
        assert_eq!(end.retired, [KeyId::Data(1), KeyId::Organization(1)]);
        assert_eq!(work(&test, &sealer, org).await, KeyWork::default());
        filled.all_open(&test, &sealer).await;
    }

    /// While values are read and written, both keys are replaced several times over. No read fails, and no write is lost.
    async fn rotation_under_load_loses_no_read(test: TestStore) {
        let sealer = sealer(&test.ambient);
        let filled = filled(&test, "a", 6, &sealer).await;
        let (org, installation) = (filled.tenant.org, filled.tenant.installation.id);
        let (stop, reads, writes) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let mut load = Vec::new();
        for reader in 0..4_u64 {
            let (store, sealer, stop) = (test.store.clone(), sealer.clone(), Arc::clone(&stop));
            let (secrets, reads, writes) = (filled.secrets.clone(), Arc::clone(&reads), Arc::clone(&writes));
            load.push(spawn(async move {
                while !stop.load(Ordering::SeqCst) {
                    let opened: Result<usize, StoreError> = store
                        .read(&scope(org), (sealer.clone(), installation), |tx, (sealer, installation)| {
                            Box::pin(async move {
                                let stored = tx.list_secrets(*installation).await?;
                                for secret in &stored {
                                    let place = secret_place(tx.org()?, secret.id);
                                    let plain = tx.open_sealed(sealer, &place, &secret.ciphertext).await?;
                                    assert!(plain.starts_with(b"value "), "{plain:?}");
                                }
                                Ok(stored.len())
                            })
                        })
                        .await;
                    assert_eq!(opened.unwrap(), 6);
                    reads.fetch_add(1, Ordering::SeqCst);
                    if reader > 0 {
                        continue;
                    }
                    // One of them stores values anew meanwhile, as people do.
                    let number = usize::try_from(writes.load(Ordering::SeqCst)).unwrap() % secrets.len();
                    let (secret, plain) = (secrets[number].clone(), plain_of(number));
                    let stored: Result<(), StoreError> = store
                        .write(&scope(org), (sealer.clone(), secret, plain), |tx, (sealer, secret, plain)| {
                            Box::pin(async move {
                                let place = secret_place(tx.org()?, secret.id);
                                let ciphertext = tx.seal(sealer, &place, plain.as_bytes()).await?;
                                tx.update_secret(&Secret { ciphertext, ..secret.clone() }).await
                            })
                        })
                        .await;
                    match stored {
                        Ok(()) => drop(writes.fetch_add(1, Ordering::SeqCst)),
                        Err(error) => assert!(error.is_contention(), "{error:?}"),
                    }
                }
            }));
        }
        for round in 0..5_u32 {
            let (before_reads, before_writes) = (reads.load(Ordering::SeqCst), writes.load(Ordering::SeqCst));
            tx!(test.write_locked, &scope(org), [sealer], |tx| {
                tx.replace_org_key(sealer).await?;
                tx.replace_data_key(sealer).await
            })
            .unwrap();
            while work(&test, &sealer, org).await != KeyWork::default() {
                whole_pass(&test, &sealer, org).await;
            }
            whole_pass(&test, &sealer, org).await;
            assert_eq!(states(&test, org, KeyPurpose::Field).await[0].0, format!("d{}", round + 2));
            while reads.load(Ordering::SeqCst) < before_reads + 4 || writes.load(Ordering::SeqCst) < before_writes + 2 {
                assert!(load.iter().all(|task| !task.is_finished()), "a reader failed");
                tokio::task::yield_now().await;
            }
        }
        stop.store(true, Ordering::SeqCst);
        for task in load {
            task.await.unwrap();
        }
        filled.all_open(&test, &sealer).await;
        let left: Vec<_> = states(&test, org, KeyPurpose::Field).await.into_iter().filter(|(_, state)| *state != KeyState::Retired).collect();
        assert_eq!(left, [("d6".to_owned(), KeyState::Active)]);
    }

    async fn organizations_whose_keys_are_due_are_found(test: TestStore) {
        let sealer = sealer(&test.ambient);
        let (used, aged, fresh) = (test.org("used").await, test.org("aged").await, test.org("fresh").await);
        seal(&test, &sealer, elsewhere(aged), b"x").await.unwrap();
        let ambient = test.ambient.clone();
        ambient.advance(DATA_KEY_AGE_MAX + Duration::from_secs(1));
        for org in [used, fresh] {
            seal(&test, &sealer, elsewhere(org), b"x").await.unwrap();
        }
        test.org("empty").await;
        let list = async |root: RootKey| {
            let (sealer, now) = (Sealer::new(&root, ambient.clone()), ambient.now());
            tx!(test.read, &JOBS, [sealer, now], |tx| tx.list_orgs_with_key_work(sealer, *now, None, 9).await)
                .unwrap()
                .into_iter()
                .collect::<BTreeSet<_>>()
        };
        assert_eq!(list(root(1)).await, BTreeSet::from([aged]));
        raw(&test, used, &format!("update data_key set uses = {USES_WARN} where version = 1")).await;
        assert_eq!(list(root(1)).await, BTreeSet::from([used, aged]));
        assert_eq!(list(root(2)).await, BTreeSet::from([used, aged, fresh]), "another root key wraps now");
        tx!(test.write, &scope(fresh), [sealer], |tx| tx.replace_data_key(sealer).await).unwrap();
        assert_eq!(list(root(1)).await, BTreeSet::from([used, aged, fresh]), "a key waits to be retired");
        whole_pass(&test, &sealer, fresh).await;
        assert_eq!(list(root(1)).await, BTreeSet::from([used, aged]));
        let after = used.min(aged);
        let page = tx!(test.read, &JOBS, [after, ambient, sealer], |tx| {
            tx.list_orgs_with_key_work(sealer, ambient.now(), Some(*after), 9).await
        });
        assert_eq!(page.unwrap(), [used.max(aged)]);
    }

    async fn rotations_are_kept_and_of_each_level_one_goes_on(test: TestStore) {
        let (org, ambient) = (test.org("a").await, test.ambient.clone());
        let rows = KeyRows::new(&ambient).rotation;
        let second = KeyRotation { id: KeyRotationId::new(&ambient), ..rows.clone() };
        let of_org = KeyRotation { id: KeyRotationId::new(&ambient), level: Level::Organization, ..rows.clone() };
        let done = KeyRotation { done: 9, left: 0, finished_at: Some(ambient.now()), ..rows.clone() };
        tx!(test.write, &scope(org), [rows, second, of_org, done], |tx| {
            assert!(tx.insert_key_rotation(rows).await?);
            assert!(!tx.insert_key_rotation(second).await?, "one of its level goes on");
            assert!(tx.insert_key_rotation(of_org).await?);
            assert_eq!(tx.list_running_key_rotations().await?.len(), 2);
            tx.update_key_rotation(done).await?;
            assert_eq!(tx.load_key_rotation(rows.id).await?.as_ref(), Some(done));
            assert_eq!(tx.list_running_key_rotations().await?, std::slice::from_ref(of_org));
            assert_eq!(tx.load_ended_key_rotation(Level::Data).await?.as_ref(), Some(done));
            assert!(tx.load_ended_key_rotation(Level::Organization).await?.is_none());
            assert!(tx.insert_key_rotation(second).await?);
            let page = tx.list_key_rotations(PageRequest { before: None, limit: 2 }).await?;
            assert_eq!(page.items.len(), 2);
            assert!(page.next.is_some());
            Ok(())
        })
        .unwrap();
    }

    /// What is sealed where rotations do not look is lost with its key: so nothing is sealed there.
    async fn nothing_is_sealed_where_rotations_would_not_find_it(test: TestStore) {
        let (org, sealer) = (test.org("a").await, sealer(&test.ambient));
        for (table, column) in SEALED {
            seal(&test, &sealer, Place { table, column, ..elsewhere(org) }, b"x").await.unwrap();
        }
        for (table, column) in [("workflow", "name"), ("secret", "name"), ("hook", "signing_key"), ("", "")] {
            let refused = seal(&test, &sealer, Place { table, column, ..elsewhere(org) }, b"x").await;
            assert!(matches!(refused, Err(StoreError::Misuse(_))), "{table}.{column}: {refused:?}");
        }
    }

    /// A column of sealed values that rotation does not know would keep its key for ever, or lose it.
    async fn every_column_of_sealed_values_is_known_to_rotation(test: TestStore) {
        let sealer = sealer(&test.ambient);
        let filled = filled(&test, "a", 2, &sealer).await;
        let mut found = BTreeSet::new();
        for table in backup::TABLES {
            for column in columns(&test, table).await {
                let texts = raw_texts(&test, filled.tenant.org, table, &column).await;
                if texts.iter().any(|text| text.starts_with("enc:v1:d")) {
                    found.insert(((*table).to_owned(), column));
                }
            }
        }
        let known: BTreeSet<_> = SEALED.iter().map(|(table, column)| ((*table).to_owned(), (*column).to_owned())).collect();
        assert_eq!(found, known);
    }

    /// A backup holds ciphertexts and wrapped keys and no root key; with the root key everything of it opens, also after rotations.
    async fn a_backup_opens_after_rotations_with_the_root_keys_and_never_holds_them(test: TestStore) {
        let sealer = sealer(&test.ambient);
        let filled = filled(&test, "a", 3, &sealer).await;
        let org = filled.tenant.org;
        tx!(test.write, &scope(org), [sealer], |tx| {
            tx.replace_org_key(sealer).await?;
            tx.replace_data_key(sealer).await
        })
        .unwrap();
        // In the middle of a rotation: some values are under the old key, some under the new one.
        tend(&test, &sealer, org, TendFrom::START, 4).await.unwrap();
        assert_ne!(work(&test, &sealer, org).await, KeyWork::default());
        if test.store.is_postgres() {
            // Columns of bytes are shown as hexadecimal.
            for table in backup::TABLES {
                let mut conn = test.raw_postgres().await;
                let set = "select set_config('app.org_id', $1, false), set_config('app.scope', 'admin', false)";
                sqlx::query(set).bind(org.uuid().to_string()).execute(&mut conn).await.unwrap();
                let sql = format!("select t::text from \"{table}\" t");
                let rows: Vec<String> = sqlx::query_scalar(AssertSqlSafe(sql)).fetch_all(&mut conn).await.unwrap();
                assert!(rows.iter().all(|row| !holds_root_key(row.as_bytes())), "{table}");
            }
        } else {
            no_file_holds_a_root_key(test.dir());
        }
        let config = crate::backup::config(&test);
        let (archive, _) =
            backup::create(&config, &root(1), &test.ambient, "0.1.0", Vec::new(), &mut |_| {}).await.unwrap();
        let target = TestStore::sqlite().await;
        target.store.close().await;
        let place = crate::backup::config(&target);
        backup::restore(&place, &RootKeys::single(root(1)), &test.ambient, Cursor::new(&archive), &mut |_| {}).await.unwrap();
        // All that was in the archive lies there now.
        no_file_holds_a_root_key(target.dir());
        let mut target = target;
        target.reopen().await;
        filled.all_open(&target, &sealer).await;
        let pass = whole_pass(&target, &sealer, org).await;
        assert_eq!(pass.retired, [KeyId::Data(1), KeyId::Organization(1)], "the rotation goes on where it was restored");
        filled.all_open(&target, &sealer).await;
    }
}

/// Whether the root key 1 is in there: its bytes, or as a text of one of the usual kinds.
fn holds_root_key(bytes: &[u8]) -> bool {
    let key = root_bytes(1);
    let texts = [STANDARD_NO_PAD.encode(key), URL_SAFE_NO_PAD.encode(key), hex::encode(key), hex::encode_upper(key)];
    let needles = texts.iter().map(String::as_bytes).chain([&key[..]]);
    needles.into_iter().any(|needle| bytes.windows(needle.len()).any(|found| found == needle))
}

fn no_file_holds_a_root_key(dir: &std::path::Path) {
    let mut looked = 0;
    for entry in std::fs::read_dir(dir).unwrap() {
        let bytes = std::fs::read(entry.unwrap().path()).unwrap();
        looked += usize::from(bytes.windows(10).any(|found| found == b"enc:v1:d1:"));
        assert!(!holds_root_key(&bytes));
    }
    assert!(looked > 0, "what is sealed lies there");
}

async fn columns(test: &TestStore, table: &str) -> Vec<String> {
    if test.store.is_postgres() {
        let sql =
            "select attname::text from pg_attribute where attrelid = format('%I', $1::text)::regclass and attnum > 0
             and not attisdropped and atttypid = 'text'::regtype";
        sqlx::query_scalar(sql).bind(table).fetch_all(&mut test.raw_postgres().await).await.unwrap()
    } else {
        let sql = "select name from pragma_table_info($1) where lower(type) = 'text'";
        sqlx::query_scalar(sql).bind(table).fetch_all(&mut test.raw_sqlite().await).await.unwrap()
    }
}
