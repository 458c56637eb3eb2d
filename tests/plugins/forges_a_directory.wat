;; Opens /etc/passwd below a directory whose handle it made up.
;; expect: trapped
(module (import "wasi:filesystem/types@0.2.12" "[method]descriptor.open-at" (func $open (param i32 i32 i32 i32 i32 i32 i32)))
    $ALLOCATOR (data (i32.const 2048) "/etc/passwd") $RUN
    (call $open (i32.const 3) (i32.const 0) (i32.const 2048) (i32.const 11) (i32.const 0) (i32.const 1) (i32.const 64)) $NULL))
