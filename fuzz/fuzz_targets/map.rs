//! The extent tree against `rangemap`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ringstore::fuzzing::map(data));
