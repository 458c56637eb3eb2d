//! From where an organization may be reached: a list of networks. An empty one lets everybody in.

use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net};

/// Networks in one list.
pub const ENTRIES_MAX: usize = 200;
/// What is in front of an IPv4 address that is written as an IPv6 one: 96 bits.
const MAPPED_PREFIX: u8 = 96;

/// The networks, each in one form, in order, each once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AllowList(Vec<IpNet>);

/// What is wrong with a list, and with which of its entries.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{why}")]
pub struct WrongEntry {
    pub at: usize,
    pub why: String,
}

/// A network or one address. The address is read as the standard library does: where a part begins with a zero, others read it as octal.
pub(crate) fn parse_net(text: &str) -> Option<IpNet> {
    match text.split_once('/') {
        Some((address, _)) => address.parse::<IpAddr>().ok().and_then(|_| text.parse().ok()),
        None => text.parse::<IpAddr>().ok().map(IpNet::from),
    }
}

fn read(text: &str) -> Result<IpNet, String> {
    let net = parse_net(text);
    let Some(net) = net else {
        return Err(format!("{text:?} is no network: write 192.0.2.0/24, 2001:db8::/32, or an address"));
    };
    let net = match net {
        IpNet::V6(v6) => match v6.addr().to_ipv4_mapped() {
            None => net,
            // What a dual-stack socket sees is the IPv4 address.
            Some(v4) => v6
                .prefix_len()
                .checked_sub(MAPPED_PREFIX)
                .and_then(|prefix| Ipv4Net::new(v4, prefix).ok())
                .map(IpNet::V4)
                .ok_or_else(|| format!("{text:?} mixes IPv4 and IPv6: write each as such"))?,
        },
        IpNet::V4(_) => net,
    };
    if net.trunc() != net {
        return Err(format!("{text:?} has bits behind its prefix: write {}", net.trunc()));
    }
    Ok(net)
}

impl AllowList {
    /// Reads networks (`192.0.2.0/24`, `2001:db8::/32`) and single addresses.
    ///
    /// # Errors
    /// [`WrongEntry`] for the first one that is none, or the first one too many.
    pub fn read<S: AsRef<str>>(texts: &[S]) -> Result<Self, WrongEntry> {
        if texts.len() > ENTRIES_MAX {
            return Err(WrongEntry { at: ENTRIES_MAX, why: format!("a list has at most {ENTRIES_MAX} networks") });
        }
        let mut nets = Vec::with_capacity(texts.len());
        for (at, text) in texts.iter().enumerate() {
            nets.push(read(text.as_ref().trim()).map_err(|why| WrongEntry { at, why })?);
        }
        nets.sort_unstable();
        nets.dedup();
        Ok(Self(nets))
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The networks as text that [`read`](Self::read) takes.
    #[must_use]
    pub fn entries(&self) -> Vec<String> {
        self.0.iter().map(ToString::to_string).collect()
    }

    /// Whether this list lets nobody in that `self` does not.
    #[must_use]
    pub fn covers(&self, list: &Self) -> bool {
        let is_within = |net: &IpNet| self.0.iter().any(|own| own.contains(net));
        self.0.is_empty() || (!list.0.is_empty() && list.0.iter().all(is_within))
    }

    /// Whether a request from there is let in. Where nobody knows from where it comes, only an empty list does.
    #[must_use]
    pub fn allows(&self, address: Option<IpAddr>) -> bool {
        if self.0.is_empty() {
            return true;
        }
        // Without a zone or a mapping: one client, one form.
        address
            .map(|address| address.to_canonical())
            .is_some_and(|address| self.0.iter().any(|net| net.contains(&address)))
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use proptest::prelude::*;

    use super::*;

    fn list(texts: &[&str]) -> AllowList {
        AllowList::read(texts).unwrap()
    }

    fn at(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_list_covers_what_lets_in_no_more() {
        let office = list(&["192.0.2.0/24", "2001:db8:1::/48"]);
        for narrower in [&["192.0.2.128/25"][..], &["192.0.2.7", "2001:db8:1:2::/64"], &["192.0.2.0/24"]] {
            assert!(office.covers(&list(narrower)), "{narrower:?}");
        }
        for wider in [&[][..], &["192.0.2.0/23"], &["192.0.2.7", "198.51.100.7"], &["0.0.0.0/0"], &["::/0"]] {
            assert!(!office.covers(&list(wider)), "{wider:?}");
        }
        assert!(list(&[]).covers(&office) && list(&[]).covers(&list(&[])));
    }

    #[test]
    fn networks_of_both_kinds_let_their_addresses_in_and_no_others() {
        let office = list(&["192.0.2.0/24", "2001:db8:1::/48", "198.51.100.7"]);
        for inside in ["192.0.2.0", "192.0.2.255", "2001:db8:1:ffff::1", "198.51.100.7", "::ffff:192.0.2.9"] {
            assert!(office.allows(Some(at(inside))), "{inside}");
        }
        for outside in
            ["192.0.3.0", "2001:db8:2::", "198.51.100.8", "::ffff:192.0.3.9", "::192.0.2.9", "64:ff9b::192.0.2.9"]
        {
            assert!(!office.allows(Some(at(outside))), "{outside}");
        }
        assert!(!office.allows(None), "who comes from nowhere is not let in");
        assert!(AllowList::default().allows(None) && AllowList::default().allows(Some(at("203.0.113.1"))));
        // All of one kind is not all of the other.
        assert!(
            list(&["0.0.0.0/0"]).allows(Some(at("::ffff:203.0.113.1")))
                && !list(&["0.0.0.0/0"]).allows(Some(at("::1")))
        );
        assert!(!list(&["::/0"]).allows(Some(at("203.0.113.1"))));
    }

    /// Section e: mapped forms.
    #[test]
    fn one_network_has_one_form() {
        assert_eq!(list(&["::ffff:192.0.2.0/120", "192.0.2.0/24"]).entries(), ["192.0.2.0/24"]);
        assert_eq!(
            list(&["2001:DB8:0:0::/32", "192.0.2.1", "::ffff:192.0.2.1"]).entries(),
            ["192.0.2.1/32", "2001:db8::/32"]
        );
    }

    /// What does not parse is refused, never guessed.
    #[test]
    fn what_is_no_network_is_refused_with_its_place() {
        for bad in [
            "",
            "everybody",
            "192.0.2.0/33",
            "192.0.2.0/-1",
            "192.0.2/24",
            "192.0.2.256",
            "fe80::1%eth0",
            "192.0.2.0/24/24",
            "192.0.2.010/32",
            "010.0.0.0/8",
            "*",
            "::ffff:0:0/90",
        ] {
            let wrong = AllowList::read(&["10.0.0.0/8", bad]).unwrap_err();
            assert_eq!(wrong.at, 1, "{bad}");
        }
        let wrong = AllowList::read(&["192.0.2.9/24"]).unwrap_err();
        assert!(wrong.why.ends_with("write 192.0.2.0/24"), "{wrong}");
        let many: Vec<String> = (0..=ENTRIES_MAX).map(|n| format!("10.0.{n}.0/24")).collect();
        assert_eq!(AllowList::read(&many).unwrap_err().at, ENTRIES_MAX);
    }

    proptest! {
        #[test]
        fn a_network_lets_in_what_shares_its_bits(base: u32, prefix in 0_u8..=32, other: u32) {
            let net = Ipv4Net::new(Ipv4Addr::from(base), prefix).unwrap().trunc();
            let list = list(&[&net.to_string()]);
            let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
            let expected = base & mask == other & mask;
            prop_assert_eq!(list.allows(Some(Ipv4Addr::from(other).into())), expected);
            prop_assert_eq!(list.allows(Some(Ipv4Addr::from(other).to_ipv6_mapped().into())), expected);
            prop_assert_eq!(AllowList::read(&list.entries()).unwrap(), list);
        }

        #[test]
        fn any_text_is_read_without_panic(texts: Vec<String>) {
            let _ = AllowList::read(&texts);
        }
    }
}
