;; Each table is small enough, together they are not.
;; expect: out_of_memory
;; limit: table_elements
(module $ALLOCATOR (table $s 15000 funcref) (table $t 15000 funcref) $RUN $NULL))
