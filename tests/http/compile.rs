//! The compiler's child process of this suite.

fn main() -> std::process::ExitCode {
    bulkhead_app::compiler_main()
}
