//! The vault finds what it holds, in every dress.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE, URL_SAFE_NO_PAD};
use bulkhead_model::name::SecretName;
use proptest::prelude::*;
use zeroize::Zeroizing;

use super::*;

fn name(text: &str) -> SecretName {
    text.parse().unwrap()
}

fn vault(value: &str) -> (SecretVault, String) {
    let vault = SecretVault::new(Ambient::manual(Timestamp::from_micros(0), 1));
    let placeholder = vault.hold(&name("token"), Zeroizing::new(value.to_owned()));
    (vault, placeholder)
}

#[test]
fn a_secret_has_one_placeholder_per_call() {
    let (vault, placeholder) = vault("hunter2hunter2");
    assert_eq!(vault.hold(&name("token"), Zeroizing::new("other".to_owned())), placeholder);
    assert_eq!(vault.placeholder("token"), Some(placeholder.clone()));
    assert_eq!(vault.placeholder("other"), None);
    let digits = placeholder.strip_prefix(PLACEHOLDER_PREFIX).expect("the prefix");
    assert!(digits.len() == 32 && digits.bytes().all(|b| b.is_ascii_hexdigit()));
    assert_ne!(vault.hold(&name("second"), Zeroizing::new("other".to_owned())), placeholder);
    assert!(!format!("{vault:?}").contains("hunter2"));
}

#[test]
fn signatures_are_those_of_rfc_4231() {
    let (vault, _) = vault("Jefe");
    let mac = vault.hmac_sha256("token", b"what do ya want for nothing?").expect("it is held");
    assert_eq!(hex::encode(mac), "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843");
    assert_eq!(vault.hmac_sha256("other", b""), None);
}

/// The worked example of the Standard Webhooks reference libraries; then values that only look like such a key.
#[test]
fn standard_webhooks_keys_are_decoded() {
    let (vault, _) = vault("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw");
    let signed = br#"msg_p5jXN8AQM9LWM0D4loKWxJek.1614265330.{"test": 2432232314}"#;
    let mac = vault.hmac_sha256("token", signed).expect("it is held");
    assert_eq!(hex::encode(mac), "83484cf52b04f8e4cf2531adfed9882ad4b2665137b852442d594d20e2c9d4e1");
    let mac = |value: &str| self::vault(value).0.hmac_sha256("token", b"x").expect("it is held");
    assert_eq!(mac("whsec_YWJj"), mac("abc"));
    assert_eq!(mac("whsec_YWI="), mac("ab"));
    assert_ne!(mac("whsec_not base64"), mac("not base64"));
}

#[test]
fn redacted_text_can_be_read_and_gives_nothing_away() {
    let (vault, placeholder) = vault("hunter2hunter2");
    assert_eq!(vault.redact("sent hunter2hunter2 twice: hunter2hunter2"), "sent [secret token] twice: [secret token]");
    assert_eq!(vault.redact(&format!("<{placeholder}>")), "<[secret token]>");
    assert_eq!(vault.redact("nothing here"), "nothing here");
    let hidden = format!("x {} y", STANDARD.encode("hunter2hunter2"));
    assert_eq!(vault.redact(&hidden), "[text with the secret token]");
}

#[test]
fn short_values_are_not_searched_for() {
    let (vault, placeholder) = vault("abc");
    assert!(!vault.scan("abc") && vault.scan(&placeholder));
    let empty = SecretVault::new(Ambient::manual(Timestamp::from_micros(0), 1));
    assert!(empty.is_empty() && !empty.scan("bhs_anything"));
}

#[test]
fn a_call_uses_few_secrets() {
    let vault = SecretVault::new(Ambient::manual(Timestamp::from_micros(0), 1));
    assert!(vault.has_room_for(SECRET_BYTES_PER_CALL_MAX) && !vault.has_room_for(SECRET_BYTES_PER_CALL_MAX + 1));
    vault.hold(&name("long"), Zeroizing::new("x".repeat(SECRET_BYTES_PER_CALL_MAX - 100)));
    assert!(vault.has_room_for(100) && !vault.has_room_for(101));
    for n in 1..SECRETS_PER_CALL_MAX {
        assert!(vault.has_room_for(1));
        vault.hold(&name(&format!("n{n}")), Zeroizing::new("x".to_owned()));
    }
    assert!(!vault.has_room_for(1));
}

proptest! {
    #[test]
    fn a_value_is_found_in_every_form(value in "[ -~]{6,40}|\\PC{6,20}", before in "[a-zA-Z ]{0,7}", after in "[a-zA-Z ]{0,7}", form in 0..10_usize) {
        let (vault, placeholder) = vault(&value);
        let whole = format!("{before}{value}{after}");
        let text = match form {
            0 => whole,
            1 => STANDARD.encode(&whole),
            2 => URL_SAFE.encode(&whole),
            3 => URL_SAFE_NO_PAD.encode(&whole),
            4 => format!("{before}{}{after}", hex::encode(&value)),
            5 => format!("{before}{}{after}", hex::encode_upper(&value)),
            6 => format!("{before}{}{after}", percent_escaped(&value)),
            7 => serde_json::Value::from(whole).to_string(),
            8 => serde_json::Value::from(serde_json::Value::from(whole).to_string()).to_string(),
            _ => format!("{before}{placeholder}{after}"),
        };
        prop_assert_eq!(vault.find(&text), Some(name("token")), "{}", text);
        prop_assert!(!vault.redact(&text).contains(&value));
    }

    #[test]
    fn escaped_json_hides_nothing(value in "[a-z0-9]{8,20}") {
        let (vault, _) = vault(&value);
        let text = percent_escaped(&value).replace('%', "\\u00");
        prop_assert!(vault.scan(&text));
    }

    #[test]
    fn other_text_is_left_alone(value in "[a-z]{12}", text in "[A-Z0-9 .,]{0,60}") {
        let (vault, _) = vault(&value);
        prop_assume!(!text.to_lowercase().contains(&hex::encode(&value)));
        // Base64 of lower-case letters always holds a digit or a letter of either case; look only at text that cannot.
        let shown = vault.redact(&text).into_owned();
        prop_assert_eq!(shown, text);
    }

    #[test]
    fn any_text_is_searched_without_a_panic(value in "\\PC{0,20}", text in "\\PC{0,60}|[%\\\\u0-9a-f]{0,40}") {
        let (vault, _) = vault(&value);
        let _ = vault.redact(&text);
    }
}
