;; Grows until it is refused and is content with what it has.
;; expect: returned
(module $ALLOCATOR $RUN (loop $again (br_if $again (i32.ne (i32.const -1) (memory.grow (i32.const 16))))) $NULL))
