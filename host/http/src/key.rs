//! Encryption keys: their states, and rotations with how far they have come. No key's bytes are ever shown.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use bulkhead_app::data::{KeyRotation, StoredKey};
use bulkhead_app::key::KeysDetail;
use bulkhead_keys::Level;
use bulkhead_model::id::KeyRotationId;
use bulkhead_model::time::Timestamp;
use http::{StatusCode, header};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::HttpState;
use crate::access::OrgCaller;
use crate::extract::{In, Input};
use crate::page::{ListOf, NoFilter, PageParams, Paging};
use crate::problem::Problem;

/// A key, without its bytes.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = EncryptionKey)]
pub(crate) struct KeyView {
    /// `o` and a number for organization keys, `d` and a number for data keys: as sealed values name it.
    #[schema(example = "d3")]
    key: String,
    /// `organization`: wraps data keys. `field`: seals values. `index`: finds encrypted fields by equality.
    purpose: &'static str,
    /// `active`: seals and opens. `decrypt_only`: opens what it once sealed. `retired`: nothing refers to it, and its bytes are destroyed.
    state: &'static str,
    /// The key that it is wrapped under; null once it is retired.
    #[schema(example = "o1")]
    wrapped_by: Option<String>,
    /// Values that it sealed; of data keys only.
    uses: Option<u64>,
    #[schema(value_type = String, format = DateTime)]
    created_at: Timestamp,
    /// When another took its place.
    #[schema(value_type = Option<String>, format = DateTime)]
    replaced_at: Option<Timestamp>,
    #[schema(value_type = Option<String>, format = DateTime)]
    retired_at: Option<Timestamp>,
}

impl From<StoredKey> for KeyView {
    fn from(key: StoredKey) -> Self {
        Self {
            key: key.id.to_string(),
            purpose: key.purpose.as_str(),
            state: key.state.as_str(),
            wrapped_by: key.wrapped_by.map(|by| by.to_string()),
            uses: key.uses,
            created_at: key.created_at,
            replaced_at: key.replaced_at,
            retired_at: key.retired_at,
        }
    }
}

/// A key takes another's place, and what was under the old one follows.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = KeyRotation)]
pub(crate) struct KeyRotationView {
    #[schema(value_type = String, example = "krot_01h455vb4pex5vsknk084sn02q")]
    id: KeyRotationId,
    /// `root`, `organization`, `data`.
    level: &'static str,
    /// `asked`: somebody asked for it. `age`, `uses`: the key was as old, or had sealed as much, as it may. `root`: the operator
    /// replaced the root key.
    reason: &'static str,
    /// Who asked for it, or the host itself.
    asked_by: String,
    /// The key that things are put under.
    to: String,
    /// `running`, `done`.
    state: &'static str,
    /// Keys wrapped, or values sealed, anew so far …
    done: u64,
    /// … and those that are left, as last counted.
    left: u64,
    /// Those of them that do not open with the key that they name: damaged, or moved here. They stay as they are, and so does that key.
    broken: u64,
    #[schema(value_type = String, format = DateTime)]
    created_at: Timestamp,
    #[schema(value_type = String, format = DateTime)]
    updated_at: Timestamp,
    #[schema(value_type = Option<String>, format = DateTime)]
    finished_at: Option<Timestamp>,
}

impl From<KeyRotation> for KeyRotationView {
    fn from(rotation: KeyRotation) -> Self {
        Self {
            id: rotation.id,
            level: rotation.level.as_str(),
            reason: rotation.reason.as_str(),
            asked_by: rotation.actor,
            to: rotation.to_key,
            state: if rotation.finished_at.is_some() { "done" } else { "running" },
            done: rotation.done,
            left: rotation.left,
            broken: rotation.broken,
            created_at: rotation.created_at,
            updated_at: rotation.updated_at,
            finished_at: rotation.finished_at,
        }
    }
}

/// An organization's keys, and the rotations that go on.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = EncryptionKeys)]
pub(crate) struct KeysView {
    /// Organization keys first, newest first.
    keys: Vec<KeyView>,
    rotations: Vec<KeyRotationView>,
}

/// Which key to replace.
#[derive(Clone, Copy, Debug, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = KeyLevel)]
pub(crate) enum LevelInput {
    /// The organization's: its data keys are wrapped anew.
    Organization,
    /// The data key: every sealed value is sealed anew.
    Data,
}

/// What to rotate.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = KeyRotationInput)]
pub(crate) struct KeyRotationInput {
    level: LevelInput,
}

/// Shows the organization's encryption keys, without their bytes, and the rotations that go on.
#[utoipa::path(
    get,
    path = "/api/v1/orgs/{org}/encryption-keys",
    tag = "organizations",
    responses((status = 200, body = KeysView)),
)]
pub(crate) async fn show_keys(at: OrgCaller, State(state): State<HttpState>) -> Result<Json<KeysView>, Problem> {
    let KeysDetail { keys, running } = state.app.show_keys(&at.caller, at.org).await?;
    Ok(Json(KeysView {
        keys: keys.into_iter().map(KeyView::from).collect(),
        rotations: running.into_iter().map(KeyRotationView::from).collect(),
    }))
}

/// Replaces a key at once. What was under the old one follows in the background and opens all the while; the old key is destroyed when
/// nothing refers to it any longer. One rotation of a level goes on at a time.
#[utoipa::path(
    post,
    path = "/api/v1/orgs/{org}/key-rotations",
    tag = "organizations",
    request_body = KeyRotationInput,
    responses((status = 202, body = KeyRotationView)),
    extensions(("x-bulkhead-problems" = json!(["key-rotation-running"]))),
)]
pub(crate) async fn rotate_key(
    at: OrgCaller,
    State(state): State<HttpState>,
    Input(input): Input<KeyRotationInput>,
) -> Result<Response, Problem> {
    let level = match input.level {
        LevelInput::Organization => Level::Organization,
        LevelInput::Data => Level::Data,
    };
    let rotation = state.app.rotate_key(&at.caller, at.org, level).await?;
    let location = format!("/api/v1/orgs/{}/key-rotations/{}", at.org, rotation.id);
    Ok((StatusCode::ACCEPTED, [(header::LOCATION, location)], Json(KeyRotationView::from(rotation))).into_response())
}

/// Lists rotations of keys, newest first.
#[utoipa::path(
    get,
    path = "/api/v1/orgs/{org}/key-rotations",
    tag = "organizations",
    params(PageParams),
    responses((status = 200, body = ListOf<KeyRotationView>)),
)]
pub(crate) async fn list_key_rotations(
    at: OrgCaller,
    State(state): State<HttpState>,
    paging: Paging<NoFilter>,
) -> Result<Json<ListOf<KeyRotationView>>, Problem> {
    let page = state.app.list_key_rotations(&at.caller, at.org, paging.request()?).await?;
    Ok(Json(paging.answer(page, KeyRotationView::from)))
}

/// Shows a rotation and how far it has come.
#[utoipa::path(
    get,
    path = "/api/v1/orgs/{org}/key-rotations/{key_rotation}",
    tag = "organizations",
    responses((status = 200, body = KeyRotationView)),
)]
pub(crate) async fn show_key_rotation(
    at: OrgCaller,
    In(id): In<KeyRotationId>,
    State(state): State<HttpState>,
) -> Result<Json<KeyRotationView>, Problem> {
    Ok(Json(state.app.show_key_rotation(&at.caller, at.org, id).await?.into()))
}
