//! Which request headers a plugin never sets: they frame the message or belong to one connection.

/// Bytes of a header's name.
pub const HEADER_NAME_BYTES_MAX: usize = 64;

/// Whether the text is a header name (RFC 9110 token) in lower case.
#[must_use]
pub fn is_lower_header_name(name: &str) -> bool {
    (1..=HEADER_NAME_BYTES_MAX).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"!#$%&'*+-.^_`|~".contains(&b))
}

/// Whether the platform alone sets this header (lower case): `Host`, message framing and hop-by-hop headers
/// (RFC 9110 §7.6.1), and what a proxy on the way would read.
#[must_use]
pub fn is_host_owned_header(name: &str) -> bool {
    matches!(
        name,
        "host"
            | "content-length"
            | "transfer-encoding"
            | "te"
            | "trailer"
            | "connection"
            | "keep-alive"
            | "proxy-authenticate"
            | "proxy-authorization"
            | "proxy-connection"
            | "upgrade"
            | "http2-settings"
            | "expect"
            | "accept-encoding"
    )
}
