//! What is refused before anything is compiled, and how compiled packages are kept.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use bulkhead_model::call::Outcome;
use bulkhead_model::limits::{ContributionKind, PackageLimits};
use bulkhead_model::manifest::MANIFEST_SECTION;
use bulkhead_runtime::{Digest, PackageError, PrepareError, Runtime, embed_manifest, package as rules};
use serde_json::json;
use wasm_encoder::{Component, ComponentSection as _, CustomSection, ModuleSection, NestedComponentSection};

use crate::support::{
    ALLOCATOR, RUN, action_that, answers, assert_ended, component, component_in, config, host, manifest, module,
    package, request, within,
};

const ACTION: ContributionKind = ContributionKind::Action;

fn plain() -> Vec<u8> {
    action_that("", "", "")
}

fn refusal(package: &[u8]) -> String {
    rules::inspect(package).expect_err("it is refused").to_string()
}

#[test]
fn a_package_says_what_it_is() {
    let bytes = package(ACTION, &plain());
    let info = rules::inspect(&bytes).unwrap();
    assert_eq!(info.digest, Digest::of(&bytes));
    assert_eq!(info.manifest.name.as_str(), "acme/hostile");
    assert!(!info.pure);
    assert_eq!(info.counts.memories, 1);
    assert!(info.imports.iter().all(|import| import == "bulkhead:plugin/types@0.1.0"), "{:?}", info.imports);
}

#[test]
fn what_is_no_component_is_refused() {
    assert!(matches!(rules::inspect(b""), Err(PackageError::NotAComponent { .. })));
    assert!(matches!(rules::inspect(b"#!/bin/sh"), Err(PackageError::NotAComponent { .. })));
    let core = wat::parse_str("(module)").unwrap();
    assert!(refusal(&core).contains("wasm32-wasip2"));
    let whole = package(ACTION, &plain());
    for cut in [9, 40, whole.len() / 2, whole.len() - 1] {
        assert!(rules::inspect(&whole[..cut]).is_err(), "cut at {cut}");
    }
}

/// Whatever is changed in a package, looking at it ends in a result.
#[test]
fn damaged_packages_are_errors_and_never_panics() {
    let whole = package(ACTION, &plain());
    for at in 0..whole.len() {
        for bits in [0x01, 0x80, 0xff] {
            let mut bad = whole.clone();
            bad[at] ^= bits;
            let _ = rules::inspect(&bad);
        }
    }
}

fn with_sections(sections: &[&[u8]]) -> Vec<u8> {
    let mut bytes = plain();
    for data in sections {
        CustomSection { name: MANIFEST_SECTION.into(), data: (*data).into() }.append_to_component(&mut bytes);
    }
    bytes
}

#[test]
fn manifests_are_there_once_small_and_true() {
    assert!(matches!(rules::inspect(&plain()), Err(PackageError::ManifestMissing)));
    assert!(matches!(rules::inspect(&with_sections(&[b"{}", b"{}"])), Err(PackageError::ManifestRepeated(2))));
    assert!(matches!(
        rules::inspect(&with_sections(&[&vec![b' '; 300_000]])),
        Err(PackageError::ManifestTooLarge { .. })
    ));
    for bad in ["", "{}", "[", "null", "\u{0}", &"[".repeat(100_000)] {
        assert!(
            matches!(rules::inspect(&with_sections(&[bad.as_bytes()])), Err(PackageError::Manifest(_))),
            "{bad:.20}"
        );
    }
    let mut other = serde_json::to_value(manifest(ACTION, &json!([]))).unwrap();
    other["wit"] = json!("bulkhead:plugin@0.9");
    let text = other.to_string();
    let error = rules::inspect(&with_sections(&[text.as_bytes()])).expect_err("another contract");
    assert!(matches!(error, PackageError::Contract { .. } | PackageError::Manifest(_)), "{error}");
}

#[test]
fn a_manifest_is_replaced_and_not_added() {
    let once = package(ACTION, &plain());
    let twice = embed_manifest(&once, &manifest(ACTION, &json!([]))).unwrap();
    assert_eq!(once, twice);
}

#[test]
fn promises_and_exports_are_the_same() {
    let wrong = embed_manifest(&plain(), &manifest(ContributionKind::Channel, &json!([]))).unwrap();
    assert!(matches!(
        rules::inspect(&wrong),
        Err(PackageError::ExportUnlisted { .. } | PackageError::ExportMissing { .. })
    ));
}

#[test]
fn imports_need_permissions_and_names_are_named() {
    let secrets =
        action_that(r#"(import "bulkhead:plugin/secrets@0.1.0" "placeholder" (func (param i32 i32 i32)))"#, "", "");
    let error = refusal(&package(ACTION, &secrets));
    assert!(error.contains("bulkhead:plugin/secrets@0.1.0") && error.contains("`secret`"), "{error}");
    let http = action_that(r#"(import "wasi:http/types@0.2.12" "[constructor]fields" (func (result i32)))"#, "", "");
    let error = refusal(&package(ACTION, &http));
    assert!(error.contains("wasi:http/types@0.2.12") && error.contains("`http`"), "{error}");
}

/// Everything else about these is in order, so that it is the import which is refused.
#[test]
fn imports_that_nobody_knows_are_named() {
    for (imports, core) in [
        ("import shell: interface { run: func(); }", r#"(import "shell" "run" (func))"#),
        ("import shell: func();", r#"(import "$root" "shell" (func))"#),
    ] {
        let (answer, data) = answers("null");
        let text = module(core, &format!("{data} {RUN} {answer})"));
        let guest = component_in("action-plugin", &text, imports);
        let error = rules::inspect(&package(ACTION, &guest)).expect_err(imports);
        assert!(matches!(&error, PackageError::ImportUnknown { import } if import == "shell"), "{imports}: {error}");
    }
}

/// A definition of a few bytes takes tens of them in memory: ten thousand are enough for everybody.
#[test]
fn definitions_without_end_are_refused() {
    let inspect = |text: &str| {
        let component = wat::parse_str(text).unwrap();
        rules::inspect(&embed_manifest(&component, &manifest(ACTION, &json!([]))).unwrap()).expect_err("refused")
    };
    let aliases = "(alias outer 1 $c (component))".repeat(10_001);
    let error = inspect(&format!("(component (component $c) (component {aliases}))"));
    assert!(matches!(error, PackageError::TooMany { what: "components", limit: 10_000, .. }), "{error}");
    let imports: Vec<String> = (0..10_001).map(|n| format!("(import \"i{n}\" (func))")).collect();
    let error = inspect(&format!("(component {})", imports.concat()));
    assert!(matches!(error, PackageError::TooMany { what: "imports", limit: 10_000, .. }), "{error}");
}

/// A function of a megabyte takes a compiler a minute and gigabytes: it never sees one.
#[test]
fn compile_bombs_are_refused_unseen() {
    let mut text = String::from("(local i32) ");
    for _ in 0..300_000 {
        text.push_str("(local.set 0 (i32.add (local.get 0) (i32.const 1)))");
    }
    let bomb = component("action-plugin", &format!("(module {ALLOCATOR} (func $bomb {text}) {RUN} unreachable))"));
    let error = rules::inspect(&package(ACTION, &bomb)).expect_err("it is refused");
    assert!(matches!(error, PackageError::FunctionTooLarge { bytes, .. } if bytes > 1_000_000), "{error}");

    let many = format!("(module {ALLOCATOR} {} {RUN} unreachable))", "(func)".repeat(100_001));
    let error = rules::inspect(&package(ACTION, &component("action-plugin", &many))).expect_err("it is refused");
    assert!(matches!(error, PackageError::TooMany { what: "functions", .. }), "{error}");

    let large = vec![0; usize::try_from(PackageLimits::platform().package_bytes).unwrap() + 1];
    assert!(matches!(rules::inspect(&large), Err(PackageError::TooLarge { .. })));
}

/// Forty components, each instantiating the one before twice: two to the fortieth instances in a kilobyte.
#[test]
fn doubling_components_are_counted_and_not_unrolled() {
    let mut inner = String::from("(component $c0 (core module $m) (core instance (instantiate $m)))");
    for level in 1..40 {
        let below = level - 1;
        let component = format!(
            "(component $c{level} (alias outer 1 $c{below} (component $below)) (instance (instantiate $below)) (instance (instantiate $below)))"
        );
        inner.push_str(&component);
    }
    let bomb = wat::parse_str(format!("(component {inner} (instance (instantiate $c39)))")).unwrap();
    let error = rules::inspect(&embed_manifest(&bomb, &manifest(ACTION, &json!([]))).unwrap()).expect_err("refused");
    assert!(matches!(error, PackageError::TooMany { what: "core instances", .. }), "{error}");
}

#[test]
fn nesting_is_bounded() {
    let mut nested = Component::new();
    nested.section(&ModuleSection(&wasm_encoder::Module::new()));
    for _ in 0..40 {
        let mut outer = Component::new();
        outer.section(&NestedComponentSection(&nested));
        nested = outer;
    }
    let error =
        rules::inspect(&embed_manifest(&nested.finish(), &manifest(ACTION, &json!([]))).unwrap()).expect_err("refused");
    assert!(matches!(error, PackageError::TooMany { .. }), "{error}");
}

#[test]
fn proposals_that_are_off_are_refused() {
    for (what, body) in [
        ("a 64-bit memory", "(memory $large i64 1)"),
        ("a memory that could never be had", "(memory $large 5000)"),
        ("a table that could never be had", "(table 200000 funcref)"),
        ("tail calls", "(func $f (return_call $f))"),
    ] {
        let text = module("", &format!("{body} {RUN} unreachable)"));
        let mut core = wat::parse_str(&text).unwrap_or_else(|error| panic!("{what}: {error}"));
        // Wrapped by hand: the tool that makes components refuses some of these itself.
        let mut outer = Component::new();
        outer.section(&wasm_encoder::RawSection { id: 1, data: &std::mem::take(&mut core) });
        let bytes = embed_manifest(&outer.finish(), &manifest(ACTION, &json!([]))).unwrap();
        let error = rules::inspect(&bytes).expect_err(what);
        assert!(
            matches!(
                error,
                PackageError::Invalid { .. } | PackageError::Unsupported { .. } | PackageError::TooMany { .. }
            ),
            "{what}: {error}"
        );
    }
}

#[tokio::test]
async fn other_bytes_under_a_digest_are_refused() {
    let (good, other) =
        (package(ACTION, &action_that("", "", "nop nop")), package(ACTION, &action_that("", "", "nop")));
    let error = host().runtime.prepare(Digest::of(&good), async { Ok(other) }).await.expect_err("replaced bytes");
    assert!(matches!(*error, PrepareError::Replaced { .. }), "{error}");
    let error =
        host().runtime.prepare(Digest::of(b"nowhere"), async { Err("gone".into()) }).await.expect_err("no bytes");
    assert!(matches!(*error, PrepareError::Load(_)) && error.is_retryable(), "{error}");
}

#[tokio::test]
async fn many_who_ask_at_once_make_it_once() {
    let bytes = package(ACTION, &action_that("", "", "nop nop nop"));
    let loads = Arc::new(AtomicU32::new(0));
    let asks = (0..20).map(|_| {
        let (loads, bytes) = (Arc::clone(&loads), bytes.clone());
        host().runtime.prepare(Digest::of(&bytes), async move {
            loads.fetch_add(1, Ordering::SeqCst);
            Ok(bytes)
        })
    });
    let prepared = within(futures_util::future::try_join_all(asks)).await.unwrap();
    assert_eq!(loads.load(Ordering::SeqCst), 1);
    assert!(prepared.iter().all(|one| Arc::ptr_eq(one, &prepared[0])));
}

/// A restart finds what was compiled; an entry that somebody touched is compiled again and still runs.
#[tokio::test]
async fn a_restart_needs_no_bytes_and_a_tampered_entry_is_compiled_again() {
    let directory = tempfile::tempdir().unwrap();
    let start = || Runtime::start(config(directory.path().to_owned()), host().ambient.clone()).unwrap();
    let bytes = package(ACTION, &plain());
    let digest = Digest::of(&bytes);
    start().prepare(digest, async { Ok(bytes.clone()) }).await.unwrap();

    let again = start();
    let prepared = again.prepare(digest, async { Err("the bytes are not needed".into()) }).await.unwrap();
    assert_ended(&within(again.call(&prepared, request(ACTION))).await, Outcome::Returned, None);

    let entry = std::fs::read_dir(directory.path()).unwrap().next().unwrap().unwrap().path();
    let mut sealed = std::fs::read(&entry).unwrap();
    let middle = sealed.len() / 2;
    sealed[middle] ^= 0x55;
    std::fs::write(&entry, &sealed).unwrap();

    let third = start();
    let error = third.prepare(digest, async { Err("the bytes are needed".into()) }).await.expect_err("not loaded");
    assert!(matches!(*error, PrepareError::Load(_)), "{error}");
    let prepared = third.prepare(digest, async { Ok(bytes) }).await.unwrap();
    assert_ended(&within(third.call(&prepared, request(ACTION))).await, Outcome::Returned, None);
}

#[tokio::test]
async fn a_compiler_that_dies_is_an_error() {
    let directory = tempfile::tempdir().unwrap();
    for (program, args, expected) in [
        ("/nonexistent/compiler", vec![], "cannot be started"),
        ("/bin/sh", vec!["-c", "exit 9"], "ended early"),
        ("/bin/sh", vec!["-c", "kill -9 $$"], "ended early"),
        ("/bin/sh", vec!["-c", "echo 'no: \u{1b}[31m' >&2; exit 3"], "does not accept"),
    ] {
        let retryable = expected != "does not accept";
        let mut config = config(directory.path().join(expected));
        config.compiler.program = program.into();
        config.compiler.args = args.into_iter().map(Into::into).collect();
        let runtime = Runtime::start(config, host().ambient.clone()).unwrap();
        let bytes = package(ACTION, &plain());
        let error = within(runtime.prepare(Digest::of(&bytes), async { Ok(bytes) })).await.expect_err(expected);
        assert_eq!(error.is_retryable(), retryable, "{error}");
        let PrepareError::Compile(error) = &*error else { panic!("{error}") };
        let words = error.to_string();
        assert!(words.contains(expected) && !words.contains('\u{1b}'), "{words}");
    }
}

/// The child limits itself before it reads anything: the kernel says so of one that waits for its input.
#[cfg(target_os = "linux")]
#[test]
fn the_compilers_process_is_limited_by_the_kernel() {
    use std::io::{Read as _, Write as _};
    use std::process::{Command, Stdio};

    let platform = PackageLimits::platform();
    let cores = u64::try_from(std::thread::available_parallelism().unwrap().get()).unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_bulkhead-compile"))
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let expected = [
        ("Max address space", platform.compile_memory_bytes),
        ("Max cpu time", platform.compile_wall_ms / 1_000 * cores),
        ("Max file size", 0),
        ("Max core file size", 0),
    ];
    let limits = || std::fs::read_to_string(format!("/proc/{}/limits", child.id())).unwrap();
    let in_force = |limits: &str| {
        expected.iter().all(|(name, value)| {
            let line = limits.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            line.split_whitespace().take(2).all(|number| number == value.to_string())
        })
    };
    let patience = std::time::Instant::now() + crate::support::PATIENCE;
    while !in_force(&limits()) {
        assert!(std::time::Instant::now() < patience, "{}", limits());
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    // It still does its work, and says what it thinks of this.
    stdin.write_all(b"eno package").unwrap();
    drop(stdin);
    let mut words = String::new();
    child.stderr.take().unwrap().read_to_string(&mut words).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(3), "{words}");
}
