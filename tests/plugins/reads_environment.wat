;; Looks for environment variables and arguments and gives up if it finds one.
;; expect: returned
(module (import "wasi:cli/environment@0.2.12" "get-environment" (func $environment (param i32)))
    (import "wasi:cli/environment@0.2.12" "get-arguments" (func $arguments (param i32)))
    (import "wasi:cli/environment@0.2.12" "initial-cwd" (func $cwd (param i32)))
    $ALLOCATOR $RUN
    (call $environment (i32.const 64)) (if (i32.load (i32.const 68)) (then unreachable))
    (call $arguments (i32.const 64)) (if (i32.load (i32.const 68)) (then unreachable))
    (call $cwd (i32.const 64)) (if (i32.load8_u (i32.const 64)) (then unreachable)) $NULL))
