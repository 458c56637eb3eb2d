//! Teams: members who work together, and on whose things a role may be given apart.

use bulkhead_model::id::{TeamId, UserId};
use bulkhead_model::role::RoleName;
use bulkhead_model::time::Timestamp;

use crate::error::StoreError;
use crate::page::{Page, PageRequest};
use crate::sql::{Row, binds, sql};
use crate::tx::Tx;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Team {
    pub id: TeamId,
    /// Of the same form as roles' names.
    pub name: RoleName,
    pub revision: i64,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

/// Somebody in a team.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TeamMember {
    pub user: UserId,
    pub created_at: Timestamp,
}

fn read(row: &Row) -> Result<Team, StoreError> {
    Ok(Team {
        id: row.get("id")?,
        name: row.parsed("name", |text| text.parse().ok())?,
        revision: row.get("revision")?,
        created_at: row.get("created_at")?,
        updated_at: row.get("updated_at")?,
    })
}

fn read_member(row: &Row) -> Result<TeamMember, StoreError> {
    Ok(TeamMember { user: row.get("user_id")?, created_at: row.get("created_at")? })
}

impl Tx {
    /// Inserts a team; `false` if its name is taken.
    pub async fn insert_team(&mut self, team: &Team) -> Result<bool, StoreError> {
        let sql = sql!(
            "insert into team (org_id, id, name, name_key, revision, created_at, updated_at) values ($1, $2, $3, $4, $5, $6, $7)
             on conflict (org_id, name_key) do nothing"
        );
        let (org, key) = (self.org()?, team.name.key());
        let values = binds![org, team.id, team.name.as_str(), &key, team.revision, team.created_at, team.updated_at];
        Ok(self.execute(sql, values).await? > 0)
    }

    /// Saves a team over the revision that was seen; `false` if it is another one by now.
    pub async fn update_team(&mut self, team: &Team, seen: i64) -> Result<bool, StoreError> {
        let sql = sql!(
            "update team set name = $4, name_key = $5, revision = $6, updated_at = $7
             where org_id = $1 and id = $2 and revision = $3"
        );
        let (org, key) = (self.org()?, team.name.key());
        let values = binds![org, team.id, seen, team.name.as_str(), &key, team.revision, team.updated_at];
        Ok(self.execute(sql, values).await? > 0)
    }

    /// Deletes a team that no role is given for any more, with who was in it.
    pub async fn delete_team(&mut self, id: TeamId) -> Result<bool, StoreError> {
        let sql = sql!("delete from team where org_id = $1 and id = $2");
        let org = self.org()?;
        Ok(self.execute(sql, binds![org, id]).await? > 0)
    }

    pub async fn load_team(&mut self, id: TeamId) -> Result<Option<Team>, StoreError> {
        let sql = sql!("select id, name, revision, created_at, updated_at from team where org_id = $1 and id = $2");
        let org = self.org()?;
        self.fetch_optional(sql, binds![org, id]).await?.map(|row| read(&row)).transpose()
    }

    /// The team with a name's key.
    pub async fn load_team_by_name(&mut self, name: &RoleName) -> Result<Option<Team>, StoreError> {
        let sql =
            sql!("select id, name, revision, created_at, updated_at from team where org_id = $1 and name_key = $2");
        let (org, key) = (self.org()?, name.key());
        self.fetch_optional(sql, binds![org, &key]).await?.map(|row| read(&row)).transpose()
    }

    /// Newest first.
    pub async fn list_teams(&mut self, page: PageRequest) -> Result<Page<Team>, StoreError> {
        let sql = sql!(
            "select id, name, revision, created_at, updated_at from team
             where org_id = $1 and id < $2 order by id desc limit $3"
        );
        let org = self.org()?;
        let rows = self.fetch(sql, binds![org, page.bound(), page.fetch()]).await?;
        let items = rows.iter().map(read).collect::<Result<Vec<_>, _>>()?;
        Ok(page.page(items, |team| team.id.uuid()))
    }

    /// Puts somebody into a team; `false` if he is in it already.
    pub async fn insert_team_member(&mut self, team: TeamId, user: UserId, now: Timestamp) -> Result<bool, StoreError> {
        let sql = sql!(
            "insert into team_member (org_id, team_id, user_id, created_at) values ($1, $2, $3, $4)
             on conflict (org_id, team_id, user_id) do nothing"
        );
        let org = self.org()?;
        Ok(self.execute(sql, binds![org, team, user, now]).await? > 0)
    }

    pub async fn delete_team_member(&mut self, team: TeamId, user: UserId) -> Result<bool, StoreError> {
        let sql = sql!("delete from team_member where org_id = $1 and team_id = $2 and user_id = $3");
        let org = self.org()?;
        Ok(self.execute(sql, binds![org, team, user]).await? > 0)
    }

    /// By user, newest accounts first.
    pub async fn list_team_members(&mut self, team: TeamId, page: PageRequest) -> Result<Page<TeamMember>, StoreError> {
        let sql = sql!(
            "select user_id, created_at from team_member
             where org_id = $1 and team_id = $2 and user_id < $3 order by user_id desc limit $4"
        );
        let org = self.org()?;
        let rows = self.fetch(sql, binds![org, team, page.bound(), page.fetch()]).await?;
        let items = rows.iter().map(read_member).collect::<Result<Vec<_>, _>>()?;
        Ok(page.page(items, |member| member.user.uuid()))
    }

    pub async fn count_teams(&mut self) -> Result<i64, StoreError> {
        let sql = sql!("select count(*) as there from team where org_id = $1");
        let org = self.org()?;
        self.fetch_optional(sql, binds![org]).await?.map_or(Ok(0), |row| row.get("there"))
    }

    pub async fn count_team_members(&mut self, team: TeamId) -> Result<i64, StoreError> {
        let sql = sql!("select count(*) as there from team_member where org_id = $1 and team_id = $2");
        let org = self.org()?;
        self.fetch_optional(sql, binds![org, team]).await?.map_or(Ok(0), |row| row.get("there"))
    }
}
