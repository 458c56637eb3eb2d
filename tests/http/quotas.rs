//! What an organization may hold, over HTTP.

use bulkhead_model::quota::Quota;
use serde_json::{Value, json};

use crate::guests::acme_echo;
use crate::support::stops_at_once;

on_both! {
    async fn quotas_are_listed_with_what_is_held(server: TestServer) {
        let tenant = server.tenant("acme").await;
        server.upload(&tenant, acme_echo()).await;
        let listed = server.get(&tenant, "quotas").await.json(200);
        let names: Vec<&str> = listed["items"].as_array().unwrap().iter().map(|quota| quota["name"].as_str().unwrap()).collect();
        assert_eq!(names, Quota::ALL.iter().map(|quota| quota.as_str()).collect::<Vec<_>>());
        let versions = listed["items"].as_array().unwrap().iter().find(|quota| quota["name"] == "plugin_versions").unwrap();
        assert_eq!(versions, &json!({ "name": "plugin_versions", "unit": "versions", "limit": 1_000, "used": 1 }));
        assert_eq!(listed["items"][1]["used"], Value::Null, "of one run");
    }

    async fn a_quota_that_is_used_up_is_told_in_the_problem(server: TestServer) {
        let tenant = server.tenant("acme").await;
        let org = tenant.org.parse().unwrap();
        server.app.set_quota(org, Quota::ActiveWorkflows, 1).await.unwrap();
        for (name, status) in [("first", 200), ("second", 409)] {
            let id = server.save(&tenant, &stops_at_once(name)).await["id"].as_str().unwrap().to_owned();
            let answer = server.post(&tenant, &format!("workflows/{id}/activate"), &json!({})).await;
            assert_eq!(answer.status.as_u16(), status, "{}", answer.text());
            if status == 409 {
                assert_eq!(answer.problem(409), "quota-exceeded");
                let quota = &answer.json(409)["quota"];
                assert_eq!((&quota["name"], &quota["used"], &quota["limit"]), (&json!("active_workflows"), &json!(1), &json!(1)));
                assert!(quota["hint"].as_str().unwrap().contains("deactivate"), "{quota}");
            }
        }
    }

    async fn a_plugin_version_is_deleted(server: TestServer) {
        let tenant = server.tenant("acme").await;
        let plugin = server.upload(&tenant, acme_echo()).await["id"].as_str().unwrap().to_owned();
        let path = format!("plugins/{plugin}");
        let body = json!({ "plugin": "acme/echo", "version": "1.0.0" });
        let installation = server.post(&tenant, "installations", &body).await.json(201)["id"].as_str().unwrap().to_owned();
        assert_eq!(server.delete(&tenant, &path).await.problem(409), "plugin-installed");
        assert_eq!(server.delete(&tenant, &format!("installations/{installation}")).await.status.as_u16() / 100, 2);
        assert_eq!(server.delete(&tenant, &path).await.status.as_u16(), 204);
        assert_eq!(server.delete(&tenant, &path).await.problem(404), "not-found");
        assert!(server.get(&tenant, &path).await.json(200)["deleted_at"].is_string(), "its name stays for the history");
        assert_eq!(server.get(&tenant, "plugins").await.json(200)["items"], json!([]));
        assert_eq!(server.post(&tenant, "installations", &body).await.problem(422), "invalid-installation");
    }
}
