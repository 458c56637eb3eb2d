;; Computes for ever while it is instantiated.
;; expect: out_of_fuel
;; limit: fuel
(module $ALLOCATOR (func $begin (loop $again (br $again))) (start $begin) $RUN $NULL))
