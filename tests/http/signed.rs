//! Requests that a key's owner signed: what nobody signed, was changed on its way, or came before is refused.
//!
//! The signer here is written from RFC 9421 and shares nothing with the server but the field names.

use std::fmt::Write as _;
use std::time::Duration;

use axum::body::Body;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::{Signer as _, SigningKey};
use hmac::{Hmac, KeyInit as _, Mac as _};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::support::{Answer, Ask, PATIENCE, PROXY, PUBLIC_URL, Tenant, TestServer, ask};

/// A key of the API with what its requests are signed with.
struct Client {
    id: String,
    secret: String,
    key: Key,
}

enum Key {
    Ed25519(SigningKey),
    Hmac(Vec<u8>),
}

/// A request in the making, and what is said of it.
struct Signing {
    method: &'static str,
    /// As the client knows it.
    url: String,
    body: Option<String>,
    /// Further fields; those of them that are covered.
    fields: Vec<(&'static str, String)>,
    covered: Vec<&'static str>,
    created_s: i64,
    nonce: String,
    key_id: String,
    extra: &'static str,
}

/// A request as it is sent: its parts may be changed on the way.
struct Sent {
    method: &'static str,
    path: String,
    headers: Vec<(String, String)>,
    body: Option<String>,
    secret: String,
}

impl Sent {
    fn ask(&self) -> Ask {
        let mut ask = ask(self.method, &self.path).key(&self.secret);
        for (name, value) in &self.headers {
            ask = ask.header(name, value);
        }
        match &self.body {
            Some(body) => ask.bytes("application/json", Body::from(body.clone())),
            None => ask,
        }
    }

    fn without(mut self, name: &str) -> Self {
        self.headers.retain(|(header, _)| header != name);
        self
    }

    fn header(&self, name: &str) -> String {
        self.headers.iter().find(|(header, _)| header == name).unwrap().1.clone()
    }
}

impl Client {
    fn signs(&self, text: &str) -> String {
        STANDARD.encode(match &self.key {
            Key::Ed25519(key) => key.sign(text.as_bytes()).to_bytes().to_vec(),
            Key::Hmac(secret) => {
                Hmac::<Sha256>::new_from_slice(secret).unwrap().chain_update(text).finalize().into_bytes().to_vec()
            }
        })
    }

    fn signing(&self, server: &TestServer, method: &'static str, path: &str, body: Option<&Value>) -> Signing {
        let mut covered = vec!["@method", "@target-uri"];
        if body.is_some() {
            covered.push("content-digest");
        }
        Signing {
            method,
            url: format!("{PUBLIC_URL}{path}"),
            body: body.map(Value::to_string),
            fields: Vec::new(),
            covered,
            created_s: server.ambient.now().as_micros() / 1_000_000,
            nonce: hex::encode(server.ambient.random::<16>()),
            key_id: self.id.clone(),
            extra: "",
        }
    }

    fn sent(&self, signing: Signing) -> Sent {
        let Signing { method, url, body, fields, covered, created_s, nonce, key_id, extra } = signing;
        let mut headers: Vec<(String, String)> =
            fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        if let Some(body) = &body {
            headers.push(("content-digest".into(), format!("sha-256=:{}:", STANDARD.encode(Sha256::digest(body)))));
        }
        let names: Vec<String> = covered.iter().map(|name| format!("\"{name}\"")).collect();
        let params = format!(
            "({});created={created_s};nonce=\"{nonce}\";keyid=\"{key_id}\";tag=\"bulkhead\"{extra}",
            names.join(" ")
        );
        let mut base = String::new();
        for name in &covered {
            let value = match *name {
                "@method" => method.to_owned(),
                "@target-uri" => url.clone(),
                field => headers
                    .iter()
                    .find(|(header, _)| header == field)
                    .map(|(_, value)| value.clone())
                    .unwrap_or_default(),
            };
            writeln!(base, "\"{name}\": {value}").unwrap();
        }
        write!(base, "\"@signature-params\": {params}").unwrap();
        headers.push(("signature-input".into(), format!("mine={params}")));
        headers.push(("signature".into(), format!("mine=:{}:", self.signs(&base))));
        let path = url.splitn(4, '/').nth(3).map(|rest| format!("/{rest}")).unwrap();
        Sent { method, path, headers, body, secret: self.secret.clone() }
    }
}

async fn client(server: &TestServer, tenant: &Tenant, required: &str) -> Client {
    let key = SigningKey::from_bytes(&server.ambient.random());
    let body = json!({
        "name": "signs", "permissions": ["org.read", "teams.write", "teams.read", "api_keys.write", "workflows.read", "runs.start", "plugins.install", "plugins.grant"],
        "signing": { "algorithm": "ed25519", "public_key": STANDARD.encode(key.verifying_key().as_bytes()), "required": required },
    });
    let made = server.post(tenant, "api-keys", &body).await.json(201);
    assert!(made.get("signing_secret").is_none(), "{made}");
    Client { id: text(&made["id"]), secret: text(&made["secret"]), key: Key::Ed25519(key) }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap().to_owned()
}

async fn is_invalid(server: &TestServer, ask: Ask, what: &str) {
    let answer = server.send(ask).await;
    assert_eq!(answer.problem(401), "invalid-signature", "{what}");
    // Constant, whatever the reason.
    assert_eq!(answer.json(401)["detail"], "the request's signature does not hold, or was used before", "{what}");
}

fn team(name: &str) -> Value {
    json!({ "name": name })
}

async fn teams(server: &TestServer, tenant: &Tenant) -> usize {
    server.get(tenant, "teams").await.json(200)["items"].as_array().unwrap().len()
}

async fn reasons(server: &TestServer, tenant: &Tenant) -> Vec<String> {
    let log = server.get(tenant, "audit?action=request.refused").await.json(200);
    log["items"].as_array().unwrap().iter().map(|entry| text(&entry["detail"]["reason"])).collect()
}

on_both! {
    async fn a_signed_request_counts_once(server: TestServer) {
        let tenant = server.tenant("acme").await;
        let client = client(&server, &tenant, "always").await;
        let sent = client.sent(client.signing(&server, "POST", &tenant.at("teams"), Some(&team("Support"))));
        server.send(sent.ask()).await.json(201);
        is_invalid(&server, sent.ask(), "replayed").await;
        assert_eq!(teams(&server, &tenant).await, 1);
        // The nonce alone makes it the same request, however it is signed anew, and another key may use the same.
        let again = |client: &Client| {
            let mut signing = client.signing(&server, "POST", &tenant.at("teams"), Some(&team("Sales")));
            signing.nonce = "nonce-nonce-nonce".into();
            client.sent(signing)
        };
        server.send(again(&client).ask()).await.json(201);
        is_invalid(&server, again(&client).ask(), "the same nonce").await;
        let other = self::client(&server, &tenant, "always").await;
        assert_eq!(server.send(again(&other).ask()).await.problem(409), "team-exists", "another key's own nonce");
        let get = client.sent(client.signing(&server, "GET", &tenant.at("teams?limit=1"), None));
        server.send(get.ask()).await.json(200);
        is_invalid(&server, get.ask(), "a read, too").await;
        // The log says what the answer does not; it is written beside the answer.
        let is_told = async {
            while !reasons(&server, &tenant).await.contains(&"signature_replayed".to_owned()) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, is_told).await.unwrap();
    }

    /// Fifty at once on any number of nodes: the nonce is a row.
    async fn of_many_copies_at_once_one_counts(server: TestServer) {
        let tenant = server.tenant("acme").await;
        let client = client(&server, &tenant, "always").await;
        let sent = client.sent(client.signing(&server, "POST", &tenant.at("teams"), Some(&team("Once"))));
        let copies = (0..50).map(|_| server.send(sent.ask()));
        let answers: Vec<Answer> = futures_util::future::join_all(copies).await;
        let count = |status: u16| answers.iter().filter(|answer| answer.status.as_u16() == status).count();
        assert_eq!((count(201), count(401)), (1, 49));
    }

    async fn a_changed_request_is_refused(server: TestServer) {
        let tenant = server.tenant("acme").await;
        let client = client(&server, &tenant, "always").await;
        let path = tenant.at("teams");
        let fresh = || client.sent(client.signing(&server, "POST", &path, Some(&team("Support"))));
        // The body with the digest of another one.
        let changed = Sent { body: Some(team("Evil").to_string()), ..fresh() };
        assert_eq!(server.send(changed.ask()).await.problem(400), "digest-mismatch");
        let digest = format!("sha-256=:{}:", STANDARD.encode(Sha256::digest(team("Evil").to_string())));
        let mut both = Sent { body: Some(team("Evil").to_string()), ..fresh() };
        both.headers.iter_mut().find(|(name, _)| name == "content-digest").unwrap().1 = digest;
        is_invalid(&server, both.ask(), "body and digest").await;
        // No body where there was one, and one where there was none.
        assert_eq!(server.send(Sent { body: None, ..fresh() }.ask()).await.problem(400), "digest-mismatch");
        is_invalid(&server, Sent { body: None, ..fresh().without("content-digest") }.ask(), "body and digest stripped").await;
        let bare = client.sent(client.signing(&server, "POST", &path, None));
        is_invalid(&server, Sent { body: Some(team("Evil").to_string()), ..bare }.ask(), "a body that nobody signed").await;
        // A digest of a kind that proves nothing.
        let mut weak = fresh();
        weak.headers.iter_mut().find(|(name, _)| name == "content-digest").unwrap().1 = "md5=:AAAAAAAAAAAAAAAAAAAAAA==:".into();
        is_invalid(&server, weak.ask(), "a weak digest").await;
        is_invalid(&server, Sent { path: format!("{path}?limit=1"), ..fresh() }.ask(), "address").await;
        is_invalid(&server, Sent { path: tenant.at("workflows"), ..fresh() }.ask(), "another operation").await;
        is_invalid(&server, Sent { method: "GET", body: None, ..fresh().without("content-digest") }.ask(), "method").await;
        for stripped in ["signature", "signature-input", "content-digest"] {
            is_invalid(&server, fresh().without(stripped).ask(), stripped).await;
        }
        let unsigned = server.send(fresh().without("signature").without("signature-input").ask()).await;
        assert_eq!(unsigned.problem(401), "signature-required");
        assert!(unsigned.header("accept-signature").contains("\"@target-uri\""));
        assert_eq!(teams(&server, &tenant).await, 0);
    }

    async fn what_is_covered_and_when_it_was_signed_counts(server: TestServer) {
        let tenant = server.tenant("acme").await;
        let client = client(&server, &tenant, "always").await;
        let path = tenant.at("teams");
        let with = |edit: &dyn Fn(&mut Signing)| {
            let mut signing = client.signing(&server, "POST", &path, Some(&team("Support")));
            edit(&mut signing);
            client.sent(signing).ask()
        };
        for missing in ["@method", "@target-uri", "content-digest"] {
            is_invalid(&server, with(&|signing| signing.covered.retain(|name| *name != missing)), missing).await;
        }
        is_invalid(&server, with(&|signing| signing.created_s -= 300), "five minutes old").await;
        is_invalid(&server, with(&|signing| signing.created_s += 31), "of a clock that is ahead").await;
        is_invalid(&server, with(&|signing| signing.extra = ";expires=1000"), "expired").await;
        is_invalid(&server, with(&|signing| signing.extra = ";alg=\"hmac-sha256\""), "another algorithm").await;
        is_invalid(&server, with(&|signing| signing.key_id = "key_01h455vb4pex5vsknk084sn02q".into()), "another key").await;
        is_invalid(&server, with(&|signing| signing.nonce = "short".into()), "nonce").await;
        is_invalid(&server, with(&|signing| signing.fields.push(("idempotency-key", "x".into()))), "a field that matters").await;
        let covers = |signing: &mut Signing| {
            signing.fields.push(("idempotency-key", "x".into()));
            signing.covered.push("idempotency-key");
        };
        server.send(with(&covers)).await.json(201);
        server.send(with(&|signing| { signing.created_s -= 299; signing.body = Some(team("Late").to_string()); })).await.json(201);
        server.send(with(&|signing| { signing.created_s += 30; signing.body = Some(team("Early").to_string()); })).await.json(201);
        // It was good, and time went on.
        let early = with(&|signing| signing.body = Some(team("Never").to_string()));
        server.ambient.advance(Duration::from_mins(5));
        is_invalid(&server, early, "it waited").await;
    }

    async fn fields_that_stand_twice_are_refused(server: TestServer) {
        let tenant = server.tenant("acme").await;
        let client = client(&server, &tenant, "always").await;
        let fresh = || client.sent(client.signing(&server, "GET", &tenant.at("teams"), None));
        for name in ["signature", "signature-input"] {
            let sent = fresh();
            is_invalid(&server, sent.ask().header(name, &sent.header(name)), name).await;
        }
        let sent = fresh();
        let (input, signature) = (sent.header("signature-input"), sent.header("signature"));
        let second = sent.ask().header("signature-input", &input.replacen("mine", "two", 1)).header("signature", &signature.replacen("mine", "two", 1));
        is_invalid(&server, second, "two for us").await;
        is_invalid(&server, fresh().ask().header("signature-input", "(((").header("signature", "x"), "unreadable").await;
        assert_eq!(server.send(fresh().ask().header("content-digest", "sha-256=?")).await.problem(400), "invalid-header");
        // One that a proxy put there for somebody else.
        let foreign = fresh().ask().header("signature-input", "proxy=(\"@method\");created=1;tag=\"their-own\"").header("signature", "proxy=:AA==:");
        server.send(foreign).await.json(200);
    }

    /// A proxy may write another `host`, and anybody another `x-forwarded-host`: what counts is the address that the operator gave.
    async fn behind_a_proxy_the_address_of_the_server_counts(server: TestServer) {
        let tenant = server.tenant("acme").await;
        let client = client(&server, &tenant, "always").await;
        let fresh = || client.signing(&server, "GET", &tenant.at("teams"), None);
        let behind = |sent: &Sent| sent.ask().peer(PROXY).header("host", "10.0.0.7:8080").header("x-forwarded-for", "192.0.2.1");
        server.send(behind(&client.sent(fresh()))).await.json(200);
        for other in ["http://staging.test", "https://bulkhead.test", "http://10.0.0.7:8080"] {
            let mut signing = fresh();
            signing.url = signing.url.replace(PUBLIC_URL, other);
            let sent = client.sent(signing);
            let claimed = other.split_once("://").unwrap().1;
            is_invalid(&server, behind(&sent), other).await;
            is_invalid(&server, behind(&sent).header("x-forwarded-host", claimed), other).await;
            is_invalid(&server, sent.ask().header("host", claimed), other).await;
        }
    }

    async fn a_key_may_ask_for_signatures_where_it_matters_only(server: TestServer) {
        let tenant = server.tenant("acme").await;
        let client = client(&server, &tenant, "sensitive").await;
        let plain = |method: &str, rest: &str| ask(method, tenant.at(rest)).key(&client.secret);
        server.send(plain("GET", "teams")).await.json(200);
        let body = json!({ "name": "child", "permissions": ["org.read"] });
        assert_eq!(server.send(plain("POST", "api-keys").json(&body)).await.problem(401), "signature-required");
        server.send(client.sent(client.signing(&server, "POST", &tenant.at("api-keys"), Some(&body))).ask()).await.json(201);
        // What asks for it only sometimes.
        let granting = json!({ "plugin": "acme/x", "version": "1.0.0", "settings": {}, "grants": { "permissions": [{ "kind": "secret", "name": "signing_key", "inject": { "origins": [] } }] } });
        assert_eq!(server.send(plain("POST", "installations").json(&granting)).await.problem(401), "signature-required");
        // One that is there is checked all the same.
        let sent = client.sent(client.signing(&server, "GET", &tenant.at("teams"), None));
        server.send(sent.ask()).await.json(200);
        is_invalid(&server, sent.ask(), "replayed").await;
    }

    async fn a_shared_secret_signs_as_well_and_is_shown_once(server: TestServer) {
        let tenant = server.tenant("acme").await;
        let body = json!({ "name": "hmac", "permissions": ["teams.read"], "signing": { "algorithm": "hmac-sha256" } });
        let made = server.post(&tenant, "api-keys", &body).await.json(201);
        let secret = STANDARD.decode(text(&made["signing_secret"])).unwrap();
        assert_eq!(made["signing"], json!({ "algorithm": "hmac-sha256", "required": "always", "public_key": null }));
        let listed = server.get(&tenant, "api-keys").await;
        assert!(!listed.text().contains(&text(&made["signing_secret"])));
        let log = server.get(&tenant, "audit?action=api_key.created").await;
        assert!(!log.text().contains(&text(&made["signing_secret"])) && log.text().contains("hmac-sha256"));
        let client = Client { id: text(&made["id"]), secret: text(&made["secret"]), key: Key::Hmac(secret) };
        let fresh = |client: &Client| client.sent(client.signing(&server, "GET", &tenant.at("teams"), None));
        server.send(fresh(&client).ask()).await.json(200);
        // Whoever has read the bearer's text has not got that secret: not in the text, and not in what is stored of it.
        let bearer = hex::decode(client.secret.rsplit('_').nth(1).unwrap()).unwrap();
        for guess in [bearer.clone(), Sha256::digest(&bearer).to_vec(), client.secret.clone().into_bytes()] {
            let thief = Client { id: client.id.clone(), secret: client.secret.clone(), key: Key::Hmac(guess) };
            is_invalid(&server, fresh(&thief).ask(), "guessed").await;
        }
        // A new bearer leaves the signing secret as it is.
        let rotated = server.post(&tenant, &format!("api-keys/{}/rotate", client.id), &json!({})).await.json(200);
        assert!(rotated.get("signing_secret").is_none());
        server.send(fresh(&Client { secret: text(&rotated["secret"]), ..client }).ask()).await.json(200);
    }

    async fn a_signature_is_no_key_and_a_key_signs_for_itself_alone(server: TestServer) {
        let tenant = server.tenant("acme").await;
        let (mine, other) = (client(&server, &tenant, "always").await, client(&server, &tenant, "always").await);
        let fresh = || mine.sent(mine.signing(&server, "GET", &tenant.at("teams"), None));
        let as_other = Sent { secret: other.secret.clone(), ..fresh() };
        is_invalid(&server, as_other.ask(), "another key's bearer").await;
        let plain = Sent { secret: tenant.key.clone(), ..fresh() };
        is_invalid(&server, plain.ask(), "a key that signs nothing").await;
        let mut nobody = fresh().ask();
        nobody = nobody.header("authorization", "Bearer x");
        assert_eq!(server.send(nobody).await.problem(401), "unauthenticated");
        assert_eq!(server.delete(&tenant, &format!("api-keys/{}", mine.id)).await.status.as_u16(), 204);
        assert_eq!(server.send(fresh().ask()).await.problem(401), "unauthenticated", "revoked");
    }

    async fn keys_that_prove_nothing_are_not_taken(server: TestServer) {
        let tenant = server.tenant("acme").await;
        let mut neutral = [0; 32];
        neutral[0] = 1;
        for public_key in ["", "nonsense", "-----BEGIN PUBLIC KEY-----\nAAAA", &STANDARD.encode([7; 31]), &STANDARD.encode(neutral)] {
            let body = json!({ "name": "x", "permissions": ["org.read"], "signing": { "algorithm": "ed25519", "public_key": public_key } });
            let answer = server.post(&tenant, "api-keys", &body).await;
            assert_eq!(answer.problem(422), "invalid-signing-key", "{public_key}");
            assert_eq!(answer.error(422).0, "/signing/public_key");
        }
        for signing in [json!({}), json!({ "algorithm": "none" }), json!({ "algorithm": "ed25519" }), json!({ "algorithm": "hmac-sha256", "secret": "mine" })] {
            let body = json!({ "name": "x", "permissions": ["org.read"], "signing": signing });
            assert_eq!(server.post(&tenant, "api-keys", &body).await.problem(422), "invalid-body", "{signing}");
        }
    }

    /// Also for those who sign nothing, and on routes without a key.
    async fn a_body_is_the_one_that_its_digest_is_of(server: TestServer) {
        let tenant = server.tenant("acme").await;
        let body = team("Support").to_string();
        let digest = |of: &str| format!("sha-256=:{}:", STANDARD.encode(Sha256::digest(of)));
        let post = |digest: &str| ask("POST", tenant.at("teams")).key(&tenant.key).bytes("application/json", body.clone()).header("content-digest", digest);
        assert_eq!(server.send(post(&digest("other"))).await.problem(400), "digest-mismatch");
        assert_eq!(server.send(post("sha-256")).await.problem(400), "invalid-header");
        server.send(post(&digest(&body))).await.json(201);
        let workflow = server.save(&tenant, &crate::support::stops_at_once("Hooked")).await;
        let id = text(&workflow["id"]);
        let etag = server.get(&tenant, &format!("workflows/{id}")).await.header("etag").to_owned();
        let activate = ask("POST", tenant.at(&format!("workflows/{id}/activate"))).key(&tenant.key).header("if-match", &etag);
        assert!(server.send(activate).await.status.is_success());
        let hook = server.get(&tenant, &format!("workflows/{id}")).await.json(200);
        let url = text(&hook["hooks"][0]["url"]);
        let deliver = |digest: String| {
            ask("POST", url.strip_prefix(PUBLIC_URL).unwrap()).bytes("application/json", "{}").header("content-digest", &digest)
        };
        assert_eq!(server.send(deliver(digest("x"))).await.problem(400), "digest-mismatch");
        assert_eq!(server.send(deliver(digest("{}"))).await.status.as_u16(), 202);
    }
}
