//! What is to be sent: heads that are gathered, and data that is not copied.
//!
//! Invariant: pieces go out in the order in which they were put, each byte once.

use bytes::{Buf, Bytes, BytesMut};
use std::collections::VecDeque;
use std::io::{self, IoSlice};
use tokio::net::UnixStream;

/// Pieces for one call of the kernel: a head and a page for each of 32 replies.
const SLICES_MAX: usize = 64;

/// Data up to here is copied behind its head: a slice of its own costs the kernel more.
const COPIED_BYTES_MAX: usize = 512;

/// Bytes that wait for the socket.
#[derive(Default)]
pub(crate) struct Out {
    pieces: VecDeque<Bytes>,
    /// Heads behind the last piece.
    tail: BytesMut,
    len: usize,
}

impl Out {
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Appends what `put` writes.
    pub(crate) fn head(&mut self, put: impl FnOnce(&mut BytesMut)) {
        let before = self.tail.len();
        put(&mut self.tail);
        self.len += self.tail.len() - before;
    }

    /// Appends data.
    pub(crate) fn data(&mut self, bytes: Bytes) {
        self.len += bytes.len();
        if bytes.len() <= COPIED_BYTES_MAX {
            self.tail.extend_from_slice(&bytes);
            return;
        }
        self.seal();
        self.pieces.push_back(bytes);
    }

    fn seal(&mut self) {
        if !self.tail.is_empty() {
            self.pieces.push_back(self.tail.split().freeze());
        }
    }

    /// Sends as much as the socket takes now.
    pub(crate) fn send(&mut self, stream: &UnixStream) -> io::Result<()> {
        self.seal();
        while !self.pieces.is_empty() {
            let mut slices = [IoSlice::new(&[]); SLICES_MAX];
            for (slice, piece) in slices.iter_mut().zip(&self.pieces) {
                *slice = IoSlice::new(piece);
            }
            let count = self.pieces.len().min(SLICES_MAX);
            match stream.try_write_vectored(&slices[..count]) {
                Ok(sent) => self.advance(sent),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn advance(&mut self, mut count: usize) {
        self.len -= count;
        while let Some(front) = self.pieces.front_mut() {
            if front.len() > count {
                front.advance(count);
                return;
            }
            count -= front.len();
            self.pieces.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn everything_arrives_in_order() {
        let (here, there) = UnixStream::pair().unwrap();
        let mut out = Out::default();
        let mut expected = Vec::new();
        for round in 0..500u32 {
            out.head(|tail| tail.extend_from_slice(&round.to_be_bytes()));
            expected.extend(round.to_be_bytes());
            let data = vec![round as u8; (round as usize * 37) % 5000];
            out.data(Bytes::from(data.clone()));
            expected.extend(data);
        }
        assert_eq!(out.len(), expected.len());
        let mut received: Vec<u8> = Vec::new();
        while received.len() < expected.len() {
            let mut part = [0; 70_000];
            tokio::select! {
                _ = here.writable(), if !out.is_empty() => out.send(&here).unwrap(),
                _ = there.readable() => {
                    if let Ok(count) = there.try_read(&mut part) {
                        received.extend(&part[..count]);
                    }
                }
            }
        }
        assert!(received == expected && out.is_empty());
    }
}
