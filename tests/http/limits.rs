//! Rate limits through the real router: who is counted by what, before and after authentication, and what clients are told.

use std::time::Duration;

use bulkhead_http::router;
use bulkhead_model::permission::Permission;
use bulkhead_model::rate::{Rate, RateLimits};
use serde_json::json;

use crate::support::{Answer, Ask, PUBLIC_URL, Tenant, TestServer, ask, config, stops_at_once};

/// Small ones, each told from the others by its figure.
fn small() -> RateLimits {
    RateLimits {
        anonymous: Rate::per_minute(60, 3),
        sign_in: Rate::per_minute(60, 2),
        credentials: Rate::per_minute(60, 4),
        user: Rate::per_minute(60, 5),
        key: Rate::per_minute(60, 6),
        strict: Rate::per_minute(60, 2),
        export: Rate::per_hour(60, 1),
        organization: Rate::per_minute(60, 20),
    }
}

/// An active webhook's path.
async fn hook(server: &TestServer, tenant: &Tenant, name: &str) -> String {
    let view = server.save(tenant, &stops_at_once(name)).await;
    let activate = tenant.at(&format!("workflows/{}/activate", view["id"].as_str().unwrap()));
    server.send(ask("POST", activate).key(&tenant.key)).await.json(200);
    view["hooks"][0]["url"].as_str().unwrap().strip_prefix(PUBLIC_URL).unwrap().to_owned()
}

async fn passed(server: &TestServer, most: usize, mut make: impl FnMut() -> Ask) -> (usize, Answer) {
    for n in 0..most {
        let answer = server.send(make()).await;
        if answer.status.as_u16() == 429 {
            return (n, answer);
        }
    }
    panic!("{most} requests passed");
}

on_both! {
    async fn a_key_is_told_what_is_left_and_when_to_come_back(server: TestServer) {
        let mut server = server;
        let tenant = server.tenant("acme").await;
        server.limit_rates(small());
        let read = || ask("GET", tenant.at("runs")).key(&tenant.key);
        let first = server.send(read()).await;
        assert_eq!(first.status.as_u16(), 200);
        assert_eq!(first.header("ratelimit-policy"), r#""api-key";q=60;w=60, "organization";q=60;w=60"#);
        assert!(first.header("ratelimit").starts_with(r#""api-key";r=5;t="#), "{}", first.header("ratelimit"));
        let (before, refused) = passed(&server, 9, read).await;
        assert_eq!(before, 5);
        let document = refused.json(429);
        assert_eq!(refused.problem(429), "registered:quota-exceeded");
        assert_eq!(document["violated-policies"], json!(["api-key"]));
        assert_eq!(refused.header("retry-after"), "1");
        assert_eq!(refused.header("ratelimit"), r#""api-key";r=0;t=1"#);
        assert_eq!(refused.header("ratelimit-policy"), r#""api-key";q=60;w=60"#);
        // Another key of the organization has a bucket of its own, and so has what is read from small fixed lists.
        assert_eq!(server.send(ask("GET", tenant.at("")[..tenant.at("").len() - 1].to_owned()).key(&tenant.key)).await.status.as_u16(), 200);
    }

    /// Section e: a limiter after authentication leaves the hashing to attackers for nothing.
    async fn sign_ins_are_counted_by_address_before_a_password_is_looked_at(server: TestServer) {
        let mut server = server;
        server.limit_rates(small());
        let sign_in = |from: &str| {
            ask("POST", "/api/v1/auth/login").json(&json!({ "email": "eve@example.com", "password": "x" })).peer(from)
        };
        let (before, refused) = passed(&server, 9, || sign_in("198.51.100.7")).await;
        assert_eq!((before, refused.problem(429)), (2, "registered:quota-exceeded".to_owned()));
        // Whether a body is sound, and whether a cookie is presented, changes nothing: the address is counted first.
        let broken = ask("POST", "/api/v1/auth/login").bytes("application/json", "{").peer("198.51.100.7");
        assert_eq!(server.send(broken).await.status.as_u16(), 429);
        let cookie = format!("__Host-bulkhead_session={}", "ab".repeat(32));
        assert_eq!(server.send(sign_in("198.51.100.7").header("cookie", &cookie)).await.status.as_u16(), 429);
        assert_eq!(server.send(sign_in("198.51.100.8")).await.status.as_u16(), 401);
        // The address says nothing for itself: what a client writes there is not believed.
        let spoofed = sign_in("198.51.100.7").header("x-forwarded-for", "203.0.113.9");
        assert_eq!(server.send(spoofed).await.status.as_u16(), 429);
    }

    async fn credentials_that_are_refused_count_for_their_address(server: TestServer) {
        let mut server = server;
        let tenant = server.tenant("acme").await;
        server.limit_rates(small());
        let guess = || ask("GET", tenant.at("runs")).key("bh_live_nothing").peer("198.51.100.7");
        let (before, refused) = passed(&server, 9, guess).await;
        assert_eq!((before, refused.json(429)["violated-policies"].clone()), (4, json!(["failed-credentials"])));
        // From elsewhere the key is what it was, and the guesses took nothing from it.
        let good = server.send(ask("GET", tenant.at("runs")).key(&tenant.key).peer("198.51.100.8")).await;
        assert!(good.header("ratelimit").starts_with(r#""api-key";r=5;"#));
        // One /64 is one client.
        let (before, _) = passed(&server, 9, || ask("GET", tenant.at("runs")).key("x").peer("2001:db8::1")).await;
        assert_eq!(before, 4);
        assert_eq!(server.send(ask("GET", tenant.at("runs")).key("x").peer("2001:db8::2")).await.status.as_u16(), 429);
        assert_eq!(server.send(ask("GET", tenant.at("runs")).key("x").peer("2001:db8:0:1::2")).await.status.as_u16(), 401);
    }

    async fn strangers_are_few_and_probes_are_never_refused(server: TestServer) {
        let mut server = server;
        server.limit_rates(small());
        let scan = || ask("GET", "/wp-login.php").peer("198.51.100.7");
        assert_eq!(passed(&server, 9, scan).await.0, 3);
        let page = || ask("GET", "/api/openapi.json").peer("198.51.100.7");
        assert_eq!(passed(&server, 20, page).await.0, 6, "twice as many");
        // Refused, a probe has the process killed; and strangers may come from where it comes.
        for probe in ["/livez", "/readyz", "/healthz"].repeat(9) {
            assert_eq!(server.send(ask("GET", probe).peer("198.51.100.7")).await.status.as_u16(), 200);
        }
        // Requests of which nobody knows the address are not one client, which could shut out the rest.
        for _ in 0..9 {
            assert_eq!(server.send(ask("GET", "/nothing")).await.status.as_u16(), 404);
        }
    }

    /// A sender of webhooks is one address for many organizations; whoever knocks at any door is counted all the same.
    async fn addresses_of_webhooks_that_there_are_not_count_for_their_sender(server: TestServer) {
        let mut server = server;
        let tenant = server.tenant("acme").await;
        let (known, fresh) = (hook(&server, &tenant, "Known").await, hook(&server, &tenant, "Fresh").await);
        server.limit_rates(small());
        let knock = |path: &str| ask("POST", path).json(&json!({})).peer("198.51.100.7");
        // What is delivered is not counted here, however many come before the first answer.
        let together = (0..9).map(|_| server.send(knock(&known)));
        for answer in futures_util::future::join_all(together).await {
            answer.json(202);
        }
        let mut n = 0;
        let (before, refused) = passed(&server, 9, || {
            n += 1;
            knock(&format!("/hooks/nothing{n}"))
        })
        .await;
        assert_eq!((before, refused.json(429)["violated-policies"].clone()), (4, json!(["failed-credentials"])));
        assert!(!refused.header("retry-after").is_empty());
        // The same address as before goes on; one that is new here waits as long as there are guesses from there, and there only.
        server.send(knock(&known)).await.json(202);
        assert_eq!(server.send(knock(&fresh)).await.problem(429), "registered:quota-exceeded");
        server.send(ask("POST", &*fresh).json(&json!({})).peer("198.51.100.8")).await.json(202);
        // Nobody is shut out by what others deliver from there, and where nobody knows the address nobody is counted.
        assert!(server.app.list_address_blocks_as_operator().await.unwrap().is_empty());
        for _ in 0..9 {
            assert_eq!(server.send(ask("POST", "/hooks/nothing")).await.status.as_u16(), 404);
        }
    }

    async fn changes_of_keys_are_strict_and_an_organization_has_a_bucket_too(server: TestServer) {
        let mut server = server;
        let tenant = server.tenant("acme").await;
        let reader = server.key(&tenant, &[Permission::RunsRead]).await;
        server.limit_rates(RateLimits { organization: Rate::per_minute(60, 4), ..small() });
        let make = || {
            ask("POST", tenant.at("api-keys")).key(&tenant.key).json(&json!({ "name": "x", "permissions": ["org.read"] }))
        };
        let (before, refused) = passed(&server, 9, make).await;
        assert_eq!((before, refused.json(429)["violated-policies"].clone()), (2, json!(["strict"])));
        // A refusal took nothing from the organization.
        let (before, refused) = passed(&server, 9, || ask("GET", tenant.at("runs")).key(&reader)).await;
        assert_eq!((before, refused.json(429)["violated-policies"].clone()), (2, json!(["organization"])));
        if !server.store.is_postgres() {
            server.ambient.advance(Duration::from_secs(1));
            assert_eq!(server.send(ask("GET", tenant.at("runs")).key(&reader)).await.status.as_u16(), 200);
        }
    }

    /// Junk in the header is nobody's credential where nobody looks at it.
    async fn credentials_are_no_way_round_where_none_are_looked_at(server: TestServer) {
        let mut server = server;
        server.limit_rates(small());
        let cookie = format!("__Host-bulkhead_session={}", "ab".repeat(32));
        let revoke = || {
            let body = json!({ "refresh_token": "ab".repeat(32) });
            ask("POST", "/api/v1/auth/revoke").json(&body).key("x").header("cookie", &cookie).peer("198.51.100.7")
        };
        assert_eq!(passed(&server, 9, revoke).await.0, 3);
        let scan = || ask("GET", "/wp-login.php").key("x").peer("198.51.100.8");
        assert_eq!(passed(&server, 9, scan).await.0, 3);
    }

    /// Good credentials, and the name of somebody else's organization or of none.
    async fn whoever_asks_for_what_is_not_theirs_is_counted_all_the_same(server: TestServer) {
        let mut server = server;
        let (tenant, other) = (server.tenant("acme").await, server.tenant("other").await);
        let mut keys = Vec::new();
        for _ in 0..3 {
            keys.push(server.key(&tenant, &[Permission::RunsRead]).await);
        }
        server.limit_rates(small());
        for (org, key) in [other.org.clone(), "no body".to_owned(), "nobody".to_owned()].into_iter().zip(keys) {
            let foreign = || ask("GET", format!("/api/v1/orgs/{}/runs", org.replace(' ', "%20"))).key(&key);
            assert_eq!(passed(&server, 9, foreign).await.0, 6, "{org}");
        }
    }

    /// Section e: one guest's guessing shuts nobody out who shares the address.
    async fn who_is_known_goes_on_beside_a_guesser(server: TestServer) {
        let mut server = server;
        let tenant = server.tenant("acme").await;
        let rates = RateLimits { key: Rate::per_minute(60, 50), organization: Rate::per_minute(60, 50), ..small() };
        server.limit_rates(rates);
        let good = || ask("GET", tenant.at("runs")).key(&tenant.key).peer("198.51.100.7");
        assert_eq!(server.send(good()).await.status.as_u16(), 200);
        let mut guesses = 0..;
        let mut guess = || ask("GET", tenant.at("runs")).key(&format!("guess {}", guesses.next().unwrap())).peer("198.51.100.7");
        let mut refused = 0;
        for _ in 0..40 {
            refused += u32::from(server.send(guess()).await.status.as_u16() == 429);
            assert_eq!(server.send(good()).await.status.as_u16(), 200);
        }
        assert!(refused >= 30, "{refused}");
    }

    /// Pages of other sites can use up nothing of whoever looks at them.
    async fn a_page_of_another_site_takes_no_sign_in_from_its_reader(server: TestServer) {
        let mut server = server;
        server.limit_rates(small());
        let sign_in = || {
            ask("POST", "/api/v1/auth/login").json(&json!({ "email": "a@example.com", "password": "x" })).peer("198.51.100.7")
        };
        for _ in 0..9 {
            let foreign = server.send(sign_in().header("sec-fetch-site", "cross-site")).await;
            assert_eq!(foreign.problem(403), "foreign-origin");
        }
        assert_eq!(server.send(sign_in()).await.status.as_u16(), 401);
    }

    /// Section e: whoever builds the configuration twice has two limiters.
    async fn two_routers_of_one_application_count_together(server: TestServer) {
        let mut server = server;
        server.limit_rates(small());
        let second = router(server.app.clone(), config());
        let scan = || ask("GET", "/nothing").peer("198.51.100.7");
        for n in 0..3 {
            let answer = if n % 2 == 0 { server.send(scan()).await } else { scan().send(&second).await };
            assert_eq!(answer.status.as_u16(), 404);
        }
        assert_eq!(scan().send(&second).await.status.as_u16(), 429);
        assert_eq!(server.send(scan()).await.status.as_u16(), 429);
    }
}
