//! Blocks: who is refused again and again is shut out for a while, and never by others' doing.

use std::time::Duration;

use bulkhead_app::api_key::NewApiKey;
use bulkhead_model::block::{ADDRESS_STRIKES, KEY_STRIKES};
use bulkhead_model::id::ApiKeyId;
use bulkhead_model::network::Network;
use bulkhead_model::permission::PermissionSet;
use bulkhead_model::rate::{Rate, RateLimits};
use bulkhead_model::token::Token;
use serde_json::json;

use crate::support::{Ask, Tenant, TestServer, ask};

const EVE: &str = "198.51.100.7";

/// A try to sign in, of which an address has few.
fn guess() -> Ask {
    ask("POST", "/api/v1/auth/login").json(&json!({ "email": "a@example.com", "password": "x" })).peer(EVE)
}

/// Sends what is refused until the sender is shut out; how many refusals it took, and the seconds until the end.
async fn until_blocked(server: &TestServer, most: u32, make: impl Fn() -> Ask) -> (u32, String) {
    for refused in 0..=most {
        let answer = server.send(make()).await;
        if answer.problem(429) == "registered:abnormal-usage-detected" {
            return (refused, answer.header("retry-after").to_owned());
        }
    }
    panic!("{most} refusals shut nobody out");
}

async fn start(server: TestServer) -> (TestServer, Tenant) {
    let mut server = server;
    let tenant = server.tenant("acme").await;
    let plenty = Rate::per_minute(1_000_000, 1_000_000);
    let slow = Rate::per_hour(1, 1);
    server.limit_rates(RateLimits { sign_in: slow, key: slow, ..RateLimits::all(plenty) });
    (server, tenant)
}

/// A key of every permission, which has made no request.
async fn another_key(server: &TestServer, tenant: &Tenant) -> String {
    let new = NewApiKey::new("another", PermissionSet::all(), None);
    server.app.create_first_api_key(tenant.org.parse().unwrap(), new).await.unwrap().secret_text
}

on_both! {
    async fn an_address_is_shut_out_for_longer_each_time_and_let_in_again(server: TestServer) {
        let (server, tenant) = start(server).await;
        // The first counts by its wrong password, all others by being too many.
        assert_eq!(server.send(guess()).await.status.as_u16(), 401);
        assert_eq!(until_blocked(&server, ADDRESS_STRIKES, guess).await, (ADDRESS_STRIKES - 1, "900".to_owned()));
        // Neither scans nor requests without credentials come from there any more.
        for path in ["/wp-login.php".to_owned(), tenant.at("runs")] {
            assert_eq!(server.send(ask("GET", path).peer(EVE)).await.problem(429), "registered:abnormal-usage-detected");
        }
        assert_eq!(server.send(ask("GET", "/wp-login.php").peer("198.51.100.8")).await.status.as_u16(), 404);
        // Section e: others of a shared address go on with credentials of their own.
        let neighbour = ask("GET", tenant.at("audit")).key(&tenant.key).peer(EVE);
        assert_eq!(server.send(neighbour).await.status.as_u16(), 200);
        // Other nodes know it, and so does a restart.
        server.app.look_at_blocks().await.unwrap();
        assert_eq!(server.send(guess()).await.problem(429), "registered:abnormal-usage-detected");

        server.ambient.advance(Duration::from_secs(899));
        assert_eq!(server.send(guess()).await.header("retry-after"), "1");
        server.ambient.advance(Duration::from_secs(1));
        let (refused, seconds) = until_blocked(&server, ADDRESS_STRIKES, guess).await;
        assert!(refused >= ADDRESS_STRIKES - 1 && seconds == "1800", "{refused} {seconds}");
        let listed = server.app.list_address_blocks_as_operator().await.unwrap();
        assert_eq!((listed.len(), listed[0].0.as_str(), listed[0].1.level), (1, EVE, 1));
        let network = Network::of(EVE.parse().unwrap());
        server.app.lift_address_block_as_operator(network).await.unwrap();
        assert!(server.app.lift_address_block_as_operator(network).await.is_err());
        assert_eq!(server.send(guess()).await.problem(429), "registered:quota-exceeded", "the limit holds all the same");
    }

    /// A forgotten timer with a revoked key shuts nobody of its address out.
    async fn the_same_refused_credentials_are_one_guess(server: TestServer) {
        let (server, tenant) = start(server).await;
        for _ in 0..2 * ADDRESS_STRIKES {
            let answer = server.send(ask("GET", tenant.at("runs")).key("bh_live_old").peer(EVE)).await;
            assert_eq!(answer.status.as_u16(), 401);
        }
        assert_eq!(server.send(guess()).await.status.as_u16(), 401);
        for n in 0..ADDRESS_STRIKES {
            server.send(ask("GET", tenant.at("runs")).key(&format!("guess {n}")).peer(EVE)).await;
        }
        assert_eq!(server.send(guess()).await.problem(429), "registered:abnormal-usage-detected");
    }

    async fn a_key_is_shut_out_by_its_own_doing_alone_and_its_organization_sees_it(server: TestServer) {
        let (server, tenant) = start(server).await;
        // Whoever knows the key's id and not its secret shuts nobody out.
        let mut token = Token::<ApiKeyId>::parse(&tenant.key).unwrap();
        token.secret[0] ^= 1;
        let wrong = token.reveal();
        for _ in 0..20 {
            assert_eq!(server.send(ask("GET", tenant.at("runs")).key(&wrong)).await.status.as_u16(), 401);
        }
        let read = || ask("GET", tenant.at("runs")).key(&tenant.key);
        assert_eq!(server.send(read()).await.status.as_u16(), 200);
        assert_eq!(until_blocked(&server, KEY_STRIKES, read).await, (KEY_STRIKES, "900".to_owned()));
        assert_eq!(server.send(read()).await.problem(429), "registered:abnormal-usage-detected");
        // Each of these has one request in an hour.
        let by = async |method: &str, rest: &str| server.send(ask(method, tenant.at(rest)).key(&another_key(&server, &tenant).await)).await;
        let listed = by("GET", "blocks").await.json(200);
        let blocked = &listed["items"][0];
        assert_eq!((blocked["api_key"].as_str(), blocked["level"].as_u64()), (Some(token.row.to_string().as_str()), Some(0)));
        let lift = format!("blocks/{}", token.row);
        assert_eq!(by("DELETE", &lift).await.status.as_u16(), 204);
        assert_eq!(by("DELETE", &lift).await.problem(404), "not-found");
        assert_eq!(by("GET", "blocks").await.json(200)["items"], json!([]));
        assert_eq!(server.send(read()).await.problem(429), "registered:quota-exceeded", "the limit holds all the same");
        for action in ["block.placed", "block.lifted"] {
            let told = by("GET", &format!("audit?action={action}")).await.json(200);
            assert_eq!(told["items"][0]["target"].as_str(), Some(token.row.to_string().as_str()), "{told}");
        }
    }
}
