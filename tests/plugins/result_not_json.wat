;; Returns something that is not JSON.
;; expect: invalid_output
(module $ALLOCATOR (data (i32.const 2048) "NaN") $RUN
    (i32.store (i32.const 24) (i32.const 2048)) (i32.store (i32.const 28) (i32.const 3)) (i32.const 16)))
