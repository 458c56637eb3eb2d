//! The link in letters that tell of something: whoever it was not ends everything of the account with it.
//!
//! It signs nobody in, and proves nothing but that somebody reads the mail of an address that the account had: so it only takes away. What ended
//! everything else does not end it, since whoever got in would do that first.

use std::time::Duration;

use bulkhead_audit::taxonomy::EventType;
use bulkhead_model::id::{LinkId, UserId};
use bulkhead_model::letter::Letter;
use bulkhead_model::link::Purpose;
use bulkhead_model::permission::AccountScope;
use bulkhead_store::link::RevokeLink;
use bulkhead_store::mail::Mail;
use serde_json::json;

use super::{end_everything, invalid_link, tell_organizations};
use crate::{App, AppError};

/// What was added within this time before the letter is taken away as well: no longer than a set-up takes whose end the letter tells of.
const BEFORE: Duration = Duration::from_mins(15);

impl App {
    /// Makes the link of a letter that is about to be sent; its address.
    pub(crate) async fn keep_revoke_link(&self, user: UserId, mail: &Mail) -> Result<String, AppError> {
        let link = RevokeLink {
            id: LinkId::new(self.ambient()),
            user,
            email: mail.recipient.clone(),
            since: mail.created_at.minus(BEFORE),
            expires_at: self.ambient().now().plus(Purpose::Revoke.lives_for()),
        };
        let id = link.id;
        self.store()
            .write_locked(&AccountScope::OWN, link, |tx, link| {
                Box::pin(async move { tx.insert_revoke_link(link).await.map_err(AppError::from) })
            })
            .await?;
        let token = self.accounts().links.reveal(Purpose::Revoke, &[&id.uuid()]);
        Ok(self.link_url(Purpose::Revoke, &token))
    }

    /// Ends everything of an account: sessions, tokens, keys, known browsers, and factors that were added since the letter. Its password is worth
    /// nothing from here on, and a letter to choose another one goes out. If the account uses another address by now than the letter went to, it is
    /// shut until the operator opens it: that letter would go to whoever changed the address.
    ///
    /// # Errors
    /// [`AppError::Invalid`] `invalid-link`.
    pub async fn revoke_account(&self, token: &str) -> Result<(), AppError> {
        let id = self.open_link(Purpose::Revoke, token)?;
        let args = (id, self.sends_mail(), self.ambient().clone());
        self.store()
            .write(&AccountScope::OWN, args, |tx, (id, sends_mail, ambient)| {
                Box::pin(async move {
                    let now = ambient.now();
                    let link = tx.use_revoke_link(*id, now).await?.ok_or_else(invalid_link)?;
                    let user = tx.load_user(link.user).await?.filter(|user| user.is_active).ok_or_else(invalid_link)?;
                    let memberships = end_everything(tx, user.id, None, ambient).await?;
                    let factors = tx.delete_factors_since(user.id, link.since).await?;
                    tx.clear_user_password(user.id, now).await?;
                    let detail = json!({ "by": "letter", "factors": factors });
                    tell_organizations(tx, &memberships, user.id, EventType::SessionRevoked, &detail, ambient).await?;
                    if user.email == link.email {
                        if *sends_mail {
                            tx.enqueue_mail(&user.email, &Letter::ResetPassword, ambient).await?;
                        }
                        return Ok(());
                    }
                    if user.is_super_admin && tx.count_super_admins().await? < 2 {
                        // The platform keeps its last administrator, who has no password now: the operator makes a link.
                        return Ok(());
                    }
                    tx.update_user_state(user.id, false, now).await?;
                    for membership in &memberships {
                        tx.enter_org(membership.org).await?;
                        tx.begin_policy_epoch(now).await?;
                        tx.update_member_user_state(user.id, false).await?;
                    }
                    let detail = json!({ "by": "letter", "everywhere": true });
                    tell_organizations(tx, &memberships, user.id, EventType::UserDisabled, &detail, ambient).await
                })
            })
            .await?;
        metrics::counter!("bulkhead_accounts_revoked_total").increment(1);
        Ok(())
    }
}
