//! What is sent for what came of a request.
//!
//! Invariant: a reply covers the range that was asked for, each byte once.
//!
//! Holes are found in the bytes that were read, page by page, and not asked for beside the read:
//! asking costs a second trip to the shard, 31 to 79 us, for each read; looking for zeros costs a
//! comparison that ends at the first byte of data. And what was read was read in one step, so a
//! write that comes between cannot tear the answer.

use super::export::{Outcome, Refusal};
use super::out::Out;
use super::proto::{self, Chunk, Command, Request, put_simple};
use bytes::Bytes;
use ringstore::Chunks;

/// The smallest hole that is told: the engine's page.
const HOLE_BYTES_MIN: usize = 4096;

/// Longest message beside an error; the protocol allows 4,096 bytes.
const MESSAGE_BYTES_MAX: usize = 1024;

static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// Appends the reply to a request.
pub(crate) fn put(
    out: &mut Out,
    request: &Request,
    result: Result<Outcome, Refusal>,
    structured: bool,
) {
    match result {
        Ok(Outcome::Read(chunks)) => put_read(out, request, chunks, structured),
        Ok(Outcome::Status(contexts)) => put_status(out, request.cookie, &contexts),
        Ok(Outcome::Done) if structured => {
            out.head(|tail| Chunk::Done.put(request.cookie, true, tail));
        }
        Ok(Outcome::Done) => out.head(|tail| put_simple(tail, request.cookie, None)),
        // Where an error may be told in full, it is.
        Err(refusal) if structured => {
            let message = shortened(&refusal.message);
            let chunk = Chunk::Error(refusal.error, message);
            out.head(|tail| chunk.put(request.cookie, true, tail));
        }
        Err(refusal) => {
            out.head(|tail| put_simple(tail, request.cookie, Some(refusal.error)));
        }
    }
}

fn shortened(message: &str) -> &str {
    &message[..message.floor_char_boundary(MESSAGE_BYTES_MAX)]
}

fn put_status(out: &mut Out, cookie: u64, contexts: &[(proto::Context, Vec<(u32, u32)>)]) {
    for (index, (context, ranges)) in contexts.iter().enumerate() {
        let last = index + 1 == contexts.len();
        out.head(|tail| Chunk::Status(*context, ranges).put(cookie, last, tail));
    }
}

fn put_read(out: &mut Out, request: &Request, chunks: Chunks, structured: bool) {
    assert_eq!(request.command, Command::Read);
    let mut runs = runs(request.offset, chunks, request.len as usize);
    if !structured {
        out.head(|tail| put_simple(tail, request.cookie, None));
        put_runs(out, runs);
        return;
    }
    if request.flags & proto::DF != 0 && runs.len() > 1 {
        let pieces = runs.into_iter().flat_map(|run| run.pieces).collect();
        let len = request.len as usize;
        runs = vec![Run {
            hole: false,
            len,
            pieces,
        }];
    }
    if runs.is_empty() {
        out.head(|tail| Chunk::Done.put(request.cookie, true, tail));
        return;
    }
    let (mut at, count) = (request.offset, runs.len());
    for (index, run) in runs.into_iter().enumerate() {
        let (len, last) = (run.len as u32, index + 1 == count);
        if run.hole {
            out.head(|tail| Chunk::Hole(at, len).put(request.cookie, last, tail));
        } else {
            out.head(|tail| Chunk::Data(at, len).put(request.cookie, last, tail));
            put_runs(out, vec![run]);
        }
        at += u64::from(len);
    }
}

fn put_runs(out: &mut Out, runs: Vec<Run>) {
    let pieces = runs.into_iter().flat_map(|run| run.pieces);
    pieces.for_each(|piece| out.data(piece));
}

/// Neighbouring bytes that are all zeros, or are told as data.
struct Run {
    hole: bool,
    len: usize,
    pieces: Vec<Bytes>,
}

/// Cuts what was read into data and holes; what is missing of `len` is zeros.
fn runs(offset: u64, pieces: impl IntoIterator<Item = Bytes>, len: usize) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    let mut at = offset;
    for piece in pieces {
        let mut from = 0;
        while from < piece.len() {
            let hole = is_zero(page(&piece, from, at));
            let mut to = from;
            while to < piece.len() && is_zero(page(&piece, to, at)) == hole {
                to += page(&piece, to, at).len();
            }
            push(&mut runs, hole, piece.slice(from..to));
            from = to;
        }
        at += piece.len() as u64;
    }
    let end = offset + len as u64;
    while at < end {
        let zeros = ZEROS.len().min((end - at) as usize);
        push(&mut runs, true, Bytes::from_static(&ZEROS[..zeros]));
        at += zeros as u64;
    }
    joined(runs)
}

/// The rest of the page of the payload that `piece[from..]` begins in; the piece begins at `at`.
fn page(piece: &[u8], from: usize, at: u64) -> &[u8] {
    let into = ((at + from as u64) % HOLE_BYTES_MIN as u64) as usize;
    &piece[from..piece.len().min(from + HOLE_BYTES_MIN - into)]
}

fn is_zero(bytes: &[u8]) -> bool {
    // The first byte decides almost always; the rest is compared by words.
    bytes.first() == Some(&0) && bytes == &ZEROS[..bytes.len()]
}

fn push(runs: &mut Vec<Run>, hole: bool, piece: Bytes) {
    match runs.last_mut() {
        Some(run) if run.hole == hole => {
            run.len += piece.len();
            run.pieces.push(piece);
        }
        _ => runs.push(Run {
            hole,
            len: piece.len(),
            pieces: vec![piece],
        }),
    }
}

/// Makes data of holes that are not worth telling.
fn joined(runs: Vec<Run>) -> Vec<Run> {
    let mut joined = Vec::new();
    for run in runs {
        let hole = run.hole && run.len >= HOLE_BYTES_MIN;
        run.pieces
            .into_iter()
            .for_each(|piece| push(&mut joined, hole, piece));
    }
    joined
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(offset: u64, bytes: &[u8], step: usize, len: usize) -> Vec<(bool, usize)> {
        let pieces = bytes.chunks(step).map(Bytes::copy_from_slice);
        let runs = runs(offset, pieces, len);
        let mut joined = Vec::new();
        for run in &runs {
            assert_eq!(run.len, run.pieces.iter().map(Bytes::len).sum::<usize>());
            run.pieces
                .iter()
                .for_each(|piece| joined.extend_from_slice(piece));
        }
        let missing = len - bytes.len();
        assert!(
            joined == [bytes, &vec![0; missing]].concat(),
            "not a byte is lost"
        );
        runs.iter().map(|run| (run.hole, run.len)).collect()
    }

    #[test]
    fn pages_of_zeros_are_holes() {
        for step in [1, 1000, 4096, 5000, 1 << 20] {
            let mut bytes = vec![0; 5 * 4096];
            assert_eq!(told(0, &bytes, step, bytes.len()), [(true, 5 * 4096)]);
            bytes[2 * 4096] = 1;
            let told = told(8192, &bytes, step, bytes.len());
            let holes: usize = told.iter().filter(|run| run.0).map(|run| run.1).sum();
            // Where pieces end within a page, more than whole pages of zeros may be found.
            assert!((4 * 4096..5 * 4096).contains(&holes), "{told:?}");
        }
        assert_eq!(told(0, &[0; 4095], 4096, 4095), [(false, 4095)]);
        assert_eq!(told(0, &[1; 4096], 4096, 4096), [(false, 4096)]);
    }

    #[test]
    fn what_is_missing_is_a_hole() {
        assert_eq!(told(0, &[], 1, 200_000), [(true, 200_000)]);
        assert_eq!(
            told(4096, &[7; 100], 64, 8192),
            [(false, 100), (true, 8092)]
        );
        assert_eq!(told(0, &[], 1, 0), []);
    }

    #[test]
    fn pages_are_those_of_the_payload() {
        let mut bytes = vec![0; 8192];
        bytes[0] = 1;
        // From 4,000 on the first page ends after 96 bytes.
        assert_eq!(told(4000, &bytes, 8192, 8192), [(false, 96), (true, 8096)]);
    }

    #[test]
    fn a_message_is_cut_at_a_letter() {
        let long = "ü".repeat(MESSAGE_BYTES_MAX);
        assert_eq!(shortened(&long).len(), MESSAGE_BYTES_MAX);
        assert_eq!(shortened(&long[2..][..101 * 2]).len(), 202);
    }
}
