//! Builds guests from text and calls them.

use std::future::Future;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bulkhead_model::ambient::Ambient;
use bulkhead_model::call::{CallReport, Outcome};
use bulkhead_model::grant::EffectiveGrants;
use bulkhead_model::limits::{ContributionKind, Limits};
use bulkhead_model::manifest::Manifest;
use bulkhead_model::time::Timestamp;
use bulkhead_runtime::egress::{EgressConfig, Resolve, ResolveFuture};
use bulkhead_runtime::{
    CallContext, CallControl, CallRequest, CompilerCommand, Digest, NoSecrets, Prepared, Runtime, RuntimeConfig,
    embed_manifest,
};
use serde_json::{Value, json};
use wit_component::{ComponentEncoder, StringEncoding, embed_component_metadata};
use wit_parser::Resolve as Wit;

/// Patience for what has no time of its own: generous, because the machine may be busy.
pub(crate) const PATIENCE: Duration = Duration::from_mins(1);

/// The moment at which every test happens: 2026-11-21T08:00:00Z.
pub(crate) const NOW: Timestamp = Timestamp::from_micros(1_795_248_000_000_000);

/// What each guest needs besides what it does: a memory and an allocator that never frees.
pub(crate) const ALLOCATOR: &str = r#"
    (memory (export "memory") 2)
    (global $next (mut i32) (i32.const 65536))
    (func $alloc (export "cabi_realloc") (param i32 i32 i32 i32) (result i32)
        (local $at i32)
        (local.set $at (i32.and (i32.add (global.get $next) (i32.const 7)) (i32.const -8)))
        (global.set $next (i32.add (local.get $at) (local.get 3)))
        (block $fits
            (br_if $fits (i32.le_u (global.get $next) (i32.mul (memory.size) (i32.const 65536))))
            (br_if $fits (i32.ne (i32.const -1) (memory.grow (i32.add (i32.const 1)
                (i32.shr_u (i32.sub (global.get $next) (i32.mul (memory.size) (i32.const 65536))) (i32.const 16))))))
            unreachable)
        (local.get $at))
    (data (i32.const 1024) "null")
"#;

/// Offset at which a guest's answer lies: the tag, and after eight bytes pointer and length.
pub(crate) const ANSWER: i32 = 16;

/// A core module around `body` for the world with the export of `kind`. `extra` is put before the allocator: imports.
pub(crate) fn module(imports: &str, body: &str) -> String {
    format!("(module {imports} {ALLOCATOR} {body})")
}

/// The parameters of an action's and a channel's function in core WebAssembly: beyond sixteen flat ones, a pointer.
pub(crate) const RUN: &str = r#"(func (export "bulkhead:plugin/action@0.1.0#run") (param i32) (result i32)"#;
pub(crate) const SEND: &str = r#"(func (export "bulkhead:plugin/channel@0.1.0#send") (param i32) (result i32)"#;
pub(crate) const SCORE: &str =
    r#"(func (export "bulkhead:plugin/factor@0.1.0#score") (param i32 i32 i32 i32 i32 i32) (result i32)"#;

/// Instructions and data that answer `ok(json)`.
pub(crate) fn answers(json: &str) -> (String, String) {
    let escaped = json.bytes().fold(String::new(), |escaped, byte| escaped + &format!("\\{byte:02x}"));
    let data = format!(r#"(data (i32.const 2048) "{escaped}")"#);
    let code = format!(
        "(i32.store (i32.const {ANSWER}) (i32.const 0))
         (i32.store (i32.const {}) (i32.const 2048))
         (i32.store (i32.const {}) (i32.const {}))
         (i32.const {ANSWER})",
        ANSWER + 8,
        ANSWER + 12,
        json.len()
    );
    (code, data)
}

/// An action that does `work` and then answers `null`.
pub(crate) fn action_that(imports: &str, items: &str, work: &str) -> Vec<u8> {
    let (answer, data) = answers("null");
    let text = module(imports, &format!("{data} {items} {RUN} {work} {answer})"));
    component("action-plugin", &text)
}

fn wit() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../wit/0.1.0")
}

/// A component made of a core module in text; `world` is one of the contract's.
pub(crate) fn component(world: &str, text: &str) -> Vec<u8> {
    component_in(world, text, "")
}

/// The same with further imports, which the contract does not give to this kind.
pub(crate) fn component_in(world: &str, text: &str, imports: &str) -> Vec<u8> {
    let mut module = wat::parse_str(text).unwrap_or_else(|error| panic!("{error}\n{text}"));
    let mut resolve = Wit::default();
    resolve.push_path(wit()).unwrap();
    // The baseline is not part of the contract's worlds, because every tool chain brings its own import of it.
    let extended = format!(
        "package test:guest; world guest {{
            include bulkhead:plugin/{world}@0.1.0;
            import wasi:io/poll@0.2.12; import wasi:io/streams@0.2.12; import wasi:cli/stdout@0.2.12; import wasi:cli/stderr@0.2.12;
            import wasi:cli/environment@0.2.12; import wasi:cli/exit@0.2.12; import wasi:cli/stdin@0.2.12;
            import wasi:clocks/monotonic-clock@0.2.12; import wasi:clocks/wall-clock@0.2.12;
            import wasi:random/random@0.2.12; import wasi:filesystem/preopens@0.2.12; import wasi:filesystem/types@0.2.12;
            import wasi:sockets/instance-network@0.2.12; import wasi:sockets/tcp-create-socket@0.2.12;
            import wasi:sockets/ip-name-lookup@0.2.12; import wasi:sockets/udp-create-socket@0.2.12;
            {imports}
        }}"
    );
    let guest = resolve.push_str("guest.wit", &extended).unwrap();
    let world = resolve.select_world(&[guest], Some("guest")).unwrap();
    embed_component_metadata(&mut module, &resolve, world, StringEncoding::UTF8).unwrap();
    ComponentEncoder::default().module(&module).unwrap().validate(true).encode().unwrap()
}

/// A manifest with one contribution named `it`.
pub(crate) fn manifest(kind: ContributionKind, permissions: &Value) -> Manifest {
    let mut manifest = json!({
        "name": "acme/hostile", "version": "1.0.0", "wit": "bulkhead:plugin@0.1", "title": "Hostile",
        "permissions": permissions,
    });
    manifest[format!("{}s", kind.as_str())] = json!([{ "name": "it", "title": "It" }]);
    Manifest::parse(manifest.to_string().as_bytes()).unwrap()
}

/// The component as a package with nothing asked for.
pub(crate) fn package(kind: ContributionKind, component: &[u8]) -> Vec<u8> {
    embed_manifest(component, &manifest(kind, &json!([]))).unwrap()
}

pub(crate) struct Host {
    pub(crate) runtime: Runtime,
    pub(crate) ambient: Ambient,
    /// Kept, and removed with the host.
    pub(crate) _directory: tempfile::TempDir,
}

impl Host {
    pub(crate) fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let ambient = Ambient::manual(NOW, 7);
        let runtime = Runtime::start(config(directory.path().join("cache")), ambient.clone()).unwrap();
        Self { runtime, ambient, _directory: directory }
    }

    pub(crate) async fn prepare(&self, package: &[u8]) -> Arc<Prepared> {
        let bytes = package.to_vec();
        self.runtime.prepare(Digest::of(package), async { Ok(bytes) }).await.unwrap()
    }

    /// Prepares and calls with the default limits.
    pub(crate) async fn run(&self, kind: ContributionKind, component: &[u8]) -> CallReport {
        self.run_with(kind, component, |_| ()).await
    }

    /// The same with other limits.
    pub(crate) async fn run_with(
        &self,
        kind: ContributionKind,
        component: &[u8],
        change: impl FnOnce(&mut CallRequest),
    ) -> CallReport {
        let prepared = self.prepare(&package(kind, component)).await;
        let mut request = request(kind);
        change(&mut request);
        within(self.runtime.call(&prepared, request)).await
    }
}

pub(crate) fn config(cache_dir: PathBuf) -> RuntimeConfig {
    RuntimeConfig {
        cache_dir,
        seal_key: [9; 32],
        compiler: CompilerCommand { program: env!("CARGO_BIN_EXE_bulkhead-compile").into(), args: Vec::new() },
        guest_threads: 2,
        prepared_bytes_max: 256 * 1024 * 1024,
        egress: EgressConfig::new(Arc::new(NoNames)),
    }
}

/// A resolver for tests that send nothing.
pub(crate) struct NoNames;

impl Resolve for NoNames {
    fn resolve<'a>(&'a self, _: &'a str) -> ResolveFuture<'a> {
        Box::pin(std::future::ready(Ok(Vec::new())))
    }
}

/// One host for all tests that leave it as they found it: engines are large.
pub(crate) fn host() -> &'static Host {
    static HOST: OnceLock<Host> = OnceLock::new();
    HOST.get_or_init(Host::start)
}

pub(crate) fn request(kind: ContributionKind) -> CallRequest {
    let input = if kind.is_pure() { r#"{"leads":[{"id":"lead_1","fields":{}}]}"# } else { "{}" };
    CallRequest {
        kind,
        contribution: "it".to_owned(),
        context: CallContext {
            org: "org_1".to_owned(),
            installation: "inst_1".to_owned(),
            call: "call_1".to_owned(),
            attempt: 1,
            idempotency_key: "key".to_owned(),
            ..CallContext::default()
        },
        settings: "{}".to_owned(),
        input: input.to_owned(),
        grants: Arc::new(EffectiveGrants::default()),
        secrets: Arc::new(NoSecrets),
        limits: Limits::default_for(kind),
        control: CallControl::new(),
    }
}

pub(crate) async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("it ends by itself")
}

/// Whether a report says what is expected; shows the whole report if not.
#[track_caller]
pub(crate) fn assert_ended(report: &CallReport, outcome: Outcome, limit: Option<&str>) {
    assert_eq!(report.outcome, outcome, "{report:#?}");
    let named = report.error.as_ref().and_then(|error| error.limit.as_deref());
    assert_eq!(named, limit, "{report:#?}");
    assert_eq!(report.output.is_some(), outcome == Outcome::Returned, "{report:#?}");
    assert_eq!(report.error.is_none(), outcome == Outcome::Returned, "{report:#?}");
}
