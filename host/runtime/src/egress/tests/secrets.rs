//! Placeholders become values in the named places, and stop the request everywhere else.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

use super::*;

const ORIGIN: &str = "http://api.example.com";
const VALUE: &str = "xoxb-7\"secret&val";

/// A bench whose call holds `token`, with its placeholder.
fn holding(server: &Server, value: &str, rules: &[SecretRule]) -> (Bench, String) {
    let mut bench = Bench::before(server);
    bench.context.grants = grants(&[all_http()], rules);
    let placeholder = bench.context.secrets.hold(&"token".parse().unwrap(), Zeroizing::new(value.to_owned()));
    (bench, placeholder)
}

fn everywhere() -> SecretRule {
    secret("token", &[ORIGIN], &["authorization", "x-key"], Some("/bot{secret}/send"), true)
}

#[tokio::test]
async fn a_value_takes_its_placeholders_place() {
    let basic = format!("Basic {}", STANDARD.encode(format!("user:{VALUE}")));
    let server = Server::start(Reply::ok("")).await;
    let (bench, p) = holding(&server, VALUE, &[everywhere()]);
    let json = [("content-type", "application/json; charset=utf-8")];
    let cases: Vec<(EgressRequest, String)> = vec![
        (
            request(Method::POST, "http://api.example.com/", &[("authorization", &format!("Bearer {p}"))], ""),
            format!("authorization: Bearer {VALUE}\r\n"),
        ),
        (
            request(
                Method::POST,
                "http://api.example.com/",
                &[("authorization", &format!("basic {}", STANDARD.encode(format!("user:{p}"))))],
                "",
            ),
            format!("authorization: {basic}\r\n"),
        ),
        (request(Method::POST, "http://api.example.com/", &[("X-Key", &p)], ""), format!("x-key: {VALUE}\r\n")),
        (
            request(Method::POST, "http://api.example.com/", &json, &format!("{{\"k\":\"{p}\",\"l\":\"{p}\"}}")),
            r#"{"k":"xoxb-7\"secret&val","l":"xoxb-7\"secret&val"}"#.to_owned(),
        ),
        (
            request(
                Method::POST,
                "http://api.example.com/",
                &[("content-type", "application/x-www-form-urlencoded")],
                &format!("a=1&k={p}&b=2"),
            ),
            "\r\n\r\na=1&k=xoxb-7%22secret%26val&b=2".to_owned(),
        ),
        (
            request(Method::POST, "http://api.example.com/", &[("content-type", "text/plain")], &format!("-{p}-")),
            format!("\r\n\r\n-{VALUE}-"),
        ),
        (
            request(Method::POST, &format!("http://api.example.com/bot{p}/send?x=1"), &[], ""),
            "POST /botxoxb-7%22secret&val/send?x=1 HTTP/1.1\r\n".to_owned(),
        ),
        (
            request(Method::POST, &format!("http://api.example.com/bot{p}/send/more"), &[], ""),
            "POST /botxoxb-7%22secret&val/send/more HTTP/1.1\r\n".to_owned(),
        ),
    ];
    for (at, (request, want)) in cases.into_iter().enumerate() {
        let (result, record) = bench.send(request).await;
        result.unwrap_or_else(|error| panic!("case {at}: {error}"));
        let sent = server.requests().pop().expect("a request");
        assert!(sent.contains(&want), "case {at}: {sent}");
        assert!(!sent.contains(&p), "case {at}: {sent}");
        let shown = format!("{record:?}");
        assert!(!shown.contains("xoxb"), "case {at}: {shown}");
    }
}

#[tokio::test]
async fn slack_hooks_carry_several_segments() {
    let server = Server::start(Reply::ok("")).await;
    let rule = secret("token", &[ORIGIN], &[], Some("/services/{secret}"), false);
    let (mut bench, p) = holding(&server, "T000/B000/abcdefgh", std::slice::from_ref(&rule));
    bench.context.grants = grants(&[super::rule(&[ORIGIN], &["POST"], &["/services"])], &[rule]);
    bench.send(request(Method::POST, &format!("http://api.example.com/services/{p}"), &[], "")).await.0.expect("sent");
    assert!(server.requests()[0].starts_with("POST /services/T000/B000/abcdefgh HTTP/1.1\r\n"));
}

#[tokio::test]
async fn anywhere_else_is_a_leak() {
    let server = Server::start(Reply::ok("")).await;
    let (bench, p) = holding(&server, VALUE, &[everywhere()]);
    let json = [("content-type", "application/json")];
    let post = |url: &str, headers: &[(&str, &str)], body: &str| request(Method::POST, url, headers, body);
    let root = "http://api.example.com/";
    let escaped = percent_escaped(&p);
    let upper = p.to_ascii_uppercase();
    let basic = format!("Basic {}", STANDARD.encode(format!("user:{p}")));
    let cases = vec![
        ("query", post(&format!("{root}?k={p}"), &[], "")),
        ("query", post(&format!("{root}?k={escaped}"), &[], "")),
        ("query", post(&format!("{root}?k={VALUE}"), &[], "")),
        ("path", post(&format!("{root}{p}"), &[], "")),
        ("path", post(&format!("{root}{escaped}"), &[], "")),
        ("path", post(&format!("{root}bot{p}x/send"), &[], "")),
        ("path", post(&format!("{root}bot{p}/send/{p}"), &[], "")),
        ("path", post(&format!("{root}bot{p}/sendx"), &[], "")),
        ("host name", post(&format!("http://{p}.example.com/"), &[], "")),
        ("host name", post(&format!("http://{upper}.example.com/"), &[], "")),
        ("header", post(root, &[("x-other", &p)], "")),
        ("header", post(root, &[("cookie", &format!("a={p}"))], "")),
        ("header", post(root, &[("x-key", VALUE)], "")),
        ("name of a header", post(root, &[(&format!("x-{p}"), "1")], "")),
        ("body", post(root, &[], &p)),
        ("body", post(root, &[("content-type", "application/octet-stream")], &p)),
        ("body", post(root, &[("content-type", "multipart/form-data; boundary=x")], &p)),
        ("body", post(root, &[json[0], ("content-encoding", "gzip")], &p)),
        ("body", post(root, &json, &format!("\"{}\"", VALUE.replace('"', "\\\"")))),
        ("header", post("http://other.example.com/", &[("authorization", &p)], "")),
        ("header", post("http://other.example.com/", &[("authorization", &basic)], "")),
        ("header", post("https://api.example.com/", &[("authorization", &p)], "")),
        ("header", post("http://api.example.com:8080/", &[("authorization", &p)], "")),
        ("path", post(&format!("http://other.example.com/bot{p}/send"), &[], "")),
        ("body", post("http://other.example.com/", &json, &p)),
    ];
    for (at, (place, request)) in cases.into_iter().enumerate() {
        let url = request.url.clone();
        let result = bench.send(request).await;
        assert_eq!(failed(&result), format!("secret_leak:{place}"), "case {at}: {url}");
        assert!(result.0.expect_err("refused").is_refusal());
        let shown = format!("{:?}", result.1);
        assert!(!shown.contains("xoxb"), "case {at}: {shown}");
    }
    assert!(server.requests().is_empty());
    // A rule that names fewer places allows fewer; none at all allows none.
    for rules in [
        vec![],
        vec![secret("token", &[ORIGIN], &[], None, false)],
        vec![secret("other", &[ORIGIN], &["authorization"], None, true)],
    ] {
        let (bench, p) = holding(&server, VALUE, &rules);
        for (place, request) in [
            ("header", post(root, &[("authorization", &p)], "")),
            ("body", post(root, &json, &p)),
            ("path", post(&format!("{root}bot{p}/send"), &[], "")),
        ] {
            assert_eq!(failed(&bench.send(request).await), format!("secret_leak:{place}"), "{rules:?}");
        }
    }
}

#[tokio::test]
async fn values_cannot_break_out_of_their_place() {
    let server = Server::start(Reply::ok("")).await;
    for (value, place) in [
        ("line\r\nhost: evil", "header"),
        ("nul\0nul", "header"),
        ("../admin", "path"),
        ("a/../../b", "path"),
        ("a//b", "path"),
        ("..%2fadmin", "path"),
        ("50%2f", "sent"),
        ("a?b#c", "sent"),
    ] {
        let (bench, p) = holding(&server, value, &[everywhere()]);
        let sent = if place == "header" {
            request(Method::GET, "http://api.example.com/", &[("x-key", &p)], "")
        } else {
            request(Method::GET, &format!("http://api.example.com/bot{p}/send"), &[], "")
        };
        let result = bench.send(sent).await;
        if place == "sent" {
            result.0.unwrap_or_else(|error| panic!("{value}: {error}"));
        } else {
            assert_eq!(failed(&result), format!("secret_unusable:{place}"), "{value:?}");
        }
    }
    let lines: Vec<String> = server.requests().iter().map(|sent| sent.lines().next().unwrap().to_owned()).collect();
    assert_eq!(lines, ["GET /bot50%252f/send HTTP/1.1", "GET /bota%3Fb%23c/send HTTP/1.1"]);
}

#[tokio::test]
async fn a_path_with_its_secret_is_granted_like_any_other() {
    let server = Server::start(Reply::ok("")).await;
    let rule = secret("token", &[ORIGIN], &[], Some("/{secret}"), false);
    let (mut bench, p) = holding(&server, "admin/keys", std::slice::from_ref(&rule));
    bench.context.grants = grants(&[super::rule(&[ORIGIN], &["GET"], &[&format!("/{p}")])], &[rule]);
    assert_eq!(failed(&bench.get(&format!("http://api.example.com/{p}")).await), "refused:path");
}

#[tokio::test]
async fn an_echo_teaches_the_guest_nothing() {
    let escaped = VALUE.replace('"', "\\\"");
    let body = format!("{{\"you\":\"{escaped}\",\"raw\":{VALUE}}}");
    let server = Server::start(Reply::text(&format!(
        "HTTP/1.1 200 OK\r\nx-echo: Bearer {VALUE}\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )))
    .await;
    let (bench, p) = holding(&server, VALUE, &[everywhere()]);
    let sent = request(Method::GET, "http://api.example.com/", &[("authorization", &p)], "");
    let response = bench.send(sent).await.0.expect("an answer");
    assert_eq!(response.headers()["x-echo"].to_str().unwrap(), format!("Bearer {p}"));
    assert_eq!(response.body(), &format!("{{\"you\":\"{p}\",\"raw\":{p}}}"));
    assert_eq!(response.headers()["content-length"].to_str().unwrap(), response.body().len().to_string());
}

/// Servers that repeat a secret in the forms in which it is searched for elsewhere.
#[tokio::test]
async fn an_echo_in_another_dress_teaches_nothing_either() {
    let json = |text: &str| serde_json::Value::from(text).to_string();
    let within_json = json(&format!("token={VALUE}"));
    let twice = json(&within_json);
    let base64 = STANDARD.encode(format!("user:{VALUE}"));
    for body in [
        within_json.replace("xo", "\\u0078o"),
        twice,
        hex::encode(VALUE),
        hex::encode_upper(VALUE),
        percent_escaped(VALUE),
        format!("a={}&b=1", url::form_urlencoded::byte_serialize(VALUE.as_bytes()).collect::<String>()),
        format!("{{\"authorization\":\"Basic {base64}\"}}"),
        base64.replace('/', "\\/"),
        base64.replace('+', "-").replace('/', "_"),
    ] {
        let server = Server::start(Reply::text(&format!(
            "HTTP/1.1 200 OK\r\nx-echo: {body}\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        )))
        .await;
        let (bench, p) = holding(&server, VALUE, &[everywhere()]);
        let sent = request(Method::GET, "http://api.example.com/", &[("authorization", &p)], "");
        let response = bench.send(sent).await.0.expect("an answer");
        for shown in [response.headers()["x-echo"].as_bytes(), response.body()] {
            let shown = std::str::from_utf8(shown).expect("text");
            assert!(shown.contains(&p), "{body} became {shown}");
            assert!(!bench.context.secrets.scan(&shown.replace(&p, " ")), "{body} became {shown}");
        }
    }
}

/// A short placeholder may stand for a long value, thousands of times.
#[tokio::test]
async fn a_request_does_not_swell_with_its_secrets() {
    let server = Server::start(Reply::ok("")).await;
    let long = "v".repeat(16 * 1024);
    let (bench, p) = holding(&server, &long, &[everywhere()]);
    let text = [("content-type", "text/plain")];
    let root = "http://api.example.com/";
    let fits = request(Method::POST, root, &text, &p.repeat(255));
    assert_eq!(failed(&bench.send(fits).await), "answered 200 OK");
    assert_eq!(failed(&bench.send(request(Method::POST, root, &text, &p.repeat(257))).await), "request_too_large");
    let headers = request(Method::POST, root, &[("x-key", &p.repeat(3))], "");
    assert_eq!(failed(&bench.send(headers).await), "secret_unusable:header");
}

/// Text and secrets that are as bad as can be for a search that begins anew at each byte: that would take hours.
#[tokio::test]
async fn a_search_takes_time_for_its_length_alone() {
    let body = "a".repeat(4 * 1024 * 1024 - 1);
    let server = Server::start(Reply::ok(&body)).await;
    let mut bench = Bench::before(&server);
    bench.context.response_bytes_max = 4 * 1024 * 1024;
    for n in 0..4 {
        let value = format!("{}{n}{}", "a".repeat(8 * 1024), "a".repeat(8 * 1024 - 1));
        bench.context.secrets.hold(&format!("token{n}").parse().unwrap(), Zeroizing::new(value));
    }
    assert!(bench.context.secrets.searched_for() * body.len() > SEARCH_BYTES_INLINE_MAX);
    let response = bench.send(request(Method::POST, "http://api.example.com/", &[], &body)).await.0.expect("an answer");
    assert_eq!(response.body().len(), body.len());
}
