//! The HTTP layer: routes, JSON shapes, problem documents, the OpenAPI document.
//!
//! **Forbidden here:** sqlx and wasmtime; and business rules: a handler turns a request into a model value, makes one call to
//! the application, and turns the result into a view.
//!
//! **Invariants:**
//! - Every route says who may reach it ([`access`]): one permission, or a reason why it needs none. The same word is in the
//!   OpenAPI document and is what the route checks.
//! - Failures leave through [`problem`], the only file that knows their status codes.
//! - Input is refused rather than guessed: unknown fields, unknown parameters, repeated keys.
//!
//! | question | file |
//! | --- | --- |
//! | what does every request pass? | [`edge`] |
//! | who may? | [`access`] |
//! | how often? | [`limit`] |
//! | how is a request read? | [`extract`], [`json`], [`page`] |
//! | what does a noun look like in JSON? | the file of its name |

mod access;
mod account;
mod allow_list;
mod api_key;
mod assignment;
mod audit;
mod authzen;
mod block;
mod breaker;
mod call;
mod dead_letter;
mod edge;
mod event;
mod extract;
mod grants;
mod health;
mod home;
mod hook;
mod installation;
mod job;
mod json;
mod key;
mod limit;
mod member;
mod mfa;
mod openapi;
mod org;
mod page;
mod passkey;
mod plugin;
mod policy;
mod problem;
mod queue;
mod quota;
mod retention;
mod role;
mod role_request;
mod run;
mod schedule;
mod schema;
mod secret;
mod session;
mod signed;
mod team;
mod token;
mod view;
mod workflow;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::middleware;
use bulkhead_app::App;
use bulkhead_model::client_address::TrustedProxies;
use bulkhead_model::permission::Permission;
use bulkhead_model::rate::RouteClass;
use tower_http::catch_panic::CatchPanicLayer;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::access::{counted, guarded, guarded_fresh, guarded_in_team, personal, public};

pub use openapi::document as openapi;
pub use session::ClientAddress;

/// An answer that needs no plugin comes within this time.
const TIME_QUICK: Duration = Duration::from_secs(30);
/// A package has to arrive and be compiled (60 s at most); a call may have to wait for its turn, for a compilation, and then
/// run for as long as the ceiling of its wall time (60 s).
const TIME_SLOW: Duration = Duration::from_mins(3);

/// What the HTTP layer is told by whoever starts it.
pub struct HttpConfig {
    /// Seals cursors; derived from the root key, the same on every node.
    pub cursor_key: [u8; 32],
    /// The metrics in Prometheus text form.
    pub metrics: Arc<dyn Fn() -> String + Send + Sync>,
    /// How clients reach this server, without a trailing slash: `https://bulkhead.example.com`. Shown in webhook addresses;
    /// with `https` answers also ask browsers to stay with it.
    pub public_url: String,
    /// Whose word is taken for where a request comes from. With none and an `https` address, nobody is counted by address.
    pub trusted_proxies: TrustedProxies,
    /// Shown by the health check and the start page.
    pub version: &'static str,
}

/// What handlers share.
#[derive(Clone)]
pub(crate) struct HttpState {
    pub(crate) app: App,
    pub(crate) config: Arc<HttpConfig>,
    pub(crate) readiness: Arc<health::Readiness>,
    pub(crate) uploads: Arc<plugin::UploadPlaces>,
    pub(crate) classes: Arc<limit::Classes>,
}

/// Everything that the server answers.
pub fn router(app: App, config: HttpConfig) -> Router {
    let (router, document) = routes().split_for_parts();
    let state = HttpState {
        app,
        config: Arc::new(config),
        readiness: Arc::default(),
        uploads: Arc::default(),
        classes: Arc::new(limit::Classes::of(&document)),
    };
    router
        .fallback(edge::no_route)
        .method_not_allowed_fallback(edge::no_method)
        .layer(middleware::from_fn(signed::compare))
        .layer(middleware::from_fn_with_state(state.clone(), limit::limit))
        .layer(CatchPanicLayer::custom(edge::panicked))
        .layer(middleware::from_fn_with_state(state.clone(), edge::edge))
        .with_state(state)
}

/// Every route, with its description.
fn routes() -> OpenApiRouter<HttpState> {
    let within = |limit: Duration| middleware::from_fn_with_state(limit, edge::deadline);
    let quick = platform_routes()
        .merge(person_routes())
        .merge(member_routes())
        .merge(account_routes())
        .merge(access_routes())
        .merge(plugin_routes())
        .merge(workflow_routes());
    quick.route_layer(within(TIME_QUICK)).merge(slow_routes().route_layer(within(TIME_SLOW)))
}

fn platform_routes() -> OpenApiRouter<HttpState> {
    OpenApiRouter::with_openapi(openapi::base())
        .routes(counted(RouteClass::Relaxed, public("the start page", routes!(home::show_start_page))))
        .routes(counted(RouteClass::Probe, public("probes have no key", routes!(health::check_health))))
        .routes(counted(RouteClass::Probe, public("probes have no key", routes!(health::check_liveness))))
        .routes(counted(RouteClass::Probe, public("probes have no key", routes!(health::check_readiness))))
        .routes(counted(RouteClass::Relaxed, public("the numbers name no tenant", routes!(health::show_metrics))))
        .routes(counted(RouteClass::Relaxed, public("the description is no secret", routes!(openapi::show_openapi))))
        .routes(counted(RouteClass::Relaxed, public("the shapes are no secret", routes!(schema::show_workflow_schema))))
        .routes(counted(RouteClass::Relaxed, public("the shapes are no secret", routes!(schema::show_manifest_schema))))
        .routes(counted(RouteClass::Relaxed, public("the names are no secret", routes!(policy::list_permissions))))
        .routes(counted(
            RouteClass::Starts,
            public("the address itself is the credential", routes!(hook::receive_delivery)),
        ))
}

fn person_routes() -> OpenApiRouter<HttpState> {
    let own = "it is about the person's own account";
    OpenApiRouter::default()
        .routes(counted(RouteClass::Relaxed, public("the page holds nothing", routes!(home::show_link_page))))
        .routes(counted(RouteClass::Relaxed, public("the page holds nothing", routes!(home::show_link_script))))
        .routes(counted(RouteClass::SignIn, public("the link is the credential", routes!(account::set_up))))
        .routes(counted(
            RouteClass::SignIn,
            public("address and password are the credentials", routes!(account::sign_in)),
        ))
        .routes(counted(
            RouteClass::SignIn,
            public("the cookie of the first step is the credential", routes!(mfa::sign_in_second)),
        ))
        .routes(counted(RouteClass::SignIn, public("the link is the credential", routes!(account::choose_password))))
        .routes(counted(
            RouteClass::SignIn,
            public("nobody learns whether anybody has the address", routes!(account::ask_for_reset)),
        ))
        .routes(counted(RouteClass::SignIn, public("the link is the credential", routes!(account::verify_email))))
        .routes(counted(RouteClass::SignIn, public("the link is the credential", routes!(account::revoke_account))))
        .routes(counted(RouteClass::SignIn, public("the link is the credential", routes!(account::join))))
        .routes(personal(own, routes!(account::sign_out)))
        .routes(counted(RouteClass::Strict, personal(own, routes!(account::step_up))))
        .routes(personal(own, routes!(account::show_me)))
        .routes(counted(RouteClass::Strict, personal(own, routes!(account::change_password))))
        .routes(personal(own, routes!(account::list_sessions)))
        .routes(personal(own, routes!(account::end_session)))
        .routes(personal(own, routes!(account::end_other_sessions)))
        .routes(personal(own, routes!(account::list_devices)))
        .routes(personal(own, routes!(account::forget_device)))
        .routes(personal(own, routes!(account::switch_org)))
        .routes(personal(own, routes!(account::list_sign_ins)))
        .routes(counted(RouteClass::Strict, personal(own, routes!(account::ask_to_verify))))
        .routes(personal(own, routes!(mfa::show_mfa)))
        .routes(counted(RouteClass::Strict, personal(own, routes!(mfa::disable_mfa))))
        .routes(counted(RouteClass::Strict, personal(own, routes!(mfa::begin_totp))))
        .routes(counted(RouteClass::Strict, personal(own, routes!(mfa::verify_totp))))
        .routes(counted(RouteClass::Strict, personal(own, routes!(mfa::activate_totp))))
        .routes(counted(RouteClass::Strict, personal(own, routes!(mfa::renew_backup_codes))))
        .routes(counted(
            RouteClass::SignIn,
            public("the cookie of the first step is the credential", routes!(mfa::mail_sign_in_code)),
        ))
        .routes(counted(RouteClass::SignIn, public("nobody is named", routes!(passkey::begin_passkey_sign_in))))
        .routes(counted(
            RouteClass::SignIn,
            public("the passkey is the credential", routes!(passkey::sign_in_by_passkey)),
        ))
        .routes(counted(
            RouteClass::SignIn,
            public("the cookie of the first step is the credential", routes!(passkey::begin_passkey_second)),
        ))
        .routes(counted(
            RouteClass::SignIn,
            public("the cookie of the first step is the credential", routes!(passkey::sign_in_second_by_passkey)),
        ))
        .routes(counted(RouteClass::Strict, personal(own, routes!(passkey::begin_passkey_step_up))))
        .routes(counted(RouteClass::Strict, personal(own, routes!(passkey::step_up_by_passkey))))
        .routes(personal(own, routes!(passkey::list_passkeys)))
        .routes(counted(RouteClass::Strict, personal(own, routes!(passkey::begin_passkey))))
        .routes(counted(RouteClass::Strict, personal(own, routes!(passkey::add_passkey))))
        .routes(counted(RouteClass::Strict, personal(own, routes!(passkey::remove_passkey))))
        .routes(counted(RouteClass::Strict, personal(own, routes!(token::issue_tokens))))
        .routes(public("the refresh token is the credential", routes!(token::refresh_tokens)))
        .routes(public("the refresh token is the credential", routes!(token::revoke_tokens)))
        .routes(counted(RouteClass::Relaxed, public("a public key is no secret", routes!(token::show_jwks))))
        .routes(counted(
            RouteClass::Strict,
            public("the leaked key is the credential", routes!(api_key::report_leaked_key)),
        ))
}

fn member_routes() -> OpenApiRouter<HttpState> {
    OpenApiRouter::default()
        .routes(guarded(Permission::UsersRead, routes!(member::list_members)))
        .routes(guarded(Permission::UsersRead, routes!(member::show_member)))
        .routes(guarded_fresh(Permission::UsersDisable, routes!(member::set_member_state)))
        .routes(guarded_fresh(Permission::UsersRemove, routes!(member::remove_member)))
        .routes(guarded(Permission::SessionsRead, routes!(member::list_member_sessions)))
        .routes(guarded(Permission::SessionsRevoke, routes!(member::end_member_sessions)))
        .routes(guarded(Permission::SessionsRevoke, routes!(member::end_member_session)))
        .routes(guarded_fresh(Permission::UsersInvite, routes!(member::invite)))
        .routes(guarded(Permission::UsersRead, routes!(member::list_invitations)))
        .routes(guarded(Permission::UsersInvite, routes!(member::revoke_invitation)))
}

fn account_routes() -> OpenApiRouter<HttpState> {
    OpenApiRouter::default()
        .routes(guarded(Permission::OrgRead, routes!(org::show_org)))
        .routes(guarded(Permission::SecurityRead, routes!(mfa::show_sign_in_policy)))
        .routes(guarded_fresh(Permission::SecurityWrite, routes!(mfa::replace_sign_in_policy)))
        .routes(guarded(Permission::SecurityRead, routes!(block::list_blocks)))
        .routes(guarded_fresh(Permission::SecurityWrite, routes!(block::lift_block)))
        .routes(guarded(Permission::SecurityRead, routes!(allow_list::show_ip_allow_list)))
        .routes(guarded_fresh(Permission::SecurityWrite, routes!(allow_list::replace_ip_allow_list)))
        .routes(guarded_fresh(Permission::ApiKeysWrite, routes!(api_key::create_api_key)))
        .routes(guarded(Permission::ApiKeysRead, routes!(api_key::list_api_keys)))
        .routes(guarded(Permission::ApiKeysRead, routes!(api_key::show_api_key_usage)))
        .routes(guarded_fresh(Permission::ApiKeysWrite, routes!(api_key::rotate_api_key)))
        .routes(guarded(Permission::ApiKeysWrite, routes!(api_key::revoke_api_key)))
        .routes(guarded(Permission::AuditRead, routes!(audit::list_audit)))
        .routes(guarded_fresh(Permission::AuditExport, routes!(audit::export_audit)))
        .routes(guarded(Permission::AuditRead, routes!(audit::show_audit_checkpoint)))
        .routes(guarded_fresh(Permission::AuditExport, routes!(audit::prove_audit_entry)))
        .routes(guarded_fresh(Permission::AuditExport, routes!(audit::select_audit)))
        .routes(guarded_fresh(Permission::AuditExport, routes!(audit::sheet_audit)))
        .routes(guarded(Permission::AuditRead, routes!(audit::show_audit_consistency)))
        .routes(guarded(Permission::AuditRead, routes!(audit::list_audit_keys)))
        .routes(guarded_fresh(Permission::EncryptionRotate, routes!(audit::rotate_audit_key)))
        .routes(guarded(Permission::AuditRead, routes!(audit::show_audit_retention)))
        .routes(guarded_fresh(Permission::RetentionWrite, routes!(audit::replace_audit_retention)))
        .routes(guarded_fresh(Permission::ComplianceErase, routes!(audit::erase_audit)))
        .routes(guarded(Permission::EventsRead, routes!(event::list_events)))
        .routes(guarded(Permission::JobsRead, routes!(job::list_jobs)))
        .routes(guarded(Permission::OrgRead, routes!(quota::list_quotas)))
        .routes(guarded(Permission::OrgRead, routes!(retention::show_retention)))
        .routes(guarded(Permission::RetentionWrite, routes!(retention::replace_retention)))
        .routes(guarded(Permission::OrgRead, routes!(retention::preview_retention)))
        .routes(guarded(Permission::JobsRead, routes!(queue::show_queue)))
        .routes(guarded(Permission::EncryptionRead, routes!(key::show_keys)))
        .routes(guarded_fresh(Permission::EncryptionRotate, routes!(key::rotate_key)))
        .routes(guarded(Permission::EncryptionRead, routes!(key::list_key_rotations)))
        .routes(guarded(Permission::EncryptionRead, routes!(key::show_key_rotation)))
}

fn access_routes() -> OpenApiRouter<HttpState> {
    OpenApiRouter::default()
        .routes(guarded(Permission::OrgRead, routes!(policy::show_own_permissions)))
        .routes(guarded(Permission::AccessCheck, routes!(policy::check_access)))
        .routes(guarded(Permission::AccessCheck, routes!(policy::explain_access)))
        .routes(guarded(Permission::AccessCheck, routes!(authzen::evaluate_access)))
        .routes(guarded(Permission::AccessCheck, routes!(authzen::evaluate_accesses)))
        .routes(guarded(Permission::RolesRead, routes!(role::list_roles)))
        .routes(guarded_fresh(Permission::RolesWrite, routes!(role::create_role)))
        .routes(guarded(Permission::RolesRead, routes!(role::show_role)))
        .routes(guarded_fresh(Permission::RolesWrite, routes!(role::replace_role)))
        .routes(guarded(Permission::RolesWrite, routes!(role::delete_role)))
        .routes(guarded(Permission::RolesRead, routes!(assignment::list_assignments)))
        .routes(guarded_fresh(Permission::RolesAssign, routes!(assignment::assign_role)))
        .routes(guarded_fresh(Permission::RolesAssign, routes!(assignment::unassign_role)))
        .routes(guarded(Permission::RolesRequest, routes!(role_request::request_role)))
        .routes(guarded(Permission::RolesRead, routes!(role_request::list_role_requests)))
        .routes(guarded(Permission::RolesRead, routes!(role_request::show_role_request)))
        .routes(guarded_fresh(Permission::RolesApprove, routes!(role_request::approve_role_request)))
        .routes(guarded(Permission::RolesApprove, routes!(role_request::refuse_role_request)))
        .routes(guarded(Permission::RolesRequest, routes!(role_request::withdraw_role_request)))
        .routes(guarded(Permission::TeamsWrite, routes!(team::create_team)))
        .routes(guarded(Permission::TeamsRead, routes!(team::list_teams)))
        .routes(guarded_in_team(Permission::TeamsRead, routes!(team::show_team)))
        .routes(guarded_in_team(Permission::TeamsWrite, routes!(team::rename_team)))
        .routes(guarded(Permission::TeamsWrite, routes!(team::delete_team)))
        .routes(guarded_in_team(Permission::TeamsRead, routes!(team::list_team_members)))
        .routes(guarded_in_team(Permission::TeamsWrite, routes!(team::add_team_member)))
        .routes(guarded_in_team(Permission::TeamsWrite, routes!(team::remove_team_member)))
}

fn plugin_routes() -> OpenApiRouter<HttpState> {
    OpenApiRouter::default()
        .routes(guarded(Permission::PluginsRead, routes!(plugin::list_plugins)))
        .routes(guarded(Permission::PluginsRead, routes!(plugin::show_plugin)))
        .routes(guarded(Permission::PluginsUpload, routes!(plugin::delete_plugin)))
        .routes(guarded(Permission::PluginsInstall, routes!(installation::install)))
        .routes(guarded(Permission::PluginsRead, routes!(installation::list_installations)))
        .routes(guarded(Permission::PluginsRead, routes!(installation::show_installation)))
        .routes(guarded(Permission::PluginsInstall, routes!(installation::update_installation)))
        .routes(guarded(Permission::PluginsInstall, routes!(installation::uninstall)))
        .routes(guarded(Permission::PluginsRead, routes!(grants::show_grants)))
        .routes(guarded_fresh(Permission::PluginsGrant, routes!(grants::replace_grants)))
        .routes(guarded(Permission::PluginsRead, routes!(secret::list_secrets)))
        .routes(guarded_fresh(Permission::SecretsWrite, routes!(secret::put_secret)))
        .routes(guarded(Permission::SecretsWrite, routes!(secret::delete_secret)))
        .routes(guarded(Permission::CallsRead, routes!(call::list_calls)))
        .routes(guarded(Permission::CallsRead, routes!(call::show_call)))
}

/// Operations that compile or run a plugin before they answer.
fn slow_routes() -> OpenApiRouter<HttpState> {
    OpenApiRouter::default()
        .routes(guarded(Permission::PluginsUpload, routes!(plugin::upload_plugin)))
        .routes(guarded(Permission::PluginsCall, routes!(call::make_call)))
}

fn workflow_routes() -> OpenApiRouter<HttpState> {
    OpenApiRouter::default()
        .routes(guarded(Permission::WorkflowsWrite, routes!(workflow::create_workflow)))
        .routes(guarded(Permission::WorkflowsRead, routes!(workflow::list_workflows)))
        .routes(guarded(Permission::WorkflowsRead, routes!(workflow::validate_workflow)))
        .routes(guarded(Permission::WorkflowsRead, routes!(workflow::show_workflow)))
        .routes(guarded(Permission::WorkflowsWrite, routes!(workflow::update_workflow)))
        .routes(guarded(Permission::WorkflowsRead, routes!(schedule::list_schedules)))
        .routes(guarded(Permission::WorkflowsRead, routes!(workflow::list_workflow_versions)))
        .routes(guarded(Permission::WorkflowsRead, routes!(workflow::show_workflow_version)))
        .routes(guarded(Permission::WorkflowsActivate, routes!(workflow::activate_workflow)))
        .routes(guarded(Permission::WorkflowsActivate, routes!(workflow::deactivate_workflow)))
        .routes(guarded_fresh(Permission::WorkflowsActivate, routes!(workflow::rotate_hook)))
        .routes(guarded(Permission::WorkflowsActivate, routes!(breaker::close_breaker)))
        .routes(guarded(Permission::RunsStart, routes!(run::start_run)))
        .routes(guarded(Permission::RunsRead, routes!(run::list_runs)))
        .routes(guarded(Permission::RunsRead, routes!(run::show_run)))
        .routes(guarded(Permission::RunsRead, routes!(run::show_run_step)))
        .routes(guarded(Permission::RunsRead, routes!(run::list_run_events)))
        .routes(guarded(Permission::RunsRead, routes!(queue::explain_run)))
        .routes(guarded(Permission::RunsControl, routes!(run::cancel_run)))
        .routes(guarded(Permission::RunsControl, routes!(run::retry_run)))
        .routes(guarded(Permission::RunsRead, routes!(dead_letter::list_faults)))
        .routes(guarded(Permission::RunsRead, routes!(dead_letter::list_dead_letters)))
        .routes(guarded(Permission::RunsRead, routes!(dead_letter::show_dead_letter)))
        .routes(guarded(Permission::RunsControl, routes!(dead_letter::resume_dead_letter)))
        .routes(guarded(Permission::RunsControl, routes!(dead_letter::discard_dead_letter)))
        .routes(guarded(Permission::RunsControl, routes!(dead_letter::start_dead_letter_task)))
        .routes(guarded(Permission::RunsRead, routes!(dead_letter::list_dead_letter_tasks)))
        .routes(guarded(Permission::RunsRead, routes!(dead_letter::show_dead_letter_task)))
        .routes(guarded(Permission::RunsControl, routes!(dead_letter::stop_dead_letter_task)))
}
