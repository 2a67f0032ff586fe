//! The bytes that a read returns: a rope, so that nothing has to be joined by copying.

use bytes::{Buf, Bytes, BytesMut};
use std::collections::{VecDeque, vec_deque};
use std::{fmt, option};

/// Bytes of a read, in order, in as many pieces as they came in.
///
/// Every piece keeps the memory it lies in alive; dropping the rope gives it back.
#[derive(Clone, Default)]
pub struct Chunks {
    /// The first piece; empty only if there are no bytes. Apart, as most reads have just one, and
    /// then nothing has to be allocated for it.
    first: Bytes,
    rest: VecDeque<Bytes>,
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
    pub fn into_bytes(self) -> Bytes {
        if self.rest.is_empty() {
            return self.first;
        }
        let mut joined = BytesMut::with_capacity(self.len);
        for piece in std::iter::once(&self.first).chain(&self.rest) {
            joined.extend_from_slice(piece);
        }
        joined.freeze()
    }

    pub(crate) fn push(&mut self, piece: Bytes) {
        if piece.is_empty() {
            return;
        }
        self.len += piece.len();
        match self.first.is_empty() {
            true => self.first = piece,
            false => self.rest.push_back(piece),
        }
    }
}

impl Buf for Chunks {
    fn remaining(&self) -> usize {
        self.len
    }

    fn chunk(&self) -> &[u8] {
        &self.first
    }

    fn advance(&mut self, mut count: usize) {
        assert!(count <= self.len, "advance past the end");
        self.len -= count;
        while count > 0 {
            if self.first.len() > count {
                self.first.advance(count);
                return;
            }
            count -= self.first.len();
            self.first = self.rest.pop_front().unwrap_or_default();
        }
    }
}

impl IntoIterator for Chunks {
    type Item = Bytes;
    type IntoIter = std::iter::Chain<option::IntoIter<Bytes>, vec_deque::IntoIter<Bytes>>;

    fn into_iter(self) -> Self::IntoIter {
        let first = (!self.first.is_empty()).then_some(self.first);
        first.into_iter().chain(self.rest)
    }
}

impl fmt::Debug for Chunks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Chunks({} bytes in {} pieces)",
            self.len,
            usize::from(!self.first.is_empty()) + self.rest.len()
        )
    }
}
