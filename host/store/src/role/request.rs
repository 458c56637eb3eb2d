//! Requests for a role for some hours.

use std::time::Duration;

use bulkhead_model::id::{AssignmentId, RoleRequestId, TeamId, UserId};
use bulkhead_model::role::RoleRef;
use bulkhead_model::role::activation::{Request, RequestState};
use bulkhead_model::time::Timestamp;

use crate::error::StoreError;
use crate::page::{Page, PageRequest};
use crate::sql::{Row, binds, sql};
use crate::tx::Tx;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoleRequest {
    pub id: RoleRequestId,
    pub role: RoleRef,
    pub team: Option<TeamId>,
    pub reason: String,
    pub request: Request,
    pub answered_at: Option<Timestamp>,
    pub answered_by: Option<UserId>,
    /// What whoever answered it said.
    pub answer: Option<String>,
    pub assignment: Option<AssignmentId>,
}

fn read(row: &Row) -> Result<RoleRequest, StoreError> {
    Ok(RoleRequest {
        id: row.get("id")?,
        role: row.parsed("role", |text| text.parse().ok())?,
        team: row.get("team_id")?,
        reason: row.get("reason")?,
        request: Request {
            asked_by: row.get("user_id")?,
            asked_at: row.get("asked_at")?,
            duration: Duration::from_secs(u64::from(row.get::<u32>("duration_s")?)),
            state: row.parsed("state", RequestState::from_name)?,
        },
        answered_at: row.get("answered_at")?,
        answered_by: row.get("answered_by")?,
        answer: row.get("answer")?,
        assignment: row.get("assignment_id")?,
    })
}

impl Tx {
    pub async fn insert_role_request(&mut self, asked: &RoleRequest) -> Result<(), StoreError> {
        let sql = sql!(
            "insert into role_request (org_id, id, user_id, role, team_id, reason, duration_s, state, asked_at)
             values ($1, $2, $3, $4, $5, $6, $7, $8, $9)"
        );
        let (org, role) = (self.org()?, asked.role.to_string());
        let Request { asked_by, asked_at, duration, state } = asked.request;
        let duration_s = i64::try_from(duration.as_secs()).unwrap_or(i64::MAX);
        let values =
            binds![org, asked.id, asked_by, &role, asked.team, &asked.reason, duration_s, state.as_str(), asked_at];
        self.execute(sql, values).await.map(drop)
    }

    pub async fn load_role_request(&mut self, id: RoleRequestId) -> Result<Option<RoleRequest>, StoreError> {
        let sql = sql!(
            "select id, user_id, role, team_id, reason, duration_s, state, asked_at, answered_at, answered_by, answer, assignment_id
             from role_request where org_id = $1 and id = $2"
        );
        let org = self.org()?;
        self.fetch_optional(sql, binds![org, id]).await?.map(|row| read(&row)).transpose()
    }

    /// Saves what became of a request that waits; `false` if somebody was faster.
    pub async fn answer_role_request(&mut self, answered: &RoleRequest) -> Result<bool, StoreError> {
        let sql = sql!(
            "update role_request set state = $3, answered_at = $4, answered_by = $5, answer = $6, assignment_id = $7
             where org_id = $1 and id = $2 and state = 'waiting'"
        );
        let org = self.org()?;
        let values = binds![
            org,
            answered.id,
            answered.request.state.as_str(),
            answered.answered_at,
            answered.answered_by,
            &answered.answer,
            answered.assignment
        ];
        Ok(self.execute(sql, values).await? > 0)
    }

    /// Newest first.
    pub async fn list_role_requests(&mut self, page: PageRequest) -> Result<Page<RoleRequest>, StoreError> {
        let sql = sql!(
            "select id, user_id, role, team_id, reason, duration_s, state, asked_at, answered_at, answered_by, answer, assignment_id
             from role_request where org_id = $1 and id < $2 order by id desc limit $3"
        );
        let org = self.org()?;
        let rows = self.fetch(sql, binds![org, page.bound(), page.fetch()]).await?;
        let items = rows.iter().map(read).collect::<Result<Vec<_>, _>>()?;
        Ok(page.page(items, |request| request.id.uuid()))
    }

    /// Requests of a user that wait and were made after `since`.
    pub async fn count_waiting_requests(&mut self, user: UserId, since: Timestamp) -> Result<u64, StoreError> {
        let sql = sql!(
            "select count(*) as there from role_request
             where org_id = $1 and user_id = $2 and state = 'waiting' and asked_at > $3"
        );
        let org = self.org()?;
        let row = self.fetch_optional(sql, binds![org, user, since]).await?;
        let there: i64 = row.map_or(Ok(0), |row| row.get("there"))?;
        Ok(u64::try_from(there).unwrap_or(0))
    }
}
