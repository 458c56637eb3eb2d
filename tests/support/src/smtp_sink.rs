//! A local mail relay (RFC 5321, as much of it as a client needs) that keeps what it is sent.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// A letter as it arrived.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Letter {
    pub from: String,
    pub to: Vec<String>,
    /// Headers and body, as sent, without the dots that the protocol adds.
    pub text: String,
}

#[derive(Default)]
struct State {
    letters: Vec<Letter>,
    /// Answers to the next letters in place of 250, first come first.
    refusals: Vec<String>,
}

/// The relay. It serves until the process ends; its threads wait for nobody.
#[derive(Clone)]
pub struct SmtpSink {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
}

impl SmtpSink {
    /// Listens on a port of its own.
    ///
    /// # Panics
    /// When it cannot listen.
    #[must_use]
    pub fn start() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port is free");
        let address = listener.local_addr().expect("a bound listener has an address");
        let state = Arc::new(Mutex::new(State::default()));
        let kept = Arc::clone(&state);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let state = Arc::clone(&kept);
                std::thread::spawn(move || {
                    // A client that goes away has what it came for.
                    drop(serve(&stream, &state));
                });
            }
        });
        Self { address, state }
    }

    /// As a configuration names it.
    #[must_use]
    pub fn url(&self) -> String {
        format!("smtp://{}", self.address)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What arrived so far.
    #[must_use]
    pub fn letters(&self) -> Vec<Letter> {
        self.state().letters.clone()
    }

    /// Answers the next letter so (`451 busy`) and does not keep it.
    pub fn refuse_next(&self, answer: &str) {
        self.state().refusals.push(answer.to_owned());
    }
}

fn between(line: &str) -> String {
    line.split_once('<').and_then(|(_, rest)| rest.split_once('>')).map_or("", |(address, _)| address).to_owned()
}

fn serve(stream: &TcpStream, state: &Mutex<State>) -> std::io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_mins(1)))?;
    let (mut lines, mut out) = (BufReader::new(stream.try_clone()?), stream);
    let mut letter = Letter { from: String::new(), to: Vec::new(), text: String::new() };
    out.write_all(b"220 sink\r\n")?;
    let mut line = String::new();
    while lines.read_line(&mut line)? > 0 {
        let command = line.trim_end().to_owned();
        line.clear();
        let verb = command.split([' ', ':']).next().unwrap_or_default().to_ascii_uppercase();
        match verb.as_str() {
            "EHLO" | "HELO" => out.write_all(b"250-sink\r\n250 8BITMIME\r\n")?,
            "MAIL" => {
                letter = Letter { from: between(&command), to: Vec::new(), text: String::new() };
                out.write_all(b"250 go on\r\n")?;
            }
            "RCPT" => {
                letter.to.push(between(&command));
                out.write_all(b"250 go on\r\n")?;
            }
            "DATA" => {
                out.write_all(b"354 end with a dot\r\n")?;
                loop {
                    line.clear();
                    if lines.read_line(&mut line)? == 0 {
                        return Ok(());
                    }
                    if line == ".\r\n" {
                        break;
                    }
                    letter.text.push_str(line.strip_prefix('.').unwrap_or(&line));
                }
                line.clear();
                let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
                let answer = if state.refusals.is_empty() {
                    state.letters.push(letter.clone());
                    "250 taken".to_owned()
                } else {
                    state.refusals.remove(0)
                };
                drop(state);
                out.write_all(format!("{answer}\r\n").as_bytes())?;
            }
            "QUIT" => {
                out.write_all(b"221 bye\r\n")?;
                return Ok(());
            }
            "RSET" | "NOOP" => out.write_all(b"250 well\r\n")?,
            _ => out.write_all(b"502 not here\r\n")?,
        }
    }
    Ok(())
}
