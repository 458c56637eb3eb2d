;; Makes handles and never drops one.
;; expect: limit_exceeded
;; limit: handles
(module (import "wasi:clocks/monotonic-clock@0.2.12" "subscribe-duration" (func $subscribe (param i64) (result i32)))
    (import "wasi:io/poll@0.2.12" "[method]pollable.block" (func $block (param i32))) $ALLOCATOR $RUN (loop $again (drop (call $subscribe (i64.const 0))) (br $again)) unreachable))
