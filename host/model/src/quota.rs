//! What an organization may hold. Every quota has a value: there is no "unlimited".

use serde::{Deserialize, Serialize};

use crate::limits::{KIB, MIB};

macro_rules! quotas {
    ($($(#[$doc:meta])* $field:ident, $name:ident = $text:literal, $unit:literal, $default:expr, $min:expr => $max:expr;)*) => {
        /// One quota.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Quota { $($(#[$doc])* $name,)* }

        impl Quota {
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// As the API and `bulkhead admin set-quota` name it.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }

            /// `bytes`, or what is counted.
            #[must_use]
            pub const fn unit(self) -> &'static str {
                match self { $(Self::$name => $unit,)* }
            }

            /// The lowest and the highest value that an operator can set.
            #[must_use]
            pub const fn bounds(self) -> (u64, u64) {
                match self { $(Self::$name => ($min, $max),)* }
            }
        }

        /// The quotas of one organization.
        #[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
        pub struct Quotas { $($(#[$doc])* pub $field: u64,)* }

        impl Default for Quotas {
            fn default() -> Self {
                Self { $($field: $default,)* }
            }
        }

        impl Quotas {
            #[must_use]
            pub const fn get(&self, quota: Quota) -> u64 {
                match quota { $(Quota::$name => self.$field,)* }
            }

            /// Sets one quota.
            ///
            /// # Errors
            /// [`OutOfBounds`].
            pub fn set(&mut self, quota: Quota, value: u64) -> Result<(), OutOfBounds> {
                let (min, max) = quota.bounds();
                if !(min..=max).contains(&value) {
                    return Err(OutOfBounds { quota, value });
                }
                match quota { $(Quota::$name => self.$field = value,)* }
                Ok(())
            }
        }
    };
}

quotas! {
    /// Workflows that are active at the same time.
    active_workflows_max, ActiveWorkflows = "active_workflows", "workflows", 1_000, 1 => 100_000;
    /// What may start one run: a delivery's body, or the input of a start by hand.
    payload_bytes_max, PayloadBytes = "payload_bytes", "bytes", MIB, KIB => MIB;
    /// What has ended and is kept: runs with their steps, logs and calls, and calls by hand.
    history_bytes_max, HistoryBytes = "history_bytes", "bytes", 10 * 1024 * MIB, MIB => 16 * 1024 * 1024 * MIB;
    /// What the plugins of one run may write to their logs.
    log_bytes_max, LogBytes = "log_bytes", "bytes", MIB, KIB => 64 * MIB;
    /// Plugin versions.
    plugin_versions_max, PluginVersions = "plugin_versions", "versions", 1_000, 1 => 100_000;
    /// The packages of the plugin versions, together.
    plugin_bytes_max, PluginBytes = "plugin_bytes", "bytes", 2 * 1024 * MIB, MIB => 1024 * 1024 * MIB;
}

impl Quota {
    /// The quota of this name.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|quota| quota.as_str() == text)
    }
}

/// A quota's value that an operator cannot set.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}: {value} is out of its bounds, {} to {} {}", quota.as_str(), quota.bounds().0, quota.bounds().1, quota.unit())]
pub struct OutOfBounds {
    pub quota: Quota,
    pub value: u64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn defaults_lie_within_the_bounds_and_names_are_found() {
        let quotas = Quotas::default();
        for quota in Quota::ALL {
            let (min, max) = quota.bounds();
            assert!((min..=max).contains(&quotas.get(*quota)), "{quota:?}");
            assert_eq!(Quota::parse(quota.as_str()), Some(*quota));
        }
        assert_eq!(Quota::parse("runs"), None);
    }

    proptest! {
        #[test]
        fn one_is_set_and_the_others_stay(at in 0..Quota::ALL.len(), value in 0_u64..1 << 48) {
            let quota = Quota::ALL[at];
            let (min, max) = quota.bounds();
            let mut quotas = Quotas::default();
            let set = quotas.set(quota, value);
            prop_assert_eq!(set.is_ok(), (min..=max).contains(&value));
            for other in Quota::ALL {
                let expected = if *other == quota && set.is_ok() { value } else { Quotas::default().get(*other) };
                prop_assert_eq!(quotas.get(*other), expected);
            }
        }
    }
}
