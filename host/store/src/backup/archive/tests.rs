use std::io::Cursor;

use proptest::prelude::*;

use super::super::verify;
use super::*;
use crate::seal::RootKeys;

fn root() -> RootKey {
    RootKey::new([7; 32])
}

fn roots() -> RootKeys {
    RootKeys::single(root())
}

fn header(root: &RootKey) -> Header {
    let migrations = vec![("0001_foundation".to_owned(), "ab".repeat(32))];
    Header::new(root, [3; 16], "0.1.0", Timestamp::from_micros(0), "SQLite", migrations)
}

fn columns() -> Vec<(String, Kind)> {
    [("id", Kind::Bytes), ("name", Kind::Text), ("n", Kind::Int)].map(|(name, kind)| (name.to_owned(), kind)).into()
}

fn archive(tables: &[(&str, Vec<Vec<Cell>>)]) -> Vec<u8> {
    let mut writer = ArchiveWriter::new(Vec::new(), &root(), &header(&root())).unwrap();
    for (table, rows) in tables {
        writer.begin_table(table, columns()).unwrap();
        for row in rows {
            writer.row(row).unwrap();
        }
    }
    writer.finish().unwrap().0
}

fn sample() -> Vec<u8> {
    let rows = vec![
        vec![Cell::Bytes(vec![0; 16]), Cell::Text("line\nbreak \u{0} \"quoted\" ü".to_owned()), Cell::Int(i64::MIN)],
        vec![Cell::Null, Cell::Null, Cell::Null],
    ];
    archive(&[("plugin", rows.clone()), ("empty", Vec::new()), ("run", rows)])
}

type Rows = Vec<Vec<Cell>>;

fn read(bytes: &[u8]) -> Result<Vec<(String, Rows)>, BackupError> {
    let mut reader = ArchiveReader::open(bytes, &root())?;
    let mut tables = Vec::new();
    while let Some(frame) = reader.next_frame()? {
        if let Frame::Rows { table, columns: told, rows } = frame {
            assert_eq!(told, columns());
            tables.push((table, rows));
        }
    }
    Ok(tables)
}

/// What a file that somebody changed on purpose has: a checksum that fits.
fn with_fresh_checksum(mut bytes: Vec<u8>) -> Vec<u8> {
    let body = bytes.len() - 32;
    let digest = Sha256::digest(&bytes[..body]);
    bytes[body..].copy_from_slice(&digest);
    bytes
}

fn cell() -> impl Strategy<Value = (Cell, Cell, Cell)> {
    (
        prop_oneof![Just(Cell::Null), proptest::collection::vec(any::<u8>(), 0..40).prop_map(Cell::Bytes)],
        prop_oneof![Just(Cell::Null), any::<String>().prop_map(Cell::Text)],
        prop_oneof![Just(Cell::Null), any::<i64>().prop_map(Cell::Int)],
    )
}

proptest! {
    #[test]
    fn what_is_written_is_read(rows in proptest::collection::vec(cell(), 0..30)) {
        let rows: Vec<Vec<Cell>> = rows.into_iter().map(|(a, b, c)| vec![a, b, c]).collect();
        let bytes = archive(&[("run", rows.clone())]);
        let expected = if rows.is_empty() { vec![] } else { vec![("run".to_owned(), rows.clone())] };
        prop_assert_eq!(read(&bytes).unwrap(), expected);
        let summary = verify(Cursor::new(&bytes), Some(&roots())).unwrap();
        prop_assert_eq!(summary.rows.unwrap()["run"], rows.len() as u64);
        prop_assert_eq!(summary.bytes, bytes.len() as u64);
    }
}

#[test]
fn any_changed_byte_is_refused_with_and_without_the_key() {
    let good = sample();
    assert!(verify(Cursor::new(&good), None).is_ok());
    for at in 0..good.len() {
        for flip in [0x01, 0x80] {
            let mut bad = good.clone();
            bad[at] ^= flip;
            assert!(verify(Cursor::new(&bad), None).is_err(), "byte {at} without the key");
            assert!(verify(Cursor::new(&bad), Some(&roots())).is_err(), "byte {at} with the key");
            assert!(read(&bad).is_err(), "byte {at} while restoring");
        }
    }
}

#[test]
fn a_changed_byte_under_a_fitting_checksum_is_refused() {
    let good = sample();
    for at in 0..good.len() - 32 {
        let mut bad = good.clone();
        bad[at] ^= 1;
        let bad = with_fresh_checksum(bad);
        assert!(verify(Cursor::new(&bad), Some(&roots())).is_err(), "byte {at}");
    }
}

#[test]
fn any_missing_end_and_anything_behind_it_is_refused() {
    let good = sample();
    for length in 0..good.len() {
        let error = verify(Cursor::new(&good[..length]), Some(&roots())).unwrap_err();
        let is_named = matches!(error, BackupError::Damaged { .. })
            || (length < MAGIC.len() && matches!(error, BackupError::NotABackup));
        assert!(is_named, "{length} bytes: {error}");
    }
    let longer = [good.as_slice(), b"x"].concat();
    assert!(verify(Cursor::new(longer), None).unwrap_err().to_string().contains("follows its end"));
}

/// `(start, end)` of each frame with its length.
fn frames(bytes: &[u8]) -> Vec<(usize, usize)> {
    let length_at = |at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap()) as usize;
    let mut at = MAGIC.len() + 4 + length_at(MAGIC.len());
    let mut frames = Vec::new();
    while length_at(at) > 0 {
        let end = at + 4 + length_at(at);
        frames.push((at, end));
        at = end;
    }
    frames
}

#[test]
fn frames_that_were_moved_dropped_doubled_or_brought_are_refused() {
    let good = sample();
    let places = frames(&good);
    assert_eq!(places.len(), 3, "two tables with rows, and the end");
    let frame = |at: usize| &good[places[at].0..places[at].1];
    let (head, tail) = (&good[..places[0].0], &good[places[2].1..]);
    let other_root = RootKey::new([8; 32]);
    let foreign = ArchiveWriter::new(Vec::new(), &other_root, &header(&other_root)).unwrap().finish().unwrap().0;
    let foreign_end = &foreign[frames(&foreign)[0].0..frames(&foreign)[0].1];
    let whole = [frame(0), frame(1), frame(2)];
    assert_eq!([head, &whole.concat(), tail].concat(), good, "the parts are the whole");
    for (what, parts) in [
        ("swapped", vec![frame(1), frame(0), frame(2)]),
        ("without the first", vec![frame(1), frame(2)]),
        ("without the last rows", vec![frame(0), frame(2)]),
        ("without the end", vec![frame(0), frame(1)]),
        ("without any", vec![]),
        ("twice", vec![frame(0), frame(0), frame(1), frame(2)]),
        ("rows after the end", vec![frame(0), frame(2), frame(1)]),
        ("another's end", vec![frame(0), frame(1), foreign_end]),
    ] {
        let bad = with_fresh_checksum([head, &parts.concat(), tail].concat());
        assert!(verify(Cursor::new(&bad), None).is_ok(), "{what}: nothing is to be seen without the key");
        assert!(verify(Cursor::new(&bad), Some(&roots())).is_err(), "{what}");
    }
}

#[test]
fn another_root_key_is_told_from_damage() {
    let good = sample();
    let other = RootKey::new([8; 32]);
    assert!(matches!(verify(Cursor::new(&good), Some(&RootKeys::single(other.clone()))), Err(BackupError::WrongKey)));
    let mut bad = good;
    let middle = bad.len() / 2;
    bad[middle] ^= 1;
    assert!(matches!(
        verify(Cursor::new(&bad), Some(&RootKeys::single(other.clone()))),
        Err(BackupError::Damaged { .. })
    ));
}

#[test]
fn another_format_is_named() {
    let newer = Header { format: 2, product: "9.0.0".to_owned(), ..header(&root()) };
    let bytes = ArchiveWriter::new(Vec::new(), &root(), &newer).unwrap().finish().unwrap().0;
    let error = verify(Cursor::new(bytes), Some(&roots())).unwrap_err().to_string();
    assert!(error.contains("format 2") && error.contains("9.0.0"), "{error}");
}

#[test]
fn nothing_readable_is_in_the_file() {
    let word = "a sentence that stands in a lead's payload";
    let bytes = archive(&[("run", vec![vec![Cell::Null, Cell::Text(word.repeat(9)), Cell::Null]])]);
    assert!(!bytes.windows(8).any(|window| word.as_bytes().starts_with(window)));
    let header = String::from_utf8_lossy(&bytes[..300]);
    assert!(header.contains("0001_foundation"), "the header is in the clear: {header}");
}

/// Counts what it is given at once, and keeps nothing.
#[derive(Default)]
struct Largest(usize);

impl Write for Largest {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0 = self.0.max(bytes.len());
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_frame_is_written_before_it_grows_large() {
    let mut writer = ArchiveWriter::new(Largest::default(), &root(), &header(&root())).unwrap();
    writer.begin_table("run", columns()).unwrap();
    // Random, so that packing gains nothing.
    let ambient = bulkhead_model::ambient::Ambient::manual(Timestamp::from_micros(0), 1);
    let mut frames = 0;
    for _ in 0..4_000 {
        let row = [Cell::Bytes(ambient.random::<2048>().to_vec()), Cell::Null, Cell::Null];
        frames += usize::from(writer.row(&row).unwrap());
        assert!(writer.lines.len() < FRAME_BYTES + 4096);
    }
    assert!(frames >= 8, "{frames}");
    let (out, rows, whole) = writer.finish().unwrap();
    assert!(out.0 < FRAME_BYTES + 8192, "{}", out.0);
    assert_eq!(rows["run"], 4_000);
    assert!(whole.bytes > 8_000_000);
}
