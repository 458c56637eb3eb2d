;; Grows until it is refused and gives up.
;; expect: out_of_memory
;; limit: memory_bytes
(module $ALLOCATOR $RUN (loop $again (br_if $again (i32.ne (i32.const -1) (memory.grow (i32.const 16))))) unreachable))
