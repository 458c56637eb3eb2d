;; Writes bodies of requests that it keeps and never sends.
;; expect: limit_exceeded
;; limit: host_bytes_per_call
;; set: host_bytes_per_call=1000000
;; asks: http
(module
    (import "wasi:http/types@0.2.12" "[constructor]fields" (func $fields (result i32)))
    (import "wasi:http/types@0.2.12" "[constructor]outgoing-request" (func $new (param i32) (result i32)))
    (import "wasi:http/types@0.2.12" "[method]outgoing-request.body" (func $body (param i32 i32)))
    (import "wasi:http/types@0.2.12" "[method]outgoing-body.write" (func $stream (param i32 i32)))
    (import "wasi:http/types@0.2.12" "[resource-drop]outgoing-body" (func $drop_body (param i32)))
    (import "wasi:io/streams@0.2.12" "[method]output-stream.check-write" (func $check (param i32 i32)))
    (import "wasi:io/streams@0.2.12" "[method]output-stream.write" (func $write (param i32 i32 i32 i32)))
    (import "wasi:io/streams@0.2.12" "[resource-drop]output-stream" (func $drop_stream (param i32)))
    $ALLOCATOR
    $RUN (local $b i32) (local $s i32)
        (loop $again
            (call $body (call $new (call $fields)) (i32.const 256))
            (if (i32.load8_u (i32.const 256)) (then unreachable))
            (local.set $b (i32.load (i32.const 260)))
            (call $stream (local.get $b) (i32.const 256))
            (if (i32.load8_u (i32.const 256)) (then unreachable))
            (local.set $s (i32.load (i32.const 260)))
            ;; As much as is taken.
            (loop $chunk
                (call $check (local.get $s) (i32.const 256))
                (if (i32.load8_u (i32.const 256)) (then unreachable))
                (if (i64.ne (i64.load (i32.const 264)) (i64.const 0)) (then
                    (call $write (local.get $s) (i32.const 4096) (i32.wrap_i64 (i64.load (i32.const 264))) (i32.const 256))
                    (if (i32.load8_u (i32.const 256)) (then unreachable))
                    (br $chunk))))
            (call $drop_stream (local.get $s))
            (call $drop_body (local.get $b))
            (br $again))
        unreachable))
