;; Fills all the memory that it may have, twice.
;; expect: returned
(module $ALLOCATOR $RUN (drop (memory.grow (i32.const 1000)))
    (memory.fill (i32.const 65536) (i32.const 171) (i32.const 65000000)) (memory.fill (i32.const 65536) (i32.const 0) (i32.const 65000000)) $NULL))
