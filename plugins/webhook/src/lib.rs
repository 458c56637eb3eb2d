//! Calls a web hook: one JSON request, signed if wanted, and the answer as the step's output.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bulkhead_sdk::http::{Request, Response};
use bulkhead_sdk::{Context, Failure, clock, http, log, secret};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Name of the secret that signs requests.
const SIGNING_KEY: &str = "signing_key";
/// Bytes of an answer that become output. Longer ones are cut: a result's string may have 64 KiB.
const OUTPUT_BYTES_MAX: usize = 32 * 1024;
/// Nesting and list length up to which an answer stays JSON, well inside what a result may have.
const OUTPUT_DEPTH_MAX: usize = 32;
const OUTPUT_LIST_MAX: usize = 5_000;
/// Bytes of an error answer that become part of the message.
const MESSAGE_BYTES_MAX: usize = 300;

/// What an admin sets for the installation.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Where requests go, unless a step names another URL.
    #[serde(default)]
    #[schemars(url, length(max = 2048))]
    url: Option<String>,
    /// Headers of every request.
    #[serde(default)]
    headers: BTreeMap<String, String>,
    /// Signs every request with the secret `signing_key`, as Standard Webhooks describes.
    #[serde(default)]
    sign: bool,
}

/// What a step says.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Input {
    /// In place of the URL in the settings. An origin other than that one's needs the permission for any host.
    #[serde(default)]
    #[schemars(url, length(max = 2048))]
    url: Option<String>,
    #[serde(default)]
    method: Method,
    /// Headers of this request; they win over those in the settings.
    #[serde(default)]
    headers: BTreeMap<String, String>,
    /// Sent as JSON.
    #[serde(default)]
    body: Value,
}

#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum Method {
    #[default]
    Post,
    Put,
    Patch,
}

/// The answer.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Output {
    status: u16,
    /// JSON where the answer was JSON of moderate size, else text; null when it was empty.
    body: Value,
    /// The answer was longer than what is kept.
    truncated: bool,
}

fn webhook(ctx: &Context, input: Input) -> Result<Output, Failure> {
    let settings: Settings = ctx.settings()?;
    let is_signed = settings.sign;
    let request = request(ctx, settings, input)?;
    let request = if is_signed { sign(ctx, request)? } else { request };
    let response = request.send()?;
    log::info!("the web hook answered {}", response.status);
    match response.status {
        200..=299 => Ok(output(&response)),
        status @ (408 | 425 | 429 | 500..=599) => {
            Err(Failure::Transient { message: problem(status, &response), retry_after_ms: response.retry_after_ms() })
        }
        status => Err(Failure::permanent(problem(status, &response))),
    }
}

fn request(ctx: &Context, settings: Settings, input: Input) -> Result<Request, Failure> {
    let url = input.url.or(settings.url);
    let url = url.ok_or_else(|| Failure::invalid_input("neither the step nor the settings name a url"))?;
    let method = match input.method {
        Method::Post => "POST",
        Method::Put => "PUT",
        Method::Patch => "PATCH",
    };
    let mut headers = BTreeMap::new();
    for (name, value) in settings.headers.into_iter().chain(input.headers) {
        let name = name.to_ascii_lowercase();
        if name == "idempotency-key" || name == "content-type" || name.starts_with("webhook-") {
            return Err(Failure::invalid_input(format!("the header {name} is written by the plugin")));
        }
        headers.insert(name, value);
    }
    let mut request = http::request(method, url).header("idempotency-key", &ctx.idempotency_key);
    for (name, value) in headers {
        request = request.header(name, value);
    }
    Ok(request.json(&input.body)?)
}

/// <https://github.com/standard-webhooks/standard-webhooks>: the signature covers id, time and body.
fn sign(ctx: &Context, request: Request) -> Result<Request, Failure> {
    let timestamp = clock::now_unix_s().to_string();
    let mut signed = format!("{}.{timestamp}.", ctx.idempotency_key).into_bytes();
    signed.extend_from_slice(&request.body);
    let signature = secret::hmac_sha256(SIGNING_KEY, &signed)?;
    Ok(request
        .header("webhook-id", &ctx.idempotency_key)
        .header("webhook-timestamp", timestamp)
        .header("webhook-signature", format!("v1,{}", STANDARD.encode(signature))))
}

fn output(response: &Response) -> Output {
    let text = response.text();
    let body = match response.json::<Value>() {
        _ if text.is_empty() => Value::Null,
        Ok(body) if text.len() <= OUTPUT_BYTES_MAX && fits(&body, 0) => body,
        _ => Value::String(cut(&text, OUTPUT_BYTES_MAX).to_owned()),
    };
    Output { status: response.status, body, truncated: text.len() > OUTPUT_BYTES_MAX }
}

fn fits(value: &Value, depth: usize) -> bool {
    let room = |len: usize| depth < OUTPUT_DEPTH_MAX && len <= OUTPUT_LIST_MAX;
    match value {
        Value::Array(items) => room(items.len()) && items.iter().all(|item| fits(item, depth + 1)),
        Value::Object(map) => room(map.len()) && map.values().all(|item| fits(item, depth + 1)),
        _ => true,
    }
}

fn problem(status: u16, response: &Response) -> String {
    let text = response.text();
    match cut(text.trim(), MESSAGE_BYTES_MAX) {
        "" => format!("the web hook answered {status}"),
        text => format!("the web hook answered {status}: {text}"),
    }
}

/// The longest beginning of at most `bytes_max` bytes that ends between two characters.
fn cut(text: &str, bytes_max: usize) -> &str {
    &text[..text.floor_char_boundary(bytes_max)]
}

bulkhead_sdk::actions! { "webhook" => webhook }

#[cfg(test)]
mod tests {
    use bulkhead_sdk::testing::{Host, assert_schema, fixtures};
    use serde_json::json;

    use super::*;

    #[test]
    fn fixtures_end_as_written() {
        fixtures::<Actions>("fixtures");
    }

    #[test]
    fn schemas_are_those_of_the_types() {
        assert_schema::<Settings>("schemas/settings.json");
        assert_schema::<Input>("schemas/input.json");
        assert_schema::<Output>("schemas/output.json");
    }

    /// The worked example of the Standard Webhooks specification's reference libraries.
    #[test]
    fn the_signature_is_that_of_the_reference_libraries() {
        let host = Host::new().secret("signing_key", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw");
        let signed = host.run(|ctx| {
            let ctx = Context { idempotency_key: "msg_p5jXN8AQM9LWM0D4loKWxJek".into(), ..ctx.clone() };
            let request = http::post("https://a.example/").body(r#"{"test": 2432232314}"#);
            host.clone().at_unix_s(1_614_265_330).run(|_| sign(&ctx, request))
        });
        let headers = signed.expect("the key is set").headers;
        let signature = headers.iter().find(|(name, _)| name == "webhook-signature").map(|(_, value)| value.as_str());
        assert_eq!(signature, Some("v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="));
    }

    #[test]
    fn an_answer_that_is_too_much_for_a_result_becomes_text() {
        let answer = |body: String| {
            let host = Host::new().reply(200, body);
            host.call(webhook, json!({ "url": "https://a.example/", "body": {} })).expect("200 is a success")
        };
        let deep = format!("{}1{}", "[".repeat(40), "]".repeat(40));
        assert_eq!(answer(deep.clone())["body"], json!(deep));
        let long = format!("[{}1]", "1,".repeat(6_000));
        assert_eq!(answer(long.clone())["body"], json!(long));
        let huge = answer("ä".repeat(40_000));
        assert_eq!((huge["body"].as_str().map(str::len), &huge["truncated"]), (Some(OUTPUT_BYTES_MAX), &json!(true)));
    }
}
