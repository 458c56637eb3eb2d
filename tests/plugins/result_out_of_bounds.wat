;; Returns a string that ends outside of its memory.
;; expect: invalid_output
(module $ALLOCATOR $RUN
    (i32.store (i32.const 24) (i32.const 131000)) (i32.store (i32.const 28) (i32.const 100000)) (i32.const 16)))
