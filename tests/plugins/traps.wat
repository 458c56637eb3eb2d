;; Gives up.
;; expect: trapped
(module $ALLOCATOR $RUN unreachable))
