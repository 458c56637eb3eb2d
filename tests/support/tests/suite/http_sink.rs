//! The sink against raw sockets, which see every byte.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use bulkhead_test_support::http_sink::{Reply, Sink};

const PATIENCE: Duration = Duration::from_secs(20);

fn connect(sink: &Sink) -> TcpStream {
    let stream = TcpStream::connect(sink.address()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// Sends and reads until the sink closes the connection.
fn exchange(sink: &Sink, sent: &str) -> String {
    let mut stream = connect(sink);
    stream.write_all(sent.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn a_request_is_recorded_as_it_came() {
    let sink = Sink::start();
    let answer = exchange(
        &sink,
        "POST /in?x=1 HTTP/1.1\r\nHost: a\r\nX-Two: 1\r\nx-two: 2\r\nContent-Length: 4\r\nConnection: close\r\n\r\nbody",
    );
    assert_eq!(answer, "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n");
    let requests = sink.wait_for(1, PATIENCE);
    let [request] = requests.as_slice() else { panic!("{requests:?}") };
    assert_eq!((request.method.as_str(), request.target.as_str()), ("POST", "/in?x=1"));
    assert_eq!(request.header("X-TWO"), Some("1"));
    assert_eq!(request.headers.iter().filter(|(name, _)| name == "x-two").count(), 2);
    assert_eq!(request.body_text(), "body");
}

#[test]
fn chunks_are_joined_and_trailers_dropped() {
    let sink = Sink::start();
    exchange(
        &sink,
        "PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n3\r\nabc\r\n5;x=y\r\n\r\nde\n\r\n0\r\nT: v\r\n\r\n",
    );
    assert_eq!(sink.requests()[0].body, b"abc\r\nde\n");
    assert!(sink.malformed().is_empty());
}

#[test]
fn the_script_is_followed_and_then_the_other_answer_given_on_one_connection() {
    let sink = Sink::start();
    sink.script(Reply::status(503).header("retry-after", "2"));
    sink.script(Reply::json("{\"ok\":true}"));
    sink.otherwise(Reply::redirect(302, "http://127.0.0.1:1/").close());
    let answer = exchange(&sink, &"GET / HTTP/1.1\r\n\r\n".repeat(3));
    assert_eq!(
        answer,
        "HTTP/1.1 503 Service Unavailable\r\nretry-after: 2\r\ncontent-length: 0\r\n\r\n\
         HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 11\r\n\r\n{\"ok\":true}\
         HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
    );
    assert_eq!(sink.connections(), 1);
    assert_eq!(sink.requests().len(), 3);
}

#[test]
fn a_cut_answer_promises_more_than_it_holds() {
    let sink = Sink::start();
    sink.script(Reply::status(200).body("0123456789").cut_at(4));
    assert_eq!(exchange(&sink, "GET / HTTP/1.1\r\n\r\n"), "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n0123");
}

#[test]
fn raw_bytes_go_out_as_they_are() {
    let sink = Sink::start();
    sink.script(Reply::raw("SSH-2.0-x\r\n"));
    assert_eq!(exchange(&sink, "GET / HTTP/1.1\r\n\r\n"), "SSH-2.0-x\r\n");
}

#[test]
fn a_late_and_dripping_answer_takes_its_time() {
    let sink = Sink::start();
    sink.script(
        Reply::status(200).body("ab").close().after(Duration::from_millis(100)).drip(20, Duration::from_millis(10)),
    );
    let started = Instant::now();
    let answer = exchange(&sink, "GET / HTTP/1.1\r\n\r\n");
    assert!(answer.ends_with("\r\n\r\nab"), "{answer}");
    assert!(started.elapsed() >= Duration::from_millis(120));
}

#[test]
fn silence_lasts_until_the_sink_is_dropped() {
    let sink = Sink::start();
    sink.script(Reply::silence());
    let mut stream = connect(&sink);
    stream.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    sink.wait_for(1, PATIENCE);
    stream.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    assert!(stream.read(&mut [0]).is_err(), "an answer came");
    drop(sink);
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    assert_eq!(stream.read(&mut [0]).unwrap_or(0), 0);
}

#[test]
fn dropping_does_not_wait_for_a_delayed_answer() {
    let sink = Sink::start();
    sink.script(Reply::status(200).after(Duration::from_hours(1)));
    let mut stream = connect(&sink);
    stream.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    sink.wait_for(1, PATIENCE);
    drop(sink);
    let mut answer = Vec::new();
    // A reset is an end as well.
    let _ = stream.read_to_end(&mut answer);
    assert!(answer.is_empty());
}

#[test]
fn what_is_no_request_is_told_and_not_recorded() {
    let sink = Sink::start();
    assert_eq!(exchange(&sink, "\u{16}\u{3}\u{1} hello\r\n"), "");
    assert_eq!(exchange(&sink, "POST / HTTP/1.1\r\nContent-Length: many\r\n\r\n"), "");
    assert_eq!(sink.malformed().len(), 2, "{:?}", sink.malformed());
    assert!(sink.requests().is_empty());
}

#[test]
fn a_client_that_asks_first_is_told_to_go_on() {
    let sink = Sink::start();
    let sent = "POST / HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 2\r\nConnection: close\r\n\r\nhi";
    assert!(exchange(&sink, sent).starts_with("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n"));
}
