//! Where a request comes from when proxies stand in front: the address that the first of ours wrote down, and nothing that a client says
//! about itself.
//!
//! Each proxy appends the address that it was connected from, so the list is read from its end: what stands behind an entry of a proxy of
//! ours was written by that proxy, and the first entry that is none of them is the client. Everything before it could be anybody's
//! invention and is not looked at. What has to be read and cannot be is a refusal.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::allow_list::parse_net;

/// Proxies that one request may have come through. Ours are one or two.
const HOPS_MAX: usize = 32;

/// Networks whose word is taken for where a request comes from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TrustedProxies(Vec<IpNet>);

/// Why a network cannot be trusted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProxyError {
    #[error("{0} is neither an address nor a network such as 10.0.0.0/8")]
    Malformed(String),
    #[error("{0} is everybody: name the proxies alone")]
    Everybody(String),
    #[error("{0} is an IPv4 address in IPv6's clothes: write it as IPv4")]
    Mapped(String),
}

/// A header that a proxy of ours should have written cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    #[error("`forwarded` or `x-forwarded-for` does not say which address the request comes from")]
    Malformed,
    #[error("`forwarded` and `x-forwarded-for` name different addresses")]
    Contradiction,
    #[error("the request came through more than {HOPS_MAX} proxies")]
    TooLong,
}

impl TrustedProxies {
    /// Reads addresses and networks.
    ///
    /// # Errors
    /// [`ProxyError`] for the first that cannot be trusted.
    pub fn parse<'a>(texts: impl IntoIterator<Item = &'a str>) -> Result<Self, ProxyError> {
        let read = |text: &str| {
            let malformed = || ProxyError::Malformed(text.to_owned());
            let net = parse_net(text).ok_or_else(malformed)?;
            if net.prefix_len() == 0 {
                return Err(ProxyError::Everybody(text.to_owned()));
            }
            if net.addr().to_canonical() != net.addr() {
                return Err(ProxyError::Mapped(text.to_owned()));
            }
            Ok(net.trunc())
        };
        texts.into_iter().map(read).collect::<Result<_, _>>().map(Self)
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn contains(&self, address: IpAddr) -> bool {
        self.0.iter().any(|net| net.contains(&address))
    }

    /// Where a request of this peer comes from. `forwarded` and `x_forwarded_for` are the values of these headers in their order.
    ///
    /// # Errors
    /// [`Unreadable`], only where the peer is a proxy of ours: nobody else's headers are read.
    pub fn client(&self, peer: IpAddr, forwarded: &[&[u8]], x_forwarded_for: &[&[u8]]) -> Result<IpAddr, Unreadable> {
        let peer = peer.to_canonical();
        if !self.contains(peer) {
            return Ok(peer);
        }
        match (forwarded.is_empty(), x_forwarded_for.is_empty()) {
            // The proxy itself: it looks whether this server is well.
            (true, true) => Ok(peer),
            (false, true) => self.walk(forwarded, forwarded_nodes),
            (true, false) => self.walk(x_forwarded_for, |line| Some(listed_nodes(line))),
            // One of them may be a client's, which the proxy passed on.
            (false, false) => {
                let address = self.walk(forwarded, forwarded_nodes)?;
                if address == self.walk(x_forwarded_for, |line| Some(listed_nodes(line)))? {
                    return Ok(address);
                }
                Err(Unreadable::Contradiction)
            }
        }
    }

    /// From the last entry to the first that is not a proxy of ours; the very first where all are.
    fn walk(&self, lines: &[&[u8]], nodes: fn(&str) -> Option<Vec<Option<IpAddr>>>) -> Result<IpAddr, Unreadable> {
        let (mut hops, mut first) = (0, None);
        for line in lines.iter().rev() {
            let text = std::str::from_utf8(line).map_err(|_| Unreadable::Malformed)?;
            for node in nodes(text).ok_or(Unreadable::Malformed)?.into_iter().rev() {
                let address = node.ok_or(Unreadable::Malformed)?;
                if !self.contains(address) {
                    return Ok(address);
                }
                hops += 1;
                if hops > HOPS_MAX {
                    return Err(Unreadable::TooLong);
                }
                first = Some(address);
            }
        }
        first.ok_or(Unreadable::Malformed)
    }
}

/// An address, with or without a port: `192.0.2.1`, `192.0.2.1:80`, `2001:db8::1`, `[2001:db8::1]`, `[2001:db8::1]:80`.
fn node(text: &str) -> Option<IpAddr> {
    let is_port = |port: &str| !port.is_empty() && port.len() <= 5 && port.bytes().all(|b| b.is_ascii_digit());
    let address = if let Some(rest) = text.strip_prefix('[') {
        let (address, port) = rest.split_once(']')?;
        if !port.is_empty() && !port.strip_prefix(':').is_some_and(is_port) {
            return None;
        }
        IpAddr::V6(address.parse().ok()?)
    } else if let Some((address, port)) = text.split_once(':').filter(|(_, port)| !port.contains(':')) {
        if !is_port(port) {
            return None;
        }
        IpAddr::V4(address.parse().ok()?)
    } else {
        text.parse().ok()?
    };
    Some(address.to_canonical())
}

/// The entries of `x-forwarded-for`.
fn listed_nodes(line: &str) -> Vec<Option<IpAddr>> {
    line.split(',').map(|entry| node(entry.trim_matches([' ', '\t']))).collect()
}

/// The `for` of each entry of `forwarded` (RFC 7239, section 4); `None` for text that is no such header. A client's quotation mark that is
/// never closed would otherwise swallow what a proxy appended.
fn forwarded_nodes(line: &str) -> Option<Vec<Option<IpAddr>>> {
    let mut nodes = Vec::new();
    let mut rest = line;
    loop {
        // One entry: pairs with `;` between them, each name once.
        let (mut names, mut found) = (Vec::new(), None);
        loop {
            rest = skip_blank(rest);
            let (name, after) = token(rest)?;
            let (value, after) = value(after.strip_prefix('=')?)?;
            let name = name.to_ascii_lowercase();
            if names.contains(&name) {
                return None;
            }
            if name == "for" {
                found = node(&value);
            }
            names.push(name);
            rest = skip_blank(after);
            match rest.strip_prefix(';') {
                Some(after) => rest = after,
                None => break,
            }
        }
        nodes.push(found);
        match rest.strip_prefix(',') {
            Some(after) => rest = after,
            None if rest.is_empty() => return Some(nodes),
            None => return None,
        }
    }
}

fn skip_blank(text: &str) -> &str {
    text.trim_start_matches([' ', '\t'])
}

/// RFC 9110, section 5.6.2.
fn token(text: &str) -> Option<(&str, &str)> {
    let is_letter = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    let length = text.bytes().take_while(|b| is_letter(*b)).count();
    (length > 0).then(|| text.split_at(length))
}

/// A token or a quoted string, unquoted.
fn value(text: &str) -> Option<(String, &str)> {
    let Some(quoted) = text.strip_prefix('"') else {
        return token(text).map(|(value, rest)| (value.to_owned(), rest));
    };
    let (mut value, mut letters) = (String::new(), quoted.char_indices());
    while let Some((at, letter)) = letters.next() {
        match letter {
            '"' => return Some((value, &quoted[at + 1..])),
            '\\' => value.push(letters.next()?.1),
            other => value.push(other),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn proxies() -> TrustedProxies {
        TrustedProxies::parse(["10.0.0.0/8", "2001:db8:ffff::/48", "192.0.2.254"]).unwrap()
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn by_list(peer: &str, lines: &[&str]) -> Result<IpAddr, Unreadable> {
        let lines: Vec<&[u8]> = lines.iter().map(|line| line.as_bytes()).collect();
        proxies().client(ip(peer), &[], &lines)
    }

    fn by_forwarded(peer: &str, lines: &[&str]) -> Result<IpAddr, Unreadable> {
        let lines: Vec<&[u8]> = lines.iter().map(|line| line.as_bytes()).collect();
        proxies().client(ip(peer), &lines, &[])
    }

    #[test]
    fn nobody_but_a_proxy_of_ours_is_believed() {
        for lines in [&["203.0.113.9"][..], &["no address"], &[]] {
            assert_eq!(by_list("198.51.100.7", lines), Ok(ip("198.51.100.7")), "{lines:?}");
            assert_eq!(by_list("::ffff:198.51.100.7", lines), Ok(ip("198.51.100.7")));
        }
        assert_eq!(TrustedProxies::default().client(ip("127.0.0.1"), &[], &[b"203.0.113.9"]), Ok(ip("127.0.0.1")));
        assert_eq!(by_list("10.1.2.3", &[]), Ok(ip("10.1.2.3")), "the proxy's own request");
    }

    #[test]
    fn the_last_that_is_no_proxy_of_ours_is_the_client() {
        for (lines, client) in [
            (&["203.0.113.9"][..], "203.0.113.9"),
            (&["1.1.1.1, 203.0.113.9"], "203.0.113.9"),
            (&["1.1.1.1", "203.0.113.9, 10.9.9.9"], "203.0.113.9"),
            (&["203.0.113.9", "10.0.0.2,\t10.0.0.3 "], "203.0.113.9"),
            (&["rubbish, \"x, 203.0.113.9:4711"], "203.0.113.9"),
            (&["::ffff:203.0.113.9"], "203.0.113.9"),
            (&["2001:db8:1::5, 2001:db8:ffff::1"], "2001:db8:1::5"),
            (&["[2001:db8:1::5]:443, 192.0.2.254"], "2001:db8:1::5"),
            (&["10.0.0.7, 10.0.0.8"], "10.0.0.7"),
        ] {
            assert_eq!(by_list("10.1.2.3", lines), Ok(ip(client)), "{lines:?}");
            assert_eq!(by_list("::ffff:10.1.2.3", lines), Ok(ip(client)), "{lines:?}");
        }
    }

    #[test]
    fn what_cannot_be_read_is_refused() {
        for line in [
            "",
            ",",
            "unknown",
            "203.0.113.9,",
            "203.0.113",
            "203.0.113.09",
            "203.0.113.9:",
            "203.0.113.9:x",
            "203.0.113.9 x",
            "[2001:db8::1",
            "2001:db8::1%eth0",
            "[203.0.113.9]",
            "[2001:db8::1]80",
            "1.1.1.1, unknown, 10.0.0.1",
            "0x7f.1",
        ] {
            assert_eq!(by_list("10.1.2.3", &[line]), Err(Unreadable::Malformed), "{line:?}");
        }
        let long = vec!["10.0.0.1"; 40].join(",");
        assert_eq!(by_list("10.1.2.3", &[&long]), Err(Unreadable::TooLong));
    }

    #[test]
    fn the_standard_header_is_read_as_strictly() {
        for (lines, client) in [
            (&["for=203.0.113.9"][..], "203.0.113.9"),
            (&["for=1.1.1.1;proto=http, For=\"203.0.113.9:80\";by=10.0.0.1"], "203.0.113.9"),
            (&["for=1.1.1.1", "host=x;for=\"[2001:db8:1::5]:4711\" , for=10.0.0.9"], "2001:db8:1::5"),
            (&["for=\"203.0.113\\.9\""], "203.0.113.9"),
            (&["for=\"never closed", "for=203.0.113.9"], "203.0.113.9"),
            (&["for=_hidden, for=203.0.113.9"], "203.0.113.9"),
        ] {
            assert_eq!(by_forwarded("10.1.2.3", lines), Ok(ip(client)), "{lines:?}");
        }
        for line in [
            "",
            "for",
            "for=",
            "for=unknown",
            "for=_hidden",
            "proto=http",
            "for=203.0.113.9;",
            "for=203.0.113.9, ",
            "for =203.0.113.9",
            // What a client left open is no place for what the proxy says.
            "for=\"1.1.1.1, for=203.0.113.9",
            "for=\"1.1.1.1, for=\"203.0.113.9\"",
            "for=1.1.1.1;for=203.0.113.9",
            "for=203.0.113.9 for=1.1.1.1",
            "for=203.0.113.9:80",
            "for=\"203.0.113.9\\",
        ] {
            assert_eq!(by_forwarded("10.1.2.3", &[line]), Err(Unreadable::Malformed), "{line:?}");
        }
    }

    #[test]
    fn two_headers_have_to_agree() {
        let both = |forwarded: &str, listed: &str| {
            proxies().client(ip("10.1.2.3"), &[forwarded.as_bytes()], &[listed.as_bytes()])
        };
        assert_eq!(both("for=203.0.113.9", "1.1.1.1, 203.0.113.9"), Ok(ip("203.0.113.9")));
        assert_eq!(both("for=1.1.1.1", "203.0.113.9"), Err(Unreadable::Contradiction));
        assert_eq!(both("nonsense", "203.0.113.9"), Err(Unreadable::Malformed));
    }

    #[test]
    fn networks_are_named_exactly() {
        for (text, error) in [
            ("", ProxyError::Malformed(String::new())),
            ("10.0.0.0/33", ProxyError::Malformed("10.0.0.0/33".to_owned())),
            ("proxy.example.com", ProxyError::Malformed("proxy.example.com".to_owned())),
            ("0.0.0.0/0", ProxyError::Everybody("0.0.0.0/0".to_owned())),
            ("::/0", ProxyError::Everybody("::/0".to_owned())),
            ("::ffff:10.0.0.0/104", ProxyError::Mapped("::ffff:10.0.0.0/104".to_owned())),
        ] {
            assert_eq!(TrustedProxies::parse([text]), Err(error), "{text}");
        }
        assert!(TrustedProxies::parse([]).unwrap().is_empty());
    }

    proptest! {
        /// Whatever a client writes before, the answer is what the proxy appended.
        #[test]
        fn what_a_client_writes_changes_nothing(said in "[ -~]{0,60}", client: u32) {
            let client = IpAddr::V4(client.into());
            prop_assume!(!proxies().contains(client));
            let line = format!("{said}, {client}");
            prop_assert_eq!(by_list("10.1.2.3", &[&line]), Ok(client));
            let (said, appended) = (said.as_bytes(), client.to_string());
            prop_assert_eq!(proxies().client(ip("10.1.2.3"), &[], &[said, appended.as_bytes()]), Ok(client));
            // In the standard header a client's own line can at most make it unreadable.
            let line = format!("{}, for={client}", String::from_utf8_lossy(said));
            let answer = by_forwarded("10.1.2.3", &[&line]);
            prop_assert!(answer == Ok(client) || answer == Err(Unreadable::Malformed), "{:?}", answer);
        }

        #[test]
        fn any_bytes_are_looked_at_without_panic(lines: Vec<Vec<u8>>) {
            let lines: Vec<&[u8]> = lines.iter().map(Vec::as_slice).collect();
            let listed = proxies().client(ip("10.1.2.3"), &[], &lines);
            let forwarded = proxies().client(ip("10.1.2.3"), &lines, &[]);
            prop_assert!(listed.is_err() || forwarded.is_err() || lines.is_empty());
        }
    }
}
