;; Ends its process.
;; expect: trapped
(module (import "wasi:cli/exit@0.2.12" "exit" (func $exit (param i32))) $ALLOCATOR $RUN (call $exit (i32.const 0)) $NULL))
