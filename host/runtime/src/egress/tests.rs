//! The guard against servers, name servers and plugins that mean harm. Nothing here leaves the machine: names come from a table,
//! and every address that is dialled leads to a server of the test.

mod answers;
mod corpus;
mod requests;
mod secrets;
mod vault;

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bulkhead_model::ambient::Ambient;
use bulkhead_model::call::EgressRecord;
use bulkhead_model::grant::{EffectiveGrants, HttpRule, SecretRule};
use bulkhead_model::manifest::Inject;
use bulkhead_model::time::Timestamp;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;

use super::*;

/// What a server does with one connection, after it has read a whole request.
#[derive(Clone)]
enum Reply {
    /// Each part after its pause in milliseconds; then the connection is closed.
    Parts(Vec<(u64, Vec<u8>)>),
    /// Sends these bytes again and again until the other side is gone.
    Flood { head: Vec<u8>, chunk: Vec<u8> },
    /// Says nothing more and keeps the connection.
    Silence { head: Vec<u8> },
}

impl Reply {
    fn text(text: &str) -> Self {
        Self::Parts(vec![(0, text.as_bytes().to_vec())])
    }

    fn ok(body: &str) -> Self {
        Self::text(&format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len()))
    }
}

/// A server that answers every connection alike and keeps what it was sent.
struct Server {
    address: SocketAddr,
    requests: Arc<Mutex<Vec<String>>>,
    /// Connections that the other side has closed.
    closed: Arc<Mutex<usize>>,
}

impl Server {
    async fn start(reply: Reply) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let (requests, closed): (Arc<Mutex<Vec<String>>>, Arc<Mutex<usize>>) = Default::default();
        let (kept, gone) = (Arc::clone(&requests), Arc::clone(&closed));
        Handle::current().spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (reply, kept, gone) = (reply.clone(), Arc::clone(&kept), Arc::clone(&gone));
                Handle::current().spawn(async move {
                    serve(stream, reply, &kept).await;
                    *gone.lock().unwrap() += 1;
                });
            }
        });
        Self { address, requests, closed }
    }

    fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }
}

async fn serve<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S, reply: Reply, kept: &Mutex<Vec<String>>) {
    let Some(request) = read_request(&mut stream).await else { return };
    kept.lock().unwrap().push(request);
    match reply {
        Reply::Parts(parts) => {
            for (pause_ms, part) in parts {
                tokio::time::sleep(Duration::from_millis(pause_ms)).await;
                if stream.write_all(&part).await.is_err() {
                    return;
                }
            }
            let _ = stream.shutdown().await;
        }
        Reply::Flood { head, chunk } => {
            let _ = stream.write_all(&head).await;
            while stream.write_all(&chunk).await.is_ok() {}
        }
        Reply::Silence { head } => {
            let _ = stream.write_all(&head).await;
            let _ = stream.read(&mut [0; 64]).await;
        }
    }
}

async fn read_request<S: AsyncRead + Unpin>(stream: &mut S) -> Option<String> {
    let mut bytes = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        let text = String::from_utf8_lossy(&bytes).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head
                .lines()
                .find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length: ").map(str::to_owned));
            let length: usize = length.map_or(0, |length| length.parse().unwrap());
            if body.len() >= length {
                return Some(text);
            }
        }
        match stream.read(&mut chunk).await {
            Ok(read @ 1..) => bytes.extend_from_slice(&chunk[..read]),
            _ => return None,
        }
    }
}

/// Names from a table; each further lookup of a name takes the next answer, the last one again and again.
#[derive(Default)]
struct Table {
    names: HashMap<String, Vec<Vec<IpAddr>>>,
    asked: Mutex<Vec<String>>,
}

impl Table {
    fn with(mut self, name: &str, answers: &[&[&str]]) -> Self {
        let answers = answers.iter().map(|answer| answer.iter().map(|text| text.parse().unwrap()).collect()).collect();
        self.names.insert(name.to_owned(), answers);
        self
    }
}

impl Resolve for Table {
    fn resolve<'a>(&'a self, host: &'a str) -> ResolveFuture<'a> {
        Box::pin(async move {
            let mut asked = self.asked.lock().unwrap();
            let before = asked.iter().filter(|name| *name == host).count();
            asked.push(host.to_owned());
            let answers = self.names.get(host).ok_or_else(|| ResolveError("no such name".into()))?;
            Ok(answers[before.min(answers.len() - 1)].clone())
        })
    }
}

/// Leads every connection to one server, and remembers where it was meant to go.
struct Detour {
    to: Option<SocketAddr>,
    dialled: Mutex<Vec<SocketAddr>>,
}

impl Dial for Detour {
    fn dial(&self, address: SocketAddr) -> DialFuture {
        self.dialled.lock().unwrap().push(address);
        let to = self.to;
        Box::pin(async move {
            match to {
                Some(to) => TcpStream::connect(to).await,
                None => Err(std::io::Error::other("the test has no server")),
            }
        })
    }
}

const PUBLIC: &str = "93.184.215.14";

/// A guard before a server, and everything to look at afterwards.
struct Bench {
    guard: EgressGuard,
    detour: Arc<Detour>,
    table: Arc<Table>,
    context: EgressContext,
}

impl Bench {
    /// `api.example.com` and `other.example.com` lead to the server; everything is granted.
    fn before(server: &Server) -> Self {
        Self::with(Some(server.address), |_| {})
    }

    fn with(to: Option<SocketAddr>, change: impl FnOnce(&mut EgressConfig)) -> Self {
        let table = Table::default().with("api.example.com", &[&[PUBLIC]]).with("other.example.com", &[&[PUBLIC]]);
        Self::with_table(to, table, change)
    }

    fn with_table(to: Option<SocketAddr>, table: Table, change: impl FnOnce(&mut EgressConfig)) -> Self {
        let (table, detour) = (Arc::new(table), Arc::new(Detour { to, dialled: Mutex::default() }));
        let mut config = EgressConfig::new(Arc::clone(&table) as Arc<dyn Resolve>);
        config.dial = Arc::clone(&detour) as Arc<dyn Dial>;
        change(&mut config);
        let ambient = Ambient::manual(Timestamp::from_micros(0), 7);
        let context = EgressContext {
            org: "org_1".to_owned(),
            installation: "inst_1".to_owned(),
            grants: grants(&[all_http()], &[]),
            secrets: SecretVault::new(ambient),
            response_bytes_max: 64 * 1024,
            deadline: Instant::now() + Duration::from_secs(20),
        };
        Self { guard: EgressGuard::new(config).expect("a guard"), detour, table, context }
    }

    async fn send(&self, request: EgressRequest) -> (Result<Response<Bytes>, EgressError>, EgressRecord) {
        self.guard.send(&self.context, request).await
    }

    async fn get(&self, url: &str) -> (Result<Response<Bytes>, EgressError>, EgressRecord) {
        self.send(request(Method::GET, url, &[], "")).await
    }

    fn dialled(&self) -> Vec<String> {
        self.detour.dialled.lock().unwrap().iter().map(ToString::to_string).collect()
    }
}

fn all_http() -> HttpRule {
    rule(&["https://*:*", "http://*:*"], &["*"], &["/"])
}

fn rule(origins: &[&str], methods: &[&str], paths: &[&str]) -> HttpRule {
    HttpRule {
        origins: origins.iter().map(|text| text.parse().unwrap()).collect(),
        methods: methods.iter().map(|text| text.parse().unwrap()).collect(),
        paths: paths.iter().map(|text| text.parse().unwrap()).collect(),
    }
}

fn secret(name: &str, origins: &[&str], headers: &[&str], path: Option<&str>, body: bool) -> SecretRule {
    SecretRule {
        name: name.parse().unwrap(),
        inject: Inject {
            origins: origins.iter().map(|text| text.parse().unwrap()).collect(),
            headers: headers.iter().map(|&header| header.to_owned()).collect(),
            path: path.map(str::to_owned),
            body,
        },
    }
}

fn grants(http: &[HttpRule], secrets: &[SecretRule]) -> Arc<EffectiveGrants> {
    Arc::new(EffectiveGrants::of_rules(http.to_vec(), secrets.to_vec()))
}

fn request(method: Method, url: &str, headers: &[(&str, &str)], body: &str) -> EgressRequest {
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        map.append(name.parse::<HeaderName>().unwrap(), HeaderValue::from_str(value).unwrap());
    }
    EgressRequest {
        method,
        url: url.to_owned(),
        headers: map,
        body: Bytes::copy_from_slice(body.as_bytes()),
        timeouts: Timeouts::default(),
    }
}

/// The error's code, with its detail behind a colon where there is one.
fn code(error: &EgressError) -> String {
    match error {
        EgressError::Refused(reason) => format!("refused:{}", reason.as_str()),
        EgressError::NonPublic(class) => format!("non_public:{class}"),
        EgressError::SecretLeak { place, .. } => format!("secret_leak:{place}"),
        EgressError::SecretUnusable { place, .. } => format!("secret_unusable:{place}"),
        other => other.code().to_owned(),
    }
}

fn failed(result: &(Result<Response<Bytes>, EgressError>, EgressRecord)) -> String {
    match &result.0 {
        Ok(response) => format!("answered {}", response.status()),
        Err(error) => {
            assert!(result.1.error.as_deref().is_some_and(|text| !text.is_empty()), "a failure is recorded");
            code(error)
        }
    }
}

/// Every byte escaped, as `%` and two digits.
fn percent_escaped(text: &str) -> String {
    let escaped: Vec<String> = text.bytes().map(|byte| format!("%{byte:02x}")).collect();
    escaped.concat()
}
