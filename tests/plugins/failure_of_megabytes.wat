;; Explains its failure at length.
;; expect: plugin_error
(module $ALLOCATOR $RUN (drop (memory.grow (i32.const 100))) (memory.fill (i32.const 65536) (i32.const 27) (i32.const 2000000))
    (i32.store8 (i32.const 16) (i32.const 1)) (i32.store8 (i32.const 24) (i32.const 2)) (i32.store (i32.const 32) (i32.const 65536)) (i32.store (i32.const 36) (i32.const 2000000)) (i32.const 16)))
