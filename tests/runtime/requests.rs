//! Guests that reach for the network and for secrets, through `wasi:http` and `bulkhead:plugin/secrets`.
//!
//! The guest here sends the requests that its data describes and answers with what it saw: the status, or 1000 and the number
//! of the error code.

use std::collections::HashMap;
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bulkhead_model::call::{CallReport, Outcome};
use bulkhead_model::grant::{EffectiveGrants, HttpRule, SecretRule};
use bulkhead_model::limits::{ContributionKind, Limits};
use bulkhead_model::manifest::Inject;
use bulkhead_model::name::SecretName;
use bulkhead_runtime::egress::{EgressConfig, Resolve, ResolveFuture, SECRETS_PER_CALL_MAX};
use bulkhead_runtime::{CallControl, CallRequest, Runtime, SecretError, SecretSource, embed_manifest};
use futures_util::future::BoxFuture;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use zeroize::Zeroizing;

use crate::support::{Host, RUN, assert_ended, component, config, manifest, module, request, within};

const ACTION: ContributionKind = ContributionKind::Action;
const DENIED: &str = "1015";
const IP_PROHIBITED: &str = "1004";
const BODY_SIZE: &str = "1017";
const INCOMPLETE: &str = "1025";
const TIMEOUT: &str = "1033";
const SECRET_VALUE: &str = "xoxb-very-secret-value";

const IMPORTS: &str = r#"
    (import "wasi:http/types@0.2.12" "[constructor]fields" (func $fields (result i32)))
    (import "wasi:http/types@0.2.12" "[method]fields.append" (func $append (param i32 i32 i32 i32 i32 i32)))
    (import "wasi:http/types@0.2.12" "[constructor]outgoing-request" (func $request (param i32) (result i32)))
    (import "wasi:http/types@0.2.12" "[method]outgoing-request.set-scheme" (func $scheme (param i32 i32 i32 i32 i32) (result i32)))
    (import "wasi:http/types@0.2.12" "[method]outgoing-request.set-authority" (func $authority (param i32 i32 i32 i32) (result i32)))
    (import "wasi:http/types@0.2.12" "[method]outgoing-request.set-path-with-query" (func $path (param i32 i32 i32 i32) (result i32)))
    (import "wasi:http/types@0.2.12" "[constructor]request-options" (func $options (result i32)))
    (import "wasi:http/types@0.2.12" "[method]request-options.set-first-byte-timeout" (func $first_byte (param i32 i32 i64) (result i32)))
    (import "wasi:http/types@0.2.12" "[method]outgoing-request.body" (func $body (param i32 i32)))
    (import "wasi:http/types@0.2.12" "[method]outgoing-body.write" (func $stream (param i32 i32)))
    (import "wasi:http/types@0.2.12" "[static]outgoing-body.finish" (func $finish (param i32 i32 i32 i32)))
    (import "wasi:io/streams@0.2.12" "[method]output-stream.blocking-write-and-flush" (func $write (param i32 i32 i32 i32)))
    (import "wasi:io/streams@0.2.12" "[resource-drop]output-stream" (func $drop_stream (param i32)))
    (import "wasi:http/outgoing-handler@0.2.12" "handle" (func $handle (param i32 i32 i32 i32)))
    (import "wasi:http/types@0.2.12" "[method]future-incoming-response.subscribe" (func $subscribe (param i32) (result i32)))
    (import "wasi:http/types@0.2.12" "[method]future-incoming-response.get" (func $get (param i32 i32)))
    (import "wasi:http/types@0.2.12" "[method]incoming-response.status" (func $status (param i32) (result i32)))
    (import "wasi:io/poll@0.2.12" "[method]pollable.block" (func $block (param i32)))
    (import "bulkhead:plugin/secrets@0.1.0" "placeholder" (func $placeholder (param i32 i32 i32)))
    (import "wasi:logging/logging@0.1.0-draft" "log" (func $log (param i32 i32 i32 i32 i32)))
"#;

/// `$send` takes a set of headers and answers as the module's documentation says; `$with_body` and `$patience` are for guests that set them. `$print` writes a number at 3000 and returns its length.
const SENDS: &str = r#"
    (data (i32.const 2900) "authorization")
    (data (i32.const 2920) "bot_token")
    (data (i32.const 2940) "x-other")
    ;; Chunks of 4096 bytes that are written into the body, and nanoseconds until the first byte.
    (global $with_body (mut i32) (i32.const 0))
    (global $patience (mut i64) (i64.const 0))
    (func $send (param $headers i32) (result i32)
        (local $r i32) (local $f i32) (local $o i32) (local $b i32) (local $s i32)
        (local.set $r (call $request (local.get $headers)))
        (if (call $scheme (local.get $r) (i32.const 1) (i32.const $IS_HTTPS) (i32.const 0) (i32.const 0)) (then unreachable))
        (if (call $authority (local.get $r) (i32.const 1) (i32.const 2048) (i32.const $AUTHORITY_LEN)) (then (return (i32.const 2000))))
        (if (call $path (local.get $r) (i32.const 1) (i32.const 2400) (global.get $path_len)) (then (return (i32.const 2001))))
        (if (global.get $with_body) (then
            (call $body (local.get $r) (i32.const 256))
            (local.set $b (i32.load (i32.const 260)))
            (call $stream (local.get $b) (i32.const 256))
            (local.set $s (i32.load (i32.const 260)))))
        (if (i64.ne (global.get $patience) (i64.const 0)) (then
            (local.set $o (call $options))
            (if (call $first_byte (local.get $o) (i32.const 1) (global.get $patience)) (then unreachable))))
        (call $handle (local.get $r) (i64.ne (global.get $patience) (i64.const 0)) (local.get $o) (i32.const 256))
        (if (i32.load8_u (i32.const 256)) (then (return (i32.add (i32.const 1000) (i32.load8_u (i32.const 264))))))
        (local.set $f (i32.load (i32.const 264)))
        (if (global.get $with_body) (then
            (loop $chunk
                (call $write (local.get $s) (i32.const 4096) (i32.const 4096) (i32.const 256))
                (global.set $with_body (i32.sub (global.get $with_body) (i32.const 1)))
                ;; The host takes no more once it has decided.
                (br_if $chunk (i32.and (i32.eqz (i32.load8_u (i32.const 256))) (i32.ne (global.get $with_body) (i32.const 0)))))
            (call $drop_stream (local.get $s))
            (call $finish (local.get $b) (i32.const 0) (i32.const 0) (i32.const 256))))
        (call $block (call $subscribe (local.get $f)))
        (call $get (local.get $f) (i32.const 320))
        (if (i32.load8_u (i32.const 336)) (then (return (i32.add (i32.const 1000) (i32.load8_u (i32.const 344))))))
        (call $status (i32.load (i32.const 344))))
    (func $print (param $n i32) (result i32)
        (i32.store8 (i32.const 3003) (i32.add (i32.const 48) (i32.rem_u (local.get $n) (i32.const 10))))
        (i32.store8 (i32.const 3002) (i32.add (i32.const 48) (i32.rem_u (i32.div_u (local.get $n) (i32.const 10)) (i32.const 10))))
        (i32.store8 (i32.const 3001) (i32.add (i32.const 48) (i32.rem_u (i32.div_u (local.get $n) (i32.const 100)) (i32.const 10))))
        (i32.store8 (i32.const 3000) (i32.add (i32.const 48) (i32.div_u (local.get $n) (i32.const 1000))))
        ;; JSON numbers have no zero in front.
        (if (i32.eq (i32.load8_u (i32.const 3000)) (i32.const 48)) (then (i32.store8 (i32.const 3000) (i32.const 32))))
        (i32.const 4))
    (func $answer (param $at i32) (param $len i32) (result i32)
        (i32.store8 (i32.const 16) (i32.const 0))
        (i32.store (i32.const 24) (local.get $at))
        (i32.store (i32.const 28) (local.get $len))
        (i32.const 16))
    ;; A header whose value is the secret's placeholder, which then lies at the address in 384 with the length in 388.
    (func $with_secret (param $name i32) (param $len i32) (result i32)
        (local $h i32)
        (local.set $h (call $fields))
        (call $placeholder (i32.const 2920) (i32.const 9) (i32.const 380))
        (if (i32.load8_u (i32.const 380)) (then unreachable))
        (call $append (local.get $h) (local.get $name) (local.get $len) (i32.load (i32.const 384)) (i32.load (i32.const 388)) (i32.const 400))
        (local.get $h))
"#;

/// A guest that sends to this URL as `run` says.
fn guest(url: &str, run: &str) -> Vec<u8> {
    let (scheme, rest) = url.split_once("://").unwrap();
    let at = rest.find('/').unwrap_or(rest.len());
    let (authority, path) = rest.split_at(at);
    let sends = SENDS
        .replace("$IS_HTTPS", if scheme == "https" { "1" } else { "0" })
        .replace("$AUTHORITY_LEN", &authority.len().to_string());
    let data = format!(
        r#"(data (i32.const 2048) "{authority}") (data (i32.const 2400) "{path}") (global $path_len (mut i32) (i32.const {}))"#,
        path.len()
    );
    component("action-plugin", &module(IMPORTS, &format!("{data} {sends} {RUN} {run})")))
}

const ONE: &str = "(call $answer (i32.const 3000) (call $print (call $send (call $fields))))";

/// What the manifest asks for is as wide as can be: here the grants decide.
fn package(component: &[u8]) -> Vec<u8> {
    let permissions = json!([
        { "kind": "http", "reason": "r", "origins": ["https://*"], "methods": ["GET"], "paths": ["/"] },
        { "kind": "secret", "reason": "r", "name": "bot_token", "inject": { "headers": ["authorization"], "origins": ["https://slack.com"] } },
    ]);
    embed_manifest(component, &manifest(ACTION, &permissions)).unwrap()
}

fn grants(http: &Value, secret_origin: &str) -> Arc<EffectiveGrants> {
    fn list<T: FromStr>(rule: &Value, key: &str) -> Vec<T> {
        let texts = rule[key].as_array().unwrap().iter();
        texts.map(|text| text.as_str().unwrap().parse().ok().unwrap_or_else(|| panic!("{text}"))).collect()
    }
    let rule = |rule: &Value| HttpRule {
        origins: list(rule, "origins"),
        methods: list(rule, "methods"),
        paths: list(rule, "paths"),
    };
    let inject = Inject {
        origins: vec![secret_origin.parse().unwrap()],
        headers: vec!["authorization".to_owned()],
        path: None,
        body: false,
    };
    let secret = SecretRule { name: "bot_token".parse().unwrap(), inject };
    Arc::new(EffectiveGrants::of_rules(http.as_array().unwrap().iter().map(rule).collect(), vec![secret]))
}

fn get(origin: &str) -> Value {
    json!([{ "origins": [origin], "methods": ["GET"], "paths": ["/"] }])
}

struct Vault;

impl SecretSource for Vault {
    fn load(&self, name: SecretName) -> BoxFuture<'static, Result<Option<Zeroizing<String>>, SecretError>> {
        assert_eq!(name.as_str(), "bot_token");
        Box::pin(async {
            tokio::time::sleep(Duration::from_millis(1)).await;
            Ok(Some(Zeroizing::new(SECRET_VALUE.to_owned())))
        })
    }
}

/// Names and their addresses.
#[derive(Default)]
struct Names(HashMap<String, Vec<IpAddr>>);

impl Resolve for Names {
    fn resolve<'a>(&'a self, host: &'a str) -> ResolveFuture<'a> {
        let answer = self.0.get(host).cloned().unwrap_or_default();
        Box::pin(std::future::ready(Ok(answer)))
    }
}

/// A server that answers every connection with the same bytes, after a while, and keeps what it was sent.
struct Server {
    port: u16,
    connections: Arc<AtomicU32>,
    received: Arc<Mutex<String>>,
}

impl Server {
    async fn start(answer: &'static str, delay: Duration) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (connections, received) = (Arc::new(AtomicU32::new(0)), Arc::new(Mutex::new(String::new())));
        let (count, kept) = (Arc::clone(&connections), Arc::clone(&received));
        tokio::runtime::Handle::current().spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                count.fetch_add(1, Ordering::SeqCst);
                let kept = Arc::clone(&kept);
                tokio::runtime::Handle::current().spawn(async move {
                    let mut head = vec![0; 8 * 1024];
                    let read = stream.read(&mut head).await.unwrap_or(0);
                    kept.lock().unwrap().push_str(&String::from_utf8_lossy(&head[..read]));
                    tokio::time::sleep(delay).await;
                    let _ = stream.write_all(answer.as_bytes()).await;
                    let _ = stream.shutdown().await;
                });
            }
        });
        Self { port, connections, received }
    }

    fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    fn origin(&self) -> String {
        self.url("")
    }

    fn connections(&self) -> u32 {
        self.connections.load(Ordering::SeqCst)
    }
}

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

/// A host that may reach `server` on this machine, and knows these names.
fn host(server: &Server, names: Names) -> Host {
    host_that(names, |egress| {
        egress.allow_loopback = vec![format!("127.0.0.1:{}", server.port).parse().unwrap()];
    })
}

fn host_that(names: Names, change: impl FnOnce(&mut EgressConfig)) -> Host {
    let directory = tempfile::tempdir().unwrap();
    let mut config = config(directory.path().join("cache"));
    config.egress = EgressConfig::new(Arc::new(names));
    change(&mut config.egress);
    let ambient = crate::support::host().ambient.clone();
    Host { runtime: Runtime::start(config, ambient.clone()).unwrap(), ambient, _directory: directory }
}

async fn call(
    host: &Host,
    guest: &[u8],
    grants: Arc<EffectiveGrants>,
    change: impl FnOnce(&mut CallRequest),
) -> CallReport {
    let prepared = host.prepare(&package(guest)).await;
    let mut request = request(ACTION);
    request.grants = grants;
    request.secrets = Arc::new(Vault);
    change(&mut request);
    within(host.runtime.call(&prepared, request)).await
}

fn answer(report: &CallReport) -> &str {
    assert_ended(report, Outcome::Returned, None);
    report.output.as_deref().unwrap().trim()
}

#[tokio::test]
async fn a_granted_request_is_sent_and_recorded() {
    let server = Server::start(OK, Duration::ZERO).await;
    let host = host(&server, Names::default());
    let guest = guest(&server.url("/hook?key=1"), ONE);
    let report = call(&host, &guest, grants(&get(&server.origin()), "https://x.example"), |_| ()).await;
    assert_eq!(answer(&report), "200");
    let [record] = report.egress.as_slice() else { panic!("{report:?}") };
    assert_eq!((record.method.as_str(), record.path.as_str(), record.status), ("GET", "/hook", Some(200)));
    assert_eq!(record.origin, server.origin());
    assert_eq!((record.response_bytes, report.usage.requests, report.usage.response_bytes), (2, 1, 2));
    assert!(report.refusals.is_empty());
    let received = server.received.lock().unwrap().clone();
    assert!(received.starts_with("GET /hook?key=1 HTTP/1.1\r\n"), "{received}");
}

#[tokio::test]
async fn what_is_not_granted_is_refused_before_any_byte_leaves() {
    let server = Server::start(OK, Duration::ZERO).await;
    let host = host(&server, Names::default());
    let guest = guest(&server.url("/admin"), ONE);
    let only_hook = json!([{ "origins": [server.origin()], "methods": ["GET"], "paths": ["/hook"] }]);
    let only_post = json!([{ "origins": [server.origin()], "methods": ["POST"], "paths": ["/"] }]);
    for rules in [json!([]), only_hook, only_post, get("https://slack.com")] {
        let report = call(&host, &guest, grants(&rules, "https://x.example"), |_| ()).await;
        assert_eq!(answer(&report), DENIED);
        let [refusal] = report.refusals.as_slice() else { panic!("{report:?}") };
        assert_eq!(refusal.kind, "http");
        assert_eq!(refusal.target, format!("GET {}/admin", server.origin()));
        assert_eq!(report.egress.len(), 1);
        assert!(report.egress[0].error.is_some() && report.egress[0].status.is_none());
    }
    assert_eq!(server.connections(), 0);
}

/// A grant for every public host covers no address of this machine or of its network, however it is written.
#[tokio::test]
async fn forbidden_hosts_are_refused_in_every_spelling() {
    let server = Server::start(OK, Duration::ZERO).await;
    let ip = |text: &str| vec![text.parse::<IpAddr>().unwrap()];
    let names = Names(HashMap::from([
        ("inside.example".to_owned(), ip("127.0.0.1")),
        ("metadata.example".to_owned(), ip("169.254.169.254")),
        ("mapped.example".to_owned(), ip("::ffff:10.0.0.1")),
        ("unique.example".to_owned(), ip("fd00:ec2::254")),
    ]));
    // This host allows nothing of its own machine, and the grant names each of these hosts with its port: only the address is left to refuse.
    let host = host_that(names, |_| ());
    let port = server.port;
    for authority in [
        "127.0.0.1",
        "127.1",
        "2130706433",
        "0x7f.0.0.1",
        "0177.0.0.1",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "localhost",
        "10.0.0.1",
        "192.168.1.1",
        "172.16.0.1",
        "169.254.169.254",
        "100.64.0.1",
        "0.0.0.0",
        "255.255.255.255",
        "224.0.0.1",
        "[fe80::1]",
        "[fc00::1]",
        "[64:ff9b::7f00:1]",
        "[2002:7f00:1::]",
        "inside.example",
        "metadata.example",
        "mapped.example",
        "unique.example",
    ] {
        for scheme in ["http", "https"] {
            let origin = format!("{scheme}://{authority}:{port}");
            let everything =
                json!([{ "origins": ["https://*", "http://*", origin], "methods": ["GET"], "paths": ["/"] }]);
            let guest = guest(&format!("{origin}/"), ONE);
            let report = call(&host, &guest, grants(&everything, "https://x.example"), |_| ()).await;
            assert_eq!(answer(&report), IP_PROHIBITED, "{origin}: {report:?}");
            assert!(report.egress.iter().all(|record| record.status.is_none()), "{origin}");
        }
    }
    assert_eq!(server.connections(), 0);
}

#[tokio::test]
async fn a_redirect_is_shown_and_not_followed() {
    let moved = "HTTP/1.1 302 Found\r\nlocation: http://169.254.169.254/latest/meta-data/\r\ncontent-length: 0\r\n\r\n";
    let server = Server::start(moved, Duration::ZERO).await;
    let host = host(&server, Names::default());
    let report =
        call(&host, &guest(&server.url("/"), ONE), grants(&get(&server.origin()), "https://x.example"), |_| ()).await;
    assert_eq!(answer(&report), "302");
    assert_eq!((report.egress.len(), server.connections()), (1, 1));
}

#[tokio::test]
async fn requests_are_counted() {
    let server = Server::start(OK, Duration::ZERO).await;
    let host = host(&server, Names::default());
    let run = "(loop $again (drop (call $send (call $fields))) (br $again)) unreachable";
    let limits = Limits { requests: 3, ..Limits::default_for(ACTION) };
    let report =
        call(&host, &guest(&server.url("/"), run), grants(&get(&server.origin()), "https://x.example"), |request| {
            request.limits = limits;
        })
        .await;
    assert_ended(&report, Outcome::LimitExceeded, Some("requests"));
    assert_eq!((report.usage.requests, server.connections()), (3, 3));
}

#[tokio::test]
async fn a_secret_reaches_its_place_and_the_guest_never_sees_it() {
    let server = Server::start(OK, Duration::ZERO).await;
    let host = host(&server, Names::default());
    // Sends it where it belongs, and logs the placeholder.
    let run = "(local $h i32) (local.set $h (call $with_secret (i32.const 2900) (i32.const 13)))
        (call $log (i32.const 2) (i32.const 0) (i32.const 0) (i32.load (i32.const 384)) (i32.load (i32.const 388)))
        (call $answer (i32.const 3000) (call $print (call $send (local.get $h))))";
    let report =
        call(&host, &guest(&server.url("/"), run), grants(&get(&server.origin()), &server.origin()), |_| ()).await;
    assert_eq!(answer(&report), "200");
    assert!(server.received.lock().unwrap().contains(SECRET_VALUE));
    let shown = format!("{report:?}");
    assert!(!shown.contains(SECRET_VALUE) && !shown.contains("bhs_"), "{shown}");
    assert_eq!(report.log.len(), 1);
}

#[tokio::test]
async fn a_secret_in_the_wrong_place_is_refused() {
    let server = Server::start(OK, Duration::ZERO).await;
    let host = host(&server, Names::default());
    let send = |name: &str, len: u32| {
        format!(
            "(call $answer (i32.const 3000) (call $print (call $send (call $with_secret (i32.const {name}) (i32.const {len})))))"
        )
    };
    // Another header; and the right header toward another origin.
    for (run, origin) in [(send("2940", 7), server.origin()), (send("2900", 13), "https://slack.com".to_owned())] {
        let report = call(&host, &guest(&server.url("/"), &run), grants(&get(&server.origin()), &origin), |_| ()).await;
        assert_eq!(answer(&report), DENIED);
        assert_eq!(report.refusals.len(), 1, "{report:?}");
        assert!(!format!("{report:?}").contains(SECRET_VALUE));
    }
    // In the query: the placeholder is copied behind the path.
    let query = "(drop (call $with_secret (i32.const 2900) (i32.const 13)))
        (memory.copy (i32.add (i32.const 2400) (global.get $path_len)) (i32.load (i32.const 384)) (i32.load (i32.const 388)))
        (global.set $path_len (i32.add (global.get $path_len) (i32.load (i32.const 388))))
        (call $answer (i32.const 3000) (call $print (call $send (call $fields))))";
    let report =
        call(&host, &guest(&server.url("/?t="), query), grants(&get(&server.origin()), &server.origin()), |_| ()).await;
    assert_eq!(answer(&report), DENIED);
    assert_eq!(server.connections(), 0);
}

#[tokio::test]
async fn a_placeholder_in_the_result_is_refused() {
    let server = Server::start(OK, Duration::ZERO).await;
    let host = host(&server, Names::default());
    let run = "(local $at i32) (drop (call $with_secret (i32.const 2900) (i32.const 13)))
        (local.set $at (i32.const 3100))
        (i32.store8 (local.get $at) (i32.const 34))
        (memory.copy (i32.const 3101) (i32.load (i32.const 384)) (i32.load (i32.const 388)))
        (i32.store8 (i32.add (i32.const 3101) (i32.load (i32.const 388))) (i32.const 34))
        (call $answer (i32.const 3100) (i32.add (i32.const 2) (i32.load (i32.const 388))))";
    let report = call(&host, &guest(&server.url("/"), run), grants(&json!([]), &server.origin()), |_| ()).await;
    assert_ended(&report, Outcome::InvalidOutput, None);
    assert_eq!(report.error.unwrap().code, "secret-in-output");
}

/// The server never answers: the call ends when its grants are taken away, or when its time is over, and the request is on record.
#[tokio::test]
async fn a_call_that_waits_for_a_server_can_be_ended() {
    let server = Server::start(OK, Duration::from_hours(1)).await;
    let host = host(&server, Names::default());
    let guest = guest(&server.url("/slow"), ONE);
    let granted = grants(&get(&server.origin()), "https://x.example");
    let report = call(&host, &guest, Arc::clone(&granted), |request| request.limits.wall_ms = 200).await;
    assert_ended(&report, Outcome::DeadlinePassed, Some("wall_ms"));
    assert_eq!((report.egress.len(), report.egress[0].path.as_str()), (1, "/slow"));

    let prepared = host.prepare(&package(&guest)).await;
    let mut request = request(ACTION);
    request.grants = granted;
    let control = request.control.clone();
    let ending = async {
        while server.connections() < 2 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        control.revoke();
    };
    let (report, ()) = within(async { tokio::join!(host.runtime.call(&prepared, request), ending) }).await;
    assert_ended(&report, Outcome::Revoked, None);
}

/// Revokes its call while that call waits for a value, and then gives the value all the same.
struct Revoking(CallControl);

impl SecretSource for Revoking {
    fn load(&self, _: SecretName) -> BoxFuture<'static, Result<Option<Zeroizing<String>>, SecretError>> {
        let control = self.0.clone();
        Box::pin(async move {
            control.revoke();
            Ok(Some(Zeroizing::new(SECRET_VALUE.to_owned())))
        })
    }
}

/// After a revocation no request leaves any more, even if the guest is quick and everything that it waits for arrives.
#[tokio::test]
async fn nothing_is_sent_after_a_revocation() {
    let server = Server::start(OK, Duration::ZERO).await;
    let host = host(&server, Names::default());
    let run = "(call $answer (i32.const 3000) (call $print (call $send (call $with_secret (i32.const 2900) (i32.const 13)))))";
    let guest = guest(&server.url("/"), run);
    let granted = grants(&get(&server.origin()), &server.origin());
    let report = call(&host, &guest, Arc::clone(&granted), |request| {
        request.secrets = Arc::new(Revoking(request.control.clone()));
    })
    .await;
    assert_ended(&report, Outcome::Revoked, None);
    assert!(report.egress.is_empty(), "{report:?}");
    assert_eq!(server.connections(), 0);
    // Without the revocation the same guest sends.
    assert_eq!(answer(&call(&host, &guest, granted, |_| ()).await), "200");
    assert_eq!(server.connections(), 1);
}

/// What the SDK takes for worth another attempt, and what not.
#[tokio::test]
async fn a_server_that_dies_is_told_from_one_that_talks_nonsense() {
    for (answered, expected) in [
        ("", INCOMPLETE),
        ("HTTP/1.1 200 OK\r\ncontent-le", INCOMPLETE),
        ("HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nok", INCOMPLETE),
        ("nonsense\r\n\r\n", "1035"),
    ] {
        let server = Server::start(answered, Duration::ZERO).await;
        let host = host(&server, Names::default());
        let granted = grants(&get(&server.origin()), "https://x.example");
        let report = call(&host, &guest(&server.url("/"), ONE), granted, |_| ()).await;
        assert_eq!(answer(&report), expected, "{answered:?}");
    }
}

/// The guest waits for as long as it says, although the platform would wait longer.
#[tokio::test]
async fn a_guest_may_wait_for_less() {
    let server = Server::start(OK, Duration::from_hours(1)).await;
    let host = host(&server, Names::default());
    let run = format!("(global.set $patience (i64.const 50000000)) {ONE}");
    let granted = grants(&get(&server.origin()), "https://x.example");
    let report = call(&host, &guest(&server.url("/"), &run), granted, |_| ()).await;
    assert_eq!(answer(&report), TIMEOUT);
}

/// The record of a request says what became of it; and what is not granted is not read.
#[tokio::test]
async fn bodies_are_read_when_they_are_granted_and_recorded_when_they_are_too_large() {
    let server = Server::start(OK, Duration::ZERO).await;
    let host = host(&server, Names::default());
    let run = format!("(global.set $with_body (i32.const 4)) {ONE}");
    let guest = guest(&server.url("/"), &run);
    let granted = grants(&get(&server.origin()), "https://x.example");
    let small = |request: &mut CallRequest| request.limits.host_bytes_per_host_call = 10_000;

    let report = call(&host, &guest, Arc::clone(&granted), |_| ()).await;
    assert_eq!(answer(&report), "200");
    assert_eq!(report.egress[0].request_bytes, 4 * 4_096);
    let read = report.usage.host_bytes;

    let report = call(&host, &guest, Arc::clone(&granted), small).await;
    assert_eq!(answer(&report), BODY_SIZE);
    assert!(report.egress[0].error.as_deref().is_some_and(|why| why.contains("body size")), "{report:?}");

    let report = call(&host, &guest, grants(&json!([]), "https://x.example"), |_| ()).await;
    assert_eq!(answer(&report), DENIED);
    assert_eq!(report.egress[0].request_bytes, 0);
    assert_eq!(report.usage.host_bytes, read - 4 * 4_096);
    assert_eq!(server.connections(), 1);
}

/// Each secret is searched for in everything, so a call has a bounded number of them.
#[tokio::test]
async fn a_call_uses_few_secrets() {
    struct Any;
    impl SecretSource for Any {
        fn load(&self, _: SecretName) -> BoxFuture<'static, Result<Option<Zeroizing<String>>, SecretError>> {
            Box::pin(std::future::ready(Ok(Some(Zeroizing::new(SECRET_VALUE.to_owned())))))
        }
    }
    let server = Server::start(OK, Duration::ZERO).await;
    let host = host(&server, Names::default());
    // `bat_token`, `bbt_token` and so on.
    let asks = |count: usize| {
        format!(
            "(local $n i32)
            (loop $again
                (i32.store8 (i32.const 2921) (i32.add (i32.const 97) (local.get $n)))
                (call $placeholder (i32.const 2920) (i32.const 9) (i32.const 380))
                (if (i32.load8_u (i32.const 380)) (then unreachable))
                (local.set $n (i32.add (local.get $n) (i32.const 1)))
                (br_if $again (i32.lt_u (local.get $n) (i32.const {count}))))
            (call $answer (i32.const 3000) (call $print (i32.const 200)))"
        )
    };
    let inject = Inject { origins: Vec::new(), headers: Vec::new(), path: None, body: false };
    let rules = ('a'..='z')
        .map(|letter| SecretRule { name: format!("b{letter}t_token").parse().unwrap(), inject: inject.clone() });
    let granted = Arc::new(EffectiveGrants::of_rules(Vec::new(), rules.collect()));
    let any = |request: &mut CallRequest| request.secrets = Arc::new(Any);
    let few = guest(&server.url("/"), &asks(SECRETS_PER_CALL_MAX));
    assert_eq!(answer(&call(&host, &few, Arc::clone(&granted), any).await), "200");
    let many = guest(&server.url("/"), &asks(SECRETS_PER_CALL_MAX + 1));
    let report = call(&host, &many, granted, any).await;
    assert_ended(&report, Outcome::LimitExceeded, Some("secrets_per_call"));
}
