//! Roles, assignments, requests, teams, and the epoch that tells of their changes.

use std::time::Duration;

use bulkhead_model::ambient::Ambient;
use bulkhead_model::id::{AssignmentId, OrgId, RoleId, RoleRequestId, TeamId, UserId};
use bulkhead_model::permission::{AccountScope, Permission, PermissionSet};
use bulkhead_model::role::activation::{Request, RequestState};
use bulkhead_model::role::assignment::{Assignment, Window};
use bulkhead_model::role::{BuiltIn, Gives, RoleRef};
use bulkhead_store::page::PageRequest;
use bulkhead_store::role::Role;
use bulkhead_store::role::assignment::StoredAssignment;
use bulkhead_store::role::request::RoleRequest;
use bulkhead_store::team::Team;
use bulkhead_store::{StoreError, Tx};

use crate::support::{Person, TestStore, scope};

const ADMIN: RoleRef = RoleRef::BuiltIn(BuiltIn::Admin);

/// One row of each of the tables of roles.
#[derive(Clone, Debug)]
pub(crate) struct AccessRows {
    pub(crate) user: UserId,
    pub(crate) role: Role,
    pub(crate) team: Team,
    pub(crate) assignment: StoredAssignment,
    pub(crate) request: RoleRequest,
}

fn role(ambient: &Ambient, name: &str) -> Role {
    Role {
        id: RoleId::new(ambient),
        name: name.parse().unwrap(),
        description: "sells".to_owned(),
        gives: Gives {
            permissions: [Permission::LeadsRead, Permission::LeadsWrite].into_iter().collect(),
            inherits: vec![RoleRef::BuiltIn(BuiltIn::Viewer)],
        },
        revision: 1,
        created_at: ambient.now(),
        updated_at: ambient.now(),
    }
}

fn team(ambient: &Ambient, name: &str) -> Team {
    let now = ambient.now();
    Team { id: TeamId::new(ambient), name: name.parse().unwrap(), revision: 1, created_at: now, updated_at: now }
}

fn assignment(
    ambient: &Ambient,
    user: UserId,
    role: RoleRef,
    team: Option<TeamId>,
    window: Window,
) -> StoredAssignment {
    StoredAssignment {
        given: Assignment { id: AssignmentId::new(ambient), user, role, team, window },
        granted_by: "system:admin".to_owned(),
        reason: "hired".to_owned(),
        created_at: ambient.now(),
    }
}

fn request(ambient: &Ambient, user: UserId) -> RoleRequest {
    let (duration, state) = (Duration::from_hours(4), RequestState::Waiting);
    RoleRequest {
        id: RoleRequestId::new(ambient),
        role: ADMIN,
        team: None,
        reason: "restore what was deleted".to_owned(),
        request: Request { asked_by: user, asked_at: ambient.now(), duration, state },
        answered_at: None,
        answered_by: None,
        answer: None,
        assignment: None,
    }
}

impl AccessRows {
    /// `user` is a member.
    pub(crate) fn new(ambient: &Ambient, user: UserId) -> Self {
        let (role, team) = (role(ambient, "Sales lead"), team(ambient, "Sales"));
        let assignment = assignment(ambient, user, RoleRef::Own(role.id), Some(team.id), Window::ALWAYS);
        Self { user, role, team, assignment, request: request(ambient, user) }
    }

    pub(crate) async fn insert(&self, tx: &mut Tx, ambient: &Ambient) -> Result<(), StoreError> {
        let now = ambient.now();
        tx.begin_policy_epoch(now).await?;
        tx.insert_role(&self.role).await?;
        tx.insert_team(&self.team).await?;
        tx.insert_team_member(self.team.id, self.user, now).await?;
        tx.insert_assignment(&self.assignment).await?;
        tx.insert_role_request(&self.request).await
    }

    /// What the organization's tables of roles look like from inside.
    pub(crate) async fn picture(&self, tx: &mut Tx) -> Result<String, StoreError> {
        let page = PageRequest::default();
        Ok(format!(
            "{:?}\n{:?}\n{:?}\n{:?}\n{:?}\n{:?}",
            tx.load_policy_epoch().await?,
            tx.list_roles().await?,
            tx.list_teams(page).await?,
            tx.list_team_members(self.team.id, page).await?,
            tx.list_assignments(None, page).await?,
            tx.list_role_requests(page).await?,
        ))
    }
}

/// A new member.
async fn member(test: &TestStore, org: OrgId) -> UserId {
    let (person, within) = (Person::new(&test.ambient), AccountScope::within(&scope(org)));
    tx!(test.write, &within, [person], |tx| {
        tx.insert_user(&person.user).await?;
        tx.insert_member(person.user.id, "viewer", person.user.created_at).await.map(drop)
    })
    .unwrap();
    person.user.id
}

on_both! {
    async fn roles_come_back_as_they_were_saved_and_names_are_taken_once(test: TestStore) {
        let (org, ambient) = (test.org("acme").await, test.ambient.clone());
        let made = role(&ambient, "Sales lead");
        let same_name = role(&ambient, "SALES-LEAD");
        let mut changed = made.clone();
        changed.name = "Sales head".parse().unwrap();
        changed.gives.permissions = PermissionSet::one(Permission::DealsRead);
        changed.gives.inherits = vec![RoleRef::Own(same_name.id)];
        changed.revision = 2;
        tx!(test.write, &scope(org), [made, same_name, changed], |tx| {
            assert!(tx.insert_role(made).await?);
            assert!(!tx.insert_role(same_name).await?, "its name is taken");
            assert_eq!(tx.list_roles().await?, std::slice::from_ref(made));
            assert!(!tx.update_role(changed, 7).await?, "another revision was seen");
            assert!(tx.update_role(changed, 1).await?);
            assert_eq!(tx.list_roles().await?, std::slice::from_ref(changed));
            assert!(tx.insert_role(same_name).await?, "the name is free again");
            assert!(tx.delete_role(made.id).await?);
            assert!(!tx.delete_role(made.id).await?);
            Ok(())
        })
        .unwrap();
    }

    async fn the_epoch_rises_with_each_change(test: TestStore) {
        let (a, b) = (test.org("a").await, test.org("b").await);
        let now = test.ambient.now();
        for expected in 1..=3 {
            tx!(test.write, &scope(a), [now], |tx| tx.begin_policy_epoch(*now).await).unwrap();
            let epoch = tx!(test.read, &scope(a), [], |tx| tx.load_policy_epoch().await).unwrap();
            assert_eq!((epoch.number, epoch.began_at), (expected, Some(now)));
        }
        let other = tx!(test.read, &scope(b), [], |tx| tx.load_policy_epoch().await).unwrap();
        assert_eq!((other.number, other.began_at), (0, None));
    }

    async fn assignments_are_found_by_user_role_and_team_and_lasting_admins_are_counted(test: TestStore) {
        let (org, ambient) = (test.org("acme").await, test.ambient.clone());
        let rows = AccessRows::new(&ambient, member(&test, org).await);
        let (now, hour) = (ambient.now(), Duration::from_hours(1));
        let mut users = Vec::new();
        for _ in 0..4 {
            users.push(member(&test, org).await);
        }
        let until = |until| Window { from: None, until: Some(until) };
        let given = vec![
            assignment(&ambient, users[0], ADMIN, None, Window::ALWAYS),
            assignment(&ambient, users[0], ADMIN, None, Window { from: Some(now), until: None }),
            assignment(&ambient, users[1], ADMIN, None, until(now.plus(hour))),
            assignment(&ambient, users[2], ADMIN, Some(rows.team.id), Window::ALWAYS),
            assignment(&ambient, users[3], ADMIN, None, Window { from: Some(now.plus(hour)), until: None }),
            assignment(&ambient, users[3], RoleRef::Own(rows.role.id), None, until(now)),
        ];
        tx!(test.write, &scope(org), [rows, given, users, ambient, now, hour], |tx| {
            rows.insert(tx, ambient).await?;
            for one in given {
                tx.insert_assignment(one).await?;
            }
            for one in given {
                assert_eq!(tx.load_assignment(one.given.id).await?.as_ref(), Some(one));
            }
            assert_eq!(tx.list_assignments_of(users[0]).await?.len(), 2);
            assert_eq!(tx.list_assignments(Some(users[3]), PageRequest::default()).await?.items.len(), 2);
            assert_eq!(tx.list_assignments(None, PageRequest::default()).await?.items.len(), 7);
            assert_eq!(tx.count_lasting_admins(None, *now).await?, 1);
            assert_eq!(tx.count_lasting_admins(Some(users[0]), *now).await?, 0);
            assert_eq!(tx.count_lasting_admins(None, now.plus(*hour)).await?, 2);
            assert_eq!(tx.count_assignments_of_role(rows.role.id, *now).await?, 1, "what is over does not count");
            assert_eq!(tx.count_assignments_of_team(rows.team.id, *now).await?, 2);
            assert_eq!(tx.delete_ended_assignments_of_role(rows.role.id, *now).await?, 1);
            assert!(tx.delete_assignment(given[0].given.id).await?);
            assert!(!tx.delete_assignment(given[0].given.id).await?);
            Ok(())
        })
        .unwrap();
        // Neither a role that somebody has nor a team that a role is given for can go.
        let role = tx!(test.write, &scope(org), [rows], |tx| tx.delete_role(rows.role.id).await);
        let team = tx!(test.write, &scope(org), [rows], |tx| tx.delete_team(rows.team.id).await);
        for refused in [role, team] {
            assert!(matches!(refused, Err(StoreError::Conflict { .. })), "{refused:?}");
        }
    }

    async fn a_request_is_answered_once(test: TestStore) {
        let (org, ambient) = (test.org("acme").await, test.ambient.clone());
        let (user, other) = (UserId::new(&ambient), UserId::new(&ambient));
        let asked = request(&ambient, user);
        let mut answered = asked.clone();
        answered.request.state = RequestState::Refused;
        (answered.answered_at, answered.answered_by) = (Some(ambient.now()), Some(other));
        answered.answer = Some("ask the owner".to_owned());
        tx!(test.write, &scope(org), [asked, answered, user, ambient], |tx| {
            let before = ambient.now().minus(Duration::from_secs(1));
            tx.insert_role_request(asked).await?;
            assert_eq!(tx.load_role_request(asked.id).await?.as_ref(), Some(asked));
            assert_eq!(tx.count_waiting_requests(*user, before).await?, 1);
            assert_eq!(tx.count_waiting_requests(*user, ambient.now()).await?, 0, "it has lapsed");
            assert!(tx.answer_role_request(answered).await?);
            assert!(!tx.answer_role_request(answered).await?);
            assert_eq!(tx.load_role_request(asked.id).await?.as_ref(), Some(answered));
            assert_eq!(tx.count_waiting_requests(*user, before).await?, 0);
            Ok(())
        })
        .unwrap();
    }

    async fn teams_have_members_and_names_of_their_own(test: TestStore) {
        let (org, ambient) = (test.org("acme").await, test.ambient.clone());
        let (sales, again, user) = (team(&ambient, "Sales"), team(&ambient, "sales"), member(&test, org).await);
        let renamed = Team { name: "Field sales".parse().unwrap(), revision: 2, ..sales.clone() };
        tx!(test.write, &scope(org), [sales, again, renamed, user, ambient], |tx| {
            assert!(tx.insert_team(sales).await?);
            assert!(!tx.insert_team(again).await?, "its name is taken");
            assert!(tx.insert_team_member(sales.id, *user, ambient.now()).await?);
            assert!(!tx.insert_team_member(sales.id, *user, ambient.now()).await?);
            assert_eq!((tx.count_teams().await?, tx.count_team_members(sales.id).await?), (1, 1));
            assert!(!tx.update_team(renamed, 3).await?);
            assert!(tx.update_team(renamed, 1).await?);
            assert_eq!(tx.load_team(sales.id).await?.as_ref(), Some(renamed));
            assert_eq!(tx.load_team_by_name(&"FIELD_SALES".parse().unwrap()).await?.as_ref(), Some(renamed));
            assert_eq!(tx.list_team_members(sales.id, PageRequest::default()).await?.items[0].user, *user);
            assert!(tx.delete_team_member(sales.id, *user).await?);
            assert!(!tx.delete_team_member(sales.id, *user).await?);
            assert!(tx.insert_team_member(sales.id, *user, ambient.now()).await?);
            assert!(tx.delete_team(sales.id).await?, "who is in it goes with it");
            assert_eq!(tx.count_team_members(sales.id).await?, 0);
            Ok(())
        })
        .unwrap();
    }
}
