;; Computes for ever when the host has read the result.
;; expect: out_of_fuel
;; limit: fuel
(module $ALLOCATOR $RUN $NULL)
    (func (export "cabi_post_bulkhead:plugin/action@0.1.0#run") (param i32) (loop $again (br $again))))
