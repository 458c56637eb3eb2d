//! A day in the demo's organization, for its audit log to tell: done by the application's own use cases, with a clock that began a day ago.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use bulkhead_app::account::SetUp;
use bulkhead_app::api_key::NewApiKey;
use bulkhead_app::assignment::NewAssignment;
use bulkhead_app::auth::OrgRef;
use bulkhead_app::member::{NewInvitation, Newcomer};
use bulkhead_app::mfa::Proof;
use bulkhead_app::sign_in::{Client, Opened, SignInOutcome};
use bulkhead_app::{App, AppError};
use bulkhead_audit::taxonomy::EventType;
use bulkhead_keys::Level;
use bulkhead_model::ambient::Ambient;
use bulkhead_model::backup_code::BackupCode;
use bulkhead_model::grant::Grants;
use bulkhead_model::id::{OrgId, UserId};
use bulkhead_model::name::Slug;
use bulkhead_model::permission::{Caller, Permission, PermissionSet, SystemReason, SystemScope};
use bulkhead_model::role::assignment::Window;
use bulkhead_model::role::{BuiltIn, RoleRef};
use bulkhead_model::totp::TotpSecret;
use bulkhead_store::audit::AuditFilter;
use bulkhead_store::page::PageRequest;
use url::Url;

use super::settle::{ORG, installed, settle};
use super::{DemoAdmin, DemoFile};
use crate::config::Config;
use crate::first_party::Package;
use crate::host::Host;

/// How long ago it begins.
const DAY: Duration = Duration::from_hours(24);
const ADA: &str = "ada@demo.example";
const BO: &str = "bo@demo.example";
/// Addresses for documents (RFC 5737): the office, and nobody knows where.
const OFFICE: &str = "192.0.2.17";
const OFFICE_NETWORK: &str = "192.0.2.0/24";
const ELSEWHERE: &str = "203.0.113.80";
/// What is written beside an answer is there after this long at the latest.
const PATIENCE: Duration = Duration::from_secs(30);
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// The application as it was then.
struct Day<'h> {
    host: &'h Host,
    app: App,
    clock: Ambient,
    org: OrgId,
    ada: Account,
}

/// Somebody who signs in.
struct Account {
    email: &'static str,
    password: String,
    totp: Option<TotpSecret>,
}

impl Account {
    fn new(email: &'static str, clock: &Ambient) -> Self {
        Self { email, password: hex::encode(clock.random::<12>()), totp: None }
    }

    fn code(&self, clock: &Ambient) -> Result<Proof> {
        let totp = self.totp.as_ref().context("the account has no authenticator app")?;
        Ok(Proof::Code(totp.code_at(clock.now())))
    }
}

fn client(address: &str) -> Client {
    Client { address: address.parse::<IpAddr>().ok(), agent: "Demo/1.0".to_owned(), device: None }
}

/// Makes the organization with an admin who has a second factor, and lets a day go by. `None` where somebody is there already.
pub(super) async fn live(
    host: &Host,
    config: &Config,
    packages: &[Package],
    sink: &Url,
    url: &str,
) -> Result<Option<DemoFile>> {
    let clock = Ambient::standing(host.app.ambient().now().minus(DAY));
    let app = host.app_at(config, clock.clone())?;
    let Some(token) = app.offer_set_up().await? else { return Ok(None) };
    let ada = Account::new(ADA, &clock);
    let set_up = SetUp {
        token,
        email: ADA.to_owned(),
        name: "Ada Lovelace".to_owned(),
        password: ada.password.clone(),
        org: ORG.parse::<Slug>().map_err(|error| anyhow::anyhow!("{error}"))?,
        org_name: Some("Demo".to_owned()),
    };
    let (_, org) = app.set_up(set_up).await?;
    let mut day = Day { host, app, clock, org: org.id, ada };
    let admin = day.enrol().await.context("the admin's second factor")?;
    day.pass(5);
    let file = settle(&day.app, packages, sink, url, None).await?;
    day.checkpoint().await?;
    let bo = day.people().await.context("people")?;
    day.roles(bo).await.context("roles")?;
    day.api_key().await.context("an API key")?;
    day.grants().await.context("grants")?;
    day.pass(120);
    let ada = day.ada().await?;
    day.app.rotate_key(&ada, day.org, Level::Data).await?;
    day.pass(60);
    day.checkpoint().await?;
    Ok(Some(DemoFile { admin: Some(admin), ..file }))
}

impl Day<'_> {
    fn pass(&self, minutes: u64) {
        self.clock.advance(Duration::from_mins(minutes));
    }

    async fn checkpoint(&self) -> Result<()> {
        self.app.seal_audit_log(self.org, true).await?;
        Ok(())
    }

    /// Walks the set-up of an authenticator app to its end.
    async fn enrol(&mut self) -> Result<DemoAdmin> {
        self.pass(2);
        let SignInOutcome::Opened(opened) = self.app.sign_in(ADA, &self.ada.password, &client(OFFICE)).await? else {
            bail!("there is a second factor already");
        };
        let shown = self.app.begin_totp(&opened.signed_in).await?;
        self.ada.totp = TotpSecret::from_base32(&shown.secret);
        self.pass(1);
        let Proof::Code(code) = self.ada.code(&self.clock)? else { bail!("an app shows codes") };
        let codes = self.app.verify_totp(&opened.signed_in, &code, &client(OFFICE)).await?;
        self.app.activate_totp(&opened.signed_in).await?;
        Ok(DemoAdmin {
            email: ADA.to_owned(),
            password: self.ada.password.clone(),
            totp_uri: shown.uri.to_string(),
            backup_codes: codes.iter().map(BackupCode::reveal).collect(),
        })
    }

    async fn sign_in(&self, who: &Account) -> Result<Opened> {
        let client = client(OFFICE);
        match self.app.sign_in(who.email, &who.password, &client).await? {
            SignInOutcome::Opened(opened) => Ok(*opened),
            SignInOutcome::SecondFactor(waiting) => {
                let proof = who.code(&self.clock)?;
                Ok(self.app.sign_in_second(&waiting.token, (&proof, false), &client).await?)
            }
        }
    }

    /// The admin, who just signed in.
    async fn ada(&self) -> Result<Caller> {
        // Of each step of the app one code counts.
        self.pass(1);
        let opened = self.sign_in(&self.ada).await?;
        let (_, caller) = self.app.resume(&opened.token, Some(OrgRef::Id(self.org))).await?;
        Ok(caller.context("no organization was named")??)
    }

    /// Somebody joins, mistypes, signs in and out.
    async fn people(&self) -> Result<UserId> {
        self.pass(55);
        let ada = self.ada().await?;
        let new = NewInvitation { email: BO.to_owned(), role: "viewer".to_owned(), valid_until: None };
        let invited = self.app.invite(&ada, self.org, new).await?;
        let link = invited.link.context("the link was sent by mail")?;
        let (_, token) = link.rsplit_once('=').context("the link holds no token")?;
        self.pass(30);
        let bo = Account::new(BO, &self.clock);
        let newcomer = Newcomer { name: "Bo Winter".to_owned(), password: bo.password.clone() };
        let user = self.app.join(token, None, Some(newcomer)).await?;
        for _ in 0..2 {
            self.pass(1);
            let refused = self.app.sign_in(BO, "not what it was", &client(OFFICE)).await;
            ensure!(matches!(refused, Err(AppError::Unauthenticated)), "a wrong password was taken");
        }
        self.app.tell_refused_attempts().await?;
        self.pass(1);
        let opened = self.sign_in(&bo).await?;
        self.pass(90);
        self.app.sign_out(&opened.signed_in).await?;
        Ok(user)
    }

    /// A role is given and taken; before that, somebody who knows the admin's password tries without her app.
    async fn roles(&self, bo: UserId) -> Result<()> {
        let tried = self.app.sign_in(ADA, &self.ada.password, &client(ELSEWHERE)).await?;
        let SignInOutcome::SecondFactor(waiting) = tried else { bail!("a password alone was enough") };
        let guess = Proof::Code("no code".to_owned());
        let refused = self.app.sign_in_second(&waiting.token, (&guess, false), &client(ELSEWHERE)).await;
        ensure!(refused.is_err(), "a guess was taken");
        self.pass(40);
        let ada = self.ada().await?;
        let new = NewAssignment {
            user: bo,
            role: RoleRef::BuiltIn(BuiltIn::Manager),
            team: None,
            window: Window::ALWAYS,
            reason: "stands in while Cy is away".to_owned(),
        };
        let given = self.app.assign_role(&ada, self.org, new).await?;
        self.pass(180);
        let ada = self.ada().await?;
        self.app.unassign_role(&ada, self.org, given.given.id).await?;
        self.checkpoint().await
    }

    /// A key is made for the office's network, used from elsewhere, and given another secret.
    async fn api_key(&self) -> Result<()> {
        self.pass(45);
        let ada = self.ada().await?;
        let permissions = [Permission::WorkflowsRead, Permission::RunsRead].into_iter().collect::<PermissionSet>();
        let new =
            NewApiKey { networks: vec![OFFICE_NETWORK.to_owned()], ..NewApiKey::new("reports", permissions, None) };
        let created = self.app.create_api_key(&ada, self.org, new).await?;
        self.pass(75);
        let identity = self.app.authenticate(&created.secret_text).await?;
        self.app.require_network(&identity, OFFICE.parse().ok())?;
        let refused = self.app.require_network(&identity, ELSEWHERE.parse().ok());
        ensure!(matches!(refused, Err(AppError::KeyAddressRefused)), "the key was let in from elsewhere");
        // It is written beside the answer, and at this hour.
        self.wait_for(EventType::RequestRefused).await?;
        self.pass(10);
        let ada = self.ada().await?;
        self.app.rotate_api_key(&ada, self.org, created.key.id, Duration::from_hours(1)).await?;
        Ok(())
    }

    async fn wait_for(&self, action: EventType) -> Result<()> {
        let scope = SystemScope::new(SystemReason::Admin).for_org(self.org);
        let filter = AuditFilter { action: Some(action.as_str().to_owned()), ..AuditFilter::default() };
        let look = async {
            loop {
                let args = (filter.clone(), PageRequest { before: None, limit: 1 });
                let read = self.host.store.read(&scope, args, |tx, (filter, page)| {
                    Box::pin(async move { tx.list_audit(filter, *page).await })
                });
                if !read.await?.items.is_empty() {
                    return Ok::<_, anyhow::Error>(());
                }
                tokio::time::sleep(LOOK_EVERY).await;
            }
        };
        tokio::time::timeout(PATIENCE, look).await.with_context(|| format!("no {action} was written"))?
    }

    /// What a plugin may do is taken from it, and given back.
    async fn grants(&self) -> Result<()> {
        self.pass(130);
        let ada = self.ada().await?;
        let all = installed(&self.app, &ada, self.org).await?;
        let Some(found) = all.into_iter().find(|found| !found.installation.grants.permissions.is_empty()) else {
            return Ok(());
        };
        let (id, seen, before) = (found.installation.id, found.installation.grant_version, found.installation.grants);
        let without = self.app.replace_grants(&ada, self.org, id, seen, Grants::default()).await?;
        self.pass(25);
        let ada = self.ada().await?;
        self.app.replace_grants(&ada, self.org, id, without.installation.grant_version, before).await?;
        Ok(())
    }
}
