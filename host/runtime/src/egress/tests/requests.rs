//! What a plugin may and may not put into a request, and how many it may send.

use super::*;

const URL: &str = "http://api.example.com/x";

#[tokio::test]
async fn the_platform_owns_the_head_of_the_message() {
    let server = Server::start(Reply::ok("")).await;
    let bench = Bench::before(&server);
    let own = [
        ("x-own", "1"),
        ("x-own", "2"),
        ("host", "API.example.com:80"),
        ("content-length", "3"),
        ("connection", "keep-alive"),
        ("accept-encoding", "gzip"),
    ];
    bench.send(request(Method::POST, "http://api.example.com/a%20b?q=1", &own, "abc")).await.0.expect("an answer");
    let sent = server.requests().remove(0);
    let (head, body) = sent.split_once("\r\n\r\n").expect("a request");
    let mut lines: Vec<&str> = head.split("\r\n").collect();
    assert_eq!(lines.remove(0), "POST /a%20b?q=1 HTTP/1.1");
    lines.sort_unstable();
    let agent = format!("user-agent: bulkhead/{}", env!("CARGO_PKG_VERSION"));
    assert_eq!(
        lines,
        [
            "accept-encoding: identity",
            "connection: close",
            "content-length: 3",
            "host: api.example.com",
            &agent,
            "x-own: 1",
            "x-own: 2"
        ]
    );
    assert_eq!(body, "abc");
}

#[tokio::test]
async fn headers_that_would_smuggle_are_refused() {
    let server = Server::start(Reply::ok("")).await;
    let mut bench = Bench::before(&server);
    bench.context.grants = grants(&[rule(&["http://api.example.com"], &["POST"], &["/"])], &[]);
    let long = "x".repeat(9 * 1024);
    let cases: Vec<(Vec<(&str, &str)>, &str)> = vec![
        (vec![("host", "evil.example")], "header"),
        (vec![("host", "api.example.com"), ("host", "api.example.com")], "header"),
        (vec![("content-length", "0")], "header"),
        (vec![("content-length", "3"), ("content-length", "3")], "header"),
        (vec![("content-length", "03")], "header"),
        (vec![("content_length", "3")], "header"),
        (vec![("transfer-encoding", "chunked")], "header"),
        (vec![("transfer_encoding", "chunked")], "header"),
        (vec![("transfer-encoding", "identity")], "header"),
        (vec![("connection", "x-own")], "header"),
        (vec![("connection", "close, x-forwarded-for")], "header"),
        (vec![("upgrade", "websocket")], "header"),
        (vec![("te", "trailers")], "header"),
        (vec![("trailer", "x")], "header"),
        (vec![("expect", "100-continue")], "header"),
        (vec![("keep-alive", "timeout=5")], "header"),
        (vec![("proxy-authorization", "Basic eDp5")], "header"),
        (vec![("proxy-connection", "close")], "header"),
        (vec![("http2-settings", "AAA")], "header"),
        (vec![("x-original-url", "/admin")], "header"),
        (vec![("x-rewrite-url", "/admin")], "header"),
        (vec![("x-http-method-override", "DELETE")], "refused:method"),
        (vec![("x_http_method_override", "DELETE")], "refused:method"),
        (vec![("x-long", &long)], "header"),
        ((0..70).map(|_| ("x-many", "1")).collect(), "header"),
        ((0..10).map(|_| ("x-large", &long[..4096])).collect(), "header"),
    ];
    for (headers, want) in cases {
        let result = bench.send(request(Method::POST, URL, &headers, "abc")).await;
        assert_eq!(failed(&result), want, "{:?}", &headers[0]);
    }
    assert!(HeaderValue::from_str("a\r\nhost: evil").is_err(), "line breaks never become a header value");
    assert!(server.requests().is_empty());
    let fine = request(Method::POST, URL, &[("x-http-method-override", "POST")], "abc");
    bench.send(fine).await.0.expect("the same method changes nothing");
}

#[tokio::test]
async fn large_requests_are_refused() {
    let server = Server::start(Reply::ok("")).await;
    let bench = Bench::with(Some(server.address), |config| config.request_body_bytes_max = 4);
    assert_eq!(failed(&bench.send(request(Method::POST, URL, &[], "12345")).await), "request_too_large");
    assert_eq!(failed(&bench.get(&format!("{URL}?{}", "q".repeat(URL_BYTES_MAX))).await), "bad_url");
    bench.send(request(Method::POST, URL, &[], "1234")).await.0.expect("it fits");
}

#[tokio::test]
async fn an_installation_has_its_share_and_no_more() {
    let silent = Server::start(Reply::Silence { head: Vec::new() }).await;
    let quotas =
        Quotas { connections_max: 2, connections_org_max: 3, requests_per_minute: 1_000, connections_total_max: 4 };
    let bench = Arc::new(Bench::with(Some(silent.address), |config| {
        config.quotas = quotas;
        config.first_byte_ms = 1_500;
    }));
    let held: Vec<_> = (0..2)
        .map(|_| {
            let bench = Arc::clone(&bench);
            Handle::current().spawn(async move { failed(&bench.get(URL).await) })
        })
        .collect();
    while silent.requests().len() < 2 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(failed(&bench.get(URL).await), "too_many_connections");
    // Another installation is not held up until the organization has its share, and another organization not until the whole
    // platform is full.
    let mut sibling = bench.context.clone();
    sibling.installation = "inst_2".to_owned();
    let mut stranger = bench.context.clone();
    (stranger.org, stranger.installation) = ("org_2".to_owned(), "inst_3".to_owned());
    let mut held = held;
    for (at, (context, then)) in [(sibling, "org_busy"), (stranger, "busy")].into_iter().enumerate() {
        let (sender, sent) = (Arc::clone(&bench), context.clone());
        held.push(
            Handle::current()
                .spawn(async move { failed(&sender.guard.send(&sent, request(Method::GET, URL, &[], "")).await) }),
        );
        while silent.requests().len() < 3 + at {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(failed(&bench.guard.send(&context, request(Method::GET, URL, &[], "")).await), then);
    }
    for task in held {
        assert_eq!(task.await.unwrap(), "first_byte_timeout");
    }
    // Every place is free again.
    assert_eq!(failed(&bench.get(URL).await), "first_byte_timeout");
}

#[tokio::test]
async fn a_burst_is_followed_by_a_pause() {
    let server = Server::start(Reply::ok("")).await;
    let quotas = Quotas { requests_per_minute: 3, ..Quotas::default() };
    let bench = Bench::with(Some(server.address), |config| config.quotas = quotas);
    for _ in 0..3 {
        bench.get(URL).await.0.expect("within the burst");
    }
    let (result, _) = bench.get(URL).await;
    let Err(EgressError::RateLimited { retry_after_ms }) = result else { panic!("the burst is used up") };
    assert!((1..=20_001).contains(&retry_after_ms), "{retry_after_ms} ms");
    // Refused requests cost nothing of the share.
    assert_eq!(failed(&bench.get("http://127.0.0.1/").await), "refused:origin");
}
