//! Pages, cursors and filters.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::support::{Tenant, TestServer};

/// Every id of a list, page by page.
async fn all(server: &TestServer, tenant: &Tenant, list: &str, limit: u32) -> Vec<String> {
    let mut ids = Vec::new();
    let mut cursor: Option<String> = None;
    loop {
        let glue = if list.contains('?') { '&' } else { '?' };
        let next = cursor.as_ref().map(|cursor| format!("&cursor={cursor}")).unwrap_or_default();
        let page = server.get(tenant, &format!("{list}{glue}limit={limit}{next}")).await.json(200);
        let items = page["items"].as_array().unwrap();
        assert!(items.len() <= limit as usize);
        ids.extend(items.iter().map(|item| item["id"].as_str().unwrap().to_owned()));
        match &page["next_cursor"] {
            Value::String(text) => cursor = Some(text.clone()),
            Value::Null => return ids,
            other => panic!("{other}"),
        }
    }
}

async fn make_keys(server: &TestServer, tenant: &Tenant, count: usize) {
    for at in 0..count {
        server.ambient.advance(std::time::Duration::from_millis(1));
        server
            .post(tenant, "api-keys", &json!({ "name": format!("k{at}"), "permissions": ["org.read"] }))
            .await
            .json(201);
    }
}

on_both! {
    async fn pages_hold_each_row_once_newest_first(server: TestServer) {
        let tenant = server.tenant("acme").await;
        make_keys(&server, &tenant, 6).await;
        let whole = all(&server, &tenant, "api-keys", 200).await;
        assert_eq!(whole.len(), 7);
        for limit in [1, 2, 3, 6, 7] {
            assert_eq!(all(&server, &tenant, "api-keys", limit).await, whole, "{limit}");
        }
        let unique: BTreeSet<&String> = whole.iter().collect();
        assert_eq!(unique.len(), 7);
        let created = all(&server, &tenant, "audit?action=api_key.created", 2).await;
        assert_eq!(created.len(), 7);
    }

    async fn a_cursor_serves_its_own_list_only(server: TestServer) {
        let (tenant, other) = (server.tenant("acme").await, server.tenant("other").await);
        make_keys(&server, &tenant, 3).await;
        let page = server.get(&tenant, "audit?action=api_key.created&limit=1").await.json(200);
        let cursor = page["next_cursor"].as_str().unwrap().to_owned();
        let on = |path: &str| format!("{path}&limit=1&cursor={cursor}");
        assert_eq!(server.get(&tenant, &on("audit?action=api_key.created")).await.status.as_u16(), 200);
        let by_slug = Tenant { org: tenant.slug.clone(), ..tenant.clone() };
        assert_eq!(server.get(&by_slug, &on("audit?action=api_key.created")).await.status.as_u16(), 200);
        for (tenant, path) in [
            (&tenant, "audit?action=api_key.revoked"), (&tenant, "audit?"), (&tenant, "events?"), (&tenant, "api-keys?"),
            (&other, "audit?action=api_key.created"),
        ] {
            let answer = server.get(tenant, &on(path)).await;
            assert_eq!(answer.problem(400), "invalid-cursor", "{path}");
            assert_eq!(answer.error(400).0, "?cursor");
        }
        for forged in ["", "x", "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA", "..", "%00"] {
            let answer = server.get(&tenant, &format!("api-keys?cursor={forged}")).await;
            assert_eq!(answer.problem(400), "invalid-cursor", "{forged}");
        }
    }

    async fn parameters_are_refused_rather_than_guessed(server: TestServer) {
        let tenant = server.tenant("acme").await;
        for (query, path, code) in [
            ("api-keys?limit=0", "?limit", "out-of-range"),
            ("api-keys?limit=201", "?limit", "out-of-range"),
            ("api-keys?limit=-1", "?limit", "out-of-range"),
            ("api-keys?limit=ten", "?limit", "out-of-range"),
            ("api-keys?limit=", "?limit", "out-of-range"),
            ("api-keys?limit=1&limit=2", "?limit", "repeated-key"),
            ("api-keys?ofset=1", "?ofset", "unknown-field"),
            ("audit?action=a&action=b", "?action", "repeated-key"),
            ("runs?status=done", "?status", "unknown-value"),
            ("runs?workflow=x", "?workflow", "invalid-value"),
            ("jobs?state=lost", "?state", "unknown-value"),
            ("plugins?name=Acme", "?name", "invalid-value"),
            ("runs/run_01h455vb4pex5vsknk084sn02q?limit=1", "?limit", "unknown-field"),
            ("installations/inst_01h455vb4pex5vsknk084sn02q/secrets?x", "?x", "unknown-field"),
        ] {
            let answer = server.get(&tenant, query).await;
            assert_eq!(answer.problem(400), "invalid-query", "{query}");
            assert_eq!(answer.error(400), (path.to_owned(), code.to_owned()), "{query}: {}", answer.text());
        }
        for query in ["jobs?state=dead", "runs?status=failed&limit=200", "events?kind=run.succeeded", "plugins?name=acme/echo"] {
            assert_eq!(server.get(&tenant, query).await.json(200), json!({ "items": [], "next_cursor": null }), "{query}");
        }
    }
}
