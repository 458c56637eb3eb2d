;; Calls itself without end while it is instantiated.
;; expect: limit_exceeded
;; limit: stack_bytes
(module $ALLOCATOR (func $down (call $down) (call $down)) (start $down) $RUN $NULL))
