//! Who asks too often again and again is shut out for a while: an address, or an API key. A block always ends, by the clock.

use std::time::Duration;

use crate::time::Timestamp;

/// Refusals (429, and 401 of an address) within [`STRIKES_WITHIN`] after which an address is shut out.
pub const ADDRESS_STRIKES: u32 = 100;
/// … and an API key, of whose refusals only those count that came after it proved itself: nobody else can have it shut out.
pub const KEY_STRIKES: u32 = 1_000;
pub const STRIKES_WITHIN: Duration = Duration::from_mins(15);
/// Different names that a network tries in vain within [`STUFFING_WITHIN`] after which it is shut out: what was stolen elsewhere is tried here.
/// Source: the figures of the one peer that looks for it (reference/core-services.md, section a.2).
pub const STUFFED_NAMES: u32 = 15;
pub const STUFFING_WITHIN: Duration = Duration::from_hours(3);
/// The first block; each further one is twice as long. Source: identity.md.
const FIRST: Duration = Duration::from_mins(15);
const LONGEST: Duration = Duration::from_hours(24);
/// So long after its end a block still makes the next one longer.
pub const REMEMBERED_FOR: Duration = Duration::from_hours(24);

/// A block, in force or over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    /// How many came before it, each not long before the next.
    pub level: u32,
    pub placed_at: Timestamp,
    pub ends_at: Timestamp,
}

/// How long a block of this level is.
#[must_use]
pub fn length(level: u32) -> Duration {
    let factor = 1_u32.checked_shl(level).unwrap_or(u32::MAX);
    FIRST.saturating_mul(factor).min(LONGEST)
}

impl Block {
    /// From the moment it is there: another node's clock may say that it was placed later than now.
    #[must_use]
    pub fn is_in_force(&self, now: Timestamp) -> bool {
        now < self.ends_at
    }

    /// Whether the next one would be longer because of this.
    #[must_use]
    pub fn is_remembered(&self, now: Timestamp) -> bool {
        now.since(self.ends_at) < REMEMBERED_FOR
    }

    /// The block that is placed now; `None` while one is in force, which nothing makes longer.
    #[must_use]
    pub fn next(previous: Option<Self>, now: Timestamp) -> Option<Self> {
        let level = match previous {
            Some(block) if block.is_in_force(now) => return None,
            Some(block) if block.is_remembered(now) => block.level.saturating_add(1),
            Some(_) | None => 0,
        };
        Some(Self { level, placed_at: now, ends_at: now.plus(length(level)) })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const START: Timestamp = Timestamp::from_micros(1_795_248_000_000_000);

    #[test]
    fn a_block_begins_with_a_quarter_of_an_hour_and_doubles_to_a_day() {
        let (mut block, mut now, mut minutes) = (None, START, Vec::new());
        for _ in 0..9 {
            let placed = Block::next(block, now).unwrap();
            minutes.push(placed.ends_at.since(placed.placed_at).as_secs() / 60);
            assert_eq!(Block::next(Some(placed), now.plus(Duration::from_mins(1))), None, "none makes another longer");
            now = placed.ends_at;
            block = Some(placed);
        }
        assert_eq!(minutes, [15, 30, 60, 120, 240, 480, 960, 1_440, 1_440]);
        let later = now.plus(REMEMBERED_FOR);
        assert_eq!(Block::next(block, later).unwrap().level, 0, "a quiet day forgets");
    }

    proptest! {
        #[test]
        fn every_block_ends_within_a_day(level: u32, at in 0_i64..1 << 52) {
            let now = Timestamp::from_micros(at);
            let before = Block { level, placed_at: now, ends_at: now };
            let block = Block::next(Some(before), now).unwrap();
            prop_assert!(block.is_in_force(now) && !block.is_in_force(block.ends_at));
            prop_assert!(block.ends_at.since(now) <= LONGEST && block.ends_at.since(now) >= FIRST);
        }
    }
}
