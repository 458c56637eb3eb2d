;; The same with more fuel than its time allows.
;; expect: deadline_passed
;; limit: wall_ms
;; set: fuel=1000000000000 wall_ms=150
(module (memory (export "memory") 1)
    (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) (loop $again (br $again)) unreachable)
    $RUN unreachable))
