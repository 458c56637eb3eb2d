;; The same with more fuel than its time allows.
;; expect: deadline_passed
;; limit: wall_ms
;; set: fuel=1000000000000 wall_ms=150
(module $ALLOCATOR $RUN (loop $again (br $again)) unreachable))
