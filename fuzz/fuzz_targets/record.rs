//! Records: `RUSTC_BOOTSTRAP=1 cargo fuzz run record -- -max_total_time=60`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ringstore::fuzzing::record(data));
