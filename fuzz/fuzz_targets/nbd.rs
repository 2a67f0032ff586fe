//! NBD's options and requests, by the decoder alone: it is part of the command, not of the library.
#![no_main]
#![allow(dead_code)]

#[path = "../../src/nbd/proto/mod.rs"]
mod proto;

libfuzzer_sys::fuzz_target!(|data: &[u8]| proto::check::decode(data));
