//! The audit log is taken from a server and verified where there is none.

use std::process::{Command, Output};
use std::time::Duration;

use bulkhead_test_support::http_sink::Sink;
use bulkhead_test_support::wait_until;
use serde_json::Value;

use crate::on_both;
use crate::server::Place;

const WITHIN: Duration = Duration::from_mins(1);

/// On a machine with nothing but the binary and the files.
fn verify(dir: &std::path::Path, args: &[&str]) -> Output {
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
