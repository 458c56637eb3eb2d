//! The first person: made once, by whoever has the link that the server prints while there is nobody.

use bulkhead_audit::taxonomy::EventType;
use bulkhead_model::id::OrgId;
use bulkhead_model::link::Purpose;
use bulkhead_model::name::Slug;
use bulkhead_model::permission::{Actor, SystemReason, SystemScope};
use bulkhead_model::role::BuiltIn;
use bulkhead_model::role::assignment::Window;
use bulkhead_store::account::User;
use bulkhead_store::audit::AuditEvent;
use bulkhead_store::org::Org;
use serde_json::json;

use super::{ROLE_ADMIN, invalid_link, read_email, read_name};
use crate::assignment::join_as;
use crate::{App, AppError};

/// What the first person says.
#[derive(Clone)]
pub struct SetUp {
    /// Of the link.
    pub token: String,
    pub email: String,
    pub name: String,
    pub password: String,
    /// The organization to begin with; made if it is not there.
    pub org: Slug,
    /// Its name, if it is made; the short name if left out.
    pub org_name: Option<String>,
}

const ADMIN: SystemScope = SystemScope::new(SystemReason::Admin);

impl App {
    /// The token of the set-up link while there is nobody; the same on every node until it is used or a day old.
    ///
    /// # Errors
    /// The store's.
    pub async fn offer_set_up(&self) -> Result<Option<String>, AppError> {
        let fresh = self.new_link(Purpose::SetUp, None, None);
        let link = self
            .store()
            .write(&ADMIN, fresh, |tx, fresh| {
                Box::pin(async move {
                    if tx.has_users().await? {
                        return Ok::<_, AppError>(None);
                    }
                    if let Some(link) = tx.load_set_up_link(fresh.created_at).await? {
                        return Ok(Some(link));
                    }
                    tx.insert_link(fresh).await?;
                    Ok(Some(fresh.clone()))
                })
            })
            .await?;
        Ok(link.map(|link| self.link_token(&link)))
    }

    /// Makes the first person, who administers the platform and the organization to begin with. Of any number at once one succeeds.
    ///
    /// # Errors
    /// [`AppError::Invalid`] `invalid-link`, `invalid-email`, `invalid-name`, `invalid-password`; [`AppError::Conflict`] `already-set-up`;
    /// [`AppError::Busy`].
    pub async fn set_up(&self, new: SetUp) -> Result<(User, Org), AppError> {
        let link = self.open_link(Purpose::SetUp, &new.token)?;
        let (email, name) = (read_email(&new.email)?, read_name(&new.name)?);
        let org_name = new.org_name.unwrap_or_else(|| new.org.to_string());
        crate::org::check_name(&org_name)
            .map_err(|_| AppError::invalid("invalid-name", "/organization/name", "a name has 1 to 100 characters"))?;
        // Hashing is dear: only for a link that could still be used.
        let usable = self.store().read(&ADMIN, (link, self.ambient().now()), |tx, (link, now)| {
            Box::pin(async move { Ok::<_, AppError>(tx.load_usable_link(*link, Purpose::SetUp, *now).await?) })
        });
        usable.await?.ok_or_else(invalid_link)?;
        let password = self.read_new_password(&new.password, "/password", &email, &name).await?;
        let stored = self.accounts().hasher.hash(password, self.ambient()).await?;
        let mut user = self.new_user(email, name, Some(stored));
        user.is_super_admin = true;
        // Whoever has the link has the machine's log: that is more than an address proves.
        user.email_verified_at = Some(user.created_at);
        let org = Org { id: OrgId::new(self.ambient()), slug: new.org, name: org_name, created_at: user.created_at };
        self.store()
            .write(&ADMIN, (link, user, org, self.ambient().clone()), |tx, (link, user, org, ambient)| {
                Box::pin(async move {
                    tx.lock_users().await?;
                    if tx.has_users().await? {
                        return Err(AppError::conflict("already-set-up", "somebody has set this server up already"));
                    }
                    tx.use_link(*link, Purpose::SetUp, user.created_at).await?.ok_or_else(invalid_link)?;
                    let actor = Actor::User(user.id);
                    let org = if let Some(there) = tx.load_org_by_slug(&org.slug).await? {
                        tx.enter_org(there.id).await?;
                        there
                    } else {
                        tx.insert_org(org).await?;
                        let detail = json!({ "slug": org.slug, "name": org.name });
                        let (action, target) = (EventType::OrgCreated, org.id.to_string());
                        tx.record_audit(&AuditEvent { action, target, actor: actor.clone(), detail }, ambient).await?;
                        org.clone()
                    };
                    tx.insert_user(user).await?;
                    tx.insert_member(user.id, ROLE_ADMIN, user.created_at).await?;
                    join_as(tx, user.id, BuiltIn::Admin, Window::ALWAYS, &actor, ambient).await?;
                    let detail = json!({ "role": ROLE_ADMIN, "super_admin": true });
                    let (action, target) = (EventType::UserJoined, user.id.to_string());
                    tx.record_audit(&AuditEvent { action, target, actor, detail }, ambient).await?;
                    Ok((user.clone(), org))
                })
            })
            .await
    }
}
