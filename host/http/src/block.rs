//! API keys that are shut out for a while.

use axum::Json;
use axum::extract::State;
use bulkhead_app::data::KeyBlock;
use bulkhead_model::id::ApiKeyId;
use bulkhead_model::time::Timestamp;
use http::StatusCode;
use serde::Serialize;
use utoipa::ToSchema;

use crate::HttpState;
use crate::access::OrgCaller;
use crate::extract::In;
use crate::problem::Problem;

/// A key that is shut out because its requests were refused again and again by rate limits.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Block)]
pub(crate) struct BlockView {
    #[schema(value_type = String, example = "key_01h455vb4pex5vsknk084sn02q")]
    api_key: ApiKeyId,
    #[schema(value_type = String, format = DateTime)]
    placed_at: Timestamp,
    /// When the key is let in again by itself.
    #[schema(value_type = String, format = DateTime)]
    ends_at: Timestamp,
    /// How many blocks came shortly before it; each was half as long as the next.
    level: u32,
}

impl From<KeyBlock> for BlockView {
    fn from(KeyBlock { key, block, .. }: KeyBlock) -> Self {
        Self { api_key: key, placed_at: block.placed_at, ends_at: block.ends_at, level: block.level }
    }
}

/// The blocks in force.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Blocks)]
pub(crate) struct BlocksView {
    items: Vec<BlockView>,
}

/// Lists the organization's keys that are shut out at this moment, at most 200.
#[utoipa::path(
    get,
    path = "/api/v1/orgs/{org}/blocks",
    tag = "API keys",
    responses((status = 200, body = BlocksView)),
)]
pub(crate) async fn list_blocks(at: OrgCaller, State(state): State<HttpState>) -> Result<Json<BlocksView>, Problem> {
    let blocks = state.app.list_key_blocks(&at.caller, at.org).await?;
    Ok(Json(BlocksView { items: blocks.into_iter().map(BlockView::from).collect() }))
}

/// Lets a key in again before its time, and forgets the blocks before.
#[utoipa::path(
    delete,
    path = "/api/v1/orgs/{org}/blocks/{api_key}",
    tag = "API keys",
    responses((status = 204)),
)]
pub(crate) async fn lift_block(
    at: OrgCaller,
    In(key): In<ApiKeyId>,
    State(state): State<HttpState>,
) -> Result<StatusCode, Problem> {
    state.app.lift_key_block(&at.caller, at.org, key).await?;
    Ok(StatusCode::NO_CONTENT)
}
