//! What went wrong elsewhere, as tests of what is done here. Those that need a server or a database are in `tests/store/keys.rs`,
//! `tests/app/keys.rs` and `host/server/src/keys.rs`.

use aes_gcm::aead::{Aead as _, KeyInit as _, Payload};
use aes_gcm::{Aes256Gcm, Nonce};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bulkhead_keys::record::{self, Random};
use bulkhead_keys::{Context, Envelope, Key, KeyError, KeyId, Purpose};

fn place() -> Context<'static> {
    Context { organization: &[1; 16], table: "secret", column: "ciphertext", row: &[5; 16], purpose: Purpose::Field }
}

/// Kratos stored tokens in the clear unless a cipher was configured. There is no such cipher here, and what is in the clear does not
/// pass for something that was opened.
#[test]
fn nothing_is_stored_in_the_clear_and_nothing_clear_is_taken() {
    for clear in ["hunter2", "", "noop:hunter2", "enc:hunter2", "{\"access_token\":\"x\"}"] {
        let error = Envelope::parse(clear).map(drop).unwrap_err();
        assert!(matches!(error, KeyError::NotSealed | KeyError::UnknownFormat), "{clear}: {error}");
    }
    let sealed = record::seal(
        &Key::new([1; 32]),
        KeyId::Data(1),
        &place(),
        Random { salt: [0; 16], nonce: [0; 12] },
        b"hunter2",
    );
    let sealed = sealed.unwrap();
    assert!(!sealed.contains("hunter2") && !sealed.contains(&URL_SAFE_NO_PAD.encode("hunter2")));
}

/// AES-GCM does not commit to its key: one ciphertext can be made that opens under two. Here the envelope names its key by a hash,
/// which is looked at first.
#[test]
fn a_ciphertext_that_another_key_would_open_is_refused_by_its_commitment() {
    let (key, other) = (Key::new([1; 32]), Key::new([2; 32]));
    let seal = |key: &Key, salt| {
        record::seal(key, KeyId::Data(1), &place(), Random { salt, nonce: [3; 12] }, b"plain").unwrap()
    };
    let (text, theirs) = (seal(&key, [7; 16]), seal(&other, [7; 16]));
    let bytes = |text: &str| URL_SAFE_NO_PAD.decode(text.rsplit(':').next().unwrap()).unwrap();
    let (ours, theirs) = (bytes(&text), bytes(&theirs));
    // Algorithm and salt are the same; commitments are not.
    assert_eq!(ours[..17], theirs[..17]);
    assert_ne!(ours[17..49], theirs[17..49]);
    let mixed = [&ours[..49], &theirs[49..]].concat();
    let spliced = [&theirs[..49], &ours[49..]].concat();
    for forged in [mixed, spliced] {
        let forged = Envelope::parse(&format!("enc:v1:d1:{}", URL_SAFE_NO_PAD.encode(&forged))).unwrap();
        for key in [&key, &other] {
            assert_eq!(record::open(key, &place(), &forged).unwrap_err(), KeyError::DoesNotOpen);
        }
    }
}

/// What an older form of this product sealed (nonce, ciphertext, tag: no salt, no commitment) does not open as something else.
#[test]
fn a_bare_ciphertext_is_no_envelope() {
    let cipher = Aes256Gcm::new(&[1; 32].into());
    let bare = cipher.encrypt(&Nonce::from([0; 12]), Payload { msg: &[0; 64], aad: b"" }).unwrap();
    let text = format!("enc:v1:d1:{}", URL_SAFE_NO_PAD.encode([&[1], &bare[..]].concat()));
    let envelope = Envelope::parse(&text).unwrap();
    assert_eq!(record::open(&Key::new([1; 32]), &place(), &envelope).unwrap_err(), KeyError::DoesNotOpen);
}

/// RSA's private operations in the `rsa` crate leak by their time, and no release mends it (RUSTSEC-2023-0071). It is there for passkeys'
/// signatures, which are checked with public keys; nothing else may come to use it.
#[test]
fn the_crate_rsa_is_there_for_passkeys_alone_rustsec_2023_0071() {
    let lock = include_str!("../../Cargo.lock");
    assert!(lock.contains("name = \"aes-gcm\""), "this is the lock file");
    let users: Vec<&str> = lock
        .split("[[package]]")
        .filter(|package| package.lines().any(|line| line.trim() == "\"rsa\","))
        .filter_map(|package| package.split('"').nth(1))
        .collect();
    assert_eq!(users, ["crypto-glue"], "of webauthn-rs");
}

/// Of AES-GCM only the form with 96-bit nonces and whole tags is there; a shorter tag is a shorter ciphertext, which does not open.
#[test]
fn a_shortened_tag_is_not_taken() {
    let (key, random) = (Key::new([1; 32]), Random { salt: [0; 16], nonce: [0; 12] });
    let text = record::seal(&key, KeyId::Data(1), &place(), random, b"plain").unwrap();
    let bytes = URL_SAFE_NO_PAD.decode(text.rsplit(':').next().unwrap()).unwrap();
    for cut in 1..=16 {
        let short = format!("enc:v1:d1:{}", URL_SAFE_NO_PAD.encode(&bytes[..bytes.len() - cut]));
        let opened = record::open(&key, &place(), &Envelope::parse(&short).unwrap());
        assert_eq!(opened.unwrap_err(), KeyError::DoesNotOpen, "{cut} bytes shorter");
    }
}
