//! Roles in use: who may give them, when they hold, who asks and who lets, and why somebody may or may not.

use std::sync::Arc;
use std::time::Duration;

use bulkhead_app::access::{AccessSubject, QUESTIONS_MAX, Question, Verdict};
use bulkhead_app::account::NewUser;
use bulkhead_app::api_key::NewApiKey;
use bulkhead_app::assignment::NewAssignment;
use bulkhead_app::role::{NewRole, RoleDetail};
use bulkhead_app::role_request::NewRoleRequest;
use bulkhead_app::{App, AppError};
use bulkhead_model::id::{AssignmentId, OrgId, TeamId, UserId};
use bulkhead_model::permission::{Caller, Permission, PermissionSet, SystemReason, SystemScope};
use bulkhead_model::role::activation::Answer;
use bulkhead_model::role::assignment::{ASSIGNMENTS_MAX, Window, Within};
use bulkhead_model::role::{BuiltIn, Gives, RoleRef};
use bulkhead_model::time::Timestamp;
use bulkhead_store::StoreError;
use bulkhead_store::page::PageRequest;
use bulkhead_store::role::assignment::StoredAssignment;
use serde_json::json;
use tokio::sync::Notify;

use crate::support::{Options, Tenant, TestApp, conflict, problems};

const ADMIN: RoleRef = RoleRef::BuiltIn(BuiltIn::Admin);
const VIEWER: RoleRef = RoleRef::BuiltIn(BuiltIn::Viewer);
const HOUR: Duration = Duration::from_hours(1);

fn gift(user: UserId, role: RoleRef) -> NewAssignment {
    NewAssignment { user, role, team: None, window: Window::ALWAYS, reason: String::new() }
}

fn until(user: UserId, role: RoleRef, end: Timestamp) -> NewAssignment {
    NewAssignment { window: Window { from: None, until: Some(end) }, ..gift(user, role) }
}

fn new_role(name: &str, permissions: &[Permission], inherits: &[RoleRef]) -> NewRole {
    let gives = Gives { permissions: permissions.iter().copied().collect(), inherits: inherits.to_vec() };
    NewRole { name: name.to_owned(), description: String::new(), gives }
}

/// A new member who may nothing yet.
async fn person(app: &TestApp, tenant: &Tenant) -> UserId {
    let email = format!("{}@example.com", UserId::new(&app.ambient));
    let member_of = Some((tenant.org, BuiltIn::ApiUser.as_str().to_owned()));
    let new = NewUser { email, name: "Somebody".to_owned(), is_super_admin: false, member_of };
    app.app.create_user_as_operator(new).await.unwrap().0
}

/// A new member with this role, by the operator.
async fn member(app: &TestApp, tenant: &Tenant, role: RoleRef) -> UserId {
    let user = person(app, tenant).await;
    app.app.assign_role_as_operator(tenant.org, gift(user, role)).await.unwrap();
    user
}

/// The assignment of this role, beside the one that he joined with.
async fn given_to(app: &TestApp, tenant: &Tenant, user: UserId, role: RoleRef) -> AssignmentId {
    let page = app.app.list_assignments(&tenant.caller, tenant.org, Some(user), PageRequest::default()).await.unwrap();
    page.items.into_iter().find(|stored| stored.given.role == role).unwrap().given.id
}

async fn caller(app: &App, org: OrgId, user: UserId) -> Caller {
    app.member_caller(org, user).await.unwrap()
}

async fn role(app: &TestApp, tenant: &Tenant, name: &str, permissions: &[Permission]) -> RoleRef {
    let made = app.app.create_role(&tenant.caller, tenant.org, new_role(name, permissions, &[])).await.unwrap();
    RoleRef::Own(made.role.id)
}

fn slug<T: std::fmt::Debug>(result: Result<T, AppError>) -> (&'static str, String) {
    match result {
        Err(AppError::Invalid { code, problems, .. }) => (code, problems[0].path.clone()),
        other => panic!("expected an invalid input, got {other:?}"),
    }
}

async fn team(app: &TestApp, tenant: &Tenant, name: &str) -> TeamId {
    app.app.create_team(&tenant.caller, tenant.org, name).await.unwrap().id
}

on_both! {
    async fn nobody_gives_or_takes_what_he_does_not_hold(app: TestApp) {
        let acme = app.tenant("acme").await;
        let assigner = role(&app, &acme, "Assigner", &[Permission::RolesAssign, Permission::RolesRead, Permission::LeadsRead]).await;
        let leads = role(&app, &acme, "Leads", &[Permission::LeadsRead]).await;
        let admin = member(&app, &acme, ADMIN).await;
        let lead = member(&app, &acme, assigner).await;
        let (admin_caller, lead_caller) = (caller(&app.app, acme.org, admin).await, caller(&app.app, acme.org, lead).await);
        let friend = person(&app, &acme).await;
        for role in [ADMIN, VIEWER] {
            let refused = app.app.assign_role(&lead_caller, acme.org, gift(friend, role)).await;
            assert_eq!(slug(refused), ("exceeds-own-rights", "/role".to_owned()));
        }
        let given = app.app.assign_role(&lead_caller, acme.org, gift(friend, leads)).await.unwrap();
        assert_eq!(caller(&app.app, acme.org, friend).await.permissions(), PermissionSet::one(Permission::LeadsRead));
        // Nor takes: an admin's role is out of a lead's reach.
        let of_admin = given_to(&app, &acme, admin, ADMIN).await;
        let refused = app.app.unassign_role(&lead_caller, acme.org, of_admin).await;
        assert_eq!(slug(refused).0, "exceeds-own-rights");
        // Nobody gives himself anything, or takes it from himself.
        assert_eq!(conflict(app.app.assign_role(&lead_caller, acme.org, gift(lead, leads)).await), "own-role");
        assert_eq!(conflict(app.app.assign_role(&admin_caller, acme.org, gift(admin, VIEWER)).await), "own-role");
        assert_eq!(conflict(app.app.unassign_role(&admin_caller, acme.org, of_admin).await), "own-role");
        // The super admin's is nobody's to give.
        let platform = gift(friend, RoleRef::BuiltIn(BuiltIn::SuperAdmin));
        assert_eq!(slug(app.app.assign_role(&admin_caller, acme.org, platform.clone()).await).0, "unknown-role");
        assert_eq!(slug(app.app.assign_role_as_operator(acme.org, platform).await).0, "unknown-role");
        app.app.unassign_role(&admin_caller, acme.org, given.given.id).await.unwrap();
        assert_eq!(caller(&app.app, acme.org, friend).await.permissions(), PermissionSet::EMPTY);
        let told = app.audit(&acme, "role.unassigned").await;
        assert_eq!((told.len(), &*told[0].actor), (1, &*admin.to_string()));
        assert_eq!(told[0].detail["before"]["user"], json!(friend));
    }

    async fn a_right_for_an_hour_does_not_become_one_for_ever(app: TestApp) {
        let acme = app.tenant("acme").await;
        let (now, friend) = (app.ambient.now(), person(&app, &acme).await);
        let passing = person(&app, &acme).await;
        app.app.assign_role_as_operator(acme.org, until(passing, ADMIN, now.plus(HOUR))).await.unwrap();
        let by = caller(&app.app, acme.org, passing).await;
        for wanted in [gift(friend, VIEWER), until(friend, VIEWER, now.plus(2 * HOUR))] {
            let refused = app.app.assign_role(&by, acme.org, wanted).await;
            assert_eq!(slug(refused), ("exceeds-own-rights", "/valid_until".to_owned()));
        }
        app.app.assign_role(&by, acme.org, until(friend, VIEWER, now.plus(HOUR))).await.unwrap();
        // Nor by way of a role that somebody has for ever.
        let own = role(&app, &acme, "Sales", &[Permission::LeadsRead]).await;
        app.app.assign_role_as_operator(acme.org, gift(friend, own)).await.unwrap();
        let RoleRef::Own(id) = own else { panic!("an own role") };
        let more = new_role("Sales", &[Permission::LeadsRead, Permission::RolesWrite], &[]);
        assert_eq!(slug(app.app.update_role(&by, acme.org, id, 1, more).await).0, "exceeds-own-rights");
        // A key gives for no longer than it lives.
        let key = NewApiKey::new("brief", PermissionSet::all(), Some(1));
        let made = app.app.create_api_key(&acme.caller, acme.org, key).await.unwrap();
        let by_key = app.app.authenticate(&made.secret_text).await.unwrap().caller;
        let refused = app.app.assign_role(&by_key, acme.org, gift(friend, VIEWER)).await;
        assert_eq!(slug(refused), ("exceeds-own-rights", "/valid_until".to_owned()));
        app.app.assign_role(&by_key, acme.org, until(friend, VIEWER, now.plus(24 * HOUR))).await.unwrap();
    }

    async fn a_role_begins_and_ends_by_the_clock_and_no_job(app: TestApp) {
        let acme = app.tenant("acme").await;
        let (now, user) = (app.ambient.now(), person(&app, &acme).await);
        let window = Window { from: Some(now.plus(HOUR)), until: Some(now.plus(2 * HOUR)) };
        app.app.assign_role_as_operator(acme.org, NewAssignment { window, ..gift(user, VIEWER) }).await.unwrap();
        let holds = || async { caller(&app.app, acme.org, user).await.permissions() == BuiltIn::Viewer.permissions() };
        assert!(!holds().await);
        app.ambient.advance(HOUR);
        assert!(holds().await);
        app.ambient.advance(HOUR.saturating_sub(Duration::from_micros(1)));
        assert!(holds().await);
        app.ambient.advance(Duration::from_micros(1));
        assert_eq!(caller(&app.app, acme.org, user).await.permissions(), PermissionSet::EMPTY);
        for (from, until) in [(Some(3), Some(3)), (Some(3), Some(2)), (None, Some(0))] {
            let at = |hours: Option<u32>| hours.map(|hours| now.plus(hours * HOUR));
            let window = Window { from: at(from), until: at(until) };
            let refused = app.app.assign_role_as_operator(acme.org, NewAssignment { window, ..gift(user, VIEWER) }).await;
            assert_eq!(slug(refused).0, "invalid-window");
        }
    }

    async fn what_is_taken_away_is_gone_on_every_node_at_once(app: TestApp) {
        let acme = app.tenant("acme").await;
        let other_node = app.again(Options::default());
        let own = role(&app, &acme, "Sales", &[Permission::LeadsRead, Permission::LeadsWrite]).await;
        let heir = app.app.create_role(&acme.caller, acme.org, new_role("Head", &[], &[own])).await.unwrap();
        let user = person(&app, &acme).await;
        let given: StoredAssignment =
            app.app.assign_role_as_operator(acme.org, gift(user, RoleRef::Own(heir.role.id))).await.unwrap();
        let seen = || async { caller(&other_node, acme.org, user).await.permissions() };
        let both: PermissionSet = [Permission::LeadsRead, Permission::LeadsWrite].into_iter().collect();
        assert_eq!(seen().await, both);
        // A role further up loses a permission: whoever has it over an heir loses it with it.
        let RoleRef::Own(id) = own else { panic!("an own role") };
        let less = new_role("Sales", &[Permission::LeadsRead], &[]);
        app.app.update_role(&acme.caller, acme.org, id, 1, less).await.unwrap();
        assert_eq!(seen().await, PermissionSet::one(Permission::LeadsRead));
        app.app.unassign_role(&acme.caller, acme.org, given.given.id).await.unwrap();
        assert_eq!(seen().await, PermissionSet::EMPTY);
    }

    async fn the_last_admin_stays_whoever_takes_first(app: TestApp) {
        let acme = app.tenant("acme").await;
        let (first, second) = (member(&app, &acme, ADMIN).await, member(&app, &acme, ADMIN).await);
        let passing = person(&app, &acme).await;
        app.app.assign_role_as_operator(acme.org, until(passing, ADMIN, app.ambient.now().plus(HOUR))).await.unwrap();
        let (of_first, of_second) = (given_to(&app, &acme, first, ADMIN).await, given_to(&app, &acme, second, ADMIN).await);
        let (by_first, by_second) = (caller(&app.app, acme.org, first).await, caller(&app.app, acme.org, second).await);
        // Each takes the other's at the same time: one of them is left.
        let (one, two) = tokio::join!(
            app.app.unassign_role(&by_first, acme.org, of_second),
            app.app.unassign_role(&by_second, acme.org, of_first),
        );
        assert_eq!(i32::from(one.is_ok()) + i32::from(two.is_ok()), 1, "{one:?} {two:?}");
        let left = if one.is_ok() { of_first } else { of_second };
        assert_eq!(conflict(app.app.unassign_role(&acme.caller, acme.org, left).await), "last-admin");
        // With another one it goes.
        member(&app, &acme, ADMIN).await;
        app.app.unassign_role(&acme.caller, acme.org, left).await.unwrap();
    }

    async fn roles_are_made_changed_and_deleted_within_the_rules(app: TestApp) {
        let acme = app.tenant("acme").await;
        let make = |name: &'static str, permissions: &'static [Permission], inherits: Vec<RoleRef>| {
            app.app.create_role(&acme.caller, acme.org, new_role(name, permissions, &inherits))
        };
        let base = make("Base", &[Permission::LeadsRead], vec![]).await.unwrap();
        assert_eq!(conflict(make("BASE", &[Permission::LeadsRead], vec![]).await), "role-exists");
        assert_eq!(slug(make("Admin", &[Permission::LeadsRead], vec![]).await).0, "invalid-name");
        assert_eq!(slug(make("a\u{202e}b", &[Permission::LeadsRead], vec![]).await).0, "invalid-name");
        assert_eq!(slug(make("Empty", &[], vec![]).await), ("invalid-role", "/permissions".to_owned()));
        assert_eq!(slug(make("Root", &[Permission::SystemWrite], vec![]).await).0, "invalid-role");
        let mut last = RoleRef::Own(base.role.id);
        let mut made: Vec<RoleDetail> = Vec::new();
        for name in ["Two", "Three", "Four", "Five"] {
            made.push(make(name, &[], vec![last]).await.unwrap());
            last = RoleRef::Own(made[made.len() - 1].role.id);
        }
        assert_eq!(made[3].all, PermissionSet::one(Permission::LeadsRead), "over five levels");
        assert_eq!(slug(make("Six", &[], vec![last]).await), ("invalid-role", "/inherits".to_owned()));
        let round = app.app.update_role(&acme.caller, acme.org, base.role.id, 1, new_role("Base", &[], &[last])).await;
        assert_eq!(slug(round), ("invalid-role", "/inherits".to_owned()));
        let delete = |id, seen| app.app.delete_role(&acme.caller, acme.org, id, seen);
        assert_eq!(conflict(delete(base.role.id, 1).await), "role-in-use");
        assert!(matches!(delete(made[3].role.id, 9).await, Err(AppError::StaleVersion)));
        let user = member(&app, &acme, last).await;
        assert_eq!(conflict(delete(made[3].role.id, 1).await), "role-in-use");
        app.app.unassign_role(&acme.caller, acme.org, given_to(&app, &acme, user, last).await).await.unwrap();
        delete(made[3].role.id, 1).await.unwrap();
        let changed = new_role("Base", &[Permission::DealsRead], &[]);
        let changed = app.app.update_role(&acme.caller, acme.org, base.role.id, 1, changed).await.unwrap();
        assert_eq!((changed.role.revision, changed.all), (2, PermissionSet::one(Permission::DealsRead)));
        let told = app.audit(&acme, "role.updated").await;
        assert_eq!(told[0].detail["before"]["permissions"], json!(["leads.read"]));
        assert_eq!(told[0].detail["after"]["permissions"], json!(["deals.read"]));
        // Another organization's role is no role here.
        let other = app.tenant("other").await;
        let foreign = app.app.create_role(&other.caller, other.org, new_role("Foreign", &[], &[RoleRef::Own(base.role.id)])).await;
        assert_eq!(slug(foreign), ("invalid-role", "/inherits".to_owned()));
        let user = gift(person(&app, &other).await, RoleRef::Own(base.role.id));
        assert_eq!(slug(app.app.assign_role(&other.caller, other.org, user).await).0, "unknown-role");
    }

    async fn who_changes_a_role_holds_what_changes(app: TestApp) {
        let acme = app.tenant("acme").await;
        let writer = role(&app, &acme, "Writer", &[Permission::RolesWrite, Permission::LeadsRead]).await;
        let user = member(&app, &acme, writer).await;
        let by = caller(&app.app, acme.org, user).await;
        let own = app.app.create_role(&by, acme.org, new_role("Own", &[Permission::LeadsRead], &[])).await.unwrap();
        let grow = new_role("Own", &[Permission::LeadsRead, Permission::DealsRead], &[]);
        assert_eq!(slug(app.app.update_role(&by, acme.org, own.role.id, 1, grow.clone()).await).0, "exceeds-own-rights");
        let by_way_of_a_parent = new_role("Own", &[Permission::LeadsRead], &[VIEWER]);
        assert_eq!(slug(app.app.update_role(&by, acme.org, own.role.id, 1, by_way_of_a_parent).await).0, "exceeds-own-rights");
        app.app.update_role(&acme.caller, acme.org, own.role.id, 1, grow).await.unwrap();
        // Nor takes it out again, or deletes what gives more than he has.
        let shrink = new_role("Own", &[Permission::LeadsRead], &[]);
        assert_eq!(slug(app.app.update_role(&by, acme.org, own.role.id, 2, shrink).await).0, "exceeds-own-rights");
        assert_eq!(slug(app.app.delete_role(&by, acme.org, own.role.id, 2).await).0, "exceeds-own-rights");
    }

    async fn a_role_for_some_hours_is_let_by_somebody_else(app: TestApp) {
        let acme = app.tenant("acme").await;
        let (admin, second) = (member(&app, &acme, ADMIN).await, member(&app, &acme, ADMIN).await);
        let viewer = member(&app, &acme, VIEWER).await;
        let wanted = || NewRoleRequest {
            role: ADMIN,
            team: None,
            reason: "a customer's data has to be restored".to_owned(),
            duration: 4 * HOUR,
        };
        let (by, admin_caller) = (caller(&app.app, acme.org, viewer).await, caller(&app.app, acme.org, admin).await);
        // A key neither asks nor lets.
        assert_eq!(conflict(app.app.request_role(&acme.caller, acme.org, wanted()).await), "people-only");
        let asked = app.app.request_role(&by, acme.org, wanted()).await.unwrap();
        let answer = |who: Caller, answer| {
            let app = &app.app;
            async move { app.answer_role_request(&who, acme.org, asked.id, (answer, Some("ok".to_owned()))).await }
        };
        assert_eq!(conflict(answer(acme.caller.clone(), Answer::Approve).await), "people-only");
        assert!(matches!(answer(by.clone(), Answer::Approve).await, Err(AppError::Forbidden(Permission::RolesApprove))));
        assert_eq!(conflict(answer(admin_caller.clone(), Answer::Withdraw).await), "not-own-request");
        // Two let it at once: one role comes of it.
        let second = caller(&app.app, acme.org, second).await;
        let (one, two) = tokio::join!(answer(admin_caller.clone(), Answer::Approve), answer(second, Answer::Approve));
        assert_eq!(i32::from(one.is_ok()) + i32::from(two.is_ok()), 1, "{one:?} {two:?}");
        let page = app.app.list_assignments(&acme.caller, acme.org, Some(viewer), PageRequest::default()).await.unwrap();
        assert_eq!(page.items.len(), 3, "what he joined with, what he has, what he was let have");
        assert_eq!(caller(&app.app, acme.org, viewer).await.permissions(), PermissionSet::all());
        assert_eq!(conflict(answer(admin_caller.clone(), Answer::Refuse).await), "request-answered");
        app.ambient.advance(4 * HOUR);
        assert_eq!(caller(&app.app, acme.org, viewer).await.permissions(), BuiltIn::Viewer.permissions());
        assert_eq!(app.audit(&acme, "role.approved").await.len(), 1);

        // An admin does not let himself, and what nobody answers lapses.
        let own = app.app.request_role(&admin_caller, acme.org, wanted()).await.unwrap();
        let by_himself = app.app.answer_role_request(&admin_caller, acme.org, own.id, (Answer::Approve, None)).await;
        assert_eq!(conflict(by_himself), "own-request");
        let by = caller(&app.app, acme.org, viewer).await;
        let late = app.app.request_role(&by, acme.org, wanted()).await.unwrap();
        app.ambient.advance(24 * HOUR);
        let too_late = app.app.answer_role_request(&admin_caller, acme.org, late.id, (Answer::Approve, None)).await;
        assert_eq!(conflict(too_late), "request-lapsed");
        for _ in 0..5 {
            app.app.request_role(&by, acme.org, wanted()).await.unwrap();
        }
        assert_eq!(conflict(app.app.request_role(&by, acme.org, wanted()).await), "too-many-requests");
        let bad = NewRoleRequest { reason: "because".into(), ..wanted() };
        assert_eq!(slug(app.app.request_role(&admin_caller, acme.org, bad).await).0, "invalid-reason");
        let bad = NewRoleRequest { duration: 9 * HOUR, ..wanted() };
        assert_eq!(slug(app.app.request_role(&admin_caller, acme.org, bad).await).0, "invalid-duration");
    }

    async fn members_share_what_their_roles_are(app: TestApp) {
        let acme = app.tenant("acme").await;
        role(&app, &acme, "Leads", &[Permission::LeadsRead]).await;
        let (one, two) = (member(&app, &acme, VIEWER).await, member(&app, &acme, ADMIN).await);
        let known = async |user| {
            app.app
                .explain_access(&acme.caller, acme.org, user, Permission::LeadsRead, Within::Organization)
                .await
                .unwrap()
                .known
        };
        let (first, second, stranger) = (known(one).await, known(two).await, known(UserId::new(&app.ambient)).await);
        for other in [&second, &stranger] {
            assert!(Arc::ptr_eq(&first.roles, &other.roles) && Arc::ptr_eq(&first.names, &other.names));
        }
        role(&app, &acme, "Deals", &[Permission::DealsRead]).await;
        assert_eq!((first.names.len(), known(one).await.names.len()), (1, 2), "not beyond the next change");
    }

    async fn a_number_that_is_given_twice_is_not_taken_for_the_same_policy(app: TestApp) {
        let acme = app.tenant("acme").await;
        let user = person(&app, &acme).await;
        app.app.assign_role_as_operator(acme.org, gift(user, ADMIN)).await.unwrap();
        assert_eq!(caller(&app.app, acme.org, user).await.permissions(), BuiltIn::Admin.permissions());
        // The database fails over to a replica that never saw the last commit, and then another change gets its number.
        app.tamper(acme.org, "delete from role_assignment where built_in = 'admin'; update policy set epoch = epoch - 1");
        app.ambient.advance(Duration::from_secs(3));
        let elsewhere = app.again(Options::default());
        elsewhere.assign_role_as_operator(acme.org, gift(user, VIEWER)).await.unwrap();
        assert_eq!(caller(&app.app, acme.org, user).await.permissions(), BuiltIn::Viewer.permissions());
    }

    async fn what_is_over_makes_room_for_the_next(app: TestApp) {
        let acme = app.tenant("acme").await;
        let user = person(&app, &acme).await;
        let activate = async || {
            let end = app.ambient.now().plus(HOUR);
            app.app.assign_role_as_operator(acme.org, until(user, ADMIN, end)).await
        };
        // One he joined with.
        for _ in 1..ASSIGNMENTS_MAX {
            activate().await.unwrap();
        }
        assert_eq!(conflict(activate().await), "too-many-roles");
        app.ambient.advance(2 * HOUR);
        activate().await.unwrap();
        let left = app.app.list_assignments(&acme.caller, acme.org, Some(user), PageRequest::default()).await.unwrap();
        assert_eq!(left.items.len(), 2, "what he joined with, and the new one");
        assert_eq!(caller(&app.app, acme.org, user).await.permissions(), BuiltIn::Admin.permissions());
    }

    async fn a_key_that_has_expired_changes_nothing_any_more(app: TestApp) {
        let acme = app.tenant("acme").await;
        let user = member(&app, &acme, VIEWER).await;
        let new = NewApiKey::new("day", PermissionSet::all(), Some(1));
        let made = app.app.create_api_key(&acme.caller, acme.org, new).await.unwrap();
        // It was let in, and then its request took long.
        let late = app.app.authenticate(&made.secret_text).await.unwrap().caller;
        app.ambient.advance(25 * HOUR);
        let given = given_to(&app, &acme, user, VIEWER).await;
        let taken = app.app.unassign_role(&late, acme.org, given).await;
        assert!(matches!(taken, Err(AppError::Unauthenticated)), "{taken:?}");
        let made = app.app.create_role(&late, acme.org, new_role("Leads", &[Permission::LeadsRead], &[])).await;
        assert!(matches!(made, Err(AppError::Unauthenticated)), "{made:?}");
    }

    /// On SQLite who waits for the writer has not begun.
    async fn a_right_that_ends_during_the_wait_gives_nothing(app: TestApp) {
        if !app.store.is_postgres() {
            return;
        }
        let acme = app.tenant("acme").await;
        let (user, friend) = (person(&app, &acme).await, person(&app, &acme).await);
        let end = app.ambient.now().plus(HOUR);
        app.app.assign_role_as_operator(acme.org, until(user, ADMIN, end)).await.unwrap();
        let by = caller(&app.app, acme.org, user).await;
        // Somebody else's change holds the policy, and comes to nothing.
        let (began, release) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let scope = SystemScope::new(SystemReason::Admin).for_org(acme.org);
        let args = (app.ambient.now(), Arc::clone(&began), Arc::clone(&release));
        let holding = app.store.write_locked(&scope, args, |tx, (now, began, release)| {
            Box::pin(async move {
                tx.begin_policy_epoch(*now).await?;
                began.notify_one();
                release.notified().await;
                Err::<(), _>(StoreError::LostLease)
            })
        });
        let giving = async {
            began.notified().await;
            app.app.assign_role(&by, acme.org, until(friend, VIEWER, end)).await
        };
        let passing = async {
            while !app.somebody_waits() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            app.ambient.advance(2 * HOUR);
            release.notify_one();
        };
        let (held, given, ()) = tokio::join!(holding, giving, passing);
        assert!(held.is_err());
        assert!(matches!(given, Err(AppError::Forbidden(Permission::RolesAssign))), "{given:?}");
    }

    async fn who_lets_a_role_holds_it(app: TestApp) {
        let acme = app.tenant("acme").await;
        let approver = role(&app, &acme, "Approver", &[Permission::RolesApprove]).await;
        let (approver, viewer) = (member(&app, &acme, approver).await, member(&app, &acme, VIEWER).await);
        let by = caller(&app.app, acme.org, viewer).await;
        let reason = "a customer's data has to be restored".to_owned();
        let wanted = NewRoleRequest { role: ADMIN, team: None, reason, duration: HOUR };
        let asked = app.app.request_role(&by, acme.org, wanted).await.unwrap();
        let approver = caller(&app.app, acme.org, approver).await;
        let refused = app.app.answer_role_request(&approver, acme.org, asked.id, (Answer::Approve, None)).await;
        assert_eq!(slug(refused).0, "exceeds-own-rights");
        let still = app.app.show_role_request(&acme.caller, acme.org, asked.id).await.unwrap();
        assert_eq!((still.request.state.as_str(), still.assignment), ("waiting", None));
        app.app.answer_role_request(&approver, acme.org, asked.id, (Answer::Refuse, None)).await.unwrap();
    }

    async fn a_batch_says_what_single_questions_say_and_why(app: TestApp) {
        let acme = app.tenant("acme").await;
        let sales = team(&app, &acme, "Sales").await;
        let (viewer, nobody) = (member(&app, &acme, VIEWER).await, UserId::new(&app.ambient));
        let lead = NewAssignment { team: Some(sales), ..gift(viewer, RoleRef::BuiltIn(BuiltIn::Manager)) };
        app.app.assign_role_as_operator(acme.org, lead).await.unwrap();
        let key = acme.caller.key().unwrap();
        let mut questions = Vec::new();
        for permission in [Permission::LeadsRead, Permission::LeadsWrite, Permission::RolesAssign, Permission::SystemEnter] {
            for subject in [AccessSubject::User(viewer), AccessSubject::User(nobody), AccessSubject::ApiKey(key)] {
                for within in [Within::Organization, Within::Team(sales), Within::Team(TeamId::new(&app.ambient))] {
                    questions.push(Question { subject, permission, within });
                }
            }
        }
        let batch = app.app.check_access(&acme.caller, acme.org, questions.clone()).await.unwrap();
        assert_eq!(batch.len(), questions.len());
        for (question, verdict) in questions.iter().zip(&batch) {
            let single = app.app.check_access(&acme.caller, acme.org, vec![*question]).await.unwrap();
            assert_eq!(single, [*verdict], "{question:?}");
            let AccessSubject::User(user) = question.subject else { continue };
            let why = app.app.explain_access(&acme.caller, acme.org, user, question.permission, question.within).await;
            match (verdict, why) {
                (Verdict::NoSuchTeam, why) => assert!(matches!(why, Err(AppError::NotFound { .. }))),
                (verdict, why) => assert_eq!(why.unwrap().explanation.is_allowed, *verdict == Verdict::Allowed),
            }
        }
        let ask = |subject, permission, within| batch[questions
            .iter()
            .position(|q| q.subject == subject && q.permission == permission && q.within == within)
            .unwrap()];
        let viewer_is = AccessSubject::User(viewer);
        assert_eq!(ask(viewer_is, Permission::LeadsWrite, Within::Organization), Verdict::Refused);
        assert_eq!(ask(viewer_is, Permission::LeadsWrite, Within::Team(sales)), Verdict::Allowed);
        assert_eq!(ask(AccessSubject::ApiKey(key), Permission::LeadsWrite, Within::Organization), Verdict::Allowed);
        assert_eq!(ask(AccessSubject::ApiKey(key), Permission::SystemEnter, Within::Organization), Verdict::Refused);
        // Nothing asked is a mistake, and so is too much.
        for questions in [vec![], vec![questions[0]; QUESTIONS_MAX + 1]] {
            let refused = app.app.check_access(&acme.caller, acme.org, questions).await;
            assert_eq!(problems(refused, "invalid-checks").len(), 1);
        }
        // A member of another organization is nobody here.
        let other = app.tenant("other").await;
        let foreign = Question { subject: viewer_is, permission: Permission::LeadsRead, within: Within::Organization };
        assert_eq!(app.app.check_access(&other.caller, other.org, vec![foreign]).await.unwrap(), [Verdict::Refused]);
    }

    async fn a_role_for_a_team_counts_on_that_teams_things_alone(app: TestApp) {
        let acme = app.tenant("acme").await;
        let (sales, support) = (team(&app, &acme, "Sales").await, team(&app, &acme, "Support").await);
        let user = person(&app, &acme).await;
        let lead = NewAssignment { team: Some(sales), ..gift(user, RoleRef::BuiltIn(BuiltIn::Manager)) };
        app.app.assign_role_as_operator(acme.org, lead).await.unwrap();
        let (by, friend) = (caller(&app.app, acme.org, user).await, person(&app, &acme).await);
        app.app.add_team_member(&by, acme.org, sales, friend).await.unwrap();
        app.app.add_team_member(&by, acme.org, sales, friend).await.unwrap();
        let elsewhere = app.app.add_team_member(&by, acme.org, support, friend).await;
        assert!(matches!(elsewhere, Err(AppError::Forbidden(Permission::TeamsWrite))));
        assert!(matches!(app.app.create_team(&by, acme.org, "New").await, Err(AppError::Forbidden(_))));
        let members = app.app.list_team_members(&by, acme.org, sales, PageRequest::default()).await.unwrap();
        assert_eq!(members.items.len(), 1);
        // To be in a team is no right.
        assert_eq!(caller(&app.app, acme.org, friend).await.permissions_within(Within::Team(sales)), PermissionSet::EMPTY);
        assert_eq!(conflict(app.app.delete_team(&acme.caller, acme.org, sales, 1).await), "team-in-use");
        assert_eq!(conflict(app.app.rename_team(&acme.caller, acme.org, sales, 1, "SUPPORT").await), "team-exists");
        let renamed = app.app.rename_team(&by, acme.org, sales, 1, "Field sales").await.unwrap();
        assert_eq!(renamed.revision, 2);
        app.app.delete_team(&acme.caller, acme.org, support, 1).await.unwrap();
        let gone = NewAssignment { team: Some(support), ..gift(user, VIEWER) };
        assert_eq!(slug(app.app.assign_role_as_operator(acme.org, gone).await).0, "unknown-team");
    }
}
