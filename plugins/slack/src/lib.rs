//! Writes notifications to Slack: as a bot, or through an incoming web hook.

mod message;

use bulkhead_sdk::http::Response;
use bulkhead_sdk::{Context, Failure, http, log, secret};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use message::{blocks, fallback};

const POST_MESSAGE: &str = "https://slack.com/api/chat.postMessage";
/// Name of the secret with the bot's token.
const BOT_TOKEN: &str = "bot_token";
/// Name of the secret with an incoming web hook's last part, and what stands for it in the URL.
const WEBHOOK_TOKEN: &str = "webhook_token";
const WEBHOOK_TOKEN_MARK: &str = "{secret}";

/// What an admin sets for the installation.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// The address of an incoming web hook. Without it, the plugin speaks as a bot and needs the secret `bot_token`. The part of the address
    /// after `/services/` may be written `{secret}` and stored as the secret `webhook_token`.
    #[serde(default)]
    #[schemars(regex(pattern = "^https?://"), length(max = 500))]
    webhook_url: Option<String>,
    /// Where a bot writes when a notification names no channel: `#support` or a channel's id.
    #[serde(default)]
    #[schemars(length(max = 100))]
    default_channel: Option<String>,
}

/// What to say.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Notification {
    /// `#support` or a channel's id. An incoming web hook writes where it was made for, whatever is said here.
    #[serde(default)]
    #[schemars(length(max = 100))]
    channel: Option<String>,
    /// Shown as it is: Slack's own markup in it has no effect.
    #[schemars(length(min = 1, max = 12000))]
    text: String,
    #[serde(default)]
    #[schemars(length(max = 500))]
    title: Option<String>,
    #[serde(default)]
    severity: Option<Severity>,
    /// Facts in two columns; the first ten are shown.
    #[serde(default)]
    #[schemars(length(max = 50))]
    fields: Vec<Field>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    Info,
    Low,
    Medium,
    High,
    Critical,
}

#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Field {
    #[schemars(length(max = 200))]
    name: String,
    #[schemars(length(max = 2000))]
    value: String,
}

/// What Slack calls the message. An incoming web hook does not say.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Receipt {
    /// `channel:ts`.
    id: Option<String>,
    channel: Option<String>,
    ts: Option<String>,
}

#[expect(clippy::needless_pass_by_value, reason = "the SDK hands it over")]
fn slack(ctx: &Context, notification: Notification) -> Result<Receipt, Failure> {
    let settings: Settings = ctx.settings()?;
    match &settings.webhook_url {
        Some(url) => through_web_hook(url, &notification),
        None => as_bot(ctx, &settings, &notification),
    }
}

/// <https://api.slack.com/methods/chat.postMessage>
fn as_bot(ctx: &Context, settings: &Settings, notification: &Notification) -> Result<Receipt, Failure> {
    #[derive(Deserialize)]
    struct Answer {
        ok: bool,
        error: Option<String>,
        channel: Option<String>,
        ts: Option<String>,
    }
    let channel = notification.channel.as_ref().or(settings.default_channel.as_ref());
    let channel =
        channel.ok_or_else(|| Failure::invalid_input("neither the notification nor the settings name a channel"))?;
    let mut body = payload(notification);
    body["channel"] = json!(channel);
    // Not shown; it tells a repeated message from a new one.
    body["metadata"] = json!({
        "event_type": "bulkhead_notification",
        "event_payload": { "idempotency_key": ctx.idempotency_key },
    });
    let response = http::post(POST_MESSAGE).header("authorization", secret(BOT_TOKEN)?.bearer()).json(&body)?.send()?;
    require_http_success(&response)?;
    let answer: Answer = response.json()?;
    if !answer.ok {
        return Err(refused_by_slack(answer.error.as_deref().unwrap_or("unknown_error"), &response));
    }
    let id = answer.channel.as_ref().zip(answer.ts.as_ref()).map(|(channel, ts)| format!("{channel}:{ts}"));
    Ok(Receipt { id, channel: answer.channel, ts: answer.ts })
}

/// <https://api.slack.com/messaging/webhooks>
fn through_web_hook(url: &str, notification: &Notification) -> Result<Receipt, Failure> {
    if notification.channel.is_some() {
        log::debug!("an incoming web hook has a channel of its own; the notification's is not used");
    }
    let url = if url.contains(WEBHOOK_TOKEN_MARK) {
        url.replace(WEBHOOK_TOKEN_MARK, secret(WEBHOOK_TOKEN)?.as_str())
    } else {
        url.to_owned()
    };
    let response = http::post(url).json(&payload(notification))?.send()?;
    match response.status {
        200..=299 => Ok(Receipt::default()),
        400..=407 | 409..=428 => Err(refused_by_slack(response.text().trim(), &response)),
        _ => Err(require_http_success(&response).err().unwrap_or_else(|| Failure::permanent("Slack gave no answer"))),
    }
}

fn payload(notification: &Notification) -> Value {
    let mut body = json!({
        "text": fallback(notification),
        "unfurl_links": false,
        "unfurl_media": false,
    });
    if notification.title.is_some() || notification.severity.is_some() || !notification.fields.is_empty() {
        body["blocks"] = blocks(notification);
    }
    body
}

fn require_http_success(response: &Response) -> Result<(), Failure> {
    match response.status {
        200..=299 => Ok(()),
        status @ (408 | 429 | 500..=599) => Err(Failure::Transient {
            message: format!("Slack answered {status}"),
            retry_after_ms: response.retry_after_ms(),
        }),
        status => Err(Failure::permanent(format!("Slack answered {status}"))),
    }
}

/// Slack's error codes, sorted by what helps.
fn refused_by_slack(code: &str, response: &Response) -> Failure {
    // The code goes into a message for people: only what a code looks like.
    let code: String = code.chars().take(60).filter(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
    match code.as_str() {
        "ratelimited"
        | "rate_limited"
        | "internal_error"
        | "fatal_error"
        | "service_unavailable"
        | "request_timeout"
        | "rollup_error" => {
            Failure::Transient { message: format!("Slack is busy: {code}"), retry_after_ms: response.retry_after_ms() }
        }
        "channel_not_found" | "not_in_channel" | "is_archived" | "channel_is_archived" => Failure::invalid_input(
            format!("the bot cannot write to this channel: {code}; does it exist, and is the bot in it?"),
        ),
        "invalid_auth" | "not_authed" | "account_inactive" | "token_revoked" | "token_expired" | "missing_scope"
        | "no_permission" => {
            Failure::permanent(format!("Slack does not accept the token: {code}; it needs the scope chat:write"))
        }
        _ => Failure::permanent(format!("Slack refused the message: {code}")),
    }
}

bulkhead_sdk::channels! { "slack" => slack }

#[cfg(test)]
mod tests {
    use bulkhead_sdk::testing::{assert_schema, fixtures};

    use super::*;

    #[test]
    fn fixtures_end_as_written() {
        fixtures::<Channels>("fixtures");
    }

    #[test]
    fn schemas_are_those_of_the_types() {
        assert_schema::<Settings>("schemas/settings.json");
        assert_schema::<Notification>("schemas/notification.json");
        assert_schema::<Receipt>("schemas/receipt.json");
    }
}
