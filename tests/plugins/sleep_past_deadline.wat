;; Waits longer than it may.
;; expect: deadline_passed
;; limit: wall_ms
;; set: wall_ms=150
(module (import "wasi:clocks/monotonic-clock@0.2.12" "subscribe-duration" (func $subscribe (param i64) (result i32)))
    (import "wasi:io/poll@0.2.12" "[method]pollable.block" (func $block (param i32))) $ALLOCATOR $RUN (call $block (call $subscribe (i64.const 3600000000000))) $NULL))
