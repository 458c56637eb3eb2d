//! Who has which role. Times are compared where the right is used (the model's rule), not by statements.

use bulkhead_model::id::{AssignmentId, RoleId, TeamId, UserId};
use bulkhead_model::role::assignment::{Assignment, Window};
use bulkhead_model::role::{BuiltIn, RoleRef};
use bulkhead_model::time::Timestamp;

use crate::error::StoreError;
use crate::page::{Page, PageRequest};
use crate::sql::{Row, binds, sql};
use crate::tx::Tx;

/// An assignment with where it comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredAssignment {
    pub given: Assignment,
    /// The actor, as audit entries name it.
    pub granted_by: String,
    pub reason: String,
    pub created_at: Timestamp,
}

/// The two columns of a role.
fn split(role: RoleRef) -> (Option<&'static str>, Option<RoleId>) {
    match role {
        RoleRef::BuiltIn(role) => (Some(role.as_str()), None),
        RoleRef::Own(id) => (None, Some(id)),
    }
}

fn read(row: &Row) -> Result<StoredAssignment, StoreError> {
    let (built_in, own): (Option<String>, Option<RoleId>) = (row.get("built_in")?, row.get("role_id")?);
    let role = match (built_in, own) {
        (Some(name), None) => BuiltIn::from_name(&name).map(RoleRef::BuiltIn),
        (None, Some(id)) => Some(RoleRef::Own(id)),
        (Some(_), Some(_)) | (None, None) => None,
    };
    Ok(StoredAssignment {
        given: Assignment {
            id: row.get("id")?,
            user: row.get("user_id")?,
            role: role.ok_or_else(|| StoreError::corrupt("built_in", "no role"))?,
            team: row.get("team_id")?,
            window: Window { from: row.get("valid_from")?, until: row.get("valid_until")? },
        },
        granted_by: row.get("granted_by")?,
        reason: row.get("reason")?,
        created_at: row.get("created_at")?,
    })
}

impl Tx {
    pub async fn insert_assignment(&mut self, assignment: &StoredAssignment) -> Result<(), StoreError> {
        let sql = sql!(
            "insert into role_assignment
                 (org_id, id, user_id, built_in, role_id, team_id, valid_from, valid_until, granted_by, reason, created_at)
             values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)"
        );
        let org = self.org()?;
        let StoredAssignment { given, granted_by, reason, created_at } = assignment;
        let (built_in, own) = split(given.role);
        let values = binds![
            org,
            given.id,
            given.user,
            built_in,
            own,
            given.team,
            given.window.from,
            given.window.until,
            granted_by,
            reason,
            *created_at
        ];
        self.execute(sql, values).await.map(drop)
    }

    pub async fn load_assignment(&mut self, id: AssignmentId) -> Result<Option<StoredAssignment>, StoreError> {
        let sql = sql!(
            "select id, user_id, built_in, role_id, team_id, valid_from, valid_until, granted_by, reason, created_at
             from role_assignment where org_id = $1 and id = $2"
        );
        let org = self.org()?;
        self.fetch_optional(sql, binds![org, id]).await?.map(|row| read(&row)).transpose()
    }

    pub async fn delete_assignment(&mut self, id: AssignmentId) -> Result<bool, StoreError> {
        let sql = sql!("delete from role_assignment where org_id = $1 and id = $2");
        let org = self.org()?;
        Ok(self.execute(sql, binds![org, id]).await? > 0)
    }

    /// Everything that a user has, ended and future ones included; `ASSIGNMENTS_MAX` of the model bounds it.
    pub async fn list_assignments_of(&mut self, user: UserId) -> Result<Vec<StoredAssignment>, StoreError> {
        let sql = sql!(
            "select id, user_id, built_in, role_id, team_id, valid_from, valid_until, granted_by, reason, created_at
             from role_assignment where org_id = $1 and user_id = $2 order by id"
        );
        let org = self.org()?;
        self.fetch(sql, binds![org, user]).await?.iter().map(read).collect()
    }

    /// A page of all assignments, newest first; of one user's where one is named.
    pub async fn list_assignments(
        &mut self,
        user: Option<UserId>,
        page: PageRequest,
    ) -> Result<Page<StoredAssignment>, StoreError> {
        let org = self.org()?;
        let rows = if let Some(user) = user {
            let sql = sql!(
                "select id, user_id, built_in, role_id, team_id, valid_from, valid_until, granted_by, reason, created_at
                 from role_assignment where org_id = $1 and user_id = $2 and id < $3 order by id desc limit $4"
            );
            self.fetch(sql, binds![org, user, page.bound(), page.fetch()]).await?
        } else {
            let sql = sql!(
                "select id, user_id, built_in, role_id, team_id, valid_from, valid_until, granted_by, reason, created_at
                 from role_assignment where org_id = $1 and id < $2 order by id desc limit $3"
            );
            self.fetch(sql, binds![org, page.bound(), page.fetch()]).await?
        };
        let items = rows.iter().map(read).collect::<Result<Vec<_>, _>>()?;
        Ok(page.page(items, |assignment| assignment.given.id.uuid()))
    }

    /// Active members who are admins of the whole organization now and without an end, leaving one out where one is named.
    pub async fn count_lasting_admins(&mut self, without: Option<UserId>, now: Timestamp) -> Result<u64, StoreError> {
        let sql = sql!(
            "select count(distinct a.user_id) as users from role_assignment a
             join member m on m.org_id = a.org_id and m.user_id = a.user_id and m.state = 'active' and m.user_state = 'active'
             where a.org_id = $1 and a.built_in = 'admin' and a.team_id is null and a.valid_until is null
               and (a.valid_from is null or a.valid_from <= $2) and a.user_id <> $3"
        );
        let org = self.org()?;
        // No user has this id: the first version of UUIDs with time begins far above it.
        let without = without.map_or(uuid::Uuid::nil(), UserId::uuid);
        let row = self.fetch_optional(sql, binds![org, now, without]).await?;
        let users: i64 = row.ok_or(StoreError::Misuse("a count has a row"))?.get("users")?;
        Ok(u64::try_from(users).unwrap_or(0))
    }

    /// Assignments of a role of the organization's own that are not over.
    pub async fn count_assignments_of_role(&mut self, role: RoleId, now: Timestamp) -> Result<i64, StoreError> {
        let sql = sql!(
            "select count(*) as there from role_assignment
             where org_id = $1 and role_id = $2 and (valid_until is null or valid_until > $3)"
        );
        let org = self.org()?;
        self.fetch_optional(sql, binds![org, role, now]).await?.map_or(Ok(0), |row| row.get("there"))
    }

    /// Removes the assignments of a role that are over, so that it can be deleted.
    pub async fn delete_ended_assignments_of_role(&mut self, role: RoleId, now: Timestamp) -> Result<u64, StoreError> {
        let sql = sql!("delete from role_assignment where org_id = $1 and role_id = $2 and valid_until <= $3");
        let org = self.org()?;
        self.execute(sql, binds![org, role, now]).await
    }

    /// Removes a user's assignments that are over. Audit entries say that they were.
    pub async fn delete_ended_assignments_of_user(&mut self, user: UserId, now: Timestamp) -> Result<u64, StoreError> {
        let sql = sql!("delete from role_assignment where org_id = $1 and user_id = $2 and valid_until <= $3");
        let org = self.org()?;
        self.execute(sql, binds![org, user, now]).await
    }

    /// As [`count_assignments_of_role`](Self::count_assignments_of_role) for a team.
    pub async fn count_assignments_of_team(&mut self, team: TeamId, now: Timestamp) -> Result<i64, StoreError> {
        let sql = sql!(
            "select count(*) as there from role_assignment
             where org_id = $1 and team_id = $2 and (valid_until is null or valid_until > $3)"
        );
        let org = self.org()?;
        self.fetch_optional(sql, binds![org, team, now]).await?.map_or(Ok(0), |row| row.get("there"))
    }

    /// As [`delete_ended_assignments_of_role`](Self::delete_ended_assignments_of_role) for a team.
    pub async fn delete_ended_assignments_of_team(&mut self, team: TeamId, now: Timestamp) -> Result<u64, StoreError> {
        let sql = sql!("delete from role_assignment where org_id = $1 and team_id = $2 and valid_until <= $3");
        let org = self.org()?;
        self.execute(sql, binds![org, team, now]).await
    }
}
