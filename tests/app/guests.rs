//! Guests in WebAssembly text, wrapped into components and packages here.

use std::path::PathBuf;

use bulkhead_model::manifest::Manifest;
use bulkhead_runtime::embed_manifest;
use serde_json::{Value, json};
use wit_component::{ComponentEncoder, StringEncoding, embed_component_metadata};
use wit_parser::Resolve;

/// A memory and an allocator that never frees.
const ALLOCATOR: &str = r#"
    (memory (export "memory") 4)
    (global $next (mut i32) (i32.const 65536))
    (func $alloc (export "cabi_realloc") (param i32 i32 i32 i32) (result i32)
        (local $at i32)
        (local.set $at (i32.and (i32.add (global.get $next) (i32.const 7)) (i32.const -8)))
        (global.set $next (i32.add (local.get $at) (local.get 3)))
        (if (i32.gt_u (global.get $next) (i32.const 262144)) (then unreachable))
        (local.get $at))
"#;
/// The head of an action's function; its parameter points at the arguments, the last of which is the input at 96.
const RUN: &str = r#"(func (export "bulkhead:plugin/action@0.1.0#run") (param $arguments i32) (result i32)"#;
/// Answers its input.
const ECHO: &str = "
    (i32.store (i32.const 16) (i32.const 0))
    (i32.store (i32.const 24) (i32.load offset=96 (local.get $arguments)))
    (i32.store (i32.const 28) (i32.load offset=100 (local.get $arguments)))
    (i32.const 16)";

fn component(imports: &str, items: &str, work: &str) -> Vec<u8> {
    let text = format!("(module {imports} {ALLOCATOR} {items} {RUN} {work} {ECHO}))");
    let mut module = wat::parse_str(&text).unwrap_or_else(|error| panic!("{error}\n{text}"));
    let mut resolve = Resolve::default();
    resolve.push_path(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../wit/0.1.0")).unwrap();
    let world = "package test:guest; world guest {
        include bulkhead:plugin/action-plugin@0.1.0;
        import wasi:io/poll@0.2.12; import wasi:clocks/monotonic-clock@0.2.12;
    }";
    let guest = resolve.push_str("guest.wit", world).unwrap();
    let world = resolve.select_world(&[guest], Some("guest")).unwrap();
    embed_component_metadata(&mut module, &resolve, world, StringEncoding::UTF8).unwrap();
    ComponentEncoder::default().module(&module).unwrap().validate(true).encode().unwrap()
}

/// An action that does `work` and answers its input.
pub(crate) fn action_of(work: &str) -> Vec<u8> {
    component("", "", work)
}

/// An action that answers its input.
pub(crate) fn echo() -> Vec<u8> {
    component("", "", "")
}

/// An action that waits for `wait_ms` and then answers its input.
pub(crate) fn waits_for(wait_ms: u64) -> Vec<u8> {
    let imports = r#"
        (import "wasi:clocks/monotonic-clock@0.2.12" "subscribe-duration" (func $subscribe (param i64) (result i32)))
        (import "wasi:io/poll@0.2.12" "[method]pollable.block" (func $block (param i32)))"#;
    component(imports, "", &format!("(call $block (call $subscribe (i64.const {})))", wait_ms * 1_000_000))
}

/// An action that waits until it is ended.
pub(crate) fn waits() -> Vec<u8> {
    waits_for(1_000_000_000)
}

/// An action that computes until it is ended.
pub(crate) fn computes() -> Vec<u8> {
    component("", "", "(loop $again (br $again))")
}

/// An action that writes one line of so many bytes to its log and answers its input.
pub(crate) fn logs(bytes: u32) -> Vec<u8> {
    let imports = r#"(import "wasi:logging/logging@0.1.0-draft" "log" (func $log (param i32 i32 i32 i32 i32)))"#;
    let items = "(func $fill (param $bytes i32) (memory.fill (i32.const 4096) (i32.const 120) (local.get $bytes)))";
    let work = format!(
        "(call $fill (i32.const {bytes}))
         (call $log (i32.const 2) (i32.const 0) (i32.const 0) (i32.const 4096) (i32.const {bytes}))"
    );
    component(imports, items, &work)
}

/// An action that signs its input with the secret `signing_key` and answers the signature as a JSON string in hexadecimal; gives
/// up as `refused` when it was not granted, and answers `"not set"` when nothing is stored.
pub(crate) fn signs() -> Vec<u8> {
    let imports = r#"
        (import "bulkhead:plugin/secrets@0.1.0" "hmac-sha256" (func $sign (param i32 i32 i32 i32 i32)))"#;
    let items = r#"
        (data (i32.const 1024) "signing_key") (data (i32.const 1040) "\22not set\22") (data (i32.const 1056) "no grant")
        (func $digit (param $value i32) (result i32)
            (i32.add (local.get $value)
                (select (i32.const 48) (i32.const 87) (i32.lt_u (local.get $value) (i32.const 10)))))
        (func $hex (param $from i32)
            (local $at i32) (local $byte i32)
            (i32.store8 (i32.const 2048) (i32.const 34))
            (loop $each
                (local.set $byte (i32.load8_u (i32.add (local.get $from) (local.get $at))))
                (i32.store8 offset=2049 (i32.shl (local.get $at) (i32.const 1))
                    (call $digit (i32.shr_u (local.get $byte) (i32.const 4))))
                (i32.store8 offset=2050 (i32.shl (local.get $at) (i32.const 1))
                    (call $digit (i32.and (local.get $byte) (i32.const 15))))
                (local.set $at (i32.add (local.get $at) (i32.const 1)))
                (br_if $each (i32.lt_u (local.get $at) (i32.const 32))))
            (i32.store8 (i32.const 2113) (i32.const 34)))"#;
    let work = "
        (call $sign (i32.const 1024) (i32.const 11)
            (i32.load offset=96 (local.get $arguments)) (i32.load offset=100 (local.get $arguments)) (i32.const 64))
        (if (i32.eqz (i32.load8_u (i32.const 64))) (then
            (call $hex (i32.load (i32.const 68)))
            (i32.store (i32.const 16) (i32.const 0))
            (i32.store (i32.const 24) (i32.const 2048)) (i32.store (i32.const 28) (i32.const 66))
            (return (i32.const 16))))
        (if (i32.eq (i32.load8_u (i32.const 68)) (i32.const 1)) (then
            (i32.store (i32.const 16) (i32.const 0))
            (i32.store (i32.const 24) (i32.const 1040)) (i32.store (i32.const 28) (i32.const 9))
            (return (i32.const 16))))
        (i32.store (i32.const 16) (i32.const 1))
        (i32.store (i32.const 24) (i32.const 3))
        (i32.store (i32.const 32) (i32.const 1056)) (i32.store (i32.const 36) (i32.const 8))
        (return (i32.const 16))";
    component(imports, items, work)
}

/// A manifest of one action `it`, changed by `change`.
pub(crate) fn manifest(name: &str, version: &str, change: impl FnOnce(&mut Value)) -> Value {
    let mut manifest = json!({
        "name": name, "version": version, "wit": "bulkhead:plugin@0.1", "title": "It",
        "actions": [{ "name": "it", "title": "It" }],
    });
    change(&mut manifest);
    manifest
}

/// A component with its manifest.
pub(crate) fn package(component: &[u8], manifest: &Value) -> Vec<u8> {
    embed_manifest(component, &Manifest::parse(manifest.to_string().as_bytes()).unwrap()).unwrap()
}

/// The echo of `acme`, version 1.0.0.
pub(crate) fn acme_echo() -> Vec<u8> {
    package(&echo(), &manifest("acme/echo", "1.0.0", |_| ()))
}

/// Asks for the secret `signing_key`, to sign with.
pub(crate) fn asks_for_secret(required: bool) -> impl FnOnce(&mut Value) {
    move |manifest| {
        manifest["permissions"] =
            json!([{ "kind": "secret", "name": "signing_key", "reason": "Signs", "required": required }]);
    }
}
