//! Passkeys and challenges, on both databases.

use std::time::Duration;

use bulkhead_model::mfa::Factors;
use bulkhead_model::passkey::CeremonyPurpose;

use crate::support::{PEOPLE, Person, TestStore};

async fn person(test: &TestStore) -> Person {
    let person = Person::new(&test.ambient);
    tx!(test.write, &PEOPLE, [person], |tx| person.insert(tx).await).unwrap();
    person
}

on_both! {
    async fn of_fifty_who_answer_a_challenge_one_does(test: TestStore) {
        let p = person(&test).await;
        let (hash, purpose) = (p.ceremony.token_hash, p.ceremony.purpose);
        let other = tx!(test.write, &PEOPLE, [hash], |tx| tx.use_ceremony(hash, CeremonyPurpose::StepUp).await);
        assert!(other.unwrap().is_none(), "it is of use for one purpose");
        let uses = (0..50).map(|_| async { tx!(test.write, &PEOPLE, [hash, purpose], |tx| tx.use_ceremony(hash, *purpose).await).unwrap() });
        let used = futures_util::future::join_all(uses).await;
        let used: Vec<_> = used.into_iter().flatten().collect();
        assert_eq!(used.len(), 1);
        assert_eq!(format!("{:?}", used[0]), format!("{:?}", p.ceremony));
    }

    async fn challenges_are_replaced_ended_and_forgotten(test: TestStore) {
        let p = person(&test).await;
        let end = p.ceremony.expires_at;
        let early = end.minus(Duration::from_micros(1));
        tx!(test.write, &PEOPLE, [p, end, early], |tx| {
            let mut later = p.ceremony.clone();
            "{\"a\":1}".clone_into(&mut later.state);
            tx.replace_ceremony(&later).await?;
            assert_eq!(tx.remove_expired_ceremonies(*early).await?, 0);
            let found = tx.use_ceremony(&later.token_hash, later.purpose).await?.unwrap();
            assert_eq!(found.state, later.state, "one of a purpose and a cookie");
            tx.replace_ceremony(&p.ceremony).await?;
            assert_eq!(tx.remove_expired_ceremonies(*end).await?, 1);
            tx.replace_ceremony(&p.ceremony).await?;
            assert_eq!(tx.delete_ceremonies(p.user.id).await?, 1);
            Ok(())
        })
        .unwrap();
    }

    async fn a_passkey_is_found_kept_and_removed(test: TestStore) {
        let (p, other) = (person(&test).await, person(&test).await);
        let now = p.user.created_at;
        let twice = tx!(test.write, &PEOPLE, [p, other], |tx| {
            let mut same = other.passkey.clone();
            same.id = bulkhead_model::id::PasskeyId::from_uuid(other.user.id.uuid());
            same.credential_id = p.passkey.credential_id.clone();
            tx.insert_passkey(&same).await
        });
        assert!(twice.is_err(), "what an authenticator made is one person's");
        tx!(test.write, &PEOPLE, [p, other, now], |tx| {
            let found = tx.load_passkey_by_credential(&p.passkey.credential_id).await?.unwrap();
            assert_eq!(format!("{found:?}"), format!("{:?}", p.passkey));
            assert!(tx.update_passkey(p.passkey.id, "{\"n\":2}", *now).await?);
            let listed = tx.list_passkeys(p.user.id).await?;
            assert_eq!((listed.len(), &*listed[0].credential, listed[0].used_at), (1, "{\"n\":2}", Some(*now)));
            assert_eq!(tx.load_factors(p.user.id).await?, Factors { app: true, passkey: true, email: false });
            assert!(!tx.delete_passkey(other.user.id, p.passkey.id).await?, "somebody else's");
            assert!(tx.delete_second_factors(p.user.id).await?);
            assert_eq!(tx.load_factors(p.user.id).await?, Factors::default());
            assert!(tx.delete_passkey(other.user.id, other.passkey.id).await?);
            assert_eq!(tx.load_factors(other.user.id).await?, Factors { app: true, passkey: false, email: false });
            assert_eq!(tx.delete_passkeys(other.user.id).await?, 0);
            Ok(())
        })
        .unwrap();
    }
}
