//! Whose turn it is: weighted round robin over the organizations that have ready work, by stride scheduling.
//!
//! What is here is a hint. The database says what is ready and what may be held; a claim that finds less than was hoped for
//! corrects it, and a look at the queue every moment finds what no wake-up told of (another node's jobs, a lost notification).
//!
//! Source: C. Waldspurger, W. Weihl, "Stride Scheduling: Deterministic Proportional-Share Resource Management", 1995.

use std::collections::{BTreeSet, HashMap};
use std::sync::Mutex;

use bulkhead_model::id::OrgId;
use bulkhead_model::job::Lane;
use bulkhead_store::job::{Turn, TurnEnd};

/// How far one job of an organization of weight 1 moves it back in the line.
const STRIDE: u64 = 1 << 20;
/// Organizations in one claim: bounds its statements.
const TURNS_MAX: usize = 32;

/// The lines of all lanes.
#[derive(Default)]
pub(crate) struct Turns(Mutex<[Line; 3]>);

/// The organizations of one lane.
#[derive(Default)]
struct Line {
    /// Those with work and room, the next one first.
    order: BTreeSet<(u64, OrgId)>,
    places: HashMap<OrgId, Place>,
    /// Where the line stands: who joins begins here, and has no claim for the time when it had no work.
    now: u64,
}

#[derive(Clone, Copy, Debug)]
struct Place {
    pass: u64,
    weight: u32,
    /// Rises when somebody tells of new work or room.
    told: u64,
    /// It holds as many jobs as it may: not in the line until one of them ends.
    full: bool,
}

/// A turn as it was planned.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Planned {
    pub(crate) turn: Turn,
    told: u64,
}

impl Turns {
    fn with<T>(&self, lane: Lane, work: impl FnOnce(&mut Line) -> T) -> T {
        let mut lines = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let at = match lane {
            Lane::System => 0,
            Lane::Interactive => 1,
            Lane::Bulk => 2,
        };
        work(&mut lines[at])
    }

    /// The organization has new work in the lane, or one of its jobs ended.
    pub(crate) fn tell(&self, lane: Lane, org: OrgId) {
        self.with(lane, |line| line.tell(org));
    }

    /// One of the organization's jobs ended: it may have room again. Unlike [`tell`](Self::tell) it does not say that there is work.
    pub(crate) fn tell_room(&self, lane: Lane, org: OrgId) {
        self.with(lane, |line| {
            if line.places.contains_key(&org) {
                line.tell(org);
            }
        });
    }

    /// Nobody is known to wait in the lane.
    pub(crate) fn is_idle(&self, lane: Lane) -> bool {
        self.with(lane, |line| line.order.is_empty())
    }

    /// Whether nobody is known to wait in the lane; `None` when this organization does, or holds as much as it may.
    pub(crate) fn is_idle_beside(&self, lane: Lane, org: OrgId) -> Option<bool> {
        self.with(lane, |line| (!line.places.contains_key(&org)).then_some(line.order.is_empty()))
    }

    /// How `slots` free slots are to be shared.
    pub(crate) fn plan(&self, lane: Lane, slots: u32) -> Vec<Planned> {
        self.with(lane, |line| line.plan(slots))
    }

    /// What came of a planned turn.
    pub(crate) fn settle(&self, lane: Lane, planned: &Planned, taken: u32, end: TurnEnd) {
        self.with(lane, |line| line.settle(planned, taken, end));
    }

    /// The weight that the database tells.
    pub(crate) fn set_weight(&self, lane: Lane, org: OrgId, weight: u32) {
        self.with(lane, |line| {
            if let Some(place) = line.places.get_mut(&org) {
                place.weight = weight.max(1);
            }
        });
    }
}

impl Line {
    fn tell(&mut self, org: OrgId) {
        let now = self.now;
        let place = self.places.entry(org).or_insert(Place { pass: now, weight: 1, told: 0, full: false });
        place.told += 1;
        if std::mem::take(&mut place.full) {
            // It has no claim for the time when it had no room, and stands behind those that had.
            place.pass = place.pass.max(now);
        }
        self.order.insert((place.pass, org));
    }

    fn plan(&mut self, slots: u32) -> Vec<Planned> {
        let mut quotas: Vec<Planned> = Vec::new();
        let mut at: HashMap<OrgId, usize> = HashMap::new();
        for _ in 0..slots {
            let Some((pass, org)) = self.order.pop_first() else { break };
            if !at.contains_key(&org) && quotas.len() == TURNS_MAX {
                self.order.insert((pass, org));
                break;
            }
            let Some(place) = self.places.get_mut(&org) else { continue };
            self.now = self.now.max(pass);
            place.pass = pass.saturating_add(STRIDE / u64::from(place.weight));
            self.order.insert((place.pass, org));
            let index = *at.entry(org).or_insert_with(|| {
                quotas.push(Planned { turn: Turn { org, quota: 0 }, told: place.told });
                quotas.len() - 1
            });
            quotas[index].turn.quota += 1;
        }
        quotas
    }

    fn settle(&mut self, planned: &Planned, taken: u32, end: TurnEnd) {
        let org = planned.turn.org;
        let Some(place) = self.places.get_mut(&org) else { return };
        self.order.remove(&(place.pass, org));
        let unused = u64::from(planned.turn.quota.saturating_sub(taken)) * (STRIDE / u64::from(place.weight));
        place.pass = place.pass.saturating_sub(unused);
        // What was told since the plan may be newer than what the claim saw.
        let stays = place.told != planned.told
            || match end {
                TurnEnd::More | TurnEnd::Elsewhere => true,
                TurnEnd::Drained | TurnEnd::Full => false,
            };
        if stays {
            self.order.insert((place.pass, org));
        } else if end == TurnEnd::Full {
            place.full = true;
        } else {
            self.places.remove(&org);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn org(n: u128) -> OrgId {
        OrgId::from_uuid(uuid::Uuid::from_u128(n))
    }

    /// Claims from organizations with so many jobs until `slots` in all are given, a few at a time.
    fn share(jobs: &[(u32, u32)], mut slots: u32, each: u32) -> Vec<u32> {
        let turns = Turns::default();
        let mut left: Vec<u32> = jobs.iter().map(|(jobs, _)| *jobs).collect();
        for (n, (_, weight)) in jobs.iter().enumerate() {
            turns.tell(Lane::Interactive, org(n as u128));
            turns.set_weight(Lane::Interactive, org(n as u128), *weight);
        }
        while slots > 0 {
            let planned = turns.plan(Lane::Interactive, each.min(slots));
            if planned.is_empty() {
                break;
            }
            for planned in planned {
                let n = planned.turn.org.uuid().as_u128() as usize;
                let taken = planned.turn.quota.min(left[n]);
                left[n] -= taken;
                slots -= taken;
                let end = if taken < planned.turn.quota { TurnEnd::Drained } else { TurnEnd::More };
                turns.settle(Lane::Interactive, &planned, taken, end);
            }
        }
        jobs.iter().zip(left).map(|((jobs, _), left)| jobs - left).collect()
    }

    #[test]
    fn one_with_much_work_does_not_keep_the_others_waiting() {
        assert_eq!(share(&[(50_000, 1), (3, 1), (3, 1)], 12, 4), [6, 3, 3]);
    }

    #[test]
    fn weights_are_shares() {
        assert_eq!(share(&[(1_000, 3), (1_000, 1)], 400, 8), [300, 100]);
    }

    #[test]
    fn who_was_away_has_saved_nothing_up() {
        let turns = Turns::default();
        turns.tell(Lane::Bulk, org(1));
        for _ in 0..100 {
            for planned in turns.plan(Lane::Bulk, 10) {
                turns.settle(Lane::Bulk, &planned, planned.turn.quota, TurnEnd::More);
            }
        }
        turns.tell(Lane::Bulk, org(2));
        let quotas: Vec<u32> = turns.plan(Lane::Bulk, 10).iter().map(|planned| planned.turn.quota).collect();
        assert_eq!(quotas.iter().sum::<u32>(), 10);
        assert!(quotas.iter().all(|quota| (4..=6).contains(quota)), "{quotas:?}");
    }

    #[test]
    fn a_full_one_is_out_of_the_line_until_it_has_room() {
        let turns = Turns::default();
        turns.tell(Lane::System, org(1));
        let planned = turns.plan(Lane::System, 4);
        turns.settle(Lane::System, &planned[0], 2, TurnEnd::Full);
        assert!(turns.plan(Lane::System, 4).is_empty() && turns.is_idle(Lane::System));
        turns.tell_room(Lane::System, org(2));
        assert!(turns.is_idle(Lane::System), "room without work is no turn");
        turns.tell_room(Lane::System, org(1));
        assert_eq!(turns.plan(Lane::System, 4)[0].turn.org, org(1));
    }

    #[test]
    fn a_full_one_does_not_stand_before_those_with_room() {
        let turns = Turns::default();
        turns.tell(Lane::System, org(1));
        let full = turns.plan(Lane::System, 1);
        turns.settle(Lane::System, &full[0], 0, TurnEnd::Full);
        // The other has taken much meanwhile; the first one is told of again and again, and has no room yet.
        turns.tell(Lane::System, org(2));
        for _ in 0..100 {
            for planned in turns.plan(Lane::System, 10) {
                turns.settle(Lane::System, &planned, planned.turn.quota, TurnEnd::More);
            }
        }
        turns.tell(Lane::System, org(1));
        let planned = turns.plan(Lane::System, 10);
        let of = |n| planned.iter().find(|planned| planned.turn.org == org(n)).map_or(0, |planned| planned.turn.quota);
        assert!(of(1) >= 4 && of(2) >= 4, "{planned:?}");
    }

    #[test]
    fn work_told_of_during_a_claim_is_not_forgotten() {
        let turns = Turns::default();
        turns.tell(Lane::System, org(1));
        let planned = turns.plan(Lane::System, 4);
        turns.tell(Lane::System, org(1));
        turns.settle(Lane::System, &planned[0], 0, TurnEnd::Drained);
        assert_eq!(turns.plan(Lane::System, 4).len(), 1);
    }

    proptest! {
        /// Among organizations that always have work, none is more than a claim's worth away from its share.
        #[test]
        fn shares_follow_weights(weights in prop::collection::vec(1_u32..=8, 1..20), each in 1_u32..40, rounds in 1_u32..50) {
            let jobs: Vec<(u32, u32)> = weights.iter().map(|weight| (1_000_000, *weight)).collect();
            let slots = each * rounds;
            let given = share(&jobs, slots, each);
            prop_assert_eq!(given.iter().sum::<u32>(), slots);
            let all: u32 = weights.iter().sum();
            for (given, weight) in given.iter().zip(&weights) {
                let fair = f64::from(slots) * f64::from(*weight) / f64::from(all);
                prop_assert!((f64::from(*given) - fair).abs() <= f64::from(*weight) + 1.0, "{given} instead of {fair}");
            }
        }

        /// Nobody with work is left out: whatever others have, everyone gets a job within one round of the line.
        #[test]
        fn nobody_starves(others in 1_usize..200) {
            let jobs: Vec<(u32, u32)> = (0..=others).map(|_| (1_000_000, 1)).collect();
            let slots = u32::try_from(jobs.len()).unwrap();
            prop_assert!(share(&jobs, slots, 16).iter().all(|given| *given == 1));
        }
    }
}
