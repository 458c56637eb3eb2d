;; Reads where it has no memory.
;; expect: trapped
(module $ALLOCATOR $RUN (drop (i32.load (i32.const -5))) $NULL))
