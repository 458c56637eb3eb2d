;; Copies all its memory again and again: single instructions that cannot be interrupted.
;; expect: deadline_passed
;; limit: wall_ms
;; set: wall_ms=200 fuel=1000000000000
(module $ALLOCATOR $RUN (drop (memory.grow (i32.const 1000)))
    (loop $again (memory.copy (i32.const 65536) (i32.const 65537) (i32.const 65000000)) (br $again)) unreachable))
