;; Calls an empty place of a table.
;; expect: trapped
(module $ALLOCATOR (type $f (func)) (table $t 4 funcref) $RUN (call_indirect $t (type $f) (i32.const 2)) $NULL))
