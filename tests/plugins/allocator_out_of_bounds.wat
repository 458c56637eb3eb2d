;; Its allocator answers with an address outside of its memory.
;; expect: trapped
(module (memory (export "memory") 1)
    (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) (i32.const -16))
    $RUN unreachable))
