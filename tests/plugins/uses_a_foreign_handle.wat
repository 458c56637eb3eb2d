;; Waits on handles that it was never given.
;; expect: trapped
(module (import "wasi:io/poll@0.2.12" "[method]pollable.block" (func $block (param i32))) $ALLOCATOR $RUN (call $block (i32.const 1)) $NULL))
