;; Waits for an empty list.
;; expect: trapped
(module (import "wasi:io/poll@0.2.12" "poll" (func $poll (param i32 i32 i32))) $ALLOCATOR $RUN (call $poll (i32.const 0) (i32.const 0) (i32.const 64)) $NULL))
