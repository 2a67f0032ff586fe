//! A plan of the simulator: operations, faults and crashes against a model.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ringstore::fuzzing::plan(data));
