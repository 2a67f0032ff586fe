//! What one payload holds, as the oracle sees it: intervals of tagged bytes.
//!
//! Every write has a tag, and the byte at offset `o` of tag `t` is a function of both, never zero.
//! So a wrong byte names the write that it came from, and a zero names none.
//!
//! Invariants:
//! 1. Pieces are sorted, disjoint, not empty, and end at or before the size.
//! 2. A copy keeps offsets, so a byte's tag and offset say all about it, in every clone.
//!
//! Deliberately not here: time, and which of several contents is the right one; see `history`.

/// What a range holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    /// Bytes of the write with this tag.
    Data(u32),
    /// Zeros that were punched: they hide a copy-on-write source.
    Zero,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Piece {
    start: u64,
    end: u64,
    kind: Kind,
}

/// A payload that exists.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Content {
    pub(super) size: u64,
    /// The smallest size that it was truncated to: a copy-on-write source shows only below it.
    cut: u64,
    pieces: Vec<Piece>,
}

/// A payload, or `None` where it does not exist.
pub(super) type State = Option<Content>;

/// A change of one payload.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Change {
    Write { offset: u64, len: u64, tag: u32 },
    Punch { offset: u64, len: u64 },
    Truncate { size: u64 },
    Delete,
}

/// Eight bytes of a tag, beginning at offset `word * 8`. All bytes are odd, so none is zero.
fn word_of(tag: u32, word: u64) -> [u8; 8] {
    let seed = word.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ (u64::from(tag) << 32 | u64::from(tag));
    let mixed = (seed ^ (seed >> 29)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    ((mixed ^ (mixed >> 32)) | 0x0101_0101_0101_0101).to_le_bytes()
}

/// The byte of a tag at an offset.
pub(super) fn byte_of(tag: u32, offset: u64) -> u8 {
    word_of(tag, offset / 8)[(offset % 8) as usize]
}

/// Fills `out` with a tag's bytes from `offset` on.
pub(super) fn fill(tag: u32, offset: u64, out: &mut [u8]) {
    let (head, first) = split_at_word(offset, out.len());
    let (head, rest) = out.split_at_mut(head);
    for (at, byte) in (offset..).zip(head) {
        *byte = byte_of(tag, at);
    }
    let mut words = rest.chunks_exact_mut(8);
    let mut word = first;
    for out in &mut words {
        out.copy_from_slice(&word_of(tag, word));
        word += 1;
    }
    let tail = words.into_remainder();
    let len = tail.len();
    tail.copy_from_slice(&word_of(tag, word)[..len]);
}

/// Whether `bytes` are a tag's from `offset` on. Every run compares everything with this, so it
/// goes word by word.
fn is_of_tag(tag: u32, offset: u64, bytes: &[u8]) -> bool {
    let (head, first) = split_at_word(offset, bytes.len());
    let (head, rest) = bytes.split_at(head);
    let mut words = rest.chunks_exact(8);
    let mut word = first;
    for bytes in &mut words {
        if *bytes != word_of(tag, word) {
            return false;
        }
        word += 1;
    }
    let tail = words.remainder();
    *tail == word_of(tag, word)[..tail.len()]
        && head
            .iter()
            .zip(offset..)
            .all(|(byte, at)| *byte == byte_of(tag, at))
}

/// Bytes before the first whole word of a range, and the number of that word.
fn split_at_word(offset: u64, len: usize) -> (usize, u64) {
    let head = (offset.next_multiple_of(8) - offset) as usize;
    (head.min(len), offset.div_ceil(8))
}

/// Whether all bytes are zero, some at a time.
pub(super) fn is_zero(bytes: &[u8]) -> bool {
    let any = |bytes: &[u8]| bytes.iter().fold(0, |any, byte| any | byte);
    bytes.chunks(256).all(|chunk| any(chunk) == 0)
}

impl Content {
    pub(super) fn new() -> Content {
        Content {
            size: 0,
            cut: u64::MAX,
            pieces: Vec::new(),
        }
    }

    /// Makes room for `[start, end)`, and puts `kind` there if there is one.
    fn put(&mut self, start: u64, end: u64, kind: Option<Kind>) {
        if start >= end {
            return;
        }
        let mut pieces = Vec::with_capacity(self.pieces.len() + 2);
        let mut placed = kind.is_none();
        for piece in &self.pieces {
            if piece.start < start {
                pieces.push(Piece {
                    end: piece.end.min(start),
                    ..*piece
                });
            }
            if !placed && piece.end > start {
                pieces.extend(kind.map(|kind| Piece { start, end, kind }));
                placed = true;
            }
            if piece.end > end {
                pieces.push(Piece {
                    start: piece.start.max(end),
                    ..*piece
                });
            }
        }
        if !placed {
            pieces.extend(kind.map(|kind| Piece { start, end, kind }));
        }
        // Neighbours of one kind are one piece, so that equal contents are equal values.
        pieces.dedup_by(|next, last| {
            let joins = last.end == next.start && last.kind == next.kind;
            if joins {
                last.end = next.end;
            }
            joins
        });
        self.pieces = pieces;
    }

    /// The pieces of a range, without gaps: start, end, and what is there.
    pub(super) fn spans(&self, from: u64, to: u64) -> Vec<(u64, u64, Option<Kind>)> {
        let mut spans = Vec::new();
        let mut at = from;
        let first = self.pieces.partition_point(|piece| piece.end <= from);
        for piece in &self.pieces[first..] {
            if piece.start >= to {
                break;
            }
            let start = piece.start.max(from);
            if start > at {
                spans.push((at, start, None));
            }
            let end = piece.end.min(to);
            spans.push((start, end, Some(piece.kind)));
            at = end;
        }
        if at < to {
            spans.push((at, to, None));
        }
        spans
    }

    /// Whether `bytes`, read at `offset`, are what stands there; the size is not looked at.
    pub(super) fn matches(&self, offset: u64, bytes: &[u8]) -> bool {
        let end = offset + bytes.len() as u64;
        self.spans(offset, end).into_iter().all(|(from, to, kind)| {
            let part = &bytes[(from - offset) as usize..(to - offset) as usize];
            part_matches(from, part, kind)
        })
    }

    /// Whether any byte of a write is in `[from, to)`.
    pub(super) fn has_data(&self, from: u64, to: u64) -> bool {
        let is_data = |kind: Option<Kind>| matches!(kind, Some(Kind::Data(_)));
        self.spans(from, to).iter().any(|span| is_data(span.2))
    }

    /// The byte at an offset.
    pub(super) fn byte(&self, offset: u64) -> u8 {
        match self.spans(offset, offset + 1)[0].2 {
            Some(Kind::Data(tag)) => byte_of(tag, offset),
            Some(Kind::Zero) | None => 0,
        }
    }

    /// Where something begins or ends.
    pub(super) fn edges(&self) -> impl Iterator<Item = u64> {
        self.pieces
            .iter()
            .flat_map(|piece| [piece.start, piece.end])
            .chain([0, self.size])
    }
}

fn part_matches(offset: u64, part: &[u8], kind: Option<Kind>) -> bool {
    match kind {
        Some(Kind::Data(tag)) => is_of_tag(tag, offset, part),
        Some(Kind::Zero) | None => is_zero(part),
    }
}

/// What a change makes of a payload.
pub(super) fn apply(state: &State, change: &Change) -> State {
    if *change == Change::Delete {
        return None;
    }
    if state.is_none() && matches!(change, Change::Punch { .. }) {
        return None;
    }
    let mut content = state.clone().unwrap_or_else(Content::new);
    match *change {
        Change::Write { len: 0, .. } => return state.clone(),
        Change::Write { offset, len, tag } => {
            content.put(offset, offset + len, Some(Kind::Data(tag)));
            content.size = content.size.max(offset + len);
        }
        Change::Punch { offset, len } => {
            let end = (offset + len).min(content.size);
            content.put(offset, end, Some(Kind::Zero));
        }
        Change::Truncate { size } => {
            content.put(size, u64::MAX, None);
            content.size = size;
            content.cut = content.cut.min(size);
        }
        Change::Delete => unreachable!("returned above"),
    }
    Some(content)
}

/// Whether `bytes` are what a copy-on-write read of `[offset, offset + len)` gives; and whether its
/// length is.
pub(super) fn cow_matches(upper: &State, lower: &State, offset: u64, bytes: &[u8]) -> bool {
    let lower_size = lower.as_ref().map_or(0, |lower| lower.size);
    let empty = Content::new();
    let layer = upper.as_ref().unwrap_or(&empty);
    let shows = layer.cut.min(lower_size);
    let end = offset + bytes.len() as u64;
    layer
        .spans(offset, end)
        .into_iter()
        .all(|(from, to, kind)| {
            let part = &bytes[(from - offset) as usize..(to - offset) as usize];
            if kind.is_some() {
                return part_matches(from, part, kind);
            }
            let edge = shows.clamp(from, to);
            let (shown, hidden) = part.split_at((edge - from) as usize);
            let source = lower.as_ref().unwrap_or(&empty);
            source.matches(from, shown) && is_zero(hidden)
        })
}

/// How many bytes a read of a payload of `size` bytes gives.
pub(super) fn read_len(size: u64, offset: u64, len: u64) -> u64 {
    len.min(size.saturating_sub(offset))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(changes: &[Change]) -> State {
        changes
            .iter()
            .fold(None, |state, change| apply(&state, change))
    }

    #[test]
    fn a_tags_bytes_are_the_same_from_everywhere() {
        for (offset, len) in (0..17).flat_map(|offset| (0..40).map(move |len| (offset, len))) {
            let mut bytes = vec![0; len];
            fill(5, offset, &mut bytes);
            let one_by_one: Vec<u8> = (offset..).take(len).map(|at| byte_of(5, at)).collect();
            assert_eq!(bytes, one_by_one);
            assert!(is_of_tag(5, offset, &bytes));
            for wrong in 0..len {
                let mut bytes = bytes.clone();
                bytes[wrong] ^= 0x80;
                assert!(!is_of_tag(5, offset, &bytes));
                let mut zeros = vec![0; len];
                assert!(is_zero(&zeros));
                zeros[wrong] = 4;
                assert!(!is_zero(&zeros));
            }
        }
    }

    #[test]
    fn a_byte_array_agrees() {
        let mut rng = fastrand::Rng::with_seed(7);
        for _ in 0..200 {
            let mut plain: Vec<u8> = Vec::new();
            let mut state = Some(Content::new());
            for tag in 1..20 {
                let (offset, len) = (rng.u64(..60), rng.u64(..30));
                let end = (offset + len) as usize;
                let change = match rng.u8(..3) {
                    0 => {
                        if len > 0 {
                            plain.resize(plain.len().max(end), 0);
                            fill(tag, offset, &mut plain[offset as usize..end]);
                        }
                        Change::Write { offset, len, tag }
                    }
                    1 => {
                        let size = plain.len();
                        plain[(offset as usize).min(size)..end.min(size)].fill(0);
                        Change::Punch { offset, len }
                    }
                    _ => {
                        plain.resize(len as usize, 0);
                        Change::Truncate { size: len }
                    }
                };
                state = apply(&state, &change);
                let content = state.as_ref().expect("it exists");
                assert_eq!(content.size, plain.len() as u64);
                assert!(content.matches(0, &plain), "{content:?}");
            }
        }
    }

    #[test]
    fn a_source_shows_below_the_cut_only() {
        let write = |offset, tag| Change::Write {
            offset,
            len: 10,
            tag,
        };
        let upper = run(&[write(0, 1), Change::Truncate { size: 5 }, write(30, 2)]);
        let lower = run(&[write(0, 3), write(10, 3)]);
        let mut bytes = vec![0; 40];
        fill(1, 0, &mut bytes[..5]);
        fill(2, 30, &mut bytes[30..]);
        assert!(cow_matches(&upper, &lower, 0, &bytes));
        let mut missing = vec![0; 20];
        fill(3, 0, &mut missing);
        assert!(cow_matches(&None, &lower, 0, &missing));
    }
}
