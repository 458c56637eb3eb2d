;; Has data that does not fit its memory.
;; expect: trapped
(module $ALLOCATOR (data (i32.const 131070) "abcdef") $RUN $NULL))
