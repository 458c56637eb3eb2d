;; Returns a result of brackets.
;; expect: invalid_output
(module $ALLOCATOR $RUN (memory.fill (i32.const 65536) (i32.const 91) (i32.const 1000))
    (memory.fill (i32.const 66536) (i32.const 93) (i32.const 1000))
    (i32.store (i32.const 24) (i32.const 65536)) (i32.store (i32.const 28) (i32.const 2000)) (i32.const 16)))
