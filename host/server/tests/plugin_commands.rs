//! The author's loop with the real binary: scaffold, test, build, check, run.
//!
//! Cargo works offline here: everything that a new project needs, this workspace has already fetched.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::thread;

use serde_json::{Value, json};

fn workspace() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().expect("this repository")
}

fn bulkhead() -> Command {
    Command::new(env!("CARGO_BIN_EXE_bulkhead"))
}

fn output(command: &mut Command) -> Output {
    command.output().expect("the program starts")
}

#[track_caller]
fn succeed(command: &mut Command) -> String {
    let output = output(command);
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command:?}\n{stdout}\n{stderr}");
    stdout.into_owned()
}

#[track_caller]
fn json_of(command: &mut Command) -> Value {
    let text = String::from_utf8(output(command.arg("--json")).stdout).expect("UTF-8");
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{command:?}: {error}: {text}"))
}

/// Builds a plugin of this repository into a file of its own, so that tests do not meet.
fn build(plugin: &str, into: &Path) -> PathBuf {
    let file = into.join(format!("{plugin}.wasm"));
    let project = workspace().join("plugins").join(plugin);
    succeed(bulkhead().args(["plugin", "build", "--offline", "--out"]).arg(&file).arg(project));
    file
}

#[test]
fn first_party_plugins_build_and_pass_the_check() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    for (plugin, pure) in [("webhook", false), ("slack", false), ("email-domain", true)] {
        let file = build(plugin, dir.path());
        let report = json_of(bulkhead().args(["plugin", "check"]).arg(&file));
        assert_eq!((&report["passed"], &report["pure"]), (&json!(true), &json!(pure)), "{report:#}");
        let bytes = fs::read(&file).expect("the package");
        let own = workspace().display().to_string();
        assert!(!bytes.windows(own.len()).any(|window| window == own.as_bytes()), "{plugin} names {own}");
        let imports = report["imports"].as_array().expect("a list");
        let forbidden = ["wasi:http/", "wasi:config/", "bulkhead:plugin/secrets"];
        let is_effectful =
            |import: &Value| forbidden.iter().any(|name| import.as_str().is_some_and(|i| i.starts_with(name)));
        assert_eq!(imports.iter().any(is_effectful), !pure, "{plugin}: {imports:?}");
    }
}

#[test]
fn a_new_project_of_each_kind_passes_its_own_test_and_the_check() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    // Shared between kinds and runs: the dependencies are the same.
    let target = workspace().join("target/plugins/scaffold");
    for kind in ["action", "channel", "factor"] {
        let project = dir.path().join(kind);
        let name = format!("acme/new-{kind}");
        succeed(bulkhead().args(["plugin", "new", &name, "--kind", kind, "--dir"]).arg(&project));
        let mut test = Command::new("cargo");
        succeed(test.args(["test", "--offline", "--lib"]).current_dir(&project).env("CARGO_TARGET_DIR", &target));
        let file = project.join("package.wasm");
        let mut build = bulkhead();
        build.args(["plugin", "build", "--offline", "--out"]).arg(&file).arg(&project);
        succeed(build.env("CARGO_TARGET_DIR", &target));
        succeed(bulkhead().args(["plugin", "check"]).arg(&file));
    }
}

/// Answers one request with `{"ok": true}` and gives its text.
fn answer_once(listener: TcpListener) -> thread::JoinHandle<String> {
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("the plugin connects");
        let mut request = Vec::new();
        let mut chunk = [0; 4096];
        while !request.ends_with(br#"{"n":1}"#) {
            let count = stream.read(&mut chunk).expect("a request");
            assert_ne!(count, 0, "the request ended early: {}", String::from_utf8_lossy(&request));
            request.extend_from_slice(&chunk[..count]);
        }
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 11\r\n\r\n{\"ok\":true}").expect("the plugin listens");
        String::from_utf8(request).expect("UTF-8")
    })
}

#[test]
fn a_call_reaches_what_was_granted_and_nothing_else() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let file = build("webhook", dir.path());
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("bound").to_string();
    let settings = json!({ "url": format!("http://{address}/in"), "sign": true }).to_string();
    let run = |extra: &[&str]| {
        let mut command = bulkhead();
        command.args(["plugin", "run"]).arg(&file).args(["--input", r#"{"body":{"n":1}}"#, "--settings", &settings]);
        command.args(["--idempotency-key", "key-1"]).args(extra);
        json_of(&mut command)
    };
    let without_grants = run(&["--secret", "signing_key=whsec_c2VjcmV0"]);
    assert_eq!(without_grants["outcome"], "refused", "{without_grants:#}");
    let without_loopback = run(&["--grant-all", "--secret", "signing_key=whsec_c2VjcmV0"]);
    assert_ne!(without_loopback["outcome"], "returned", "{without_loopback:#}");

    let request = answer_once(listener);
    let granted = run(&["--grant-all", "--allow-egress", &address, "--secret", "signing_key=whsec_c2VjcmV0"]);
    assert_eq!(granted["outcome"], "returned", "{granted:#}");
    let output: Value = serde_json::from_str(granted["output"].as_str().expect("text")).expect("JSON");
    assert_eq!(output, json!({ "status": 200, "body": { "ok": true }, "truncated": false }));
    let request = request.join().expect("the server ends").to_ascii_lowercase();
    assert!(request.starts_with("post /in http/1.1\r\n"), "{request}");
    for header in ["idempotency-key: key-1\r\n", "webhook-id: key-1\r\n", "webhook-signature: v1,"] {
        assert!(request.contains(header), "{header} in {request}");
    }
    assert!(!granted.to_string().contains("c2VjcmV0"), "no secret in the report");
}

#[test]
fn mistakes_are_told_with_file_line_and_remedy() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let project = dir.path().join("p");
    succeed(bulkhead().args(["plugin", "new", "acme/p", "--kind", "factor", "--dir"]).arg(&project));
    let manifest = project.join("plugin.toml");
    let text = fs::read_to_string(&manifest).expect("it was written");
    fs::write(&manifest, text.replace("acme/p", "Acme/p")).expect("writable");
    let told = |command: &mut Command| {
        let output = output(command);
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (code, message) = told(bulkhead().args(["plugin", "build"]).arg(&project));
    assert_eq!(code, Some(2));
    assert!(message.contains("plugin.toml:1:1: name: "), "{message}");
    let (code, message) = told(bulkhead().args(["plugin", "build"]).arg(dir.path()));
    assert_eq!(code, Some(2));
    assert!(message.contains("bulkhead plugin new"), "{message}");
    let (code, message) = told(bulkhead().args(["plugin", "check"]).arg(&manifest));
    assert_eq!(code, Some(2));
    assert!(message.contains("not a WebAssembly component"), "{message}");
}
