;; Gives up while it is instantiated.
;; expect: trapped
(module $ALLOCATOR (func $begin unreachable) (start $begin) $RUN $NULL))
