;; Adds values to a set of headers for ever.
;; expect: limit_exceeded
;; limit: header_bytes
;; asks: http
(module
    (import "wasi:http/types@0.2.12" "[constructor]fields" (func $fields (result i32)))
    (import "wasi:http/types@0.2.12" "[method]fields.append" (func $append (param i32 i32 i32 i32 i32 i32)))
    $ALLOCATOR
    $RUN (local $h i32)
        (local.set $h (call $fields))
        (memory.fill (i32.const 4096) (i32.const 65) (i32.const 8192))
        (loop $again
            (call $append (local.get $h) (i32.const 1024) (i32.const 4) (i32.const 4096) (i32.const 8192) (i32.const 256))
            (br $again))
        unreachable))
