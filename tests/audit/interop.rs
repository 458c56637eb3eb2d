//! What we write, read by somebody else's implementation of the note format, and the other way round.

use bulkhead_audit::checkpoint::{Checkpoint, CheckpointError};
use bulkhead_audit::hash::Hash;
use bulkhead_audit::key::VerifierKey;
use bulkhead_audit::note::Note;
use signed_note::{Note as OtherNote, StandardSigner, StandardVerifier, VerifierList};

use crate::support::{Log, key, org};

#[test]
fn another_implementation_verifies_our_checkpoints() {
    let mut log = Log::of(5);
    log.rotate(key(2));
    log.checkpoint();
    let (checkpoint, note) = log.checkpoints.last().unwrap();
    let verifier = StandardVerifier::new(&log.signer.verifier().to_string()).unwrap();
    let read = OtherNote::from_bytes(note.as_bytes()).unwrap();
    let (verified, unverified) = read.verify(&VerifierList::new(vec![Box::new(verifier)])).unwrap();
    assert_eq!((verified.len(), unverified.len()), (1, 0));
    assert_eq!(read.text(), checkpoint.text().as_bytes());
    // Not the key that was in force before.
    let old = StandardVerifier::new(&key(1).verifier().to_string()).unwrap();
    assert!(read.verify(&VerifierList::new(vec![Box::new(old)])).is_err());
}

#[test]
fn we_verify_anothers_checkpoint() {
    let skey = "PRIVATE+KEY+PeterNeumann+c74f20a3+AYEKFALVFGyNhPJEMzD1QIDr+Y7hfZx09iUvxdXHKDFz";
    let text = "PeterNeumann\n9007199254740991\n47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=\nan extension\n";
    let mut note = OtherNote::new(text.as_bytes(), &[]).unwrap();
    note.add_sigs(&[&StandardSigner::new(skey).unwrap()]).unwrap();
    let note = String::from_utf8(note.to_bytes()).unwrap();
    let peter: VerifierKey = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW".parse().unwrap();
    let checkpoint = Checkpoint::open(&note, "PeterNeumann", std::slice::from_ref(&peter)).unwrap();
    assert_eq!((checkpoint.size, checkpoint.root), (9_007_199_254_740_991, Hash::of(&[])));
    let another = Checkpoint::open(&note, "another", &[peter]).unwrap_err();
    assert_eq!(another, CheckpointError::Origin);
}

#[test]
fn checkpoints_have_one_text() {
    let root = "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=";
    assert!(Checkpoint::from_text(&format!("o\n0\n{root}\n")).is_ok());
    for (what, text) in [
        ("no size", format!("o\n{root}\n")),
        ("leading zero", format!("o\n01\n{root}\n")),
        ("sign", format!("o\n+1\n{root}\n")),
        ("negative", format!("o\n-1\n{root}\n")),
        ("too large", format!("o\n9007199254740992\n{root}\n")),
        ("short root", "o\n1\n47DEQpj8\n".to_owned()),
        ("other base64 of the same root", format!("o\n1\n{}\n", root.replace("U=", "V="))),
        ("no last line break", format!("o\n1\n{root}")),
        ("no origin", format!("\n1\n{root}\n")),
        ("blank line", format!("o\n1\n{root}\n\nx\n")),
    ] {
        assert_eq!(Checkpoint::from_text(&text), Err(CheckpointError::Malformed), "{what}");
    }
}

#[test]
fn no_second_history_is_signed() {
    let log = Log::of(6);
    let other = {
        let mut other = Log::open();
        while other.size() < 8 {
            other.append(bulkhead_audit::taxonomy::EventType::RunStarted, |_| {}, None);
        }
        other
    };
    let signed = &log.checkpoints[0].0;
    let forked = other.chain.checkpoint();
    let proof = match other.way(6, 8) {
        bulkhead_audit::bundle::Line::Consistency { path, .. } => path,
        line => panic!("{line:?}"),
    };
    assert_eq!(forked.sign_after(Some(signed), &proof, &key(1)), Err(CheckpointError::Inconsistent));
    // Nor a smaller one, nor one of the same size with another root, nor with a key of another name.
    let smaller = Log::of(5).chain.checkpoint();
    assert_eq!(smaller.sign_after(Some(signed), &[], &key(1)), Err(CheckpointError::Inconsistent));
    let same_size = Checkpoint { root: Hash::of(&[b"x"]), ..signed.clone() };
    assert_eq!(same_size.sign_after(Some(signed), &[], &key(1)), Err(CheckpointError::Inconsistent));
    let elsewhere = bulkhead_audit::key::SignerKey::from_seed("elsewhere", &[1; 32]).unwrap();
    assert_eq!(forked.sign_after(None, &[], &elsewhere), Err(CheckpointError::Origin));
    assert!(signed.sign_after(Some(signed), &[], &key(1)).is_ok());
}

#[test]
fn witnesses_may_add_their_signature() {
    let log = Log::of(3);
    let mut note = Note::parse(&log.checkpoints[0].1).unwrap();
    note.add(&bulkhead_audit::key::SignerKey::from_seed("witness.example", &[9; 32]).unwrap()).unwrap();
    let origin = bulkhead_audit::chain::origin(&org());
    let opened = Checkpoint::open(&note.to_string(), &origin, &[key(1).verifier()]).unwrap();
    assert_eq!(opened, log.checkpoints[0].0);
}
