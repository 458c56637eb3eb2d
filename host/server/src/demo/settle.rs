//! Puts the demo's organization, plugins and workflow where they are missing; what is there stays.

use anyhow::{Context as _, Result};
use bulkhead_app::App;
use bulkhead_app::api_key::NewApiKey;
use bulkhead_app::installation::{InstallationDetail, InstallationPatch, NewInstallation};
use bulkhead_app::workflow::SaveWorkflow;
use bulkhead_model::grant::Grants;
use bulkhead_model::id::{OrgId, WorkflowId};
use bulkhead_model::manifest::Manifest;
use bulkhead_model::mfa::MfaPolicy;
use bulkhead_model::name::Slug;
use bulkhead_model::permission::{Caller, PermissionSet};
use bulkhead_store::page::PageRequest;
use indexmap::IndexMap;
use serde_json::{Value, json};
use url::Url;

use super::{DemoFile, DemoWorkflow};
use crate::first_party::Package;

pub(super) const ORG: &str = "demo";
const WORKFLOW: &str = include_str!("github_issue_to_slack.json");
const WORKFLOW_NAME: &str = "GitHub issue to Slack";
/// A delivery small enough to type.
pub(super) const SAMPLE_DELIVERY: &str = r#"{"action":"opened","issue":{"number":1,"title":"Crash on start","html_url":"https://github.com/acme/app/issues/1","body":"It stops.","labels":[{"name":"bug"}]},"repository":{"full_name":"acme/app"},"sender":{"login":"ada"}}"#;
/// Makes what is missing and brings addresses up to date.
pub(super) async fn settle(
    app: &App,
    packages: &[Package],
    sink: &Url,
    url: &str,
    before: Option<DemoFile>,
) -> Result<DemoFile> {
    let slug: Slug = ORG.parse().map_err(|error| anyhow::anyhow!("{error}"))?;
    let org = if let Some(org) = app.find_org(slug.clone()).await? {
        org
    } else {
        let org = app.create_org(slug, "Demo".into()).await?;
        // Whoever makes the first person here signs in with a password; a real organization asks its admins for more from the start.
        app.change_mfa_policy_as_operator(org.id, MfaPolicy::Optional).await?;
        org
    };
    let (api_key, caller) = key(app, org.id, before.as_ref()).await?;
    for package in packages {
        let uploaded = app.upload_plugin(&caller, org.id, package.bytes.clone().into()).await;
        uploaded.with_context(|| format!("{} cannot be uploaded", package.manifest.name))?;
        install(app, &caller, org.id, package, sink).await?;
    }
    let (id, token) = workflow(app, &caller, org.id).await?;
    let webhook_url = format!("{url}/hooks/{token}");
    let workflows = IndexMap::from([(WORKFLOW_NAME.to_owned(), DemoWorkflow { id: id.to_string(), webhook_url })]);
    Ok(DemoFile {
        url: url.to_owned(),
        org: org.slug.to_string(),
        api_key,
        admin: before.and_then(|file| file.admin),
        workflows,
        sink: sink.to_string(),
    })
}

/// The key of last time if it is still good, or a new one.
async fn key(app: &App, org: OrgId, before: Option<&DemoFile>) -> Result<(String, Caller)> {
    if let Some(text) = before.map(|file| file.api_key.clone())
        && let Ok(identity) = app.authenticate(&text).await
    {
        return Ok((text, identity.caller));
    }
    let new = NewApiKey::new("demo", PermissionSet::all(), None);
    let created = app.create_first_api_key(org, new).await?;
    let identity = app.authenticate(&created.secret_text).await?;
    Ok((created.secret_text, identity.caller))
}

fn settings(plugin: &str, sink: &Url) -> Value {
    match plugin {
        "webhook" => json!({ "url": sink }),
        "slack" => json!({ "webhook_url": sink }),
        _ => json!({}),
    }
}

/// The organization's installations (a demo has few).
pub(super) async fn installed(app: &App, caller: &Caller, org: OrgId) -> Result<Vec<InstallationDetail>> {
    let page = PageRequest { before: None, limit: 200 };
    Ok(app.list_installations(caller, org, page).await?.items)
}

/// The grants that the demo gives: what each plugin asks toward the configured sink. The webhook action's wish for every public
/// host stays unanswered.
fn grants(manifest: &Manifest, settings: &Value) -> Grants {
    let mut asked = manifest.clone();
    asked.permissions.retain(|ask| {
        let text = serde_json::to_string(&ask.capability).unwrap_or_default();
        text.contains("from_setting")
    });
    Grants::everything_asked(&asked, settings)
}

async fn install(app: &App, caller: &Caller, org: OrgId, package: &Package, sink: &Url) -> Result<()> {
    let manifest = &package.manifest;
    let settings = settings(manifest.name.plugin(), sink);
    let grants = grants(manifest, &settings);
    let present = installed(app, caller, org).await?.into_iter().find(|found| found.plugin.name == manifest.name);
    let Some(present) = present else {
        let new =
            NewInstallation { plugin: manifest.name.clone(), version: manifest.version.to_string(), settings, grants };
        app.install(caller, org, new).await.with_context(|| format!("{} cannot be installed", manifest.name))?;
        return Ok(());
    };
    let mut version = present.installation.grant_version;
    let id = present.installation.id;
    let newer = present.plugin.digest != package.digest.0;
    if present.installation.settings != settings || newer {
        let patch = InstallationPatch {
            settings: Some(settings.clone()),
            version: newer.then(|| manifest.version.to_string()),
            ..InstallationPatch::default()
        };
        version = app.update_installation(caller, org, id, version, patch).await?.installation.grant_version;
    }
    if present.installation.grants != grants {
        app.replace_grants(caller, org, id, version, grants).await?;
    }
    Ok(())
}

/// The workflow and its webhook's token; made and activated where it is missing.
async fn workflow(app: &App, caller: &Caller, org: OrgId) -> Result<(WorkflowId, String)> {
    let page = PageRequest { before: None, limit: 200 };
    let listed = app.list_workflows(caller, org, page).await?;
    let id = if let Some(found) = listed.items.iter().find(|workflow| workflow.name == WORKFLOW_NAME) {
        found.id
    } else {
        let save = SaveWorkflow { definition: WORKFLOW.to_owned(), summary: "made by the demo".into() };
        let created = app.create_workflow(caller, org, save).await?;
        app.set_workflow_active(caller, org, created.workflow.id, true).await?;
        created.workflow.id
    };
    let detail = app.show_workflow(caller, org, id, None).await?;
    let hook = detail.hooks.into_iter().next().context("the demo's workflow has no webhook trigger any more")?;
    Ok((id, hook.token))
}

#[cfg(test)]
mod tests {
    use super::*;
    use bulkhead_model::workflow::{Definition, TriggerKind, trigger_payload};

    #[test]
    fn the_demo_workflow_is_valid_and_takes_the_sample() {
        let (definition, notes) = Definition::parse(WORKFLOW).unwrap();
        assert_eq!(definition.name, WORKFLOW_NAME);
        assert!(notes.is_empty(), "{notes:?}");
        let body = serde_json::from_str(SAMPLE_DELIVERY).unwrap();
        let payload = trigger_payload(TriggerKind::Webhook, body, json!({}), json!({}));
        assert!(definition.matching_trigger(TriggerKind::Webhook, None, &payload).trigger.is_some());
    }
}
