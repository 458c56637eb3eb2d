//! Tokens for machines that stand for a person.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use bulkhead_app::AppError;
use bulkhead_app::access_token::Tokens;
use bulkhead_model::session::BrowserToken;
use http::{StatusCode, header};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::HttpState;
use crate::extract::{Input, NoInput};
use crate::problem::Problem;
use crate::session::{Person, Visitor};

/// Tokens, shown now and never again.
#[derive(Serialize, ToSchema)]
#[schema(as = Tokens)]
pub(crate) struct TokensView {
    /// A JWT for `Authorization: Bearer`.
    access_token: String,
    /// `Bearer`.
    token_type: &'static str,
    /// Seconds that the access token lives.
    expires_in: u64,
    /// What the next tokens are got with, once.
    refresh_token: String,
}

impl From<Tokens> for TokensView {
    fn from(tokens: Tokens) -> Self {
        Self {
            access_token: tokens.access,
            token_type: "Bearer",
            expires_in: tokens.access_lives.as_secs(),
            refresh_token: tokens.refresh.reveal(),
        }
    }
}

/// A refresh token.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = RefreshToken)]
pub(crate) struct RefreshInput {
    refresh_token: String,
}

/// Hands out tokens that stand for the person, for machines that cannot keep a cookie. They end with the session at the latest.
#[utoipa::path(
    post,
    path = "/api/v1/me/tokens",
    tag = "accounts",
    responses((status = 201, body = TokensView)),
    extensions(("x-bulkhead-problems" = json!(["step-up-required", "too-many-tokens"]))),
)]
pub(crate) async fn issue_tokens(
    person: Person,
    State(state): State<HttpState>,
    _: NoInput,
) -> Result<Response, Problem> {
    let tokens = state.app.issue_tokens(&person.signed_in).await?;
    Ok((StatusCode::CREATED, Json(TokensView::from(tokens))).into_response())
}

/// Changes a refresh token for new tokens. One that was used before ends every token that followed from it.
#[utoipa::path(
    post,
    path = "/api/v1/auth/refresh",
    tag = "accounts",
    request_body = RefreshInput,
    responses((status = 200, body = TokensView)),
    extensions(("x-bulkhead-problems" = json!(["unauthenticated", "foreign-origin", "unavailable", "invalid-query"]))),
)]
pub(crate) async fn refresh_tokens(
    _: Visitor,
    State(state): State<HttpState>,
    Input(input): Input<RefreshInput>,
) -> Result<Json<TokensView>, Problem> {
    let presented = BrowserToken::parse(&input.refresh_token).ok_or(AppError::Unauthenticated)?;
    Ok(Json(state.app.refresh_tokens(&presented).await?.into()))
}

/// Ends every refresh token that followed from the same one. Access tokens end by themselves within ten minutes, and at once with the session
/// that they came from. A token that is not known is no error.
#[utoipa::path(
    post,
    path = "/api/v1/auth/revoke",
    tag = "accounts",
    request_body = RefreshInput,
    responses((status = 204)),
    extensions(("x-bulkhead-problems" = json!(["foreign-origin", "unavailable", "invalid-query"]))),
)]
pub(crate) async fn revoke_tokens(
    _: Visitor,
    State(state): State<HttpState>,
    Input(input): Input<RefreshInput>,
) -> Result<StatusCode, Problem> {
    if let Some(presented) = BrowserToken::parse(&input.refresh_token) {
        state.app.revoke_tokens(&presented).await?;
    }
    Ok(StatusCode::NO_CONTENT)
}

/// Shows the public key that access tokens are checked with (RFC 7517).
#[utoipa::path(
    get,
    path = "/.well-known/jwks.json",
    tag = "accounts",
    responses((status = 200, body = serde_json::Value, content_type = "application/jwk-set+json")),
)]
pub(crate) async fn show_jwks(State(state): State<HttpState>) -> Response {
    let headers = [(header::CONTENT_TYPE, "application/jwk-set+json"), (header::CACHE_CONTROL, "public, max-age=300")];
    (headers, state.app.jwks().to_string()).into_response()
}
