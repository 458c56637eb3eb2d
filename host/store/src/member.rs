//! Who belongs to which organization.

use bulkhead_model::account::Email;
use bulkhead_model::id::{OrgId, UserId};
use bulkhead_model::name::Slug;
use bulkhead_model::permission::SystemReason;
use bulkhead_model::time::Timestamp;
use uuid::Uuid;

use crate::account::{read_state, state};
use crate::error::StoreError;
use crate::page::{Page, PageRequest};
use crate::sql::{Row, binds, sql};
use crate::tx::Tx;

/// A person in the transaction's organization.
#[derive(Clone, Debug)]
pub struct Member {
    pub user: UserId,
    pub email: Email,
    pub name: String,
    /// What they joined as. What they may is what their assignments give.
    pub role: String,
    pub is_active: bool,
    /// Whether the person can sign in at all.
    pub is_user_active: bool,
    pub created_at: Timestamp,
}

/// An organization that a person belongs to.
#[derive(Clone, Debug)]
pub struct Membership {
    pub org: OrgId,
    pub slug: Slug,
    pub name: String,
    /// What they joined as. What they may is what their assignments give.
    pub role: String,
    pub is_active: bool,
}

fn read(row: &Row) -> Result<Member, StoreError> {
    Ok(Member {
        user: row.get("user_id")?,
        email: row.parsed("email", |text| text.parse().ok())?,
        name: row.get("name")?,
        role: row.get("role")?,
        is_active: read_state(row, "state")?,
        is_user_active: read_state(row, "user_state")?,
        created_at: row.get("created_at")?,
    })
}

fn read_membership(row: &Row) -> Result<Membership, StoreError> {
    Ok(Membership {
        org: row.get("org_id")?,
        slug: row.parsed("slug", |text| text.parse().ok())?,
        name: row.get("name")?,
        role: row.get("role")?,
        is_active: read_state(row, "state")?,
    })
}

/// Memberships that one statement reads.
const MEMBERSHIPS_AT_ONCE: u32 = 200;

impl Tx {
    /// Makes a person, who is not disabled, a member of the transaction's organization; `false` when they are one already.
    pub async fn insert_member(&mut self, user: UserId, role: &str, now: Timestamp) -> Result<bool, StoreError> {
        let sql = sql!(
            "insert into member (org_id, user_id, role, state, user_state, created_at, updated_at)
             values ($1, $2, $3, 'active', 'active', $4, $4)
             on conflict (org_id, user_id) do nothing"
        );
        let org = self.org()?;
        Ok(self.execute(sql, binds![org, user, role, now]).await? > 0)
    }

    /// A member, with what is shown of the person. Needs the scope of accounts as well.
    pub async fn load_member(&mut self, user: UserId) -> Result<Option<Member>, StoreError> {
        self.require_people()?;
        let sql = sql!(
            "select m.user_id, u.email, u.name, m.role, m.state, u.state as user_state, m.created_at
             from member m join user_account u on u.id = m.user_id where m.org_id = $1 and m.user_id = $2"
        );
        let org = self.org()?;
        self.fetch_optional(sql, binds![org, user]).await?.map(|row| read(&row)).transpose()
    }

    /// Newest person first. Needs the scope of accounts as well.
    pub async fn list_members(&mut self, page: PageRequest) -> Result<Page<Member>, StoreError> {
        self.require_people()?;
        let sql = sql!(
            "select m.user_id, u.email, u.name, m.role, m.state, u.state as user_state, m.created_at
             from member m join user_account u on u.id = m.user_id
             where m.org_id = $1 and m.user_id < $2 order by m.user_id desc limit $3"
        );
        let org = self.org()?;
        let rows = self.fetch(sql, binds![org, page.bound(), page.fetch()]).await?;
        let members = rows.iter().map(read).collect::<Result<Vec<_>, _>>()?;
        Ok(page.page(members, |member| member.user.uuid()))
    }

    /// Whether a person is a member of the transaction's organization, and disabled neither there nor everywhere.
    pub async fn is_active_member(&mut self, user: UserId) -> Result<bool, StoreError> {
        let sql = sql!(
            "select user_id from member where org_id = $1 and user_id = $2 and state = 'active' and user_state = 'active'"
        );
        let org = self.org()?;
        Ok(self.fetch_optional(sql, binds![org, user]).await?.is_some())
    }

    /// Disables or enables a member; `false` when they are that already, or none.
    pub async fn update_member_state(
        &mut self,
        user: UserId,
        is_active: bool,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        let sql =
            sql!("update member set state = $3, updated_at = $4 where org_id = $1 and user_id = $2 and state <> $3");
        let org = self.org()?;
        Ok(self.execute(sql, binds![org, user, state(is_active), now]).await? > 0)
    }

    /// Says in the organization whether the person is disabled everywhere: whoever asks for a member's rights cannot look at the person.
    /// Called for each organization of theirs in the transaction that says it of the person.
    pub async fn update_member_user_state(&mut self, user: UserId, is_active: bool) -> Result<bool, StoreError> {
        let sql = sql!("update member set user_state = $3 where org_id = $1 and user_id = $2");
        let org = self.org()?;
        Ok(self.execute(sql, binds![org, user, state(is_active)]).await? > 0)
    }

    pub async fn delete_member(&mut self, user: UserId) -> Result<bool, StoreError> {
        let sql = sql!("delete from member where org_id = $1 and user_id = $2");
        let org = self.org()?;
        Ok(self.execute(sql, binds![org, user]).await? > 0)
    }

    /// All organizations that a person belongs to, oldest first: what ends everywhere ends in the last of them too. Across organizations:
    /// needs the scope of `SystemReason::Accounts`.
    pub async fn list_memberships(&mut self, user: UserId) -> Result<Vec<Membership>, StoreError> {
        self.require_reason(SystemReason::Accounts)?;
        let sql = sql!(
            "select m.org_id, o.slug, o.name, m.role, m.state from member m join organization o on o.id = m.org_id
             where m.user_id = $1 and m.org_id > $2 order by m.org_id limit $3"
        );
        let (mut found, mut after) = (Vec::new(), OrgId::from_uuid(Uuid::nil()));
        loop {
            let rows = self.fetch(sql, binds![user, after, MEMBERSHIPS_AT_ONCE]).await?;
            for row in &rows {
                found.push(read_membership(row)?);
            }
            match found.last() {
                Some(last) if rows.len() == MEMBERSHIPS_AT_ONCE as usize => after = last.org,
                Some(_) | None => return Ok(found),
            }
        }
    }

    /// A person's place in the organization of this id. Needs the scope of `SystemReason::Accounts`.
    pub async fn load_membership(&mut self, user: UserId, org: OrgId) -> Result<Option<Membership>, StoreError> {
        self.require_reason(SystemReason::Accounts)?;
        let sql = sql!(
            "select m.org_id, o.slug, o.name, m.role, m.state from member m join organization o on o.id = m.org_id
             where m.user_id = $1 and m.org_id = $2"
        );
        self.fetch_optional(sql, binds![user, org]).await?.map(|row| read_membership(&row)).transpose()
    }

    /// … of this short name.
    pub async fn load_membership_by_slug(
        &mut self,
        user: UserId,
        slug: &Slug,
    ) -> Result<Option<Membership>, StoreError> {
        self.require_reason(SystemReason::Accounts)?;
        let sql = sql!(
            "select m.org_id, o.slug, o.name, m.role, m.state from member m join organization o on o.id = m.org_id
             where m.user_id = $1 and o.slug = $2"
        );
        self.fetch_optional(sql, binds![user, slug.as_str()]).await?.map(|row| read_membership(&row)).transpose()
    }
}
