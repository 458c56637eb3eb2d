;; Writes a megabyte to stdout.
;; expect: returned
(module (import "wasi:cli/stdout@0.2.12" "get-stdout" (func $get-stdout (result i32)))
    (import "wasi:io/streams@0.2.12" "[method]output-stream.blocking-write-and-flush" (func $write (param i32 i32 i32 i32))) $ALLOCATOR $RUN (local $n i32) (local $out i32) (local.set $out (call $get-stdout))
    (loop $again (call $write (local.get $out) (i32.const 1024) (i32.const 4096) (i32.const 64))
        (local.set $n (i32.add (local.get $n) (i32.const 1))) (br_if $again (i32.lt_u (local.get $n) (i32.const 250)))) $NULL))
