;; Returns more than it may.
;; expect: limit_exceeded
;; limit: output_bytes
(module $ALLOCATOR $RUN (drop (memory.grow (i32.const 10))) (memory.fill (i32.const 65536) (i32.const 32) (i32.const 300000))
    (i32.store (i32.const 24) (i32.const 65536)) (i32.store (i32.const 28) (i32.const 300000)) (i32.const 16)))
