;; Asks for a secret that it was not granted and gives up if it gets one.
;; expect: returned
;; asks: secret
(module (import "bulkhead:plugin/secrets@0.1.0" "placeholder" (func $placeholder (param i32 i32 i32)))
    $ALLOCATOR (data (i32.const 2048) "bot_token") $RUN
    (call $placeholder (i32.const 2048) (i32.const 9) (i32.const 64))
    (if (i32.eqz (i32.load8_u (i32.const 64))) (then unreachable)) (if (i32.load8_u (i32.const 68)) (then unreachable)) $NULL))
