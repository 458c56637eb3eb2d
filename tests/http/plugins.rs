//! Packages, installations, grants, secrets, calls.

use serde_json::{Value, json};

use crate::guests::{acme_echo, asks_for_secret, echo, manifest, package, signs};
use crate::support::{Tenant, TestServer, ask};

async fn upload(server: &TestServer, tenant: &Tenant, package: Vec<u8>) -> crate::support::Answer {
    server.send(ask("POST", tenant.at("plugins")).key(&tenant.key).bytes("application/wasm", package)).await
}

async fn install_echo(server: &TestServer, tenant: &Tenant) -> String {
    server.upload(tenant, acme_echo()).await;
    let body = json!({ "plugin": "acme/echo", "version": "1.0.0" });
    server.post(tenant, "installations", &body).await.json(201)["id"].as_str().unwrap().to_owned()
}

/// An installation of a plugin that signs with a secret, nothing granted.
async fn install_signer(server: &TestServer, tenant: &Tenant) -> (String, String) {
    server.upload(tenant, package(&signs(), &manifest("acme/signer", "1.0.0", asks_for_secret(true)))).await;
    let body = json!({ "plugin": "acme/signer", "version": "1.0.0", "settings": {}, "grants": { "permissions": [] } });
    let answer = server.post(tenant, "installations", &body).await;
    let view = answer.json(201);
    assert_eq!(view["missing_required"].as_array().unwrap().len(), 1, "{view}");
    (view["id"].as_str().unwrap().to_owned(), answer.header("etag").to_owned())
}

fn signing_grant() -> Value {
    json!({ "permissions": [{ "kind": "secret", "name": "signing_key", "inject": { "origins": [] } }] })
}

on_both! {
    async fn a_package_is_uploaded_once_and_never_changes(server: TestServer) {
        let tenant = server.tenant("acme").await;
        let answer = upload(&server, &tenant, acme_echo()).await;
        let plugin = answer.json(201);
        assert_eq!((&plugin["name"], &plugin["version"]), (&json!("acme/echo"), &json!("1.0.0")));
        assert_eq!(plugin["digest"].as_str().unwrap().len(), 64);
        assert_eq!(plugin["manifest"]["actions"][0]["name"], "it");
        assert!(answer.header("location").ends_with(plugin["id"].as_str().unwrap()));
        assert_eq!(upload(&server, &tenant, acme_echo()).await.json(200)["id"], plugin["id"]);
        let other = package(&echo(), &manifest("acme/echo", "1.0.0", |manifest| manifest["title"] = json!("Other")));
        assert_eq!(upload(&server, &tenant, other).await.problem(409), "version-exists");
        assert_eq!(server.get(&tenant, &format!("plugins/{}", plugin["id"].as_str().unwrap())).await.json(200), plugin);
        assert_eq!(server.get(&tenant, "plugins?name=acme/echo").await.json(200)["items"], json!([plugin]));
    }

    async fn what_is_no_package_is_refused(server: TestServer) {
        let tenant = server.tenant("acme").await;
        for (bytes, slug, code) in [
            (b"".to_vec(), "invalid-package", "not-a-component"),
            (b"hello".to_vec(), "invalid-package", "not-a-component"),
            (echo(), "invalid-package", "manifest-missing"),
            (package(&echo(), &manifest("other/echo", "1.0.0", |_| ())), "invalid-package", "foreign-publisher"),
            (package(&echo(), &manifest("bulkhead/echo", "1.0.0", |_| ())), "invalid-package", "foreign-publisher"),
        ] {
            let answer = upload(&server, &tenant, bytes).await;
            assert_eq!(answer.problem(422), slug, "{code}");
            assert_eq!(answer.error(422).1, code);
        }
        let wrong = ask("POST", tenant.at("plugins")).key(&tenant.key).bytes("application/octet-stream", acme_echo());
        assert_eq!(server.send(wrong).await.problem(415), "unsupported-media-type");
        assert_eq!(server.get(&tenant, "plugins").await.json(200)["items"], json!([]), "nothing was stored");
    }

    async fn a_call_answers_what_it_returned_and_used(server: TestServer) {
        let tenant = server.tenant("acme").await;
        let id = install_echo(&server, &tenant).await;
        let calls = format!("installations/{id}/calls");
        let input = json!({ "text": "hello", "n": [1.5, null] });
        let call = server.post(&tenant, &calls, &json!({ "contribution": "it", "input": input })).await.json(200);
        assert_eq!((&call["outcome"], &call["output"], &call["error"]), (&json!("returned"), &input, &Value::Null), "{call}");
        assert!(call["usage"]["fuel"].as_u64().unwrap() > 0);
        assert!(call["usage"]["memory_peak_bytes"].as_u64().unwrap() >= 4 * 65_536);
        assert!(call["usage"]["wall_ms"].is_u64());
        assert_eq!(call["limits"]["fuel"], 500_000_000);
        assert_eq!((&call["log"], &call["run"]), (&json!([]), &Value::Null));
        let shown = server.get(&tenant, &format!("calls/{}", call["id"].as_str().unwrap())).await.json(200);
        assert_eq!(shown, call);
        let list = server.get(&tenant, &format!("{calls}?outcome=returned")).await.json(200);
        assert_eq!(list["items"][0]["id"], call["id"]);
        assert_eq!(server.get(&tenant, &format!("{calls}?outcome=trapped")).await.json(200)["items"], json!([]));
        for (body, slug) in [
            (json!({ "contribution": "no-such", "input": {} }), "invalid-call"),
            (json!({ "contribution": "it\u{0}", "input": {} }), "invalid-body"),
            (json!({ "input": {} }), "invalid-body"),
            (json!({ "contribution": "it", "imput": {} }), "invalid-body"),
        ] {
            assert_eq!(server.post(&tenant, &calls, &body).await.problem(422), slug, "{body}");
        }
    }

    async fn grants_are_shown_in_layers_and_changed_with_their_tag(server: TestServer) {
        let tenant = server.tenant("acme").await;
        let (id, tag) = install_signer(&server, &tenant).await;
        let (grants, calls) = (format!("installations/{id}/grants"), format!("installations/{id}/calls"));
        let call = json!({ "contribution": "it", "input": "x" });
        assert_eq!(server.post(&tenant, &calls, &call).await.json(200)["outcome"], "refused");

        let shown = server.get(&tenant, &grants).await;
        let layers = shown.json(200);
        assert_eq!(shown.header("etag"), tag);
        assert_eq!(layers["asks"][0]["effective"], "none");
        assert!(layers["asks"][0]["sentence"].is_string(), "{layers}");
        assert_eq!(layers["grants"], json!({ "permissions": [] }));
        assert!(layers["ceiling"].is_object() && layers.get("effective").is_some());

        let put = |tag: Option<&str>, body: &Value| {
            let ask = ask("PUT", tenant.at(&grants)).key(&tenant.key).json(body);
            match tag {
                Some(tag) => ask.header("if-match", tag),
                None => ask,
            }
        };
        assert_eq!(server.send(put(None, &signing_grant())).await.problem(428), "if-match-required");
        assert_eq!(server.send(put(Some("\"v99\""), &signing_grant())).await.problem(412), "stale-version");
        assert_eq!(server.send(put(Some("*"), &signing_grant())).await.problem(400), "invalid-header");
        let foreign = json!({ "permissions": [{ "kind": "secret", "name": "other_key", "inject": { "origins": [] } }] });
        let answer = server.send(put(Some(&tag), &foreign)).await;
        assert_eq!(answer.problem(422), "invalid-grants");
        assert_eq!(answer.error(422).0, "/permissions/0/name");
        let unknown = json!({ "permissions": [{ "kind": "secret", "name": "signing_key", "injekt": {} }] });
        assert_eq!(server.send(put(Some(&tag), &unknown)).await.error(422).1, "unknown-field");

        let granted = server.send(put(Some(&tag), &signing_grant())).await;
        assert_eq!(granted.json(200)["asks"][0]["effective"], "whole");
        assert_ne!(granted.header("etag"), tag);
        assert_eq!(server.send(put(Some(&tag), &json!({ "permissions": [] }))).await.problem(412), "stale-version");
        assert_eq!(server.post(&tenant, &calls, &call).await.json(200)["output"], "not set");
    }

    async fn a_secret_goes_in_and_never_comes_out(server: TestServer) {
        let tenant = server.tenant("acme").await;
        let (id, tag) = install_signer(&server, &tenant).await;
        let grants = ask("PUT", tenant.at(&format!("installations/{id}/grants"))).key(&tenant.key).header("if-match", &tag);
        server.send(grants.json(&signing_grant())).await.json(200);
        let path = |name: &str| tenant.at(&format!("installations/{id}/secrets/{name}"));
        let put = |name: &str, body: &Value| ask("PUT", path(name)).key(&tenant.key).json(body);
        let canary = "s3cret-canary-value";
        let stored = server.send(put("signing_key", &json!({ "value": canary }))).await;
        assert_eq!(stored.status.as_u16(), 204);
        assert!(stored.header("etag").starts_with("\"v"));
        assert_eq!(server.send(put("other_key", &json!({ "value": "x" }))).await.problem(422), "unknown-secret");
        assert_eq!(server.send(put("signing_key", &json!({ "value": "" }))).await.problem(422), "invalid-secret");
        assert_eq!(server.send(put("signing_key", &json!({ "value": 5 }))).await.problem(422), "invalid-body");
        assert_eq!(server.send(put("NO!", &json!({ "value": "x" }))).await.problem(404), "not-found");

        let calls = format!("installations/{id}/calls");
        let call = server.post(&tenant, &calls, &json!({ "contribution": "it", "input": "x" })).await.json(200);
        assert_eq!(call["output"].as_str().unwrap().len(), 64, "{call}");
        let list = server.get(&tenant, &format!("installations/{id}/secrets")).await;
        let entry = &list.json(200)["items"][0];
        assert_eq!((&entry["name"], &entry["asked"]), (&json!("signing_key"), &json!(true)));
        assert!(entry["stored_at"].is_string());
        for path in ["audit".to_owned(), "events".to_owned(), format!("installations/{id}"), calls.clone(), list.text()] {
            assert!(!server.get(&tenant, &path).await.text().contains(canary), "{path}");
        }
        assert!(!call.to_string().contains(canary));
        for status in [204, 404] {
            assert_eq!(server.send(ask("DELETE", path("signing_key")).key(&tenant.key)).await.status.as_u16(), status);
        }
        let call = server.post(&tenant, &calls, &json!({ "contribution": "it", "input": "x" })).await.json(200);
        assert_eq!(call["output"], "not set");
    }

    async fn an_installation_is_changed_switched_off_and_ended(server: TestServer) {
        let tenant = server.tenant("acme").await;
        let id = install_echo(&server, &tenant).await;
        let path = format!("installations/{id}");
        let shown = server.get(&tenant, &path).await;
        let (view, tag) = (shown.json(200), shown.header("etag").to_owned());
        assert_eq!((&view["plugin"], &view["version"], &view["state"]), (&json!("acme/echo"), &json!("1.0.0"), &json!("enabled")));
        let patch = |tag: &str, body: &Value| ask("PATCH", tenant.at(&path)).key(&tenant.key).header("if-match", tag).json(body);
        let without = ask("PATCH", tenant.at(&path)).key(&tenant.key).json(&json!({ "state": "disabled" }));
        assert_eq!(server.send(without).await.problem(428), "if-match-required");
        assert_eq!(server.send(patch(&tag, &json!({ "state": "uninstalled" }))).await.error(422).1, "unknown-value");
        let off = server.send(patch(&tag, &json!({ "state": "disabled" }))).await;
        assert_eq!(off.json(200)["state"], "disabled");
        assert_eq!(server.send(patch(&tag, &json!({ "state": "enabled" }))).await.problem(412), "stale-version");
        let call = server.post(&tenant, &format!("{path}/calls"), &json!({ "contribution": "it" })).await;
        assert_eq!(call.problem(409), "installation-disabled");
        let missing = server.send(patch(off.header("etag"), &json!({ "version": "9.9.9" }))).await;
        assert_eq!(missing.problem(422), "invalid-installation");

        let stale = ask("DELETE", tenant.at(&path)).key(&tenant.key).header("if-match", &tag);
        assert_eq!(server.send(stale).await.problem(412), "stale-version");
        assert_eq!(server.delete(&tenant, &path).await.json(200), json!({ "used_by": [] }));
        assert_eq!(server.get(&tenant, &path).await.problem(404), "not-found");
        assert_eq!(server.get(&tenant, "installations").await.json(200)["items"], json!([]));
        for body in [
            json!({ "plugin": "acme/echo", "version": "2.0.0" }),
            json!({ "plugin": "acme/nothing", "version": "1.0.0" }),
            json!({ "plugin": "acme/echo", "version": "1.0.0", "settings": [] }),
        ] {
            assert_eq!(server.post(&tenant, "installations", &body).await.problem(422), "invalid-installation", "{body}");
        }
        let granting = json!({ "plugin": "acme/echo", "version": "1.0.0", "grants": signing_grant() });
        let answer = server.post(&tenant, "installations", &granting).await;
        assert_eq!((answer.problem(422).as_str(), answer.error(422).0.as_str()), ("invalid-grants", "/grants/permissions/0/name"));
    }

    async fn granting_at_install_needs_the_right_to_grant(server: TestServer) {
        use bulkhead_model::permission::Permission;
        let tenant = server.tenant("acme").await;
        server.upload(&tenant, package(&signs(), &manifest("acme/signer", "1.0.0", asks_for_secret(false)))).await;
        let key = server.key(&tenant, &[Permission::PluginsInstall]).await;
        let install = |grants: Value| {
            let body = json!({ "plugin": "acme/signer", "version": "1.0.0", "grants": grants });
            ask("POST", tenant.at("installations")).key(&key).json(&body)
        };
        let answer = server.send(install(signing_grant())).await;
        assert_eq!(answer.problem(403), "forbidden");
        assert!(answer.text().contains("plugins.grant"));
        server.send(install(json!({ "permissions": [] }))).await.json(201);
    }
}
