//! API keys: made, listed, revoked. The secret is in the answer that made it and never again.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use bulkhead_app::api_key::{CreatedApiKey, NewApiKey, NewSigning, NewSigningKey, SECRET_GRACE_DEFAULT};
use bulkhead_app::data::{ApiKey, KeyUsage, Signing, SigningKey};
use bulkhead_app::key_usage::beginning_of;
use bulkhead_model::id::{ApiKeyId, UserId};
use bulkhead_model::permission::Permission;
use bulkhead_model::signature::Required;
use bulkhead_model::time::Timestamp;
use http::{StatusCode, header};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::HttpState;
use crate::access::OrgCaller;
use crate::extract::{In, Input};
use crate::page::{ListOf, NoFilter, PageParams, Paging};
use crate::problem::Problem;
use crate::session::Visitor;
use crate::view::line;

/// What a new key is to be.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = NewApiKey)]
pub(crate) struct NewApiKeyInput {
    /// For people: what the key is for. 1 to 100 characters.
    #[serde(deserialize_with = "line")]
    name: String,
    /// At most those of the key that makes it.
    #[schema(value_type = Vec<String>, example = json!(["workflows.read", "runs.start"]))]
    permissions: Vec<Permission>,
    /// Days until it ends, 1 to 366; 90 when left out.
    #[serde(default)]
    expires_in_days: Option<u32>,
    /// How its requests are signed (RFC 9421); they are not when left out. It stays as it is for as long as the key lives.
    #[serde(default)]
    signing: Option<NewSigningInput>,
    /// Networks and addresses that it may be used from: `192.0.2.0/24`, `2001:db8::/32`; from everywhere when left out. A key that makes
    /// another one passes its own on, and can narrow them.
    #[serde(default)]
    networks: Vec<String>,
}

/// How a new key's requests are signed.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(tag = "algorithm", deny_unknown_fields)]
#[schema(as = NewSigning)]
pub(crate) enum NewSigningInput {
    #[serde(rename = "ed25519")]
    Ed25519 {
        /// PEM, as `openssl pkey -pubout` prints it, or base64 of its 32 bytes. The private key stays with you.
        public_key: String,
        /// Which requests have to be signed: all, or with `sensitive` those for which a person would have to prove anew who they are.
        #[serde(default)]
        required: RequiredView,
    },
    /// With a secret that is made here and shown once, in the answer.
    #[serde(rename = "hmac-sha256")]
    HmacSha256 {
        #[serde(default)]
        required: RequiredView,
    },
}

/// Which requests by a key have to be signed. A signature that is there is checked in any case.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = SigningRequired)]
pub(crate) enum RequiredView {
    #[default]
    Always,
    Sensitive,
}

impl From<Required> for RequiredView {
    fn from(required: Required) -> Self {
        match required {
            Required::Always => Self::Always,
            Required::Sensitive => Self::Sensitive,
        }
    }
}

impl From<RequiredView> for Required {
    fn from(required: RequiredView) -> Self {
        match required {
            RequiredView::Always => Self::Always,
            RequiredView::Sensitive => Self::Sensitive,
        }
    }
}

impl From<NewSigningInput> for NewSigning {
    fn from(input: NewSigningInput) -> Self {
        match input {
            NewSigningInput::Ed25519 { public_key, required } => {
                Self { key: NewSigningKey::Ed25519(public_key), required: required.into() }
            }
            NewSigningInput::HmacSha256 { required } => {
                Self { key: NewSigningKey::HmacSha256, required: required.into() }
            }
        }
    }
}

/// How a key's requests are signed.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Signing)]
pub(crate) struct SigningView {
    #[schema(value_type = String, example = "ed25519")]
    algorithm: &'static str,
    required: RequiredView,
    /// Base64 of the 32 bytes; null with a shared secret.
    public_key: Option<String>,
}

impl From<Signing> for SigningView {
    fn from(signing: Signing) -> Self {
        let public_key = match &signing.key {
            SigningKey::Ed25519(key) => Some(key.reveal()),
            SigningKey::HmacSha256(_) => None,
        };
        Self { algorithm: signing.key.algorithm().as_str(), required: signing.required.into(), public_key }
    }
}

/// A key, without its secret.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = ApiKey)]
pub(crate) struct ApiKeyView {
    #[schema(value_type = String, example = "key_01h455vb4pex5vsknk084sn02q")]
    id: ApiKeyId,
    name: String,
    #[schema(value_type = Vec<String>)]
    permissions: Vec<Permission>,
    #[schema(value_type = String, format = DateTime)]
    created_at: Timestamp,
    #[schema(value_type = Option<String>, format = DateTime)]
    expires_at: Option<Timestamp>,
    #[schema(value_type = Option<String>, format = DateTime)]
    revoked_at: Option<Timestamp>,
    /// Until then the secret before this one is good as well.
    #[schema(value_type = Option<String>, format = DateTime)]
    previous_until: Option<Timestamp>,
    /// The person whose key it is: it holds no more than they hold. Null for one that the operator made.
    #[schema(value_type = Option<String>, example = "user_01h455vb4pex5vsknk084sn02q")]
    owner: Option<UserId>,
    /// The key that made it; revoking that one revokes this one as well.
    #[schema(value_type = Option<String>)]
    made_by: Option<ApiKeyId>,
    /// How its requests are signed; null if they are not.
    signing: Option<SigningView>,
    /// Where it may be used from; everywhere if there is none.
    networks: Vec<String>,
    /// When it was last let in, to the minute or so; null if never.
    #[schema(value_type = Option<String>, format = DateTime)]
    last_used_at: Option<Timestamp>,
}

/// A key that was just made.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = CreatedApiKey)]
pub(crate) struct CreatedApiKeyView {
    #[serde(flatten)]
    key: ApiKeyView,
    /// What `Authorization: Bearer` takes. Shown now and never again.
    secret: String,
    /// With `hmac-sha256`: what its requests are signed with, as base64. Shown now and never again.
    #[serde(skip_serializing_if = "Option::is_none")]
    signing_secret: Option<String>,
}

impl From<ApiKey> for ApiKeyView {
    fn from(key: ApiKey) -> Self {
        Self {
            id: key.id,
            name: key.name,
            permissions: key.permissions.iter().collect(),
            created_at: key.created_at,
            expires_at: key.expires_at,
            revoked_at: key.revoked_at,
            previous_until: key.previous.map(|(_, until)| until),
            owner: key.owner,
            made_by: key.made_by,
            networks: key.networks.entries(),
            last_used_at: key.last_used_at,
            signing: key.signing.map(SigningView::from),
        }
    }
}

impl From<CreatedApiKey> for CreatedApiKeyView {
    fn from(created: CreatedApiKey) -> Self {
        Self {
            key: created.key.into(),
            secret: created.secret_text,
            signing_secret: created.signing_secret.map(|secret| secret.to_string()),
        }
    }
}

/// Makes a key. Its secret is in this answer only.
#[utoipa::path(
    post,
    path = "/api/v1/orgs/{org}/api-keys",
    tag = "API keys",
    request_body = NewApiKeyInput,
    responses((status = 201, body = CreatedApiKeyView)),
    extensions(("x-bulkhead-problems" = json!(["invalid-name", "invalid-permissions", "invalid-expiry", "invalid-signing-key", "invalid-networks", "too-many-keys"]))),
)]
pub(crate) async fn create_api_key(
    at: OrgCaller,
    State(state): State<HttpState>,
    Input(input): Input<NewApiKeyInput>,
) -> Result<Response, Problem> {
    let new = NewApiKey {
        name: input.name,
        permissions: input.permissions.into_iter().collect(),
        expires_in_days: input.expires_in_days,
        signing: input.signing.map(NewSigning::from),
        networks: input.networks,
    };
    let created = state.app.create_api_key(&at.caller, at.org, new).await?;
    let location = format!("/api/v1/orgs/{}/api-keys/{}", at.org, created.key.id);
    let view = CreatedApiKeyView::from(created);
    Ok((StatusCode::CREATED, [(header::LOCATION, location)], Json(view)).into_response())
}

/// Lists the keys, newest first, revoked and expired ones included.
#[utoipa::path(
    get,
    path = "/api/v1/orgs/{org}/api-keys",
    tag = "API keys",
    params(PageParams),
    responses((status = 200, body = ListOf<ApiKeyView>)),
)]
pub(crate) async fn list_api_keys(
    at: OrgCaller,
    State(state): State<HttpState>,
    paging: Paging<NoFilter>,
) -> Result<Json<ListOf<ApiKeyView>>, Problem> {
    let page = state.app.list_api_keys(&at.caller, at.org, paging.request()?).await?;
    Ok(Json(paging.answer(page, ApiKeyView::from)))
}

/// How much a key was used on a day.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = ApiKeyUsageOfDay)]
pub(crate) struct KeyUsageView {
    /// In UTC.
    #[schema(format = Date, example = "2026-11-21")]
    day: String,
    /// Requests that it was let in with, whatever came of them.
    requests: u64,
}

/// How much a key was used.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = ApiKeyUsage)]
pub(crate) struct KeyUsagesView {
    #[schema(value_type = Option<String>, format = DateTime)]
    last_used_at: Option<Timestamp>,
    /// Days on which it was used, newest first, at most 90.
    days: Vec<KeyUsageView>,
}

impl From<KeyUsage> for KeyUsageView {
    fn from(usage: KeyUsage) -> Self {
        let day = beginning_of(usage.day).to_chrono().format("%Y-%m-%d").to_string();
        Self { day, requests: usage.requests }
    }
}

/// Shows how much a key was used, by day. What was counted in the last minute is not in it yet.
#[utoipa::path(
    get,
    path = "/api/v1/orgs/{org}/api-keys/{api_key}/usage",
    tag = "API keys",
    responses((status = 200, body = KeyUsagesView)),
)]
pub(crate) async fn show_api_key_usage(
    at: OrgCaller,
    In(id): In<ApiKeyId>,
    State(state): State<HttpState>,
) -> Result<Json<KeyUsagesView>, Problem> {
    let (key, days) = state.app.show_key_usage(&at.caller, at.org, id).await?;
    Ok(Json(KeyUsagesView { last_used_at: key.last_used_at, days: days.into_iter().map(KeyUsageView::from).collect() }))
}

/// How to replace a key's secret.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = RotateApiKey)]
pub(crate) struct RotateApiKeyInput {
    /// Seconds that the secret before is good for as well, at most seven days; a day when left out.
    #[serde(default)]
    grace_s: Option<u64>,
}

/// Gives a key another secret, which is in this answer only. Its id, its end and what it may stay; a person's key takes the person.
#[utoipa::path(
    post,
    path = "/api/v1/orgs/{org}/api-keys/{api_key}/rotate",
    tag = "API keys",
    request_body = RotateApiKeyInput,
    responses((status = 200, body = CreatedApiKeyView)),
    extensions(("x-bulkhead-problems" = json!(["invalid-grace", "not-own-key"]))),
)]
pub(crate) async fn rotate_api_key(
    at: OrgCaller,
    In(id): In<ApiKeyId>,
    State(state): State<HttpState>,
    Input(input): Input<RotateApiKeyInput>,
) -> Result<Json<CreatedApiKeyView>, Problem> {
    let grace = input.grace_s.map_or(SECRET_GRACE_DEFAULT, Duration::from_secs);
    let rotated = state.app.rotate_api_key(&at.caller, at.org, id, grace).await?;
    Ok(Json(rotated.into()))
}

/// A key that was found somewhere.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = LeakedApiKey)]
pub(crate) struct LeakedKeyInput {
    /// The whole key, as `Authorization: Bearer` takes it.
    key: String,
}

/// Revokes a key that was found where it does not belong: in a public repository, in a log. Whoever can say the key may end it, with what it
/// made. The answer is always the same.
#[utoipa::path(
    post,
    path = "/api/v1/leaked-api-keys",
    tag = "API keys",
    request_body = LeakedKeyInput,
    responses((status = 204)),
    extensions(("x-bulkhead-problems" = json!(["foreign-origin", "unavailable", "invalid-query"]))),
)]
pub(crate) async fn report_leaked_key(
    _: Visitor,
    State(state): State<HttpState>,
    Input(input): Input<LeakedKeyInput>,
) -> Result<StatusCode, Problem> {
    state.app.report_leaked_key(&input.key).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Revokes a key at once, and every key that it made, with those that they made. Doing it twice is no error; the key that asks cannot be the one that goes.
#[utoipa::path(
    delete,
    path = "/api/v1/orgs/{org}/api-keys/{api_key}",
    tag = "API keys",
    responses((status = 204)),
    extensions(("x-bulkhead-problems" = json!(["own-key"]))),
)]
pub(crate) async fn revoke_api_key(
    at: OrgCaller,
    In(id): In<ApiKeyId>,
    State(state): State<HttpState>,
) -> Result<StatusCode, Problem> {
    state.app.revoke_api_key(&at.caller, at.org, id).await?;
    Ok(StatusCode::NO_CONTENT)
}
