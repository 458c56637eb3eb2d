//! Keys of a real server: rotated while it is killed again and again, and a root key that is added, used, lost and taken away.

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use bulkhead_store::seal::RootKeys;
use bulkhead_store::{Database, Store, StoreConfig};
use bulkhead_test_support::http_sink::Sink;
use bulkhead_test_support::wait_until;
use serde_json::{Value, json};

use crate::on_both;
use crate::server::{Place, Server};

const WITHIN: Duration = Duration::from_mins(1);

fn keys(args: &[&str], place: &Place) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bulkhead"));
    command.args(["admin", "keys"]).args(args).env("BULKHEAD_SERVER__DATA_DIR", place.data_dir()).stdin(Stdio::null());
    if let Some(url) = place.database_url() {
        command.env("BULKHEAD_DATABASE__OWNER_URL", url);
    }
    command.output().unwrap()
}

#[track_caller]
fn said(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[track_caller]
fn refusal(output: &Output) -> String {
    assert!(!output.status.success(), "{output:?}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Workflows with so many webhook addresses, each of which is stored sealed; answers the workflows.
fn with_hooks(server: &Server<'_>, workflows: usize, hooks: usize) -> Vec<Value> {
    let triggers: Vec<_> =
        (0..hooks).map(|number| json!({ "id": format!("hook-{number:02}"), "type": "webhook" })).collect();
    (0..workflows)
        .map(|number| {
            let definition = json!({
                "schema": 1, "name": format!("Sealed {number}"), "triggers": triggers, "start": "end",
                "steps": { "end": { "type": "stop" } },
            });
            let made = server.api.post("workflows", &json!({ "definition": definition }));
            assert_eq!(made.status, 201, "{:#}", made.body);
            made.body
        })
        .collect()
}

fn rotated(server: &Server<'_>) -> bool {
    let shown = server.api.get("encryption-keys").body;
    let only_opens = |key: &Value| key["state"] == "decrypt_only";
    shown["rotations"] == json!([]) && !shown["keys"].as_array().unwrap().iter().any(only_opens)
}

fn all_open(server: &Server<'_>, workflows: &[Value]) {
    for workflow in workflows {
        let shown = server.api.get(&format!("workflows/{}", workflow["id"].as_str().unwrap()));
        assert_eq!(shown.status, 200, "{:#}", shown.body);
        assert_eq!(shown.body["hooks"], workflow["hooks"]);
    }
}

/// Comes with the password that follows from these root keys.
fn comes_as_the_application_role(owner_url: &str, roots: &str) {
    let first = RootKeys::parse(roots).unwrap().base().derive("postgresql application role v1");
    let database =
        Database::Postgres { url: None, owner_url: Some(owner_url.to_owned()), app_password: hex::encode(first) };
    let looked = async {
        let store = Store::look(StoreConfig { database, connections_max: 1 }).await.unwrap();
        store.close().await;
    };
    tokio::runtime::Runtime::new().unwrap().block_on(looked);
}

fn replace_key_file(dir: &Path, text: &str) {
    std::fs::write(dir.join("root.key"), text).unwrap();
}

on_both! {
    fn a_rotation_survives_kill_dash_nine_and_goes_on(place: Place) {
        let sink = Sink::start();
        let mut server = place.start(&sink);
        let workflows = with_hooks(&server, 10, 18);
        for round in 0..3_u64 {
            for level in ["data", "organization"] {
                let begun = server.api.post("key-rotations", &json!({ "level": level }));
                assert_eq!(begun.status, 202, "{:#}", begun.body);
            }
            // In the middle: 180 values take nine batches with a pause after each.
            std::thread::sleep(Duration::from_millis(100 * round));
            server.kill();
            server = place.start(&sink);
            all_open(&server, &workflows);
            assert!(wait_until(WITHIN, || rotated(&server)), "{:#}", server.api.get("encryption-keys").body);
            all_open(&server, &workflows);
        }
        let shown = server.api.get("encryption-keys").body;
        let active: Vec<_> = shown["keys"].as_array().unwrap().iter().filter(|key| key["state"] == "active").collect();
        assert_eq!((&active[0]["key"], &active[1]["key"], active.len()), (&json!("o4"), &json!("d4"), 2), "{shown:#}");
        let rotations = server.api.get("key-rotations").body;
        assert!(rotations["items"].as_array().unwrap().iter().all(|rotation| rotation["state"] == "done"), "{rotations:#}");
    }
}

on_both! {
    // The operator's way from one root key to another, and what happens to whoever loses one.
    fn a_root_key_is_replaced_and_a_lost_one_is_said(place: Place) {
        let sink = Sink::start();
        let server = place.start(&sink);
        assert_eq!(server.core_bytes_max(), "0", "a crash leaves no keys in a file");
        let workflows = with_hooks(&server, 1, 3);
        assert!(said(&keys(&["list"], &place)).contains("active       wraps 1 organization keys"));
        said(&keys(&["add-root"], &place));
        let listed = said(&keys(&["list"], &place));
        let rows: Vec<&str> = listed.lines().collect();
        let id = |row: &str| row.split_whitespace().next().unwrap().to_owned();
        let (old, new) = (id(rows[0]), id(rows[1]));
        assert!(rows[1].contains("next         wraps 0"), "{listed}");
        // The server has not read it yet: whatever was wrapped with it would be closed to it.
        let unknown = refusal(&keys(&["use-root"], &place));
        assert!(unknown.contains(&format!("does not know the root key {new} yet")), "{unknown}");
        // The server tells what is done beside it.
        let of = |server: &Server<'_>, what: &str| server.api.get(&format!("audit?action=root_key.{what}")).body["items"].clone();
        assert!(wait_until(WITHIN, || of(&server, "added") != json!([])));
        assert_eq!(of(&server, "added")[0]["target"], new.as_str());
        assert_eq!(server.stop(), Some(0));
        said(&keys(&["use-root"], &place));
        let too_early = refusal(&keys(&["remove-root", &old], &place));
        assert!(too_early.contains("still wraps 1 organization keys"), "{too_early}");

        // Without the old key nothing starts, and nothing is changed.
        let dir = place.data_dir();
        let both = std::fs::read_to_string(dir.join("root.key")).unwrap();
        let other = "0123456789abcdef".repeat(4);
        replace_key_file(&dir, &other);
        let lost = place.operate(&["admin", "keys", "rotate", "acme"]).unwrap_err();
        assert!(lost.contains(&old) && lost.contains("Nothing was changed"), "{lost}");
        // Not even the password of the role that every other node comes as.
        if let Some(url) = place.database_url() {
            let lost = place.operate(&["migrate"]).unwrap_err();
            assert!(lost.contains(&old) && lost.contains("Nothing was changed"), "{lost}");
            comes_as_the_application_role(url, &both);
        }
        replace_key_file(&dir, &both);

        let server = place.start(&sink);
        all_open(&server, &workflows);
        // … and what was done while there was none.
        assert!(wait_until(WITHIN, || of(&server, "used") != json!([])));
        let used = of(&server, "used")[0].clone();
        assert_eq!((&used["target"], &used["detail"]["instead_of"]), (&json!(new), &json!(old)));
        assert!(wait_until(WITHIN, || !dir.join("root.key.acts").exists()), "nothing waits to be told");
        assert_eq!(of(&server, "added").as_array().unwrap().len(), 1, "each is told once");
        // The node looks for keys that are due a minute after its start, and whenever somebody rotates one.
        assert_eq!(server.api.post("key-rotations", &json!({ "level": "data" })).status, 202);
        let follows = || said(&keys(&["list"], &place)).contains(&format!("{new}  active       wraps 1"));
        assert!(wait_until(WITHIN, follows), "{}", said(&keys(&["list"], &place)));
        assert!(wait_until(WITHIN, || rotated(&server)));
        all_open(&server, &workflows);
        let shown = server.api.get("key-rotations").body;
        assert!(shown["items"].as_array().unwrap().iter().any(|rotation| rotation["level"] == "root"), "{shown:#}");
        // The first key is what more than organization keys depends on: it stays, and wraps nothing.
        let first = refusal(&keys(&["remove-root", &old], &place));
        assert!(first.contains("cannot be taken away"), "{first}");
        let current = refusal(&keys(&["remove-root", &new], &place));
        assert!(current.contains("still wraps"), "{current}");
        assert_eq!(server.stop(), Some(0));
        // … and so it stays the first one: everything that is not wrapped would come from another.
        let text = std::fs::read_to_string(dir.join("root.key")).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        for other in [lines[1].to_owned(), format!("{}\n{}\n", lines[1], lines[0])] {
            replace_key_file(&dir, &other);
            let refused = place.operate(&["admin", "keys", "rotate", "acme"]).unwrap_err();
            assert!(refused.contains("stands first") && refused.contains(&old), "{refused}");
        }
        replace_key_file(&dir, &text);
        place.start(&sink).stop();
    }
}

/// A key service as a program: it turns letters by thirteen places, and opens nothing for whoever shows it the server's configuration.
const SERVICE: &str = r#"
if env | grep -q '^BULKHEAD_'; then echo 'the configuration is shown' >&2; exit 5; fi
read -r ask
field() { printf '%s' "$ask" | sed -n "s/.*\"$1\":\"\([^\"]*\)\".*/\1/p"; }
turned() { printf '%s' "$1" | tr 'A-Za-z' 'N-ZA-Mn-za-m'; }
case "$ask" in
*'"operation":"wrap"'*) printf '{"wrapped":"test:%s"}\n' "$(turned "$(field plaintext)")" ;;
*) wrapped=$(field wrapped); printf '{"plaintext":"%s"}\n' "$(turned "${wrapped#test:}")" ;;
esac
"#;

on_both! {
    // The first start has the root key wrapped; without the service nothing starts, and what is there stays.
    fn a_key_service_opens_the_root_keys(place: Place) {
        let (sink, folder) = (Sink::start(), tempfile::tempdir().unwrap());
        let (service, denies) = (folder.path().join("service.sh"), folder.path().join("denies.sh"));
        std::fs::write(&service, SERVICE).unwrap();
        std::fs::write(&denies, "echo 'access denied' >&2; exit 1").unwrap();
        let by = |program: &Path| [("BULKHEAD_KEYS__COMMAND", json!(["/bin/sh", program]).to_string())];
        let server = place.start_with(&sink, &by(&service));
        let workflows = with_hooks(&server, 1, 3);
        assert_eq!(server.stop(), Some(0));
        let dir = place.data_dir();
        let wrapped = std::fs::read_to_string(dir.join("root.key.wrapped")).unwrap();
        assert!(wrapped.contains("test:") && !dir.join("root.key").exists(), "{wrapped}");

        let list = |settings: &[(&str, String)]| {
            let mut command = Command::new(env!("CARGO_BIN_EXE_bulkhead"));
            command.args(["admin", "keys", "list"]).env("BULKHEAD_SERVER__DATA_DIR", &dir).stdin(Stdio::null());
            command.envs(settings.iter().map(|(name, value)| (*name, value)));
            command.envs(place.database_url().map(|url| ("BULKHEAD_DATABASE__OWNER_URL", url)));
            command.output().unwrap()
        };
        assert!(said(&list(&by(&service))).contains("active       wraps 1 organization keys"));
        let denied = refusal(&list(&by(&denies)));
        assert!(denied.contains("access denied"), "{denied}");
        let unasked = refusal(&list(&[]));
        assert!(unasked.contains("root.key.wrapped"), "{unasked}");
        // A server as well ends before it has done anything.
        let mut command = place.command(&sink.url("/hook"));
        command.envs(by(&denies)).stdin(Stdio::null());
        let refused = refusal(&command.output().unwrap());
        assert!(refused.contains("access denied"), "{refused}");
        assert_eq!(std::fs::read_to_string(dir.join("root.key.wrapped")).unwrap(), wrapped);
        assert!(!dir.join("root.key").exists());

        let server = place.start_with(&sink, &by(&service));
        all_open(&server, &workflows);
        assert_eq!(server.stop(), Some(0));
    }
}
