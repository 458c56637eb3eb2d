//! The first person from the printed link to a letter that a second one joins by, through a relay that speaks SMTP; and the operator's
//! way in for the locked-out.

use std::time::Duration;

use bulkhead_model::ambient::Ambient;
use bulkhead_test_support::authenticator::Authenticator;
use bulkhead_test_support::http_sink::Sink;
use bulkhead_test_support::smtp_sink::SmtpSink;
use bulkhead_test_support::wait_until;
use serde_json::json;

use crate::on_both;
use crate::server::Place;

const WITHIN: Duration = Duration::from_mins(1);
const PASSWORD: &str = "violet cement orbit";

/// The link's token in a letter, whose lines may be wrapped.
fn token(letter: &str, purpose: &str) -> String {
    let text = letter.replace("=\r\n", "").replace("=3D", "=");
    let (_, rest) = text.split_once(&format!("/link#{purpose}=")).unwrap_or_else(|| panic!("no link: {letter}"));
    rest.split_whitespace().next().unwrap().to_owned()
}

on_both! {
    fn the_first_person_invites_a_second_one_by_mail(place: Place) {
        let (sink, relay) = (Sink::start(), SmtpSink::start());
        let settings = [
            ("BULKHEAD_MAIL__URL", relay.url()),
            ("BULKHEAD_MAIL__FROM", "Bulkhead <bulkhead@example.com>".to_owned()),
            ("BULKHEAD_ACCOUNTS__HASH_MEMORY_KIB", "19456".to_owned()),
        ];
        let server = place.start_with(&sink, &settings);
        let log = place.log_text();
        let body = json!({
            "token": token(&log, "set_up"), "email": "ada@example.com", "name": "Ada", "password": PASSWORD,
            "organization": { "slug": "acme" },
        });
        assert_eq!(server.api.page("POST", "/api/v1/setup", "", &body).0.status, 201);
        let sign_in = |email: &str| server.api.page("POST", "/api/v1/auth/login", "", &json!({ "email": email, "password": PASSWORD }));
        let (answer, ada) = sign_in("ada@example.com");
        assert_eq!((answer.status, answer.body["organizations"][0]["slug"].as_str()), (200, Some("acme")));

        // The organization asks its admins for a second factor, from the first one on.
        let refused = server.api.page("GET", "/api/v1/orgs/acme", &ada, &json!(null)).0;
        assert_eq!(refused.body["type"], "https://bulkhead.dev/problems/mfa-required");
        let shown = server.api.page("POST", "/api/v1/me/mfa/totp", &ada, &json!(null)).0;
        assert_eq!(shown.status, 201);
        let app = Authenticator::scan(shown.body["uri"].as_str().unwrap());
        let now_s = u64::try_from(Ambient::system().now().as_micros() / 1_000_000).unwrap();
        let verified = server.api.page("POST", "/api/v1/me/mfa/totp/verify", &ada, &json!({ "code": app.code(now_s) })).0;
        let backup_code = verified.body["codes"][0].as_str().unwrap().to_owned();
        let (answer, ada) = server.api.page("POST", "/api/v1/me/mfa/totp/activate", &ada, &json!(null));
        assert_eq!(answer.status, 200);

        let invite = json!({ "email": "bo@example.com", "role": "viewer" });
        assert_eq!(server.api.page("POST", "/api/v1/orgs/acme/invitations", &ada, &invite).0.status, 201);
        let to_bo = || relay.letters().into_iter().find(|letter| letter.to == ["bo@example.com"]);
        assert!(wait_until(WITHIN, || to_bo().is_some()), "a letter comes");
        let letter = to_bo().unwrap();
        assert_eq!(letter.from, "bulkhead@example.com");
        let joining = json!({ "token": token(&letter.text, "join"), "name": "Bo", "password": PASSWORD });
        assert_eq!(server.api.page("POST", "/api/v1/auth/join", "", &joining).0.status, 204);
        let (answer, _) = sign_in("bo@example.com");
        assert_eq!(answer.body["organizations"][0]["role"], "viewer");

        // The locked-out, from the console; with SQLite while the server rests.
        assert_eq!(server.stop(), Some(0));
        let link = place.operate(&["admin", "reset-password", "ada@example.com", "--json"]).unwrap();
        assert!(place.operate(&["admin", "reset-password", "nobody@example.com", "--json"]).is_err());
        let server = place.start_with(&sink, &settings);
        assert_eq!(server.api.page("GET", "/api/v1/me", &ada, &json!(null)).0.status, 401, "every session ended");
        let choose = json!({ "token": link["token"], "password": "quiet marble lantern" });
        assert_eq!(server.api.page("POST", "/api/v1/auth/choose-password", "", &choose).0.status, 204);
        let again = json!({ "email": "ada@example.com", "password": "quiet marble lantern" });
        let (answer, waits) = server.api.page("POST", "/api/v1/auth/login", "", &again);
        assert_eq!(answer.status, 202, "a new password is half of it");
        let second = json!({ "backup_code": backup_code });
        assert_eq!(server.api.page("POST", "/api/v1/auth/second-factor", &waits, &second).0.status, 200);
        let log = place.log_text();
        assert!(!log.contains(&backup_code) && !log.contains(shown.body["secret"].as_str().unwrap()));
        assert!(!log.contains(PASSWORD) && !log.contains(&token(&letter.text, "join")), "no log shows a credential");
    }
}
