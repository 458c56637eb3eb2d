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

/// One script of our own, which may speak to this server and to nobody else.
const LINK_POLICY: &str = "default-src 'none'; script-src 'self'; connect-src 'self'; style-src 'unsafe-inline'; base-uri 'none'; \
                           form-action 'none'; frame-ancestors 'none'";

/// Shows the page that links in letters lead to. What a link is for and its token are behind its `#`.
#[utoipa::path(get, path = "/link", tag = "accounts", responses((status = 200, body = String, content_type = "text/html")))]
pub(crate) async fn show_link_page() -> Response {
    ([(header::CONTENT_SECURITY_POLICY, LINK_POLICY)], Html(include_str!("home/link.html"))).into_response()
}

/// The script of the page that links lead to.
#[utoipa::path(get, path = "/link.js", tag = "accounts", responses((status = 200, body = String, content_type = "text/javascript")))]
pub(crate) async fn show_link_script() -> Response {
    ([(header::CONTENT_TYPE, "text/javascript; charset=utf-8")], include_str!("home/link.js")).into_response()
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
