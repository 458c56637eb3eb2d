;; Computes for ever in its main function.
;; expect: out_of_fuel
;; limit: fuel
(module $ALLOCATOR $RUN (loop $again (br $again)) unreachable))
