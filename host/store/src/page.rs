//! Paging by key: newest first, `limit` at most 200.

/// One page of a list and where the next begins.
#[derive(Clone, Debug)]
pub struct Page<T> {
    pub items: Vec<T>,
    pub next: Option<uuid::Uuid>,
}

/// Which part of a list is asked for: rows whose id is below `before` (all when absent).
#[derive(Clone, Copy, Debug)]
pub struct PageRequest {
    pub before: Option<uuid::Uuid>,
    pub limit: u32,
}

/// Pages hold at most this many rows.
pub const PAGE_LIMIT_MAX: u32 = 200;
/// … and this many when nothing is asked for.
pub const PAGE_LIMIT_DEFAULT: u32 = 50;

impl Default for PageRequest {
    fn default() -> Self {
        Self { before: None, limit: PAGE_LIMIT_DEFAULT }
    }
}

impl PageRequest {
    /// One row more than asked, so that the reader knows whether there is a next page.
    pub(crate) fn fetch(&self) -> i64 {
        i64::from(self.limit.clamp(1, PAGE_LIMIT_MAX)) + 1
    }

    /// The highest id of all when no cursor was given.
    pub(crate) fn bound(&self) -> uuid::Uuid {
        self.before.unwrap_or(uuid::Uuid::max())
    }

    pub(crate) fn page<T>(&self, mut items: Vec<T>, id: impl Fn(&T) -> uuid::Uuid) -> Page<T> {
        let limit = self.limit.clamp(1, PAGE_LIMIT_MAX) as usize;
        let more = items.len() > limit;
        items.truncate(limit);
        let next = if more { items.last().map(id) } else { None };
        Page { items, next }
    }
}
