//! A line between a client and a server that can be cut, held up and refused.
//!
//! Plain threads: a connection has one for each direction. What a proxy forwards it forwards at once and unread.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// Bytes read at once.
const PIECE_BYTES: usize = 16 * 1024;
/// A target that does not take a connection in this time is as good as gone.
const CONNECT_TIME: Duration = Duration::from_secs(5);

/// Which way bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// What the client sends: cut here, the server never hears the whole.
    ToServer,
    /// What the server sends: cut here, the server has done what the client never hears of.
    ToClient,
}

/// A proxy of one address. Dropping it cuts every line and frees the port.
#[derive(Debug)]
pub struct TcpProxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    target: SocketAddr,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Both ends of each open line.
    lines: HashMap<u64, [TcpStream; 2]>,
    opened: u64,
    cuts: u64,
    refusing: bool,
    stalled: bool,
    stopping: bool,
    /// After so many more bytes in this direction, over all lines, the line that carries the last of them is cut.
    fuse: Option<(Direction, u64)>,
    /// An answer that is to be held back.
    catch: Option<Catch>,
}

/// See [`TcpProxy::catch`].
#[derive(Debug)]
struct Catch {
    question: Vec<u8>,
    answer: Vec<u8>,
    stage: Stage,
}

/// How far a [`Catch`] has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Armed,
    /// The question went by on this line.
    Asked(u64),
    /// Its answer is held back.
    Holds(u64),
}

impl TcpProxy {
    /// Starts on a free port of 127.0.0.1 in front of `target`.
    ///
    /// # Panics
    /// When the machine has no loopback port left.
    pub fn start(target: SocketAddr) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a test machine has a free loopback port");
        let address = listener.local_addr().expect("a bound socket has an address");
        let shared = Arc::new(Shared { target, state: Mutex::default(), changed: Condvar::new() });
        let accepting = Arc::clone(&shared);
        let acceptor = std::thread::spawn(move || accept(&listener, &accepting));
        Self { address, shared, acceptor: Some(acceptor) }
    }

    /// Where clients connect to.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Cuts every line that is open now, in mid-byte if need be. New connections are let through.
    pub fn cut(&self) {
        let mut state = self.shared.lock();
        let lines = std::mem::take(&mut state.lines);
        state.cuts += lines.len() as u64;
        drop(state);
        lines.values().for_each(hang_up);
    }

    /// Lets `bytes` more bytes through in this direction and then cuts the line that carries them, once.
    pub fn cut_after(&self, direction: Direction, bytes: u64) {
        self.shared.lock().fuse = Some((direction, bytes));
    }

    /// Takes back what [`cut_after`](Self::cut_after) asked for; answers whether it was still to come.
    pub fn disarm(&self) -> bool {
        self.shared.lock().fuse.take().is_some()
    }

    /// While `true`, new connections are closed at once. Those that are open stay.
    pub fn refuse(&self, refusing: bool) {
        self.shared.lock().refusing = refusing;
    }

    /// While `true`, nothing is forwarded and nothing is closed: a line that has gone silent.
    pub fn stall(&self, stalled: bool) {
        self.shared.lock().stalled = stalled;
        self.shared.changed.notify_all();
    }

    /// Waits until a client sends `question`, then until the server sends `answer` on the same line, and holds that back with all that
    /// follows it on the line, until [`let_go`](Self::let_go): the server has done what the client does not hear of yet. Other lines go
    /// on. Both texts must come in one piece, as short messages do.
    pub fn catch(&self, question: &[u8], answer: &[u8]) {
        self.shared.lock().catch =
            Some(Catch { question: question.to_vec(), answer: answer.to_vec(), stage: Stage::Armed });
    }

    /// Whether an answer is held back now.
    pub fn has_caught(&self) -> bool {
        self.shared.lock().catch.as_ref().is_some_and(|catch| matches!(catch.stage, Stage::Holds(_)))
    }

    /// Lets what was caught go on.
    pub fn let_go(&self) {
        self.shared.lock().catch = None;
        self.shared.changed.notify_all();
    }

    /// How many lines were cut so far.
    pub fn cuts(&self) -> u64 {
        self.shared.lock().cuts
    }

    /// How many lines are open now.
    pub fn lines(&self) -> usize {
        self.shared.lock().lines.len()
    }
}

impl Drop for TcpProxy {
    fn drop(&mut self) {
        self.shared.lock().stopping = true;
        self.shared.changed.notify_all();
        self.cut();
        // The acceptor looks at `stopping` when it wakes. Should this fail, it would wake for no one and is left behind.
        if TcpStream::connect_timeout(&self.address, CONNECT_TIME).is_ok()
            && let Some(acceptor) = self.acceptor.take()
        {
            // It has no result to lose.
            let _ = acceptor.join();
        }
    }
}

impl Catch {
    fn look(&mut self, line: u64, direction: Direction, piece: &[u8]) {
        let has = |text: &[u8]| piece.windows(text.len()).any(|window| window == text);
        match (self.stage, direction) {
            (Stage::Armed, Direction::ToServer) if has(&self.question) => self.stage = Stage::Asked(line),
            (Stage::Asked(asked), Direction::ToClient) if asked == line && has(&self.answer) => {
                self.stage = Stage::Holds(line);
            }
            _ => {}
        }
    }
}

impl Shared {
    /// A test that panics while it holds the lock leaves lists that are still whole.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many of `bytes` may pass now in this direction, once the line is not stalled; `None` when the line is cut.
    fn admit(&self, line: u64, direction: Direction, piece: &[u8]) -> Option<usize> {
        let bytes = piece.len();
        let mut state = self.lock();
        if let Some(catch) = &mut state.catch {
            catch.look(line, direction, piece);
        }
        let held = |state: &mut State| {
            let is_caught = direction == Direction::ToClient
                && state.catch.as_ref().is_some_and(|catch| catch.stage == Stage::Holds(line));
            (state.stalled || is_caught) && !state.stopping && state.lines.contains_key(&line)
        };
        let mut state = self.changed.wait_while(state, held).unwrap_or_else(PoisonError::into_inner);
        if !state.lines.contains_key(&line) {
            return None;
        }
        let Some((armed, left)) = state.fuse.filter(|(armed, _)| *armed == direction) else { return Some(bytes) };
        let passing = usize::try_from(left).unwrap_or(usize::MAX).min(bytes);
        if passing == bytes {
            state.fuse = Some((armed, left - bytes as u64));
        }
        Some(passing)
    }

    /// Cuts one line; as often as asked, it counts once. `burnt` when the fuse did it.
    fn cut(&self, line: u64, burnt: bool) {
        let mut state = self.lock();
        if burnt {
            state.fuse = None;
        }
        if let Some(ends) = state.lines.remove(&line) {
            state.cuts += u64::from(burnt);
            drop(state);
            hang_up(&ends);
        }
    }
}

/// The other side may have hung up before; then there is nothing to do.
fn hang_up(ends: &[TcpStream; 2]) {
    for end in ends {
        let _ = end.shutdown(Shutdown::Both);
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    while let Ok((client, _)) = listener.accept() {
        {
            let state = shared.lock();
            if state.stopping {
                return;
            }
            if state.refusing {
                continue;
            }
        }
        // A client whose line cannot be made sees it closed, as when the server is away.
        let Ok(server) = TcpStream::connect_timeout(&shared.target, CONNECT_TIME) else { continue };
        // Small messages at once; a socket that refuses the option is only slower.
        let _ = (client.set_nodelay(true), server.set_nodelay(true));
        let (Ok(client_too), Ok(server_too)) = (client.try_clone(), server.try_clone()) else { continue };
        let (Ok(from_client), Ok(from_server)) = (client.try_clone(), server.try_clone()) else { continue };
        let line = {
            let mut state = shared.lock();
            state.opened += 1;
            let line = state.opened;
            state.lines.insert(line, [client_too, server_too]);
            line
        };
        for (direction, from, to) in
            [(Direction::ToServer, from_client, server), (Direction::ToClient, from_server, client)]
        {
            let shared = Arc::clone(shared);
            // Ends when its line does, which `Drop` sees to.
            std::thread::spawn(move || forward(line, direction, from, to, &shared));
        }
    }
}

fn forward(line: u64, direction: Direction, mut from: TcpStream, mut to: TcpStream, shared: &Shared) {
    let mut piece = vec![0; PIECE_BYTES];
    while let Ok(bytes @ 1..) = from.read(&mut piece) {
        let Some(passing) = shared.admit(line, direction, &piece[..bytes]) else { break };
        if to.write_all(&piece[..passing]).is_err() {
            break;
        }
        if passing < bytes {
            shared.cut(line, true);
            return;
        }
    }
    shared.cut(line, false);
}
