//! Webhook deliveries: from anybody who knows the address.

use axum::Json;
use axum::extract::{FromRequestParts, Query, Request, State};
use bulkhead_app::AppError;
use bulkhead_app::hook::{Accepted, BODY_BYTES_MAX, Delivery, Door, is_visible_header};
use bulkhead_model::id::RunId;
use http::{HeaderMap, StatusCode};
use serde::Serialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;

use crate::HttpState;
use crate::access::path_param;
use crate::extract::{JSON_BODY_TIME, discard, is_json, media_type, read_body_while};
use crate::limit::find_hook;
use crate::problem::{Kind, Problem};

/// Headers that name a delivery, in order of preference.
const DELIVERY_ID_HEADERS: [&str; 3] = ["idempotency-key", "x-github-delivery", "webhook-id"];

/// What became of a delivery.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Accepted)]
pub(crate) struct AcceptedView {
    /// The run that it began, or that an earlier delivery with the same id began; null when the workflow's conditions did not
    /// hold.
    #[schema(value_type = Option<String>, example = "run_01h455vb4pex5vsknk084sn02q")]
    run: Option<RunId>,
    /// Why no run began.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

/// Takes a webhook delivery.
///
/// A JSON body of at most a mebibyte, or GitHub's form with the JSON in `payload`. A repeated `Idempotency-Key`,
/// `X-GitHub-Delivery` or `webhook-id` answers the run of the first delivery. What is answered 429 was not stored: send it again
/// after `retry-after` seconds. Addresses that there are not count as failed credentials of the sender's network.
#[utoipa::path(
    post,
    path = "/hooks/{token}",
    tag = "webhooks",
    request_body(content = serde_json::Value, content_type = "application/json"),
    responses((status = 202, body = AcceptedView)),
    extensions(("x-bulkhead-problems" = json!([
        "not-found", "workflow-inactive", "invalid-delivery-id", "quota-exceeded", "rate-limited",
        "too-many-starts", "too-many-waiting", "too-many-held", "runs-per-minute"
    ]))),
)]
pub(crate) async fn receive_delivery(
    State(state): State<HttpState>,
    request: Request,
) -> Result<(StatusCode, Json<AcceptedView>), Problem> {
    let (mut parts, body) = request.into_parts();
    let token = path_param(&mut parts, &state, "token").await?;
    let query = query(&mut parts).await?;
    let headers = parts.headers.clone();
    // Nothing of a stranger's body is read before the address is known.
    let id = delivery_id(&headers);
    let opened = state.app.open_hook(&token, id.as_ref().ok().and_then(Option::as_deref)).await;
    // There is no room, or nothing is to be delivered; the address is one.
    if matches!(opened, Ok(_) | Err(AppError::TooMany { .. } | AppError::Conflict { .. })) {
        find_hook(&parts, &state);
    }
    let open = match opened {
        Ok(Door::Open(open)) => *open,
        Ok(Door::Repeated(run)) => {
            discard(Request::from_parts(parts, body)).await;
            return Ok(taken(Accepted { run: Some(run), reason: None }));
        }
        Err(refused @ AppError::TooMany { .. }) => return Err(refuse(parts, body, refused).await),
        Err(error) => return Err(error.into()),
    };
    let mut kept = match state.app.keep_room_for_body(&open) {
        Ok(kept) => kept,
        Err(refused) => return Err(refuse(parts, body, refused).await),
    };
    let form = match media_type(&headers).as_deref() {
        None => false,
        Some("application/x-www-form-urlencoded") => true,
        Some(kind) if is_json(kind) => false,
        Some(_) => return Err(unsupported()),
    };
    let request = Request::from_parts(parts, body);
    let grow = |arrived_bytes| kept.grow(arrived_bytes);
    let bytes = read_body_while(request, "delivery", BODY_BYTES_MAX, JSON_BODY_TIME, grow).await?;
    let delivery = Delivery {
        body: if form { payload_of_form(&bytes)? } else { bytes.into() },
        headers: visible(&headers),
        query,
        delivery_id: id?,
    };
    Ok(taken(state.app.receive_delivery(open, delivery, kept).await?))
}

fn taken(accepted: Accepted) -> (StatusCode, Json<AcceptedView>) {
    (StatusCode::ACCEPTED, Json(AcceptedView { run: accepted.run, reason: accepted.reason }))
}

/// A sender that keeps its connection can send the next delivery on it: the body of this one is read away, and not kept.
async fn refuse(parts: http::request::Parts, body: axum::body::Body, refused: AppError) -> Problem {
    discard(Request::from_parts(parts, body)).await;
    refused.into()
}

fn unsupported() -> Problem {
    let detail = "send JSON with `content-type: application/json`, or a form whose field `payload` holds JSON";
    Problem::new(Kind::UnsupportedMediaType, detail)
}

/// The query's parameters; of a repeated one the last counts.
async fn query(parts: &mut http::request::Parts) -> Result<Map<String, Value>, Problem> {
    let Query(pairs) = Query::<Vec<(String, String)>>::from_request_parts(parts, &())
        .await
        .map_err(|_| Problem::new(Kind::InvalidQuery, "the query is not readable"))?;
    Ok(pairs.into_iter().map(|(key, value)| (key, Value::String(value))).collect())
}

/// What GitHub sends when a hook's content type is left at its default: `payload=` and the JSON, form-encoded.
fn payload_of_form(bytes: &[u8]) -> Result<Vec<u8>, Problem> {
    let mut payloads = url::form_urlencoded::parse(bytes).filter(|(key, _)| key == "payload");
    match (payloads.next(), payloads.next()) {
        (Some((_, payload)), None) => Ok(payload.into_owned().into_bytes()),
        _ => Err(unsupported()),
    }
}

/// The headers that a workflow may see; values that are no text are left out.
fn visible(headers: &HeaderMap) -> Map<String, Value> {
    headers
        .iter()
        .filter(|(name, _)| is_visible_header(name.as_str()))
        .filter_map(|(name, value)| Some((name.as_str().to_owned(), Value::String(value.to_str().ok()?.to_owned()))))
        .collect()
}

fn delivery_id(headers: &HeaderMap) -> Result<Option<String>, Problem> {
    let Some((name, value)) = DELIVERY_ID_HEADERS.iter().find_map(|name| Some((name, headers.get(*name)?))) else {
        return Ok(None);
    };
    match value.to_str() {
        Ok(text) => Ok(Some(text.to_owned())),
        Err(_) => Err(Problem::new(Kind::InvalidHeader, format!("`{name}` holds characters that are no text"))),
    }
}
