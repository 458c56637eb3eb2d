;; The memories that it declares are together more than it may have.
;; expect: out_of_memory
;; limit: memory_bytes
(module $ALLOCATOR (memory $b 600) (memory $c 600) $RUN $NULL))
