;; Gives a request a method of three megabytes, which it could keep a thousand times; it is not taken.
;; expect: returned
;; asks: http
(module
    (import "wasi:http/types@0.2.12" "[constructor]fields" (func $fields (result i32)))
    (import "wasi:http/types@0.2.12" "[constructor]outgoing-request" (func $request (param i32) (result i32)))
    (import "wasi:http/types@0.2.12" "[method]outgoing-request.set-method" (func $method (param i32 i32 i32 i32) (result i32)))
    $ALLOCATOR
    $RUN
        (drop (memory.grow (i32.const 48)))
        (memory.fill (i32.const 131072) (i32.const 65) (i32.const 3000000))
        (if (i32.eqz (call $method (call $request (call $fields)) (i32.const 9) (i32.const 131072) (i32.const 3000000))) (then unreachable))
        $NULL))
