;; Writes to stdout without end.
;; expect: limit_exceeded
;; limit: host_bytes_per_call
(module (import "wasi:cli/stdout@0.2.12" "get-stdout" (func $get-stdout (result i32)))
    (import "wasi:io/streams@0.2.12" "[method]output-stream.blocking-write-and-flush" (func $write (param i32 i32 i32 i32))) $ALLOCATOR $RUN (local $out i32) (local.set $out (call $get-stdout))
    (loop $again (call $write (local.get $out) (i32.const 1024) (i32.const 4096) (i32.const 64)) (br $again)) unreachable))
