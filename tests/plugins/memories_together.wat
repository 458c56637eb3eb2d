;; Each memory is small enough, together they are not.
;; expect: out_of_memory
;; limit: memory_bytes
(module $ALLOCATOR (memory $b 300) (memory $c 300) (memory $d 1)
    $RUN (drop (memory.grow $d (i32.const 500))) (i32.store $d (i32.const 20000000) (i32.const 1)) $NULL))
