;; Returns more than the host would even copy.
;; expect: limit_exceeded
;; limit: output_bytes
(module $ALLOCATOR $RUN (drop (memory.grow (i32.const 200))) (memory.fill (i32.const 65536) (i32.const 32) (i32.const 6000000))
    (i32.store (i32.const 24) (i32.const 65536)) (i32.store (i32.const 28) (i32.const 6000000)) (i32.const 16)))
