//! What every request passes: ids, headers, unknown addresses, probes, the start page.

use std::sync::Arc;

use bulkhead_http::{HttpConfig, router};

use crate::support::{Answer, ask, config};

on_both! {
    async fn every_answer_has_an_id_and_the_headers_of_a_careful_server(server: TestServer) {
        let check = |answer: &Answer| {
            assert_eq!(answer.header("x-content-type-options"), "nosniff");
            assert_eq!(answer.header("x-frame-options"), "DENY");
            assert_eq!(answer.header("referrer-policy"), "no-referrer");
            assert!(answer.header("content-security-policy").starts_with("default-src 'none'"));
            assert_eq!(answer.header("cache-control"), "no-store");
            assert!(!answer.header("x-request-id").is_empty());
        };
        for path in ["/healthz", "/", "/nowhere", "/api/v1/orgs/acme", "/api/openapi.json"] {
            check(&server.send(ask("GET", path)).await);
        }
        let one = server.send(ask("GET", "/healthz")).await;
        let other = server.send(ask("GET", "/healthz")).await;
        assert_ne!(one.header("x-request-id"), other.header("x-request-id"));
    }

    async fn a_harmless_request_id_is_kept_and_another_is_replaced(server: TestServer) {
        let with = |id: &str| ask("GET", "/nowhere").header("x-request-id", id);
        let kept = server.send(with("my-id_1.2")).await;
        assert_eq!(kept.header("x-request-id"), "my-id_1.2");
        assert_eq!(kept.json(404)["request_id"], "my-id_1.2");
        for odd in ["", "a b", "a\"b", &"x".repeat(129)] {
            let answer = server.send(with(odd)).await;
            assert_ne!(answer.header("x-request-id"), odd);
            assert_eq!(answer.problem(404), "not-found");
        }
    }

    async fn unknown_addresses_and_methods_are_problems(server: TestServer) {
        for path in ["/nowhere", "/api", "/api/v1", "/api/v1/orgs", "/api/v2/orgs/acme", "/hooks", "/hooks/", "//", "/%00"] {
            assert_eq!(server.send(ask("GET", path)).await.problem(404), "not-found", "{path}");
        }
        for (method, path) in [("POST", "/healthz"), ("PUT", "/api/v1/orgs/acme"), ("GET", "/hooks/abc"), ("BREW", "/metrics")] {
            let answer = server.send(ask(method, path)).await;
            assert_eq!(answer.problem(405), "method-not-allowed", "{path}");
            assert!(!answer.header("allow").is_empty(), "{path}");
        }
    }

    async fn probes_and_numbers_need_no_key(server: TestServer) {
        assert_eq!(server.send(ask("GET", "/healthz")).await.json(200), serde_json::json!({ "status": "ok", "version": "1.2.3" }));
        assert_eq!(server.send(ask("GET", "/livez")).await.json(200)["status"], "ok");
        let writes = || server.store.writer_stats().map(|stats| stats.writes);
        let before = writes();
        let ready = server.send(ask("GET", "/readyz")).await;
        assert_eq!(ready.json(200), serde_json::json!({ "status": "ready", "checks": { "database": "ok" } }));
        assert_eq!(server.send(ask("GET", "/readyz")).await.status.as_u16(), 200);
        assert_eq!(writes(), before.map(|writes| writes + 1), "it writes, and not for each probe");
        let metrics = server.send(ask("GET", "/metrics")).await;
        assert_eq!((metrics.status.as_u16(), metrics.text().as_str()), (200, "bulkhead_up 1\n"));
        assert!(metrics.header("content-type").starts_with("text/plain"));
    }

    async fn a_lost_database_is_said_and_is_no_fault_of_the_caller(server: TestServer) {
        let tenant = server.tenant("acme").await;
        server.store.close().await;
        let answer = server.get(&tenant, "audit").await;
        assert_eq!(answer.problem(503), "unavailable");
        assert_eq!(answer.header("retry-after"), "2");
        let ready = server.send(ask("GET", "/readyz")).await;
        assert_eq!(ready.json(503)["checks"]["database"], "failed");
        assert_eq!(server.send(ask("GET", "/healthz")).await.status.as_u16(), 200);
    }

    async fn a_newcomer_finds_the_way(server: TestServer) {
        let page = server.send(ask("GET", "/")).await;
        assert_eq!(page.status.as_u16(), 200);
        assert!(page.header("content-type").starts_with("text/html"));
        for part in ["/api/openapi.json", crate::support::PUBLIC_URL, "1.2.3"] {
            assert!(page.text().contains(part), "{part}");
        }
        assert!(!page.text().contains("{{"), "every placeholder is filled");
        assert!(!page.header("content-security-policy").contains("script"));
    }

    async fn a_panic_is_answered_and_harms_no_other_request(server: TestServer) {
        let breaks = HttpConfig { metrics: Arc::new(|| panic!("the recorder is gone: secret")), ..config() };
        let router = router(server.app.clone(), breaks);
        for _ in 0..2 {
            let answer = ask("GET", "/metrics").send(&router).await;
            assert_eq!(answer.problem(500), "internal");
            assert!(!answer.text().contains("recorder"), "{}", answer.text());
        }
        assert_eq!(ask("GET", "/healthz").send(&router).await.status.as_u16(), 200);
    }

    async fn behind_tls_browsers_are_asked_to_stay_there(server: TestServer) {
        assert_eq!(server.send(ask("GET", "/")).await.header("strict-transport-security"), "");
        let secure = HttpConfig { public_url: "https://bulkhead.test".to_owned(), ..config() };
        let answer = ask("GET", "/").send(&router(server.app.clone(), secure)).await;
        assert!(answer.header("strict-transport-security").starts_with("max-age="));
    }
}
