//! Second factors: the second step of signing in, the set-up, backup codes, and what an organization asks for.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use bulkhead_app::AppError;
use bulkhead_app::mfa::{MfaStatus, Proof, TotpShown};
use bulkhead_model::backup_code::BackupCode;
use bulkhead_model::mfa::{Method, MfaPolicy, SignInPolicy};
use bulkhead_model::time::Timestamp;
use http::{StatusCode, header};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::HttpState;
use crate::access::OrgCaller;
use crate::account::{MeView, opened_answer};
use crate::extract::{Input, NoInput};
use crate::problem::Problem;
use crate::session::{Person, Waits, no_waiting_cookie};

/// One second factor: a code, or a backup code.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = SecondFactor)]
pub(crate) struct ProofInput {
    /// Six digits that the authenticator app shows; a backup code is taken here as well.
    #[serde(default)]
    #[schema(example = "123456")]
    code: Option<String>,
    /// A backup code, with or without its hyphen.
    #[serde(default)]
    backup_code: Option<String>,
    /// The code that was mailed for this sign-in, with or without its hyphen.
    #[serde(default)]
    email_code: Option<String>,
    /// Lets the browser stand for the second factor for thirty days, where an organization of the person's takes it for one; never for who gives
    /// others rights, and for nothing that asks for a fresh proof.
    #[serde(default)]
    trust_browser: bool,
}

/// One of the two, and not both.
pub(crate) fn read_proof(code: Option<String>, backup_code: Option<String>) -> Result<Option<Proof>, Problem> {
    match (code, backup_code) {
        (Some(code), None) => Ok(Some(Proof::of_code(code))),
        (None, Some(code)) => Ok(Some(Proof::BackupCode(code))),
        (None, None) => Ok(None),
        (Some(_), Some(_)) => {
            Err(AppError::invalid("wrong-code", "/backup_code", "say a code or a backup code, not both").into())
        }
    }
}

/// Goes on with a sign-in that asks for a second factor. The sign-in is in the cookie that the first step set.
#[utoipa::path(
    post,
    path = "/api/v1/auth/second-factor",
    tag = "accounts",
    request_body = ProofInput,
    responses((status = 200, body = MeView)),
    extensions(("x-bulkhead-problems" = json!([
        "unauthenticated", "wrong-code", "too-many-attempts", "busy", "foreign-origin", "unavailable", "invalid-query",
    ]))),
)]
pub(crate) async fn sign_in_second(
    waits: Waits,
    State(state): State<HttpState>,
    Input(input): Input<ProofInput>,
) -> Result<Response, Problem> {
    let proof = match (read_proof(input.code, input.backup_code)?, input.email_code) {
        (Some(proof), None) => proof,
        (None, Some(code)) => Proof::EmailCode(code),
        (None, None) => return Err(AppError::invalid("wrong-code", "/code", "say a code").into()),
        (Some(_), Some(_)) => return Err(AppError::invalid("wrong-code", "/email_code", "say one code").into()),
    };
    let opened = state.app.sign_in_second(&waits.token, (&proof, input.trust_browser), &waits.client).await?;
    let mut answer = opened_answer(&state, opened).await?;
    answer.headers_mut().append(header::SET_COOKIE, no_waiting_cookie());
    Ok(answer)
}

/// Mails a code for a sign-in that waits, where mail counts as a second factor and the person has none of their own.
#[utoipa::path(
    post,
    path = "/api/v1/auth/second-factor/email",
    tag = "accounts",
    responses((status = 202)),
    extensions(("x-bulkhead-problems" = json!([
        "unauthenticated", "no-email-code", "too-many-attempts", "foreign-origin", "unavailable", "invalid-query",
    ]))),
)]
pub(crate) async fn mail_sign_in_code(
    waits: Waits,
    State(state): State<HttpState>,
    _: NoInput,
) -> Result<StatusCode, Problem> {
    state.app.mail_sign_in_code(&waits.token, &waits.client).await?;
    Ok(StatusCode::ACCEPTED)
}

/// A set-up that waits.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = MfaSetUp)]
pub(crate) struct SetUpStateView {
    /// `shown`: say a code of the app; `verified`: say that the backup codes are kept.
    state: &'static str,
    #[schema(value_type = String, format = DateTime)]
    expires_at: Timestamp,
}

/// What the person proves besides a password.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Mfa)]
pub(crate) struct MfaView {
    /// Whether signing in by password asks for it.
    active: bool,
    /// Since when an authenticator app counts.
    #[schema(value_type = Option<String>, format = DateTime)]
    active_since: Option<Timestamp>,
    /// Ten wrong codes in a row: a backup code lets the app's codes count again.
    locked: bool,
    backup_codes_left: usize,
    /// They are listed at `me/passkeys`.
    passkeys: usize,
    set_up: Option<SetUpStateView>,
}

impl From<MfaStatus> for MfaView {
    fn from(status: MfaStatus) -> Self {
        Self {
            active: status.active_since.is_some() || status.passkeys > 0,
            active_since: status.active_since,
            locked: status.is_locked,
            backup_codes_left: status.backup_codes_left,
            passkeys: status.passkeys,
            set_up: status.set_up.map(|(state, expires_at)| SetUpStateView { state: state.as_str(), expires_at }),
        }
    }
}

/// Shows what the person proves besides a password.
#[utoipa::path(get, path = "/api/v1/me/mfa", tag = "accounts", responses((status = 200, body = MfaView)))]
pub(crate) async fn show_mfa(person: Person, State(state): State<HttpState>) -> Result<Json<MfaView>, Problem> {
    Ok(Json(state.app.show_mfa(&person.signed_in).await?.into()))
}

/// What an authenticator app is told. Shown now and never again.
#[derive(Serialize, ToSchema)]
#[schema(as = TotpSetUp)]
pub(crate) struct TotpSetUpView {
    /// To type into the app.
    #[schema(example = "GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ")]
    secret: String,
    /// What the picture says.
    uri: String,
    /// The picture (a QR code), drawn by this server.
    qr_svg: String,
    #[schema(value_type = String, format = DateTime)]
    expires_at: Timestamp,
}

impl From<TotpShown> for TotpSetUpView {
    fn from(shown: TotpShown) -> Self {
        Self {
            secret: shown.secret.to_string(),
            uri: shown.uri.to_string(),
            qr_svg: shown.qr_svg.to_string(),
            expires_at: shown.expires_at,
        }
    }
}

/// An answer that nobody on the way keeps.
pub(crate) fn unstored(status: StatusCode, view: impl Serialize) -> Response {
    (status, [(header::CACHE_CONTROL, "no-store")], Json(view)).into_response()
}

/// Begins to set an authenticator app up; one that counts goes on counting until the new one is activated. Ends what was begun before, and only
/// this session goes on with it.
#[utoipa::path(
    post,
    path = "/api/v1/me/mfa/totp",
    tag = "accounts",
    responses((status = 201, body = TotpSetUpView)),
    extensions(("x-bulkhead-problems" = json!(["step-up-required"]))),
)]
pub(crate) async fn begin_totp(
    person: Person,
    State(state): State<HttpState>,
    _: NoInput,
) -> Result<Response, Problem> {
    let shown = state.app.begin_totp(&person.signed_in).await?;
    Ok(unstored(StatusCode::CREATED, TotpSetUpView::from(shown)))
}

/// A code of the app.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = TotpCode)]
pub(crate) struct CodeInput {
    /// Six digits.
    #[schema(example = "123456")]
    code: String,
}

/// Backup codes, shown now and never again.
#[derive(Serialize, ToSchema)]
#[schema(as = BackupCodes)]
pub(crate) struct BackupCodesView {
    #[schema(example = json!(["01ABC-DEFGH"]))]
    codes: Vec<String>,
    /// The same as a file to keep.
    text: String,
}

impl From<Vec<BackupCode>> for BackupCodesView {
    fn from(codes: Vec<BackupCode>) -> Self {
        let codes: Vec<String> = codes.iter().map(BackupCode::reveal).collect();
        let text =
            format!("Bulkhead backup codes. Each works once, instead of a code of the app.\n\n{}\n", codes.join("\n"));
        Self { codes, text }
    }
}

/// Proves that the app shows the right codes; answers ten backup codes, which count from when the app does.
#[utoipa::path(
    post,
    path = "/api/v1/me/mfa/totp/verify",
    tag = "accounts",
    request_body = CodeInput,
    responses((status = 200, body = BackupCodesView)),
    extensions(("x-bulkhead-problems" = json!(["no-set-up", "step-up-required", "wrong-code", "too-many-attempts", "busy"]))),
)]
pub(crate) async fn verify_totp(
    person: Person,
    State(state): State<HttpState>,
    Input(input): Input<CodeInput>,
) -> Result<Response, Problem> {
    let codes = state.app.verify_totp(&person.signed_in, &input.code, &person.client).await?;
    Ok(unstored(StatusCode::OK, BackupCodesView::from(codes)))
}

/// Says that the backup codes are kept: from here on signing in asks for a code. Every other session, token and key of the person ends, and
/// the cookie changes.
#[utoipa::path(
    post,
    path = "/api/v1/me/mfa/totp/activate",
    tag = "accounts",
    responses((status = 200, body = MeView)),
    extensions(("x-bulkhead-problems" = json!(["no-set-up", "step-up-required"]))),
)]
pub(crate) async fn activate_totp(
    person: Person,
    State(state): State<HttpState>,
    _: NoInput,
) -> Result<Response, Problem> {
    let opened = state.app.activate_totp(&person.signed_in).await?;
    opened_answer(&state, opened).await
}

/// Takes the person's second factors away, passkeys among them, where nobody asks for one. Every other session, token and key of the person ends, and the cookie
/// changes.
#[utoipa::path(
    delete,
    path = "/api/v1/me/mfa",
    tag = "accounts",
    responses((status = 200, body = MeView)),
    extensions(("x-bulkhead-problems" = json!(["step-up-required", "second-factor-stays", "not-found"]))),
)]
pub(crate) async fn disable_mfa(person: Person, State(state): State<HttpState>) -> Result<Response, Problem> {
    let opened = state.app.disable_mfa(&person.signed_in).await?;
    opened_answer(&state, opened).await
}

/// Makes ten new backup codes; the old ones are worth nothing from here on.
#[utoipa::path(
    post,
    path = "/api/v1/me/mfa/backup-codes",
    tag = "accounts",
    responses((status = 201, body = BackupCodesView)),
    extensions(("x-bulkhead-problems" = json!(["step-up-required", "no-set-up", "too-many-attempts", "busy"]))),
)]
pub(crate) async fn renew_backup_codes(
    person: Person,
    State(state): State<HttpState>,
    _: NoInput,
) -> Result<Response, Problem> {
    let codes = state.app.renew_backup_codes(&person.signed_in).await?;
    Ok(unstored(StatusCode::CREATED, BackupCodesView::from(codes)))
}

fn usual_methods() -> Vec<Method> {
    Method::DEFAULT.to_vec()
}

/// What an organization asks of its members besides a password, and what it takes for it.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = SignInPolicy)]
pub(crate) struct SignInPolicyView {
    /// Whom it asks for a second factor: nobody (`optional`), those who give others rights (`admins`), or everybody (`all`).
    #[schema(value_type = String, example = "admins")]
    mfa: MfaPolicy,
    /// What it takes for one, one at least: `app` (with backup codes), `passkey`, and `email`, which is weak and counts for nobody who gives others
    /// rights. `app` and `passkey` if left out.
    #[serde(default = "usual_methods")]
    #[schema(value_type = Vec<String>, example = json!(["app", "passkey"]))]
    methods: Vec<Method>,
    /// Whether a browser in which somebody proved one within thirty days stands for it: weaker than the standards allow, never for who gives
    /// others rights.
    #[serde(default)]
    trusts_devices: bool,
}

impl From<SignInPolicy> for SignInPolicyView {
    fn from(policy: SignInPolicy) -> Self {
        Self { mfa: policy.mfa, methods: policy.methods().to_vec(), trusts_devices: policy.trusts_devices }
    }
}

/// Shows what the organization asks of its members besides a password, and what it takes for it.
#[utoipa::path(
    get,
    path = "/api/v1/orgs/{org}/sign-in-policy",
    tag = "organizations",
    responses((status = 200, body = SignInPolicyView)),
)]
pub(crate) async fn show_sign_in_policy(
    OrgCaller { caller, org }: OrgCaller,
    State(state): State<HttpState>,
) -> Result<Json<SignInPolicyView>, Problem> {
    Ok(Json(state.app.show_sign_in_policy(&caller, org).await?.into()))
}

/// Changes what the organization asks of its members besides a password, and what it takes for it, from their next request on.
#[utoipa::path(
    put,
    path = "/api/v1/orgs/{org}/sign-in-policy",
    tag = "organizations",
    request_body = SignInPolicyView,
    responses((status = 200, body = SignInPolicyView)),
    extensions(("x-bulkhead-problems" = json!(["invalid-methods"]))),
)]
pub(crate) async fn replace_sign_in_policy(
    OrgCaller { caller, org }: OrgCaller,
    State(state): State<HttpState>,
    Input(input): Input<SignInPolicyView>,
) -> Result<Json<SignInPolicyView>, Problem> {
    let policy = SignInPolicy::new(input.mfa, input.methods, input.trusts_devices);
    let policy = policy.ok_or_else(|| {
        AppError::invalid("invalid-methods", "/methods", "name one method at least: nobody could prove anything else")
    })?;
    state.app.change_sign_in_policy(&caller, org, policy.clone()).await?;
    Ok(Json(policy.into()))
}
