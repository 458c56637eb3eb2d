;; Drops a handle twice.
;; expect: trapped
(module (import "wasi:clocks/monotonic-clock@0.2.12" "subscribe-duration" (func $subscribe (param i64) (result i32)))
    (import "wasi:io/poll@0.2.12" "[resource-drop]pollable" (func $drop (param i32))) $ALLOCATOR $RUN (local $p i32)
    (local.set $p (call $subscribe (i64.const 0))) (call $drop (local.get $p)) (call $drop (local.get $p)) $NULL))
