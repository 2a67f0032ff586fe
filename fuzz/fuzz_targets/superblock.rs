//! A copy of the superblock.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ringstore::fuzzing::superblock(data));
