//! The proxy forwards, and does each of its harms when asked.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use bulkhead_test_support::http_sink::Sink;
use bulkhead_test_support::tcp_proxy::{Direction, TcpProxy};
use bulkhead_test_support::wait_until;

const WITHIN: Duration = Duration::from_secs(10);
const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n";

fn connect(proxy: &TcpProxy) -> TcpStream {
    let stream = TcpStream::connect(proxy.address()).unwrap();
    stream.set_read_timeout(Some(WITHIN)).unwrap();
    stream
}

/// Sends a request and answers the first bytes of what comes back; nothing when the line is cut.
fn ask(stream: &mut TcpStream) -> Vec<u8> {
    let mut answer = vec![0; 1024];
    let read = stream.write_all(REQUEST).and_then(|()| stream.read(&mut answer)).unwrap_or(0);
    answer.truncate(read);
    answer
}

#[test]
fn it_forwards_both_ways_until_it_cuts() {
    let sink = Sink::start();
    let proxy = TcpProxy::start(sink.address());
    let mut line = connect(&proxy);
    assert!(ask(&mut line).starts_with(b"HTTP/1.1 200"));
    assert!(ask(&mut line).starts_with(b"HTTP/1.1 200"), "the line stays");
    proxy.cut();
    assert_eq!(ask(&mut line), b"");
    assert_eq!(proxy.cuts(), 1);
    assert!(ask(&mut connect(&proxy)).starts_with(b"HTTP/1.1 200"), "a new line is let through");
    assert_eq!(sink.requests().len(), 3);
}

#[test]
fn a_cut_in_mid_request_reaches_no_server_and_one_in_mid_answer_no_client() {
    let sink = Sink::start();
    let proxy = TcpProxy::start(sink.address());
    proxy.cut_after(Direction::ToServer, 10);
    assert_eq!(ask(&mut connect(&proxy)), b"");
    assert!(!proxy.disarm(), "it has happened");
    assert_eq!(sink.requests().len(), 0);
    proxy.cut_after(Direction::ToClient, 0);
    assert_eq!(ask(&mut connect(&proxy)), b"");
    assert_eq!(sink.wait_for(1, WITHIN).len(), 1, "the server heard it");
    assert_eq!(proxy.cuts(), 2);
    proxy.cut_after(Direction::ToServer, 1_000_000);
    assert!(ask(&mut connect(&proxy)).starts_with(b"HTTP/1.1 200"));
    assert!(proxy.disarm(), "it was still to come");
}

#[test]
fn a_stalled_line_carries_nothing_and_loses_nothing() {
    let sink = Sink::start();
    let proxy = TcpProxy::start(sink.address());
    let mut line = connect(&proxy);
    assert!(wait_until(WITHIN, || proxy.lines() == 1));
    proxy.stall(true);
    line.write_all(REQUEST).unwrap();
    line.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    assert!(line.read(&mut [0; 16]).is_err(), "no answer and no end");
    assert_eq!(sink.requests().len(), 0);
    proxy.stall(false);
    assert_eq!(sink.wait_for(1, WITHIN).len(), 1);
    proxy.refuse(true);
    assert_eq!(ask(&mut connect(&proxy)), b"");
}

#[test]
fn an_answer_is_held_back_while_other_lines_go_on() {
    let sink = Sink::start();
    let proxy = TcpProxy::start(sink.address());
    let (mut caught, mut other) = (connect(&proxy), connect(&proxy));
    proxy.catch(b"GET / ", b"HTTP/1.1 200");
    caught.write_all(REQUEST).unwrap();
    assert!(wait_until(WITHIN, || proxy.has_caught()), "what was asked for did not come by");
    assert_eq!(sink.requests().len(), 1, "the server has done it");
    caught.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    assert!(caught.read(&mut [0; 16]).is_err(), "held back");
    assert!(ask(&mut other).starts_with(b"HTTP/1.1 200"));
    proxy.let_go();
    caught.set_read_timeout(Some(WITHIN)).unwrap();
    let mut first = [0; 12];
    caught.read_exact(&mut first).unwrap();
    assert_eq!(&first, b"HTTP/1.1 200");
}
