//! The time, as coarse as the host gives it.

/// Seconds since 1970-01-01T00:00:00Z. In a factor the clock stands still.
#[must_use]
pub fn now_unix_s() -> u64 {
    crate::platform::now_unix_s()
}
