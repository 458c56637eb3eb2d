;; Opens a TCP and a UDP socket and gives up if it gets one.
;; expect: returned
(module (import "wasi:sockets/tcp-create-socket@0.2.12" "create-tcp-socket" (func $tcp (param i32 i32)))
    (import "wasi:sockets/udp-create-socket@0.2.12" "create-udp-socket" (func $udp (param i32 i32)))
    $ALLOCATOR $RUN
    (call $tcp (i32.const 0) (i32.const 64)) (if (i32.eqz (i32.load8_u (i32.const 64))) (then unreachable))
    (call $udp (i32.const 0) (i32.const 64)) (if (i32.eqz (i32.load8_u (i32.const 64))) (then unreachable)) $NULL))
