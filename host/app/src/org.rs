//! Organizations, made by the operator (`bulkhead admin`, `bulkhead demo`).

use bulkhead_audit::taxonomy::EventType;
use bulkhead_model::id::OrgId;
use bulkhead_model::name::Slug;
use bulkhead_model::permission::{Actor, Caller, Permission, SystemReason, SystemScope};
use bulkhead_store::audit::AuditEvent;
use bulkhead_store::org::Org;
use serde_json::json;

use crate::{App, AppError};

/// An organization's display name holds at most this many characters.
const NAME_LEN_MAX: usize = 100;
/// The heaviest an organization can be beside others.
const QUEUE_WEIGHT_MAX: u32 = 100;
/// Jobs of a lane that an organization may be allowed to hold at once.
const JOBS_MAX: u32 = 10_000;

/// Whether an organization may be called so.
pub(crate) fn check_name(name: &str) -> Result<(), AppError> {
    if name.trim().is_empty() || name.chars().count() > NAME_LEN_MAX {
        return Err(AppError::invalid("invalid-name", "/name", format!("a name has 1 to {NAME_LEN_MAX} characters")));
    }
    Ok(())
}

impl App {
    /// Creates an organization. For the operator only: no route leads here.
    ///
    /// # Errors
    /// [`AppError::Conflict`] `org-exists` when the short name is taken; [`AppError::Invalid`] for a name out of bounds.
    pub async fn create_org(&self, slug: Slug, name: String) -> Result<Org, AppError> {
        check_name(&name)?;
        let admin = SystemScope::new(SystemReason::Admin);
        let org = Org { id: OrgId::new(self.ambient()), slug, name, created_at: self.ambient().now() };
        let event = AuditEvent {
            action: EventType::OrgCreated,
            target: org.id.to_string(),
            actor: Actor::System(SystemReason::Admin),
            detail: json!({ "slug": org.slug, "name": org.name }),
        };
        self.store()
            .write(&admin, (org.clone(), event, self.ambient().clone()), |tx, (org, event, ambient)| {
                Box::pin(async move {
                    if tx.load_org_by_slug(&org.slug).await?.is_some() {
                        return Err(AppError::conflict("org-exists", format!("the name {} is taken", org.slug)));
                    }
                    tx.insert_org(org).await?;
                    Ok(tx.record_audit(event, ambient).await?)
                })
            })
            .await?;
        Ok(org)
    }

    /// Sets an organization's share of the workers beside others: its weight, and how many of its jobs of a lane are held at once on
    /// all nodes together. For the operator only.
    ///
    /// # Errors
    /// [`AppError::Invalid`] `invalid-share` for a value out of bounds; [`AppError::NotFound`].
    pub async fn set_queue_share(&self, org: OrgId, weight: u32, jobs_max: u32) -> Result<(), AppError> {
        if !(1..=QUEUE_WEIGHT_MAX).contains(&weight) {
            return Err(AppError::invalid("invalid-share", "/weight", format!("a weight is 1 to {QUEUE_WEIGHT_MAX}")));
        }
        if !(1..=JOBS_MAX).contains(&jobs_max) {
            return Err(AppError::invalid(
                "invalid-share",
                "/jobs_max",
                format!("1 to {JOBS_MAX} jobs may be held at once"),
            ));
        }
        let admin = SystemScope::new(SystemReason::Admin);
        self.store()
            .write(&admin, (org, weight, jobs_max, self.ambient().clone()), |tx, (org, weight, jobs_max, ambient)| {
                Box::pin(async move {
                    let before = tx.load_queue_share(*org).await?;
                    if !tx.set_queue_share(*org, *weight, *jobs_max).await? {
                        return Err(AppError::NotFound { what: "organization" });
                    }
                    let told = |(weight, jobs_max): (u32, u32)| json!({ "weight": weight, "jobs_max": jobs_max });
                    let event = AuditEvent {
                        action: EventType::OrgShareSet,
                        target: org.to_string(),
                        actor: Actor::System(SystemReason::Admin),
                        detail: json!({ "before": before.map(told), "after": told((*weight, *jobs_max)) }),
                    };
                    Ok(tx.record_audit(&event, ambient).await?)
                })
            })
            .await
    }

    /// An organization by its short name. For the operator only.
    ///
    /// # Errors
    /// The store's.
    pub async fn find_org(&self, slug: Slug) -> Result<Option<Org>, AppError> {
        let admin = SystemScope::new(SystemReason::Admin);
        self.store().read(&admin, slug, |tx, slug| Box::pin(async move { Ok(tx.load_org_by_slug(slug).await?) })).await
    }

    /// The caller's own organization.
    ///
    /// # Errors
    /// A refusal, or the store's.
    pub async fn show_org(&self, caller: &Caller, org: OrgId) -> Result<Org, AppError> {
        let scope = caller.authorize(org, Permission::OrgRead)?;
        self.store().read(&scope, (), |tx, ()| Box::pin(async move { Ok(tx.require_org().await?) })).await
    }
}
