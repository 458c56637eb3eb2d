//! One limiter over everything that an instance allocates: all memories together, all tables together, and how many of each.
//!
//! wasmtime asks before each growth. What is granted is counted at once; what is granted and then fails to grow is taken back.

use bulkhead_model::limits::Limits;
use wasmtime::ResourceLimiter;

/// Why the last growth was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// The sum over all memories would pass the limit.
    Memory { wanted_bytes: u64 },
    /// The sum over all tables would pass the limit.
    Table { wanted_elements: u64 },
    /// The memory's or table's own declared maximum, or the operating system.
    Own,
}

#[derive(Debug)]
struct Sum {
    used: u64,
    peak: u64,
    limit: u64,
    /// Granted last; taken back if the growth then fails.
    pending: u64,
}

impl Sum {
    fn new(limit: u64) -> Self {
        Self { used: 0, peak: 0, limit, pending: 0 }
    }

    /// `Err` holds the sum that would have been reached.
    fn grow(&mut self, by: u64) -> Result<(), u64> {
        self.pending = 0;
        let wanted = self.used.saturating_add(by);
        if wanted > self.limit {
            return Err(wanted);
        }
        self.used = wanted;
        self.pending = by;
        Ok(())
    }

    fn take_back(&mut self) {
        self.used -= std::mem::take(&mut self.pending);
    }

    /// The peak counts what was really there, so it is taken when the next question comes or at the end.
    fn settle(&mut self) {
        self.pending = 0;
        self.peak = self.peak.max(self.used);
    }
}

/// Counts for one call.
#[derive(Debug)]
pub(crate) struct Limiter {
    memory: Sum,
    table: Sum,
    core_instances: usize,
    memories: usize,
    tables: usize,
    refused: Option<Refused>,
}

impl Limiter {
    pub(crate) fn new(limits: &Limits) -> Self {
        let count = |n: u32| usize::try_from(n).unwrap_or(usize::MAX);
        Self {
            memory: Sum::new(limits.memory_bytes),
            table: Sum::new(limits.table_elements),
            core_instances: count(limits.core_instances),
            memories: count(limits.memories),
            tables: count(limits.tables),
            refused: None,
        }
    }

    /// The growth that was refused last, if any: a trap after it means that the guest ran out of memory.
    pub(crate) fn refused(&self) -> Option<Refused> {
        self.refused
    }

    pub(crate) fn memory_peak_bytes(&mut self) -> u64 {
        self.memory.settle();
        self.memory.peak
    }

    pub(crate) fn table_peak_elements(&mut self) -> u64 {
        self.table.settle();
        self.table.peak
    }
}

fn growth(current: usize, desired: usize) -> u64 {
    u64::try_from(desired.saturating_sub(current)).unwrap_or(u64::MAX)
}

impl ResourceLimiter for Limiter {
    fn memory_growing(&mut self, current: usize, desired: usize, maximum: Option<usize>) -> wasmtime::Result<bool> {
        self.memory.settle();
        if let Err(wanted_bytes) = self.memory.grow(growth(current, desired)) {
            self.refused = Some(Refused::Memory { wanted_bytes });
            return Ok(false);
        }
        if maximum.is_some_and(|maximum| desired > maximum) {
            self.memory.take_back();
            self.refused = Some(Refused::Own);
            return Ok(false);
        }
        Ok(true)
    }

    fn memory_grow_failed(&mut self, _: wasmtime::Error) -> wasmtime::Result<()> {
        self.memory.take_back();
        self.refused.get_or_insert(Refused::Own);
        Ok(())
    }

    fn table_growing(&mut self, current: usize, desired: usize, maximum: Option<usize>) -> wasmtime::Result<bool> {
        self.table.settle();
        if let Err(wanted_elements) = self.table.grow(growth(current, desired)) {
            self.refused = Some(Refused::Table { wanted_elements });
            return Ok(false);
        }
        if maximum.is_some_and(|maximum| desired > maximum) {
            self.table.take_back();
            self.refused = Some(Refused::Own);
            return Ok(false);
        }
        Ok(true)
    }

    fn table_grow_failed(&mut self, _: wasmtime::Error) -> wasmtime::Result<()> {
        self.table.take_back();
        self.refused.get_or_insert(Refused::Own);
        Ok(())
    }

    fn instances(&self) -> usize {
        self.core_instances
    }

    fn tables(&self) -> usize {
        self.tables
    }

    fn memories(&self) -> usize {
        self.memories
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bulkhead_model::limits::ContributionKind;
    use proptest::prelude::*;

    fn limiter(memory_bytes: u64) -> Limiter {
        Limiter::new(&Limits { memory_bytes, ..Limits::default_for(ContributionKind::Action) })
    }

    #[test]
    fn the_sum_over_memories_is_what_counts() {
        let mut limiter = limiter(100);
        assert!(limiter.memory_growing(0, 60, None).unwrap());
        assert!(!limiter.memory_growing(0, 60, None).unwrap());
        assert_eq!(limiter.refused(), Some(Refused::Memory { wanted_bytes: 120 }));
        assert!(limiter.memory_growing(60, 100, None).unwrap());
        assert_eq!(limiter.memory_peak_bytes(), 100);
    }

    #[test]
    fn failed_growth_is_taken_back_once() {
        let mut limiter = limiter(100);
        assert!(limiter.memory_growing(0, 60, None).unwrap());
        limiter.memory_grow_failed(wasmtime::Error::msg("no")).unwrap();
        limiter.memory_grow_failed(wasmtime::Error::msg("no")).unwrap();
        assert_eq!(limiter.memory_peak_bytes(), 0);
        assert!(limiter.memory_growing(0, 100, None).unwrap());
    }

    #[test]
    fn a_declared_maximum_is_not_counted() {
        let mut limiter = limiter(100);
        assert!(!limiter.memory_growing(0, 50, Some(40)).unwrap());
        assert_eq!(limiter.refused(), Some(Refused::Own));
        assert!(limiter.memory_growing(0, 100, None).unwrap());
    }

    proptest! {
        /// Whatever is asked and whatever fails, the sum of what is there never passes the limit.
        #[test]
        fn never_past_the_limit(steps in prop::collection::vec((0_usize..200, any::<bool>(), any::<bool>()), 0..40)) {
            let mut limiter = limiter(500);
            let mut there = 0_usize;
            for (by, fails, capped) in steps {
                let granted = limiter.memory_growing(0, by, capped.then_some(by / 2)).unwrap();
                if granted && fails {
                    limiter.memory_grow_failed(wasmtime::Error::msg("no")).unwrap();
                } else if granted {
                    there += by;
                }
                prop_assert!(there <= 500);
                prop_assert_eq!(limiter.memory.used, there as u64);
            }
        }
    }
}
