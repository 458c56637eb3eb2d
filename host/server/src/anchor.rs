//! The webhook anchor: each signed checkpoint is told to somebody who keeps it where neither the database's administrator nor this
//! machine's can take it back.
//!
//! Requests are signed as Standard Webhooks are (`webhook-id`, `webhook-timestamp`, `webhook-signature`: HMAC-SHA-256 over the three with the
//! body), leave through the egress guard, and are tried again until they are answered 2xx; the id is the same each time. A newer checkpoint
//! covers the older ones, so of each log one waits at most.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bulkhead_app::audit_log::NewCheckpoint;
use bulkhead_model::ambient::Ambient;
use bulkhead_model::grant::{self, EffectiveGrants, HttpRule, Loopback, OriginPattern, PathPrefix};
use bulkhead_model::id::OrgId;
use bulkhead_runtime::egress::{
    EgressConfig, EgressContext, EgressGuard, EgressRequest, Quotas, SecretVault, Timeouts,
};
use hmac::{Hmac, KeyInit as _, Mac as _};
use http::{HeaderMap, HeaderValue, Method};
use serde_json::{Value, json};
use sha2::Sha256;
use zeroize::Zeroizing;

use crate::config::{AuditSection, Config};
use crate::host::Host;

/// One request, from the lookup to the last byte of the answer.
const TELL_TIME: Duration = Duration::from_secs(10);
/// The answer's body says nothing that matters.
const ANSWER_BYTES_MAX: u64 = 64 * 1024;
/// The pause after the first failure, and the longest one.
const PAUSE_MIN: Duration = Duration::from_secs(5);
const PAUSE_MAX: Duration = Duration::from_mins(10);
/// Requests in a minute: of as many organizations a checkpoint can be told each minute.
const REQUESTS_PER_MINUTE: u32 = 6_000;
/// New checkpoints are looked for this often.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Bytes of a signing secret (Standard Webhooks: 24 to 64).
const SECRET_BYTES: std::ops::RangeInclusive<usize> = 24..=64;
const SECRET_START: &str = "whsec_";

/// Why a checkpoint was not taken.
#[derive(Debug, thiserror::Error)]
enum Untold {
    /// Nobody answered, or somebody who may later: the others can wait as well.
    #[error("{0}")]
    Down(String),
    /// This one was refused.
    #[error("it was answered with {0}")]
    Refused(u16),
}

/// Who is told.
pub(crate) struct Webhook {
    guard: EgressGuard,
    grants: Arc<EffectiveGrants>,
    url: String,
    secret: Zeroizing<Vec<u8>>,
    ambient: Ambient,
}

fn secret(text: &str) -> Result<Zeroizing<Vec<u8>>> {
    let bytes = text.strip_prefix(SECRET_START).and_then(|text| STANDARD.decode(text).ok());
    let bytes = bytes.map(Zeroizing::new).filter(|bytes| SECRET_BYTES.contains(&bytes.len()));
    bytes.context("audit.webhook_secret is `whsec_` and 24 to 64 random bytes in base64")
}

/// `v1,` and the signature, as Standard Webhooks has it.
fn signature(secret: &[u8], id: &str, timestamp_s: u64, body: &str) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret).expect("HMAC takes keys of every length");
    mac.update(format!("{id}.{timestamp_s}.{body}").as_bytes());
    format!("v1,{}", STANDARD.encode(mac.finalize().into_bytes()))
}

/// Checks what can be checked without sending anything.
///
/// # Errors
/// What is wrong, in words for the operator.
pub(crate) fn check(section: &AuditSection) -> Result<()> {
    match (&section.webhook_url, &section.webhook_secret) {
        (None, None) => Ok(()),
        (Some(_), None) => bail!("audit.webhook_url needs audit.webhook_secret, which signs the requests"),
        (None, Some(_)) => bail!("audit.webhook_secret signs requests to audit.webhook_url, which is missing"),
        (Some(url), Some(text)) => {
            secret(text.reveal())?;
            rule(url).map(drop)
        }
    }
}

/// What the guard lets leave: this origin.
fn rule(url: &str) -> Result<HttpRule> {
    let read = url::Url::parse(url).context("audit.webhook_url is no address")?;
    ensure!(matches!(read.scheme(), "http" | "https"), "audit.webhook_url begins with https://");
    ensure!(read.username().is_empty() && read.password().is_none(), "audit.webhook_url holds no user");
    let origin = read.origin().ascii_serialization();
    let origin = origin.parse::<OriginPattern>().map_err(|error| anyhow!("audit.webhook_url: {error}"))?;
    let post = "POST".parse::<grant::Method>().map_err(|error| anyhow!("POST is no method: {error}"))?;
    Ok(HttpRule { origins: vec![origin], methods: vec![post], paths: vec![PathPrefix::root()] })
}

impl Webhook {
    /// The one that the configuration names.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(crate) fn of(section: &AuditSection, egress: EgressConfig, ambient: Ambient) -> Result<Option<Self>> {
        check(section)?;
        let (Some(url), Some(text)) = (&section.webhook_url, &section.webhook_secret) else { return Ok(None) };
        let rule = rule(url)?;
        // In clear it goes nowhere but to this machine, where the operator said so.
        let is_here = |loopback: &Loopback| {
            url::Url::parse(url).is_ok_and(|url| {
                url.host_str().zip(url.port_or_known_default()).is_some_and(|(host, port)| loopback.matches(host, port))
            })
        };
        ensure!(
            url.starts_with("https://") || egress.allow_loopback.iter().any(is_here),
            "audit.webhook_url begins with https:// (http:// only to an address of egress.allow_loopback)"
        );
        let quotas = Quotas { requests_per_minute: REQUESTS_PER_MINUTE, ..egress.quotas };
        let guard =
            EgressGuard::new(EgressConfig { quotas, ..egress }).context("the outbound client does not start")?;
        let grants = Arc::new(EffectiveGrants::of_rules(vec![rule], Vec::new()));
        Ok(Some(Self { guard, grants, url: url.clone(), secret: secret(text.reveal())?, ambient }))
    }

    async fn send(&self, id: &str, body: &Value) -> Result<(), Untold> {
        let body = body.to_string();
        let timestamp_s = self.ambient.now().as_millis() / 1000;
        let signed = signature(&self.secret, id, timestamp_s, &body);
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("content-type", "application/json"),
            ("webhook-id", id),
            ("webhook-timestamp", timestamp_s.to_string().as_str()),
            ("webhook-signature", signed.as_str()),
        ] {
            let value = HeaderValue::from_str(value).map_err(|error| Untold::Down(error.to_string()))?;
            headers.insert(name, value);
        }
        let context = EgressContext {
            org: "platform".to_owned(),
            installation: "audit-webhook".to_owned(),
            grants: Arc::clone(&self.grants),
            secrets: SecretVault::new(self.ambient.clone()),
            response_bytes_max: ANSWER_BYTES_MAX,
            deadline: Instant::now() + TELL_TIME,
        };
        let request = EgressRequest {
            method: Method::POST,
            url: self.url.clone(),
            headers,
            body: body.into_bytes().into(),
            timeouts: Timeouts::default(),
        };
        let (answer, _) = self.guard.send(&context, request).await;
        match answer.map(|answer| answer.status()) {
            Ok(status) if status.is_success() => Ok(()),
            Ok(status) if status.is_server_error() || status.as_u16() == 429 => {
                Err(Untold::Down(format!("it was answered with {}", status.as_u16())))
            }
            Ok(status) => Err(Untold::Refused(status.as_u16())),
            Err(error) => Err(Untold::Down(error.to_string())),
        }
    }

    async fn tell(&self, checkpoint: &NewCheckpoint) -> Result<(), Untold> {
        let NewCheckpoint { org, size, note } = checkpoint;
        // The same each time that it is tried: who got it already knows it again.
        let body = json!({
            "type": "audit.checkpoint",
            "timestamp": self.ambient.now(),
            "data": { "org": org, "size": size, "checkpoint": note },
        });
        self.send(&format!("{org}.{size}"), &body).await
    }

    /// Tells that somebody looks whether it answers.
    ///
    /// # Errors
    /// Why it does not.
    pub(crate) async fn ping(&self) -> Result<(), String> {
        let now = self.ambient.now();
        let body = json!({ "type": "ping", "timestamp": now, "data": {} });
        self.send(&format!("ping.{}", now.as_millis()), &body).await.map_err(|error| error.to_string())
    }
}

/// Checkpoints that are to be told, of each log the newest one.
#[derive(Clone, Default)]
pub(crate) struct Outbox {
    waiting: Arc<Mutex<BTreeMap<OrgId, Waiting>>>,
}

struct Waiting {
    checkpoint: NewCheckpoint,
    /// It was refused, and is tried again from then on.
    not_before: Option<Instant>,
}

/// What became of those that were due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Round {
    /// Each was taken.
    all: bool,
    /// Nobody answers, or asks to be left alone.
    is_down: bool,
}

impl Outbox {
    /// Takes in what is not covered by one that waits already.
    pub(crate) fn put(&self, checkpoint: NewCheckpoint) {
        self.put_back(checkpoint, None);
    }

    fn put_back(&self, checkpoint: NewCheckpoint, not_before: Option<Instant>) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let other = waiting.get(&checkpoint.org);
        if other.is_none_or(|other| other.checkpoint.size < checkpoint.size) {
            let not_before = not_before.or(other.and_then(|other| other.not_before));
            waiting.insert(checkpoint.org, Waiting { checkpoint, not_before });
        }
    }

    /// Takes out those whose time it is: first those behind the one that was told last, so that each has its turn however few are taken.
    fn take_due(&self, last: Option<OrgId>) -> Vec<NewCheckpoint> {
        let (mut waiting, now) = (self.waiting.lock().unwrap_or_else(PoisonError::into_inner), Instant::now());
        let is_due = |_: &OrgId, waiting: &mut Waiting| waiting.not_before.is_none_or(|at| at <= now);
        let due: Vec<_> = waiting.extract_if(.., is_due).map(|(_, waiting)| waiting.checkpoint).collect();
        let (before, behind): (Vec<_>, Vec<_>) = due.into_iter().partition(|due| Some(due.org) <= last);
        behind.into_iter().chain(before).collect()
    }

    fn len(&self) -> usize {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).len()
    }
}

/// Tells each that is due, once; what was not taken waits on. `last` is the one that was told last.
async fn tell_all(webhook: &Webhook, outbox: &Outbox, last: &mut Option<OrgId>) -> Round {
    let mut round = Round { all: true, is_down: false };
    for checkpoint in outbox.take_due(*last) {
        if round.is_down {
            outbox.put(checkpoint);
            continue;
        }
        let org = checkpoint.org;
        match webhook.tell(&checkpoint).await {
            Ok(()) => {
                metrics::counter!("bulkhead_audit_webhook_total", "outcome" => "taken").increment(1);
                *last = Some(org);
            }
            Err(error) => {
                metrics::counter!("bulkhead_audit_webhook_total", "outcome" => "failed").increment(1);
                tracing::error!(%org, size = checkpoint.size, %error, "a checkpoint could not be told; trying again");
                round.is_down = matches!(error, Untold::Down(_));
                // Who is refused holds up nobody, and is not asked for again and again.
                let not_before = (!round.is_down).then(|| Instant::now() + PAUSE_MAX);
                outbox.put_back(checkpoint, not_before);
                round.all = false;
            }
        }
    }
    round
}

/// How long to wait after so many failures in a row.
fn pause(failures: u32) -> Duration {
    PAUSE_MIN.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(PAUSE_MAX)
}

/// Begins to tell checkpoints, where the configuration names somebody. What was signed while nobody was told is told first.
///
/// # Errors
/// What is wrong with the configuration.
pub(crate) fn start(host: &Host, config: &Config) -> Result<Option<Outbox>> {
    let egress = crate::host::egress(config)?;
    let Some(webhook) = Webhook::of(&config.audit, egress, Ambient::system())? else { return Ok(None) };
    let (webhook, outbox, stop) = (Arc::new(webhook), Outbox::default(), host.supervisor.stop_token());
    let told = outbox.clone();
    host.supervisor.spawn_loop("audit-webhook", move || {
        let (webhook, outbox, stop) = (Arc::clone(&webhook), told.clone(), stop.clone());
        async move {
            let (mut failures, mut last) = (0, None);
            while !stop.is_cancelled() {
                let wait = if failures == 0 { LOOK_EVERY } else { pause(failures) };
                tokio::select! {
                    () = tokio::time::sleep(wait) => {}
                    () = stop.cancelled() => return,
                }
                let round = tell_all(&webhook, &outbox, &mut last).await;
                failures = if round.is_down { failures.saturating_add(1) } else { 0 };
                let waiting = u32::try_from(outbox.len()).unwrap_or(u32::MAX);
                metrics::gauge!("bulkhead_audit_webhook_waiting").set(f64::from(waiting));
            }
        }
    });
    Ok(Some(outbox))
}

#[cfg(test)]
mod tests {
    use bulkhead_model::time::Timestamp;
    use bulkhead_runtime::egress::{Resolve, ResolveFuture};
    use bulkhead_test_support::http_sink::{Reply, Sink};

    use super::*;
    use crate::config::Secret;

    struct NoNames;

    impl Resolve for NoNames {
        fn resolve<'a>(&'a self, _: &'a str) -> ResolveFuture<'a> {
            Box::pin(std::future::ready(Ok(Vec::new())))
        }
    }

    const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

    fn section(url: &str) -> AuditSection {
        let (webhook_url, webhook_secret) = (Some(url.to_owned()), Some(Secret::new(SECRET.to_owned())));
        AuditSection { webhook_url, webhook_secret, ..AuditSection::default() }
    }

    fn ambient() -> Ambient {
        Ambient::manual(Timestamp::from_micros(1_614_265_330_000_000), 1)
    }

    fn webhook(url: &str, loopback: Option<&str>) -> Result<Option<Webhook>> {
        let mut egress = EgressConfig::new(Arc::new(NoNames));
        egress.allow_loopback = loopback.iter().map(|text| text.parse().unwrap()).collect();
        Webhook::of(&section(url), egress, ambient())
    }

    fn checkpoint(seed: u64, size: u64) -> NewCheckpoint {
        let org = OrgId::new(&Ambient::manual(Timestamp::from_micros(0), seed));
        NewCheckpoint { org, size, note: format!("a note over {size}\n") }
    }

    /// The example of the Standard Webhooks specification and of its libraries' tests.
    #[test]
    fn requests_are_signed_as_standard_webhooks_are() {
        let secret = secret(SECRET).unwrap();
        let signed = signature(&secret, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, "{\"test\": 2432232314}");
        assert_eq!(signed, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }

    #[test]
    fn what_cannot_be_told_safely_is_refused_at_the_start() {
        for (url, fits) in [
            ("https://anchor.example/hook?for=bulkhead", true),
            ("http://anchor.example/hook", false),
            ("ftp://anchor.example/", false),
            ("https://user@anchor.example/", false),
            ("anchor.example", false),
        ] {
            assert_eq!(webhook(url, None).is_ok(), fits, "{url}");
        }
        assert!(webhook("http://127.0.0.1:9/hook", Some("127.0.0.1:9")).is_ok());
        assert!(webhook("http://127.0.0.1:8/hook", Some("127.0.0.1:9")).is_err());
        for text in ["MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_c2hvcnQ=", "whsec_!"] {
            let mut section = section("https://anchor.example/");
            section.webhook_secret = Some(Secret::new(text.to_owned()));
            let error = check(&section).unwrap_err().to_string();
            assert!(error.contains("24 to 64") && !error.contains(text), "{error}");
        }
        let alone = AuditSection { webhook_secret: None, ..section("https://anchor.example/") };
        assert!(check(&alone).is_err());
        assert!(check(&AuditSection { webhook_url: None, ..section("https://anchor.example/") }).is_err());
        assert!(check(&AuditSection::default()).is_ok());
    }

    #[tokio::test]
    async fn a_checkpoint_is_told_until_it_is_taken_and_the_newest_covers_the_others() {
        let sink = Sink::start();
        let address = sink.address().to_string();
        let webhook = webhook(&format!("http://{address}/hook"), Some(&address)).unwrap().unwrap();
        let outbox = Outbox::default();
        for size in [3, 9, 7] {
            outbox.put(checkpoint(1, size));
        }
        assert_eq!(outbox.len(), 1);
        sink.script(Reply::status(503));
        assert!(!tell_all(&webhook, &outbox, &mut None).await.all);
        assert_eq!(outbox.len(), 1, "it waits on");
        // While it fails another one is signed.
        outbox.put(checkpoint(1, 12));
        assert!(tell_all(&webhook, &outbox, &mut None).await.all);
        assert_eq!(outbox.len(), 0);
        assert!(tell_all(&webhook, &outbox, &mut None).await.all, "nothing waits, nothing is sent");
        let requests = sink.requests();
        let org = checkpoint(1, 0).org;
        let ids: Vec<_> = requests.iter().map(|request| request.header("webhook-id").unwrap().to_owned()).collect();
        assert_eq!(ids, [format!("{org}.9"), format!("{org}.12")]);
        let last = requests.last().unwrap();
        let body = last.body_text();
        assert_eq!(last.header("webhook-timestamp"), Some("1614265330"));
        let signed = signature(&secret(SECRET).unwrap(), &ids[1], 1_614_265_330, &body);
        assert_eq!(last.header("webhook-signature"), Some(signed.as_str()));
        let told: Value = serde_json::from_str(&body).unwrap();
        assert_eq!((&told["type"], &told["data"]["size"]), (&json!("audit.checkpoint"), &json!(12)));
        assert_eq!(told["data"]["checkpoint"], "a note over 12\n");
        assert!(webhook.ping().await.is_ok());
    }

    #[tokio::test]
    async fn one_that_is_refused_holds_up_no_other_and_one_that_is_down_is_left_alone() {
        let sink = Sink::start();
        let address = sink.address().to_string();
        let webhook = webhook(&format!("http://{address}/hook"), Some(&address)).unwrap().unwrap();
        let outbox = Outbox::default();
        let fill = || (1..=3).for_each(|seed| outbox.put(checkpoint(seed, 1)));
        fill();
        sink.script(Reply::status(410));
        assert!(!tell_all(&webhook, &outbox, &mut None).await.all);
        assert_eq!((outbox.len(), sink.requests().len()), (1, 3), "the others were told");
        let idle = Round { all: true, is_down: false };
        assert_eq!(tell_all(&webhook, &outbox, &mut None).await, idle, "the refused one has a pause of its own");
        fill();
        sink.script(Reply::status(500));
        assert!(!tell_all(&webhook, &outbox, &mut None).await.all);
        assert_eq!((outbox.len(), sink.requests().len()), (3, 4), "nobody else was sent there");
        // Whoever waits behind the last one has the next turn, however few are taken at a time.
        let mut orgs: Vec<OrgId> = (1..=3).map(|seed| checkpoint(seed, 1).org).collect();
        orgs.sort_unstable();
        let other = Outbox::default();
        (1..=3).for_each(|seed| other.put(checkpoint(seed, 1)));
        let order: Vec<OrgId> = other.take_due(Some(orgs[1])).into_iter().map(|due| due.org).collect();
        assert_eq!(order, [orgs[2], orgs[0], orgs[1]]);
        sink.script(Reply::redirect(307, "http://127.0.0.1:1/"));
        assert!(!tell_all(&webhook, &outbox, &mut None).await.all, "a redirect is followed nowhere");
        drop(sink);
        assert!(webhook.ping().await.is_err());
        assert_eq!([1, 2, 3, 8, 40].map(|failures| pause(failures).as_secs()), [5, 10, 20, 600, 600]);
    }
}
