//! A server is backed up while it serves, is lost, and goes on elsewhere: on the same kind of database and on the other.

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use bulkhead_test_support::http_sink::Sink;
use bulkhead_test_support::wait_until;
use serde_json::{Value, json};

use crate::demo::delivery;
use crate::server::Place;

const WITHIN: Duration = Duration::from_mins(1);
/// Longer than a backup takes on a busy machine: the run must still wait when it is made.
const WAIT_MS: u64 = 20_000;

fn bulkhead(args: &[&str], place: &Place) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bulkhead"));
    command.args(args).arg("--data-dir").arg(place.data_dir()).stdin(Stdio::null());
    if let Some(url) = place.database_url().filter(|_| !args.contains(&"verify")) {
        command.arg("--database-url").arg(url);
    }
    command.output().unwrap()
}

#[track_caller]
fn json_of(output: &Output) -> Value {
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{told}");
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

#[track_caller]
fn refusal(output: &Output) -> String {
    assert!(!output.status.success(), "{output:?}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A workflow that waits, and one of its runs, which does.
fn start_waiting_run(server: &crate::server::Server<'_>) -> String {
    let definition = json!({
        "schema": 1, "name": "Wait", "triggers": [{ "id": "by-hand", "type": "api" }], "start": "wait",
        "steps": { "wait": { "type": "delay", "for_ms": WAIT_MS, "next": "end" }, "end": { "type": "stop" } },
    });
    let made = server.api.post("workflows", &json!({ "definition": definition }));
    assert_eq!(made.status, 201, "{:#}", made.body);
    let path = format!("workflows/{}", made.body["id"].as_str().unwrap());
    let started = server.api.post(&format!("{path}/runs"), &json!({ "input": { "n": 1 } }));
    assert_eq!(started.status, 202, "{:#}", started.body);
    let run = started.body["run"].as_str().unwrap().to_owned();
    assert!(wait_until(WITHIN, || status(server, &run) == "waiting"), "{}", status(server, &run));
    run
}

fn status(server: &crate::server::Server<'_>, run: &str) -> String {
    server.api.get(&format!("runs/{run}")).body["status"].as_str().unwrap_or_default().to_owned()
}

fn copy(name: &str, from: &Place, to: &Place) {
    std::fs::create_dir_all(to.data_dir()).unwrap();
    std::fs::copy(from.data_dir().join(name), to.data_dir().join(name)).unwrap();
}

fn goes_on_elsewhere(from: &Place, to: &Place) {
    use std::os::unix::fs::PermissionsExt as _;
    let sink = Sink::start();
    let first = from.start(&sink);
    let hook = first.hook();
    let before = first.api.deliver(&hook, &[("x-github-delivery", "d-1")], delivery("Before").to_string().as_bytes());
    let finished = before.body["run"].as_str().unwrap().to_owned();
    assert_eq!(first.api.wait_for_run(&finished, WITHIN)["status"], "succeeded");
    let waiting = start_waiting_run(&first);

    let shelf = tempfile::tempdir().unwrap();
    let file = shelf.path().join("monday.bulkhead");
    let name = file.to_str().unwrap();
    let made = json_of(&bulkhead(&["backup", "--json", "--out", name], from));
    assert_eq!(status(&first, &waiting), "waiting", "the backup was made in time");
    assert_eq!(made["rows"]["run"], 2, "{made:#}");
    assert_eq!(made["bytes"], std::fs::metadata(&file).unwrap().len());
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(std::fs::read_dir(shelf.path()).unwrap().count(), 1, "nothing is left beside it");
    assert!(refusal(&bulkhead(&["backup", "--out", name], from)).contains("--replace"));
    json_of(&bulkhead(&["backup", "--json", "--replace", "--out", name], from));

    // Anybody can see that it is whole; who has the key can see that all of it can be read.
    let whole = json_of(&bulkhead(&["backup", "verify", "--json", name], to));
    assert!(whole["rows"].is_null() && whole["ok"] == true, "{whole:#}");
    let read = json_of(&bulkhead(&["backup", "verify", "--json", name], from));
    assert_eq!(read["rows"]["run"], 2, "{read:#}");

    // What comes later is not in it.
    let later = first.api.deliver(&hook, &[], delivery("Later").to_string().as_bytes());
    let later = later.body["run"].as_str().unwrap().to_owned();
    let (org, key) = (first.api.org.clone(), first.demo["api_key"].clone());
    first.kill();

    refuses_what_is_wrong(&file, from, to);
    copy("root.key", from, to);
    let restored = json_of(&bulkhead(&["restore", "--json", "--in", name], to));
    assert_eq!(restored["rows"]["run"], 2, "{restored:#}");
    assert!(refusal(&bulkhead(&["restore", "--in", name], to)).contains("holds data already"));

    copy("demo.json", from, to);
    let second = to.start(&sink);
    assert_eq!((&second.api.org, &second.demo["api_key"]), (&org, &key), "the same organization, under the same key");
    assert_eq!(second.api.get(&format!("runs/{later}")).status, 404);
    assert_eq!(status(&second, &finished), "succeeded");
    assert_eq!(second.api.wait_for_run(&waiting, WITHIN)["status"], "succeeded", "the run that waited goes on");
    // Keys, hooks, secrets and what was done before are those of the first server.
    let path = hook.rsplit_once("/hooks/").unwrap().1;
    let hook = format!("{}/hooks/{path}", second.api.url);
    let again = second.api.deliver(&hook, &[("x-github-delivery", "d-1")], delivery("Before").to_string().as_bytes());
    assert_eq!(again.body["run"].as_str(), Some(finished.as_str()), "a delivery of before is known: {:#}", again.body);
    let fresh = second.api.deliver(&hook, &[], delivery("After").to_string().as_bytes());
    let fresh = second.api.wait_for_run(fresh.body["run"].as_str().unwrap(), WITHIN);
    assert_eq!(fresh["status"], "succeeded", "{fresh:#}");
    assert_eq!(second.stop(), Some(0));
}

/// None of these changes anything, so a restore after them finds an empty place.
fn refuses_what_is_wrong(file: &Path, from: &Place, to: &Place) {
    let name = file.to_str().unwrap();
    let text = refusal(&bulkhead(&["restore", "--in", name], to));
    assert!(text.contains("root.key") && text.contains("install -m 600"), "{text}");
    std::fs::create_dir_all(to.data_dir()).unwrap();
    let other_key = to.data_dir().join("root.key");
    std::fs::write(&other_key, "ab01".repeat(16)).unwrap();
    std::fs::set_permissions(&other_key, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let text = refusal(&bulkhead(&["restore", "--in", name], to));
    assert!(text.contains("another root key"), "{text}");
    std::fs::remove_file(other_key).unwrap();

    let damaged = file.with_extension("damaged");
    let mut bytes = std::fs::read(file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&damaged, &bytes).unwrap();
    let name = damaged.to_str().unwrap();
    let verified = bulkhead(&["backup", "verify", name], from);
    assert_eq!(verified.status.code(), Some(1), "the answer is no");
    assert!(refusal(&verified).contains("damaged"));
    copy("root.key", from, to);
    let text = refusal(&bulkhead(&["restore", "--in", name], to));
    assert!(text.contains("damaged"), "{text}");
    assert!(!to.data_dir().join("bulkhead.sqlite").exists(), "nothing was made");
}

#[test]
fn sqlite_goes_on_in_a_new_directory() {
    goes_on_elsewhere(&Place::sqlite(), &Place::sqlite());
}

#[test]
fn sqlite_grows_into_postgres() {
    if let Some(to) = Place::postgres() {
        goes_on_elsewhere(&Place::sqlite(), &to);
    }
}

#[test]
fn postgres_shrinks_into_sqlite() {
    if let Some(from) = Place::postgres() {
        goes_on_elsewhere(&from, &Place::sqlite());
    }
}
