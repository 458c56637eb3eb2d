//! Attempts to sign in: counters of failed ones, which `bulkhead_model::throttle` gives their meaning, and the ledger of all that were made.

use bulkhead_model::id::{DeviceId, SignInAttemptId, UserId};
use bulkhead_model::throttle::Failures;
use bulkhead_model::time::Timestamp;

use crate::error::StoreError;
use crate::page::{Page, PageRequest};
use crate::sql::{Row, binds, sql};
use crate::tx::Tx;

/// An attempt that was judged.
#[derive(Clone, Debug)]
pub struct SignInAttempt {
    pub id: SignInAttemptId,
    /// Whom it was about, if that is anybody.
    pub user: Option<UserId>,
    /// The counter of the name that was given.
    pub identifier: [u8; 32],
    /// As RFC 8176 names it.
    pub method: String,
    pub passed: bool,
    pub device: Option<DeviceId>,
    pub address: String,
    pub agent: String,
    /// The network in which names are counted that failed, of a try that counts there; none once it was counted.
    pub network: Option<String>,
    pub created_at: Timestamp,
    /// Whether the organizations in which the person works know of it.
    pub is_told: bool,
}

fn read(row: &Row) -> Result<SignInAttempt, StoreError> {
    Ok(SignInAttempt {
        id: row.get("id")?,
        user: row.get("user_id")?,
        identifier: row.get("identifier")?,
        method: row.get("method")?,
        passed: row.get::<String>("outcome")? == "passed",
        device: row.get("device_id")?,
        address: row.get("address")?,
        agent: row.get("agent")?,
        network: row.get("network")?,
        created_at: row.get("created_at")?,
        is_told: row.get::<i64>("told")? == 1,
    })
}

impl Tx {
    pub async fn record_sign_in_attempt(&mut self, attempt: &SignInAttempt) -> Result<(), StoreError> {
        self.require_people()?;
        let sql = sql!(
            "insert into sign_in_attempt (id, user_id, identifier, method, outcome, device_id, address, agent, network, created_at, told)
             values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)"
        );
        let values = binds![
            attempt.id,
            attempt.user,
            &attempt.identifier,
            &attempt.method,
            if attempt.passed { "passed" } else { "refused" },
            attempt.device,
            &attempt.address,
            &attempt.agent,
            attempt.network.as_deref(),
            attempt.created_at,
            i64::from(attempt.is_told)
        ];
        self.execute(sql, values).await.map(drop)
    }

    /// Attempts to be this person, newest first.
    pub async fn list_sign_in_attempts(
        &mut self,
        user: UserId,
        page: PageRequest,
    ) -> Result<Page<SignInAttempt>, StoreError> {
        self.require_people()?;
        let sql = sql!(
            "select id, user_id, identifier, method, outcome, device_id, address, agent, network, created_at, told from sign_in_attempt
             where user_id = $1 and id < $2 order by id desc limit $3"
        );
        let rows = self.fetch(sql, binds![user, page.bound(), page.fetch()]).await?;
        let attempts = rows.iter().map(read).collect::<Result<Vec<_>, _>>()?;
        Ok(page.page(attempts, |attempt| attempt.id.uuid()))
    }

    /// The oldest attempt that nobody was told of.
    pub async fn load_untold_attempt(&mut self) -> Result<Option<SignInAttempt>, StoreError> {
        self.require_people()?;
        let sql = sql!(
            "select id, user_id, identifier, method, outcome, device_id, address, agent, network, created_at, told from sign_in_attempt
             where told = 0 order by id limit 1"
        );
        self.fetch_optional(sql, &[]).await?.map(|row| read(&row)).transpose()
    }

    /// How many refused attempts to be this person were told of since, up to the cap.
    pub async fn count_refused_attempts(
        &mut self,
        user: UserId,
        since: SignInAttemptId,
        cap: u32,
    ) -> Result<usize, StoreError> {
        self.require_people()?;
        let sql = sql!(
            "select id from sign_in_attempt where user_id = $1 and id >= $2 and outcome = 'refused' and told = 1 limit $3"
        );
        Ok(self.fetch(sql, binds![user, since, cap]).await?.len())
    }

    /// Says that whom it concerns was told of an attempt: `false` when somebody did before.
    pub async fn mark_attempt_told(&mut self, id: SignInAttemptId) -> Result<bool, StoreError> {
        self.require_people()?;
        Ok(self.execute(sql!("update sign_in_attempt set told = 1 where id = $1 and told = 0"), binds![id]).await? > 0)
    }

    /// How many names failed from a network (as `bulkhead_model::network::Network` writes it) since, and did not pass from there afterwards, up to
    /// the cap.
    pub async fn count_names_that_failed(
        &mut self,
        network: &str,
        since: SignInAttemptId,
        cap: u32,
    ) -> Result<usize, StoreError> {
        self.require_people()?;
        // Only who passes after a failure mistyped: a pass before it would tell who signs in from there.
        let sql = sql!(
            "select failed.identifier from sign_in_attempt as failed
             where failed.network = $1 and failed.id >= $2 and failed.outcome = 'refused' and not exists (
                 select 1 from sign_in_attempt as passed where passed.network = $1 and passed.id > failed.id
                 and passed.identifier = failed.identifier and passed.outcome = 'passed')
             group by failed.identifier limit $3"
        );
        Ok(self.fetch(sql, binds![network, since, cap]).await?.len())
    }

    /// Lets no attempt of a network count again; answers how many did.
    pub async fn forget_names_that_failed(&mut self, network: &str) -> Result<u64, StoreError> {
        self.require_people()?;
        self.execute(sql!("update sign_in_attempt set network = null where network = $1"), binds![network]).await
    }

    /// Removes attempts that were made before this one could have been.
    pub async fn remove_sign_in_attempts(&mut self, before: SignInAttemptId) -> Result<u64, StoreError> {
        self.require_people()?;
        self.execute(sql!("delete from sign_in_attempt where id < $1"), binds![before]).await
    }

    /// Reads a counter and holds it until the transaction ends, so that attempts at once are counted one after another. Counters are
    /// to be locked in the order of their keys.
    pub async fn lock_failures(&mut self, key: &[u8; 32]) -> Result<Failures, StoreError> {
        self.require_people()?;
        // An insert that meets the row locks it, which a `select` would not do on both databases.
        let sql = sql!(
            "insert into throttle (key, failures, last_at) values ($1, 0, $2)
             on conflict (key) do update set failures = throttle.failures returning failures, last_at"
        );
        let row = self.fetch_optional(sql, binds![key, Timestamp::from_micros(0)]).await?;
        let row = row.ok_or_else(|| StoreError::corrupt("throttle", "no row comes back"))?;
        Ok(Failures { count: row.get("failures")?, last_at: row.get("last_at")? })
    }

    pub async fn save_failures(&mut self, key: &[u8; 32], failures: Failures) -> Result<(), StoreError> {
        self.require_people()?;
        let sql = sql!("update throttle set failures = $2, last_at = $3 where key = $1");
        self.execute(sql, binds![key, failures.count, failures.last_at]).await.map(drop)
    }

    /// Removes counters without a failure since then.
    pub async fn remove_quiet_failures(&mut self, before: Timestamp) -> Result<u64, StoreError> {
        self.require_people()?;
        let sql = sql!("delete from throttle where last_at < $1");
        self.execute(sql, binds![before]).await
    }
}
