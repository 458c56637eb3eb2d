//! The published shapes of the documents that people write.

use std::sync::LazyLock;

use axum::response::{IntoResponse, Response};
use bulkhead_model::manifest::Manifest;
use bulkhead_model::workflow;
use http::header;

static WORKFLOW: LazyLock<String> = LazyLock::new(|| workflow::json_schema().to_string());
static MANIFEST: LazyLock<String> = LazyLock::new(|| Manifest::json_schema().to_string());

fn schema(text: &'static str) -> Response {
    ([(header::CONTENT_TYPE, "application/schema+json")], text).into_response()
}

/// Shows the JSON Schema of a workflow's definition.
#[utoipa::path(
    get,
    path = "/api/schemas/workflow.json",
    tag = "operations",
    responses((status = 200, body = serde_json::Value, content_type = "application/schema+json")),
)]
pub(crate) async fn show_workflow_schema() -> Response {
    schema(&WORKFLOW)
}

/// Shows the JSON Schema of a plugin's manifest.
#[utoipa::path(
    get,
    path = "/api/schemas/manifest.json",
    tag = "operations",
    responses((status = 200, body = serde_json::Value, content_type = "application/schema+json")),
)]
pub(crate) async fn show_manifest_schema() -> Response {
    schema(&MANIFEST)
}
