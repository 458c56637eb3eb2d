//! Root keys as the database knows them: which one stands first, what is under each, and what belongs to people.

use std::io::Cursor;
use std::sync::Arc;

use bulkhead_keys::{KeyError, KeyId, KeyState, RootStanding};
use bulkhead_model::id::TotpId;
use bulkhead_store::key::{RootUse, Tended};
use bulkhead_store::mfa::{Totp, TotpState};
use bulkhead_store::seal::{KEY_VERSION, KeyPurpose, Place, RootKeys, Sealer};
use bulkhead_store::{StoreError, backup};

use crate::keys::{filled, keys, raw, root, sealer, whole_pass, work};
use crate::support::{ADMIN, PEOPLE, TestStore};

async fn uses(test: &TestStore) -> Vec<RootUse> {
    tx!(test.read, &ADMIN, [], |tx| tx.count_root_uses().await).unwrap()
}

/// Seals everything of people's that is to be sealed anew; answers how many were, and how many do not open.
async fn tend_people(test: &TestStore, sealer: &Sealer, batch: u32) -> Result<(u32, u32), StoreError> {
    let (mut after, mut all) = (None, (0, 0));
    loop {
        let tended = tx!(test.write_locked, &PEOPLE, [sealer, after, batch], |tx| {
            tx.tend_people(sealer, *after, *batch).await
        })?;
        all = (all.0 + tended.values, all.1 + tended.broken);
        match tended.next {
            Some(next) => after = Some(next),
            None => return Ok(all),
        }
    }
}

on_both! {
    async fn the_first_root_key_is_kept_once(test: TestStore) {
        let (one, two) = (sealer(&test.ambient).base_check(), Sealer::new(&root(2), test.ambient.clone()).base_check());
        let now = test.ambient.now();
        let kept = tx!(test.write, &ADMIN, [one, two, now], |tx| {
            assert_eq!(tx.load_root_check().await?, None);
            tx.record_root_check(one, *now).await?;
            tx.record_root_check(two, *now).await?;
            tx.load_root_check().await
        });
        assert_eq!(kept.unwrap(), Some(one.clone()));
        assert_eq!(one.id, root(1).id());
        assert!(!one.value.contains(&hex::encode([0xa7; 8])), "it says nothing about the key");
        assert_ne!(one.value, two.value);
    }

    /// A later root key seals what belongs to people, and what was under the old one follows, so that the old one may go.
    async fn what_belongs_to_people_follows_the_root_key(test: TestStore) {
        let ambient = &test.ambient;
        let old = sealer(ambient);
        let mut places = Vec::new();
        for number in 0..5_u8 {
            let person = test.tenant(&format!("org-{number}")).await.person;
            let id = TotpId::new(ambient);
            let place = Place::of_person("totp", "secret", id.uuid());
            let secret = old.seal(&place, &[number; 20]);
            let totp = Totp { id, state: TotpState::Shown, secret, key_version: KEY_VERSION, ..person.totp };
            tx!(test.write, &PEOPLE, [totp], |tx| tx.replace_totp_set_up(totp).await).unwrap();
            places.push((person.user.id, id, number));
        }
        let count = |people: &[RootUse], key| people.iter().find(|uses| uses.id == key).map_or(0, |uses| uses.people);
        assert_eq!(count(&uses(&test).await, root(1).id()), 5);
        let both = RootKeys::single(root(1)).with_next(root(2)).unwrap();
        let next = Sealer::with_roots(Arc::new(both.clone()), ambient.clone());
        // What the fixture put there was never sealed: it is counted, and keeps nothing back.
        assert_eq!(tend_people(&test, &next, 2).await.unwrap(), (0, 5), "one that waits changes nothing");
        let new = Sealer::with_roots(Arc::new(both.with_next_in_use().unwrap()), ambient.clone());
        assert_eq!(tend_people(&test, &new, 2).await.unwrap(), (5, 5));
        assert_eq!(tend_people(&test, &new, 2).await.unwrap(), (0, 5));
        assert_eq!(tend_people(&test, &next, 2).await.unwrap(), (0, 5), "a node that is behind takes nothing back");
        assert_eq!((count(&uses(&test).await, root(1).id()), count(&uses(&test).await, root(2).id())), (0, 5));
        let alone = Sealer::new(&root(2), ambient.clone());
        for (user, id, number) in places {
            let stored = tx!(test.read, &PEOPLE, [user], |tx| tx.load_totp_set_up(*user).await).unwrap().unwrap();
            assert!(stored.secret.starts_with(KeyId::Root(root(2).id()).prefix().as_bytes()));
            let place = Place::of_person("totp", "secret", id.uuid());
            for sealer in [&alone, &new, &next] {
                assert_eq!(sealer.open(&place, stored.key_version, &stored.secret).unwrap().as_slice(), [number; 20]);
            }
        }
        let lost = tend_people(&test, &Sealer::new(&root(3), ambient.clone()), 2).await.unwrap_err();
        assert!(matches!(lost, StoreError::Keys(KeyError::UnknownRoot(_))), "{lost:?}");
    }

    /// One damaged row of a key keeps neither the organization's other keys back nor everybody's servers from starting.
    async fn a_damaged_key_holds_up_no_other(test: TestStore) {
        let sealer = sealer(&test.ambient);
        let filled = filled(&test, "a", 2, &sealer).await;
        let org = filled.tenant.org;
        tx!(test.write, &filled.tenant.scope(), [sealer], |tx| tx.blind_index(sealer, "contact", "email").await.map(drop)).unwrap();
        raw(&test, org, "update data_key set wrapped = 'enc:v1:o1:AAAA' where purpose = 'index'").await;
        tx!(test.write, &filled.tenant.scope(), [sealer], |tx| tx.replace_org_key(sealer).await.map(drop)).unwrap();
        let tended = whole_pass(&test, &sealer, org).await;
        assert_eq!((tended.data_keys, tended.broken_data_keys, tended.retired), (1, 1, Vec::new()));
        assert_eq!(work(&test, &sealer, org).await.data_keys, 1);
        filled.all_open(&test, &sealer).await;
        // The organization key that nothing but the damaged one refers to is damaged as well.
        raw(&test, org, "update org_key set wrapped = 'nothing at all' where version = 1").await;
        let listed = keys(&test, org).await;
        assert!(listed.iter().any(|key| key.purpose == KeyPurpose::Organization && key.state == KeyState::DecryptOnly && key.wrapped_by.is_none()));
        let tended = whole_pass(&test, &sealer, org).await;
        assert_eq!((tended.broken_org_keys, tended.broken_data_keys), (1, 1));
        assert_eq!(uses(&test).await, [RootUse { id: root(1).id(), org_keys: 1, people: 0 }]);
        assert_eq!(Tended { broken_org_keys: 0, broken_data_keys: 0, ..tended }, Tended::default());
        filled.all_open(&test, &sealer).await;
    }

    async fn of_retired_keys_the_newest_are_kept(test: TestStore) {
        let sealer = sealer(&test.ambient);
        let filled = filled(&test, "a", 2, &sealer).await;
        let org = filled.tenant.org;
        tx!(test.write_locked, &filled.tenant.scope(), [sealer], |tx| {
            for _ in 0..103 {
                tx.replace_data_key(sealer).await?;
                tx.replace_org_key(sealer).await?;
            }
            Ok(())
        })
        .unwrap();
        let tended = whole_pass(&test, &sealer, org).await;
        assert_eq!(tended.retired.len(), 206);
        whole_pass(&test, &sealer, org).await;
        let listed = keys(&test, org).await;
        for purpose in [KeyPurpose::Organization, KeyPurpose::Field] {
            let of: Vec<_> = listed.iter().filter(|key| key.purpose == purpose).collect();
            assert_eq!((of.len(), of[0].state), (101, KeyState::Active), "{purpose:?}");
        }
        filled.all_open(&test, &sealer).await;
    }

    async fn a_node_says_which_root_keys_it_knows(test: TestStore) {
        let worker = test.worker().await;
        let both = RootKeys::single(root(1)).with_next(root(2)).unwrap();
        let standings = Sealer::with_roots(Arc::new(both), test.ambient.clone()).root_standings();
        assert_eq!(standings, [(root(1).id(), RootStanding::Active), (root(2).id(), RootStanding::Next)]);
        tx!(test.write_locked, &crate::support::JOBS, [worker, standings], |tx| tx.update_node_roots(*worker, standings).await).unwrap();
        let nodes = bulkhead_model::permission::SystemScope::new(bulkhead_model::permission::SystemReason::Nodes);
        let listed = tx!(test.read, &nodes, [], |tx| tx.list_nodes().await).unwrap();
        assert_eq!(listed.iter().find(|node| node.id == worker).unwrap().roots, standings);
    }

    /// What was restored is held to the root key that opened the archive.
    async fn a_restored_database_knows_its_first_root_key(test: TestStore) {
        test.org("a").await;
        let config = crate::backup::config(&test);
        let (archive, _) = backup::create(&config, &root(1), &test.ambient, "0.1.0", Vec::new(), &mut |_| {}).await.unwrap();
        let mut target = TestStore::sqlite().await;
        target.store.close().await;
        let place = crate::backup::config(&target);
        backup::restore(&place, &RootKeys::single(root(1)), &test.ambient, Cursor::new(&archive), &mut |_| {}).await.unwrap();
        target.reopen().await;
        let kept = tx!(target.read, &ADMIN, [], |tx| tx.load_root_check().await).unwrap();
        assert_eq!(kept, Some(sealer(&test.ambient).base_check()));
    }
}
