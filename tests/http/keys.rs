//! Encryption keys over HTTP.

use bulkhead_model::permission::Permission;
use bulkhead_test_support::wait::until_async;
use serde_json::{Value, json};

use crate::support::{PATIENCE, ask};

on_both! {
    async fn keys_are_shown_without_their_bytes_and_rotated(server: TestServer) {
        let tenant = server.tenant("acme").await;
        assert_eq!(server.get(&tenant, "encryption-keys").await.json(200), json!({ "keys": [], "rotations": [] }));
        let definition = json!({
            "schema": 1, "name": "It", "triggers": [{ "id": "hook", "type": "webhook" }], "start": "end",
            "steps": { "end": { "type": "stop" } },
        });
        let saved = server.save(&tenant, &definition).await;
        let shown = server.get(&tenant, "encryption-keys").await;
        let keys = shown.json(200)["keys"].clone();
        let facts = |key: &Value| (key["key"].clone(), key["state"].clone(), key["purpose"].clone(), key["uses"].clone());
        assert_eq!(facts(&keys[0]), (json!("o1"), json!("active"), json!("organization"), Value::Null));
        assert_eq!(facts(&keys[1]), (json!("d1"), json!("active"), json!("field"), json!(1)));
        assert_eq!(keys[1]["wrapped_by"], "o1");
        assert!(!shown.text().contains("enc:v1"), "{}", shown.text());

        let begun = server.post(&tenant, "key-rotations", &json!({ "level": "data" })).await;
        let rotation = begun.json(202);
        assert_eq!((&rotation["state"], &rotation["reason"], &rotation["left"]), (&json!("running"), &json!("asked"), &json!(1)));
        let again = server.post(&tenant, "key-rotations", &json!({ "level": "data" })).await;
        assert_eq!(again.problem(409), "key-rotation-running");
        assert_eq!(server.get(&tenant, "encryption-keys").await.json(200)["rotations"][0], rotation);
        server.work().await;
        let location = begun.header("location").to_owned();
        let done = async || server.send(ask("GET", location.as_str()).key(&tenant.key)).await.json(200)["state"] == "done";
        assert!(until_async(PATIENCE, done).await);
        let listed = server.get(&tenant, "key-rotations").await.json(200);
        assert_eq!((&listed["items"][0]["id"], &listed["items"][0]["left"]), (&rotation["id"], &json!(0)));
        let keys = server.get(&tenant, "encryption-keys").await.json(200)["keys"].clone();
        assert_eq!((&keys[2]["key"], &keys[2]["state"], &keys[2]["wrapped_by"]), (&json!("d1"), &json!("retired"), &Value::Null));
        let workflow = saved["id"].as_str().unwrap();
        let after = server.get(&tenant, &format!("workflows/{workflow}")).await.json(200);
        assert_eq!(after["hooks"], saved["hooks"], "the address opens under the new key");
    }

    async fn what_cannot_be_rotated_is_refused(server: TestServer) {
        let tenant = server.tenant("acme").await;
        for body in [json!({ "level": "root" }), json!({}), json!({ "level": "data", "now": true })] {
            assert_eq!(server.post(&tenant, "key-rotations", &body).await.problem(422), "invalid-body", "{body}");
        }
        let reader = server.key(&tenant, &[Permission::EncryptionRead]).await;
        let refused = ask("POST", tenant.at("key-rotations")).key(&reader).json(&json!({ "level": "data" }));
        assert_eq!(server.send(refused).await.problem(403), "forbidden");
        for id in ["krot_00000000000000000000000001", "dlt_00000000000000000000000001", "x"] {
            assert_eq!(server.get(&tenant, &format!("key-rotations/{id}")).await.problem(404), "not-found");
        }
        assert_eq!(server.get(&tenant, "key-rotations").await.json(200)["items"], json!([]));
    }
}
