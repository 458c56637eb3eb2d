//! Servers that are slow, huge, broken or elsewhere.

use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::*;

const URL: &str = "http://api.example.com/x";

#[tokio::test]
async fn a_redirect_comes_back_as_it_is() {
    let server = Server::start(Reply::text(
        "HTTP/1.1 302 Found\r\nlocation: http://169.254.169.254/latest/meta-data/\r\ncontent-length: 0\r\n\r\n",
    ))
    .await;
    let bench = Bench::before(&server);
    let (response, record) = bench.get(URL).await;
    let response = response.expect("an answer");
    assert_eq!((response.status().as_u16(), record.status), (302, Some(302)));
    assert_eq!(response.headers()["location"], "http://169.254.169.254/latest/meta-data/");
    assert_eq!(server.requests().len(), 1);
    assert_eq!(bench.dialled().len(), 1);
}

#[tokio::test]
async fn an_answer_is_recorded_without_its_query() {
    let server = Server::start(Reply::ok("twelve bytes")).await;
    let bench = Bench::before(&server);
    let (response, record) =
        bench.send(request(Method::POST, "http://api.example.com/a/b?token=x#y", &[], "12345")).await;
    assert_eq!(response.expect("an answer").body(), "twelve bytes");
    assert_eq!(record.origin, "http://api.example.com:80");
    assert_eq!((record.method.as_str(), record.path.as_str()), ("POST", "/a/b"));
    assert_eq!((record.status, record.request_bytes, record.response_bytes, record.error), (Some(200), 5, 12, None));
}

#[tokio::test]
async fn slow_servers_are_left() {
    let server = Server::start(Reply::Silence { head: Vec::new() }).await;
    let bench = Bench::with(Some(server.address), |config| config.first_byte_ms = 50);
    assert_eq!(failed(&bench.get(URL).await), "first_byte_timeout");

    let head = b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nabc".to_vec();
    let server = Server::start(Reply::Silence { head: head.clone() }).await;
    let bench = Bench::with(Some(server.address), |config| config.total_ms = 100);
    let result = bench.get(URL).await;
    assert_eq!(failed(&result), "deadline");
    assert_eq!((result.1.status, result.1.response_bytes), (Some(200), 3), "what arrived is recorded");

    // The call's own end comes first.
    let mut bench = Bench::before(&server);
    bench.context.deadline = Instant::now() + Duration::from_millis(80);
    let begun = Instant::now();
    assert_eq!(failed(&bench.get(URL).await), "deadline");
    assert!(begun.elapsed() < Duration::from_secs(5));

    // A byte now and then does not keep the request alive.
    let drip = Reply::Parts((0..200).map(|n| (20, if n == 0 { head.clone() } else { b"x".to_vec() })).collect());
    let server = Server::start(drip).await;
    let bench = Bench::with(Some(server.address), |config| config.total_ms = 60);
    assert_eq!(failed(&bench.get(URL).await), "deadline");
}

/// What the plugin asks for counts where it is shorter, and nowhere else.
#[tokio::test]
async fn a_plugin_may_wait_for_less() {
    let short = Some(Duration::from_millis(50));
    let silent = Server::start(Reply::Silence { head: Vec::new() }).await;
    let pausing =
        Server::start(Reply::Silence { head: b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nabc".to_vec() }).await;
    for (server, timeouts, want) in [
        (&silent, Timeouts { first_byte: short, ..Timeouts::default() }, "first_byte_timeout"),
        (&pausing, Timeouts { between_bytes: short, ..Timeouts::default() }, "between_bytes_timeout"),
    ] {
        let mut sent = request(Method::GET, URL, &[], "");
        sent.timeouts = timeouts;
        assert_eq!(failed(&Bench::before(server).send(sent).await), want);
    }
    let bench = Bench::with(None, |config| config.dial = Arc::new(Hole));
    let mut sent = request(Method::GET, URL, &[], "");
    sent.timeouts.connect = short;
    assert_eq!(failed(&bench.send(sent).await), "connect_timeout");
    // A longer wish changes nothing.
    let bench = Bench::with(Some(silent.address), |config| config.first_byte_ms = 50);
    let mut sent = request(Method::GET, URL, &[], "");
    sent.timeouts.first_byte = Some(Duration::from_hours(1));
    assert_eq!(failed(&bench.send(sent).await), "first_byte_timeout");
}

/// Never answers.
struct Hole;

impl Dial for Hole {
    fn dial(&self, _: SocketAddr) -> DialFuture {
        Box::pin(std::future::pending())
    }
}

#[tokio::test]
async fn a_connection_that_never_opens_is_given_up() {
    let table = Table::default().with("api.example.com", &[&["93.184.215.14", "93.184.215.15"]]);
    let bench = Bench::with_table(None, table, |config| {
        config.connect_ms = 60;
        config.dial = Arc::new(Hole);
    });
    assert_eq!(failed(&bench.get(URL).await), "connect_timeout");
}

#[tokio::test]
async fn the_next_address_is_tried_when_one_fails() {
    struct Second(SocketAddr);
    impl Dial for Second {
        fn dial(&self, address: SocketAddr) -> DialFuture {
            let to = self.0;
            Box::pin(async move {
                if address.ip() == PUBLIC.parse::<IpAddr>().unwrap() {
                    return Err(std::io::ErrorKind::ConnectionRefused.into());
                }
                TcpStream::connect(to).await
            })
        }
    }
    let server = Server::start(Reply::ok("second")).await;
    let table = Table::default().with("api.example.com", &[&[PUBLIC, "93.184.215.15"]]);
    let bench = Bench::with_table(None, table, |config| config.dial = Arc::new(Second(server.address)));
    assert_eq!(bench.get(URL).await.0.expect("the second answers").body(), "second");
}

#[tokio::test]
async fn huge_answers_are_cut_off() {
    let announced = Server::start(Reply::Flood {
        head: b"HTTP/1.1 200 OK\r\ncontent-length: 99999999999\r\n\r\n".to_vec(),
        chunk: vec![b'x'; 16 * 1024],
    });
    let endless =
        Server::start(Reply::Flood { head: b"HTTP/1.1 200 OK\r\n\r\n".to_vec(), chunk: vec![b'x'; 16 * 1024] });
    let mut chunk = b"4000\r\n".to_vec();
    chunk.extend(vec![b'x'; 0x4000]);
    chunk.extend(b"\r\n");
    let chunked =
        Server::start(Reply::Flood { head: b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n".to_vec(), chunk });
    for server in [announced.await, endless.await, chunked.await] {
        let bench = Bench::before(&server);
        let result = bench.get(URL).await;
        assert_eq!(failed(&result), "response_too_large");
        assert!(result.1.response_bytes < 64 * 1024 + 64 * 1024, "{} bytes were read", result.1.response_bytes);
    }
    // The bound itself still fits.
    let server = Server::start(Reply::ok(&"x".repeat(64 * 1024))).await;
    assert_eq!(Bench::before(&server).get(URL).await.0.expect("it fits").body().len(), 64 * 1024);
    let server = Server::start(Reply::ok(&"x".repeat(64 * 1024 + 1))).await;
    assert_eq!(failed(&Bench::before(&server).get(URL).await), "response_too_large");
}

#[tokio::test]
async fn answers_that_are_no_answers_are_errors() {
    let many = "x: y\r\n".repeat(200);
    let large = format!("x: {}\r\n", "y".repeat(200 * 1024));
    let cases = [
        ("garbage\r\n\r\n".to_owned(), "protocol"),
        ("<html>HTTP/0.9</html>".to_owned(), "protocol"),
        (String::new(), "broken"),
        ("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nabc".to_owned(), "broken"),
        ("HTTP/1.1 200 OK\r\ncontent-le".to_owned(), "broken"),
        ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nabc".to_owned(), "broken"),
        ("HTTP/1.1 200 OK\r\nbad header\r\n\r\n".to_owned(), "protocol"),
        ("HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab".to_owned(), "protocol"),
        ("HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n".to_owned(), "protocol"),
        ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n".to_owned(), "protocol"),
        (format!("HTTP/1.1 200 OK\r\n{many}\r\n"), "protocol"),
        (format!("HTTP/1.1 200 OK\r\n{large}\r\n"), "protocol"),
        ("HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n".to_owned(), "upgraded"),
        ("HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 3\r\n\r\nabc".to_owned(), "encoded"),
        ("HTTP/1.1 200 OK\r\ncontent-encoding: br\r\n\r\n".to_owned(), "encoded"),
    ];
    for (answer, want) in cases {
        let server = Server::start(Reply::text(&answer)).await;
        let shown: String = answer.chars().take(60).collect();
        assert_eq!(failed(&Bench::before(&server).get(URL).await), want, "{shown:?}");
    }
}

#[tokio::test]
async fn headers_of_the_connection_stay_behind() {
    let server = Server::start(Reply::text(
        "HTTP/1.1 200 OK\r\nconnection: close\r\nkeep-alive: timeout=5\r\nx-kept: yes\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    ))
    .await;
    let response = Bench::before(&server).get(URL).await.0.expect("an answer");
    assert_eq!(response.body(), "abc");
    assert_eq!(response.headers().keys().map(HeaderName::as_str).collect::<Vec<_>>(), ["x-kept"]);
}

#[tokio::test]
async fn a_dropped_request_ends_its_connection() {
    let server = Server::start(Reply::Silence { head: Vec::new() }).await;
    let bench = Bench::before(&server);
    let sent = tokio::time::timeout(Duration::from_millis(100), bench.get(URL)).await;
    assert!(sent.is_err(), "the server is silent");
    for _ in 0..200 {
        if *server.closed.lock().unwrap() == 1 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the connection outlived its request");
}

fn fixture(bytes: &'static [u8]) -> CertificateDer<'static> {
    CertificateDer::from(bytes)
}

/// A TLS server for `api.example.com`, which answers with the name that it was called by.
async fn tls_server() -> SocketAddr {
    let leaf = fixture(include_bytes!("../../../../../tests/runtime/egress/tls/leaf.der"));
    let key =
        PrivateKeyDer::try_from(&include_bytes!("../../../../../tests/runtime/egress/tls/leaf_key.der")[..]).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![leaf], key)
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    Handle::current().spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let Ok(stream) = acceptor.accept(stream).await else { continue };
            let name = stream.get_ref().1.server_name().unwrap_or("none").to_owned();
            serve(stream, Reply::ok(&name), &Mutex::default()).await;
        }
    });
    address
}

#[tokio::test]
async fn tls_names_the_host_of_the_url_and_trusts_no_stranger() {
    let address = tls_server().await;
    let root = fixture(include_bytes!("../../../../../tests/runtime/egress/tls/root.der"));
    let bench = Bench::with(Some(address), |config| config.extra_roots = vec![root]);
    assert_eq!(bench.get("https://api.example.com/").await.0.expect("trusted").body(), "api.example.com");
    assert_eq!(failed(&bench.get("https://other.example.com/").await), "tls", "the certificate is for another name");
    assert_eq!(failed(&bench.get(&format!("https://{PUBLIC}/")).await), "tls");
    let bench = Bench::with(Some(address), |_| {});
    assert_eq!(failed(&bench.get("https://api.example.com/").await), "tls", "the root is not public");
    assert!(
        EgressGuard::new({
            let mut config = EgressConfig::new(Arc::new(Table::default()));
            config.extra_roots = vec![fixture(b"no certificate")];
            config
        })
        .is_err()
    );
}

#[tokio::test]
async fn plain_text_is_no_tls() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    Handle::current().spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
    });
    assert_eq!(failed(&Bench::with(Some(address), |_| {}).get("https://api.example.com/").await), "tls");
}
