//! The log: from mutations and bytes to pages, and back. It says what to write and writes nothing.
//!
//! `record` is the codec of one mutation, `segment` the layout of a segment file, `writer` the open
//! end of the log, `checkpoint` the map as a file. None of them knows the map's types or does I/O.

pub(crate) mod checkpoint;
pub(crate) mod checksum;
pub(crate) mod record;
pub(crate) mod segment;
pub(crate) mod writer;
