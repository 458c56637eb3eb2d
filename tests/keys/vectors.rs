//! Project Wycheproof's vectors, each of those that fit the one form in which a primitive is used here.

use bulkhead_keys::index::hmac_sha256;
use bulkhead_keys::primitives::{gcm_open, gcm_seal, hkdf_sha256, kw_unwrap, kw_wrap};
use wycheproof::{TestResult, aead, hkdf, keywrap, mac};

/// How many vectors were valid, and how many had to be refused.
#[derive(Debug, Default, PartialEq, Eq)]
struct Ran {
    valid: usize,
    refused: usize,
}

#[test]
fn aes_256_gcm_with_nonces_of_96_bits() {
    let set = aead::TestSet::load(aead::TestName::AesGcm).unwrap();
    let mut ran = Ran::default();
    let fits = |group: &aead::TestGroup| (group.key_size, group.nonce_size, group.tag_size) == (256, 96, 128);
    for group in set.test_groups.into_iter().filter(fits) {
        for test in group.tests {
            let (key, nonce) = (test.key[..].try_into().unwrap(), test.nonce[..].try_into().unwrap());
            let sealed = [&test.ct[..], &test.tag[..]].concat();
            let mut buffer = sealed.clone();
            let opened = gcm_open(key, nonce, &test.aad, &mut buffer);
            if test.result == TestResult::Invalid {
                assert!(opened.is_err(), "case {}: {}", test.tc_id, test.comment);
                assert!(buffer.is_empty(), "case {}", test.tc_id);
                ran.refused += 1;
                continue;
            }
            assert!(opened.is_ok(), "case {}: {}", test.tc_id, test.comment);
            assert_eq!(buffer, test.pt[..], "case {}", test.tc_id);
            gcm_seal(key, nonce, &test.aad, &mut buffer).unwrap();
            assert_eq!(buffer, sealed, "case {}", test.tc_id);
            ran.valid += 1;
        }
    }
    assert_eq!(ran, Ran { valid: 39, refused: 27 });
}

#[test]
fn hkdf_with_sha_256() {
    let set = hkdf::TestSet::load(hkdf::TestName::HkdfSha256).unwrap();
    let mut ran = Ran::default();
    for test in set.test_groups.into_iter().flat_map(|group| group.tests) {
        let mut okm = vec![0; test.size];
        let derived = hkdf_sha256(&test.salt, &test.ikm, &test.info, &mut okm);
        if test.result == TestResult::Invalid {
            assert!(derived.is_err(), "case {}: {}", test.tc_id, test.comment);
            ran.refused += 1;
        } else {
            assert!(derived.is_ok(), "case {}: {}", test.tc_id, test.comment);
            assert_eq!(okm, test.okm[..], "case {}", test.tc_id);
            ran.valid += 1;
        }
    }
    assert_eq!(ran.valid + ran.refused, 86, "{ran:?}");
    assert!(ran.refused > 0, "{ran:?}");
}

#[test]
fn hmac_with_sha_256() {
    let set = mac::TestSet::load(mac::TestName::HmacSha256).unwrap();
    let mut ran = Ran::default();
    for group in set.test_groups.into_iter().filter(|group| group.tag_size == 256) {
        for test in group.tests {
            let same = hmac_sha256(&test.key, &test.msg)[..] == test.tag[..];
            assert_eq!(same, test.result != TestResult::Invalid, "case {}: {}", test.tc_id, test.comment);
            if same { ran.valid += 1 } else { ran.refused += 1 }
        }
    }
    assert!(ran.valid > 20 && ran.refused > 20, "{ran:?}");
}

#[test]
fn aes_256_kw() {
    let set = keywrap::TestSet::load(keywrap::TestName::AesKeyWrap).unwrap();
    let mut ran = Ran::default();
    for test in set.test_groups.into_iter().filter(|group| group.key_size == 256).flat_map(|group| group.tests) {
        let kek = test.key[..].try_into().unwrap();
        let (wrapped, unwrapped) = (kw_wrap(kek, &test.pt), kw_unwrap(kek, &test.ct));
        match test.result {
            TestResult::Invalid => {
                let same = wrapped.is_ok_and(|wrapped| wrapped == test.ct[..]);
                assert!(!same && unwrapped.is_err(), "case {}: {}", test.tc_id, test.comment);
                ran.refused += 1;
            }
            TestResult::Valid => {
                assert_eq!(wrapped.unwrap(), test.ct[..], "case {}", test.tc_id);
                assert_eq!(unwrapped.unwrap()[..], test.pt[..], "case {}", test.tc_id);
                ran.valid += 1;
            }
            TestResult::Acceptable => {}
        }
    }
    assert!(ran.valid > 10 && ran.refused > 10, "{ran:?}");
}
