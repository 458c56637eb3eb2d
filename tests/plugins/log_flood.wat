;; Logs far more lines than are kept.
;; expect: returned
(module (import "wasi:logging/logging@0.1.0-draft" "log" (func $log (param i32 i32 i32 i32 i32))) $ALLOCATOR $RUN (local $n i32)
    (loop $again (call $log (i32.const 2) (i32.const 0) (i32.const 0) (i32.const 1024) (i32.const 4))
        (local.set $n (i32.add (local.get $n) (i32.const 1))) (br_if $again (i32.lt_u (local.get $n) (i32.const 5000)))) $NULL))
