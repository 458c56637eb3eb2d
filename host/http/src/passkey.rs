//! Passkeys: a challenge and its answer for each of their uses, and the person's list of them.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use bulkhead_app::data::StoredPasskey;
use bulkhead_app::passkey::Challenge;
use bulkhead_model::id::PasskeyId;
use bulkhead_model::time::Timestamp;
use http::{StatusCode, header};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use crate::HttpState;
use crate::account::{MeView, opened_answer};
use crate::extract::{In, Input, NoInput};
use crate::mfa::unstored;
use crate::problem::Problem;
use crate::session::{Person, Visitor, Waits, no_waiting_cookie, waiting_cookie};

/// What the browser asks its authenticators.
#[derive(Serialize, ToSchema)]
#[schema(as = PasskeyChallenge)]
pub(crate) struct ChallengeView {
    /// For `PublicKeyCredential.parseCreationOptionsFromJSON`, or `parseRequestOptionsFromJSON`.
    #[schema(value_type = Object)]
    options: Value,
    /// An answer that comes later is refused. Each challenge is answered once.
    #[schema(value_type = String, format = DateTime)]
    expires_at: Timestamp,
}

impl From<Challenge> for ChallengeView {
    fn from(challenge: Challenge) -> Self {
        Self { options: challenge.options, expires_at: challenge.expires_at }
    }
}

/// What the authenticator answered.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = PasskeyAnswer)]
pub(crate) struct AnswerInput {
    /// As `PublicKeyCredential.toJSON()` makes it.
    #[schema(value_type = Object)]
    credential: Value,
}

/// What the authenticator answered, as a second factor.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = SecondPasskeyAnswer)]
pub(crate) struct SecondAnswerInput {
    /// As `PublicKeyCredential.toJSON()` makes it.
    #[schema(value_type = Object)]
    credential: Value,
    /// Lets the browser stand for the second factor for thirty days, where an organization of the person's takes it for one; never for who gives
    /// others rights, and for nothing that asks for a fresh proof.
    #[serde(default)]
    trust_browser: bool,
}

/// A new passkey.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = NewPasskey)]
pub(crate) struct NewPasskeyInput {
    /// To tell it from others: 1 to 100 characters.
    #[serde(deserialize_with = "crate::view::line")]
    #[schema(example = "laptop")]
    name: String,
    /// As `PublicKeyCredential.toJSON()` makes it.
    #[schema(value_type = Object)]
    credential: Value,
}

/// A passkey.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Passkey)]
pub(crate) struct PasskeyView {
    #[schema(value_type = String, example = "pkey_01h455vb4pex5vsknk084sn02q")]
    id: PasskeyId,
    name: String,
    #[schema(value_type = String, format = DateTime)]
    created_at: Timestamp,
    /// The last answer of it that was right.
    #[schema(value_type = Option<String>, format = DateTime)]
    last_used_at: Option<Timestamp>,
}

/// The person's passkeys.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Passkeys)]
pub(crate) struct PasskeysView {
    items: Vec<PasskeyView>,
}

/// Lists the person's passkeys (ten at most), the oldest first.
#[utoipa::path(get, path = "/api/v1/me/passkeys", tag = "accounts", responses((status = 200, body = PasskeysView)))]
pub(crate) async fn list_passkeys(
    person: Person,
    State(state): State<HttpState>,
) -> Result<Json<PasskeysView>, Problem> {
    let view = |passkey: StoredPasskey| PasskeyView {
        id: passkey.id,
        name: passkey.name,
        created_at: passkey.created_at,
        last_used_at: passkey.used_at,
    };
    let passkeys = state.app.list_own_passkeys(&person.signed_in).await?;
    Ok(Json(PasskeysView { items: passkeys.into_iter().map(view).collect() }))
}

/// Begins to make a passkey. Only this session goes on with it.
#[utoipa::path(
    post,
    path = "/api/v1/me/passkeys/challenge",
    tag = "accounts",
    responses((status = 201, body = ChallengeView)),
    extensions(("x-bulkhead-problems" = json!(["step-up-required", "no-passkeys", "too-many-passkeys"]))),
)]
pub(crate) async fn begin_passkey(
    person: Person,
    State(state): State<HttpState>,
    _: NoInput,
) -> Result<Response, Problem> {
    let challenge = state.app.begin_passkey(&person.signed_in).await?;
    Ok(unstored(StatusCode::CREATED, ChallengeView::from(challenge)))
}

/// Makes the passkey that answered the person's. From here on it signs in, and a password alone does not. Every other session, token and key of
/// the person ends, and the cookie changes.
#[utoipa::path(
    post,
    path = "/api/v1/me/passkeys",
    tag = "accounts",
    request_body = NewPasskeyInput,
    responses((status = 201, body = MeView)),
    extensions(("x-bulkhead-problems" = json!([
        "step-up-required", "no-passkeys", "too-many-passkeys", "no-set-up", "invalid-name", "invalid-passkey",
    ]))),
)]
pub(crate) async fn add_passkey(
    person: Person,
    State(state): State<HttpState>,
    Input(input): Input<NewPasskeyInput>,
) -> Result<Response, Problem> {
    let opened = state.app.add_passkey(&person.signed_in, &input.name, input.credential).await?;
    let mut answer = opened_answer(&state, opened).await?;
    *answer.status_mut() = StatusCode::CREATED;
    Ok(answer)
}

/// Removes one of the person's passkeys, unless it is the last second factor and somebody asks for one. Every other session, token and key of
/// the person ends, and the cookie changes.
#[utoipa::path(
    delete,
    path = "/api/v1/me/passkeys/{passkey}",
    tag = "accounts",
    responses((status = 200, body = MeView)),
    extensions(("x-bulkhead-problems" = json!(["step-up-required", "second-factor-stays", "not-found"]))),
)]
pub(crate) async fn remove_passkey(
    person: Person,
    In(id): In<PasskeyId>,
    State(state): State<HttpState>,
) -> Result<Response, Problem> {
    let opened = state.app.remove_passkey(&person.signed_in, id).await?;
    opened_answer(&state, opened).await
}

/// Begins a sign-in by passkey alone, without a name or a password. The answer has to come with the cookie that is set.
#[utoipa::path(
    post,
    path = "/api/v1/auth/passkey/challenge",
    tag = "accounts",
    responses((status = 201, body = ChallengeView)),
    extensions(("x-bulkhead-problems" = json!(["no-passkeys", "foreign-origin", "unavailable", "invalid-query"]))),
)]
pub(crate) async fn begin_passkey_sign_in(
    _: Visitor,
    State(state): State<HttpState>,
    _: NoInput,
) -> Result<Response, Problem> {
    let (token, challenge) = state.app.begin_passkey_sign_in().await?;
    let answer = unstored(StatusCode::CREATED, ChallengeView::from(challenge));
    Ok((waiting_cookie(&token), answer).into_response())
}

/// Signs in by a passkey alone, which is two factors: something one has, and what its authenticator asks for. The session is in the cookie that
/// the answer sets.
#[utoipa::path(
    post,
    path = "/api/v1/auth/passkey",
    tag = "accounts",
    request_body = AnswerInput,
    responses((status = 200, body = MeView)),
    extensions(("x-bulkhead-problems" = json!([
        "unauthenticated", "no-passkeys", "too-many-attempts", "foreign-origin", "unavailable", "invalid-query",
    ]))),
)]
pub(crate) async fn sign_in_by_passkey(
    waits: Waits,
    State(state): State<HttpState>,
    Input(input): Input<AnswerInput>,
) -> Result<Response, Problem> {
    let opened = state.app.sign_in_by_passkey(&waits.token, input.credential, &waits.client).await?;
    let mut answer = opened_answer(&state, opened).await?;
    answer.headers_mut().append(header::SET_COOKIE, no_waiting_cookie());
    Ok(answer)
}

/// Asks the passkeys of somebody whose password was right. The sign-in is in the cookie that the first step set.
#[utoipa::path(
    post,
    path = "/api/v1/auth/second-factor/passkey/challenge",
    tag = "accounts",
    responses((status = 201, body = ChallengeView)),
    extensions(("x-bulkhead-problems" = json!([
        "unauthenticated", "no-passkeys", "foreign-origin", "unavailable", "invalid-query",
    ]))),
)]
pub(crate) async fn begin_passkey_second(
    waits: Waits,
    State(state): State<HttpState>,
    _: NoInput,
) -> Result<Response, Problem> {
    let challenge = state.app.begin_passkey_second(&waits.token).await?;
    Ok(unstored(StatusCode::CREATED, ChallengeView::from(challenge)))
}

/// Goes on with a sign-in that asks for a second factor, by a passkey.
#[utoipa::path(
    post,
    path = "/api/v1/auth/second-factor/passkey",
    tag = "accounts",
    request_body = SecondAnswerInput,
    responses((status = 200, body = MeView)),
    extensions(("x-bulkhead-problems" = json!([
        "unauthenticated", "no-passkeys", "invalid-passkey", "too-many-attempts", "foreign-origin", "unavailable", "invalid-query",
    ]))),
)]
pub(crate) async fn sign_in_second_by_passkey(
    waits: Waits,
    State(state): State<HttpState>,
    Input(input): Input<SecondAnswerInput>,
) -> Result<Response, Problem> {
    let answer = (input.credential, input.trust_browser);
    let opened = state.app.sign_in_second_by_passkey(&waits.token, answer, &waits.client).await?;
    let mut answer = opened_answer(&state, opened).await?;
    answer.headers_mut().append(header::SET_COOKIE, no_waiting_cookie());
    Ok(answer)
}

/// Asks the person's passkeys, for what asks for a fresh proof of who it is.
#[utoipa::path(
    post,
    path = "/api/v1/auth/step-up/passkey/challenge",
    tag = "accounts",
    responses((status = 201, body = ChallengeView)),
    extensions(("x-bulkhead-problems" = json!(["no-passkeys"]))),
)]
pub(crate) async fn begin_passkey_step_up(
    person: Person,
    State(state): State<HttpState>,
    _: NoInput,
) -> Result<Response, Problem> {
    let challenge = state.app.begin_passkey_step_up(&person.signed_in).await?;
    Ok(unstored(StatusCode::CREATED, ChallengeView::from(challenge)))
}

/// Proves again who it is by a passkey, in place of password and code. The session's cookie changes.
#[utoipa::path(
    post,
    path = "/api/v1/auth/step-up/passkey",
    tag = "accounts",
    request_body = AnswerInput,
    responses((status = 200, body = MeView)),
    extensions(("x-bulkhead-problems" = json!(["no-passkeys", "invalid-passkey", "too-many-attempts"]))),
)]
pub(crate) async fn step_up_by_passkey(
    person: Person,
    State(state): State<HttpState>,
    Input(input): Input<AnswerInput>,
) -> Result<Response, Problem> {
    let opened = state.app.step_up_by_passkey(&person.signed_in, input.credential, &person.client).await?;
    opened_answer(&state, opened).await
}
