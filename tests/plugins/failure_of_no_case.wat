;; Returns a failure that the type does not have.
;; expect: invalid_output
(module $ALLOCATOR $RUN (i32.store8 (i32.const 16) (i32.const 1)) (i32.store8 (i32.const 24) (i32.const 200)) (i32.const 16)))
