//! The standard's own vectors (RFC 9421, appendix B), and what we ask beyond them.

use ed25519_dalek::{Signer as _, SigningKey};

use super::*;

const CREATED: i64 = 1_618_884_473;

/// The public half of `test-key-ed25519` (B.1.4), its secret half, and `test-shared-secret` (B.1.5).
const ED25519: &str = "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEAJrQLj5P/89iXES9+vFgrIy29clF9CC/oPPsw3c5D0bs=\n-----END PUBLIC KEY-----\n";
const ED25519_SECRET: &str = "n4Ni+HpISpVObnQMW0wOhCKROaIKqKtW/2ZYb2p9KcU=";
const SHARED_SECRET: &str = "uzvJfB4u3N0Jy4T7NZ75MDVcr8zSTInedJtkgcu46YW4XByzNJjxBdtjUkdJPBtbmHhIDi6pcl8jsasjlTMtDQ==";

/// The request of B.2.
fn request() -> Message<'static> {
    Message {
        start: Start::Request {
            method: "POST",
            scheme: "https",
            authority: "example.com",
            path: "/foo",
            query: Some("param=Value&Pet=dog"),
        },
        fields: vec![
            ("host", b"example.com"),
            ("date", b"Tue, 20 Apr 2021 02:07:55 GMT"),
            ("content-type", b"application/json"),
            (
                "content-digest",
                b"sha-512=:WZDPaVn/7XgHaAy8pmojAkGWoRx2UFChF41A2svX+TaPm+AbwAgBWnrIiYllu7BNNyealdVLvRwEmTHWXvJwew==:",
            ),
            ("content-length", b"18"),
        ],
    }
}

/// The response of B.2.
fn response() -> Message<'static> {
    Message {
        start: Start::Response { status: 200 },
        fields: vec![
            ("date", b"Tue, 20 Apr 2021 02:07:56 GMT"),
            ("content-type", b"application/json"),
            (
                "content-digest",
                b"sha-512=:mEWXIS7MaLRuGgxOBdODa3xqM1XdEvxoYhvlCFJ41QJgJc4GTsPp29l5oGX69wWdXymyU0rjJuahq4l5aGgfLQ==:",
            ),
            ("content-length", b"23"),
        ],
    }
}

/// A member of `signature-input` as it is covered, whoever it is for.
fn covered(member: &str) -> Signed {
    let list: List = Parser::new(member).parse().unwrap();
    let Some(ListEntry::InnerList(covered)) = list.into_iter().next() else { panic!("{member}") };
    Signed { covered, signature: Vec::new() }
}

fn public_key() -> VerifyKey {
    VerifyKey::Ed25519(PublicKey::parse(ED25519).unwrap())
}

fn shared_secret() -> VerifyKey {
    VerifyKey::HmacSha256(Zeroizing::new(STANDARD.decode(SHARED_SECRET).unwrap()))
}

fn signing_key() -> SigningKey {
    SigningKey::from_bytes(&STANDARD.decode(ED25519_SECRET).unwrap().try_into().unwrap())
}

#[test]
fn b_2_1_to_b_2_6_and_b_3_have_the_standards_bases() {
    let proxied = Message {
        start: Start::Request {
            method: "POST",
            scheme: "https",
            authority: "service.internal.example",
            path: "/foo",
            query: Some("param=Value&Pet=dog"),
        },
        fields: vec![("client-cert", b":MIIB:")],
    };
    let digest = "\"content-digest\": sha-512=:WZDPaVn/7XgHaAy8pmojAkGWoRx2UFChF41A2svX+TaPm+AbwAgBWnrIiYllu7BNNyealdVLvRwEmTHWXvJwew==:\n";
    let cases: [(&str, Message<'_>, &str, String); 7] = [
        (
            "B.2.1",
            request(),
            "();created=1618884473;keyid=\"test-key-rsa-pss\";nonce=\"b3k2pp5k7z-50gnwp.yemd\"",
            String::new(),
        ),
        (
            "B.2.2",
            request(),
            "(\"@authority\" \"content-digest\" \"@query-param\";name=\"Pet\");created=1618884473;keyid=\"test-key-rsa-pss\";tag=\"header-example\"",
            format!("\"@authority\": example.com\n{digest}\"@query-param\";name=\"Pet\": dog\n"),
        ),
        (
            "B.2.3",
            request(),
            "(\"date\" \"@method\" \"@path\" \"@query\" \"@authority\" \"content-type\" \"content-digest\" \"content-length\");created=1618884473;keyid=\"test-key-rsa-pss\"",
            format!(
                "\"date\": Tue, 20 Apr 2021 02:07:55 GMT\n\"@method\": POST\n\"@path\": /foo\n\"@query\": ?param=Value&Pet=dog\n\
                 \"@authority\": example.com\n\"content-type\": application/json\n{digest}\"content-length\": 18\n"
            ),
        ),
        (
            "B.2.4",
            response(),
            "(\"@status\" \"content-type\" \"content-digest\" \"content-length\");created=1618884473;keyid=\"test-key-ecc-p256\"",
            "\"@status\": 200\n\"content-type\": application/json\n\"content-digest\": sha-512=:mEWXIS7MaLRuGgxOBdODa3xqM1XdEvxoYhvlCFJ41QJgJc4GTsPp29l5oGX69wWdXymyU0rjJuahq4l5aGgfLQ==:\n\"content-length\": 23\n"
                .to_owned(),
        ),
        (
            "B.2.5",
            request(),
            "(\"date\" \"@authority\" \"content-type\");created=1618884473;keyid=\"test-shared-secret\"",
            "\"date\": Tue, 20 Apr 2021 02:07:55 GMT\n\"@authority\": example.com\n\"content-type\": application/json\n".to_owned(),
        ),
        (
            "B.2.6",
            request(),
            "(\"date\" \"@method\" \"@path\" \"@authority\" \"content-type\" \"content-length\");created=1618884473;keyid=\"test-key-ed25519\"",
            "\"date\": Tue, 20 Apr 2021 02:07:55 GMT\n\"@method\": POST\n\"@path\": /foo\n\"@authority\": example.com\n\
             \"content-type\": application/json\n\"content-length\": 18\n"
                .to_owned(),
        ),
        (
            "B.3",
            proxied,
            "(\"@path\" \"@query\" \"@method\" \"@authority\" \"client-cert\");created=1618884473;keyid=\"test-key-ecc-p256\"",
            "\"@path\": /foo\n\"@query\": ?param=Value&Pet=dog\n\"@method\": POST\n\"@authority\": service.internal.example\n\"client-cert\": :MIIB:\n"
                .to_owned(),
        ),
    ];
    for (name, message, member, lines) in cases {
        let expected = format!("{lines}\"@signature-params\": {member}");
        assert_eq!(covered(member).base(&message).unwrap(), expected, "{name}");
    }
}

#[test]
fn b_2_5_holds_with_the_shared_secret_and_no_other() {
    let member = "(\"date\" \"@authority\" \"content-type\");created=1618884473;keyid=\"test-shared-secret\"";
    let base = covered(member).base(&request()).unwrap();
    let signature = STANDARD.decode("pxcQw6G3AjtMBQjwo8XzkZf/bws5LelbaMk5rGIGtE8=").unwrap();
    assert!(shared_secret().verifies(&base, &signature));
    assert!(!shared_secret().verifies(&base, &signature[..31]));
    assert!(!shared_secret().verifies(&base.replace("POST", "GET").replace("example", "exemple"), &signature));
    assert!(!VerifyKey::HmacSha256(Zeroizing::new(vec![0; 64])).verifies(&base, &signature));
}

#[test]
fn b_2_6_holds_with_the_public_key_and_is_what_the_secret_key_signs() {
    let member = "(\"date\" \"@method\" \"@path\" \"@authority\" \"content-type\" \"content-length\");created=1618884473;keyid=\"test-key-ed25519\"";
    let base = covered(member).base(&request()).unwrap();
    let signature = STANDARD
        .decode("wqcAqbmYJ2ji2glfAMaRy4gruYYnx2nEFN2HN6jrnDnQCK1u02Gb04v9EDgwUPiu4A0w6vuQv5lIp5WPpBKRCw==")
        .unwrap();
    assert!(public_key().verifies(&base, &signature));
    assert_eq!(signing_key().sign(base.as_bytes()).to_bytes().to_vec(), signature);
    for at in 0..signature.len() {
        let mut broken = signature.clone();
        broken[at] ^= 1;
        assert!(!public_key().verifies(&base, &broken), "{at}");
    }
    assert!(!public_key().verifies(&base, &[]));
}

/// B.4: what proxies may do to a message breaks no signature, and what changes its meaning breaks it.
#[test]
fn b_4_a_message_that_was_carried_on_holds_and_one_that_was_changed_does_not() {
    let member = "(\"@method\" \"@path\" \"@authority\" \"accept\");created=1618884473;keyid=\"test-key-ed25519\"";
    let signature = STANDARD
        .decode("ZT1kooQsEHpZ0I1IjCqtQppOmIqlJPeo7DHR3SoMn0s5JZ1eRGS0A+vyYP9t/LXlh5QMFFQ6cpLt2m0pmj3NDA==")
        .unwrap();
    let message = |method, path, query, fields| Message {
        start: Start::Request { method, scheme: "https", authority: "example.org", path, query },
        fields,
    };
    let json: (&str, &[u8]) = ("accept", b"application/json");
    let any: (&str, &[u8]) = ("accept", b"*/*");
    let holds = |message: Message<'_>| public_key().verifies(&covered(member).base(&message).unwrap(), &signature);
    let query = Some("name1=Value1&Name2=value2");
    assert!(holds(message("GET", "/demo", query, vec![json, any])));
    // A parameter and a field more; lines joined and moved.
    assert!(holds(message(
        "GET",
        "/demo",
        Some("name1=Value1&Name2=value2&param=added"),
        vec![("x", b"y"), json, any]
    )));
    assert!(holds(message("GET", "/demo", query, vec![("accept", b"application/json, */*")])));
    assert!(!holds(message("POST", "/demo", query, vec![json, any])));
    assert!(!holds(message("GET", "/other", query, vec![json, any])));
    assert!(!holds(message("GET", "/demo", query, vec![any, json])));
}

/// A request for us, signed.
struct Signing {
    components: &'static str,
    params: String,
    message: Message<'static>,
    has_body: bool,
    now: i64,
}

fn signing() -> Signing {
    Signing {
        components: "\"@method\" \"@target-uri\" \"content-digest\"",
        params: format!(";created={CREATED};keyid=\"key_1\";nonce=\"0123456789abcdef\";tag=\"bulkhead\""),
        message: request(),
        has_body: true,
        now: CREATED + 1,
    }
}

impl Signing {
    fn params(self, from: &str, to: &str) -> Self {
        assert!(self.params.contains(from), "{from}");
        Self { params: self.params.replace(from, to), ..self }
    }

    /// As somebody else computes it.
    fn field(&self) -> (String, String) {
        let member = format!("({}){}", self.components, self.params);
        let base = covered(&member).base(&self.message).unwrap();
        let signature = STANDARD.encode(signing_key().sign(base.as_bytes()).to_bytes());
        (format!("a={member}"), format!("a=:{signature}:"))
    }

    fn verify(&self) -> Result<Verified, SignatureRefusal> {
        let (input, signature) = self.field();
        self.verify_fields(&[&input], &[&signature])
    }

    fn verify_fields(&self, inputs: &[&str], signatures: &[&str]) -> Result<Verified, SignatureRefusal> {
        let (inputs, signatures): (Vec<&[u8]>, Vec<&[u8]>) = (
            inputs.iter().map(|line| line.as_bytes()).collect(),
            signatures.iter().map(|line| line.as_bytes()).collect(),
        );
        let signed = Signed::read(&inputs, &signatures)?.expect("one is for us");
        let now = Timestamp::from_micros(self.now * 1_000_000);
        signed.verify(&public_key(), &self.message, &Demands { key_id: "key_1", has_body: self.has_body, now })
    }
}

#[test]
fn a_request_that_says_all_is_accepted_until_its_window_ends() {
    let verified = signing().verify().unwrap();
    assert_eq!(verified.nonce, <[u8; 32]>::from(Sha256::digest(b"0123456789abcdef")));
    // A nonce is remembered for as long as any node could accept it.
    assert!(verified.good_until >= Timestamp::from_micros((CREATED + 300) * 1_000_000));
    assert_eq!(Signing { now: CREATED + 299, ..signing() }.verify().map(drop), Ok(()));
    assert_eq!(Signing { now: CREATED + 300, ..signing() }.verify(), Err(SignatureRefusal::Old));
    assert_eq!(Signing { now: CREATED - 30, ..signing() }.verify().map(drop), Ok(()));
    assert_eq!(Signing { now: CREATED - 31, ..signing() }.verify(), Err(SignatureRefusal::Ahead));
}

#[test]
fn an_own_end_counts_and_lengthens_nothing() {
    let until = |end: i64, now: i64| {
        let params = signing().params(";keyid", &format!(";expires={end};keyid"));
        Signing { now, ..params }.verify().map(drop)
    };
    assert_eq!(until(CREATED + 10, CREATED + 9), Ok(()));
    assert_eq!(until(CREATED + 10, CREATED + 10), Err(SignatureRefusal::Expired));
    assert_eq!(until(CREATED + 9_999, CREATED + 300), Err(SignatureRefusal::Old));
    assert_eq!(until(CREATED, CREATED - 1), Err(SignatureRefusal::Expired));
}

#[test]
fn each_parameter_has_to_be_there_in_its_form() {
    for (from, to, refusal) in [
        (";keyid=\"key_1\"", "", SignatureRefusal::Parameter),
        ("\"key_1\"", "\"key_2\"", SignatureRefusal::Key),
        (";nonce=\"0123456789abcdef\"", "", SignatureRefusal::Parameter),
        ("0123456789abcdef", "short", SignatureRefusal::Parameter),
        (";created=1618884473", "", SignatureRefusal::Parameter),
        ("created=1618884473", "created=\"1618884473\"", SignatureRefusal::Parameter),
        ("created=1618884473", "created=1618884473.5", SignatureRefusal::Parameter),
        ("created=1618884473", "created=999999999999999", SignatureRefusal::Parameter),
        (";tag", ";alg=\"hmac-sha256\";tag", SignatureRefusal::Key),
        (";tag", ";alg=ed25519;tag", SignatureRefusal::Key),
        (";tag", ";expires=1.5;tag", SignatureRefusal::Parameter),
    ] {
        assert_eq!(signing().params(from, to).verify(), Err(refusal), "{from} → {to}");
    }
    assert_eq!(signing().params(";tag", ";alg=\"ed25519\";tag").verify().map(drop), Ok(()));
}

#[test]
fn what_has_to_be_covered_is() {
    for components in
        ["\"@method\" \"content-digest\"", "\"@target-uri\" \"content-digest\"", "\"@method\" \"@target-uri\"", ""]
    {
        assert_eq!(Signing { components, ..signing() }.verify(), Err(SignatureRefusal::NotCovered), "{components}");
    }
    let without_body = Signing { components: "\"@method\" \"@target-uri\"", has_body: false, ..signing() };
    assert_eq!(without_body.verify().map(drop), Ok(()));
    // Somebody added a condition, or a key under which the request is only answered again.
    for field in ["if-match", "idempotency-key"] {
        let mut added = signing();
        added.message.fields.push((field, b"x"));
        assert_eq!(added.verify(), Err(SignatureRefusal::NotCovered), "{field}");
    }
    assert_eq!(
        Signing { components: "\"@method\" \"@target-uri\" \"content-digest\" \"@method\"", ..signing() }
            .verify_fields(&["a=(\"@method\" \"@target-uri\" \"content-digest\" \"@method\");created=1618884473;keyid=\"key_1\";nonce=\"0123456789abcdef\";tag=\"bulkhead\""], &["a=:AA==:"]),
        Err(SignatureRefusal::Component),
        "the same component twice"
    );
}

#[test]
fn a_changed_request_is_not_what_was_signed() {
    let (input, signature) = signing().field();
    let verify = |message: Message<'static>| Signing { message, ..signing() }.verify_fields(&[&input], &[&signature]);
    assert_eq!(verify(request()).map(drop), Ok(()));
    let change = |edit: fn(&mut Message<'static>)| {
        let mut message = request();
        edit(&mut message);
        verify(message)
    };
    let mismatch = Err(SignatureRefusal::Mismatch);
    let start = |method, authority, path, query| Start::Request { method, scheme: "https", authority, path, query };
    for other in [
        start("PUT", "example.com", "/foo", Some("param=Value&Pet=dog")),
        start("POST", "evil.example", "/foo", Some("param=Value&Pet=dog")),
        start("POST", "example.com", "/fo", Some("param=Value&Pet=dog")),
        start("POST", "example.com", "/foo", Some("param=Value&Pet=cat")),
        start("POST", "example.com", "/foo", None),
    ] {
        assert_eq!(verify(Message { start: other, ..request() }), mismatch, "{other:?}");
    }
    assert_eq!(change(|message| message.fields[3].1 = b"sha-256=:AAAA:"), mismatch);
    assert_eq!(
        change(|message| {
            message.fields.remove(3);
        }),
        Err(SignatureRefusal::Absent),
        "stripped"
    );
    // What nobody covered may change on the way.
    assert_eq!(
        change(|message| {
            message.fields.remove(1);
        })
        .map(drop),
        Ok(())
    );
}

#[test]
fn fields_that_leave_a_choice_are_refused() {
    let (input, signature) = signing().field();
    let read = |inputs: &[&str], signatures: &[&str]| signing().verify_fields(inputs, signatures);
    assert_eq!(read(&[&input, &input], &[&signature]), Err(SignatureRefusal::Malformed), "twice");
    assert_eq!(read(&[&input], &[&signature, &signature]), Err(SignatureRefusal::Malformed), "twice");
    let (other, of_other) = (input.replacen("a=", "b=", 1), signature.replacen("a=", "b=", 1));
    assert_eq!(read(&[&input, &other], &[&signature, &of_other]), Err(SignatureRefusal::Several));
    assert_eq!(read(&[&input], &[]), Err(SignatureRefusal::Malformed));
    assert_eq!(read(&[&input], &[&of_other]), Err(SignatureRefusal::Malformed));
    assert_eq!(read(&["a=1"], &[&signature]), Err(SignatureRefusal::Malformed));
    assert_eq!(read(&["a=(\"@method\""], &[&signature]), Err(SignatureRefusal::Malformed));
    assert_eq!(read(&[&input], &["a=\"text\""]), Err(SignatureRefusal::Malformed));
    // One for somebody else is beside ours, in the same line or another.
    let foreign = "proxy=(\"@method\");created=1;tag=\"other\"";
    assert_eq!(read(&[foreign, &input], &["proxy=:AA==:", &signature]).map(drop), Ok(()));
    assert_eq!(read(&[&format!("{foreign}, {input}")], &[&signature]).map(drop), Ok(()));
    assert!(Signed::read(&[foreign.as_bytes()], &[b"proxy=:AA==:"]).unwrap().is_none());
    assert!(Signed::read(&[], &[]).unwrap().is_none());
    for half in [Signed::read(&[foreign.as_bytes()], &[]), Signed::read(&[], &[b"proxy=:AA==:"])] {
        assert_eq!(half.map(drop), Err(SignatureRefusal::Malformed));
    }
}

#[test]
fn a_public_key_is_read_in_the_forms_that_people_have() {
    let VerifyKey::Ed25519(key) = public_key() else { panic!() };
    assert_eq!(key.reveal(), "JrQLj5P/89iXES9+vFgrIy29clF9CC/oPPsw3c5D0bs=");
    for text in [
        "JrQLj5P/89iXES9+vFgrIy29clF9CC/oPPsw3c5D0bs=",
        "  MCowBQYDK2VwAyEAJrQLj5P/89iXES9+vFgrIy29clF9CC/oPPsw3c5D0bs=\n",
    ] {
        assert_eq!(PublicKey::parse(text), Ok(key), "{text}");
    }
    for odd in [
        "",
        "JrQL",
        "ssh-ed25519 AAAA",
        "-----BEGIN PUBLIC KEY-----\nMCow",
        &STANDARD.encode([1; 31]),
        &STANDARD.encode([1; 64]),
    ] {
        assert_eq!(PublicKey::parse(odd), Err(PublicKeyError::Form), "{odd}");
    }
    // The neutral element: signatures of anything hold for it.
    let mut neutral = [0; 32];
    neutral[0] = 1;
    assert_eq!(PublicKey::from_bytes(neutral), Err(PublicKeyError::Weak));
}
