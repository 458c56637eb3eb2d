//! What is worth something once, on both databases and however many ask at once.

use std::sync::Arc;
use std::time::Duration;

use bulkhead_model::id::TotpId;
use bulkhead_store::mfa::{StoredBackupCode, Totp, TotpState};

use crate::support::{PEOPLE, Person, TestStore};

async fn person(test: &TestStore) -> Person {
    let person = Person::new(&test.ambient);
    tx!(test.write, &PEOPLE, [person], |tx| person.insert(tx).await).unwrap();
    person
}

on_both! {
    async fn of_fifty_who_use_a_step_one_does(test: TestStore) {
        let p = person(&test).await;
        let test = Arc::new(test);
        let (id, user, hash, now) = (p.totp.id, p.user.id, p.codes[4].clone(), p.user.created_at);
        for step in [57_000_000_i64, 57_000_001] {
            let uses = (0..50).map(|_| async { tx!(test.write, &PEOPLE, [id, step], |tx| tx.use_totp_step(*id, *step).await).unwrap() });
            let used = futures_util::future::join_all(uses).await;
            assert_eq!(used.iter().filter(|used| **used).count(), 1);
        }
        let earlier = 57_000_000_i64;
        let earlier = tx!(test.write, &PEOPLE, [id, earlier], |tx| tx.use_totp_step(*id, *earlier).await);
        assert!(!earlier.unwrap(), "no step before the last one counts");
        let code = StoredBackupCode { position: 4, hash };
        let uses = (0..50).map(|_| async { tx!(test.write, &PEOPLE, [user, code, now], |tx| tx.use_backup_code(*user, code, *now).await).unwrap() });
        let used = futures_util::future::join_all(uses).await;
        assert_eq!(used.iter().filter(|used| **used).count(), 1);
        let left = tx!(test.read, &PEOPLE, [user], |tx| tx.list_backup_codes(*user).await).unwrap();
        assert_eq!(left.iter().map(|code| code.position).collect::<Vec<_>>(), [0, 1, 2, 3, 5, 6, 7, 8, 9]);
        let step = p.step.id;
        let uses = (0..50).map(|_| async { tx!(test.write, &PEOPLE, [step], |tx| tx.use_sign_in_step(*step).await).unwrap() });
        let used = futures_util::future::join_all(uses).await;
        assert_eq!(used.iter().filter(|used| **used).count(), 1);
    }

    async fn a_backup_code_of_an_earlier_set_is_none(test: TestStore) {
        let p = person(&test).await;
        let (user, now) = (p.user.id, p.user.created_at);
        let code = StoredBackupCode { position: 4, hash: p.codes[4].clone() };
        let mut renewed = p.codes.clone();
        for code in &mut renewed {
            code.salt = [9; 16];
        }
        let used = tx!(test.write, &PEOPLE, [user, code, renewed, now], |tx| {
            let totp = tx.load_totp(*user).await?.unwrap().id;
            tx.replace_backup_codes(totp, renewed, *now).await?;
            tx.use_backup_code(*user, code, *now).await
        });
        assert!(!used.unwrap());
    }

    async fn a_set_up_ends_with_its_codes_and_no_code_of_it_ever_counts(test: TestStore) {
        let p = person(&test).await;
        let (user, id, now) = (p.user.id, TotpId::new(&test.ambient), p.user.created_at);
        let code = StoredBackupCode { position: 1, hash: p.codes[1].clone() };
        let end = now.plus(Duration::from_mins(10));
        let set_up = Totp {
            id, state: TotpState::Shown, session: Some(p.session.id), expires_at: Some(end), ..p.totp.clone()
        };
        tx!(test.write, &PEOPLE, [p, set_up, user, id, code, now, end], |tx| {
            assert!(tx.delete_second_factors(*user).await?);
            tx.replace_totp_set_up(set_up).await?;
            assert!(tx.verify_totp(*id).await?);
            tx.replace_backup_codes(*id, &p.codes, *now).await?;
            assert!(tx.list_backup_codes(*user).await?.is_empty());
            assert!(!tx.use_backup_code(*user, code, *now).await?);
            assert_eq!(tx.delete_totp_set_up(*user, Some(p.session.id)).await?, 0, "the session's own");
            tx.remove_expired_steps(*end).await?;
            assert!(tx.load_totp_set_up(*user).await?.is_none());
            // Nothing of it is left for another one.
            tx.replace_totp_set_up(set_up).await?;
            assert!(tx.verify_totp(*id).await? && tx.activate_totp(*user, *id).await?);
            assert!(tx.list_backup_codes(*user).await?.is_empty());
            tx.replace_totp_set_up(&Totp { id: p.totp.id, ..set_up.clone() }).await?;
            assert_eq!(tx.delete_totp_set_up(*user, None).await?, 1);
            assert!(tx.load_totp(*user).await?.is_some());
            Ok(())
        })
        .unwrap();
    }

    async fn one_app_counts_and_one_is_set_up_beside_it(test: TestStore) {
        let p = person(&test).await;
        let (user, id, now) = (p.user.id, TotpId::new(&test.ambient), p.user.created_at);
        let fresh = Totp { id, state: TotpState::Shown, session: Some(p.session.id), ..p.totp.clone() };
        let end = now.plus(Duration::from_mins(10));
        tx!(test.write, &PEOPLE, [p, fresh, user, id, end], |tx| {
            tx.replace_totp_set_up(fresh).await?;
            assert_eq!(tx.load_totp(*user).await?.unwrap().id, p.totp.id, "the old one counts");
            let found = tx.load_totp_set_up(*user).await?.unwrap();
            assert_eq!(format!("{found:?}"), format!("{fresh:?}"));
            assert!(tx.verify_totp(*id).await?);
            assert!(!tx.verify_totp(*id).await?);
            // Its codes count from when it does, and those of the other one until then.
            let mut hashes = p.codes.clone();
            hashes.truncate(3);
            tx.replace_backup_codes(*id, &hashes, *end).await?;
            assert_eq!(tx.list_backup_codes(*user).await?.len(), 10);
            assert!(tx.activate_totp(*user, *id).await?);
            assert_eq!(tx.load_totp(*user).await?.unwrap().id, *id);
            assert!(tx.load_totp_set_up(*user).await?.is_none());
            assert_eq!(tx.load_totp(*user).await?.unwrap().session, None);
            assert_eq!(tx.list_backup_codes(*user).await?.len(), 3);
            assert!(!tx.use_totp_step(p.totp.id, 9).await?, "and the old one is gone");
            assert!(tx.fail_totp(*id).await? && tx.fail_totp(*id).await?);
            assert_eq!(tx.load_totp(*user).await?.unwrap().failures, 2);
            assert!(tx.forgive_totp(*user).await? && !tx.forgive_totp(*user).await?);
            tx.remove_expired_steps(*end).await?;
            assert!(tx.load_sign_in_step(&p.step.token_hash).await?.is_none());
            assert!(tx.load_totp(*user).await?.is_some(), "what counts has no end");
            assert!(tx.delete_second_factors(*user).await? && !tx.delete_second_factors(*user).await?);
            assert!(tx.list_backup_codes(*user).await?.is_empty());
            Ok(())
        })
        .unwrap();
    }

    async fn a_mailed_code_is_one_sign_ins_and_has_a_limit(test: TestStore) {
        let p = person(&test).await;
        let (step, hash, other, now) = (p.step.id, p.codes[0].clone(), p.codes[1].clone(), p.user.created_at);
        let end = p.step.expires_at;
        tx!(test.write, &PEOPLE, [p, step, hash, other, now, end], |tx| {
            assert!(tx.has_sign_in_step(*step, *now).await? && !tx.has_sign_in_step(*step, *end).await?);
            assert_eq!(tx.load_email_code(*step, 2).await?.as_ref(), Some(hash));
            assert!(tx.fail_email_code(*step).await?);
            tx.replace_email_code(*step, other, *now).await?;
            assert_eq!(tx.load_email_code(*step, 2).await?.as_ref(), Some(other));
            assert!(tx.load_email_code(*step, 1).await?.is_none(), "another code gives no further tries");
            assert!(tx.use_sign_in_step(*step).await?);
            assert!(tx.load_email_code(*step, 2).await?.is_none(), "it goes with the sign-in");
            assert!(!tx.is_password_by_mail(p.user.id).await?);
            assert!(tx.set_password_by_mail(p.user.id, true).await?);
            assert!(tx.is_password_by_mail(p.user.id).await?);
            Ok(())
        })
        .unwrap();
    }
}
