//! How long payloads are kept, by category. What goes is said by an entry of the log itself (a [`Disposal`]).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::record::{Disposal, Moment, Token};
use crate::taxonomy::Category;

/// The shortest time that a policy can name: long enough for somebody to notice what happened. (No standard says one.)
pub const DAYS_MIN: u32 = 30;
/// The longest: ten years.
pub const DAYS_MAX: u32 = 3650;
/// Who read what is kept for so many days …
const READS_DAYS: u32 = 90;
/// … and everything else for so many (spec/audit-and-keys.md).
const OTHERS_DAYS: u32 = 400;

/// For how many days after the act the payloads of each category are kept. Records, and with them all proofs, are kept for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PayloadRetention {
    pub authentication: u32,
    pub authorization: u32,
    pub data_access: u32,
    pub api: u32,
    pub configuration: u32,
    pub security: u32,
    pub compliance: u32,
    pub system: u32,
}

impl Default for PayloadRetention {
    fn default() -> Self {
        Self::of(OTHERS_DAYS, READS_DAYS)
    }
}

impl PayloadRetention {
    /// One time for who read what, and one for everything else, in days.
    #[must_use]
    pub const fn of(others: u32, reads: u32) -> Self {
        Self {
            authentication: others,
            authorization: others,
            data_access: reads,
            api: others,
            configuration: others,
            security: others,
            compliance: others,
            system: others,
        }
    }

    #[must_use]
    pub const fn days(&self, category: Category) -> u32 {
        match category {
            Category::Authentication => self.authentication,
            Category::Authorization => self.authorization,
            Category::DataAccess => self.data_access,
            Category::Api => self.api,
            Category::Configuration => self.configuration,
            Category::Security => self.security,
            Category::Compliance => self.compliance,
            Category::System => self.system,
        }
    }

    /// Categories whose time is not between [`DAYS_MIN`] and [`DAYS_MAX`].
    #[must_use]
    pub fn out_of_bounds(&self) -> Vec<Category> {
        let fits = |category: &Category| (DAYS_MIN..=DAYS_MAX).contains(&self.days(*category));
        Category::ALL.iter().copied().filter(|category| !fits(category)).collect()
    }

    /// Categories with the same time, by that time in days.
    #[must_use]
    pub fn groups(&self) -> BTreeMap<u32, Vec<Category>> {
        let mut groups: BTreeMap<u32, Vec<Category>> = BTreeMap::new();
        for category in Category::ALL {
            groups.entry(self.days(*category)).or_default().push(*category);
        }
        groups
    }
}

/// What an entry says about payloads whose time is over.
#[must_use]
pub fn expiry(days: u32, categories: Vec<Category>, before: Moment) -> Disposal {
    Disposal {
        policy: Token::from_any(&format!("retention:{days}d")),
        before: Some(before),
        categories,
        entries: vec![],
    }
}

/// What an entry says about payloads that somebody had erased.
#[must_use]
pub fn erasure(reference: &Token, entries: Vec<u64>) -> Disposal {
    Disposal { policy: Token::from_any(&format!("erasure:{reference}")), before: None, categories: vec![], entries }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_category_has_its_time_and_stands_in_one_group() {
        let policy = PayloadRetention { security: 1000, ..PayloadRetention::default() };
        assert_eq!((policy.days(Category::DataAccess), policy.days(Category::Api)), (90, 400));
        let groups = policy.groups();
        assert_eq!(groups.keys().copied().collect::<Vec<_>>(), [90, 400, 1000]);
        assert_eq!(groups[&90], [Category::DataAccess]);
        assert_eq!(groups.values().flatten().count(), Category::ALL.len());
        let mut written: BTreeMap<String, u32> = serde_json::from_value(serde_json::to_value(policy).unwrap()).unwrap();
        for category in Category::ALL {
            assert_eq!(written.remove(category.as_str()), Some(policy.days(*category)), "named as the category is");
        }
        assert!(written.is_empty());
    }

    #[test]
    fn a_time_too_short_to_notice_anything_is_named() {
        assert!(PayloadRetention::default().out_of_bounds().is_empty());
        let policy = PayloadRetention { security: 29, system: 3651, api: 30, ..PayloadRetention::default() };
        assert_eq!(policy.out_of_bounds(), [Category::Security, Category::System]);
    }
}
