;; Returns bytes that are not UTF-8.
;; expect: invalid_output
(module $ALLOCATOR (data (i32.const 2048) "\22\ff\fe\22") $RUN
    (i32.store (i32.const 24) (i32.const 2048)) (i32.store (i32.const 28) (i32.const 4)) (i32.const 16)))
