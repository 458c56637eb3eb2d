//! Plugin calls: what each was given, did, used, and how it ended.

use bulkhead_model::call::{CallReport, Outcome};
use bulkhead_model::grant::GrantVersion;
use bulkhead_model::id::{CallId, InstallationId, PluginId, RunId};
use bulkhead_model::limits::Usage;
use bulkhead_model::time::Timestamp;

use crate::error::StoreError;
use crate::page::{Page, PageRequest};
use crate::sql::{Bind, Row, binds, sql};
use crate::tx::Tx;

#[derive(Clone, Debug)]
pub struct Call {
    pub id: CallId,
    pub installation: InstallationId,
    pub plugin: PluginId,
    pub run: Option<RunId>,
    pub step: Option<String>,
    pub attempt: u32,
    pub contribution: String,
    pub grant_version: GrantVersion,
    /// JSON text.
    pub input: String,
    pub report: CallReport,
    pub created_at: Timestamp,
}

#[derive(Clone, Debug)]
pub struct CallSummary {
    pub id: CallId,
    pub installation: InstallationId,
    pub run: Option<RunId>,
    pub step: Option<String>,
    pub contribution: String,
    pub outcome: Outcome,
    pub usage: Usage,
    pub created_at: Timestamp,
}

fn text<T: serde::Serialize>(what: &'static str, value: &T) -> Result<String, StoreError> {
    serde_json::to_string(value).map_err(|error| StoreError::corrupt(what, error))
}

fn read(row: &Row) -> Result<Call, StoreError> {
    let error: Option<String> = row.get("error")?;
    let log: (bool, Vec<bulkhead_model::call::LogLine>) = row.json("log")?;
    let report = CallReport {
        outcome: row.parsed("outcome", Outcome::parse)?,
        output: row.get("output")?,
        error: error
            .map(|text| serde_json::from_str(&text))
            .transpose()
            .map_err(|e| StoreError::corrupt("error", e))?,
        usage: row.json("usage")?,
        limits: row.json("limits")?,
        log: log.1,
        log_truncated: log.0,
        egress: row.json("egress")?,
        refusals: row.json("refusals")?,
    };
    Ok(Call {
        id: row.get("id")?,
        installation: row.get("installation_id")?,
        plugin: row.get("plugin_id")?,
        run: row.get("run_id")?,
        step: row.get("step_id")?,
        attempt: row.get("attempt")?,
        contribution: row.get("contribution")?,
        grant_version: GrantVersion(row.get("grant_version")?),
        input: row.get("input")?,
        report,
        created_at: row.get("created_at")?,
    })
}

/// What of a call is kept as JSON.
pub(crate) struct CallTexts {
    pub(crate) error: Option<String>,
    pub(crate) usage: String,
    pub(crate) limits: String,
    pub(crate) log: String,
    pub(crate) egress: String,
    pub(crate) refusals: String,
}

impl CallTexts {
    pub(crate) fn of(call: &Call) -> Result<Self, StoreError> {
        let report = &call.report;
        Ok(Self {
            error: report.error.as_ref().map(|error| text("error", error)).transpose()?,
            usage: text("usage", &report.usage)?,
            limits: text("limits", &report.limits)?,
            log: text("log", &(report.log_truncated, &report.log))?,
            egress: text("egress", &report.egress)?,
            refusals: text("refusals", &report.refusals)?,
        })
    }
}

/// What a call's row takes up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CallBytes {
    pub all: i64,
    /// … of it, its log.
    pub log: i64,
}

impl CallTexts {
    /// What a call's row holds beside its organization, in the order in which it is inserted: here and with its step
    /// ([`save_stride`](Tx::save_stride)).
    pub(crate) fn values<'a>(&'a self, call: &'a Call) -> [Bind<'a>; 18] {
        let report = &call.report;
        [
            call.id.into(),
            call.installation.into(),
            call.plugin.into(),
            call.run.into(),
            (&call.step).into(),
            call.attempt.into(),
            (&call.contribution).into(),
            call.grant_version.0.into(),
            report.outcome.as_str().into(),
            (&call.input).into(),
            (&report.output).into(),
            (&self.error).into(),
            (&self.usage).into(),
            (&self.limits).into(),
            (&self.log).into(),
            (&self.egress).into(),
            (&self.refusals).into(),
            call.created_at.into(),
        ]
    }

    pub(crate) fn bytes(&self, call: &Call) -> CallBytes {
        // Besides its texts: columns, and entries of its indexes.
        const ROW_BYTES: usize = 256;
        let some = |text: &Option<String>| text.as_ref().map_or(0, String::len);
        let all = ROW_BYTES
            + call.input.len()
            + some(&call.report.output)
            + some(&self.error)
            + self.usage.len()
            + self.limits.len()
            + self.log.len()
            + self.egress.len()
            + self.refusals.len();
        let number = |bytes: usize| i64::try_from(bytes).unwrap_or(i64::MAX);
        CallBytes { all: number(all), log: number(self.log.len()) }
    }
}

impl Tx {
    /// Answers what the call's row takes up.
    pub async fn record_call(&mut self, call: &Call) -> Result<CallBytes, StoreError> {
        let texts = CallTexts::of(call)?;
        self.insert_call(call, &texts).await?;
        Ok(texts.bytes(call))
    }

    pub(crate) async fn insert_call(&mut self, call: &Call, texts: &CallTexts) -> Result<(), StoreError> {
        let sql = sql!(
            "insert into call (org_id, id, installation_id, plugin_id, run_id, step_id, attempt, contribution, grant_version,
                 outcome, input, output, error, usage, limits, log, egress, refusals, created_at)
             values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19)"
        );
        let org = self.org()?;
        let values = [&[Bind::from(org)][..], &texts.values(call)[..]].concat();
        self.execute(sql, &values).await.map(drop)
    }

    /// Bytes that the logs of the run's calls take up, and how many they may.
    pub async fn load_log_use(&mut self, run: RunId) -> Result<(u64, u64), StoreError> {
        let sql = sql!(
            "select log_bytes_max, coalesce((select log_bytes from run where org_id = $1 and id = $2), 0) as used
             from organization where id = $1"
        );
        let org = self.org()?;
        let row =
            self.fetch_optional(sql, binds![org, run]).await?.ok_or(StoreError::NotFound { what: "organization" })?;
        let value = |name| Ok::<_, StoreError>(u64::try_from(row.get::<i64>(name)?).unwrap_or(0));
        Ok((value("used")?, value("log_bytes_max")?))
    }

    pub async fn load_call(&mut self, id: CallId) -> Result<Option<Call>, StoreError> {
        let sql = sql!(
            "select id, installation_id, plugin_id, run_id, step_id, attempt, contribution, grant_version, outcome, input, output,
                 error, usage, limits, log, egress, refusals, created_at
             from call where org_id = $1 and id = $2"
        );
        let org = self.org()?;
        self.fetch_optional(sql, binds![org, id]).await?.map(|row| read(&row)).transpose()
    }

    /// Newest first.
    pub async fn list_calls(
        &mut self,
        installation: InstallationId,
        outcome: Option<Outcome>,
        page: PageRequest,
    ) -> Result<Page<CallSummary>, StoreError> {
        let (org, before, limit) = (self.org()?, page.bound(), page.fetch());
        let rows = if let Some(outcome) = outcome {
            let sql = sql!(
                "select id, installation_id, run_id, step_id, contribution, outcome, usage, created_at from call
                 where org_id = $1 and installation_id = $2 and outcome = $3 and id < $4 order by id desc limit $5"
            );
            self.fetch(sql, binds![org, installation, outcome.as_str(), before, limit]).await?
        } else {
            let sql = sql!(
                "select id, installation_id, run_id, step_id, contribution, outcome, usage, created_at from call
                 where org_id = $1 and installation_id = $2 and id < $3 order by id desc limit $4"
            );
            self.fetch(sql, binds![org, installation, before, limit]).await?
        };
        let calls = rows
            .iter()
            .map(|row| {
                Ok(CallSummary {
                    id: row.get("id")?,
                    installation: row.get("installation_id")?,
                    run: row.get("run_id")?,
                    step: row.get("step_id")?,
                    contribution: row.get("contribution")?,
                    outcome: row.parsed("outcome", Outcome::parse)?,
                    usage: row.json("usage")?,
                    created_at: row.get("created_at")?,
                })
            })
            .collect::<Result<Vec<_>, StoreError>>()?;
        Ok(page.page(calls, |call| call.id.uuid()))
    }
}
