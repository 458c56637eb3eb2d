//! Probes and measurements.

use std::time::{Duration, Instant};

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::{StatusCode, header};
use serde::Serialize;
use tokio::sync::Mutex;
use utoipa::ToSchema;

use crate::HttpState;

/// One check may take this long (api-and-operations: "each capped at 2 s").
const CHECK_TIME: Duration = Duration::from_secs(2);
/// … and its result holds for this long, so that probes cost nothing.
const CHECK_HOLDS: Duration = Duration::from_secs(5);

/// The last readiness check and when it was made; whoever asks meanwhile waits for the one that is under way.
#[derive(Debug, Default)]
pub(crate) struct Readiness {
    last: Mutex<Option<(Instant, bool)>>,
}

impl Readiness {
    async fn of(&self, check: impl Future<Output = bool>) -> bool {
        let mut last = self.last.lock().await;
        if let Some((_, ready)) = last.filter(|(at, _)| at.elapsed() < CHECK_HOLDS) {
            return ready;
        }
        let ready = check.await;
        *last = Some((Instant::now(), ready));
        ready
    }
}

/// That the process answers.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Health)]
pub(crate) struct HealthView {
    /// Always `ok`.
    status: &'static str,
    version: &'static str,
}

/// Whether the process can do its work.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Readiness)]
pub(crate) struct ReadinessView {
    /// `ready` or `unavailable`.
    status: &'static str,
    checks: Checks,
}

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Checks {
    /// `ok` or `failed`: whether a small write to the database succeeded within 2 s, at most 5 s ago.
    database: &'static str,
}

/// Says that the process is up.
#[utoipa::path(get, path = "/healthz", tag = "operations", responses((status = 200, body = HealthView)))]
pub(crate) async fn check_health(State(state): State<HttpState>) -> Json<HealthView> {
    Json(HealthView { status: "ok", version: state.config.version })
}

/// Says that the process is alive: restart it when this does not answer.
#[utoipa::path(get, path = "/livez", tag = "operations", responses((status = 200, body = HealthView)))]
pub(crate) async fn check_liveness(State(state): State<HttpState>) -> Json<HealthView> {
    Json(HealthView { status: "ok", version: state.config.version })
}

/// Says whether to send requests here: writes to the database, so that a full disk shows.
#[utoipa::path(
    get,
    path = "/readyz",
    tag = "operations",
    responses((status = 200, body = ReadinessView), (status = 503, body = ReadinessView)),
)]
pub(crate) async fn check_readiness(State(state): State<HttpState>) -> (StatusCode, Json<ReadinessView>) {
    let check = async { matches!(tokio::time::timeout(CHECK_TIME, state.app.check_database()).await, Ok(Ok(()))) };
    let ready = state.readiness.of(check).await;
    let (code, status, database) = if ready {
        (StatusCode::OK, "ready", "ok")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "unavailable", "failed")
    };
    (code, Json(ReadinessView { status, checks: Checks { database } }))
}

/// Shows the measurements in the Prometheus text format.
#[utoipa::path(
    get,
    path = "/metrics",
    tag = "operations",
    responses((status = 200, body = String, content_type = "text/plain")),
)]
pub(crate) async fn show_metrics(State(state): State<HttpState>) -> Response {
    let kind = [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];
    (kind, (state.config.metrics)()).into_response()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test]
    async fn probes_at_once_share_one_check() {
        let (readiness, checks) = (Readiness::default(), AtomicUsize::new(0));
        let probe = || {
            readiness.of(async {
                checks.fetch_add(1, Ordering::SeqCst);
                tokio::task::yield_now().await;
                true
            })
        };
        assert_eq!(tokio::join!(probe(), probe(), probe()), (true, true, true));
        assert_eq!(checks.load(Ordering::SeqCst), 1);
    }
}
