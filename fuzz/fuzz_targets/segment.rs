//! A segment's head, a batch's head page, a footer.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ringstore::fuzzing::segment(data));
