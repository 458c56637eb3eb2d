//! Installations: plugins set up in an organization.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use bulkhead_app::installation::{InstallationDetail, InstallationPatch, NewInstallation};
use bulkhead_model::grant::{AskView, GrantVersion, Grants};
use bulkhead_model::id::{InstallationId, PluginId};
use bulkhead_model::name::PluginName;
use bulkhead_model::time::Timestamp;
use http::{StatusCode, header};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use crate::HttpState;
use crate::access::{OrgCaller, Proven};
use crate::extract::{IfMatch, In, Input, etag};
use crate::page::{ListOf, NoFilter, PageParams, Paging};
use crate::problem::Problem;
use crate::view::{line, line_or_none};

/// What to install.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = NewInstallation)]
pub(crate) struct NewInstallationInput {
    /// `publisher/plugin`.
    #[schema(value_type = String, example = "acme/slack")]
    plugin: PluginName,
    /// A version that was uploaded.
    #[serde(deserialize_with = "line")]
    version: String,
    /// As the manifest's settings schemas want them.
    #[serde(default = "no_settings")]
    #[schema(value_type = Object)]
    settings: Value,
    /// `{"permissions": […]}`, in the shape that the answer of `…/grants` shows. Granting needs `plugins.grant` too.
    #[serde(default)]
    #[schema(value_type = Object)]
    grants: Grants,
}

fn no_settings() -> Value {
    Value::Object(serde_json::Map::new())
}

/// What to change; absent parts stay.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = InstallationPatch)]
pub(crate) struct InstallationPatchInput {
    /// The settings as a whole.
    #[serde(default)]
    #[schema(value_type = Option<Object>)]
    settings: Option<Value>,
    #[serde(default)]
    state: Option<Switch>,
    /// Another version of the same plugin, newer or older. Grants are carried over and never widened.
    #[serde(default, deserialize_with = "line_or_none")]
    #[schema(required = false)]
    version: Option<String>,
}

/// Whether an installation may be called.
#[derive(Clone, Copy, Debug, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Switch {
    Enabled,
    Disabled,
}

/// An installation.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Installation)]
pub(crate) struct InstallationView {
    #[schema(value_type = String, example = "inst_01h455vb4pex5vsknk084sn02q")]
    id: InstallationId,
    #[schema(value_type = String)]
    plugin: PluginName,
    version: String,
    #[schema(value_type = String)]
    plugin_id: PluginId,
    /// `enabled` or `disabled`.
    state: &'static str,
    #[schema(value_type = Object)]
    settings: Value,
    #[schema(value_type = Object)]
    grants: Grants,
    /// Rises with every change of settings, grants, secrets, version or state; the entity tag is made of it.
    #[schema(value_type = i64)]
    grant_version: GrantVersion,
    /// Required permissions of which nothing is in force: calls are refused until they are granted.
    #[schema(value_type = Vec<Object>)]
    missing_required: Vec<AskView>,
    /// Permissions that the plugin asks for and that are not wholly in force.
    #[schema(value_type = Vec<Object>)]
    needs_consent: Vec<AskView>,
    #[schema(value_type = String, format = DateTime)]
    created_at: Timestamp,
    #[schema(value_type = String, format = DateTime)]
    updated_at: Timestamp,
}

impl From<InstallationDetail> for InstallationView {
    fn from(detail: InstallationDetail) -> Self {
        let missing_required = detail.missing_required().cloned().collect();
        let needs_consent = detail.needs_consent().cloned().collect();
        let InstallationDetail { installation, plugin, .. } = detail;
        Self {
            id: installation.id,
            plugin: plugin.name,
            version: plugin.version,
            plugin_id: plugin.id,
            state: installation.state.as_str(),
            settings: installation.settings,
            grants: installation.grants,
            grant_version: installation.grant_version,
            missing_required,
            needs_consent,
            created_at: installation.created_at,
            updated_at: installation.updated_at,
        }
    }
}

/// What an uninstalled plugin leaves behind.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Uninstalled)]
pub(crate) struct UninstalledView {
    /// Names of active workflows that used it; their steps fail from now on.
    used_by: Vec<String>,
}

fn tagged(status: StatusCode, detail: InstallationDetail) -> Response {
    let tag = [(header::ETAG, etag(detail.installation.grant_version.0))];
    (status, tag, Json(InstallationView::from(detail))).into_response()
}

/// Installs a plugin version, enabled.
///
/// A required permission that is not granted does not stand in the way; calls are refused until it is. Granting asks a person for a proof of the
/// last ten minutes.
#[utoipa::path(
    post,
    path = "/api/v1/orgs/{org}/installations",
    tag = "installations",
    request_body = NewInstallationInput,
    responses((status = 201, body = InstallationView, headers(("etag" = String)))),
    extensions(
        ("x-bulkhead-problems" = json!(["invalid-installation", "invalid-grants", "step-up-required", "session-needed"])),
        ("x-bulkhead-permission-also" = json!({ "plugins.grant": "when `grants` is not empty" })),
        ("x-bulkhead-step-up" = json!("when `grants` is not empty")),
    ),
)]
pub(crate) async fn install(
    at: OrgCaller,
    proven: Proven,
    State(state): State<HttpState>,
    Input(input): Input<NewInstallationInput>,
) -> Result<Response, Problem> {
    let NewInstallationInput { plugin, version, settings, grants } = input;
    if !grants.permissions.is_empty() {
        proven.require_fresh(&state)?;
    }
    let new = NewInstallation { plugin, version, settings, grants };
    let detail = state.app.install(&at.caller, at.org, new).await?;
    let location = format!("/api/v1/orgs/{}/installations/{}", at.org, detail.installation.id);
    Ok(([(header::LOCATION, location)], tagged(StatusCode::CREATED, detail)).into_response())
}

/// Lists installations, newest first, without uninstalled ones.
#[utoipa::path(
    get,
    path = "/api/v1/orgs/{org}/installations",
    tag = "installations",
    params(PageParams),
    responses((status = 200, body = ListOf<InstallationView>)),
)]
pub(crate) async fn list_installations(
    at: OrgCaller,
    State(state): State<HttpState>,
    paging: Paging<NoFilter>,
) -> Result<Json<ListOf<InstallationView>>, Problem> {
    let page = state.app.list_installations(&at.caller, at.org, paging.request()?).await?;
    Ok(Json(paging.answer(page, InstallationView::from)))
}

/// Shows an installation.
#[utoipa::path(
    get,
    path = "/api/v1/orgs/{org}/installations/{installation}",
    tag = "installations",
    responses((status = 200, body = InstallationView, headers(("etag" = String)))),
)]
pub(crate) async fn show_installation(
    at: OrgCaller,
    In(id): In<InstallationId>,
    State(state): State<HttpState>,
) -> Result<Response, Problem> {
    Ok(tagged(StatusCode::OK, state.app.get_installation(&at.caller, at.org, id).await?))
}

/// Changes settings, state or version. Calls that run are ended.
#[utoipa::path(
    patch,
    path = "/api/v1/orgs/{org}/installations/{installation}",
    tag = "installations",
    params(("if-match" = String, Header, description = "The `etag` that was read last.", example = "\"v7\"")),
    request_body = InstallationPatchInput,
    responses((status = 200, body = InstallationView, headers(("etag" = String)))),
    extensions(("x-bulkhead-problems" = json!(["invalid-installation", "invalid-grants", "too-many-grants"]))),
)]
pub(crate) async fn update_installation(
    at: OrgCaller,
    In(id): In<InstallationId>,
    seen: IfMatch<InstallationId>,
    State(state): State<HttpState>,
    Input(input): Input<InstallationPatchInput>,
) -> Result<Response, Problem> {
    let enabled = input.state.map(|switch| matches!(switch, Switch::Enabled));
    let patch = InstallationPatch { settings: input.settings, enabled, version: input.version };
    let seen = GrantVersion(seen.version);
    Ok(tagged(StatusCode::OK, state.app.update_installation(&at.caller, at.org, id, seen, patch).await?))
}

/// Ends an installation. Its settings, grants and secrets are gone, its calls are ended; the record of its calls stays.
#[utoipa::path(
    delete,
    path = "/api/v1/orgs/{org}/installations/{installation}",
    tag = "installations",
    params(("if-match" = Option<String>, Header, description = "When given: the `etag` that was read last.")),
    responses((status = 200, body = UninstalledView)),
)]
pub(crate) async fn uninstall(
    at: OrgCaller,
    In(id): In<InstallationId>,
    seen: Option<IfMatch<InstallationId>>,
    State(state): State<HttpState>,
) -> Result<Json<UninstalledView>, Problem> {
    let seen = seen.map(|seen| GrantVersion(seen.version));
    let left = state.app.uninstall(&at.caller, at.org, id, seen).await?;
    Ok(Json(UninstalledView { used_by: left.used_by }))
}
