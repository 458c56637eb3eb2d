//! A small client of the API.

use std::time::Duration;

use bulkhead_test_support::wait_until;
use serde_json::Value;
use ureq::Agent;
use ureq::http::Response;

pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) etag: Option<String>,
    pub(crate) body: Value,
}

pub(crate) struct Api {
    agent: Agent,
    pub(crate) url: String,
    pub(crate) org: String,
    key: String,
}

fn answer(response: Response<ureq::Body>) -> Answer {
    let status = response.status().as_u16();
    let etag = response.headers().get("etag").map(|tag| tag.to_str().unwrap().to_owned());
    let text = response.into_body().read_to_string().unwrap();
    Answer { status, etag, body: serde_json::from_str(&text).unwrap_or(Value::String(text)) }
}

impl Api {
    pub(crate) fn new(demo: &Value) -> Self {
        let config =
            Agent::config_builder().http_status_as_error(false).timeout_global(Some(Duration::from_mins(1))).build();
        Self {
            agent: config.new_agent(),
            url: demo["url"].as_str().unwrap().to_owned(),
            org: demo["org"].as_str().unwrap().to_owned(),
            key: demo["api_key"].as_str().unwrap().to_owned(),
        }
    }

    fn path(&self, path: &str) -> String {
        format!("{}/api/v1/orgs/{}/{path}", self.url, self.org)
    }

    fn bearer(&self) -> String {
        format!("Bearer {}", self.key)
    }

    pub(crate) fn get(&self, path: &str) -> Answer {
        answer(self.agent.get(self.path(path)).header("authorization", self.bearer()).call().unwrap())
    }

    pub(crate) fn get_as(&self, path: &str, authorization: &str) -> Answer {
        answer(self.agent.get(self.path(path)).header("authorization", authorization).call().unwrap())
    }

    pub(crate) fn post(&self, path: &str, body: &Value) -> Answer {
        answer(self.agent.post(self.path(path)).header("authorization", self.bearer()).send_json(body).unwrap())
    }

    pub(crate) fn put(&self, path: &str, etag: &str, body: &Value) -> Answer {
        let request = self.agent.put(self.path(path)).header("authorization", self.bearer()).header("if-match", etag);
        answer(request.send_json(body).unwrap())
    }

    pub(crate) fn delete(&self, path: &str) -> Answer {
        answer(self.agent.delete(self.path(path)).header("authorization", self.bearer()).call().unwrap())
    }

    /// What one of the server's own pages sends, with a session's cookie or without; the answer, and the session that it sets.
    pub(crate) fn page(&self, method: &str, path: &str, session: &str, body: &Value) -> (Answer, String) {
        let mut request = ureq::http::Request::builder().method(method).uri(format!("{}{path}", self.url));
        request = request.header("origin", &self.url);
        if !session.is_empty() {
            // A sign-in that waits has a cookie of its own.
            let name = if path.ends_with("/second-factor") { "sign_in" } else { "session" };
            request = request.header("cookie", format!("__Host-bulkhead_{name}={session}"));
        }
        let response = if body.is_null() {
            self.agent.run(request.body(()).unwrap())
        } else {
            self.agent.run(request.header("content-type", "application/json").body(body.to_string()).unwrap())
        };
        let response = response.unwrap();
        let cookies = response.headers().get_all("set-cookie").iter().filter_map(|value| value.to_str().ok());
        let of_session = cookies.filter_map(|text| {
            text.strip_prefix("__Host-bulkhead_session=").or_else(|| text.strip_prefix("__Host-bulkhead_sign_in="))
        });
        // One that is taken back is empty.
        let mut tokens = of_session.filter_map(|rest| rest.split(';').next()).filter(|token| !token.is_empty());
        let session = tokens.next().unwrap_or_default().to_owned();
        (answer(response), session)
    }

    pub(crate) fn upload(&self, package: &[u8]) -> Answer {
        let request = self.agent.post(self.path("plugins")).header("authorization", self.bearer());
        answer(request.header("content-type", "application/wasm").send(package).unwrap())
    }

    /// Delivers a body to a webhook's address.
    pub(crate) fn deliver(&self, hook: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        let mut request = self.agent.post(hook).header("content-type", "application/json");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        answer(request.send(body).unwrap())
    }

    /// Waits until the run has ended and answers it.
    pub(crate) fn wait_for_run(&self, run: &str, within: Duration) -> Value {
        let mut last = Value::Null;
        let ended = wait_until(within, || {
            last = self.get(&format!("runs/{run}")).body;
            matches!(last["status"].as_str(), Some("succeeded" | "failed" | "cancelled"))
        });
        assert!(ended, "the run did not end: {last:#}");
        last
    }

    /// The installation of this plugin.
    pub(crate) fn installation(&self, plugin: &str) -> Value {
        let list = self.get("installations").body;
        let items = list["items"].as_array().unwrap();
        items.iter().find(|item| item["plugin"] == plugin).unwrap_or_else(|| panic!("{plugin} in {list:#}")).clone()
    }
}
