//! What belongs to people, on both databases: used once, ended together, taken by one.

use std::time::Duration;

use bulkhead_model::id::{MailId, SessionId, SignInAttemptId};
use bulkhead_model::letter::Letter;
use bulkhead_model::permission::AccountScope;
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
        let end = p.family.expires_at;
        let families = tx!(test.read, &PEOPLE, [p, now, end], |tx| {
            Ok((tx.list_token_sessions(p.user.id, *now).await?, tx.list_token_sessions(p.user.id, *end).await?))
        });
        assert_eq!(families.unwrap(), (vec![(p.session.id, 1)], Vec::new()));
        let kept = tx!(test.write, &PEOPLE, [p, hash], |tx| {
            assert!(!tx.delete_session(p.user.id, SessionId::from_uuid(uuid::Uuid::nil())).await?);
            assert!(tx.load_refresh_token(hash).await?.is_some());
            assert_eq!(tx.delete_sessions(p.user.id, Some(p.session.id)).await?, 0, "the one to keep");
            assert_eq!(tx.delete_sessions(p.user.id, None).await?, 1);
            tx.load_refresh_token(hash).await
        });
        assert!(kept.unwrap().is_none());
        let families = tx!(test.read, &PEOPLE, [p, now], |tx| tx.list_token_sessions(p.user.id, *now).await);
        assert!(families.unwrap().is_empty());
        // A browser that is forgotten ends no session.
        let other = person(&test).await;
        let left = tx!(test.write, &PEOPLE, [other], |tx| {
            tx.forget_devices(other.user.id, 0).await?;
            tx.list_sessions(other.user.id).await
        });
        assert_eq!(left.unwrap()[0].device, None);
    }

    async fn an_organization_sees_and_ends_what_has_it_in_front(test: TestStore) {
        let (one, two) = (test.tenant("one").await, test.tenant("two").await);
        let p = person(&test).await;
        let scopes = [&one, &two].map(|tenant| AccountScope::within(&tenant.scope()));
        let (user, here, there, id) = (p.user.id, one.org, two.org, p.session.id);
        let count = async |scope: &AccountScope| {
            tx!(test.read, scope, [user], |tx| tx.list_sessions_here(*user).await).unwrap().len()
        };
        assert_eq!((count(&scopes[0]).await, count(&scopes[1]).await), (1, 1), "none in front: everybody's");
        tx!(test.write, &PEOPLE, [id, there], |tx| tx.set_active_org(*id, *there).await).unwrap();
        assert_eq!((count(&scopes[0]).await, count(&scopes[1]).await), (0, 1));
        for only in [None, Some(id)] {
            let ended = tx!(test.write, &scopes[0], [user, only], |tx| tx.delete_sessions_here(*user, *only).await);
            assert_eq!(ended.unwrap(), 0, "{here} ends nothing of {there}");
        }
        let ended = tx!(test.write, &scopes[1], [user, id], |tx| tx.delete_sessions_here(*user, Some(*id)).await);
        assert_eq!(ended.unwrap(), 1);
    }

    async fn a_refused_attempt_is_told_once_and_the_first_sign_in_is_one(test: TestStore) {
        let p = person(&test).await;
        let mut attempt = p.attempt.clone();
        attempt.id = SignInAttemptId::new(&test.ambient);
        attempt.is_told = false;
        let (user, now) = (p.user.id, test.ambient.now());
        let told = tx!(test.write, &PEOPLE, [attempt, user, now], |tx| {
            assert!(tx.load_untold_attempt().await?.is_none());
            tx.record_sign_in_attempt(attempt).await?;
            assert_eq!(tx.load_untold_attempt().await?.unwrap().id, attempt.id);
            assert!(tx.mark_first_sign_in(*user, *now).await? && !tx.mark_first_sign_in(*user, *now).await?);
            let first = SignInAttemptId::first_at(*now);
            let before = tx.count_refused_attempts(*user, first, 9).await?;
            let told = (tx.mark_attempt_told(attempt.id).await?, tx.mark_attempt_told(attempt.id).await?);
            let later = SignInAttemptId::first_at(now.plus(Duration::from_secs(1)));
            let counts = (
                tx.count_refused_attempts(*user, first, 9).await? - before,
                tx.count_refused_attempts(*user, first, 1).await?,
                tx.count_refused_attempts(*user, later, 9).await?,
            );
            Ok((told, counts))
        });
        assert_eq!(told.unwrap(), ((true, false), (1, 1, 0)));
        assert!(tx!(test.read, &PEOPLE, [], |tx| tx.load_untold_attempt().await).unwrap().is_none());
    }

    async fn names_that_failed_from_a_network_are_counted_once_each_until_they_are_forgotten(test: TestStore) {
        let (p, now) = (person(&test).await, test.ambient.now());
        let (here, there) = ("192.0.2.1", "2001:db8::/64");
        let at = move |second: u64| SignInAttemptId::first_at(now.plus(Duration::from_secs(second)));
        let made = [
            (1, 1, false, Some(here)), (2, 1, false, Some(here)), (3, 2, false, Some(here)), (4, 3, false, Some(there)),
            (5, 2, true, Some(here)), (6, 4, false, None), (7, 5, false, Some(here)),
            (8, 6, true, Some(here)), (9, 6, false, Some(here)),
        ];
        let rows: Vec<_> = made
            .into_iter()
            .map(|(second, name, passed, network)| {
                let mut row = p.attempt.clone();
                (row.id, row.user, row.identifier, row.passed) = (at(second), None, [name; 32], passed);
                row.network = network.map(str::to_owned);
                row
            })
            .collect();
        tx!(test.write, &PEOPLE, [rows], |tx| {
            for row in rows {
                tx.record_sign_in_attempt(row).await?;
            }
            Ok(())
        })
        .unwrap();
        let (first, third, sixth) = (at(1), at(3), at(6));
        let counts = tx!(test.read, &PEOPLE, [first, third, sixth], |tx| {
            Ok([
                tx.count_names_that_failed("192.0.2.1", *first, 9).await?,
                tx.count_names_that_failed("192.0.2.1", *first, 1).await?,
                tx.count_names_that_failed("192.0.2.1", *third, 9).await?,
                tx.count_names_that_failed("2001:db8::/64", *first, 9).await?,
                tx.count_names_that_failed("2001:db8::/64", *sixth, 9).await?,
                tx.count_names_that_failed("192.0.2.2", *first, 9).await?,
            ])
        });
        // The first, the fifth and the sixth name; the second one passed afterwards, the sixth one before.
        assert_eq!(counts.unwrap(), [3, 1, 2, 1, 0, 0]);
        let left = tx!(test.write, &PEOPLE, [first], |tx| {
            Ok((
                tx.forget_names_that_failed("192.0.2.1").await?,
                tx.count_names_that_failed("192.0.2.1", *first, 9).await?,
                tx.count_names_that_failed("2001:db8::/64", *first, 9).await?,
            ))
        });
        assert_eq!(left.unwrap(), (7, 0, 1));
    }

    async fn links_that_are_over_and_too_many_letters_are_known(test: TestStore) {
        let p = person(&test).await;
        let (id, purpose, end) = (p.link.id, p.link.purpose, p.link.expires_at);
        let early = end.minus(Duration::from_secs(1));
        let removed = tx!(test.write, &PEOPLE, [id, purpose, end, early], |tx| {
            let early = (tx.remove_expired_links(*early).await?, tx.load_usable_link(*id, *purpose, *early).await?);
            assert_eq!((early.0, early.1.is_some()), (0, true));
            tx.remove_expired_links(*end).await
        });
        assert_eq!(removed.unwrap(), 1);
        let full = tx!(test.read, &PEOPLE, [], |tx| Ok((tx.is_mail_full(1).await?, tx.is_mail_full(2).await?)));
        assert_eq!(full.unwrap(), (true, false));
    }

    /// What ends everywhere ends in the last organization as well.
    async fn all_memberships_are_listed_however_many(test: TestStore) {
        let p = person(&test).await;
        let (user, now) = (p.user.id, test.ambient.now());
        let mut orgs = Vec::new();
        for at in 0..403 {
            orgs.push(test.org(&format!("org-{at}")).await);
        }
        let to = orgs.clone();
        tx!(test.write, &PEOPLE, [to, user, now], |tx| {
            for org in to {
                tx.enter_org(*org).await?;
                tx.insert_member(*user, "viewer", *now).await?;
            }
            Ok(())
        })
        .unwrap();
        let listed = tx!(test.read, &PEOPLE, [user], |tx| tx.list_memberships(*user).await).unwrap();
        let mut found: Vec<_> = listed.into_iter().map(|membership| membership.org).collect();
        assert!(found.is_sorted(), "oldest first");
        found.sort_unstable();
        orgs.sort_unstable();
        assert_eq!(found, orgs);
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

    async fn a_browser_is_trusted_until_then_and_by_its_person_alone(test: TestStore) {
        let (p, other) = (person(&test).await, person(&test).await);
        let end = p.user.created_at.plus(Duration::from_hours(1));
        let early = end.minus(Duration::from_micros(1));
        tx!(test.write, &PEOPLE, [p, other, end, early], |tx| {
            let (user, device) = (p.user.id, p.device.id);
            assert!(!tx.is_device_trusted(user, device, *early).await?);
            assert!(!tx.trust_device(other.user.id, device, *end).await?, "somebody else's");
            assert!(tx.trust_device(user, device, *end).await?);
            assert!(tx.is_device_trusted(user, device, *early).await?);
            assert!(!tx.is_device_trusted(user, device, *end).await?);
            assert!(!tx.is_device_trusted(other.user.id, device, *early).await?);
            let listed = tx.list_devices(user).await?;
            assert_eq!((listed[0].is_trusted(*early), listed[0].is_trusted(*end)), (true, false));
            // Another token is the same browser.
            assert!(tx.renew_device(device, &other.session.token_hash, *early).await?);
            assert!(tx.is_device_trusted(user, device, *early).await?);
            Ok(())
        })
        .unwrap();
    }

    async fn a_link_that_ends_everything_is_used_once_and_in_time(test: TestStore) {
        let p = person(&test).await;
        let (id, end, early) = (p.revoke.id, p.revoke.expires_at, p.revoke.expires_at.minus(Duration::from_micros(1)));
        let late = tx!(test.write, &PEOPLE, [id, end], |tx| tx.use_revoke_link(*id, *end).await);
        assert!(late.unwrap().is_none());
        let uses = (0..50).map(|_| async { tx!(test.write, &PEOPLE, [id, early], |tx| tx.use_revoke_link(*id, *early).await).unwrap() });
        let used: Vec<_> = futures_util::future::join_all(uses).await.into_iter().flatten().collect();
        assert_eq!(used, std::slice::from_ref(&p.revoke));
        tx!(test.write, &PEOPLE, [p, end, early], |tx| {
            tx.insert_revoke_link(&p.revoke).await?;
            assert_eq!(tx.remove_expired_revoke_links(*early).await?, 0);
            assert_eq!(tx.remove_expired_revoke_links(*end).await?, 1);
            assert!(tx.clear_user_password(p.user.id, *early).await?);
            assert!(tx.load_user(p.user.id).await?.unwrap().password.is_none());
            let after = p.user.created_at.plus(Duration::from_micros(1));
            assert_eq!(tx.delete_factors_since(p.user.id, after).await?, 0, "what was there before stays");
            assert_eq!(tx.delete_factors_since(p.user.id, p.user.created_at).await?, 2);
            Ok(())
        })
        .unwrap();
    }
}
