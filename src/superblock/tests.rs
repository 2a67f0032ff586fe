//! The superblock's bytes as `docs/format.md` draws them, and what becomes of damaged ones.

use super::*;
use crate::log::{cuts_and_flips, hex};

/// The superblock, without the zeros behind it.
const GOLDEN: &str = "\
    52494e4753544f52010000008d03d0d3303132333435363738396162636465660700000000000000\
    0000000100000000030000000000000066656463626139383736353433323130";

fn superblock() -> Superblock {
    Superblock {
        store: *b"0123456789abcdef",
        node: *b"fedcba9876543210",
        epoch: Epoch(7),
        shards: 3,
        segment_bytes: 16 << 20,
    }
}

fn page(superblock: Superblock) -> Vec<u8> {
    let mut page = vec![0xff; PAGE];
    superblock.write(&mut page);
    page
}

#[test]
fn golden() {
    let page = page(superblock());
    assert_eq!(hex(&page[..size_of::<Raw>()]), GOLDEN);
    assert!(page[size_of::<Raw>()..].iter().all(|byte| *byte == 0));
    assert_eq!(Superblock::parse("STORE", &page).unwrap(), superblock());
}

#[test]
fn every_cut_and_every_flip_is_survived() {
    let parse = |page: &[u8]| Superblock::parse("STORE", page).ok();
    cuts_and_flips(&page(superblock()), parse);
    let bytes = &page(superblock())[..size_of::<Raw>()];
    assert_eq!(cuts_and_flips(bytes, parse), 0, "the sum covers it");
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
