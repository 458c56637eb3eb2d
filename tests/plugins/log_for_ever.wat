;; Logs without end.
;; expect: limit_exceeded
;; limit: host_bytes_per_call
(module (import "wasi:logging/logging@0.1.0-draft" "log" (func $log (param i32 i32 i32 i32 i32))) $ALLOCATOR $RUN
    (loop $again (call $log (i32.const 2) (i32.const 0) (i32.const 0) (i32.const 1024) (i32.const 60000)) (br $again)) unreachable))
