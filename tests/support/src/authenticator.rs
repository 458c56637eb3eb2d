//! An authenticator app: it knows what a QR code's address says, and shares no code with the host.

use hmac::{Hmac, KeyInit as _, Mac as _};
use sha1::Sha1;

pub struct Authenticator {
    secret: Vec<u8>,
}

impl Authenticator {
    /// Reads the address that a QR code holds.
    ///
    /// # Panics
    /// When an app in the field would not read it as it is meant.
    #[must_use]
    pub fn scan(uri: &str) -> Self {
        let (path, query) = uri.split_once('?').expect("an address with a query");
        assert!(path.starts_with("otpauth://totp/"), "{path}");
        let of = |name: &str| {
            let mut values = query.split('&').filter_map(|pair| pair.split_once('=')).filter(|(key, _)| *key == name);
            values.next().map(|(_, value)| value).unwrap_or_default()
        };
        assert_eq!((of("algorithm"), of("digits"), of("period")), ("SHA1", "6", "30"));
        Self::type_in(of("secret"))
    }

    /// Reads what is typed in.
    ///
    /// # Panics
    /// When it is not base 32.
    #[must_use]
    pub fn type_in(text: &str) -> Self {
        let (mut bits, mut count, mut secret) = (0_u32, 0, Vec::new());
        for letter in text.bytes() {
            let value = match letter {
                b'A'..=b'Z' => letter - b'A',
                b'2'..=b'7' => letter - b'2' + 26,
                _ => panic!("{text} is not base 32"),
            };
            bits = ((bits << 5) | u32::from(value)) & 0xfff;
            count += 5;
            if count >= 8 {
                count -= 8;
                secret.push(u8::try_from((bits >> count) & 0xff).expect("eight bits"));
            }
        }
        Self { secret }
    }

    /// What the app shows at that moment.
    ///
    /// # Panics
    /// Never: HMAC takes keys of every length.
    #[must_use]
    pub fn code(&self, unix_s: u64) -> String {
        let mut mac = Hmac::<Sha1>::new_from_slice(&self.secret).expect("HMAC takes keys of every length");
        mac.update(&(unix_s / 30).to_be_bytes());
        let tag = mac.finalize().into_bytes();
        let at = usize::from(tag[19] & 15);
        let number = u32::from_be_bytes([tag[at], tag[at + 1], tag[at + 2], tag[at + 3]]) & 0x7fff_ffff;
        format!("{:06}", number % 1_000_000)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shows_what_the_rfc_says() {
        let app = Authenticator::type_in("GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ");
        assert_eq!(app.code(59), "287082");
        assert_eq!(app.code(1_111_111_109), "081804");
    }
}
