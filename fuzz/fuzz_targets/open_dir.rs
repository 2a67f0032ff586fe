//! A directory of arbitrary files, opened and used as a store.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ringstore::fuzzing::open_dir(data));
