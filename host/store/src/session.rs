//! Sessions, and the browsers that people signed in with. A session that has ended has no row.

use std::time::Duration;

use bulkhead_model::id::{DeviceId, OrgId, SessionId, UserId};
use bulkhead_model::session::SessionTimes;
use bulkhead_model::time::Timestamp;
use bulkhead_model::token::SecretHash;

use crate::error::StoreError;
use crate::job::micros;
use crate::sql::{Row, binds, sql};
use crate::tx::Tx;

#[derive(Clone, Debug)]
pub struct Session {
    pub id: SessionId,
    pub user: UserId,
    pub token_hash: SecretHash,
    pub device: Option<DeviceId>,
    /// The organization that the person has in front of them.
    pub active_org: Option<OrgId>,
    /// What was proven, as RFC 8176 names it, divided by spaces.
    pub amr: String,
    pub address: String,
    pub agent: String,
    pub times: SessionTimes,
    pub created_at: Timestamp,
}

fn read(row: &Row) -> Result<Session, StoreError> {
    let idle_ms: i64 = row.get("idle_ms")?;
    Ok(Session {
        id: row.get("id")?,
        user: row.get("user_id")?,
        token_hash: SecretHash(row.get("token_hash")?),
        device: row.get("device_id")?,
        active_org: row.get("active_org")?,
        amr: row.get("amr")?,
        address: row.get("address")?,
        agent: row.get("agent")?,
        times: SessionTimes {
            auth_at: row.get("auth_at")?,
            expires_at: row.get("expires_at")?,
            idle: Duration::from_millis(u64::try_from(idle_ms).unwrap_or(0)),
            seen_at: row.get("seen_at")?,
        },
        created_at: row.get("created_at")?,
    })
}

/// A browser that a person signed in with before.
#[derive(Clone, Debug)]
pub struct Device {
    pub id: DeviceId,
    pub user: UserId,
    pub token_hash: SecretHash,
    pub agent: String,
    pub created_at: Timestamp,
    pub seen_at: Timestamp,
    /// Until when it stands for a second factor, where an organization takes it for one.
    pub trusted_until: Option<Timestamp>,
}

impl Device {
    #[must_use]
    pub fn is_trusted(&self, now: Timestamp) -> bool {
        self.trusted_until.is_some_and(|end| now < end)
    }
}

fn read_device(row: &Row) -> Result<Device, StoreError> {
    Ok(Device {
        id: row.get("id")?,
        user: row.get("user_id")?,
        token_hash: SecretHash(row.get("token_hash")?),
        agent: row.get("agent")?,
        created_at: row.get("created_at")?,
        seen_at: row.get("seen_at")?,
        trusted_until: row.get("trusted_until")?,
    })
}

impl Tx {
    pub async fn insert_session(&mut self, session: &Session) -> Result<(), StoreError> {
        self.require_people()?;
        let sql = sql!(
            "insert into session (id, user_id, token_hash, device_id, active_org, amr, address, agent, auth_at, expires_at, idle_ms,
                 seen_at, created_at)
             values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)"
        );
        let times = session.times;
        let values = binds![
            session.id,
            session.user,
            &session.token_hash.0,
            session.device,
            session.active_org,
            &session.amr,
            &session.address,
            &session.agent,
            times.auth_at,
            times.expires_at,
            micros(times.idle) / 1_000,
            times.seen_at,
            session.created_at
        ];
        self.execute(sql, values).await.map(drop)
    }

    /// The session whose cookie has this hash, whether it is past its limits or not.
    pub async fn load_session_by_token(&mut self, hash: &SecretHash) -> Result<Option<Session>, StoreError> {
        self.require_people()?;
        let sql = sql!(
            "select id, user_id, token_hash, device_id, active_org, amr, address, agent, auth_at, expires_at, idle_ms, seen_at,
                 created_at from session where token_hash = $1"
        );
        self.fetch_optional(sql, binds![&hash.0]).await?.map(|row| read(&row)).transpose()
    }

    /// One of a person's sessions, whether it is past its limits or not.
    pub async fn load_session(&mut self, user: UserId, id: SessionId) -> Result<Option<Session>, StoreError> {
        self.require_people()?;
        let sql = sql!(
            "select id, user_id, token_hash, device_id, active_org, amr, address, agent, auth_at, expires_at, idle_ms, seen_at,
                 created_at from session where id = $1 and user_id = $2"
        );
        self.fetch_optional(sql, binds![id, user]).await?.map(|row| read(&row)).transpose()
    }

    /// Those of a person's sessions in which the transaction's organization, or none, is in front, newest first. Needs the scope of accounts
    /// as well.
    pub async fn list_sessions_here(&mut self, user: UserId) -> Result<Vec<Session>, StoreError> {
        self.require_people()?;
        let org = self.org()?;
        let sql = sql!(
            "select id, user_id, token_hash, device_id, active_org, amr, address, agent, auth_at, expires_at, idle_ms, seen_at,
                 created_at from session where user_id = $1 and (active_org is null or active_org = $2) order by id desc limit 200"
        );
        self.fetch(sql, binds![user, org]).await?.iter().map(read).collect()
    }

    /// A person's sessions, newest first, those past their limits included.
    pub async fn list_sessions(&mut self, user: UserId) -> Result<Vec<Session>, StoreError> {
        self.require_people()?;
        let sql = sql!(
            "select id, user_id, token_hash, device_id, active_org, amr, address, agent, auth_at, expires_at, idle_ms, seen_at,
                 created_at from session where user_id = $1 order by id desc limit 200"
        );
        self.fetch(sql, binds![user]).await?.iter().map(read).collect()
    }

    /// Writes down that a session was used.
    pub async fn touch_session(&mut self, id: SessionId, now: Timestamp) -> Result<bool, StoreError> {
        self.require_people()?;
        let sql = sql!("update session set seen_at = $2 where id = $1 and seen_at < $2");
        Ok(self.execute(sql, binds![id, now]).await? > 0)
    }

    /// Gives a session another token, as its row is to be from now on; `false` when it has ended or has another token by now.
    pub async fn renew_session(&mut self, before: &SecretHash, renewed: &Session) -> Result<bool, StoreError> {
        self.require_people()?;
        let sql = sql!(
            "update session set token_hash = $3, amr = $4, auth_at = $5, seen_at = $6 where id = $1 and token_hash = $2"
        );
        let (times, after) = (renewed.times, &renewed.token_hash.0);
        let values = binds![renewed.id, &before.0, after, &renewed.amr, times.auth_at, times.seen_at];
        Ok(self.execute(sql, values).await? > 0)
    }

    /// Says in which browser a session is.
    pub async fn set_session_device(&mut self, id: SessionId, device: DeviceId) -> Result<bool, StoreError> {
        self.require_people()?;
        let sql = sql!("update session set device_id = $2 where id = $1");
        Ok(self.execute(sql, binds![id, device]).await? > 0)
    }

    pub async fn set_active_org(&mut self, id: SessionId, org: OrgId) -> Result<bool, StoreError> {
        self.require_people()?;
        let sql = sql!("update session set active_org = $2 where id = $1");
        Ok(self.execute(sql, binds![id, org]).await? > 0)
    }

    /// Ends one of a person's sessions.
    pub async fn delete_session(&mut self, user: UserId, id: SessionId) -> Result<bool, StoreError> {
        self.require_people()?;
        let sql = sql!("delete from session where user_id = $1 and id = $2");
        Ok(self.execute(sql, binds![user, id]).await? > 0)
    }

    /// Ends a person's sessions, but for the one to keep.
    pub async fn delete_sessions(&mut self, user: UserId, keep: Option<SessionId>) -> Result<u64, StoreError> {
        self.require_people()?;
        let sql = sql!("delete from session where user_id = $1 and id is distinct from $2");
        self.execute(sql, binds![user, keep]).await
    }

    /// Ends those of a person's sessions in which the transaction's organization, or none, is in front; or one of them. Needs the scope of
    /// accounts as well.
    pub async fn delete_sessions_here(&mut self, user: UserId, only: Option<SessionId>) -> Result<u64, StoreError> {
        self.require_people()?;
        let org = self.org()?;
        let sql = sql!(
            "delete from session where user_id = $1 and (active_org is null or active_org = $2) and id = coalesce($3, id)"
        );
        self.execute(sql, binds![user, org, only]).await
    }

    /// Removes sessions that are past their overall limit.
    pub async fn remove_expired_sessions(&mut self, now: Timestamp) -> Result<u64, StoreError> {
        self.require_people()?;
        let sql = sql!("delete from session where expires_at <= $1");
        self.execute(sql, binds![now]).await
    }

    pub async fn insert_device(&mut self, device: &Device) -> Result<(), StoreError> {
        self.require_people()?;
        let sql = sql!(
            "insert into device (id, user_id, token_hash, agent, created_at, seen_at, trusted_until)
             values ($1, $2, $3, $4, $5, $6, $7)"
        );
        let values = binds![
            device.id,
            device.user,
            &device.token_hash.0,
            &device.agent,
            device.created_at,
            device.seen_at,
            device.trusted_until
        ];
        self.execute(sql, values).await.map(drop)
    }

    /// The browser whose cookie has this hash, whoever it is known to.
    pub async fn load_device_by_token(&mut self, hash: &SecretHash) -> Result<Option<Device>, StoreError> {
        self.require_people()?;
        let sql = sql!(
            "select id, user_id, token_hash, agent, created_at, seen_at, trusted_until from device where token_hash = $1"
        );
        self.fetch_optional(sql, binds![&hash.0]).await?.map(|row| read_device(&row)).transpose()
    }

    /// A person's browsers, the one that was used last first.
    pub async fn list_devices(&mut self, user: UserId) -> Result<Vec<Device>, StoreError> {
        self.require_people()?;
        let sql = sql!(
            "select id, user_id, token_hash, agent, created_at, seen_at, trusted_until from device where user_id = $1
             order by seen_at desc, id desc limit 50"
        );
        self.fetch(sql, binds![user]).await?.iter().map(read_device).collect()
    }

    /// Forgets one of a person's browsers and ends the sessions in it.
    pub async fn delete_device(&mut self, user: UserId, id: DeviceId) -> Result<bool, StoreError> {
        self.require_people()?;
        self.execute(sql!("delete from session where user_id = $1 and device_id = $2"), binds![user, id]).await?;
        Ok(self.execute(sql!("delete from device where user_id = $1 and id = $2"), binds![user, id]).await? > 0)
    }

    /// Writes down that somebody signed in with it, and its new token.
    pub async fn renew_device(&mut self, id: DeviceId, token: &SecretHash, now: Timestamp) -> Result<bool, StoreError> {
        self.require_people()?;
        let sql = sql!("update device set token_hash = $2, seen_at = $3 where id = $1");
        Ok(self.execute(sql, binds![id, &token.0, now]).await? > 0)
    }

    /// Lets one of a person's browsers stand for a second factor until then.
    pub async fn trust_device(&mut self, user: UserId, id: DeviceId, until: Timestamp) -> Result<bool, StoreError> {
        self.require_people()?;
        let sql = sql!("update device set trusted_until = $3 where user_id = $1 and id = $2");
        Ok(self.execute(sql, binds![user, id, until]).await? > 0)
    }

    /// Whether one of a person's browsers stands for a second factor.
    pub async fn is_device_trusted(&mut self, user: UserId, id: DeviceId, now: Timestamp) -> Result<bool, StoreError> {
        self.require_people()?;
        let sql = sql!("select id from device where user_id = $1 and id = $2 and trusted_until > $3");
        Ok(self.fetch_optional(sql, binds![user, id, now]).await?.is_some())
    }

    /// Forgets a person's browsers but for the `keep` that were used last.
    pub async fn forget_devices(&mut self, user: UserId, keep: u32) -> Result<u64, StoreError> {
        self.require_people()?;
        let sql = sql!(
            "delete from device where user_id = $1
               and id not in (select id from device where user_id = $1 order by seen_at desc, id desc limit $2)"
        );
        self.execute(sql, binds![user, keep]).await
    }
}
