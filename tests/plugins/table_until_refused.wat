;; Grows a table until it is refused and gives up.
;; expect: out_of_memory
;; limit: table_elements
(module $ALLOCATOR (table $t 1 funcref) $RUN (loop $again (br_if $again (i32.ne (i32.const -1) (table.grow $t (ref.null func) (i32.const 1000))))) unreachable))
