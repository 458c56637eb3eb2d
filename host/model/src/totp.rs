//! Codes of authenticator apps (RFC 6238): SHA-1, six digits, thirty seconds, since apps silently take every other choice for these.
//!
//! A code proves a *step* of time. Which step it was is told, not only that it was right: whoever stores the last one that was used accepts
//! each step once, whatever the code's text looks like.

use qrcode::QrCode;
use qrcode::render::svg;
use totp_rs::{Algorithm, Builder, Totp};
use zeroize::Zeroizing;

use crate::ambient::Ambient;
use crate::time::Timestamp;

/// RFC 4226 §4: at least 128 bits, 160 recommended.
pub const SECRET_BYTES: usize = 20;
/// How long a set-up may take from the secret to the acknowledged backup codes. Source: reference/core-services.md, a.3.
pub const SET_UP_LIVES_S: u64 = 600;
/// Wrong codes in a row after which the app's codes are worth nothing until a backup code was right or the operator helped.
pub const FAILURES_MAX: u32 = 10;
const STEP_S: u64 = 30;
/// Steps before and after the present one that count.
const SKEW: u16 = 1;
const DIGITS: usize = 6;

/// What the server and the app share. Made by the server, shown once.
#[derive(Clone, PartialEq, Eq)]
pub struct TotpSecret(Zeroizing<[u8; SECRET_BYTES]>);

impl TotpSecret {
    #[must_use]
    pub fn generate(ambient: &Ambient) -> Self {
        Self(Zeroizing::new(ambient.random()))
    }

    #[must_use]
    pub fn from_bytes(bytes: [u8; SECRET_BYTES]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    #[must_use]
    pub fn bytes(&self) -> &[u8; SECRET_BYTES] {
        &self.0
    }

    /// As people type it into an app: RFC 4648 base32, which needs no padding for 160 bits.
    #[must_use]
    pub fn base32(&self) -> Zeroizing<String> {
        const ALPHABET: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
        let mut text = Zeroizing::new(String::with_capacity(SECRET_BYTES * 8 / 5));
        for chunk in self.0.chunks_exact(5) {
            let bits = chunk.iter().fold(0_u64, |bits, byte| (bits << 8) | u64::from(*byte));
            for place in (0..8).rev() {
                let five = u8::try_from((bits >> (place * 5)) & 31).expect("five bits are below 256");
                text.push(char::from(ALPHABET[usize::from(five)]));
            }
        }
        text
    }

    /// Reads what [`base32`](Self::base32) writes.
    #[must_use]
    pub fn from_base32(text: &str) -> Option<Self> {
        let mut bytes = Zeroizing::new([0; SECRET_BYTES]);
        if text.len() != SECRET_BYTES * 8 / 5 {
            return None;
        }
        for (letters, five) in text.as_bytes().chunks_exact(8).zip(bytes.chunks_exact_mut(5)) {
            let mut bits = 0_u64;
            for letter in letters {
                let value = match letter {
                    b'A'..=b'Z' => letter - b'A',
                    b'2'..=b'7' => letter - b'2' + 26,
                    _ => return None,
                };
                bits = (bits << 5) | u64::from(value);
            }
            five.copy_from_slice(&bits.to_be_bytes()[3..]);
        }
        Some(Self(bytes))
    }

    /// What an app shows at that moment: for whoever plays one, as the demo does.
    #[must_use]
    pub fn code_at(&self, now: Timestamp) -> String {
        let now_s = u64::try_from(now.as_micros() / 1_000_000).unwrap_or(0);
        self.totp().generate(now_s).to_string()
    }

    /// The address that a QR code holds.
    #[must_use]
    pub fn uri(&self, issuer: &str, account: &str) -> Zeroizing<String> {
        let (issuer, account) = (percent(issuer), percent(account));
        Zeroizing::new(format!(
            "otpauth://totp/{issuer}:{account}?secret={}&issuer={issuer}&algorithm=SHA1&digits={DIGITS}&period={STEP_S}",
            *self.base32()
        ))
    }

    /// That address as a picture, drawn here: it holds the secret, which no other server may see.
    #[must_use]
    pub fn qr_svg(uri: &str) -> String {
        let code = QrCode::new(uri).expect("an address of a few hundred bytes is far below a QR code's 2,953");
        code.render::<svg::Color<'_>>().min_dimensions(240, 240).build()
    }

    fn totp(&self) -> Totp {
        Builder::new()
            .with_algorithm(Algorithm::SHA1)
            .with_skew(SKEW)
            .with_step_duration(STEP_S)
            .with_secret(*self.0)
            .build_noncompliant()
    }

    /// The step that the code proves, of the present one and its two neighbours. Anything but six digits proves none.
    #[must_use]
    pub fn matching_step(&self, code: &str, now: Timestamp) -> Option<i64> {
        if code.len() != DIGITS || !code.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        let now_s = u64::try_from(now.as_micros() / 1_000_000).ok()?;
        self.totp().check(code, now_s).and_then(|step| i64::try_from(step).ok())
    }
}

impl std::fmt::Debug for TotpSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TotpSecret(…)")
    }
}

fn percent(text: &str) -> String {
    use std::fmt::Write as _;
    text.bytes().fold(String::new(), |mut out, byte| {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
        out
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const RFC_SECRET: [u8; SECRET_BYTES] = *b"12345678901234567890";

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_micros(seconds * 1_000_000)
    }

    /// RFC 4226, appendix D: the codes of the first ten counters. A counter is a step here.
    #[test]
    fn rfc_4226_appendix_d() {
        let codes =
            ["755224", "287082", "359152", "969429", "338314", "254676", "287922", "162583", "399871", "520489"];
        let secret = TotpSecret::from_bytes(RFC_SECRET);
        for (step, code) in (0_i64..).zip(codes) {
            assert_eq!(secret.matching_step(code, at(step * 30)), Some(step), "{code}");
            assert_eq!(secret.matching_step(code, at(step * 30 + 29)), Some(step), "{code}");
            assert_eq!(secret.code_at(at(step * 30 + 29)), code);
        }
    }

    #[test]
    fn what_is_typed_in_is_read_back() {
        let secret = TotpSecret::from_bytes(RFC_SECRET);
        assert!(TotpSecret::from_base32(&secret.base32()) == Some(secret.clone()));
        for odd in ["", "A", &"a".repeat(32), &"A".repeat(31), &"1".repeat(32), &"A".repeat(40)] {
            assert!(TotpSecret::from_base32(odd).is_none(), "{odd}");
        }
    }

    /// RFC 6238, appendix B: its SHA-1 values are of eight digits; a code is the last six of them.
    #[test]
    fn rfc_6238_appendix_b() {
        let secret = TotpSecret::from_bytes(RFC_SECRET);
        for (seconds, code) in [
            (59, "94287082"),
            (1_111_111_109, "07081804"),
            (1_111_111_111, "14050471"),
            (1_234_567_890, "89005924"),
            (2_000_000_000, "69279037"),
            (20_000_000_000, "65353130"),
        ] {
            assert_eq!(secret.matching_step(&code[2..], at(seconds)), Some(seconds / 30), "{code}");
        }
    }

    #[test]
    fn one_step_before_and_after_counts_and_no_further() {
        let secret = TotpSecret::from_bytes(RFC_SECRET);
        let of = |offset: i64| secret.matching_step("254676", at((5 + offset) * 30));
        assert_eq!([-2, -1, 0, 1, 2].map(of), [None, Some(5), Some(5), Some(5), None]);
    }

    /// OpenBao CVE-2025-6014: a code with spaces counted as another one.
    #[test]
    fn a_code_is_six_digits() {
        let secret = TotpSecret::from_bytes(RFC_SECRET);
        for bad in
            ["", " 254676", "254676 ", "254 676", "25467", "0254676", "２５４６７６", "25467a", "+25467", "254676\0"]
        {
            assert_eq!(secret.matching_step(bad, at(150)), None, "{bad:?}");
        }
        assert_eq!(secret.matching_step("254676", Timestamp::from_micros(-1_000_000)), None);
    }

    #[test]
    fn apps_read_what_is_shown() {
        let secret = TotpSecret::from_bytes(RFC_SECRET);
        assert_eq!(*secret.base32(), "GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ");
        assert_eq!(
            *secret.uri("Bulk head", "ada+1@example.com"),
            "otpauth://totp/Bulk%20head:ada%2B1%40example.com?secret=GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ&issuer=Bulk%20head\
             &algorithm=SHA1&digits=6&period=30"
        );
        assert_eq!(format!("{secret:?}"), "TotpSecret(…)");
        let picture = TotpSecret::qr_svg(&secret.uri("Bulkhead", &format!("{}@example.com", "a".repeat(242))));
        assert!(
            picture.contains("<svg") && !picture.contains("http://") | picture.contains("http://www.w3.org/2000/svg")
        );
    }

    proptest! {
        #[test]
        fn a_right_code_names_a_step_near_by(bytes: [u8; SECRET_BYTES], seconds in 0_i64..100_000_000_000, code in "[0-9]{6}") {
            if let Some(step) = TotpSecret::from_bytes(bytes).matching_step(&code, at(seconds)) {
                prop_assert!((step - seconds / 30).abs() <= 1);
            }
        }
    }
}
