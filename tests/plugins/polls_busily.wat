;; Asks without pause whether something is ready.
;; expect: deadline_passed
;; limit: wall_ms
;; set: wall_ms=150 fuel=1000000000000 host_bytes_per_call=1000000000000
(module (import "wasi:clocks/monotonic-clock@0.2.12" "subscribe-duration" (func $subscribe (param i64) (result i32)))
    (import "wasi:io/poll@0.2.12" "[method]pollable.ready" (func $ready (param i32) (result i32)))
    (import "wasi:io/poll@0.2.12" "[resource-drop]pollable" (func $drop (param i32)))
    $ALLOCATOR $RUN (local $p i32)
    (loop $again (local.set $p (call $subscribe (i64.const 3600000000000))) (drop (call $ready (local.get $p))) (call $drop (local.get $p)) (br $again)) unreachable))
