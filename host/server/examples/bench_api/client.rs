//! A client of one connection.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};
use ureq::Agent;
use ureq::http::Response;

use crate::site::{PASSWORD, email};

/// Nothing that is measured takes as long.
const TIMEOUT: Duration = Duration::from_secs(30);

pub(crate) struct Client {
    agent: Agent,
    url: String,
}

/// What a try to sign in came to.
pub(crate) enum SignIn {
    /// The cookie of the session.
    Open(String),
    /// There was no room; come back after.
    Busy(Duration),
}

/// Reads an answer to its end: only then the connection is free for the next request.
fn read(mut answer: Response<ureq::Body>) -> Result<(u16, Vec<u8>)> {
    let status = answer.status().as_u16();
    Ok((status, answer.body_mut().read_to_vec()?))
}

fn shown(body: &[u8]) -> String {
    String::from_utf8_lossy(body).chars().take(400).collect()
}

impl Client {
    pub(crate) fn new(url: &str) -> Self {
        let config = Agent::config_builder().http_status_as_error(false).timeout_global(Some(TIMEOUT)).build();
        Self { agent: config.new_agent(), url: url.to_owned() }
    }

    pub(crate) fn status(&self, path: &str) -> Result<u16> {
        Ok(read(self.agent.get(format!("{}{path}", self.url)).call()?)?.0)
    }

    /// Reads; whatever is not 200 is an error.
    pub(crate) fn get(&self, path: &str, (name, value): (&str, &str)) -> Result<Vec<u8>> {
        let (status, body) = read(self.agent.get(format!("{}{path}", self.url)).header(name, value).call()?)?;
        if status != 200 {
            bail!("GET {path} was answered {status}: {}", shown(&body));
        }
        Ok(body)
    }

    pub(crate) fn post(&self, path: &str, authorization: &str, body: &Value) -> Result<Value> {
        let request = self.agent.post(format!("{}{path}", self.url)).header("authorization", authorization);
        let (status, answer) = read(request.send_json(body)?)?;
        if !(200..300).contains(&status) {
            bail!("POST {path} was answered {status}: {}", shown(&answer));
        }
        serde_json::from_slice(&answer).with_context(|| format!("POST {path} was answered with no JSON"))
    }

    /// Signs the person with this number in, from an address of their own.
    pub(crate) fn sign_in(&self, person: u32) -> Result<SignIn> {
        let address = format!("198.18.{}.{}", person / 250, person % 250 + 1);
        let request = self.agent.post(format!("{}/api/v1/auth/login", self.url));
        let request = request.header("origin", &self.url).header("x-forwarded-for", address);
        let answer = request.send_json(json!({ "email": email(person), "password": PASSWORD }))?;
        let header = |name: &str| {
            let values = answer.headers().get_all(name).iter().filter_map(|value| value.to_str().ok());
            values.map(str::to_owned).collect::<Vec<_>>()
        };
        let (cookies, retry_after) = (header("set-cookie"), header("retry-after"));
        let (status, body) = read(answer)?;
        match status {
            200 => {
                let session = cookies.iter().find(|cookie| cookie.starts_with("__Host-bulkhead_session="));
                let session = session.context("who signed in got no session")?;
                Ok(SignIn::Open(session.split(';').next().unwrap_or_default().to_owned()))
            }
            429 => {
                let seconds = retry_after.first().and_then(|text| text.parse().ok()).unwrap_or(1);
                Ok(SignIn::Busy(Duration::from_secs(seconds)))
            }
            other => bail!("signing in was answered {other}: {}", shown(&body)),
        }
    }
}
