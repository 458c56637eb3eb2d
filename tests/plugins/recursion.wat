;; Calls itself without end.
;; expect: limit_exceeded
;; limit: stack_bytes
(module $ALLOCATOR (func $down (param i32) (result i32) (i32.add (i32.const 1) (call $down (i32.add (local.get 0) (i32.const 1))))) $RUN (drop (call $down (i32.const 0))) $NULL))
