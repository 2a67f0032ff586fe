//! What is kept in memory of what has been read, and what is read ahead.
//!
//! `table` is shared: any thread looks up, one shard writes. `read_buffer` is that shard's side:
//! what is in it, what has to leave. `hits` counts what callers take.
//! `prefetch` finds out what will be asked for next.
//!
//! Deliberately not here: I/O, and what a payload holds (`map`).

pub(crate) mod hits;
pub(crate) mod prefetch;
pub(crate) mod read_buffer;
pub(crate) mod table;
