//! The container of a backup: what its bytes are, without any database.
//!
//! ```text
//! "bulkhead backup\n"                  16 bytes
//! length, header                       u32 big-endian; JSON, in the clear: [`Header`]
//! length, sealed frame   (repeated)    u32 big-endian, never 0
//! 0                                    u32: no further frame
//! SHA-256                              of every byte before it
//! ```
//!
//! A frame is AES-256-GCM over DEFLATE over lines of JSON. Its key is derived from the root key and the archive's own random
//! id, its nonce is its number and whether it is the last, its associated data is the SHA-256 of what stands before the first
//! frame. So no frame can be changed, moved, dropped or taken from another archive; the SHA-256 at the end lets anybody see
//! accidental damage without the key.
//!
//! The first line of a frame says what the others are: `{"table":{"name":"run","columns":[["org_id","bytes"],…]}}`, then a
//! row a line: an array of strings (`text`), numbers (`int`; times are microseconds since the epoch), Base64 (`bytes`; ids
//! have 16) and nulls. The last frame is one line: `{"end":{"rows":{"run":12,…}}}`.

use std::collections::BTreeMap;
use std::io::{Read, Write};

use aes_gcm::aead::{Aead as _, KeyInit as _, Payload};
use aes_gcm::{Aes256Gcm, Nonce};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bulkhead_model::time::Timestamp;
use flate2::Compression;
use flate2::read::DeflateDecoder;
use flate2::write::DeflateEncoder;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use super::BackupError;
use crate::seal::RootKey;

/// The version of this format.
pub const FORMAT: u32 = 1;
const MAGIC: &[u8; 16] = b"bulkhead backup\n";
/// A header is a few hundred bytes; what claims more is none.
const HEADER_BYTES_MAX: u32 = 64 * 1024;
/// Rows are gathered to this many bytes before they are sealed: what a backup needs of memory, whatever the size.
const FRAME_BYTES: usize = 1024 * 1024;
/// A single row may be larger than a frame should be (a package), but not larger than this.
const FRAME_BYTES_MAX: u64 = 512 * 1024 * 1024;
/// At a time while looking through a file.
const SCAN_BYTES: usize = 64 * 1024;

/// What an archive says of itself, in the clear.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    pub format: u32,
    /// The version of the product that made it.
    pub product: String,
    pub created_at: String,
    /// `SQLite` or `PostgreSQL`: where it came from. It may go into either.
    pub database: String,
    /// The schema: each migration's name and the SHA-256 of its texts for both databases, in order.
    pub migrations: Vec<(String, String)>,
    /// 16 random bytes, hexadecimal: the salt of the archive's key.
    pub id: String,
    /// Tells whether a root key is the right one; derived from it and from `id`, and of no other use.
    pub key_check: String,
}

impl Header {
    pub(super) fn new(
        root: &RootKey,
        id: [u8; 16],
        product: &str,
        now: Timestamp,
        database: &str,
        migrations: Vec<(String, String)>,
    ) -> Self {
        let id = hex::encode(id);
        Self {
            format: FORMAT,
            product: product.to_owned(),
            created_at: now.to_string(),
            database: database.to_owned(),
            migrations,
            key_check: key_check(root, &id),
            id,
        }
    }
}

fn key_check(root: &RootKey, id: &str) -> String {
    hex::encode(&root.derive(&format!("backup key check v1 {id}"))[..16])
}

/// What a column's values are in an archive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Kind {
    Text,
    Int,
    Bytes,
}

/// A value of a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Cell {
    Null,
    Text(String),
    Int(i64),
    Bytes(Vec<u8>),
}

/// The first line of a frame.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum Opening {
    Table { name: String, columns: Vec<(String, Kind)> },
    End { rows: BTreeMap<String, u64> },
}

/// What a frame holds.
#[derive(Debug)]
pub(super) enum Frame {
    Rows {
        table: String,
        columns: Vec<(String, Kind)>,
        rows: Vec<Vec<Cell>>,
    },
    /// How many rows there were of each table.
    End(BTreeMap<String, u64>),
}

/// Counts and digests what passes through.
struct Digesting<T> {
    inner: T,
    digest: Sha256,
    bytes: u64,
}

impl<T> Digesting<T> {
    fn new(inner: T) -> Self {
        Self { inner, digest: Sha256::new(), bytes: 0 }
    }

    fn passed(&mut self, bytes: &[u8]) {
        self.digest.update(bytes);
        self.bytes += bytes.len() as u64;
    }
}

impl<W: Write> Digesting<W> {
    fn put(&mut self, bytes: &[u8]) -> Result<(), BackupError> {
        self.inner.write_all(bytes).map_err(BackupError::Io)?;
        self.passed(bytes);
        Ok(())
    }

    fn put_length(&mut self, length: usize) -> Result<(), BackupError> {
        let length = u32::try_from(length).map_err(|_| BackupError::TooLarge)?;
        self.put(&length.to_be_bytes())
    }
}

impl<R: Read> Digesting<R> {
    fn damaged(&self, why: impl Into<String>) -> BackupError {
        BackupError::Damaged { at: self.bytes, why: why.into() }
    }

    fn take_array<const N: usize>(&mut self) -> Result<[u8; N], BackupError> {
        let mut bytes = [0; N];
        match self.inner.read_exact(&mut bytes) {
            Ok(()) => {
                self.passed(&bytes);
                Ok(bytes)
            }
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => Err(self.damaged("it ends too early")),
            Err(error) => Err(BackupError::Io(error)),
        }
    }

    fn take_length(&mut self) -> Result<u32, BackupError> {
        Ok(u32::from_be_bytes(self.take_array()?))
    }

    /// The memory grows with what is there, not with what a length claims.
    fn take_bytes(&mut self, length: u32) -> Result<Vec<u8>, BackupError> {
        let mut bytes = Vec::new();
        (&mut self.inner).take(u64::from(length)).read_to_end(&mut bytes).map_err(BackupError::Io)?;
        self.passed(&bytes);
        if bytes.len() as u64 == u64::from(length) { Ok(bytes) } else { Err(self.damaged("it ends too early")) }
    }

    fn skip(&mut self, length: u32) -> Result<(), BackupError> {
        let mut left = u64::from(length);
        let mut buffer = vec![0; SCAN_BYTES];
        while left > 0 {
            let wanted = usize::try_from(left).unwrap_or(SCAN_BYTES).min(SCAN_BYTES);
            match self.inner.read(&mut buffer[..wanted]) {
                Ok(0) => return Err(self.damaged("it ends too early")),
                Ok(read) => {
                    self.passed(&buffer[..read]);
                    left -= read as u64;
                }
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(BackupError::Io(error)),
            }
        }
        Ok(())
    }

    /// The magic and the header's bytes.
    fn take_header(&mut self) -> Result<Vec<u8>, BackupError> {
        let mut magic = [0; MAGIC.len()];
        let is_ours = self.inner.read_exact(&mut magic).is_ok() && magic == *MAGIC;
        if !is_ours {
            return Err(BackupError::NotABackup);
        }
        self.passed(&magic);
        let length = self.take_length()?;
        if length > HEADER_BYTES_MAX {
            return Err(self.damaged("its header is too long"));
        }
        self.take_bytes(length)
    }

    /// What follows the last frame: the digest of what came before, and nothing.
    fn take_end(&mut self) -> Result<[u8; 32], BackupError> {
        let expected: [u8; 32] = self.digest.clone().finalize().into();
        if self.take_array()? != expected {
            return Err(self.damaged("its checksum is not that of its bytes"));
        }
        match self.inner.read(&mut [0]).map_err(BackupError::Io)? {
            0 => Ok(expected),
            _ => Err(self.damaged("something follows its end")),
        }
    }
}

/// The key of one archive, and how its frames are told apart.
struct FrameKey {
    cipher: Aes256Gcm,
    associated_data: [u8; 32],
    /// The number of the next frame.
    number: u64,
}

impl FrameKey {
    /// `before` is the digest of what stands before the first frame.
    fn new(root: &RootKey, id: &str, before: [u8; 32]) -> Self {
        let key = Zeroizing::new(root.derive(&format!("backup archive v1 {id}")));
        let cipher = Aes256Gcm::new_from_slice(&*key).expect("the key has 32 bytes");
        Self { cipher, associated_data: before, number: 0 }
    }

    /// The key is this archive's alone, so a count is a nonce that never comes twice.
    fn next_nonce(&mut self, is_last: bool) -> Nonce<aes_gcm::aead::consts::U12> {
        let mut nonce = [0; 12];
        nonce[3] = u8::from(is_last);
        nonce[4..].copy_from_slice(&self.number.to_be_bytes());
        self.number += 1;
        Nonce::from(nonce)
    }

    fn seal(&mut self, plain: &[u8], is_last: bool) -> Vec<u8> {
        let nonce = self.next_nonce(is_last);
        let payload = Payload { msg: plain, aad: &self.associated_data };
        self.cipher.encrypt(&nonce, payload).expect("frames are far below AES-GCM's 64 GiB")
    }

    fn open(&mut self, sealed: &[u8], is_last: bool) -> Option<Vec<u8>> {
        let nonce = self.next_nonce(is_last);
        self.cipher.decrypt(&nonce, Payload { msg: sealed, aad: &self.associated_data }).ok()
    }
}

/// Writes an archive, a row at a time.
pub(super) struct ArchiveWriter<W: Write> {
    out: Digesting<W>,
    key: FrameKey,
    /// The first line of each frame of the table that is being written.
    opening: Vec<u8>,
    /// The frame that is being gathered; empty or with its opening.
    lines: Vec<u8>,
    table: String,
    rows: BTreeMap<String, u64>,
}

impl<W: Write> ArchiveWriter<W> {
    pub(super) fn new(out: W, root: &RootKey, header: &Header) -> Result<Self, BackupError> {
        let mut out = Digesting::new(out);
        let text = serde_json::to_vec(header).map_err(|error| BackupError::Io(error.into()))?;
        out.put(MAGIC)?;
        out.put_length(text.len())?;
        out.put(&text)?;
        let key = FrameKey::new(root, &header.id, out.digest.clone().finalize().into());
        Ok(Self { out, key, opening: Vec::new(), lines: Vec::new(), table: String::new(), rows: BTreeMap::new() })
    }

    pub(super) fn begin_table(&mut self, name: &str, columns: Vec<(String, Kind)>) -> Result<(), BackupError> {
        self.flush()?;
        name.clone_into(&mut self.table);
        self.rows.entry(name.to_owned()).or_default();
        self.opening = line(&Opening::Table { name: name.to_owned(), columns })?;
        Ok(())
    }

    /// Answers whether a frame was written.
    pub(super) fn row(&mut self, cells: &[Cell]) -> Result<bool, BackupError> {
        if self.lines.is_empty() {
            self.lines.extend_from_slice(&self.opening);
        }
        write_cells(&mut self.lines, cells)?;
        if let Some(rows) = self.rows.get_mut(&self.table) {
            *rows += 1;
        }
        let is_full = self.lines.len() >= FRAME_BYTES;
        if is_full {
            self.flush()?;
        }
        Ok(is_full)
    }

    fn flush(&mut self) -> Result<(), BackupError> {
        if self.lines.is_empty() {
            return Ok(());
        }
        let lines = std::mem::take(&mut self.lines);
        self.put_frame(&lines, false)?;
        self.lines = lines;
        self.lines.clear();
        // A single large row need not keep its memory.
        self.lines.shrink_to(2 * FRAME_BYTES);
        Ok(())
    }

    fn put_frame(&mut self, lines: &[u8], is_last: bool) -> Result<(), BackupError> {
        if lines.len() as u64 > FRAME_BYTES_MAX {
            return Err(BackupError::TooLarge);
        }
        let mut encoder = DeflateEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(lines).map_err(BackupError::Io)?;
        let packed = encoder.finish().map_err(BackupError::Io)?;
        let sealed = self.key.seal(&packed, is_last);
        self.out.put_length(sealed.len())?;
        self.out.put(&sealed)
    }

    /// How many rows of the table that is being written there are so far.
    pub(super) fn table_rows(&self) -> u64 {
        self.rows.get(&self.table).copied().unwrap_or_default()
    }

    /// Writes the end and answers the output, what it holds, its bytes and their digest.
    pub(super) fn finish(mut self) -> Result<(W, BTreeMap<String, u64>, Whole), BackupError> {
        self.flush()?;
        let end = line(&Opening::End { rows: self.rows.clone() })?;
        self.put_frame(&end, true)?;
        self.out.put_length(0)?;
        let sha256: [u8; 32] = self.out.digest.clone().finalize().into();
        self.out.put(&sha256)?;
        self.out.inner.flush().map_err(BackupError::Io)?;
        let whole = Whole { bytes: self.out.bytes, sha256: hex::encode(sha256) };
        Ok((self.out.inner, self.rows, whole))
    }
}

fn line(value: &impl Serialize) -> Result<Vec<u8>, BackupError> {
    let mut line = serde_json::to_vec(value).map_err(|error| BackupError::Io(error.into()))?;
    line.push(b'\n');
    Ok(line)
}

fn write_cells(lines: &mut Vec<u8>, cells: &[Cell]) -> Result<(), BackupError> {
    let io = |error: serde_json::Error| BackupError::Io(error.into());
    for (at, cell) in cells.iter().enumerate() {
        lines.push(if at == 0 { b'[' } else { b',' });
        match cell {
            Cell::Null => lines.extend_from_slice(b"null"),
            Cell::Int(value) => lines.extend_from_slice(value.to_string().as_bytes()),
            Cell::Text(text) => serde_json::to_writer(&mut *lines, text).map_err(io)?,
            Cell::Bytes(bytes) => {
                lines.push(b'"');
                lines.extend_from_slice(BASE64.encode(bytes).as_bytes());
                lines.push(b'"');
            }
        }
    }
    lines.extend_from_slice(b"]\n");
    Ok(())
}

fn read_cell(value: Value, kind: Kind) -> Option<Cell> {
    match (value, kind) {
        (Value::Null, _) => Some(Cell::Null),
        (Value::String(text), Kind::Text) => Some(Cell::Text(text)),
        (Value::String(text), Kind::Bytes) => BASE64.decode(text).ok().map(Cell::Bytes),
        (Value::Number(number), Kind::Int) => number.as_i64().map(Cell::Int),
        _ => None,
    }
}

/// A file that was read to its end and is what was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Whole {
    pub(super) bytes: u64,
    /// Of every byte before the last 32, hexadecimal.
    pub(super) sha256: String,
}

/// Looks through a whole archive without its key: nothing is missing, and no byte changed by accident.
pub(super) fn scan(input: impl Read) -> Result<Whole, BackupError> {
    let mut input = Digesting::new(input);
    input.take_header()?;
    loop {
        match input.take_length()? {
            0 => break,
            length => input.skip(length)?,
        }
    }
    let sha256 = hex::encode(input.take_end()?);
    Ok(Whole { bytes: input.bytes, sha256 })
}

/// Reads an archive's header in the clear.
pub(super) fn read_header(input: impl Read) -> Result<Header, BackupError> {
    let mut input = Digesting::new(input);
    let text = input.take_header()?;
    parse_header(&input, &text)
}

fn parse_header<R: Read>(input: &Digesting<R>, text: &[u8]) -> Result<Header, BackupError> {
    let value: Value = serde_json::from_slice(text).map_err(|_| input.damaged("its header is not JSON"))?;
    // Another format's header may be another shape, so this comes first.
    match value["format"].as_u64() {
        Some(format) if format == u64::from(FORMAT) => {}
        Some(format) => {
            let product = value["product"].as_str().unwrap_or("an unknown version").to_owned();
            return Err(BackupError::Format { format, product });
        }
        None => return Err(input.damaged("its header has no format")),
    }
    serde_json::from_value(value).map_err(|error| input.damaged(format!("its header is not readable: {error}")))
}

/// Reads an archive frame by frame.
pub(super) struct ArchiveReader<R: Read> {
    input: Digesting<R>,
    key: FrameKey,
    next_length: u32,
    header: Header,
    rows: BTreeMap<String, u64>,
    is_ended: bool,
}

impl<R: Read> ArchiveReader<R> {
    /// # Errors
    /// [`BackupError::WrongKey`] when it was sealed with another root key; those of a file that is no whole archive.
    pub(super) fn open(input: R, root: &RootKey) -> Result<Self, BackupError> {
        let mut input = Digesting::new(input);
        let text = input.take_header()?;
        let header = parse_header(&input, &text)?;
        if header.key_check != key_check(root, &header.id) {
            return Err(BackupError::WrongKey);
        }
        let key = FrameKey::new(root, &header.id, input.digest.clone().finalize().into());
        let next_length = input.take_length()?;
        Ok(Self { input, key, next_length, header, rows: BTreeMap::new(), is_ended: false })
    }

    pub(super) fn header(&self) -> &Header {
        &self.header
    }

    /// The next frame; `None` after the last, which was [`Frame::End`] and told the truth.
    pub(super) fn next_frame(&mut self) -> Result<Option<Frame>, BackupError> {
        if self.next_length == 0 {
            self.input.take_end()?;
            return if self.is_ended { Ok(None) } else { Err(self.input.damaged("it has no last frame")) };
        }
        let at = self.input.bytes;
        let damaged = |why: &str| BackupError::Damaged { at, why: why.to_owned() };
        let sealed = self.input.take_bytes(self.next_length)?;
        self.next_length = self.input.take_length()?;
        let is_last = self.next_length == 0;
        let packed = self.key.open(&sealed, is_last).ok_or_else(|| damaged("a frame does not open"))?;
        drop(sealed);
        let mut lines = Vec::new();
        let read = DeflateDecoder::new(packed.as_slice()).take(FRAME_BYTES_MAX + 1).read_to_end(&mut lines);
        if read.is_err() || lines.len() as u64 > FRAME_BYTES_MAX {
            return Err(damaged("a frame does not unpack"));
        }
        let frame = parse_frame(&lines).ok_or_else(|| damaged("a frame is not readable"))?;
        match &frame {
            Frame::Rows { table, rows, .. } if !is_last => {
                *self.rows.entry(table.clone()).or_default() += rows.len() as u64;
            }
            Frame::End(told) if is_last => {
                self.is_ended = true;
                let there = told.iter().filter(|(_, rows)| **rows > 0);
                if !there.eq(self.rows.iter()) {
                    return Err(damaged("its rows are not as many as it says"));
                }
            }
            Frame::Rows { .. } | Frame::End(_) => return Err(damaged("a frame is not in its place")),
        }
        Ok(Some(frame))
    }
}

fn parse_frame(lines: &[u8]) -> Option<Frame> {
    let lines = lines.strip_suffix(b"\n")?;
    let mut lines = lines.split(|byte| *byte == b'\n');
    match serde_json::from_slice(lines.next()?).ok()? {
        Opening::End { rows } => lines.next().is_none().then_some(Frame::End(rows)),
        Opening::Table { name, columns } => {
            let mut rows = Vec::new();
            for line in lines {
                let values: Vec<Value> = serde_json::from_slice(line).ok()?;
                if values.len() != columns.len() {
                    return None;
                }
                let cells = values.into_iter().zip(&columns).map(|(value, (_, kind))| read_cell(value, *kind));
                rows.push(cells.collect::<Option<Vec<Cell>>>()?);
            }
            Some(Frame::Rows { table: name, columns, rows })
        }
    }
}

#[cfg(test)]
mod tests;
