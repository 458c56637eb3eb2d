//! Row 12: lists of 50, as a key and as a member with a session.

use anyhow::{Context as _, Result, ensure};
use bulkhead_model::password::Cost;
use bulkhead_test_support::measure::Figure;
use serde_json::{Value, json};

use crate::client::{Client, SignIn};
use crate::load::{self, Asked};
use crate::site::{Ground, Site};

const PER_S: u32 = 500;
const LASTS_S: u32 = 20;
/// Of each list there are more than a page.
const PEOPLE: u32 = 200;
const WORKFLOWS: usize = 100;
const RUNS: usize = 200;

pub(crate) fn measure(ground: Ground) -> Result<()> {
    let site = Site::open(ground, Cost::FLOOR, PEOPLE)?;
    let server = site.serve()?;
    let (client, bearer) = (Client::new(&server.url), site.bearer());
    fill(&client, &bearer)?;
    let SignIn::Open(session) = client.sign_in(0)? else { anyhow::bail!("there is room for one sign-in") };
    let (key, member) = (("authorization", bearer.as_str()), ("cookie", session.as_str()));
    let name = ground.name();
    // What the machine, the network and the outermost layers take of the same rate.
    let mut nothing = load::ask(&Asked { url: &server.url, path: "/livez", header: key }, PER_S, LASTS_S)?;
    let (alone_p50, alone_p99) = (nothing.quantile(0.5), nothing.quantile(0.99));
    for (what, list, header) in [
        ("runs, by a key", "runs", key),
        ("workflows, by a key", "workflows", key),
        ("members, by a member", "members", member),
    ] {
        let path = format!("/api/v1/orgs/acme/{list}?limit=50");
        let page: Value = serde_json::from_slice(&client.get(&path, header)?).context("a list is JSON")?;
        let items = page["items"].as_array().map_or(0, Vec::len);
        ensure!(items == 50, "{path} holds {items} items");
        let mut took = load::ask(&Asked { url: &server.url, path: &path, header }, PER_S, LASTS_S)?;
        let conditions = format!("{PER_S}/s open loop for {LASTS_S} s; the reference is /livez at the same rate");
        for (which, share, target, reference) in [("p50", 0.5, "≤ 2", alone_p50), ("p99", 0.99, "≤ 10", alone_p99)]
        {
            Figure::new(12, format!("{name}: a list of 50 {what}, {which}"), took.quantile(share), "ms")
                .beside(reference)
                .target(target)
                .conditions(conditions.as_str())
                .print()?;
        }
    }
    Ok(())
}

fn fill(client: &Client, bearer: &str) -> Result<()> {
    let mut first = None;
    for number in 0..WORKFLOWS {
        let definition = json!({
            "schema": 1, "name": format!("Workflow {number}"), "triggers": [{ "id": "by-hand", "type": "api" }],
            "start": "end", "steps": { "end": { "type": "stop" } },
        });
        let made = client.post("/api/v1/orgs/acme/workflows", bearer, &json!({ "definition": definition }))?;
        let id = made["id"].as_str().context("a workflow has an id")?;
        first.get_or_insert_with(|| id.to_owned());
    }
    let first = first.context("there are workflows")?;
    for number in 0..RUNS {
        client.post(
            &format!("/api/v1/orgs/acme/workflows/{first}/runs"),
            bearer,
            &json!({ "input": { "n": number } }),
        )?;
    }
    Ok(())
}
