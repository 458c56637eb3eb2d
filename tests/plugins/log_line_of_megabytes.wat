;; Logs one line that is larger than one host call may copy.
;; expect: limit_exceeded
;; limit: host_bytes_per_host_call
(module (import "wasi:logging/logging@0.1.0-draft" "log" (func $log (param i32 i32 i32 i32 i32))) $ALLOCATOR $RUN (drop (memory.grow (i32.const 100)))
    (call $log (i32.const 2) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 5000000)) $NULL))
