//! What belongs to people, on both databases: used once, ended together, taken by one.

use std::time::Duration;

use bulkhead_model::id::{MailId, SessionId};
use bulkhead_model::letter::Letter;
use bulkhead_model::throttle::Failures;
use bulkhead_model::token::SecretHash;
use bulkhead_store::StoreError;

use crate::support::{PEOPLE, Person, TestStore};

async fn person(test: &TestStore) -> Person {
    let person = Person::new(&test.ambient);
    tx!(test.write, &PEOPLE, [person], |tx| person.insert(tx).await).unwrap();
    person
}

on_both! {
    async fn rows_come_back_as_they_were_written(test: TestStore) {
        let p = person(&test).await;
        let hash = SecretHash(p.session.token_hash.0);
        tx!(test.read, &PEOPLE, [p, hash], |tx| {
            let user = tx.load_user(p.user.id).await?.unwrap();
            assert_eq!(format!("{user:?}"), format!("{:?}", p.user));
            assert_eq!(user.password, p.user.password);
            assert_eq!(tx.load_user_by_email(&p.user.email).await?.unwrap().id, p.user.id);
            let session = tx.load_session_by_token(hash).await?.unwrap();
            assert_eq!(format!("{session:?}"), format!("{:?}", p.session));
            assert_eq!(session.token_hash, p.session.token_hash);
            let link = tx.load_usable_link(p.link.id, p.link.purpose, p.link.created_at).await?;
            assert_eq!(link.as_ref(), Some(&p.link));
            let device = tx.load_device_by_token(&p.device.token_hash).await?.unwrap();
            assert_eq!((device.id, device.user), (p.device.id, p.user.id));
            Ok(())
        })
        .unwrap();
        let twice = tx!(test.write, &PEOPLE, [p], |tx| {
            let mut other = p.user.clone();
            other.id = bulkhead_model::id::UserId::from_uuid(uuid::Uuid::from_u128(7));
            tx.insert_user(&other).await
        });
        assert!(matches!(twice, Err(StoreError::Conflict { .. })), "an address is one person's: {twice:?}");
    }

    async fn a_link_is_used_once_and_in_time(test: TestStore) {
        let p = person(&test).await;
        let (end, purpose) = (p.link.expires_at, p.link.purpose);
        let used = tx!(test.write, &PEOPLE, [p, purpose, end], |tx| {
            let late = tx.use_link(p.link.id, *purpose, *end).await?;
            let other = tx.use_link(p.link.id, bulkhead_model::link::Purpose::VerifyEmail, p.link.created_at).await?;
            let first = tx.use_link(p.link.id, *purpose, p.link.created_at).await?;
            let second = tx.use_link(p.link.id, *purpose, p.link.created_at).await?;
            Ok((late.is_some(), other.is_some(), first.is_some(), second.is_some()))
        });
        assert_eq!(used.unwrap(), (false, false, true, false));
    }

    async fn counters_are_kept_and_forgotten(test: TestStore) {
        let (key, now) = ([9_u8; 32], test.ambient.now());
        let failures = Failures { count: 3, last_at: now };
        let read = tx!(test.write, &PEOPLE, [key, failures], |tx| {
            assert_eq!(tx.lock_failures(key).await?, Failures::NONE);
            tx.save_failures(key, *failures).await?;
            tx.lock_failures(key).await
        });
        assert_eq!(read.unwrap(), failures);
        let removed = tx!(test.write, &PEOPLE, [now], |tx| {
            let before = tx.remove_quiet_failures(*now).await?;
            Ok((before, tx.remove_quiet_failures(now.plus(Duration::from_secs(1))).await?))
        });
        assert_eq!(removed.unwrap(), (0, 1));
    }

    async fn tokens_end_with_their_session(test: TestStore) {
        let p = person(&test).await;
        let (hash, now) = (p.session.token_hash, test.ambient.now());
        let uses = tx!(test.write, &PEOPLE, [hash, now], |tx| {
            Ok((tx.use_refresh_token(hash, *now).await?, tx.use_refresh_token(hash, *now).await?))
        });
        assert_eq!(uses.unwrap(), (true, false));
        let kept = tx!(test.write, &PEOPLE, [p, hash], |tx| {
            assert!(!tx.delete_session(p.user.id, SessionId::from_uuid(uuid::Uuid::nil())).await?);
            assert!(tx.load_refresh_token(hash).await?.is_some());
            assert_eq!(tx.delete_sessions(p.user.id, Some(p.session.id)).await?, 0, "the one to keep");
            assert_eq!(tx.delete_sessions(p.user.id, None).await?, 1);
            tx.load_refresh_token(hash).await
        });
        assert!(kept.unwrap().is_none());
        // A browser that is forgotten ends no session.
        let other = person(&test).await;
        let left = tx!(test.write, &PEOPLE, [other], |tx| {
            tx.forget_devices(other.user.id, 0).await?;
            tx.list_sessions(other.user.id).await
        });
        assert_eq!(left.unwrap()[0].device, None);
    }

    async fn of_two_who_look_for_letters_one_gets_each(test: TestStore) {
        let p = person(&test).await;
        let (now, until) = (test.ambient.now(), test.ambient.now().plus(Duration::from_mins(2)));
        let claim = || async { tx!(test.write_locked, &PEOPLE, [now, until], |tx| tx.claim_mail(*now, *until).await).unwrap() };
        let (one, two) = tokio::join!(claim(), claim());
        let claimed: Vec<_> = one.into_iter().chain(two).collect();
        assert_eq!(claimed.len(), 1, "{claimed:?}");
        assert_eq!((claimed[0].letter.as_ref(), claimed[0].attempts), (Some(&Letter::ResetPassword), 1));
        assert_eq!(claimed[0].recipient, p.user.email);
        let id = claimed[0].id;
        // Whoever took it died: it is taken up when its time is over.
        let again = tx!(test.write_locked, &PEOPLE, [until], |tx| tx.claim_mail(*until, until.plus(Duration::from_mins(2))).await);
        assert_eq!(again.unwrap().map(|mail| (mail.id, mail.attempts)), Some((id, 2)));
        let given_up = tx!(test.write, &PEOPLE, [id], |tx| tx.fail_mail(*id, "550 no", None).await);
        assert!(given_up.unwrap());
        let far = until.plus(Duration::from_hours(99));
        assert!(tx!(test.write_locked, &PEOPLE, [far], |tx| tx.claim_mail(*far, *far).await).unwrap().is_none());
        let removed = tx!(test.write, &PEOPLE, [far], |tx| tx.remove_failed_mail(MailId::first_at(*far)).await);
        assert_eq!(removed.unwrap(), 1);
    }
}
