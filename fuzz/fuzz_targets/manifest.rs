//! A manifest, as a bucket gives it.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ringstore::fuzzing::manifest(data));
