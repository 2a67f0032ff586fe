//! Which reads are part of a stream, and what such a stream will ask for next.
//!
//! A pure state machine: it is told of reads and answers with ranges to be read ahead. It sees
//! those reads only that the read buffer did not serve, and, of those that it did, the ones that
//! come to the beginning of a window. A stream has `WINDOWS_MAX` windows at most: the one that is
//! being used, and those ahead of it, so that the way to the device or the remote is never empty
//! while its reader waits for the next one.
//!
//! A read that begins where another of the same payload ended, to the page, makes a stream; so does
//! one that ends where another began; other steps, when two equal ones have been seen. Reads of
//! parts of a page are seen page by page, as the read buffer has the rest, and count as such.
//!
//! Invariants:
//! 1. A first read makes no stream, and reads nothing ahead.
//! 2. A window is at most `window_max`, and twice as large as the one before at most; four times
//!    where the way is long.
//! 3. What is remembered is bounded: `SEEN_MAX` reads, `STREAMS_MAX` streams.
//!
//! Deliberately not here: what is resident already, and I/O; see `shard::ahead`.

use crate::types::{PAGE, PayloadNo};
use std::collections::VecDeque;
use std::ops::Range;

/// The first window: as much as one device request of good size, so that a stream of two reads has
/// cost no more than one.
const WINDOW_MIN: u64 = 128 << 10;

/// Windows of a stream: what is used, what arrives, and what has just been asked for.
pub(crate) const WINDOWS_MAX: u64 = 3;

/// How much larger each window is than the one before. What is far away is waited for once in each
/// window until these are large enough for the way, so they grow faster.
const GROWTH: u64 = 2;
const GROWTH_FAR: u64 = 4;

/// Reads that are remembered to find a stream's beginning in.
const SEEN_MAX: usize = 32;

/// The last reads of a payload that may be the beginning of a stream: as many as readers may take
/// turns. With more, random reads of a small payload would look like streams by chance.
const NEAR_MAX: usize = 4;

/// Streams that are followed at once: readers of as many payloads, or places, on one shard.
const STREAMS_MAX: usize = 32;

/// Reads of a stream's payload elsewhere, with none of its own between them, after which it is
/// given up. Not at the first: several readers may share a payload.
const JUMPS_MAX: u32 = 4;

/// Pieces of a strided window at most.
const PIECES_MAX: u64 = 64;

const PAGE_BYTES: u64 = PAGE as u64;

/// How a stream moves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Motion {
    Forward,
    Backward,
    /// From the start of one read to that of the next, and how long they are.
    Strided {
        step: i64,
        len: u64,
    },
}

/// A place of a stream is the start of a read, but of a backward one the end.
struct Stream {
    payload: PayloadNo,
    motion: Motion,
    /// From here on what was read ahead may not have been used yet.
    tail: u64,
    /// A read that comes here asks for the next window: the window before the newest.
    edge: u64,
    newest: u64,
    /// Where the next window begins.
    next: u64,
    /// Bytes of the next window.
    window: u64,
    jumps: u32,
    used_at: u64,
}

#[derive(Clone, Copy)]
struct Seen {
    payload: PayloadNo,
    start: u64,
    end: u64,
}

/// The streams of a shard.
pub(crate) struct Prefetch {
    window_max: u64,
    seen: VecDeque<Seen>,
    streams: Vec<Stream>,
    turn: u64,
}

impl Prefetch {
    /// With windows of at most so many bytes; with less than a page nothing is ever read ahead.
    pub(crate) fn new(window_max: u64) -> Prefetch {
        Prefetch {
            window_max: window_max / PAGE_BYTES * PAGE_BYTES,
            seen: VecDeque::new(),
            streams: Vec::new(),
            turn: 0,
        }
    }

    /// Whether a read goes on with a stream.
    pub(crate) fn follows(&self, payload: PayloadNo, read: &Range<u64>) -> bool {
        let read = pages(read);
        let mut all = self.streams.iter();
        all.any(|it| it.payload == payload && it.contains(&read))
    }

    /// A payload of `size` bytes is read. Returns what to read ahead, by windows, in the order in
    /// which it will be wanted. `is_far`: it comes a long way.
    pub(crate) fn note(
        &mut self,
        payload: PayloadNo,
        read: Range<u64>,
        size: u64,
        is_far: bool,
    ) -> Vec<Vec<Range<u64>>> {
        if self.window_max == 0 || read.is_empty() {
            return Vec::new();
        }
        self.turn += 1;
        let read = pages(&read);
        let growth = if is_far { GROWTH_FAR } else { GROWTH };
        let index = match self.follow(payload, &read) {
            Some(index) => Some(index),
            None => self.begin(payload, &read),
        };
        self.remember(payload, &read);
        match index {
            Some(index) => self.advance(index, &read, size, growth),
            None => Vec::new(),
        }
    }

    /// The stream that a read belongs to. Others of its payload have been left once more.
    fn follow(&mut self, payload: PayloadNo, read: &Range<u64>) -> Option<usize> {
        let mut own = self.streams.iter();
        let found = own.position(|it| it.payload == payload && it.contains(read));
        if found.is_none() {
            for stream in self.streams.iter_mut().filter(|it| it.payload == payload) {
                stream.jumps += 1;
            }
            self.streams.retain(|stream| stream.jumps <= JUMPS_MAX);
        }
        found
    }

    /// Makes a stream of a read that goes on where others were.
    fn begin(&mut self, payload: PayloadNo, read: &Range<u64>) -> Option<usize> {
        let mut before = self.seen.iter().rev().filter(|it| it.payload == payload);
        let nearby = before.clone().take(NEAR_MAX).find_map(|it| match it {
            _ if it.end == read.start => Some(Motion::Forward),
            _ if it.start == read.end => Some(Motion::Backward),
            _ => None,
        });
        let strided = || {
            let (last, other) = (before.next()?, before.next()?);
            let step = read.start.checked_signed_diff(last.start)?;
            let same = last.start.checked_signed_diff(other.start) == Some(step);
            let len = read.end - read.start;
            let even = last.end - last.start == len && other.end - other.start == len;
            (same && even && step != 0).then_some(Motion::Strided { step, len })
        };
        let motion = nearby.or_else(strided)?;
        if self.streams.len() == STREAMS_MAX {
            let streams = self.streams.iter().enumerate();
            let oldest = streams.min_by_key(|(_, stream)| stream.used_at);
            self.streams.swap_remove(oldest.expect("there are some").0);
        }
        let (here, next) = match motion {
            Motion::Forward => (read.start, read.end),
            Motion::Backward => (read.end, read.start),
            Motion::Strided { step, .. } => (read.start, read.start.checked_add_signed(step)?),
        };
        self.streams.push(Stream {
            payload,
            motion,
            tail: here,
            edge: here,
            newest: here,
            next,
            window: WINDOW_MIN.min(self.window_max),
            jumps: 0,
            used_at: self.turn,
        });
        Some(self.streams.len() - 1)
    }

    fn remember(&mut self, payload: PayloadNo, read: &Range<u64>) {
        if self.seen.len() == SEEN_MAX {
            self.seen.pop_front();
        }
        self.seen.push_back(Seen {
            payload,
            start: read.start,
            end: read.end,
        });
    }

    /// The next windows of a stream, if its reader has come to the edge.
    fn advance(
        &mut self,
        index: usize,
        read: &Range<u64>,
        size: u64,
        growth: u64,
    ) -> Vec<Vec<Range<u64>>> {
        let (turn, window_max) = (self.turn, self.window_max);
        let stream = &mut self.streams[index];
        (stream.jumps, stream.used_at) = (0, turn);
        let mut windows = Vec::new();
        for _ in 1..WINDOWS_MAX {
            let before = stream.next;
            if !stream.reaches_edge(read) {
                break;
            }
            let ahead = stream.next_window(read, size);
            // Downward, the last place of all has none behind it.
            if ahead.is_empty() || stream.next == before {
                break;
            }
            stream.window = (stream.window * growth).min(window_max);
            windows.push(ahead);
        }
        windows
    }
}

/// A range, to whole pages.
fn pages(range: &Range<u64>) -> Range<u64> {
    range.start / PAGE_BYTES * PAGE_BYTES..range.end.next_multiple_of(PAGE_BYTES)
}

impl Stream {
    fn is_downward(&self) -> bool {
        match self.motion {
            Motion::Forward => false,
            Motion::Backward => true,
            Motion::Strided { step, .. } => step < 0,
        }
    }

    /// Whether place `a` comes before place `b`, or is the same.
    fn in_order(&self, a: u64, b: u64) -> bool {
        if self.is_downward() { a >= b } else { a <= b }
    }

    /// Whether a read is where the stream is expected.
    fn contains(&self, read: &Range<u64>) -> bool {
        let (place, fits) = match self.motion {
            Motion::Forward => (read.start, true),
            Motion::Backward => (read.end, true),
            Motion::Strided { step, len } => {
                let on_grid = read
                    .start
                    .abs_diff(self.edge)
                    .is_multiple_of(step.unsigned_abs());
                (read.start, on_grid && read.end - read.start == len)
            }
        };
        fits && self.in_order(self.tail, place) && self.in_order(place, self.next)
    }

    /// Whether a read is at the edge or beyond.
    fn reaches_edge(&self, read: &Range<u64>) -> bool {
        match self.motion {
            Motion::Forward => read.end > self.edge,
            Motion::Backward => read.start < self.edge,
            Motion::Strided { .. } => self.in_order(self.edge, read.start),
        }
    }

    /// What comes behind what was read ahead, and behind the reader.
    fn next_window(&mut self, read: &Range<u64>, size: u64) -> Vec<Range<u64>> {
        let behind = match self.motion {
            Motion::Forward => Some(read.end),
            Motion::Backward => Some(read.start),
            Motion::Strided { step, .. } => read.start.checked_add_signed(step),
        };
        let from = match behind {
            Some(behind) if self.in_order(self.next, behind) => behind,
            _ => self.next,
        };
        let (next, mut ranges) = match self.motion {
            Motion::Forward => {
                let next = (from + self.window).min(size).max(from);
                (next, std::iter::once(from..next).collect())
            }
            Motion::Backward => {
                let next = from.saturating_sub(self.window);
                // The reader comes from above: what is nearest to it is wanted first.
                let pieces = (next..from).step_by(WINDOW_MIN as usize);
                let pieces = pieces.map(|start| start..from.min(start + WINDOW_MIN));
                let mut pieces: Vec<Range<u64>> = pieces.collect();
                pieces.reverse();
                (next, pieces)
            }
            Motion::Strided { step, len } => self.strides(from, (step, len), size),
        };
        let is_first = self.tail == self.newest;
        let edge = if is_first { from } else { self.newest };
        (self.tail, self.edge, self.newest, self.next) = (self.edge, edge, from, next);
        ranges.retain(|range: &Range<u64>| !range.is_empty());
        ranges
    }

    /// The pieces of a strided window, and where the one behind it begins.
    fn strides(&self, from: u64, (step, len): (i64, u64), size: u64) -> (u64, Vec<Range<u64>>) {
        let mut ranges = Vec::new();
        let mut at = from;
        for _ in 0..(self.window / len).clamp(1, PIECES_MAX) {
            if at >= size {
                break;
            }
            ranges.push(at..(at + len).min(size));
            let Some(next) = at.checked_add_signed(step) else {
                break;
            };
            at = next;
        }
        (at, ranges)
    }
}

#[cfg(test)]
mod tests;
