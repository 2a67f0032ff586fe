//! The bytes of a checkpoint as `docs/format.md` draws them, and what becomes of damaged ones.

use super::*;
use crate::log::{cuts_and_flips, hex};

/// The only chunk of a checkpoint, without the zeros behind it.
const GOLDEN_CHUNK: &str = "\
    52494e47434b5000010000003a3bb378000000000701000001000000000000000100000000000000\
    443322110c0000000900000000000000050000000000000008000000000000000600000000000000\
    070000000f0000000400000000000000070000000000000002000000000000000300000000000000\
    06000000000000000100000000000000020000000100000000100000000000006400000000200040\
    00000000030000000100000000000000040000000100000001000000000000000300000000000000\
    05000000010000000000000006000000030000000700000000000000050000000000000088130000\
    00000000ffffffffffffffff01000000ffffffff612f62";

fn bound() -> Identity {
    identity(b"0123456789abcdef", ShardId(3), 4)
}

/// One item of every kind.
fn items() -> Vec<Item> {
    vec![
        Item::Start {
            next_lsn: 9,
            chain: 0x1122_3344,
            segment: SegmentId(5),
            pages: 12,
            next_payload: 8,
            next_generation: 6,
            next_file: 0,
            past_lost: false,
        },
        Item::Segment {
            segment: SegmentId(4),
            epoch: Epoch(7),
            file: Some(2),
            pages: 15,
            lsns: (Lsn(3), Lsn(6)),
            uploaded: true,
        },
        Item::ExtentLeaf(vec![(4096, 100, Location::new(SegmentId(4), 8192))]),
        Item::ExtentInner(vec![0]),
        Item::ZeroedLeaf(vec![(1, 3)]),
        Item::ZeroedInner(vec![0]),
        Item::Payload {
            payload: PayloadNo(7),
            generation: Generation(5),
            id: Some(PayloadId::new("a/b").unwrap()),
            size: 5000,
            cut: u64::MAX,
            extents: Some(1),
            zeroed: None,
        },
    ]
}

fn chunk() -> Vec<u8> {
    let mut encoder = Encoder::new(bound());
    assert!(items().iter().all(|item| encoder.push(item).is_none()));
    encoder.finish()
}

#[test]
fn beginning_has_flags_and_a_number() {
    for (next_file, past_lost) in [(0, true), (3, false), (u64::MAX, true)] {
        let mut item = items().remove(0);
        if let Item::Start {
            next_file: file,
            past_lost: lost,
            ..
        } = &mut item
        {
            (*file, *lost) = (next_file.min(NEXT_FILE_MAX), past_lost);
        }
        let mut encoder = Encoder::new(bound());
        assert!(encoder.push(&item).is_none());
        let decoded = decode_chunk(bound(), 0, &encoder.finish());
        assert_eq!(decoded, Ok((vec![item], true)));
    }
}

#[test]
fn golden_chunk() {
    let chunk = chunk();
    let len = GOLDEN_CHUNK.len() / 2;
    assert_eq!(hex(&chunk[..len]), GOLDEN_CHUNK);
    assert_eq!(chunk.len(), PAGE);
    assert!(chunk[len..].iter().all(|byte| *byte == 0));
    assert_eq!(decode_chunk(bound(), 0, &chunk), Ok((items(), true)));
}

#[test]
fn every_cut_and_every_flip_is_refused() {
    let parse = |chunk: &[u8]| decode_chunk(bound(), 0, chunk).ok();
    assert_eq!(cuts_and_flips(&chunk(), parse), 0, "the sum covers it");
}

#[test]
fn what_is_elsewhere_is_refused() {
    let chunk = chunk();
    assert!(decode_chunk(bound(), 1, &chunk).is_err());
    let newer = identity(b"0123456789abcdef", ShardId(3), 5);
    assert!(decode_chunk(newer, 0, &chunk).is_err());
}

#[test]
fn chunks_are_full_but_for_the_last() {
    let leaf = Item::ExtentLeaf(vec![(0, 1, Location::from_bits(0)); 1000]);
    let mut encoder = Encoder::new(bound());
    let mut chunks: Vec<Vec<u8>> = (0..40).filter_map(|_| encoder.push(&leaf)).collect();
    chunks.push(encoder.finish());
    assert!(chunks.len() > 2);
    let mut count = 0;
    for (index, bytes) in (0..).zip(&chunks) {
        let (items, last) = decode_chunk(bound(), index, bytes).unwrap();
        assert_eq!(last, index as usize == chunks.len() - 1);
        assert!(last || bytes.len() == CHUNK_BYTES_MAX);
        count += items.len();
    }
    assert_eq!(count, 40);
}

#[test]
fn policies_read_back() {
    let spans = [0, 3_600_000_000_000].map(std::time::Duration::from_nanos);
    let ttl = spans.map(RetentionPolicy::Ttl);
    for policy in [RetentionPolicy::Pin, RetentionPolicy::Lru]
        .into_iter()
        .chain(ttl)
    {
        let payload = PayloadNo(7);
        let item = Item::Policy { payload, policy };
        let mut encoder = Encoder::new(bound());
        assert!(encoder.push(&item).is_none());
        let decoded = decode_chunk(bound(), 0, &encoder.finish());
        assert_eq!(decoded, Ok((vec![item], true)));
    }
}
