//! Which IP addresses are public. Everything else is out of reach of a plugin, however it is spelled.
//!
//! The blocks are those of the IANA special-purpose registries (RFC 6890 and its updates) whose "globally reachable" is
//! false, plus every block that carries an IPv4 address inside an IPv6 one, plus the metadata addresses of clouds that lie
//! in otherwise public space.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Why an address is not public.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NonPublic {
    Unspecified,
    Loopback,
    Private,
    /// 100.64.0.0/10, between a provider and its customers.
    CarrierNat,
    LinkLocal,
    /// The address from which a cloud hands out credentials.
    Metadata,
    /// fc00::/7, and the site-local fec0::/10 that it replaced.
    UniqueLocal,
    Multicast,
    Broadcast,
    Documentation,
    Benchmarking,
    /// Assigned to protocols rather than to hosts.
    Protocol,
    Reserved,
    /// An IPv6 address that holds an IPv4 one (mapped, compatible, translated, 6to4, NAT64, Teredo, ISATAP).
    Embedded,
    /// Not in 2000::/3, the only part of IPv6 that is handed out.
    Unassigned,
}

impl NonPublic {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unspecified => "unspecified",
            Self::Loopback => "loopback",
            Self::Private => "private",
            Self::CarrierNat => "carrier_nat",
            Self::LinkLocal => "link_local",
            Self::Metadata => "metadata",
            Self::UniqueLocal => "unique_local",
            Self::Multicast => "multicast",
            Self::Broadcast => "broadcast",
            Self::Documentation => "documentation",
            Self::Benchmarking => "benchmarking",
            Self::Protocol => "protocol",
            Self::Reserved => "reserved",
            Self::Embedded => "embedded",
            Self::Unassigned => "unassigned",
        }
    }
}

impl fmt::Display for NonPublic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Says why `address` may not be reached, or nothing when it is public.
#[must_use]
pub fn non_public(address: IpAddr) -> Option<NonPublic> {
    match address {
        IpAddr::V4(address) => non_public_v4(address),
        IpAddr::V6(address) => non_public_v6(address),
    }
}

#[expect(clippy::match_same_arms, reason = "the arms follow the registry, block by block")]
fn non_public_v4(address: Ipv4Addr) -> Option<NonPublic> {
    let [a, b, c, d] = address.octets();
    Some(match (a, b, c, d) {
        (0, 0, 0, 0) => NonPublic::Unspecified,
        (0, ..) => NonPublic::Reserved,
        (10, ..) | (172, 16..=31, ..) | (192, 168, ..) => NonPublic::Private,
        // Alibaba Cloud's metadata service lies in the carrier block.
        (100, 100, 100, 200) | (169, 254, 169, 254) | (169, 254, 170, 2 | 23) => NonPublic::Metadata,
        // Azure's wire server and Oracle's metadata lie in public space.
        (168, 63, 129, 16) | (192, 0, 0, 192) => NonPublic::Metadata,
        (100, 64..=127, ..) => NonPublic::CarrierNat,
        (127, ..) => NonPublic::Loopback,
        (169, 254, ..) => NonPublic::LinkLocal,
        (192, 0, 0, _) => NonPublic::Protocol,
        (192, 0, 2, _) | (198, 51, 100, _) | (203, 0, 113, _) => NonPublic::Documentation,
        // AS112, 6to4 relays and AMT: anycast services, never an application's host.
        (192, 31, 196, _) | (192, 52, 193, _) | (192, 88, 99, _) | (192, 175, 48, _) => NonPublic::Protocol,
        (198, 18..=19, ..) => NonPublic::Benchmarking,
        (224..=239, ..) => NonPublic::Multicast,
        (255, 255, 255, 255) => NonPublic::Broadcast,
        (240..=255, ..) => NonPublic::Reserved,
        _ => return None,
    })
}

#[expect(clippy::match_same_arms, reason = "the arms follow the registry, block by block")]
#[expect(clippy::many_single_char_names, reason = "six of the eight segments, in order")]
fn non_public_v6(address: Ipv6Addr) -> Option<NonPublic> {
    let [a, b, c, d, e, f, ..] = address.segments();
    Some(match (a, b, c, d, e, f) {
        _ if address.is_unspecified() => NonPublic::Unspecified,
        _ if address.is_loopback() => NonPublic::Loopback,
        // Mapped ::ffff:0:0/96, translated ::ffff:0:0:0/96, compatible ::/96, NAT64 64:ff9b::/96 and 64:ff9b:1::/48.
        (0, 0, 0, 0, 0, 0 | 0xffff) | (0, 0, 0, 0, 0xffff, 0) | (0x64, 0xff9b, ..) => NonPublic::Embedded,
        (0x100, 0, 0, 0 | 1, ..) => NonPublic::Protocol,
        (0xfd00, 0xec2, ..) | (0xfd20, 0xce, ..) => NonPublic::Metadata,
        (0xfc00..=0xfdff | 0xfec0..=0xfeff, ..) => NonPublic::UniqueLocal,
        (0xfe80..=0xfebf, ..) => NonPublic::LinkLocal,
        (0xff00..=0xffff, ..) => NonPublic::Multicast,
        (0x2001, 0, ..) | (0x2002, ..) => NonPublic::Embedded,
        (0x2001, 2, 0, ..) => NonPublic::Benchmarking,
        (0x2001, 0xdb8, ..) | (0x3fff, 0..=0xfff, ..) => NonPublic::Documentation,
        (0x2001, 0..=0x1ff, ..) | (0x2620, 0x4f, 0x8000, ..) => NonPublic::Protocol,
        (0x3ffe, ..) => NonPublic::Reserved,
        // ISATAP: an IPv4 address behind 0000:5efe or 0200:5efe.
        (.., 0 | 0x200, 0x5efe) => NonPublic::Embedded,
        (0x2000..=0x3fff, ..) => return None,
        _ => NonPublic::Unassigned,
    })
}

/// Whether a host, as the `url` crate writes it, can be public: not a name that always means this machine and not the
/// literal of a non-public address. A name says nothing of its addresses; those are checked when it is resolved.
#[must_use]
pub fn may_be_public(host: &str) -> bool {
    if let Some(inner) = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        return inner.parse::<Ipv6Addr>().is_ok_and(|address| non_public_v6(address).is_none());
    }
    // Only what ends in a digit can be an IPv4 literal: this spares names the attempt.
    if host.as_bytes().last().is_some_and(u8::is_ascii_digit)
        && let Ok(address) = host.parse::<Ipv4Addr>()
    {
        return non_public_v4(address).is_none();
    }
    let name = host.strip_suffix('.').unwrap_or(host).as_bytes();
    let local = b"localhost";
    let Some(at) = name.len().checked_sub(local.len()) else { return !name.is_empty() };
    !(name[at..].eq_ignore_ascii_case(local) && (at == 0 || name[at - 1] == b'.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_end_where_the_registry_says() {
        let cases = [
            ("9.255.255.255", None),
            ("10.0.0.0", Some(NonPublic::Private)),
            ("100.63.255.255", None),
            ("100.64.0.0", Some(NonPublic::CarrierNat)),
            ("100.128.0.0", None),
            ("126.255.255.255", None),
            ("128.0.0.0", None),
            ("172.15.255.255", None),
            ("172.16.0.0", Some(NonPublic::Private)),
            ("172.32.0.0", None),
            ("198.17.255.255", None),
            ("198.19.255.255", Some(NonPublic::Benchmarking)),
            ("198.20.0.0", None),
            ("223.255.255.255", None),
            ("224.0.0.0", Some(NonPublic::Multicast)),
            ("::ffff:8.8.8.8", Some(NonPublic::Embedded)),
            ("::8.8.8.8", Some(NonPublic::Embedded)),
            ("::ffff:0:8.8.8.8", Some(NonPublic::Embedded)),
            ("::1:8.8.8.8", Some(NonPublic::Unassigned)),
            ("64:ff9b::8.8.8.8", Some(NonPublic::Embedded)),
            ("64:ff9b:1::1", Some(NonPublic::Embedded)),
            ("2002:808:808::1", Some(NonPublic::Embedded)),
            ("2001:0:1::1", Some(NonPublic::Embedded)),
            ("2606:4700::5efe:1", None),
            ("2606:4700::5efe:7f00:1", Some(NonPublic::Embedded)),
            ("2606:4700:4700::1111", None),
            ("2001:4860:4860::8888", None),
            ("4000::1", Some(NonPublic::Unassigned)),
            ("fd00:ec2::254", Some(NonPublic::Metadata)),
            ("3fff:1000::1", None),
        ];
        for (text, want) in cases {
            assert_eq!(non_public(text.parse().expect("an address")), want, "{text}");
        }
    }

    #[test]
    fn names_of_this_machine_are_never_public() {
        for host in
            ["localhost", "localhost.", "a.localhost", "LOCALHOST", "127.0.0.1", "[::1]", "[::ffff:127.0.0.1]", ""]
        {
            assert!(!may_be_public(host), "{host}");
        }
        for host in ["example.com", "notlocalhost", "localhost.example.com", "8.8.8.8", "[2606:4700::1111]"] {
            assert!(may_be_public(host), "{host}");
        }
    }
}
