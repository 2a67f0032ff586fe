//! Looking at a whole payload, and saying what is wrong with it.
//!
//! Invariants:
//! 1. What cannot be read is found out page by page, so that a bad page hides no good one.
//! 2. An observation covers every byte in which any possible state differs from nothing, and the
//!    surroundings of every edge, so that bytes where none should be are found, too.
//!
//! Deliberately not here: which states are possible; see `history`.

use super::client::Shared;
use super::content::{Content, Kind, State, byte_of, read_len};
use crate::chunks::Chunks;
use crate::error::{Error, ErrorKind, Result};
use crate::payload_id::PayloadId;
use crate::stats::{Extent, ExtentKind};
use crate::store::Store;
use crate::types::PAGE;
use bytes::Bytes;
use std::rc::Rc;

/// Up to here, everything is read, whatever the states say.
const READ_ALL_MAX: u64 = 1 << 20;

/// What a payload turned out to be.
pub(super) struct Observation {
    pub(super) size: Option<u64>,
    /// What was read, and where.
    parts: Vec<(u64, Bytes)>,
    /// Ranges of at most a page that could not be read: `Corrupt`.
    pub(super) corrupt: Vec<(u64, u64, Error)>,
    /// Whether a read within the size gave another length than was asked for.
    is_short: bool,
}

/// Reads a payload, wherever one of the states has something.
pub(super) async fn observe(
    store: &Store,
    id: &PayloadId,
    states: &[Rc<State>],
) -> Result<Observation> {
    let size = match store.size(id).await {
        Ok(size) => Some(size),
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    let mut seen = Observation {
        size,
        parts: Vec::new(),
        corrupt: Vec::new(),
        is_short: false,
    };
    let Some(size) = size else { return Ok(seen) };
    let mut ranges = ranges(states, size);
    ranges.reverse();
    while let Some((from, to)) = ranges.pop() {
        let len = (to - from) as usize;
        match store.read_at(id, from, len).await {
            Ok(chunks) => seen.take(from, to, chunks),
            Err(error) if error.kind() == ErrorKind::Corrupt => match middle(from, to) {
                Some(middle) => ranges.extend([(middle, to), (from, middle)]),
                None => seen.corrupt.push((from, to, error)),
            },
            Err(error) => return Err(error),
        }
    }
    Ok(seen)
}

/// A page's edge within a range, near its middle.
fn middle(from: u64, to: u64) -> Option<u64> {
    let page = PAGE as u64;
    let (first, last) = (from / page + 1, to.div_ceil(page) - 1);
    (first <= last).then(|| first.midpoint(last) * page)
}

/// The ranges to read, sorted and disjoint.
fn ranges(states: &[Rc<State>], size: u64) -> Vec<(u64, u64)> {
    let page = PAGE as u64;
    let mut ranges = vec![(0, READ_ALL_MAX)];
    for content in states.iter().filter_map(|state| (**state).as_ref()) {
        ranges.extend(content.spans(0, u64::MAX).iter().filter_map(|span| {
            let data = span.2.is_some();
            data.then(|| (span.0.saturating_sub(page), span.1.saturating_add(page)))
        }));
        let edges = content
            .edges()
            .map(|edge| (edge.saturating_sub(page), edge.saturating_add(page)));
        ranges.extend(edges);
    }
    ranges.push((size.saturating_sub(page), size));
    ranges.sort_unstable();
    let mut merged: Vec<(u64, u64)> = Vec::new();
    for (from, to) in ranges {
        let (from, to) = (from.min(size), to.min(size));
        match merged.last_mut() {
            Some(last) if from <= last.1 => last.1 = last.1.max(to),
            _ => merged.push((from, to)),
        }
    }
    merged.retain(|range| range.0 < range.1);
    merged
}

impl Observation {
    /// Keeps what was read, in the pieces that it came in.
    fn take(&mut self, from: u64, to: u64, chunks: Chunks) {
        let mut at = from;
        for bytes in chunks {
            let end = at + bytes.len() as u64;
            self.parts.push((at, bytes));
            at = end;
        }
        self.is_short |= at != to;
    }

    /// Whether this is what a payload in `state` looks like, where it could be read. Zeros that are
    /// nowhere on disk can always be read.
    pub(super) fn fits(&self, state: &State) -> bool {
        match state {
            None => self.size.is_none(),
            Some(content) => {
                let whole = |part: &(u64, Bytes)| content.matches(part.0, &part.1);
                let holds_data = |range: &(u64, u64, Error)| content.has_data(range.0, range.1);
                !self.is_short
                    && self.size == Some(content.size)
                    && self.corrupt.iter().all(holds_data)
                    && self.parts.iter().all(whole)
            }
        }
    }

    /// Why no state fits, byte by byte.
    pub(super) fn explain(&self, shared: &Shared, states: &[Rc<State>]) -> String {
        let sizes: Vec<Option<u64>> = states
            .iter()
            .map(|state| (**state).as_ref().map(|content| content.size))
            .collect();
        let short = if self.is_short {
            ", reads are short"
        } else {
            ""
        };
        let mut text = format!("size {:?}, possible {sizes:?}{short}", self.size);
        for (offset, bytes) in &self.parts {
            let what = shared.explain(states, *offset, bytes);
            if !what.is_empty() {
                text.push_str("\n    ");
                text.push_str(&what);
            }
        }
        text + &self.unreadable()
    }

    /// Whether every byte comes from some write to its offset, or is zero: what is left of the
    /// contract when records of changes were destroyed.
    pub(super) fn is_of_known_bytes(&self, shared: &Shared) -> bool {
        let writes = shared.writes.borrow();
        self.parts.iter().all(|(offset, bytes)| {
            bytes.iter().zip(*offset..).all(|(byte, at)| {
                let from = |(tag, start, end): &(u32, u64, u64)| {
                    (*start..*end).contains(&at) && byte_of(*tag, at) == *byte
                };
                *byte == 0 || writes.iter().any(from)
            })
        })
    }

    /// What could not be read, for a message.
    fn unreadable(&self) -> String {
        match &self.corrupt[..] {
            [] => String::new(),
            [(from, to, error), ..] => {
                let count = self.corrupt.len();
                format!("\n    {count} corrupt pages, the first is {from}..{to}: {error}")
            }
        }
    }
}

impl Shared {
    /// Where bytes differ from the state that they are most like, and which writes they are from.
    pub(super) fn explain(&self, states: &[Rc<State>], offset: u64, bytes: &[u8]) -> String {
        let end = offset + bytes.len() as u64;
        let wrong_in = |content: &Content| {
            let wrong = (offset..end).zip(bytes);
            wrong.filter(|it| content.byte(it.0) != *it.1).count()
        };
        let contents = states.iter().filter_map(|state| (**state).as_ref());
        let nearest = contents.min_by_key(|content| wrong_in(content));
        let Some(content) = nearest else {
            return format!("{} bytes where nothing exists", bytes.len());
        };
        let wrong = (offset..end)
            .zip(bytes)
            .filter(|it| content.byte(it.0) != *it.1);
        let mut runs: Vec<(u64, u64, String)> = Vec::new();
        for (at, byte) in wrong {
            let expected = match content.spans(at, at + 1)[0].2 {
                Some(Kind::Data(tag)) => format!("write {}", tag - 1),
                Some(Kind::Zero) => "a punched hole".to_owned(),
                None => "nothing written".to_owned(),
            };
            let what = format!("expected {expected}, found {}", self.origin(*byte, at));
            match runs.last_mut() {
                Some(last) if last.1 == at && last.2 == what => last.1 = at + 1,
                _ => runs.push((at, at + 1, what)),
            }
        }
        let shown = runs.iter().take(6);
        let mut lines: Vec<String> = shown
            .map(|(from, to, what)| format!("bytes {from}..{to}: {what}"))
            .collect();
        if runs.len() > lines.len() {
            lines.push(format!("and {} runs more", runs.len() - lines.len()));
        }
        lines.join("\n    ")
    }

    fn origin(&self, byte: u8, at: u64) -> String {
        if byte == 0 {
            return "zero".to_owned();
        }
        let writes = self.writes.borrow();
        let from = writes
            .iter()
            .find(|(tag, start, end)| (*start..*end).contains(&at) && byte_of(*tag, at) == byte);
        match from {
            Some((tag, ..)) => format!("write {}", tag - 1),
            None => format!("{byte:#04x} of no write"),
        }
    }
}

/// Whether extents are what a payload in `state` has in `[offset, offset + len)`.
pub(super) fn extents_fit(state: &State, offset: u64, len: u64, extents: &[Extent]) -> bool {
    let Some(content) = state else { return false };
    let end = offset + read_len(content.size, offset, len);
    let mut at = offset;
    for extent in extents {
        if extent.offset != at || extent.len == 0 || extent.offset + extent.len > end {
            return false;
        }
        at += extent.len;
        let is_data = |kind: Option<Kind>| matches!(kind, Some(Kind::Data(_)));
        let hole = extent.kind == ExtentKind::Hole;
        let spans = content.spans(extent.offset, at);
        if spans.into_iter().any(|span| is_data(span.2) == hole) {
            return false;
        }
    }
    at == end.max(offset)
}
