//! Members and invitations, and the letters that people get.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use bulkhead_app::mail::{Post, PostError};
use bulkhead_model::id::{MailId, UserId};
use bulkhead_model::letter::Written;
use bulkhead_model::permission::AccountScope;
use bulkhead_store::StoreError;
use futures_util::future::BoxFuture;
use serde_json::{Value, json};

use crate::people::{Browser, PASSWORD};
use crate::support::{Answer, PUBLIC_URL, TestServer, ask};

/// A relay that keeps what it is given.
#[derive(Default)]
pub(crate) struct PostBox {
    taken: Mutex<Vec<(MailId, Written)>>,
    /// What the next letters meet.
    refusals: Mutex<Vec<PostError>>,
}

impl PostBox {
    fn taken(&self) -> Vec<(MailId, Written)> {
        self.taken.lock().unwrap().clone()
    }

    fn refuse(&self, error: PostError) {
        self.refusals.lock().unwrap().push(error);
    }
}

impl Post for PostBox {
    fn send<'a>(&'a self, id: MailId, letter: &'a Written) -> BoxFuture<'a, Result<(), PostError>> {
        Box::pin(async move {
            if let Some(refusal) = self.refusals.lock().unwrap().pop() {
                return Err(refusal);
            }
            self.taken.lock().unwrap().push((id, letter.clone()));
            Ok(())
        })
    }
}

pub(crate) fn post_box() -> Arc<PostBox> {
    Arc::default()
}

impl TestServer {
    /// Sends what is due; the letters that left.
    pub(crate) async fn letters(&self) -> Vec<Written> {
        let before = self.post.taken().len();
        self.app.send_due_mail(&*self.post).await.unwrap();
        self.post.taken().into_iter().skip(before).map(|(_, letter)| letter).collect()
    }

    /// The token of the one letter that left with a link for this.
    pub(crate) async fn mailed_token(&self, purpose: &str) -> String {
        let mut letters = self.letters().await;
        letters.retain(|letter| letter.body.contains(&format!("/link#{purpose}=")));
        assert_eq!(letters.len(), 1, "{letters:?}");
        token_in(&letters[0], purpose)
    }
}

pub(crate) fn token_in(letter: &Written, purpose: &str) -> String {
    let link = format!("{PUBLIC_URL}/link#{purpose}=");
    let (_, rest) =
        letter.body.split_once(&link).unwrap_or_else(|| panic!("no link of the configured address: {}", letter.body));
    rest.split_whitespace().next().unwrap().to_owned()
}

pub(crate) async fn join(server: &TestServer, token: &str, name: &str) -> Answer {
    let body = json!({ "token": token, "name": name, "password": PASSWORD });
    server.send(ask("POST", "/api/v1/auth/join").json(&body)).await
}

pub(crate) async fn invite(server: &TestServer, by: &Browser, email: &str, role: &str) -> Answer {
    server.send(by.ask("POST", "/api/v1/orgs/acme/invitations").json(&json!({ "email": email, "role": role }))).await
}

on_both! {
    async fn somebody_joins_by_a_letter(server: TestServer) {
        let ada = server.first_person().await;
        let invited = invite(&server, &ada, "Bo@Example.com", "viewer").await.json(201);
        assert!(invited.get("link").is_none(), "the link is for the address alone");
        let letters = server.letters().await;
        assert_eq!(letters[0].to.as_str(), "bo@example.com");
        assert!(letters[0].body.contains("Ada Lovelace") && letters[0].subject.contains("Acme Inc"), "{letters:?}");
        let token = token_in(&letters[0], "join");
        let body = json!({ "token": token });
        assert_eq!(server.send(ask("POST", "/api/v1/auth/join").json(&body)).await.problem(422), "invalid-name", "somebody new says who they are");
        assert_eq!(join(&server, &token, "Bo Other").await.status.as_u16(), 204);
        assert_eq!(join(&server, &token, "Bo Again").await.problem(422), "invalid-link", "once");
        let mut bo = Browser::default();
        let me = bo.sign_in(&server, "bo@example.com", PASSWORD).await.json(200);
        assert_eq!((me["user"]["email_verified"].as_bool(), me["organizations"][0]["role"].as_str()), (Some(true), Some("viewer")));
        let members = server.send(bo.ask("GET", "/api/v1/orgs/acme/members")).await.json(200);
        assert_eq!(members["items"].as_array().unwrap().len(), 2);
        // A viewer sees and does no more than that.
        let refused = invite(&server, &bo, "x@example.com", "viewer").await;
        assert_eq!(refused.problem(403), "forbidden");
    }

    /// OneUptime GHSA-qg84-6hrg-mr5g: whoever knew the address took the invited account.
    async fn an_invitation_to_somebody_with_an_account_is_theirs_alone(server: TestServer) {
        let ada = server.first_person().await;
        let bo = server.person("bo@example.com", None).await;
        let eve = server.person("eve@example.com", None).await;
        invite(&server, &ada, "bo@example.com", "manager").await.json(201);
        let token = server.mailed_token("join").await;
        assert_eq!(join(&server, &token, "Not Bo").await.problem(409), "sign-in-first");
        let as_eve = server.send(eve.ask("POST", "/api/v1/auth/join").json(&json!({ "token": token }))).await;
        assert_eq!(as_eve.problem(409), "sign-in-first");
        let foreign = ask("POST", "/api/v1/auth/join").header("cookie", &format!("__Host-bulkhead_session={}", bo.session().unwrap()));
        assert_eq!(server.send(foreign.json(&json!({ "token": token }))).await.problem(403), "foreign-origin");
        let as_bo = server.send(bo.ask("POST", "/api/v1/auth/join").json(&json!({ "token": token }))).await;
        assert_eq!(as_bo.status.as_u16(), 204, "{}", as_bo.text());
        server.send(bo.ask("GET", "/api/v1/orgs/acme/members")).await.json(200);
        assert_eq!(invite(&server, &ada, "bo@example.com", "viewer").await.problem(409), "already-member");
    }

    /// authentik CVE-2025-64708: an invitation that was over until a job removed it.
    async fn an_invitation_is_over_by_the_clock_or_when_it_is_taken_back(server: TestServer) {
        let ada = server.first_person().await;
        invite(&server, &ada, "bo@example.com", "viewer").await.json(201);
        let late = server.mailed_token("join").await;
        server.ambient.advance(Duration::from_hours(24 * 7));
        assert_eq!(join(&server, &late, "Bo Other").await.problem(422), "invalid-link");
        let mut ada = ada;
        ada.sign_in(&server, "ada@example.com", PASSWORD).await.json(200);
        invite(&server, &ada, "bo@example.com", "viewer").await.json(201);
        let first = server.mailed_token("join").await;
        let second = invite(&server, &ada, "bo@example.com", "viewer").await.json(201);
        let newest = server.mailed_token("join").await;
        assert_eq!(join(&server, &first, "Bo Other").await.problem(422), "invalid-link", "a newer one was sent");
        let revoke = format!("/api/v1/orgs/acme/invitations/{}", second["id"].as_str().unwrap());
        for _ in 0..2 {
            assert_eq!(server.send(ada.ask("DELETE", &revoke)).await.status.as_u16(), 204);
        }
        assert_eq!(join(&server, &newest, "Bo Other").await.problem(422), "invalid-link");
        let listed = server.send(ada.ask("GET", "/api/v1/orgs/acme/invitations")).await.json(200);
        assert_eq!(listed["items"].as_array().unwrap().len(), 3);
        for (email, role, slug) in [("x", "viewer", "invalid-email"), ("x@example.com", "owner", "invalid-role"), ("x@example.com", "super_admin", "invalid-role")] {
            assert_eq!(invite(&server, &ada, email, role).await.problem(422), slug);
        }
    }

    async fn of_many_who_use_an_invitation_at_once_one_joins(server: TestServer) {
        let ada = server.first_person().await;
        invite(&server, &ada, "bo@example.com", "viewer").await.json(201);
        let token = server.mailed_token("join").await;
        let answers = futures_util::future::join_all((0..5).map(|_| join(&server, &token, "Bo Other"))).await;
        let joined = answers.iter().filter(|answer| answer.status.as_u16() == 204).count();
        assert_eq!(joined, 1, "{:?}", answers.iter().map(|answer| answer.status.as_u16()).collect::<Vec<_>>());
    }

    async fn disabling_a_member_ends_everything_at_once(server: TestServer) {
        let ada = server.first_person().await;
        let bo = server.person("bo@example.com", Some(("acme", "admin"))).await;
        let me = server.send(bo.ask("GET", "/api/v1/me")).await.json(200);
        let id = me["user"]["id"].as_str().unwrap();
        let sessions = format!("/api/v1/orgs/acme/members/{id}/sessions");
        let seen = server.send(ada.ask("GET", &sessions)).await.json(200);
        assert_eq!(seen["items"].as_array().unwrap().len(), 1);
        let state = format!("/api/v1/orgs/acme/members/{id}/state");
        let disabled = server.send(ada.ask("PUT", &state).json(&json!({ "state": "disabled" }))).await.json(200);
        assert_eq!((disabled["state"].as_str(), disabled["can_sign_in"].as_bool()), (Some("disabled"), Some(false)));
        assert_eq!(server.send(bo.ask("GET", "/api/v1/me")).await.problem(401), "unauthenticated");
        assert_eq!(server.send(bo.ask("GET", "/api/v1/orgs/acme")).await.problem(401), "unauthenticated");
        // The organization is closed to them however they come.
        let mut again = Browser::default();
        let me = again.sign_in(&server, "bo@example.com", PASSWORD).await.json(200);
        assert_eq!(me["organizations"], json!([]));
        assert_eq!(server.send(again.ask("GET", "/api/v1/orgs/acme")).await.problem(404), "not-found");
        server.send(ada.ask("PUT", &state).json(&json!({ "state": "active" }))).await.json(200);
        server.send(again.ask("GET", "/api/v1/orgs/acme")).await.json(200);
        let one = format!("{sessions}/{}", server.send(ada.ask("GET", &sessions)).await.json(200)["items"][0]["id"].as_str().unwrap());
        assert_eq!(server.send(ada.ask("DELETE", &one)).await.status.as_u16(), 204);
        assert_eq!(server.send(ada.ask("DELETE", &one)).await.problem(404), "not-found");
        assert_eq!(server.send(again.ask("GET", "/api/v1/me")).await.problem(401), "unauthenticated");
        assert_eq!(server.send(ada.ask("DELETE", &sessions)).await.status.as_u16(), 204);
        let member = format!("/api/v1/orgs/acme/members/{id}");
        assert_eq!(server.send(ada.ask("DELETE", &member)).await.status.as_u16(), 204);
        assert_eq!(server.send(ada.ask("GET", &member)).await.problem(404), "not-found");
    }

    async fn the_last_administrator_stays_and_nobody_removes_themselves(server: TestServer) {
        let ada = server.first_person().await;
        let me = server.send(ada.ask("GET", "/api/v1/me")).await.json(200);
        let own = format!("/api/v1/orgs/acme/members/{}", me["user"]["id"].as_str().unwrap());
        assert_eq!(server.send(ada.ask("DELETE", &own)).await.problem(409), "own-membership");
        let body = json!({ "name": "all", "permissions": ["users.remove", "users.disable"] });
        let key = server.send(ada.ask("POST", "/api/v1/orgs/acme/api-keys").json(&body)).await.json(201);
        let key = key["secret"].as_str().unwrap();
        assert_eq!(server.send(ask("DELETE", &*own).key(key)).await.problem(409), "last-admin");
        let disable = ask("PUT", format!("{own}/state")).key(key).json(&json!({ "state": "disabled" }));
        assert_eq!(server.send(disable).await.problem(409), "last-admin");
        // Somebody who is disabled administers nothing.
        server.person("bo@example.com", Some(("acme", "admin"))).await;
        let members = server.send(ada.ask("GET", "/api/v1/orgs/acme/members")).await.json(200);
        let bo = members["items"].as_array().unwrap().iter().find(|member| member["email"] == "bo@example.com").unwrap();
        let state = format!("/api/v1/orgs/acme/members/{}/state", bo["user"].as_str().unwrap());
        server.send(ada.ask("PUT", &state).json(&json!({ "state": "disabled" }))).await.json(200);
        assert_eq!(server.send(ask("DELETE", &*own).key(key)).await.problem(409), "last-admin");
    }

    /// Keycloak CVE-2026-18963: a reset that needed no mailed proof. Zitadel CVE-2023-49097: the request's own host in the link.
    async fn a_forgotten_password_is_chosen_anew_by_mail(server: TestServer) {
        let ada = server.first_person().await;
        let forgot = |email: &str| ask("POST", "/api/v1/auth/password-reset").header("host", "evil.test").json(&json!({ "email": email }));
        for email in ["ada@example.com", "nobody@example.com", "no address"] {
            assert_eq!(server.send(forgot(email)).await.status.as_u16(), 202, "{email}");
        }
        let letters = server.letters().await;
        assert_eq!(letters.len(), 1, "only who exists gets one: {letters:?}");
        assert!(!letters[0].body.contains("evil"), "{}", letters[0].body);
        let token = token_in(&letters[0], "choose_password");
        let choose = |token: &str| ask("POST", "/api/v1/auth/choose-password").json(&json!({ "token": token, "password": "quiet marble lantern" }));
        assert_eq!(server.send(choose(&token)).await.status.as_u16(), 204);
        assert_eq!(server.send(choose(&token)).await.problem(422), "invalid-link");
        assert_eq!(server.send(ada.ask("GET", "/api/v1/me")).await.problem(401), "unauthenticated", "every session ended");
        Browser::default().sign_in(&server, "ada@example.com", "quiet marble lantern").await.json(200);
        // A link for one thing does nothing else.
        server.send(forgot("ada@example.com")).await;
        let token = server.mailed_token("choose_password").await;
        let verify = ask("POST", "/api/v1/auth/verify-email").json(&json!({ "token": token }));
        assert_eq!(server.send(verify).await.problem(422), "invalid-link");
        assert_eq!(join(&server, &token, "Eve").await.problem(422), "invalid-link");
    }

    /// OneUptime GHSA-5cr8-vph4-3hrf: codes without limit. A mailbox is not filled either.
    async fn letters_are_asked_for_a_few_times(server: TestServer) {
        server.first_person().await;
        let forgot = |email: &str| ask("POST", "/api/v1/auth/password-reset").json(&json!({ "email": email }));
        for email in ["ada@example.com", "nobody@example.com"] {
            for _ in 0..3 {
                assert_eq!(server.send(forgot(email)).await.status.as_u16(), 202);
            }
            let more = server.send(forgot(email)).await;
            assert_eq!(more.problem(429), "too-many-attempts", "{email}");
            assert_eq!(more.header("retry-after"), "1200");
        }
        assert_eq!(server.letters().await.len(), 3);
    }

    async fn another_address_is_proven_before_it_counts(server: TestServer) {
        let mut ada = server.first_person().await;
        server.person("bo@example.com", None).await;
        // What the second person was told is not looked at here.
        server.letters().await;
        let change = |ada: &Browser, email: &str| ada.ask("PUT", "/api/v1/me/email").json(&json!({ "email": email }));
        server.ambient.advance(Duration::from_mins(11));
        assert_eq!(server.send(change(&ada, "new@example.com")).await.problem(401), "step-up-required");
        assert_eq!(server.send(change(&ada, "new@example.com")).await.header("www-authenticate"),
            "Bearer error=\"insufficient_user_authentication\", max_age=600");
        let proven = server.send(ada.ask("POST", "/api/v1/auth/step-up").json(&json!({ "password": PASSWORD }))).await;
        ada.keep(&proven);
        assert_eq!(server.send(change(&ada, "new@example.com")).await.status.as_u16(), 202);
        let letters = server.letters().await;
        let to_new: Vec<&Written> = letters.iter().filter(|letter| letter.to.as_str() == "new@example.com").collect();
        assert_eq!((to_new.len(), letters.len()), (1, 2), "and the address of now is told: {letters:?}");
        let me = server.send(ada.ask("GET", "/api/v1/me")).await.json(200);
        assert_eq!(me["user"]["email"], "ada@example.com", "nothing changed yet");
        let verify = |token: &str| ask("POST", "/api/v1/auth/verify-email").json(&json!({ "token": token }));
        assert_eq!(server.send(verify(&token_in(to_new[0], "verify_email"))).await.status.as_u16(), 204);
        assert_eq!(server.send(ada.ask("GET", "/api/v1/me")).await.problem(401), "unauthenticated");
        assert_eq!(server.letters().await[0].to.as_str(), "ada@example.com", "the old address is told");
        assert_eq!(Browser::default().sign_in(&server, "ada@example.com", PASSWORD).await.problem(401), "unauthenticated");
        let mut ada = Browser::default();
        ada.sign_in(&server, "new@example.com", PASSWORD).await.json(200);
        // Somebody else's address stays theirs, and nobody learns that it is one.
        assert_eq!(server.send(change(&ada, "bo@example.com")).await.status.as_u16(), 202);
        let token = server.mailed_token("verify_email").await;
        assert_eq!(server.send(verify(&token)).await.problem(422), "invalid-link");
        // One's own is only proven.
        assert_eq!(server.send(change(&ada, "new@example.com")).await.status.as_u16(), 202);
        let token = server.mailed_token("verify_email").await;
        assert_eq!(server.send(verify(&token)).await.status.as_u16(), 204);
        server.send(ada.ask("GET", "/api/v1/me")).await.json(200);
    }

    async fn a_person_is_told_of_a_new_browser_and_a_new_password(server: TestServer) {
        let ada = server.first_person().await;
        assert!(server.letters().await.is_empty(), "the first browser is no news");
        Browser::default().sign_in(&server, "ada@example.com", PASSWORD).await.json(200);
        let told = server.letters().await;
        assert_eq!((told.len(), told[0].subject.as_str()), (1, "A new sign-in"));
        assert!(told[0].body.contains(&format!("{PUBLIC_URL}/link#revoke=")), "{}", told[0].body);
        let mut known = ada.clone();
        known.sign_in(&server, "ada@example.com", PASSWORD).await.json(200);
        assert!(server.letters().await.is_empty(), "a browser that is known is no news");
        let body = json!({ "password": PASSWORD, "new_password": "quiet marble lantern" });
        server.send(known.ask("PUT", "/api/v1/me/password").json(&body)).await.json(200);
        assert_eq!(server.letters().await[0].subject, "Your password was changed");
    }

    async fn a_letter_that_is_not_taken_is_tried_again(server: TestServer) {
        let ada = server.first_person().await;
        invite(&server, &ada, "bo@example.com", "viewer").await.json(201);
        server.post.refuse(PostError::Later("451 busy".to_owned()));
        assert!(server.letters().await.is_empty());
        assert!(server.letters().await.is_empty(), "not at once");
        server.ambient.advance(Duration::from_secs(30));
        assert_eq!(server.letters().await.len(), 1);
        assert!(server.letters().await.is_empty(), "and once");
        invite(&server, &ada, "cy@example.com", "viewer").await.json(201);
        server.post.refuse(PostError::Never("550 no such user".to_owned()));
        assert!(server.letters().await.is_empty());
        server.ambient.advance(Duration::from_hours(2));
        assert!(server.letters().await.is_empty(), "given up");
    }

    async fn what_ended_is_removed(server: TestServer) {
        let mut ada = server.first_person().await;
        let id: UserId = server.send(ada.ask("GET", "/api/v1/me")).await.json(200)["user"]["id"].as_str().unwrap().parse().unwrap();
        server.send(ada.ask("POST", "/api/v1/me/mfa/totp")).await.json(201);
        let forgot = ask("POST", "/api/v1/auth/password-reset").json(&json!({ "email": "ada@example.com" }));
        server.send(forgot).await;
        server.mailed_token("choose_password").await;
        let rows = async || {
            let read = server.store.read(&AccountScope::OWN, id, |tx, id| {
                Box::pin(async move {
                    let (sessions, set_up) = (tx.list_sessions(*id).await?, tx.load_totp_set_up(*id).await?);
                    Ok::<_, StoreError>((sessions.len(), set_up.is_some()))
                })
            });
            read.await.unwrap()
        };
        server.app.tidy_people().await.unwrap();
        assert_eq!(rows().await, (1, true), "not before their time");
        server.ambient.advance(Duration::from_hours(24));
        assert_eq!(rows().await, (1, true));
        server.app.tidy_people().await.unwrap();
        assert_eq!(rows().await, (0, false));
        let links = server.store.write(&AccountScope::OWN, server.ambient.now(), |tx, now| {
            Box::pin(async move { tx.remove_expired_links(*now).await })
        });
        assert_eq!(links.await.unwrap(), 0, "no link is left");
        let me: Value = ada.sign_in(&server, "ada@example.com", PASSWORD).await.json(200);
        assert_eq!(me["user"]["email"], "ada@example.com");
    }
}
