//! What is done to plugins and to what they may.

use bulkhead_audit::taxonomy::EventType;
use serde_json::json;

use super::Said::{Changed, Hidden, Made, Removed};
use super::{Cast, Story, text, told};
use crate::guests::{asks_for_secret, manifest, package, signs};

const SECRET: &str = "a canary that signs";

pub(super) async fn plugins(story: &mut Story<'_>, cast: &Cast) {
    let server = story.server;
    story.secrets.push(SECRET.to_owned());
    let bytes = package(&signs(), &manifest("acme/signer", "1.0.0", asks_for_secret(false)));
    let upload = cast.ask("POST", "plugins").bytes("application/wasm", bytes);
    let plugin = text(&story.does("upload_plugin", upload).await.json(201)["id"]);
    story.left(&[told(EventType::PluginUploaded, &cast.key, &plugin, &[Made("/name"), Made("/digest")])]).await;
    let body = json!({ "plugin": "acme/signer", "version": "1.0.0" });
    let made = story.does("install", cast.ask("POST", "installations").json(&body)).await;
    let id = text(&made.json(201)["id"]);
    let at = format!("installations/{id}");
    story.left(&[told(EventType::InstallationCreated, &cast.key, &id, &[Made("/plugin"), Made("/grants")])]).await;

    let secret = format!("{at}/secrets/signing_key");
    story.does("put_secret", cast.ask("PUT", &secret).json(&json!({ "value": SECRET }))).await;
    let why = Hidden("no secret's value is told");
    story.left(&[told(EventType::SecretStored, &cast.key, &id, &[Made("/name"), Made("/replaced"), why])]).await;
    let granted = json!({ "permissions": [{ "kind": "secret", "name": "signing_key", "inject": { "origins": [] } }] });
    let grants = format!("{at}/grants");
    let tag = cast.tag(server, &grants).await;
    story.does("replace_grants", cast.ask("PUT", &grants).header("if-match", &tag).json(&granted)).await;
    let change = [Changed("/grants/before", "/grants/after"), Changed("/grant_version/before", "/grant_version/after")];
    story.left(&[told(EventType::GrantsChanged, &cast.key, &id, &change)]).await;
    let call = json!({ "contribution": "it", "input": "x" });
    story.does("make_call", cast.ask("POST", &format!("{at}/calls")).json(&call)).await;
    story.left(&[told(EventType::PluginCalled, &cast.key, &id, &[Made("/call"), Made("/outcome")])]).await;
    story.does("delete_secret", cast.ask("DELETE", &secret)).await;
    story.left(&[told(EventType::SecretDeleted, &cast.key, &id, &[Removed("/name")])]).await;

    let tag = cast.tag(server, &at).await;
    let disable = cast.ask("PATCH", &at).header("if-match", &tag).json(&json!({ "state": "disabled" }));
    story.does("update_installation", disable).await;
    let change = [Changed("/state/before", "/state/after")];
    story.left(&[told(EventType::InstallationUpdated, &cast.key, &id, &change)]).await;
    let tag = cast.tag(server, &at).await;
    story.does("uninstall", cast.ask("DELETE", &at).header("if-match", &tag)).await;
    let change = [Changed("/state/before", "/state/after"), Changed("/grants/before", "/grants/after")];
    story.left(&[told(EventType::InstallationUninstalled, &cast.key, &id, &change)]).await;
    story.does("delete_plugin", cast.ask("DELETE", &format!("plugins/{plugin}"))).await;
    let gone = [Removed("/name"), Removed("/version"), Removed("/digest")];
    story.left(&[told(EventType::PluginDeleted, &cast.key, &plugin, &gone)]).await;
}
