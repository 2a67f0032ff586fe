//! Payloads as block devices: an NBD server for Unix sockets, on top of the public API.
//!
//! ```text
//! server      accepts clients, up to a cap; ends them when it is told to
//!   handshake one client until it has chosen an export
//!   session   its requests: in, into the store side by side, and out again
//!     export  what a request means for the payload
//!     reply   what is sent for what came of it
//!     out     bytes that wait for the socket
//! proto       the messages, without I/O
//! ```
//!
//! Invariants:
//! 1. A client can make the server hold `session::BYTES_MAX` and a little more, no matter what it
//!    sends or does not read; then its socket is not read.
//! 2. A request that is wrong gets an error. Bytes that are no request end the connection, and
//!    nothing but that connection.
//! 3. A reply is sent when its operation is done, in whatever order that comes.

mod export;
mod handshake;
mod out;
mod proto;
mod reply;
mod server;
mod session;

pub(crate) use server::{Options, serve};
