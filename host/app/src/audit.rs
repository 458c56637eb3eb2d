//! Reading the audit log, and what is written of acts that were refused.

use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bulkhead_audit::retention::PayloadRetention;
use bulkhead_audit::taxonomy::EventType;
use bulkhead_model::id::{ApiKeyId, OrgId};
use bulkhead_model::network::Network;
use bulkhead_model::permission::{Actor, Caller, OrgScope, Permission, SystemReason, SystemScope};
use bulkhead_model::role::assignment::Within;
use bulkhead_model::signature::SignatureRefusal;
use bulkhead_model::time::Timestamp;
use bulkhead_store::StoreError;
use bulkhead_store::audit::{AuditEntry, AuditEvent, AuditFilter};
use bulkhead_store::page::{Page, PageRequest};
use serde_json::json;

use crate::audit_log::KeptCheckpoint;
use crate::{App, AppError};

/// What somebody does again and again (reads, or asks for what he may not) is one entry within this time.
const RECORDED_EVERY: Duration = Duration::from_hours(1);
/// Such acts that are remembered; one that is forgotten is written down once more.
const RECORDED_MAX: u64 = 10_000;

/// What a node keeps in mind about audit logs.
#[derive(Clone)]
pub(crate) struct AuditState {
    /// By organization, actor and act: when it was last written down, on this node.
    recorded: moka::sync::Cache<(OrgId, String), Timestamp>,
    /// The organization whose log was sealed last in the round that is under way.
    pub(crate) turn: Arc<Mutex<Option<OrgId>>>,
    pub(crate) kept: Option<KeptCheckpoint>,
    /// For how long organizations keep payloads that have not chosen it themselves.
    pub(crate) retention: PayloadRetention,
}

impl Default for AuditState {
    fn default() -> Self {
        Self {
            recorded: moka::sync::Cache::new(RECORDED_MAX),
            turn: Arc::default(),
            kept: None,
            retention: PayloadRetention::default(),
        }
    }
}

/// Why a key that is there opened nothing.
#[derive(Clone, Copy, Debug)]
pub(crate) enum KeyRefusal {
    Secret,
    Revoked,
    Expired,
    /// Used from where it may not be.
    Address(Option<IpAddr>),
    /// The request's signature.
    Signature(SignatureRefusal),
}

impl KeyRefusal {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Secret => "wrong_secret",
            Self::Revoked => "revoked",
            Self::Expired => "expired",
            Self::Address(_) => "address",
            Self::Signature(refusal) => refusal.as_str(),
        }
    }
}

impl App {
    /// Whether this act of this actor is to be written down: not if the same was within the hour, by this node. One who polls, or tries
    /// doors, does not fill the log. The mark is what to forget where it could not be written.
    fn begin_record(&self, org: OrgId, actor: &Actor, act: &str) -> Option<(OrgId, String)> {
        let (mark, now) = ((org, format!("{actor} {act}")), self.ambient().now());
        if self.audit.recorded.get(&mark).is_some_and(|last| now.since(last) < RECORDED_EVERY) {
            return None;
        }
        self.audit.recorded.insert(mark.clone(), now);
        Some(mark)
    }

    async fn record_marked(&self, scope: &OrgScope, event: AuditEvent, mark: &(OrgId, String)) -> Result<(), AppError> {
        let written: Result<(), StoreError> = self
            .store()
            .write(scope, (event, self.ambient().clone()), |tx, (event, ambient)| {
                Box::pin(async move { tx.record_audit(event, ambient).await })
            })
            .await;
        if written.is_err() {
            self.audit.recorded.invalidate(mark);
        }
        Ok(written?)
    }

    /// Writes an entry, unless the same act (`act` tells acts apart) of the same actor was written down within the hour.
    async fn record_once(&self, scope: &OrgScope, event: AuditEvent, act: &str) -> Result<(), AppError> {
        match self.begin_record(scope.org(), &event.actor, act) {
            Some(mark) => self.record_marked(scope, event, &mark).await,
            None => Ok(()),
        }
    }

    /// Writes that somebody reads the log.
    pub(crate) async fn record_audit_read(&self, scope: &OrgScope) -> Result<(), AppError> {
        let (action, target, actor) = (EventType::AuditRead, scope.org().to_string(), scope.actor().clone());
        self.record_once(scope, AuditEvent { action, target, actor, detail: json!({}) }, "reads").await
    }

    /// Writes that somebody asked for what he may not, once an hour for each permission. He is refused whether or not that can be written.
    pub async fn record_refusal(&self, caller: &Caller, permission: Permission, within: Within, operation: &str) {
        let scope = SystemScope::new(SystemReason::SignIn).for_org(caller.org());
        let team = match within {
            Within::Organization => None,
            Within::Team(team) => Some(team),
        };
        let event = AuditEvent {
            action: EventType::AccessRefused,
            target: caller.org().to_string(),
            actor: caller.actor(),
            detail: json!({ "permission": permission, "team": team, "operation": operation }),
        };
        if let Err(error) = self.record_once(&scope, event, permission.as_str()).await {
            tracing::error!(error = &error as &dyn std::error::Error, "a refusal could not be recorded");
        }
    }

    /// Writes that somebody came from where the organization may not be reached, once an hour for each network.
    pub(crate) async fn record_refused_address(&self, caller: &Caller, address: Option<IpAddr>) {
        let scope = SystemScope::new(SystemReason::SignIn).for_org(caller.org());
        let network = address.map_or_else(|| "unknown".to_owned(), |address| Network::of(address).to_string());
        let event = AuditEvent {
            action: EventType::RequestRefused,
            target: "ip_allow_list".to_owned(),
            actor: caller.actor(),
            detail: json!({ "reason": "address", "address": address.map(|address| address.to_canonical()) }),
        };
        if let Err(error) = self.record_once(&scope, event, &format!("comes from {network}")).await {
            tracing::error!(error = &error as &dyn std::error::Error, "a refused address could not be recorded");
        }
    }

    /// Writes that a key was refused, once an hour for each reason (and each network that it may not be used from), beside the answer: how long the answer takes says nothing about whether the key is there.
    pub(crate) fn record_refused_key(&self, org: OrgId, key: ApiKeyId, refusal: KeyRefusal) {
        let (actor, reason) = (Actor::System(SystemReason::SignIn), refusal.as_str());
        let (from, detail) = match &refusal {
            KeyRefusal::Address(address) => {
                let network = address.map_or_else(String::new, |address| Network::of(address).to_string());
                (network, json!({ "reason": reason, "address": address.map(|address| address.to_canonical()) }))
            }
            KeyRefusal::Secret | KeyRefusal::Revoked | KeyRefusal::Expired | KeyRefusal::Signature(_) => {
                (String::new(), json!({ "reason": reason }))
            }
        };
        // Decided here: who tries again and again begins no task each time.
        let Some(mark) = self.begin_record(org, &actor, &format!("{key} {reason} {from}")) else { return };
        let event = AuditEvent { action: EventType::RequestRefused, target: key.to_string(), actor, detail };
        let app = self.clone();
        self.sandbox().supervisor.spawn("record a refused key", async move {
            let scope = SystemScope::new(SystemReason::SignIn).for_org(org);
            if let Err(error) = app.record_marked(&scope, event, &mark).await {
                tracing::error!(error = &error as &dyn std::error::Error, "a refused key could not be recorded");
            }
        });
    }

    /// Newest first, what the filter admits.
    ///
    /// # Errors
    /// A refusal, or the store's.
    pub async fn list_audit(
        &self,
        caller: &Caller,
        org: OrgId,
        filter: AuditFilter,
        page: PageRequest,
    ) -> Result<Page<AuditEntry>, AppError> {
        let scope = caller.authorize(org, Permission::AuditRead)?;
        self.record_audit_read(&scope).await?;
        self.store()
            .read(&scope, (filter, page), |tx, (filter, page)| {
                Box::pin(async move { Ok(tx.list_audit(filter, *page).await?) })
            })
            .await
    }
}
