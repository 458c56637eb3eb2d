//! What people do before and with their sessions: set-up, sign-in, sign-out, their own password and sessions, the organization in front
//! of them.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use bulkhead_app::AppError;
use bulkhead_app::account::SetUp;
use bulkhead_app::auth::OrgRef;
use bulkhead_app::data::{Device, Membership, Session, SignInAttempt, User};
use bulkhead_app::member::Newcomer;
use bulkhead_app::sign_in::{ListedSession, Opened, SignInOutcome};
use bulkhead_model::id::{DeviceId, OrgId, SessionId, UserId};
use bulkhead_model::name::Slug;
use bulkhead_model::time::Timestamp;
use http::StatusCode;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::HttpState;
use crate::extract::{In, Input, NoInput};
use crate::mfa::read_proof;
use crate::org::OrgView;
use crate::problem::Problem;
use crate::session::{MaybePerson, Person, Visitor, device_cookie, no_session_cookie, session_cookies, waiting_cookie};
use crate::view::line;

/// A person.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = User)]
pub(crate) struct UserView {
    #[schema(value_type = String, example = "user_01h455vb4pex5vsknk084sn02q")]
    id: UserId,
    email: String,
    name: String,
    email_verified: bool,
    /// Administers the platform.
    super_admin: bool,
    #[schema(value_type = String, format = DateTime)]
    created_at: Timestamp,
}

impl From<User> for UserView {
    fn from(user: User) -> Self {
        Self {
            id: user.id,
            email: user.email.to_string(),
            name: user.name,
            email_verified: user.email_verified_at.is_some(),
            super_admin: user.is_super_admin,
            created_at: user.created_at,
        }
    }
}

/// A signed-in browser.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Session)]
pub(crate) struct SessionView {
    #[schema(value_type = String, example = "ses_01h455vb4pex5vsknk084sn02q")]
    id: SessionId,
    /// Whether it is the one that asks.
    current: bool,
    /// The organization in front of the person.
    #[schema(value_type = Option<String>)]
    active_org: Option<OrgId>,
    /// What was proven, as RFC 8176 names it: `pwd`, `otp`, …
    methods: Vec<String>,
    /// Where the sign-in came from.
    address: String,
    agent: String,
    /// When the person last proved who they are.
    #[schema(value_type = String, format = DateTime)]
    authenticated_at: Timestamp,
    #[schema(value_type = String, format = DateTime)]
    created_at: Timestamp,
    /// To the minute.
    #[schema(value_type = String, format = DateTime)]
    last_used_at: Timestamp,
    /// When it ends however much it is used.
    #[schema(value_type = String, format = DateTime)]
    expires_at: Timestamp,
    /// Seconds without a request after which it ends.
    idle_s: u64,
}

impl SessionView {
    /// `current` is the session that asks, if one does.
    pub(crate) fn new(session: Session, current: Option<SessionId>) -> Self {
        Self {
            id: session.id,
            current: current == Some(session.id),
            active_org: session.active_org,
            methods: session.amr.split(' ').map(str::to_owned).collect(),
            address: session.address,
            agent: session.agent,
            authenticated_at: session.times.auth_at,
            created_at: session.created_at,
            last_used_at: session.times.seen_at,
            expires_at: session.times.expires_at,
            idle_s: session.times.idle.as_secs(),
        }
    }
}

/// An organization that the person belongs to.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Membership)]
pub(crate) struct MembershipView {
    #[schema(value_type = String, example = "org_01h455vb4pex5vsknk084sn02q")]
    org: OrgId,
    slug: String,
    name: String,
    /// The role that the person joined with; what they may now is in `me/permissions` of the organization.
    role: String,
}

impl From<Membership> for MembershipView {
    fn from(membership: Membership) -> Self {
        Self { org: membership.org, slug: membership.slug.to_string(), name: membership.name, role: membership.role }
    }
}

/// Who is signed in.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Me)]
pub(crate) struct MeView {
    user: UserView,
    session: SessionView,
    organizations: Vec<MembershipView>,
}

/// The organization to begin with.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = FirstOrganization)]
pub(crate) struct FirstOrgInput {
    /// Short name in addresses. One that is there already is joined.
    #[schema(value_type = String, example = "acme")]
    slug: Slug,
    /// Display name; the short name if left out.
    #[serde(default, deserialize_with = "crate::view::line_or_none")]
    name: Option<String>,
}

/// What the first person says.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = SetUp)]
pub(crate) struct SetUpInput {
    /// Of the link that the server printed when it started.
    token: String,
    #[schema(example = "ada@example.com")]
    email: String,
    #[serde(deserialize_with = "line")]
    name: String,
    /// 15 to 128 characters; any are fine.
    password: String,
    organization: FirstOrgInput,
}

/// What set-up made.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = SetUpDone)]
pub(crate) struct SetUpView {
    user: UserView,
    organization: OrgView,
}

/// Makes the first person, once, with the link that the server prints while there is nobody.
#[utoipa::path(
    post,
    path = "/api/v1/setup",
    tag = "accounts",
    request_body = SetUpInput,
    responses((status = 201, body = SetUpView)),
    extensions(("x-bulkhead-problems" = json!([
        "invalid-link", "invalid-email", "invalid-name", "invalid-password", "already-set-up", "busy", "foreign-origin", "unavailable",
        "invalid-query",
    ]))),
)]
pub(crate) async fn set_up(
    _: Visitor,
    State(state): State<HttpState>,
    Input(input): Input<SetUpInput>,
) -> Result<Response, Problem> {
    let new = SetUp {
        token: input.token,
        email: input.email,
        name: input.name,
        password: input.password,
        org: input.organization.slug,
        org_name: input.organization.name,
    };
    let (user, org) = state.app.set_up(new).await?;
    let view = SetUpView { user: user.into(), organization: org.into() };
    Ok((StatusCode::CREATED, Json(view)).into_response())
}

/// Address and password.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = SignIn)]
pub(crate) struct SignInInput {
    #[schema(example = "ada@example.com")]
    email: String,
    password: String,
}

pub(crate) async fn opened_answer(state: &HttpState, opened: Opened) -> Result<Response, Problem> {
    let cookies = session_cookies(&opened);
    let organizations = state.app.list_own_memberships(&opened.signed_in).await?;
    let current = opened.signed_in.session.id;
    let view = MeView {
        user: opened.signed_in.user.into(),
        session: SessionView::new(opened.signed_in.session, Some(current)),
        organizations: organizations.into_iter().map(MembershipView::from).collect(),
    };
    Ok((cookies, Json(view)).into_response())
}

/// A sign-in that waits for a second factor.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = SecondFactorAsked)]
pub(crate) struct SecondFactorAskedView {
    /// What the person can go on with: `code` and `backup_code` at `auth/second-factor`, `passkey` at `auth/second-factor/passkey`,
    /// `email` at `auth/second-factor/email`, which mails a code, and then `auth/second-factor`.
    #[schema(example = json!(["code", "backup_code"]))]
    methods: Vec<&'static str>,
    #[schema(value_type = String, format = DateTime)]
    expires_at: Timestamp,
}

/// Signs in. The session is in the cookie that the answer sets. Where the person has a second factor, the answer is 202 and its cookie is for
/// `auth/second-factor`.
#[utoipa::path(
    post,
    path = "/api/v1/auth/login",
    tag = "accounts",
    request_body = SignInInput,
    responses((status = 200, body = MeView), (status = 202, body = SecondFactorAskedView)),
    extensions(("x-bulkhead-problems" = json!([
        "unauthenticated", "too-many-attempts", "busy", "foreign-origin", "unavailable", "invalid-query",
    ]))),
)]
pub(crate) async fn sign_in(
    Visitor(client): Visitor,
    State(state): State<HttpState>,
    Input(input): Input<SignInInput>,
) -> Result<Response, Problem> {
    match state.app.sign_in(&input.email, &input.password, &client).await? {
        SignInOutcome::Opened(opened) => opened_answer(&state, *opened).await,
        SignInOutcome::SecondFactor(waiting) => {
            let view = SecondFactorAskedView { methods: waiting.factors.methods(), expires_at: waiting.expires_at };
            Ok((StatusCode::ACCEPTED, waiting_cookie(&waiting.token), Json(view)).into_response())
        }
    }
}

/// Ends the session that asks.
#[utoipa::path(post, path = "/api/v1/auth/logout", tag = "accounts", responses((status = 204)))]
pub(crate) async fn sign_out(person: Person, State(state): State<HttpState>, _: NoInput) -> Result<Response, Problem> {
    state.app.sign_out(&person.signed_in).await?;
    Ok((StatusCode::NO_CONTENT, no_session_cookie()).into_response())
}

/// The person's password once more, and a second factor where they have one.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = StepUp)]
pub(crate) struct StepUpInput {
    password: String,
    /// Six digits that the authenticator app shows; a backup code is taken here as well.
    #[serde(default)]
    code: Option<String>,
    /// … or a backup code.
    #[serde(default)]
    backup_code: Option<String>,
}

/// Proves again who it is, for what asks for a fresh proof. The session's cookie changes.
#[utoipa::path(
    post,
    path = "/api/v1/auth/step-up",
    tag = "accounts",
    request_body = StepUpInput,
    responses((status = 200, body = MeView)),
    extensions(("x-bulkhead-problems" = json!([
        "wrong-password", "second-factor-required", "wrong-code", "too-many-attempts", "busy",
    ]))),
)]
pub(crate) async fn step_up(
    person: Person,
    State(state): State<HttpState>,
    Input(input): Input<StepUpInput>,
) -> Result<Response, Problem> {
    let proof = read_proof(input.code, input.backup_code)?;
    let opened = state.app.step_up(&person.signed_in, &input.password, proof.as_ref(), &person.client).await?;
    opened_answer(&state, opened).await
}

/// A link's token, and the password to have.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = ChoosePassword)]
pub(crate) struct ChoosePasswordInput {
    token: String,
    /// 15 to 128 characters; any are fine.
    password: String,
}

/// Chooses a password with the token of a link. Every session of the person ends, and the browser is one that they are known by.
#[utoipa::path(
    post,
    path = "/api/v1/auth/choose-password",
    tag = "accounts",
    request_body = ChoosePasswordInput,
    responses((status = 204)),
    extensions(("x-bulkhead-problems" = json!([
        "invalid-link", "invalid-password", "busy", "foreign-origin", "unavailable", "invalid-query",
    ]))),
)]
pub(crate) async fn choose_password(
    Visitor(client): Visitor,
    State(state): State<HttpState>,
    Input(input): Input<ChoosePasswordInput>,
) -> Result<Response, Problem> {
    let device = state.app.choose_password(&input.token, &input.password, &client).await?;
    Ok((StatusCode::NO_CONTENT, device_cookie(&device)).into_response())
}

/// Shows who is signed in.
#[utoipa::path(get, path = "/api/v1/me", tag = "accounts", responses((status = 200, body = MeView)))]
pub(crate) async fn show_me(person: Person, State(state): State<HttpState>) -> Result<Json<MeView>, Problem> {
    let organizations = state.app.list_own_memberships(&person.signed_in).await?;
    let current = person.signed_in.session.id;
    Ok(Json(MeView {
        user: person.signed_in.user.into(),
        session: SessionView::new(person.signed_in.session, Some(current)),
        organizations: organizations.into_iter().map(MembershipView::from).collect(),
    }))
}

/// The old password and the new one.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = ChangePassword)]
pub(crate) struct ChangePasswordInput {
    password: String,
    /// 15 to 128 characters; any are fine.
    new_password: String,
}

/// Changes the person's password. Every other session ends, and the cookie changes.
#[utoipa::path(
    put,
    path = "/api/v1/me/password",
    tag = "accounts",
    request_body = ChangePasswordInput,
    responses((status = 200, body = MeView)),
    extensions(("x-bulkhead-problems" = json!([
        "step-up-required", "wrong-password", "invalid-password", "too-many-attempts", "busy",
    ]))),
)]
pub(crate) async fn change_password(
    person: Person,
    State(state): State<HttpState>,
    Input(input): Input<ChangePasswordInput>,
) -> Result<Response, Problem> {
    let opened =
        state.app.change_password(&person.signed_in, &input.password, &input.new_password, &person.client).await?;
    opened_answer(&state, opened).await
}

/// A session in a list.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = ListedSession)]
pub(crate) struct ListedSessionView {
    #[serde(flatten)]
    session: SessionView,
    /// Refresh tokens that came from it and can be used: they go on without anybody at the browser, until `expires_at`.
    tokens: u32,
}

/// A person's live sessions.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Sessions)]
pub(crate) struct SessionsView {
    items: Vec<ListedSessionView>,
}

impl SessionsView {
    /// `current` is the session that asks, if it is one of them.
    pub(crate) fn new(sessions: Vec<ListedSession>, current: Option<SessionId>) -> Self {
        let view = |listed: ListedSession| ListedSessionView {
            session: SessionView::new(listed.session, current),
            tokens: listed.tokens,
        };
        Self { items: sessions.into_iter().map(view).collect() }
    }
}

/// Lists the person's sessions, newest first: those that can be used, and those that tokens go on from.
#[utoipa::path(get, path = "/api/v1/me/sessions", tag = "accounts", responses((status = 200, body = SessionsView)))]
pub(crate) async fn list_sessions(
    person: Person,
    State(state): State<HttpState>,
) -> Result<Json<SessionsView>, Problem> {
    let current = Some(person.signed_in.session.id);
    let sessions = state.app.list_own_sessions(&person.signed_in).await?;
    Ok(Json(SessionsView::new(sessions, current)))
}

/// Ends one of the person's sessions.
#[utoipa::path(
    delete,
    path = "/api/v1/me/sessions/{session}",
    tag = "accounts",
    responses((status = 204)),
    extensions(("x-bulkhead-problems" = json!(["not-found"]))),
)]
pub(crate) async fn end_session(
    person: Person,
    In(id): In<SessionId>,
    State(state): State<HttpState>,
) -> Result<StatusCode, Problem> {
    if !state.app.end_session(person.signed_in.user.id, id).await? {
        return Err(AppError::NotFound { what: "session" }.into());
    }
    Ok(StatusCode::NO_CONTENT)
}

/// Ends all of the person's sessions but the one that asks.
#[utoipa::path(delete, path = "/api/v1/me/sessions", tag = "accounts", responses((status = 204)))]
pub(crate) async fn end_other_sessions(person: Person, State(state): State<HttpState>) -> Result<StatusCode, Problem> {
    state.app.end_other_sessions(&person.signed_in).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// A browser that the person signed in with before.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Device)]
pub(crate) struct DeviceView {
    #[schema(value_type = String, example = "dev_01h455vb4pex5vsknk084sn02q")]
    id: DeviceId,
    /// Whether it is the one that asks.
    current: bool,
    agent: String,
    #[schema(value_type = String, format = DateTime)]
    first_seen_at: Timestamp,
    /// The last sign-in.
    #[schema(value_type = String, format = DateTime)]
    last_seen_at: Timestamp,
    /// Until when it stands for a second factor, where an organization takes it for one.
    #[schema(value_type = Option<String>, format = DateTime)]
    trusted_until: Option<Timestamp>,
}

/// The browsers that are known.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Devices)]
pub(crate) struct DevicesView {
    items: Vec<DeviceView>,
}

/// Lists the browsers that the person signed in with before (ten at most), the one that was used last first.
#[utoipa::path(get, path = "/api/v1/me/devices", tag = "accounts", responses((status = 200, body = DevicesView)))]
pub(crate) async fn list_devices(person: Person, State(state): State<HttpState>) -> Result<Json<DevicesView>, Problem> {
    let current = person.signed_in.session.device;
    let view = |device: Device| DeviceView {
        id: device.id,
        current: current == Some(device.id),
        agent: device.agent,
        first_seen_at: device.created_at,
        last_seen_at: device.seen_at,
        trusted_until: device.trusted_until,
    };
    let devices = state.app.list_own_devices(&person.signed_in).await?;
    Ok(Json(DevicesView { items: devices.into_iter().map(view).collect() }))
}

/// Forgets one of the person's browsers. Its sessions end, and the next sign-in with it is told as a new one.
#[utoipa::path(
    delete,
    path = "/api/v1/me/devices/{device}",
    tag = "accounts",
    responses((status = 204)),
    extensions(("x-bulkhead-problems" = json!(["not-found"]))),
)]
pub(crate) async fn forget_device(
    person: Person,
    In(id): In<DeviceId>,
    State(state): State<HttpState>,
) -> Result<StatusCode, Problem> {
    state.app.forget_device(&person.signed_in, id).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// An attempt to sign in as the person.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = SignInAttempt)]
pub(crate) struct SignInAttemptView {
    /// As RFC 8176 names it.
    method: String,
    passed: bool,
    /// Whether it came from a browser in which the person had signed in before.
    known_browser: bool,
    address: String,
    agent: String,
    #[schema(value_type = String, format = DateTime)]
    at: Timestamp,
}

/// The last attempts.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = SignInAttempts)]
pub(crate) struct SignInAttemptsView {
    items: Vec<SignInAttemptView>,
}

/// Lists the last fifty attempts to sign in as the person, newest first.
#[utoipa::path(get, path = "/api/v1/me/sign-ins", tag = "accounts", responses((status = 200, body = SignInAttemptsView)))]
pub(crate) async fn list_sign_ins(
    person: Person,
    State(state): State<HttpState>,
) -> Result<Json<SignInAttemptsView>, Problem> {
    let attempts = state.app.list_own_attempts(&person.signed_in).await?;
    let view = |attempt: SignInAttempt| SignInAttemptView {
        method: attempt.method,
        passed: attempt.passed,
        known_browser: attempt.device.is_some(),
        address: attempt.address,
        agent: attempt.agent,
        at: attempt.created_at,
    };
    Ok(Json(SignInAttemptsView { items: attempts.into_iter().map(view).collect() }))
}

/// An organization, by id or short name.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = SwitchOrganization)]
pub(crate) struct SwitchOrgInput {
    #[schema(example = "acme")]
    organization: String,
}

/// Puts an organization in front of the person. Requests name theirs in the path all the same.
#[utoipa::path(
    put,
    path = "/api/v1/me/active-organization",
    tag = "accounts",
    request_body = SwitchOrgInput,
    responses((status = 200, body = MembershipView)),
    extensions(("x-bulkhead-problems" = json!(["not-found", "address-refused"]))),
)]
pub(crate) async fn switch_org(
    person: Person,
    State(state): State<HttpState>,
    Input(input): Input<SwitchOrgInput>,
) -> Result<Json<MembershipView>, Problem> {
    let org: OrgRef = input.organization.parse()?;
    state.app.require_address_to_enter(&person.signed_in, &org, person.client.address).await?;
    Ok(Json(state.app.switch_org(&person.signed_in, org).await?.into()))
}

/// An address.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = EmailInput)]
pub(crate) struct EmailInput {
    #[schema(example = "ada@example.com")]
    email: String,
}

/// Asks for a letter to choose another password. The answer is the same whether anybody has the address or nobody.
#[utoipa::path(
    post,
    path = "/api/v1/auth/password-reset",
    tag = "accounts",
    request_body = EmailInput,
    responses((status = 202)),
    extensions(("x-bulkhead-problems" = json!([
        "no-mail", "too-many-attempts", "busy", "foreign-origin", "unavailable", "invalid-query",
    ]))),
)]
pub(crate) async fn ask_for_reset(
    Visitor(client): Visitor,
    State(state): State<HttpState>,
    Input(input): Input<EmailInput>,
) -> Result<StatusCode, Problem> {
    state.app.ask_for_reset(&input.email, &client).await?;
    Ok(StatusCode::ACCEPTED)
}

/// Asks for a letter that proves the person's address, or another one to change to, which needs a fresh proof of who it is and is told to the
/// address of now.
#[utoipa::path(
    put,
    path = "/api/v1/me/email",
    tag = "accounts",
    request_body = EmailInput,
    responses((status = 202)),
    extensions(("x-bulkhead-problems" = json!(["no-mail", "invalid-email", "step-up-required", "too-many-attempts"]))),
)]
pub(crate) async fn ask_to_verify(
    person: Person,
    State(state): State<HttpState>,
    Input(input): Input<EmailInput>,
) -> Result<StatusCode, Problem> {
    state.app.ask_to_verify(&person.signed_in, &input.email).await?;
    Ok(StatusCode::ACCEPTED)
}

/// A link's token.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = LinkToken)]
pub(crate) struct LinkTokenInput {
    token: String,
}

/// Proves an address with the token that was sent there. Another address than before becomes the person's, and every session ends.
#[utoipa::path(
    post,
    path = "/api/v1/auth/verify-email",
    tag = "accounts",
    request_body = LinkTokenInput,
    responses((status = 204)),
    extensions(("x-bulkhead-problems" = json!(["invalid-link", "foreign-origin", "unavailable", "invalid-query"]))),
)]
pub(crate) async fn verify_email(
    _: Visitor,
    State(state): State<HttpState>,
    Input(input): Input<LinkTokenInput>,
) -> Result<StatusCode, Problem> {
    state.app.verify_email(&input.token).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Ends everything of an account with the link of a letter that told of something: every session, token and API key, and what was added since. The
/// password is worth nothing from then on, and a letter to choose another one goes out. Nobody is signed in.
#[utoipa::path(
    post,
    path = "/api/v1/auth/revoke-account",
    tag = "accounts",
    request_body = LinkTokenInput,
    responses((status = 204)),
    extensions(("x-bulkhead-problems" = json!(["invalid-link", "foreign-origin", "unavailable", "invalid-query"]))),
)]
pub(crate) async fn revoke_account(
    _: Visitor,
    State(state): State<HttpState>,
    Input(input): Input<LinkTokenInput>,
) -> Result<StatusCode, Problem> {
    state.app.revoke_account(&input.token).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// An invitation's token, and what somebody without an account says.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = Join)]
pub(crate) struct JoinInput {
    token: String,
    #[serde(default, deserialize_with = "crate::view::line_or_none")]
    name: Option<String>,
    /// 15 to 128 characters; any are fine.
    #[serde(default)]
    password: Option<String>,
}

/// Joins an organization by an invitation: as who is signed in, if it is to their address, or with a new account.
#[utoipa::path(
    post,
    path = "/api/v1/auth/join",
    tag = "accounts",
    request_body = JoinInput,
    responses((status = 204)),
    extensions(("x-bulkhead-problems" = json!([
        "invalid-link", "invalid-name", "invalid-password", "sign-in-first", "busy", "unauthenticated", "foreign-origin",
        "unavailable", "invalid-query",
    ]))),
)]
pub(crate) async fn join(
    MaybePerson(person): MaybePerson,
    State(state): State<HttpState>,
    Input(input): Input<JoinInput>,
) -> Result<StatusCode, Problem> {
    let newcomer = input.name.zip(input.password).map(|(name, password)| Newcomer { name, password });
    state.app.join(&input.token, person.as_ref().map(|person| &person.signed_in), newcomer).await?;
    Ok(StatusCode::NO_CONTENT)
}
