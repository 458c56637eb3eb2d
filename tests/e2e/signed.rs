//! The guide's example of a signed request, run as it stands there: its signatures are those of openssl, not ours.

use std::path::Path;
use std::process::{Command, Output};

use bulkhead_test_support::http_sink::Sink;
use serde_json::{Value, json};

use crate::on_both;
use crate::server::{Place, Server};

fn openssl(args: &[&str]) -> String {
    let output = Command::new("openssl").args(args).output().expect("openssl is installed: `apt-get install openssl`");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn request(key: &Value, private: &Path, (method, url, body): (&str, &str, &str), options: &str) -> Output {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/examples/signed-request.sh");
    let mut command = Command::new("bash");
    command.arg(script).args([method, url, body]).env("CURL_OPTIONS", options);
    command.env("BULKHEAD_KEY", key["secret"].as_str().unwrap());
    command.env("BULKHEAD_KEY_ID", key["id"].as_str().unwrap());
    command.env("BULKHEAD_PRIVATE_KEY", private);
    command.output().unwrap()
}

fn answered(output: &Output) -> Value {
    let text = String::from_utf8_lossy(&output.stdout);
    serde_json::from_str(&text).unwrap_or_else(|_| panic!("{text}\n{}", String::from_utf8_lossy(&output.stderr)))
}

fn teams(server: &Server<'_>) -> usize {
    server.api.get("teams").body["items"].as_array().unwrap().len()
}

on_both! {
    fn the_guides_example_signs_what_the_server_accepts(place: Place) {
        let sink = Sink::start();
        let server = place.start(&sink);
        let dir = tempfile::tempdir().unwrap();
        let private = dir.path().join("private.pem");
        openssl(&["genpkey", "-algorithm", "ed25519", "-out", private.to_str().unwrap()]);
        let public = openssl(&["pkey", "-in", private.to_str().unwrap(), "-pubout"]);
        let made = server.api.post(
            "api-keys",
            &json!({
                "name": "deploys", "permissions": ["teams.read", "teams.write"],
                "signing": { "algorithm": "ed25519", "public_key": public },
            }),
        );
        assert_eq!(made.status, 201, "{:#}", made.body);
        let key = made.body;
        let url = format!("{}/api/v1/orgs/{}/teams", server.api.url, server.api.org);
        let (body, before) = (r#"{"name":"Signed"}"#, teams(&server));
        let sent = request(&key, &private, ("POST", &url, body), "");
        assert_eq!(answered(&sent)["name"], "Signed");
        assert!(sent.status.success());
        let listed = request(&key, &private, ("GET", &format!("{url}?limit=1"), ""), "");
        assert_eq!(answered(&listed)["items"].as_array().unwrap().len(), 1);

        // The same with another key of the signer's, without the signature, and with a body that was changed on the way.
        let other = dir.path().join("other.pem");
        openssl(&["genpkey", "-algorithm", "ed25519", "-out", other.to_str().unwrap()]);
        let forged = request(&key, &other, ("POST", &url, r#"{"name":"Forged"}"#), "");
        assert!(!forged.status.success());
        assert!(answered(&forged)["type"].as_str().unwrap().ends_with("/invalid-signature"));
        let bearer = format!("Bearer {}", key["secret"].as_str().unwrap());
        let unsigned = server.api.get_as("teams", &bearer);
        assert_eq!(unsigned.status, 401);
        assert!(unsigned.body["type"].as_str().unwrap().ends_with("/signature-required"));
        // curl joins the two bodies that it is given: what arrives is not what was signed.
        let changed = request(&key, &private, ("POST", &url, r#"{"name":"Changed"}"#), "--data-binary x");
        assert!(answered(&changed)["type"].as_str().unwrap().ends_with("/digest-mismatch"));
        assert_eq!(teams(&server), before + 1);
        server.stop();
    }
}
