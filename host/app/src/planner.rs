//! Where what tenants wrote is computed: templates, conditions, definitions. Never on the threads that serve requests.
//!
//! Each piece of work is bounded by the language's own limits, but a large definition over a large payload may use them up. So
//! it runs on the blocking pool, one piece at a time for an organization and a few for the process: a tenant who computes much
//! waits for himself.

use std::sync::Arc;
use std::thread::available_parallelism;

use bulkhead_model::id::OrgId;
use tokio::sync::Semaphore;

use crate::AppError;

/// Bytes that light work may read.
pub(crate) const LIGHT_BYTES_MAX: usize = 16 * 1024;
/// Organizations whose place is remembered.
const ORGS_MAX: u64 = 10_000;

/// Whether the value's text has at most about so many bytes; looks at no more of it than that.
pub(crate) fn is_small(value: &serde_json::Value, bytes_max: usize) -> bool {
    fn take(value: &serde_json::Value, left: &mut usize) -> bool {
        use serde_json::Value;
        let own = 8 + match value {
            Value::String(text) => text.len(),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => 0,
        };
        let Some(rest) = left.checked_sub(own) else { return false };
        *left = rest;
        match value {
            Value::Array(items) => items.iter().all(|item| take(item, left)),
            Value::Object(fields) => fields.iter().all(|(name, value)| {
                *left = left.saturating_sub(name.len());
                take(value, left)
            }),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => true,
        }
    }
    let mut left = bytes_max;
    take(value, &mut left)
}

#[derive(Clone)]
pub(crate) struct Planner {
    places: Arc<Semaphore>,
    orgs: moka::sync::Cache<OrgId, Arc<Semaphore>>,
}

impl Planner {
    pub(crate) fn new() -> Self {
        // One more than cores: a tenant who holds every core still leaves a place for another.
        let places = available_parallelism().map_or(1, std::num::NonZeroUsize::get) + 1;
        Self { places: Arc::new(Semaphore::new(places)), orgs: moka::sync::Cache::new(ORGS_MAX) }
    }

    /// Runs `work` for the organization and answers its result: here where it is light, which its caller knows (a light definition
    /// over few bytes), else on the planner.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub(crate) async fn run_where<T: Send + 'static>(
        &self,
        is_light: bool,
        org: OrgId,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, AppError> {
        if !is_light {
            return self.run(org, work).await;
        }
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(work))
            .map_err(|_| AppError::Runtime("planning panicked".into()))
    }

    /// Runs `work` for the organization and answers its result.
    ///
    /// # Errors
    /// [`AppError::Runtime`] when it panics, which is our bug.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        org: OrgId,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, AppError> {
        const OPEN: &str = "the semaphores are never closed";
        let own = self.orgs.get_with(org, || Arc::new(Semaphore::new(1)));
        let own = own.acquire_owned().await.expect(OPEN);
        let place = Arc::clone(&self.places).acquire_owned().await.expect(OPEN);
        let worked = tokio::task::spawn_blocking(move || {
            // Both belong to the work, which goes on when whoever asked for it has gone away.
            let _places = (own, place);
            work()
        });
        worked.await.map_err(|error| AppError::Runtime(Box::new(error)))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use bulkhead_model::ambient::Ambient;
    use bulkhead_model::time::Timestamp;

    use super::*;

    /// Work whose asker went away still counts as the organization's: a second piece waits for it.
    #[tokio::test]
    async fn an_abandoned_piece_of_work_keeps_its_organizations_place() {
        let org = OrgId::new(&Ambient::manual(Timestamp::from_micros(0), 1));
        let planner = Planner::new();
        let (began, has_began) = tokio::sync::oneshot::channel();
        let (go_on, may_go_on) = mpsc::channel::<()>();
        let first = planner.run(org, move || {
            began.send(()).unwrap();
            may_go_on.recv().unwrap();
        });
        let mut first = Box::pin(first);
        tokio::select! {
            _ = &mut first => panic!("it waits for the test"),
            began = has_began => began.unwrap(),
        }
        drop(first);
        let own = planner.orgs.get(&org).unwrap();
        assert_eq!(own.available_permits(), 0);
        go_on.send(()).unwrap();
        planner.run(org, || ()).await.unwrap();
        assert_eq!(own.available_permits(), 1);
    }

    #[test]
    fn small_is_told_without_reading_all_of_it() {
        use serde_json::json;
        assert!(is_small(&json!({ "a": [1, "two", null] }), 100));
        assert!(!is_small(&json!({ "a": "x".repeat(200) }), 100));
        assert!(!is_small(&json!(vec![0; 100]), 100));
        assert!(!is_small(&json!({ "x".repeat(99): {} , "b": 1 }), 100));
    }
}
