//! The superblock's bytes as `docs/format.md` draws them, and what becomes of damaged ones.

use super::*;
use crate::log::{cuts_and_flips, hex};

/// The superblock, without the zeros behind it.
const GOLDEN: &str = "\
    52494e4753544f52010000008d03d0d3303132333435363738396162636465660700000000000000\
    0000000100000000030000000000000066656463626139383736353433323130";

/// What stands behind it, as far as it is not zero.
const GOLDEN_PAST: &str = "\
    9114e52f000000000600000000000000030000000000000001000000000000000000000000000000";

fn superblock() -> Superblock {
    Superblock {
        store: *b"0123456789abcdef",
        node: *b"fedcba9876543210",
        epoch: Epoch(7),
        ancestors: after([1, 3, 6]),
        shards: 3,
        segment_bytes: 16 << 20,
    }
}

fn after<const N: usize>(epochs: [u64; N]) -> Ancestors {
    let mut ancestors = Ancestors::NONE;
    epochs.into_iter().for_each(|it| ancestors.push(Epoch(it)));
    ancestors
}

fn page(superblock: Superblock) -> Vec<u8> {
    let mut page = vec![0xff; PAGE];
    superblock.write(&mut page);
    page
}

#[test]
fn golden() {
    let page = page(superblock());
    let past = size_of::<Raw>()..size_of::<Raw>() + size_of::<RawAncestors>();
    assert_eq!(hex(&page[..past.start]), GOLDEN);
    assert_eq!(hex(&page[past.start..past.start + 40]), GOLDEN_PAST);
    assert!(page[past.start + 40..].iter().all(|byte| *byte == 0));
    assert_eq!(Superblock::parse("STORE", &page).unwrap(), superblock());
}

#[test]
fn every_cut_and_every_flip_is_survived() {
    let parse = |page: &[u8]| Superblock::parse("STORE", page).ok();
    cuts_and_flips(&page(superblock()), parse);
    let bytes = &page(superblock())[..size_of::<Raw>() + size_of::<RawAncestors>()];
    assert_eq!(cuts_and_flips(bytes, parse), 0, "the sum covers it");
}

#[test]
fn superblock_without_a_past_is_one() {
    let mut page = page(superblock());
    page[size_of::<Raw>()..].fill(0);
    let parsed = Superblock::parse("STORE", &page).unwrap();
    assert_eq!(parsed.ancestors, Ancestors::NONE);
    assert!(parsed.ancestors.may_have(Epoch(5)));
}

#[test]
fn epochs_of_a_copy_are_none_of_ours() {
    let ours = after([1, 30, 60]);
    for epoch in [1, 30, 60] {
        assert!(ours.may_have(Epoch(epoch)));
    }
    for epoch in [2, 31, 59, 61] {
        assert!(!ours.may_have(Epoch(epoch)), "{epoch}");
    }
    let mut long = ours;
    (0..ANCESTORS_MAX as u64).for_each(|it| long.push(Epoch(100 + 2 * it)));
    assert!(long.may_have(Epoch(60)) && long.may_have(Epoch(100)));
    assert!(!long.may_have(Epoch(101)));
}

#[test]
fn impossible_values_are_refused() {
    let good = superblock();
    let bad = [
        Superblock { shards: 0, ..good },
        Superblock {
            shards: 1025,
            ..good
        },
        Superblock {
            segment_bytes: PAGE as u64,
            ..good
        },
        Superblock {
            segment_bytes: SEGMENT_BYTES_MAX * 2,
            ..good
        },
        Superblock {
            segment_bytes: (16 << 20) + 1,
            ..good
        },
        // Opening counts on from it.
        Superblock {
            epoch: Epoch(u64::MAX),
            ..good
        },
    ];
    for superblock in bad {
        let parsed = Superblock::parse("STORE", &page(superblock));
        assert_eq!(parsed.unwrap_err().kind(), ErrorKind::Corrupt);
    }
}
