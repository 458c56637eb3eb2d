//! From where an organization may be reached.

use std::net::IpAddr;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use bulkhead_app::allow_list::NewAllowList;
use bulkhead_app::data::StoredAllowList;
use http::header;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::HttpState;
use crate::access::OrgCaller;
use crate::extract::{IfMatch, Input, Tagged, etag};
use crate::problem::Problem;
use crate::session::ClientAddress;

/// The networks from which the organization's members, tokens and API keys are let in; from everywhere if there are none.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = IpAllowList)]
pub(crate) struct AllowListView {
    #[schema(example = json!(["192.0.2.0/24", "2001:db8::/32"]))]
    entries: Vec<String>,
    /// Where the server sees you; null where it cannot know.
    #[schema(value_type = Option<String>, example = "192.0.2.7")]
    your_address: Option<IpAddr>,
    /// Whether the list lets you in.
    allows_you: bool,
}

/// What to replace the list with.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = NewIpAllowList)]
pub(crate) struct AllowListInput {
    /// Networks and addresses of either kind, at most 200; none lets everybody in.
    #[schema(example = json!(["192.0.2.0/24", "2001:db8::/32"]))]
    entries: Vec<String>,
    /// Replace it even if that shuts you out.
    #[serde(default)]
    confirm_lock_out: bool,
}

impl Tagged for AllowListView {
    const WHAT: &'static str = "allow list";
}

fn address(client: Option<&Extension<ClientAddress>>) -> Option<IpAddr> {
    client.map(|Extension(ClientAddress(address))| address.to_canonical())
}

fn tagged(stored: &StoredAllowList, address: Option<IpAddr>) -> Response {
    let view = AllowListView {
        entries: stored.list.entries(),
        your_address: address,
        allows_you: stored.list.allows(address),
    };
    ([(header::ETAG, etag(stored.revision))], Json(view)).into_response()
}

/// Shows from where the organization may be reached.
#[utoipa::path(
    get,
    path = "/api/v1/orgs/{org}/ip-allow-list",
    tag = "organizations",
    responses((status = 200, body = AllowListView, headers(("etag" = String)))),
)]
pub(crate) async fn show_ip_allow_list(
    at: OrgCaller,
    client: Option<Extension<ClientAddress>>,
    State(state): State<HttpState>,
) -> Result<Response, Problem> {
    let stored = state.app.show_allow_list(&at.caller, at.org).await?;
    Ok(tagged(&stored, address(client.as_ref())))
}

/// Replaces the networks from which the organization may be reached, from the next request on.
///
/// A list that shuts out whoever sends it is refused unless `confirm_lock_out` says that this is meant; the server's operator can take the
/// list away.
#[utoipa::path(
    put,
    path = "/api/v1/orgs/{org}/ip-allow-list",
    tag = "organizations",
    params(("if-match" = String, Header, description = "The `etag` that was read last.", example = "\"v7\"")),
    request_body = AllowListInput,
    responses((status = 200, body = AllowListView, headers(("etag" = String)))),
    extensions(("x-bulkhead-problems" = json!(["invalid-allow-list", "would-lock-out"]))),
)]
pub(crate) async fn replace_ip_allow_list(
    at: OrgCaller,
    seen: IfMatch<AllowListView>,
    client: Option<Extension<ClientAddress>>,
    State(state): State<HttpState>,
    Input(input): Input<AllowListInput>,
) -> Result<Response, Problem> {
    let (new, address) =
        (NewAllowList { entries: input.entries, confirms_lock_out: input.confirm_lock_out }, address(client.as_ref()));
    let stored = state.app.replace_allow_list(&at.caller, at.org, seen.version, new, address).await?;
    Ok(tagged(&stored, address))
}
