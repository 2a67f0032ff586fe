//! The requests of one connection: in, into the store side by side, and out again.
//!
//! One task has the socket, the requests under way and the bytes to be sent, and does whatever can
//! be done next: take what is done, read, send. So nothing is locked, a request costs no task, and
//! what came with one read of the socket is with the shard before it wakes.
//!
//! Invariants:
//! 1. `REQUESTS_MAX` requests are under way at most. What they hold, the bytes that wait to be
//!    sent, and the request that is being received stay within `BYTES_MAX` together; beyond that
//!    the socket is not read.
//! 2. Bytes are sent when the input has nothing more to give, so that many replies go together.
//! 3. Each request that was received is answered, unless the client hangs up.

use super::export::{self, Export, Outcome, Refusal};
use super::handshake::{Agreed, violated};
use super::out::Out;
use super::proto::{Command, DATA_BYTES_MAX, Request};
use super::reply;
use bytes::{Bytes, BytesMut};
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use std::io;
use std::sync::Arc;
use tokio::net::UnixStream;
use tokio::sync::watch;

/// Requests of one connection under way: as many as clients send, and qemu sends 16, fio what it
/// is told, up to 128 in most of its examples.
const REQUESTS_MAX: usize = 128;

/// Memory that one connection can take: the longest request must fit.
const BYTES_MAX: usize = DATA_BYTES_MAX as usize;

/// What is read at once: 32 writes of 4 KiB with their heads.
const READ_BYTES: usize = 160 << 10;

/// With less room than this a new buffer is begun.
const READ_BYTES_MIN: usize = 16 << 10;

struct Done {
    request: Request,
    result: Result<Outcome, Refusal>,
}

struct Session {
    stream: UnixStream,
    export: Arc<Export>,
    structured: bool,
    input: BytesMut,
    running: FuturesUnordered<BoxFuture<'static, Done>>,
    /// What those requests hold.
    running_bytes: usize,
    out: Out,
    /// No more requests are taken: the client has left, or was wrong, or the server stops.
    ended: bool,
    violation: Option<io::Error>,
}

/// Serves a client until it leaves, or until `stop` says so; what is under way is finished.
pub(crate) async fn serve(
    stream: UnixStream,
    agreed: Agreed,
    stop: &mut watch::Receiver<bool>,
) -> io::Result<()> {
    let mut session = Session {
        stream,
        export: Arc::new(agreed.export),
        structured: agreed.structured,
        input: BytesMut::new(),
        running: FuturesUnordered::new(),
        running_bytes: 0,
        out: Out::default(),
        ended: false,
        violation: None,
    };
    loop {
        session.start();
        session.answer_ready();
        let reading = !session.ended && session.has_room();
        if session.ended && session.running.is_empty() && session.out.is_empty() {
            return session.violation.map_or(Ok(()), Err);
        }
        tokio::select! {
            biased;
            Some(done) = session.running.next() => session.answer(done),
            readable = session.stream.readable(), if reading => {
                readable?;
                session.receive()?;
            }
            writable = session.stream.writable(), if !session.out.is_empty() => {
                writable?;
                session.out.send(&session.stream)?;
            }
            () = stopped(stop), if !session.ended => session.ended = true,
        }
    }
}

/// Waits until the server is to stop.
pub(crate) async fn stopped(stop: &mut watch::Receiver<bool>) {
    // Also when nobody is left who could say so.
    let _ = stop.wait_for(|stop| *stop).await;
}

impl Session {
    /// Whether the next request may be taken, or received if it is not there yet.
    fn has_room(&self) -> bool {
        let next = match Request::peek(&self.input) {
            Ok(Some(request)) => export::cost(&request),
            _ => 0,
        };
        let held = self.running_bytes + self.out.len();
        self.running.len() < REQUESTS_MAX && held + next <= BYTES_MAX
    }

    /// Starts all requests of the input for which there is room.
    fn start(&mut self) {
        while !self.ended && self.has_room() {
            let request = match Request::peek(&self.input) {
                Ok(Some(request)) => request,
                Ok(None) => return,
                Err(violation) => {
                    self.violation = Some(violated(violation));
                    self.ended = true;
                    return;
                }
            };
            if self.input.len() < request.total_len() {
                return;
            }
            let data = request.take(&mut self.input);
            match request.command {
                Command::Disconnect => self.ended = true,
                _ => self.begin(request, data),
            }
        }
    }

    fn begin(&mut self, request: Request, data: Bytes) {
        let export = self.export.clone();
        self.running_bytes += export::cost(&request);
        let run = async move {
            let result = export.run(&request, data).await;
            Done { request, result }
        };
        self.running.push(run.boxed());
    }

    fn answer_ready(&mut self) {
        while let Some(Some(done)) = self.running.next().now_or_never() {
            self.answer(done);
        }
    }

    fn answer(&mut self, done: Done) {
        self.running_bytes -= export::cost(&done.request);
        reply::put(&mut self.out, &done.request, done.result, self.structured);
    }

    /// Reads what the socket has, into room for the request that is being received.
    fn receive(&mut self) -> io::Result<()> {
        let wanted = match Request::peek(&self.input) {
            Ok(Some(request)) => request.total_len().saturating_sub(self.input.len()),
            _ => 0,
        };
        let spare = self.input.capacity() - self.input.len();
        if spare < wanted.max(READ_BYTES_MIN) {
            self.input.reserve(wanted.max(READ_BYTES));
        }
        match self.stream.try_read_buf(&mut self.input) {
            // The client has hung up: with nothing to answer to, half a request is nothing.
            Ok(0) => self.ended = true,
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }
}
