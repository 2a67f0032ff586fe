//! The bytes that a read returns: a rope, so that nothing has to be joined by copying.

use bytes::{Buf, Bytes, BytesMut};
use std::collections::VecDeque;
use std::fmt;

/// Bytes of a read, in order, in as many pieces as they came in.
///
/// Every piece keeps the memory it lies in alive; dropping the rope gives it back.
#[derive(Clone, Default)]
pub struct Chunks {
    pieces: VecDeque<Bytes>,
    len: usize,
}

impl Chunks {
    /// An empty rope.
    pub fn new() -> Chunks {
        Chunks::default()
    }

    /// Bytes in all pieces together.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// One contiguous piece: without a copy if there is only one, else with one.
    pub fn into_bytes(mut self) -> Bytes {
        if self.pieces.len() <= 1 {
            return self.pieces.pop_front().unwrap_or_default();
        }
        let mut joined = BytesMut::with_capacity(self.len);
        for piece in &self.pieces {
            joined.extend_from_slice(piece);
        }
        joined.freeze()
    }

    pub(crate) fn push(&mut self, piece: Bytes) {
        if !piece.is_empty() {
            self.len += piece.len();
            self.pieces.push_back(piece);
        }
    }
}

impl Buf for Chunks {
    fn remaining(&self) -> usize {
        self.len
    }

    fn chunk(&self) -> &[u8] {
        self.pieces.front().map_or(&[], |piece| piece)
    }

    fn advance(&mut self, mut count: usize) {
        assert!(count <= self.len, "advance past the end");
        self.len -= count;
        while count > 0 {
            let front = &mut self.pieces[0];
            if front.len() > count {
                front.advance(count);
                return;
            }
            count -= front.len();
            self.pieces.pop_front();
        }
    }
}

impl IntoIterator for Chunks {
    type Item = Bytes;
    type IntoIter = std::collections::vec_deque::IntoIter<Bytes>;

    fn into_iter(self) -> Self::IntoIter {
        self.pieces.into_iter()
    }
}

impl fmt::Debug for Chunks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Chunks({} bytes in {} pieces)",
            self.len,
            self.pieces.len()
        )
    }
}
