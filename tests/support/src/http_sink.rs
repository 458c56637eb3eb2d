//! A local HTTP/1.1 server that records what it is sent and answers by script.
//!
//! Written on sockets rather than on a server library, since half of its use is to behave as no library would: late,
//! slow, cut short, endless or not HTTP at all. It believes clients to be honest about framing and says so when one is
//! not ([`Sink::malformed`]).

mod wire;

use std::collections::{HashMap, VecDeque};
use std::io::{BufReader, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

pub use wire::Request;

/// How the sink answers one request. Unless told otherwise: at once, whole, and keeping the connection open.
#[derive(Debug, Clone)]
pub struct Reply {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    delay: Duration,
    drip: Option<(usize, Duration)>,
    cut_at_bytes: Option<usize>,
    close: bool,
    manner: Manner,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Manner {
    Http,
    Raw,
    Silent,
}

impl Reply {
    /// An answer with this status and no body.
    pub fn status(status: u16) -> Self {
        Self {
            status,
            headers: Vec::new(),
            body: Vec::new(),
            delay: Duration::ZERO,
            drip: None,
            cut_at_bytes: None,
            close: false,
            manner: Manner::Http,
        }
    }

    /// 200 with a JSON text.
    pub fn json(text: &str) -> Self {
        Self::status(200).header("content-type", "application/json").body(text)
    }

    /// A redirect.
    pub fn redirect(status: u16, location: &str) -> Self {
        Self::status(status).header("location", location)
    }

    /// These bytes as they are instead of an HTTP answer; then the connection is closed.
    pub fn raw(bytes: impl Into<Vec<u8>>) -> Self {
        Self { manner: Manner::Raw, close: true, ..Self::status(0).body(bytes) }
    }

    /// No answer at all: the connection stays open until the client leaves or the sink is dropped.
    pub fn silence() -> Self {
        Self { manner: Manner::Silent, ..Self::status(0) }
    }

    /// Adds a header. `content-length` replaces the true one, to lie about it.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// The body.
    #[must_use]
    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }

    /// Waits before the first byte.
    #[must_use]
    pub fn after(mut self, delay: Duration) -> Self {
        self.delay = delay;
        self
    }

    /// Sends everything, head included, in pieces of `bytes` with a pause before each.
    #[must_use]
    pub fn drip(mut self, bytes: usize, pause: Duration) -> Self {
        self.drip = Some((bytes.max(1), pause));
        self
    }

    /// Closes the connection after so many bytes of the body.
    #[must_use]
    pub fn cut_at(mut self, bytes: usize) -> Self {
        self.cut_at_bytes = Some(bytes);
        self.close = true;
        self
    }

    /// Closes the connection after the answer.
    #[must_use]
    pub fn close(mut self) -> Self {
        self.close = true;
        self
    }

    /// What goes over the wire, whole.
    fn bytes(&self, head_only: bool) -> Vec<u8> {
        if self.manner == Manner::Raw {
            return self.body.clone();
        }
        let says_length = |(name, _): &(String, String)| {
            name.eq_ignore_ascii_case("content-length") || name.eq_ignore_ascii_case("transfer-encoding")
        };
        let bodiless = self.status == 204 || self.status == 304;
        let mut lines = vec![format!("HTTP/1.1 {} {}", self.status, wire::reason(self.status))];
        lines.extend(self.headers.iter().map(|(name, value)| format!("{name}: {value}")));
        if !bodiless && !self.headers.iter().any(says_length) {
            lines.push(format!("content-length: {}", self.body.len()));
        }
        if self.close && self.cut_at_bytes.is_none() {
            lines.push("connection: close".to_owned());
        }
        let mut bytes = format!("{}\r\n\r\n", lines.join("\r\n")).into_bytes();
        if !head_only && !bodiless {
            let end = self.cut_at_bytes.map_or(self.body.len(), |cut| cut.min(self.body.len()));
            bytes.extend_from_slice(&self.body[..end]);
        }
        bytes
    }
}

/// The running server. Dropping it closes every connection and ends its threads.
#[derive(Debug)]
pub struct Sink {
    address: SocketAddr,
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    requests: Vec<Request>,
    malformed: Vec<String>,
    script: VecDeque<Reply>,
    /// Scripts of single targets, which go first.
    targets: HashMap<String, VecDeque<Reply>>,
    otherwise: Reply,
    /// Those that are open, by number.
    connections: HashMap<usize, TcpStream>,
    opened: usize,
    stopping: bool,
}

impl Sink {
    /// Starts on a free port of 127.0.0.1 and answers 200 to everything until told otherwise.
    ///
    /// # Panics
    /// When the machine has no loopback port left.
    pub fn start() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a test machine has a free loopback port");
        let address = listener.local_addr().expect("a bound socket has an address");
        let state = State {
            requests: Vec::new(),
            malformed: Vec::new(),
            script: VecDeque::new(),
            targets: HashMap::new(),
            otherwise: Reply::status(200),
            connections: HashMap::new(),
            opened: 0,
            stopping: false,
        };
        let shared = Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new() });
        let for_acceptor = shared.clone();
        let acceptor = std::thread::spawn(move || accept(&listener, &for_acceptor));
        Self { address, shared, acceptor: Some(acceptor) }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The address of a path, which begins with `/`.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// Puts an answer at the end of the script: each request, of whichever connection, takes the next.
    pub fn script(&self, reply: Reply) {
        self.shared.lock().script.push_back(reply);
    }

    /// The same for requests of one target (path and query) alone: tests that run side by side share a sink.
    pub fn script_for(&self, target: &str, reply: Reply) {
        self.shared.lock().targets.entry(target.to_owned()).or_default().push_back(reply);
    }

    /// The answer when the script is at its end.
    pub fn otherwise(&self, reply: Reply) {
        self.shared.lock().otherwise = reply;
    }

    /// The requests so far, in the order in which their last byte came.
    pub fn requests(&self) -> Vec<Request> {
        self.shared.lock().requests.clone()
    }

    /// Those behind the first `seen`: for who looks again and again.
    pub fn requests_since(&self, seen: usize) -> Vec<Request> {
        self.shared.lock().requests.get(seen..).unwrap_or_default().to_vec()
    }

    /// How many connections were opened so far.
    pub fn connections(&self) -> usize {
        self.shared.lock().opened
    }

    /// What was no HTTP request, each in a sentence. A connection that ends between requests is not among them.
    pub fn malformed(&self) -> Vec<String> {
        self.shared.lock().malformed.clone()
    }

    /// Blocks until `count` requests have come or `within` has passed; answers what there is then. Inside an async
    /// runtime use `wait::until_async` with [`Self::requests`].
    pub fn wait_for(&self, count: usize, within: Duration) -> Vec<Request> {
        let state = self.shared.lock();
        let waited = self.shared.changed.wait_timeout_while(state, within, |state| state.requests.len() < count);
        waited.unwrap_or_else(PoisonError::into_inner).0.requests.clone()
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        let connections = {
            let mut state = self.shared.lock();
            state.stopping = true;
            std::mem::take(&mut state.connections)
        };
        self.shared.changed.notify_all();
        for connection in connections.into_values() {
            // The client may have closed it before; then there is nothing to do.
            let _ = connection.shutdown(Shutdown::Both);
        }
        // The acceptor looks at `stopping` when it wakes. Should this fail, it would wake for no one and is left behind.
        if TcpStream::connect_timeout(&self.address, Duration::from_secs(5)).is_ok()
            && let Some(acceptor) = self.acceptor.take()
        {
            // It has no result to lose.
            let _ = acceptor.join();
        }
    }
}

impl Shared {
    /// A test that panics while it holds the lock leaves lists that are still whole.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sleeps unless the sink stops first; answers whether it still runs.
    fn pause(&self, duration: Duration) -> bool {
        let deadline = Instant::now() + duration;
        let mut state = self.lock();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if state.stopping || left.is_zero() {
                return !state.stopping;
            }
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    while let Ok((stream, _)) = listener.accept() {
        let number = {
            let mut state = shared.lock();
            if state.stopping {
                return;
            }
            let Ok(clone) = stream.try_clone() else { continue };
            state.opened += 1;
            let number = state.opened;
            state.connections.insert(number, clone);
            number
        };
        let shared = shared.clone();
        // Ends when its connection does, which `Drop` sees to.
        std::thread::spawn(move || serve(stream, number, &shared));
    }
}

/// Serves one connection to its end.
fn serve(stream: TcpStream, number: usize, shared: &Shared) {
    // Small answers at once; a socket that refuses the option is only slower.
    let _ = stream.set_nodelay(true);
    let Ok(mut writer) = stream.try_clone() else { return };
    let mut reader = BufReader::new(stream);
    loop {
        let request = match wire::read_request(&mut reader, &mut writer, number) {
            Ok(Some(request)) => request,
            Ok(None) => break,
            Err(problem) => {
                shared.lock().malformed.push(problem);
                break;
            }
        };
        let head_only = request.method == "HEAD";
        let last = request.header("connection").is_some_and(|value| value.eq_ignore_ascii_case("close"));
        let reply = {
            let mut state = shared.lock();
            let own = state.targets.get_mut(&request.target).and_then(VecDeque::pop_front);
            state.requests.push(request);
            own.or_else(|| state.script.pop_front()).unwrap_or_else(|| state.otherwise.clone())
        };
        shared.changed.notify_all();
        if reply.manner == Manner::Silent {
            // Ends when the client leaves or `Drop` shuts the socket down; what is sent meanwhile is not looked at.
            let _ = std::io::copy(&mut reader, &mut std::io::sink());
            break;
        }
        if send(&mut writer, &reply, head_only, shared).is_err() || reply.close || last {
            break;
        }
    }
    // Nothing is left to say, and the client may have closed it already.
    let _ = writer.shutdown(Shutdown::Both);
    // Else a long test's closed connections would use up the process's file descriptors.
    shared.lock().connections.remove(&number);
}

fn send(writer: &mut TcpStream, reply: &Reply, head_only: bool, shared: &Shared) -> std::io::Result<()> {
    let stopped = || std::io::Error::from(std::io::ErrorKind::Interrupted);
    if !shared.pause(reply.delay) && !reply.delay.is_zero() {
        return Err(stopped());
    }
    let bytes = reply.bytes(head_only);
    let Some((piece_bytes, pause)) = reply.drip else { return writer.write_all(&bytes) };
    for piece in bytes.chunks(piece_bytes) {
        if !shared.pause(pause) {
            return Err(stopped());
        }
        writer.write_all(piece)?;
    }
    Ok(())
}
