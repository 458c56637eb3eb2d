//! Vectors of others: `tests/fixtures/audit/README.md` says whose.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bulkhead_audit::canonical;
use bulkhead_audit::hash::Hash;
use bulkhead_audit::key::VerifierKey;
use bulkhead_audit::merkle::{self, Edge};
use bulkhead_audit::note::{Note, NoteError};
use serde_json::Value;

fn cases(text: &str) -> impl Iterator<Item = Value> + '_ {
    text.lines().map(|line| serde_json::from_str(line).unwrap())
}

/// A hash of a case; what has not 32 bytes is none.
fn hash(value: &Value) -> Option<Hash> {
    Hash::from_slice(&STANDARD.decode(value.as_str().unwrap()).unwrap())
}

fn hashes(value: &Value) -> Option<Vec<Hash>> {
    value.as_array().map_or(Some(Vec::new()), |items| items.iter().map(hash).collect())
}

#[test]
fn inclusion_proofs_of_transparency_dev() {
    let mut seen = 0;
    for case in cases(include_str!("../fixtures/audit/merkle-inclusion.jsonl")) {
        let held = match (hash(&case["leafHash"]), hash(&case["root"]), hashes(&case["proof"])) {
            (Some(leaf), Some(root), Some(proof)) => {
                let (index, size) = (case["leafIdx"].as_u64().unwrap(), case["treeSize"].as_u64().unwrap());
                merkle::verify_inclusion(index, size, leaf, &proof, root).is_ok()
            }
            (_, _, _) => false,
        };
        assert_eq!(held, !case["wantErr"].as_bool().unwrap(), "{}", case["name"]);
        seen += 1;
    }
    assert_eq!(seen, 98);
}

#[test]
fn consistency_proofs_of_transparency_dev() {
    let mut seen = 0;
    for case in cases(include_str!("../fixtures/audit/merkle-consistency.jsonl")) {
        let (old, new) = (case["size1"].as_u64().unwrap(), case["size2"].as_u64().unwrap());
        // Some cases of equal sizes have roots that are no hashes: their verifier compares bytes before it looks at sizes.
        let roots = [&case["root1"], &case["root2"]].map(|root| STANDARD.decode(root.as_str().unwrap()).unwrap());
        let held = match (Hash::from_slice(&roots[0]), Hash::from_slice(&roots[1]), hashes(&case["proof"])) {
            (Some(old_root), Some(new_root), Some(proof)) => {
                merkle::verify_consistency(old, new, old_root, new_root, &proof).is_ok()
            }
            (_, _, Some(proof)) => {
                let [old_root, new_root] = roots.map(|root| Hash::of(&[&root]));
                merkle::verify_consistency(old, new, old_root, new_root, &proof).is_ok()
            }
            (_, _, None) => false,
        };
        assert_eq!(held, !case["wantErr"].as_bool().unwrap(), "{}", case["name"]);
        seen += 1;
    }
    assert_eq!(seen, 98);
}

#[test]
fn roots_of_certificate_transparencys_eight_leaves() {
    let leaves = ["", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"];
    let roots = [
        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
        "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
        "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
        "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
        "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
        "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
        "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
    ];
    let mut edge = Edge::new();
    for (leaf, root) in leaves.iter().zip(roots) {
        assert_eq!(edge.root().to_string(), root);
        edge.append(merkle::leaf(&hex::decode(leaf).unwrap()));
    }
    assert_eq!(edge.root().to_string(), roots[8]);
}

#[test]
fn canonical_json_of_rfc_8785() {
    macro_rules! cases {
        ($($name:literal),*) => {[$((
            $name,
            include_str!(concat!("../fixtures/audit/jcs/", $name, ".input.json")),
            include_str!(concat!("../fixtures/audit/jcs/", $name, ".output.json")),
        )),*]};
    }
    for (name, input, output) in cases!["arrays", "french", "structures", "unicode", "values", "weird"] {
        let value: Value = serde_json::from_str(input).unwrap();
        assert_eq!(canonical::text(&value).unwrap(), output.trim_end_matches('\n'), "{name}");
    }
}

/// The generator of RFC 8785's number file, read from its description; the sum over the first 100,000 lines is published with it.
#[test]
fn numbers_of_rfc_8785() {
    use sha2::{Digest as _, Sha256};
    let fixed = include_str!("../fixtures/audit/jcs/numbers.txt").split_whitespace();
    let fixed = fixed.map(|text| u64::from_str_radix(text, 16).unwrap());
    let serial = (0..2000).map(|at| 0x0010_0000_0000_0000 + at);
    let mut block = [0_u8; 32];
    let random = std::iter::from_fn(move || {
        block = Sha256::digest(block).into();
        Some(block)
    })
    .flat_map(|block| {
        let parts: Vec<_> = block.chunks_exact(8).map(|part| u64::from_le_bytes(part.try_into().unwrap())).collect();
        parts
    })
    .filter(|bits| f64::from_bits(*bits) != 0.0 && f64::from_bits(*bits).is_finite());
    let (mut sum, mut lines) = (Sha256::new(), 0);
    let published = [
        (1000, "be18b62b6f69cdab33a7e0dae0d9cfa869fda80ddc712221570f9f40a5878687"),
        (10_000, "b9f7a8e75ef22a835685a52ccba7f7d6bdc99e34b010992cbc5864cd12be6892"),
        (100_000, "22776e6d4b49fa294a0d0f349268e5c28808fe7e0cb2bcbe28f63894e494d4c7"),
    ];
    for bits in fixed.chain(serial).chain(random).take(100_000) {
        sum.update(format!("{bits:x},{}\n", canonical::text(&f64::from_bits(bits)).unwrap()));
        lines += 1;
        if let Some((_, expected)) = published.iter().find(|(at, _)| *at == lines) {
            assert_eq!(hex::encode(sum.clone().finalize()), *expected, "{lines} lines");
        }
    }
    assert_eq!(lines, 100_000);
}

#[test]
fn ed25519_of_wycheproof() {
    let mut seen = 0;
    for case in cases(include_str!("../fixtures/audit/wycheproof-ed25519.jsonl")) {
        let bytes = |field: &str| hex::decode(case[field].as_str().unwrap()).unwrap();
        let verified = VerifierKey::from_bytes("wycheproof", &bytes("key").try_into().unwrap())
            .is_ok_and(|key| key.verifies(&bytes("message"), &bytes("signature")));
        assert_eq!(verified, case["result"] == "valid", "case {}: {}", case["id"], case["comment"]);
        seen += 1;
    }
    assert_eq!(seen, 151);
}

const PETER: &str = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW";
const ENOCH: &str = "EnochRoot+af0cfe78+ATtqJ7zOtqQtYqOo0CpvDXNlMhV3HeJDpjrASKGLWdop";
const TEXT: &str =
    "If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n";
const PETERS: &str = "\u{2014} PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n";
const ENOCHS: &str =
    "\u{2014} EnochRoot rwz+eBzmZa0SO3NbfRGzPCpDckykFXSdeX+MNtCOXm2/5n2tiOHp+vAF1aGrQ5ovTG01oOTGwnWLox33WWd1RvMc+QQ=\n";

#[test]
fn notes_of_gos_implementation() {
    let peter: VerifierKey = PETER.parse().unwrap();
    let enoch: VerifierKey = ENOCH.parse().unwrap();
    assert_eq!((peter.to_string().as_str(), enoch.to_string().as_str()), (PETER, ENOCH));
    let both = format!("{TEXT}\n{PETERS}{ENOCHS}");
    let note = Note::parse(&both).unwrap();
    assert_eq!(note.to_string(), both);
    assert_eq!(note.text(), TEXT);
    assert_eq!(note.verify(std::slice::from_ref(&peter)), Ok(&peter));
    assert_eq!(note.verify(&[enoch.clone(), peter.clone()]), Ok(&peter));
    assert_eq!(note.verify(&[]), Err(NoteError::Unknown));
    let changed = Note::parse(&both.replacen("answer", "anSwer", 1)).unwrap();
    assert_eq!(changed.verify(std::slice::from_ref(&peter)), Err(NoteError::Signature));
    let renamed = Note::parse(&both.replace("PeterNeumann", "CarmenSandiego")).unwrap();
    assert_eq!(renamed.verify(&[peter]), Err(NoteError::Unknown));
    let longer = PETERS.replacen("x08go", "x08goABC", 1);
    assert!(Note::parse(&format!("{TEXT}\n{longer}")).is_err());
    let malformed = [
        TEXT.to_owned(),
        format!("{TEXT}\n"),
        format!("{TEXT}\n{}", PETERS.trim_end()),
        format!("\u{1}{TEXT}\n{PETERS}"),
        format!("{TEXT}\n{}", PETERS.replacen("PeterNeumann", "Bad Name", 1)),
        format!("{TEXT}\n{PETERS}Unexpected line.\n"),
        format!("{TEXT}\n{}", PETERS.repeat(101)),
    ];
    for text in malformed {
        assert_eq!(Note::parse(&text), Err(NoteError::Malformed), "{text}");
    }
}

#[test]
fn mangled_keys_are_refused() {
    for (from, _) in PETER.char_indices() {
        for to in from + 1..=PETER.len() {
            if (from, to) != (0, PETER.len()) {
                assert!(PETER[from..to].parse::<VerifierKey>().is_err(), "{}", &PETER[from..to]);
            }
        }
    }
    for at in 0..PETER.len() {
        let mut bytes = PETER.as_bytes().to_vec();
        bytes[at] += 1;
        assert!(std::str::from_utf8(&bytes).unwrap().parse::<VerifierKey>().is_err(), "byte {at}");
    }
    // A key of another length and one of an unknown type, each with the id that it would have.
    for key in [
        "PeterNeumann+cc469956+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TWBADKEY==",
        "PeterNeumann+173116ae+ZRpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW",
    ] {
        assert!(key.parse::<VerifierKey>().is_err(), "{key}");
    }
}
