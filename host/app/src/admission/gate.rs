//! How many starts a node takes in at once: fewer while its database is slow to write them, and never all for one organization.
//!
//! The moment is passed in, as the time since the gate was built. What is counted here is held by whoever entered and given back when
//! that is dropped, so that nothing leaks.
//!
//! Source of the rule: K. Nichols, V. Jacobson, "Controlling Queue Delay", 2012. A queue that empties now and then is a burst and
//! does no harm; one whose *shortest* wait in an interval is above the target stands, and only fewer arrivals make it go.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use bulkhead_model::id::OrgId;

/// The shortest wait is taken over this long.
const INTERVAL: Duration = Duration::from_millis(100);
/// However slow the database is, so many are let in: somebody has to find out that it is quick again.
const ALLOWED_MIN: usize = 8;
/// A write that has waited for so many times the target says that nothing goes forward: of one organization only the fewest are let in.
const STALLED_TARGETS: u32 = 4;

/// Why somebody may not enter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Full {
    /// The organization holds its share of what is let in.
    Share,
    /// The node takes no more at this moment.
    Node,
    /// Bodies that are under way take as much memory as they may.
    Bodies,
}

/// What one organization holds.
#[derive(Clone, Copy, Debug, Default)]
struct Held {
    starts: usize,
    bodies: usize,
    body_bytes: u64,
}

pub(super) struct Gate {
    /// Starts at once in good times.
    most: usize,
    body_bytes_max: u64,
    /// The shortest wait for a write that is in order.
    target: Duration,
    /// Starts at once at this moment.
    allowed: usize,
    starts: usize,
    body_bytes: u64,
    /// Organizations that have bodies under way.
    orgs_with_bodies: u64,
    by_org: HashMap<OrgId, Held>,
    /// When each write that is under way began.
    writing: BTreeMap<u64, Duration>,
    next: u64,
    interval_began: Duration,
    shortest: Option<Duration>,
}

impl Gate {
    pub(super) fn new(most: usize, target: Duration, body_bytes_max: u64) -> Self {
        let most = most.max(1);
        Self {
            most,
            body_bytes_max,
            target,
            allowed: most,
            starts: 0,
            body_bytes: 0,
            orgs_with_bodies: 0,
            by_org: HashMap::new(),
            writing: BTreeMap::new(),
            next: 0,
            interval_began: Duration::ZERO,
            shortest: None,
        }
    }

    pub(super) fn allowed(&self) -> usize {
        self.allowed
    }

    pub(super) fn starts(&self) -> usize {
        self.starts
    }

    fn held(&self, org: OrgId) -> Held {
        self.by_org.get(&org).copied().unwrap_or_default()
    }

    /// Whether a start of the organization would be let in now.
    pub(super) fn check(&self, org: OrgId, now: Duration) -> Result<(), Full> {
        let own = self.held(org).starts;
        let oldest = self.writing.first_key_value().map(|(_, began)| now.saturating_sub(*began));
        let is_stalled = oldest.is_some_and(|waited| waited > self.target * STALLED_TARGETS);
        let allowed = if is_stalled { self.allowed.min(ALLOWED_MIN) } else { self.allowed };
        // There is always room for one organization more than are here.
        let here = self.by_org.values().filter(|held| held.starts > 0).count() + usize::from(own == 0);
        if own >= (allowed / (here + 1)).max(1) {
            return Err(Full::Share);
        }
        // Shares shrink when others come, or when nothing goes forward, but what is held already is not taken back: so who holds
        // nothing finds room beyond.
        if self.starts >= if own == 0 { self.allowed * 2 } else { allowed } {
            return Err(Full::Node);
        }
        Ok(())
    }

    pub(super) fn enter(&mut self, org: OrgId, now: Duration) -> Result<(), Full> {
        self.check(org, now)?;
        self.starts += 1;
        self.by_org.entry(org).or_default().starts += 1;
        Ok(())
    }

    pub(super) fn leave(&mut self, org: OrgId) {
        self.starts = self.starts.saturating_sub(1);
        self.give_back(org, |held| held.starts = held.starts.saturating_sub(1));
    }

    /// A body is about to be read; it holds nothing yet.
    pub(super) fn begin_body(&mut self, org: OrgId) {
        let held = self.by_org.entry(org).or_default();
        self.orgs_with_bodies += u64::from(held.bodies == 0);
        held.bodies += 1;
    }

    /// Takes memory for more of a body that is being read. The rule is the one for starts: room for one organization more than are here,
    /// and twice the bound for who has no other body.
    pub(super) fn grow_body(&mut self, org: OrgId, bytes: u64) -> Result<(), Full> {
        let own = self.held(org);
        let is_only = own.bodies <= 1;
        let share = self.body_bytes_max / (self.orgs_with_bodies + 1);
        let most = if is_only { self.body_bytes_max.saturating_mul(2) } else { self.body_bytes_max };
        // One body is let in however small the bounds are, or nothing larger ever would be.
        let is_alone = is_only && self.body_bytes == own.body_bytes;
        let fits = (is_only || own.body_bytes.saturating_add(bytes) <= share)
            && (is_alone || self.body_bytes.saturating_add(bytes) <= most);
        if !fits {
            return Err(Full::Bodies);
        }
        self.body_bytes += bytes;
        self.by_org.entry(org).or_default().body_bytes += bytes;
        Ok(())
    }

    /// A body is over that held so many bytes.
    pub(super) fn drop_body(&mut self, org: OrgId, bytes: u64) {
        self.body_bytes = self.body_bytes.saturating_sub(bytes);
        self.give_back(org, |held| {
            held.body_bytes = held.body_bytes.saturating_sub(bytes);
            held.bodies = held.bodies.saturating_sub(1);
        });
        if self.held(org).bodies == 0 {
            self.orgs_with_bodies = self.orgs_with_bodies.saturating_sub(1);
        }
    }

    fn give_back(&mut self, org: OrgId, take: impl FnOnce(&mut Held)) {
        if let Some(held) = self.by_org.get_mut(&org) {
            take(held);
            if held.starts == 0 && held.bodies == 0 {
                self.by_org.remove(&org);
            }
        }
    }

    /// A start hands its write over; the answer is for [`wrote`](Self::wrote).
    pub(super) fn write(&mut self, now: Duration) -> u64 {
        self.next += 1;
        self.writing.insert(self.next, now);
        self.next
    }

    /// The write ended. `counts` says whether its wait tells of the database: one that failed does not.
    pub(super) fn wrote(&mut self, write: u64, now: Duration, counts: bool) {
        let Some(began) = self.writing.remove(&write) else { return };
        if !counts {
            return;
        }
        let waited = now.saturating_sub(began);
        self.shortest = Some(self.shortest.map_or(waited, |shortest| shortest.min(waited)));
        if now.saturating_sub(self.interval_began) < INTERVAL {
            return;
        }
        if self.shortest.is_some_and(|shortest| shortest > self.target) {
            self.allowed = (self.allowed / 2).max(ALLOWED_MIN).min(self.most);
        } else {
            self.allowed = (self.allowed + self.allowed / 8 + 1).min(self.most);
        }
        self.interval_began = now;
        self.shortest = None;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TARGET: Duration = Duration::from_millis(100);

    fn org(n: u128) -> OrgId {
        OrgId::from_uuid(uuid::Uuid::from_u128(n + 1))
    }

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn gate(most: usize) -> Gate {
        Gate::new(most, TARGET, 1_000)
    }

    /// How many starts an organization gets in, one after another.
    fn fill(gate: &mut Gate, n: u128) -> usize {
        (0..10_000).take_while(|_| gate.enter(org(n), ms(0)).is_ok()).count()
    }

    /// Writes that each take so long, one after another, until `until`.
    fn writes(gate: &mut Gate, from: Duration, until: Duration, each: Duration) {
        let mut now = from;
        while now < until {
            let write = gate.write(now);
            now += each;
            gate.wrote(write, now, true);
        }
    }

    #[test]
    fn one_organization_leaves_room_for_others() {
        let mut gate = gate(64);
        assert_eq!(fill(&mut gate, 0), 32);
        assert_eq!(gate.check(org(0), ms(0)), Err(Full::Share));
        assert_eq!(fill(&mut gate, 1), 21);
        for n in 2..40 {
            assert_eq!(gate.check(org(n), ms(0)), Ok(()), "{n}");
            gate.enter(org(n), ms(0)).unwrap();
        }
        assert_eq!(gate.check(org(1), ms(0)), Err(Full::Share));
    }

    #[test]
    fn many_organizations_together_are_bounded() {
        let mut gate = gate(64);
        let entered = (0..10_000).filter(|n| gate.enter(org(*n), ms(0)).is_ok()).count();
        assert_eq!(entered, 128);
        assert_eq!(gate.check(org(20_000), ms(0)), Err(Full::Node));
        gate.leave(org(0));
        assert_eq!(gate.check(org(20_000), ms(0)), Ok(()));
    }

    #[test]
    fn a_slow_database_is_given_less_and_a_quick_one_more() {
        let mut gate = gate(256);
        writes(&mut gate, ms(0), ms(2_000), TARGET * 2);
        assert_eq!(gate.allowed(), ALLOWED_MIN);
        writes(&mut gate, ms(2_000), ms(6_000), ms(10));
        assert_eq!(gate.allowed(), 256);
    }

    #[test]
    fn a_burst_is_no_standing_queue() {
        let mut gate = gate(256);
        for n in 0..50 {
            let now = ms(n * 100);
            let (slow, quick) = (gate.write(now), gate.write(now));
            gate.wrote(quick, now + ms(5), true);
            gate.wrote(slow, now + TARGET * 5, true);
        }
        assert_eq!(gate.allowed(), 256);
    }

    #[test]
    fn a_write_that_failed_says_nothing() {
        let mut gate = gate(256);
        for n in 0..50 {
            let write = gate.write(ms(n * 1_000));
            gate.wrote(write, ms(n * 1_000 + 900), false);
        }
        assert_eq!(gate.allowed(), 256);
        assert!(gate.writing.is_empty());
    }

    #[test]
    fn a_write_that_stands_still_closes_the_gate_before_it_ends() {
        let mut gate = gate(256);
        let write = gate.write(ms(0));
        for _ in 0..20 {
            gate.enter(org(0), ms(0)).unwrap();
        }
        assert_eq!(gate.check(org(0), ms(399)), Ok(()));
        assert_eq!(gate.check(org(0), ms(401)), Err(Full::Share));
        assert_eq!(gate.check(org(1), ms(401)), Ok(()), "who holds nothing is not kept out by others");
        gate.wrote(write, ms(500), true);
        assert_eq!(gate.check(org(0), ms(501)), Ok(()));
    }

    /// A body of so many bytes.
    fn body(gate: &mut Gate, n: u128, bytes: u64) -> Result<(), Full> {
        gate.begin_body(org(n));
        let grown = gate.grow_body(org(n), bytes);
        if grown.is_err() {
            gate.drop_body(org(n), 0);
        }
        grown
    }

    #[test]
    fn bodies_take_so_much_memory_and_no_more() {
        let mut gate = gate(8);
        assert_eq!(body(&mut gate, 0, 400), Ok(()));
        assert_eq!(body(&mut gate, 0, 101), Err(Full::Bodies));
        assert_eq!(body(&mut gate, 0, 100), Ok(()));
        // A second organization that takes all that it may shuts nobody out who holds nothing.
        assert_eq!(body(&mut gate, 1, 300), Ok(()));
        assert_eq!(body(&mut gate, 1, 34), Err(Full::Bodies));
        for n in 2..14 {
            assert_eq!(body(&mut gate, n, 100), Ok(()), "{n}");
            assert_eq!(body(&mut gate, n, 1_000), Err(Full::Bodies), "{n}");
        }
        assert_eq!(body(&mut gate, 20, 1), Err(Full::Bodies), "twice the bound is there");
        gate.drop_body(org(1), 300);
        assert_eq!(gate.orgs_with_bodies, 13);
        assert_eq!(body(&mut gate, 20, 300), Ok(()));
        gate.drop_body(org(20), 300);
        gate.drop_body(org(0), 400);
        gate.drop_body(org(0), 100);
        for n in 2..14 {
            gate.drop_body(org(n), 100);
        }
        assert!(gate.by_org.is_empty() && gate.body_bytes == 0 && gate.orgs_with_bodies == 0);
        assert_eq!(body(&mut gate, 2, 5_000), Ok(()), "one body always fits");
        assert_eq!(gate.grow_body(org(2), 5_000), Ok(()));
    }

    proptest! {
        /// Whoever comes and goes: the bounds hold, everything is given back, and who holds nothing is let in unless twice the bound
        /// is inside.
        #[test]
        fn bounds_hold(most in 1_usize..64, moves in prop::collection::vec((0_u128..8, any::<bool>()), 1..400)) {
            let mut gate = gate(most);
            let mut inside: Vec<u128> = Vec::new();
            for (n, enters) in moves {
                if enters {
                    let own = inside.iter().filter(|m| **m == n).count();
                    let entered = gate.enter(org(n), ms(0)).is_ok();
                    prop_assert!(entered || own > 0 || inside.len() >= 2 * most);
                    prop_assert!(!entered || own < (most / 2).max(1));
                    inside.extend(entered.then_some(n));
                } else if let Some(at) = inside.iter().position(|m| *m == n) {
                    inside.remove(at);
                    gate.leave(org(n));
                }
                prop_assert_eq!(gate.starts(), inside.len());
                prop_assert!(inside.len() <= 2 * most);
            }
            for n in inside {
                gate.leave(org(n));
            }
            prop_assert!(gate.by_org.is_empty() && gate.starts() == 0);
        }
    }
}
