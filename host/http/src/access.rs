//! Who may reach a route. A route says once which permission it needs; the same word is in the OpenAPI document and is what
//! [`OrgCaller`] checks before anything of the request's body is read. The use case asks the permission rule again.

use axum::Extension;
use axum::extract::{FromRequestParts, MatchedPath, RawPathParams};
use bulkhead_app::AppError;
use bulkhead_app::auth::OrgRef;
use bulkhead_app::sign_in::SignedIn;
use bulkhead_model::id::{OrgId, UserId};
use bulkhead_model::permission::{Caller, Permission};
use bulkhead_model::rate::RouteClass;
use bulkhead_model::role::assignment::Within;
use bulkhead_model::signature::Verified;
use http::request::Parts;
use http::{HeaderMap, header};
use serde_json::{Value, json};
use utoipa::openapi::RefOr;
use utoipa::openapi::path::{Operation, Parameter, ParameterIn, Paths};
use utoipa_axum::router::UtoipaMethodRouter;

use crate::HttpState;
use crate::limit::{CLASS_KEY, limit_caller, limit_person};
use crate::page::{NoFilter, filter};
use crate::problem::{Kind, Problem};
use crate::session::{client_address, has_session, session_token};
use crate::signed;

/// In the OpenAPI document: the permission that an operation needs, or null.
pub(crate) const PERMISSION_KEY: &str = "x-bulkhead-permission";
/// … and why it needs none.
pub(crate) const PUBLIC_KEY: &str = "x-bulkhead-public";

/// … and that a role which was given for the path's team alone is enough.
pub(crate) const WITHIN_KEY: &str = "x-bulkhead-within";

/// What the matched route declares.
#[derive(Clone, Copy, Debug)]
struct Required {
    permission: Permission,
    /// The path names a team, and the permission is needed on that team's things.
    is_in_team: bool,
    takes_query: bool,
    /// A person has to have proven lately who they are.
    is_fresh: bool,
}

/// … and that a person has to have proven within the last ten minutes who they are.
pub(crate) const STEP_UP_KEY: &str = "x-bulkhead-step-up";

/// What the caller can prove of who they are, for operations that ask only sometimes. After [`OrgCaller`] among a handler's arguments.
#[derive(Clone, Debug)]
pub(crate) enum Proven {
    /// A key is no person: what it may do was decided when it was made. One that signs where it matters proves itself by its signature.
    Key {
        owes_signature: bool,
    },
    /// An access token proves what was proven when it was given, and no more when the person steps up in a browser.
    Token,
    Session(Box<SignedIn>),
}

impl Proven {
    /// Asks for a proof of the last ten minutes.
    ///
    /// # Errors
    /// `step-up-required`; `session-needed` by access token; `signature-required` by a key that signs where it matters.
    pub(crate) fn require_fresh(&self, state: &HttpState) -> Result<(), Problem> {
        match self {
            Self::Key { owes_signature: true } => Err(AppError::SignatureRequired.into()),
            Self::Key { owes_signature: false } => Ok(()),
            Self::Token => {
                let detail = "this asks a person for a fresh proof of who they are, which no access token carries: use a session, or an API key";
                Err(Problem::new(Kind::SessionNeeded, detail))
            }
            Self::Session(signed_in) => Ok(state.app.require_fresh(signed_in)?),
        }
    }
}

impl FromRequestParts<HttpState> for Proven {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &HttpState) -> Result<Self, Problem> {
        parts.extensions.get::<Self>().cloned().ok_or_else(|| Problem::internal(&NoPermissionDeclared))
    }
}

/// In the OpenAPI document: why a route needs a session and no permission.
pub(crate) const PERSONAL_KEY: &str = "x-bulkhead-personal";

/// Routes that need an API key of the path's organization or a member's session, with this permission.
pub(crate) fn guarded(permission: Permission, routes: UtoipaMethodRouter<HttpState>) -> UtoipaMethodRouter<HttpState> {
    require(permission, false, false, routes)
}

/// As [`guarded`] for what gives rights, makes credentials or takes data out: a person's session proves who it is within ten minutes before.
/// An access token proves nothing anew and is refused.
pub(crate) fn guarded_fresh(
    permission: Permission,
    routes: UtoipaMethodRouter<HttpState>,
) -> UtoipaMethodRouter<HttpState> {
    annotate(require(permission, false, true, routes), STEP_UP_KEY, &json!(true))
}

/// As [`guarded`] for what belongs to the path's team: who holds the permission there alone passes as well.
pub(crate) fn guarded_in_team(
    permission: Permission,
    routes: UtoipaMethodRouter<HttpState>,
) -> UtoipaMethodRouter<HttpState> {
    annotate(require(permission, true, false, routes), WITHIN_KEY, &json!("team"))
}

fn require(
    permission: Permission,
    is_in_team: bool,
    is_fresh: bool,
    routes: UtoipaMethodRouter<HttpState>,
) -> UtoipaMethodRouter<HttpState> {
    let routes = counted(RouteClass::of(permission), routes);
    let (schemas, mut paths, router) = annotate(routes, PERMISSION_KEY, &json!(permission.as_str()));
    let takes_query = operations(&mut paths).any(|operation| operation.parameters.iter().flatten().any(is_of_query));
    (schemas, paths, router.route_layer(Extension(Required { permission, is_in_team, takes_query, is_fresh })))
}

/// Routes that are counted with this class, whatever their permission says.
pub(crate) fn counted(class: RouteClass, routes: UtoipaMethodRouter<HttpState>) -> UtoipaMethodRouter<HttpState> {
    annotate(routes, CLASS_KEY, &json!(class.as_str()))
}

/// Routes for anybody who is signed in, about nothing but what is their own, for the reason given. Their handlers take a
/// [`Person`](crate::session::Person).
pub(crate) fn personal(reason: &str, routes: UtoipaMethodRouter<HttpState>) -> UtoipaMethodRouter<HttpState> {
    let routes = counted(RouteClass::Standard, routes);
    annotate(annotate(routes, PERMISSION_KEY, &Value::Null), PERSONAL_KEY, &json!(reason))
}

/// Routes for anybody, for the reason given.
pub(crate) fn public(reason: &str, routes: UtoipaMethodRouter<HttpState>) -> UtoipaMethodRouter<HttpState> {
    let routes = counted(RouteClass::Standard, routes);
    annotate(annotate(routes, PERMISSION_KEY, &Value::Null), PUBLIC_KEY, &json!(reason))
}

fn annotate(routes: UtoipaMethodRouter<HttpState>, key: &str, value: &Value) -> UtoipaMethodRouter<HttpState> {
    let (schemas, mut paths, router) = routes;
    for operation in operations(&mut paths) {
        operation.extensions.get_or_insert_default().insert(key.to_owned(), value.clone());
    }
    (schemas, paths, router)
}

fn operations(paths: &mut Paths) -> impl Iterator<Item = &mut Operation> {
    paths.paths.values_mut().flat_map(|item| {
        [&mut item.get, &mut item.post, &mut item.put, &mut item.patch, &mut item.delete].into_iter().flatten()
    })
}

fn is_of_query(parameter: &RefOr<Parameter>) -> bool {
    matches!(parameter, RefOr::T(parameter) if parameter.parameter_in == ParameterIn::Query)
}

/// An authenticated caller whose organization is the path's and who holds the route's permission. The first argument of every
/// handler under `/orgs/{org}`.
pub(crate) struct OrgCaller {
    pub(crate) caller: Caller,
    pub(crate) org: OrgId,
}

#[derive(Debug, thiserror::Error)]
#[error("a handler asks for its caller on a route that declares no permission")]
struct NoPermissionDeclared;

impl FromRequestParts<HttpState> for OrgCaller {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &HttpState) -> Result<Self, Problem> {
        let Required { permission, is_in_team, takes_query, is_fresh } =
            *parts.extensions.get::<Required>().ok_or_else(|| Problem::internal(&NoPermissionDeclared))?;
        let ((caller, proven), signature) = if parts.headers.contains_key(header::AUTHORIZATION) {
            by_key(parts, state, is_fresh).await?
        } else {
            (by_session(parts, state).await?, None)
        };
        // Before anything is taken: who has a key and comes from where it is no good uses up nothing of its owner's.
        state.app.require_address(&caller, client_address(parts)).await?;
        limit_caller(parts, state, &caller).await?;
        // Written last: nobody fills the table faster than the key may ask.
        if let Some(signature) = signature {
            state.app.take_nonce(&caller, signature).await?;
        }
        state.app.count_key_use(&caller);
        let org = caller.org();
        let within = if is_in_team { path_team(parts, state).await? } else { Within::Organization };
        if !caller.permissions_within(within).contains(permission) {
            let route = parts.extensions.get::<MatchedPath>().map_or("", MatchedPath::as_str);
            let operation = format!("{} {route}", parts.method);
            state.app.record_refusal(&caller, permission, within, &operation).await;
            return Err(AppError::Forbidden(permission).into());
        }
        if is_fresh {
            proven.require_fresh(state)?;
        }
        parts.extensions.insert(proven);
        if !takes_query {
            filter::<NoFilter>(parts.uri.query().unwrap_or_default())?;
        }
        parts.extensions.insert(Bound(org));
        Ok(Self { caller, org })
    }
}

/// Who calls, and what stands behind it.
type Called = (Caller, Proven);

/// The caller that an API key stands for, and the signature that holds, but may have come before. `is_sensitive`: a person would have to
/// prove anew who they are.
async fn by_key(
    parts: &mut Parts,
    state: &HttpState,
    is_sensitive: bool,
) -> Result<(Called, Option<Verified>), Problem> {
    // A session beside it would leave open whose request it is.
    if has_session(&parts.headers) {
        return Err(AppError::Unauthenticated.into());
    }
    let presented = bearer(&parts.headers).ok_or(AppError::Unauthenticated)?.to_owned();
    // A key holds no dot, an access token two.
    if presented.contains('.') {
        return Ok((by_token(parts, state, &presented).await?, None));
    }
    let identity = state.app.authenticate(&presented).await?;
    record(&identity.caller);
    state.app.require_network(&identity, client_address(parts))?;
    let signature = signed::check(parts, state, &identity, is_sensitive)?;
    let proven = Proven::Key { owes_signature: identity.signing.is_some() && signature.is_none() };
    let named = path_param(parts, state, "org").await?.parse::<OrgRef>();
    match named.and_then(|named| identity.resolve(&named)) {
        Ok(_) => Ok(((identity.caller, proven), signature)),
        Err(error) => {
            limit_caller(parts, state, &identity.caller).await?;
            Err(error.into())
        }
    }
}

/// The caller that an access token stands for.
async fn by_token(parts: &mut Parts, state: &HttpState, presented: &str) -> Result<Called, Problem> {
    // A name that is none is looked at after who asks, as with a session.
    let named = path_param(parts, state, "org").await?.parse::<OrgRef>().ok();
    let (user, caller) = state.app.authenticate_token(presented, named).await?;
    let caller = counted_caller(parts, state, user, caller).await?;
    Ok((caller, Proven::Token))
}

/// The caller that a member's session stands for.
async fn by_session(parts: &mut Parts, state: &HttpState) -> Result<Called, Problem> {
    let token = session_token(parts, state)?;
    let named = path_param(parts, state, "org").await?.parse::<OrgRef>();
    // Who asks is looked at before what they ask for, whatever that looks like.
    let (person, caller) = state.app.resume(&token, named.ok()).await?;
    let caller = caller.unwrap_or(Err(AppError::NotFound { what: "organization" }));
    let caller = counted_caller(parts, state, person.user.id, caller).await?;
    Ok((caller, Proven::Session(Box::new(person))))
}

/// The caller that somebody turned out to be. Who may do nothing there has asked all the same.
async fn counted_caller(
    parts: &Parts,
    state: &HttpState,
    user: UserId,
    caller: Result<Caller, AppError>,
) -> Result<Caller, Problem> {
    match caller {
        Ok(caller) => {
            record(&caller);
            Ok(caller)
        }
        // The session ended with this: nobody was found.
        Err(AppError::Unauthenticated) => Err(AppError::Unauthenticated.into()),
        Err(error) => {
            limit_person(parts, state, user).await?;
            Err(error.into())
        }
    }
}

fn record(caller: &Caller) {
    let span = tracing::Span::current();
    span.record("org_id", tracing::field::display(caller.org()));
    span.record("user_id", tracing::field::display(caller.actor()));
}

/// The team that the path names. Text that names none is answered when the caller's right is known.
async fn path_team(parts: &mut Parts, state: &HttpState) -> Result<Within, Problem> {
    let text = path_param(parts, state, "team").await?;
    Ok(text.parse().map_or(Within::Organization, Within::Team))
}

/// The organization that the request turned out to be about: what cursors are bound to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bound(pub(crate) OrgId);

/// The token of the one `Authorization: Bearer …` header.
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let (value, None) = (values.next()?, values.next()) else { return None };
    let (scheme, token) = value.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// One parameter of the path, decoded; text that is no UTF-8 names nothing.
pub(crate) async fn path_param(parts: &mut Parts, state: &HttpState, name: &str) -> Result<String, Problem> {
    let nothing = || Problem::from(AppError::NotFound { what: "resource" });
    let params = RawPathParams::from_request_parts(parts, state).await.map_err(|_| nothing())?;
    params.iter().find(|(key, _)| *key == name).map(|(_, value)| value.to_owned()).ok_or_else(nothing)
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    #[test]
    fn one_bearer_header_counts_and_nothing_else() {
        let with = |values: &[&'static str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(header::AUTHORIZATION, HeaderValue::from_static(value));
            }
            bearer(&headers).map(str::to_owned)
        };
        assert_eq!(with(&["Bearer abc"]).as_deref(), Some("abc"));
        assert_eq!(with(&["bearer abc"]).as_deref(), Some("abc"));
        for bad in [&[][..], &["abc"], &["Basic abc"], &["Bearer a", "Bearer b"]] {
            assert_eq!(with(bad), None, "{bad:?}");
        }
    }
}
