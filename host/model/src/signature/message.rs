//! What signatures cover: the parts of a message, in the one form in which both sides see them (RFC 9421, section 2).

use std::fmt::Write as _;

use sfv::Item;

use super::SignatureRefusal;

/// How a message begins.
#[derive(Clone, Copy, Debug)]
pub enum Start<'a> {
    /// The address is the one that the client used, which a proxy in front may have written anew.
    Request {
        method: &'a str,
        scheme: &'a str,
        authority: &'a str,
        path: &'a str,
        query: Option<&'a str>,
    },
    Response {
        status: u16,
    },
}

/// A message, as far as it can be covered.
#[derive(Clone, Debug)]
pub struct Message<'a> {
    pub start: Start<'a>,
    /// Names in lower case, in the order in which they arrived.
    pub fields: Vec<(&'a str, &'a [u8])>,
}

impl Message<'_> {
    pub(super) fn has_field(&self, name: &str) -> bool {
        self.fields.iter().any(|(field, _)| *field == name)
    }

    /// A component's value.
    pub(super) fn component(&self, item: &Item) -> Result<String, SignatureRefusal> {
        let name = item.bare_item.as_string().ok_or(SignatureRefusal::Component)?.as_str();
        if name == "@query-param" {
            return self.query_parameter(item);
        }
        // What the standard's other parameters ask for is not done here.
        if !item.params.is_empty() {
            return Err(SignatureRefusal::Component);
        }
        if name.starts_with('@') { self.derived(name) } else { self.field(name) }
    }

    fn derived(&self, name: &str) -> Result<String, SignatureRefusal> {
        match self.start {
            Start::Response { status } if name == "@status" => Ok(status.to_string()),
            Start::Response { .. } => Err(SignatureRefusal::Component),
            Start::Request { method, scheme, authority, path, query } => {
                let scheme = scheme.to_ascii_lowercase();
                let authority = normal_authority(&scheme, authority);
                let path = if path.is_empty() { "/" } else { path };
                let question = query.map_or_else(String::new, |query| format!("?{query}"));
                match name {
                    "@method" => Ok(method.to_owned()),
                    "@target-uri" => Ok(format!("{scheme}://{authority}{path}{question}")),
                    "@authority" => Ok(authority),
                    "@scheme" => Ok(scheme),
                    "@request-target" => Ok(format!("{path}{question}")),
                    "@path" => Ok(path.to_owned()),
                    "@query" => Ok(format!("?{}", query.unwrap_or_default())),
                    _ => Err(SignatureRefusal::Component),
                }
            }
        }
    }

    /// One parameter of the query that stands there once.
    fn query_parameter(&self, item: &Item) -> Result<String, SignatureRefusal> {
        let mut params = item.params.iter();
        let (Some((key, name)), None) = (params.next(), params.next()) else { return Err(SignatureRefusal::Component) };
        let name = name.as_string().filter(|_| key.as_str() == "name").ok_or(SignatureRefusal::Component)?.as_str();
        let Start::Request { query: Some(query), .. } = self.start else { return Err(SignatureRefusal::Absent) };
        let mut values = url::form_urlencoded::parse(query.as_bytes())
            .filter(|(key, _)| encode(key) == name)
            .map(|(_, value)| value);
        let value = values.next().ok_or(SignatureRefusal::Absent)?;
        if values.next().is_some() { Err(SignatureRefusal::Component) } else { Ok(encode(&value)) }
    }

    /// All lines of a field, joined, without what surrounds them.
    fn field(&self, name: &str) -> Result<String, SignatureRefusal> {
        let mut joined: Option<String> = None;
        for (_, value) in self.fields.iter().filter(|(field, _)| *field == name) {
            let text = std::str::from_utf8(value).ok().filter(|text| text.bytes().all(is_plain));
            let text = text.ok_or(SignatureRefusal::Component)?.trim_matches([' ', '\t']);
            match &mut joined {
                None => joined = Some(text.to_owned()),
                Some(joined) => {
                    joined.push_str(", ");
                    joined.push_str(text);
                }
            }
        }
        joined.ok_or(SignatureRefusal::Absent)
    }
}

/// No line ends in a value: the next line would be taken for another component.
fn is_plain(byte: u8) -> bool {
    byte == b'\t' || (b' '..=b'~').contains(&byte)
}

/// In lower case, without the scheme's own port.
fn normal_authority(scheme: &str, authority: &str) -> String {
    let authority = authority.to_ascii_lowercase();
    let port = if scheme == "https" { ":443" } else { ":80" };
    authority.strip_suffix(port).map_or_else(|| authority.clone(), str::to_owned)
}

/// Percent-encodes all but unreserved characters, as names and values of the query are covered.
fn encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~*".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            let _ = write!(encoded, "%{byte:02X}");
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(text: &str) -> Item {
        sfv::Parser::new(text).parse().unwrap()
    }

    fn message(path: &'static str, query: Option<&'static str>) -> Message<'static> {
        let start = Start::Request { method: "POST", scheme: "https", authority: "WWW.Example.com:443", path, query };
        Message { start, fields: Vec::new() }
    }

    /// The examples of sections 2.2.1 to 2.2.8.
    #[test]
    fn derived_components_are_those_of_the_standard() {
        let of = |message: &Message<'_>, name: &str| message.component(&item(name)).unwrap();
        let plain = message("/path", Some("param=value"));
        assert_eq!(of(&plain, "\"@method\""), "POST");
        assert_eq!(of(&plain, "\"@target-uri\""), "https://www.example.com/path?param=value");
        assert_eq!(of(&plain, "\"@authority\""), "www.example.com");
        assert_eq!(of(&plain, "\"@scheme\""), "https");
        assert_eq!(of(&plain, "\"@request-target\""), "/path?param=value");
        assert_eq!(of(&plain, "\"@path\""), "/path");
        assert_eq!(of(&message("", None), "\"@path\""), "/");
        assert_eq!(
            of(&message("/path", Some("param=value&foo=bar&baz=bat%2Dman")), "\"@query\""),
            "?param=value&foo=bar&baz=bat%2Dman"
        );
        assert_eq!(of(&message("/path", Some("queryString")), "\"@query\""), "?queryString");
        assert_eq!(of(&message("/path", None), "\"@query\""), "?");
        let query = message("/path", Some("param=value&foo=bar&baz=batman&qux="));
        assert_eq!(of(&query, "\"@query-param\";name=\"baz\""), "batman");
        assert_eq!(of(&query, "\"@query-param\";name=\"qux\""), "");
        let odd = message(
            "/parameters",
            Some("var=this%20is%20a%20big%0Amultiline%20value&bar=with+plus+whitespace&fa%C3%A7ade%22%3A%20=something"),
        );
        assert_eq!(of(&odd, "\"@query-param\";name=\"var\""), "this%20is%20a%20big%0Amultiline%20value");
        assert_eq!(of(&odd, "\"@query-param\";name=\"bar\""), "with%20plus%20whitespace");
        assert_eq!(of(&odd, "\"@query-param\";name=\"fa%C3%A7ade%22%3A%20\""), "something");
    }

    /// The examples of section 2.1.
    #[test]
    fn fields_are_those_of_the_standard() {
        let mut message = message("/", None);
        message.fields = vec![
            ("host", b"www.example.com"),
            ("x-ows-header", b"   Leading and trailing whitespace.   "),
            ("x-empty-header", b""),
            ("cache-control", b"max-age=60"),
            ("cache-control", b"   must-revalidate"),
        ];
        let of = |name: &str| message.component(&item(name));
        assert_eq!(of("\"host\"").unwrap(), "www.example.com");
        assert_eq!(of("\"x-ows-header\"").unwrap(), "Leading and trailing whitespace.");
        assert_eq!(of("\"x-empty-header\"").unwrap(), "");
        assert_eq!(of("\"cache-control\"").unwrap(), "max-age=60, must-revalidate");
        assert_eq!(of("\"date\""), Err(SignatureRefusal::Absent));
    }

    #[test]
    fn what_is_not_read_here_is_refused() {
        let mut message = message("/", Some("a=1&a=2"));
        message.fields = vec![("x-line", b"one\ntwo"), ("x-latin", b"caf\xe9"), ("x-fine", b"fine")];
        for (name, refusal) in [
            ("\"@status\"", SignatureRefusal::Component),
            ("\"@method\";req", SignatureRefusal::Component),
            ("\"@unheard-of\"", SignatureRefusal::Component),
            ("\"x-fine\";bs", SignatureRefusal::Component),
            ("\"x-fine\";key=\"a\"", SignatureRefusal::Component),
            ("\"x-line\"", SignatureRefusal::Component),
            ("\"x-latin\"", SignatureRefusal::Component),
            // In capitals it is the name of no field.
            ("\"X-Fine\"", SignatureRefusal::Absent),
            ("\"@query-param\"", SignatureRefusal::Component),
            ("\"@query-param\";name=\"a\"", SignatureRefusal::Component),
            ("\"@query-param\";name=\"b\"", SignatureRefusal::Absent),
            ("token", SignatureRefusal::Component),
        ] {
            assert_eq!(message.component(&item(name)), Err(refusal), "{name}");
        }
    }
}
