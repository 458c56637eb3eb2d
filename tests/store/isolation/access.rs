//! Roles, assignments, requests and teams from another organization.

use std::time::Duration;

use bulkhead_model::ambient::Ambient;
use bulkhead_model::role::activation::RequestState;
use bulkhead_store::page::PageRequest;
use bulkhead_store::{StoreError, Tx};

use crate::roles::AccessRows;
use crate::support::TestStore;

impl AccessRows {
    /// With another organization's scope none of it is there.
    pub(crate) async fn is_not_there(&self, tx: &mut Tx) -> Result<(), StoreError> {
        let page = PageRequest::default();
        let now = self.role.created_at;
        assert_eq!(tx.load_policy_epoch().await?.number, 0);
        assert!(tx.list_roles().await?.is_empty());
        assert!(tx.load_assignment(self.assignment.given.id).await?.is_none());
        assert!(tx.list_assignments_of(self.user).await?.is_empty());
        assert!(tx.list_assignments(None, page).await?.items.is_empty());
        assert!(tx.list_assignments(Some(self.user), page).await?.items.is_empty());
        assert_eq!(tx.count_lasting_admins(None, now).await?, 0);
        assert_eq!(tx.count_assignments_of_role(self.role.id, now).await?, 0);
        assert_eq!(tx.count_assignments_of_team(self.team.id, now).await?, 0);
        assert!(tx.load_role_request(self.request.id).await?.is_none());
        assert!(tx.list_role_requests(page).await?.items.is_empty());
        assert_eq!(tx.count_waiting_requests(self.user, now.minus(Duration::from_hours(1))).await?, 0);
        assert!(tx.load_team(self.team.id).await?.is_none());
        assert!(tx.load_team_by_name(&self.team.name).await?.is_none());
        assert!(tx.list_teams(page).await?.items.is_empty());
        assert!(tx.list_team_members(self.team.id, page).await?.items.is_empty());
        assert_eq!((tx.count_teams().await?, tx.count_team_members(self.team.id).await?), (0, 0));
        Ok(())
    }

    /// … and none of it can be changed.
    pub(crate) async fn cannot_be_changed(&self, tx: &mut Tx) -> Result<(), StoreError> {
        let far = self.role.created_at.plus(Duration::from_hours(24 * 3650));
        assert!(!tx.update_role(&self.role, 1).await?);
        assert!(!tx.delete_role(self.role.id).await?);
        assert!(!tx.delete_assignment(self.assignment.given.id).await?);
        assert_eq!(tx.delete_ended_assignments_of_role(self.role.id, far).await?, 0);
        assert_eq!(tx.delete_ended_assignments_of_team(self.team.id, far).await?, 0);
        assert_eq!(tx.delete_ended_assignments_of_user(self.user, far).await?, 0);
        let mut answered = self.request.clone();
        answered.request.state = RequestState::Approved;
        assert!(!tx.answer_role_request(&answered).await?);
        assert!(!tx.update_team(&self.team, 1).await?);
        assert!(!tx.delete_team_member(self.team.id, self.user).await?);
        assert!(!tx.delete_team(self.team.id).await?);
        tx.begin_policy_epoch(self.role.created_at).await
    }

    /// The same ids and names may exist in another organization on their own.
    pub(crate) async fn insert_beside(&self, tx: &mut Tx, ambient: &Ambient) -> Result<(), StoreError> {
        // A person may work in several, and has in each what he was given there.
        tx.insert_member(self.user, "viewer", ambient.now()).await?;
        assert!(tx.insert_role(&self.role).await?);
        assert!(tx.insert_team(&self.team).await?);
        assert!(tx.insert_team_member(self.team.id, self.user, ambient.now()).await?);
        tx.insert_assignment(&self.assignment).await?;
        tx.insert_role_request(&self.request).await
    }
}

/// What names a role or team of A's is refused by the foreign key, which the organization is part of.
pub(super) async fn parents_are_out_of_reach(
    test: &TestStore,
    scope: &bulkhead_model::permission::OrgScope,
    rows: &AccessRows,
) {
    let (rows, now) = (rows.clone(), test.ambient.now());
    let mut of_role = rows.assignment.clone();
    of_role.given.team = None;
    let mut of_team = rows.assignment.clone();
    of_team.given.role = bulkhead_model::role::RoleRef::BuiltIn(bulkhead_model::role::BuiltIn::Viewer);
    for assignment in [of_role, of_team] {
        let refused = tx!(test.write, scope, [assignment], |tx| tx.insert_assignment(assignment).await);
        assert!(super::refused(&refused), "{refused:?}");
    }
    let refused = tx!(test.write, scope, [rows, now], |tx| {
        tx.insert_team_member(rows.team.id, rows.user, *now).await.map(drop)
    });
    assert!(super::refused(&refused), "{refused:?}");
}
