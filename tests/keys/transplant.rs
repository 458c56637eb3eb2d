//! A ciphertext opens in the place it was made for and in no other, and says nothing when it does not.

use bulkhead_keys::record::{self, PLAIN_BYTES_MAX, Random};
use bulkhead_keys::{Context, Envelope, Key, KeyError, KeyId, Purpose, wrap};

const KID: KeyId = KeyId::Data(3);

fn key() -> Key {
    Key::new([0x11; 32])
}

fn random(byte: u8) -> Random {
    Random { salt: [byte; 16], nonce: [byte; 12] }
}

fn place() -> Context<'static> {
    Context { organization: &[1; 16], table: "secret", column: "ciphertext", row: &[5; 16], purpose: Purpose::Field }
}

/// Every place that differs in one element.
fn elsewhere() -> Vec<(&'static str, Context<'static>)> {
    vec![
        ("organization", Context { organization: &[2; 16], ..place() }),
        ("no organization", Context { organization: &[], ..place() }),
        ("table", Context { table: "hook", ..place() }),
        ("column", Context { column: "name", ..place() }),
        ("row", Context { row: &[6; 16], ..place() }),
        ("purpose", Context { purpose: Purpose::BlindIndex, ..place() }),
        ("a boundary moved", Context { table: "secretc", column: "iphertext", ..place() }),
    ]
}

fn open(key: &Key, context: &Context<'_>, text: &str) -> Result<Vec<u8>, KeyError> {
    record::open(key, context, &Envelope::parse(text)?).map(|plain| plain.to_vec())
}

#[test]
fn a_value_moved_to_another_row_column_table_or_organization_does_not_open() {
    let sealed = record::seal(&key(), KID, &place(), random(7), b"xoxb-1").unwrap();
    assert_eq!(open(&key(), &place(), &sealed).unwrap(), b"xoxb-1");
    for (what, context) in elsewhere() {
        assert_eq!(open(&key(), &context, &sealed), Err(KeyError::DoesNotOpen), "{what}");
    }
    // Under another version's name the same key is another key.
    let renamed = sealed.replacen("enc:v1:d3:", "enc:v1:d4:", 1);
    assert_eq!(open(&key(), &place(), &renamed), Err(KeyError::DoesNotOpen));
    assert_eq!(open(&Key::new([0x12; 32]), &place(), &sealed), Err(KeyError::DoesNotOpen));
}

#[test]
fn a_wrapped_key_moved_elsewhere_does_not_open() {
    let context = |organization: &'static [u8], row: &'static [u8]| Context {
        organization,
        table: "data_key",
        column: "wrapped",
        row,
        purpose: Purpose::DataKey,
    };
    let wrapped = wrap::wrap(&key(), KeyId::Organization(1), &context(&[1], &[1]), [9; 16], &Key::new([0x33; 32]));
    let unwrap =
        |by: &Key, context: &Context<'_>, text: &str| wrap::unwrap(by, context, &Envelope::parse(text)?).map(drop);
    assert_eq!(unwrap(&key(), &context(&[1], &[1]), &wrapped), Ok(()));
    for (organization, row) in [(&[2][..], &[1][..]), (&[1], &[2]), (&[1], &[1, 1])] {
        assert_eq!(unwrap(&key(), &context(organization, row), &wrapped), Err(KeyError::DoesNotOpen));
    }
    let other = Context { purpose: Purpose::OrganizationKey, ..context(&[1], &[1]) };
    assert_eq!(unwrap(&key(), &other, &wrapped), Err(KeyError::DoesNotOpen));
    assert_eq!(unwrap(&Key::new([0; 32]), &context(&[1], &[1]), &wrapped), Err(KeyError::DoesNotOpen));
    // A key is no value and a value no key.
    assert_eq!(open(&key(), &place(), &wrapped), Err(KeyError::UnknownFormat));
    let sealed = record::seal(&key(), KID, &place(), random(7), &[0x33; 32]).unwrap();
    assert_eq!(unwrap(&key(), &place(), &sealed), Err(KeyError::UnknownFormat));
}

#[test]
fn every_changed_or_missing_character_is_found() {
    let sealed = record::seal(&key(), KID, &place(), random(7), b"xoxb-1").unwrap();
    for at in 0..sealed.len() {
        for other in ["A", "_", "9", ":"] {
            let broken = format!("{}{other}{}", &sealed[..at], &sealed[at + 1..]);
            if broken != sealed {
                assert!(open(&key(), &place(), &broken).is_err(), "{at} became {other}");
            }
        }
        assert!(open(&key(), &place(), &sealed[..at]).is_err(), "cut off at {at}");
    }
    assert!(open(&key(), &place(), &format!("{sealed}A")).is_err());
}

#[test]
fn two_values_never_look_alike_and_sizes_have_a_bound() {
    let seal = |byte, plain: &[u8]| record::seal(&key(), KID, &place(), random(byte), plain);
    assert_ne!(seal(1, b"same").unwrap(), seal(2, b"same").unwrap());
    for size in [0, 1, 15, 16, 17, PLAIN_BYTES_MAX] {
        let plain = vec![b'x'; size];
        assert_eq!(open(&key(), &place(), &seal(3, &plain).unwrap()).unwrap(), plain, "{size} bytes");
    }
    assert_eq!(seal(4, &vec![0; PLAIN_BYTES_MAX + 1]), Err(KeyError::TooLarge));
}

/// These texts were made by this version. A later one that does not open them has lost its users' data.
#[test]
fn what_was_sealed_once_opens_for_ever() {
    let sealed = record::seal(&key(), KID, &place(), random(7), b"xoxb-1").unwrap();
    assert_eq!(sealed, KEPT_RECORD);
    let context = Context { table: "data_key", column: "wrapped", purpose: Purpose::DataKey, ..place() };
    let wrapped = wrap::wrap(&key(), KeyId::Organization(2), &context, [9; 16], &Key::new([0x33; 32]));
    assert_eq!(wrapped, KEPT_KEY);
    assert_eq!(open(&key(), &place(), KEPT_RECORD).unwrap(), b"xoxb-1");
}

const KEPT_RECORD: &str = "enc:v1:d3:AQcHBwcHBwcHBwcHBwcHBwcI604cBDjduWTXmro4Vzih6vjLvaHQhj2GsLA61sYhzAcHBwcHBwcHBwcHB95eNF7fsbrNLPvNaj9fmMMnTXntbYw";
const KEPT_KEY: &str = "enc:v1:o2:AgkJCQkJCQkJCQkJCQkJCQmj5OFI_sg7KMDdp6OSbq-gRlC6WT4WtrRRlT9Z3iSSVnMt1QdgGUOBZ_TFQI-saXdj3EAv3Gsuq7I6ByVfQWWKYgeoB3je6q8";
