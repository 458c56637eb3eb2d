//! Schedule triggers over HTTP.

use std::time::Duration;

use bulkhead_test_support::wait::until_async;
use serde_json::{Value, json};

use crate::support::{PATIENCE, ask, stops_at_once};

fn scheduled(name: &str) -> Value {
    let mut definition = stops_at_once(name);
    definition["triggers"] = json!([
        { "id": "hand", "type": "manual" },
        { "id": "nightly", "type": "schedule", "cron": "0 2 * * *", "time_zone": "Europe/Berlin", "misfire": "skip" },
    ]);
    definition["steps"]["end"]["output"] = json!("{{ trigger.scheduled_for_local }}");
    definition
}

on_both! {
    async fn a_schedule_is_previewed_shown_and_fired(server: TestServer) {
        let tenant = server.tenant("acme").await;
        server.work().await;
        let checked = server.post(&tenant, "workflows/validate", &json!({ "definition": scheduled("Nightly") })).await.json(200);
        assert_eq!(checked["schedules"][0]["trigger"], "nightly");
        let next = json!({
            "scheduled_for": "2026-11-22T01:00:00.000000Z",
            "scheduled_for_local": "2026-11-22T02:00:00+01:00",
            "fires_at": "2026-11-22T01:00:00.000000Z",
        });
        assert_eq!((&checked["schedules"][0]["next"][0], checked["schedules"][0]["next"].as_array().unwrap().len()), (&next, 3));

        let workflow = server.save(&tenant, &scheduled("Nightly")).await;
        let id = workflow["id"].as_str().unwrap().to_owned();
        let path = format!("workflows/{id}/schedule");
        let shown = server.get(&tenant, &path).await.json(200);
        assert_eq!(
            shown["items"],
            json!([{
                "trigger": "nightly", "cron": "0 2 * * *", "time_zone": "Europe/Berlin", "misfire": "skip", "misfire_max": 100,
                "spread_s": 0, "offset_ms": 0, "armed": false, "next": checked["schedules"][0]["next"],
                "last_fired_at": null, "last_run": null, "fired": 0, "late": 0, "missed": 0, "unmatched": 0, "trouble": null,
            }])
        );
        let activate = ask("POST", tenant.at(&format!("workflows/{id}/activate"))).key(&tenant.key);
        server.send(activate).await.json(200);
        let shown = server.get(&tenant, &path).await.json(200);
        assert_eq!((&shown["items"][0]["armed"], &shown["items"][0]["next"][0]), (&json!(true), &next));

        server.ambient.advance(Duration::from_hours(17) + Duration::from_secs(1));
        let fired = until_async(PATIENCE, async || server.get(&tenant, &path).await.json(200)["items"][0]["fired"] == 1);
        assert!(fired.await);
        let shown = server.get(&tenant, &path).await.json(200);
        let run = shown["items"][0]["last_run"].as_str().unwrap();
        let view = crate::workflows::ended(&server, &tenant, run).await;
        assert_eq!((&view["trigger"], &view["output"]), (&json!("schedule"), &json!("2026-11-22T02:00:00+01:00")), "{view}");
        assert_eq!(shown["items"][0]["next"][0]["scheduled_for"], "2026-11-23T01:00:00.000000Z");
        assert_eq!(server.get(&tenant, &format!("{path}?page=2")).await.problem(400), "invalid-query");
    }

    async fn a_schedule_that_cannot_be_is_refused_with_its_place(server: TestServer) {
        let tenant = server.tenant("acme").await;
        for (field, value, code) in [
            ("cron", json!("0 2 * *"), "cron"),
            ("cron", json!("* * * * * *"), "too-frequent"),
            ("cron", json!("0 0 30 2 *"), "never-fires"),
            ("time_zone", json!("Berlin"), "time-zone"),
            ("spread_s", json!(4000), "out-of-range"),
        ] {
            let mut definition = scheduled("Broken");
            definition["triggers"][1][field] = value;
            for place in ["workflows", "workflows/validate"] {
                let answer = server.post(&tenant, place, &json!({ "definition": definition })).await;
                assert_eq!(answer.problem(422), "invalid-workflow");
                assert_eq!(answer.error(422), (format!("/definition/triggers/1/{field}"), code.to_owned()));
            }
        }
    }
}
