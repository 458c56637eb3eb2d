//! The page that a newcomer sees.

use axum::extract::State;
use axum::response::{Html, IntoResponse, Response};
use http::header;

use crate::HttpState;

/// No script, no picture, nothing from elsewhere.
const POLICY: &str =
    "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// Shows a page that says what this is and where to begin.
#[utoipa::path(get, path = "/", tag = "operations", responses((status = 200, body = String, content_type = "text/html")))]
pub(crate) async fn show_start_page(State(state): State<HttpState>) -> Response {
    let page = include_str!("home/page.html")
        .replace("{{version}}", &escape(state.config.version))
        .replace("{{url}}", &escape(&state.config.public_url));
    ([(header::CONTENT_SECURITY_POLICY, POLICY)], Html(page)).into_response()
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
