//! Invitations into an organization.

use bulkhead_model::account::Email;
use bulkhead_model::id::InvitationId;
use bulkhead_model::time::Timestamp;

use crate::error::StoreError;
use crate::page::{Page, PageRequest};
use crate::sql::{Row, binds, sql};
use crate::tx::Tx;

#[derive(Clone, Debug)]
pub struct Invitation {
    pub id: InvitationId,
    pub email: Email,
    pub role: String,
    /// As audit entries name who invites.
    pub invited_by: String,
    /// Its link went to the address itself, and to nobody else.
    pub is_mailed: bool,
    /// Until when the role is given; for ever without one.
    pub valid_until: Option<Timestamp>,
    pub created_at: Timestamp,
    pub expires_at: Timestamp,
    pub accepted_at: Option<Timestamp>,
    pub revoked_at: Option<Timestamp>,
}

impl Invitation {
    /// Whether it can still be accepted.
    #[must_use]
    pub fn is_open(&self, now: Timestamp) -> bool {
        self.accepted_at.is_none() && self.revoked_at.is_none() && now < self.expires_at
    }
}

fn read(row: &Row) -> Result<Invitation, StoreError> {
    Ok(Invitation {
        id: row.get("id")?,
        email: row.parsed("email", |text| text.parse().ok())?,
        role: row.get("role")?,
        invited_by: row.get("invited_by")?,
        is_mailed: row.get::<i64>("mailed")? == 1,
        valid_until: row.get("valid_until")?,
        created_at: row.get("created_at")?,
        expires_at: row.get("expires_at")?,
        accepted_at: row.get("accepted_at")?,
        revoked_at: row.get("revoked_at")?,
    })
}

impl Tx {
    pub async fn insert_invitation(&mut self, invitation: &Invitation) -> Result<(), StoreError> {
        let sql = sql!(
            "insert into invitation (org_id, id, email, role, invited_by, mailed, valid_until, created_at, expires_at, accepted_at,
                 revoked_at)
             values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)"
        );
        let org = self.org()?;
        let values = binds![
            org,
            invitation.id,
            invitation.email.as_str(),
            &invitation.role,
            &invitation.invited_by,
            i64::from(invitation.is_mailed),
            invitation.valid_until,
            invitation.created_at,
            invitation.expires_at,
            invitation.accepted_at,
            invitation.revoked_at
        ];
        self.execute(sql, values).await.map(drop)
    }

    pub async fn load_invitation(&mut self, id: InvitationId) -> Result<Option<Invitation>, StoreError> {
        let sql = sql!(
            "select id, email, role, invited_by, mailed, valid_until, created_at, expires_at, accepted_at, revoked_at
             from invitation where org_id = $1 and id = $2"
        );
        let org = self.org()?;
        self.fetch_optional(sql, binds![org, id]).await?.map(|row| read(&row)).transpose()
    }

    /// Newest first, those that were accepted, revoked or are over included.
    pub async fn list_invitations(&mut self, page: PageRequest) -> Result<Page<Invitation>, StoreError> {
        let sql = sql!(
            "select id, email, role, invited_by, mailed, valid_until, created_at, expires_at, accepted_at, revoked_at
             from invitation where org_id = $1 and id < $2 order by id desc limit $3"
        );
        let org = self.org()?;
        let rows = self.fetch(sql, binds![org, page.bound(), page.fetch()]).await?;
        let invitations = rows.iter().map(read).collect::<Result<Vec<_>, _>>()?;
        Ok(page.page(invitations, |invitation| invitation.id.uuid()))
    }

    /// Uses an invitation: nobody did before, nobody took it back, and its time is not over.
    pub async fn accept_invitation(&mut self, id: InvitationId, now: Timestamp) -> Result<bool, StoreError> {
        let sql = sql!(
            "update invitation set accepted_at = $3
             where org_id = $1 and id = $2 and accepted_at is null and revoked_at is null and expires_at > $3"
        );
        let org = self.org()?;
        Ok(self.execute(sql, binds![org, id, now]).await? > 0)
    }

    /// Takes an invitation back; `false` when there is none that could still be accepted or is over.
    pub async fn revoke_invitation(&mut self, id: InvitationId, now: Timestamp) -> Result<bool, StoreError> {
        let sql = sql!(
            "update invitation set revoked_at = $3 where org_id = $1 and id = $2 and accepted_at is null and revoked_at is null"
        );
        let org = self.org()?;
        Ok(self.execute(sql, binds![org, id, now]).await? > 0)
    }

    /// Takes back what was sent to this address before.
    pub async fn revoke_invitations_to(&mut self, email: &Email, now: Timestamp) -> Result<u64, StoreError> {
        let sql = sql!(
            "update invitation set revoked_at = $3 where org_id = $1 and email = $2 and accepted_at is null and revoked_at is null"
        );
        let org = self.org()?;
        self.execute(sql, binds![org, email.as_str(), now]).await
    }

    /// Takes back what this person or key, as audit entries name it, invited to.
    pub async fn revoke_invitations_by(&mut self, inviter: &str, now: Timestamp) -> Result<u64, StoreError> {
        let sql = sql!(
            "update invitation set revoked_at = $3 where org_id = $1 and invited_by = $2 and accepted_at is null and revoked_at is null"
        );
        let org = self.org()?;
        self.execute(sql, binds![org, inviter, now]).await
    }

    /// How many can still be accepted, up to the cap.
    pub async fn count_open_invitations(&mut self, now: Timestamp, cap: u32) -> Result<usize, StoreError> {
        let sql = sql!(
            "select id from invitation where org_id = $1 and accepted_at is null and revoked_at is null and expires_at > $2 limit $3"
        );
        let org = self.org()?;
        Ok(self.fetch(sql, binds![org, now, cap]).await?.len())
    }
}
