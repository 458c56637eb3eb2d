;; Copies a set of headers for ever.
;; expect: limit_exceeded
;; limit: host_bytes_per_call
;; set: host_bytes_per_call=1000000
;; asks: http
(module
    (import "wasi:http/types@0.2.12" "[constructor]fields" (func $fields (result i32)))
    (import "wasi:http/types@0.2.12" "[method]fields.append" (func $append (param i32 i32 i32 i32 i32 i32)))
    (import "wasi:http/types@0.2.12" "[method]fields.clone" (func $clone (param i32) (result i32)))
    $ALLOCATOR
    $RUN (local $h i32)
        (local.set $h (call $fields))
        (memory.fill (i32.const 4096) (i32.const 65) (i32.const 30000))
        (call $append (local.get $h) (i32.const 1024) (i32.const 4) (i32.const 4096) (i32.const 30000) (i32.const 256))
        (loop $again (drop (call $clone (local.get $h))) (br $again))
        unreachable))
