;; Returns an address outside of its memory.
;; expect: invalid_output
(module $ALLOCATOR $RUN (i32.const -64)))
