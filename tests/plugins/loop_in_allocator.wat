;; Computes for ever when the host asks for room for the arguments.
;; expect: out_of_fuel
;; limit: fuel
(module (memory (export "memory") 1)
    (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) (loop $again (br $again)) unreachable)
    $RUN unreachable))
