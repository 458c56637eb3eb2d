//! Secrets of an installation: stored, replaced, removed, and never shown.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use bulkhead_app::secret::SecretEntry;
use bulkhead_model::id::InstallationId;
use bulkhead_model::name::SecretName;
use bulkhead_model::time::Timestamp;
use http::{StatusCode, header};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use zeroize::Zeroizing;

use crate::HttpState;
use crate::access::OrgCaller;
use crate::extract::{In, Input, etag};
use crate::page::ListOf;
use crate::problem::Problem;

/// A value to store.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = SecretValue)]
pub(crate) struct SecretInput {
    /// 1 to 16384 bytes.
    #[schema(value_type = String, format = Password)]
    value: String,
}

/// A secret that the plugin asks for, or that is stored.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Secret)]
pub(crate) struct SecretView {
    #[schema(value_type = String)]
    name: SecretName,
    /// Whether the installed version asks for it.
    asked: bool,
    /// When its value was stored; null when there is none.
    #[schema(value_type = Option<String>, format = DateTime)]
    stored_at: Option<Timestamp>,
}

impl From<SecretEntry> for SecretView {
    fn from(entry: SecretEntry) -> Self {
        Self { name: entry.name, asked: entry.asked, stored_at: entry.stored_at }
    }
}

/// Lists the names of secrets, and which of them have a value.
#[utoipa::path(
    get,
    path = "/api/v1/orgs/{org}/installations/{installation}/secrets",
    tag = "installations",
    responses((status = 200, body = ListOf<SecretView>)),
)]
pub(crate) async fn list_secrets(
    at: OrgCaller,
    In(id): In<InstallationId>,
    State(state): State<HttpState>,
) -> Result<Json<ListOf<SecretView>>, Problem> {
    let entries = state.app.list_secrets(&at.caller, at.org, id).await?;
    // A manifest asks for a bounded number of them: one page always.
    Ok(Json(ListOf { items: entries.into_iter().map(SecretView::from).collect(), next_cursor: None }))
}

/// Stores a value, or replaces it. Calls that run are ended, so that none goes on with the old one.
#[utoipa::path(
    put,
    path = "/api/v1/orgs/{org}/installations/{installation}/secrets/{name}",
    tag = "installations",
    request_body = SecretInput,
    responses((status = 204, headers(("etag" = String, description = "The installation's new one.")))),
    extensions(("x-bulkhead-problems" = json!(["invalid-secret", "unknown-secret"]))),
)]
pub(crate) async fn put_secret(
    at: OrgCaller,
    In(id): In<InstallationId>,
    In(name): In<SecretName>,
    State(state): State<HttpState>,
    Input(input): Input<SecretInput>,
) -> Result<Response, Problem> {
    let value = Zeroizing::new(input.value);
    let stored = state.app.put_secret(&at.caller, at.org, id, name, value).await?;
    Ok((StatusCode::NO_CONTENT, [(header::ETAG, etag(stored.grant_version.0))]).into_response())
}

/// Removes a value. Calls that run are ended.
#[utoipa::path(
    delete,
    path = "/api/v1/orgs/{org}/installations/{installation}/secrets/{name}",
    tag = "installations",
    responses((status = 204)),
)]
pub(crate) async fn delete_secret(
    at: OrgCaller,
    In(id): In<InstallationId>,
    In(name): In<SecretName>,
    State(state): State<HttpState>,
) -> Result<StatusCode, Problem> {
    state.app.delete_secret(&at.caller, at.org, id, name).await?;
    Ok(StatusCode::NO_CONTENT)
}
