;; Declares more memory than it may have.
;; expect: out_of_memory
;; limit: memory_bytes
(module (memory (export "memory") 2000) (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) (i32.const 0)) $RUN unreachable))
