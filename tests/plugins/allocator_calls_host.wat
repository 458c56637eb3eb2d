;; Calls the host from its allocator, where it may not.
;; expect: trapped
(module (import "wasi:logging/logging@0.1.0-draft" "log" (func $log (param i32 i32 i32 i32 i32)))
    (memory (export "memory") 1)
    (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32)
        (call $log (i32.const 2) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 4)) (i32.const 1024))
    $RUN unreachable))
