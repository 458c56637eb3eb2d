//! Plugins: packages that were uploaded.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Json;
use axum::extract::{FromRequest, Request, State};
use axum::response::{IntoResponse, Response};
use bulkhead_app::AppError;
use bulkhead_app::data::Plugin;
use bulkhead_model::id::{OrgId, PluginId};
use bulkhead_model::limits::PackageLimits;
use bulkhead_model::manifest::Manifest;
use bulkhead_model::name::PluginName;
use bulkhead_model::time::Timestamp;
use bytes::Bytes;
use http::{StatusCode, header};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::HttpState;
use crate::access::OrgCaller;
use crate::extract::{In, media_type, read_body};
use crate::page::{ListOf, PageParams, Paging};
use crate::problem::{Kind, Problem};

/// A package arrives within this time: 32 MiB at 300 KiB/s.
const PACKAGE_TIME: Duration = Duration::from_secs(110);

/// A plugin version.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Plugin)]
pub(crate) struct PluginView {
    #[schema(value_type = String, example = "plug_01h455vb4pex5vsknk084sn02q")]
    id: PluginId,
    #[schema(value_type = String, example = "acme/slack")]
    name: PluginName,
    version: String,
    /// SHA-256 of the package, in hexadecimal.
    digest: String,
    size_bytes: i64,
    /// What it contributes and asks for.
    #[schema(value_type = Object)]
    manifest: Manifest,
    #[schema(value_type = String, format = DateTime)]
    created_at: Timestamp,
    /// When it was deleted; its name stays for the history. Lists leave such versions out.
    #[schema(value_type = Option<String>, format = DateTime)]
    deleted_at: Option<Timestamp>,
}

impl From<Plugin> for PluginView {
    fn from(plugin: Plugin) -> Self {
        Self {
            id: plugin.id,
            name: plugin.name,
            version: plugin.version,
            digest: hex::encode(plugin.digest),
            size_bytes: plugin.size_bytes,
            manifest: plugin.manifest,
            created_at: plugin.created_at,
            deleted_at: plugin.deleted_at,
        }
    }
}

/// The bytes of a package.
pub(crate) struct Package(Bytes);

impl FromRequest<HttpState> for Package {
    type Rejection = Problem;

    async fn from_request(request: Request, _: &HttpState) -> Result<Self, Problem> {
        if media_type(request.headers()).as_deref() != Some("application/wasm") {
            let detail = "send the package's bytes with the header `content-type: application/wasm`";
            return Err(Problem::new(Kind::UnsupportedMediaType, detail));
        }
        let bytes_max = PackageLimits::platform().package_bytes;
        read_body(request, "package", bytes_max, PACKAGE_TIME).await.map(Self)
    }
}

/// Packages that are read and looked at at once, in all: each takes up to 32 MiB.
const UPLOADS_MAX: usize = 8;
/// … and of one organization.
const UPLOADS_PER_ORG_MAX: usize = 2;
/// What a caller without a place is told to wait.
const UPLOAD_RETRY_AFTER_MS: u64 = 5_000;

/// Bounds the memory that packages take before they are stored.
#[derive(Default)]
pub(crate) struct UploadPlaces(Mutex<HashMap<OrgId, usize>>);

/// A place; dropping it gives it back.
pub(crate) struct UploadPlace {
    places: Arc<UploadPlaces>,
    org: OrgId,
}

impl UploadPlaces {
    fn lock(&self) -> MutexGuard<'_, HashMap<OrgId, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(self: &Arc<Self>, org: OrgId) -> Result<UploadPlace, AppError> {
        let mut taken = self.lock();
        let own = taken.get(&org).copied().unwrap_or(0);
        if own >= UPLOADS_PER_ORG_MAX || taken.values().sum::<usize>() >= UPLOADS_MAX {
            return Err(AppError::Busy { what: "the upload of packages", retry_after_ms: UPLOAD_RETRY_AFTER_MS });
        }
        taken.insert(org, own + 1);
        Ok(UploadPlace { places: Arc::clone(self), org })
    }
}

impl Drop for UploadPlace {
    fn drop(&mut self) {
        let mut taken = self.places.lock();
        match taken.get_mut(&self.org) {
            Some(count) if *count > 1 => *count -= 1,
            _ => {
                taken.remove(&self.org);
            }
        }
    }
}

/// Uploads a package.
///
/// It is inspected and compiled before anything is stored. The same bytes again answer 200 and what is there; a version never
/// changes. At most 32 MiB.
#[utoipa::path(
    post,
    path = "/api/v1/orgs/{org}/plugins",
    tag = "plugins",
    request_body(content = Vec<u8>, content_type = "application/wasm"),
    responses((status = 201, body = PluginView), (status = 200, body = PluginView, description = "It was there already.")),
    extensions(("x-bulkhead-problems" = json!([
        "invalid-package", "compile-failed", "compile-timeout", "version-exists", "quota-exceeded"
    ]))),
)]
pub(crate) async fn upload_plugin(
    at: OrgCaller,
    State(state): State<HttpState>,
    request: Request,
) -> Result<Response, Problem> {
    // Before the first byte of the body is read.
    let _place = state.uploads.take(at.org)?;
    let Package(bytes) = Package::from_request(request, &state).await?;
    let uploaded = state.app.upload_plugin(&at.caller, at.org, bytes).await?;
    let status = if uploaded.created { StatusCode::CREATED } else { StatusCode::OK };
    let location = format!("/api/v1/orgs/{}/plugins/{}", at.org, uploaded.plugin.id);
    Ok((status, [(header::LOCATION, location)], Json(PluginView::from(uploaded.plugin))).into_response())
}

/// Deletes a plugin version that is not installed. Its package is gone; its name stays for the history, and for the same bytes.
#[utoipa::path(
    delete,
    path = "/api/v1/orgs/{org}/plugins/{plugin}",
    tag = "plugins",
    responses((status = 204)),
    extensions(("x-bulkhead-problems" = json!(["plugin-installed"]))),
)]
pub(crate) async fn delete_plugin(
    at: OrgCaller,
    In(id): In<PluginId>,
    State(state): State<HttpState>,
) -> Result<StatusCode, Problem> {
    state.app.delete_plugin(&at.caller, at.org, id).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Filters of the plugins.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct PluginFilter {
    /// Only versions of this plugin: `publisher/plugin`.
    #[param(value_type = Option<String>)]
    name: Option<PluginName>,
}

/// Lists plugin versions, newest first.
#[utoipa::path(
    get,
    path = "/api/v1/orgs/{org}/plugins",
    tag = "plugins",
    params(PluginFilter, PageParams),
    responses((status = 200, body = ListOf<PluginView>)),
)]
pub(crate) async fn list_plugins(
    at: OrgCaller,
    State(state): State<HttpState>,
    paging: Paging<PluginFilter>,
) -> Result<Json<ListOf<PluginView>>, Problem> {
    let name = paging.filter.name.as_ref().map(ToString::to_string);
    let page = state.app.list_plugins(&at.caller, at.org, name, paging.request()?).await?;
    Ok(Json(paging.answer(page, PluginView::from)))
}

/// Shows a plugin version with its manifest.
#[utoipa::path(
    get,
    path = "/api/v1/orgs/{org}/plugins/{plugin}",
    tag = "plugins",
    responses((status = 200, body = PluginView)),
)]
pub(crate) async fn show_plugin(
    at: OrgCaller,
    In(id): In<PluginId>,
    State(state): State<HttpState>,
) -> Result<Json<PluginView>, Problem> {
    Ok(Json(state.app.get_plugin(&at.caller, at.org, id).await?.into()))
}
