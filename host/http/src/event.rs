//! Events: facts that transactions told others.

use axum::Json;
use axum::extract::State;
use bulkhead_app::data::Event;
use bulkhead_model::id::EventId;
use bulkhead_model::time::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::{IntoParams, ToSchema};

use crate::HttpState;
use crate::access::OrgCaller;
use crate::page::{ListOf, PageParams, Paging};
use crate::problem::Problem;
use crate::view::line_or_none;

/// Something that happened.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Event)]
pub(crate) struct EventView {
    #[schema(value_type = String)]
    id: EventId,
    /// `run.succeeded`, …
    kind: String,
    /// The id of what it is about.
    subject: String,
    detail: Value,
    #[schema(value_type = String, format = DateTime)]
    created_at: Timestamp,
}

impl From<Event> for EventView {
    fn from(event: Event) -> Self {
        let Event { id, kind, subject, detail, created_at } = event;
        Self { id, kind, subject, detail, created_at }
    }
}

/// Filters of the events.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct EventFilter {
    /// Only this kind.
    #[serde(default, deserialize_with = "line_or_none")]
    #[param(required = false)]
    kind: Option<String>,
}

/// Lists events, newest first.
#[utoipa::path(
    get,
    path = "/api/v1/orgs/{org}/events",
    tag = "events",
    params(EventFilter, PageParams),
    responses((status = 200, body = ListOf<EventView>)),
)]
pub(crate) async fn list_events(
    at: OrgCaller,
    State(state): State<HttpState>,
    paging: Paging<EventFilter>,
) -> Result<Json<ListOf<EventView>>, Problem> {
    let page = state.app.list_events(&at.caller, at.org, paging.filter.kind.clone(), paging.request()?).await?;
    Ok(Json(paging.answer(page, EventView::from)))
}
