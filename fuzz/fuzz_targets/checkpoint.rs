//! A checkpoint's chunk, and the map that its items make.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ringstore::fuzzing::checkpoint(data));
