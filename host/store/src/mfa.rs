//! Second factors: authenticator apps, backup codes, sign-ins that wait for one, and what an organization asks for.
//!
//! That a code is worth something once is one conditional update each: [`Tx::use_totp_step`], [`Tx::use_backup_code`],
//! [`Tx::use_sign_in_step`].

use bulkhead_model::id::{DeviceId, SessionId, SignInStepId, TotpId, UserId};
use bulkhead_model::mfa::{MfaPolicy, SignInPolicy};
use bulkhead_model::password::StoredPassword;
use bulkhead_model::time::Timestamp;
use bulkhead_model::token::SecretHash;

use crate::error::StoreError;
use crate::sql::{Row, binds, sql};
use crate::tx::Tx;

/// How far an authenticator app is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TotpState {
    /// Its secret was shown.
    Shown,
    /// A code of it was right, and backup codes were shown.
    Verified,
    /// It counts.
    Active,
}

impl TotpState {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Shown => "shown",
            Self::Verified => "verified",
            Self::Active => "active",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        [Self::Shown, Self::Verified, Self::Active].into_iter().find(|state| state.as_str() == text)
    }
}

/// A person's authenticator app: one that counts, and one that is being set up.
#[derive(Clone, Debug)]
pub struct Totp {
    pub id: TotpId,
    pub user: UserId,
    pub state: TotpState,
    /// The session that sets it up, and the only one that can go on; none once it counts.
    pub session: Option<SessionId>,
    /// Sealed.
    pub secret: Vec<u8>,
    pub key_version: i64,
    /// The last step that was used; none at or before it counts.
    pub last_step: i64,
    /// Wrong codes in a row.
    pub failures: u32,
    pub created_at: Timestamp,
    /// When a set-up ends that was not finished.
    pub expires_at: Option<Timestamp>,
}

fn read(row: &Row) -> Result<Totp, StoreError> {
    Ok(Totp {
        id: row.get("id")?,
        user: row.get("user_id")?,
        state: row.parsed("state", TotpState::parse)?,
        session: row.get("session_id")?,
        secret: row.get("secret")?,
        key_version: row.get("key_version")?,
        last_step: row.get("last_step")?,
        failures: row.get("failures")?,
        created_at: row.get("created_at")?,
        expires_at: row.get("expires_at")?,
    })
}

/// A code of the person's set that was not used yet. All of a set have one salt.
#[derive(Clone, Debug)]
pub struct StoredBackupCode {
    pub position: i64,
    pub hash: StoredPassword,
}

/// Somebody whose password was right, and who has to prove a second factor.
#[derive(Clone, Debug)]
pub struct SignInStep {
    pub id: SignInStepId,
    pub user: UserId,
    pub token_hash: SecretHash,
    /// The person's epoch when the password was right.
    pub epoch: i64,
    /// The browser that was known when it began.
    pub device: Option<DeviceId>,
    pub created_at: Timestamp,
    pub expires_at: Timestamp,
}

impl Tx {
    /// Begins a set-up; one that was begun before is worth nothing from here on.
    pub async fn replace_totp_set_up(&mut self, totp: &Totp) -> Result<(), StoreError> {
        self.require_people()?;
        self.execute(sql!("delete from totp where user_id = $1 and state <> 'active'"), binds![totp.user]).await?;
        let sql = sql!(
            "insert into totp (id, user_id, state, session_id, secret, key_version, last_step, failures, created_at, expires_at)
             values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)"
        );
        let values = binds![
            totp.id,
            totp.user,
            totp.state.as_str(),
            totp.session,
            &totp.secret,
            totp.key_version,
            totp.last_step,
            totp.failures,
            totp.created_at,
            totp.expires_at
        ];
        self.execute(sql, values).await.map(drop)
    }

    /// The app that counts.
    pub async fn load_totp(&mut self, user: UserId) -> Result<Option<Totp>, StoreError> {
        self.require_people()?;
        let sql = sql!(
            "select id, user_id, state, session_id, secret, key_version, last_step, failures, created_at, expires_at from totp
             where user_id = $1 and state = 'active'"
        );
        self.fetch_optional(sql, binds![user]).await?.map(|row| read(&row)).transpose()
    }

    /// The app that is being set up, whether its time is over or not.
    pub async fn load_totp_set_up(&mut self, user: UserId) -> Result<Option<Totp>, StoreError> {
        self.require_people()?;
        let sql = sql!(
            "select id, user_id, state, session_id, secret, key_version, last_step, failures, created_at, expires_at from totp
             where user_id = $1 and state <> 'active'"
        );
        self.fetch_optional(sql, binds![user]).await?.map(|row| read(&row)).transpose()
    }

    /// Uses a step of time: `false` when it or a later one was used before, by whomever and however the code was written.
    pub async fn use_totp_step(&mut self, id: TotpId, step: i64) -> Result<bool, StoreError> {
        self.require_people()?;
        let sql = sql!("update totp set last_step = $2, failures = 0 where id = $1 and last_step < $2");
        Ok(self.execute(sql, binds![id, step]).await? > 0)
    }

    /// Counts a wrong code.
    pub async fn fail_totp(&mut self, id: TotpId) -> Result<bool, StoreError> {
        self.require_people()?;
        Ok(self.execute(sql!("update totp set failures = failures + 1 where id = $1"), binds![id]).await? > 0)
    }

    /// Lets an app's codes count again that were wrong too often.
    pub async fn forgive_totp(&mut self, user: UserId) -> Result<bool, StoreError> {
        self.require_people()?;
        let sql = sql!("update totp set failures = 0 where user_id = $1 and failures > 0");
        Ok(self.execute(sql, binds![user]).await? > 0)
    }

    /// Says that a code of a set-up was right.
    pub async fn verify_totp(&mut self, id: TotpId) -> Result<bool, StoreError> {
        self.require_people()?;
        let sql = sql!("update totp set state = 'verified' where id = $1 and state = 'shown'");
        Ok(self.execute(sql, binds![id]).await? > 0)
    }

    /// Makes a verified set-up the app that counts, with its backup codes, instead of the one that did with its own.
    pub async fn activate_totp(&mut self, user: UserId, id: TotpId) -> Result<bool, StoreError> {
        self.require_people()?;
        self.execute(sql!("delete from totp where user_id = $1 and state = 'active'"), binds![user]).await?;
        let sql = sql!(
            "update totp set state = 'active', session_id = null, expires_at = null where id = $1 and state = 'verified'"
        );
        Ok(self.execute(sql, binds![id]).await? > 0)
    }

    /// Takes every app, backup code and passkey of a person away; whether one counted.
    pub async fn delete_second_factors(&mut self, user: UserId) -> Result<bool, StoreError> {
        self.require_people()?;
        let was_active = self.load_factors(user).await?.any();
        self.delete_passkeys(user).await?;
        self.delete_ceremonies(user).await?;
        self.execute(sql!("delete from totp where user_id = $1"), binds![user]).await?;
        self.execute(sql!("delete from sign_in_step where user_id = $1"), binds![user]).await?;
        Ok(was_active)
    }

    /// Takes the apps and passkeys away that were added to an account from then on; how many.
    pub async fn delete_factors_since(&mut self, user: UserId, since: Timestamp) -> Result<u64, StoreError> {
        self.require_people()?;
        let apps = sql!("delete from totp where user_id = $1 and created_at >= $2");
        let apps = self.execute(apps, binds![user, since]).await?;
        let passkeys = sql!("delete from passkey where user_id = $1 and created_at >= $2");
        Ok(apps + self.execute(passkeys, binds![user, since]).await?)
    }

    /// Ends what a person began to set up, but for what this session did.
    pub async fn delete_totp_set_up(&mut self, user: UserId, keep: Option<SessionId>) -> Result<u64, StoreError> {
        self.require_people()?;
        let sql = sql!("delete from totp where user_id = $1 and state <> 'active' and session_id is distinct from $2");
        self.execute(sql, binds![user, keep]).await
    }

    /// Puts a set of backup codes in the place of the app's one before. They count from when the app does.
    pub async fn replace_backup_codes(
        &mut self,
        totp: TotpId,
        hashes: &[StoredPassword],
        now: Timestamp,
    ) -> Result<(), StoreError> {
        self.require_people()?;
        self.execute(sql!("delete from backup_code where totp_id = $1"), binds![totp]).await?;
        let sql = sql!("insert into backup_code (totp_id, position, hash, created_at) values ($1, $2, $3, $4)");
        for (position, hash) in (0_i64..).zip(hashes) {
            self.execute(sql, binds![totp, position, &hash.to_string(), now]).await?;
        }
        Ok(())
    }

    /// The codes that were not used yet, of the app that counts.
    pub async fn list_backup_codes(&mut self, user: UserId) -> Result<Vec<StoredBackupCode>, StoreError> {
        self.require_people()?;
        let sql = sql!(
            "select c.position, c.hash from backup_code c join totp t on t.id = c.totp_id
             where t.user_id = $1 and t.state = 'active' and c.used_at is null order by c.position"
        );
        let read = |row: &Row| {
            let hash = row.parsed("hash", StoredPassword::parse)?;
            Ok(StoredBackupCode { position: row.get("position")?, hash })
        };
        self.fetch(sql, binds![user]).await?.iter().map(read).collect()
    }

    /// Uses a code of the set that has this hash there: `false` when somebody did before, or the set is another one by now.
    pub async fn use_backup_code(
        &mut self,
        user: UserId,
        code: &StoredBackupCode,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        self.require_people()?;
        let sql = sql!(
            "update backup_code set used_at = $4 where position = $2 and hash = $3 and used_at is null
               and totp_id = (select id from totp where user_id = $1 and state = 'active')"
        );
        Ok(self.execute(sql, binds![user, code.position, &code.hash.to_string(), now]).await? > 0)
    }

    pub async fn insert_sign_in_step(&mut self, step: &SignInStep) -> Result<(), StoreError> {
        self.require_people()?;
        let sql = sql!(
            "insert into sign_in_step (id, user_id, token_hash, epoch, device_id, created_at, expires_at)
             values ($1, $2, $3, $4, $5, $6, $7)"
        );
        let values =
            binds![step.id, step.user, &step.token_hash.0, step.epoch, step.device, step.created_at, step.expires_at];
        self.execute(sql, values).await.map(drop)
    }

    /// The sign-in whose token has this hash, whether its time is over or not.
    pub async fn load_sign_in_step(&mut self, hash: &SecretHash) -> Result<Option<SignInStep>, StoreError> {
        self.require_people()?;
        let sql = sql!(
            "select id, user_id, token_hash, epoch, device_id, created_at, expires_at from sign_in_step where token_hash = $1"
        );
        let row = self.fetch_optional(sql, binds![&hash.0]).await?;
        let read = |row: Row| {
            Ok(SignInStep {
                id: row.get("id")?,
                user: row.get("user_id")?,
                token_hash: SecretHash(row.get("token_hash")?),
                epoch: row.get("epoch")?,
                device: row.get("device_id")?,
                created_at: row.get("created_at")?,
                expires_at: row.get("expires_at")?,
            })
        };
        row.map(read).transpose()
    }

    /// Ends a waiting sign-in because it goes on: once.
    pub async fn use_sign_in_step(&mut self, id: SignInStepId) -> Result<bool, StoreError> {
        self.require_people()?;
        Ok(self.execute(sql!("delete from sign_in_step where id = $1"), binds![id]).await? > 0)
    }

    /// Whether the sign-in of this id waits.
    pub async fn has_sign_in_step(&mut self, id: SignInStepId, now: Timestamp) -> Result<bool, StoreError> {
        self.require_people()?;
        let sql = sql!("select id from sign_in_step where id = $1 and expires_at > $2");
        Ok(self.fetch_optional(sql, binds![id, now]).await?.is_some())
    }

    /// Keeps the code that is mailed for a sign-in; one before it is worth nothing from here on, and what was tried counts on.
    pub async fn replace_email_code(
        &mut self,
        step: SignInStepId,
        hash: &StoredPassword,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        self.require_people()?;
        let sql = sql!(
            "insert into email_code (step_id, hash, failures, created_at) values ($1, $2, 0, $3)
             on conflict (step_id) do update set hash = excluded.hash, created_at = excluded.created_at"
        );
        self.execute(sql, binds![step, &hash.to_string(), now]).await.map(drop)
    }

    /// The code that was mailed for a sign-in, while fewer than `failures_max` others were tried.
    pub async fn load_email_code(
        &mut self,
        step: SignInStepId,
        failures_max: u32,
    ) -> Result<Option<StoredPassword>, StoreError> {
        self.require_people()?;
        let sql = sql!("select hash from email_code where step_id = $1 and failures < $2");
        let row = self.fetch_optional(sql, binds![step, failures_max]).await?;
        row.map(|row| row.parsed("hash", StoredPassword::parse)).transpose()
    }

    /// Counts a wrong code.
    pub async fn fail_email_code(&mut self, step: SignInStepId) -> Result<bool, StoreError> {
        self.require_people()?;
        let sql = sql!("update email_code set failures = failures + 1 where step_id = $1");
        Ok(self.execute(sql, binds![step]).await? > 0)
    }

    /// Removes sign-ins and set-ups that nobody went on with.
    pub async fn remove_expired_steps(&mut self, now: Timestamp) -> Result<u64, StoreError> {
        self.require_people()?;
        let set_ups = sql!("delete from totp where state <> 'active' and expires_at <= $1");
        let removed = self.execute(set_ups, binds![now]).await? + self.remove_expired_ceremonies(now).await?;
        Ok(removed + self.execute(sql!("delete from sign_in_step where expires_at <= $1"), binds![now]).await?)
    }

    /// What the transaction's organization asks of its members besides a password, and what it takes for it.
    pub async fn load_sign_in_policy(&mut self) -> Result<SignInPolicy, StoreError> {
        let org = self.org()?;
        let sql = sql!("select mfa, methods, trusts_devices from sign_in_policy where org_id = $1");
        let Some(row) = self.fetch_optional(sql, binds![org]).await? else { return Ok(SignInPolicy::default()) };
        let (mfa, methods) = (row.parsed("mfa", MfaPolicy::parse)?, row.get::<String>("methods")?);
        let policy =
            SignInPolicy::new(mfa, SignInPolicy::read_methods(&methods), row.get::<i64>("trusts_devices")? == 1);
        policy.ok_or_else(|| StoreError::corrupt("methods", "none that is known"))
    }

    pub async fn save_sign_in_policy(&mut self, policy: &SignInPolicy, now: Timestamp) -> Result<(), StoreError> {
        let org = self.org()?;
        let sql = sql!(
            "insert into sign_in_policy (org_id, mfa, methods, trusts_devices, updated_at) values ($1, $2, $3, $4, $5)
             on conflict (org_id) do update set mfa = excluded.mfa, methods = excluded.methods,
                 trusts_devices = excluded.trusts_devices, updated_at = excluded.updated_at"
        );
        let methods = policy.methods_text();
        let values = binds![org, policy.mfa.as_str(), &methods, i64::from(policy.trusts_devices), now];
        self.execute(sql, values).await.map(drop)
    }

    /// Changes whom the organization asks, and nothing else of its policy.
    pub async fn save_mfa_policy(&mut self, policy: MfaPolicy, now: Timestamp) -> Result<(), StoreError> {
        let org = self.org()?;
        let sql = sql!(
            "insert into sign_in_policy (org_id, mfa, updated_at) values ($1, $2, $3)
             on conflict (org_id) do update set mfa = excluded.mfa, updated_at = excluded.updated_at"
        );
        self.execute(sql, binds![org, policy.as_str(), now]).await.map(drop)
    }
}
