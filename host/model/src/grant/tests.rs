use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{select, subsequence};
use serde_json::json;
use url::Url;

use super::scope::{Scope, lists_meet, meet_lists};
use super::*;
use crate::manifest::{OriginAsk, PERMISSIONS_MAX, PermissionAsk};

fn origin(text: &str) -> OriginPattern {
    text.parse().unwrap_or_else(|error| panic!("{error}"))
}

fn url(text: &str) -> Url {
    Url::parse(text).expect("a URL")
}

#[test]
fn origins_have_one_spelling() {
    let cases = [
        ("https://slack.com", "https://slack.com"),
        ("https://SLACK.com:443", "https://slack.com"),
        ("http://slack.com:443", "http://slack.com:443"),
        ("https://*", "https://*"),
        ("https://*:*", "https://*:*"),
        ("https://*.example.com:8443", "https://*.example.com:8443"),
        ("https://bücher.example", "https://xn--bcher-kva.example"),
        ("http://0x7f.1:80", "http://127.0.0.1"),
        ("http://2130706433", "http://127.0.0.1"),
        ("http://[0:0::1]:8080", "http://[::1]:8080"),
        ("http://[::1]", "http://[::1]"),
    ];
    for (text, want) in cases {
        assert_eq!(origin(text).to_string(), want);
        assert_eq!(origin(want), origin(text));
    }
}

#[test]
fn origins_with_more_than_an_origin_are_refused() {
    for text in [
        "slack.com",
        "https:slack.com",
        "ftp://slack.com",
        "HTTPS://slack.com",
        "https://",
        "https://user@slack.com",
        "https://slack.com/",
        "https://slack.com/api",
        "https://slack.com?x",
        "https://slack.com#x",
        "https://sla ck.com",
        "https://slack.com:0",
        "https://slack.com:65536",
        "https://slack.com:+80",
        "https://slack.com:",
        "https://*.com",
        "https://*.localhost",
        "https://*.1.2",
        "https://a.*.com",
        "https://*x.com",
        "https://**",
        "https://slack.com.",
        "https://.slack.com",
        "https://a..b",
        "https://*.",
        "https://%6c.com",
        "https://a\\b",
        "https://[::1",
        "https://::1",
        "https://*.[::1]",
        "https://slack.com\u{0}",
    ] {
        assert!(text.parse::<OriginPattern>().is_err(), "{text}");
    }
    assert!(format!("https://{}.com", "a".repeat(400)).parse::<OriginPattern>().is_err());
}

#[test]
fn a_star_below_never_covers_the_name_itself() {
    let below = origin("https://*.example.com");
    assert!(below.matches_url(&url("https://a.example.com/")));
    assert!(below.matches_url(&url("https://a.b.example.com/")));
    for other in [
        "https://example.com",
        "https://badexample.com",
        "https://a.example.com.",
        "https://a.example.com:8443",
        "http://a.example.com",
        "https://.example.com",
    ] {
        assert!(!below.matches_url(&url(other)), "{other}");
    }
    let any = origin("https://*");
    assert!(any.matches_url(&url("https://example.com")));
    for other in [
        "https://localhost",
        "https://a.localhost.",
        "https://127.0.0.1",
        "https://10.1",
        "https://[::1]",
        "https://example.com:8443",
    ] {
        assert!(!any.matches_url(&url(other)), "{other}");
    }
}

#[test]
fn paths_count_in_segments() {
    let api: PathPrefix = "/api".parse().expect("a prefix");
    assert!(api.matches("/api") && api.matches("/api/") && api.matches("/api/x/y") && api.matches("/api/x%20y"));
    for path in [
        "/apix",
        "/",
        "/ap",
        "/API",
        "/api/%2e%2e%2fadmin",
        "/api/..%2fadmin",
        "/api/..%5cadmin",
        "/api/%252e%252e%252fadmin",
        "/api/%25%32%65%25%32%65/admin",
        "/api/%%32%65%%32%65%%32%66admin",
        "/api/%%%33%32%65%2e/admin",
        "/api/..;x/admin",
        "/api/x/..%2f..%2fadmin",
        "/api/..%2F",
        "/api/%2e.",
    ] {
        assert!(!api.matches(path), "{path}");
    }
    assert!(
        api.matches("/api/a..b")
            && api.matches("/api/...")
            && api.matches("/api/group%2Fproject")
            && api.matches("/api/50%25")
            && api.matches("/api/%%32%66%2")
    );
    let slash: PathPrefix = "/api/".parse().expect("a prefix");
    assert!(slash.matches("/api/x") && slash.matches("/api/") && !slash.matches("/api"));
    for bad in ["", "api", "/a?b", "/a#b", "/a/*", "/a/../b", "/a/./b", "/a/%2e%2e/b", "/a\\b", "/a\nb"] {
        assert!(bad.parse::<PathPrefix>().is_err(), "{bad}");
    }
    assert_eq!("/a b".parse::<PathPrefix>().expect("a prefix").as_str(), "/a%20b");
}

fn manifest() -> Manifest {
    let text = json!({
        "name": "acme/hook", "version": "1.0.0", "wit": "bulkhead:plugin@0.1", "title": "Hook",
        "actions": [{ "name": "hook", "title": "Hook", "settings": { "properties": { "url": { "type": "string" } } } }],
        "permissions": [
            { "kind": "http", "reason": "r", "required": true, "origins": [{ "from_setting": "url" }, "https://*"], "methods": ["POST", "PUT"], "paths": ["/"] },
            { "kind": "secret", "reason": "r", "name": "key", "inject": { "headers": ["authorization", "x-key"], "origins": ["https://api.example.com"], "body": true } }
        ]
    });
    Manifest::parse(text.to_string().as_bytes()).expect("a manifest")
}

fn grants(value: &serde_json::Value) -> Grants {
    Grants::parse(value.to_string().as_bytes()).unwrap_or_else(|error| panic!("{error}"))
}

fn now() -> Timestamp {
    Timestamp::parse("2026-11-21T08:00:00Z").expect("a time")
}

#[test]
fn effective_is_what_all_layers_have_in_common() {
    let granted = grants(&json!({ "permissions": [
        { "kind": "http", "origins": ["https://api.example.com", "http://127.0.0.1:8080"], "methods": ["POST", "GET"], "paths": ["/v1"], "expires_at": "2026-11-21T09:00:00Z" },
        { "kind": "http", "origins": ["https://*"], "methods": ["POST"], "paths": ["/"], "expires_at": "2026-11-21T08:00:00Z" },
        { "kind": "secret", "name": "key", "inject": { "headers": ["x-key", "x-other"], "origins": ["https://api.example.com"] } }
    ]}));
    let settings = json!({ "url": "http://127.0.0.1:8080/in" });
    let manifest = manifest();
    granted.validate(&manifest).expect("it answers the asks");
    let effective = EffectiveGrants::compute(&manifest, &granted, &Ceiling::default(), &settings, now());
    assert_eq!(effective.expires_at(), Timestamp::parse("2026-11-21T09:00:00Z").ok());
    assert_eq!(effective.http("POST", &url("https://api.example.com/v1/x?q=1")), Ok(()));
    for (method, address, reason) in [
        ("GET", "https://api.example.com/v1", RefusalReason::Method),
        ("POST", "https://api.example.com/v2", RefusalReason::Path),
        ("POST", "https://example.com/v1", RefusalReason::Origin),
        ("POST", "http://127.0.0.1:8080/v1", RefusalReason::Origin),
        ("POST", "https://u:p@api.example.com/v1", RefusalReason::UserInfo),
        ("POST", "ftp://api.example.com/v1", RefusalReason::NotHttp),
    ] {
        assert_eq!(effective.http(method, &url(address)), Err(reason), "{method} {address}");
    }
    let key = effective.secret("key").expect("granted");
    assert_eq!(key.inject.headers, ["x-key"]);
    assert!(!key.inject.body && effective.secret("other").is_none());

    let dev = Ceiling::with_loopbacks(vec!["127.0.0.1:8080".parse().expect("a pair")]);
    let effective = EffectiveGrants::compute(&manifest, &granted, &dev, &settings, now());
    assert_eq!(effective.http("POST", &url("http://127.0.0.1:8080/v1")), Ok(()));
    // The pair alone is no grant: without the setting the ask does not cover it.
    let effective = EffectiveGrants::compute(&manifest, &granted, &dev, &json!({}), now());
    assert_eq!(effective.http("POST", &url("http://127.0.0.1:8080/v1")), Err(RefusalReason::Origin));
}

/// A manifest of as many asks as there may be, each with these origins.
fn asks_for(origins: impl Fn(usize) -> Vec<String>) -> Manifest {
    let mut manifest = manifest();
    let ask = |at: usize| PermissionAsk {
        reason: "r".to_owned(),
        required: false,
        capability: CapabilityAsk::Http {
            origins: origins(at).iter().map(|text| OriginAsk::Pattern(origin(text))).collect(),
            methods: (0..METHODS_MAX).map(|n| format!("M{n}").parse().expect("a method")).collect(),
            paths: (0..PATHS_MAX).map(|n| format!("/{at}/{n}").parse().expect("a path")).collect(),
        },
    };
    manifest.permissions = (0..PERMISSIONS_MAX).map(ask).collect();
    manifest
}

#[test]
fn the_largest_manifest_can_be_granted_as_it_asks() {
    let manifest = asks_for(|at| (0..ORIGINS_MAX).map(|n| format!("https://h{n}.example.com:{}", at + 1)).collect());
    let all = Grants::everything_asked(&manifest, &json!({}));
    let ceiling = Ceiling {
        http: vec![HttpRule {
            origins: vec![OriginPattern::any_public(Scheme::Https, true)],
            methods: vec![Method::any()],
            paths: vec![PathPrefix::root()],
        }],
        ..Ceiling::default()
    };
    let effective = EffectiveGrants::try_compute(&manifest, &all, &ceiling, &json!({}), now()).expect("in bounds");
    assert_eq!(effective.http_rules().len(), PERMISSIONS_MAX);
    let layers = Layers::of(&manifest, &all, &ceiling, &json!({}), now());
    assert!(layers.asks.iter().all(|view| view.effective == Share::Whole));
}

#[test]
fn many_large_parts_are_more_than_a_grant_may_be() {
    let path = |n: usize| format!("/{n}/{}", "x".repeat(PATH_BYTES_MAX - 8)).parse().expect("a path");
    let large = Grant {
        capability: CapabilityGrant::Http(HttpRule {
            origins: vec![origin("https://example.com")],
            methods: vec![Method::any()],
            paths: (0..PATHS_MAX).map(path).collect(),
        }),
        expires_at: None,
    };
    let fits = GRANTS_BYTES_MAX / serde_json::to_vec(&large).expect("JSON").len();
    assert!(fits < GRANTS_MAX, "the bound is one that can be reached");
    assert_eq!(Grants { permissions: vec![large.clone(); fits] }.check(), Ok(()));
    let error = Grants { permissions: vec![large; fits + 1] }.check().unwrap_err();
    assert!(error.path.is_empty() && error.problem.contains("at most 262144"), "{error}");
}

/// Hosts at any port against any host at some ports: each pair has something else in common.
#[test]
fn wildcards_that_cross_are_too_complex_and_give_nothing() {
    let manifest = asks_for(|at| (0..ORIGINS_MAX).map(|n| format!("https://h{at}x{n}.example.com:*")).collect());
    let crossing = |grant: usize| Grant {
        capability: CapabilityGrant::Http(HttpRule {
            origins: (0..ORIGINS_MAX).map(|n| origin(&format!("https://*:{}", grant * ORIGINS_MAX + n + 1))).collect(),
            methods: vec![Method::any()],
            paths: vec![PathPrefix::root()],
        }),
        expires_at: None,
    };
    let granted = Grants { permissions: (0..GRANTS_MAX).map(crossing).collect() };
    granted.validate(&manifest).expect("each for itself is in order");
    let ceiling = Ceiling::default();
    assert_eq!(
        EffectiveGrants::try_compute(&manifest, &granted, &ceiling, &json!({}), now()),
        Err(TooComplex),
        "it is told before it is saved"
    );
    assert!(EffectiveGrants::compute(&manifest, &granted, &ceiling, &json!({}), now()).is_empty());
}

#[test]
fn nothing_granted_is_nothing_allowed() {
    let manifest = manifest();
    let all = Grants::everything_asked(&manifest, &json!({ "url": "https://hooks.example.net/x" }));
    let none = Grants::default();
    for grants in [
        &none,
        &grants(&json!({ "permissions": [{ "kind": "http", "origins": [], "methods": ["POST"], "paths": ["/"] }] })),
    ] {
        let effective = EffectiveGrants::compute(&manifest, grants, &Ceiling::default(), &json!({}), now());
        assert!(effective.is_empty());
        assert_eq!(effective.http("POST", &url("https://a.example/")), Err(RefusalReason::NoGrant));
    }
    let no_ceiling = Ceiling { http: Vec::new(), loopbacks: Vec::new(), secrets: None };
    assert!(EffectiveGrants::compute(&manifest, &all, &no_ceiling, &json!({}), now()).is_empty());
    let effective = EffectiveGrants::compute(&manifest, &all, &Ceiling::default(), &json!({}), now());
    assert_eq!(effective.http("PUT", &url("https://anything.example/")), Ok(()));
    assert!(effective.secret("key").expect("granted").inject.body);
}

#[test]
fn a_setting_is_an_exact_origin_or_none() {
    let asks = [OriginAsk::FromSetting { from_setting: "url".to_owned() }];
    let resolve = |value: &str| resolve_origins(&asks, &json!({ "url": value }));
    assert_eq!(resolve("https://a.example:8443/x?y"), [origin("https://a.example:8443")]);
    for none in ["", "https://*/", "https://*.example.com/", "https://u@a.example/", "file:///etc/passwd", "a.example"]
    {
        assert!(resolve(none).is_empty(), "{none}");
    }
}

#[test]
fn grants_that_nothing_asks_for_are_named() {
    let manifest = manifest();
    let secret = grants(&json!({ "permissions": [{ "kind": "secret", "name": "other" }] }));
    let error = secret.validate(&manifest).expect_err("nothing asks for it");
    assert_eq!(error.to_string(), "/permissions/0/name: acme/hook asks for no secret named other");
    for (text, words) in [
        (r#"{"permissions":[{"kind":"secret","name":"key","inject":{"origins":["https://*"]}}]}"#, "never to any"),
        (r#"{"permissions":[{"kind":"secret","name":"key"},{"kind":"secret","name":"key"}]}"#, "twice"),
        (
            r#"{"permissions":[{"kind":"http","origins":[{"from_setting":"url"}],"methods":["GET"],"paths":["/"]}]}"#,
            "/permissions/0/origins/0",
        ),
        (r#"{"permissions":[{"kind":"http","origins":["https://a.b"],"methods":["GET"]}]}"#, "missing field `paths`"),
        (r#"{"permissions":[],"more":1}"#, "unknown field"),
        (r#"{"permissions":[]} x"#, "trailing"),
        (r#"{"permissions":[{"kind":"http","reason":"r","origins":[],"methods":[],"paths":[]}]}"#, "unknown field"),
    ] {
        let error = Grants::parse(text.as_bytes()).expect_err(text).to_string();
        assert!(error.contains(words), "{error} does not say {words}");
    }
}

#[test]
fn consent_reads_like_a_sentence() {
    let manifest = manifest();
    let layers = Layers::of(&manifest, &Grants::default(), &Ceiling::default(), &json!({}), now());
    assert_eq!(
        layers.asks[0].consent,
        Consent {
            sentence: "Send POST and PUT requests to the address in the setting url and any public host.".to_owned(),
            risk: Risk::High
        }
    );
    assert_eq!(
        layers.asks[1].consent,
        Consent {
            sentence:
                "Have the secret key sent to https://api.example.com, in the headers authorization and x-key and in \
                       the body of requests, without seeing it."
                    .to_owned(),
            risk: Risk::High
        }
    );
    assert_eq!(layers.asks[0].effective, Share::None);
    let all = Grants::everything_asked(&manifest, &json!({}));
    let layers = Layers::of(&manifest, &all, &Ceiling::default(), &json!({}), now());
    assert_eq!((layers.asks[0].effective, layers.asks[1].effective), (Share::Whole, Share::Whole));
    let shown = serde_json::to_value(&layers).expect("it serializes");
    assert_eq!(shown["asks"][0]["kind"], "http");
    assert_eq!(shown["asks"][0]["risk"], "high");
    let reads = CapabilityGrant::Http(HttpRule {
        origins: vec![origin("https://a.example")],
        methods: vec!["GET".parse().expect("a method")],
        paths: vec!["/v1".parse().expect("a path")],
    });
    let consent = Consent::of_grant(&reads);
    assert_eq!(
        (consent.sentence.as_str(), consent.risk),
        ("Send GET requests to https://a.example, only under /v1.", Risk::Low)
    );
}

#[test]
fn loopback_pairs_are_one_host_and_port() {
    for (text, want) in [
        ("127.0.0.1:8080", "127.0.0.1:8080"),
        ("localhost:80", "localhost:80"),
        ("[::1]:9", "[::1]:9"),
        ("0x7f.1:1", "127.0.0.1:1"),
    ] {
        assert_eq!(text.parse::<Loopback>().expect("a pair").to_string(), want);
    }
    for text in ["127.0.0.1", "localhost:0", "*:80", "a@b:80", "a/b:80", "http://a:80", ":80", "a:80/", "a:b"] {
        assert!(text.parse::<Loopback>().is_err(), "{text}");
    }
}

const ORIGINS: [&str; 12] = [
    "https://*",
    "https://*:*",
    "http://*",
    "https://*.example.com",
    "https://*.a.example.com",
    "https://example.com",
    "https://a.example.com",
    "https://b.a.example.com:8443",
    "http://a.example.com",
    "https://*.example.com:*",
    "http://127.0.0.1:8080",
    "https://8.8.8.8",
];
const METHODS: [&str; 4] = ["GET", "POST", "PUT", "*"];
const PATHS: [&str; 6] = ["/", "/a", "/a/", "/a/b", "/ab", "/a%20b"];
const URLS: [&str; 12] = [
    "https://example.com/a",
    "https://a.example.com/a/b",
    "https://b.a.example.com:8443/a/b/c",
    "http://a.example.com/",
    "https://c.example.com/ab",
    "http://127.0.0.1:8080/a",
    "https://8.8.8.8/a",
    "https://localhost/a",
    "https://x.org:99/a%20b",
    "https://a.example.com/a/..%2fb",
    "https://b.a.example.com/a/",
    "https://127.0.0.1/",
];

fn some<T: std::str::FromStr + Clone + std::fmt::Debug + 'static>(
    texts: &'static [&'static str],
) -> impl Strategy<Value = Vec<T>>
where
    T::Err: std::fmt::Debug,
{
    let all: Vec<T> = texts.iter().map(|text| text.parse().expect("a sample is right")).collect();
    subsequence(all, 0..=texts.len().min(4))
}

fn rule() -> impl Strategy<Value = HttpRule> {
    (some(&ORIGINS), some(&METHODS), some(&PATHS)).prop_map(|(origins, methods, paths)| HttpRule {
        origins,
        methods,
        paths,
    })
}

fn check_scope<T: Scope + Clone + std::fmt::Debug>(left: &[T], right: &[T]) {
    let meet = |left: &[T], right: &[T]| meet_lists(left, right, &mut Budget::default()).expect("short lists");
    let both = meet(left, right);
    assert_eq!(both, meet(right, left));
    assert_eq!(lists_meet(left, right), !both.is_empty());
    for item in &both {
        assert!(left.iter().any(|l| l.covers(item)) && right.iter().any(|r| r.covers(item)), "{item:?} is wider");
    }
}

proptest! {
    #[test]
    fn meets_commute_and_never_widen(left in rule(), right in rule()) {
        check_scope(&left.origins, &right.origins);
        check_scope(&left.methods, &right.methods);
        check_scope(&left.paths, &right.paths);
        let meet = |left: &HttpRule, right| left.meet(right, &mut Budget::default()).expect("small rules");
        prop_assert_eq!(meet(&left, &right), meet(&right, &left));
        if let Some(both) = meet(&left, &right) {
            prop_assert!(left.covers(&both) && right.covers(&both));
        }
    }

    /// The meet is exact: it lets out what both let out, no less and no more.
    #[test]
    fn a_meet_lets_out_what_both_let_out(left in rule(), right in rule(), at in select(&URLS[..]), method in select(vec!["GET", "POST", "DELETE"])) {
        let at = url(at);
        let both = left.meet(&right, &mut Budget::default()).expect("small rules");
        let both = both.is_some_and(|both| both.matches(method, &at));
        prop_assert_eq!(both, left.matches(method, &at) && right.matches(method, &at));
    }

    #[test]
    fn allowed_by_effective_is_allowed_by_each_layer(
        asks in vec(rule(), 0..4), grants in vec(rule(), 0..4), ceiling in vec(rule(), 0..3),
        at in select(&URLS[..]), method in select(vec!["GET", "POST", "DELETE"]),
    ) {
        let mut manifest = manifest();
        let ask = |rule: &HttpRule| PermissionAsk {
            reason: "r".to_owned(),
            required: false,
            capability: CapabilityAsk::Http {
                origins: rule.origins.iter().cloned().map(OriginAsk::Pattern).collect(),
                methods: rule.methods.clone(),
                paths: rule.paths.clone(),
            },
        };
        manifest.permissions = asks.iter().map(ask).collect();
        let granted = Grants {
            permissions: grants.iter().map(|rule| Grant { capability: CapabilityGrant::Http(rule.clone()), expires_at: None }).collect(),
        };
        let top = Ceiling { http: ceiling.clone(), ..Ceiling::default() };
        let effective = EffectiveGrants::compute(&manifest, &granted, &top, &json!({}), now());
        let at = url(at);
        let each = [&asks, &grants, &ceiling].iter().all(|layer| layer.iter().any(|rule| rule.matches(method, &at)));
        prop_assert_eq!(effective.http(method, &at).is_ok(), each);
    }

    #[test]
    fn secrets_meet_in_common_places(left in vec(select(vec!["a", "b", "c"]), 0..3), right in vec(select(vec!["a", "b", "c"]), 0..3), l in some(&ORIGINS[3..]), r in some(&ORIGINS[3..]), body in any::<(bool, bool)>()) {
        let inject = |headers: &[&str], origins: Vec<OriginPattern>, body| Inject {
            origins, headers: headers.iter().map(|&h| h.to_owned()).collect(), path: None, body,
        };
        let (left, right) = (inject(&left, l, body.0), inject(&right, r, body.1));
        let meet = |left: &Inject<_>, right| left.meet(right, &mut Budget::default()).expect("short lists");
        let both = meet(&left, &right);
        prop_assert_eq!(&both, &meet(&right, &left));
        prop_assert!(both.headers.iter().all(|h| left.headers.contains(h) && right.headers.contains(h)));
        prop_assert_eq!(both.body, left.body && right.body);
    }

    #[test]
    fn any_text_parses_to_its_own_spelling(text in "(https?://)?[a-z0-9.*:\\[\\]@/%-]{0,20}") {
        if let Ok(pattern) = text.parse::<OriginPattern>() {
            prop_assert_eq!(pattern.to_string().parse::<OriginPattern>(), Ok(pattern));
        }
        if let Ok(prefix) = text.parse::<PathPrefix>() {
            prop_assert_eq!(prefix.to_string().parse::<PathPrefix>(), Ok(prefix));
        }
    }
}

/// The specification gives a check half a microsecond among 64 grants. The bound here is for a debug build on a busy
/// machine; `cargo test --release` prints the real figure.
#[test]
fn a_check_is_cheap_among_64_grants() {
    let rules = (0..64).map(|n| HttpRule {
        origins: vec![origin(&format!("https://host{n:02}.example.com"))],
        methods: vec!["GET".parse().expect("a method"), "POST".parse().expect("a method")],
        paths: vec![format!("/v{n}").parse().expect("a path")],
    });
    let effective = EffectiveGrants::of_rules(rules.collect(), Vec::new());
    let last = url("https://host63.example.com/v63/messages");
    let rounds = 20_000_u32;
    let begun = std::time::Instant::now();
    for _ in 0..rounds {
        assert_eq!(effective.http("POST", std::hint::black_box(&last)), Ok(()));
    }
    let each = begun.elapsed() / rounds;
    println!("a check among 64 grants takes {each:?}");
    assert!(each < std::time::Duration::from_micros(100), "{each:?}");
}
