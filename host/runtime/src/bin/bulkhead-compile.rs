//! The compiler process alone, for tests and benchmarks; the `bulkhead` binary runs the same function itself.

fn main() -> std::process::ExitCode {
    bulkhead_runtime::compiler::worker_main()
}
