;; Looks for directories and gives up if it finds one.
;; expect: returned
(module (import "wasi:filesystem/preopens@0.2.12" "get-directories" (func $directories (param i32))) $ALLOCATOR $RUN
    (call $directories (i32.const 64)) (if (i32.load (i32.const 68)) (then unreachable)) $NULL))
