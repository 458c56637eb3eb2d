;; Divides by zero.
;; expect: trapped
(module $ALLOCATOR $RUN (drop (i32.div_u (i32.const 1) (i32.load (i32.const 100000)))) $NULL))
