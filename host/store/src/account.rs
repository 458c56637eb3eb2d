//! People. Their rows belong to no organization: every method needs the scope of `SystemReason::Accounts` or `SystemReason::Admin`.

use bulkhead_model::account::Email;
use bulkhead_model::id::{OrgId, UserId};
use bulkhead_model::password::StoredPassword;
use bulkhead_model::permission::SystemReason;
use bulkhead_model::time::Timestamp;

use crate::error::StoreError;
use crate::sql::{Row, binds, sql, sql_postgres};
use crate::tx::Tx;

#[derive(Clone, Debug)]
pub struct User {
    pub id: UserId,
    pub email: Email,
    pub name: String,
    /// None until the person has chosen one.
    pub password: Option<StoredPassword>,
    pub password_changed_at: Option<Timestamp>,
    pub email_verified_at: Option<Timestamp>,
    pub is_active: bool,
    /// Administers the platform.
    pub is_super_admin: bool,
    /// Rises when everything that was handed out before is to be worth nothing.
    pub epoch: i64,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

pub(crate) fn state(is_active: bool) -> &'static str {
    if is_active { "active" } else { "disabled" }
}

pub(crate) fn read_state(row: &Row, column: &'static str) -> Result<bool, StoreError> {
    row.parsed(column, |text| match text {
        "active" => Some(true),
        "disabled" => Some(false),
        _ => None,
    })
}

fn read(row: &Row) -> Result<User, StoreError> {
    let password: Option<String> = row.get("password")?;
    let password = match password {
        Some(text) => Some(
            StoredPassword::parse(&text).ok_or_else(|| StoreError::corrupt("password", "no hash of a known form"))?,
        ),
        None => None,
    };
    Ok(User {
        id: row.get("id")?,
        email: row.parsed("email", |text| text.parse().ok())?,
        name: row.get("name")?,
        password,
        password_changed_at: row.get("password_changed_at")?,
        email_verified_at: row.get("email_verified_at")?,
        is_active: read_state(row, "state")?,
        is_super_admin: row.get::<i64>("super_admin")? == 1,
        epoch: row.get("epoch")?,
        created_at: row.get("created_at")?,
        updated_at: row.get("updated_at")?,
    })
}

impl Tx {
    /// Refuses what belongs to people to every scope but those that deal with them. On PostgreSQL row-level security stands behind it.
    pub(crate) fn require_people(&self) -> Result<(), StoreError> {
        match self.context.system {
            Some(SystemReason::Accounts | SystemReason::Admin) => Ok(()),
            Some(_) | None => Err(StoreError::Misuse("what belongs to people needs the scope of their accounts")),
        }
    }

    /// Lets a transaction about a person write the rows of an organization, its audit entries above all.
    pub async fn enter_org(&mut self, org: OrgId) -> Result<(), StoreError> {
        self.require_people()?;
        self.work_for(org).await
    }

    pub async fn insert_user(&mut self, user: &User) -> Result<(), StoreError> {
        self.require_people()?;
        let sql = sql!(
            "insert into user_account (id, email, name, password, password_changed_at, email_verified_at, state, super_admin, epoch,
                 created_at, updated_at)
             values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)"
        );
        let password = user.password.as_ref().map(ToString::to_string);
        let values = binds![
            user.id,
            user.email.as_str(),
            &user.name,
            &password,
            user.password_changed_at,
            user.email_verified_at,
            state(user.is_active),
            i64::from(user.is_super_admin),
            user.epoch,
            user.created_at,
            user.updated_at
        ];
        self.execute(sql, values).await.map(drop)
    }

    pub async fn load_user(&mut self, id: UserId) -> Result<Option<User>, StoreError> {
        self.require_people()?;
        let sql = sql!(
            "select id, email, name, password, password_changed_at, email_verified_at, state, super_admin, epoch, created_at, updated_at
             from user_account where id = $1"
        );
        self.fetch_optional(sql, binds![id]).await?.map(|row| read(&row)).transpose()
    }

    pub async fn load_user_by_email(&mut self, email: &Email) -> Result<Option<User>, StoreError> {
        self.require_people()?;
        let sql = sql!(
            "select id, email, name, password, password_changed_at, email_verified_at, state, super_admin, epoch, created_at, updated_at
             from user_account where email = $1"
        );
        self.fetch_optional(sql, binds![email.as_str()]).await?.map(|row| read(&row)).transpose()
    }

    /// Whether there is anybody at all. In a transaction that writes, nobody else becomes the first one beside it.
    pub async fn has_users(&mut self) -> Result<bool, StoreError> {
        self.require_people()?;
        Ok(self.fetch_optional(sql!("select id from user_account limit 1"), &[]).await?.is_some())
    }

    /// Keeps everybody else from making people until this transaction ends, so that there is one first of them. SQLite has one writer.
    pub async fn lock_users(&mut self) -> Result<(), StoreError> {
        self.require_people()?;
        if self.is_postgres() {
            // A lock that conflicts with itself, taken before the first look; readers go on.
            self.execute(sql_postgres!("lock table user_account in share row exclusive mode"), &[]).await?;
        }
        Ok(())
    }

    /// Gives a person another password. What was handed out before is worth nothing from here on.
    pub async fn update_user_password(
        &mut self,
        id: UserId,
        password: &StoredPassword,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        self.require_people()?;
        let sql = sql!(
            "update user_account set password = $2, password_changed_at = $3, updated_at = $3, epoch = epoch + 1 where id = $1"
        );
        Ok(self.execute(sql, binds![id, &password.to_string(), now]).await? > 0)
    }

    /// Says whether mail chose the password.
    pub async fn set_password_by_mail(&mut self, id: UserId, is_by_mail: bool) -> Result<bool, StoreError> {
        self.require_people()?;
        let sql = sql!("update user_account set password_by_mail = $2 where id = $1");
        Ok(self.execute(sql, binds![id, i64::from(is_by_mail)]).await? > 0)
    }

    /// Whether mail chose the password.
    pub async fn is_password_by_mail(&mut self, id: UserId) -> Result<bool, StoreError> {
        self.require_people()?;
        let sql = sql!("select id from user_account where id = $1 and password_by_mail = 1");
        Ok(self.fetch_optional(sql, binds![id]).await?.is_some())
    }

    /// Takes a person's password away: they have to choose another one by a link.
    pub async fn clear_user_password(&mut self, id: UserId, now: Timestamp) -> Result<bool, StoreError> {
        self.require_people()?;
        let sql = sql!("update user_account set password = null, updated_at = $2 where id = $1");
        Ok(self.execute(sql, binds![id, now]).await? > 0)
    }

    /// Writes the same password's newer hash; nothing if it was changed meanwhile.
    pub async fn replace_user_hash(
        &mut self,
        id: UserId,
        before: &StoredPassword,
        after: &StoredPassword,
    ) -> Result<bool, StoreError> {
        self.require_people()?;
        let sql = sql!("update user_account set password = $3 where id = $1 and password = $2");
        Ok(self.execute(sql, binds![id, &before.to_string(), &after.to_string()]).await? > 0)
    }

    /// Says that mail to the person's address arrives; nothing if it is another address by now.
    pub async fn verify_user_email(&mut self, id: UserId, email: &Email, now: Timestamp) -> Result<bool, StoreError> {
        self.require_people()?;
        let sql = sql!("update user_account set email_verified_at = $3, updated_at = $3 where id = $1 and email = $2");
        Ok(self.execute(sql, binds![id, email.as_str(), now]).await? > 0)
    }

    /// Gives a person another address, proven. What was handed out before is worth nothing from here on.
    pub async fn update_user_email(&mut self, id: UserId, email: &Email, now: Timestamp) -> Result<bool, StoreError> {
        self.require_people()?;
        let sql = sql!(
            "update user_account set email = $2, email_verified_at = $3, updated_at = $3, epoch = epoch + 1 where id = $1"
        );
        Ok(self.execute(sql, binds![id, email.as_str(), now]).await? > 0)
    }

    pub async fn update_user_name(&mut self, id: UserId, name: &str, now: Timestamp) -> Result<bool, StoreError> {
        self.require_people()?;
        let sql = sql!("update user_account set name = $2, updated_at = $3 where id = $1");
        Ok(self.execute(sql, binds![id, name, now]).await? > 0)
    }

    /// Disables or enables a person; `false` when they are that already. What was handed out before is worth nothing from here on.
    pub async fn update_user_state(&mut self, id: UserId, is_active: bool, now: Timestamp) -> Result<bool, StoreError> {
        self.require_people()?;
        let sql = sql!(
            "update user_account set state = $2, updated_at = $3, epoch = epoch + 1 where id = $1 and state <> $2"
        );
        Ok(self.execute(sql, binds![id, state(is_active), now]).await? > 0)
    }

    /// Makes everything worth nothing that was handed out to the person before.
    pub async fn raise_user_epoch(&mut self, id: UserId, now: Timestamp) -> Result<bool, StoreError> {
        self.require_people()?;
        let sql = sql!("update user_account set epoch = epoch + 1, updated_at = $2 where id = $1");
        Ok(self.execute(sql, binds![id, now]).await? > 0)
    }

    /// Writes down that the person signed in for the first time: `false` when they did before.
    pub async fn mark_first_sign_in(&mut self, id: UserId, now: Timestamp) -> Result<bool, StoreError> {
        self.require_people()?;
        let sql = sql!("update user_account set signed_in_at = $2 where id = $1 and signed_in_at is null");
        Ok(self.execute(sql, binds![id, now]).await? > 0)
    }

    /// How many active people administer the platform, up to two.
    pub async fn count_super_admins(&mut self) -> Result<usize, StoreError> {
        self.require_people()?;
        let sql = sql!("select id from user_account where super_admin = 1 and state = 'active' limit 2");
        Ok(self.fetch(sql, &[]).await?.len())
    }
}
