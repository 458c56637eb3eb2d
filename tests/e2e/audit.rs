//! The audit log is taken from a server and verified where there is none.

use std::process::{Command, Output};
use std::time::Duration;

use bulkhead_test_support::http_sink::{Reply, Request, Sink};
use bulkhead_test_support::wait_until;
use serde_json::Value;

use crate::on_both;
use crate::server::Place;

const WITHIN: Duration = Duration::from_mins(1);

/// On a machine with nothing but the binary and the files.
pub(crate) fn verify(dir: &std::path::Path, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bulkhead"));
    command.env_clear().current_dir(dir).args(["audit", "verify"]).args(args);
    command.output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

on_both! {
    fn a_bundle_is_verified_on_another_machine(place: Place) {
        let sink = Sink::start();
        let server = place.start(&sink);
        let checkpoint = || server.api.get("audit/checkpoint");
        assert!(wait_until(WITHIN, || checkpoint().status == 200), "the server seals by itself");
        let kept = checkpoint().body;
        let (note, key) = (kept["checkpoint"].as_str().unwrap(), kept["verifier_key"].as_str().unwrap());
        let Value::String(bundle) = server.api.get("audit/bundles/0").body else { panic!("a bundle is no JSON document") };
        assert_eq!(server.stop(), Some(0));

        let elsewhere = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(elsewhere.path().join(name), text).unwrap();
        write("acme.jsonl", &bundle);
        write("acme.key", key);
        write("monday.checkpoint", note);
        let with_known = |args: &[&'static str]| {
            let known = ["--key-file", "acme.key", "--checkpoint", "monday.checkpoint"];
            verify(elsewhere.path(), &[args, known.as_slice()].concat())
        };
        let sound = with_known(&["acme.jsonl", "--json", "--state", "acme.state"]);
        assert_eq!(sound.status.code(), Some(0), "{sound:?}");
        let report: Value = serde_json::from_slice(&sound.stdout).unwrap();
        assert_eq!((&report["key_known"], &report["faults_total"]), (&Value::Bool(true), &Value::from(0)), "{report:#}");
        assert_eq!(report["entries"].as_u64(), Some(bundle.lines().filter(|line| line.starts_with("{\"entry\"")).count() as u64));
        assert!(report["entries"].as_u64().unwrap() > 10, "a demo has done something");
        assert!(elsewhere.path().join("acme.state").exists());

        // One entry is taken out, another says something else.
        let third = bundle.lines().find(|line| line.contains("\"seq\":3,")).unwrap();
        write("cut.jsonl", &bundle.replace(&format!("{third}\n"), ""));
        let cut = with_known(&["cut.jsonl"]);
        assert_eq!(cut.status.code(), Some(1), "{cut:?}");
        assert!(text(&cut.stdout).ends_with("NOT SOUND: the first bad entry is 3\n"), "{}", text(&cut.stdout));
        write("other.jsonl", &bundle.replacen("\"outcome\":\"success\"", "\"outcome\":\"denied\"", 5));
        let changed = with_known(&["other.jsonl"]);
        assert_eq!(changed.status.code(), Some(1), "{changed:?}");

        let missing = verify(elsewhere.path(), &["nothing.jsonl"]);
        assert_eq!(missing.status.code(), Some(2), "{missing:?}");
        let no_key = verify(elsewhere.path(), &["acme.jsonl", "--key", "x"]);
        assert!(no_key.status.code() == Some(2) && text(&no_key.stderr).contains("no verifier key"), "{no_key:?}");
    }
}

on_both! {
    fn checkpoints_are_told_to_whoever_keeps_them(place: Place) {
        let sink = Sink::start();
        let settings = [
            ("BULKHEAD_AUDIT__WEBHOOK_URL", sink.url("/anchor")),
            ("BULKHEAD_AUDIT__WEBHOOK_SECRET", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw".to_owned()),
        ];
        sink.script_for("/anchor", Reply::status(503));
        let server = place.start_with(&sink, &settings);
        let told = || -> Vec<Request> { sink.requests().into_iter().filter(|request| request.target == "/anchor").collect() };
        assert!(wait_until(WITHIN, || told().len() >= 2), "it is tried again");
        let id = |request: &Request| request.header("webhook-id").unwrap().to_owned();
        let newest = || server.api.get("audit/checkpoint").body["checkpoint"].clone();
        let org = newest().as_str().unwrap().lines().next().unwrap().rsplit('/').next().unwrap().to_owned();
        assert!(told().iter().all(|request| id(request).starts_with(&org) && request.header("webhook-signature").is_some()));
        let is_told = |note: &Value| told().iter().any(|request| serde_json::from_str::<Value>(&request.body_text()).unwrap()["data"]["checkpoint"] == *note);
        assert!(wait_until(WITHIN, || is_told(&newest())), "the one that the log shows");
        // One entry goes out with its own proof.
        let Value::String(proof) = server.api.get("audit/entries/1/proof").body else { panic!("a bundle is no JSON document") };
        let key = server.api.get("audit/keys").body["keys"][0]["verifier_key"].as_str().unwrap().to_owned();
        assert_eq!(server.stop(), Some(0));
        let elsewhere = tempfile::tempdir().unwrap();
        std::fs::write(elsewhere.path().join("one.jsonl"), &proof).unwrap();
        let sound = verify(elsewhere.path(), &["one.jsonl", "--key", &key]);
        assert!(sound.status.code() == Some(0) && text(&sound.stdout).contains("1 entries, 1 to 1"), "{sound:?}");
        // After a start the newest is told once more, under the same id.
        let before = told().len();
        let server = place.start_with(&sink, &settings);
        assert!(wait_until(WITHIN, || told().len() > before));
        assert_eq!(server.stop(), Some(0));
    }
}
