;; Hands the host a list that is its whole memory.
;; expect: limit_exceeded
;; limit: host_bytes_per_host_call
(module (import "wasi:io/poll@0.2.12" "poll" (func $poll (param i32 i32 i32))) $ALLOCATOR $RUN (drop (memory.grow (i32.const 900)))
    (call $poll (i32.const 65536) (i32.const 14000000) (i32.const 64)) $NULL))
