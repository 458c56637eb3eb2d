//! Reading requests: as much of RFC 9112 as honest clients use.

use std::io::{BufRead, Read, Write};
use std::time::Instant;

/// More than any test sends; a client that runs wild must not take the machine's memory.
const BODY_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// The same for one line of the head.
const LINE_BYTES_MAX: u64 = 256 * 1024;

/// One request as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// The method, as written.
    pub method: String,
    /// The request target, as written: path and query, or an absolute address from a client that takes this for a proxy.
    pub target: String,
    /// Names in lower case, in their order, repetitions kept.
    pub headers: Vec<(String, String)>,
    /// The body without its framing.
    pub body: Vec<u8>,
    /// The connection that it came on, from 1.
    pub connection: usize,
    /// When its last byte had come.
    pub at: Instant,
}

impl Request {
    /// The first header of this name, whose case does not matter.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    /// The body as text; what is no UTF-8 is replaced.
    pub fn body_text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// The next request, none at the end of the connection, or what is wrong with it.
pub(super) fn read_request(
    reader: &mut impl BufRead,
    writer: &mut impl Write,
    connection: usize,
) -> Result<Option<Request>, String> {
    // A connection that is reset between requests has ended, no matter how.
    let Ok(Some(first)) = read_line(reader) else { return Ok(None) };
    let mut words = first.split(' ');
    let (Some(method), Some(target), Some("HTTP/1.1" | "HTTP/1.0"), None) =
        (words.next(), words.next(), words.next(), words.next())
    else {
        return Err(format!("not a request line: {first:?}"));
    };
    let mut request = Request {
        method: method.to_owned(),
        target: target.to_owned(),
        headers: read_headers(reader)?,
        body: Vec::new(),
        connection,
        at: Instant::now(),
    };
    if request.header("expect").is_some_and(|value| value.eq_ignore_ascii_case("100-continue")) {
        writer.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").map_err(|error| error.to_string())?;
    }
    let chunked = request.header("transfer-encoding").is_some_and(|value| value.eq_ignore_ascii_case("chunked"));
    let length = request.header("content-length").map(str::parse::<u64>);
    request.body = match length {
        _ if chunked => read_chunks(reader)?,
        None => Vec::new(),
        Some(Ok(length)) if length <= BODY_BYTES_MAX => read_exactly(reader, length)?,
        Some(other) => return Err(format!("no usable content-length: {other:?}")),
    };
    request.at = Instant::now();
    Ok(Some(request))
}

fn read_headers(reader: &mut impl BufRead) -> Result<Vec<(String, String)>, String> {
    let mut headers = Vec::new();
    loop {
        let line = read_line(reader)?.ok_or("the connection ended inside the head")?;
        if line.is_empty() {
            return Ok(headers);
        }
        let (name, value) = line.split_once(':').ok_or_else(|| format!("not a header: {line:?}"))?;
        headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
}

fn read_chunks(reader: &mut impl BufRead) -> Result<Vec<u8>, String> {
    let mut body = Vec::new();
    loop {
        let line = read_line(reader)?.ok_or("the connection ended before the last chunk")?;
        let size_text = line.split(';').next().unwrap_or_default().trim();
        let size = u64::from_str_radix(size_text, 16).map_err(|_| format!("not a chunk size: {line:?}"))?;
        if size == 0 {
            // Trailers have the form of headers, and no test looks at them.
            read_headers(reader)?;
            return Ok(body);
        }
        if body.len() as u64 + size > BODY_BYTES_MAX {
            return Err(format!("the body is larger than {BODY_BYTES_MAX} bytes"));
        }
        body.extend(read_exactly(reader, size)?);
        if read_line(reader)?.as_deref() != Some("") {
            return Err("a chunk is longer than it says".to_owned());
        }
    }
}

fn read_exactly(reader: &mut impl BufRead, bytes: u64) -> Result<Vec<u8>, String> {
    let mut read = Vec::new();
    reader.take(bytes).read_to_end(&mut read).map_err(|error| error.to_string())?;
    if read.len() as u64 == bytes {
        Ok(read)
    } else {
        Err(format!("the connection ended after {} of {bytes} bytes of body", read.len()))
    }
}

/// A line without its end; none at the end of the connection.
fn read_line(reader: &mut impl BufRead) -> Result<Option<String>, String> {
    let mut line = Vec::new();
    reader.take(LINE_BYTES_MAX).read_until(b'\n', &mut line).map_err(|error| error.to_string())?;
    if line.is_empty() {
        return Ok(None);
    }
    let text = line.strip_suffix(b"\n").ok_or("a line without end")?;
    let text = text.strip_suffix(b"\r").unwrap_or(text);
    Ok(Some(String::from_utf8_lossy(text).into_owned()))
}

/// The phrases of the statuses that tests use; clients ignore them.
pub(super) fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        201 => "Created",
        202 => "Accepted",
        204 => "No Content",
        301 => "Moved Permanently",
        302 => "Found",
        307 => "Temporary Redirect",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        429 => "Too Many Requests",
        500 => "Internal Server Error",
        503 => "Service Unavailable",
        _ => "Unnamed",
    }
}
