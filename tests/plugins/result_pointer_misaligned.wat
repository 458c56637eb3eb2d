;; Returns the address of its result at an odd place.
;; expect: invalid_output
(module $ALLOCATOR $RUN (i32.const 17)))
